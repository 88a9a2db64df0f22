"""Where a video cuts to another scene: the slots of the scene before are of no use there, a new first frame is."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError

# In the middle (of ratios) between the largest motion, 0.41, and the smallest cut, 1.35, of the validation clips of sprites:
# benchmarks/shot_cuts.py, docs/predict.md.
DEFAULT_THRESHOLD = 0.75


@jax.jit
def feature_distance(
    before: Float[Array, "*lead M C"], after: Float[Array, "*lead M C"]
) -> Float[Array, "*lead"]:
    """How far the features of a frame are from those of the frame before, token by token.

    The mean square difference of tokens in the same place, over the sum of both frames' variances over their tokens. So it
    has no unit, whatever the backbone: 0 for the same frame twice, and about 1 where two frames have no more to do with
    each other than two places drawn at random.
    """
    before, after = before.astype(jnp.float32), after.astype(jnp.float32)
    difference = jnp.square(after - before).sum(-1).mean(-1)
    spread = sum(x.var(axis=-2).sum(-1) for x in (before, after))
    # Two frames of one plain colour each: no spread, and any difference is a cut.
    return difference / jnp.maximum(spread, 1e-6)


def threshold_from(text: str | None) -> float | None:
    """The threshold that `--shot-cuts` gives: None without the flag, "default" for the flag alone.

    Raises:
        UserError: it is no number above 0.
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
