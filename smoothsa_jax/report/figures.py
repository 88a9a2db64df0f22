"""Plots as PNG files in memory. Each function only draws; other modules compute the numbers."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.pictures import OBJECTS, enlarge, overlay
from smoothsa_jax.evaluation.scores import is_loss, title_of
from smoothsa_jax.evaluation.upsampling import upsample
from smoothsa_jax.report.clips import COLD, WARM, Clip
from smoothsa_jax.report.curves import Curve, smoothed
from smoothsa_jax.report.distances import by_iteration
from smoothsa_jax.report.stages import Stage
from smoothsa_jax.report.trajectories import centres_of_mass, principal_plane

DPI = 110
TILE = 110  # pixels; smaller frames are enlarged to about this size, larger ones reduced
COLOUR = {COLD: "#3b7dd8", WARM: "#d8572a"}
ROWS = {COLD: "without the warmer", WARM: "with the warmer"}


def check_matplotlib() -> None:
    """Import matplotlib, before anything is computed.

    Raises:
        UserError: it is missing, or it refuses its settings.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            "a report needs matplotlib, which is not installed: pip install 'smoothsa_jax[report]'"
        ) from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) < 120 else f"{reason[:120]}..."
        raise UserError(
            f"matplotlib refuses its settings: {reason}; correct or unset MPLBACKEND"
        ) from error


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, np.ndarray]:
    """Make a figure and its axes (rows, columns); width and height of each are in inches."""
    # Without pyplot, there is no global state, no window, and no limit to the number of figures.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained", dpi=DPI)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    # Without the version in the file, equal plots are identical bytes.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _plain(axes: Any, title: str, x: str = "", y: str = "") -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _slot_colour(slot: int) -> tuple[float, ...]:
    return tuple(part / 255 for part in OBJECTS[slot % len(OBJECTS)])


# ------------------------------------------------------------------------------------- the training


def losses(terms: Mapping[str, Curve], others: Mapping[str, Curve]) -> bytes:
    """Plot the loss and its terms in one panel, and each of the other curves in its own."""
    figure, axes = _panels(1, 1 + len(others), 4.6 if others else 8, 3.1)
    for name, curve in terms.items():
        label = name.removeprefix("loss/")
        (line,) = axes[0, 0].plot(*smoothed(curve), label=label, linewidth=1.6)
        axes[0, 0].plot(*curve, color=line.get_color(), alpha=0.2, linewidth=0.8)
    if all((curve.values > 0).all() for curve in terms.values()):
        axes[0, 0].set_yscale("log")
    axes[0, 0].legend(fontsize=8)
    _plain(axes[0, 0], "losses, weighted", "step")
    for panel, (name, curve) in zip(axes[0, 1:], others.items(), strict=True):
        (line,) = panel.plot(*smoothed(curve), linewidth=1.6)
        panel.plot(*curve, color=line.get_color(), alpha=0.2, linewidth=0.8)
        _plain(panel, name.replace("_", " "), "step")
    return _png(figure)


def scores(
    validation: Mapping[str, Curve],
    stages: Sequence[Stage],
    best_first: Mapping[str, Float[np.ndarray, "samples"]],
    metric: str,
    title: str,
) -> bytes:
    """Plot the scores through training, and those of all samples from best to worst."""
    scored = bool(stages[0].scores)
    figure, axes = _panels(1, 1 + bool(validation) + scored, 4.6, 3.1)
    if validation:
        for name, curve in validation.items():
            axes[0, 0].plot(*curve, label=title_of(name), marker=".", linewidth=1.4)
        what = "losses" if all(map(is_loss, validation)) else "scores"
        _plain(axes[0, 0], f"validation {what} in the log", "step")
        axes[0, 0].legend(fontsize=8)
    spread = axes[0, -1]
    if scored:
        through, steps = axes[0, -2], [stage.step for stage in stages]
        for name in stages[0].scores:
            values = [stage.scores[name] for stage in stages]
            through.plot(steps, values, label=title_of(name), marker="o", linewidth=1.4)
        _plain(through, "scores at each checkpoint, first batch", "step")
        through.legend(fontsize=8)
    for method, values in best_first.items():
        place = (np.arange(len(values)) + 0.5) / max(1, len(values))
        style = {"linewidth": 2.4 if method == title else 1, "marker": "o" * (len(values) == 1)}
        spread.plot(100 * place, values, label=method, **style)
    _plain(spread, f"{title_of(metric)} of every sample", "samples, best first, in %")
    spread.legend(fontsize=8, loc="best" if is_loss(metric) else "lower left")
    return _png(figure)


