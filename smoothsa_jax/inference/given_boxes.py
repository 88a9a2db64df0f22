"""Boxes given by the user, for models that start from boxes.

The JSON file holds `{"cat.mp4": [[left, top, right, bottom], ...], ...}`.
"""

import json
import math
from collections import Counter
from pathlib import Path

from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.text import short, text_of

Boxes = dict[str, list[list[float]]]


def read_boxes(path: str | Path) -> Boxes:
    """Read the boxes of each input, by name.

    A box is the left, top, right and bottom pixel of an object in the first frame, both ends
    included.

    Raises:
        UserError: the file does not exist, or holds something else.
    """

    def without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
        counts = Counter(name for name, _ in pairs)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise UserError(
                f"--boxes={path} has {short(twice[0])} twice; expected each input once: remove one"
            )
        return dict(pairs)

    try:
        text = text_of(Path(path).read_bytes(), f"--boxes={path}")
        found = json.loads(text, object_pairs_hook=without_doubles)
    except UserError:
        raise
    # Deep nesting raises RecursionError; invalid text or JSON raises ValueError.
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["?"])[0]
        raise UserError(f"--boxes={path} cannot be read as JSON: {reason}") from error
    expected = (
        'expected {"cat.mp4": [[left, top, right, bottom], ...], ...} in pixels of the first frame'
    )
    if not isinstance(found, dict):
        raise UserError(f"--boxes={path} holds {short(found)}; {expected}")
    for name, boxes in found.items():
        good = isinstance(boxes, list) and boxes and all(map(_is_box, boxes))
        if not good:
            raise UserError(f"--boxes={path} has {short(boxes)} for {short(name)}; {expected}")
    return found


def boxes_for(given: Boxes, names: list[str], path: str | Path) -> None:
    """Check that every input has boxes.

    Raises:
        UserError: an input has none.
    """
    for name in names:
        if name not in given:
            raise UserError(
                f"--boxes={path} has no boxes for {name}, and the model starts its slots from "
                f"boxes; add them{did_you_mean(name, given)}"
            )


def _is_box(box: object) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in box)
        and all(abs(x) < 1e9 and math.isfinite(x) for x in box)
    )
