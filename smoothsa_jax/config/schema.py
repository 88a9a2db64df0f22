"""Refuse a config that cannot run, in one line, before anything is built."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from smoothsa_jax.config.values import flatten
from smoothsa_jax.errors import UserError, did_you_mean

DTYPES = ("bfloat16", "float32")  # in which a model may compute
MATMUL_PRECISIONS = ("default", "high", "highest")  # JAX's names, of float32 matrix products


class _Reader:
    """Reads dotted keys of a flat config and refuses, in one line, what is missing or out of range."""

    def __init__(self, config: ConfigDict):
        self.flat = flatten(config)

    def get(self, key: str, default: Any = None) -> Any:
        return self.flat.get(key, default)

    def need(self, key: str) -> Any:
        if key not in self.flat:
            raise UserError(f"the config has no {key}; add it to the config file")
        return self.flat[key]

    def whole(self, key: str, least: int, optional: bool = False) -> int | None:
        if optional and self.flat.get(key) is None:
            return None
        value = self.need(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(
                f"{key} is {value!r}; expected a whole number of at least {least}; set --config.{key}={max(least, 1)} or more"
            )
        return value

    def number(self, key: str, least: float, above: bool = False) -> None:
        value = self.get(key)
        if value is None:
            return
        good = isinstance(value, int | float) and not isinstance(value, bool) and value == value
        if not good or value < least or (above and value == least):
            bound = "above" if above else "of at least"
            raise UserError(
                f"{key} is {value!r}; expected a number {bound} {least:g}; mend --config.{key}"
            )

    def one_of(self, key: str, names: Iterable[str]) -> None:
        names = sorted(names)
        value = self.need(key)
        if value not in names:
            raise UserError(
                f"{key} is {value!r}; expected one of {', '.join(names)}{did_you_mean(value, names)}"
            )


def validate(
    config: ConfigDict,
    num_devices: int = 1,
    names: Mapping[str, Iterable[str]] | None = None,
    batches: Iterable[str] = ("train.batch_size", "eval.batch_size"),
) -> None:
    """Refuse a config that cannot run, before anything is built.

    Args:
      config: the whole config.
      num_devices: how many devices are visible, for the mesh and the batch.
      names: known names of each choice, `{"model.decoder.name": (...), ...}`.
      batches: the batch sizes that will be used, and have to divide over the devices.

    Raises:
      UserError: the first thing that is wrong: what was found, what was expected, what to do.
    """
    read = _Reader(config)
    for key in (
        "train.num_steps",
        "train.batch_size",
        "train.log_every",
        "checkpoint.every",
        "checkpoint.max_to_keep",
    ):
        read.whole(key, 1)
    for key in ("data.num_frames", "eval.batch_size", "eval.num_samples", "train.num_threads"):
        read.whole(key, 1, optional=True)
    if read.get("eval.num_frames") != -1 or read.get("data.name") == "sprites":  # -1: whole videos
        read.whole("eval.num_frames", 1, optional=True)
    read.whole("train.num_workers", 0, optional=True)
    read.whole("train.accumulate", 1, optional=True)
    read.whole("eval.validation_samples", 1, optional=True)
    if read.get("eval.split") is not None:
        read.one_of("eval.split", ("train", "validation", "test"))
    read.whole("model.transition.history", 2, optional=True)
    read.whole("model.decoder.num_layers", 1, optional=True)
    read.whole("model.slot_attention.slot_size", 1)
    read.whole("model.slot_attention.num_slots", 1)
    for key in ("first_iterations", "later_iterations"):
        read.whole(f"model.slot_attention.{key}", 1, optional=True)
    read.whole("seed", 0)
    read.one_of("dtype", DTYPES)
    if read.get("train.remat") is not None:
        read.one_of("train.remat", ("none", "recurrence", "decoder", "all"))
    read.whole("train.scan_unroll", 0, optional=True)
    if read.get("matmul_precision") is not None:
        read.one_of("matmul_precision", MATMUL_PRECISIONS)
    read.number("optimizer.learning_rate", 0.0, above=True)
    read.number("optimizer.clip_norm", 0.0)
    for key in (
        "model.transition.dropout_rate",
        "optimizer.warmup_fraction",
        "optimizer.final_ratio",
        "model.initializer.detach_until",
    ):
        read.number(key, 0.0)
    for key in ("model.transition.dropout_rate", "optimizer.warmup_fraction"):
        if (read.get(key) or 0.0) >= 1.0:
            raise UserError(
                f"{key} is {read.get(key)}; expected a number below 1; mend --config.{key}"
            )
    warmup = round((read.get("optimizer.warmup_fraction") or 0.0) * read.need("train.num_steps"))
    if warmup >= read.need("train.num_steps"):
        raise UserError(
            f"optimizer.warmup_fraction is {read.get('optimizer.warmup_fraction')}, which leaves no step of "
            f"{read.need('train.num_steps')} after the warm-up; lower it or raise train.num_steps"
        )
    read.need("model.initializer.detach_until")
    for key in ("loss.reconstruction", "loss.distillation", "loss.slot_contrast"):
        read.number(key, 0.0)
    if read.get("checkpoint.best_metric"):
        read.one_of("checkpoint.best_mode", ("min", "max"))
    elif "checkpoint.best_metric" in (names or {}):
        names = {key: known for key, known in names.items() if key != "checkpoint.best_metric"}
    if read.get("eval.checkpoint") is not None:
        read.one_of("eval.checkpoint", ("latest", "best"))
    if not re.fullmatch(r"[\w.\-]+", str(read.need("name"))):
        raise UserError(
            f"name is {read.need('name')!r}; expected letters, digits, '_', '-' or '.', since it names a folder"
        )
    for key, known in (names or {}).items():
        read.one_of(key, known)
    _check_best(read)
    _check_seeds(read)
    _check_image(read)
    _check_slots(read)
    _check_heads(read)
    _check_frames(read)
    _check_recognition(read)
    _check_devices(read, num_devices, batches)


def _check_recognition(read: _Reader) -> None:
    if not any(key.startswith("recognition.") for key in read.flat):
        return
    if read.get("data.features"):
        raise UserError(
            f"data.features is {read.get('data.features')!r}, but recognition is trained on pixels; set --config.data.features="
        )
    if (remat := read.get("train.remat", "none")) != "none":
        raise UserError(
            f"train.remat is {remat!r}, but no gradient passes through the frozen model of a recognition; set "
            "--config.train.remat=none"
        )
    read.whole("recognition.num_classes", 1)
    if not isinstance(read.need("recognition.workdir"), str) or not read.get("recognition.workdir"):
        raise UserError(
            f"recognition.workdir is {read.get('recognition.workdir')!r}; expected the folder of a trained SmoothSA; "
            "set --config.recognition.workdir"
        )
    for key in ("loss.category", "loss.box"):
        read.need(key)
        read.number(key, 0.0)
    read.number("recognition.dropout_rate", 0.0)
    if (read.get("recognition.dropout_rate") or 0.0) >= 1.0:
        raise UserError(
            f"recognition.dropout_rate is {read.get('recognition.dropout_rate')}; expected a number below 1; "
            "mend --config.recognition.dropout_rate"
        )


def _check_best(read: _Reader) -> None:
    metric, mode = read.get("checkpoint.best_metric"), read.get("checkpoint.best_mode")
    right = "min" if str(metric).startswith("loss") or metric == "grad_norm" else "max"
    if metric and mode != right:
        raise UserError(
            f"checkpoint.best_mode is {mode!r} for {metric}, of which the {right} is best; "
            f"set --config.checkpoint.best_mode={right}"
        )
    if read.get("eval.checkpoint") != "best":
        return
    if not metric:
        raise UserError(
            "eval.checkpoint is 'best', but checkpoint.best_metric names none to choose by; "
            "set --config.checkpoint.best_metric=loss, or --config.eval.checkpoint=latest"
        )
    if read.get("checkpoint.max_to_keep") < 2:
        raise UserError(
            "eval.checkpoint is 'best', but checkpoint.max_to_keep 1 keeps the latest alone; "
            "set --config.checkpoint.max_to_keep to at least 2"
        )


def _check_heads(read: _Reader) -> None:
    slot_size = read.need("model.slot_attention.slot_size")
    for part in ("initializer", "transition"):
        key = f"model.{part}.num_heads"
        heads = read.whole(key, 1, optional=True)
        if heads is not None and slot_size % heads:
            raise UserError(
                f"{key} is {heads}, which does not divide model.slot_attention.slot_size {slot_size}; "
                "choose a divisor"
            )


def _check_frames(read: _Reader) -> None:
    if read.get("model.transition.name") != "none":
        return
    for key in ("data.num_frames", "eval.num_frames"):
        if (read.get(key) or 1) > 1:
            raise UserError(
                f"{key} is {read.get(key)}, but model.transition.name is 'none', a model of single images; "
                f"set --config.{key}=1 or choose a transition"
            )


def _check_seeds(read: _Reader) -> None:
    seeds = read.get("eval.seeds")
    if seeds is None:
        return
    good = (
        isinstance(seeds, tuple)
        and seeds
        and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds)
    )
    if not good:
        raise UserError(
            f'eval.seeds is {seeds!r}; expected whole numbers of at least 0; write --config.eval.seeds="(0, 1, 2)"'
        )


def _check_image(read: _Reader) -> None:
    size = read.need("data.image_size")
    height, width = size if isinstance(size, tuple) else (size, size)
    patch = read.get("model.backbone.patch")
    for name, pixels in (("height", height), ("width", width)):
        if not isinstance(pixels, int) or pixels < 1:
            raise UserError(
                f"data.image_size has {name} {pixels!r}; expected a whole number of at least 1"
            )
        # The backbone may look at a smaller image than the labels have (method section 4: 256 -> 224 by 0.875).
        seen = pixels * float(read.get("model.backbone.resize", 1.0) or 1.0)
        if patch and (abs(seen - round(seen)) > 1e-6 or round(seen) % patch):
            raise UserError(
                f"data.image_size {pixels} does not fit the backbone: it sees {seen:g} pixels, which patches of "
                f"{patch} do not divide; choose data.image_size or model.backbone.patch so that they fit"
            )


def _check_slots(read: _Reader) -> None:
    queries, boxes = read.get("model.initializer.name"), read.get("data.boxes")
    if boxes is not None and boxes != (queries == "boxes"):
        # With boxes a slot is valid where there is one: their number would be told to a model that has to find it.
        raise UserError(
            f"data.boxes is {boxes}, but model.initializer.name is {queries!r}; set --config.data.boxes={not boxes}, "
            "or use a variant of the config that changes both"
        )
    if queries != "boxes":
        return
    slots = read.need("model.slot_attention.num_slots")
    background = 1 if read.get("data.background_box", False) else 0
    boxes = read.get("data.max_objects")
    if isinstance(boxes, int) and boxes + background > slots:
        also = " and one box for the background" if background else ""
        raise UserError(
            f"data.max_objects is {boxes}{also}, more than the {slots} slots that start from boxes; raise "
            f"model.slot_attention.num_slots to {boxes + background} or lower data.max_objects"
        )


def _check_devices(read: _Reader, num_devices: int, batches: Iterable[str]) -> None:
    data, fsdp = mesh_shape(read.get("mesh.data", -1), read.get("mesh.fsdp", 1), num_devices)
    used = data * fsdp
    parts = read.get("train.accumulate", 1)
    for key in batches:
        batch = read.get(key)
        if not isinstance(batch, int):
            continue
        if batch % used:
            raise UserError(
                f"{key} is {batch}, which {used} devices do not divide; choose a multiple of {used}, or "
                "--config.mesh.data=1 --config.mesh.fsdp=1"
            )
        if key == "train.batch_size" and batch % (used * parts):
            over = f" on each of {used} devices" * (used > 1)
            raise UserError(
                f"{key} is {batch}, which train.accumulate={parts} does not divide into equal parts{over}; choose a "
                f"multiple of {used * parts}, or another train.accumulate"
            )


def mesh_shape(data: Any, fsdp: Any, num_devices: int) -> tuple[int, int]:
    """How many devices lie along `mesh.data` and `mesh.fsdp`.

    Raises:
        UserError: no whole numbers, or not as many devices.
    """
    for key, value, least in (("data", data, -1), ("fsdp", fsdp, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value == 0 or value < least:
            also = "-1 (all devices that fsdp leaves) or " * (key == "data")
            raise UserError(
                f"mesh.{key} is {value!r}; expected {also}a number of devices of at least 1"
            )
    if data == -1:
        if num_devices % fsdp:
            raise UserError(
                f"mesh.fsdp is {fsdp}, which does not divide the {num_devices} devices found; choose a divisor, or set "
                "mesh.data too to leave some out"
            )
        return num_devices // fsdp, fsdp
    if data * fsdp > num_devices:
        asked = (
            f"mesh.data x mesh.fsdp asks for {data} x {fsdp}"
            if fsdp > 1
            else f"mesh.data asks for {data}"
        )
        raise UserError(
            f"{asked} devices, {num_devices} found; set --config.mesh.data=-1 to use all there are"
        )
    return data, fsdp
