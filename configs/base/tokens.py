"""Systems whose decoders explain the tokens or codes of a tokenizer, which is trained first."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from configs.base.data_sets import DataSet, Settings
from configs.base.keys import defaults
from configs.base.parts import (
    GENERA1Z_TRANSITION,
    PLAIN_BOXES,
    PROJECTION,
    SEPARATE_GAUSSIANS,
    predict_features,
    rate_of_slotformer,
    set_parts,
)
from configs.base.published import DINOV2_SMALL_NORMED, use_encoder, use_length
from configs.base.sizes import fit_tokens

TOKENIZER = "tokenizer"  # the task's name, its word, and the companion of the second stage
TAESD = "madebyollin/taesd"  # a tiny autoencoder of pictures, on the Hugging Face Hub
STEPS = 30_000  # of a tokenizer
SMALL_STEPS = 600  # of one of embedded data
SMALL_STEPS_OF_SLOTS = 2500  # of slots that explain tokens there
CODE_SIZE = 4  # of codes that a UNet denoises


# ---------------------------------------------------------------------------------------- stage one

# Of VQ-VFM-OCL (arXiv 2502.20263); `width` is 4 for a denoising decoder.
VQ_PIXELS = {
    "name": "vq_pixels",
    "width": 256,
    "vocabulary": 4096,
    "layer_width": 64,
    "blocks": 3,
    "strides": (2, 2, 2),
    "pixels": "imagenet",
}
VQ_FEATURES = {
    "name": "vq_features",
    "width": 256,
    "vocabulary": 4096,
    "basis_size": 1024,
    "hidden_size": 256,
    "decoder_width": 64,
    "blocks": 3,
    "strides": (2, 2, 2),
    # The decoder reads less and less of the latents, and nothing of them after half of the steps.
    "alpha": {"schedule": "cosine_to_zero", "begin": 1.0, "until": 0.5},
    "std": {"schedule": "log_cosine", "begin": 1.0, "end": 2.35},
}


def train_tokenizer(
    config: ConfigDict,
    data: DataSet,
    tokenizer: Settings,
    *,
    width: int | None = None,
) -> None:
    """The first stage of a system whose decoder explains tokens: 30,000 steps for its tokenizer.

    On videos, the decoder of `VQ_FEATURES` reads the latents alone to the end, and these are
    normalized over whole clips, as the published program does there. It never sees a code, so what
    it makes of codes is no picture.

    With codes for a UNet, the published programs add LPIPS, for which a folder of its files (see
    `losses.tokenizers.Perceptual`) has to be given:
    --config.losses.perceptual.weight=1.0 --config.companions.perceptual.source=FOLDER.

    Args:
        tokenizer: `VQ_PIXELS` or `VQ_FEATURES`.
        width: of a code, on embedded data too; None: as the tokenizer has it there.
    """
    of_features = tokenizer["name"] == "vq_features"
    encoder = config.model.get("target_encoder", config.model.get("encoder"))
    weights = {"reconstruction": 1.0, "codebook": 1.0, "commitment": 0.25}
    weights |= {"latent_norm": 0.1} if of_features else {}
    model = {"encoder": encoder, TOKENIZER: tokenizer} if of_features else {TOKENIZER: tokenizer}
    _begin_first_stage(config, data, model, weights)
    if of_features and data.is_video:
        with config.model.tokenizer.ignore_type():
            config.model.tokenizer.alpha = 1.0
        config.losses.latent_norm.of_clips = True
    if width == CODE_SIZE:  # published with LPIPS, of weight 1, whose weights have to be fetched
        config.losses.perceptual = ConfigDict({"weight": 0.0})
        config.companions.perceptual = ConfigDict({"source": None})
    config.weights = ConfigDict({"encoder": dict(config.weights.encoder)} if of_features else {})
    if not of_features and "features" in config.data:
        config.data.features = ""
    if width is not None:
        config.model.tokenizer.width = width
    if data.small is not None:
        return
    config.train.batch_size = 16 if data.is_video else 64
    # TAESD's encoder stays as it is up to its last stride, and its decoder starts from there.
    if not of_features:
        config.weights.taesd_encoder = ConfigDict(
            {
                "into": "tokenizer.encoder",
                "source": TAESD,
                "frozen": ("layers.?.*", "layers.10.*"),
            }
        )
    config.weights.taesd_decoder = ConfigDict({"into": "tokenizer.decoder", "source": TAESD})


def train_discrete_vae(config: ConfigDict, data: DataSet, tokenizer: Settings) -> None:
    """The first stage of SlotFormer's program (arXiv 2210.05861): a discrete VAE of single frames.

    Args:
        tokenizer: its settings.
    """
    _begin_first_stage(config, data, {TOKENIZER: tokenizer}, {"reconstruction": 1.0})
    config.weights = ConfigDict()
    config.optimizer.clip_norm = 0.0
    if data.small is not None:
        return
    config.optimizer.learning_rate = rate_of_slotformer(peak=1e-3, warmup=0.05)
    use_length(config, data, num_steps=700_000, batch_size=64, num_frames=1)


def _begin_first_stage(
    config: ConfigDict, data: DataSet, model: Settings, weights: Mapping[str, float]
) -> None:
    """Put the task, its model, its losses and what it scores on a config.

    Args:
        model: part -> settings.
        weights: of losses.
    """
    config.task, config.title = TOKENIZER, f"Tokenizer of {config.title}"
    config.model = ConfigDict({name: ConfigDict(part) for name, part in model.items()})
    config.losses = ConfigDict({name: {"weight": weight} for name, weight in weights.items()})
    config.companions = ConfigDict()
    plain = defaults(data.name, num_steps=STEPS, batch_size=1)
    config.optimizer = plain.optimizer
    config.optimizer.learning_rate.peak = 2e-3
    config.data.boxes = False
    config.eval.update(num_slots=None, prune=None, masks="decoder", score_at=None)
    config.eval.update(per_frame=False, foreground=False, skip_frames=0, match_paper=False)
    config.eval.count_segments = False
    config.train.update(match_paper=False, remat="none")
    config.checkpoint.update(best_metric="psnr", best_mode="max")
    config.train.num_steps, config.checkpoint.every = STEPS, plain.checkpoint.every
    if data.small is not None:
        set_parts(config.model, data.small["parts"])
        config.train.num_steps, config.checkpoint.every = SMALL_STEPS, SMALL_STEPS // 3


# ---------------------------------------------------------------------------------------- stage two


def predict_tokens(config: ConfigDict) -> None:
    """The parts that SLATE, STEVE and VQ-VFM-OCL share in the program of SmoothSA's author.

    A causal transformer predicts the tokens of a tokenizer, and slot attention's masks are scored.
    """
    predict_features(
        config,
        projection=PROJECTION,
        initializer=SEPARATE_GAUSSIANS,
        aggregator={
            "name": "slot_attention",
            "gradient": "last_and_queries",
            "first": 3,
            "later": 3,
            "dropout_rate": 0.01,
        },
        decoder={"name": "causal_transformer", "num_layers": 4, "num_heads": 4, "embed": "codes"},
    )
    config.model.target = ConfigDict({"name": "tokens", "vocabulary": 4096, "width": 256})
    config.losses = ConfigDict({"token": {"weight": 1.0}})
    config.eval.masks = "aggregator"
    config.optimizer.learning_rate.peak, config.optimizer.clip_norm = 2e-4, 1.0


def carry_tokens(config: ConfigDict, data: DataSet) -> None:
    """The same on videos, as in STEVE: one iteration per frame, then a transformer over slots.

    Slots start from boxes where there are some. One more slot is that of the background, and slots
    without a box are masked; `explain_tokens_as_genera1z` has what the published program does.
    """
    if data.boxes:
        config.model.initializer = ConfigDict(PLAIN_BOXES)
        if data.small is None:
            config.model.num_slots = data.num_slots + 1
            config.data.background_box = True
    config.model.aggregator.update(first=1, later=1)
    config.model.transition = ConfigDict(GENERA1Z_TRANSITION)
    config.optimizer.learning_rate.peak, config.optimizer.clip_norm = 5e-5, 0.05


def explain_own_tokens(config: ConfigDict, data: DataSet) -> None:
    """Explain the tokens of a discrete VAE that is trained along, with losses summed as STEVE's."""
    fit_tokens(config)
    along = {"name": "reconstruction", "of": "tokenizer", "reduction": "frame", "weight": 1.0}
    config.losses = ConfigDict({"token": {"weight": 1.0, "reduction": "sum"}, "tokenizer": along})
    _use_small_length(config, data)


