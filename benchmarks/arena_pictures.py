"""Pictures of the arena's page: learning curves, and the same clips in every system."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.arena_contestants import Contestant, at, name_of_file, pictured, segments_of
from benchmarks.arena_rows import unpacked
from smoothsa_jax.evaluation.pictures import GAP, INK, PAPER, enlarge, match_colours, overlay

TILE = 90  # pixels of a frame, about
LABEL = 170  # pixels of the names
POINTS = 50  # of a mean curve
LEGEND_LINE = 0.18  # inches
LINES = ("solid", "dashed", "dotted")  # each in all colors


def draw(place: str, here: Sequence[Contestant], folder: Path) -> None:
    """Draw the pictures of some data, as far as its rows have what they need.

    Args:
        place: the data, such as "sprites:image".
        here: the best first.
        folder: of the pictures.

    Raises:
        UserError: matplotlib is missing.
    """
    if any(x.curves() for x in here):
        folder.mkdir(exist_ok=True)
        draw_curves(here, folder / f"curves_{name_of_file(place)}.png")
    if pictured(here):
        folder.mkdir(exist_ok=True)
        draw_clips(place, pictured(here), folder / f"clips_{name_of_file(place)}.png")


def draw_curves(here: Sequence[Contestant], path: Path) -> None:
    """Plot FG-ARI over steps and over seconds: the mean over seeds, and from least to most."""
    from smoothsa_jax.report.figures import check_matplotlib

    check_matplotlib()
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    with_curve = [x for x in here if x.curves()]
    tall = max(3.4, 0.2 + LEGEND_LINE * len(with_curve))
    figure = Figure(figsize=(9, tall), layout="constrained", dpi=90)
    colours = colormaps["tab10"].colors
    panels = figure.subplots(1, 2, sharey=True)
    for panel, key in zip(panels, ("step", "seconds"), strict=True):
        for number, x in enumerate(with_curve):
            curves = [[p for p in curve if p[key] is not None] for curve in x.curves()]
            if not all(curves):
                continue
            begin, end = max(c[0][key] for c in curves), min(c[-1][key] for c in curves)
            places = np.linspace(begin, end, POINTS)
            values = np.array([[100 * at(c, key, p) for p in places] for c in curves])
            colour = colours[number % len(colours)]
            line = {"color": colour, "linestyle": LINES[number // len(colours) % len(LINES)]}
            panel.plot(places, values.mean(axis=0), label=x.title, **line)
            ends = values.min(axis=0), values.max(axis=0)
            panel.fill_between(places, *ends, color=colour, alpha=0.2)
        panel.set_xlabel(
            {"step": "steps", "seconds": "processor seconds of training"}[key], fontsize=9
        )
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("FG-ARI, validation clips", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right", fontsize=8)
    # Without the version in the file, equal plots are identical bytes.
    figure.savefig(path, metadata={"Software": None})


def draw_clips(place: str, here: Sequence[Contestant], path: Path) -> None:
    """Draw the frames, the true segments and those of each system below each other."""
    videos, labels = true_clips(place, unpacked(segments_of(here[0])).shape)
    rows: dict[str, np.ndarray] = {"frames": videos, "true": _over(videos, labels)}
    for x in here:
        segments = unpacked(segments_of(x))
        matched = [match_colours(*pair) for pair in zip(segments, labels, strict=True)]
        rows[x.title] = _over(videos, np.stack(matched))
    scale = max(1, round(TILE / videos.shape[3]))
    clips, frames, height, width = videos.shape[:4]
    wide, tall = width * scale + GAP, height * scale + GAP
    across = clips * (frames * wide + 2 * GAP)
    sheet = Image.new("RGB", (LABEL + across, len(rows) * tall), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for down, (title, tiles) in enumerate(rows.items()):
        pen.text((4, down * tall + tall // 2 - 8), title, INK, font)
        for clip in range(clips):
            for frame in range(frames):
                left = LABEL + clip * (frames * wide + 2 * GAP) + frame * wide
                tile = enlarge(tiles[clip, frame][None], scale)[0]
                sheet.paste(Image.fromarray(tile), (left, down * tall))
    # Few colors make a small file, and the drawn ones are few.
    sheet.quantize(128).save(path, optimize=True)


def _over(videos: np.ndarray, segments: np.ndarray) -> np.ndarray:
    return np.stack([overlay(*pair) for pair in zip(videos, segments, strict=True)])


def true_clips(place: str, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last frames (clips,1 or 2,H,W,3) of the scored clips, and their labels.

    Args:
        place: the data.
        shape: of the segments of these clips.
    """
    from smoothsa_jax.config.load import load_config
    from smoothsa_jax.training.evaluating import source_of_split

    config = load_config(place)
    source = source_of_split(config, config.model.num_slots, config.eval.split, shape[0])
    samples = [source[i] for i in range(shape[0])]
    ends = [0, -1] if shape[1] > 1 else [0]
    return tuple(np.stack([s[key][ends] for s in samples]) for key in ("video", "segmentations"))
