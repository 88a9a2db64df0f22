"""What happens behind the page: a visitor's picture or video goes through the model.

Memory stays flat, whatever is uploaded:

* Pictures are shrunk to at most LONGEST pixels, and of a video the first MAX_FRAMES frames count.
* Frames are segmented one by one. Results are files, and a visitor's session holds their names.
* Each size of a picture and each number of slots or iterations is a program of its own. After
  MAX_PROGRAMS of them, JAX forgets all.
"""

import contextlib
import itertools
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from smoothsa_jax.devices.compiling import telling_out_of_memory
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.pictures import FPS, enlarge_factor, palette
from smoothsa_jax.files import atomic_file
from smoothsa_jax.inference.forecaster import Forecaster
from smoothsa_jax.inference.overlays import TILE, drawn
from smoothsa_jax.inference.predict import Options, found_in, frames_of
from smoothsa_jax.inference.results import MAX_SLOTS, Results, check_num_slots
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.inference.sources import Source, file_source
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.sprites import Sprites

LONGEST = 1024  # pixels of the longer side of what is segmented
MAX_FRAMES = 240  # of a video; ten seconds
MAX_PROGRAMS = 16  # sizes and settings that are compiled at a time
EXAMPLES, EXAMPLE_FRAMES, EXAMPLE_SIZE = 64, 12, 256
PRUNING = ("off", "auto", "distance")


class Controls(NamedTuple):
    """Which controls a model can use, and what they show at first.

    Attributes:
        num_slots: N; None: the model has a fixed number.
        iterations: whether the number of iterations can be chosen.
        seed: whether the queries are random.
        pruning: one of PRUNING; None: the model cannot be pruned.
        distance: of pruning.
        boxes: whether slots start from boxes.
        future: how many frames are predicted; None: it predicts none.
    """

    num_slots: int | None
    iterations: bool
    seed: bool
    pruning: str | None
    distance: float
    boxes: bool
    future: int | None


class Asked(NamedTuple):
    """What a visitor asks for.

    Attributes:
        num_slots: N; None: as in training.
        iterations: on each frame; 0: as in training.
        seed: of the random queries.
        pruning: one of PRUNING; None: as in the model's evaluation.
        distance: the cosine distance of "distance".
        boxes: four numbers for each object, as text.
        future: number of predicted frames.
    """

    num_slots: int | None = None
    iterations: int = 0
    seed: int = 0
    pruning: str | None = None
    distance: float = 0.5
    boxes: str = ""
    future: int = 0

    def options(self) -> dict[str, Any]:
        """Return it as `predict.Options` has it."""
        prune = {"off": False, "auto": "auto", "distance": self.distance, None: None}
        return {
            "num_slots": self.num_slots,
            "iterations": self.iterations or None,
            "seed": self.seed,
            "prune": prune[self.pruning],
            "future": self.future or None,
        }


class Given(NamedTuple):
    """What is segmented.

    Attributes:
        path: of a picture or video; None: a generated clip.
        index: of the generated clip.
    """

    path: str | None = None
    index: int = 0


class Shown(NamedTuple):
    """What was found: names of files alone.

    Attributes:
        folder: `found/` holds what `--mode=predict` writes, `frames/` what was segmented.
        num_frames: T, predicted frames included.
        is_video: whether it is a video.
        num_predicted: number of predicted frames, which come last.
        notes: remarks, one line each.
    """

    folder: Path
    num_frames: int
    is_video: bool
    num_predicted: int
    notes: tuple[str, ...]


