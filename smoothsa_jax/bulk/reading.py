"""Decode a part's pictures and videos, resized to the model's size."""

import contextlib
import errno
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import av
import numpy as np
from jaxtyping import UInt8

from smoothsa_jax.bulk.cluster import program, refuse_other_program
from smoothsa_jax.bulk.corpus import Item, Tables
from smoothsa_jax.bulk.packing import packed
from smoothsa_jax.bulk.storage import read
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.videos import UnreadableVideo, read_video
from smoothsa_jax.inputs import media, remote
from smoothsa_jax.inputs.addresses import explained, is_remote
from smoothsa_jax.inputs.resize import resize_pixels

# Of the decoded frames of a part; videos beyond are decoded where the model runs, frame by frame.
MOST_BYTES = 256 * 2**20


class Clip(NamedTuple):
    """A decoded picture or video.

    Attributes:
        name: of the item.
        frames: of the model's size.
        size: height and width of the picture itself, in pixels.
        note: what was unreadable of a video, or "".
    """

    name: str
    frames: UInt8[np.ndarray, "T H W 3"]
    size: tuple[int, int]
    note: str = ""


class Long(NamedTuple):
    """A video that is too long to hold; it is read while it is segmented."""

    item: Item


class Bad(NamedTuple):
    """An item that cannot be read, and why."""

    name: str
    reason: str


class Frames:
    """The frames of an item, one after the other; a context manager.

    Args:
        item: the item.
        tables: reads bytes out of tables.
        size: height and width that frames are resized to.

    Attributes:
        size: of the item itself, after the first frame.
        note: after the last frame, what was unreadable.
    """

    def __init__(self, item: Item, tables: Tables, size: tuple[int, int]):
        self._item, self._tables, self._wanted = item, tables, size
        self.size: tuple[int, int] | None = None
        self.note = ""

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        with contextlib.closing(self._whole()) as frames:
            for frame in frames:
                self.size = self.size or frame.shape[:2]
                if frame.shape[:2] != self.size:
                    raise media.Unreadable(
                        f"a frame has {frame.shape[0]}x{frame.shape[1]} pixels, those before it "
                        f"{self.size[0]}x{self.size[1]}"
                    )
                same = frame.shape[:2] == self._wanted
                yield frame if same else resize_pixels(frame, self._wanted)

    def _whole(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        item = self._item
        if item.kind == "frames":
            for url in item.urls:
                yield media.opened(read(url)).displayed()
        elif item.kind == "picture":
            yield media.opened(self._bytes()).displayed()
        elif item.kind == "video" and item.place is None and not is_remote(item.urls[0]):
            yield from self._video(item.urls[0])
        else:
            data = self._bytes()
            if item.kind == "unknown":
                with contextlib.suppress(media.Unreadable):
                    picture = media.opened(data)
                    if not picture.is_animated:
                        yield picture.displayed()
                        return
            suffix = os.path.splitext(item.name)[1]
            with tempfile.NamedTemporaryFile(suffix=suffix) as file:
                file.write(data)
                file.flush()
                yield from self._video(file.name)

    def _bytes(self) -> bytes:
        item = self._item
        if item.column is not None:
            return self._tables.read(item)
        start, length = item.place or (0, -1)
        return read(item.urls[0], start, length)

    def _video(self, path: str) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        with read_video(path) as video:
            yield from video
            self.note = video.missing


# What is wrong with a machine or a store, and not with a file: by number, and by words of names.
OF_THE_MACHINE = {
    *remote.FULL, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBUSY, errno.ESTALE,
    errno.ETIMEDOUT,
}  # fmt: skip
OF_CLIENTS = ("Credential", "Connect", "Timeout")
# What is wrong with a file, out of Pillow, FFmpeg and the system.
UNREADABLE = (media.Unreadable, UserError, OSError, ValueError, av.FFmpegError)


def bad(item: Item, error: Exception) -> Bad:
    """Return what is noted of an item that cannot be read.

    Raises:
        UserError: the machine or the store is what is wrong. The run ends, and the same command
            goes on: an item that is noted is not read again.
        Exception: the error, if it is another one.
    """
    if _is_of_the_machine(error) or _is_of_the_machine(error.__cause__):
        with explained(item.urls[0]):
            raise error
    if isinstance(error, UnreadableVideo):
        return Bad(item.name, error.reason)
    if isinstance(error, FileNotFoundError):
        return Bad(item.name, "it does not exist")
    if isinstance(error, UNREADABLE):
        text = getattr(error, "strerror", None) or str(error)
        return Bad(item.name, " ".join(str(text).split()) or type(error).__name__)
    own = type(error).__module__.startswith(("smoothsa_jax", "ray", "numpy"))
    if own or isinstance(error, MemoryError):
        raise error
    # The clients of object stores raise errors of their own.
    return Bad(item.name, " ".join(f"{type(error).__name__}: {error}".split()))


def _is_of_the_machine(error: BaseException | None) -> bool:
    if isinstance(error, (ImportError, ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        return True
    return any(word in type(error).__name__ for word in OF_CLIENTS)


def decoded(items: list[Item], size: tuple[int, int], most_bytes: int = MOST_BYTES) -> list[Any]:
    """Decode a part.

    Args:
        items: of the part.
        size: height and width that the model takes.
        most_bytes: of all frames together.

    Returns:
        A `Clip`, `Long` or `Bad` for each item.
    """
    found, tables, left = [], Tables(), most_bytes
    frame_bytes = size[0] * size[1] * 3
    for item in items:
        frames, kept = Frames(item, tables, size), []
        try:
            for frame in frames:
                if item.kind != "picture" and left < (len(kept) + 1) * frame_bytes:
                    found.append(Long(item))
                    break
                kept.append(frame)
            else:
                if not kept:
                    raise media.Unreadable("it has no frames")
                left -= len(kept) * frame_bytes
                found.append(Clip(item.name, np.stack(kept), frames.size, frames.note))
        except Exception as error:  # of many kinds
            found.append(bad(item, error))
    return found


class Read:
    """Decode the part of a row: a task on a core.

    Args:
        size: height and width that the model takes.
        own_program: what `cluster.program` says where the run was started.
    """

    def __init__(self, size: tuple[int, int], own_program: str):
        self._size, self._program = size, own_program

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        refuse_other_program(self._program, program(), "a worker")
        entries = decoded(pickle.loads(row["data"]), self._size)
        return {"part": row["part"], "data": packed(entries)}
