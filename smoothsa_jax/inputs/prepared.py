"""Samples from a prepared folder, as written by `python -m data.prepare`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import NO_SEGMENT
from smoothsa_jax.inputs.augment import (
    CROPS,
    FLIP_PROBABILITY,
    RESTS,
    View,
    centre_square,
    draw_view,
    draw_window,
    drop_absent,
    first_of_blocks,
    repeats,
    settled_starts,
    view_boxes,
    view_cameras,
    view_depth,
    view_flow,
    view_labels,
    view_pixels,
    windows,
    within,
)
from smoothsa_jax.inputs.boxes import boxes_from_segmentation, pad_boxes, whole_frame_box
from smoothsa_jax.inputs.encoded import (
    FEATURES,
    EncodedClip,
    decode_boxes,
    decode_cameras,
    decode_depth,
    decode_flow,
    decode_frames,
    decode_labels,
    parse_clip,
    refuse_lacking,
)
from smoothsa_jax.inputs.manifest import entries, fingerprint, frame_counts, labelled_splits
from smoothsa_jax.inputs.records import Records
from smoothsa_jax.inputs.repeats import Repeats
from smoothsa_jax.inputs.resize import INTERPOLATIONS
from smoothsa_jax.parts import check_number, check_one_of


class PreparedFolder:
    """A random-access source of the clips of a prepared folder; a still is a clip of one frame.

    A clip can be seen in two ways. `source[index]` is for evaluation: the largest centered square
    of the whole video, of its first `num_frames` frames, or of one of its windows.
    `source.draw(index, rng)` is for training: a random window of `num_frames` frames, a random
    crop, a flip. Only the frames used are decoded. Objects not visible in any frame of the result
    are dropped; boxes are computed from the final labels.

    Args:
        folder: a prepared folder, or the address of one in a bucket, such as gs://bucket/folder.
        split: "train", "validation", "test" or another split of the folder.
        image_size: height and width of the result in pixels, one number or a pair.
        num_frames: frames per clip; None: the whole video, also in training. Training skips shorter
            videos, because the clips of a batch need one length; evaluation uses them whole.
        max_objects: with `boxes` or `categories`, the maximum number of visible objects per clip;
            default: as many as there are slots for.
        num_slots: number of slots N that boxes are given for; default: enough for `max_objects`.
        boxes: whether slots start from boxes. Slots without a box are masked; in a clip without
            objects, one slot starts from the whole frame. False for models that start from Gaussian
            queries: then every slot is valid, and there may be more objects than slots.
        background_box: whether slot 0 starts from the whole frame, to represent the background.
        zero_boxes: whether slots without a box start from a box of zeros and are valid (STEVE in
            the program of SmoothSA's author), in place of being masked.
        categories: whether samples have the categories of `max_objects` objects, as indices into
            the category names in the folder's description.
        num_samples: use only the first samples; default: the whole split.
        repeat_frames: in training, a video of t frames counts floor(t / repeat_frames) times per
            epoch, but at least once (YouTube-VIS: 30). None: every video counts once.
        cut_frames: in training, cut every video into windows of so many frames first, the last one
            moved back to fit. A video counts once per window, and its clips never cross two of
            them; shorter videos are left out (RandSF.Q's program on YouTube-VIS: 20). None, or
            without `num_frames`: no cut.
        rest: where a video is no whole number of training clips, "back" moves the last one back to
            fit, and "drop" leaves out the frames behind the last whole one.
        crop: how training crops: "area", "square" or "none"; see `augment.draw_view`.
        flip: the probability that training mirrors a clip.
        interpolation: how frames are resized: one of INTERPOLATIONS; see `resize.resize_pixels`.
        centre_crop: take the central square of so many pixels out of every frame before anything
            else, in training and evaluation (ClevrTex: 192). None: frames are used as stored.
        views: whether the frames of a clip are views of one still scene. Evaluation then sees whole
            frames, instead of their largest centered square.
        stored_boxes: whether boxes are those of the data set's own annotation, cropped (MOVi, as
            SAVi's program takes them), instead of the tightest around the final labels.
        also: optional keys of the samples: flow, depth, cameras. The program gives it.
        windows: in evaluation, each window of so many frames is a sample. The program gives it:
            `eval.windows`. None: each video is a sample.
        window_rest: where a video is no whole number of such windows: "back" or "drop" as `rest`,
            which leave out shorter videos; or "keep", a shorter last window. The program gives it.
        last_entry: the last frame of a clip, from 0, at which an object may enter the view. In
            training, all windows of `num_frames` frames that keep to this are equally likely, and a
            video counts once per such window. At evaluation, `windows` begin at the first start in
            each half window of a video that does (SlotFormer on CLEVRER, whose folders know the
            entries). Videos whose entries are unknown are left out. None: any. Whole videos, and
            single frames, are taken whatever it says.
        cache: where `folder` is in a bucket, the local folder for copies of its shards; None:
            in the user's cache (see `inputs.remote`).

    Raises:
        UserError: an option is out of range, or the folder is unreadable.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        image_size: int | tuple[int, int] = 256,
        num_frames: int | None = 1,
        max_objects: int | None = None,
        num_slots: int | None = None,
        boxes: bool = True,
        background_box: bool = True,
        zero_boxes: bool = False,
        categories: bool = False,
        num_samples: int | None = None,
        repeat_frames: int | None = None,
        cut_frames: int | None = None,
        rest: str = "back",
        crop: str = "area",
        flip: float = FLIP_PROBABILITY,
        interpolation: str = "bilinear",
        centre_crop: int | None = None,
        views: bool = False,
        stored_boxes: bool = False,
        also: tuple[str, ...] = (),
        windows: int | None = None,
        window_rest: str = "back",
        last_entry: int | None = None,
        cache: str | Path | None = None,
    ):
        first = int(background_box)
        if num_slots is None:
            num_slots = max_objects + first if max_objects is not None else None
        if max_objects is None and num_slots is not None:
            max_objects = num_slots - first
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        checks = [
            (
                len(size) == 2 and min(size) >= 1,
                f"data.image_size is {image_size}; expected a height and a width of at least 1 "
                "pixel",
            ),
            (
                num_slots is not None,
                "neither data.max_objects nor a number of slots is given; set data.max_objects to "
                "the most objects that a clip shows",
            ),
            *(
                (
                    value is None or value >= 1,
                    f"data.{name} is {value}; expected at least 1, or None",
                )
                for name, value in (
                    ("num_frames", num_frames),
                    ("num_samples", num_samples),
                    ("repeat_frames", repeat_frames),
                    ("cut_frames", cut_frames),
                    ("centre_crop", centre_crop),
                )
            ),
            (
                cut_frames is None or (num_frames or 1) <= cut_frames,
                f"data.cut_frames is {cut_frames}, shorter than a clip of data.num_frames="
                f"{num_frames}; raise it, or set --config.data.cut_frames=None",
            ),
            (
                cut_frames is None or repeat_frames is None,
                f"data.cut_frames and data.repeat_frames are {cut_frames} and {repeat_frames}, and "
                "both say how often a video counts; set one of them to None",
            ),
            (
                last_entry is None or last_entry >= 0,
                f"data.last_entry is {last_entry}; expected a frame of a clip, from 0, or None",
            ),
            (
                last_entry is None or cut_frames is repeat_frames is None,
                f"data.last_entry is {last_entry}, which says how often a video counts, as "
                "data.cut_frames and data.repeat_frames do; set these to None",
            ),
        ]
        for passes, message in checks:
            if not passes:
                raise UserError(message)
        check_one_of("data.rest", rest, RESTS[:2])
        check_one_of("data.crop", crop, CROPS)
        check_one_of("data.interpolation", interpolation, INTERPOLATIONS)
        check_number("data.flip", flip)
        if flip > 1:
            raise UserError(f"data.flip is {flip}; expected a probability, at most 1")
        if boxes and not 0 <= max_objects <= num_slots - first:
            raise UserError(
                f"data.max_objects is {max_objects}, but {num_slots - first} of the model's "
                f"{num_slots} slots can represent objects; set model.num_slots to "
                f"at least {max_objects + first}"
            )
        self.records = Records(folder, split, cache)
        self._split = split
        self._size = size
        self._centre_crop, self._views = centre_crop, views
        self._stored_boxes, self._also = stored_boxes, tuple(also)
        self._num_frames = num_frames
        self._max_objects, self._num_slots = max_objects, num_slots
        self._boxes, self._categories = boxes, categories
        self._zero_boxes = boxes and zero_boxes
        self._whole_frame = whole_frame_box(*size) if background_box else None
        self._repeat_frames, self._cut_frames, self._rest = repeat_frames, cut_frames, rest
        self._crop, self._flip, self._interpolation = crop, flip, interpolation
        self._last_entry, self._entries = last_entry, None
        if last_entry is not None and (windows or num_frames or 1) > 1:
            self._entries = entries(self.records.folder, split)
        self._windows = None if windows is None else self._cut(windows, window_rest)
        count = len(self.records) if self._windows is None else len(self._windows)
        self._length = min(count, num_samples or count)
        self._refuse_lacking()

    def __len__(self) -> int:
        return self._length

    def _refuse_lacking(self) -> None:
        """Refuse optional keys that the folder does not have, before a run begins."""
        for key in self._also:
            if key not in FEATURES:
                raise UserError(
                    f"a part, a loss or the task reads {key!r}, which prepared folders do not "
                    "have; choose scenes"
                )
            if len(self.records):
                refuse_lacking(self._record(0), key)

    @property
    def is_labelled(self) -> bool:
        """Whether the split has labels. A prepared folder without any holds empty label maps."""
        labelled = labelled_splits(self.records.folder)
        if labelled is not None:
            return self._split in labelled
        return len(self) == 0 or self._clip(0).labels is not None

    def long_enough(self, num_frames: int) -> Int[np.ndarray, " k"]:
        """The indices of samples that have at least `num_frames` frames."""
        if num_frames == 1:
            return np.arange(len(self))
        if self._windows is not None:
            lengths = np.array([len(window) for _, window in self._windows[: len(self)]], np.int64)
        else:
            lengths = frame_counts(self.records.folder, self._split)[: len(self)]
        return np.flatnonzero(lengths >= num_frames)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample `index` for evaluation; see smoothsa_jax.inputs for keys and shapes.

        Raises:
            UserError: a record or frame is unreadable, or there are too many objects. The message
                names the sample.
        """
        clip, which, name = self._scored(index)
        frames = decode_frames(clip, which)
        view = self._scored_view(clip, frames.shape[1:3])
        sample = self._sample(clip, which, self._labels(clip, which, frames.shape[1:3]), view)
        pixels = view_pixels(frames, view, self._size, self._interpolation)
        return {"video": pixels, **sample, "name": np.array(name)}

    def _scored(self, index: int) -> tuple[EncodedClip, range, str]:
        """The clip of an evaluation sample, its frames, and the sample's name."""
        if self._windows is None:
            clip = self._clip(index)
            length = len(clip) if self._num_frames is None else min(len(clip), self._num_frames)
            return clip, range(length), clip.stored_name
        self._check_index(index)
        video, window = self._windows[index]
        clip = self._record(video)
        return clip, window, f"{clip.stored_name} frames {window[0]}-{window[-1]}"

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Sample `index` for training, with all randomness drawn from `rng`.

        Raises:
            UserError: as for evaluation.
        """
        clip = self._clip(index)
        which = self._window(index, clip, rng)
        frames = decode_frames(clip, which)
        size = frames.shape[1:3]
        inner = self._inner(clip, size)
        view = draw_view(rng, *inner, self._crop, self._flip)
        view = view if inner == size else within(view, inner[0], *size)
        sample = self._sample(clip, which, self._labels(clip, which, frames.shape[1:3]), view)
        pixels = view_pixels(frames, view, self._size, self._interpolation)
        return {"video": pixels, **sample}

    def without_pixels(
        self, index: int, rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], range]:
        """Sample `index` without "video", for the largest centered square, and its frames.

        The window of frames is drawn from `rng`. No frame is decoded.

        Raises:
            UserError: as for evaluation.
        """
        clip = self._clip(index)
        which = self._window(index, clip, rng)
        labels = self._labels(clip, which)
        return self._sample(clip, which, labels, self._scored_view(clip, labels.shape[1:])), which

    def fixed_pixels(self, index: int, which: range) -> UInt8[np.ndarray, "T H W 3"]:
        """These frames of sample `index`, for the largest centered square, as evaluation sees them.

        Raises:
            UserError: as for evaluation.
        """
        clip = self._clip(index)
        frames = decode_frames(clip, which)
        view = self._scored_view(clip, frames.shape[1:3])
        return view_pixels(frames, view, self._size, self._interpolation)

    def _inner(self, clip: EncodedClip, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the part of frames (height, width) that is used."""
        side = self._centre_crop
        if side is None:
            return size
        if side > min(size):
            raise UserError(
                f"{clip.name} has frames of {size[0]}x{size[1]} pixels, data.centre_crop is "
                f"{side}; lower it, or prepare the folder without --size"
            )
        return side, side

    def _scored_view(self, clip: EncodedClip, size: tuple[int, int]) -> View:
        """What evaluation sees of frames (height, width)."""
        inner = self._inner(clip, size)
        if inner != size:
            return within(View(0, 0, *inner), inner[0], *size)
        return View(0, 0, *size) if self._views else centre_square(*size)

    def _window(self, index: int, clip: EncodedClip, rng: np.random.Generator) -> range:
        if self._num_frames is None:
            return range(len(clip))
        if self._entries is not None:
            starts = self._starts(index, len(clip), self._num_frames)
            if not len(starts):
                raise self._none_settled(self._num_frames, clip.name)
            start = int(rng.choice(starts))
            return range(start, start + self._num_frames)
        if self._cut_frames is None:
            return draw_window(rng, len(clip), self._num_frames, self._rest)
        outer = draw_window(rng, len(clip), self._cut_frames)
        inner = draw_window(rng, len(outer), self._num_frames, self._rest)
        return outer[inner.start : inner.stop]

    def _starts(self, video: int, length: int, num_frames: int) -> Int[np.ndarray, " s"]:
        """The starts of the windows of a video into which no object enters late."""
        if (entered := self._entries[video]) is None:
            return np.zeros(0, int)
        return settled_starts(length, num_frames, entered, self._last_entry)

    def epoch(self) -> Sequence[int]:
        """The indices of one training epoch, in order; some repeat. No list of them is made.

        Videos shorter than `num_frames` are left out, as in the authors' YouTube-VIS reader.

        Raises:
            UserError: all videos are shorter, the manifest lacks their lengths, or the disk has no
                room for copies of the samples.
        """
        self.records.refuse_full_disk(len(self))
        num_frames = self._num_frames or 1
        if num_frames == 1 and self._repeat_frames is None and self._cut_frames is None:
            return range(len(self))
        lengths = self._lengths()[: len(self)]
        if self._entries is not None:
            counts = [len(self._starts(k, n, num_frames)) for k, n in enumerate(lengths.tolist())]
            if not any(counts):
                raise self._none_settled(num_frames, self._whole)
            return Repeats(np.array(counts, np.int32))
        # Of each length once: there are millions of videos, and few lengths.
        of_length = np.zeros(lengths.max(initial=0) + 1, np.int32)
        for length in np.unique(lengths):
            of_length[length] = self._count(int(length))
        counts = of_length[lengths]
        if not counts.any():
            key = "num_frames" if self._cut_frames is None else "cut_frames"
            raise UserError(
                f"no sample of split {self._split!r} in {self.records.folder} has the "
                f"{self._cut_frames or num_frames} frames requested, the longest has "
                f"{lengths.max()}; lower data.{key}"
            )
        return Repeats(counts)

    def _count(self, length: int) -> int:
        """How often a video of so many frames comes in a training epoch."""
        if length < (self._cut_frames or self._num_frames or 1):
            return 0
        if self._cut_frames is not None:
            return len(windows(length, self._cut_frames))
        return repeats(length, self._repeat_frames or length)

    def _lengths(self) -> Int[np.ndarray, " V"]:
        """The number of frames of every video of the split."""
        lengths = frame_counts(self.records.folder, self._split)
        if len(lengths) != len(self.records):
            raise UserError(
                f"{self.records.folder} has {len(self.records)} samples of split {self._split!r}, "
                f"its manifest gives the length of {len(lengths)}; prepare the folder again"
            )
        return lengths

    def _cut(self, num_frames: int, rest: str) -> list[tuple[int, range]]:
        """The windows that are scored: the video of each, and its frames."""
        lengths = self._lengths()
        if self._entries is not None:
            settled = [
                (video, range(start, start + num_frames))
                for video, length in enumerate(lengths.tolist())
                for start in first_of_blocks(self._starts(video, length, num_frames), num_frames)
            ]
            if not settled:
                raise self._none_settled(num_frames, self._whole)
            return settled
        found = [
            (video, window)
            for video, length in enumerate(lengths)
            if length >= num_frames or rest == "keep"
            for window in windows(int(length), num_frames, rest)
        ]
        if not found:
            raise UserError(
                f"no video of split {self._split!r} in {self.records.folder} has the {num_frames} "
                f"frames of a window, the longest has {lengths.max(initial=0)}; lower "
                "--config.eval.windows, or set --config.eval.window_rest=keep"
            )
        return found

    def _none_settled(self, num_frames: int, where: str) -> UserError:
        return UserError(
            f"into every window of {num_frames} frames of {where} an object enters after its frame "
            f"{self._last_entry}, or its video has no annotation; raise data.last_entry, or set "
            "--config.data.last_entry=None"
        )

    def fingerprint(self) -> str | None:
        """A hash of the split's bytes, independent of the folder's path; None: unknown."""
        return fingerprint(self.records.folder, self._split)

    def _clip(self, index: int) -> EncodedClip:
        self._check_index(index)
        return self._record(index)

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self._length:
            raise IndexError(f"index {index} is not in 0..{self._length - 1}")

    @property
    def _whole(self) -> str:
        return f"split {self._split!r} in {self.records.folder}"

    def _record(self, index: int) -> EncodedClip:
        return parse_clip(self.records[int(index)], f"sample {index} of {self._whole}")

    def _sample(
        self, clip: EncodedClip, which: range, labels: UInt8[np.ndarray, "T H W"], view: View
    ) -> dict[str, np.ndarray]:
        """Everything in a sample except its pixels."""
        whole = labels.shape[1:]
        labels, kept = drop_absent(view_labels(labels, view, self._size))
        num_objects = len(kept)
        if (self._boxes or self._categories) and num_objects > self._max_objects:
            more = ", and model.num_slots with it" if self._boxes else ""
            raise UserError(
                f"{clip.name} shows {num_objects} objects, data.max_objects is "
                f"{self._max_objects}; raise it{more}"
            )
        room = self._num_slots - int(self._whole_frame is not None)
        ids = np.arange(1, min(num_objects, room) + 1)
        if self._stored_boxes:
            boxes = self._boxes_of(clip, which, kept[: len(ids)], view, whole)
        else:
            boxes = boxes_from_segmentation(labels, ids)
        boxes = pad_boxes(boxes, self._num_slots, whole_frame=self._whole_frame)
        slot_mask = np.ones(self._num_slots, dtype=bool)
        if self._zero_boxes:
            boxes = np.maximum(boxes, 0.0)  # padding is -1
        elif self._boxes:
            slot_mask = boxes[0, :, 0] >= 0
            if not slot_mask.any():
                # No visible object: a model needs a slot, so one starts from the whole frame.
                boxes[:, 0], slot_mask[0] = whole_frame_box(*self._size), True
        sample = {
            "segmentations": labels,
            "boxes": boxes,
            "slot_mask": slot_mask,
        }
        if self._categories:
            sample["categories"] = self._categories_of(clip, kept)
        return sample | {key: self._optional(key, clip, which, view, whole) for key in self._also}

    def _optional(
        self, key: str, clip: EncodedClip, which: range, view: View, size: tuple[int, int]
    ) -> np.ndarray:
        """An optional key of a sample, whose frames have the `size` (height, width)."""
        if key == "cameras":
            return view_cameras(decode_cameras(clip, which), view, size)
        decode, see = {"depth": (decode_depth, view_depth), "flow": (decode_flow, view_flow)}[key]
        values = decode(clip, which)
        if values.shape[1:3] != tuple(size):
            raise UserError(
                f"{clip.name} has frames of {size[0]}x{size[1]} pixels and {key} of "
                f"{values.shape[1]}x{values.shape[2]}; prepare the folder again without --size"
            )
        return see(values, view, self._size)

    def _boxes_of(
        self,
        clip: EncodedClip,
        which: range,
        kept: Int[np.ndarray, " k"],
        view: View,
        size: tuple[int, int],
    ) -> Float32[np.ndarray, "T k 4"]:
        """The stored boxes of the objects with the original labels `kept`, as seen in `view`."""
        stored = decode_boxes(clip, which)
        if kept.max(initial=0) > stored.shape[1]:
            raise UserError(
                f"{clip.name} has label {kept.max()} and boxes of {stored.shape[1]} objects, "
                "expected one of each object; prepare the folder again"
            )
        top, left, bottom, right = np.moveaxis(view_boxes(stored[:, kept - 1], view, size), -1, 0)
        return np.stack([left, top, right, bottom], axis=-1)

    def _categories_of(
        self, clip: EncodedClip, kept: Int[np.ndarray, " k"]
    ) -> Int32[np.ndarray, " K"]:
        """The categories of the objects with the original labels `kept`, padded with -1."""
        if clip.categories is None:
            raise UserError(
                f"{clip.name} has no categories, and data.categories needs them; take a data set "
                "that has some, or set data.categories=False"
            )
        if kept.max(initial=0) > len(clip.categories):
            raise UserError(
                f"{clip.name} has label {kept.max()} and categories of {len(clip.categories)} "
                "objects, expected one of each object; prepare the folder again"
            )
        padded = np.full(self._max_objects, -1, np.int32)
        padded[: len(kept)] = np.asarray(clip.categories, np.int32)[kept - 1]
        return padded

    def _labels(
        self, clip: EncodedClip, which: range, size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "T H W"]:
        """Label maps, which must have the frames' `size`; None: unknown size."""
        if clip.labels is None:
            if self._boxes:
                raise UserError(
                    f"{clip.name} has no labels, and data.boxes needs them; set data.boxes=False "
                    "and an initializer that starts without boxes"
                )
            return np.full((len(which), *(size or self._size)), NO_SEGMENT, dtype=np.uint8)
        labels = decode_labels(clip, which)
        if size is not None and labels.shape[1:] != tuple(size):
            raise UserError(
                f"{clip.name} has frames of {size[0]}x{size[1]} pixels and label maps of "
                f"{labels.shape[1]}x{labels.shape[2]}; prepare the folder again"
            )
        return labels
