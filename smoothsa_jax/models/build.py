"""Makes a model's parts from a config: each part is a name and that name's own settings."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.models.aggregators.slot_attention import SlotAttention
from smoothsa_jax.models.decoders.mlp_mixture import MLPMixtureDecoder
from smoothsa_jax.models.decoders.random_ar import RandomARDecoder
from smoothsa_jax.models.encoders.colour_fourier import ColourFourier
from smoothsa_jax.models.encoders.dinov3 import DINOv3
from smoothsa_jax.models.encoders.vit import ViT
from smoothsa_jax.models.initializers import BoxSampler, GaussianSampler, Initializer, Warmer
from smoothsa_jax.models.slot_model import Projection, SlotModel
from smoothsa_jax.models.transitions import Transition

BACKBONES: dict[str, Callable] = {"vit": ViT, "dinov3": DINOv3, "colour_fourier": ColourFourier}
PRETRAINED = ("vit", "dinov3")  # the backbones that have `weights`
SAMPLERS: dict[str, Callable] = {"gaussian": GaussianSampler, "boxes": BoxSampler}
PROJECTIONS: dict[str, Callable] = {"mlp": Projection}
SLOT_ATTENTIONS: dict[str, Callable] = {"slot_attention": SlotAttention}
TRANSITIONS: dict[str, Callable | None] = {"randsfq": Transition, "none": None}
DECODERS: dict[str, Callable] = {"random_ar": RandomARDecoder, "mlp_mixture": MLPMixtureDecoder}
PARTS = {
    "backbone": BACKBONES,
    "projection": PROJECTIONS,
    "initializer": SAMPLERS,
    "slot_attention": SLOT_ATTENTIONS,
    "transition": TRANSITIONS,
    "decoder": DECODERS,
}

INITIALIZER_KEYS = (
    "name",
    "warmer",
    "num_heads",
    "cold_log_std",
    "query_log_std",
    "detach_until",
    "straight_through",
)


def choose(part: str, name: str) -> Callable | None:
    """The class of that name, or a UserError that lists the names there are."""
    choices = PARTS[part]
    if name not in choices:
        raise UserError(
            f"model.{part}.name={name!r} is unknown: expected one of {', '.join(sorted(choices))}"
            f"{did_you_mean(name, choices)}"
        )
    return choices[name]


def make(
    part: str, config: Mapping[str, Any], *args: Any, hidden: tuple[str, ...] = (), **given: Any
):
    """An object of the class that `config.name` chooses, made with its other keys; None where the choice is none.

    Raises:
        UserError: an unknown name, a key that the class does not take, or one that it lacks.
    """
    chosen = choose(part, config["name"])
    if chosen is None:
        return None
    settings = {k: v for k, v in config.items() if k not in ("name", *hidden)}
    parameters = inspect.signature(chosen.__init__).parameters
    what = f"model.{part}.name={config['name']!r}"
    for key in settings:
        if key not in parameters:
            choices = ", ".join(
                name
                for name, p in parameters.items()
                if p.kind == p.KEYWORD_ONLY and name not in given
            )
            raise UserError(
                f"model.{part}.{key} is no option of {what}: expected among {choices}; remove it"
            )
    for key, parameter in parameters.items():
        needed = parameter.kind == parameter.KEYWORD_ONLY and parameter.default is parameter.empty
        if needed and key not in settings and key not in given:
            raise UserError(f"{what} needs model.{part}.{key}: add it to the config file")
    return chosen(*args, **settings, **given)


def build_model(config: ConfigDict, image_size: tuple[int, int], seed: int) -> SlotModel:
    """A freshly initialised model. A backbone that takes weights from elsewhere has shapes in place of its arrays.

    Args:
        config: the `model` part of a config.
        image_size: H, W of the frames.
        seed: of the initial values. The backbone's own random values depend on `config.backbone.seed` alone, so that
            runs of several seeds share their features.

    Raises:
        UserError: an unknown name, or an image that does not fit the patch.
    """
    make_backbone = functools.partial(_build_backbone, config.backbone, image_size)
    # Untrained values that nobody asked for would train, and find nothing.
    pretrained = takes_weights(config.backbone)
    return _around(nnx.eval_shape(make_backbone) if pretrained else make_backbone(), config, seed)


def build_shapes(config: ConfigDict, image_size: tuple[int, int]) -> SlotModel:
    """The same model with shapes in place of all arrays; nothing is computed."""
    return nnx.eval_shape(
        lambda: _around(_build_backbone(config.backbone, image_size), config, seed=0)
    )


def takes_weights(backbone: Mapping[str, Any]) -> bool:
    """Whether the config's `model.backbone` is one whose arrays have to come from elsewhere."""
    return backbone["name"] in PRETRAINED and backbone.get("weights") != "random"


def _build_backbone(config: ConfigDict, image_size: tuple[int, int]) -> nnx.Module:
    rngs = nnx.Rngs(config.seed)
    return make("backbone", config, image_size, hidden=("seed", "weights"), rngs=rngs)


def _around(backbone: nnx.Module, config: ConfigDict, seed: int) -> SlotModel:
    rngs = nnx.Rngs(seed)
    width, slot_size = backbone.feature_size, config.slot_attention.slot_size
    initializer = _build_initializer(config.initializer, width, slot_size, rngs)
    transition = make("transition", config.transition, width, slot_size, rngs=rngs)
    decoder = make("decoder", config.decoder, backbone.grid, width, slot_size, rngs=rngs)
    return SlotModel(
        backbone,
        make("projection", config.projection, width, rngs=rngs),
        initializer,
        make(
            "slot_attention",
            config.slot_attention,
            width,
            slot_size,
            hidden=("num_slots", "slot_size", "first_iterations", "later_iterations"),
            rngs=rngs,
        ),
        transition,
        decoder,
        first_iterations=config.slot_attention.first_iterations,
        later_iterations=config.slot_attention.later_iterations,
    )


def _build_initializer(
    config: ConfigDict, feature_size: int, slot_size: int, rngs: nnx.Rngs
) -> Initializer:
    for key in config:
        if key not in INITIALIZER_KEYS:
            raise UserError(
                f"model.initializer.{key} is no option: expected among {', '.join(INITIALIZER_KEYS)}"
                f"{did_you_mean(key, INITIALIZER_KEYS)}; remove it"
            )
    sampler = choose("initializer", config.name)(
        slot_size, config.get("cold_log_std", 0.0), rngs=rngs
    )
    warmer = None
    if config.warmer:
        warmer = Warmer(feature_size, slot_size, config.num_heads, rngs=rngs)
    return Initializer(
        sampler,
        warmer,
        slot_size,
        config.get("query_log_std", 0.0),
        config.get("straight_through", False),
    )
