"""Questions about the videos of CLEVRER (Yi et al. 2020, arXiv 1910.01442), as word ids.

`python -m data.prepare clevrer` puts them beside the videos, one file per split, in the form of the
official files without their programs: a list over videos of `scene_index`, `video_filename` and
`questions`. A question is descriptive, with one answer, or has choices that are each right or
wrong. Those of the test split have no answers; `write_submission` writes what its server takes.

Words, ids and the frames that a question is answered from are those of SlotFormer's program (Wu et
al. 2023, arXiv 2210.05861): lower case, without question marks, split at blanks, so that a comma
stays on its word.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.files import atomic_file, expanded
from smoothsa_jax.inputs.manifest import sample_names
from smoothsa_jax.inputs.records import NoSuchSplit
from smoothsa_jax.text import short

KINDS = ("descriptive", "explanatory", "predictive", "counterfactual")
PREDICTIVE = KINDS.index("predictive")
RIGHT_AND_WRONG = ("wrong", "correct")  # answers of choices: 0 and 1
MAX_WORDS, MAX_CHOICE_WORDS = 20, 12
NUM_FRAMES = 25  # F, of which a question is answered
OBSERVED = 128  # frames of a video
LONG = 150  # frames; a store with more holds predicted ones too
AGAIN = "take the official files, and prepare them again"


@functools.cache
def vocabulary() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The 82 words and 22 answers; the first of each is padding."""
    text = (Path(__file__).parent / "clevrer_vocabulary.json").read_text()
    found = json.loads(text)
    return tuple(found["words"]), tuple(found["answers"])


