"""The authors' checkpoints as workdirs of ours, and back (method section 9).

A state dict says which model it is by its keys and shapes, but not which data set it was trained on: what several recipes share
has to be chosen by name.
"""

import contextlib
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from smoothsa_jax.checkpoints.read import FOLDER, restore_latest
from smoothsa_jax.checkpoints.workdir import write_config
from smoothsa_jax.checkpoints.write import CheckpointWriter
from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.interop.authors import DETACH_FLAG, HEAD, from_authors, to_authors
from smoothsa_jax.interop.table import describe, mismatches
from smoothsa_jax.models.build import build_shapes
from smoothsa_jax.models.heads import RecognitionHead
from smoothsa_jax.models.parameters import split
from smoothsa_jax.training.task import task_of

StateDict = Mapping[str, np.ndarray]
PACKAGE = Path(__file__).parent.parent
_INSTALLED = PACKAGE / "recipes" / "configs"  # where a wheel has them
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else PACKAGE.parent / "configs"
RECORD = "authors"  # in a checkpoint's progress: what of a state dict is no parameter


# ------------------------------------------------------------------------------------------------- which config it is


def recipes() -> dict[str, ConfigDict]:
    """Every config in configs/ whose model the authors' program has, by its name.

    Raises:
        UserError: there is no such folder, as where the package was copied without it.
    """
    recipes = {}
    for path in sorted(CONFIGS.glob("*.py")):
        if "def get_config" in path.read_text():
            config = load_config(str(path))
            if config.model.backbone.name == "vit":
                recipes[path.stem] = config
    if not recipes:
        raise UserError(
            f"no configs found in {CONFIGS}; run from a checkout of the project, or give the config file with --config"
        )
    return recipes


def expected_keys(config: ConfigDict) -> dict[str, str]:
    """Key -> type and shape of the authors' state dict of a config's model.

    Raises:
        UserError: a model that their program does not have.
    """
    model = config.model.to_dict()
    model["slot_attention"].pop("num_slots", None)  # of no influence on arrays
    classes = config.recognition.num_classes if "recognition" in config else None
    return dict(_expected_keys(json.dumps(model), image_size_of(config), classes))


@functools.cache  # most recipes share theirs, and each takes a second
def _expected_keys(model: str, image_size: tuple[int, int], classes: int | None) -> dict[str, str]:
    """The same of a model whose config is given as JSON, and of a head for so many classes."""
    config = ConfigDict(json.loads(model))
    _, params, frozen = split(build_shapes(config, image_size))
    shapes = {**params, **frozen}
    if classes is not None:
        slot_size = config.slot_attention.slot_size
        head = nnx.eval_shape(lambda: RecognitionHead(slot_size, classes, rngs=nnx.Rngs(0)))
        shapes |= {f"{HEAD}{name}": x for name, x in split(head)[1].items()}
    # The transforms of the table apply to arrays.
    arrays = {name: np.broadcast_to(x.dtype.type(0), x.shape) for name, x in shapes.items()}
    return describe(to_authors(arrays, detach=False))


def configs_of(state_dict: StateDict, configs: Mapping[str, ConfigDict]) -> list[str]:
    """Names of the configs whose models have exactly the keys, types and shapes of a state dict.

    Raises:
        UserError: none has; lists what is missing, left over or of the wrong shape against the nearest.
    """
    found = describe(state_dict)
    layouts = {name: expected_keys(config) for name, config in configs.items()}
    exact = [name for name, expected in layouts.items() if expected == found]
    if exact:
        return exact
    common = {
        name: len(found.items() & expected.items()) - abs(len(found) - len(expected))
        for name, expected in layouts.items()
    }
    nearest = max(common, key=lambda name: common[name])
    expected = layouts[nearest]
    if not found.keys() & expected.keys():
        raise UserError(
            f"no checkpoint of SmoothSA: it has {len(found)} keys such as {next(iter(found), None)!r}, expected those of "
            f"the authors' program, such as {next(iter(expected))!r}"
        )
    raise UserError(
        f"the keys do not fit; against the config {nearest}, {'; '.join(mismatches(found, expected))}; get the file anew, "
        "or give its config with --config"
    )


# -------------------------------------------------------------------------------------------------- there and back


def write_workdir(state_dict: StateDict, config: ConfigDict, workdir: Path) -> None:
    """A workdir with one checkpoint, as if a run of the config had ended with these weights.

    Args:
        state_dict: with exactly `expected_keys(config)`.
        workdir: appears whole or not at all; a folder that is there has to be empty.

    Raises:
        UserError: the keys do not fit the config, values that are not finite, or the folder is not empty.
    """
    if wrong := mismatches(describe(state_dict), expected_keys(config)):
        raise UserError(f"the keys do not fit the config {config.name}: {'; '.join(wrong)}")
    for key, array in state_dict.items():
        if not np.isfinite(array).all():
            raise UserError(f"{key} holds values that are not finite; get the file anew")
    if workdir.exists() and not (workdir.is_dir() and not any(workdir.iterdir())):
        raise UserError(f"{workdir} exists and is no empty folder; give the name of a new one")

    arrays = from_authors(state_dict)
    head = {name.removeprefix(HEAD): x for name, x in arrays.items() if name.startswith(HEAD)}
    training = task_of(config).build(config)
    params = head or {name: x for name, x in arrays.items() if name not in training.frozen}
    state = training.state.replace(
        step=jnp.asarray(config.train.num_steps, jnp.int32), params=jax.device_put(params)
    )
    frozen = {name: arrays[name] for name in training.frozen}
    (flag,) = (bool(x) for key, x in state_dict.items() if key.endswith(DETACH_FLAG))
    progress = {"frozen_from": "the authors' checkpoint", RECORD: {"detach": flag}}
    with _whole_folder(workdir) as folder:
        with contextlib.closing(CheckpointWriter(folder, config)) as writer:
            writer.save(config.train.num_steps, {"state": state, "frozen": frozen}, progress, {})
            writer.wait()
        write_config(config, folder)


@contextlib.contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, beside `path`; it gets that name at the end, or is removed if the body fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it its owner's only
        folder.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_workdir(workdir: Path, warn: Callable[[str], None]) -> dict[str, np.ndarray]:
    """The newest checkpoint of a workdir as a state dict of the authors' program.

    Raises:
        UserError: no checkpoint, or a model that their program does not have.
    """
    checkpoint = restore_latest(workdir, warn=warn)
    if checkpoint is None:
        raise UserError(f"no usable checkpoint in {workdir / FOLDER}; give a trained workdir")
    config, arrays = checkpoint.config, {}
    trained = HEAD if "recognition" in config else ""
    for name, array in checkpoint.arrays.items():
        for prefix, ours in (("state/params/", trained), ("frozen/", "")):
            if name.startswith(prefix):
                arrays[ours + name.removeprefix(prefix)] = array
    detach_until = config.model.initializer.detach_until * config.train.num_steps
    record = checkpoint.progress.get(RECORD, {"detach": checkpoint.step < detach_until})
    return to_authors(arrays, record["detach"])
