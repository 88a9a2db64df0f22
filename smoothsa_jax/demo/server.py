"""Serving the page on this machine, until a signal comes."""

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from smoothsa_jax.demo.finding import Demo
from smoothsa_jax.demo.page import STYLE, page_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.load import load_any
from smoothsa_jax.text import printable, say
from smoothsa_jax.training.signals import SignalGuard, Stopped

MODEL = "sprites_gaussian"  # without a workdir
HOST, PORT = "127.0.0.1", 7860
MAX_FILE = 200 * 2**20  # bytes of an upload


def check_gradio() -> None:
    """Import Gradio, which then sends nothing anywhere.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at the import; the Hub's likewise
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--mode=demo needs gradio, which is not installed: pip install 'smoothsa_jax[demo]'"
        ) from error


@contextlib.contextmanager
def served(workdir: str | None = None, host: str = HOST, port: int = PORT) -> Iterator[str]:
    """Show the page of a model while the context lasts.

    Args:
        workdir: anything that `load` accepts, or a run of the task `dynamics`; None: a bundled
            model.
        host: the address to listen on; "0.0.0.0" lets other machines in.
        port: to listen on; 0: any free one.

    Yields:
        The page's address.

    Raises:
        UserError: Gradio is not installed, the port is in use, or the model has no masks.
    """
    port = _free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="smoothsa_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "gradio")
        check_gradio()
        name = workdir or MODEL
        demo = Demo(load_any(name), Path(folder) / "found", Path(name).name)
        import gradio as gr

        blocks = page_of(demo)
        font = [gr.themes.Font(name) for name in ("system-ui", "sans-serif")]
        mono = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
        try:
            _, address, _ = blocks.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                inbrowser=False,
                enable_monitoring=False,
                show_error=True,
                max_file_size=MAX_FILE,
                state_session_capacity=100,
                footer_links=[],
                theme=gr.themes.Soft(font=font, font_mono=mono),
                css=STYLE,
            )
        except OSError as error:  # another program has taken the port in the meantime
            raise UserError(_in_use(host, port)) from error
        try:
            yield address
        finally:
            demo.close()
            blocks.close(verbose=False)


def serve(workdir: str | None = None, host: str = HOST, port: int = PORT) -> int:
    """Show the page of a model until a signal comes; return the exit status.

    Arguments and errors are those of `served`.
    """
    try:
        with SignalGuard(), served(workdir, host, port) as address:
            say(f"page         {address}")
            threading.Event().wait()
    except Stopped as stopped:
        say("the page is closed")
        return stopped.exit_code
    return 0


def _free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0.

    Raises:
        UserError: another program has it, or the host is not this machine.
    """
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
            return tried.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise UserError(_in_use(host, port, getattr(error, "strerror", None) or str(error))) from (
            error
        )


def _in_use(host: str, port: int, reason: str = "") -> str:
    reason = f" ({printable(reason)})" * bool(reason)
    return f"cannot listen on {host}:{port}{reason}; give another --port, or --port=0 for any"
