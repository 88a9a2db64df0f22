"""A Space of the Hugging Face Hub: `main.py --mode=demo` with a model of your choice.

The Space's variable MODEL names it: a bundled model, or a folder in the Space's repository.
"""

import os
import sys

from smoothsa_jax import demo
from smoothsa_jax.devices import runtime
from smoothsa_jax.guard import exit_status

model = os.environ.get("MODEL") or demo.MODEL
host = os.environ.get("GRADIO_SERVER_NAME") or "0.0.0.0"
port = int(os.environ.get("GRADIO_SERVER_PORT") or demo.PORT)
runtime.use_compilation_cache()
sys.exit(exit_status(lambda: demo.serve(model, host, port)))
