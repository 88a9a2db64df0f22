"""Your own pictures or videos, without labels: a folder made by `python -m data.prepare folder`.

    python -m data.prepare folder --source my_pictures --out prepared/own
    python main.py --config=configs/own.py

    (no word), image    single pictures; of videos, single frames
    video               clips of 4 frames; validation shows the first 24 frames of each video

Another folder: `--config.data.folder=`. Before the first step, the run stores the features of the
frozen encoder beside that folder, so that training on a CPU is feasible; with a GPU,
`--config.data.features=` trains on random crops and flips instead. Without labels, validation
shows losses and pictures. More slots, for scenes of more objects: `--config.model.num_slots=`.
"""

from ml_collections import ConfigDict

from configs import base


def image(data: base.DataSet) -> base.DataSet:
    return data.changed()


def video(data: base.DataSet) -> base.DataSet:
    return data.changed(
        data={"num_frames": 4},
        settings={"eval": {"num_frames": -24, "batch_size": 1}},
        batch_size=4,
    )


DATA = base.prepared(
    "own",
    num_slots=7,
    num_steps=6_000,
    batch_size=8,
    features="auto",
    eval={"batch_size": 8},
).changed(settings={"checkpoint": {"every": 300}}, variants={"image": image, "video": video})
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
