"""A Space of the Hugging Face Hub: `main.py --mode=demo` with a model of your choice.

The Space's variable MODEL names it: a bundled model, or a folder in the Space's repository.
"""

import os

from smoothsa_jax import demo

port = int(os.environ.get("GRADIO_SERVER_PORT") or demo.PORT)
host = os.environ.get("GRADIO_SERVER_NAME") or "0.0.0.0"
demo.serve(os.environ.get("MODEL") or demo.MODEL, host, port)
