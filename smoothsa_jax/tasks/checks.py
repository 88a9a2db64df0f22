"""Check a config against this machine and the other processes, before anything is built."""

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
    """Refuse a config that cannot run on this machine.

    This checks keys and ranges, and that all parts can be made.

    Args:
        config: a whole config, including the architecture of its companions.
        batches: the batch sizes that will be used; each must be divisible by the number of devices.

    Raises:
        UserError: names the first problem.
    """
    task = build_task(config)
    losses = build_losses(config.losses)
    trained = ("loss", *(f"loss/{name}" for name in losses.terms), "grad_norm")
    names = {
        "task": TASKS,
        "data.name": DATASETS,
        "checkpoint.best_metric": (*task.evaluator.metrics, *trained),
    }
    # With several processes, each scores whole batches on its own devices.
    multi = hosts.is_multi_process()
    divided = [name for name in batches if name != "eval.batch_size" or not multi]
    schema.check(config, len(jax.devices()), names, divided)
    hosts.refuse_misfit(config, batches)
    task.build(shapes_only=True)
    for companion in config.companions.values():
        if "model" in companion:
            slot_model_shapes(companion.model, image_size_of(config))


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
