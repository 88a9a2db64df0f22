"""Run a notebook's cells in one IPython shell, in the current folder.

    python tests/run_notebook.py NOTEBOOK

Prints what the cells print; a picture appears as the name of its class. The status is 1 at the
first cell that fails. (A Jupyter kernel would need sockets, and its client sometimes hangs.)
"""

import os
import sys

import nbformat
from IPython.core.interactiveshell import InteractiveShell


def main(path: str) -> int:
    sys.path.insert(0, os.getcwd())
    shell = InteractiveShell.instance(colors="nocolor")
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and not shell.run_cell(cell.source).success:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
