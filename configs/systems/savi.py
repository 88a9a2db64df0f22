"""SAVi: slots that follow objects by predicting flow (Kipf et al. 2022, arXiv 2111.12594).

    (no word)   SAVi-S: pictures of 64 pixels
    medium      SAVi-M: pictures of 128 pixels
    large       SAVi-L: a ResNet-34
    sa          the slot attention of the inverted-attention paper, which has an MLP
    tf_inv      a transformer layer with inverted attention in its place, as in that paper
    tf_inv_gru  the same with a GRU

Everything is trained from pixels. Nothing is random, and the gradient passes through all frames.
The target is the flow towards the previous frame, as a picture.

In the program, padded boxes are the same slot as the background, for ever; here they are masked.
`train.match_paper` has no part in that.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.systems import inverted
from configs.systems.inverted import RESNET_34, convolutions
from smoothsa_jax.errors import UserError

TITLE = "SAVi-S"
KIND = "system"
STEPS, BATCH, FRAMES, SLOTS = 100_000, 64, 6, 24

Settings = dict[str, Any]
LINEN = inverted.LAYERS


def fits(data: base.DataSet) -> bool:
    """Whether a data set has flow."""
    return data.is_movi or data.name == "scenes"


def refuse_without_flow(data: base.DataSet, title: str) -> None:
    """Refuse single pictures, and views from several sides, between which there is no flow."""
    base.refuse_pictures(data, title)
    if data.data.get("views", False):
        raise UserError(
            f"{title} is a system of videos, but {data.name} has views of still scenes here; leave "
            "the word views out"
        )


def decoder(doubled: int, fusion: str) -> Settings:
    """The decoder, whose first layers double the size of its 8x8 cells."""
    return inverted.broadcast(8, doubled, 4, fusion)


def apply(config: ConfigDict, data: base.DataSet) -> None:
    refuse_without_flow(data, TITLE)
    config.weights = ConfigDict()  # nothing is frozen
    boxes = {
        "name": "boxes",
        "log_std": None,
        "norm": False,
        "order": "rows_first",
        "zeros": True,
        "hidden_size": 256,
        "activation": "relu",
        "start": "lecun",
    }
    config.model.encoder = ConfigDict(convolutions(32, 1))
    config.model.update(
        slot_size=128,
        projection={"name": "mlp", "hidden_size": 64, **LINEN},
        initializer=boxes if data.boxes else base.LEARNED,
        aggregator={
            "name": "slot_attention",
            "first": 1,
            "later": 1,
            "gradient": "full",
            "qkv_size": 128,
            "mlp_size": 0,
            "epsilon": 1e-8,
            "epsilon_in": "sum",
            "gru": "linen",
            **LINEN,
        },
        transition={
            "name": "transformer",
            "num_heads": 4,
            "norm": "post",
            "bias": True,
            "qkv_size": 128,
            "mlp_size": 256,
            "attention_start": "lecun",
            **LINEN,
        },
        decoder=decoder(3, "late"),
        target={"name": "flow"},
    )
    config.losses.reconstruction = ConfigDict({"weight": 1.0, "reduction": "sum"})
    config.optimizer.learning_rate = ConfigDict(
        {"schedule": "warmup_cosine", "peak": 2e-4, "warmup": 2_500 / STEPS, "end_ratio": 0.0}
    )
    config.optimizer.clip_norm = 0.05
    see_videos(config, data, image_size=64)
    _use_length(config, data, STEPS)


def see_videos(config: ConfigDict, data: base.DataSet, image_size: int, **clips: Any) -> None:
    """See MOVi as SAVi's program does, with the data set's own boxes; scenes stay as they are."""
    if data.small is not None:
        return
    # The boxes of the background and of at most 23 objects.
    config.model.num_slots = SLOTS if data.boxes else data.num_slots
    config.data.update(
        image_size=image_size,
        background_box=data.boxes,
        stored_boxes=data.boxes,
        **{"crop": "none", "flip": 0.0, **clips},
    )


def _use_length(config: ConfigDict, data: base.DataSet, num_steps: int) -> None:
    base.use_length(config, data, num_steps=num_steps, batch_size=BATCH, num_frames=FRAMES)
    config.optimizer.learning_rate.warmup = 2_500 / num_steps


def medium(config: ConfigDict, data: base.DataSet) -> None:
    config.title = "SAVi-M"
    config.model.encoder = ConfigDict(convolutions(64, 2))
    config.model.decoder = ConfigDict(decoder(4, "late"))
    see_videos(config, data, image_size=128)


def large(config: ConfigDict, data: base.DataSet) -> None:
    config.title = "SAVi-L"
    config.model.encoder = ConfigDict(RESNET_34)
    config.model.decoder = ConfigDict(decoder(4, "late"))
    see_videos(config, data, image_size=128)
    _use_length(config, data, 500_000)


def corrector(title: str, aggregator: Settings):
    """A variant with one layer, or iteration, of another aggregator per frame."""

    def change(config: ConfigDict, data: base.DataSet) -> None:
        del data
        config.title += f" with {title}"
        config.model.aggregator = ConfigDict({**aggregator, "first": 1})
        config.model.transition.update(qkv_size=128, mlp_size=256)
        config.eval.prune_restart = "none"  # layers of their own cannot run once more

    return change


CORRECTORS = {
    "sa": ("system variant", corrector("SA", inverted.SA)),
    "tf_inv": ("system variant", corrector("TF-Inv", inverted.TF_INV)),
    "tf_inv_gru": ("system variant", corrector("TF-Inv-GRU", inverted.TF_INV_GRU)),
}
WORDS = {"medium": ("version", medium), "large": ("version", large), **CORRECTORS}