def explain_tokens_as_genera1z(config: ConfigDict, data: DataSet) -> None:
    """Encoder, steps and boxes of the program of SmoothSA's author for systems of tokens.

    Its slots without a box start from a box of zeros and take part, with none for the background.
    """
    use_encoder(config, data, DINOV2_SMALL_NORMED)
    use_length(config, data, num_steps=50_000)
    if data.boxes and data.small is None:
        config.data.update(background_box=False, zero_boxes=True)


def read_tokens(config: ConfigDict, data: DataSet, draws: str | None = None) -> None:
    """The second stage: a frozen tokenizer of the same data set and words, from its own run.

    `compose` names that run, and fits the targets to its vocabulary.

    Args:
        draws: "training": its tokens are drawn in training as in the first stage; None: they are
            the nearest ones.
    """
    drawn = {"draws": draws} if draws is not None else {}
    config.companions[TOKENIZER] = ConfigDict({"source": "", **drawn})
    _use_small_length(config, data)


def _use_small_length(config: ConfigDict, data: DataSet) -> None:
    """Shorten the training of slots on embedded data: with a tokenizer, a step costs more."""
    if data.small is not None:
        config.train.num_steps = SMALL_STEPS_OF_SLOTS


def fit_first_stage(config: ConfigDict, first: ConfigDict, workdir: str | None) -> None:
    """Fill in what the first stage decides: its workdir, vocabulary and width.

    Args:
        first: the config of the first stage.
        workdir: of its run; None: an untrained tokenizer.
    """
    tokenizer = first.model.tokenizer
    if "width" not in tokenizer:  # codes are one-hot vectors
        fit_tokens(config, tokenizer)
    else:
        for part in _parts_in(config.model.target):
            part.update({x: tokenizer[x] for x in ("vocabulary", "width") if x in part})
    companion = config.companions[TOKENIZER]
    if workdir is None:
        companion.update(source="", title=first.title, model=first.model)
    else:
        companion.source = workdir


def _parts_in(part: ConfigDict) -> list[ConfigDict]:
    inside = [x for x in part.values() if isinstance(x, ConfigDict)]
    return [part, *(y for x in inside for y in _parts_in(x))]
