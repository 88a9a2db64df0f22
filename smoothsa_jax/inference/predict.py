"""`main.py --mode=predict`: a trained model on every picture and video that is named; each becomes a folder of results."""

import contextlib
import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from tqdm import tqdm

from smoothsa_jax.checkpoints.workdir import workdir_for_writing
from smoothsa_jax.devices.compiling import telling_out_of_memory
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.pictures import FPS
from smoothsa_jax.inference.frames import as_frame, checked_frames
from smoothsa_jax.inference.given_boxes import Boxes, boxes_for, read_boxes
from smoothsa_jax.inference.load import load
from smoothsa_jax.inference.results import MAX_SLOTS, Results
from smoothsa_jax.inference.segmentation import Segmentation
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.inference.sources import Source, find_sources
from smoothsa_jax.inference.videos import read_video

ABOUT_FILE = "about.json"
STAGING = ".unfinished"  # in the folder of the outputs: a rename is atomic within one file system


class Options(NamedTuple):
    """What the command line says.

    Attributes:
        workdir: anything that `load` takes.
        input: a path, glob or folder, see `sources.find_sources`.
        output: folder; each input has a folder of its own name in it.
        boxes: JSON file, for models that start from boxes.
        shot_cuts: threshold; None: the whole video is one shot.
        overwrite: makes finished outputs anew.
        folders: what folders of pictures are taken for.
    """

    workdir: str
    input: str
    output: Path
    boxes: str | None = None
    num_slots: int | None = None
    seed: int = 0
    shot_cuts: float | None = None
    overwrite: bool = False
    folders: str = "auto"


def predict(options: Options) -> None:
    """Segments every input. What is finished stays, whatever happens to the others; a rerun skips it.

    Raises:
        UserError: nothing to do, a model that does not fit the options; at the end, where inputs failed; at once, where
            the disk is full.
    """
    sources = find_sources(options.input, options.folders, without=options.output)
    model = load(options.workdir)
    boxes = _checked(options, model, [source.name for source in sources])
    with workdir_for_writing(options.output, "output"):
        shutil.rmtree(options.output / STAGING, ignore_errors=True)  # of a run that was killed
        known = sum(len(source.files) for source in sources if source.kind != "video")
        failed, done, skipped = [], 0, 0
        with tqdm(total=known, unit=" frames", smoothing=0.1, leave=False) as bar:
            for source in sources:
                bar.set_description(source.name)
                about = _about(options, model, source, boxes)
                target = options.output / source.name
                try:
                    if _is_finished(target, options.output, about, options.overwrite):
                        bar.update(len(source.files) if source.kind != "video" else 0)
                        skipped += 1
                        continue
                    with telling_out_of_memory(
                        f"one frame of {model.image_size[0]}x{model.image_size[1]} pixels with "
                        f"{about['num_slots']} slots",
                        "use fewer --num_slots, end what else runs on the device, or set JAX_PLATFORMS=cpu",
                    ):
                        note = _predict_one(options, model, source, boxes, about, bar)
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
                # FFmpeg has errors of its own for what happens to a file.
                except (OSError, av.FFmpegError) as error:
                    where = getattr(error, "filename", None) or target
                    raise UserError(
                        f"{where}: {error.strerror or error}; nothing of {target} was kept: mend that, then run the same "
                        "command, which skips what is finished"
                    ) from error
    skips = f", {skipped} skipped that were finished before" * bool(skipped)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(sources)} inputs failed ({', '.join(failed[:3])}{', ...' * (len(failed) > 3)}), see above; "
            f"{done} done{skips}: {options.output}"
        )
    print(f"{done} done{skips}: {options.output}", flush=True)


def _say(bar: tqdm, text: str) -> None:
    bar.write(text, file=sys.stderr)


def _checked(options: Options, model: Segmenter, names: list[str]) -> Boxes | None:
    """The boxes that were given; refuses what does not fit the model before anything is written."""
    if model.num_slots > MAX_SLOTS or (options.num_slots or 0) > MAX_SLOTS:
        raise UserError(f"label maps have room for {MAX_SLOTS} slots; expected no more")
    if options.shot_cuts is not None and model.starts_from_boxes:
        raise UserError(
            "--shot-cuts starts slots anew and needs Gaussian queries, and this model starts its slots from boxes; leave it "
            "out, or use a model with Gaussian queries"
        )
    if options.shot_cuts is not None and not model.follows:
        raise UserError(
            "--shot-cuts is of no use with a model of images, which starts every frame anew; leave it out"
        )
    if not model.starts_from_boxes:
        if options.boxes is not None:
            raise UserError(
                "--boxes was given, and this model starts its slots from Gaussian queries; leave it out"
            )
        return None
    if options.num_slots is not None:
        raise UserError(
            "--num_slots was given, and this model has a slot for each box; leave it out"
        )
    if options.boxes is None:
        raise UserError(
            f"this model starts its slots from boxes; give --boxes=FILE.json with boxes for {names[0]}"
            f"{' and the others' * (len(names) > 1)}, or use a model with Gaussian queries"
        )
    boxes = read_boxes(options.boxes)
    boxes_for(boxes, names, options.boxes)
    most = max(names, key=lambda name: len(boxes[name]))
    if len(boxes[most]) >= MAX_SLOTS:  # one slot may be the background's
        raise UserError(
            f"--boxes={options.boxes} has {len(boxes[most])} boxes for {most}; label maps have room for {MAX_SLOTS - 1}"
        )
    return boxes


