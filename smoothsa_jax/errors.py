"""The one error that is meant for a person to read."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: one line that says what was found, what was expected and what to do.

    `main.py` prints the line without a traceback and exits with status 2.
    """


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """For the end of such a line: a hint at the nearest of the names, or nothing."""
    near = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""
