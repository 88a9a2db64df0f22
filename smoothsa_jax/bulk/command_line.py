"""The flags --engine and --address of the programs in `data/`."""

import argparse
import contextlib

from smoothsa_jax.bulk.cluster import ENGINES, Cluster, connected
from smoothsa_jax.errors import UserError


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a parser."""
    parser.add_argument("--engine", choices=ENGINES, help="work on the machines of a Ray cluster")
    parser.add_argument(
        "--address", help="of the Ray cluster, auto or HOST:PORT; default: a local one"
    )


def engine_of(
    given: argparse.Namespace,
) -> contextlib.AbstractContextManager[Cluster | None] | None:
    """Return what connects to the cluster that the flags name; None: to none.

    Raises:
        UserError: an address without an engine.
    """
    if given.engine is None:
        if given.address is not None:
            raise UserError("--address names a Ray cluster; add --engine=ray, or leave it out")
        return None
    return connected(given.address)
