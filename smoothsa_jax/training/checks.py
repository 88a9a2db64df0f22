"""What is compared before a run begins: its config with this machine, with the other processes, and with the run in its workdir."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from smoothsa_jax.config import differences, flatten, from_json, to_json
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.atomic import atomic_file
from smoothsa_jax.inputs.build import DATASETS
from smoothsa_jax.models.build import PARTS
from smoothsa_jax.training import hosts
from smoothsa_jax.training.task import task_of
from smoothsa_jax.validation import validate

CONFIG_FILE = "config.json"


def check(
    config: ConfigDict, batches: tuple[str, ...] = ("train.batch_size", "eval.batch_size")
) -> None:
    """Refuse a config that cannot run on this machine; see `smoothsa_jax.validation.validate`."""
    names = {f"model.{part}.name": choices for part, choices in PARTS.items()}
    trained = ("loss", *(f"loss/{name}" for name in config.get("loss", {})), "grad_norm")
    names |= {"data.name": DATASETS, "checkpoint.best_metric": (*task_of(config).metrics, *trained)}
    # Of several processes each scores whole batches, on its own devices.
    divided = [name for name in batches if name != "eval.batch_size" or not hosts.several()]
    validate(config, len(jax.devices()), names, divided)
    hosts.refuse_misfit(config, batches)


def agree(config: ConfigDict) -> None:
    """Compare, before anything is done, what all processes have to have in common.

    Not the workdir: a host that looks for a folder before process 0 makes it may, over NFS, go on seeing none.
    """
    if not hosts.several():
        return
    common = {k: v for k, v in flatten(config).items() if k not in hosts.OF_EACH_HOST}
    hosts.refuse_differences({**common, **hosts.versions()})


def config_of(workdir: Path) -> ConfigDict | None:
    """What a run in this workdir was started with, also where it has no checkpoint yet."""
    try:
        return from_json((workdir / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return None


def refuse_other_config(found: ConfigDict | None, config: ConfigDict, workdir: Path) -> None:
    if found is not None and (different := differences(found, config)):
        raise UserError(
            f"workdir {workdir} holds a run of another config, which differs in {', '.join(different)}; "
            "use the same config to go on, or another --workdir"
        )


def write_config(config: ConfigDict, workdir: Path) -> None:
    with atomic_file(workdir / CONFIG_FILE) as temporary:
        temporary.write_text(to_json(config))
