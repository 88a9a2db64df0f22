"""CLEVR with masks: images of at most ten objects, 11 slots that start from a Gaussian.

The protocol of the original slot attention and of the inverted-attention paper: the crop of 192
pixels that the prepared folder holds, resized to 128 without antialiasing, whole and not mirrored;
70,000 scenes to train on and 10,000 to score. No system's encoder is set here: those trained from
pixels bring their own; frozen ones see 128 pixels as well.

Cost: 500,000 steps of 64 images, which depends on the system; see configs/README.md.

How to get the data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import base

DATA = base.prepared(
    "clevr",
    num_slots=11,
    num_steps=500_000,
    batch_size=64,
    interpolation="plain_bilinear",
    crop="none",
    flip=0.0,
).changed(data={"image_size": 128})
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
