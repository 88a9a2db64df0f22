"""What a model finds in samples of a split, and on the way there in the first frame."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.devices.compiling import at_precision
from smoothsa_jax.evaluation.masks import masks_from_attention
from smoothsa_jax.evaluation.predictions import Batch, num_frames_of, scored
from smoothsa_jax.models.backend import backend_of
from smoothsa_jax.models.build import build_shapes
from smoothsa_jax.models.draws import Draws, sample_evaluation_draws
from smoothsa_jax.models.parameters import Parameters, split
from smoothsa_jax.models.slot_model import SlotModel

# What slot attention starts from in the first frame: the samples themselves, or what the warmer makes of them.
COLD, WARM = "cold", "warm"


@dataclasses.dataclass(frozen=True)
class Clip:
    """One sample and what was found in it.

    Attributes:
        number: in the split, counted from 0; that of `scores.csv`.
        states: COLD or WARM -> the queries, then the slots after each iteration on the first frame.
        attention: likewise of each iteration, which shares each token out among the slots.
    """

    number: int
    video: Int[np.ndarray, "T H W 3"]
    labels: Int[np.ndarray, "T H W"]
    masks: Int[np.ndarray, "T H W"]
    slots: Float[np.ndarray, "T N D"]
    slot_mask: Bool[np.ndarray, "N"]
    states: Mapping[str, Float[np.ndarray, "I+1 N D"]]
    attention: Mapping[str, Float[np.ndarray, "I N h w"]]


def iterations_of_first_frame(
    model: SlotModel,
    encoded: Float[Array, "B M C"],
    draws: Draws,
    boxes: Float[Array, "B N 4"] | None,
    slot_mask: Bool[Array, "B N"] | None,
) -> dict[str, tuple[Float[Array, "B I+1 N D"], Float[Array, "B I N M"]]]:
    """Slot attention on a first frame step by step, with the warmer and without. A pure function.

    Returns:
        COLD, and WARM where the model has a warmer -> the queries and the slots after each iteration, and its attention. The
        last slots of WARM (without a warmer: COLD) are those of `model.first_frame`.
    """
    starts = {COLD: model.initializer.sampler(draws.cold_noise, boxes)}
    if model.initializer.warmer is not None:
        starts[WARM] = model.initializer.warmer(starts[COLD], encoded, slot_mask)
    found = {}
    for name, queries in starts.items():
        states, attention = [queries], []
        for _ in range(model.first_iterations):
            # One at a time from the slots of the last: the values are those of all at once, the gradient is not asked for.
            slots, weights = model.slot_attention(encoded, states[-1], 1, slot_mask)
            states.append(slots)
            attention.append(weights)
        found[name] = (jnp.stack(states, 1), jnp.stack(attention, 1))
    return found


class Observer:
    """A model of a config as two compiled functions; weights are given in each call.

    Args:
        config: a whole one.
    """

    def __init__(self, config: ConfigDict):
        model = build_shapes(config.model, image_size_of(config))  # the arrays are given
        self._backend = backend_of(jax.local_devices()[0])
        definition, _, _ = split(model, config.dtype, self._backend)
        slot_size = config.model.slot_attention.slot_size
        self.grid = model.backbone.grid

        def look(params: Parameters, batch: Batch, key: Array):
            model = definition.merge(params, {}, differentiated=False)
            boxes, slot_mask = batch["boxes"], batch["slot_mask"]
            draws = sample_evaluation_draws(key, *slot_mask.shape, slot_size)
            features = model.extract(batch["video"])
            outputs = model(features, draws, boxes, slot_mask)
            way = iterations_of_first_frame(
                model, model.projection(features[:, 0]), draws, boxes[:, 0], slot_mask
            )
            way = jax.tree.map(lambda x: x.astype(jnp.float32), way)  # whatever it computes in
            return outputs["slots"], outputs["decoder_attention"], way

        self._look = jax.jit(at_precision(look, config))

    def __call__(self, params: Parameters, batch: Batch, key: Array) -> dict[str, list]:
        """Slots, masks and the way to the first frame's slots, of each sample of a batch, in host memory.

        Returns:
            slots (B,T,N,D), masks (B,T,H,W), states and attention as in `Clip` with a batch axis first.
        """
        seen = {name: batch[name] for name in ("video", "boxes", "slot_mask")}
        slots, decoder_attention, way = self._look(params, seen, key)
        size = tuple(batch["segmentations"].shape[-2:])
        masks = masks_from_attention(
            decoder_attention, self.grid, size, batch["slot_mask"], backend=self._backend
        )
        found = {"slots": np.asarray(slots), "masks": np.asarray(masks)}
        found["states"] = {name: np.asarray(states) for name, (states, _) in way.items()}
        found["attention"] = {
            name: np.asarray(x).reshape(*x.shape[:-1], *self.grid) for name, (_, x) in way.items()
        }
        return found


def clips(
    look: Callable[[Batch, Array], dict],
    batches: Iterator[Batch],
    seed: int,
    wanted: Collection[int],
) -> dict[int, Clip]:
    """Those samples of a split, by number; batches without any of them are not computed.

    Args:
        look: an `Observer` with its weights.
        batches: of the whole split from its beginning, as it was scored.
        seed: of the evaluation; queries, and so masks, are those that were scored.
    """
    found, first = {}, 0
    for i, batch in enumerate(batches):
        rows = scored(batch)
        here = {first + place: int(b) for place, b in enumerate(rows) if first + place in wanted}
        first += len(rows)
        if not here:
            continue
        seen = look(batch, jax.random.fold_in(jax.random.key(seed), i))
        for number, b in here.items():
            length = num_frames_of(batch, b)
            found[number] = Clip(
                number,
                batch["video"][b][:length],
                batch["segmentations"][b][:length],
                seen["masks"][b][:length],
                seen["slots"][b][:length],
                batch["slot_mask"][b],
                {name: x[b] for name, x in seen["states"].items()},
                {name: x[b] for name, x in seen["attention"].items()},
            )
        if len(found) == len(wanted):
            break
    return found
