"""Find trained models: in a workdir, a saved folder, the package, or an authors' checkpoint."""

import difflib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smoothsa_jax.checkpoints import catalogue
from smoothsa_jax.checkpoints.catalogue import ModelFacts
from smoothsa_jax.checkpoints.model_files import ABOUT_FILE, WEIGHTS_FILE, scores_in
from smoothsa_jax.checkpoints.published import SLOT_MODEL
from smoothsa_jax.checkpoints.read import FOLDER
from smoothsa_jax.checkpoints.sources import Trained, fetched, is_trained, open_trained
from smoothsa_jax.devices.runtime import find_devices
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.scores import in_columns, is_share, title_of
from smoothsa_jax.inference.forecaster import Forecaster
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.interop import hub, state_dicts

SHIPPED = Path(__file__).parent.parent / "pretrained"


class ModelList(list[ModelFacts]):
    """Models that `load` takes by name; a notebook shows them as a table."""

    def __repr__(self) -> str:
        rows = [("name", "file", "license", "scores", "about")]
        rows += [
            (
                x.name,
                "bundled" if x.bundled else "Hub" if x.hub else "page" if x.page else "",
                x.license or "",
                " ".join(f"{title_of(name)} {score}" for name, score in x.scores.items()),
                x.about,
            )
            for x in self
        ]
        return "\n".join(in_columns(rows, str.ljust))


def list_models(published: bool | None = None) -> ModelList:
    """List the models that `load` takes by name, with what is known of them.

    Args:
        published: True: the published checkpoints; `load` reads their files, but for those of
            recognition, which only convert. False: the models that are part of the package.
            None: both.
    """
    bundled = [] if published else [_facts_of_bundled(folder) for folder in _bundled()]
    return ModelList(bundled + ([] if published is False else [*catalogue.published().values()]))


def _bundled() -> list[Path]:
    folders = sorted(SHIPPED.iterdir()) if SHIPPED.is_dir() else []
    return [folder for folder in folders if (folder / WEIGHTS_FILE).is_file()]


def _facts_of_bundled(folder: Path) -> ModelFacts:
    scores = scores_in(folder) or {"metrics": {}}
    return ModelFacts(
        name=folder.name,
        about=json.loads((folder / ABOUT_FILE).read_text())["about"],
        bundled=True,
        file=str(folder / WEIGHTS_FILE),
        size=(folder / WEIGHTS_FILE).stat().st_size,
        license="Apache-2.0",
        scores={
            name: round(100 * x["mean"], 1)
            for name, x in scores["metrics"].items()
            if is_share(name) and x["mean"] is not None
        },
        protocol=f"{scores['split']} split" if "split" in scores else None,
    )


def load(
    source: str | os.PathLike,
    config: str | None = None,
    *,
    file: str | os.PathLike | None = None,
) -> Segmenter:
    """Load a trained model.

    Args:
        source: a workdir of `main.py` (its newest intact checkpoint), a folder that `save` wrote, a
            name from `list_models`, "hf://owner/repository" of `push_to_hub`, or a published
            checkpoint (.safetensors, .pth, .pt, .pt.tar or .ckpt).
        config: the recipe of a published checkpoint, such as "coco" or "voc:spot,original", or its
            name in `list_models`; needed if several recipes have the same model.
        file: of the name of a published checkpoint, its file; the folder or the "hf://..." that
            has the file. Without it, `load` looks in the folder that `SMOOTHSA_JAX_MODELS` names
            (default ~/.cache/smoothsa_jax/models) and, where the authors keep it, on the Hub.

    Raises:
        UserError: there is no such model, its files are damaged, or JAX finds no device.
    """
    return _load(source, config, file)


