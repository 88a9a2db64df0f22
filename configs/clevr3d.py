"""CLEVR3D: three views of each scene with cameras, 6 slots; for OSRT.

Scenes of at most six objects, of 70,000 to train on and 5,000 to validate; 240x320 pixels. The
frames of a sample are the views: they are neither cropped nor mirrored, and scores see whole views.

Cost: see configs/README.md. How to get the data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import base

DATA = base.prepared_views(
    "clevr3d",
    num_slots=6,
    num_steps=1_000_000,
    batch_size=256,
    num_views=3,
    image_size=(240, 320),
)
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
