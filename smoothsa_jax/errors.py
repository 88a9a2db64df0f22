"""The one error that is meant for a person to read, and how a program ends with it."""

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """A mistake that the user can fix: one line with what was found, what was expected and what
    to do.

    `main.py` prints the line without a traceback and exits with status 2.
    """


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """For the end of such a line: a hint at the nearest of the names, or nothing."""
    near = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def exit_status(work: Callable[[], int]) -> int:
    """Run the work of a command line and return its exit status.

    What the user can fix becomes one line on standard error and status 2: a `UserError`, and a
    failure that the operating system explains, such as a full disk.
    """
    try:
        return work()
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror}; fix this, then run the same command"
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return 2
