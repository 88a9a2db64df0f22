"""`main.py --mode=predict`: run a trained model on pictures and videos, one output folder each."""

import contextlib
import dataclasses
import itertools
import json
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from tqdm import tqdm

from smoothsa_jax.checkpoints.workdir import workdir_for_writing
from smoothsa_jax.devices.compiling import telling_out_of_memory
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.pictures import FPS
from smoothsa_jax.inference.edits import Edits, described, edits_of
from smoothsa_jax.inference.forecaster import Forecaster
from smoothsa_jax.inference.frames import as_frame, checked_frames
from smoothsa_jax.inference.given_boxes import Boxes, boxes_for, read_boxes
from smoothsa_jax.inference.listing import LeftOut
from smoothsa_jax.inference.load import load, load_forecaster
from smoothsa_jax.inference.results import MAX_SLOTS, Results, check_num_slots
from smoothsa_jax.inference.segmentation import Segmentation
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.inference.sources import Source, find_sources
from smoothsa_jax.inference.videos import read_video
from smoothsa_jax.text import printable, say

ABOUT_FILE = "about.json"
STAGING = ".unfinished"  # inside the output folder: renaming is atomic within one file system


class Options(NamedTuple):
    """Options of the command line.

    Attributes:
        workdir: anything that `load` accepts.
        input: a path, glob or folder; see `sources.find_sources`.
        output: output folder, with a folder for each input, named after it.
        boxes: JSON file of boxes, for models that start from boxes.
        num_slots: N, for models that start from Gaussian queries; None: as in training.
        seed: seed of the random queries.
        shot_cuts: threshold of shot cuts; None: the whole video is one shot.
        cut_signal: what tells cuts; see `Segmenter.stream`.
        requery: when a slot starts anew by itself; see `Segmenter.stream`.
        overwrite: whether to replace finished outputs.
        folders: how to treat folders of pictures; see `sources.find_sources`.
        iterations: see `Segmenter.segment`.
        prune: see `Segmenter.segment`; also the next three.
        prune_restart: where the slots that stay are aggregated once more.
        prune_iterations: how many iterations that has.
        prune_video: how later frames are pruned.
        reconstruct: whether to write the decoded pictures of the slots.
        edit: edits of the slots, one after the other, such as "remove:2" or "swap:1,other.png:3";
            the decoded pictures of the edited slots are written. See `edits.py`.
        future: how many frames after each video are predicted, by a run of the task `dynamics`;
            None: none.
    """

    workdir: str
    input: str
    output: Path
    boxes: str | None = None
    num_slots: int | None = None
    seed: int = 0
    shot_cuts: float | None = None
    cut_signal: str = "features"
    requery: float | None = None
    overwrite: bool = False
    folders: str = "auto"
    iterations: int | tuple[int, int] | None = None
    prune: float | str | bool | None = None
    prune_restart: str | None = None
    prune_iterations: int | None = None
    prune_video: str | None = None
    reconstruct: bool = False
    edit: tuple[str, ...] = ()
    future: int | None = None

    @property
    def starts(self) -> dict[str, Any]:
        """The arguments of `Segmenter.stream` about slots that start anew."""
        return {name: getattr(self, name) for name in ("shot_cuts", "cut_signal", "requery")}

    @property
    def pruning(self) -> dict[str, Any]:
        """The arguments of `Segmenter.segment` about pruning that were given."""
        names = ("prune", "prune_restart", "prune_iterations", "prune_video")
        given = {name: getattr(self, name) for name in names}
        return {name: x for name, x in given.items() if x is not None}


