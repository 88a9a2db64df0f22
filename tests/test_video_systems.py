"""VideoSAUR, SlotContrast and RandSF.Q: their recipes, what they refuse, where gradient flows."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from recipes import quick
from tiny import tiny_batch, tiny_config

from smoothsa_jax.config.load import load_config
from smoothsa_jax.errors import UserError
from smoothsa_jax.losses.time import TimeSimilarity, time_similarity, time_similarity_loss
from smoothsa_jax.models.build import (
    DECODERS,
    INITIALIZERS,
    build_slot_model,
    slot_model_shapes,
)
from smoothsa_jax.models.parameters import split
from smoothsa_jax.parts import make
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.training.step import build_training

CONFIGS = Path(__file__).parent.parent / "configs"
SYSTEMS = ("videosaur", "slotcontrast", "randsfq")
# Slots, slot size, pixels, steps, batch, frames, learning rate, later iterations.
RECIPES = {
    "movi_c:gaussian,videosaur,original": (11, 128, 224, 100_000, 128, 4, 4e-4, 2),
    "movi_e:gaussian,videosaur,original": (15, 128, 224, 100_000, 128, 4, 4e-4, 2),
    "ytvis:videosaur,original": (7, 64, 224, 100_000, 128, 4, 4e-4, 2),
    "ytvis:videosaur,dinov2,original": (7, 64, 518, 100_000, 64, 4, 2e-4, 2),
    "movi_c:gaussian,slotcontrast,original": (11, 64, 336, 100_000, 64, 4, 4e-4, 2),
    "movi_e:gaussian,slotcontrast,original": (15, 128, 336, 300_000, 64, 4, 4e-4, 2),
    "ytvis:slotcontrast,original": (7, 64, 518, 100_000, 64, 4, 8e-4, 2),
    "movi_d:videosaur,genera1z": (20, 64, 256, 50_000, 8, 6, 5e-5, 3),
    "ytvis_hq:slotcontrast,genera1z": (7, 64, 256, 50_000, 8, 5, 5e-5, 3),
    "movi_c:randsfq": (10, 256, 256, 50_000, 8, 6, 5e-5, 1),
    "ytvis_hq:randsfq,tsim": (7, 256, 256, 50_000, 8, 5, 5e-5, 1),
}
TOKENS = {"movi_c:gaussian,videosaur,original": 784, "ytvis:videosaur,dinov2,original": 1369}
TEMPERATURES = {
    "movi_c:gaussian,videosaur,original": (0.075, 0.0, "keys"),
    "ytvis:videosaur,original": (0.25, 0.0, "keys"),
    "ytvis:videosaur,dinov2,original": (0.15, 0.0, "keys"),
    "movi_d:videosaur,genera1z": (1.0, None, "features"),
    "ytvis_hq:randsfq,tsim": (1.0, None, "features"),
}


def load(spec: str) -> ConfigDict:
    data_set, colon, words = spec.partition(":")
    return load_config(f"{CONFIGS / data_set}.py{colon}{words}")


# ------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize("spec", RECIPES)
def test_a_recipe_is_the_published_one(spec):
    config = load(spec)
    rate = config.optimizer.learning_rate
    found = (
        config.model.num_slots,
        config.model.slot_size,
        config.data.image_size,
        config.train.num_steps,
        config.train.batch_size,
        config.data.num_frames,
        rate.peak,
        config.model.aggregator.later,
    )
    assert found == RECIPES[spec]
    assert config.optimizer.clip_norm == 0.05 and config.model.aggregator.first == 3
    assert config.checkpoint.every == config.train.num_steps // 40
    if "original" in spec:  # it halves once, by the last step
        assert rate.warmup * config.train.num_steps == 2_500
        assert rate.half_life + rate.warmup == 1.0
    if spec in TEMPERATURES:
        loss = config.losses.time_similarity
        assert (loss.temperature, loss.threshold, loss.of) == TEMPERATURES[spec]
        assert (loss.weight, loss.shift) == (0.1, 1)
        alone = "movi" in spec and "original" in spec
        assert config.losses.reconstruction.weight == (0.0 if alone else 1.0)
        assert config.model.decoder.logits == ("only" if alone else "next_frame")
        assert "slot_contrast" not in config.losses
    else:
        others = {name: term.to_dict() for name, term in config.losses.items()}
        if "slot_contrast" in others:
            assert others["slot_contrast"].pop("over", "batch") == "batch"
            assert others["slot_contrast"] == {"weight": 0.5, "temperature": 0.1}
            assert others["reconstruction"] == {"weight": 1.0}
    if spec in TOKENS:
        model = slot_model_shapes(config.model, (config.data.image_size,) * 2)
        assert model.encoder.num_tokens == TOKENS[spec]


@pytest.mark.parametrize("system", SYSTEMS)
def test_data_decide_where_slots_start(system):
    boxes = load(f"movi_c:{system}").model.initializer
    assert boxes.to_dict() == {"name": "boxes", "log_std": None, "norm": False}
    expected = "learned" if system == "slotcontrast" else "gaussian"
    assert load(f"movi_c:gaussian,{system}").model.initializer.name == expected
    assert load(f"ytvis:{system}").model.initializer.name == expected


@pytest.mark.parametrize("system", SYSTEMS)
def test_boxes_stay_without_noise_where_systems_are_small(system):
    for words in (system, f"{system},smooth"):
        initializer = load(f"sprites:{words}").model.initializer
        assert initializer.get("cold", initializer).log_std is None
    assert load("sprites").model.initializer.cold.log_std == -4.0


def test_recognition_is_not_scored_as_masks_are():
    """Whatever protocol of masks the version of its slots has."""
    config = load("ytvis_hq:videosaur,original,recognition,smoke")
    assert config.eval.windows == 6
    check(config)


@pytest.mark.parametrize("system", SYSTEMS)
def test_smooth_puts_a_warmer_on_the_projected_tokens(system):
    config = load(f"ytvis:{system},smooth")
    assert (config.model.aggregator.first, config.model.aggregator.later) == (3, 1)
    assert config.losses.distillation.weight == 100.0
    model = slot_model_shapes(config.model, (256, 256))
    width = model.projection.width
    assert model.initializer.warmer.memory.kernel.shape == (width, config.model.slot_size)


@pytest.mark.slow
def test_initial_values_are_those_of_the_originals():
    """Biases are random as in torch, projections to queries and keys Xavier-uniform."""
    settings = load("sprites:gaussian,slotcontrast,original").model
    model = build_slot_model(settings, (60, 60), seed=0)
    size, width = settings.slot_size, settings.encoder.width
    bound = {
        "aggregator.gru.input.bias": size**-0.5,
        "aggregator.query.kernel": (6 / (2 * size)) ** 0.5,
        "aggregator.value.kernel": size**-0.5,
        "transition.layer.self_attention.in_projection": (6 / (2 * size)) ** 0.5,
        "transition.layer.feed_forward.hidden.bias": size**-0.5,
        "projection.mlp.hidden.bias": width**-0.5,
    }
    _, arrays, _ = split(model)
    for name, largest in bound.items():
        assert 0.8 * largest < np.abs(arrays[name]).max() <= largest, name
    assert not np.any(arrays["transition.layer.self_attention.in_bias"])
    assert 0.5 < np.std(arrays["initializer.mean"]) * settings.initializer.start_std**-1 < 1.5


def test_initial_values_of_the_slot_mixer():
    """The original's attention and last layer are Xavier-uniform; the other's layers are copies."""
    found = {}
    for spec in ("movi_c:gaussian,videosaur,original", "ytvis_hq:videosaur,genera1z"):
        settings = load(spec).model.decoder.to_dict() | {"hidden_size": 96}
        build = lambda settings=settings: make(  # noqa: E731
            "decoder", settings, DECODERS, (4, 4), 48, 64, rngs=nnx.Rngs(0)
        )
        found[spec] = split(build())[1]
    original, other = found.values()
    xavier, torch, packed = (6 / 128) ** 0.5, 64**-0.5, (6 / 256) ** 0.5
    attention = "layers.1.cross_attention"
    for arrays, bounds in (
        (original, (xavier, xavier, (6 / (96 + 16)) ** 0.5)),
        (other, (packed, torch, 96**-0.5)),
    ):
        names = (f"{attention}.in_projection", f"{attention}.out.kernel", "renderer.out.kernel")
        bound = dict(zip(names, bounds, strict=True))
        bound |= {"query.kernel": xavier, "key.kernel": xavier}
        bound |= {"layers.1.feed_forward.hidden.kernel": torch, "renderer.layers.0.kernel": torch}
        for name, largest in bound.items():
            assert 0.95 * largest < np.abs(arrays[name]).max() <= largest, name
    assert not np.any(original[f"{attention}.in_bias"]) and not np.any(
        original["renderer.out.bias"]
    )
    assert np.any(original["layers.1.feed_forward.hidden.bias"])
    assert np.std(original["position"]) == pytest.approx(128**-0.5, rel=0.1)
    assert 1.9 < np.abs(other["position"]).max() <= 2.0
    for arrays, copies in ((original, False), (other, True)):
        pair = (arrays[f"layers.{i}.cross_attention.in_projection"] for i in (0, 1))
        assert np.array_equal(*pair) == copies


def test_initial_queries_of_each_slot_are_xavier_as_a_matrix():
    settings = load("ytvis_hq:slotcontrast,genera1z").model.initializer.to_dict()
    part = make("initializer", settings, INITIALIZERS, 64, 64, 7, rngs=nnx.Rngs(0))
    bound = (6 / (7 + 64)) ** 0.5
    assert part.mean.shape == (1, 7, 64)
    assert 0.95 * bound < np.abs(part.mean[...]).max() <= bound
    np.testing.assert_allclose(np.exp(part.log_std[...]), 64**-0.5, rtol=1e-6)


# ---------------------------------------------------------------------------------- what is refused


SIMILARITY = {"weight": 0.1, "temperature": 1.0, "threshold": None, "of": "features"}
ON_MOVI = "movi_c:gaussian,videosaur"


@pytest.mark.parametrize(
    ("spec", "settings", "words"),
    [
        ("sprites:gaussian,slotcontrast", {"eval.num_slots": 9}, "a query for each of 5 slots"),
        (
            "sprites:videosaur",
            {"losses.time_similarity.shift": 2},
            "losses.time_similarity compares 3 frames, but clips have 2",
        ),
        (
            "sprites:videosaur",
            {"losses.time_similarity.of": "keys"},
            "losses.time_similarity needs keys, which this model does not give; freeze an encoder",
        ),
        (ON_MOVI, {"data.features": "stored"}, "reads the encoder's keys, which are not stored"),
        (
            "sprites:slotcontrast",
            {"losses.time_similarity": SIMILARITY},
            "needs next_frame_logits, which this model does not give; set --config.model.decoder",
        ),
        (
            ON_MOVI,
            {"losses.reconstruction.weight": 1.0},
            "losses.reconstruction needs prediction, which this model does not give",
        ),
        ("sprites:videosaur", {"model.decoder.logits": "all"}, "model.decoder.logits is 'all'"),
        (ON_MOVI, {"model.decoder.mix_heads": 5}, "does not divide model.slot_size"),
        ("sprites:videosaur", {"model.transition.norm": "mid"}, "expected one of post, pre"),
        ("sprites:slotcontrast", {"losses.slot_contrast.over": "clip"}, "one of batch, video"),
    ],
)
def test_what_does_not_fit_is_refused(spec, settings, words):
    config = load(spec)
    with config.unlocked(), config.ignore_type():
        if config.model.encoder.name == "vit":
            config.model.encoder.depth = 1
        for key, value in settings.items():
            *path, last = key.split(".")
            part = config
            for name in path:
                part = part[name]
            part[last] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(UserError) as refused:
        check(config)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("movi_c:videosaur,original", "start from boxes; add the word gaussian"),
        (
            "own:slotcontrast",
            "is a system of videos, but own has pictures here; add the word video",
        ),
        ("sprites:image,randsfq", "is a system of videos, but sprites has pictures here; choose"),
        ("coco:videosaur", "videosaur"),
        (
            "ytvis:videosaur,dinov2,genera1z",
            "'genera1z' has no variant 'dinov2'; leave out one of the two words",
        ),
        ("coco:dinosaur,dinov2,genera1z", "'genera1z' has no variant 'dinov2'"),
        ("coco:dinosaur,ar,genera1z", "'genera1z' has no variant 'ar'"),
        ("coco:dinosaur,r384,original", "'original' has no variant 'r384'"),
    ],
)
def test_words_that_do_not_fit_are_refused(spec, words):
    with pytest.raises(UserError) as refused:
        load(spec)
    assert words in str(refused.value) and "\n" not in str(refused.value)


# ---------------------------------------------------------------------------------------- the parts


def video_model(transition: str):
    """A tiny model without a warmer or slot contrast, and its arrays."""
    settings = {
        "transformer": {"num_heads": 2, "norm": "post", "activation": "gelu", "bias": False},
        "randsfq": {"num_heads": 2, "history": 4, "dropout_rate": 0.0},
    }
    config = tiny_config(initializer="gaussian", decoder="mlp_mixture").model.unlock()
    config.initializer = ConfigDict({"name": "gaussian", "log_std": 0.0})
    config.transition = ConfigDict({"name": transition, **settings[transition]})
    config.aggregator.gradient = "full"
    return build_slot_model(config, (16, 16), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("transition", ["transformer", "randsfq"])
def test_gradient_from_frame_to_frame(transition):
    """RandSF.Q's transition stops it, the plain transformer does not."""
    definition, params, frozen = split(video_model(transition), frozen=("encoder.*",))
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.standard_normal((2, 3, 16, 12)), jnp.float32)
    noise = rng.standard_normal((2, 4, 8)).astype("f")
    draws = {**dict.fromkeys(("decoder", "transition", "aggregator")), "initializer": noise}

    @jax.jit
    @jax.grad
    def run(features):
        model = definition.merge(params, frozen)
        slots = model(features, None, draws)["slots"][:, -1]
        return jnp.sum(jnp.cos(jnp.arange(slots.size)).reshape(slots.shape) * slots)

    reached = [bool(np.any(run(features)[:, t])) for t in range(3)]
    assert reached == [transition == "transformer"] * 2 + [True]


