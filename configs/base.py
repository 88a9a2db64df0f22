"""What every run shares, and how a config is composed.

A config is built in this order, and later settings win:

    1. `defaults`, below
    2. the facts of the data set, which the system fits itself to: slots, frames, boxes, encoder
    3. the system (a file of `configs/systems/`), its variant, size, queries and version, and the
       word `smooth`
    4. the data set's own settings, and its `small` block if it has one
    5. the task, such as `recognition`
    6. the word `smoke`
    7. the command line

A file of `configs/systems/` states:

    KIND                            "system", or "task" for a model trained on top of another run
    TITLE                           of a system, as tables and plots show it
    apply(config, data)             puts the system's parts, losses and optimizer on a config
    apply(config, data, source)     the same for a task; `source` is the workdir of the run it
                                    reads
    fits(data)                      optional: whether the system can use the data set
    WORDS                           optional: word -> (kind, function like `apply`), where the
                                    kind is "system variant", "size", "queries", "version" or
                                    "task"

A function of a word gets the other words that it has arguments for: `variant`, that of the system,
`size` and `version`; None: not given.

A new file there is a new word; there is no list to extend.
"""

import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from smoothsa_jax.config.words import KINDS, choose
from smoothsa_jax.errors import UserError
from smoothsa_jax.parts import is_schedule

DEFAULT_SYSTEM = "smoothsa"
Settings = Mapping[str, Any]


