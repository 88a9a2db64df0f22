"""Physion: simulated objects that collide, fall or roll, 6 slots that start from a Gaussian.

The training part of Physion, in frames of 128 pixels, into which `data.prepare` resizes the videos
once; they are neither cropped nor mirrored. It has no masks, so validation shows losses and
pictures. There is no published recipe of SmoothSA here: clips, batch and steps are those of MOVi-C.

The part whose labels say whether the red object touches the yellow one is another prepared folder,
`prepared/physion_readout`. The word answers learns from its first 45 frames, with a rollouter from
30 predicted ones as well, in a linear readout of pairs of slots (SlotFormer). The threshold of its
answers is chosen on the validation split. `eval.match_paper` also takes the best of six thresholds
and of all checkpoints that are kept on the scored split, as published scores do:

    python main.py --config=configs/physion.py:savi_slotformer,answers --config.eval.split=test

Cost: 50,000 steps of 8 clips of 6 frames, 0.3 TFLOP each: 0.1 hours at 50 TFLOP/s, a third of an
A100's TF32 peak (computed, not measured).

How to get the data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import base
from smoothsa_jax.inputs.physion_labels import ANSWERS, SCENARIOS

QUESTIONS = base.Questions(
    data={
        "name": "physion_contacts",
        "folder": "prepared/physion_readout",
        "cache": None,  # of a folder in a bucket
        "num_frames": 45,
    },
    words=(),
    answers=ANSWERS,
    kinds=SCENARIOS,
    question_length=0,
    future=30,
    beside=("observed_frames", "pooled_features"),  # there are no words
    readout={"name": "pairs", "hidden_size": 192, "reduction": "max"},
    settings={
        "train": {"num_steps": 5_950, "batch_size": 64},  # 50 epochs
        "optimizer": {"learning_rate": {"warmup": 0.0}},
        "checkpoint": {"every": 595, "max_to_keep": 10},  # 5 epochs; all of them, for match_paper
    },
)
DATA = base.prepared(
    "physion",
    num_slots=6,
    num_steps=50_000,
    batch_size=8,
    num_frames=6,
    eval_frames=24,
    crop="none",
    flip=0.0,
).changed(data={"image_size": 128}, questions=QUESTIONS)
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
