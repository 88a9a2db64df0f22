"""What is checked before anything is built: a config against this machine and the other
processes."""

import jax
from ml_collections import ConfigDict

from smoothsa_jax.config import schema
from smoothsa_jax.config.values import flatten, image_size_of
from smoothsa_jax.devices import hosts
from smoothsa_jax.inputs.build import DATASETS
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.build import slot_model_shapes
from smoothsa_jax.tasks.build import TASKS, build_task

BATCHES = ("train.batch_size", "eval.batch_size")


def check(config: ConfigDict, batches: tuple[str, ...] = BATCHES) -> None:
    """Refuse a config that cannot run on this machine: its keys and ranges, and whether all parts
    can be made.

    Args:
        config: with the architecture of its companions in it.
        batches: the batch sizes that will be used, and have to divide over the devices.

    Raises:
        UserError: the first thing that is wrong.
    """
    task = build_task(config)
    losses = build_losses(config.losses)
    trained = ("loss", *(f"loss/{name}" for name in losses.terms), "grad_norm")
    names = {
        "task": TASKS,
        "data.name": DATASETS,
        "checkpoint.best_metric": (*task.evaluator.metrics, *trained),
    }
    # Of several processes each scores whole batches, on its own devices.
    multi = hosts.is_multi_process()
    divided = [name for name in batches if name != "eval.batch_size" or not multi]
    schema.check(config, len(jax.devices()), names, divided)
    hosts.refuse_misfit(config, batches)
    losses.check_frames(config.data.get("num_frames") or 1)
    task.build(shapes_only=True)
    for companion in config.companions.values():
        if "model" in companion:
            slot_model_shapes(companion.model, image_size_of(config))


def agree(config: ConfigDict) -> None:
    """Compare, before anything is done, what all processes have to have in common.

    Not the workdir: a host that looks for a folder before process 0 makes it may, over NFS, go on
    seeing none.
    """
    if not hosts.is_multi_process():
        return
    common = {k: v for k, v in flatten(config).items() if k not in hosts.OF_EACH_HOST}
    hosts.refuse_differences({**common, **hosts.versions()})
