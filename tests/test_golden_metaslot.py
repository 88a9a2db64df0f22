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
from golden_files import FORWARD, GRADIENT, METRIC, Golden, golden, inner

from smoothsa_jax.interop.authors import name_of
from smoothsa_jax.models.aggregators.metaslot import MetaSlot
from smoothsa_jax.models.parameters import split

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


def compare_gradients(file: Golden, grads: Mapping, prefix: str = "") -> None:
    """Those that the program gives; all others of ours are zero."""
    rest = dict(grads)
    largest = max(np.abs(x).max() for key, x in file.arrays.items() if key.startswith("grad/"))
    for key in file.group("grad/" + prefix):
        if key in ("encoded", "queries"):
            file.compare(f"grad/{key}", rest.pop(key), GRADIENT)
            continue
        if key == CODEBOOK:
            name, transform = "codebook", lambda x: x
        else:
            name, transform = name_of(PART + key)
            name = name.removeprefix("aggregator.")
        found = rest.pop(name)
        if key == NULL:
            assert np.abs(found - file["grad/" + prefix + key]).max() < 1e-5 * largest
        else:
            file.compare("grad/" + prefix + key, found, GRADIENT, change=transform)
    assert not any(np.any(x) for x in rest.values())


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
    compare_gradients(file, {**grads[0], "encoded": grads[1], "queries": grads[2]})
    return found


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
        recorded = file.group("param/")
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