def defaults(name: str, *, num_steps: int, batch_size: int) -> ConfigDict:
    """Every key that all runs have, with its default; `data`, `model` and `losses` are empty."""
    return ConfigDict(
        {
            "name": name,  # default workdir: runs/<name>
            "title": "",  # in tables, plots and reports
            "task": "discovery",
            "seed": 0,
            "dtype": "float32",  # or bfloat16
            "matmul_precision": "default",  # of float32 products; or high, highest
            "data": {},
            "model": {},
            "losses": {},
            "companions": {},  # other models that take part: a trained run or a moving average
            "weights": {},  # arrays that come from elsewhere, and which of them are frozen
            "optimizer": {
                # Linear from 0 to the peak over this share of all steps, then a cosine.
                "learning_rate": {
                    "schedule": "warmup_cosine",
                    "peak": 2e-4,
                    "warmup": 0.05,
                    "end_ratio": 1e-3,
                },
                # Arrays with a learning rate of their own: name -> {"of": patterns of their names,
                # "learning_rate": a number or a schedule}.
                "rates": {},
                "clip_norm": 1.0,  # of the gradient; 0: no clipping
                "clip_by": "norm",  # the global norm; or largest, the largest entry
            },
            "train": {
                "num_steps": num_steps,
                "batch_size": batch_size,
                "accumulate": 1,  # parts that a batch is computed in, with the same result
                "num_threads": 8,
                "num_workers": 0,
                "remat": "none",  # or recurrence, decoder, all: less memory, more time
                "scan_unroll": 0,  # frames unrolled in a row; 0: all on a GPU, 1 elsewhere
                # Every sample gets as many slots as the one of its batch with the most boxes.
                "match_paper": False,
                "xla_flags": "",  # for the training step on a GPU, as in XLA_FLAGS
            },
            "log": {"every": 100},
            "eval": {
                "split": "validation",
                "num_samples": None,  # None: all
                "num_frames": None,  # -1: whole videos; -24: at most their first 24 frames
                # Score windows of so many frames in place of whole videos. At the end of a video,
                # the last window moves "back" to fit, or is left out ("drop"), or is shorter
                # ("keep"). Only "keep" scores videos that are shorter than a window.
                "windows": None,
                "window_rest": "back",
                "num_slots": None,  # None: as in training; more than that go with `prune`
                # Leave out redundant slots, those of a cosine distance up to this: a number from 0
                # to 2, auto, or None. "slots" that stay, or their "queries", are aggregated once
                # more; or "none": as they are; or "merge": masks are united.
                "prune": None,
                "prune_restart": "slots",
                "prune_iterations": 1,
                "prune_video": "fixed",  # by the first frame; or renewed on each frame
                "batch_size": batch_size,
                "seeds": (0,),
                "masks": "decoder",  # or aggregator: whose masks are scored
                "score_at": None,  # at so many pixels a side; None: at the size of the labels
                "per_frame": False,  # also score each frame by itself: image_ari, ...
                "foreground": False,  # also mBO and mIoU without background: fg_mbo, fg_miou
                "skip_frames": 0,  # frames at the start of each clip that are not scored
                "observed": None,  # of dynamics: frames before those that are predicted
                "match_paper": False,
                "background_column_always": False,  # of match_paper
                "baselines": False,  # k-means on every sample takes longer than the model
                "num_pictures": 8,
                "validation_samples": 128,
                "checkpoint": "latest",  # or best
            },
            "checkpoint": {
                "every": max(num_steps // 40, 1),  # validates as often
                "max_to_keep": 3,
                "best_metric": "fg_ari",
                "best_mode": "max",
            },
            "mesh": {"data": -1, "fsdp": 1},  # devices; -1: all that there are
        }
    )


# ------------------------------------------------------------------------------------- data sets

# DINOv2 ViT-S/14 with registers. It sees 224 of 256 pixels: 16x16 tokens.
DINOV2_SMALL = {
    "name": "vit",
    "width": 384,
    "depth": 12,
    "num_heads": 6,
    "patch": 14,
    "registers": 4,
    "swiglu": False,
    "resize": 0.875,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """The facts of a data set.

    Attributes:
        name: also the first part of a run's name.
        data: the config's `data`.
        num_slots, num_steps, batch_size: of a training run.
        encoder: the config's `model.encoder`.
        encoder_source: where its frozen weights come from; "random" for an encoder without any.
        num_classes: of the objects, for recognition; None: no recognition.
        settings: other keys of the config that this data set changes, nested.
        small: for embedded data, what makes any system small, in five groups: `model` (keys of the
            model itself), `parts` (settings by the part's name; settings with another `name`
            replace the part), `losses` (weights of the terms a system has), `optimizer`, and
            `full_gradient` (settings of the optimizer where the gradient passes through all
            iterations of slot attention).
        smoke: what the word `smoke` changes, nested; None: `SMOKE`.
        variants: word -> the data set with other facts.
    """

    name: str
    data: Settings
    num_slots: int
    num_steps: int
    batch_size: int
    encoder: Settings = dataclasses.field(default_factory=lambda: DINOV2_SMALL)
    encoder_source: str = "facebook/dinov2-with-registers-small"
    num_classes: int | None = None
    settings: Settings = dataclasses.field(default_factory=dict)
    small: Settings | None = None
    smoke: Settings | None = None
    variants: Mapping[str, Callable[["DataSet"], "DataSet"]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def boxes(self) -> bool:
        """Whether slots start from the first frame's boxes."""
        return self.data["boxes"]

    @property
    def is_video(self) -> bool:
        return self.data["num_frames"] > 1

    def changed(
        self, *, data: Settings | None = None, settings: Settings | None = None, **facts: Any
    ) -> "DataSet":
        """A copy with other facts; `data` and `settings` are merged into the present ones."""
        merged = ConfigDict(self.settings)
        merged.update(settings or {})
        new = {"data": {**self.data, **(data or {})}, "settings": merged.to_dict(), **facts}
        return dataclasses.replace(self, **new)


def prepared(
    name: str,
    *,
    num_slots: int,
    num_steps: int,
    batch_size: int,
    num_frames: int = 1,
    eval_frames: int = 1,
    boxes: bool = False,
    num_classes: int | None = None,
    eval: Settings | None = None,
    **data: Any,
) -> DataSet:
    """A data set on disk: a prepared folder, 256x256 pixels, DINOv2's features.

    Args:
        eval_frames: of the clips to score; -1: whole videos, of any length; -24: at most their
            first 24 frames.
        eval: other settings of `eval`.
        **data: other settings of `data`.
    """
    # The paper's batches, on which match_paper depends.
    eval_batch = 32 if eval_frames == 1 else 1 if eval_frames < 0 else 8
    return DataSet(
        name=name,
        data={
            "name": "prepared",
            "folder": f"prepared/{name}",
            "image_size": 256,
            "num_frames": num_frames,
            "boxes": boxes,
            "background_box": False,
            # A folder of cached features, in place of the encoder in training; "auto": beside
            # `folder`, and made when the run begins.
            "features": "",
            **data,
        },
        num_slots=num_slots,
        num_steps=num_steps,
        batch_size=batch_size,
        num_classes=num_classes,
        settings={"eval": {"num_frames": eval_frames, "batch_size": eval_batch, **(eval or {})}},
    )


def prepared_views(
    name: str,
    *,
    num_slots: int,
    num_steps: int,
    batch_size: int,
    num_views: int,
    image_size: int | tuple[int, int],
    split: str = "validation",
) -> DataSet:
    """A data set on disk whose clips are views of still scenes, with cameras.

    Args:
        num_views: of each scene; the frames of a sample.
        image_size: of the views, which are used as they are.
        split: the one that is scored.
    """
    data = prepared(
        name,
        num_slots=num_slots,
        num_steps=num_steps,
        batch_size=batch_size,
        num_frames=num_views,
        eval_frames=num_views,
        views=True,
        crop="none",
        flip=0.0,
    )
    return data.changed(data={"image_size": image_size}, settings={"eval": {"split": split}})


def only_views(data: DataSet) -> bool:
    """Tell whether all that a data set has are views of still scenes, not pictures or videos."""
    return data.data.get("views", False) and not data.variants


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
}


# ------------------------------------------------------------------- what several systems share


def predict_features(config: ConfigDict, **parts: Settings) -> None:
    """A model of images that predicts the features of its frozen encoder from its slots.

    Args:
        **parts: projection, initializer, aggregator, decoder.
    """
    config.model.update(
        slot_size=256, transition={"name": "none"}, target={"name": "features"}, **parts
    )
    config.losses.reconstruction = ConfigDict({"weight": 1.0})


def follow(config: ConfigDict, data: DataSet) -> None:
    """On video, carry slots from frame to frame as SmoothSA does: RandSF.Q's transition and the
    contrast of slots over time."""
    if not data.is_video:
        return
    # The transition sees at most as many frames as a training clip has.
    history = data.data["num_frames"]
    config.model.transition.update(name="randsfq", num_heads=4, history=history, dropout_rate=0.5)
    config.losses.slot_contrast = ConfigDict({"weight": 0.5, "temperature": 0.1})
    config.optimizer.learning_rate.peak, config.optimizer.clip_norm = 5e-5, 0.05


def refuse_boxes(data: DataSet, title: str, videos: bool = False) -> None:
    """Refuse a data set whose slots start from boxes, for a system with queries of its own.

    Args:
        videos: whether the system is one of videos alone.
    """
    if data.boxes:
        suits = lambda changed: not changed.boxes and (changed.is_video or not videos)  # noqa: E731
        add = _word_for(data, suits, "choose another data set")
        raise UserError(
            f"{title} has queries of its own, but the slots of {data.name} start from boxes; {add}"
        )


def refuse_pictures(data: DataSet, title: str) -> None:
    """Refuse single pictures, for a system of videos."""
    if not data.is_video:
        add = _word_for(data, lambda changed: changed.is_video, "choose data or a word of videos")
        raise UserError(f"{title} is a system of videos, but {data.name} has pictures here; {add}")


def refuse_variant(variant: str | None, refused: tuple[str, ...], version: str) -> None:
    """Refuse a system variant that a published program does not have.

    Args:
        variant: the word.
        refused: the words that the program does not have.
        version: the word of the program.
    """
    if variant in refused:
        raise UserError(f"{version!r} has no variant {variant!r}; leave out one of the two words")


def has_videos(data: DataSet) -> bool:
    """Tell whether a data set, or a variant of it, has videos; views of still scenes are none."""
    if only_views(data):
        return False
    return data.is_video or any(change(data).is_video for change in data.variants.values())


def has_views(data: DataSet) -> bool:
    """Tell whether a data set, or a variant of it, has views of scenes, with their cameras."""
    return _shows_scenes(data) or any(_shows_scenes(x(data)) for x in data.variants.values())


def refuse_without_views(data: DataSet, title: str) -> None:
    """Refuse pictures and videos, for a system of scenes that several cameras see."""
    if not _shows_scenes(data):
        add = _word_for(data, _shows_scenes, "choose another data set")
        raise UserError(
            f"{title} is a system of scenes that several cameras see, but {data.name} has no such "
            f"views here; {add}"
        )


def _shows_scenes(data: DataSet) -> bool:
    return data.data.get("views", False)


def _word_for(data: DataSet, suits: Callable[[DataSet], bool], otherwise: str) -> str:
    """Say which data variant suits a system."""
    words = [word for word, change in data.variants.items() if suits(change(data))]
    return f"add the word {' or '.join(words)}" if words else otherwise


# The mixture decoder of DINOSAUR, which others took over.
DINOSAUR_DECODER = {
    "name": "mlp_mixture",
    "num_layers": 4,
    "hidden_size": 2048,
    "position": "slots",
    "position_std": 0.02,
    "activation": "relu",
}
# Each object's box is embedded, without noise.
PLAIN_BOXES = {"name": "boxes", "log_std": None, "norm": False}


def carry_slots(
    config: ConfigDict, data: DataSet, *, slot_size: int, queries: Settings, mlp_ratio: float
) -> None:
    """The parts that the programs of VideoSAUR and SlotContrast share, and their optimizer.

    Args:
        slot_size: D.
        queries: the initializer, for data whose slots do not start from boxes.
        mlp_ratio: of slot attention; 0: no MLP.
    """
    predict_features(
        config,
        projection={
            "name": "mlp",
            "hidden_ratio": 2.0,
            "to_slots": True,
            "activation": "relu",
            "zero_bias": False,
        },
        initializer=PLAIN_BOXES if data.boxes else queries,
        aggregator={
            "name": "slot_attention",
            "gradient": "full",
            "first": 3,
            "later": 2,
            "epsilon": 1e-8,
            "epsilon_in": "weights",
            "state": "normalized",
            "mlp_ratio": mlp_ratio,
            "activation": "relu",
            "attention_start": "xavier",
            "zero_bias": False,
        },
    )
    config.model.slot_size = slot_size
    config.model.transition = ConfigDict(
        {
            "name": "transformer",
            "num_heads": 4,
            "norm": "pre",
            "activation": "relu",
            "bias": True,
            "query_scale": "divide",
            "attention_start": "xavier",
        }
    )
    config.optimizer.learning_rate = ConfigDict(
        {"schedule": "warmup_halving", "peak": 4e-4, "warmup": 0.025, "half_life": 0.975}
    )
    config.optimizer.clip_norm = 0.05


def carry_slots_as_genera1z(config: ConfigDict, data: DataSet) -> None:
    """The same parts, optimizer and length in the program of RandSF.Q's author."""
    use_encoder(config, data, DINOV2_SMALL_NORMED)
    queries = {**SEPARATE_GAUSSIANS, "log_std": -2.0794415, "mean": "xavier_matrix"}  # 64**-0.5
    config.model.slot_size = 64
    # Whole parts are replaced.
    for part, settings in {
        "projection": {"name": "mlp", "hidden_ratio": 2.0, "to_slots": True},
        "initializer": PLAIN_BOXES if data.boxes else queries,
        "aggregator": {
            "name": "slot_attention",
            "gradient": "last_and_queries",
            "first": 3,
            "later": 3,
        },
        "transition": {
            "name": "transformer",
            "num_heads": 4,
            "norm": "post",
            "activation": "gelu",
            "bias": False,
            "dropout_rate": 0.1,
        },
    }.items():
        config.model[part] = ConfigDict(settings)
    plain = defaults(data.name, num_steps=1, batch_size=1).optimizer
    config.optimizer.learning_rate = plain.learning_rate
    config.optimizer.learning_rate.peak, config.optimizer.clip_norm = 5e-5, 0.05
    use_length(config, data, num_steps=50_000)
    see_windows_of_20(config, data)


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


def see_videos_as(config: ConfigDict, data: DataSet, clips: Settings, scored: Settings) -> None:
    """Use the crops, windows and scores of a published program; embedded data keep their own.

    Args:
        clips: keys of the config's `data`.
        scored: keys of its `eval`.
    """
    if data.small is None:
        config.data.update(clips)
        config.eval.update(scored)


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


def without_boxes(num_slots: int) -> Callable[[DataSet], DataSet]:
    """The data variant `gaussian`: a video whose slots do not start from boxes."""

    def gaussian(data: DataSet) -> DataSet:
        return data.changed(data={"boxes": False}, num_slots=num_slots)

    return gaussian


def single_frames(num_slots: int) -> Callable[[DataSet], DataSet]:
    """The data variant `image`: each frame of a video is a sample of its own, without boxes."""

    def image(data: DataSet) -> DataSet:
        return data.changed(
            data={"boxes": False, "num_frames": 1},
            settings={"eval": {"num_frames": 1, "batch_size": 32}},
            num_slots=num_slots,
            batch_size=32,
        )

    return image


# The encoders of published recipes: DINO (v1), and DINOv2 without registers and with its last
# LayerNorm.
def dino(size: str, patch: int) -> tuple[Settings, str]:
    """Settings and source of a ViT of DINO, of size "small" or "base"."""
    width, heads, letter = {"small": (384, 6, "s"), "base": (768, 12, "b")}[size]
    settings = {"width": width, "num_heads": heads, "patch": patch, "registers": 0, "resize": 1.0}
    # The last LayerNorm is part of its files, and its features are those before it.
    norm = {"final_norm": True, "apply_norm": False}
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


# A Gaussian for each slot, whose means are the queries at evaluation.
SEPARATE_GAUSSIANS = {
    "name": "gaussian",
    "log_std": -2.7725887,  # log(256**-0.5)
    "mean": "xavier",
    "separate": True,
    "noise": "training",
}


# SlotDiffusion's UNet, of 135 million parameters, in the re-implementation. VVO-Dfz has it too.
DENOISING_UNET = {
    "name": "denoising_unet",
    "widths": (128, 256, 384, 512),
    "num_blocks": 2,
    "groups": 32,
    "num_heads": 8,
    "dropout_rate": 0.1,
    "zero_start": False,
}


def r384(config: ConfigDict, data: DataSet) -> None:
    """Pictures of 384 pixels, so 576 tokens in place of 256; embedded data keep their own."""
    config.title += ", 384 pixels"
    config.data.image_size = 384 if data.small is None else config.data.image_size


def all_but_last_third(encoder: Settings) -> tuple[str, ...]:
    """Patterns of a ViT's arrays that freeze all but the last third of its blocks."""
    tuned = encoder["depth"] // 3
    names = ["embed.*", "position", "class_token"]
    names += ["class_position"] if encoder.get("class_position", False) else []
    names += ["registers"] if encoder["registers"] else []
    names += ["norm.*"] if encoder.get("final_norm", False) else []
    return (*names, *(f"blocks.{i}.*" for i in range(encoder["depth"] - tuned)))


# ------------------------------------------------------------------------------------ tokenizers

TOKENIZER = "tokenizer"  # the task's name, its word, and the companion of the second stage
TAESD = "madebyollin/taesd"  # a tiny autoencoder of pictures, on the Hugging Face Hub
SMALL_STEPS = 600  # of a tokenizer of embedded data
CODE_SIZE = 4  # of codes that a UNet denoises
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
    config.task, config.title = TOKENIZER, f"Tokenizer of {config.title}"
    encoder = config.model.get("target_encoder", config.model.get("encoder"))
    config.model = ConfigDict({"encoder": encoder} if of_features else {})
    config.model.tokenizer = ConfigDict(tokenizer)
    weights = {"reconstruction": 1.0, "codebook": 1.0, "commitment": 0.25}
    weights |= {"latent_norm": 0.1} if of_features else {}
    config.losses = ConfigDict({name: {"weight": weight} for name, weight in weights.items()})
    if of_features and data.is_video:
        with config.model.tokenizer.ignore_type():
            config.model.tokenizer.alpha = 1.0
        config.losses.latent_norm.of_clips = True
    config.companions = ConfigDict()
    if width == CODE_SIZE:  # published with LPIPS, of weight 1, whose weights have to be fetched
        config.losses.perceptual = ConfigDict({"weight": 0.0})
        config.companions.perceptual = ConfigDict({"source": None})
    config.weights = ConfigDict({"encoder": dict(config.weights.encoder)} if of_features else {})
    plain = defaults(data.name, num_steps=30_000, batch_size=1)
    config.optimizer = plain.optimizer
    config.optimizer.learning_rate.peak = 2e-3
    config.data.boxes = False
    if not of_features and "features" in config.data:
        config.data.features = ""
    config.eval.update(num_slots=None, prune=None, masks="decoder", score_at=None)
    config.eval.update(per_frame=False, foreground=False, skip_frames=0, match_paper=False)
    config.train.update(match_paper=False, remat="none")
    config.checkpoint.update(best_metric="psnr", best_mode="max")
    if data.small is not None:
        set_parts(config.model, data.small["parts"])
    if width is not None:
        config.model.tokenizer.width = width
    if data.small is not None:
        config.train.num_steps, config.checkpoint.every = SMALL_STEPS, SMALL_STEPS // 3
        return
    config.train.num_steps, config.checkpoint.every = 30_000, plain.checkpoint.every
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


def predict_tokens(config: ConfigDict) -> None:
    """The parts that SLATE, STEVE and VQ-VFM-OCL share in the program of SmoothSA's author.

    A causal transformer predicts the tokens of a tokenizer, and slot attention's masks are scored.
    """
    predict_features(
        config,
        projection={"name": "mlp", "hidden_ratio": 2.0, "to_slots": True},
        initializer={**SEPARATE_GAUSSIANS, "mean": "xavier_matrix"},
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
    config.model.transition = ConfigDict(
        {
            "name": "transformer",
            "num_heads": 4,
            "norm": "post",
            "activation": "gelu",
            "bias": False,
            "dropout_rate": 0.1,
        }
    )
    config.optimizer.learning_rate.peak, config.optimizer.clip_norm = 5e-5, 0.05


def explain_own_tokens(config: ConfigDict) -> None:
    """Explain the tokens of a discrete VAE that is trained along, with losses summed as STEVE's."""
    fit_tokens(config)
    along = {"name": "reconstruction", "of": "tokenizer", "reduction": "frame", "weight": 1.0}
    config.losses = ConfigDict({"token": {"weight": 1.0, "reduction": "sum"}, "tokenizer": along})


def explain_tokens_as_genera1z(config: ConfigDict, data: DataSet) -> None:
    """Encoder, steps and boxes of the program of SmoothSA's author for systems of tokens.

    Its slots without a box start from a box of zeros and take part, with none for the background.
    """
    use_encoder(config, data, DINOV2_SMALL_NORMED)
    use_length(config, data, num_steps=50_000)
    if data.boxes and data.small is None:
        config.data.update(background_box=False, zero_boxes=True)


def read_tokens(config: ConfigDict, draws: str | None = None) -> None:
    """The second stage: a frozen tokenizer of the same data set and words, from its own run.

    `compose` names that run, and fits the targets to its vocabulary.

    Args:
        draws: "training": its tokens are drawn in training as in the first stage; None: they are
            the nearest ones.
    """
    drawn = {"draws": draws} if draws is not None else {}
    config.companions[TOKENIZER] = ConfigDict({"source": "", **drawn})


def _fit_first_stage(config: ConfigDict, data: DataSet, chosen: Mapping[str, str]) -> None:
    """Fill in what the first stage decides: its workdir, vocabulary and width.

    With the word `smoke`, it is an untrained tokenizer.
    """
    apart = ("queries", "smooth")  # the tokens are the same
    first = {kind: word for kind, word in chosen.items() if kind not in apart} | {"task": TOKENIZER}
    of_first = _of_words(data, {kind: first[kind] for kind in KINDS if kind in first})
    tokenizer, decoder = of_first.model.tokenizer, config.model.decoder
    for part in _parts_in(config.model.target):
        part.update({x: tokenizer[x] for x in ("vocabulary", "width") if x in part})
    if decoder.get("embed") == "codes" and tokenizer.width != config.model.slot_size:
        # In small models, slots are not as wide as codes.
        decoder.update(token_size=tokenizer.width, project_slots=True)
    companion = config.companions[TOKENIZER]
    companion.source = f"runs/{_name(data, first, without=('smoke',))}"
    if "smoke" in chosen:
        companion.update(source="", title=of_first.title, model=of_first.model)


def _parts_in(part: ConfigDict) -> list[ConfigDict]:
    inside = [x for x in part.values() if isinstance(x, ConfigDict)]
    return [part, *(y for x in inside for y in _parts_in(x))]


# ------------------------------------------------------------------------------------- composing


def words_of(data: DataSet) -> dict[str, str]:
    """word -> kind, of all words that fit a data set."""
    words = dict.fromkeys(data.variants, "data variant")
    found = {"smooth": "smooth", "smoke": "smoke"}
    for name, module in systems().items():
        always = name == DEFAULT_SYSTEM or not only_views(data)
        fits = getattr(module, "fits", lambda data, always=always: always)
        if not fits(data):
            continue
        found[name] = module.KIND
        found |= {word: kind for word, (kind, _) in getattr(module, "WORDS", {}).items()}
    if both := sorted(words.keys() & found.keys()):
        raise UserError(
            f"{both[0]!r} is a word of the data set {data.name} and a {found[both[0]]}; rename one"
        )
    return words | found


def compose(data: DataSet, words: str = "") -> ConfigDict:
    """The config of a data set and words such as `"recognition,smoke"`.

    Raises:
        UserError: a word that does not fit, or two words of one kind.
    """
    chosen = choose(words, words_of(data))
    if variant := chosen.get("data variant"):
        data = data.variants[variant](data)
    return _of_words(data, chosen)


def _of_words(data: DataSet, chosen: Mapping[str, str]) -> ConfigDict:
    """The config of a data set, with its variant, and of kind -> word in the order of `KINDS`."""
    task = chosen.get("task")
    config = _of_system(data, chosen)
    config.name = _name(data, chosen, without=("task", "smoke"))
    earlier = config.copy_and_resolve_references()
    if task:
        _apply(chosen, "task", config, data, f"runs/{config.name}")
    if "smoke" in chosen:
        _smoke(config, data)
        _smoke(earlier, data)
        for companion in (x for n, x in config.companions.items() if n != TOKENIZER):
            if companion.get("source") is not None:  # untrained, of the earlier run's smoke form
                companion.update(source="", title=earlier.title, model=earlier.model)
    if TOKENIZER in config.companions:
        _fit_first_stage(config, data, chosen)
    config.name = _name(data, chosen)
    return config


def cold_of(model: ConfigDict) -> ConfigDict:
    """Settings of the initializer that draws or reads the first queries, inside a warmer or not."""
    return model.initializer.get("cold", model.initializer)


def draws_any_number(model: ConfigDict) -> bool:
    """Whether the initializer can make any number of queries."""
    cold = cold_of(model)
    return cold.name != "learned" and not cold.get("separate", False)


def set_parts(model: ConfigDict, settings: Mapping[str, Settings]) -> None:
    """Change parts, however deep they are, by their names.

    Args:
        settings: part's name -> settings to change; with another `name`, the part is replaced.
    """
    for key, part in model.items():
        if not isinstance(part, ConfigDict):
            continue
        set_parts(part, settings)
        new = settings.get(part.get("name"))
        if new is not None and new.get("name", part.name) != part.name:
            # What a decoder predicts is not its size.
            logits = {"logits": part.logits} if "logits" in part else {}
            model[key] = ConfigDict({**new, **logits})
        elif new is not None:
            part.update(new)


def _of_system(data: DataSet, chosen: Mapping[str, str]) -> ConfigDict:
    config = defaults(data.name, num_steps=data.num_steps, batch_size=data.batch_size)
    config.data = ConfigDict(data.data)
    config.model = ConfigDict({"num_slots": data.num_slots, "encoder": data.encoder})
    entry = {"into": "encoder", "source": data.encoder_source, "frozen": ("*",)}
    if data.encoder_source == "random":
        entry["seed"] = 0  # of its own, so that runs of several seeds share their features
    config.weights.encoder = ConfigDict(entry)
    system = systems()[chosen.get("system", DEFAULT_SYSTEM)]
    config.title = system.TITLE
    system.apply(config, data)
    for kind in ("system variant", "size", "queries", "version"):
        if kind in chosen:
            _apply(chosen, kind, config, data)
    if "smooth" in chosen:
        if config.model.initializer.name == "warmed":
            raise UserError(f"{system.TITLE} already has what 'smooth' adds; leave that word out")
        if config.model.initializer.name == "tokens":
            raise UserError(f"{config.title} has no slots for 'smooth'; leave that word out")
        systems()[DEFAULT_SYSTEM].smooth(config)
        config.title += ", smooth"
    of_system = config.eval.prune
    config.update(data.settings)
    if config.eval.num_slots is not None and "pruning" in config.model:
        # What prunes in training starts with too many slots there as well.
        config.model.num_slots, config.eval.num_slots = config.eval.num_slots, None
    elif config.eval.num_slots is not None and not draws_any_number(config.model):
        # More slots than in training, and pruning, are for queries from one Gaussian.
        config.eval.update(num_slots=None, prune=of_system)
    if data.small is not None:
        _make_small(config, data.small)
    return config


def _make_small(config: ConfigDict, small: Settings) -> None:
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


def fit_cells(config: ConfigDict) -> None:
    """Let a broadcast decoder start from as many cells as reach the size of the pictures."""
    decoder = config.model.get("decoder", {})
    if decoder.get("name") == "spatial_broadcast":
        decoder.cells = config.data.image_size // math.prod(decoder.strides)


def fit_tokens(config: ConfigDict) -> None:
    """Let the target have the tokens of a discrete VAE that is trained along."""
    tokenizer = config.model.get("tokenizer", {})
    if tokenizer.get("name") == "dvae":
        size = config.data.image_size
        height, width = (size, size) if isinstance(size, int) else size
        codes = tokenizer.vocabulary
        config.model.target.update(vocabulary=codes, width=codes, grid=(height // 4, width // 4))


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


def _smoke(config: ConfigDict, data: DataSet) -> None:
    if "slots" in config.data:
        config.data.slots = ""  # of an untrained model, there is nothing to store
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


def _name(data: DataSet, chosen: Mapping[str, str], without: tuple[str, ...] = ()) -> str:
    """The data set and the words; not the default system, which is the same config without it."""
    words = [
        chosen[kind]
        for kind in KINDS
        if kind in chosen and kind not in without and chosen[kind] != DEFAULT_SYSTEM
    ]
    return "_".join([data.name, *words])


def _apply(chosen: Mapping[str, str], kind: str, *arguments: Any) -> None:
    """Do what the word of that kind does, which may depend on other words."""
    function = _function(chosen, kind)
    kinds = {"variant": "system variant", "size": "size", "version": "version"}
    others = {name: chosen.get(kind) for name, kind in kinds.items()}
    takes = inspect.signature(function).parameters
    function(*arguments, **{name: word for name, word in others.items() if name in takes})


def _function(chosen: Mapping[str, str], kind: str) -> Callable[..., None]:
    """What a word of that kind does: of a file of its own, or of the chosen system's file."""
    word = chosen[kind]
    module = systems().get(word)
    if module is not None and module.KIND == kind:
        return module.apply
    system = chosen.get("system", DEFAULT_SYSTEM)
    words = getattr(systems()[system], "WORDS", {})
    if word not in words or words[word][0] != kind:
        owners = [n for n, m in systems().items() if word in getattr(m, "WORDS", {})]
        raise UserError(
            f"{word!r} is a word of {', '.join(owners)}, not of {system}; write {owners[0]},{word}"
        )
    return words[word][1]


@functools.cache
def systems() -> dict[str, ModuleType]:
    """name -> module, of every file of `configs/systems/`."""
    folder = importlib.import_module("configs.systems").__path__
    names = sorted(info.name for info in pkgutil.iter_modules(folder))
    return {name: importlib.import_module(f"configs.systems.{name}") for name in names}