def file_of(split: str) -> str:
    """The name of a split's questions in a prepared folder."""
    return f"questions-{split}.json"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about one video.

    Attributes:
        video: the name of the video, such as video_10000.
        kind: index into KINDS.
        words: ids of its words.
        answer: index into the answers; 0: not known; -1: it has choices.
        choices: for each choice its id, the ids of its words, and 1 right or 0 wrong; without
            known answers, 0.
    """

    scene_index: int
    video: str
    question_id: int
    kind: int
    words: tuple[int, ...]
    answer: int
    choices: tuple[tuple[int, tuple[int, ...], int], ...]


class ClevrerQuestions:
    """A random-access source of the questions of a split of a prepared folder.

    A sample has the arrays of all questions about clips: question (20,) and choices (K,12) int32,
    word ids, 0 = padding; answer () int32, or -1 for a question with choices; choice_answers (K,)
    int32, 1 right, 0 wrong, -1 no such choice; allowed (22,) bool; kind () and clip () int32.

    All 22 answers are allowed for every question, padding too, as in SlotFormer's program. Where
    the answers are not known (`is_labelled`), `answer` is 0 and so are those of choices.

    Args:
        folder: a prepared folder of CLEVRER.
        split: "train", "validation" or "test".
        num_choices: K; default: the most that a question of the split has.

    Attributes:
        words: words[0] is padding.
        answers: answers[0] is padding.
        kinds: types of questions.
        is_labelled: whether the answers are known.
        records: the questions themselves, in the order of the samples.
        left_out: how many questions are about videos that the folder does not have.

    Raises:
        UserError: the folder has no questions of the split, or they are damaged.
    """

    kinds = KINDS

    def __init__(self, folder: str | Path, split: str, num_choices: int | None = None):
        folder = expanded(folder)
        path = folder / file_of(split)
        if not path.is_file():
            raise NoSuchSplit(
                f"{folder} has no {path.name}; put CLEVRER's questions into questions/ of the "
                f"download, and run python -m data.prepare clevrer --out {folder} again"
            )
        self.words, self.answers = vocabulary()
        found, self.is_labelled = read_questions(path.read_bytes(), str(path))
        clips = {name: index for index, name in enumerate(sample_names(folder, split))}
        self.records = tuple(question for question in found if question.video in clips)
        self.left_out = len(found) - len(self.records)
        if not self.records:
            raise UserError(
                f"{path} has no question about a video of {folder}; prepare the folder again"
            )
        self._clips = np.array([clips[question.video] for question in self.records], np.int32)
        most = max(len(question.choices) for question in self.records)
        if num_choices is not None and num_choices < most:
            raise UserError(
                f"num_choices is {num_choices}, but a question of {path} has {most} choices; raise "
                f"it to {most}"
            )
        self._num_choices = max(1, most if num_choices is None else num_choices)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        question = self.records[index]
        words = np.zeros(MAX_WORDS, np.int32)
        words[: len(question.words)] = question.words
        choices = np.zeros((self._num_choices, MAX_CHOICE_WORDS), np.int32)
        right = np.full(self._num_choices, -1, np.int32)
        for place, (_, choice, answer) in enumerate(question.choices):
            choices[place, : len(choice)] = choice
            right[place] = answer
        return {
            "question": words,
            "choices": choices,
            "answer": np.array(question.answer, np.int32),
            "choice_answers": right,
            "allowed": np.ones(len(self.answers), bool),
            "kind": np.array(question.kind, np.int32),
            "clip": self._clips[index],
        }

    def frames(self, index: int, length: int, start: int) -> Int[np.ndarray, " F"]:
        """The stored frames that question `index` is answered from; see `question_frames`."""
        return question_frames(length, start, self.records[index].kind == PREDICTIVE)


def last_start(num_frames: int = NUM_FRAMES) -> int:
    """The last start of `question_frames`; the first is 0."""
    return OBSERVED - (num_frames - 1) * (OBSERVED // num_frames) - 1


def question_frames(
    length: int,
    start: int,
    is_predictive: bool,
    num_frames: int = NUM_FRAMES,
    predicted: int | None = None,
) -> Int[np.ndarray, " F"]:
    """The frames that a question is answered from: every fifth one from `start` on.

    Where the last ones are predicted, predictive questions see the last 128 frames, and others
    none of the predicted ones. In a shorter video, as three of CLEVRER's are, the last frame
    repeats. SlotFormer's program takes frames from 128 on for predicted ones where more than 150
    are stored. Those three videos have fewer, also with 32 predicted frames, so that all of their
    questions see the first 128 there.

    Args:
        length: the number of stored frames.
        start: drawn from 0 to `last_start()`.
        is_predictive: whether the question is about what happens next.
        num_frames: F.
        predicted: how many of the stored frames are predicted, at the end; None: as that program
            tells it.

    Raises:
        UserError: the start is out of range.
    """
    if not 0 <= start <= last_start(num_frames):
        raise UserError(f"the start is {start}; expected 0 to {last_start(num_frames)}")
    if is_predictive and (length > LONG if predicted is None else predicted):
        start += max(length - OBSERVED, 0)
    elif predicted is not None:
        length -= predicted
    frames = start + OBSERVED // num_frames * np.arange(num_frames)
    return np.minimum(frames, length - 1)


def words_in(text: str) -> list[str]:
    """Split a question or choice into words."""
    return text.lower().replace("?", "").split()


def read_questions(data: bytes, where: str) -> tuple[list[Question], bool]:
    """Parse a file of questions, official or prepared.

    Args:
        data: the contents of the file.
        where: its name in error messages.

    Returns:
        The questions in order, and whether their answers are known: of all, or of none.

    Raises:
        UserError: the file is damaged; or a word, answer or type of question is unknown.
    """
    try:
        found = list(_questions(json.loads(data), where))
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{where} is not a file of CLEVRER's questions ({type(error).__name__}: {error}); "
            f"{AGAIN}"
        ) from error
    known = {is_known for _, is_known in found}
    if len(known) > 1:
        lacking = next(question for question, is_known in found if not is_known)
        raise UserError(
            f"{where}: question {lacking.question_id} of scene {lacking.scene_index} lacks an "
            f"answer that others have; {AGAIN}"
        )
    return [question for question, _ in found], known != {False}


def _questions(records: Any, where: str) -> Iterator[tuple[Question, bool]]:
    """Yield each question, and whether its answer is known."""
    if not isinstance(records, list):
        raise TypeError(f"expected a list over videos, found a {type(records).__name__}")
    for record in records:
        scene, video = record["scene_index"], Path(record["video_filename"]).stem
        for entry in record["questions"]:
            told = f"{where}: question {entry['question_id']} of scene {scene}"
            yield _question(entry, scene, video, told)


def _question(
    entry: Mapping[str, Any], scene: int, video: str, where: str
) -> tuple[Question, bool]:
    """A question, and whether its answer is known."""
    kind = entry["question_type"]
    if kind not in KINDS:
        raise UserError(f"{where} has the type {short(kind)}, expected one of {', '.join(KINDS)}")
    answer, choices, is_known = -1, (), True
    if kind == KINDS[0]:
        is_known = "answer" in entry
        answer = _answer(entry["answer"], where) if is_known else 0
    else:
        listed = entry["choices"]
        if not listed:
            raise UserError(f"{where} is {kind} and has no choices; {AGAIN}")
        is_known = all("answer" in choice for choice in listed)
        choices = tuple(_choice(choice, where, is_known) for choice in listed)
    return Question(
        scene_index=scene,
        video=video,
        question_id=entry["question_id"],
        kind=KINDS.index(kind),
        words=_ids(entry["question"], MAX_WORDS, where),
        answer=answer,
        choices=choices,
    ), is_known


def _choice(
    choice: Mapping[str, Any], where: str, is_known: bool
) -> tuple[int, tuple[int, ...], int]:
    where = f"{where}, choice {choice['choice_id']}"
    answer = choice["answer"] if is_known else RIGHT_AND_WRONG[0]
    if answer not in RIGHT_AND_WRONG:
        raise UserError(
            f"{where} has the answer {short(answer)}, expected correct or wrong; {AGAIN}"
        )
    ids = _ids(choice["choice"], MAX_CHOICE_WORDS, where)
    return choice["choice_id"], ids, RIGHT_AND_WRONG.index(answer)


def _answer(answer: Any, where: str) -> int:
    number = _numbers()[1].get(answer, 0) if isinstance(answer, str) else 0
    if number == 0:
        raise UserError(
            f"{where} has the answer {short(answer)}, expected one of "
            f"{', '.join(vocabulary()[1][1:])}; {AGAIN}"
        )
    return number


def _ids(text: str, most: int, where: str) -> tuple[int, ...]:
    words, numbers = words_in(text), _numbers()[0]
    if len(words) > most:
        raise UserError(
            f"{where} has {len(words)} words, expected at most {most}: {short(text)}; {AGAIN}"
        )
    for word in words:
        if word not in numbers:
            raise UserError(
                f"{where} has the word {short(word)}, which is none of CLEVRER's "
                f"{len(numbers)}{did_you_mean(word, numbers)}; {AGAIN}"
            )
    return tuple(numbers[word] for word in words)


@functools.cache
def _numbers() -> tuple[dict[str, int], dict[str, int]]:
    """The ids of words and of answers, but for padding's."""
    words, answers = ({x: k for k, x in enumerate(found) if k} for found in vocabulary())
    return words, answers


