"""The checkpoints released by the authors: their names, their web page, and their local paths."""

import os
from pathlib import Path

from smoothsa_jax.errors import UserError

PAGE = "github.com/Genera1Z/SmoothSA/releases/tag/archive-smoothsa"
# Our recipe -> the authors' name.
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
PREFIX = "authors/"  # of the names passed to `load`


def path_of(recipe: str) -> Path:
    """The path of a checkpoint, in `SMOOTHSA_JAX_MODELS` or a folder in the user's cache."""
    folder = os.environ.get("SMOOTHSA_JAX_MODELS") or "~/.cache/smoothsa_jax/models"
    # Without a home folder, ~ stays: no file is there, and the advice is still right.
    return Path(os.path.expanduser(folder)) / f"{recipe}.pth"


def find(recipe: str) -> Path:
    """The file of a recipe's released checkpoint.

    Raises:
        UserError: the file does not exist; the message says what to download, and to where.
    """
    path = path_of(recipe)
    if not path.is_file():
        raise UserError(
            f"{PREFIX}{recipe} is not in {path.parent}: download a .pth of {NAMES[recipe]} from "
            f"{PAGE} and save it there as {path.name} (SMOOTHSA_JAX_MODELS names another folder)"
        )
    return path
