"""Run a model on samples of a split, and record each iteration on the first frame."""

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
from smoothsa_jax.inputs.resize import resize_labels
from smoothsa_jax.models.asked import asked_iterations, of_evaluation
from smoothsa_jax.models.backend import backend_of
from smoothsa_jax.models.parameters import Parameters, frozen_patterns, split
from smoothsa_jax.models.slot_model import SlotModel
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.task import MODEL, run_task, sizes_of
from smoothsa_jax.training.evaluating import slots_of

# Where the first frame starts: from the warm queries of a model with a warmer, or from the
# cold-start samples.
COLD, WARM = "cold", "warm"


@dataclasses.dataclass(frozen=True)
class Clip:
    """One sample and what the model found in it.

    Attributes:
        number: index in the split, counted from 0, as in `scores.csv`.
        video: the frames, RGB.
        labels: the true segment of each pixel; None: the split has no labels.
        masks: the slot of each pixel.
        slots: the slots of each frame.
        slot_mask: the slots that are valid, and left by pruning in any frame.
        states: COLD or WARM -> the queries, then the slots after each iteration on the first frame.
        attention: COLD or WARM -> the attention of each iteration, a softmax over slots.
    """

    number: int
    video: Int[np.ndarray, "T H W 3"]
    labels: Int[np.ndarray, "T H W"] | None
    masks: Int[np.ndarray, "T H W"]
    slots: Float[np.ndarray, "T N D"]
    slot_mask: Bool[np.ndarray, "N"]
    states: Mapping[str, Float[np.ndarray, "I+1 N D"]]
    attention: Mapping[str, Float[np.ndarray, "I N h w"]]


def iterations_of_first_frame(
    model: SlotModel,
    outputs: Mapping[str, Array],
    slot_mask: Bool[Array, "B N"] | None,
    iterations: int | None = None,
) -> dict[str, tuple[Float[Array, "B I+1 N D"], Float[Array, "B I N h w"]]]:
    """Return the states of a first frame, iteration by iteration. A pure function.

    Args:
        model: the model that computed the outputs.
        outputs: all outputs of an evaluation forward pass.
        slot_mask: true = valid.
        iterations: how many there were; None: as the aggregator's settings say.

    Returns:
        Start -> the queries followed by the slots after each iteration, and the attention of each
        iteration. The starts are WARM, as the model runs, and COLD, from the cold-start samples
        without the warmer; a model without a warmer has COLD only.
    """
    as_run = outputs["first_states"], outputs["first_attention"]
    if "warm_queries" not in outputs:
        return {COLD: (_with_queries(outputs["queries"], as_run[0]), as_run[1])}
    cold = outputs["cold_queries"]
    prepared = model.aggregator.prepare(outputs["first_tokens"].astype(model.dtype))
    number = {} if iterations is None else {"iterations": iterations}
    inputs = prepared, cold.astype(model.dtype), slot_mask, None
    found = model.aggregator(*inputs, first=True, **number)
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
    """The model of a config as a compiled function that takes the weights in each call.

    Args:
        config: a whole config of the task discovery.
    """

    def __init__(self, config: ConfigDict):
        task = build_task(config)
        model = task.build(shapes_only=True)  # the arrays are given
        self._backend = backend_of(jax.local_devices()[0])
        patterns = frozen_patterns(config.weights)
        definition, _, _ = split(model, config.dtype, self._backend, patterns)
        self.num_slots = slots_of(config, task)
        self._masks, self._inputs = SOURCES[config.eval.masks], task.inputs
        self._score_at = config.eval.score_at

        asked = of_evaluation(config.eval)

        def look(params: Parameters, batch: Batch, key: Array):
            models = {MODEL: definition.merge(params, differentiated=False)}
            draws = task.draw(models, key, sizes_of(batch), False)
            outputs = run_task(task, models, batch, draws, scheduled=asked)
            number = asked_iterations(asked, first=True)
            way = iterations_of_first_frame(models[MODEL], outputs, batch["slot_mask"], **number)
            way = jax.tree.map(lambda x: x.astype(jnp.float32), way)  # the model may be bfloat16
            return outputs["slots"], outputs[self._masks], outputs["slot_mask"], way

        self._look = jax.jit(at_precision(look, config))

    def __call__(self, params: Parameters, batch: Batch, key: Array) -> dict[str, list]:
        """Compute slots, masks and the first frame's iterations of a batch, in host memory.

        Args:
            params: all arrays of the model.
            batch: the samples.
            key: random key of the queries.

        Returns:
            slots (B,T,N,D), masks (B,T,H,W) of the size at which they are scored, slot_mask (B,N),
            and states and attention as in `Clip` with a leading batch axis.
        """
        seen = {name: batch[name] for name in self._inputs if name in batch}
        slots, masks, mask, way = self._look(params, seen, key)
        side = self._score_at
        size = (side, side) if side else tuple(batch["segmentations"].shape[-2:])
        segments = segments_from_masks(masks, size, mask, backend=self._backend)
        return {
            "slots": np.asarray(slots),
            "masks": np.asarray(segments),
            "slot_mask": np.asarray(mask if mask.ndim == 2 else mask.any(axis=1)),
            "states": {name: np.asarray(states) for name, (states, _) in way.items()},
            "attention": {name: np.asarray(x) for name, (_, x) in way.items()},
        }


def clips(
    look: Callable[[Batch, Array], dict],
    batches: Iterator[Batch],
    seed: int,
    wanted: Collection[int],
) -> dict[int, Clip]:
    """Return the wanted samples of a split, by number; skip batches without any of them.

    Args:
        look: an `Observer` with its weights.
        batches: the batches of the whole split, as it was scored.
        seed: the evaluation seed, so that queries and masks are those that were scored.
        wanted: numbers of the samples.
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
            labels = batch["segmentations"][b][:length]
            found[number] = Clip(
                number,
                batch["video"][b][:length],
                labels,
                resize_labels(seen["masks"][b][:length], labels.shape[1:]),
                seen["slots"][b][:length],
                seen["slot_mask"][b],
                {name: x[b] for name, x in seen["states"].items()},
                {name: x[b] for name, x in seen["attention"].items()},
            )
        if len(found) == len(wanted):
            break
    return found