@pytest.mark.slow
def test_a_later_frame_alone_is_that_of_the_clip():
    """A stream of frames, whose transition has no memory, gives the slots of the whole clip."""
    model = video_model("transformer")
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.standard_normal((1, 3, 16, 12)), jnp.float32)
    noise = rng.standard_normal((1, 4, 8)).astype("f")
    draws = {**dict.fromkeys(("decoder", "transition", "aggregator")), "initializer": noise}
    slots = model(features, None, draws)["slots"]
    tokens = model.projection(features)
    found, _ = model.first_frame(tokens[:, 0], draws, None, None)
    later, memory = found.slots, None
    for t in (1, 2):
        later, _, memory = model.next_frame(later, tokens[:, t], None, memory)
        np.testing.assert_allclose(later, slots[:, t], atol=1e-5)


def test_keys_are_computed_only_where_a_loss_reads_them():
    config = load(ON_MOVI)
    with config.unlocked():
        config.model.encoder.update(depth=1, width=12, num_heads=2)

    def constants(config):
        task = build_task(config)
        definition, trained, frozen = split(task.build(shapes_only=True), frozen=("encoder.*",))
        video = jax.ShapeDtypeStruct((1, 2, 256, 256, 3), jnp.uint8)

        def run(arrays, video):
            model = definition.merge(arrays)
            return task.constants({"model": model}, {"video": video}, None, False)

        return jax.eval_shape(run, {**trained, **frozen}, video)

    assert constants(config)["keys"].shape == (1, 2, 256, 12)
    with config.unlocked():
        config.losses.time_similarity.of = "features"
    assert set(constants(config)) == {"features"}


