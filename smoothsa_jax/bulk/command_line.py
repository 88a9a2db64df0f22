"""The flags --engine and --address of the programs in `data/`."""

import argparse
from typing import Any

from smoothsa_jax.errors import UserError


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser."""
    parser.add_argument("--engine", choices=("ray",), help="work on the machines of a Ray cluster")
    parser.add_argument(
        "--address", help="of the Ray cluster, auto or HOST:PORT; default: a local one"
    )


def engine_of(given: argparse.Namespace) -> dict[str, Any] | None:
    """Return the arguments of `cluster.connected`; None: no engine was asked for.

    Raises:
        UserError: an address without an engine.
    """
    if given.engine is None:
        if given.address is not None:
            raise UserError("--address belongs to --engine=ray; add that, or leave it out")
        return None
    return {"address": given.address}
