"""MOVi-A: video, at most 10 objects, slots start from the first frame's boxes.

Cost: 50,000 steps of 8 clips of 6 frames, 1.4 TFLOP each: 0.4 hours at 50 TFLOP/s, a third of an
A100's TF32 peak (computed, not measured).
The authors publish no scores for it. The settings are those of MOVi-C.

How to get the data: docs/datasets.md.

For systems without boxes, `:image` takes each frame as a picture of its own, with 11 slots.
"""

from ml_collections import ConfigDict

from configs import base

DATA = base.prepared(
    "movi_a",
    num_slots=10,
    num_steps=50_000,
    batch_size=8,
    num_frames=6,
    eval_frames=24,
    boxes=True,
).changed(variants={"image": base.single_frames(11)})
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
