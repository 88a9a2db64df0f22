"""Interfaces of the parts of a model, and the data that passes between them. Read this first.

    frames -> Encoder -> features -> projection -> tokens
    tokens -> Initializer -> queries -> Aggregator -> slots                     (first frame)
    slots -> Transition -> queries -> Aggregator -> slots                       (every later frame)
    slots -> Pruning -> fewer slots (optional) -> Aggregator -> slots           (first frame)
    slots -> Decoder -> prediction and masks;  Target -> what the decoder should predict
    pixels or features -> Tokenizer -> tokens, which a decoder may predict
    slots of past frames -> Rollouter -> slots of the frames that follow

A system is a choice of parts in a config: `model.encoder`, `model.initializer` and so on, each with
a `name` from the tables in `build.py` or a `"package.module:Class"` of your own. `SlotModel` joins
them. Every part is an `nnx.Module`. Its constructor takes sizes by position (`build.py` passes
them), then settings by keyword (the config's keys), then `rngs`.

Three rules hold for every part:

* Samples do not interact inside a part. The training step runs parts on slices of a batch and on
  several devices. Only a loss sees the whole batch.
* A masked slot does not affect the others: their values are as if it did not exist.
* Random numbers come in as `draws`. A part that needs them has `draw(keys, sizes, training)`, which
  returns a tree of arrays with a leading batch axis, or None if nothing is random. `SlotModel`
  collects the draws by part, so a test can replace any of them.

A setting that changes with the training step is listed in the class attribute `scheduled`. The
config then holds a number or a schedule, and a call gets the current values by the keyword
`scheduled`: {} at evaluation. An initializer and a pruning always get it; an aggregator, a
transition or a decoder only if it lists such settings.

A part whose arrays a training step rewrites without the optimizer has buffers: see `buffers.py`.

An encoder, a target or a loss lists in its class attribute `batch_reads` what it reads of a batch
besides pixels, boxes and slot mask, for example `("depth",)`.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Bool, Float, Int

NEXT_FRAME = "next_frame_logits"  # an output of the model; see `decoders/logits.py`
TOKEN_LOSS = "token_loss"  # another, of decoders of tokens: (B,T,M), cross-entropy of each token
# What a decoder may be given of its target and of a tokenizer's codes, where it is there.
GIVEN = ("target", "tokens", "codes", "noisy", "time")
Draws = Any  # a tree of arrays (B, ...), or None
Scheduled = Mapping[str, Any]  # the values of schedules at a step, by setting


class Sizes(NamedTuple):
    """Sizes of a batch, from which a part draws random numbers.

    Attributes:
        batch: B, number of samples.
        frames: T, frames of each clip.
        slots: N, slots of each frame.
    """

    batch: int
    frames: int
    slots: int


class Encoder(Protocol):
    """A part that turns frames into features, each frame on its own.

    An encoder of scenes sees all frames at once instead, as the views (B,V,H,W,3) of one scene with
    their cameras (B,V,4,3), and turns them into one set of tokens: those of a video of one frame.

    `weights` in the config determines whether it is frozen or trained.

    Sizes of the constructor: image_size (H, W).

    Attributes:
        grid: (h, w) of its tokens; of a scene, those of each view.
        width: C, the width of its features.
        of_scenes: whether it is an encoder of scenes; may be absent: no.
        extras: outputs besides `features` that it computes where a loss reads them, such as `keys`;
            may be absent: none. An encoder that has some takes the keyword `also`.
        pixels: the range of its input, see `encoders/pixels.py`; may be absent: "imagenet".
    """

    grid: tuple[int, int]
    width: int

    def __call__(self, frames: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B M C"]]:
        """Encode normalized frames.

        An encoder of scenes takes pixels from 0 to 1, and `cameras`. With `extras`, it takes
        `also`, the names of those to compute.

        Returns:
            Named outputs with tokens in row-major order: `features`, and what `also` names.
        """


class Projection(Protocol):
    """A part that turns features into tokens, each on its own or all of a frame together.

    Sizes of the constructor: width (of the features), and, by keyword for a class that takes it,
    slot_size (D).

    Attributes:
        width: C, the width of the tokens.
    """

    width: int

    def __call__(self, features: Float[Array, "*B M F"]) -> Float[Array, "*B M C"]:
        """Return the tokens.

        A projection with random numbers has `draw`, and in training takes what it returned, (B, T,
        ...), as its second argument.
        """


class Initializer(Protocol):
    """A part that makes the first frame's queries.

    Sizes of the constructor: width (C, of the tokens), slot_size (D), num_slots (N).

    Attributes:
        starts_from_boxes: whether it needs a box for each slot.
        any_number: whether it can make any number of queries, not only N.
    """

    starts_from_boxes: bool
    any_number: bool

    def __call__(
        self,
        tokens: Float[Array, "B M C"],
        boxes: Float[Array, "B N 4"] | None,
        slot_mask: Bool[Array, "B N"] | None,
        draws: Draws,
        scheduled: Scheduled,
    ) -> tuple[Float[Array, "B N D"], dict[str, Array]]:
        """Return the queries, and named extras for losses and reports, such as `warm_queries`.

        Args:
            tokens: the first frame's tokens.
            boxes: the first frame's boxes: normalized left, top, right, bottom.
            slot_mask: true = valid.
            draws: what `draw` returned.
            scheduled: the current values of the part's schedules.
        """

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Draws: ...


class Aggregated(NamedTuple):
    """What an aggregator makes of a frame.

    Attributes:
        slots: the slots after the last iteration or layer.
        attention: the attention of every iteration, a softmax over slots; float32.
        states: the slots after every iteration.
        slot_mask: the slots in use; an aggregator that drops slots on a first frame masks them, and
            later frames keep that mask.
        extras: named outputs for losses, (B, ...); those of the first frame are kept, and of all
            frames those that the aggregator names in `of_frames`, where they are there.
    """

    slots: Float[Array, "B N D"]
    attention: Float[Array, "I B N M"]
    states: Float[Array, "I B N D"]
    slot_mask: Bool[Array, "B N"] | None
    extras: Mapping[str, Array] = MappingProxyType({})


class Aggregator(Protocol):
    """A part that turns queries into slots, by looking at a frame's tokens.

    Sizes of the constructor: width (C, of the tokens), slot_size (D). Its draws are (B, T, ...): a
    call gets those of its frame.

    Attributes:
        any_iterations: whether a call can be asked for any number of `iterations`; may be absent:
            true.
        iterates: whether that number matters; may be absent: true.
        of_frames: names of extras (B, ...) that are outputs (B,T, ...), of every frame; may be
            absent: none. Floats become float32. One that runs a number of iterations of its own for
            each sample has `iterations` (B,) int32 among them.
    """

    def prepare(self, tokens: Float[Array, "*batch M C"]) -> Any:
        """Compute what depends on the tokens alone, for all frames of a clip at once."""

    def __call__(
        self,
        prepared: Any,
        queries: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        draws: Draws,
        first: bool,
        iterations: int | None = None,
    ) -> Aggregated:
        """Aggregate one frame.

        Args:
            prepared: what `prepare` returned for this frame.
            queries: where the slots start.
            slot_mask: true = valid.
            draws: what `draw` returned.
            first: whether this is the first frame of its clip; static.
            iterations: how many iterations, in place of the setting; None: as the setting says. A
                class without this argument cannot be used with pruning or `eval.iterations`.
        """

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Draws: ...


class Pruning(Protocol):
    """An optional part that finds the redundant slots of a frame, without random numbers.

    The aggregator then runs once more without them.

    Attributes:
        restart: where that aggregation starts: from the "slots" that stay, or from their "queries".
        iterations: J, its number of iterations.
    """

    restart: str
    iterations: int

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        attention: Float[Array, "B N M"],
        slot_mask: Bool[Array, "B N"] | None,
        scheduled: Scheduled,
    ) -> Int[Array, "B N"]:
        """Return for each slot the one that has its place: itself if it stays.

        Args:
            slots: the slots of the first aggregation; a constant.
            attention: of its last iteration; a constant.
            slot_mask: true = valid. At least one valid slot stays.
            scheduled: the current values of the part's schedules.
        """


class Transition(Protocol):
    """A part that turns slots of past frames into queries of the next, in a scan over frames.

    Sizes of the constructor: width (C, of the tokens), slot_size (D).
    """

    def prepare(self, tokens: Float[Array, "B T M C"], draws: Draws) -> Any:
        """Compute what depends on tokens and draws alone.

        Returns:
            A tree of (B, T-1, ...), with one entry for each frame after the first.
        """

    def start(self, slots: Float[Array, "B N D"], draws: Draws) -> Any:
        """Return the memory before the second frame: a tree of arrays, or None.

        Args:
            slots: slots of the first frame.
            draws: what `draw` returned.
        """

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        memory: Any,
        prepared: Any,
        slot_mask: Bool[Array, "B N"] | None,
    ) -> tuple[Float[Array, "B N D"], Any]:
        """Return the next frame's queries and the new memory.

        Args:
            slots: slots of the previous frame.
            memory: what `start` or the previous call returned.
            prepared: the frame's entry of `prepare`.
            slot_mask: true = valid.
        """

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Draws: ...


class Decoder(Protocol):
    """A part that predicts a target from slots, each frame on its own.

    Sizes of the constructor: grid (h, w) and width (C, channels) of the target, slot_size (D).

    Attributes:
        remat: whether the backward pass recomputes layers.
        logits: which logits over the next frame's patches the prediction has; see
            `decoders/logits.py`. May be absent: none.
        of_rays: whether it predicts the rays of a scene, with one row of them as its grid; see
            `decoders/rays.py`. May be absent: no.
        exact: names of what is given that stays float32 in a model of bfloat16; may be absent.
        needs: names of what must be given; where it is not, as at inference, nothing is decoded.
            May be absent: none.

    A decoder of a tokenizer's codes has one more method, `draw_codes(slots, slot_mask, codes_of,
    key, steps)`, which returns the codes (B,M,D) of a picture of these slots: `codes_of` returns
    the codes of tokens, `key` is that of its noise, the same for every sample, and `steps` how
    often it runs, None for as often as it was published with. What it does not need, it ignores.
    """

    remat: bool

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        given: Mapping[str, Array],
        draws: Draws,
    ) -> tuple[Array | dict[str, Array], Float[Array, "B N h w"] | None]:
        """Return the prediction, and masks on the decoder's own grid, which sum to one over slots.

        A decoder with more outputs returns all of them by name, with `prediction` among them; one
        whose slots compete in the aggregator alone has no masks, None.

        Args:
            slots: the slots of each frame.
            slot_mask: true = valid.
            given: what a decoder may see of the target, by name; `target` is the target itself, and
                `tokens` (B,M) and `codes` (B,M,E) are those of a tokenizer.
            draws: what `draw` returned, with frames folded into the batch.
        """

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Draws:
        """Return draws of shape (B, T, ...): frames are folded into the batch afterwards."""


class Target(Protocol):
    """The decoder's target: constants of the step, without parameters.

    Sizes of the constructor: the encoder, image_size (H, W).

    Attributes:
        width: number of channels of the prediction.
        grid: (h, w) of the prediction; may be absent: that of the encoder.
        parts: name -> channels of the prediction, of several targets; may be absent: none.
        of_tokenizer: whether it is made of tokens or codes; may be absent: no.
    """

    width: int

    def __call__(
        self, batch: Mapping[str, Array], constants: Mapping[str, Array], draws: Draws
    ) -> dict[str, Array]:
        """Return named targets (B, T, ...) of a batch; `target` is what the decoder may see.

        A target that reads more of a batch than pixels returns nothing where that is absent, as
        at inference.

        Args:
            batch: the samples.
            constants: outputs of frozen models, by name. `features` (B,T,M,C) are the trained
                model's own, where its encoder is frozen; a companion's have its name in front, as
                in `teacher.features`.
            draws: what `draw` returned.
        """

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Draws: ...


class Quantized(NamedTuple):
    """What a tokenizer's quantizer chooses for latents.

    Attributes:
        tokens: the number of the chosen code.
        codes: these codes.
        mixed: what the decoder reads, with the gradient of the latents straight through; None: the
            codes themselves, without any.
        extras: named outputs for losses, (B, ...).
    """

    tokens: Int[Array, "B M"]
    codes: Float[Array, "B M D"]
    mixed: Float[Array, "B M D"] | None = None
    extras: Mapping[str, Array] = MappingProxyType({})


class Tokenizer(Protocol):
    """A part that turns pictures, or features of them, into tokens, and codes into pictures.

    Frames are folded into the batch. Positions are in row-major order.

    Sizes of the constructor: image_size (H, W), and of the encoder grid (h, w) and width (C); these
    two are None for a tokenizer that reads pixels, which ignores them.

    Attributes:
        grid: (h, w) of its tokens; M = h * w.
        width: D, the width of a code.
        vocabulary: V, the number of codes.
        reads: "features" or "pixels".
        decodes: whether it has a decoder; may be absent: yes.
        pixels: the range of the pixels that it reads and decodes, see `encoders/pixels.py`; may be
            absent: "imagenet".
        scheduled: its settings that change with the step. A frozen tokenizer has their last values.
    """

    grid: tuple[int, int]
    width: int
    vocabulary: int
    reads: str

    def encode(self, x: Float[Array, "B H W 3"] | Float[Array, "B M C"]) -> Float[Array, "B h w D"]:
        """Return the latents of normalized pixels or features, as `reads` says."""

    def quantize(
        self, latents: Float[Array, "B h w D"], draws: Draws, scheduled: Scheduled
    ) -> Quantized:
        """Choose a code for each latent.

        Args:
            latents: what `encode` returned.
            draws: what `draw` returned, with frames folded into the batch; None: the nearest codes.
            scheduled: the current values of the part's schedules; {} at evaluation.
        """

    def codes(self, tokens: Int[Array, "B M"]) -> Float[Array, "B M D"]:
        """Return the codes of tokens."""

    def decode(self, codes: Float[Array, "B M D"]) -> Float[Array, "B H' W' 3"]:
        """Return pixels in the range `pixels`; they may be smaller than the frames."""

    def target(self, frames: Float[Array, "B H W 3"]) -> Float[Array, "B H' W' 3"]:
        """Return what `decode` should give: normalized frames, at its size."""

    def __call__(self, x: Array, draws: Draws, scheduled: Scheduled) -> dict[str, Array]:
        """Encode, quantize and decode, to train it.

        Returns:
            Named outputs: `prediction` (B,H',W',3), `latents` and `codes` (B,M,D), `tokens` (B,M),
            and more for losses.
        """

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Draws:
        """Return draws of shape (B, T, ...), or None."""


class Rollouter(Protocol):
    """A part that continues the slots of a video, which a frozen slot model found.

    Sizes of the constructor: num_slots (N), slot_size (D).

    Attributes:
        window: the most past frames that it sees.
        history: the fewest past frames that it continues.
        every: of a video, it sees each so-many-th frame.
    """

    window: int
    history: int
    every: int

    def __call__(
        self,
        past: Float[Array, "B H N D"],
        num_steps: int,
        slot_mask: Bool[Array, "B N"] | None,
        draws: Draws,
    ) -> Float[Array, "B K N D"]:
        """Return the slots of the next frames that it sees.

        Args:
            past: slots of past frames, oldest first; of more than `window`, the last.
            num_steps: K, number of frames; static.
            slot_mask: true = valid.
            draws: what `draw` returned.
        """

    def scaled(self, slots: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Return the slots as losses compare them."""

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Draws: ...


class Loss(Protocol):
    """A loss term, configured as in `losses.slot_contrast = {"weight": 0.5, ...}`.

    Attributes:
        reads: names of the outputs that it needs.
        num_frames: how many frames of a clip it compares; may be absent: 1.
        advice: name of an output that it needs -> what to do if the model lacks it; may be absent.
    """

    reads: tuple[str, ...]

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        """Return the unweighted term of the whole batch.

        Args:
            outputs: outputs of the model and of the frozen models, by name.
            batch: the samples.
            scheduled: the current values of the term's schedules.
        """
