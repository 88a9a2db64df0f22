"""Score tokenizers: how well codes explain pixels, and how many of the codes are in use."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothsa_jax.evaluation.scores import UNSEEN, mean_over_samples
from smoothsa_jax.evaluation.split import Batch, Measured, num_frames_of
from smoothsa_jax.evaluation.views import PSNR, psnr
from smoothsa_jax.models.encoders.pixels import denormalize

MSE, IN_USE = "mse", "codes_in_use"
BITS = 48  # of the used codes in one number; float64 holds 53


class TokenizerEvaluator:
    """An evaluator of decoded pixels; see `Evaluator`. Labels are not read.

    `mse` is the mean squared error of the range that the tokenizer decodes, `psnr` that of colors
    from 0 to 1; each is of a sample, and a split's is the mean. `codes_in_use` is the share of the
    vocabulary that occurs anywhere in the split.

    Args:
        pixels: the range that the tokenizer decodes.
        vocabulary: V.
    """

    metrics = (PSNR, MSE, IN_USE)
    errors = (MSE,)
    outputs = ("prediction", "target", "tokens")
    paper_differs, needs_labels = False, False

    def __init__(self, pixels: str, vocabulary: int):
        self._pixels, self._vocabulary = pixels, vocabulary
        self.protocol: dict[str, Any] = {"scores": "pixels decoded from the nearest codes"}

    def measure(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Measured:
        """Measure each sample of a batch, on the device."""
        predicted, true = outputs["prediction"], outputs["target"]
        lengths = batch.get("num_frames", np.full(len(predicted), predicted.shape[1]))
        tables, rendered = _measured(
            predicted, true, outputs["tokens"], jnp.asarray(lengths), self._pixels, self._vocabulary
        )
        return Measured(tables, None, rendered)

    def per_sample(
        self, tables: Mapping[str, np.ndarray], match_paper: bool
    ) -> dict[str, np.ndarray]:
        """Return the scores (samples,), and which codes each sample has."""
        del match_paper
        used = np.asarray(tables["used"])
        parts = range(0, used.shape[1], BITS)
        weights = 2.0 ** np.arange(BITS)
        packed = {
            f"{UNSEEN}{begin}": used[:, begin : begin + BITS] @ weights[: used.shape[1] - begin]
            for begin in parts
        }
        found = {PSNR: psnr(tables["unit_error"]), MSE: np.asarray(tables["error"], np.float64)}
        return found | packed

    def means(self, per_sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the means (...), and the share of codes in use, from values (..., samples)."""
        shown = {name: x for name, x in per_sample.items() if not name.startswith(UNSEEN)}
        packed = [x for name, x in per_sample.items() if name.startswith(UNSEEN)]
        whole = [np.bitwise_or.reduce(np.asarray(x).astype(np.int64), axis=-1) for x in packed]
        used = sum(np.bitwise_count(x).astype(np.float64) for x in whole)
        return mean_over_samples(shown) | {IN_USE: used / self._vocabulary}

    def kept(self, found: Measured, batch: Batch, at: Iterable[int]) -> list[dict[str, np.ndarray]]:
        """Copy samples of a batch, for pictures; see `evaluation.split.kept_samples`."""
        decoded = jax.device_get(found.rendered)
        samples = []
        for b in at:
            length = num_frames_of(batch, b)
            pair = {"video": batch["video"][b], "decoded": decoded[b]}
            samples.append({name: np.array(x[:length]) for name, x in pair.items()})
        return samples


@functools.partial(jax.jit, static_argnums=(4, 5))
def _measured(predicted, true, tokens, lengths, pixels, vocabulary):
    frames = jnp.arange(predicted.shape[1])
    valid = frames < lengths[:, None]  # (B,T)
    unit, true_unit = (jnp.clip(denormalize(x, pixels), 0.0, 1.0) for x in (predicted, true))

    def of_sample(difference):
        error = jnp.square(difference).mean(axis=(2, 3, 4))
        return jnp.where(valid, error, 0.0).sum(axis=1) / lengths

    def used(tokens, valid):
        seen = jnp.where(valid[:, None], tokens, vocabulary).reshape(-1)  # beyond: dropped
        return jnp.zeros(vocabulary, bool).at[seen].set(True, mode="drop")

    tables = {
        "error": of_sample(predicted - true),
        "unit_error": of_sample(unit - true_unit),
        "used": jax.vmap(used)(tokens, valid),
    }
    return tables, jnp.rint(255.0 * unit).astype(jnp.uint8)
