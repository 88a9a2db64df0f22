"""Small prepared folders, written as `python -m data.prepare` writes them."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data import features, shards, workers

NAMES = "abcdefghij"  # of categories 0, 1, ...


@contextlib.contextmanager
def interrupted_after_a_shard() -> Iterator[list[str]]:
    """Ctrl-C after the first shard of a preparation in this process; gives that shard's name."""
    make, made = workers._make, []

    def interrupted(out, file, job):
        if made:
            raise KeyboardInterrupt
        made.append(file)
        return make(out, file, job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_make", interrupted)
        yield made


def png(picture: np.ndarray) -> bytes:
    """Encodes RGB (H,W,3) or labels (H,W)."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", picture)[1].tobytes()


def blobs(
    rng: np.random.Generator, num_frames: int, height: int, width: int, num_objects: int
) -> tuple[np.ndarray, np.ndarray]:
    """A random video and labels with `num_objects` moving rectangles and pixels in no segment."""
    video = rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    labels = np.zeros((num_frames, height, width), np.uint8)
    for k in range(1, num_objects + 1):
        top, left = rng.integers(height - 4), rng.integers(width - 4)
        rows, columns = rng.integers(2, height // 2), rng.integers(2, width // 2)
        for t in range(num_frames):
            y, x = max(0, top + int(rng.integers(-3, 4))), max(0, left + int(rng.integers(-3, 4)))
            labels[t, y : y + rows, x : x + columns] = k
    labels[:, :2, :3] = 255
    return video, labels


def five_clips(folder: Path) -> dict[str, Any]:
    """Write five clips of 7 frames, and return the `data` part of a config that trains on 2."""
    rng = np.random.default_rng(0)
    clips = [blobs(rng, 7, 20, 30, 3) for _ in range(5)]
    return {
        "name": "prepared",
        "folder": str(write_folder(folder, clips)),
        "image_size": 16,
        "num_frames": 2,
        "max_objects": 4,
        "background_box": False,
        "boxes": True,
        "features": "",
    }


def write_folder(
    folder: Path,
    clips: list[tuple[np.ndarray, np.ndarray]],
    *,
    split: str = "train",
    per_shard: int = 3,
    stills: bool = False,
    categories: list[list[int]] | None = None,
) -> Path:
    """Write a folder of one split.

    Each clip is a video (T,H,W,3) and labels (T,H,W), and may have categories of its objects.
    """
    more = {} if categories is None else {"categories": features.categories(list(NAMES))}
    kind = features.still_features(**more) if stills else features.clip_features(**more)
    serialize = shards.serializer(kind)
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [range(i, min(i + per_shard, len(clips))) for i in range(0, len(clips), per_shard)]
    written, notes = [], []
    for number, piece in enumerate(pieces):
        file = shards.shard_name("mini", split, number, len(pieces))
        examples = (
            _example(i, *clips[i], stills)
            | ({} if categories is None else {"categories": categories[i]})
            for i in piece
        )
        records = map(serialize, examples)
        written.append(shards.Shard(file, *shards.write_shard(folder / file, records)))
        frames = [] if stills else [len(clips[i][0]) for i in piece]
        notes.append({**dataclasses.asdict(written[-1]), "frames": frames})
    shards.write_description(folder, "mini", kind, {split: written}, "for tests")
    manifest = {
        "metadata": {"kind": "stills" if stills else "clips"},
        "splits": {split: {"num_examples": len(clips), "shards": notes}},
    }
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    return folder


def _example(index: int, video: np.ndarray, labels: np.ndarray, still: bool) -> dict:
    frames, maps = [png(frame) for frame in video], [png(label) for label in labels]
    metadata = {"name": f"clip_{index}", "height": video.shape[1], "width": video.shape[2]}
    if still:
        return {"image": frames[0], "segmentation": maps[0], "metadata": metadata}
    metadata["num_frames"] = len(frames)
    return {"video": frames, "segmentations": maps, "metadata": metadata}
