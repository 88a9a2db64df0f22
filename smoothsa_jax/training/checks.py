"""What is compared before a run begins: its config with this machine, with the other processes, and with the run in its workdir."""

import jax
from ml_collections import ConfigDict

from smoothsa_jax.config.schema import validate
from smoothsa_jax.config.values import flatten
from smoothsa_jax.devices import hosts
from smoothsa_jax.inputs.build import DATASETS
from smoothsa_jax.models.build import PARTS
from smoothsa_jax.training.task import task_of


def check(
    config: ConfigDict, batches: tuple[str, ...] = ("train.batch_size", "eval.batch_size")
) -> None:
    """Refuse a config that cannot run on this machine; see `smoothsa_jax.config.schema.validate`."""
    names = {f"model.{part}.name": choices for part, choices in PARTS.items()}
    trained = ("loss", *(f"loss/{name}" for name in config.get("loss", {})), "grad_norm")
    names |= {"data.name": DATASETS, "checkpoint.best_metric": (*task_of(config).metrics, *trained)}
    # Of several processes each scores whole batches, on its own devices.
    divided = [
        name for name in batches if name != "eval.batch_size" or not hosts.is_multi_process()
    ]
    validate(config, len(jax.devices()), names, divided)
    hosts.refuse_misfit(config, batches)


def agree(config: ConfigDict) -> None:
    """Compare, before anything is done, what all processes have to have in common.

    Not the workdir: a host that looks for a folder before process 0 makes it may, over NFS, go on seeing none.
    """
    if not hosts.is_multi_process():
        return
    common = {k: v for k, v in flatten(config).items() if k not in hosts.OF_EACH_HOST}
    hosts.refuse_differences({**common, **hosts.versions()})
