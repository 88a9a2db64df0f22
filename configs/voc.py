"""VOC: images, 6 slots that start from a Gaussian.

Cost: 50,000 steps of 32 images, 0.9 TFLOP each: 0.3 hours at 50 TFLOP/s, a third of an A100's
TF32 peak (computed, not measured).
Published scores of SmoothSA in % (mean of 3 seeds, the authors' current program, match_paper):
ARI 35.0, FG-ARI 33.6, mBO 45.2, mIoU 43.9.

How to get the data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import base

DATA = base.prepared(
    "voc",
    num_slots=6,
    num_steps=50_000,
    batch_size=32,
)
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
