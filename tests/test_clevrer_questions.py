"""Questions of CLEVRER: words, answers and frames as in SlotFormer's program; submissions."""

import copy
import json

import numpy as np
import pytest
from golden_files import FOLDER
from raw_videos import question, questions

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.clevrer_questions import (
    KINDS,
    MAX_WORDS,
    PREDICTIVE,
    ClevrerQuestions,
    file_of,
    last_start,
    question_frames,
    read_questions,
    vocabulary,
    words_in,
    write_submission,
)

RECORDED = json.loads((FOLDER / "clevrer_questions.json").read_text())
ITEMS = {
    (item["scene_index"], item["question_id"]): item for item in RECORDED["items_in_their_order"]
}


def prepared(folder, records, split="validation", videos=None):
    """The parts of a prepared folder that questions are read from."""
    names = [f"video_{n:05d}" for n in videos or sorted({r["scene_index"] for r in records})]
    shards = [{"sample_names": names[:1]}, {"sample_names": names[1:]}]
    (folder / "MANIFEST.json").write_text(json.dumps({"splits": {split: {"shards": shards}}}))
    (folder / file_of(split)).write_text(json.dumps(records))
    return ClevrerQuestions(folder, split)


@pytest.fixture
def source(tmp_path) -> ClevrerQuestions:
    return prepared(tmp_path, RECORDED["records"])


def test_the_vocabulary_is_the_recorded_one():
    for found, key in zip(vocabulary(), ("q_vocab", "a_vocab"), strict=True):
        recorded = RECORDED["vocabulary"][key]
        assert {word: k for k, word in enumerate(found)} == recorded
        assert recorded["PAD"] == 0


def test_samples_hold_the_recorded_tokens_and_labels(source):
    assert len(source) == len(ITEMS) and source.is_labelled and source.left_out == 0
    most = max(len(item["choice_id"]) for item in ITEMS.values())
    scenes = sorted({scene for scene, _ in ITEMS})
    for index, entry in enumerate(source.records):
        item, sample = ITEMS[entry.scene_index, entry.question_id], source[index]
        padded = np.array(item["padded"]).reshape(-1, MAX_WORDS + 12)
        recorded = np.array(item["tokens"]).reshape(-1, MAX_WORDS + 12)
        # Padding is 0, and so are no words.
        assert np.array_equal(recorded == 0, padded)
        assert sample["choices"].shape == (most, 12)
        assert sample["clip"] == scenes.index(entry.scene_index)
        for row in recorded:
            np.testing.assert_array_equal(sample["question"], row[:MAX_WORDS])
        count = len(item["choice_id"])
        assert [number for number, *_ in entry.choices] == item["choice_id"]
        assert source.kinds[sample["kind"]] == (
            "descriptive" if item["kind"] == "descriptive" else KINDS[item["subtype"]]
        )
        if item["kind"] == "descriptive":
            assert sample["answer"] == item["label"] and count == 0
            assert not recorded[:, MAX_WORDS:].any()
        else:
            assert sample["answer"] == -1
            np.testing.assert_array_equal(sample["choice_answers"][:count], item["label"])
            np.testing.assert_array_equal(sample["choices"][:count], recorded[:, MAX_WORDS:])
        assert (
            not sample["choices"][count:].any() and (sample["choice_answers"][count:] == -1).all()
        )
        assert sample["allowed"].shape == (len(RECORDED["vocabulary"]["a_vocab"]),)


def test_a_batch_holds_the_recorded_rows(source):
    """Choices are rows of their own, in the order of their questions."""
    batch, samples = RECORDED["batch"], [source[k] for k in range(len(source))]
    places = {(q.scene_index, q.question_id): k for k, q in enumerate(source.records)}
    keys = zip(batch["scene_index"], batch["question_id"], strict=True)
    mine = [samples[places[key]] for key in keys]
    described = [s for s in mine if s["answer"] >= 0]
    others = [s for s in mine if s["answer"] < 0]
    np.testing.assert_array_equal([s["answer"] for s in described], batch["cls_label"])
    tokens = [np.r_[s["question"], np.zeros(12, int)] for s in described]
    np.testing.assert_array_equal(tokens, batch["cls_q_tokens"])
    np.testing.assert_array_equal([s["kind"] for s in others], batch["mc_subtype"])
    rows = [
        (np.r_[s["question"], s["choices"][k]], s["choice_answers"][k], number)
        for number, s in enumerate(others)
        for k in np.flatnonzero(s["choice_answers"] >= 0)
    ]
    columns = zip(*rows, strict=True)
    for recorded, found in zip(("mc_q_tokens", "mc_label", "mc_flag"), columns, strict=True):
        np.testing.assert_array_equal(found, batch[recorded])


