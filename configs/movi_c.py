"""MOVi-C: video, at most 10 objects, slots start from the first frame's boxes.

Cost: 50,000 steps of 8 clips of 6 frames, 1.4 TFLOP each: 0.4 hours at 50 TFLOP/s, a third of an
A100's TF32 peak (computed, not measured).
Published scores of SmoothSA in % (mean of 3 seeds, the authors' current program, match_paper):
ARI 50.9, FG-ARI 69.0, mBO 31.7, mIoU 30.2.

How to get the data: docs/datasets.md.

For systems without boxes, with 11 slots: `:image` takes each frame as a picture of its own;
`:gaussian` keeps the videos.
"""

from ml_collections import ConfigDict

from configs import base

DATA = base.prepared(
    "movi_c",
    num_slots=10,
    num_steps=50_000,
    batch_size=8,
    num_frames=6,
    eval_frames=24,
    boxes=True,
).changed(variants={"image": base.single_frames(11), "gaussian": base.without_boxes(11)})
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
