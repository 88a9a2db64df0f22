"""The page: what a visitor sees and can set, in Gradio."""

import html
import shutil
from typing import Any

from smoothsa_jax.demo.finding import PRUNING, Asked, Controls, Demo, Given, Shown
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.pictures import palette
from smoothsa_jax.inference.card import data_set_of
from smoothsa_jax.inference.results import MAX_SLOTS

KEEP = 3600  # seconds that a visitor's files are kept
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