# ----------------------------------------------------------------------------------------- the loss


def test_time_similarity_is_its_definition():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 4, 5, 3)).astype("f")
    logits = rng.standard_normal((2, 4, 5, 5)).astype("f")
    for shift, threshold in ((1, None), (2, 0.3)):
        total = []
        for sample, t in np.ndindex(2, 4 - shift):
            now, later = (x / np.linalg.norm(x, axis=-1, keepdims=True)
                          for x in (features[sample, t], features[sample, t + shift]))  # fmt: skip
            for p in range(5):
                cosines = now[p] @ later.T
                counts = cosines >= (-2.0 if threshold is None else threshold)
                weights = np.where(counts, np.exp(cosines / 0.5), 0.0) if counts.any() else 1.0
                target = np.broadcast_to(weights / np.sum(weights * np.ones(5)), 5)
                row = logits[sample, t, p]
                total.append(-np.sum(target * (row - np.log(np.exp(row).sum()))))
        loss = TimeSimilarity(temperature=0.5, threshold=threshold, shift=shift, of="features")
        assert loss.num_frames == shift + 1 and "target" in loss.reads
        outputs = {"target": features, "next_frame_logits": logits}
        found = jax.jit(lambda outputs, loss=loss: loss(outputs, {}, {}))(outputs)
        np.testing.assert_allclose(found, np.mean(total), rtol=1e-5)


