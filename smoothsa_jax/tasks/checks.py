"""Check a config against this machine and the other processes, before anything is built."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from smoothsa_jax.config import schema
from smoothsa_jax.config.values import flatten, image_size_of
from smoothsa_jax.devices import hosts
from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.inputs.build import GENERATED, check_data
from smoothsa_jax.losses.build import Losses, build_losses
from smoothsa_jax.models.build import (
    PARTS,
    check_prunable,
    check_repeatable,
    cold_start,
    has_transition,
    is_slot_model,
    is_tokenizer_model,
    model_shapes,
    starts_from_boxes,
)
from smoothsa_jax.models.interfaces import Sizes, Tokenizer
from smoothsa_jax.models.parameters import (
    ENCODER,
    TARGET_ENCODER,
    Parameters,
    below,
    frozen_patterns,
    matching,
    split,
)
from smoothsa_jax.models.perceptual import PERCEPTUAL
from smoothsa_jax.models.slot_model import SlotModel
from smoothsa_jax.models.tokenizer_model import TOKENIZER
from smoothsa_jax.parts import choose
from smoothsa_jax.schedules import Schedules, schedule_of
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.discovery import TEACHER, names_of
from smoothsa_jax.tasks.frozen_slots import SLOT_MODEL
from smoothsa_jax.tasks.task import MODEL, Models, Task, batch_shapes, run_task

BATCHES = ("train.batch_size", "eval.batch_size")
# Arrays that a batch may lack: what a run may have on disk, and the lengths of padded clips.
STORED = ("features", "tokens", "slots", "pooled", "other_slots", "other_pooled", "num_frames")


def check(config: ConfigDict, batches: tuple[str, ...] = BATCHES) -> None:
    """Refuse a config that cannot run on this machine.

    Keys and values come first, then what the program makes of them: the data set's settings,
    losses, the task, schedules, and the models with shapes alone, which must return what the
    losses need.

    Args:
        config: a whole config, including the architecture of its companions.
        batches: the batch sizes that will be used; each must be divisible by the number of devices.

    Raises:
        UserError: names the first problem.
    """
    # With several processes, each scores whole batches on its own devices.
    multi = hosts.is_multi_process()
    divided = [name for name in batches if name != "eval.batch_size" or not multi]
    schema.check(config, len(jax.devices()), divided)
    hosts.refuse_misfit(config, batches)
    check_data(config.data)
    losses = build_losses(config.losses)
    task = build_task(config)
    _check_best(config, task, losses)
    num_steps = config.train.num_steps
    schedule_of("optimizer.learning_rate", config.optimizer.learning_rate, num_steps)
    for name, entry in config.optimizer.rates.items():
        schedule_of(f"optimizer.rates.{name}.learning_rate", entry.learning_rate, num_steps)
    Schedules({"losses": losses.schedules, MODEL: task.schedules}, num_steps)
    losses.check_frames(config.data.get("num_frames") or 1)
    models = {MODEL: task.build(shapes_only=True)}
    _check_frames(config)
    _check_trained_on_pixels(config, task)
    for path, model in _slot_models(config):
        _check_boxes(config, path, model)
    check_sources(config, task, models[MODEL])
    for name, companion in config.companions.items():
        if "model" in companion or "average_of" in companion:
            of_model = companion.get("model") or config.model
            size, slots = image_size_of(config), getattr(task, "slot_model", None)
            models[name] = model_shapes(of_model, size, slots)
    _check_kinds(config)
    _check_tokenizer(config, models)
    _check_teacher(config, losses, models)
    _check_perceptual(losses, models)
    _check_eval_slots(config, models[MODEL])
    _check_scoring(config, task)
    outputs = _outputs(config, task, models)
    losses.check_reads(outputs)
    for name in task.evaluator.outputs if outputs is not None else ():
        if name not in outputs:
            raise UserError(
                f"this model returns no {name}, which the evaluation reads; if its decoder has no "
                "masks, set --config.eval.masks=aggregator"
            )


def _check_best(config: ConfigDict, task: Task, losses: Losses) -> None:
    metric, mode = config.checkpoint.best_metric, config.checkpoint.best_mode
    if metric is None:
        return
    trained = ("loss", *(f"loss/{name}" for name in losses.terms), "grad_norm")
    schema.one_of(*task.evaluator.metrics, *trained)("checkpoint.best_metric", metric)
    lowest = (*trained, *getattr(task.evaluator, "errors", ()))
    right = "min" if metric in lowest else "max"
    if mode != right:
        raise UserError(
            f"checkpoint.best_mode is {mode!r} for {metric}, of which the {right} is best; "
            f"set --config.checkpoint.best_mode={right}"
        )


def _check_teacher(config: ConfigDict, losses: Losses, models: Models) -> None:
    """Check that a teacher is there if a loss needs it, and that it fits."""
    needs = [
        f"losses.{name}" for name, term in losses.terms.items() if "teacher.masks" in term.reads
    ]
    if not needs:
        if "source" in config.companions.get(TEACHER, {}):
            raise UserError(
                f"companions.{TEACHER} is used by nothing: no loss reads its masks; remove it, or "
                "add losses.attention_match"
            )
        return
    if TEACHER not in models:
        raise UserError(
            f"{needs[0]} needs a teacher, but the config has no companions.{TEACHER}; set "
            f"--config.companions.{TEACHER}.source to the workdir of the first stage"
        )
    model, teacher = models[MODEL], models[TEACHER]
    for what, mine, found in (
        ("num_slots", model.num_slots, teacher.num_slots),
        ("a grid of tokens", model.encoder.grid, teacher.encoder.grid),
    ):
        if mine != found:
            raise UserError(
                f"companions.{TEACHER} has {what} {found}, but the student has {mine}, and their "
                "masks are compared; train the first stage with the same settings, or change the "
                "student's"
            )


def _check_perceptual(losses: Losses, models: Models) -> None:
    """Refuse a companion that compares pictures for nothing."""
    if PERCEPTUAL in models and not any(PERCEPTUAL in x.reads for x in losses.terms.values()):
        raise UserError(
            f"companions.{PERCEPTUAL} is used by nothing: no loss reads it; set "
            f"--config.losses.{PERCEPTUAL}.weight=1.0, or remove it"
        )


def _check_kinds(config: ConfigDict) -> None:
    """Refuse a companion that is a model of another kind than its name says."""
    for name in (TEACHER, SLOT_MODEL):
        companion = config.companions.get(name, {})
        if "model" in companion and not is_slot_model(companion["model"]):
            raise UserError(
                f"companions.{name} holds {companion.get('title') or 'a model'}, which is no slot "
                f"model; give the workdir of one with --config.companions.{name}.source"
            )


def _check_tokenizer(config: ConfigDict, models: Models) -> None:
    """Check that a tokenizer, frozen or trained along, fits the target that its tokens are."""
    model = models[MODEL]
    if TOKENIZER in models:
        path = f"companions.{TOKENIZER}"
        advice = (
            f"train the tokenizer with the same settings, or give another --config.{path}.source"
        )
        _check_encoders(config, path, advice)
        _check_tokens(config, model, path, models[TOKENIZER].tokenizer, advice)
    elif is_slot_model(config.model) and TOKENIZER in config.model:
        path = f"model.{TOKENIZER}"
        advice = f"change --config.{path}"
        _check_tokens(config, model, path, model.tokenizer, advice)
    elif is_slot_model(config.model) and TOKENIZER not in config.companions:
        for name in names_of(config.model.target):
            if getattr(choose("model.target", name, PARTS["target"]), "of_tokenizer", False):
                raise UserError(
                    f"model.target.name={name!r} needs a tokenizer, but the config has no "
                    f"companions.{TOKENIZER}; set --config.companions.{TOKENIZER}.source to the "
                    "workdir of its first stage"
                )


def _check_encoders(config: ConfigDict, path: str, advice: str) -> None:
    """Check that a frozen tokenizer of features has the encoder of the model."""
    theirs = config.companions[TOKENIZER].model
    mine = TARGET_ENCODER if TARGET_ENCODER in config.model else ENCODER
    if "encoder" in theirs and theirs.encoder != config.model[mine]:
        differ = sorted(
            key
            for key in {*theirs.encoder, *config.model[mine]}
            if theirs.encoder.get(key) != config.model[mine].get(key)
        )
        raise UserError(
            f"{path} reads features of another encoder than model.{mine}: they differ in "
            f"{', '.join(differ)}; {advice}"
        )


def _check_tokens(
    config: ConfigDict, model: SlotModel, path: str, tokenizer: Tokenizer, advice: str
) -> None:
    """Check vocabulary, width of codes and grid of a model's target against its tokenizer."""
    for key, settings in _parts_of("model.target", config.model.target):
        for name in ("vocabulary", "width"):
            found = getattr(tokenizer, name)
            if name in settings and settings[name] != found:
                raise UserError(
                    f"{path} has {name} {found}, but {key}.{name} is {settings[name]}; {advice}, "
                    f"or set --config.{key}.{name}={found}"
                )
    grid = getattr(model.target, "grid", model.encoder.grid)
    if tuple(tokenizer.grid) != tuple(grid):
        raise UserError(
            f"{path} has a grid of {tokenizer.grid[0]}x{tokenizer.grid[1]} tokens, but the decoder "
            f"has one of {grid[0]}x{grid[1]}; {advice}"
        )