@pytest.mark.parametrize("length", [128, 160])
def test_frames_are_the_recorded_ones(source, length):
    for index, entry in enumerate(source.records):
        recorded = ITEMS[entry.scene_index, entry.question_id][f"frames_of_{length}"]
        found = source.frames(index, length, RECORDED["start_used"])
        np.testing.assert_array_equal(found, recorded)
    assert PREDICTIVE in {entry.kind for entry in source.records}
    assert [0, last_start()] == RECORDED["first_and_last_start"]
    assert question_frames(length, last_start(), is_predictive=True)[-1] == length - 1


def test_frames_of_a_shorter_video_stay_inside():
    found = question_frames(104, 3, is_predictive=True)
    assert len(found) == 25 and found.max() == 103 and (np.diff(found[:21]) == 5).all()
    with pytest.raises(UserError, match="the start is 8; expected 0 to 7"):
        question_frames(128, 8, is_predictive=False)


@pytest.mark.parametrize("length", [128, 115, 114, 104])
def test_frames_behind_a_damaged_video_are_predicted_ones(length):
    """With 32 predicted frames, of videos of any length."""
    late = question_frames(length + 32, 0, True, predicted=32)
    np.testing.assert_array_equal(late, length - 96 + 5 * np.arange(25))
    other = question_frames(length + 32, 7, False, predicted=32)
    np.testing.assert_array_equal(other, question_frames(length, 7, False))
    assert other.max() < length
    if length == 128:
        np.testing.assert_array_equal(late, question_frames(length + 32, 0, True))
    else:  # as the program would have it, the end is not seen
        assert question_frames(length + 32, 0, True).max() == 120


def test_words_keep_commas_and_lose_question_marks():
    text = "Without the cube, does the Sphere's exit happen?"
    assert words_in(text) == [
        "without",
        "the",
        "cube,",
        "does",
        "the",
        "sphere's",
        "exit",
        "happen",
    ]


def test_questions_follow_their_clips_and_those_without_are_left_out(tmp_path):
    """As if the first video could not be read."""
    source = prepared(
        tmp_path, [questions(k) for k in (10000, 10001, 10004)], videos=[10004, 10001]
    )
    assert source.left_out == 2
    assert [(q.video, int(source[k]["clip"])) for k, q in enumerate(source.records)] == [
        ("video_10001", 1),
        ("video_10001", 1),
        ("video_10004", 0),
        ("video_10004", 0),
    ]
    with pytest.raises(IndexError):
        source[4]


def test_without_answers_the_kind_of_question_still_shows(tmp_path):
    source = prepared(tmp_path, [questions(15000, known=False)], "test")
    assert not source.is_labelled
    described, chosen = source[0], source[1]
    assert (described["answer"], chosen["answer"]) == (0, -1)
    assert list(described["choice_answers"]) == [-1, -1] and list(chosen["choice_answers"]) == [
        0,
        0,
    ]


def test_the_number_of_choices_can_be_larger(tmp_path):
    prepared(tmp_path, [questions(10000)])
    source = ClevrerQuestions(tmp_path, "validation", num_choices=4)
    assert source[1]["choices"].shape == (4, 12)
    assert list(source[1]["choice_answers"]) == [1, 0, -1, -1]
    with pytest.raises(UserError, match="num_choices is 1, but a question of .* has 2 choices"):
        ClevrerQuestions(tmp_path, "validation", num_choices=1)


MANY = " ".join(["the"] * 21)


def asked(text: str, answer: object = "no", number: int = 0) -> dict:
    return question(number, "descriptive", text, answer)


