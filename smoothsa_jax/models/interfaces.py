"""The parts of a model and what passes between them. Read this page first.

    frames -> Encoder -> features -> projection -> tokens
    tokens -> Initializer -> queries -> Aggregator -> slots                     (first frame)
    slots -> Transition -> queries -> Aggregator -> slots                       (every later frame)
    slots -> Decoder -> prediction and masks;  Target -> what the prediction should be

A system is a choice of parts in a config: `model.encoder`, `model.initializer` and so on, each with
a `name` from the tables in `build.py` or a `"package.module:Class"` of your own. `SlotModel` joins
them. Every part is an `nnx.Module`. Its constructor takes sizes by position (`build.py` passes
them), then settings by keyword (the config's keys), then `rngs`.

Three rules hold for every part:

* Samples never meet inside a part. The training step runs parts on slices of a batch and on
  several devices; what needs the whole batch is a loss.
* A masked slot changes nothing: with a slot masked, the others come out as if it were not there.
* Random numbers come in as `draws`. A part that needs some has `draw(keys, sizes, training)`, which
  returns a tree of arrays with a leading batch axis, or None where nothing is random. `SlotModel`
  collects the draws by part, so a test can replace any of them.

A setting that changes with the training step is listed in the class attribute `scheduled`. The
config then holds a number or a schedule, and the part gets the step's value in `scheduled`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Bool, Float

Draws = Any  # a tree of arrays (B, ...), or None
Scheduled = Mapping[str, Any]  # the values of a step's schedules, by setting


class Sizes(NamedTuple):
    """What a part needs to know to draw random numbers for a batch."""

    batch: int
    frames: int
    slots: int


class Encoder(Protocol):
    """Frames to features, each frame on its own. Frozen or trained: `weights` in the config says.

    Attributes:
        grid: (h, w) of its tokens.
        width: C, the width of its features.
    """

    grid: tuple[int, int]
    width: int

    def __call__(self, frames: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B M C"]]:
        """Return named outputs of normalized frames, tokens row by row: `features`, and whatever
        else a target asks for, such as `keys`. An encoder of scenes also takes `cameras`."""


class Initializer(Protocol):
    """Where the first frame's queries come from.

    Attributes:
        starts_from_boxes: whether it needs a box for each slot.
    """

    starts_from_boxes: bool

    def __call__(
        self,
        tokens: Float[Array, "B M C"],
        boxes: Float[Array, "B N 4"] | None,
        slot_mask: Bool[Array, "B N"] | None,
        draws: Draws,
        scheduled: Scheduled,
    ) -> tuple[Float[Array, "B N D"], dict[str, Array]]:
        """Return the queries, and named extras for losses and reports, such as `warm_queries`."""

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Draws: ...


class Aggregated(NamedTuple):
    """What an aggregator makes of a frame.

    Attributes:
        slots: after the last iteration or layer.
        attention: of every iteration, a softmax over slots; float32.
        states: the slots after every iteration.
        slot_mask: the slots that are in use; an aggregator that drops some narrows it.
    """

    slots: Float[Array, "B N D"]
    attention: Float[Array, "I B N M"]
    states: Float[Array, "I B N D"]
    slot_mask: Bool[Array, "B N"] | None


class Aggregator(Protocol):
    """Queries to slots, by looking at a frame's tokens."""

    def prepare(self, tokens: Float[Array, "*batch M C"]) -> Any:
        """Return what depends on the tokens alone, computed for all frames of a clip at once."""

    def __call__(
        self,
        prepared: Any,
        queries: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        draws: Draws,
        first: bool,
    ) -> Aggregated:
        """Aggregate one frame. `first` (static) tells whether it is the first of its clip."""

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Draws: ...


class Transition(Protocol):
    """The slots of past frames to the queries of the next one; runs inside a scan over frames."""

    def prepare(self, tokens: Float[Array, "B T M C"], draws: Draws) -> Any:
        """Return what depends on tokens and draws alone: a tree of (B, T-1, ...), one entry for
        each later frame."""

    def start(self, slots: Float[Array, "B N D"], draws: Draws) -> Any:
        """Return the memory before the second frame: a tree of arrays, or None. `slots` are those
        of the first frame."""

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        memory: Any,
        prepared: Any,
        slot_mask: Bool[Array, "B N"] | None,
    ) -> tuple[Float[Array, "B N D"], Any]:
        """Return the next frame's queries and the new memory.

        Args:
            slots: of the frame before.
            memory: what `start` or the last call returned.
            prepared: the frame's entry of `prepare`.
            slot_mask: true = valid.
        """

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Draws: ...


class Decoder(Protocol):
    """Slots to the prediction of a target, each frame on its own.

    Attributes:
        remat: whether layers are computed again in the backward pass.
    """

    remat: bool

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        given: Mapping[str, Array],
        draws: Draws,
    ) -> tuple[Array, Float[Array, "B N h w"] | None]:
        """Return the prediction, and masks on the decoder's own grid, which sum to one over slots.

        Args:
            given: what a decoder may see of the target, by name; `target` is the target itself.
        """

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Draws:
        """Return draws of shape (B, T, ...): frames are folded into the batch afterwards."""


class Target(Protocol):
    """What the decoder has to predict: a constant of the step, without parameters.

    Attributes:
        width: channels of the prediction.
    """

    width: int

    def __call__(self, batch: Mapping[str, Array], constants: Mapping[str, Array]) -> Array:
        """Return the target of a batch.

        Args:
            batch: the samples.
            constants: what frozen models computed, by name; `features` (B,T,M,C) among them.
        """


class Loss(Protocol):
    """A loss term. Its settings are config: `losses.slot_contrast = {"weight": 0.5, ...}`.

    Attributes:
        reads: names of the outputs that it needs.
        num_frames: how many frames of a clip it compares; may be absent: 1.
    """

    reads: tuple[str, ...]

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        """Return the unweighted term. It sees the whole batch."""
