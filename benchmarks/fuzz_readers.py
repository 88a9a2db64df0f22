"""Gives damaged files to the readers of weights: each has to end in arrays or in a line for a person, never in another error.

python benchmarks/fuzz_readers.py                       # 1,000 seeded mutations of a valid file of each kind
python benchmarks/fuzz_readers.py --count=50 --seed=1000
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

from smoothsa_jax.errors import UserError  # noqa: E402
from smoothsa_jax.interop import state_dicts  # noqa: E402
from smoothsa_jax.interop.architecture import read_architecture  # noqa: E402

Read = Callable[[Path], object]
# Suffix of the file -> its reader.
READERS: dict[str, Read] = {
    ".safetensors": state_dicts.read,
    ".pth": state_dicts.read,
    ".json": read_architecture,
}


def valid(path: Path) -> None:
    """Writes a small valid file of the kind that its suffix says.

    Raises:
        UserError: PyTorch is needed and missing.
    """
    if path.suffix == ".json":
        settings = {"model_type": "dinov2_with_registers", "hidden_size": 24, "patch_size": 14}
        path.write_text(json.dumps(settings | {"use_swiglu_ffn": False, "mlp_ratio": 4}))
        return
    arrays = {f"m.layers.{i}.weight": np.full((4, 5), i, np.float32) for i in range(8)}
    state_dicts.write(path, arrays)


def mutated(whole: bytes, seed: int) -> bytes:
    """The file with bytes changed, cut out, cut off, doubled or inserted, in one to three places."""
    rng = np.random.default_rng(seed)
    data = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        at, size = int(rng.integers(0, max(len(data), 1))), int(rng.integers(1, 17))
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


def fuzz(suffix: str, count: int, folder: Path, first_seed: int = 0) -> tuple[int, int]:
    """How many mutations were read, and how many refused in one line.

    Raises:
        AssertionError: neither; names the seed.
    """
    path = folder / f"file{suffix}"
    valid(path)
    whole, read = path.read_bytes(), 0
    READERS[suffix](path)
    for seed in range(first_seed, first_seed + count):
        path.write_bytes(mutated(whole, seed))
        try:
            READERS[suffix](path)
            read += 1
        except UserError as error:
            assert "\n" not in str(error), f"seed {seed}: {error}"
        except Exception as error:
            raise AssertionError(f"{suffix}, seed {seed}: {error!r} is no UserError") from error
    return read, count - read


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="mutations of each kind of file")
    parser.add_argument("--seed", type=int, default=0, help="of the first one")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for suffix in READERS:
            try:
                read, refused = fuzz(suffix, options.count, Path(folder), options.seed)
            except UserError as error:  # no PyTorch
                print(f"{suffix}: skipped, {error}")
                continue
            print(f"{suffix}: {options.count} mutations, {read} read, {refused} refused in a line")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
