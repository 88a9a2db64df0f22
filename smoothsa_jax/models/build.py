"""The tables of parts, and functions that make models from a config."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx
from ml_collections import ConfigDict

from smoothsa_jax.config.values import is_absent
from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.models.aggregators.drawn_queries import DrawnQueries
from smoothsa_jax.models.aggregators.inverted_transformer import (
    InvertedTransformer,
    check_any_iterations,
)
from smoothsa_jax.models.aggregators.metaslot import MetaSlot
from smoothsa_jax.models.aggregators.slot_attention import SlotAttention
from smoothsa_jax.models.aggregators.unchanged import Unchanged
from smoothsa_jax.models.decoders.causal_transformer import CausalTransformerDecoder
from smoothsa_jax.models.decoders.denoising_unet import DenoisingUNet
from smoothsa_jax.models.decoders.mlp_mixture import MLPMixtureDecoder
from smoothsa_jax.models.decoders.permuted_ar import PermutedARDecoder
from smoothsa_jax.models.decoders.random_ar import RandomARDecoder
from smoothsa_jax.models.decoders.rays import (
    RayBroadcastDecoder,
    RayMixerDecoder,
    RayTransformerDecoder,
)
from smoothsa_jax.models.decoders.slot_mixer import SlotMixerDecoder
from smoothsa_jax.models.decoders.spatial_broadcast import SpatialBroadcastDecoder
from smoothsa_jax.models.encoders.colour_fourier import ColourFourier
from smoothsa_jax.models.encoders.conv import Conv
from smoothsa_jax.models.encoders.dinov3 import DINOv3
from smoothsa_jax.models.encoders.resnet import ResNet
from smoothsa_jax.models.encoders.scene import SceneEncoder
from smoothsa_jax.models.encoders.vit import ViT
from smoothsa_jax.models.heads import RecognitionHead
from smoothsa_jax.models.initializers import Boxes, Gaussian, Learned, Tokens, Warmed
from smoothsa_jax.models.interfaces import Aggregator
from smoothsa_jax.models.perceptual import LPIPS, PERCEPTUAL
from smoothsa_jax.models.projections import TransformerProjection
from smoothsa_jax.models.pruning import Redundancy
from smoothsa_jax.models.readouts import Aloe, FramesTransformer, Pairs, ReadoutModel
from smoothsa_jax.models.rollouters import RolloutModel, SlotFormer
from smoothsa_jax.models.slot_model import NoProjection, Projection, SlotModel
from smoothsa_jax.models.targets import (
    Codes,
    Depth,
    DiscreteTokens,
    Features,
    Flow,
    Noise,
    Pixels,
    Several,
)
from smoothsa_jax.models.tokenizer_model import (
    FEATURES,
    PIXELS,
    TOKENIZER,
    TokenizerModel,
    check_reads,
)
from smoothsa_jax.models.tokenizers.dvae import DVAE
from smoothsa_jax.models.tokenizers.vq_features import VQFeatures
from smoothsa_jax.models.tokenizers.vq_pixels import VQPixels
from smoothsa_jax.models.transitions import (
    MLPTransition,
    RandSFQ,
    RecurrentTransformer,
    Transformer,
)
from smoothsa_jax.models.views import Rays
from smoothsa_jax.parts import choose, make, scheduled_settings

# A new part is one line here. The property tests run on every part in these tables.
ENCODERS: dict[str, Callable] = {
    "vit": ViT,
    "dinov3": DINOv3,
    "colour_fourier": ColourFourier,
    "conv": Conv,
    "resnet": ResNet,
    "scene": SceneEncoder,
}
PROJECTIONS: dict[str, Callable] = {
    "mlp": Projection,
    "token_transformer": TransformerProjection,
    "none": NoProjection,
}
INITIALIZERS: dict[str, Callable] = {
    "gaussian": Gaussian,
    "learned": Learned,
    "boxes": Boxes,
    "warmed": Warmed,
    "tokens": Tokens,
}
AGGREGATORS: dict[str, Callable] = {
    "slot_attention": SlotAttention,
    "inverted_transformer": InvertedTransformer,
    "metaslot": MetaSlot,
    "drawn_queries": DrawnQueries,
    "none": Unchanged,
}
TRANSITIONS: dict[str, Callable | None] = {
    "randsfq": RandSFQ,
    "transformer": Transformer,
    "recurrent_transformer": RecurrentTransformer,
    "mlp": MLPTransition,
    "none": None,
}
DECODERS: dict[str, Callable] = {
    "random_ar": RandomARDecoder,
    "permuted_ar": PermutedARDecoder,
    "causal_transformer": CausalTransformerDecoder,
    "mlp_mixture": MLPMixtureDecoder,
    "slot_mixer": SlotMixerDecoder,
    "spatial_broadcast": SpatialBroadcastDecoder,
    "denoising_unet": DenoisingUNet,
    "ray_mixer": RayMixerDecoder,
    "ray_broadcast": RayBroadcastDecoder,
    "ray_transformer": RayTransformerDecoder,
}
TARGETS: dict[str, Callable] = {
    "features": Features,
    "pixels": Pixels,
    "flow": Flow,
    "depth": Depth,
    "several": Several,
    "noise": Noise,
    "tokens": DiscreteTokens,
    "codes": Codes,
    "rays": Rays,
}
PRUNINGS: dict[str, Callable] = {"redundancy": Redundancy}
TOKENIZERS: dict[str, Callable] = {
    "dvae": DVAE,
    "vq_features": VQFeatures,
    "vq_pixels": VQPixels,
}
PARTS = {
    "encoder": ENCODERS,
    "projection": PROJECTIONS,
    "initializer": INITIALIZERS,
    "aggregator": AGGREGATORS,
    "transition": TRANSITIONS,
    "decoder": DECODERS,
    "target": TARGETS,
    "target_encoder": ENCODERS,
    "pruning": PRUNINGS,
    "tokenizer": TOKENIZERS,
}
# A model may do without these, and its config then lacks them.
OPTIONAL = ("target_encoder", "pruning", "tokenizer")
HEADS: dict[str, Callable] = {"recognition_head": RecognitionHead}
ROLLOUTERS: dict[str, Callable] = {"slotformer": SlotFormer}
READOUTS: dict[str, Callable] = {
    "aloe": Aloe,
    "pairs": Pairs,
    "frames_transformer": FramesTransformer,
}
PERCEPTUALS: dict[str, Callable] = {"lpips": LPIPS}
SIZES = ("num_slots", "slot_size")
ROLLOUTER = "rollouter"  # the part of a model of the task `dynamics`
READOUT = "readout"  # the same of the task `answers`


def build_slot_model(
    config: ConfigDict,
    image_size: tuple[int, int],
    seed: int,
    part_seeds: Mapping[str, int] | None = None,
    shapes: frozenset[str] = frozenset(),
) -> SlotModel:
    """Make a freshly initialized model.

    Args:
        config: the `model` part of a config.
        image_size: (H, W) of the frames, in pixels.
        seed: seed of the initial values.
        part_seeds: parts with a seed of their own, so that runs with different seeds share their
            values.
        shapes: parts that get shapes instead of arrays, since their arrays come from elsewhere.

    Raises:
        UserError: a name or setting is unknown, or values do not fit together.
    """
    return _built(config, image_size, nnx.Rngs(seed), part_seeds or {}, shapes)


def _built(
    config: ConfigDict,
    image_size: tuple[int, int],
    rngs: nnx.Rngs,
    own: Mapping[str, int],
    shapes: frozenset[str],
) -> SlotModel:
    """Do what `build_slot_model` does; `own` are its `part_seeds`."""
    _check_keys(config)
    num_slots, slot_size = (_whole(config, key) for key in SIZES)

    def part(name: str, *sizes: Any, **more: Any) -> Any:
        if name not in config:  # an optional part
            return None

        def build(rngs: nnx.Rngs) -> Any:
            return make(f"model.{name}", config[name], PARTS[name], *sizes, **more, rngs=rngs)

        if name in shapes:
            return nnx.eval_shape(lambda: build(_one_key()))
        if name not in own:
            return build(rngs)
        with _on_cpu():
            return build(nnx.Rngs(own[name]))

    # The order determines the values that a seed gives.
    encoder = part("encoder", image_size)
    target_encoder = part("target_encoder", image_size)
    target = part("target", target_encoder or encoder, image_size)
    width = choose_width(config, encoder.width)
    initializer = part("initializer", width, slot_size, num_slots)
    transition = part("transition", width, slot_size)
    decoder = part("decoder", getattr(target, "grid", encoder.grid), target.width, slot_size)
    projection = part("projection", encoder.width, slot_size=slot_size)
    aggregator = part("aggregator", width, slot_size)
    tokenizer = part("tokenizer", image_size, encoder.grid, encoder.width)
    if hasattr(aggregator, "check_num_slots"):
        aggregator.check_num_slots(num_slots)
    pruning = part("pruning")
    if pruning is not None:
        check_prunable(aggregator, config.aggregator.name, pruning.restart)
    return SlotModel(
        encoder,
        projection,
        initializer,
        aggregator,
        transition,
        decoder,
        target,
        pruning,
        target_encoder=target_encoder,
        tokenizer=tokenizer,
        num_slots=num_slots,
        slot_size=slot_size,
    )


def _on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Compute on the CPU, where JAX may use it.

    Devices of different kinds round random values differently. Frozen ones have to be equal on all:
    what is stored on a machine without an accelerator is read on one with.
    """
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # as JAX_PLATFORMS says
        return contextlib.nullcontext()