class Demo:
    """A model, and what a page does with it.

    Args:
        model: a slot model, or a rollouter with its own.
        folder: where files of visitors are kept.
        name: of the model, for its visitors.

    Raises:
        UserError: the model has too many slots for label maps.
    """

    def __init__(self, model: Segmenter | Forecaster, folder: Path, name: str = ""):
        self.forecaster = model if isinstance(model, Forecaster) else None
        self.model = model.segmenter if self.forecaster else model
        check_num_slots(self.model.num_slots)
        self.name, self._folder = name, folder
        self._programs: set[Any] = set()
        self._lock, self._numbers, self._closed = threading.Lock(), itertools.count(), False
        self.controls = self._controls()

    def _controls(self) -> Controls:
        model = self.model
        any_number = model.any_number and not model.starts_from_boxes
        pruning, distance = None, 0.5
        if _is_possible(lambda: model.chosen_pruning("auto")):
            own = model.chosen_pruning()
            pruning = "off" if own is None else "auto" if own.of_median else "distance"
            distance = float(own.distance) if pruning == "distance" else distance
        return Controls(
            num_slots=model.num_slots if any_number else None,
            iterations=_is_possible(lambda: model.chosen_iterations(1)),
            seed=model.is_random,
            pruning=pruning,
            distance=distance,
            boxes=model.starts_from_boxes,
            future=None if self.forecaster is None else 6,
        )

    def close(self) -> None:
        """Find nothing more, and wait for what the model computes: JAX cannot be left within."""
        self._closed = True
        with self._lock:
            pass

    # ------------------------------------------------------------------------------- what is given

    def example(self, index: int = 0) -> tuple[UInt8[np.ndarray, "T H W 3"], str]:
        """Return a generated clip, of one frame for models of images, and its boxes as text.

        The clip is of the data that the model was trained on, if they are generated too, else of
        sprites.
        """
        config, frames = self.model.config.data, 1
        if self.forecaster is not None:
            frames = max(EXAMPLE_FRAMES, self.forecaster.fewest)
        elif self.model.follows:
            frames = EXAMPLE_FRAMES
        given = {"num_frames": frames, "num_samples": EXAMPLES, "boxes": True, "keep": False}
        if config.name in ("sprites", "scenes"):
            most = {"num_slots": None} if "num_slots" in config else {}
            clips = build_dataset(config, "test", **given, **most)
        else:
            clips = Sprites(EXAMPLE_SIZE, split="test", **given)
        sample = clips[index % EXAMPLES]
        height, width = sample["video"].shape[1:3]
        own = sample["boxes"][0][sample["slot_mask"]]
        own = np.rint(own * [width, height, width, height]).astype(int)
        whole = [0, 0, width - 1, height - 1]
        boxes = [box for box in own.tolist() if any(box) and box != whole]
        return sample["video"], "\n".join(" ".join(map(str, box)) for box in boxes)

    def find(
        self,
        given: Given,
        asked: Asked,
        progress: Callable[[int, int | None], None] = lambda done, of: None,
    ) -> Shown:
        """Segment a picture, a video or the example, frame by frame.

        Args:
            given: what.
            asked: how.
            progress: called after each frame with the number of frames, and of all of them if that
                is known.

        Raises:
            UserError: the file cannot be read, or what is asked for does not fit the model.
        """
        with self._lock:  # the model computes for one visitor at a time
            self._check_open()
            folder = self._folder / f"{next(self._numbers):06d}"
            try:
                return self._find(folder, given, asked, progress)
            except BaseException as error:
                shutil.rmtree(folder, ignore_errors=True)
                if text := _in_one_line(error, given.path):
                    raise UserError(text) from error
                raise

    def _find(
        self, folder: Path, given: Given, asked: Asked, progress: Callable[[int, int | None], None]
    ) -> Shown:
        source, options = self._source(given), Options("", "", folder, **asked.options())
        is_video, notes = source.kind != "picture", []
        forecaster = self.forecaster if asked.future and is_video else None
        if asked.future and not is_video:
            notes.append("A picture has no future: give a video to see predicted frames.")
        if is_video and not self.model.follows:
            notes.append("This model was trained on images: each frame is segmented on its own.")
        for inner in ("found", "frames"):
            (folder / inner).mkdir(parents=True)
        attention = {}
        with self._opened(source, given.index) as (fps, opened, known):
            frames = iter(opened)
            whole = next(frames)
            first = _shrunk(whole)
            height, width = first.shape[:2]
            if first is not whole:
                notes.append(f"Shrunk to {width}x{height} pixels.")
            boxes = None
            if self.controls.boxes:
                boxes = {source.name: _boxes_of(asked.boxes, whole.shape[:2], (height, width))}
            num_boxes = 0 if boxes is None else len(boxes[source.name])
            key = (height, width, num_boxes, *asked[:2], asked.pruning, asked.future)
            self._forget_old_programs(key)
            later = map(_shrunk, itertools.islice(frames, MAX_FRAMES - 1))
            counted = itertools.chain([first], later)
            most = None if known is None else min(known, MAX_FRAMES)
            if most is not None and forecaster is not None:
                most += asked.future
            with (
                Results(folder / "found", fps if is_video else None) as results,
                telling_out_of_memory(
                    f"one frame with {asked.num_slots or self.model.num_slots} slots",
                    "choose fewer slots, or stop other programs on the device",
                ),
            ):
                predicted = 0
                for x in found_in(options, self.model, source, boxes, counted, forecaster):
                    self._check_open()
                    number = results.num_frames
                    results.add(x.frame, x.found, predicted=x.predicted)
                    Image.fromarray(x.frame).save(folder / f"frames/{number:06d}.jpg", quality=92)
                    attention[str(number)] = x.found.attention.astype(np.float16)
                    predicted += x.predicted
                    progress(number + 1, most)
            if len(attention) - predicted == MAX_FRAMES and next(frames, None) is not None:
                of = f" of {known}" if known else ""
                notes.append(f"The first {MAX_FRAMES} frames{of}; --mode=predict has no limit.")
            if missing := getattr(opened, "missing", ""):
                notes.append(f"{missing[0].upper()}{missing[1:]}.")
        np.savez(folder / "attention.npz", **attention)
        return Shown(folder, len(attention), is_video, predicted, tuple(notes))

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("the page was closed; open it again")

    def _source(self, given: Given) -> Source:
        if given.path is None:
            is_video = self.model.follows or self.forecaster is not None
            return Source("example", "frames" if is_video else "picture", ())
        path = Path(given.path)
        return file_source(path, path.name)

    @contextlib.contextmanager
    def _opened(self, source: Source, index: int) -> Iterator[tuple[float, Any, int | None]]:
        if source.files:
            with frames_of(source) as opened:
                yield opened
        else:
            video, _ = self.example(index)
            yield FPS, iter(video), len(video)

    def _forget_old_programs(self, key: Any) -> None:
        """Forget all compiled programs if there are too many; `key` is what the next depend on."""
        self._programs.add(repr(key))
        if len(self._programs) > MAX_PROGRAMS:
            jax.clear_caches()
            self._programs = {repr(key)}

    # ------------------------------------------------------------------------------- what is shown

    def overlay(self, shown: Shown, number: int) -> UInt8[np.ndarray, "sH sW 3"]:
        """Return a frame with its slots as colors."""
        return drawn(_frame(shown, number), labels_of(shown, number))

    def attention(self, shown: Shown, number: int, slot: int) -> UInt8[np.ndarray, "sH sW 3"]:
        """Return a frame, bright and in the slot's color where the slot attends."""
        frame = _frame(shown, number)
        with np.load(shown.folder / "attention.npz") as stored:
            share = stored[str(number)][slot].astype(np.float32)
        return lit(frame, share / max(share.max(), 1e-6), slot)

    def slot_at(self, shown: Shown, number: int, x: float, y: float) -> int:
        """Return the slot at a pixel of the overlay."""
        labels = labels_of(shown, number)
        scale = enlarge_factor(labels[None], TILE)
        row, column = (
            int(np.clip(place // scale, 0, side - 1))
            for place, side in zip((y, x), labels.shape, strict=True)
        )
        return int(labels[row, column])

    def shares(self, shown: Shown, number: int) -> dict[int, float]:
        """Return slot -> its share of the frame's pixels, the largest first."""
        found = np.bincount(labels_of(shown, number).ravel())
        order = np.argsort(-found, kind="stable")
        return {int(slot): found[slot] / found.sum() for slot in order if found[slot]}

    def archive(self, shown: Shown) -> Path:
        """Return a ZIP archive of the files that `--mode=predict` writes, made once."""
        path = shown.folder / "masks.zip"
        if not path.exists():
            with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
                for file in sorted((shown.folder / "found").rglob("*.*")):  # no folders
                    archive.write(file, file.relative_to(shown.folder / "found"))
        return path


def labels_of(shown: Shown, number: int) -> Int[np.ndarray, "H W"]:
    """Return the slot of each pixel of a frame."""
    name = f"labels/{number:06d}.png" if shown.is_video else "labels.png"
    return np.asarray(Image.open(shown.folder / "found" / name)).astype(np.int64)


def lit(
    frame: UInt8[np.ndarray, "H W 3"], share: Float[np.ndarray, "h w"], slot: int
) -> UInt8[np.ndarray, "sH sW 3"]:
    """Draw a map over a frame, which is dark elsewhere.

    Args:
        frame: the frame.
        share: 0 to 1, on any grid.
        slot: whose color it is.
    """
    # Enlarged as the overlay is, with a number that no slot has.
    plain = drawn(frame, np.full(frame.shape[:2], MAX_SLOTS))
    share = cv2.resize(share, plain.shape[1::-1], interpolation=cv2.INTER_LINEAR)[..., None]
    gray = plain.astype(np.float32).mean(axis=-1, keepdims=True)
    color = palette(MAX_SLOTS + 1)[slot + 1].astype(np.float32)
    mixed = (1 - share) * 0.35 * gray + share * (0.45 * gray + 0.55 * color)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _frame(shown: Shown, number: int) -> UInt8[np.ndarray, "H W 3"]:
    return np.asarray(Image.open(shown.folder / "frames" / f"{number:06d}.jpg"))


def _is_possible(choose: Callable[[], Any]) -> bool:
    try:
        choose()
    except UserError:
        return False
    return True


def _shrunk(frame: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Return a frame of at most LONGEST pixels."""
    longest = max(frame.shape[:2])
    if longest <= LONGEST:
        return frame
    height, width = (max(1, round(side * LONGEST / longest)) for side in frame.shape[:2])
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def _boxes_of(text: str, given: tuple[int, int], size: tuple[int, int]) -> list[list[float]]:
    """Read boxes, and shrink them with their picture.

    Args:
        text: left, top, right and bottom pixel of each box, with anything in between.
        given: height and width of the picture in whose pixels boxes are given.
        size: the same of the picture that is segmented.

    Raises:
        UserError: there are no boxes, or a number is missing.
    """
    numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]
    if not numbers or len(numbers) % 4:
        raise UserError(
            f"the boxes have {len(numbers)} numbers, and this model starts its slots from boxes; "
            "give left, top, right and bottom pixel of each object"
        )
    boxes = np.array(numbers).reshape(-1, 4)
    if given != size:
        (height, width), (new_height, new_width) = given, size
        boxes = boxes * ([new_width / width, new_height / height] * 2)
    return boxes.tolist()


def _in_one_line(error: BaseException, path: str | None) -> str:
    """Return what a visitor can mend, without the folder of the upload; "" for other errors."""
    if isinstance(error, UserError):
        text = str(error)
    elif isinstance(error, OSError | av.FFmpegError):
        text = f"{error.strerror or error}; try again, or give another file"
    else:
        return ""
    return text if path is None else text.replace(path, Path(path).name)
