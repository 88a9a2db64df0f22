"""The process that decodes a video, so that a crash ends only this process; see `videos.py`.

    python -m smoothsa_jax.inference.decoding PATH DESCRIPTOR

It sends ("start", frames per second, number of frames or None), then ("frame", (H,W,3) uint8) for
each frame, then ("end", a description of what could not be read or ""). On failure it sends
("error", reason). The pipe holds one message at a time, so memory use does not grow.
"""

import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

import av
import numpy as np

MAX_PIXELS = 100_000_000  # per frame
DEFAULT_FPS = 25.0  # if the file does not give a rate


class Unreadable(Exception):  # noqa: N818, its message is part of an error line
    """The reason why a file is unusable."""


def main(path: str, descriptor: int) -> None:
    with Connection(descriptor, readable=False) as out:
        try:
            for message in _messages(path):
                out.send(message)
        except BrokenPipeError:  # the reader has left
            pass
        except Unreadable as error:
            out.send(("error", str(error)))
        # FFmpeg and its binding raise many exceptions for damaged files, including built-in ones.
        except Exception as error:
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            out.send(("error", " ".join(reason.split())))


def _messages(path: str) -> Iterator[tuple]:
    with av.open(path) as container:
        if not container.streams.video:
            raise Unreadable("it holds no video")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise Unreadable("its codec is not supported")
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        fps = float(stream.average_rate or DEFAULT_FPS)
        declared = stream.frames or None
        if declared is None and container.duration and len(container.streams) == 1:
            declared = round(container.duration / av.time_base * fps)
        yield "start", fps, declared
        found, damaged = 0, []
        for frame in _frames(container, stream, damaged):
            found += 1
            yield "frame", frame
        missing = ""
        if damaged or (declared and found < 0.95 * declared - 1):
            of = f" of {declared}" if declared and declared >= found else ""
            why = f" ({damaged[0]})" if damaged else ""
            missing = f"{found}{of} frames could be read, the file is cut or damaged{why}"
        yield "end", missing


def _frames(container, stream, damaged: list[str]) -> Iterator[np.ndarray]:
    """Yield all decodable frames upright, and note why others are not decodable."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError as error:  # nothing after this can be found
            damaged.append(error.strerror)
            return
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            damaged.append(error.strerror)
            continue
        for frame in frames:
            if frame.is_corrupt:
                damaged.append("parts of frames are missing")
            pixels = frame.to_ndarray(format="rgb24")
            # Phones record sideways and store the rotation.
            yield np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
