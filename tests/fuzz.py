"""Seeded damage to valid files."""

import numpy as np


def mutated(whole: bytes, seed: int) -> bytes:
    """The file with bytes changed, cut out, cut off, doubled or inserted; most of it near the start, where headers are."""
    rng = np.random.default_rng(seed)
    data = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        end = len(data) if rng.random() < 0.3 else min(len(data), 4096)
        at = int(rng.integers(0, max(end, 1)))
        size = int(rng.integers(1, 17))
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