def predict(options: Options) -> None:
    """Segment every input.

    Finished outputs are kept even if other inputs fail; a rerun skips them.

    Raises:
        UserError: there is no input, or the options do not fit the model; an output cannot be
            written, for example because the disk is full; at the end, if inputs failed.
    """
    left_out = LeftOut()
    sources = find_sources(options.input, options.folders, options.output, left_out)
    for line in left_out.lines():
        print(line, file=sys.stderr, flush=True)
    forecaster = None if options.future is None else _forecaster(options, sources)
    model = load(options.workdir) if forecaster is None else forecaster.segmenter
    boxes = _checked(options, model, [source.name for source in sources])
    with workdir_for_writing(options.output, "output"):
        shutil.rmtree(options.output / STAGING, ignore_errors=True)  # left by a killed run
        known = sum(len(source.files) for source in sources if source.kind != "video")
        failed, done, skipped = [], 0, 0
        with tqdm(total=known, unit=" frames", smoothing=0.1, leave=False) as bar:
            for source in sources:
                bar.set_description(printable(source.name))
                about = _about(options, model, source, boxes)
                if forecaster is not None:
                    about |= {"future": options.future, "rollouter": forecaster.checksum}
                target = options.output / source.name
                try:
                    if _is_finished(target, options.output, about, options.overwrite):
                        bar.update(len(source.files) if source.kind != "video" else 0)
                        skipped += 1
                        continue
                    with telling_out_of_memory(
                        f"one frame of {model.image_size[0]}x{model.image_size[1]} pixels with "
                        f"{about['num_slots']} slots",
                        "use fewer --num_slots, stop other programs on the device, or set "
                        "JAX_PLATFORMS=cpu",
                    ):
                        note = _predict_one(options, model, source, boxes, about, bar, forecaster)
                    done += 1
                    if note:
                        _say(bar, f"{source.name}: {note}")
                except UserError as error:
                    failed.append(source.name)
                    text = str(error)
                    text = text if source.name in text else f"{source.name}: {text}"
                    if len(sources) == 1:
                        raise UserError(text) from error
                    _say(bar, f"error: {text}")
                # FFmpeg raises its own errors for problems with a file.
                except (OSError, av.FFmpegError) as error:
                    where = getattr(error, "filename", None) or target
                    raise UserError(
                        f"{where}: {error.strerror or error}; nothing of {target} was kept: fix "
                        "that, then run the same command, which skips what is finished"
                    ) from error
    skips = f", {skipped} skipped that were finished before" * bool(skipped)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(sources)} inputs failed ({', '.join(failed[:3])}"
            f"{', ...' * (len(failed) > 3)}), see above; {done} done{skips}: {options.output}"
        )
    say(f"{done} done{skips}: {options.output}")


def _forecaster(options: Options, sources: list[Source]) -> Forecaster:
    """Return what predicts the frames after each video.

    Raises:
        UserError: an option or an input does not go with it.
    """
    if options.future < 1:
        raise UserError(f"--future is {options.future}; expected at least 1 frame")
    for name in ("shot_cuts", "requery", "reconstruct", "edit"):
        if getattr(options, name):
            raise UserError(
                f"--{name.replace('_', '-')} does not go with --future; leave one of them out"
            )
    if pictures := [source.name for source in sources if source.kind == "picture"]:
        raise UserError(
            f"{pictures[0]} is a picture, and --future continues videos; give a video or a folder "
            "of frames"
        )
    return load_forecaster(options.workdir)


def _say(bar: tqdm, text: str) -> None:
    bar.write(printable(text), file=sys.stderr)


def _checked(options: Options, model: Segmenter, names: list[str]) -> Boxes | None:
    """Check the options against the model before anything is written.

    Returns:
        The boxes; None if the model does not start from boxes.

    Raises:
        UserError: an option does not fit the model.
    """
    check_num_slots(max(model.num_slots, options.num_slots or 0))
    model.chosen_pruning(**options.pruning)
    model.chosen_iterations(options.iterations)
    if options.reconstruct or options.edit:
        model.check_pictures()
    edits = edits_of(options.edit)  # before anything is written
    for flag, value in (("--shot-cuts", options.shot_cuts), ("--requery", options.requery)):
        if value is not None and model.starts_from_boxes:
            raise UserError(
                f"{flag} starts new slots and needs Gaussian queries, and this model starts its "
                "slots from boxes; leave it out, or use a model with Gaussian queries"
            )
        if value is not None and not model.follows:
            raise UserError(
                f"{flag} has no effect on a model of images, which segments each frame on its own; "
                "leave it out"
            )
    model.chosen_anew(**options.starts)
    if not model.starts_from_boxes:
        if options.boxes is not None:
            raise UserError(
                "--boxes was given, and this model starts its slots from Gaussian queries; leave "
                "it out"
            )
        return None
    if options.num_slots is not None:
        raise UserError(
            "--num_slots was given, and this model has a slot for each box; leave it out"
        )
    if options.boxes is None:
        raise UserError(
            "this model starts its slots from boxes; give --boxes=FILE.json with boxes for "
            f"{names[0]}{' and the others' * (len(names) > 1)}, or use a model with Gaussian "
            "queries"
        )
    boxes = read_boxes(options.boxes)
    boxes_for(boxes, names, options.boxes)
    boxes_for(boxes, [edit.source.name for edit in edits if edit.source], options.boxes)
    most = max(names, key=lambda name: len(boxes[name]))
    if len(boxes[most]) >= MAX_SLOTS:  # one slot may be the background's
        raise UserError(
            f"--boxes={options.boxes} has {len(boxes[most])} boxes for {most}; label maps have "
            f"room for {MAX_SLOTS - 1}"
        )
    return boxes


