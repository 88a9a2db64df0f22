"""Eight virtual devices, in their own process, compute the same as one, with any mesh."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict
from tiny import tiny_batch, tiny_config, with_tokens_along

from smoothsa_jax.checkpoints.read import read_checkpoint, restore_state
from smoothsa_jax.checkpoints.write import CheckpointWriter
from smoothsa_jax.devices import mesh as mesh_file
from smoothsa_jax.devices.host_arrays import copied
from smoothsa_jax.devices.mesh import make_mesh, own_mesh, persistent_sharding, replicated, spread
from smoothsa_jax.devices.mesh_shape import mesh_shape
from smoothsa_jax.devices.over_samples import over_samples
from smoothsa_jax.errors import UserError
from smoothsa_jax.losses.slots import slot_contrast_loss
from smoothsa_jax.models.build import build_slot_model
from smoothsa_jax.training import step as step_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.collectives import collectives  # noqa: E402

STEPS = 6
# Shifts the logits of all slots alike, which the softmax over slots takes out again: its gradient
# is rounding alone.
WITHOUT_EFFECT = "aggregator.norm_slots.bias"

EIGHT_DEVICES = """
import json, sys
sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
import test_mesh
print(json.dumps(test_mesh.{call}))
"""


def on_eight_devices(call: str) -> dict:
    """What a function of this module returns in a process with eight devices."""
    script = EIGHT_DEVICES.format(tests=str(ROOT / "tests"), call=call)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=900
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


def cut_small_arrays() -> None:
    """Those of a model of a size for tests; by itself it would stay whole."""
    mesh_file.SMALL = 256


METASLOT = {"name": "metaslot", "first": 2, "later": 1, "codes": 16, "capacity": 128}


def config_for(
    data: int, fsdp: int, frames: int, accumulate: int = 1, kind: str = ""
) -> ConfigDict:
    """Wide enough that arrays are cut; learning rate and clipping as in the recipes."""
    config = tiny_config(
        num_frames=frames, decoder="random_ar" if frames > 2 else "mlp_mixture", seed=1
    )
    config.model.encoder.width = config.model.slot_size = 32
    if kind == "metaslot":
        config.model.aggregator = ConfigDict(METASLOT)
    if kind == "along":
        config = with_tokens_along(config).unlock()
        config.model.tokenizer.hidden_size = 16  # of four, most are never above 0
    config.optimizer.learning_rate.peak = 2e-4
    config.train.update(batch_size=16, accumulate=accumulate)
    config.mesh = ConfigDict({"data": data, "fsdp": fsdp})
    return config


def build_keeping_gradients(config: ConfigDict):
    """The training that `main.py` builds; its optimizer's state begins with the last gradients."""
    keeping = optax.GradientTransformation(
        lambda params: jax.tree.map(jax.numpy.zeros_like, params), lambda g, *_: (g, g)
    )
    build = step_file.build_optimizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_file, "build_optimizer", lambda *a: optax.chain(keeping, build(*a)))
        return step_file.build_training(config)


def batch_of(config: ConfigDict, seed: int) -> dict[str, np.ndarray]:
    batch = tiny_batch(config, seed=seed)
    batch["slot_mask"][::3, -1] = False
    return batch


def compiled_step(training, config: ConfigDict):
    arguments = (training.frozen, training.place(batch_of(config, 0)), jax.random.key(0))
    return training.train_step.lower(training.state, *arguments).compile()


def run(training, step, config: ConfigDict, steps: int, states=None) -> list:
    """(state, metrics) after each step, each from the previous state or from the given ones."""
    found, state = [], training.state
    for number in range(steps):
        if states is not None:
            state = jax.tree.map(
                lambda x, like: jax.device_put(x, like.sharding), states[number], training.state
            )
        key = jax.random.fold_in(jax.random.key(3), number)
        batch = training.place(batch_of(config, number))
        state, metrics = step(copied(state), training.frozen, batch, key)
        found.append((state, jax.device_get(metrics)))
    return found


def off(found, expected) -> float:
    """The largest difference of any array, as a share of that array's largest value."""
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    return max(
        float(np.abs(a * 1.0 - b).max() / max(np.abs(b).max(), 1e-30))  # some are flags
        for a, (path, b) in zip(jax.tree.leaves(found), leaves, strict=True)
        if WITHOUT_EFFECT not in jax.tree_util.keystr(path)
    )