def check_prunable(aggregator: Aggregator, name: str, restart: str) -> None:
    """Refuse an aggregator that cannot be asked for a number of iterations, as in pruning.

    Args:
        aggregator: the aggregator, with arrays or shapes.
        name: its name in the config.
        restart: of pruning; with "none" or "merge", nothing is aggregated once more.

    Raises:
        UserError: its call has no argument `iterations`, or its layers are a fixed number.
    """
    if restart in ("slots", "queries"):
        check_any_iterations(aggregator, name)
    if "iterations" not in inspect.signature(type(aggregator).__call__).parameters:
        raise UserError(
            f"model.aggregator.name={name!r} cannot aggregate a frame once more with a number of "
            "iterations, as pruning does: give its __call__ the argument `iterations`, or leave "
            "pruning out"
        )


def check_repeatable(aggregator: Aggregator, name: str, key: str, value: Any) -> None:
    """Refuse an aggregator that cannot run another number of iterations than in training.

    Args:
        aggregator: the aggregator, with arrays or shapes.
        name: its name in the config.
        key: of the setting that asks for a number, such as "eval.iterations".
        value: what it asks for.

    Raises:
        UserError: its call has no argument `iterations`, or its layers are a fixed number.
    """
    takes = "iterations" in inspect.signature(type(aggregator).__call__).parameters
    iterates = all(getattr(aggregator, x, True) for x in ("iterates", "any_iterations"))
    if not takes or not iterates:
        raise UserError(
            f"{key} is {value!r}, but model.aggregator.name={name!r} runs a fixed number of "
            "iterations or layers, as it was trained; leave that out"
        )