def write_submission(
    path: str | Path,
    questions: Iterable[Question],
    answers: Iterable[int | Sequence[bool]],
) -> None:
    """Write answers in the form of CLEVRER's test server.

    A list over videos of {scene_index, questions}; a question is {question_id, answer}, or
    {question_id, choices: [{choice_id, answer: "correct" or "wrong"}]}.

    Args:
        path: the JSON file to write.
        questions: those of the whole split, such as `ClevrerQuestions.records`, in any order.
        answers: for each question the index of its answer or, if it has choices, whether each of
            them is right.

    Raises:
        UserError: an answer does not fit its question, or a question occurs twice.
    """
    names = vocabulary()[1]
    scenes: dict[int, dict[int, dict[str, Any]]] = {}
    for question, answer in zip(questions, answers, strict=True):
        where = f"question {question.question_id} of scene {question.scene_index}"
        entry: dict[str, Any] = {"question_id": question.question_id}
        if question.answer < 0:
            if np.shape(answer) != (len(question.choices),):
                raise UserError(
                    f"{where} has {len(question.choices)} choices, its answer has the shape "
                    f"{np.shape(answer)}; give one number for each choice"
                )
            entry["choices"] = [
                {"choice_id": number, "answer": RIGHT_AND_WRONG[bool(is_right)]}
                for (number, *_), is_right in zip(question.choices, answer, strict=True)
            ]
        else:
            if np.shape(answer) != () or not 0 < int(answer) < len(names):
                raise UserError(
                    f"{where} has the answer {short(answer)}, expected an index from 1 to "
                    f"{len(names) - 1}"
                )
            entry["answer"] = names[int(answer)]
        mine = scenes.setdefault(question.scene_index, {})
        if question.question_id in mine:
            raise UserError(f"{where} is answered twice; give each question once")
        mine[question.question_id] = entry
    found = [
        {"scene_index": scene, "questions": [mine[key] for key in sorted(mine)]}
        for scene, mine in sorted(scenes.items())
    ]
    with atomic_file(Path(path)) as partial:
        partial.write_text(json.dumps(found))
