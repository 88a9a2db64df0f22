"""Physion: simulated objects that collide, fall or roll, 6 slots that start from a Gaussian.

The training part of Physion, in frames of 128 pixels, into which `data.prepare` resizes the videos
once; they are neither cropped nor mirrored. It has no masks, so validation shows losses and
pictures. There is no published recipe of SmoothSA here: clips, batch and steps are those of MOVi-C.

The part whose labels say whether the red object touches the yellow one is another prepared folder,
`prepared/physion_readout`: stored slots of it come from the same model, with
`--config.data.folder=prepared/physion_readout`.

Cost: 50,000 steps of 8 clips of 6 frames, 0.3 TFLOP each: 0.1 hours at 50 TFLOP/s, a third of an
A100's TF32 peak (computed, not measured).

How to get the data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import base

DATA = base.prepared(
    "physion",
    num_slots=6,
    num_steps=50_000,
    batch_size=8,
    num_frames=6,
    eval_frames=24,
    crop="none",
    flip=0.0,
).changed(data={"image_size": 128})
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