def choose_width(config: ConfigDict, width: int) -> int:
    """Return the width of the tokens that the projection makes of features of width `width`."""
    given = {"slot_size": _whole(config, "slot_size")}
    build = lambda: make(  # noqa: E731
        "model.projection", config.projection, PROJECTIONS, width, **given, rngs=nnx.Rngs(0)
    )
    return nnx.eval_shape(build).width


def slot_model_shapes(config: ConfigDict, image_size: tuple[int, int]) -> SlotModel:
    """Make the same model with shapes instead of arrays, without computing anything."""
    return nnx.eval_shape(lambda: _built(config, image_size, _one_key(), {}, frozenset()))


def is_slot_model(config: Mapping[str, Any]) -> bool:
    """Tell whether the `model` part of a config is a slot model's."""
    return "num_slots" in config


def is_tokenizer_model(config: Mapping[str, Any]) -> bool:
    """Tell whether the `model` part of a config is that of the task `tokenizer`."""
    return TOKENIZER in config and not is_slot_model(config)


def build_model(
    config: ConfigDict,
    image_size: tuple[int, int],
    seed: int,
    part_seeds: Mapping[str, int] | None = None,
    shapes: frozenset[str] = frozenset(),
    slot_model: ConfigDict | None = None,
) -> SlotModel | TokenizerModel | RolloutModel:
    """Make a slot model, a tokenizer's model, or a rollouter that continues slots of `slot_model`.

    The other arguments are those of `build_slot_model`.
    """
    if ROLLOUTER in config:
        return _rollout_built(config, slot_model, seed)
    build = _tokenizer_built if is_tokenizer_model(config) else _built
    return build(config, image_size, nnx.Rngs(seed), part_seeds or {}, shapes)


def model_shapes(
    config: ConfigDict, image_size: tuple[int, int], slot_model: ConfigDict | None = None
) -> nnx.Module:
    """Make the same model with shapes instead of arrays, without computing anything.

    A companion may also be a model that compares pictures; its arrays always come from files. Or it
    is a rollouter, which continues the slots of `slot_model`.
    """
    if ROLLOUTER in config:
        return nnx.eval_shape(lambda: _rollout_built(config, slot_model, 0))
    if PERCEPTUAL in config:
        path, settings = f"companions.{PERCEPTUAL}.model.{PERCEPTUAL}", config[PERCEPTUAL]
        return nnx.eval_shape(lambda: make(path, settings, PERCEPTUALS, rngs=_one_key()))
    if not is_tokenizer_model(config):
        return slot_model_shapes(config, image_size)
    build = lambda: _tokenizer_built(config, image_size, _one_key(), {}, frozenset())  # noqa: E731
    return nnx.eval_shape(build)


