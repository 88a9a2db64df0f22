"""Small models: of embedded data, which train within minutes, and of the word `smoke`."""

import math
from collections.abc import Mapping

from ml_collections import ConfigDict

from configs.base.data_sets import DataSet, Settings
from configs.base.parts import PLAIN_BOXES, cold_of, set_parts
from smoothsa_jax.parts import is_schedule

# ------------------------------------------------------------------------------------ embedded data


def make_small(config: ConfigDict, small: Settings) -> None:
    """Make any system small, as `DataSet.small` says."""
    config.model.update(small["model"])
    cold = cold_of(config.model)
    are_plain = cold.to_dict() == PLAIN_BOXES
    set_parts(config.model, small["parts"])
    if are_plain:  # the size of a noise is for boxes that have some
        cold.log_std = PLAIN_BOXES["log_std"]
    for term, settings in small["losses"].items():
        if term in config.losses:
            _set_loss(config.losses[term], settings)
    fit_cells(config)
    fit_tokens(config)
    config.optimizer.update(small["optimizer"])
    if config.model.aggregator.get("gradient") == "full":
        config.optimizer.update(small["full_gradient"])
    if config.model.encoder.name == "scene":
        config.optimizer.update(small["views"])


def _set_loss(term: ConfigDict, settings: float | Settings) -> None:
    """Give a loss another weight, or other settings. A schedule of the weight keeps its shape: what
    it starts from and goes to is scaled so that the larger becomes that weight."""
    settings = dict(settings) if isinstance(settings, Mapping) else {"weight": settings}
    weight = settings.pop("weight")
    with term.ignore_type():
        term.update(settings)
        if not is_schedule(term.weight):
            term.weight = weight
            return
        found = {key: term.weight[key] for key in ("begin", "end", "peak") if key in term.weight}
        largest = max(found.values(), default=0.0)
        if largest > 0.0:
            term.weight.update({key: weight * (x / largest) for key, x in found.items()})


def fit_cells(config: ConfigDict) -> None:
    """Let a broadcast decoder start from as many cells as reach the size of the pictures."""
    decoder = config.model.get("decoder", {})
    if decoder.get("name") == "spatial_broadcast":
        decoder.cells = config.data.image_size // math.prod(decoder.strides)


def fit_tokens(config: ConfigDict, tokenizer: Settings | None = None) -> None:
    """Let the target have the tokens of a discrete VAE.

    Args:
        tokenizer: of the first stage; None: the one that is trained along.
    """
    tokenizer = tokenizer or config.model.get("tokenizer", {})
    if tokenizer.get("name") == "dvae" and "target" in config.model:
        size = config.data.image_size
        height, width = (size, size) if isinstance(size, int) else size
        codes = tokenizer.vocabulary
        config.model.target.update(vocabulary=codes, width=codes, grid=(height // 4, width // 4))


# -------------------------------------------------------------------------------------------- smoke

# A tiny model and six steps: to see within a minute that a prepared folder and the whole program
# fit together. Its scores mean nothing.
SMOKE = {
    "data": {"image_size": 64, "features": ""},
    "train": {"num_steps": 6, "batch_size": 2, "num_threads": 1},
    "log": {"every": 2},
    "eval": {"num_samples": 2, "batch_size": 1, "num_pictures": 1, "validation_samples": 2},
    "checkpoint": {"every": 3},
}
_SMOKE_VIT = {"width": 32, "depth": 1, "num_heads": 2, "registers": 1}
_SMOKE_RAYS = {"octaves": 4, "position_octave": -2, "hidden_size": 32, "renderer_layers": 2}
_SMOKE_ALLOCATOR = {
    "query_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "head_size": 16,
    "feed_forward_size": 32,
}
_SMOKE_TRANSFORMER = {"width": 32, "num_layers": 1, "num_heads": 2, "mlp_size": 32}
SMOKE_SLOT_SIZE = 32
SMOKE_PARTS = {
    "vit": _SMOKE_VIT,
    "dinov3": _SMOKE_VIT,
    "random_ar": {"num_layers": 1},
    "permuted_ar": {"num_layers": 1, "num_heads": 2},
    "mlp_mixture": {"hidden_size": 32},
    "slot_mixer": {"num_layers": 1, "hidden_size": 32, "renderer_layers": 2},
    "denoising_unet": {"widths": (16, 16), "num_blocks": 1, "groups": 4, "num_heads": 2},
    "metaslot": {"codes": 32, "capacity": 64},
    "causal_transformer": {"num_layers": 1},
    "dvae": {"vocabulary": 16, "hidden_size": 8},
    "conv": {"width": 8, "strides": (2, 2)},
    "resnet": {"blocks": (1, 1, 1), "root_width": 8, "groups": 2},
    "token_transformer": {"num_layers": 1, "mlp_size": 32},
    "spatial_broadcast": {"hidden_size": 8, "strides": (2, 2), "transposed": (True, True)},
    "scene": {
        "width": 32,
        "channels": 4,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_size": 32,
        "octaves": 4,
        "position_octave": -2,
    },
    "ray_mixer": {**_SMOKE_RAYS, **_SMOKE_ALLOCATOR, "mix_size": 32},
    "ray_broadcast": _SMOKE_RAYS,
    "ray_transformer": {**_SMOKE_RAYS, **_SMOKE_ALLOCATOR},
    "rays": {"rays": 64},
    "vq_features": {
        "width": 8,
        "vocabulary": 16,
        "basis_size": 16,
        "hidden_size": 16,
        "decoder_width": 8,
        "blocks": 1,
        "strides": (2, 2, 1),
    },
    "vq_pixels": {"width": 8, "vocabulary": 16, "layer_width": 8, "blocks": 1},
    "slotformer": _SMOKE_TRANSFORMER,
    "aloe": {**_SMOKE_TRANSFORMER, "hidden_size": 32},
    "pairs": {"hidden_size": 32},
}


def smoke(config: ConfigDict, data: DataSet) -> None:
    """Do what the word `smoke` does: a tiny model of random weights, and a few steps."""
    if "slots" in config.data and not (config.task == "answers" and "folder" in config.data):
        # Of an untrained model, there is nothing to store; but questions about videos on disk are
        # answered from stored slots alone.
        config.data.slots = ""
    if "num_clips" in config.data:
        config.data.num_clips = 64
        config.train.batch_size = 16
    if data.smoke is not None:
        config.update(data.smoke)
        return
    with config.data.ignore_type():  # it may be a pair of numbers
        config.data.image_size = SMOKE["data"]["image_size"]
    config.update(SMOKE)
    set_parts(config.model, SMOKE_PARTS)
    encoder = config.model.get("encoder", data.encoder)
    has_patches = "patch" in encoder
    if has_patches and config.data.image_size * encoder["resize"] % encoder["patch"]:
        config.data.image_size = round(4 * encoder["patch"] / encoder["resize"])  # 4x4 tokens
    if "slot_size" in config.model:
        config.model.slot_size = SMOKE_SLOT_SIZE
    fit_cells(config)
    fit_tokens(config)
    for name in [n for n, x in config.weights.items() if x["into"].startswith("tokenizer.")]:
        del config.weights[name]  # layers of another width, which no file has
    for entry in config.weights.values():
        entry.source = "random"
        if entry.into:
            entry.seed = 0  # of one part; all others follow the run's seed
        if any(pattern.startswith("blocks.") for pattern in entry.get("frozen", ())):
            entry.frozen = ("embed.*",)  # there are fewer blocks