def _load(
    source: str | os.PathLike,
    config: str | None = None,
    file: str | os.PathLike | None = None,
    with_forecasters: bool = False,
) -> Segmenter | Forecaster:
    find_devices(_warn)
    source = os.fspath(source)
    facts = catalogue.facts_of(source)
    if file is not None and facts is None:
        raise UserError(
            f"file={os.fspath(file)!r} was given with {source}, expected the name of a published "
            f"checkpoint from list_models(){_nearest(source, catalogue.published())}"
        )
    if state_dicts.is_state_dict(source) and not Path(source).is_dir():
        return _segmenter(open_trained(source, _warn, config))
    if config is not None:
        raise UserError(
            f"config={config!r} was given with {source}, which has its own; leave it out"
        )
    if hub.is_repository(source):
        return _of_folder(fetched(source))
    bundled = {folder.name: folder for folder in _bundled()}
    if source in (*bundled, *catalogue.published()) and Path(source).exists():
        raise UserError(
            f"{source} is the name of a model and of a folder here; write ./{source} for the "
            "folder, or work elsewhere"
        )
    if facts is not None:
        _refuse_without_segments(facts)
        if file is not None and is_trained(os.fspath(file)) and not hub.is_repository(file):
            return _of_folder(Path(file))  # converted before
        return _segmenter(open_trained(str(catalogue.file_of(facts, file)), _warn, facts.name))
    folder = bundled.get(source, Path(source))
    if not folder.exists():
        raise UserError(
            f"{source} is neither a folder nor the name of a model; expected a workdir, or a name "
            f"from smoothsa_jax.list_models(){_nearest(source, (*bundled, *catalogue.published()))}"
        )
    trained = _trained_in(folder)
    if with_forecasters and trained.config.task == "dynamics":
        return Forecaster(trained)
    return _segmenter(trained, scores_in(folder))


def _refuse_without_segments(facts: ModelFacts) -> None:
    """Refuse a published checkpoint whose model finds no segments, before it is downloaded."""
    task = catalogue.config_of(facts).task
    if task != "discovery":
        raise UserError(
            f"{facts.name} is a model of the task {task!r}, which finds no segments; "
            f"{catalogue.command_of(facts)}, for --mode=evaluate"
        )


def _nearest(name: str, names: Iterable[str]) -> str:
    """For the end of a message: a hint at the nearest of many names."""
    near = difflib.get_close_matches(name, list(names), n=3)
    return f"; the nearest are {', '.join(near)}" if near else ""


def load_forecaster(source: str | os.PathLike) -> Forecaster:
    """Load a trained rollouter with its slot model.

    Args:
        source: a workdir of the task `dynamics`.

    Raises:
        UserError: it is something else, or its files are damaged.
    """
    find_devices(_warn)
    trained = open_trained(os.fspath(source), _warn)
    if trained is None:
        raise UserError(
            f"{source} holds no model: no usable checkpoint in {Path(source) / FOLDER}; give the "
            "workdir of a trained run"
        )
    return Forecaster(trained)


def load_any(source: str | os.PathLike) -> Segmenter | Forecaster:
    """Load a trained model: a rollouter with its slot model, or as `load` does.

    Raises:
        UserError: as for `load`; or a rollouter's slot model has no masks of slots alone.
    """
    return _load(source, with_forecasters=True)


def _of_folder(folder: Path) -> Segmenter:
    return _segmenter(_trained_in(folder), scores_in(folder))


def _trained_in(folder: Path) -> Trained:
    trained = open_trained(str(folder), _warn)
    if trained is None:
        raise UserError(
            f"{folder} holds no model: no usable checkpoint in {folder / FOLDER} and no "
            f"{WEIGHTS_FILE}; give the workdir of a trained run"
        )
    return trained


def _segmenter(trained: Trained, scores: Mapping[str, Any] | None = None) -> Segmenter:
    config = trained.config
    # None stands for no companion, "" for an untrained one; the slot model comes first.
    named = sorted(config.companions.items(), key=lambda item: item[0] != SLOT_MODEL)
    sources = [x.source for _, x in named if x.get("source") is not None]
    if config.task != "discovery" and sources:
        raise UserError(
            f"{trained.what} holds a model of the task {config.task!r}, which finds no segments; "
            f"load the slot model that it was trained on: {sources[0]}"
            f"{'; or predict frames with --future' * (config.task == 'dynamics')}"
        )
    try:
        return Segmenter(
            config, trained.arrays, trained.step, tokenizer=trained.tokenizer, scores=scores
        )
    except UserError:
        raise
    except Exception as error:  # a damaged config can raise almost anything
        raise UserError(
            f"the model in {trained.what} is damaged (its config describes no model: "
            f"{type(error).__name__}: {' '.join(str(error).split())}); fetch or save it again"
        ) from error


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=7)
