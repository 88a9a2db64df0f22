"""Check a config against this machine and the other processes, before anything is built."""

import jax
import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from smoothsa_jax.config import schema
from smoothsa_jax.config.values import flatten, image_size_of
from smoothsa_jax.devices import hosts
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.build import DATASETS
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.build import slot_model_shapes
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.parameters import Parameters, frozen_patterns, split
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.task import MODEL, Models, Task, run_task

BATCHES = ("train.batch_size", "eval.batch_size")


def check(config: ConfigDict, batches: tuple[str, ...] = BATCHES) -> None:
    """Refuse a config that cannot run on this machine.

    This checks keys and ranges, that all parts can be made, and that the models return what the
    losses need.

    Args:
        config: a whole config, including the architecture of its companions.
        batches: the batch sizes that will be used; each must be divisible by the number of devices.

    Raises:
        UserError: names the first problem.
    """
    task = build_task(config)
    losses = build_losses(config.losses)
    trained = ("loss", *(f"loss/{name}" for name in losses.terms), "grad_norm")
    names = {"checkpoint.best_metric": (*task.evaluator.metrics, *trained)}
    if ":" not in config.data.name:  # a class from elsewhere
        names["data.name"] = DATASETS
    # With several processes, each scores whole batches on its own devices.
    multi = hosts.is_multi_process()
    divided = [name for name in batches if name != "eval.batch_size" or not multi]
    schema.check(config, len(jax.devices()), names, divided)
    hosts.refuse_misfit(config, batches)
    losses.check_frames(config.data.get("num_frames") or 1)
    models = {MODEL: task.build(shapes_only=True)}
    for name, companion in config.companions.items():
        if "model" in companion or "average_of" in companion:
            of_model = companion.get("model") or config.model
            models[name] = slot_model_shapes(of_model, image_size_of(config))
    losses.check_reads(_outputs(config, task, models))


def _outputs(config: ConfigDict, task: Task, models: Models) -> frozenset[str] | None:
    """Find the names of a task's outputs, without computing anything.

    Returns:
        The names; None if the models read arrays that not every data set has.
    """
    (height, width), slots = image_size_of(config), task.slot_model.num_slots
    frames = min(config.data.get("num_frames") or 1, 2)  # the others are like the second
    objects = config.data.get("max_objects") or slots
    shape = jax.ShapeDtypeStruct
    batch = {
        "video": shape((1, frames, height, width, 3), jnp.uint8),
        "boxes": shape((1, frames, slots, 4), jnp.float32),
        "slot_mask": shape((1, slots), bool),
        "segmentations": shape((1, frames, height, width), jnp.uint8),
        "categories": shape((1, objects), jnp.int32),
    }
    patterns = frozen_patterns(config.weights)
    apart = {name: split(x, frozen=patterns if name == MODEL else ()) for name, x in models.items()}

    def run(arrays: dict[str, Parameters], batch: dict[str, Array], key: Array) -> dict[str, Array]:
        whole = {name: apart[name][0].merge(arrays[name]) for name in arrays}
        draws = task.draw(whole, key, Sizes(1, frames, slots), False)
        return run_task(task, whole, _Batch(batch), draws)

    arrays = {name: {**trained, **frozen} for name, (_, trained, frozen) in apart.items()}
    try:
        return frozenset(jax.eval_shape(run, arrays, batch, jax.random.key(0)))
    except UserError:
        raise
    except Exception:  # whatever a part raises that asks for more; the training step will tell
        return None


class _Batch(dict):
    """What every data set has. Asked for anything else, it ends the attempt with a KeyError."""

    def __contains__(self, name: object) -> bool:
        return name != "features" and self[name] is not None


def agree(config: ConfigDict) -> None:
    """Check that all processes have the same config and versions.

    The workdir is not compared: over NFS, a host that looks for a folder before process 0 creates
    it may not see it later.

    Raises:
        UserError: the processes differ.
    """
    if not hosts.is_multi_process():
        return
    common = {k: v for k, v in flatten(config).items() if k not in hosts.OF_EACH_HOST}
    hosts.refuse_differences({**common, **hosts.versions()})
