"""CLEVRER: videos of colliding shapes, 7 slots that start from a Gaussian, with questions.

Frames of 128 pixels, into which `data.prepare` resizes the videos once; they are neither cropped
nor mirrored, and SAVi of SlotFormer's program sees 64 pixels of them. Scores are of the first 24 of
a video's 128 frames, against masks that a detector proposed, which are not truth. There is no
published recipe of SmoothSA here: clips, batch and steps are those of MOVi-C.

The stages of SlotFormer, whose rollouter sees every second frame:

    python main.py --config=configs/clevrer.py:savi_slotformer,stochastic
    python main.py --config=configs/clevrer.py:savi_slotformer,stochastic,dynamics

No rollouter can know what enters the view later. As in that program, it sees windows into which no
object enters after frame 6, when the last three observed frames have begun (`data.last_entry`; with
None, all windows). The annotations tell that. Scored windows have 31 frames, of which 12 are
observed; for the published scores, 48 of every second frame: `--config.eval.windows=95`.

Questions, from the slots of every fifth frame; with that rollouter, predictive ones from 32
predicted frames as well (SlotFormer). CLEVRER's test server is closed: scores are of validation.

    python main.py --config=configs/clevrer.py:savi_slotformer,stochastic,answers

Cost: 50,000 steps of 8 clips of 6 frames, 0.3 TFLOP each: 0.1 hours at 50 TFLOP/s, a third of an
A100's TF32 peak (computed, not measured).

How to get the data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import base
from smoothsa_jax.inputs.clevrer_questions import (
    KINDS,
    MAX_CHOICE_WORDS,
    MAX_WORDS,
    NUM_FRAMES,
    vocabulary,
)

FUTURE = 32  # predicted frames
WORD_LIST, ANSWERS = vocabulary()
QUESTIONS = base.Questions(
    data={
        "name": "clevrer_questions",
        "folder": "prepared/clevrer",
        "cache": None,  # of a folder in a bucket
        "num_frames": NUM_FRAMES,
        "past": 12,  # the last frames of a video, which a rollouter continues
        "future": FUTURE,
    },
    words=WORD_LIST,
    answers=ANSWERS,
    kinds=KINDS,
    question_length=MAX_WORDS,
    choice_length=MAX_CHOICE_WORDS,
    future=FUTURE,
)
HISTORY, EVERY = 6, 2  # frames that the rollouter of SlotFormer's program observes
SPAN = EVERY * (HISTORY + 10 - 1) + 1  # and those that it predicts
DYNAMICS = {
    "model": {"rollouter": {"every": EVERY}},
    "data": {"num_frames": SPAN, "last_entry": EVERY * (HISTORY - 3)},
    "eval": {"observed": EVERY * HISTORY, "num_frames": -1, "windows": SPAN},
}
DATA = base.prepared(
    "clevrer",
    num_slots=7,
    num_steps=50_000,
    batch_size=8,
    num_frames=6,
    eval_frames=24,
    crop="none",
    flip=0.0,
).changed(data={"image_size": 128}, questions=QUESTIONS, dynamics=DYNAMICS)
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
