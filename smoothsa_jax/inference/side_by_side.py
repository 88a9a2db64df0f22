"""Many videos of one model side by side, a frame of each at a time.

A place holds one video after the other. Each video comes out as `Segmenter.stream` finds it alone:
its programs run under `jax.vmap`, and every video starts from the random numbers of the same seed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.models.anew import feature_distance
from smoothsa_jax.models.asked import as_scheduled
from smoothsa_jax.models.parameters import Parameters


class Frames(NamedTuple):
    """What a frame of each place holds.

    Attributes:
        slots: the slots.
        masks: their shares of each place of the grid, not yet at the picture's size.
        slot_mask: the slots in use.
        cold: the frames that started from queries.
    """

    slots: Float[np.ndarray, "P N D"]
    masks: Float[np.ndarray, "P N h w"]
    slot_mask: Bool[np.ndarray, "P N"]
    cold: Bool[np.ndarray, " P"]


class SideBySide:
    """The places. Three programs are compiled, whatever the number of videos and their lengths.

    Args:
        model: any model whose slots start from Gaussian queries.
        places: P, how many videos run side by side.
        num_slots: as for `Segmenter.stream`; so are all others.
        seed: seed of the random queries.
        shot_cuts: threshold of shot cuts.
        cut_signal: what tells cuts.
        requery: when a slot starts anew by itself.
        iterations: on each frame.
        pruning: the arguments that begin with "prune".

    Raises:
        UserError: as for `Segmenter.stream`.
    """

    def __init__(
        self,
        model: Segmenter,
        places: int,
        *,
        num_slots: int | None = None,
        seed: int = 0,
        shot_cuts: float | None = None,
        cut_signal: str = "features",
        requery: float | None = None,
        iterations: int | tuple[int, int] | None = None,
        pruning: Mapping[str, Any] | None = None,
    ):
        anew = model.chosen_anew(shot_cuts, cut_signal, requery)
        self._watched = anew is not None and (anew.signal == "error" or anew.requery is not None)
        self._cuts = None if self._watched else shot_cuts
        asked = as_scheduled(
            model.chosen_pruning(**(pruning or {})),
            model.chosen_iterations(iterations),
            anew if self._watched else None,
        )
        self._follows, self._places = model.follows, places
        number = model.chosen_num_slots(num_slots)
        used, key = np.ones((1, number), bool), jax.random.key(seed)
        programs, definition = model.programs, model.definition
        self._params, self._masks = programs.params, programs.masks
        self._used = np.ones((places, number), bool)
        self._carry: Any = None
        self._memory: Any = None
        self._features: Any = None

        def first(params: Parameters, constants: Any) -> Any:
            outputs, carry = programs.first(params, constants, None, used, key, asked)
            transition = definition.merge(params, differentiated=False).transition
            memory = transition.start(carry.slots, None) if model.follows else None
            return self._read(outputs), carry, memory

        def following(params: Parameters, constants: Any, carry: Any, memory: Any) -> Any:
            outputs, carry, memory = programs.following(params, constants, carry, memory, asked)
            return self._read(outputs), carry, memory

        def begun(fresh: Any, new: Any, old: Any) -> Any:
            where = lambda a, b: jnp.where(fresh.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
            return jax.tree.map(where, new, old)

        self._constants = jax.jit(jax.vmap(programs.constants, in_axes=(None, 0)))
        self._first = jax.jit(jax.vmap(first, in_axes=(None, 0)))
        self._following = jax.jit(jax.vmap(following, in_axes=(None, 0, 0, 0)))
        self._begun, self._distance = jax.jit(begun), jax.jit(feature_distance)

    def _read(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        found = {"slots": outputs["slots"], "masks": outputs[self._masks]}
        more = ("slot_mask", *["cold"] * self._watched)
        return found | {name: outputs[name] for name in more if name in outputs}

    def __call__(self, frames: UInt8[np.ndarray, "P H W 3"], begins: Bool[np.ndarray, " P"]):
        """Segment the next frame of each place.

        Args:
            frames: of the model's size. Those of places without a video are ignored by the caller.
            begins: the places whose frame is the first one of a video.

        Returns:
            Its `Frames`.
        """
        constants = self._constants(self._params, frames)
        fresh = np.array(begins) | (not self._follows)
        if self._follows and self._cuts is not None:
            features = constants["features"][:, 0, 0]
            if self._features is not None:
                fresh |= np.asarray(self._distance(self._features, features)) > self._cuts
            self._features = features
        if self._carry is None:
            fresh[:] = True  # there is nothing to follow yet
        found: dict[str, np.ndarray] = {}
        cold = fresh.copy()
        if fresh.any():
            new, carry, memory = self._first(self._params, constants)
            found = jax.device_get(new)
            self._note_used(found, fresh)
        if not fresh.all():
            outputs, *state = self._following(self._params, constants, self._carry, self._memory)
            later = jax.device_get(outputs)
            self._note_used(later, ~fresh)
            if self._watched:
                cold |= ~fresh & later["cold"].reshape(-1)
            if fresh.any():
                state = self._begun(fresh, (carry, memory), tuple(state))
                for name in ("slots", "masks"):
                    where = fresh.reshape(-1, *[1] * (later[name].ndim - 1))
                    later[name] = np.where(where, found[name], later[name])
            found, (carry, memory) = later, state
        if self._follows:
            self._carry, self._memory = carry, memory
        return Frames(
            slots=_of_places(found["slots"], np.float32),
            masks=_of_places(found["masks"], np.float32),
            slot_mask=self._used.copy(),
            cold=cold,
        )

    def _note_used(self, found: Mapping[str, np.ndarray], where: Bool[np.ndarray, " P"]) -> None:
        """Keep the slots in use, which some models tell of the first frame alone."""
        if "slot_mask" in found:
            told = np.asarray(found["slot_mask"]).reshape(self._used.shape)
            self._used = np.where(where[:, None], told, self._used)


def _of_places(x: np.ndarray, dtype: type) -> np.ndarray:
    """Drop the two axes of length one, of a batch and of its frames."""
    return np.asarray(x, dtype)[:, 0, 0]
