"""Read and verify checkpoints: one Orbax folder per step with state, progress and config.

    checkpoints/<step>/state      every array of the training state, as one flat dict
    checkpoints/<step>/progress   position in the data, running means
    checkpoints/<step>/config     the whole config
    checkpoints/<step>/arrays     shape, dtype and checksum of every array
    checkpoints/<step>/files.json size of every file

`arrays` and `files.json` reveal a folder that was copied in part or truncated: Orbax may read such
a folder without an error.
"""

import dataclasses
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from ml_collections import ConfigDict

from smoothsa_jax.checkpoints import before
from smoothsa_jax.config.values import from_json
from smoothsa_jax.devices import hosts
from smoothsa_jax.errors import UserError

FOLDER = "checkpoints"
BROKEN_FOLDER = "checkpoints_broken"
FILES_LIST = "files.json"
# Key of `progress` in a converted checkpoint: entries of its state dict that are not parameters.
RECORD = "authors"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One checkpoint in host memory.

    Attributes:
        step: number of updates done.
        arrays: the flat state, by name.
        progress: what the loop saved with the state.
        config: the whole config of the run.
        path: the checkpoint's folder.
    """

    step: int
    arrays: dict[str, np.ndarray]
    progress: dict[str, Any]
    config: ConfigDict
    path: Path

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """All arrays of the model, including the frozen ones, by their names in the model."""
        return {
            name.removeprefix(prefix): array
            for prefix in ("state/params/", "frozen/")
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }

    @property
    def buffers(self) -> dict[str, np.ndarray]:
        """What training steps rewrite without the optimizer, by name in the model."""
        prefix = "state/buffers/"
        return {
            name.removeprefix(prefix): array
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }


class BrokenCheckpoint(Exception):
    """A step folder that cannot be used; the text gives the reason."""


def refuse_different(what: str, checkpoint: Checkpoint | None) -> None:
    """Check that all processes have read the same checkpoint.

    Each process reads on its own: one may fail to read, and the processes may not share a folder.

    Args:
        what: the checkpoint in words, for the message.
        checkpoint: what this process has read; None: nothing.

    Raises:
        UserError: a process has another step or other values. Every process raises it.
    """
    if not hosts.is_multi_process():
        return
    found = None
    if checkpoint is not None:
        values = {name: fingerprint(array) for name, array in checkpoint.arrays.items()}
        digest = zlib.crc32(json.dumps(values, sort_keys=True).encode())
        found = f"step {checkpoint.step} (checksum {digest:08x})"
    hosts.refuse_differences({what: found})


# -------------------------------------------------------------------------------- trees of arrays


def flatten_state(tree: Any) -> dict[str, Any]:
    """Flatten a pytree to `{"params/<name>": leaf, ...}`, the layout of a checkpoint."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def restore_state(template: Any, checkpoint: Checkpoint, only: str | tuple[str, ...] = "") -> Any:
    """Return the template's pytree with the checkpoint's values, each with the template's sharding.

    Args:
        template: pytree of arrays.
        checkpoint: the checkpoint to restore from.
        only: prefix or prefixes of the arrays to restore; the others are ignored. Evaluation, for
            example, ignores the optimizer's state.

    Raises:
        UserError: names, shapes or dtypes differ; the message lists the first differences.
    """
    wanted = flatten_state(template)
    found = {name: array for name, array in checkpoint.arrays.items() if name.startswith(only)}
    problems = []
    for name in sorted(wanted.keys() | found.keys()):
        old = _describe(found[name]) if name in found else "absent"
        new = _describe(wanted[name]) if name in wanted else "absent"
        if old != new:
            problems.append(f"{name} (checkpoint {old}, model {new})")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"checkpoint {checkpoint.path} holds another architecture: "
            f"{', '.join(problems[:3])}{more}; use the config it was trained with, or another "
            "workdir"
        )
    leaves, structure = jax.tree_util.tree_flatten(template)
    placed = [place_array(found[name], like) for name, like in zip(wanted, leaves, strict=True)]
    return jax.tree_util.tree_unflatten(structure, placed)


def place_array(array: np.ndarray, like: Any) -> Any:
    """Put an array on the devices of `like`, an array or a shape with a sharding.

    With several processes, each passes the whole array. They do not wait for each other.
    """
    sharding = getattr(like, "sharding", None)
    if sharding is None:
        return array
    # Copy: on a CPU a placed array may share the host's memory, and the training step donates its
    # state.
    array = array.copy()
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    # On several hosts, each of which has read the whole array.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _describe(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(np.shape(array))}"


# ---------------------------------------------------------------------------------------- reading


