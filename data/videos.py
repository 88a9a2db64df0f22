"""The frames of a video file of a download, in a folder or an archive."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from data.archives import Files
from data.clips import read
from data.family import BadSample
from smoothsa_jax.inference.videos import UnreadableVideo, read_video


def video_frames(
    files: Files, name: str, staging: Path | None, max_pixels: int, may_be_cut: bool = False
) -> Iterator[np.ndarray]:
    """Yield the frames (H,W,3) uint8 of a video, as a player shows them.

    Args:
        files: the folder or archive that holds it.
        name: the file's name in there.
        staging: a folder for the file of an archive, because FFmpeg reads files alone.
        max_pixels: refuse larger frames.
        may_be_cut: whether to take the readable frames of a damaged video, if there are any.

    Raises:
        BadSample: the video is unreadable, damaged or too large.
    """
    where = f"{files.path}/{name}"
    found = 0
    with contextlib.ExitStack() as stack:
        path = files.path / name
        if not files.path.is_dir():
            # The disk of the prepared folder has space for one.
            if staging is not None:
                staging.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=staging))
            path = Path(folder) / f"video{PurePosixPath(name).suffix}"
            path.write_bytes(read(files, name))
        elif name not in files:
            read(files, name)  # raises
        try:
            video = stack.enter_context(read_video(path, max_pixels=max_pixels))
            _check_size(video.height, video.width, where, max_pixels)
            for pixels in video:
                _check_size(*pixels.shape[:2], where, max_pixels)
                found += 1
                yield pixels
        except UnreadableVideo as error:
            if may_be_cut and found:
                return
            raise BadSample(
                f"{where} is not a readable video: {error.reason}; encode it again, for "
                "example as H.264 in mp4, or skip such samples with --skip-bad"
            ) from error
    if video.missing and not may_be_cut:
        raise BadSample(
            f"{where}: {video.missing}; expected a complete video: copy it again, encode it "
            "again, or skip such samples with --skip-bad"
        )


def _check_size(height: int, width: int, where: str, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BadSample(
            f"{where} has {width}x{height} pixels, more than {max_pixels}; raise --max_pixels if "
            "you want this video"
        )