def test_no_gradient_flows_into_the_similarities():
    features = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 3, 4)), jnp.float32)
    logits = jnp.arange(18.0).reshape(1, 2, 3, 3) % 4
    run = jax.grad(lambda x: time_similarity_loss(logits, time_similarity(x, 0.1, 0.0)))
    assert not np.any(jax.jit(run)(features))


@pytest.mark.parametrize(
    "spec", quick([f"sprites:{words}" for words in (*SYSTEMS, "randsfq,tsim", "videosaur,smooth")])
)
def test_a_step_on_sprites(spec):
    """Two steps of the compiled training step, with all losses of the system."""
    config = tiny_config(num_frames=3)
    sprites = load(spec)
    with config.unlocked():
        model = sprites.model.copy_and_resolve_references().unlock()
        model.update(num_slots=4, encoder=config.model.encoder)
        config.model, config.losses = model, sprites.losses
        config.optimizer = sprites.optimizer
    setup = build_training(config)
    batch = setup.place(tiny_batch(config))
    state, metrics = setup.train_step(setup.state, setup.frozen, batch, jax.random.key(0))
    state, metrics = setup.train_step(state, setup.frozen, batch, jax.random.key(1))
    assert np.isfinite(float(metrics["loss"]))
    assert {f"loss/{name}" for name in config.losses} <= set(metrics)
