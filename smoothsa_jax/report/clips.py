"""What a model finds in samples of a split, and on the way there in the first frame."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from smoothsa_jax.devices.compiling import at_precision
from smoothsa_jax.evaluation.masks import SOURCES
from smoothsa_jax.evaluation.split import Batch, num_frames_of, scored
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.models.backend import backend_of
from smoothsa_jax.models.parameters import Parameters, frozen_patterns, split
from smoothsa_jax.models.slot_model import SlotModel
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.task import MODEL, run_task, sizes_of

# What the first frame starts from: the queries that the model runs with, or, where it has a warmer,
# the samples themselves.
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
    model: SlotModel, outputs: Mapping[str, Array], slot_mask: Bool[Array, "B N"] | None
) -> dict[str, tuple[Float[Array, "B I+1 N D"], Float[Array, "B I N h w"]]]:
    """Return what happens in a first frame, iteration by iteration. A pure function.

    Args:
        model: whose outputs these are.
        outputs: all of an evaluation forward.
        slot_mask: true = valid.

    Returns:
        WARM, as the model runs, and COLD, from the samples without the warmer (COLD alone where
        there is no warmer) -> the queries and the slots after each iteration, and its attention.
    """
    as_run = outputs["first_states"], outputs["first_attention"]
    if "warm_queries" not in outputs:
        return {COLD: (_with_queries(outputs["queries"], as_run[0]), as_run[1])}
    cold = outputs["cold_queries"]
    prepared = model.aggregator.prepare(outputs["first_tokens"].astype(model.dtype))
    found = model.aggregator(prepared, cold.astype(model.dtype), slot_mask, None, first=True)
    attention = found.attention.swapaxes(0, 1)
    attention = attention.reshape(*attention.shape[:-1], *model.encoder.grid)
    return {
        COLD: (_with_queries(cold, found.states.swapaxes(0, 1)), attention),
        WARM: (_with_queries(outputs["warm_queries"], as_run[0]), as_run[1]),
    }


def _with_queries(
    queries: Float[Array, "B N D"], states: Float[Array, "B I N D"]
) -> Float[Array, "B I+1 N D"]:
    return jnp.concatenate([queries[:, None].astype(states.dtype), states], axis=1)


class Observer:
    """A model of a config as a compiled function; weights are given in each call.

    Args:
        config: a whole one, of discovery.
    """

    def __init__(self, config: ConfigDict):
        task = build_task(config)
        model = task.build(shapes_only=True)  # the arrays are given
        self._backend = backend_of(jax.local_devices()[0])
        patterns = frozen_patterns(config.weights)
        definition, _, _ = split(model, config.dtype, self._backend, patterns)
        self.num_slots = task.slot_model.num_slots
        self._masks = SOURCES[config.eval.masks]

        def look(params: Parameters, batch: Batch, key: Array):
            models = {MODEL: definition.merge(params, differentiated=False)}
            draws = task.draw(models, key, sizes_of(batch), False)
            outputs = run_task(task, models, batch, draws)
            way = iterations_of_first_frame(models[MODEL], outputs, batch["slot_mask"])
            way = jax.tree.map(lambda x: x.astype(jnp.float32), way)  # whatever it computes in
            return outputs["slots"], outputs[self._masks], way

        self._look = jax.jit(at_precision(look, config))

    def __call__(self, params: Parameters, batch: Batch, key: Array) -> dict[str, list]:
        """Slots, masks and the way to the first frame's slots, of each sample of a batch, in host memory.

        Returns:
            slots (B,T,N,D), masks (B,T,H,W), states and attention as in `Clip` with a batch axis first.
        """
        seen = {name: batch[name] for name in ("video", "boxes", "slot_mask")}
        slots, masks, way = self._look(params, seen, key)
        size = tuple(batch["segmentations"].shape[-2:])
        segments = segments_from_masks(masks, size, batch["slot_mask"], backend=self._backend)
        return {
            "slots": np.asarray(slots),
            "masks": np.asarray(segments),
            "states": {name: np.asarray(states) for name, (states, _) in way.items()},
            "attention": {name: np.asarray(x) for name, (_, x) in way.items()},
        }


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
