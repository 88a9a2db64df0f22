"""What a published recipe replaces: encoder, length, clips and scores.

Embedded data keep their own.
"""

from ml_collections import ConfigDict

from configs.base.data_sets import DINOV2_SMALL, DataSet, Settings
from smoothsa_jax.errors import UserError

# ----------------------------------------------------------------------------------------- encoders


def dino(size: str, patch: int, final_norm: bool = True) -> tuple[Settings, str]:
    """Settings and source of a ViT of DINO (v1), of size "small" or "base".

    Its features are those before the last LayerNorm, which is part of the files on the Hub.

    Args:
        final_norm: False: the files of a published program, which lack that LayerNorm.
    """
    width, heads, letter = {"small": (384, 6, "s"), "base": (768, 12, "b")}[size]
    settings = {"width": width, "num_heads": heads, "patch": patch, "registers": 0, "resize": 1.0}
    norm = {"final_norm": final_norm, "apply_norm": False}
    more = {"layer_scale": False, "class_position": True, **norm}
    return {**DINOV2_SMALL, **settings, **more}, f"facebook/dino-vit{letter}{patch}"


def dinov2(size: str) -> tuple[Settings, str]:
    """Settings and source of a ViT of DINOv2 without registers and without its last LayerNorm.

    It keeps the 37x37 positions of its files, which it resamples to the grid of the pictures.
    """
    width, heads = {"small": (384, 6), "base": (768, 12)}[size]
    settings = {"width": width, "num_heads": heads, "registers": 0, "resize": 1.0}
    more = {"class_position": True, "position_side": 37}
    return {**DINOV2_SMALL, **settings, **more}, f"facebook/dinov2-{size}"


# DINOv2 ViT-S/14 without registers and with its last LayerNorm.
DINOV2_SMALL_NORMED = (
    {**DINOV2_SMALL, "registers": 0, "final_norm": True, "class_position": True},
    "facebook/dinov2-small",
)


def use_encoder(
    config: ConfigDict,
    data: DataSet,
    encoder: tuple[Settings, str],
    image_size: int | None = None,
) -> None:
    """Replace encoder and image size by those of a published recipe; embedded data keep their own.

    Args:
        encoder: settings and source of the weights.
        image_size: in pixels; None: as the data set says.
    """
    if data.small is None:
        config.model.encoder = ConfigDict(encoder[0])
        config.weights.encoder.source = encoder[1]
        config.data.image_size = image_size or config.data.image_size


def all_but_last_third(encoder: Settings) -> tuple[str, ...]:
    """Patterns of a ViT's arrays that freeze all but the last third of its blocks."""
    tuned = encoder["depth"] // 3
    names = ["embed.*", "position", "class_token"]
    names += ["class_position"] if encoder.get("class_position", False) else []
    names += ["registers"] if encoder["registers"] else []
    names += ["norm.*"] if encoder.get("final_norm", False) else []
    return (*names, *(f"blocks.{i}.*" for i in range(encoder["depth"] - tuned)))


# ---------------------------------------------------------------------- length, pictures and scores


def use_length(
    config: ConfigDict,
    data: DataSet,
    *,
    num_steps: int,
    batch_size: int | None = None,
    num_frames: int | None = None,
) -> None:
    """Use the steps, the batch and the clips of a published recipe; embedded data keep their own.

    Args:
        batch_size: None: as the data set says.
        num_frames: of the clips; None: as the data set says.
    """
    if data.small is None:
        config.train.num_steps, config.checkpoint.every = num_steps, num_steps // 40
        config.train.batch_size = batch_size or config.train.batch_size
        config.data.num_frames = num_frames or config.data.num_frames


def r384(config: ConfigDict, data: DataSet) -> None:
    """Pictures of 384 pixels, so 576 tokens in place of 256; embedded data keep their own."""
    config.title += ", 384 pixels"
    config.data.image_size = 384 if data.small is None else config.data.image_size


def see_videos_as(config: ConfigDict, data: DataSet, clips: Settings, scored: Settings) -> None:
    """Use the crops, windows and scores of a published program; embedded data keep their own.

    Args:
        clips: keys of the config's `data`.
        scored: keys of its `eval`.
    """
    if data.small is None:
        config.data.update(clips)
        config.eval.update(scored)


# Slots that VideoSAUR and SlotContrast were published with.
ORIGINAL_SLOTS = {"movi_c": 11, "movi_e": 15}


def see_videos_as_originals(
    config: ConfigDict, data: DataSet, clips: Settings | None = None, scored: Settings | None = None
) -> None:
    """What the programs of VideoSAUR and SlotContrast share.

    Args:
        clips, scored: further keys for YouTube-VIS.
    """
    of_clips = {"crop": "none", "interpolation": "bicubic"}
    of_scores = {"foreground": True, "per_frame": True}
    if data.name.startswith("ytvis"):
        of_clips.update(crop="square", rest="drop", repeat_frames=None, **(clips or {}))
        of_scores.update(scored or {})
    see_videos_as(config, data, of_clips, of_scores)


def see_windows_of_20(config: ConfigDict, data: DataSet) -> None:
    """Train and score YouTube-VIS as the program of RandSF.Q's author did in October 2025."""
    if data.name.startswith("ytvis"):
        clips = {"cut_frames": 20, "repeat_frames": None}
        see_videos_as(config, data, clips, {"windows": 20, "window_rest": "back"})


# -------------------------------------------------------------------------------------------- words


def refuse_variant(variant: str | None, refused: tuple[str, ...], version: str) -> None:
    """Refuse a system variant that a published program does not have.

    Args:
        variant: the word.
        refused: the words that the program does not have.
        version: the word of the program.
    """
    if variant in refused:
        raise UserError(f"{version!r} has no variant {variant!r}; leave out one of the two words")
