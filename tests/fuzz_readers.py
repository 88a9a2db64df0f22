"""Damaged files for the readers of pictures, videos, models, boxes and weights."""

import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
from golden_files import OWN_FOLDER
from PIL import Image

from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.frames import as_frame, checked_frames
from smoothsa_jax.inference.given_boxes import read_boxes
from smoothsa_jax.inference.load import SHIPPED, load
from smoothsa_jax.inference.videos import read_video
from smoothsa_jax.interop import state_dicts
from smoothsa_jax.interop.architecture import read_architecture

# -------------------------------------------------------------------------------------- valid files


def clip(num_frames: int = 8, height: int = 24, width: int = 32) -> np.ndarray:
    """Noise, (T,H,W,3) uint8."""
    shape = (num_frames, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_video(path: Path, frames: Sequence[np.ndarray], codec: str = "libx264") -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_gif(path: Path, frames: Sequence[np.ndarray]) -> None:
    first, *others = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=others, duration=100)


def images() -> dict[str, bytes]:
    found = {}
    for kind in ("PNG", "JPEG", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(clip(1)[0]).save(buffer, kind)
        found[f"a.{kind.lower()}"] = buffer.getvalue()
    return found


def written(name: str, write: Callable[[Path], None]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return {name: (Path(folder) / name).read_bytes()}


def model() -> dict[str, bytes]:
    names = ("model.safetensors", "config.json", "about.json")
    return {name: (SHIPPED / "sprites_gaussian" / name).read_bytes() for name in names}


def boxes() -> dict[str, bytes]:
    found = {f"{name}.mp4": [[1, 2, 30, 20.5], [0, 0, 3, 4]] for name in ("cat", "dög")}
    return {"boxes.json": json.dumps(found, indent=1, ensure_ascii=False).encode()}


def write_state_dict(path: Path) -> None:
    arrays = {f"m.layers.{i}.weight": np.full((4, 5), i, np.float32) for i in range(8)}
    state_dicts.write(path, arrays)


def torch_file() -> dict[str, bytes]:
    return {"a.pth": (OWN_FOLDER / "model_dinosaur_genera1z.pth").read_bytes()}


def architecture() -> dict[str, bytes]:
    settings = {"model_type": "dinov2_with_registers", "hidden_size": 24, "patch_size": 14}
    settings |= {"use_swiglu_ffn": False, "mlp_ratio": 4}
    return {"config.json": json.dumps(settings).encode()}


# ------------------------------------------------------------------------------------------ readers


def all_frames(path: Path) -> None:
    # A damaged size may be a large one, which takes long.
    for _ in checked_frames(read_video(path, 20.0, max_pixels=1_000_000)):
        pass


# Name -> valid files, one of which is damaged at a time, and the reader.
READERS: dict[str, tuple[Callable[[], dict[str, bytes]], Callable[[Path], object]]] = {
    "image": (images, as_frame),
    "gif": (lambda: written("a.gif", lambda path: write_gif(path, clip())), all_frames),
    "mp4": (lambda: written("a.mp4", lambda path: write_video(path, clip())), all_frames),
    "model": (model, lambda path: load(path.parent)),
    "boxes": (boxes, read_boxes),
    "safetensors": (lambda: written("a.safetensors", write_state_dict), state_dicts.read),
    "pth": (torch_file, state_dicts.read),
    "architecture": (architecture, read_architecture),
}


def mutated(whole: bytes, seed: int) -> bytes:
    """Return the file with bytes changed, removed, truncated, doubled or inserted, mostly near the
    start, where headers are."""
    rng = np.random.default_rng(seed)
    data = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        end = len(data) if rng.random() < 0.3 else min(len(data), 4096)
        at, size = int(rng.integers(0, max(end, 1))), int(rng.integers(1, 17))
        noise = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
        kind = rng.integers(0, 5)
        if kind == 0:
            data[at : at + size] = noise[: len(data[at : at + size])]
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = data[at : at + size]
        else:
            data[at:at] = noise
    return bytes(data)


def fuzz(name: str, count: int, folder: Path, first_seed: int = 0) -> tuple[int, int]:
    """Return how many mutations were read, and how many failed with a one-line error.

    Raises:
        AssertionError: some mutations had another outcome; the message has their seeds.
    """
    make, read = READERS[name]
    files = make()
    for file, whole in files.items():
        (folder / file).write_bytes(whole)
    for file in files:
        read(folder / file)
    done, refused, bad = 0, 0, []
    for seed in range(first_seed, first_seed + count):
        file = sorted(files)[seed % len(files)]
        (folder / file).write_bytes(mutated(files[file], seed))
        try:
            read(folder / file)
            done += 1
        except UserError as error:
            refused += 1
            if "\n" in str(error):
                bad.append(f"seed {seed}: more than a line: {error}")
        except Exception as error:
            bad.append(f"seed {seed}: {error!r} is no UserError")
        (folder / file).write_bytes(files[file])
    assert not bad, f"{name}: {'; '.join(bad)}"
    return done, refused
