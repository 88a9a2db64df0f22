"""A config for tests of whole runs, the smallest model on sprites: --config=tests/run_config.py."""

import sys
from pathlib import Path

from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parent))
from tiny import tiny_config  # noqa: E402

VARIANTS = ("", "image")


def get_config(variant: str = "") -> ConfigDict:
    """`image` has one frame and no transition, and compiles in a third of the time."""
    frames = 1 if variant == "image" else 2
    config = tiny_config(num_frames=frames, decoder="mlp_mixture")
    config.name = "run"
    config.data.update(max_objects=3, min_objects=2, background_box=True)
    config.train.num_steps = 60
    config.mesh.data = -1
    return config
