"""Shared by the scripts that measure trained models: options, clips, video files, features."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import jax
from jaxtyping import Array, UInt8

from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.training.evaluating import source_of_split


def parser_of(
    text: str | None, split: str, clips: int, frames: int, models: str = "+"
) -> argparse.ArgumentParser:
    """Return a parser with the options that all of these scripts have.

    Args:
        text: what `--help` prints.
        split: default of `--split`.
        clips: default of `--clips`.
        frames: default of `--frames`.
        models: how many `--models` there may be: "+", or "*" to allow none.
    """
    formatter = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=text, formatter_class=formatter)
    parser.add_argument("--models", nargs=models, default=["sprites_gaussian"])
    parser.add_argument("--split", default=split)
    parser.add_argument("--clips", type=int, default=clips)
    parser.add_argument("--frames", type=int, default=frames)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of evaluation")
    return parser


def clips_of(model: Segmenter, split: str, number: int, frames: int) -> Iterator[dict[str, Any]]:
    """Yield the first clips of the data that a model was trained on."""
    config = model.config.copy_and_resolve_references().unlock()
    config.eval.num_frames = frames
    source = source_of_split(config, model.num_slots, split, number)
    for index in range(len(source)):
        yield source[index]


def write_video(
    path: Path, frames: Iterable[UInt8[Array, "H W 3"]], rate: int = 12, **options: str
) -> None:
    """Write frames as H.264.

    Args:
        path: of the file.
        frames: of one size.
        rate: frames per second.
        options: of the encoder; default: its own.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        for index, pixels in enumerate(frames):
            if not index:
                stream.height, stream.width = pixels.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def encoder_of(model: Segmenter) -> Callable[[Array], Array]:
    """Return the compiled function from frames (B,T,H,W,3) to features (B,T,M,C)."""

    def encode(params: Any, video: Array) -> Array:
        return model.definition.merge(params, differentiated=False).encode(video)["features"]

    compiled = jax.jit(encode)
    return lambda video: compiled(model.params, video)
