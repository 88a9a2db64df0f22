"""A small corpus for `--engine=ray`, and the rows of a folder of results."""

import os
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

TRIALS = int(os.environ.get("BULK_TRIALS", 3))  # rounds of the test that kills nodes
WEIGHT = 16  # of a part: a video, or as many pictures
SIZES = ((60, 60), (90, 120), (48, 80))


def picture(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Smooth patches of color, which slots divide among them."""
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size[::-1])


def write_corpus(folder: Path, pictures: int = 12, videos: tuple[int, ...] = (3, 6, 2)) -> Path:
    """Write pictures of several sizes, videos of these lengths, and a broken file."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(pictures):
        picture(rng, SIZES[i % 3]).save(folder / f"p{i * i:05d}.png")
    for i, length in enumerate(videos):
        with av.open(str(folder / f"v{i:03d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=6)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for _ in range(length):
                frame = av.VideoFrame.from_image(picture(rng, (64, 96)))
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def rows_in(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """All rows of a folder of results, by file and frame; none may be there twice."""
    import pyarrow.parquet as pq

    found: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted((Path(folder) / "parts").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            key = row["file"], row["frame"]
            assert key not in found, key
            found[key] = row
    return found


def small(arguments: list[str]) -> int:
    """`main.py` with small parts."""
    import main
    from smoothsa_jax.bulk import parts

    parts.PART_WEIGHT = WEIGHT
    return main.main(arguments)
