"""The program's real functions, with the shapes of their arguments, to lower for any mesh.

Nothing is put on a device.

train     the training step
predict   the evaluator's inputs from a batch, at evaluation
count     from soft masks to counted segments, for the scores
stream    the programs of `Segmenter.stream`: a frame's features, a first frame, a later frame
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks import cases
from benchmarks.train_step import unrolled_scans
from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.devices.mesh import AXES, backend_of_mesh, replicated, spread
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation import counting
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.models.backend import Backend
from smoothsa_jax.models.build import build_slot_model
from smoothsa_jax.models.parameters import frozen_patterns, split
from smoothsa_jax.models.pruning import Carry
from smoothsa_jax.tasks import task as task_file
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.task import MODEL
from smoothsa_jax.training.step import Training, build_training

NAMES = ("train", "predict", "count", "stream")
WHOLE_VIDEO = 24  # frames, where a config evaluates whole videos


class Call(NamedTuple):
    """A jitted function and the arguments to lower it for: shapes, and static values.

    Attributes:
        mesh: its devices.
        batch: its samples, on all devices together.
    """

    name: str
    function: Callable
    arguments: tuple[Any, ...]
    mesh: Mesh
    batch: int


def names_for(config: ConfigDict) -> tuple[str, ...]:
    """Return the programs that a config has.

    Recognition counts within its prediction, and has no stream.
    """
    return NAMES if config.task == "discovery" else NAMES[:2]


def calls(
    config: ConfigDict,
    mesh: Mesh,
    batch: int,
    wanted: Sequence[str],
    backend: Backend | None = None,
) -> Iterator[Call]:
    """Yield the wanted programs, in the order of `NAMES`.

    Args:
        config: with the architecture of its companions in it.
        batch: number of samples, spread over the mesh; a stream has one, on one device.
        backend: what to compile for; default: the mesh's devices.

    Raises:
        UserError: the config has no such program.
    """
    if missing := [name for name in wanted if name not in names_for(config)]:
        raise UserError(
            f"{config.name} has no program {missing[0]!r}; it has {', '.join(names_for(config))}"
        )
    backend = backend or backend_of_mesh(mesh)
    if {"train", "predict", "count"} & set(wanted):
        training = build_training(config, mesh, backend, shapes_only=True)
    makers = {"train": _train, "predict": _predict, "count": _count}
    for name, make in makers.items():
        if name in wanted:
            yield Call(name, *make(config, training, batch, backend), mesh, batch)
    if "stream" in wanted:
        alone = Mesh(mesh.devices.flat[:1].reshape(1, 1), AXES)
        for name, call in _stream(config, alone, backend).items():
            yield Call(f"stream: {name}", *call, alone, 1)


def counted_flop(config: ConfigDict, batch: int, wanted: Sequence[str]) -> dict[str, float]:
    """Return the FLOP of one call of each program, on all devices together.

    XLA counts before it compiles. It cannot see into loops and library calls, so loops are unrolled
    and attention uses no library.
    """
    mesh = Mesh(np.array(jax.devices("cpu")[:1]).reshape(1, 1), AXES)
    found = {}
    for call in calls(config, mesh, batch, wanted):
        with unrolled_scans():
            found[call.name] = call.function.lower(*call.arguments).cost_analysis()["flops"]
    return found


def batch_shapes(config: ConfigDict, mesh: Mesh, batch: int, frames: int) -> dict[str, Any]:
    """Return the shapes that a program reads of a batch, spread over the mesh."""
    task, place = build_task(config), spread(mesh)
    reads = {*cases.ALWAYS, *task.inputs}
    return {
        name: jax.ShapeDtypeStruct(*x, sharding=place)
        for name, x in task_file.batch_shapes(config, task, batch, frames).items()
        if name in reads
    }


def _frames_of_evaluation(config: ConfigDict) -> int:
    frames = config.eval.get("num_frames") or config.data.num_frames
    return WHOLE_VIDEO if frames == -1 else frames


def _key(mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=replicated(mesh))


def _train(config: ConfigDict, training: Training, batch: int, backend: Backend) -> tuple:
    inputs = batch_shapes(config, training.mesh, batch, config.data.num_frames)
    return training.train_step, (
        training.state,
        training.cast_frozen,
        inputs,
        _key(training.mesh),
    )


def _predict(config: ConfigDict, training: Training, batch: int, backend: Backend) -> tuple:
    mesh = training.mesh
    inputs = batch_shapes(config, mesh, batch, _frames_of_evaluation(config))
    params = training.cast(training.state.params)
    return training.predict_on, (mesh, params, training.cast_frozen, inputs, _key(mesh), False)


def _count(config: ConfigDict, training: Training, batch: int, backend: Backend) -> tuple:
    frames, slots = _frames_of_evaluation(config), config.model.num_slots
    place, grid = spread(training.mesh), training.definitions[MODEL].skeleton().encoder.grid

    def shape(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *sizes), dtype, sharding=place)

    return counting._counted, (
        shape(jnp.float32, frames, slots, *grid),
        shape(jnp.uint8, frames, *image_size_of(config)),
        shape(jnp.bool_, slots),
        shape(jnp.int32),
        place,
        backend,
        config.eval.per_frame,
        config.eval.skip_frames,
    )


def _stream(config: ConfigDict, mesh: Mesh, backend: Backend) -> dict[str, tuple]:
    """Return the programs of one frame, on one device."""
    model = build_slot_model(config.model, image_size_of(config), 0)
    _, trained, frozen = split(model, config.dtype, frozen=frozen_patterns(config.weights))
    segmenter = Segmenter(config, {**trained, **frozen}, backend=backend)
    whole = replicated(mesh)

    def shape(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=whole)

    def in_place(tree: Any) -> Any:
        return jax.tree.map(lambda x: shape(x.dtype, *x.shape), tree)

    arrays = in_place(jax.eval_shape(segmenter.definition.cast, segmenter.params))
    slots = segmenter.num_slots
    boxes = shape(jnp.float32, 1, 1, slots, 4) if segmenter.starts_from_boxes else None
    mask, frame = shape(jnp.bool_, 1, slots), shape(jnp.uint8, *image_size_of(config), 3)
    constants = in_place(jax.eval_shape(segmenter._constants, arrays, frame))
    found = {
        "features": (segmenter._constants, (arrays, frame)),
        "first frame": (segmenter._first, (arrays, constants, boxes, mask, _key(mesh), None)),
    }
    if segmenter.follows:
        carry = Carry(shape(jnp.float32, 1, slots, segmenter.slot_size), mask)
        # Of the frame before; the second frame has none yet.
        inputs = arrays, constants, carry
        memory = in_place(jax.eval_shape(segmenter._following, *inputs, None, None)[2])
        found["later frame"] = (segmenter._following, (*inputs, memory, None))
    return found
