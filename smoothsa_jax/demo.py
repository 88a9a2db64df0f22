"""`main.py --mode=demo`: a page in the browser on which a trained model finds objects.

A visitor gives a picture or a video, or takes a generated clip. The page shows the slots as colors,
the attention of the slot that is clicked on, and of a run with the word `dynamics` also the
predicted frames. The masks to download are the files of `--mode=predict`.

`Demo` holds what happens behind the page, and needs no Gradio. `page_of` builds the page, and
`serve` shows it until it is stopped; docs/space/ does the same as a Space of the Hugging Face Hub.

Memory stays flat, whatever is uploaded:

* Pictures are shrunk to at most LONGEST pixels, and of a video the first MAX_FRAMES frames count.
* Frames are segmented one by one. Results are files, and a visitor's session holds their names.
* Each size of a picture and each number of slots or iterations is a program of its own. After
  MAX_PROGRAMS of them, JAX forgets all.
"""

import contextlib
import html
import itertools
import os
import re
import shutil
import socket
import tempfile
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
from smoothsa_jax.inference.card import data_set_of
from smoothsa_jax.inference.forecaster import Forecaster
from smoothsa_jax.inference.load import load_any
from smoothsa_jax.inference.overlays import TILE, drawn
from smoothsa_jax.inference.predict import Options, found_in, frames_of
from smoothsa_jax.inference.results import MAX_SLOTS, Results, check_num_slots
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.inference.sources import Source, file_source
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.sprites import Sprites
from smoothsa_jax.text import printable, say
from smoothsa_jax.training.signals import SignalGuard, Stopped

MODEL = "sprites_gaussian"  # without a workdir
HOST, PORT = "127.0.0.1", 7860
LONGEST = 1024  # pixels of the longer side of what is segmented
MAX_FRAMES = 240  # of a video; ten seconds
MAX_PROGRAMS = 16  # sizes and settings that are compiled at a time
MAX_FILE = 200 * 2**20  # bytes of an upload
KEEP = 3600  # seconds that a visitor's files are kept
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


# ----------------------------------------------------------------------------------------- the page


