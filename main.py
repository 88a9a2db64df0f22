"""Train and evaluate slot models, and segment pictures and videos with them.

    python main.py --help    lists all options

The work is that of the command `smoothsa`: `smoothsa_jax/main.py`.
"""

import sys

if __name__ == "__main__":  # before the import: what makes it fail is explained as well
    from smoothsa_jax.guard import run_module

    sys.exit(run_module("smoothsa_jax.main"))

from smoothsa_jax.main import main

__all__ = ["main"]
