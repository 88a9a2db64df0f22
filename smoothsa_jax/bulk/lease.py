"""One run at a time in a folder of an object store, which has no locks.

The run that owns the folder writes a small file there, and again every few seconds. Another run
that finds one waits for a while: if the file changes, its owner is alive. No clock is compared, so
that those of the two machines need not agree.
"""

import contextlib
import itertools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from smoothsa_jax.bulk.storage import Folder
from smoothsa_jax.errors import UserError
from smoothsa_jax.text import say

NAME = ".lock"
PERIOD = 10.0  # seconds from one sign of life to the next
PATIENCE = 4 * PERIOD  # without any, the owner is taken for dead
FORM = {"host": str, "process": int, "token": str}


@contextlib.contextmanager
def held(folder: Folder, period: float = PERIOD, patience: float = PATIENCE) -> Iterator[None]:
    """Own a folder for as long as the body runs.

    Args:
        folder: in an object store.
        period: seconds from one sign of life to the next.
        patience: seconds without any, after which another run's file means nothing.

    Raises:
        UserError: another run owns it, or it cannot be written.
    """
    mine = {"host": socket.gethostname(), "process": os.getpid(), "token": secrets.token_hex(8)}
    _wait_for_owner(folder, mine, period, patience)
    counts = itertools.count()
    ended = threading.Event()

    def sign() -> None:
        folder.write(NAME, json.dumps({**mine, "count": next(counts)}).encode())

    def other() -> dict[str, Any] | None:
        found = _read(folder)
        return found if found is not None and found["token"] != mine["token"] else None

    def renew() -> None:
        while not ended.wait(period):
            with contextlib.suppress(UserError):  # the store may be away for a while
                if (found := other()) is not None:
                    say(
                        f"{folder.where} is in use by {_named(found)} too, which took this run for "
                        "dead; both write the same files"
                    )
                    return
                sign()

    sign()
    time.sleep(period / 4)  # a run that came at the same moment has written by then: the last stays
    if (found := other()) is not None:
        raise _in_use(folder, found)
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(UserError):  # a file that stays costs the next run its patience
            if other() is None:
                folder.remove(NAME)


def _wait_for_owner(folder: Folder, mine: dict[str, Any], period: float, patience: float) -> None:
    """Return once no other run owns the folder.

    Raises:
        UserError: one does.
    """
    before = _read(folder)
    if before is None or _is_gone(before, mine):
        return
    say(
        f"{folder.where} was in use by {_named(before)}; waiting up to {patience:.0f} s to see "
        "whether it is alive"
    )
    end = time.monotonic() + patience
    while time.monotonic() < end:
        time.sleep(min(period / 4, patience))
        found = _read(folder)
        if found is None:
            return
        if found != before:
            raise _in_use(folder, found)


def _is_gone(owner: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that has ended."""
    if owner["host"] != mine["host"] or owner["process"] == mine["process"]:
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # of another user
    return False


def _read(folder: Folder) -> dict[str, Any] | None:
    """What the owner wrote; None if there is none, or it is damaged."""
    data = folder.read(NAME)
    try:
        found = json.loads(data) if data else {}
        return {**found, **{key: of(found[key]) for key, of in FORM.items()}}
    except (ValueError, KeyError, TypeError):
        return None


def _named(owner: dict[str, Any]) -> str:
    return f"process {owner['process']} on {owner['host']}"


def _in_use(folder: Folder, owner: dict[str, Any]) -> UserError:
    return UserError(
        f"--output={folder.where} is in use by another run ({_named(owner)}); wait for it or use "
        "another --output"
    )