def _about(
    options: Options, model: Segmenter, source: Source, boxes: Boxes | None
) -> dict[str, Any]:
    """What an output is made of: with the same of it, an output is finished."""
    folder = Path(options.workdir)
    return {
        "model": str(folder.resolve()) if folder.exists() else options.workdir,
        "step": model.step,
        "weights": model.checksum,
        "num_slots": options.num_slots or model.num_slots,
        "seed": options.seed,
        "shot_cuts": options.shot_cuts,
        "boxes": None if boxes is None else boxes[source.name],
        "files": len(source.files),
        "bytes": sum(file.stat().st_size for file in source.files),
    }


def _is_finished(target: Path, output: Path, about: dict[str, Any], overwrite: bool) -> bool:
    """Whether an output is there and is the one that was asked for.

    Raises:
        UserError: there is something else.
    """
    if not target.exists():
        for folder in itertools.takewhile(lambda folder: folder != output, target.parents):
            if (folder / ABOUT_FILE).exists():
                raise UserError(
                    f"{folder} holds the output of another input; nothing was changed: use another --output for {target.name}"
                )
        return False
    try:
        found = json.loads((target / ABOUT_FILE).read_text())["made_of"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{target} exists and was not made by --mode=predict; nothing was changed: move it away, or use another --output"
        ) from None
    if overwrite:
        return False
    changed = [key for key, value in about.items() if found.get(key) != value]
    if changed:
        key = changed[0]
        raise UserError(
            f"{target} exists and was made with other settings ({key}: {found.get(key)}, now {about[key]}); nothing was changed: "
            "use another --output, or --overwrite"
        )
    return True


def _predict_one(
    options: Options,
    model: Segmenter,
    source: Source,
    boxes: Boxes | None,
    about: dict[str, Any],
    bar: tqdm,
) -> str:
    """Makes one output, whole or not at all; what there is to say of it."""
    made, target = options.output / STAGING / "new", options.output / source.name
    made.mkdir(parents=True)
    try:
        notes = []
        with _frames(source, bar) as (fps, frames, num_frames):
            if num_frames is not None and source.kind == "video":
                bar.total += num_frames
                bar.refresh()
            with Results(made, fps) as results:
                for frame, found in _segmented(options, model, source, boxes, frames):
                    results.add(frame, found)
                    bar.update()
            if source.kind == "video":
                bar.total += results.num_frames - (num_frames or 0)
        if missing := getattr(frames, "missing", ""):
            notes.append(missing)
        if fps is not None and not model.follows:
            notes.append("the model was trained on images, so each frame was started anew")
        about = {"frames": results.num_frames, "notes": notes, "made_of": about}
        (made / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        # --overwrite: killed between the two renames, the old one is still there.
        old = target.with_name(f".old-{target.name}")
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        made.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        return "; ".join(notes)
    finally:
        shutil.rmtree(options.output / STAGING, ignore_errors=True)


@contextlib.contextmanager
def _frames(source: Source, bar: tqdm) -> Iterator[tuple[float | None, Any, int | None]]:
    """Frames a second (None for a picture), the frames, and how many there should be."""
    if source.kind == "video":
        with read_video(source.files[0]) as video:
            yield video.fps, video, video.num_frames
    else:
        fps = None if source.kind == "picture" else FPS
        yield fps, map(as_frame, source.files), len(source.files)


def _segmented(
    options: Options, model: Segmenter, source: Source, boxes: Boxes | None, frames: Any
) -> Iterator[tuple[np.ndarray, Segmentation]]:
    """Each frame with what is found in it."""
    asked = {"num_slots": options.num_slots, "seed": options.seed}
    if boxes is not None:
        asked["boxes"] = boxes[source.name]
    frames = checked_frames(frames)
    if not model.follows:
        if boxes is not None and source.kind != "picture":
            raise UserError(
                f"{source.name} is a video, and this model was trained on images and starts from boxes; give its first frame alone"
            )
        for frame in frames:
            yield frame, model.segment(frame, **asked)
        return
    latest: list[np.ndarray] = []  # one frame: itertools.tee would keep 57 of them

    def noted() -> Iterator[np.ndarray]:
        for frame in frames:
            latest[:] = [frame]
            yield frame

    for found in model.stream(noted(), shot_cuts=options.shot_cuts, **asked):
        yield latest[0], found
