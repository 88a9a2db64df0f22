"""The one error that is meant for a person to read."""


class UserError(ValueError):
    """Something the user can mend: one line that says what was found, what was expected and what to do.

    `main.py` prints the line without a traceback and exits with status 2.
    """
