"""Read the frames of video files in a separate process (`decoding.py`).

A process that has read a whole file without fault reads the next one: starting another takes half a
second.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

import smoothsa_jax
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.media import MAX_PIXELS

DECODER = (sys.executable, "-P", "-m", "smoothsa_jax.inference.decoding")
MOST_FILES = 1000  # of one process: FFmpeg may leak
TIME_LIMIT = 60.0  # seconds without a frame
ADVICE = "copy it again, or convert it, for example with: ffmpeg -i {name} new.mp4"


class UnreadableVideo(UserError):
    """A video file is unusable.

    Attributes:
        reason: why, without the file's name and advice.
    """

    def __init__(self, path: Path, reason: str):
        advice = ADVICE.format(name=path.name)
        super().__init__(f"{path} cannot be read as a video: {reason}; {advice}")
        self.reason = reason


def read_video(
    path: str | os.PathLike, time_limit: float = TIME_LIMIT, max_pixels: int = MAX_PIXELS
) -> "Video":
    """Read the frames of a video or GIF in order: `for frame in read_video("clip.mp4"): ...`.

    A separate process decodes frames on demand. Memory does not grow with the length of the video,
    and a file that crashes or hangs the decoder raises `UserError`.

    Args:
        path: a file in any format that FFmpeg reads. The frames are those that a player shows,
            turned and mirrored as the file says; transparency is composited on black.
        time_limit: maximum time in seconds for opening the file, and for each frame.
        max_pixels: refuse larger frames.

    Raises:
        UserError: the file does not exist or is unreadable; also raised while reading frames.
    """
    return Video(Path(path), time_limit, max_pixels)


class Video:
    """An open video: a context manager, and an iterator for a single pass.

    Attributes:
        fps: frames per second.
        num_frames: the number stored in the file, which may be wrong; None if there is none.
        height: of the stored frames in pixels, according to the file's header.
        width: the same.
        missing: after the last frame, a description of what was unreadable, or "".
    """

    def __init__(self, path: Path, time_limit: float, max_pixels: int):
        self._path, self._time_limit = path, time_limit
        self.missing = ""
        if not path.exists():
            raise UserError(f"{path} does not exist; give the path of a video")
        if path.is_file() and not path.stat().st_size:
            raise self._error("the file is empty")
        self._request, self._begun = (path.absolute(), max_pixels), False
        self._decoder: _Decoder | None = _Decoder.idle_or_new(*self._request)
        try:
            self.fps, self.num_frames, self.height, self.width = self._next()[1:]
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        found = 0
        with self:
            while (message := self._next())[0] == "frame":
                found += 1
                yield message[1]
        self.missing = message[1]
        if not found:
            raise self._error("no frame can be decoded")

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_decoder"):
            self.close()

    def close(self) -> None:
        """Stop decoding."""
        if self._decoder is not None:
            self._decoder.end()
            self._decoder = None

    def _next(self) -> tuple:
        if self._decoder is None:
            raise UserError(f"{self._path} was already read to its end; open it again")
        if not self._decoder.results.poll(self._time_limit):
            raise self._error(f"the decoder returned nothing within {self._time_limit:g} seconds")
        try:
            message = self._decoder.results.recv()
        except EOFError:
            status = self._decoder.process.wait()
            if self._decoder.files > 1 and not self._begun:  # this file is not the reason
                self._decoder = _Decoder(*self._request)
                return self._next()
            name = signal.Signals(-status).name if status < 0 else f"status {status}"
            raise self._error(f"the decoder ended with {name}") from None
        self._begun = True
        if message[0] == "error":
            raise self._error(message[1])
        if message == ("end", ""):
            decoder, self._decoder = self._decoder, None
            decoder.keep()
        return message

    def _error(self, reason: str) -> UnreadableVideo:
        return UnreadableVideo(self._path, reason)


class _Decoder:
    """A process that decodes one file after the other.

    Args:
        request: path of the first file, and most pixels of a frame.

    Attributes:
        process: the process.
        results: what it sends.
        files: how many it was given.
    """

    _idle: list["_Decoder"] = []  # at most one

    def __init__(self, *request: Any):
        of_process, self._requests = multiprocessing.Pipe(duplex=False)
        self.results, sender = multiprocessing.Pipe(duplex=False)
        theirs = of_process.fileno(), sender.fileno()
        # Lets the child import the package even if it is not installed.
        root = str(Path(smoothsa_jax.__file__).parent.parent)
        search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [*DECODER, *map(str, theirs)],
            pass_fds=theirs,
            env={**os.environ, "PYTHONPATH": search},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        of_process.close()
        sender.close()
        self._owner, self.files = os.getpid(), 0
        with contextlib.suppress(OSError):  # reading its results tells
            self._begin(request)

    @classmethod
    def idle_or_new(cls, *request: Any) -> "_Decoder":
        """Return one that begins to decode a file."""
        with contextlib.suppress(IndexError):
            idle = cls._idle.pop()
            if idle._owner == os.getpid():  # else it is that of the process that was forked
                try:
                    idle._begin(request)
                    return idle
                except OSError:  # it was killed
                    idle.end()
        return cls(*request)

    def _begin(self, request: tuple) -> None:
        self._requests.send(request)
        self.files += 1

    def keep(self) -> None:
        """Note that a file was read without fault."""
        if self.files < MOST_FILES and not self._idle:
            self._idle.append(self)
        else:
            self.end()

    def end(self) -> None:
        self._requests.close()
        self.results.close()
        self.process.kill()
        self.process.wait()


@atexit.register
def _end_idle() -> None:
    while _Decoder._idle:
        if (idle := _Decoder._idle.pop())._owner == os.getpid():
            idle.end()
