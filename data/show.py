"""Draw a sample of a prepared folder, as stored and as seen by the model.

    python -m data.show prepared/movi_c --split train --index 3 --out sample.png

The rows are: stored frames; their labels with boxes; two training draws (window, crop, flip); the
center square used in evaluation. Boxes are computed from the displayed labels; pixels in no segment
keep the frame's colors.
"""

import sys

if __name__ == "__main__":  # before the imports: what makes one of them fail is explained as well
    from smoothsa_jax.guard import run_module

    sys.exit(run_module("data.show"))

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.pictures import overlay
from smoothsa_jax.guard import exit_status
from smoothsa_jax.inputs.augment import drop_absent
from smoothsa_jax.inputs.boxes import boxes_from_segmentation
from smoothsa_jax.inputs.encoded import decode_frames, decode_labels, parse_clip
from smoothsa_jax.inputs.prepared import PreparedFolder
from smoothsa_jax.text import say

TILE = 160  # pixels of the longer side of a picture on the sheet
MARGIN = 90  # pixels, for the names of the rows
GAP = 4
MAX_OBJECTS = 254
Rows = list[tuple[str, np.ndarray, np.ndarray]]  # name, video (T,H,W,3), labels (T,H,W)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data.show",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="a prepared folder")
    parser.add_argument("--split", default="train")
    parser.add_argument("--index", type=int, default=0, help="which sample")
    parser.add_argument("--out", type=Path, help="PNG to write; default sample_SPLIT_INDEX.png")
    parser.add_argument(
        "--image_size", type=int, default=256, help="of the model's input, in pixels"
    )
    parser.add_argument(
        "--num_frames", type=int, default=6, help="of the model's input in training"
    )
    parser.add_argument("--seed", type=int, default=0, help="for window, crop and flip")
    given = parser.parse_args(arguments)
    out = given.out or Path(f"sample_{given.split}_{given.index}.png")

    def work() -> int:
        if given.num_frames < 1 or given.image_size < 1:
            raise UserError(
                f"--num_frames is {given.num_frames}, --image_size {given.image_size}; expected at "
                "least 1"
            )
        name, rows = look(
            given.folder, given.split, given.index, given.image_size, given.num_frames, given.seed
        )
        try:
            sheet(rows, given.num_frames).save(out)
        except (OSError, ValueError) as error:
            raise UserError(f"--out={out} cannot be written: {error}; name another .png") from error
        say(f"{name}: {out}")
        return 0

    return exit_status(work)


def look(
    folder: Path, split: str, index: int, image_size: int, num_frames: int, seed: int
) -> tuple[str, Rows]:
    """Read a sample's name and the rows of its sheet.

    Raises:
        UserError: the folder, split or sample does not exist or is unreadable.
    """
    source = PreparedFolder(
        folder,
        split,
        image_size,
        num_frames,
        max_objects=MAX_OBJECTS,
        boxes=False,
        background_box=False,
    )
    if not 0 <= index < len(source):
        raise UserError(
            f"--index is {index}, but split {split!r} of {folder} has {len(source)} samples; "
            f"expected 0 to {len(source) - 1}"
        )
    clip = parse_clip(source.records[index], f"sample {index} of split {split!r} in {folder}")
    which = _evenly(len(clip), num_frames)
    frames = decode_frames(clip, which)
    stored = decode_labels(clip, which) if clip.labels is not None else None
    empty = np.full(frames.shape[:3], 255, np.uint8)
    rows = [("stored", frames, empty), ("labels", frames, empty if stored is None else stored)]
    rng = np.random.default_rng(seed)
    seen = {f"training {i}": source.draw(index, rng) for i in (1, 2)} | {
        "evaluation": source[index]
    }
    rows += [(key, sample["video"], sample["segmentations"]) for key, sample in seen.items()]
    return clip.name, rows


def sheet(rows: Rows, num_columns: int) -> Image.Image:
    """Arrange `rows` in one picture, each with at most `num_columns` frames."""
    tiles = [(name, _tiles(video, labels, num_columns)) for name, video, labels in rows]
    width = MARGIN + max(sum(tile.width + GAP for tile in row) for _, row in tiles)
    height = sum(max(tile.height for tile in row) + GAP for _, row in tiles)
    page = Image.new("RGB", (width, height), "white")
    draw, top = ImageDraw.Draw(page), 0
    for name, row in tiles:
        draw.text((GAP, top + row[0].height // 2 - 5), name, fill="black")
        left = MARGIN
        for tile in row:
            page.paste(tile, (left, top))
            left += tile.width + GAP
        top += max(tile.height for tile in row) + GAP
    return page


def _tiles(video: np.ndarray, labels: np.ndarray, num_columns: int) -> list[Image.Image]:
    which = _evenly(len(video), num_columns)
    video, (labels, kept) = video[which], drop_absent(labels[which])
    labelled = (labels != 255).any()
    boxes = boxes_from_segmentation(labels, np.arange(1, len(kept) + 1))
    pictures = overlay(video, labels) if labelled else video
    scale = TILE / max(video.shape[1:3])
    size = (round(video.shape[2] * scale), round(video.shape[1] * scale))
    tiles = []
    for picture, frame_boxes in zip(pictures, boxes, strict=True):
        tile = Image.fromarray(picture).resize(size, Image.Resampling.NEAREST)
        draw = ImageDraw.Draw(tile)
        for left, top, right, bottom in frame_boxes:
            if right > left and bottom > top:
                corners = [(left * size[0], top * size[1]), (right * size[0], bottom * size[1])]
                draw.rectangle(corners, outline="yellow")
        tiles.append(tile)
    return tiles


def _evenly(num_frames: int, count: int) -> list[int]:
    return np.rint(np.linspace(0, num_frames - 1, min(num_frames, count))).astype(int).tolist()
