"""The folder of a run: its config, and a lock against concurrent runs."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from smoothsa_jax.checkpoints import before
from smoothsa_jax.config.values import differences, from_json, to_json
from smoothsa_jax.errors import UserError
from smoothsa_jax.files import atomic_file

CONFIG_FILE = "config.json"


def config_of(workdir: Path) -> ConfigDict | None:
    """Return the config of the run in this workdir, even if it has no checkpoint yet.

    Returns:
        None if there is no readable config.

    Raises:
        UserError: the config has the layout of earlier versions.
    """
    try:
        config = from_json((workdir / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return None
    before.refuse(workdir, config)
    return config


def refuse_other_config(found: ConfigDict | None, config: ConfigDict, workdir: Path) -> None:
    """Refuse to continue a run with another config.

    Args:
        found: the config of the run in the workdir; None: there is none.
        config: the new config.
        workdir: the run's folder.

    Raises:
        UserError: the configs differ where they may not; the message lists the keys.
    """
    if found is not None and (different := differences(found, config)):
        raise UserError(
            f"workdir {workdir} holds a run of another config, which differs in "
            f"{', '.join(different)}; use the same config to resume, or another --workdir"
        )


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Write `config.json`, completely or not at all."""
    with atomic_file(workdir / CONFIG_FILE) as temporary:
        temporary.write_text(to_json(config))


@contextmanager
def workdir_for_writing(workdir: Path, flag: str = "workdir") -> Iterator[None]:
    """Create the folder and lock it against other runs.

    Args:
        workdir: the folder.
        flag: the command-line flag that names it, for messages.

    Raises:
        UserError: the folder is not writable, or another run is writing to it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = open(workdir / ".lock", "a+")  # noqa: SIM115, closed below
    except OSError as error:
        raise UserError(
            f"{flag} {workdir} cannot be written: {error.strerror}; fix its permissions or use "
            f"another --{flag}"
        ) from error
    with handle:
        try:
            # The system releases the lock when the process ends, however it ends.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise UserError(
                f"{flag} {workdir} is in use by another run (process {owner}); wait for it or use "
                f"another --{flag}"
            ) from error
        except OSError as error:  # a file system without locks
            print(
                f"warning: {workdir} cannot be locked ({error.strerror}); let only one run at a "
                "time write to it",
                file=sys.stderr,
            )
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
