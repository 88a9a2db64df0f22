"""Questions about videos of prepared folders, CLEVRER's and Physion's: which stored slots they
are answered from."""

import numpy as np
import pytest
import raw_videos
from ml_collections import ConfigDict
from tiny import as_answers, tiny_config

from configs import clevrer, physion
from data.prepare import prepare
from data.store import store
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.features import CachedSlots
from smoothsa_jax.inputs.found import is_stored
from smoothsa_jax.inputs.manifest import MANIFEST
from smoothsa_jax.inputs.questions import QuestionsOfClips
from smoothsa_jax.inputs.records import NoSuchSplit
from smoothsa_jax.training.evaluating import source_of_split

CLEVRER, PHYSION = clevrer.QUESTIONS, physion.QUESTIONS


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The miniatures, prepared."""
    root = tmp_path_factory.mktemp("videos")
    for name, write in (("clevrer", raw_videos.clevrer), ("physion_readout", raw_videos.physion)):
        prepare(name, str(write(root / "raw" / name)), root / name)
    return root


def data_of(questions, folders, **more) -> dict:
    folder = folders / questions.data["folder"].split("/")[1]
    return {**questions.data, "folder": str(folder), "image_size": 16, **more}


class Slots(CachedSlots):
    """Stored slots in memory: frame t of clip c has the slot [c, t]."""

    is_random = False

    def __init__(self, lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def length(self, index):
        return self.lengths[index]

    def of_frames(self, index, which):
        assert min(which) >= 0 and max(which) < self.lengths[index]
        slots = np.array([[[index, t]] for t in which])
        return {"slots": slots, "slot_mask": np.ones(1, bool)}


def test_what_is_not_there_is_refused(folders):
    data = data_of(CLEVRER, folders)
    source = build_dataset(data, "train", num_slots=2)
    assert [len(source), source.questions.kinds] == [4, CLEVRER.kinds]
    with pytest.raises(UserError, match="slots of whole videos, which have to be stored"):
        source[0]
    with pytest.raises(NoSuchSplit, match="have no answers; set --config.eval.split=validation"):
        build_dataset(data, "test", num_slots=2)
    with pytest.raises(NoSuchSplit, match=r"has no questions-train.json"):
        build_dataset({**data, "folder": str(folders / "physion_readout")}, "train", num_slots=2)
    with pytest.raises(UserError, match="data.num_frames is 129"):
        build_dataset({**data, "num_frames": 129}, "train", num_slots=2)


@pytest.mark.parametrize("length", [128, 115, 104, 128 - 4])
def test_clevrer_questions_see_every_fifth_frame(folders, length):
    questions = build_dataset(data_of(CLEVRER, folders), "train", num_slots=2).questions
    plain = QuestionsOfClips(questions, Slots([length, 128]), others=True)
    rng = np.random.default_rng(0)
    for index in range(2):  # a descriptive and a predictive question about clip 0
        sample = plain[index]
        frames = np.minimum(4 + 5 * np.arange(25), length - 1)
        np.testing.assert_array_equal(sample["slots"][:, 0], [(0, t) for t in frames])
        np.testing.assert_array_equal(sample["other_slots"][:, 0, 0], 1)
        assert "places" not in sample
        starts = {int(plain.draw(index, rng)["slots"][0, 0, 1]) for _ in range(80)}
        assert starts == set(range(8))
    ahead = QuestionsOfClips(questions, Slots([length, 128]), others=True, ahead=True)
    predicted = np.arange(length, length + 32)
    for index in range(2):
        sample = ahead[index]
        seen = sample["slots"][:, 0, 1]
        assert len(seen) == 25 + 25 + 12
        np.testing.assert_array_equal(seen[:25], frames)  # of the row of observed frames
        np.testing.assert_array_equal(seen[-12:], np.arange(length - 12, length))
        found = np.concatenate([seen, predicted])[sample["places"]]
        late = 4 + length + 32 - 128 + 5 * np.arange(25)  # to the end of the predicted frames
        np.testing.assert_array_equal(found, late if index else frames)
    assert found[-1] == length + 32 - 4 and (found >= length).sum() >= 6


def test_physion_sees_the_first_frames(folders):
    questions = build_dataset(data_of(PHYSION, folders), "test", num_slots=2).questions
    clips = QuestionsOfClips(questions, Slots([157, 75]), ahead=True)
    np.testing.assert_array_equal(clips[1]["slots"][:, 0], [(1, t) for t in range(45)])
    assert "places" not in clips[1] and not clips[0]["question"].size


@pytest.mark.slow
def test_questions_have_the_stored_slots_of_their_videos(folders, tmp_path):
    """Also of a second video of another length, and without slots of a split without answers."""
    config = as_answers(tiny_config(initializer="gaussian", decoder="mlp_mixture"))
    config.data = ConfigDict(data_of(CLEVRER, folders, num_frames=2, slots="", boxes=False))
    config.model.update(future=32, beside=("words_only", "observed_frames", "pooled_features"))
    config.model.readout.update(question_length=20, choice_length=12)
    config.model.update(words=CLEVRER.words, answers=CLEVRER.answers, kinds=CLEVRER.kinds)
    config.eval.num_frames = None
    store(config, tmp_path)
    config.data.slots = str(tmp_path)
    splits = [x for x in ("train", "validation", "test") if is_stored(config.data, x)]
    assert splits == ["train", "validation"]
    reads = ("slots", "pooled")
    train = build_dataset(config.data, "train", reads=reads, num_slots=4)
    clips = train.clips
    lengths = [clips.length(0), clips.length(1)]
    assert lengths[0] != lengths[1] and not (tmp_path / MANIFEST).read_text().count("test-")
    for index in range(4):
        clip, last = index // 2, lengths[index // 2] - 1
        sample = train[index]
        whole = clips.of_frames(clip, range(lengths[clip]))["slots"]
        np.testing.assert_array_equal(sample["slots"], whole[[min(4, last), last]])
        assert sample["clip"] == clip and sample["pooled"].shape[:1] == (2,)
    scored = source_of_split(config, 4, "validation", None)
    assert {"other_slots", "pooled"} <= scored[0].keys()
    again = train.fingerprint()
    file = folders / "clevrer" / "questions-train.json"
    file.write_text(file.read_text().replace('"1"', '"2"'))
    changed = build_dataset(config.data, "train", reads=reads, num_slots=4)
    assert changed.fingerprint() != again
