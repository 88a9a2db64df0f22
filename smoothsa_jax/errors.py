"""The one error that is meant for a person to read."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can fix: one line with what was found, what was expected and what
    to do.

    `guard.exit_status` prints the line without a traceback; the status is 2.
    """


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """For the end of such a line: a hint at the nearest of the names, or nothing."""
    near = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""