def _parts_of(path: str, part: ConfigDict) -> Iterable[tuple[str, ConfigDict]]:
    """Yield (path, settings) of a part and of the parts inside it."""
    yield path, part
    for key, inside in part.items():
        if isinstance(inside, ConfigDict):
            yield from _parts_of(f"{path}.{key}", inside)


def _slot_models(config: ConfigDict) -> Iterable[tuple[str, ConfigDict]]:
    """Yield (path, settings) of every slot model: the trained one and those of companions."""
    if "num_slots" in config.model:
        yield "model", config.model
    for name, companion in config.companions.items():
        if "num_slots" in companion.get("model", {}):
            yield f"companions.{name}.model", companion.model


def _check_frames(config: ConfigDict) -> None:
    if (config.eval.num_frames or 1) < 0 and config.data.name in GENERATED:
        raise UserError(
            f"eval.num_frames is {config.eval.num_frames}, but {config.data.name} have no "
            "whole videos; "
            "expected a whole number of at least 1; set --config.eval.num_frames=1 or more"
        )
    for path, model in _slot_models(config):
        if _sees_scenes(model):
            continue  # its frames are the views of one scene
        for group in ("data", "eval"):
            frames = config[group].get("num_frames") or 1
            if frames > 1 and not has_transition(model):
                raise UserError(
                    f"{group}.num_frames is {frames}, but {path}.transition.name is 'none', a "
                    f"model of single images; set --config.{group}.num_frames=1 or choose a "
                    "transition"
                )


