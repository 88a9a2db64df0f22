"""The numbers of MetaSlot's program: its aggregator, its codebook, a model and its training.

GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes: every size
is read from the files.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import FORWARD, GRADIENT, LOSS, METRIC, Golden, compare_gradients, golden, inner
from ml_collections import ConfigDict
from tiny import tiny_config

from smoothsa_jax.devices.host_arrays import copied
from smoothsa_jax.interop.authors import name_of
from smoothsa_jax.models.aggregators.metaslot import MetaSlot
from smoothsa_jax.models.buffers import DRAWS
from smoothsa_jax.models.parameters import split
from smoothsa_jax.tasks.task import MODEL
from smoothsa_jax.training import optimizer
from smoothsa_jax.training import step as step_file

FILES = [
    "metaslot_codebook",
    "metaslot_eval",
    "metaslot_eval_without_prototypes",
    "metaslot_train_prototypes",
    "metaslot_train_without_prototypes",
    "model_metaslot",
    "trajectory_metaslot",
]
# Stated in the README only.
ITERATIONS, TIMEOUT, NOISE = 3, 6, 0.5
PROGRAM = {"return_mask": False, "noise": NOISE, "timeout": TIMEOUT}

PART = "aggregat."
BUFFERS = {
    "clust_prob": "slots_share",
    "vq.latent_buffer": "queue",
    "vq.buffer_ptr": "pointer",
}
CODEBOOK = "vq.codebook.templat.weight"
UNUSED = ("vq.alpha", "vq.idx_buffer")  # of no effect in their program
NULL = "norm1q.bias"  # its gradient is zero in exact arithmetic


def arrays_of(recorded: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """An aggregator's parameters and buffers under our names."""
    params, buffers = {}, {}
    for key, x in recorded.items():
        if key in UNUSED:
            continue
        if key in BUFFERS:
            buffers[BUFFERS[key]] = jnp.asarray(x, jnp.int32 if x.dtype == np.int64 else x.dtype)
        elif key == CODEBOOK:
            params["codebook"] = jnp.asarray(x)
        else:
            name, transform = name_of(PART + key)
            params[name.removeprefix("aggregator.")] = jnp.asarray(transform(x))
    num_codes = len(params["codebook"])
    counters = {"calls": 0, "tied": 0, "counters": np.ones(num_codes)}
    return params, buffers | {name: jnp.asarray(x, jnp.int32) for name, x in counters.items()}


def settings_of(recorded: Mapping[str, np.ndarray]) -> dict:
    """The settings of an aggregator with these arrays."""
    codes, buffer = recorded[CODEBOOK], recorded["vq.latent_buffer"]
    settings = {"codes": len(codes), "capacity": len(buffer), **PROGRAM}
    if "ffn.0.weight" in recorded:
        settings["mlp_ratio"] = recorded["ffn.0.weight"].shape[0] / codes.shape[1]
    return settings


def load(recorded: Mapping[str, np.ndarray], **settings):
    """The definition of the aggregator, its parameters and its buffers."""
    slot_size, width = recorded["proj_k.weight"].shape
    settings = {"first": ITERATIONS, "later": 1, **settings_of(recorded), **settings}
    make = lambda: MetaSlot(width, slot_size, rngs=nnx.Rngs(0), **settings)  # noqa: E731
    definition, expected, _ = split(nnx.eval_shape(make))
    params, buffers = arrays_of(recorded)
    assert {n: x.shape for n, x in params.items()} == {n: x.shape for n, x in expected.items()}
    assert buffers.keys() == definition.buffers
    return definition, params, buffers


def compare_recorded(file: Golden, grads: Mapping) -> None:
    """Gradients that the program gives, also of inputs; all others of ours are zero."""
    recorded = {}
    for key, x in file.group("grad/").items():
        name, transform = key, lambda x: x
        if key not in ("encoded", "queries", CODEBOOK):
            name, transform = name_of(PART + key)
        name = "codebook" if key == CODEBOOK else name.removeprefix("aggregator.")
        recorded[name] = transform(x)
    is_null = lambda name: name == "norm_slots.bias"  # noqa: E731
    compare_gradients(file, grads, recorded, null=is_null, rounding=0.0, not_recorded=0.0)


def run_aggregator(file: Golden, definition, params, buffers, draws):
    """Its result for the recorded inputs; compares outputs and gradients."""
    cotangents = file["inp/cotangent_slots"], file["inp/cotangent_attention"]

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def run(params, encoded, queries):
        module = definition.merge(params, buffers)
        found = module(module.prepare(encoded), queries, None, draws)
        outputs = found.slots, found.attention[-1]
        return inner(list(zip(outputs, cotangents, strict=True))), found._asdict()

    (_, found), grads = run(params, file["inp/encoded"], file["inp/queries"])
    file.compare("out/slots", found["slots"], FORWARD)
    file.compare("out/attention", found["attention"][-1], FORWARD)
    compare_recorded(file, {**grads[0], "encoded": grads[1], "queries": grads[2]})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", "_without_prototypes"])