def reads_of_tokenizer(config: Mapping[str, Any]) -> str:
    """Return what a model's tokenizer reads, "features" or "pixels"."""
    name = config[TOKENIZER].get("name")
    reads = getattr(choose(f"model.{TOKENIZER}", name, TOKENIZERS), "reads", None)
    check_reads(name, reads)
    return reads


def _tokenizer_built(
    config: ConfigDict,
    image_size: tuple[int, int],
    rngs: nnx.Rngs,
    own: Mapping[str, int],
    shapes: frozenset[str],
) -> TokenizerModel:
    """Make the model of the task `tokenizer`; the arguments are those of `_built`."""
    reads = reads_of_tokenizer(config)
    known = (TOKENIZER, "encoder") if reads == FEATURES else (TOKENIZER,)
    for key in config:
        if key not in known:
            more = " It reads pixels." if key == "encoder" and reads == PIXELS else ""
            raise UserError(
                f"model.{key} is not a part of a model of the task 'tokenizer' with "
                f"model.tokenizer.name={config[TOKENIZER].name!r}: expected {', '.join(known)}"
                f"{did_you_mean(key, known)}; remove or rename it.{more}"
            )
    encoder = None
    if reads == FEATURES:
        if "encoder" not in config:
            raise UserError(
                f"model.tokenizer.name={config[TOKENIZER].name!r} reads features, but the config "
                "has no model.encoder; add it to the config file"
            )

        def build(rngs: nnx.Rngs) -> Any:
            return make("model.encoder", config.encoder, ENCODERS, image_size, rngs=rngs)

        if "encoder" in shapes:
            encoder = nnx.eval_shape(lambda: build(_one_key()))
        else:
            encoder = build(nnx.Rngs(own["encoder"]) if "encoder" in own else rngs)
        if getattr(encoder, "of_scenes", False):
            raise UserError(
                f"model.encoder.name is {config.encoder.name!r}, an encoder of scenes, which a "
                "tokenizer cannot read; choose another encoder"
            )
    rngs = nnx.Rngs(own[TOKENIZER]) if TOKENIZER in own else rngs
    sizes = (None, None) if encoder is None else (encoder.grid, encoder.width)
    settings, table = config[TOKENIZER], TOKENIZERS
    tokenizer = make(f"model.{TOKENIZER}", settings, table, image_size, *sizes, rngs=rngs)
    return TokenizerModel(encoder, tokenizer)


class _OneKey(nnx.RngStream):
    """A stream that gives one key again and again, for shapes.

    It does not count, which would take most of the time of tracing a model.
    """

    def __call__(self) -> jax.Array:
        return self.key[...]


def _one_key() -> nnx.Rngs:
    rngs = nnx.Rngs(0)
    rngs.default = _OneKey(jax.random.key(0), tag="default")
    return rngs


def build_head(config: ConfigDict, slot_size: int, seed: int) -> nnx.Module:
    """Make a head on slots of width `slot_size`, from the `model` part of a config."""
    return make("model", config, HEADS, slot_size, rngs=nnx.Rngs(seed))


def _rollout_built(config: ConfigDict, slot_model: ConfigDict | None, seed: int) -> RolloutModel:
    if slot_model is None:
        raise UserError(
            "a rollouter needs the slot model whose slots it continues; set "
            "--config.companions.slot_model.source to the folder of its run"
        )
    return build_rollout_model(config, slot_model.num_slots, slot_model.slot_size, seed)


def _refuse_missing(config: ConfigDict, part: str, task: str) -> None:
    if part not in config:
        raise UserError(
            f"the config has no model.{part}, which the task {task!r} trains; add it to the "
            "config file"
        )


def build_rollout_model(
    config: ConfigDict, num_slots: int, slot_size: int, seed: int
) -> RolloutModel:
    """Make the model of the task `dynamics`.

    Args:
        config: the `model` part of a config.
        num_slots: N of the slot model.
        slot_size: D of the slot model.
        seed: seed of the initial values.

    Raises:
        UserError: a name or setting is unknown, or a part is missing.
    """
    _refuse_missing(config, ROLLOUTER, "dynamics")
    sizes, table = (num_slots, slot_size), ROLLOUTERS
    made = make(f"model.{ROLLOUTER}", config[ROLLOUTER], table, *sizes, rngs=nnx.Rngs(seed))
    return RolloutModel(made)