def check_gradio() -> None:
    """Import Gradio, which then sends nothing anywhere.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at the import; the Hub's likewise
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--mode=demo needs gradio, which is not installed: pip install 'smoothsa_jax[demo]'"
        ) from error


# On a phone, results come before settings.
STYLE = """
.gradio-container {max-width: 1100px !important; margin: 0 auto !important}
@media (max-width: 720px) {
  #given {display: contents}
  #results {order: 1}
  #settings {order: 2}
}
.slots {display: flex; flex-wrap: wrap; gap: 6px 14px; list-style: none; margin: 0; padding: 0}
.slots li {display: flex; align-items: center; gap: 6px; margin: 0}
.slots i {width: 14px; height: 14px; border-radius: 3px; display: inline-block}
.slots .chosen {font-weight: 600; text-decoration: underline}
.mistake {border-left: 4px solid #c0392b; padding: 4px 10px}
.notes {opacity: 0.8}
"""
# After the button, which is far below the results there.
TO_NOTES = """() => {
  const notes = document.querySelector("#notes");
  if (notes.getBoundingClientRect().top < 0) notes.scrollIntoView({block: "center"});
}"""


def page_of(demo: Demo) -> Any:
    """Build the page of a model: Gradio's Blocks, which are not shown yet."""
    import gradio as gr

    can = demo.controls
    blocks = gr.Blocks(
        title="SmoothSA: slots of your pictures",
        analytics_enabled=False,
        delete_cache=(KEEP // 6, KEEP),
    )
    with blocks:
        gr.Markdown(_headline(demo))
        given = gr.State(None)
        shown = gr.State(None, time_to_live=KEEP, delete_callback=_remove)
        slot, example = gr.State(0), gr.State(0)
        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_id="given"):
                gr.Markdown("**Picture or video**")
                file = gr.File(show_label=False, height=140, elem_id="file")
                try_example = gr.Button("Try a generated example", elem_id="example")
                notes = gr.HTML(elem_id="notes")
                with gr.Column(elem_id="settings"):
                    settings = _settings(can)
                    again = gr.Button("Find objects", variant="primary", elem_id="again")
            with gr.Column(scale=3, min_width=300, elem_id="results"):
                with gr.Row():
                    with gr.Column(min_width=240):
                        gr.Markdown("**Slots.** Click on one.")
                        overlay = _picture("overlay", "the picture with its slots as colors")
                    with gr.Column(min_width=240):
                        title = gr.Markdown("**Attention** of one slot", elem_id="title")
                        attention = _picture("attention", "where the chosen slot attends")
                number = gr.Slider(0, 1, 0, step=1, label="Frame", visible=False, elem_id="frame")
                legend = gr.HTML(elem_id="legend")
                film = gr.Video(
                    label="Slots of the video",
                    visible=False,
                    interactive=False,
                    loop=True,
                    autoplay=True,
                    height=320,
                    elem_id="film",
                )
                download = gr.DownloadButton(
                    "Download masks (ZIP)", interactive=False, elem_id="download"
                )

        def look(now: Shown, frame: int, chosen: int) -> dict:
            """Show a frame."""
            of_frame = demo.shares(now, frame)
            if chosen not in of_frame:
                chosen = next(iter(of_frame))
            return {
                slot: chosen,
                overlay: demo.overlay(now, frame),
                attention: demo.attention(now, frame, chosen),
                title: f"**Attention** of slot {chosen}",
                legend: _legend(of_frame, chosen, now.num_predicted and frame >= _seen(now)),
            }

        def find(what: Given, before: Shown | None, *values: Any, progress: Any) -> dict:
            """Segment, and show the first frame."""
            try:
                if what is None:
                    raise UserError("nothing is chosen yet: give a picture or a video first")
                asked = Asked(**dict(zip(settings, values, strict=True)))
                now = demo.find(what, asked, lambda done, of: progress((done, of)))
            except UserError as error:
                return {notes: f'<p class="mistake">{html.escape(str(error))}</p>'}
            _remove(before)
            mp4 = now.folder / "found" / "overlay.mp4"
            return {
                given: what,
                shown: now,
                notes: f'<p class="notes">{html.escape(" ".join(now.notes))}</p>',
                number: gr.update(
                    value=0, maximum=max(1, now.num_frames - 1), visible=now.num_frames > 1
                ),
                film: gr.update(value=str(mp4) if mp4.exists() else None, visible=mp4.exists()),
                download: gr.update(value=str(demo.archive(now)), interactive=True),
                **look(now, 0, 0),
            }

        outputs = [given, shown, slot, notes, number, film, download]
        outputs += [overlay, attention, title, legend]
        asked = [shown, *settings.values()]
        one_at_a_time = {"concurrency_id": "model", "concurrency_limit": 1, "api_name": False}
        one_at_a_time["show_progress_on"] = [overlay, attention]

        def of_file(path, before, *values, progress=gr.Progress()):  # noqa: B008, Gradio's way
            return find(Given(path), before, *values, progress=progress)

        def of_given(what, before, *values, progress=gr.Progress()):  # noqa: B008
            return find(what, before, *values, progress=progress)

        def of_example(index, before, *values, progress=gr.Progress()):  # noqa: B008
            more = {example: index + 1, file: None}
            if can.boxes:
                _, boxes = demo.example(index)
                more[settings["boxes"]] = boxes
                values = [
                    boxes if name == "boxes" else x
                    for name, x in zip(settings, values, strict=True)
                ]
            return more | find(Given(None, index), before, *values, progress=progress)

        def changed(what, before, *values, progress=gr.Progress()):  # noqa: B008
            if what is None:
                return {notes: ""}
            return find(what, before, *values, progress=progress)

        file.upload(of_file, [file, *asked], outputs, **one_at_a_time)
        again.click(of_given, [given, *asked], outputs, **one_at_a_time).then(None, js=TO_NOTES)
        of_boxes = [settings["boxes"]] if can.boxes else []
        try_example.click(
            of_example, [example, *asked], [*outputs, example, file, *of_boxes], **one_at_a_time
        )
        for control in settings.values():
            if isinstance(control, gr.Slider):
                control.release(changed, [given, *asked], outputs, **one_at_a_time)
        if can.pruning is not None:
            pruning = settings["pruning"]
            pruning.input(
                lambda chosen: gr.update(visible=chosen == "distance"),
                pruning,
                settings["distance"],
                api_name=False,
            ).then(changed, [given, *asked], outputs, **one_at_a_time)

        looks = {"outputs": [slot, overlay, attention, title, legend], "api_name": False}

        def turn(now, frame, chosen):
            return {} if now is None else look(now, int(frame), chosen)

        def click(now, frame, event: gr.SelectData):
            if now is None:
                return {}
            chosen = demo.slot_at(now, int(frame), *event.index)
            found = look(now, int(frame), chosen)
            del found[overlay]  # it stays
            return found

        number.input(turn, [shown, number, slot], trigger_mode="always_last", **looks)
        overlay.select(click, [shown, number], **looks)
    return blocks


def _picture(name: str, about: str) -> Any:
    """Make a place for a picture of the results."""
    import gradio as gr

    return gr.Image(
        show_label=False,
        interactive=False,
        format="png",
        buttons=["fullscreen"],
        elem_id=name,
        alt_text=about,
    )


def _settings(can: Controls) -> dict[str, Any]:
    """Make the controls that a model can use, by their names in `Asked`."""
    import gradio as gr

    settings = {}
    if can.num_slots is not None:
        most = min(max(16, 2 * can.num_slots), MAX_SLOTS)
        settings["num_slots"] = gr.Slider(
            1, most, can.num_slots, step=1, label="Slots", elem_id="num_slots"
        )
    if can.iterations:
        settings["iterations"] = gr.Slider(
            0, 8, 0, step=1, label="Iterations", info="0: as in training"
        )
    if can.seed:
        settings["seed"] = gr.Slider(0, 99, 0, step=1, label="Seed")
    if can.pruning is not None:
        settings["pruning"] = gr.Radio(
            list(PRUNING), value=can.pruning, label="Leave out redundant slots"
        )
        settings["distance"] = gr.Slider(
            0.0,
            2.0,
            can.distance,
            step=0.05,
            label="Cosine distance",
            info="Slots up to this far apart are redundant",
            visible=can.pruning == "distance",
        )
    if can.boxes:
        settings["boxes"] = gr.Textbox(
            label="Boxes",
            info="Left, top, right and bottom pixel of each object, one line each",
            lines=4,
            elem_id="boxes",
        )
    if can.future is not None:
        settings["future"] = gr.Slider(0, 16, can.future, step=1, label="Predicted frames")
    return settings


def _headline(demo: Demo) -> str:
    config = demo.model.config
    about = f"Model: {demo.name or config.name}, {demo.model.num_slots} slots"
    about += f", trained for {demo.model.step:,} steps on {data_set_of(config)}."
    if config.data.name in ("sprites", "scenes"):
        about += " It has seen generated clips alone and knows nothing of photographs."
    return f"## Slots of your pictures\nGive a picture or a video. {about}"


def _seen(shown: Shown) -> int:
    return shown.num_frames - shown.num_predicted


def _legend(shares: dict[int, float], chosen: int, predicted: bool) -> str:
    colors = palette(MAX_SLOTS + 1)
    items = []
    for number, share in shares.items():
        red, green, blue = colors[number + 1]
        mark = ' class="chosen"' if number == chosen else ""
        items.append(
            f'<li{mark}><i style="background:rgb({red},{green},{blue})"></i>'
            f"slot {number}: {100 * share:.0f} %</li>"
        )
    head = "<p>This frame is predicted.</p>" if predicted else ""
    return f'{head}<ul class="slots">{"".join(items)}</ul>'


def _remove(shown: Shown | None) -> None:
    if shown is not None:
        shutil.rmtree(shown.folder, ignore_errors=True)


# --------------------------------------------------------------------------------------- the server


@contextlib.contextmanager
def served(workdir: str | None = None, host: str = HOST, port: int = PORT) -> Iterator[str]:
    """Show the page of a model while the context lasts.

    Args:
        workdir: anything that `load` accepts, or a run of the task `dynamics`; None: a bundled
            model.
        host: the address to listen on; "0.0.0.0" lets other machines in.
        port: to listen on; 0: any free one.

    Yields:
        The page's address.

    Raises:
        UserError: Gradio is not installed, the port is in use, or the model has no masks.
    """
    port = _free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="smoothsa_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "gradio")
        check_gradio()
        name = workdir or MODEL
        demo = Demo(load_any(name), Path(folder) / "found", Path(name).name)
        import gradio as gr

        blocks = page_of(demo)
        font = [gr.themes.Font(name) for name in ("system-ui", "sans-serif")]
        mono = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
        try:
            _, address, _ = blocks.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                inbrowser=False,
                enable_monitoring=False,
                show_error=True,
                max_file_size=MAX_FILE,
                state_session_capacity=100,
                footer_links=[],
                theme=gr.themes.Soft(font=font, font_mono=mono),
                css=STYLE,
            )
        except OSError as error:  # another program has taken the port in the meantime
            raise UserError(_in_use(host, port)) from error
        try:
            yield address
        finally:
            demo.close()
            blocks.close(verbose=False)


def serve(workdir: str | None = None, host: str = HOST, port: int = PORT) -> int:
    """Show the page of a model until a signal comes; return the exit status.

    Arguments and errors are those of `served`.
    """
    try:
        with SignalGuard(), served(workdir, host, port) as address:
            say(f"page         {address}")
            threading.Event().wait()
    except Stopped as stopped:
        say("the page is closed")
        return stopped.exit_code
    return 0


def _free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0.

    Raises:
        UserError: another program has it, or the host is not this machine.
    """
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
            return tried.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise UserError(_in_use(host, port, getattr(error, "strerror", None) or str(error))) from (
            error
        )


def _in_use(host: str, port: int, reason: str = "") -> str:
    reason = f" ({printable(reason)})" * bool(reason)
    return f"cannot listen on {host}:{port}{reason}; give another --port, or --port=0 for any"
