"""Questions about the videos of a prepared folder: CLEVRER's, and Physion's.

They are answered from stored slots of whole videos, as SlotFormer's program has it (Wu et al. 2023,
arXiv 2210.05861, sections 4.4 and 4.5).
"""

import hashlib
from pathlib import Path

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import clevrer_questions, physion_labels
from smoothsa_jax.inputs.clevrer_questions import (
    NUM_FRAMES,
    OBSERVED,
    PREDICTIVE,
    ClevrerQuestions,
    last_start,
    question_frames,
)
from smoothsa_jax.inputs.physion_labels import PhysionLabels
from smoothsa_jax.inputs.prepared import PreparedFolder
from smoothsa_jax.inputs.records import NoSuchSplit
from smoothsa_jax.inputs.remote import available, local_folder
from smoothsa_jax.parts import check_whole

START = 4  # the first frame at evaluation, the middle of those that training draws

Frames = tuple[np.ndarray, np.ndarray | None]


class _OfVideos:
    """A random-access source of questions about the videos of a prepared folder.

    Args:
        questions: all questions of the split.
        file: that holds them.
        num_samples: use only the first ones; None: all.
        **options: of the clips, see `PreparedFolder`.
    """

    def __init__(self, questions, file: Path, num_samples: int | None, **options):
        self._questions, self._file = questions, file
        self.words, self.answers = questions.words, questions.answers
        self.kinds = questions.kinds
        self.clips = PreparedFolder(num_frames=None, **options)
        if num_samples is not None:
            check_whole("data.num_samples", num_samples)
        self._number = min(len(questions), num_samples or len(questions))

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        return self._questions[index]

    def fingerprint(self) -> str:
        """A hash of the questions of the split."""
        return hashlib.sha256(self._file.read_bytes()).hexdigest()


class ClevrerClips(_OfVideos):
    """CLEVRER's questions, each answered from every fifth frame of its video.

    The first of these frames is random in training, and START at evaluation. Where a rollouter
    continues the videos, predictive questions see as many frames at the end of the predicted ones.

    Args:
        folder, image_size, num_slots, boxes, background_box, interpolation, cache: see
            `PreparedFolder`.
        split: of the questions; that of test has no answers.
        num_frames: F, frames that a question is answered from.
        past: frames at the end of the video that samples also have where a rollouter continues it.
        future: frames that it predicts.
        num_samples: number of questions; None: all.

    Raises:
        UserError: there are no questions with answers, or an option is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        image_size: int = 128,
        num_frames: int | None = NUM_FRAMES,
        past: int = 12,
        future: int = 32,
        num_samples: int | None = None,
        num_slots: int | None = None,
        boxes: bool = False,
        background_box: bool = False,
        interpolation: str = "bilinear",
        cache: str | Path | None = None,
    ):
        check_whole("data.past", past)
        check_whole("data.future", future)
        folder = local_folder(folder, cache)
        file = available(folder, clevrer_questions.file_of(split))
        questions = ClevrerQuestions(folder, split)
        if not questions.is_labelled:
            raise NoSuchSplit(
                f"the questions of the {split} split in {folder} have no answers; set "
                "--config.eval.split=validation"
            )
        super().__init__(
            questions,
            file,
            num_samples,
            folder=folder,
            split=split,
            image_size=image_size,
            num_slots=num_slots,
            boxes=boxes,
            background_box=background_box,
            interpolation=interpolation,
        )
        num_frames = NUM_FRAMES if num_frames is None else num_frames  # None: to store videos
        if not 1 <= num_frames <= OBSERVED:
            raise UserError(
                f"data.num_frames is {num_frames}, of which a question is answered; expected 1 to "
                f"{OBSERVED}"
            )
        self._num_frames, self._past, self._future = num_frames, past, future

    def frames(
        self, index: int, length: int, rng: np.random.Generator | None, ahead: bool
    ) -> Frames:
        """The frames that question `index` is answered from; see `inputs.questions`.

        With predicted frames, these are F of the video, then F as a predictive question sees them,
        then the last ones, which a rollouter continues.
        """
        latest, count = last_start(self._num_frames), self._num_frames
        start = min(START, latest) if rng is None else int(rng.integers(latest + 1))
        observed = question_frames(length, start, False, count)
        if not ahead:
            return observed, None
        places, later = np.arange(count), observed
        if self._questions.records[index].kind == PREDICTIVE:
            future = self._future
            later = question_frames(length + future, start, True, count, predicted=future)
            number = 2 * count + self._past  # of frames before the predicted ones
            places = np.where(later < length, places + count, number + later - length)
        last = np.maximum(np.arange(length - self._past, length), 0)
        which = np.concatenate([observed, np.minimum(later, length - 1), last])
        return which, places.astype(np.int32)


class PhysionClips(_OfVideos):
    """Physion's question, whether red touches yellow, answered from the first frames of a video.

    Args:
        folder, image_size, num_slots, boxes, background_box, interpolation, cache: see
            `PreparedFolder`.
        split: "train", "validation" or "test".
        num_frames: of the first frames, how many are observed.
        num_samples: number of questions; None: all.

    Raises:
        UserError: there are no labels, or an option is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        image_size: int = 128,
        num_frames: int | None = 45,
        num_samples: int | None = None,
        num_slots: int | None = None,
        boxes: bool = False,
        background_box: bool = False,
        interpolation: str = "bilinear",
        cache: str | Path | None = None,
    ):
        folder = local_folder(folder, cache)
        file = available(folder, physion_labels.file_of(split))
        super().__init__(
            PhysionLabels(folder, split),
            file,
            num_samples,
            folder=folder,
            split=split,
            image_size=image_size,
            num_slots=num_slots,
            boxes=boxes,
            background_box=background_box,
            interpolation=interpolation,
        )
        self._num_frames = num_frames

    def frames(
        self, index: int, length: int, rng: np.random.Generator | None, ahead: bool
    ) -> Frames:
        """The frames that a question is answered from; the last one of a shorter video repeats."""
        del index, rng, ahead
        return np.minimum(np.arange(self._num_frames or length), length - 1), None
