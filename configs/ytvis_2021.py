"""YouTube-VIS 2021: video, 7 slots that start from a Gaussian, clips of 4 frames.

The data of VideoSAUR's program and SlotContrast's: the last 300 videos of train, in the order of
its json, are validation; training sees a random square of the shorter side, and windows of 4 frames
from the start of a video, without a shorter rest.

Cost: 50,000 steps of 8 clips of 4 frames, 0.9 TFLOP each: 0.2 hours at 50 TFLOP/s, a third of an
A100's TF32 peak (computed, not measured).
SmoothSA has no published scores here.

How to get the data: docs/datasets.md. Scores by each protocol: docs/reproduce.md.
"""

from ml_collections import ConfigDict

from configs import base

DATA = base.prepared(
    "ytvis_2021",
    num_slots=7,
    num_steps=50_000,
    batch_size=8,
    num_frames=4,
    eval_frames=-1,
    crop="square",
    flip=0.5,
    rest="drop",
    interpolation="bicubic",
)
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
