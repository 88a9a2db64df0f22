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

Optional are `observed_clips`, clips of the observed frames alone, in place of `clips`;
`text(index)`, the question in words; and `state(clip)`, the true state of the objects, (T,O,S)
float32, and which of the O exist, with a static method `state_shape_of(settings)`, which returns
(O, S).
"""

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
            clip: that half of the split further on.
        with_state: whether they have the true "state" (T,O,S) and "state_mask" (O,).

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
    ):
        if with_state and not hasattr(questions, STATE):
            raise UserError(
                "model.beside has 'true_state', which these questions do not come with; remove it"
            )
        self.questions, self.clips = questions, clips
        self._others, self._with_state = others, with_state
        self._kept: dict[int, dict[str, np.ndarray]] = {}
        # Windows of frames that are drawn anew cannot be kept.
        self._keeps = isinstance(clips, CachedSlots) and not clips.is_random

    @property
    def made_of(self) -> dict[str, Any]:
        """What determines what is stored."""
        return self.clips.made_of

    @property
    def folder(self) -> Any:
        """Where it is stored."""
        return self.clips.folder

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.draw(index, np.random.default_rng(index))

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Question `index`, with the frames of its clip drawn from `rng`."""
        sample = self.questions[index]
        clip = int(sample["clip"])
        sample = {**sample, **self._of(clip, rng)}
        if self._others:
            number = len(self.clips)
            other = self._of((clip + max(number // 2, 1)) % number, rng)
            sample |= {f"{OTHER}{k}": x for k, x in other.items() if not k.startswith(STATE)}
        return sample

    def _of(self, clip: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
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
        return np.arange(len(self))

    def fingerprint(self) -> str | None:
        """A hash of what is stored; None: unknown."""
        own = getattr(self.clips, "fingerprint", None)
        return own() if own else None
