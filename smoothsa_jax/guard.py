"""The guard around every command: what a person can fix ends in one line and an exit status.

It stands before all imports that read the environment, and imports nothing that does.
"""

import contextlib
import importlib
import io
import os
import select
import sys
from collections.abc import Callable
from typing import TextIO

from smoothsa_jax.checkout import as_started
from smoothsa_jax.environment import check_progress_bars, settle
from smoothsa_jax.errors import UserError

FIXABLE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141  # what a shell reports of a program that SIGPIPE ended


def run_module(name: str, uses_jax: bool = False) -> int:
    """Run a command, from its imports on, and return its exit status.

    The module of the command calls this at its top, so that its imports are guarded as well.

    Args:
        name: the module; its `main` takes the arguments of the command line.
        uses_jax: whether the module imports JAX at its top.
    """

    def work() -> int:
        check_progress_bars()
        if uses_jax:
            settle()
        return importlib.import_module(name).main(sys.argv[1:])

    return exit_status(work)


def exit_status(work: Callable[[], int], stopped: str = "stopped by Ctrl-C") -> int:
    """Run the work of a command line and return its exit status.

    What the user can fix becomes one line on standard error and status 2: a `UserError`, and a
    failure that the operating system explains, such as a full disk. If the reader of the output is
    gone, as in `... | head -1`, the command ends quietly.

    Args:
        work: returns the exit status; may raise.
        stopped: the line to print if Ctrl-C stops the work.
    """
    _settle_streams()
    try:
        try:
            return work()
        finally:
            sys.stdout.flush()  # at the interpreter's end, a failure would print a traceback
    except UserError as error:
        return _end(f"error: {error}", FIXABLE)
    except KeyboardInterrupt:
        return _end(stopped, INTERRUPTED)
    except OSError as error:
        if error.strerror is None:
            raise
        gone = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if isinstance(error, BrokenPipeError) and gone:
            for stream in gone:
                _discard(stream)
            return BROKEN_PIPE
        return _end(f"error: {_explained(error)}", FIXABLE)


def _end(line: str, status: int) -> int:
    """Print the last line of a command."""
    with contextlib.suppress(OSError):  # standard error is full or gone
        print(as_started(" ".join(line.split())), file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:
        _discard(sys.stdout)
    return status


def _settle_streams() -> None:
    """Make standard streams usable: closed ones discard everything, and no character fails."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Otherwise the next file to be opened gets the number, and what libraries print.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, open to the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _has_no_reader(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose reader has closed it."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # not a stream of the system
        return False


def _discard(stream: TextIO) -> None:
    """Discard what a stream still holds: the interpreter would try to write it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _explained(error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and not _has_current_folder():
        return "the current folder was removed; change to another one, then run the same command"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; fix this, then run the same command"


def _has_current_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True