def predicted(training, config: ConfigDict) -> dict[str, np.ndarray]:
    """What an evaluation reads, with and without labels, with parameters that lie as between
    steps."""
    arguments = (training.state.params, training.frozen, training.place(batch_of(config, 0)))
    outputs = training.predict(*arguments, jax.random.key(1))
    assert all(x.sharding.is_equivalent_to(spread(training.mesh), x.ndim) for x in outputs.values())
    return jax.device_get({**outputs, **training.losses(*arguments, jax.random.key(1))})


def compare(
    meshes: list[tuple[int, int, int]], frames: int, steps: int = STEPS, kind: str = ""
) -> dict[str, dict]:
    """Each mesh (data, fsdp, accumulate) against one device."""
    cut_small_arrays()
    config = config_for(1, 1, frames, kind=kind)
    alone = build_keeping_gradients(config)
    first, step = jax.device_get(alone.state), compiled_step(alone, config)
    reference = run(alone, step, config, steps)
    reference = [(jax.device_get(state), metrics) for state, metrics in reference]
    starts = [first, *(state for state, _ in reference[:-1])]
    slots = predicted(alone, config)
    report = {}
    for data, fsdp, accumulate in meshes:
        config = config_for(data, fsdp, frames, accumulate, kind)
        training = build_keeping_gradients(config)
        step = compiled_step(training, config)
        from_the_same = run(training, step, config, steps, starts)
        by_itself = run(training, step, config, steps)
        moments = jax.tree.leaves(by_itself[-1][0].opt_state)
        whole, part = (
            sum(size(x) for x in jax.tree.leaves((by_itself[-1][0].params, moments)))
            for size in (lambda x: x.nbytes, lambda x: x.addressable_shards[0].data.nbytes)
        )
        pairs = list(zip(from_the_same, reference, strict=True))
        report[f"{data}x{fsdp}/{accumulate}"] = {
            "losses": max(
                off(
                    {n: m[n] for n in m if n.startswith("loss")},
                    {n: r[n] for n in r if n.startswith("loss")},
                )
                for (_, m), (_, r) in pairs
            ),
            "gradients": max(off(s.opt_state[0], r.opt_state[0]) for (s, _), (r, _) in pairs),
            "weights": off(by_itself[-1][0].params, reference[-1][0].params),
            "buffers": max(off(s.buffers, r.buffers) for (s, _), (r, _) in pairs)
            if kind == "metaslot"
            else 0,
            "share_of_state": part / whole,
            "predicted": off(predicted(training, config), slots),
            "moved_in_loops": sum(x.times > 1 for x in collectives(step.as_text())),
        }
    return report


def small_program() -> dict[str, float]:
    """Gradients of each mesh against one device's, with a loop and a loss over all samples.

    In float64, up to the loss's softmax. In float32 the terms of the bias's gradient cancel so far
    that one device alone is off by 6e-7, and each version of the compiler by another amount.
    """
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    shapes = {"inner": (64, 96), "outer": (96, 64), "bias": (64,)}
    arrays = {name: rng.normal(size=shape, scale=0.1) for name, shape in shapes.items()}
    inputs = {"x": rng.normal(size=(16, 3, 4, 64)), "mask": rng.random((16, 4)) > 0.2}

    def function(arrays, inputs):
        def frame(slots, x):
            hidden = jax.numpy.tanh((slots + x) @ arrays["inner"])
            slots = hidden @ arrays["outer"] + arrays["bias"]
            return slots, slots

        frames = inputs["x"].swapaxes(0, 1)
        return jax.lax.scan(frame, frames[0], frames)[1].swapaxes(0, 1)

    def gradient(mesh, num_parts):
        def loss(arrays):
            slots = over_samples(function, mesh, num_parts, arrays, inputs)
            return slot_contrast_loss(slots, jax.numpy.asarray(inputs["mask"]))

        places = persistent_sharding(mesh, arrays)
        program = jax.jit(jax.value_and_grad(loss), out_shardings=(replicated(mesh), places))
        program = program.lower(jax.device_put(arrays, places)).compile()
        found = jax.device_get(program(jax.device_put(arrays, places)))
        loops = sum(x.times > 1 for x in collectives(program.as_text()))
        return found, loops

    mesh_of = lambda data, fsdp: make_mesh(ConfigDict({"data": data, "fsdp": fsdp}))  # noqa: E731
    expected, _ = gradient(mesh_of(1, 1), 1)
    report = {}
    for data, fsdp, parts in ((8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 4, 2), (1, 1, 4)):
        found, loops = gradient(mesh_of(data, fsdp), parts)
        report[f"{data}x{fsdp}/{parts}"] = off(found, expected)
        report[f"{data}x{fsdp}/{parts} loops"] = loops
    return report


