"""The checkpoints that the authors have released: what they are called, where they are, and where they are looked for here."""

import os
from pathlib import Path

from smoothsa_jax.errors import UserError

PAGE = "github.com/Genera1Z/SmoothSA/releases/tag/archive-smoothsa"
# Our recipe -> what the authors call theirs.
NAMES = {
    "clevrtex": "smoothsa_r-clevrtex",
    "coco": "smoothsa_r-coco",
    "voc": "smoothsa_r-voc",
    "movi_c": "smoothsav_c-movi_c",
    "movi_d": "smoothsav_c-movi_d",
    "movi_e": "smoothsav_c-movi_e",
    "ytvis": "smoothsav_r-ytvis",
    "ytvis_hq": "smoothsav_r-ytvis_hq",
}
PREFIX = "authors/"  # of the names that `load` takes


def path_of(recipe: str) -> Path:
    """Where a checkpoint has to lie: `SMOOTHSA_JAX_MODELS`, or a folder in the user's cache."""
    folder = os.environ.get("SMOOTHSA_JAX_MODELS") or Path.home() / ".cache/smoothsa_jax/models"
    return Path(folder) / f"{recipe}.pth"


def find(recipe: str) -> Path:
    """The file of a recipe's released checkpoint.

    Raises:
        UserError: it is not there; says what to fetch and where to put it.
    """
    path = path_of(recipe)
    if not path.is_file():
        raise UserError(
            f"{PREFIX}{recipe} is not in {path.parent}: fetch a .pth of {NAMES[recipe]} from {PAGE} and put it there as "
            f"{path.name} (SMOOTHSA_JAX_MODELS names another folder)"
        )
    return path