def _about(
    options: Options, model: Segmenter, source: Source, boxes: Boxes | None
) -> dict[str, Any]:
    """Return everything that determines an output; an output with equal entries is up to date."""
    folder, pruning = Path(options.workdir), model.chosen_pruning(**options.pruning)
    iterations = model.chosen_iterations(options.iterations)
    return {
        "model": str(folder.resolve()) if folder.exists() else options.workdir,
        "step": model.step,
        "weights": model.checksum,
        "num_slots": options.num_slots or model.num_slots,
        "seed": options.seed,
        "shot_cuts": options.shot_cuts,
        "boxes": None if boxes is None else boxes[source.name],
        "files": len(source.files),
        "prune": None if pruning is None else dataclasses.asdict(pruning),
        "bytes": sum(file.stat().st_size for file in source.files),
        # None: as in outputs that were made before there were such options.
        "iterations": None if iterations is None else dataclasses.asdict(iterations),
        "cut_signal": None if options.cut_signal == "features" else options.cut_signal,
        "requery": options.requery,
        "reconstruct": options.reconstruct or None,
        "edit": [list(x) for x in map(described, edits_of(options.edit))] or None,
    }


def _is_finished(target: Path, output: Path, about: dict[str, Any], overwrite: bool) -> bool:
    """Tell whether the requested output exists already.

    Raises:
        UserError: the output folder holds something else.
    """
    if not target.exists():
        for folder in itertools.takewhile(lambda folder: folder != output, target.parents):
            if (folder / ABOUT_FILE).exists():
                raise UserError(
                    f"{folder} holds the output of another input; nothing was changed: use another "
                    f"--output for {target.name}"
                )
        return False
    try:
        found = json.loads((target / ABOUT_FILE).read_text())["made_of"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{target} exists and was not made by --mode=predict; nothing was changed: move it "
            "away, or use another --output"
        ) from None
    if overwrite:
        return False
    changed = [key for key, value in about.items() if found.get(key) != value]
    if changed:
        key = changed[0]
        raise UserError(
            f"{target} exists and was made with other settings ({key}: {found.get(key)}, now "
            f"{about[key]}); nothing was changed: use another --output, or --overwrite"
        )
    return True