def test_evaluation(ending):
    with golden(f"metaslot_eval{ending}") as file:
        prototypes = {"prototypes": not ending}
        definition, params, _ = load(file.group("param/"), **prototypes)
        found = run_aggregator(file, definition, params, {}, None)
        kept = file["out/prototype"] >= 0
        np.testing.assert_array_equal(found["extras"]["slots_kept"], kept.sum(axis=1))
        assert found["slot_mask"] is None

        definition, params, _ = load(file.group("param/"), **prototypes, return_mask=True)
        module = definition.merge(params)
        found = module(module.prepare(file["inp/encoded"]), file["inp/queries"])
        np.testing.assert_array_equal(found.slot_mask, kept)


def draws_of(file: Golden, sizes: tuple[int, int]) -> tuple[dict, dict]:
    """The recorded draws of a call, and of the update after it."""
    batch, num_slots = sizes
    coin = np.broadcast_to(file["inp/uniform"], (batch,))
    noise = file["inp/feature_noise"].swapaxes(0, 1)
    call = {"noise": noise, "gumbel": file["inp/gumbel"], "coin": coin}
    gumbel = file["inp/gumbel_update"].reshape(batch, num_slots, -1)
    return call, {"gumbel": gumbel, "noise": file["inp/replacement_noise"]}


def compare_update(file: Golden, written: Mapping) -> None:
    for key, name in (
        ("clust_prob", "slots_share"),
        ("codebook", "codebook"),
        ("buffer", "queue"),
        ("pointer", "pointer"),
        ("counters", "counters"),
    ):
        file.compare(f"out/{key}", written[name], FORWARD)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["prototypes", "without_prototypes"])
def test_training(start):
    """Forward pass, gradient and the update that belongs to it."""
    with golden(f"metaslot_train_{start}") as file:
        definition, params, buffers = load(file.group("param/"))
        call, update = draws_of(file, file["inp/queries"].shape[:2])
        found = run_aggregator(file, definition, params, buffers, call)
        from_prototypes = start == "prototypes"
        assert (found["extras"]["codebook_gradient"] == from_prototypes).all()

        outputs = {"slots": found["slots"][:, None], "slots_kept": found["extras"]["slots_kept"]}
        module = definition.merge(params, buffers)
        written, numbers = jax.jit(module.update)(outputs, update)
        compare_update(file, written)
        assert 0 < numbers["codes_used"] <= 1


def test_updates_of_the_codebook():
    """Several in a row; no optimizer moves the codebook between them."""
    with golden("metaslot_codebook") as file:
        recorded = {f"vq.{key}": x for key, x in file.group("param/").items()}
        slots, gumbel = file["inp/slots"], file["inp/gumbel"]
        slot_size = slots.shape[-1]
        make = lambda: MetaSlot(  # noqa: E731
            slot_size, slot_size, first=1, later=1, **settings_of(recorded), rngs=nnx.Rngs(0)
        )
        definition, params, _ = split(make())
        own, buffers = arrays_of(recorded)
        params, buffers = params | own, {**buffers, "slots_share": jnp.float32(0.0)}

        @jax.jit
        def run(arrays, outputs, draws):
            return definition.merge(arrays).update(outputs, draws)[0]

        arrays, found = {**params, **buffers}, []
        for step in range(len(slots)):
            draws = {
                "gumbel": gumbel[step].reshape(*slots.shape[1:3], -1),
                "noise": file["inp/replacement_noise"][step],
            }
            module = definition.merge(arrays)
            index = module._choose(slots[step], draws["gumbel"])
            outputs = {"slots": slots[step][:, None], "slots_kept": jnp.zeros(len(slots[step]))}
            arrays = {**arrays, **run(arrays, outputs, draws)}
            found.append({**arrays, "index": index})
        for key, name in (
            ("codebook", "codebook"),
            ("buffer", "queue"),
            ("pointer", "pointer"),
            ("counters", "counters"),
            ("index", "index"),
        ):
            tolerance = FORWARD if key in ("codebook", "buffer") else METRIC
            file.compare(f"out/{key}", [x[name] for x in found], tolerance)


# --------------------------------------------------------------------------------- the whole model

MODEL_NAMES = {"initializ.mean": "initializer.mean", "initializ.logstd": "initializer.log_std"}
MASK_BIAS = "decoder.out.bias"  # its last entry shifts the logits of all slots alike
FINAL = 1e-4