class ReadoutSizes(NamedTuple):
    """What a readout reads and answers; see `interfaces.Readout`.

    Attributes:
        num_slots: N.
        slot_size: D.
        num_frames: F.
        num_words: V.
        num_answers: A.
    """

    num_slots: int
    slot_size: int
    num_frames: int
    num_words: int
    num_answers: int


def has_rollouter(config: ConfigDict) -> bool:
    """Whether a run of the task `answers` reads predicted frames too: its whole config says so."""
    rollouter = config.companions.get(ROLLOUTER, {})
    return "model" in rollouter and not is_absent(rollouter)


def readout_sizes(config: ConfigDict, slot_model: ConfigDict) -> ReadoutSizes:
    """Return the sizes of the readout of a config.

    Args:
        config: the whole config of a run of the task `answers`.
        slot_model: the `model` part of the config of its slot model.
    """
    data, model = config.data, config.model
    frames = data.get("observed") or data.get("num_frames") or 1
    # Questions that choose frames see as many of them with predicted ones.
    future = model.get("future") if has_rollouter(config) and "past" not in data else 0
    return ReadoutSizes(
        slot_model.num_slots,
        slot_model.slot_size,
        frames + future,
        len(model.get("words", ())),
        len(model.get("answers", ())),
    )


def build_readout_model(
    config: ConfigDict,
    sizes: ReadoutSizes,
    beside: Mapping[str, ReadoutSizes],
    seed: int,
) -> ReadoutModel:
    """Make the model of the task `answers`.

    Args:
        config: the `model` part of a config.
        sizes: of the readout.
        beside: of the copies beside it, by name. The readout is the same with and without them.
        seed: seed of the initial values.

    Raises:
        UserError: a name or setting is unknown, or a part is missing.
    """
    _refuse_missing(config, READOUT, "answers")
    path, settings, rngs = f"model.{READOUT}", config[READOUT], nnx.Rngs(seed)
    readout = make(path, settings, READOUTS, *sizes, rngs=rngs)
    others = {x: make(path, settings, READOUTS, *of, rngs=rngs) for x, of in beside.items()}
    return ReadoutModel(readout, others)


def part_schedules(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Return the settings that change with the step, by part."""
    found = {
        name: scheduled_settings(f"model.{name}", config[name], table)
        for name, table in PARTS.items()
        if name in config
    }
    return {name: settings for name, settings in found.items() if settings}


def starts_from_boxes(config: ConfigDict) -> bool:
    """Tell whether a slot model's initializer needs a box for each slot."""
    return choose("model.initializer", cold_start(config), INITIALIZERS).starts_from_boxes


def cold_start(config: ConfigDict) -> str:
    """Return the name of a slot model's innermost initializer, inside any warmer."""
    initializer = config.initializer
    while "cold" in initializer:
        initializer = initializer.cold
    return initializer.name


def untrained_queries(config: Mapping[str, Any]) -> str | None:
    """Say which parts of a slot model get no gradient, because its aggregator cuts it off.

    Args:
        config: the `model` part of a config.

    Returns:
        A line for the user; None where all parts are trained.
    """
    if "aggregator" not in config or config["aggregator"].get("gradient") != "last":
        return None
    path, start, parts = "model.initializer", config["initializer"], []
    # The distillation of a warmer trains its cold-start samples, unless they go straight through.
    reached = "cold" in start and not start.get("straight_through", False)
    while "cold" in start:
        path, start = f"{path}.cold", start["cold"]
    if not reached:
        parts.append(f"{path}.name={start['name']!r}")
    if config["transition"]["name"] != "none":
        parts.append(f"model.transition.name={config['transition']['name']!r}")
    if not parts:
        return None
    verbs = "get no gradient and keep their" if len(parts) > 1 else "gets no gradient and keeps its"
    return (
        f"{' and '.join(parts)} {verbs} initial values, because model.aggregator.gradient is "
        "'last'; set --config.model.aggregator.gradient=last_and_queries to train them"
    )


def has_transition(config: ConfigDict) -> bool:
    """Tell whether a slot model carries slots from one frame to the next."""
    transition = config.transition
    return choose("model.transition", transition.name, TRANSITIONS) is not None


def _check_keys(config: Mapping[str, Any]) -> None:
    known = (*PARTS, *SIZES)
    for key in config:
        if key not in known:
            raise UserError(
                f"model.{key} is not a part of a model: expected {', '.join(known)}"
                f"{did_you_mean(key, known)}; remove or rename it"
            )
    for key in known:
        if key not in config and key not in OPTIONAL:
            raise UserError(f"the config has no model.{key}; add it to the config file")


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(
            f"model.{key} is {value!r}; expected a whole number of at least 1; set "
            f"--config.model.{key}=1 or more"
        )
    return value
