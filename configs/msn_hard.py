"""MultiShapeNet-hard: ten views of each scene with cameras, 32 slots; for OSRT.

1,000,000 scenes to train on and 10,000 to score, of 16 to 32 objects, 128 pixels. The frames of a
sample are the views: they are neither cropped nor mirrored, and scores see whole views. 1,000,000
steps of 256 scenes are those of the inverted-attention paper; OSRT's own are 4,000,000.

Cost: see configs/README.md. How to get the data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import base

DATA = base.prepared_views(
    "msn_hard",
    num_slots=32,
    num_steps=1_000_000,
    batch_size=256,
    num_views=10,
    image_size=128,
    split="test",
)
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