def name_in_model(key: str):
    """Our name of one of the model's arrays, and the transform of its values."""
    if key in MODEL_NAMES:
        return MODEL_NAMES[key], lambda x: x
    if key == PART + CODEBOOK:
        return "aggregator.codebook", lambda x: x
    if not key.startswith("decode."):
        return name_of(key)
    *_, layer, leaf = key.split(".")
    if layer == "posit_embed":
        return "decoder.position", lambda x: x
    module = {"0": "project_slots", "last": "out"}.get(layer)
    module = module or f"layers.{int(layer) // 2 - 1}"
    ours = {"weight": "kernel", "bias": "bias"}[leaf]
    return f"decoder.{module}.{ours}", lambda x: x.T if x.ndim == 2 else x


class Recorded:
    """A recorded model: its config, its arrays and its batch."""

    def __init__(self, file: Golden):
        self.file = file
        recorded = file.group("param/")
        features = file["inp/features"]
        width, grid = features.shape[1], features.shape[2:]
        num_slots, slot_size = recorded["initializ.mean"].shape[1:]
        of_part = {k.removeprefix(PART): x for k, x in recorded.items() if k.startswith(PART)}
        layers = [int(key.split(".")[2]) for key in recorded if key.startswith("decode.backbone")]
        self.last = max(layers)
        config = ConfigDict(tiny_config(num_frames=1).to_dict(), type_safe=False)
        config.model = ConfigDict(
            {
                "num_slots": num_slots,
                "slot_size": slot_size,
                "encoder": {
                    "name": "vit",
                    "width": width,
                    "depth": 1,
                    "num_heads": 1,
                    "patch": 1,
                    "registers": 0,
                    "swiglu": False,
                    "resize": 1.0,
                },
                "projection": {
                    "name": "mlp",
                    "hidden_ratio": recorded["encode_project.1.bias"].size / width,
                    "to_slots": True,
                },
                "initializer": {
                    "name": "gaussian",
                    "log_std": 0.0,
                    "mean": "xavier",
                    "separate": True,
                    "noise": "training",
                },
                "aggregator": {
                    "name": "metaslot",
                    "first": ITERATIONS,
                    "later": 1,
                    **settings_of(of_part),
                },
                "transition": {"name": "none"},
                "decoder": {
                    "name": "mlp_mixture",
                    "num_layers": self.last // 2 + 1,
                    "hidden_size": recorded["decode.backbone.0.bias"].size,
                    "position": "slots",
                    "activation": "gelu",
                },
                "target": {"name": "features"},
            }
        )
        config.data.update(image_size=tuple(grid), boxes=False)
        config.losses = ConfigDict({"reconstruction": {"weight": 1.0}})
        config.train.batch_size = len(features)
        self.config = config
        self.params = {}
        for key, x in recorded.items():
            if not key.startswith(PART):
                name, transform = self.name_of(key)
                self.params[name] = jnp.asarray(transform(x))
        params, buffers = arrays_of(of_part)
        self.params |= {f"aggregator.{name}": x for name, x in params.items()}
        self.buffers = {f"aggregator.{name}": x for name, x in buffers.items()}
        tokens = np.moveaxis(features.reshape(*features.shape[:2], -1), 1, 2)
        self.batch = {
            "features": tokens[:, None],
            "slot_mask": np.ones((len(features), num_slots), bool),
        }
        self.channels_first = lambda x: np.moveaxis(x, -1, 1).reshape(features.shape)

    def name_of(self, key: str):
        return name_in_model(key.replace(f"backbone.{self.last}.", "backbone.last."))

    def draws(self, uniform=None) -> dict:
        file = self.file
        call, update = draws_of(file, file["inp/query_noise"].shape[:2])
        if uniform is not None:
            call["coin"] = np.full_like(call["coin"], uniform)
        return {
            "initializer": file["inp/query_noise"],
            "aggregator": {name: x[:, None] for name, x in call.items()},
            "decoder": None,
            "transition": None,
            "target": None,
            DRAWS: {"aggregator": update},
        }


def compare_model_outputs(file: Golden, case: Recorded, outputs: Mapping, prefix: str) -> None:
    for key, name in (
        ("slots", "slots"),
        ("attention", "attention"),
        ("decoder_attention", "masks"),
    ):
        file.compare(f"out/{prefix}{key}", outputs[name][:, 0], FORWARD)
    prediction = case.channels_first(outputs["prediction"][:, 0])
    file.compare(f"out/{prefix}reconstruction", prediction, FORWARD)


def without_null(name: str, x: np.ndarray) -> np.ndarray:
    return x[:-1] if name == MASK_BIAS else x


