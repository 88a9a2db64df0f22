"""Parts of a model that do not fit together are refused in one line, before anything is trained."""

import jax
import pytest
from tiny import tiny_batch, tiny_config

from smoothsa_jax.config.load import load_config
from smoothsa_jax.errors import UserError
from smoothsa_jax.training.checks import check
from smoothsa_jax.training.step import build_training

SPRITES = "configs/sprites.py"


@pytest.mark.parametrize("variant", ["", ":gaussian", ":image", ":full", ":smoke"])
def test_every_variant_passes_its_checks_and_fits_three_mebibytes(variant):
    config = load_config(SPRITES + variant)
    check(config)
    params = build_training(config).state.params
    assert sum(array.nbytes for array in params.values()) <= 3 * 2**20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model.decoder.name": "random_ar"}, "model.decoder.hidden_size is no option"),
        (
            {"model.backbone.name": "vit", "model.backbone.weights": "random"},
            "is no option of model.backbone.name='vit'",
        ),
        ({"loss.foo": 1.0}, "loss.foo is no loss term"),
        ({"data.num_frames": 1}, "loss.slot_contrast is 0.02, but clips have 1 frame"),
        ({"model.transition.name": "none"}, "a model of single images"),
        ({"model.transition.history": 1}, "at least 2"),
        ({"model.initializer.num_heads": 5}, "does not divide"),
        ({"model.transition.dropout_rate": 1.0}, "below 1"),
        ({"model.initializer.name": "gaussian"}, "data.boxes is True, but model.initializer.name"),
        ({"data.boxes": False}, "data.boxes is False, but model.initializer.name is 'boxes'"),
        ({"model.initializer.warmre": False}, "did you mean 'warmer'"),
        ({"model.slot_attention.truncat": False}, "model.slot_attention.truncat is no option"),
        ({"model.backbone.position_width": 7}, "an even number below the width 32"),
        ({"model.decoder.num_layers": 1}, "expected at least 2"),
        ({"train.num_steps": 10, "optimizer.warmup_fraction": 0.95}, "no step of 10"),
        ({"eval.checkpoint": "best", "checkpoint.max_to_keep": 1}, "keeps the latest alone"),
        ({"eval.split": "tset"}, "did you mean 'test'"),
        ({"checkpoint.best_metric": "fg_ari"}, "set --config.checkpoint.best_mode=max"),
        (
            {"loss.reconstruction": 0.0, "loss.distillation": 0.0, "loss.slot_contrast": 0.0},
            "all loss weights are 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(settings, words):
    config = load_config(SPRITES)
    with config.unlocked():
        for key, value in settings.items():
            *path, last = key.split(".")
            part = config
            for name in path:
                part = part[name]
            part[last] = value

    def start():
        check(config)
        build_training(config)

    with pytest.raises(UserError, match="(?s)^[^\\n]*$") as refused:
        start()
    assert words in str(refused.value)


def test_a_part_that_lacks_a_setting_is_refused():
    config = load_config(SPRITES)
    with config.unlocked():
        del config.model.decoder.hidden_size
    with pytest.raises(UserError, match="needs model.decoder.hidden_size"):
        build_training(config)


def test_without_a_warmer_there_is_no_distillation():
    config = tiny_config()
    config.model.initializer.warmer = False
    training = build_training(config)
    _, metrics = training.train_step(
        training.state, training.frozen, training.place(tiny_batch(config)), jax.random.key(0)
    )
    assert "loss/distillation" not in metrics
    assert float(metrics["loss"]) > 0
