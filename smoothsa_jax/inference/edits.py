"""Edits of slots for `--mode=predict --edit`, whose decoded pictures show them.

remove:K          without slot K
swap:K,FILE:J     with slot J of FILE in place of slot K
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.segmentation import Segmentation
from smoothsa_jax.inference.sources import Source, file_source

FORMS = "remove:K or swap:K,FILE:J, where K and J are slots, the values of label maps"


class Edit(NamedTuple):
    """One edit.

    Attributes:
        slot: K.
        source: of the new slot; None: the slot is removed.
        other_slot: J.
    """

    slot: int
    source: Source | None = None
    other_slot: int = 0


def edits_of(texts: Sequence[str]) -> list[Edit]:
    """Read edits as the command line has them.

    Raises:
        UserError: one is not an edit, or its file is neither a picture nor a video.
    """
    return [_edit_of(text) for text in texts]


def _edit_of(text: str) -> Edit:
    kind, _, rest = text.partition(":")
    if kind == "remove" and rest.isdecimal():
        return Edit(int(rest))
    slot, _, other = rest.partition(",")
    file, _, other_slot = other.rpartition(":")
    if kind != "swap" or not (slot.isdecimal() and other_slot.isdecimal() and file):
        raise UserError(f"--edit={text} is not an edit; expected {FORMS}")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"--edit={text}: {file} is no file; give a picture or a video")
    return Edit(int(slot), file_source(path, f"--edit={text}: {file}"), int(other_slot))


def described(edit: Edit) -> tuple[Any, ...]:
    """What determines the result of an edit, for `about.json`."""
    if edit.source is None:
        return (edit.slot,)
    (file,) = edit.source.files
    return edit.slot, str(file), edit.other_slot, file.stat().st_size


class Edits:
    """Edits of the frames of one input, one frame after the other.

    Args:
        edits: they apply in this order.
        segmented: source -> the segmentations of its frames.
    """

    def __init__(
        self, edits: Sequence[Edit], segmented: Callable[[Source], Iterator[Segmentation]]
    ):
        self._edits, self._first = edits, True
        self._frames = [None if x.source is None else segmented(x.source) for x in edits]
        self._latest: list[Segmentation | None] = [None] * len(edits)

    def __call__(self, found: Segmentation) -> Segmentation:
        """Edit the next frame.

        Raises:
            UserError: there is no such slot in the first frame, or no slot would be left.
        """
        for number, (edit, frames) in enumerate(zip(self._edits, self._frames, strict=True)):
            # After the end of the other video, its last frame stays.
            if frames is not None:
                self._latest[number] = next(frames, self._latest[number])
            # Of later frames, pruning may have left the slot out.
            if not self._first and not found.slot_mask[..., edit.slot].any():
                continue
            other = self._latest[number]
            if other is None:
                found = found.without(edit.slot)
            else:
                found = found.swapped(edit.slot, other, edit.other_slot)
        self._first = False
        return found