def with_choice(*choice) -> dict:
    return question(0, "predictive", "What will happen", None, choice)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (asked("Is there a cub?"), "the word 'a', which is none of CLEVRER's 81"),
        (asked("Is there any cub"), "the word 'cub', .* 81; did you mean"),
        (asked("What color PAD"), "the word 'pad'"),
        (asked("How many", "7"), "the answer '7', expected one of 0, 1, "),
        (asked("How many", "PAD"), "the answer 'PAD', expected"),
        (asked("How many", 3), "the answer 3, expected"),
        (asked(MANY), "has 21 words, expected at most 20"),
        (asked("How many", None, 7), "question 7 of scene 10000 lacks an answer"),
        (with_choice("the", "yes"), "choice 0 has the answer 'yes', expected correct or wrong"),
        (with_choice(MANY, "wrong"), "choice 0 has 21 words, expected at most 12"),
        (question(0, "causal", "How many", "no"), "the type 'causal', expected one of descriptive"),
        (question(0, "predictive", "How many", "no"), "KeyError: 'choices'"),
        ({"question_id": 0}, "is not a file of CLEVRER's questions .KeyError"),
    ],
)
def test_questions_that_do_not_fit(tmp_path, entry, expected):
    records = [questions(9999), {**questions(10000), "questions": [entry]}]
    with pytest.raises(UserError, match=expected) as error:
        prepared(tmp_path, records)
    assert "\n" not in str(error.value) and "questions-validation.json" in str(error.value)


def test_folders_without_questions_are_refused(tmp_path):
    with pytest.raises(UserError, match="has no questions-train.json; put CLEVRER's questions"):
        ClevrerQuestions(tmp_path, "train")
    (tmp_path / "questions-train.json").write_text("[")
    with pytest.raises(UserError, match="is not a file of CLEVRER's questions .JSONDecodeError"):
        ClevrerQuestions(tmp_path, "train")
    for text in ("{}", '[{"scene_index": 3, "questions": []}]', "[" * 100_000):
        (tmp_path / "questions-train.json").write_text(text)
        with pytest.raises(UserError, match="is not a file of CLEVRER's questions"):
            ClevrerQuestions(tmp_path, "train")
    with pytest.raises(UserError, match="has no question about a video of"):
        prepared(tmp_path, [questions(10000)], "train", videos=[3])
    (tmp_path / "MANIFEST.json").write_text(json.dumps({"splits": {"train": {"shards": [{}]}}}))
    with pytest.raises(UserError, match="does not say which samples split 'train' has"):
        ClevrerQuestions(tmp_path, "train")


def test_a_submission_says_the_answers_back(tmp_path, source):
    """True answers give the official file again, without its texts."""
    answers = [
        question.answer if question.answer >= 0 else [right for *_, right in question.choices]
        for question in source.records
    ]
    path = tmp_path / "submission.json"
    write_submission(path, source.records[::-1], answers[::-1])
    expected = copy.deepcopy(RECORDED["records"])
    for record in expected:
        del record["video_filename"]
        for entry in record["questions"]:
            for key in ("question", "question_type", "question_subtype", "program"):
                entry.pop(key, None)
            for choice in entry.get("choices", ()):
                del choice["choice"], choice["program"]
    assert json.loads(path.read_text()) == expected


@pytest.mark.parametrize(
    ("index", "answer", "expected"),
    [
        (0, 0, "has the answer 0, expected an index from 1 to 21"),
        (0, [True], "expected an index"),
        (1, 3, "has 2 choices, its answer has the shape"),
        (1, [True, False, True], "has 2 choices, its answer has the shape"),
    ],
)
def test_a_submission_that_does_not_fit(tmp_path, index, answer, expected):
    found, _ = read_questions(json.dumps([questions(15000, known=False)]).encode(), "x")
    with pytest.raises(UserError, match=expected):
        write_submission(tmp_path / "x.json", [found[index]], [answer])
    with pytest.raises(UserError, match="is answered twice"):
        write_submission(tmp_path / "x.json", [found[0]] * 2, [1, 1])
    assert not (tmp_path / "x.json").exists()
