"""The first two cells of every notebook, badge and installation: written here once.

    python notebooks/first_cells.py      writes them into all notebooks of this folder

Notebooks are kept without outputs; this removes them too.
"""

import sys
from pathlib import Path

import nbformat

# PLACEHOLDER: where the project is published. The only place to change it; then run this file.
REPOSITORY = "https://github.com/OWNER/smoothsa_jax"

FOLDER = Path(__file__).parent
BADGE = (
    "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{path}/blob/main/notebooks/{name})"
)
INSTALL = """\
# Runs in a checkout of the project or makes one, and installs it with this machine's JAX.
import glob
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

here = Path.cwd()
new = here / "smoothsa_jax_checkout"
places = (here, *here.parents, new)
checkouts = [place for place in places if (place / "main.py").is_file()]
if not checkouts:
    checkouts = [new]
    repository = "{repository}"
    subprocess.run(["git", "clone", "--depth=1", repository, new], check=True)
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
        print("The runtime starts again, since JAX was imported before: run from here on then.")
        os.kill(os.getpid(), 9)"""


def with_first_cells(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """The notebook with these cells at its beginning and no outputs."""
    path = REPOSITORY.removeprefix("https://github.com/")
    badge = nbformat.v4.new_markdown_cell(BADGE.format(path=path, name=name), id="badge")
    install = nbformat.v4.new_code_cell(INSTALL.format(repository=REPOSITORY), id="install")
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