def _sees_scenes(model: ConfigDict) -> bool:
    if "encoder" not in model:
        return False
    encoder = choose("model.encoder", model.encoder.name, PARTS["encoder"])
    return getattr(encoder, "of_scenes", False)


def _check_trained_on_pixels(config: ConfigDict, task: Task) -> None:
    if (features := config.data.get("features")) and "features" not in task.inputs:
        raise UserError(
            f"data.features is {features!r}, but {config.task} is trained on pixels; "
            "set --config.data.features="
        )
    if features:
        _check_stored_features(config)
    if (slots := config.data.get("slots")) and "slots" not in task.inputs:
        raise UserError(
            f"data.slots is {slots!r}, but the task {config.task!r} reads no stored slots; set "
            "--config.data.slots="
        )
    if (remat := config.train.remat) != "none" and "num_slots" not in config.model:
        raise UserError(
            f"train.remat is {remat!r}, which is for slot models, but the task is {config.task!r}; "
            "set --config.train.remat=none"
        )


def _check_stored_features(config: ConfigDict) -> None:
    """Check that no model needs features of an encoder that changes, or of another one."""
    if not any(x in ("*", f"{ENCODER}.*") for x in frozen_patterns(config.weights)):
        raise UserError(
            "data.features is set, but the encoder is trained, which changes its features; freeze "
            "it with --config.weights.encoder.frozen='(\"*\",)', or set --config.data.features="
        )
    for path, model in _slot_models(config):
        if TARGET_ENCODER in model:
            raise UserError(
                f"data.features is set, but {path}.{TARGET_ENCODER} needs pixels; set "
                "--config.data.features="
            )
        for name in names_of(model.target):
            if getattr(choose(f"{path}.target", name, PARTS["target"]), "of_pixels", False):
                raise UserError(
                    f"data.features is set, but {path}.target.name={name!r} needs pixels; set "
                    "--config.data.features="
                )