# --------------------------------------------------------------------------------------- the warmer


def distances(
    states: Mapping[str, Float[np.ndarray, "B I+1 N D"]],
    slot_mask: np.ndarray,
    stages: Sequence[Stage],
    distillation: Curve | None,
) -> bytes:
    """Plot distances between queries and slots by iteration, by checkpoint, and from the log.

    Args:
        states: queries and slots after each iteration, by start.
        slot_mask: the valid slots (B, N).
        stages: the checkpoints.
        distillation: the curve of the distillation loss divided by its weight, which is the mean
            square of query minus slot; None: not in the log.
    """
    figure, axes = _panels(1, 2 if distillation is None else 3, 4.6, 3.1)
    length = "distance / length of the slot"
    for name, of_start in states.items():
        values = by_iteration(of_start, slot_mask)
        axes[0, 0].plot(values, label=ROWS[name], color=COLOUR[name], marker="o")
    axes[0, 0].set_xticks(range(len(values)), ["queries", *map(str, range(1, len(values)))])
    _plain(axes[0, 0], "to the slots after the last iteration", "after iteration", length)
    axes[0, 0].legend(fontsize=8)
    steps = [stage.step for stage in stages]
    for name, colour in zip(stages[0].distances, COLOUR.values(), strict=False):
        values = [stage.distances[name] for stage in stages]
        axes[0, 1].plot(steps, values, label=name, color=colour, marker="o")
    _plain(axes[0, 1], "to the model's slots, through training", "step", length)
    axes[0, 1].legend(fontsize=8)
    for panel in axes[0, :2]:
        panel.set_ylim(bottom=0)
    if distillation is not None:
        (line,) = axes[0, 2].plot(*smoothed(distillation), color=COLOUR[WARM], linewidth=1.6)
        axes[0, 2].plot(*distillation, color=line.get_color(), alpha=0.2, linewidth=0.8)
        if (distillation.values > 0).all():
            axes[0, 2].set_yscale("log")
        _plain(axes[0, 2], "mean square of warm query minus slot", "step")
    return _png(figure)


def attention(clip: Clip) -> bytes:
    """Show the attention of the first frame: iterations as rows, slots as columns.

    Rows come with and without the warmer. The attention is the brightness of the frame.
    """
    longest = max(clip.video.shape[1:3])
    step, scale = max(1, round(longest / TILE)), max(1, round(TILE / longest))
    frame = enlarge(clip.video[:1, ::step, ::step], scale)[0]
    slots = np.flatnonzero(clip.slot_mask)
    rows = [(name, i) for name, maps in clip.attention.items() for i in range(len(maps))]
    columns = ["all slots", *(f"slot {slot}" for slot in slots)]
    frames = [(0.5,) * 3, *map(_slot_colour, slots)]  # around each column's tiles
    sheet = []
    for name, i in rows:
        maps = np.asarray(upsample(clip.attention[name][i][slots], frame.shape[:2]))
        segments = slots[maps.argmax(axis=0)] + 1
        tiles = [overlay(frame[None], segments[None])[0] / 255]
        # Never completely dark, so that unattended areas remain visible.
        tiles += [frame / 255 * (0.08 + 0.92 * lit[..., None]) for lit in maps]
        sheet.append(
            np.concatenate([_framed(*pair) for pair in zip(tiles, frames, strict=True)], axis=1)
        )
    picture = np.concatenate(sheet)
    tile = np.array(picture.shape[:2]) / (len(rows), len(columns))
    panel = _exactly(picture, left=1.4, top=0.3)
    panel.set_xticks((np.arange(len(columns)) + 0.5) * tile[1], columns)
    names = [f"{ROWS[name]}\niteration {i + 1}" for name, i in rows]
    panel.set_yticks((np.arange(len(rows)) + 0.5) * tile[0], names)
    for label, (name, _) in zip(panel.get_yticklabels(), rows, strict=True):
        label.set_color(COLOUR[name])
    panel.tick_params(length=0, labelsize=8, labeltop=True, labelbottom=False)
    return _png(panel.figure)


