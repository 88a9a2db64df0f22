"""Score pictures of new views of a scene, and the segments in them (OSRT, arXiv 2206.06922)."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothsa_jax.evaluation.counting import counted_masks
from smoothsa_jax.evaluation.metrics import METRICS, contingency_from_counts, score_counts
from smoothsa_jax.evaluation.scores import mean_over_samples
from smoothsa_jax.evaluation.split import Batch, Measured
from smoothsa_jax.models.views import Rays

PSNR = "psnr"


def psnr(squared_error: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio in dB, of colours from 0 to 1.

    Args:
        squared_error: the mean squared error of each scene.
    """
    error = np.asarray(squared_error, np.float64)
    with np.errstate(divide="ignore"):  # of no error, it is infinite
        return -10.0 * np.log10(error)


class ViewsEvaluator:
    """An evaluator of all pixels of a scene's target views; see `Evaluator`.

    PSNR is that of a scene, and a split's is the mean over scenes. ARI, FG-ARI, mBO and mIoU are
    over the pixels of all target views at once: a slot has to keep its object from view to view.

    Args:
        target: the target of the model.
        has_masks: whether the decoder has masks; without them, PSNR is the only score.
    """

    paper_differs = False

    def __init__(self, target: Rays, has_masks: bool):
        self._target, self._has_masks = target, has_masks
        self.metrics = (PSNR, *(METRICS if has_masks else ()))
        self.outputs = ("prediction", "target", *(("masks",) if has_masks else ()))
        self.protocol: dict[str, Any] = {
            "input_views": target.input_views,
            "target_views": target.targets,
            "mean_over": "scenes",
        }

    def measure(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Measured:
        """Measure errors and count pixels of each scene, over all of its target views."""
        predicted, true = outputs["prediction"], outputs["target"]
        tables, segments = {"squared_error": _squared_error(predicted, true)}, None
        views = self._target.places(batch["video"].shape[1])[1]
        size = (len(views), *self._target.image_size)
        if self._has_masks:
            labels = np.ascontiguousarray(batch["segmentations"][:, views.start :])
            found = counted_masks(_of_views(outputs["masks"], size), labels)
            tables["counts"], segments = found.counts, found.segments
        return Measured(tables, segments, _pictures(predicted, size))

    def per_sample(
        self, tables: Mapping[str, np.ndarray], match_paper: bool
    ) -> dict[str, np.ndarray]:
        """Return the scores (samples,) of the scenes."""
        found = {PSNR: psnr(tables["squared_error"])}
        if self._has_masks:
            counts = contingency_from_counts(tables["counts"])
            found |= score_counts(counts, match_paper=match_paper)
        return found

    def means(self, per_sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the means (...) of scores (..., samples)."""
        return mean_over_samples(per_sample)

    def kept(self, found: Measured, batch: Batch, at: Iterable[int]) -> list[dict[str, np.ndarray]]:
        """Copy scenes of a batch, for pictures; see `evaluation.split.kept_samples`."""
        inputs, targets = self._target.places(batch["video"].shape[1])
        rendered, segments = jax.device_get((found.rendered, found.segments))
        scenes = []
        for b in at:
            scene = {
                "inputs": batch["video"][b, : len(inputs)],
                "video": batch["video"][b, targets.start :],
                "segmentations": batch["segmentations"][b, targets.start :],
                "rendered": rendered[b],
            }
            scene |= {} if segments is None else {"masks": segments[b]}
            scenes.append({name: np.array(x) for name, x in scene.items()})
        return scenes


@jax.jit
def _squared_error(predicted: jax.Array, true: jax.Array) -> jax.Array:
    return jnp.square(predicted - true).mean(axis=(1, 2, 3))


def _of_views(masks: jax.Array, size: tuple[int, int, int]) -> jax.Array:
    """Return masks (B,T,N,H,W) of masks (B,1,N,1,R) of all rays."""
    masks = masks.reshape(*masks.shape[0:3:2], *size)
    return masks.swapaxes(1, 2)


def _pictures(colours: jax.Array, size: tuple[int, int, int]) -> jax.Array:
    """Return pictures (B,T,H,W,3) uint8 of colours (B,1,R,3) of all rays."""
    pixels = jnp.rint(255.0 * colours).astype(jnp.uint8)
    return pixels.reshape(len(colours), *size, colours.shape[-1])