def _check_boxes(config: ConfigDict, path: str, model: ConfigDict) -> None:
    """Check that slots start from boxes if the data have them, and that there are enough slots."""
    key, part = f"{path}.initializer", model.initializer
    while "cold" in part:
        key, part = f"{key}.cold", part.cold
    from_boxes, boxes = starts_from_boxes(model), config.data.get("boxes")
    if boxes is not None and boxes != from_boxes:
        # With boxes, only slots with a box are valid, which would reveal the number of objects to a
        # model that has to find it.
        raise UserError(
            f"data.boxes is {boxes}, but {key}.name is {part.name!r}; set "
            f"--config.data.boxes={not boxes}, or use a word of the config that changes both"
        )
    if from_boxes and part.get("zeros", False) and config.data.get("background_box") is False:
        raise UserError(
            f"{key}.zeros is True, which makes the first box the background's, but "
            "data.background_box is False, so that it is an object's; set "
            "--config.data.background_box=True"
        )
    slots, objects = model.num_slots, config.data.get("max_objects")
    background = 1 if config.data.get("background_box", False) else 0
    if from_boxes and isinstance(objects, int) and objects + background > slots:
        also = " and one box for the background" if background else ""
        raise UserError(
            f"data.max_objects is {objects}{also}, more than the {slots} slots that start from "
            f"boxes; raise {path}.num_slots to {objects + background} or lower data.max_objects"
        )


def _check_eval_slots(config: ConfigDict, model: nnx.Module) -> None:
    """Check that slots can be pruned at evaluation, and another number of them or of iterations."""
    settings = config.eval
    given = [k for k in ("prune", "num_slots", "iterations") if settings[k] is not None]
    if not given:
        return
    if not isinstance(model, SlotModel):
        key = given[0]
        raise UserError(
            f"eval.{key} is {settings[key]!r}, which is for slot models, but the task is "
            f"{config.task!r}; set --config.eval.{key}=None"
        )
    if settings.prune is not None:
        check_prunable(model.aggregator, config.model.aggregator.name, settings.prune_restart)
    if settings.iterations is not None:
        name = config.model.aggregator.name
        check_repeatable(model.aggregator, name, "eval.iterations", settings.iterations)
    own, start = config.model.num_slots, model.initializer
    if settings.num_slots in (None, own):
        return
    if start.starts_from_boxes or not start.any_number:
        raise UserError(
            f"eval.num_slots is {settings.num_slots}, but model.initializer.name="
            f"{cold_start(config.model)!r} has a query for each of {own} slots; set "
            "--config.eval.num_slots=None, or train with queries of one Gaussian"
        )
    if hasattr(model.aggregator, "check_num_slots"):
        model.aggregator.check_num_slots(settings.num_slots, "eval.num_slots")


def _check_scoring(config: ConfigDict, task: Task) -> None:
    """Refuse options of scoring masks for a task that scores something else."""
    options = {"score_at": None, "per_frame": False, "foreground": False, "skip_frames": 0}
    options["count_segments"] = False
    for key, off in options.items():
        if (value := config.eval[key]) != off and key not in task.evaluator.protocol:
            raise UserError(
                f"eval.{key} is {value}, but {config.task} is not scored by its masks; set "
                f"--config.eval.{key}={off}"
            )
    if (observed := config.eval.observed) is not None and "observed" not in task.evaluator.protocol:
        raise UserError(
            f"eval.observed is {observed}, which is for the task 'dynamics', but the task is "
            f"{config.task!r}; set --config.eval.observed=None"
        )
    if config.eval.lpips and "lpips" not in task.evaluator.protocol:
        raise UserError(
            f"eval.lpips is {config.eval.lpips}, which is for the task 'dynamics', but the task is "
            f"{config.task!r}; set --config.eval.lpips="
        )
    of_clips = config.eval.num_frames or config.data.get("num_frames") or 1
    frames, skipped = config.eval.windows or of_clips, config.eval.skip_frames
    if 0 < frames <= skipped:
        raise UserError(
            f"eval.skip_frames is {skipped}, but scored clips have {frames} frames; set "
            f"--config.eval.skip_frames={frames - 1} or less"
        )


def check_sources(config: ConfigDict, task: Task, model: nnx.Module) -> None:
    """Refuse entries of `companions` and `weights` that do nothing.

    A pattern of `without` may match arrays of the source alone, so `checkpoints.sources` checks it
    when it opens the source.

    Args:
        config: the whole config.
        task: its task.
        model: the model to train, with shapes or arrays.

    Raises:
        UserError: names the first problem.
    """
    names = split(model)[0].names
    for name, companion in config.companions.items():
        _check_companion(name, companion, task, names)
    for name, entry in config.weights.items():
        has_parts = is_slot_model(config.model) or is_tokenizer_model(config.model)
        _check_weights(f"weights.{name}", entry, has_parts, names)
    patterns = frozen_patterns(config.weights)
    if not split(model, frozen=patterns)[1]:
        raise UserError(
            f"weights freezes every array of the model with {', '.join(map(repr, patterns))}; "
            "expected at least one that is trained; remove a pattern of `frozen`"
        )


