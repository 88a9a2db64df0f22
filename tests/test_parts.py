"""Parts of a model that do not fit together are refused in one line, before anything is trained."""

import jax
import pytest
from ml_collections import ConfigDict
from tiny import tiny_batch, tiny_config

from smoothsa_jax.config.load import load_config
from smoothsa_jax.errors import UserError
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.training.step import build_training

SPRITES = "configs/sprites.py"
ENCODER = load_config(SPRITES).model.encoder.to_dict()


@pytest.mark.parametrize("variant", ["", ":gaussian", ":image", ":full", ":smoke"])
def test_every_variant_passes_its_checks_and_fits_three_mebibytes(variant):
    config = load_config(SPRITES + variant)
    check(config)
    params = build_training(config).state.params
    assert sum(array.nbytes for array in params.values()) <= 3 * 2**20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model.decoder.name": "random_ar"}, "model.decoder.hidden_size is not a setting"),
        (
            {"model.encoder.name": "vit"},
            "is not a setting of model.encoder.name='vit'",
        ),
        ({"losses.foo": {"weight": 1.0}}, "losses.foo.name is 'foo'; expected one of"),
        ({"data.num_frames": 1}, "losses.slot_contrast compares 2 frames, but clips have 1"),
        ({"model.transition": {"name": "none"}}, "a model of single images"),
        ({"model.transition.history": 1}, "at least 2"),
        ({"model.initializer.num_heads": 5}, "does not divide"),
        ({"model.transition.dropout_rate": 1.0}, "below 1"),
        (
            {"model.initializer.cold.name": "gaussian"},
            "data.boxes is True, but model.initializer.cold.name",
        ),
        (
            {"data.boxes": False},
            "data.boxes is False, but model.initializer.cold.name is 'boxes'",
        ),
        ({"model.initializer.straight_throuhg": False}, "did you mean 'straight_through'"),
        ({"model.aggregator.truncat": False}, "model.aggregator.truncat is not a setting"),
        (
            {"model.aggregator": {"name": "metaslot", "first": 3, "later": 1, "codes": 3}},
            "model.aggregator.codes is 3, less than model.num_slots=",
        ),
        (
            {"model.pruning": {"name": "redundancy", "distance": 0.5, "begin": -1}},
            "model.pruning.begin is -1",
        ),
        (
            {"data.features": "auto", "weights.encoder.frozen": ()},
            "data.features is set, but the encoder is trained",
        ),
        (
            {"data.features": "auto", "model.target_encoder": ENCODER},
            "data.features is set, but model.target_encoder needs pixels",
        ),
        ({"model.encoder.position_width": 7}, "an even number below the width 32"),
        ({"model.decoder.num_layers": 1}, "expected at least 2"),
        ({"train.num_steps": 10, "optimizer.learning_rate.warmup": 0.95}, "no step of 10"),
        ({"eval.checkpoint": "best", "checkpoint.max_to_keep": 1}, "keeps only the latest"),
        ({"eval.split": "tset"}, "did you mean 'test'"),
        ({"checkpoint.best_metric": "fg_ari"}, "set --config.checkpoint.best_mode=max"),
        (
            {
                "losses.reconstruction.weight": 0.0,
                "losses.distillation.weight": 0.0,
                "losses.slot_contrast.weight": 0.0,
            },
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

    with pytest.raises(UserError) as refused:
        start()
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_part_that_lacks_a_setting_is_refused():
    config = load_config(SPRITES)
    with config.unlocked():
        del config.model.decoder.hidden_size
    with pytest.raises(UserError, match="needs model.decoder.hidden_size"):
        build_training(config)


@pytest.mark.slow
def test_without_a_warmer_there_is_no_distillation():
    config = tiny_config()
    del config.losses.distillation
    with config.unlocked():
        config.model.initializer = ConfigDict({"name": "boxes", "log_std": 0.0})
    training = build_training(config)
    _, metrics = training.train_step(
        training.state, training.frozen, training.place(tiny_batch(config)), jax.random.key(0)
    )
    assert "loss/distillation" not in metrics
    assert float(metrics["loss"]) > 0
