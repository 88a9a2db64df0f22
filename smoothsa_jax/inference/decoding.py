"""The process that decodes videos, so that a crash ends only this process; see `videos.py`.

    python -m smoothsa_jax.inference.decoding REQUESTS RESULTS

Both are descriptors of pipes. For each request (path, most pixels of a frame) it sends ("start",
frames per second, number of frames or None, height, width), then ("frame", (H,W,3) uint8) for each
frame, then ("end", a description of what could not be read or ""). On failure it sends ("error",
reason). The pipe holds one message at a time, so memory use does not grow. It ends with its reader.
"""

import contextlib
import itertools
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np
from PIL import Image

from smoothsa_jax.inference.truncation import is_cut
from smoothsa_jax.inputs import media

DEFAULT_FPS = 25.0  # if the file does not give a rate


def main(requests: int, results: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the reader's
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, of which it warns
    with Connection(requests, writable=False) as given, Connection(results, readable=False) as out:
        # The reader has left: the one raises EOFError, the other BrokenPipeError.
        with contextlib.suppress(EOFError, BrokenPipeError):
            while True:
                _decode(out, *given.recv())


def _decode(out: Connection, path: Path, max_pixels: int) -> None:
    try:
        for message in _messages(path, max_pixels):
            out.send(message)
    except BrokenPipeError:
        raise
    except media.Unreadable as error:
        out.send(("error", str(error)))
    # FFmpeg and its binding raise many exceptions for damaged files, including built-in ones.
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        out.send(("error", " ".join(reason.split())))


def _messages(path: Path, max_pixels: int) -> Iterator[tuple]:
    with media.open_video(path) as container:
        stream = media.film_of(container, path)
        height, width = stream.codec_context.height, stream.codec_context.width
        fps = float(stream.average_rate or DEFAULT_FPS)
        declared = stream.frames or None
        if declared is None and container.duration and len(container.streams) == 1:
            declared = round(container.duration / av.time_base * fps)
        yield "start", fps, declared, height, width
        media.check_size(height, width, max_pixels)
        found, damaged = 0, []
        if container.format.name == "gif":
            frames = _gif_frames(path, damaged)
        else:
            frames = _frames(container, stream, max_pixels, damaged)
        for frame in frames:
            found += 1
            yield "frame", frame
        if not damaged and path.is_file() and is_cut(path):
            damaged.append("the file ends too early")
        missing = ""
        if damaged:
            of = f" of {declared}" if declared and declared > found else ""
            why = damaged[0]
            missing = f"{found}{of} frames could be read, the file is cut or damaged ({why})"
        yield "end", missing


def _frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    max_pixels: int,
    damaged: list[str],
) -> Iterator[np.ndarray]:
    """Yield all decodable frames as displayed, and note why others are not decodable."""
    decoder = media.decoder_of(stream)
    decoder.thread_type = "AUTO"
    decoder.options = {"max_pixels": str(max_pixels)}
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.FFmpegError as error:  # nothing after this can be found
            damaged.append(error.strerror)
            break
        if not packet.size and packet.dts is not None:
            continue  # AVI: the frame before stays; the decoder would take it for the end
        if packet.is_corrupt:
            damaged.append("the file ends within a frame")
        try:
            frames = decoder.decode(packet)
        except av.FFmpegError as error:
            damaged.append(error.strerror)
            continue
        for frame in frames:
            if frame.is_corrupt:
                damaged.append("parts of frames are missing")
            yield media.pixels_of(frame)


def _gif_frames(path: Path, damaged: list[str]) -> Iterator[np.ndarray]:
    """The same for a GIF, with Pillow: FFmpeg finds one frame where no delays are stored."""
    with Image.open(path) as image:
        for number in itertools.count():
            try:
                image.seek(number)
                pixels = media.rgb(image)
            except EOFError:
                return
            except Exception as error:  # of many kinds, for damaged files
                damaged.append(str(error))
                return
            yield pixels


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