def steps_found(workdir: str | Path) -> list[int]:
    """Return the steps that have a folder, newest first, whether or not it can be used.

    Raises:
        UserError: the folder of checkpoints cannot be read.
    """
    folder = Path(workdir) / FOLDER
    try:
        names = [p.name for p in folder.iterdir() if p.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read: {error.strerror}; fix its permissions or use another "
            "--workdir"
        ) from error
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def read_checkpoint(workdir: str | Path, step: int, allow_before: bool = False) -> Checkpoint:
    """Read and verify the checkpoint of one step.

    Args:
        workdir: the run's folder.
        step: which checkpoint.
        allow_before: whether to accept the layout of earlier versions.

    Raises:
        BrokenCheckpoint: the folder is empty, incomplete, truncated or altered.
        UserError: access is denied, or the checkpoint has the layout of earlier versions.
    """
    path = Path(workdir) / FOLDER / str(step)
    _look_at(path)
    try:
        config = from_json(_read_json_text(path / "config"))
        if not allow_before:
            before.refuse(workdir, config)
        listed = json.loads(_read_json_text(path / "arrays"))
        progress = json.loads(_read_json_text(path / "progress"))
        _read_raw(path / "state")
        # No `Checkpointer`: its processes wait for each other, but one may read on its own.
        reader, state = ocp.PyTreeCheckpointHandler(), (path / "state").absolute()
        whole = {
            name: ocp.RestoreArgs(restore_type=np.ndarray) for name in reader.metadata(state).tree
        }
        arrays = reader.restore(state, args=ocp.args.PyTreeRestore(restore_args=whole))
    except UserError:
        raise
    except Exception as error:
        # JSON, Orbax and TensorStore each raise their own errors for a damaged file.
        raise BrokenCheckpoint(_why_broken(path, error)) from error
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name in sorted(listed.keys() | arrays.keys()):
        if name not in arrays or name not in listed:
            raise BrokenCheckpoint(f"array {name} is missing")
        if fingerprint(arrays[name]) != listed[name]:
            raise BrokenCheckpoint(f"array {name} is damaged")
    return Checkpoint(step, arrays, progress, config, path)


def restore_latest(
    workdir: str | Path, *, warn: Callable[[str], None], set_aside: bool = False
) -> Checkpoint | None:
    """Return the newest intact checkpoint, or None.

    Broken step folders are skipped with a warning that names them, and never deleted. With
    `set_aside` they are moved to `checkpoints_broken/`, so that a later save can reuse the step.

    Args:
        workdir: the run's folder.
        warn: called with one line for each skipped folder.
        set_aside: whether the caller will write checkpoints here.

    Raises:
        UserError: a folder cannot be read or moved, or has the layout of earlier versions.
    """
    newest = None
    for step in steps_found(workdir):
        path = Path(workdir) / FOLDER / str(step)
        try:
            if newest is None:
                newest = read_checkpoint(workdir, step)
            elif set_aside:
                # Some kinds of damage in any folder, not only the newest, make Orbax fail.
                _look_at(path)
            else:
                break
        except BrokenCheckpoint as reason:
            what = "skipped"
            if set_aside:
                what = f"moved to {_move_aside(workdir, path)}"
            warn(f"checkpoint {path} is not usable ({reason}); {what}, nothing is deleted")
    return newest


def best_step(workdir: str | Path, metric: str, mode: str) -> int | None:
    """Return the kept step with the best metric, by the values saved with the checkpoints.

    Args:
        workdir: the run's folder.
        metric: name of the metric.
        mode: "min" or "max".

    Returns:
        None if no checkpoint has the metric.
    """
    scored = []
    for step in steps_found(workdir):
        try:
            file = Path(workdir) / FOLDER / str(step) / "metrics" / "metrics"
            value = json.loads(file.read_text())[metric]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        scored.append((value if mode == "max" else -value, step))
    return max(scored)[1] if scored else None


def _read_raw(item: Path) -> None:
    """Read every value of Orbax's store in turn, so that a truncated or missing file raises here.

    Orbax reads all of them at once; if one fails, the other threads print unreadable tracebacks.
    """
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{item.absolute()}/"}).result()
    for key in store.list().result():
        store.read(key).result()


def _read_json_text(item: Path) -> str:
    # Orbax's JsonSave writes one file of this name. Reading it directly keeps numbers and order.
    return (item / "metadata").read_text()


def _look_at(path: Path) -> None:
    """Check that a folder is complete, without reading its arrays.

    Raises:
        BrokenCheckpoint: it is obviously incomplete.
        UserError: access is denied.
    """
    try:
        for item in ("config", "arrays", "progress"):
            json.loads(_read_json_text(path / item))
        if (path / "metrics").exists():
            json.loads((path / "metrics" / "metrics").read_text())
        if (path / FILES_LIST).exists():
            for name, size in json.loads((path / FILES_LIST).read_text()).items():
                if not (path / name).is_file():
                    raise BrokenCheckpoint(f"{name} is missing")
                if (found := (path / name).stat().st_size) != size:
                    raise BrokenCheckpoint(f"{name} has {found} bytes, {size} expected")
        if not (path / "state" / "manifest.ocdbt").is_file():
            raise FileNotFoundError("state/manifest.ocdbt is missing")
    except PermissionError as error:
        raise UserError(
            f"checkpoint {path} cannot be read: {error.strerror}; fix its permissions"
        ) from error
    except (OSError, ValueError) as error:
        raise BrokenCheckpoint(_why_broken(path, error)) from error


def _why_broken(path: Path, error: Exception) -> str:
    if path.is_dir() and not any(path.iterdir()):
        return "the folder is empty"
    for item in ("config", "arrays", "progress", "state"):
        if not (path / item).is_dir():
            return f"{item} is missing"
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).relative_to(path)}: {error.strerror}"
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def _move_aside(workdir: str | Path, path: Path) -> Path:
    folder = Path(workdir) / BROKEN_FOLDER
    try:
        folder.mkdir(exist_ok=True)
        target = folder / path.name
        number = 1
        while target.exists():
            number += 1
            target = folder / f"{path.name}_{number}"
        path.rename(target)
    except OSError as error:
        raise UserError(
            f"checkpoint {path} is broken and cannot be moved to {folder}: {error.strerror}; move "
            "it yourself"
        ) from error
    return target


def fingerprint(array: np.ndarray) -> list[Any]:
    """Return shape, dtype and checksum of an array, as `arrays` lists them."""
    return [list(array.shape), array.dtype.name, zlib.crc32(np.ascontiguousarray(array).tobytes())]
