"""A Space of the Hugging Face Hub: `main.py --mode=demo` with a model of your choice.

The Space's variable MODEL names it: a bundled model, or a folder in the Space's repository.
"""

import os
import sys

from smoothsa_jax.main import main

given = {
    "workdir": os.environ.get("MODEL"),
    "host": os.environ.get("GRADIO_SERVER_NAME") or "0.0.0.0",
    "port": os.environ.get("GRADIO_SERVER_PORT"),
}
sys.exit(main(["--mode=demo", *(f"--{name}={value}" for name, value in given.items() if value)]))