def _check_companion(
    name: str, companion: Mapping[str, Any], task: Task, names: Iterable[str]
) -> None:
    parts = PARTS.keys() - {TOKENIZER}  # which is a companion where no part has this name
    if name in {MODEL, *parts, *(array.split(".")[0] for array in names)}:
        raise UserError(
            f"companions.{name} has the name of the trained model or of a part of it; expected "
            "another name"
        )
    if name in task.companions or (task.averages and "average_of" in companion):
        return
    used = ", ".join(task.companions) or "no companion but averages of the model"
    raise UserError(
        f"companions.{name} is used by nothing: the task uses {used}"
        f"{did_you_mean(name, task.companions)}; remove it"
    )


def _check_weights(
    path: str, entry: Mapping[str, Any], has_parts: bool, names: Iterable[str]
) -> None:
    into, start = entry["into"], below(entry["into"], "")
    inside = sorted(name.removeprefix(start) for name in names if name.startswith(start))
    if not inside:
        groups = {name.rsplit(".", i)[0] for name in names for i in range(1, name.count(".") + 1)}
        raise UserError(
            f"{path}.into is {into!r}, which is not a part of the model with arrays; expected '' "
            f"for the whole model, or a part{did_you_mean(into, sorted(groups))}"
        )
    random = entry["source"] == "random"
    if random and "seed" in entry and not into:
        raise UserError(
            f"{path}.seed is for one part, but into='' is the whole model, whose values come from "
            f"`seed` of the config; remove {path}.seed"
        )
    if random and into and not (has_parts and into in PARTS):
        parts = sorted(PARTS) if has_parts else ()
        expected = f"'' or a whole part, {', '.join(parts)}" if has_parts else "''"
        raise UserError(
            f"{path}.into is {into!r} with source='random', whose seed would do nothing there; "
            f"expected {expected}{did_you_mean(into, parts)}"
        )
    for key in ("frozen", "without") if random else ("frozen",):
        for pattern in entry.get(key, ()):
            if not matching(inside, (pattern,)):
                raise UserError(
                    f"{path}.{key} has {pattern!r}, which matches no array below into={into!r}"
                    f"{did_you_mean(pattern, inside)}; change or remove it"
                )


def _outputs(config: ConfigDict, task: Task, models: Models) -> frozenset[str] | None:
    """Find the names of a task's outputs, without computing anything.

    Returns:
        The names; None if the models read arrays that not every data set has.
    """
    frames, slots = config.data.get("num_frames") or 1, task.slot_model.num_slots
    whole_clips = getattr(task, "whole_clips", False)
    if whole_clips:
        frames = max(frames, (config.eval.observed or 0) + 1)
    elif not _sees_scenes(task.slot_model):
        frames = min(frames, 2)  # the others are like the second
    batch = {
        name: jax.ShapeDtypeStruct(*x)
        for name, x in batch_shapes(config, task, 1, frames).items()
        if name != "cameras" or name in task.inputs
    }
    patterns = frozen_patterns(config.weights)
    apart = {name: split(x, frozen=patterns if name == MODEL else ()) for name, x in models.items()}

    def run(arrays: dict[str, Parameters], batch: dict[str, Array], key: Array) -> dict[str, Array]:
        whole = {name: apart[name][0].merge(arrays[name]) for name in arrays}
        found: dict[str, Array] = {}
        for training in (False, True) if whole_clips else (False,):
            draws = task.draw(whole, key, Sizes(1, frames, slots), training)
            found |= run_task(task, whole, _Batch(batch), draws)
        return found

    arrays = {name: {**trained, **frozen} for name, (_, trained, frozen) in apart.items()}
    try:
        return frozenset(jax.eval_shape(run, arrays, batch, jax.random.key(0)))
    except UserError:
        raise
    except (
        Exception
    ):  # a part that reads more may raise anything; the training step will fail clearly
        return None


class _Batch(dict):
    """A batch with the arrays of every data set; any other key raises a KeyError."""

    def __contains__(self, name: object) -> bool:
        return name not in STORED and self[name] is not None


def agree(config: ConfigDict) -> None:
    """Check that all processes have the same config and versions.

    The workdir is not compared: over NFS, a host that looks for a folder before process 0 creates
    it may not see it later.

    Raises:
        UserError: the processes differ.
    """
    if not hosts.is_multi_process():
        return
    common = {k: v for k, v in flatten(config).items() if k not in hosts.OF_EACH_HOST}
    hosts.refuse_differences({**common, **hosts.versions()})
