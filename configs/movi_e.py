"""MOVi-E: video, at most 23 objects, slots start from the first frame's boxes.

Cost: 50,000 steps of 8 clips of 6 frames, 1.4 TFLOP each: 0.4 hours at 50 TFLOP/s, a third of an
A100's TF32 peak (computed, not measured).
Published scores of SmoothSA in % (mean of 3 seeds, the authors' current program, match_paper):
ARI 36.7, FG-ARI 73.6, mBO 28.6, mIoU 27.4.

How to get the data: docs/datasets.md.

For systems without boxes, with 24 slots: `:image` takes each frame as a picture of its own;
`:gaussian` keeps the videos.
"""

from ml_collections import ConfigDict

from configs import base

DATA = base.prepared(
    "movi_e",
    num_slots=23,
    num_steps=50_000,
    batch_size=8,
    num_frames=6,
    eval_frames=24,
    boxes=True,
).changed(variants={"image": base.single_frames(24), "gaussian": base.without_boxes(24)})
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
