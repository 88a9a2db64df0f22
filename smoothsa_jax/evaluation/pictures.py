"""Masks over frames, as a PNG sheet and as a GIF."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.metrics import contingency, iou
from smoothsa_jax.files import atomic_file
from smoothsa_jax.inputs import NO_SEGMENT

BACKGROUND = (88, 92, 100)
# Neighbours in the list differ in hue and in lightness.
OBJECTS = (
    (230, 60, 60), (60, 130, 235), (250, 200, 40), (60, 180, 90), (180, 80, 215), (250, 135, 40),
    (70, 205, 215), (240, 110, 180), (165, 205, 60), (120, 90, 220), (160, 95, 50), (0, 135, 130),
    (250, 170, 150), (130, 170, 250), (150, 30, 70), (190, 225, 170), (95, 110, 20),
    (215, 180, 250), (20, 75, 140), (255, 235, 150),
)  # fmt: skip
PAPER, INK = (255, 255, 255), (40, 40, 40)
GAP, FPS = 4, 6


def palette(num_colours: int) -> np.ndarray:
    """(num_colours, 3) uint8: grey for the background (0), then distinct colours, in a circle."""
    colours = [BACKGROUND] + [OBJECTS[i % len(OBJECTS)] for i in range(num_colours - 1)]
    return np.array(colours[:num_colours], np.uint8).reshape(-1, 3)


def match_colours(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Renumber predicted segments after the true ones that they fit best.

    One matching (Hungarian, on IoU) for the whole clip, so a slot keeps its colour through time. A
    slot that no true segment is left for gets a number no true segment has, never the background's.

    Args:
        predicted: (T, H, W) integers, 255 = in no segment.
        true: the same shape, 0 background, 255 in no segment.

    Returns:
        (T, H, W) uint8, with 255 kept.
    """
    counts = contingency(predicted[None], true[None])
    scores = iou(counts)[0]
    num_predicted, num_true = scores.shape
    new = np.full(NO_SEGMENT + 1, NO_SEGMENT, np.uint8)
    from scipy.optimize import linear_sum_assignment  # slow to import, see metrics.miou

    rows, columns = linear_sum_assignment(scores, maximize=True)
    matched = {p: k for p, k in zip(rows, columns, strict=True) if scores[p, k] > 0}
    for p, k in matched.items():
        new[p] = k
    rest = [p for p in range(num_predicted) if p not in matched]
    free = range(max(num_true, 1), NO_SEGMENT)
    # The largest first, so that what is seen most gets the colours that are least alike.
    rest.sort(key=lambda p: -counts.predicted_area[0, p])
    for p, number in zip(rest, free, strict=False):
        new[p] = number
    return new[predicted]


