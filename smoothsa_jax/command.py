"""The command `smoothsa`, which an installation brings: `main.py` and the programs of `data/`.

    smoothsa --config=coco:spot              as main.py; `smoothsa --help` has its options
    smoothsa prepare NAME --source=... --out=...    convert a downloaded data set
    smoothsa check, show, store              look at a prepared folder, store features and slots
    smoothsa convert IN OUT                  convert published checkpoints

It needs no checkout: the recipes are part of the package, and --config takes their names.
"""

import importlib
import sys
from collections.abc import Sequence

from smoothsa_jax.checkout import COMMAND, beside_the_package
from smoothsa_jax.environment import check_progress_bars, settle
from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.guard import exit_status

OF_DATA = ("prepare", "check", "show", "store")
CONVERT = "convert"


def start() -> int:
    """Run the command line of this process and return the exit status."""
    return main(sys.argv[1:])


def main(arguments: Sequence[str]) -> int:
    """Run a command line (without the program's name) and return the exit status."""
    return exit_status(lambda: run(arguments))


def run(arguments: Sequence[str]) -> int:
    """Start the program that the first argument names; `main.py` if it is an option.

    Raises:
        UserError: there is no such program.
    """
    check_progress_bars()
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if name is None:
        return importlib.import_module("smoothsa_jax.main").main(list(arguments))
    if name == CONVERT:
        return importlib.import_module("smoothsa_jax.convert").main(arguments[1:])
    if name not in OF_DATA:
        known = (*OF_DATA, CONVERT)
        raise UserError(
            f"{COMMAND} has no command {name!r}; expected one of {', '.join(known)}, or options "
            f"(see {COMMAND} --help){did_you_mean(name, known)}"
        )
    if name == "store":
        settle()
    return beside_the_package(f"data.{name}").main(arguments[1:])
