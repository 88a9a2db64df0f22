"""The boxes that a person gives for models that start from boxes: a JSON file, `{"cat.mp4": [[l, t, r, b], ...], ...}`."""

import json
import math
from pathlib import Path

from smoothsa_jax.errors import UserError, did_you_mean

Boxes = dict[str, list[list[float]]]


def read_boxes(path: str | Path) -> Boxes:
    """Name of an input -> left, top, right, bottom pixel of each object in its first frame, both ends included.

    Raises:
        UserError: no such file, or it holds something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    # Deep nesting is a RecursionError; bytes that are no text, and text that is no JSON, are ValueErrors.
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["?"])[0]
        raise UserError(f"--boxes={path} cannot be read as JSON: {reason}") from error
    expected = (
        'expected {"cat.mp4": [[left, top, right, bottom], ...], ...} in pixels of the first frame'
    )
    if not isinstance(found, dict):
        raise UserError(f"--boxes={path} holds {_short(found)}; {expected}")
    for name, boxes in found.items():
        good = isinstance(boxes, list) and boxes and all(map(_is_box, boxes))
        if not good:
            raise UserError(f"--boxes={path} has {_short(boxes)} for {_short(name)}; {expected}")
    return found


def boxes_for(given: Boxes, names: list[str], path: str | Path) -> None:
    """Sees that every input has boxes.

    Raises:
        UserError: one has none.
    """
    for name in names:
        if name not in given:
            raise UserError(
                f"--boxes={path} has no boxes for {name}, and the model starts its slots from boxes; add them"
                f"{did_you_mean(name, given)}"
            )


def _is_box(box: object) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in box)
        and all(abs(x) < 1e9 and math.isfinite(x) for x in box)
    )


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
