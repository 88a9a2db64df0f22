"""The loss of VideoSAUR: where each patch goes in a later frame."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smoothsa_jax.models.interfaces import NEXT_FRAME, Scheduled
from smoothsa_jax.parts import check_above_zero, check_number, check_one_of, check_whole

# Of what the similarities are -> the output with it.
COMPARED = {"keys": "keys", "features": "target"}


class TimeSimilarity:
    """Cross-entropy of predicted logits to the similarity of patches over time.

    For each patch, the decoder predicts logits over the patches of a later frame. The target is a
    softmax of how similar these patches are to it, in features of a frozen encoder. From VideoSAUR
    (Zadaianchuk et al. 2023, arXiv 2306.04829, section 3.2).

    Args:
        temperature: of the softmax of similarities.
        threshold: smaller similarities count as none; None: all count.
        shift: by how many frames the other frame is later.
        of: what is compared: the "keys" of the encoder's last block, as in VideoSAUR's program; or
            its "features", as in that of RandSF.Q.
    """

    advice = {  # noqa: RUF012
        NEXT_FRAME: "set --config.model.decoder.logits=next_frame",
        "keys": "freeze an encoder that has them, or set --config.losses.time_similarity.of="
        "features",
    }

    def __init__(
        self,
        *,
        temperature: float,
        threshold: float | None,
        shift: int = 1,
        of: str = "keys",
    ):
        path = "losses.time_similarity"
        check_above_zero(f"{path}.temperature", temperature)
        if threshold is not None:
            check_number(f"{path}.threshold", threshold, least=-1.0)
        check_whole(f"{path}.shift", shift)
        check_one_of(f"{path}.of", of, COMPARED)
        self.temperature, self.threshold, self.shift = temperature, threshold, shift
        self._compared = COMPARED[of]
        self.num_frames = 1 + shift
        self.reads = (NEXT_FRAME, self._compared)

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        compared = outputs[self._compared]
        target = time_similarity(compared, self.temperature, self.threshold, self.shift)
        return time_similarity_loss(outputs[NEXT_FRAME], target, self.shift)


def time_similarity(
    features: Float[Array, "B T M C"],
    temperature: float,
    threshold: float | None = None,
    shift: int = 1,
) -> Float[Array, "B T-shift M M"]:
    """Return for each patch a distribution over the patches of a later frame; a constant.

    It is the softmax of the cosine similarities, divided by the temperature, that are not below the
    threshold. For a patch without any, it is uniform.
    """
    features = jax.lax.stop_gradient(features).astype(jnp.float32)
    norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
    unit = features / jnp.maximum(norm, 1e-12)
    earlier, later = unit[:, :-shift], unit[:, shift:]
    similarity = jnp.einsum("btpc,btqc->btpq", earlier, later, precision="highest")
    logits = similarity / temperature
    if threshold is None:
        return jax.nn.softmax(logits, axis=-1)
    counts = similarity >= threshold
    left_out = jnp.where(counts.any(axis=-1, keepdims=True), -jnp.inf, 0.0)
    return jax.nn.softmax(jnp.where(counts, logits, left_out), axis=-1)


def time_similarity_loss(
    logits: Float[Array, "B T M M"], target: Float[Array, "B T-shift M M"], shift: int = 1
) -> Float[Array, ""]:
    """Return the mean cross-entropy; the last frames, which have no later one, do not count."""
    log_probability = jax.nn.log_softmax(logits[:, :-shift].astype(jnp.float32), axis=-1)
    return -jnp.mean(jnp.sum(target * log_probability, axis=-1))
