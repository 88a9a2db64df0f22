"""A config for tests of whole runs, the smallest model on sprites: --config=tests/run_config.py."""

import sys
from pathlib import Path

from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parent))
from tiny import tiny_config, with_tokens_along  # noqa: E402

VARIANTS = ("", "image", "metaslot", "along")


def get_config(variant: str = "") -> ConfigDict:
    """`image` has one frame and no transition, and compiles in a third of the time.

    `metaslot` is an image too; its aggregator has buffers. So is `along`, with a
    tokenizer that is trained with the slots.
    """
    frames = 2 if variant == "" else 1
    config = tiny_config(num_frames=frames, decoder="mlp_mixture")
    config.name = "run"
    if variant == "metaslot":
        settings = {"name": "metaslot", "first": 2, "later": 1, "codes": 8, "capacity": 32}
        config.model.aggregator = ConfigDict(settings)
    if variant == "along":
        config = with_tokens_along(config).unlock()
    config.data.update(max_objects=3, min_objects=2, background_box=True)
    config.train.num_steps = 60
    config.mesh.data = -1
    return config
