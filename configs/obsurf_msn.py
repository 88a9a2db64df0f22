"""ObSuRF's MultiShapeNet: three views of each scene with cameras, 5 slots; for OSRT.

Scenes of at most four chairs, tables and cabinets, 80,000 to train on and 500 to validate; 240x320
pixels. Otherwise as CLEVR3D.

Cost: see configs/README.md. How to get the data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import base

DATA = base.prepared_views(
    "obsurf_msn",
    num_slots=5,
    num_steps=1_000_000,
    batch_size=128,
    num_views=3,
    image_size=(240, 320),
)
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
