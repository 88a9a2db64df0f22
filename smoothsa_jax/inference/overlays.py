"""Draw slots over a video frame by frame: as MP4, or as GIF without an MP4 encoder."""

from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import cv2
import numpy as np
from jaxtyping import Int, UInt8

from smoothsa_jax.evaluation.pictures import animation, contact_sheet, enlarge_factor, overlay
from smoothsa_jax.inputs.media import file_name

ENCODER = "libx264"  # H.264, supported everywhere
OPTIONS = {"preset": "veryfast", "crf": "20"}
TILE = 256  # pixels of the longer side of a frame in the sheet and in a GIF


class Overlay:
    """Writes `overlay.mp4` to a folder; a context manager, after which the file is complete.

    Args:
        folder: the folder of the file.
        fps: frames per second.
    """

    def __init__(self, folder: Path, fps: float):
        # Limit the denominator, since players need a simple rate; the error is below 0.1 %.
        self._rate = Fraction(min(max(fps, 1.0), 240.0)).limit_denominator(1001)
        options = {"movflags": "faststart"}  # playable during download
        self._container = av.open(file_name(folder / "overlay.mp4"), "w", options=options)
        self._stream = None

    def add(self, frame: UInt8[np.ndarray, "H W 3"], masks: Int[np.ndarray, "H W"]) -> None:
        pixels = drawn(frame, masks)
        # Colors are stored per 2x2 pixels; odd sizes repeat the last row or column.
        odd = [(0, side % 2) for side in pixels.shape[:2]]
        pixels = np.pad(pixels, (*odd, (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._container.add_stream(ENCODER, rate=self._rate, options=OPTIONS)
            self._stream.height, self._stream.width = pixels.shape[:2]
            self._stream.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def __enter__(self) -> "Overlay":
        return self

    def __exit__(self, kind: type | None, error: object, trace: TracebackType | None) -> None:
        if kind is None and self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()


class Excerpt:
    """At most 2 * `most` evenly spaced, downscaled frames of a video, and the last one."""

    def __init__(self, most: int = 32):
        self._most, self._step, self._count = most, 1, 0
        self._kept: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._last: tuple[int, np.ndarray, np.ndarray] | None = None

    def add(self, frame: UInt8[np.ndarray, "H W 3"], masks: Int[np.ndarray, "H W"]) -> None:
        height, width = frame.shape[:2]
        scale = min(1.0, TILE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        self._last = (self._count, small, cv2.resize(masks, size, interpolation=cv2.INTER_NEAREST))
        if self._count % self._step == 0:
            self._kept.append(self._last)
        if len(self._kept) > 2 * self._most:
            self._kept, self._step = self._kept[::2], 2 * self._step
        self._count += 1

    def write_sheet(self, path: Path) -> None:
        numbers, video, masks = self._stacked()
        contact_sheet(video, None, {"slots": masks}, path, numbers=numbers)

    def write_gif(self, path: Path, fps: float) -> None:
        """Write all kept frames, at the speed of the original video."""
        _, video, masks = self._stacked()
        animation(video, None, {"slots": masks}, path, fps=min(fps / self._step, 50.0))

    def _stacked(self) -> tuple[list[int], np.ndarray, np.ndarray]:
        kept = self._kept if self._kept[-1] is self._last else [*self._kept, self._last]
        numbers, frames, masks = zip(*kept, strict=True)
        return list(numbers), np.stack(frames), np.stack(masks)


def can_write_mp4() -> bool:
    return ENCODER in av.codecs_available


def drawn(
    frame: UInt8[np.ndarray, "H W 3"], masks: Int[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "sH sW 3"]:
    """Draw slots over one frame, enlarged by an integer factor if it is very small."""
    scale = enlarge_factor(frame[None], TILE)
    # Numbers start at 1, because no slot is known to be the background.
    return overlay(frame[None], masks[None].astype(np.int64) + 1, scale)[0]