def _exactly(picture: np.ndarray, left: float, top: float) -> Any:
    """Make axes that show a picture pixel by pixel, with `left` and `top` inches for labels."""
    from matplotlib.figure import Figure

    height, width = (pixels / DPI for pixels in picture.shape[:2])
    figure = Figure(figsize=(left + width, top + height), dpi=DPI)
    place = (left / (left + width), 0, width / (left + width), height / (top + height))
    panel = figure.add_axes(place, frame_on=False)
    panel.imshow(picture, interpolation="none")
    return panel


def _framed(tile: np.ndarray, colour: tuple[float, ...]) -> np.ndarray:
    edged = np.full((tile.shape[0] + 6, tile.shape[1] + 6, 3), colour)
    edged[3:-3, 3:-3] = tile
    return np.pad(edged, ((4, 4), (4, 4), (0, 0)), constant_values=1)


# ---------------------------------------------------------------------------------------- the slots


def trajectories(clip: Clip) -> bytes:
    """Plot how slots form in the first frame and, for clips, how they move on.

    The colors are those of `attention`.
    """
    slots = np.flatnonzero(clip.slot_mask)
    panels = [_from_samples]
    if WARM in clip.states:
        panels.append(_from_warm_queries)
    if len(clip.video) > 1:
        panels += [_through_frames, _over_picture]
    figure, axes = _panels(1, len(panels), 3.7, 3.6)
    for panel, draw in zip(axes[0], panels, strict=True):
        draw(panel, clip, slots)
    return _png(figure)


def _from_samples(panel: Any, clip: Clip, slots: np.ndarray) -> None:
    """Plot both paths in one plane: dotted without the warmer; dashed the warmer, then solid."""
    ways = [states[:, slots] for states in clip.states.values()]
    planes = np.split(principal_plane(np.concatenate(ways)), len(ways))
    for column, slot in enumerate(slots):
        colour = _slot_colour(slot)
        cold, *rest = (plane[:, column] for plane in planes)
        panel.plot(*cold.T, color=colour, linewidth=1, linestyle=":")
        panel.scatter(*cold[0], color=colour, marker="x", s=40)
        for warm in rest:
            panel.plot(*np.stack([cold[0], warm[0]]).T, color=colour, linewidth=1, linestyle="--")
            panel.plot(*warm.T, color=colour, linewidth=1.8)
        _end(panel, (rest or [cold])[-1][-1], colour)
    _plain(panel, "first frame: × sample, ● slot", "first principal axis", "second")


def _from_warm_queries(panel: Any, clip: Clip, slots: np.ndarray) -> None:
    plane = principal_plane(clip.states[WARM][:, slots])
    for column, slot in enumerate(slots):
        colour = _slot_colour(slot)
        panel.plot(*plane[:, column].T, color=colour, linewidth=1.8)
        panel.scatter(*plane[0, column], color=colour, marker="^", s=40)
        _end(panel, plane[-1, column], colour)
    _plain(panel, "first frame: ▲ warm query, ● slot", "first principal axis", "second")


def _end(panel: Any, point: np.ndarray, colour: tuple[float, ...]) -> None:
    panel.scatter(*point, color=[colour], s=50, edgecolors="black", zorder=3)


def _through_frames(panel: Any, clip: Clip, slots: np.ndarray) -> None:
    plane = principal_plane(clip.slots[:, slots])
    for column, slot in enumerate(slots):
        panel.plot(*plane[:, column].T, color=_slot_colour(slot), marker=".", linewidth=1.2)
        _end(panel, plane[0, column], _slot_colour(slot))
    _plain(panel, "slots over the frames (● first)", "first principal axis", "second")


def _over_picture(panel: Any, clip: Clip, slots: np.ndarray) -> None:
    grey = clip.video[0] @ np.array([0.299, 0.587, 0.114])
    panel.imshow(grey, cmap="gray", vmin=-120, vmax=300)
    centres = centres_of_mass(clip.masks, clip.slots.shape[1])
    for slot in slots:
        way = centres[:, slot]
        panel.plot(*way.T, color=_slot_colour(slot), marker=".", linewidth=1.4)
        for point in way[~np.isnan(way[:, 0])][:1]:
            _end(panel, point, _slot_colour(slot))
    _plain(panel, "center of each mask, over the first frame")
    panel.grid(False)
    panel.set_xticks([])
    panel.set_yticks([])
