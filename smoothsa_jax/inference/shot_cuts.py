"""Detect cuts in a video; after a cut, the model starts with new slots."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError

# The geometric mean of the largest motion (0.41) and the smallest cut (1.35) in sprites' validation
# clips; see docs/measurements.md and docs/use.md.
DEFAULT_THRESHOLD = 0.75


@jax.jit
def feature_distance(
    before: Float[Array, "*lead M C"], after: Float[Array, "*lead M C"]
) -> Float[Array, "*lead"]:
    """The distance of a frame's features from the previous frame's, token by token.

    This is the mean square difference between tokens in the same place, divided by the sum of both
    frames' variances over tokens. It has no unit and does not depend on the encoder's scale: 0 for
    identical frames, and about 1 for unrelated frames.
    """
    before, after = before.astype(jnp.float32), after.astype(jnp.float32)
    difference = jnp.square(after - before).sum(-1).mean(-1)
    spread = sum(x.var(axis=-2).sum(-1) for x in (before, after))
    # Two frames of one plain color each have no variance, so any difference is a cut.
    return difference / jnp.maximum(spread, 1e-6)


def threshold_from(text: str | None) -> float | None:
    """Parse the threshold of `--shot-cuts`: None without the flag, "default" for the flag alone.

    Raises:
        UserError: the text is not a number above 0.
    """
    if text is None:
        return None
    try:
        threshold = DEFAULT_THRESHOLD if text == "default" else float(text)
    except ValueError:
        threshold = math.nan
    if not 0 < threshold < math.inf:
        raise UserError(
            f"--shot-cuts={text}: expected a number above 0, such as {DEFAULT_THRESHOLD:g}"
        )
    return threshold
