"""Thresholds of cuts and of slots that start anew, and the flags that give them."""

import math

from smoothsa_jax.errors import UserError

# Of features: the geometric mean of the largest motion (0.41) and the smallest cut (1.35) in
# sprites' validation clips; see docs/measurements.md and docs/use.md. Of the decoder's error: twice
# as much as in the frames before.
DEFAULTS = {"features": 0.75, "error": 2.0}
DEFAULT_REQUERY = 0.2  # of a token, below which a slot explains nothing


def threshold_from(
    text: str | None, default: float = DEFAULTS["features"], flag: str = "--shot-cuts"
) -> float | None:
    """Parse the threshold of a flag: None without the flag, "default" for the flag alone.

    Args:
        text: the value of the flag.
        default: the threshold of the flag alone.
        flag: its name, for messages.

    Raises:
        UserError: the text is not a number above 0.
    """
    if text is None:
        return None
    try:
        threshold = default if text == "default" else float(text)
    except ValueError:
        threshold = math.nan
    if not 0 < threshold < math.inf:
        raise UserError(f"{flag}={text}: expected a number above 0, such as {default:g}")
    return threshold