def started(case: Recorded, rates: np.ndarray):
    """The training that `main.py` builds, with these learning rates and the recorded arrays."""
    schedule = lambda step: jnp.asarray(rates, jnp.float32)[step]  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "learning_rate_schedule", lambda *_: schedule)
        setup = step_file.build_training(case.config)
    state = setup.state
    assert {n: x.shape for n, x in case.params.items()} == {
        n: x.shape for n, x in state.params.items()
    }
    assert case.buffers.keys() == state.buffers.keys()
    return setup, state.replace(params=copied(case.params), buffers=copied(case.buffers))


@pytest.mark.slow
def test_model():
    """Evaluation and training outputs, the loss, and what a training step does with its gradient.

    The learning rate is 0, so that the step leaves what its forward pass wrote.
    """
    with golden("model_metaslot") as file:
        case = Recorded(file)
        setup, state = started(case, np.zeros(1))
        definition = setup.definitions[MODEL]

        @functools.partial(jax.jit, static_argnames="training")
        def run(params, buffers, training):
            model = definition.merge(params, {**setup.frozen, **buffers})
            features, draws = case.batch["features"], case.draws() if training else {}
            nothing = dict.fromkeys(("initializer", "aggregator", "decoder", "transition"))
            return model(features, {"target": features}, {**nothing, **draws})

        evaluated = run(case.params, {}, training=False)
        compare_model_outputs(file, case, evaluated, "")
        trained = run(case.params, case.buffers, training=True)
        compare_model_outputs(file, case, trained, "train_")

        batch = setup.place(case.batch)
        draws = jax.tree.map(jnp.asarray, case.draws())
        state, metrics = setup.train_step(state, setup.frozen, batch, jax.random.key(0), draws)
        file.compare("loss/reconstruction", metrics["loss/reconstruction"], LOSS)
        written = {**state.params, **state.buffers}
        start = "aggregator."
        written = {n.removeprefix(start): x for n, x in written.items() if n.startswith(start)}
        compare_update(file, written)

        is_state = lambda x: isinstance(x, optimizer.ConditionalState)  # noqa: E731
        leaves = jax.tree.leaves(state.opt_state, is_leaf=is_state)
        moments = next(x for x in leaves if is_state(x))
        gradients = {**moments.others.mu, **moments.own["aggregator.codebook"].mu}
        # After one step Adam's first moment is a tenth of the clipped gradient.
        clipped = min(1.0, case.config.optimizer.clip_norm / (metrics["grad_norm"] + 1e-6))
        gradients = {name: x / (0.1 * clipped) for name, x in gradients.items()}
        largest = max(np.abs(x).max() for key, x in file.group("grad/").items())
        for key, recorded in file.group("grad/").items():
            name, transform = case.name_of(key)
            found, expected = gradients.pop(name), transform(recorded)
            if key == PART + NULL:
                assert np.abs(found - expected).max() < 1e-5 * largest
                continue
            if name == MASK_BIAS:
                assert np.abs(found[-1] - expected[-1]) < 1e-5 * largest
            change = lambda x, name=name, to=transform: without_null(name, to(x))  # noqa: E731
            file.compare(f"grad/{key}", without_null(name, found), GRADIENT, change=change)
        assert not gradients


@pytest.mark.slow
def test_trajectory():
    """Steps with and without prototypes: in the latter Adam leaves the codebook alone."""
    with (
        golden("model_metaslot", parts=()) as model_file,
        golden("trajectory_metaslot", parts=("inp/", "loss/", "out/", "final/")) as file,
    ):
        case = Recorded(model_file)
        rates, uniform = file["out/learning_rates"], file["inp/uniform"]
        # The last forward pass tells the final loss.
        setup, state = started(case, np.append(rates, 0.0))
        batch, found, first = setup.place(case.batch), [], copied(case.params)
        for step, coin in enumerate(uniform):
            draws = jax.tree.map(jnp.asarray, case.draws(coin))
            key = jax.random.key(step)
            state, metrics = setup.train_step(state, setup.frozen, batch, key, draws)
            found.append(jax.device_get(metrics))
        file.compare("loss/reconstruction", [m["loss/reconstruction"] for m in found], LOSS)
        norms = [m["grad_norm"] for m in found[: len(rates)]]
        file.compare("out/gradient_norms", norms, GRADIENT)

        final = {**state.params, **state.buffers}
        for key in file.group("final/"):
            inside = key.removeprefix(PART)
            if inside in UNUSED or inside == NULL:
                continue
            if inside in BUFFERS:
                name, transform = f"aggregator.{BUFFERS[inside]}", lambda x: x
            else:
                name, transform = case.name_of(key)
                assert np.any(state.params[name] != first[name]), name
            change = lambda x, name=name, to=transform: without_null(name, to(x))  # noqa: E731
            file.compare(f"final/{key}", without_null(name, final[name]), FINAL, change=change)
