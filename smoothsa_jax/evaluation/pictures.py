"""Draw masks over frames, as a PNG sheet or a GIF."""

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
# Neighbors in the list differ in hue and lightness.
OBJECTS = (
    (230, 60, 60), (60, 130, 235), (250, 200, 40), (60, 180, 90), (180, 80, 215), (250, 135, 40),
    (70, 205, 215), (240, 110, 180), (165, 205, 60), (120, 90, 220), (160, 95, 50), (0, 135, 130),
    (250, 170, 150), (130, 170, 250), (150, 30, 70), (190, 225, 170), (95, 110, 20),
    (215, 180, 250), (20, 75, 140), (255, 235, 150),
)  # fmt: skip
PAPER, INK = (255, 255, 255), (40, 40, 40)
GAP, FPS = 4, 6


def palette(num_colours: int) -> np.ndarray:
    """Colors (num_colours, 3) uint8: gray for the background (0), then OBJECTS, cyclically."""
    colours = [BACKGROUND] + [OBJECTS[i % len(OBJECTS)] for i in range(num_colours - 1)]
    return np.array(colours[:num_colours], np.uint8).reshape(-1, 3)


def match_colours(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Renumber predicted segments after the true segments that they match best.

    A single Hungarian matching on IoU covers the whole clip, so a slot keeps its color through
    time. An unmatched slot gets a number that no true segment has, and never the background's.

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
    from scipy.optimize import linear_sum_assignment  # slow to import; see metrics.miou

    rows, columns = linear_sum_assignment(scores, maximize=True)
    matched = {p: k for p, k in zip(rows, columns, strict=True) if scores[p, k] > 0}
    for p, k in matched.items():
        new[p] = k
    rest = [p for p in range(num_predicted) if p not in matched]
    free = range(max(num_true, 1), NO_SEGMENT)
    # Largest first, so that the most visible segments get the most distinct colors.
    rest.sort(key=lambda p: -counts.predicted_area[0, p])
    for p, number in zip(rest, free, strict=False):
        new[p] = number
    return new[predicted]


def overlay(
    video: np.ndarray, segments: np.ndarray, scale: int = 1, strength: float = 0.6
) -> np.ndarray:
    """Draw segments as colors over frames, with thin borders.

    The frame is shown in gray, so that colors only mean segments. Pixels in no segment (255) keep
    their colors.

    Args:
        video: (T, H, W, 3) uint8.
        segments: (T, H, W) integers; 0 is drawn as background.
        scale: integer enlargement factor; borders are one pixel wide in the result.
        strength: 0 shows only the frame, 1 only the colors.

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
    """Enlarge (T, H, W, ...) to (T, H * scale, W * scale, ...), nearest."""
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
    """Write a PNG with frames from left to right, and rows of frames, true and predicted segments.

    Args:
        video: (T, H, W, 3) uint8.
        true: (T, H, W), 0 background, 255 in no segment; None: no labels, and no row for them.
        predicted: (T, H, W) slot numbers, or name -> (T, H, W) for one row each.
        path: the PNG; written atomically.
        max_frames: if there are more frames, this many evenly spaced ones are shown, including the
            first and last.
        tile: smaller frames are enlarged by an integer factor to about this width, in pixels.
        numbers: the frames' numbers; default: 0, 1, ....

    Raises:
        UserError: the video and segments differ in T, H or W.
    """
    rows = _rows(video, true, predicted)
    shown = _evenly(len(video), max_frames)
    scale = enlarge_factor(video, tile)
    tiles = {
        name: _tiles(video[shown], None if segments is None else segments[shown], scale)
        for name, segments in rows
    }
    _write_sheet(tiles, [f"t = {t if numbers is None else numbers[t]}" for t in shown], path)


def scene_sheet(
    scene: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    *,
    labelled: bool = True,
    max_views: int = 8,
    tile: int = 128,
) -> None:
    """Write a PNG with the views of a scene from left to right.

    The rows are the input views, the target views, and what a model makes of these: the rendered
    pictures and the segments, under the true ones.

    Args:
        scene: "inputs" (V,H,W,3), "video" (T,H,W,3) and "rendered" (T,H,W,3), uint8, of the target
            views; "segmentations" (T,H,W); and "masks" (T,H,W), if there are any.
        path: the PNG; written atomically.
        labelled: whether there are true segments.
        max_views: of more views, this many evenly spaced ones are shown, including first and last.
        tile: as for `contact_sheet`.
    """
    video, scale = scene["video"], enlarge_factor(scene["video"], tile)
    inputs = scene["inputs"][_evenly(len(scene["inputs"]), max_views)]
    shown = _evenly(len(video), max_views)
    tiles = {"input": enlarge(inputs, scale), "target": enlarge(video[shown], scale)}
    tiles["rendered"] = enlarge(scene["rendered"][shown], scale)
    true = scene["segmentations"] if labelled else None
    if "masks" in scene:
        for name, segments in _rows(video, true, scene["masks"])[1:]:
            tiles[name] = _tiles(video[shown], segments[shown], scale)
    columns = range(max(len(pictures) for pictures in tiles.values()))
    _write_sheet(tiles, [f"view {i + 1}" for i in columns], path)


def decoded_sheet(
    sample: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    *,
    max_frames: int = 8,
    tile: int = 128,
) -> None:
    """Write a PNG with frames, and what a tokenizer decodes of them.

    Args:
        sample: "video" (T,H,W,3) and "decoded" (T,h,w,3), uint8.
        path: the PNG; written atomically.
        max_frames: of more frames, this many evenly spaced ones are shown.
        tile: as for `contact_sheet`.
    """
    video, decoded = sample["video"], sample["decoded"]
    shown = _evenly(len(video), max_frames)
    size = video.shape[2], video.shape[1]
    as_large = [np.asarray(Image.fromarray(x).resize(size, Image.NEAREST)) for x in decoded[shown]]
    scale = enlarge_factor(video, tile)
    tiles = {
        "frame": enlarge(video[shown], scale),
        "decoded": enlarge(np.stack(as_large), scale),
    }
    _write_sheet(tiles, [f"frame {i + 1}" for i in shown], path)


def _write_sheet(
    tiles: Mapping[str, np.ndarray], heads: Sequence[str], path: str | os.PathLike
) -> None:
    """Write a PNG of rows of pictures.

    Args:
        tiles: a row's name -> its pictures (columns,H,W,3) uint8; rows may be of different lengths.
        heads: the heads of the columns.
        path: the PNG; written atomically.
    """
    height, width = next(iter(tiles.values())).shape[1:3]
    font = ImageFont.load_default(size=13)
    margin = max(int(font.getlength(name)) for name in tiles) + 3 * GAP
    head = 20
    size = margin + len(heads) * (width + GAP), head + len(tiles) * (height + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(heads):
        middle = margin + column * (width + GAP) + width // 2
        draw.text((middle, head // 2), text, fill=INK, font=font, anchor="mm")
    for row, (name, pictures) in enumerate(tiles.items()):
        top = head + row * (height + GAP)
        draw.text((margin - 2 * GAP, top + height // 2), name, fill=INK, font=font, anchor="rm")
        for column, picture in enumerate(pictures):
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
    """Write a looping GIF: frame, true segments and predicted segments side by side.

    Args:
        video: as for `contact_sheet`.
        true: as for `contact_sheet`.
        predicted: as for `contact_sheet`.
        path: the GIF; written atomically.
        tile: smaller frames are enlarged by an integer factor to about this width, in pixels.
        fps: frames per second (GIF stores hundredths of a second).

    Raises:
        UserError: the video and segments differ in T, H or W.
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
    # One palette for all frames: with separate palettes, still regions flicker.
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
        # Each slot has its own color, since none is known to be the background.
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