def _predict_one(
    options: Options,
    model: Segmenter,
    source: Source,
    boxes: Boxes | None,
    about: dict[str, Any],
    bar: tqdm,
    forecaster: Forecaster | None = None,
) -> str:
    """Make one output, completely or not at all, and return notes on it."""
    made, target = options.output / STAGING / "new", options.output / source.name
    made.mkdir(parents=True)
    try:
        notes = []
        with frames_of(source) as (fps, frames, num_frames):
            if num_frames is not None and source.kind == "video":
                bar.total += num_frames
                bar.refresh()
            with Results(made, fps) as results:
                edits = Edits(edits_of(options.edit), _other(options, model, boxes))
                seen = 0
                for x in found_in(options, model, source, boxes, frames, forecaster):
                    decoded = {} if x.predicted else _pictures(options, model, edits, x.found)
                    results.add(x.frame, x.found, decoded, x.predicted)
                    seen += not x.predicted
                    bar.update(not x.predicted)
            if source.kind == "video":
                bar.total += seen - (num_frames or 0)
        if missing := getattr(frames, "missing", ""):
            notes.append(missing)
        if fps is not None and not model.follows:
            notes.append("the model was trained on images, so each frame was segmented on its own")
        about = {"frames": results.num_frames, "notes": notes, "made_of": about}
        (made / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        # --overwrite: if the run is killed between the two renames, the old output still exists.
        old = target.with_name(f".old-{target.name}")
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        made.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        return "; ".join(notes)
    finally:
        shutil.rmtree(options.output / STAGING, ignore_errors=True)


def _pictures(
    options: Options, model: Segmenter, edits: Edits, found: Segmentation
) -> dict[str, np.ndarray]:
    """Return the decoded pictures that were asked for, of a frame."""
    decoded = {}
    if options.reconstruct:
        decoded["reconstruction"] = model.reconstruct(found, seed=options.seed)
    if options.edit:
        decoded["edited"] = model.reconstruct(edits(found), seed=options.seed)
    return decoded


def _other(
    options: Options, model: Segmenter, boxes: Boxes | None
) -> Callable[[Source], Iterator[Segmentation]]:
    """Return what segments another picture or video, from which a slot comes."""

    def segmented(source: Source) -> Iterator[Segmentation]:
        with frames_of(source) as (_, frames, _):
            for _, found in _segmented(options, model, source, boxes, frames):
                yield found

    return segmented


@contextlib.contextmanager
def frames_of(source: Source) -> Iterator[tuple[float | None, Any, int | None]]:
    """Yield the frame rate (None for a picture), the frames, and their expected number."""
    if source.kind == "video":
        with read_video(source.files[0]) as video:
            yield video.fps, video, video.num_frames
    else:
        fps = None if source.kind == "picture" else FPS
        yield fps, map(as_frame, source.files), len(source.files)


class Found(NamedTuple):
    """A frame and what a model finds in it.

    Attributes:
        frame: the frame, (H,W,3) uint8.
        found: its slots.
        predicted: whether the frame was predicted, not seen.
    """

    frame: np.ndarray
    found: Segmentation
    predicted: bool


def found_in(
    options: Options,
    model: Segmenter,
    source: Source,
    boxes: Boxes | None,
    frames: Any,
    forecaster: Forecaster | None = None,
) -> Iterator[Found]:
    """Segment frames one after the other, and predict those that follow.

    Args:
        options: all but what says where files are.
        model: the slot model.
        source: the input; its name and kind count.
        boxes: of each input, for models that start from boxes.
        frames: an iterable of the input's frames.
        forecaster: predicts `options.future` frames; None: none are.

    Raises:
        UserError: the frames do not fit the options, or cannot be read.
    """
    recent: deque[Segmentation] = deque(maxlen=forecaster.most if forecaster else 0)
    for frame, found in _segmented(options, model, source, boxes, frames):
        recent.append(found)
        yield Found(frame, found, False)
    if forecaster is not None:
        for frame, found in forecaster.future([*recent], options.future):
            yield Found(frame, found, True)


def _segmented(
    options: Options, model: Segmenter, source: Source, boxes: Boxes | None, frames: Any
) -> Iterator[tuple[np.ndarray, Segmentation]]:
    """Yield each frame with its segmentation."""
    asked = {"num_slots": options.num_slots, "seed": options.seed, **options.pruning}
    asked["iterations"] = options.iterations
    if boxes is not None:
        asked["boxes"] = boxes[source.name]
    frames = checked_frames(frames)
    if not model.follows:
        if boxes is not None and source.kind != "picture":
            raise UserError(
                f"{source.name} is a video, and this model was trained on images and starts from "
                "boxes; give its first frame alone"
            )
        for frame in frames:
            yield frame, model.segment(frame, **asked)
        return
    latest: list[np.ndarray] = []  # one frame; itertools.tee would keep 57

    def noted() -> Iterator[np.ndarray]:
        for frame in frames:
            latest[:] = [frame]
            yield frame

    for found in model.stream(noted(), **options.starts, **asked):
        yield latest[0], found