def where_parts_are() -> dict[str, list[int]]:
    """The devices on which the parts of a new model lie, where another one than the first is for
    computing.
    """
    with jax.default_device(jax.devices()[3]):
        model = build_slot_model(tiny_config().model, (16, 12), 0, {"encoder": 5})
    devices = lambda part: {x.id for a in jax.tree.leaves(nnx.state(part)) for x in a.devices()}  # noqa: E731
    return {name: sorted(devices(getattr(model, name))) for name in ("encoder", "decoder")}


@pytest.mark.more
def test_frozen_random_values_are_drawn_on_the_cpu_whatever_computes():
    assert on_eight_devices("where_parts_are()") == {"encoder": [0], "decoder": [3]}


@pytest.mark.slow
def test_a_small_program_on_every_mesh():
    report = on_eight_devices("small_program()")
    assert len(report) == 10
    for name, value in report.items():
        assert value == 0 if "loops" in name else value < 5e-7, report


def move(folder: str) -> dict[str, int]:
    """Save from one mesh, restore on the next, save from there; count the values that change."""
    config = config_for(1, 1, 2)
    arrays = {
        "a.kernel": np.random.default_rng(0).normal(size=(96, 128)).astype("f"),
        "a.bias": np.arange(7, dtype="f"),
        "b.kernel": np.random.default_rng(1).normal(size=(3, 24, 200)).astype("f"),
    }
    values, pieces = arrays, {}
    for step, (data, fsdp) in enumerate(((8, 1), (2, 4), (1, 8), (1, 1)), 1):
        mesh = make_mesh(ConfigDict({"data": data, "fsdp": fsdp}))
        template = jax.device_put(
            jax.tree.map(np.zeros_like, arrays), persistent_sharding(mesh, arrays)
        )
        if step > 1:
            values = restore_state(template, read_checkpoint(folder, step - 1))
            assert all(values[n].sharding == template[n].sharding for n in template)
        else:
            values = jax.device_put(values, persistent_sharding(mesh, values))
        pieces[f"{data}x{fsdp}"] = values["a.kernel"].addressable_shards[0].data.size
        writer = CheckpointWriter(folder, config)
        writer.save(step, values, {}, {})
        writer.wait()
        writer.close()
    changed = sum(int(np.sum(np.asarray(values[n]) != arrays[n])) for n in arrays)
    return {"changed": changed, **pieces}


def check(report: dict[str, dict], fsdp: dict[str, int]) -> None:
    for name, found in report.items():
        assert found["losses"] <= 1e-5, (name, found)
        assert found["gradients"] <= 1e-5, (name, found)
        assert found["weights"] <= 1e-3, (name, found)
        assert found["buffers"] <= 1e-5, (name, found)
        assert found["predicted"] <= 1e-5, (name, found)
        assert found["moved_in_loops"] == 0, (name, found)  # of frames, and of parts of a batch
        # Small arrays are on every device whole.
        assert 1 / fsdp[name] <= found["share_of_state"] <= 1 / fsdp[name] + 0.15, (name, found)


@pytest.mark.slow
def test_a_mesh_of_both_kinds_begins_as_one_device():
    """The first step and evaluation of images, which compile fast; other draws, other losses."""
    check(on_eight_devices("compare([(2, 2, 1)], frames=1, steps=1)"), {"2x2/1": 2})


@pytest.mark.slow
def test_a_mesh_of_both_kinds_equals_one_device():
    """Losses and gradients at every step, weights after six; parameters in quarters."""
    check(on_eight_devices("compare([(2, 4, 1)], frames=2)"), {"2x4/1": 4})


@pytest.mark.slow
def test_buffers_are_updated_alike_on_every_mesh():
    """The update sees the slots of the whole batch, on four devices and in two parts on each."""
    report = on_eight_devices("compare([(4, 1, 1), (2, 2, 2)], frames=1, steps=3, kind='metaslot')")
    check(report, {"4x1/1": 1, "2x2/2": 2})


