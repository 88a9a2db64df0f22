"""The facts of a data set, which a system fits itself to.

First `DataSet` and how one is stated, then its variants, and what systems ask of it or refuse.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from smoothsa_jax.errors import UserError

Settings = Mapping[str, Any]

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
class Questions:
    """The questions about the clips of a data set.

    Attributes:
        data: the config's `data`, beside the settings of the clips.
        words, answers, kinds: see `smoothsa_jax.inputs.questions`.
        question_length: the most words of a question.
        choice_length: the most words of a choice; 0: no question has choices.
        future: how many frames a rollouter predicts after the observed ones.
        beside: the readouts that are trained beside the model, see `smoothsa_jax.tasks.answers`.
        readout: the config's `model.readout` where it is not Aloe.
        settings: other keys of the config that differ from those of Aloe's training, nested.
    """

    data: Settings
    words: tuple[str, ...]
    answers: tuple[str, ...]
    kinds: tuple[str, ...]
    question_length: int
    choice_length: int = 0
    future: int
    beside: tuple[str, ...] = ("words_only", "observed_frames", "pooled_features")
    readout: Settings | None = None
    settings: Settings = dataclasses.field(default_factory=dict)


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
        questions: about its clips; None: there are none.
        dynamics: keys of the config that this data set changes for the task `dynamics`, nested.
        settings: other keys of the config that this data set changes, nested.
        small: for embedded data, what makes any system small, in six groups: `model` (keys of the
            model itself), `parts` (settings by the part's name; settings with another `name`
            replace the part), `losses` (weights of the terms a system has), `optimizer`,
            `full_gradient` (settings of the optimizer where the gradient passes through all
            iterations of slot attention) and `views` (the same, for scenes of many views).
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
    questions: Questions | None = None
    dynamics: Settings = dataclasses.field(default_factory=dict)
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

    @property
    def is_movi(self) -> bool:
        """Whether it is one of MOVi's, for which several programs have other sizes."""
        return self.name.startswith("movi")

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
            # Where `folder` is an address such as gs://bucket/folder: the local folder for copies
            # of its shards. None: in the user's cache.
            "cache": None,
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


# ----------------------------------------------------------------------------------------- variants


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


# --------------------------------------------------------------------------------- what systems ask


def only_views(data: DataSet) -> bool:
    """Tell whether all that a data set has are views of still scenes, not pictures or videos."""
    return data.data.get("views", False) and not data.variants


def has_videos(data: DataSet) -> bool:
    """Tell whether a data set, or a variant of it, has videos; views of still scenes are none."""
    if only_views(data):
        return False
    return data.is_video or any(change(data).is_video for change in data.variants.values())


def has_views(data: DataSet) -> bool:
    """Tell whether a data set, or a variant of it, has views of scenes, with their cameras."""
    return _shows_scenes(data) or any(_shows_scenes(x(data)) for x in data.variants.values())


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
