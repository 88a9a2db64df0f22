"""The first two cells of every notebook, title and installation, written here once.

    python notebooks/first_cells.py      writes them into all notebooks of this folder

Notebooks are kept without outputs; this removes them too.
"""

import sys
from pathlib import Path

import nbformat

# The project's address, such as "https://github.com/NAME/smoothsa_jax". It is empty, because the
# project is not published yet: notebooks then run in a checkout only, and have no Colab badge. Set
# it here, the only place, and run this file.
REPOSITORY = ""

FOLDER = Path(__file__).parent
BADGE = (
    "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{path}/blob/main/notebooks/{name})"
)
LOCAL = (
    "*Run this notebook in a checkout of the project. The project is not published yet, so the "
    "notebook cannot download it.*"
)
CLONE = """\
    checkouts = [new]
    repository = "{repository}"
    subprocess.run(["git", "clone", "--depth=1", repository, new], check=True)"""
REFUSE = """\
    raise SystemExit("Start Jupyter in a checkout of the project; it is not published yet.")"""
INSTALL = """\
# Finds the checkout of the project{or_clones}, and installs it with this machine's JAX.
import glob
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

here = Path.cwd()
{places}
checkouts = [place for place in places if (place / "main.py").is_file()]
if not checkouts:
{otherwise}
os.chdir(checkouts[0])
os.makedirs("runs", exist_ok=True)
sys.path.insert(0, str(checkouts[0]))
installed = [*importlib.metadata.distributions(name="smoothsa_jax")]
plotting = all(map(importlib.util.find_spec, ("ipywidgets", "matplotlib")))
if not installed or not plotting:
    if shutil.which("nvidia-smi"):
        accelerator = ",cuda12"
    elif glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        accelerator = ",tpu"
    else:
        accelerator = ""
    loaded = "jax" in sys.modules
    what = f".[notebooks{{accelerator}}]"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", what], check=True)
    if loaded:
        # The JAX in memory is not the one that was just installed.
        print("JAX was imported before, so the runtime restarts. Then run the cells from here on.")
        os.kill(os.getpid(), 9)"""


def badge_of(name: str, repository: str = REPOSITORY) -> str:
    """The first cell: a Colab badge, or where to run the notebook while there is no address."""
    path = repository.removeprefix("https://github.com/")
    return BADGE.format(path=path, name=name) if repository else LOCAL


def install_of(repository: str = REPOSITORY) -> str:
    """The second cell: it finds a checkout, or clones one where there is an address."""
    if repository:
        places = 'new = here / "smoothsa_jax_checkout"\nplaces = (here, *here.parents, new)'
        otherwise, or_clones = CLONE.format(repository=repository), " or clones it"
    else:
        places, otherwise, or_clones = "places = (here, *here.parents)", REFUSE, ""
    return INSTALL.format(places=places, otherwise=otherwise, or_clones=or_clones)


def with_first_cells(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """The notebook with these cells at its beginning and no outputs."""
    badge = nbformat.v4.new_markdown_cell(badge_of(name), id="badge")
    install = nbformat.v4.new_code_cell(install_of(), id="install")
    rest = [cell for cell in notebook.cells if cell.id not in ("badge", "install")]
    notebook.cells = [badge, install, *rest]
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
    }
    return notebook


def text_of(path: Path) -> str:
    """What the file of a notebook should hold."""
    notebook = with_first_cells(nbformat.read(path, as_version=4), path.name)
    nbformat.validate(notebook)
    return nbformat.writes(notebook, indent=1) + "\n"


def main() -> int:
    for path in sorted(FOLDER.glob("*.ipynb")):
        path.write_text(text_of(path), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