@pytest.mark.slow
def test_a_tokenizer_trained_along_is_the_same_on_every_mesh():
    """What it draws belongs to each sample."""
    check(on_eight_devices("compare([(2, 2, 2)], frames=1, steps=3, kind='along')"), {"2x2/2": 2})


@pytest.mark.slow
def test_every_mesh_equals_one_device():
    """Clips with recurrence and random AR decoder; the last one also with accumulation."""
    report = on_eight_devices("compare([(8, 1, 1), (1, 8, 1), (2, 4, 2)], frames=4)")
    check(report, {"8x1/1": 1, "1x8/1": 8, "2x4/2": 4})


@pytest.mark.more
def test_a_checkpoint_moves_between_meshes(tmp_path):
    found = on_eight_devices(f"move({str(tmp_path)!r})")
    size = 96 * 128
    assert found == {"changed": 0, "8x1": size, "2x4": size // 4, "1x8": size // 8, "1x1": size}


PROGRAM = """
HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %inner = (f32[64,32]{1,0}, f32[10]{0}) all-reduce(%x, %y), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%turns (state: (s32[], f32[64,32])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: bf16[16,8]) -> f32[64,32] {
  %whole = bf16[64,8]{1,0} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}
  %alone = f32[64,32]{1,0} all-reduce(%q), replica_groups=[8,1]<=[8], to_apply=%add
  %part = f32[8,32]{1,0} reduce-scatter(%r), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a','b'}, to_apply=%add
  %loop = (s32[], f32[64,32]) while(%s), condition=%turns, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""  # noqa: E501, HLO as XLA prints it


def test_what_a_program_sends_is_counted_with_its_loops():
    """By hand: rings of 4 and 8 devices; a group of one sends nothing."""
    found = {(x.kind, x.group, x.times): (x.result, x.sent) for x in collectives(PROGRAM)}
    assert found == {
        ("all-gather", 4, 1): (1024, 3 / 4 * 1024),
        ("reduce-scatter", 8, 1): (1024, 7 * 1024),
        ("all-reduce", 4, 5): (8232, 5 * 2 * 3 / 4 * 8232),
    }
    with pytest.raises(ValueError, match="no known number of turns"):
        collectives(PROGRAM.replace("known_trip_count", "unknown"))


@dataclasses.dataclass(frozen=True)
class Device:
    """JAX's description of a device."""

    id: int
    process_index: int
    slice_index: int


def test_devices_are_in_the_order_of_their_processes(monkeypatch):
    """On a TPU's grid the numbers of a host have gaps; each host of GPUs is a separate slice."""
    owners = (0, 0, 1, 1, 0, 0, 1, 1)
    devices = [Device(number, host, host) for number, host in enumerate(owners)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "local_devices", lambda: [x for x in devices if x.process_index == 1])
    ids = lambda mesh: [[device.id for device in group] for group in mesh.devices]  # noqa: E731
    mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 2}))
    assert ids(mesh) == [[0, 1], [4, 5], [2, 3], [6, 7]]
    assert ids(own_mesh(mesh)) == [[2, 3], [6, 7]]
    mesh = make_mesh(ConfigDict({"data": 1, "fsdp": 8}))
    assert ids(mesh) == [[0, 1, 4, 5, 2, 3, 6, 7]]
    assert ids(own_mesh(mesh)) == [[2, 3, 6, 7]]


def test_mesh_shapes():
    assert mesh_shape(-1, 1, 8) == (8, 1)
    assert mesh_shape(-1, 4, 8) == (2, 4)
    assert mesh_shape(2, 2, 8) == (2, 2)
    for data, fsdp, expected in [
        (9, 1, "mesh.data asks for 9 devices, 8 found"),
        (4, 4, "mesh.data x mesh.fsdp asks for 4 x 4 devices, 8 found"),
        (-1, 3, "mesh.fsdp is 3, which does not divide the 8 devices found"),
        (0, 1, "mesh.data is 0; expected -1"),
        (1, -1, "mesh.fsdp is -1; expected a number"),
        (True, 1, "mesh.data is True"),
    ]:
        with pytest.raises(UserError, match=expected) as error:
            mesh_shape(data, fsdp, 8)
        assert "\n" not in str(error.value)
