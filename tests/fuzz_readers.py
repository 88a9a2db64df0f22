"""Damages valid files and reads them: always a result, or one line for the person.

    python tests/fuzz_readers.py                        1,000 damaged files for each reader, half an hour
    python tests/fuzz_readers.py --count=50 mp4 model   some of it

What a reader made of each is counted; a damaged file that ends in anything else is named by its seed, kept in --keep,
and the exit status is 1.
"""

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av  # noqa: E402
import numpy as np  # noqa: E402
from fuzz import mutated  # noqa: E402
from PIL import Image  # noqa: E402

from smoothsa_jax.errors import UserError  # noqa: E402
from smoothsa_jax.inference.frames import as_frame, checked_frames  # noqa: E402
from smoothsa_jax.inference.given_boxes import read_boxes  # noqa: E402
from smoothsa_jax.inference.load import SHIPPED, load  # noqa: E402
from smoothsa_jax.inference.videos import read_video  # noqa: E402


def clip(num_frames: int = 8, height: int = 24, width: int = 32) -> np.ndarray:
    """Noise, (T,H,W,3) uint8."""
    shape = (num_frames, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_video(path: Path, frames: Sequence[np.ndarray], codec: str = "libx264", fps: int = 8):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_gif(path: Path, frames: Sequence[np.ndarray]) -> None:
    first, *others = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=others, duration=100)


def encoded(write: Callable, suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / f"a{suffix}", clip())
        return (Path(folder) / f"a{suffix}").read_bytes()


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(clip(1)[0]).save(buffer, kind)
    return buffer.getvalue()


def one_of(folder: Path, seed: int, files: dict[str, bytes]) -> Path:
    """All the files, one of them damaged; its path."""
    names = sorted(files)
    for number, name in enumerate(names):
        damaged = seed % len(names) == number
        (folder / name).write_bytes(mutated(files[name], seed) if damaged else files[name])
    return folder / names[seed % len(names)]


def image_reader() -> Callable[[Path, int], object]:
    kinds = {"a.png": picture("PNG"), "a.jpg": picture("JPEG"), "a.webp": picture("WEBP")}
    return lambda folder, seed: as_frame(one_of(folder, seed, kinds))


def video_reader(write: Callable, suffix: str) -> Callable[[Path, int], object]:
    files = {f"a{suffix}": encoded(write, suffix)}
    return lambda folder, seed: list(checked_frames(read_video(one_of(folder, seed, files), 20.0)))


def model_reader() -> Callable[[Path, int], object]:
    names = ("model.safetensors", "config.json", "about.json")
    files = {name: (SHIPPED / "sprites_gaussian" / name).read_bytes() for name in names}

    def read(folder: Path, seed: int) -> object:
        one_of(folder, seed, files)
        return load(folder)

    return read


def boxes_reader() -> Callable[[Path, int], object]:
    boxes = {f"{name}.mp4": [[1, 2, 30, 20.5], [0, 0, 3, 4]] for name in ("cat", "dög")}
    text = json.dumps(boxes, indent=1, ensure_ascii=False).encode()
    return lambda folder, seed: read_boxes(one_of(folder, seed, {"boxes.json": text}))


READERS: dict[str, Callable[[], Callable[[Path, int], object]]] = {
    "image": image_reader,
    "gif": lambda: video_reader(write_gif, ".gif"),
    "mp4": lambda: video_reader(write_video, ".mp4"),
    "model": model_reader,
    "boxes": boxes_reader,
}


def outcome(read: Callable[[Path, int], object], folder: Path, seed: int) -> str:
    """What a reader makes of damaged files: "result", "line" (a person's), or what should not be."""
    try:
        read(folder, seed)
    except UserError as error:
        return "line" if "\n" not in str(error) and str(error) else f"a line of more: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "result"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", help=f"of {', '.join(READERS)}; default all")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--keep", type=Path, help="folder for files that end in anything else")
    given = parser.parse_args(arguments)
    bad = 0
    for name in given.readers or READERS:
        read, found = READERS[name](), Counter()
        for seed in range(given.first, given.first + given.count):
            with tempfile.TemporaryDirectory() as folder:
                what = outcome(read, Path(folder), seed)
                found[what if what in ("result", "line") else "anything else"] += 1
                if what not in ("result", "line"):
                    print(f"{name}, seed {seed}: {what}", flush=True)
                    if given.keep:
                        shutil.copytree(folder, given.keep / f"{name}_{seed}", dirs_exist_ok=True)
        bad += found["anything else"]
        print(
            f"{name}: {', '.join(f'{count} {what}' for what, count in found.items())}", flush=True
        )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
