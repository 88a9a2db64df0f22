"""Draw a sample of a prepared folder, as stored and as seen by the model; or of generated data.

    python -m data.show prepared/movi_c --split train --index 3 --out sample.png
    python -m data.show configs/scenes.py --split test --num_frames 12
    python -m data.show configs/scenes.py:views

The rows are: stored frames; their labels with boxes; two training draws (window, crop, flip); the
center square used in evaluation; and of that, depth (near is bright) and backward flow (as a color
wheel, where white stands still), if there are any. Views of still scenes are shown whole. Boxes are
computed from the displayed labels; pixels in no segment keep the frame's colors. A config of
generated data has the rows of its samples, and the command prints which objects touch.
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

from smoothsa_jax.checkout import as_started
from smoothsa_jax.config.load import load_config
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.pictures import overlay
from smoothsa_jax.guard import exit_status
from smoothsa_jax.inputs import NO_SEGMENT, OPTIONAL
from smoothsa_jax.inputs.augment import drop_absent
from smoothsa_jax.inputs.boxes import boxes_from_segmentation
from smoothsa_jax.inputs.build import GENERATED, build_dataset
from smoothsa_jax.inputs.encoded import FEATURES, decode_frames, decode_labels, has, parse_clip
from smoothsa_jax.inputs.manifest import shows_scenes
from smoothsa_jax.inputs.prepared import PreparedFolder
from smoothsa_jax.inputs.remote import local_folder
from smoothsa_jax.models.targets import flow_picture
from smoothsa_jax.text import say

IMAGE_SIZE = 256
TILE = 160  # pixels of the longer side of a picture on the sheet
MARGIN = 90  # pixels, for the names of the rows
GAP = 4
MAX_OBJECTS = 254
Rows = list[tuple[str, np.ndarray, np.ndarray]]  # name, video (T,H,W,3), labels (T,H,W)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=as_started("python -m data.show"),
        description=as_started(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder", help="a prepared folder, or a config of generated data such as configs/scenes.py"
    )
    parser.add_argument("--split", default="train")
    parser.add_argument("--index", type=int, default=0, help="which sample")
    parser.add_argument("--out", type=Path, help="PNG to write; default sample_SPLIT_INDEX.png")
    parser.add_argument(
        "--image_size",
        type=int,
        help=f"of the model's input, in pixels; default {IMAGE_SIZE}, or what the config says",
    )
    parser.add_argument(
        "--num_frames", type=int, default=6, help="of the model's input in training"
    )
    parser.add_argument("--seed", type=int, default=0, help="for window, crop and flip")
    given = parser.parse_args(arguments)
    out = given.out or Path(f"sample_{given.split}_{given.index}.png")

    def work() -> int:
        if given.num_frames < 1 or (given.image_size or 1) < 1:
            raise UserError(
                f"--num_frames is {given.num_frames}, --image_size {given.image_size}; expected at "
                "least 1"
            )
        if _is_config(given.folder):
            name, rows = look_at_generated(
                given.folder, given.split, given.index, given.image_size, given.num_frames
            )
        else:
            name, rows = look(
                local_folder(given.folder),
                given.split,
                given.index,
                given.image_size or IMAGE_SIZE,
                given.num_frames,
                given.seed,
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
    source = _prepared(folder, split, (image_size, image_size), num_frames)
    if not 0 <= index < len(source):
        raise UserError(
            f"--index is {index}, but split {split!r} of {folder} has {len(source)} samples; "
            f"expected 0 to {len(source) - 1}"
        )
    clip = parse_clip(source.records[index], f"sample {index} of split {split!r} in {folder}")
    which = _evenly(len(clip), num_frames)
    frames = decode_frames(clip, which)
    size, also = (image_size, image_size), tuple(key for key in FEATURES if has(clip, key))
    if views := shows_scenes(folder):
        size = tuple(round(x * image_size / max(frames.shape[1:3])) for x in frames.shape[1:3])
    if also or views:
        source = _prepared(folder, split, size, num_frames, also, views)
    stored = decode_labels(clip, which) if clip.labels is not None else None
    empty = np.full(frames.shape[:3], 255, np.uint8)
    rows = [("stored", frames, empty), ("labels", frames, empty if stored is None else stored)]
    rng = np.random.default_rng(seed)
    seen = {f"training {i}": source.draw(index, rng) for i in (1, 2)} | {
        "evaluation": source[index]
    }
    rows += [(key, sample["video"], sample["segmentations"]) for key, sample in seen.items()]
    return clip.name, rows + _more(seen["evaluation"])


def _prepared(
    folder: Path,
    split: str,
    size: tuple[int, int],
    num_frames: int,
    also: tuple[str, ...] = (),
    views: bool = False,
) -> PreparedFolder:
    whole = {"views": True, "crop": "none", "flip": 0.0} if views else {}
    return PreparedFolder(
        folder,
        split,
        size,
        num_frames,
        max_objects=MAX_OBJECTS,
        boxes=False,
        background_box=False,
        also=also,
        **whole,
    )


def _is_config(name: str) -> bool:
    return name.partition(":")[0].endswith(".py")


def look_at_generated(
    name: str, split: str, index: int, image_size: int | None, num_frames: int
) -> tuple[str, Rows]:
    """The name and the rows of a sample of generated data, with all that it has.

    Raises:
        UserError: the config is of other data, or the split or sample does not exist.
    """
    data = dict(load_config(name).data)
    if data["name"] not in GENERATED:
        raise UserError(
            f"{name} has no generated data but {data['name']!r}; give the prepared folder, such as "
            f"{data.get('folder', 'prepared/NAME')}"
        )
    reads = OPTIONAL if data["name"] == "scenes" else ()
    if data.get("views"):
        reads = tuple(key for key in reads if key != "flow")
    options = {"num_samples": None, "keep": False, "num_frames": num_frames}
    if image_size is not None:
        options["image_size"] = image_size
    data.pop("features", None)
    source = build_dataset(data, split, reads=reads, **options)
    if not 0 <= index < len(source):
        raise UserError(
            f"--index is {index}, but split {split!r} of {name} has {len(source)} samples; "
            f"expected 0 to {len(source) - 1}"
        )
    sample = source[index]
    empty = np.full(sample["segmentations"].shape, NO_SEGMENT, np.uint8)
    rows = [
        ("video", sample["video"], empty),
        ("labels", sample["video"], sample["segmentations"]),
        *_more(sample),
    ]
    if "contacts" in sample:
        say(f"contacts (0 is the ground): {contacts_in_words(sample['contacts'])}")
    return f"sample {index} of split {split!r} of {name}", rows


def contacts_in_words(contacts: np.ndarray) -> str:
    """Contacts (T, K+1, K+1) as "1-2 from frame 5", by their first frames."""
    first = {}
    for t, a, b in zip(*np.nonzero(np.triu(contacts.swapaxes(1, 2))), strict=True):
        first.setdefault((int(a), int(b)), int(t))
    words = [f"{a}-{b} from frame {t}" for (a, b), t in sorted(first.items(), key=lambda x: x[1])]
    return ", ".join(words) or "none"


def _more(sample: dict[str, np.ndarray]) -> Rows:
    """The rows of depth and flow, if a sample has them."""
    rows: Rows = []
    for key, picture in (("depth", _depth_picture), ("flow", _flow_picture)):
        if key in sample:
            pixels = picture(sample[key])
            rows.append((key, pixels, np.full(pixels.shape[:3], NO_SEGMENT, np.uint8)))
    return rows


def _depth_picture(depth: np.ndarray) -> np.ndarray:
    """Depth (T,H,W) as gray (T,H,W,3), logarithmic; the nearest pixel of the clip is white."""
    far = np.log1p(depth)
    span = max(far.max() - far.min(), 1e-6)
    grey = np.rint(255 * (far.max() - far) / span).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _flow_picture(flow: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.asarray(flow_picture(flow))).astype(np.uint8)


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
