"""Questions about clips: each sample is a question, with what is known of its clip.

A source of questions has `words`, `answers` and `kinds` (tuples of texts; word 0 is padding), and
`clips`, the source of the clips of its split. Its samples have

    question        int32    (Q,)       words; 0 is padding
    choices         int32    (K, L)     words of each choice; only of data sets with choices
    answer          int32    ()         index into `answers`; -1: the question has choices instead
    choice_answers  int32    (K,)       1 right, 0 wrong, -1 there is no such choice; likewise
    allowed         bool     (A,)       which of `answers` the question may have
    kind            int32    ()         index into `kinds`
    clip            int32    ()         index of the clip that it is about, in the split

Samples of videos that are too long to be read whole also have

    places          int32    (F,)       which of the observed frames of the sample, followed by the
                                        predicted ones, a readout sees

Optional are

* `frames(index, length, rng, ahead)`: the stored frames of a clip that question `index` is answered
  from, and `places`, or None if all of them are seen, and all predicted ones. `length` is that of
  the clip, `ahead` tells whether predicted frames follow, and without `rng` they are those of
  evaluation;
* `observed_clips`: clips of the observed frames alone, in place of `clips`;
* `text(index)`: the question in words;
* `rules`, names of simple rules, and `by_rules(index)`: how probably each of them answers question
  `index` right, float32 (R,); NaN where it has no answer;
* `balanced`: whether no answer of a kind is more frequent than another;
* `state(clip)`: the true state of the objects, (T,O,S) float32, and which of the O exist, with a
  static method `state_shape_of(settings)`, which returns (O, S).
"""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.features import CachedSlots
from smoothsa_jax.inputs.loader import RandomSource, Source

QUESTION = ("question", "choices", "answer", "choice_answers", "allowed", "kind", "clip")
SEEN = ("video", "boxes", "slot_mask")  # of a clip, where nothing is stored
OTHER = "other_"  # begins the names of what is known of another clip
STATE, STATE_MASK = "state", "state_mask"
PLACES = "places"
BY_RULES = "by_rules"  # what a source's method of this name returns, in scored samples
KEPT_BYTES = 1 << 28  # of all clips, at most, that are kept in memory


class Questions(Protocol):
    """A source of questions; see the module."""

    words: tuple[str, ...]
    answers: tuple[str, ...]
    kinds: tuple[str, ...]
    clips: Source

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


def clips_of(questions: Questions) -> Source:
    """Return the source of what is observed of the clips."""
    return getattr(questions, "observed_clips", questions.clips)


class QuestionsOfClips:
    """A source of questions with the slots, or the pixels, of their clips.

    Args:
        questions: the questions.
        clips: their clips, with pixels or with what is stored.
        others: whether samples also have, as "other_slots" and so on, what is known of another
            clip: that half of the split further on; and what simple rules answer, "by_rules" (R,).
        with_state: whether they have the true "state" (T,O,S) and "state_mask" (O,).
        ahead: whether predicted frames follow the observed ones.

    Attributes:
        clips: as given.
        questions: as given.

    Raises:
        UserError: the true state is wanted, and the data set does not have it.
    """

    def __init__(
        self,
        questions: Questions,
        clips: Source | CachedSlots,
        *,
        others: bool = False,
        with_state: bool = False,
        ahead: bool = False,
    ):
        if with_state and not hasattr(questions, STATE):
            raise UserError(
                "model.beside has 'true_state', which these questions do not come with; remove it"
            )
        self.questions, self.clips = questions, clips
        self._others, self._with_state, self._ahead = others, with_state, ahead
        self._kept: dict[int, dict[str, np.ndarray]] = {}
        # Windows of frames that are drawn anew cannot be kept.
        self._draws = hasattr(questions, "frames")
        self._keeps = isinstance(clips, CachedSlots) and not (self._draws or clips.is_random)

    @property
    def made_of(self) -> dict[str, Any]:
        """What determines what is stored."""
        return self.clips.made_of

    @property
    def matched_by_name(self) -> bool:
        """Whether clips and what is stored of them are matched by name."""
        return self.clips.matched_by_name

    @property
    def folder(self) -> Any:
        """Where it is stored."""
        return self.clips.folder

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._sample(index, None)

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Question `index`, with the frames of its clip drawn from `rng`."""
        return self._sample(index, rng)

    def _sample(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        sample = self.questions[index]
        clip, number = int(sample["clip"]), len(self.clips)
        of = functools.partial(self._frames_of if self._draws else self._of, index, rng)
        sample = {**sample, **of(clip)}
        if self._others:
            other = of((clip + max(number // 2, 1)) % number)
            sample |= {f"{OTHER}{k}": x for k, x in other.items() if not k.startswith(STATE)}
            if hasattr(self.questions, BY_RULES):
                sample[BY_RULES] = self.questions.by_rules(index)
        return sample

    def _frames_of(
        self, index: int, rng: np.random.Generator | None, clip: int
    ) -> dict[str, np.ndarray]:
        """The stored frames of a clip that question `index` is answered from."""
        if not isinstance(self.clips, CachedSlots):
            raise UserError(
                "these questions are answered from slots of whole videos, which have to be stored; "
                "train with --config.data.slots=auto, or store them with python -m data.store and "
                "name the folder with --config.data.slots"
            )
        length = self.clips.length(clip)
        which, places = self.questions.frames(index, length, rng, self._ahead)
        found = self.clips.of_frames(clip, which)
        return found if places is None else {**found, PLACES: places}

    def _of(self, index: int, rng: np.random.Generator | None, clip: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(index) if rng is None else rng
        if clip in self._kept:
            return self._kept[clip]
        if isinstance(self.clips, CachedSlots):
            found = self.clips.of_clip(clip, rng)
        else:
            random = isinstance(self.clips, RandomSource)
            seen = self.clips.draw(clip, rng) if random else self.clips[clip]
            found = {name: seen[name] for name in SEEN if name in seen}
        if self._with_state:
            found[STATE], found[STATE_MASK] = self.questions.state(clip)
        size = sum(x.nbytes for x in found.values())
        if self._keeps and size * len(self.clips) <= KEPT_BYTES:
            self._kept[clip] = found
        return found

    def epoch(self) -> Sequence[int]:
        """The indices of one training epoch: all of them."""
        return range(len(self))

    def fingerprint(self) -> str | None:
        """A hash of what is stored, and of questions in files; None: unknown."""
        found = [getattr(x, "fingerprint", lambda: None)() for x in (self.clips, self.questions)]
        return " ".join(x for x in found if x) or None
