"""Where `configs/` and `data/` lie, and how a user starts the programs.

In a checkout they lie beside the package, and one starts `python main.py` there. A wheel has them
in `smoothsa_jax/recipes`, and one starts `smoothsa` anywhere.
"""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = _PACKAGE / "recipes"
# The folder of `configs` and `data`, so that a config file anywhere can import from `configs`.
ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
COMMAND = "smoothsa"
# What messages name, as in a checkout, and the same for the installed command.
_ADVICE = (
    (r"python main\.py", COMMAND),
    (r"python -m data\.(\w+)", rf"{COMMAND} \1"),
    (r"python -m smoothsa_jax\.convert", f"{COMMAND} convert"),
)
_CONFIG = re.compile(r"(?<![\w./~-])configs/(\w+)\.py")


def beside_the_package(name: str) -> ModuleType:
    """Import a module of `data/`, such as "data.prepare".

    Its folder comes first, since `data` is a common name. Loading a config puts it last.
    """
    if sys.path[:1] != [str(ROOT)]:
        sys.path.insert(0, str(ROOT))
        importlib.invalidate_caches()
    return importlib.import_module(name)


def as_started(text: str) -> str:
    """Return a text with the commands in it as the user starts them.

    Args:
        text: names programs as in a checkout, such as "python main.py --mode=evaluate", and
            recipes as "configs/coco.py". Other config files keep their paths.
    """
    started = Path(sys.argv[0]).stem == COMMAND if sys.argv else False
    if not started and (ROOT / "main.py").is_file():
        return text
    for pattern, replacement in _ADVICE:
        text = re.sub(pattern, replacement, text)
    return _CONFIG.sub(_as_recipe, text)


def _as_recipe(path: re.Match) -> str:
    """Return the recipe of a shipped config file; a user's own file stays."""
    own, shipped = Path(path[0]), ROOT / path[0]
    is_own = not shipped.is_file() or (own.is_file() and not own.samefile(shipped))
    return path[0] if is_own else path[1]
