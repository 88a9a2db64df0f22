"""COCO: images, 7 slots that start from a Gaussian.

Cost: 100,000 steps of 32 images, 0.9 TFLOP each: 0.5 hours at 50 TFLOP/s, a third of an A100's
TF32 peak (computed, not measured).
Published scores of SmoothSA in % (mean of 3 seeds, the authors' current program, match_paper):
ARI 29.3, FG-ARI 41.3, mBO 33.4, mIoU 31.8.

`:recognition` reads category and box from the slots of a run. 91 classes, as in the authors'
program; prepared folders number COCO's categories 0 to 79.
Published in % (the authors' matching): top-1 89.3, top-3 97.3, box IoU 49.5.
Cost: 10,000 steps of 32 images, 0.4 TFLOP each (the frozen ViT's
forward pass): minutes at 50 TFLOP/s.

How to get the data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import base

DATA = base.prepared(
    "coco",
    num_slots=7,
    num_steps=100_000,
    batch_size=32,
    num_classes=91,
    # Under match_paper, stuff is a segment, in view or not.
    eval={"background_column_always": True},
)
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
