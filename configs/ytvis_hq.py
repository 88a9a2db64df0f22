"""HQ-YTVIS: video, 7 slots that start from a Gaussian.

Cost: 50,000 steps of 8 clips of 5 frames, 1.1 TFLOP each: 0.3 hours at 50 TFLOP/s, a third of an
A100's TF32 peak (computed, not measured).
Published scores of SmoothSA in % (mean of 3 seeds, the authors' current program, match_paper):
ARI 42.4, FG-ARI 63.0, mBO 38.9, mIoU 38.3.

`:recognition` reads category and box from the slots of a run. 41 classes, as in the authors'
program; prepared folders number the categories 0 to 39.
Published in % (the authors' matching): top-1 90.4, top-3 97.6, box IoU 42.6.
Cost: 5,000 steps of 8 clips of 5 frames, 0.5 TFLOP each (the frozen ViT's
forward pass): minutes at 50 TFLOP/s.

How to get the data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import base

DATA = base.prepared(
    "ytvis_hq",
    num_slots=7,
    num_steps=50_000,
    batch_size=8,
    num_frames=5,
    eval_frames=-1,
    num_classes=41,
    repeat_frames=30,  # a video of t frames counts floor(t / 30) times
)
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