def overlay(
    video: np.ndarray, segments: np.ndarray, scale: int = 1, strength: float = 0.6
) -> np.ndarray:
    """Segments as colours over frames, with thin borders.

    The frame is shown in grey below, so that the colours mean segments only. Pixels in no segment
    (255) stay as they are.

    Args:
        video: (T, H, W, 3) uint8.
        segments: (T, H, W) integers; 0 is drawn as background.
        scale: enlargement, each pixel becomes scale x scale; borders are one result pixel wide.
        strength: 0 shows the frame only, 1 the colours only.

    Returns:
        (T, H * scale, W * scale, 3) uint8.
    """
    video = enlarge(video, scale).astype(np.float32)
    segments = enlarge(segments, scale)
    grey = (video @ np.float32([0.299, 0.587, 0.114]))[..., None]
    colours = palette(NO_SEGMENT + 1)[segments].astype(np.float32)
    mixed = (1 - strength) * grey + strength * colours
    mixed = np.where((segments == NO_SEGMENT)[..., None], video, mixed)
    border = np.zeros(segments.shape, bool)
    border[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    border[:, :, 1:] |= segments[:, :, 1:] != segments[:, :, :-1]
    mixed[border] = 255
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """(T, H, W, ...) -> (T, H * scale, W * scale, ...), nearest."""
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def contact_sheet(
    video: np.ndarray,
    true: np.ndarray | None,
    predicted: np.ndarray | Mapping[str, np.ndarray],
    path: str | os.PathLike,
    *,
    max_frames: int = 8,
    tile: int = 128,
    numbers: Sequence[int] | None = None,
) -> None:
    """Write a PNG with frames from left to right; rows: frames, true segments, predicted segments.

    Args:
        video: (T, H, W, 3) uint8.
        true: (T, H, W), 0 background, 255 in no segment; None: there are no labels, and no row of them.
        predicted: (T, H, W) slot numbers, or name -> (T, H, W) for one row each.
        path: the PNG; written whole or not at all.
        max_frames: with more frames than that, evenly spaced ones (first and last included).
        tile: frames smaller than this are enlarged by a whole factor, to about this width.
        numbers: of the frames, where they are not 0, 1, ...

    Raises:
        UserError: video and segments differ in T, H or W.
    """
    rows = _rows(video, true, predicted)
    shown = _evenly(len(video), max_frames)
    scale = enlarge_factor(video, tile)
    height, width = video.shape[1] * scale, video.shape[2] * scale
    font = ImageFont.load_default(size=13)
    margin = max(int(font.getlength(name)) for name, _ in rows) + 3 * GAP
    head = 20
    sheet = Image.new(
        "RGB",
        (margin + len(shown) * (width + GAP), head + len(rows) * (height + GAP)),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for column, t in enumerate(shown):
        middle = margin + column * (width + GAP) + width // 2
        draw.text(
            (middle, head // 2),
            f"t = {t if numbers is None else numbers[t]}",
            fill=INK,
            font=font,
            anchor="mm",
        )
    for row, (name, segments) in enumerate(rows):
        top = head + row * (height + GAP)
        draw.text((margin - 2 * GAP, top + height // 2), name, fill=INK, font=font, anchor="rm")
        tiles = _tiles(video[shown], None if segments is None else segments[shown], scale)
        for column, picture in enumerate(tiles):
            sheet.paste(Image.fromarray(picture), (margin + column * (width + GAP), top))
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def animation(
    video: np.ndarray,
    true: np.ndarray | None,
    predicted: np.ndarray | Mapping[str, np.ndarray],
    path: str | os.PathLike,
    *,
    tile: int = 192,
    fps: float = FPS,
) -> None:
    """Write a GIF that loops: frame, true segments and predicted segments side by side.

    Args:
        video, true, predicted: as for `contact_sheet`.
        path: the GIF; written whole or not at all.
        tile: frames smaller than this are enlarged by a whole factor, to about this width.
        fps: frames a second (GIF counts in hundredths of a second).

    Raises:
        UserError: video and segments differ in T, H or W.
    """
    rows = _rows(video, true, predicted)
    scale = enlarge_factor(video, tile)
    height, width = video.shape[1] * scale, video.shape[2] * scale
    head = 20
    font = ImageFont.load_default(size=13)
    canvas = Image.new("RGB", (len(rows) * (width + GAP) - GAP, head + height), PAPER)
    draw = ImageDraw.Draw(canvas)
    tiles = []
    for column, (name, segments) in enumerate(rows):
        middle = column * (width + GAP) + width // 2
        draw.text((middle, head // 2), name, fill=INK, font=font, anchor="mm")
        tiles.append(_tiles(video, segments, scale))
    frames = []
    for t in range(len(video)):
        frame = canvas.copy()
        for column, pictures in enumerate(tiles):
            frame.paste(Image.fromarray(pictures[t]), (column * (width + GAP), head))
        frames.append(frame)
    # One palette for all frames: with one each, still regions flicker.
    stacked = Image.fromarray(np.concatenate([np.asarray(f) for f in frames[:: _step(frames)]]))
    colours = stacked.quantize(256, method=Image.Quantize.MEDIANCUT)
    frames = [f.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG) for f in frames]
    with atomic_file(path) as temporary:
        frames[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=10 * round(100 / fps),
            loop=0,
            optimize=False,
        )


def _rows(
    video: np.ndarray, true: np.ndarray | None, predicted: np.ndarray | Mapping[str, np.ndarray]
) -> list[tuple[str, np.ndarray | None]]:
    named = predicted if isinstance(predicted, Mapping) else {"prediction": predicted}
    for name, segments in (named if true is None else {"labels": true, **named}).items():
        if segments.shape != video.shape[:3]:
            raise UserError(
                f"{name} have shape {segments.shape}, the video has frames {video.shape[:3]}: "
                "expected the same frames, height and width"
            )
    if true is None:
        # Each slot has a colour of its own: none of them is known to be the background.
        return [("frame", None), *((name, np.asarray(p) + 1) for name, p in named.items())]
    matched = [(name, match_colours(np.asarray(p), true)) for name, p in named.items()]
    return [("frame", None), ("truth", true), *matched]


def _tiles(video: np.ndarray, segments: np.ndarray | None, scale: int) -> np.ndarray:
    return enlarge(video, scale) if segments is None else overlay(video, segments, scale)


def _evenly(num_frames: int, max_frames: int) -> Sequence[int]:
    count = min(num_frames, max_frames)
    return np.rint(np.linspace(0, num_frames - 1, count)).astype(int).tolist()


def enlarge_factor(video: np.ndarray, tile: int) -> int:
    return max(1, round(tile / max(video.shape[1:3])))


def _step(frames: list) -> int:
    return max(1, len(frames) // 8)
