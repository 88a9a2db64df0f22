"""Convert the authors' checkpoints to workdirs and back, and folders of earlier versions.

    python -m smoothsa_jax.convert IN.pth runs/coco --config=coco
        a state dict -> a workdir
    python -m smoothsa_jax.convert runs/coco OUT.pth
        the newest checkpoint of a workdir -> a state dict
    python -m smoothsa_jax.convert OLD NEW
        a run or a saved model from before version 0.2 -> a new folder

A state dict is a .pth, .pt, .pt.tar or .ckpt file (PyTorch is needed to write one, not to read it),
a .safetensors file, or a .msgpack or .flax file of flax. Its keys and shapes identify its config.
If several configs fit, choose one with --config: a recipe, a name of smoothsa_jax.list_models(), or
a config file; with any --config.key=value.

A file of a rollouter or a readout (SlotFormer) holds no slot model; a run or a saved model of it
has to be there, and --config.companions.slot_model.source names it.
"""

import sys

if __name__ == "__main__":  # before the imports: what makes one of them fail is explained as well
    from smoothsa_jax.guard import run_module

    sys.exit(run_module("smoothsa_jax.convert"))

import argparse
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from smoothsa_jax.checkout import as_started
from smoothsa_jax.config.load import (
    Overrides,
    config_from_command_line,
    located,
    split_command_line,
)
from smoothsa_jax.environment import settle
from smoothsa_jax.errors import UserError
from smoothsa_jax.files import whole_folder
from smoothsa_jax.guard import exit_status
from smoothsa_jax.interop import state_dicts


def main(arguments: Sequence[str]) -> int:
    """Run a command line (without the program's name) and return the exit status."""
    parser = argparse.ArgumentParser(
        prog=as_started("python -m smoothsa_jax.convert"),
        description=as_started(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN", type=Path)
    parser.add_argument("target", metavar="OUT", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")

    def work() -> int:
        for_config, others = split_command_line(arguments)
        given = parser.parse_args(others)
        settle()
        if given.source.is_dir() and state_dicts.is_state_dict(given.target):
            to_file(given.source, given.target, given.overwrite)
        elif not given.source.is_dir() and not state_dicts.is_state_dict(given.target):
            to_workdir(given.source, given.target, for_config)
        elif given.source.is_dir() and _is_ours(given.source):
            to_new_layout(given.source, given.target)
        else:
            raise UserError(
                f"from {given.source} to {given.target}: expected a state dict "
                f"({', '.join(state_dicts.SUFFIXES)}) and a new folder, a workdir and the name of "
                "a state dict, or the folder of a run or saved model of an earlier version and a "
                "new folder"
            )
        return 0

    return exit_status(work)


def to_workdir(source: Path, target: Path, for_config: Overrides) -> None:
    """Convert a state dict of the authors' program to a workdir."""
    state_dict = state_dicts.read(source)

    from smoothsa_jax.checkpoints import catalogue, published
    from smoothsa_jax.checkpoints.on_slots import number_unread
    from smoothsa_jax.devices import runtime
    from smoothsa_jax.training.logging import say, warn

    runtime.start(say)
    configs = published.fitted(_chosen(for_config, warn) or published.recipes(), state_dict)
    try:
        names = published.configs_of(state_dict, configs)
        if len(names) > 1:
            raise UserError(
                f"it fits the configs {', '.join(names)}, whose models have the same keys; choose "
                f"the one it was trained with, such as --config={names[0]}"
            )
        config = configs[names[0]]
        write_workdir(state_dict, config, target, warn)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    unread = number_unread(state_dict, config)
    used = "each used once"
    if unread:
        used = f"of which the run of its slot model has {unread}, of the tokenizer"
    print(f"{source}: {len(state_dict)} keys, {used}; now a run of {names[0]} in {target}")
    if facts := catalogue.facts_of(names[0]):
        print(f"expected     {catalogue.expected(facts)}")
    if published.lacks_teacher(config):
        print("it holds a student without its teacher: the run can be used, but not trained on")
    print(as_started(f"evaluate     python main.py --mode=evaluate --workdir={target}"))


def to_file(source: Path, target: Path, overwrite: bool) -> None:
    """Convert the newest checkpoint of a workdir to a state dict of the authors' program."""
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; give another name, or --overwrite to replace it")

    from smoothsa_jax.devices import runtime
    from smoothsa_jax.files import atomic_file
    from smoothsa_jax.training.logging import say, warn

    runtime.start(say)
    state_dict = read_workdir(source, warn=warn)
    with atomic_file(target) as temporary:
        state_dicts.write(temporary, state_dict)
    print(f"{source}: {len(state_dict)} keys, now in {target}")


def to_new_layout(source: Path, target: Path) -> None:
    """Convert a run or saved model from before version 0.2 to a new folder."""
    old, new = source.resolve(), target.resolve()
    if new == old or old in new.parents or new in old.parents:
        raise UserError(
            f"{target} is {source}, or one lies in the other; give the name of a new folder "
            "beside it"
        )
    if target.is_symlink() or (
        target.exists() and not (target.is_dir() and not any(target.iterdir()))
    ):
        raise UserError(f"{target} exists and is not an empty folder; give the name of a new one")

    from smoothsa_jax.checkpoints.model_files import WEIGHTS_FILE
    from smoothsa_jax.checkpoints.upgrade import convert_run
    from smoothsa_jax.devices import runtime
    from smoothsa_jax.training.logging import say, warn

    runtime.start(say)
    try:
        if (source / WEIGHTS_FILE).is_file():
            with whole_folder(target) as folder:
                _convert_saved_model(source, folder)
            what = "the saved model"
            command = (
                f"python main.py --mode=predict --workdir={target} --input=FILES --output=FOLDER"
            )
        else:
            with whole_folder(target) as folder:
                steps, config = convert_run(source, folder, warn)
            what = f"checkpoints {', '.join(map(str, steps))}"
            command = f"python main.py --mode=evaluate --workdir={target}"
            if steps[-1] < config.train.num_steps:
                command = f"python main.py --config=THE_SAME_AS_BEFORE --workdir={target}"
    except UserError as error:
        text = str(error)
        raise UserError(text if str(source) in text else f"{source}: {text}") from error
    print(f"{source}: {what} converted, now in {target}; next: {as_started(command)}")


def _is_ours(folder: Path) -> bool:
    """Whether a folder looks like a workdir or a saved model, of any version."""
    return any((folder / name).exists() for name in ("config.json", "checkpoints"))


def _convert_saved_model(source: Path, folder: Path) -> None:
    from smoothsa_jax.checkpoints import model_files
    from smoothsa_jax.checkpoints.before import convert_config, convert_names, is_before
    from smoothsa_jax.checkpoints.read import fingerprint
    from smoothsa_jax.checkpoints.upgrade import already_converted, copy_other_files

    old, old_arrays, step = model_files.read_model(source, allow_before=True)
    if not is_before(old):
        raise already_converted(source)
    config, arrays = convert_config(old), convert_names(old_arrays, old)
    about = json.loads((source / model_files.ABOUT_FILE).read_text()).get("about", "")
    model_files.save_model(folder, config, arrays, step, about)
    names = (model_files.WEIGHTS_FILE, model_files.CONFIG_FILE, model_files.ABOUT_FILE)
    copy_other_files(source, folder, names)
    found = model_files.read_model(folder)
    digests = [{name: fingerprint(x) for name, x in some.items()} for some in (found[1], arrays)]
    if digests[0] != digests[1] or found[0] != config or found[2] != step:
        raise UserError(
            f"the converted {source} differs when read back; check the disk and convert again"
        )


def _chosen(for_config: Overrides, warn: Callable[[str], None]) -> dict[str, ConfigDict]:
    """Return the config that the command line names, if it does."""
    if not for_config:
        return {}
    given = next((value for name, value in for_config if name == "config"), None)
    if given is None:
        raise UserError("--config.key=value changes a config; name it with --config")
    from smoothsa_jax.checkpoints import published
    from smoothsa_jax.checkpoints.catalogue import facts_of, overrides_of
    from smoothsa_jax.checkpoints.published import completed

    if facts := facts_of(given):
        for_config = [*overrides_of(facts), *for_config]
    spec = located(facts.recipe if facts else given)
    others = [pair for pair in for_config if pair[0] != "config"]
    config = config_from_command_line([("config", spec), *others], spec)
    if published.is_on_slots(config):
        config = _with_sources(config, warn)
    return {given: completed(config, spec)}


def _with_sources(config: ConfigDict, warn: Callable[[str], None]) -> ConfigDict:
    """Return the config of a rollouter or a readout with the models of its companions' runs.

    Raises:
        UserError: there is no such run.
    """
    from smoothsa_jax.checkpoints import published, sources

    config = config.copy_and_resolve_references().unlock()
    path = f"companions.{published.SLOT_MODEL}.source"
    source = config.companions[published.SLOT_MODEL].source
    if not (source and sources.is_trained(source)):
        raise UserError(
            f"it holds no slot model, and {path} {source} is no run of one; give a run or a "
            f"saved model with --config.{path}, such as what its own file was converted to"
        )
    for companion in config.companions.values():
        if "model" in companion:
            del companion["model"]
    return sources.with_companions(config, None, warn)


# ------------------------------------------------------------------- a workdir of a state dict


def write_workdir(
    state_dict: Mapping[str, np.ndarray],
    config: ConfigDict,
    workdir: Path,
    warn: Callable[[str], None] = lambda line: None,
) -> None:
    """Write a workdir with one checkpoint, as if a run of the config had ended with these weights.

    Args:
        state_dict: with exactly `published.expected_keys(config)`.
        config: of a rollouter or a readout, it names the run of its slot model.
        workdir: appears whole or not at all; a folder that is there has to be empty.
        warn: called with one line for each damaged checkpoint of that run.

    Raises:
        UserError: the keys do not fit the config, values that are not finite, or the folder is not
            empty.
    """
    import jax
    import jax.numpy as jnp

    from smoothsa_jax.checkpoints import published
    from smoothsa_jax.checkpoints.read import RECORD
    from smoothsa_jax.checkpoints.workdir import write_config
    from smoothsa_jax.checkpoints.write import CheckpointWriter
    from smoothsa_jax.interop.slotformer import of_tokenizer
    from smoothsa_jax.interop.table import describe, mismatches
    from smoothsa_jax.training.step import build_training

    if published.is_on_slots(config):  # the recipe's slot model is that of the run
        config = published.completed(_with_sources(config, warn), "")
    program = published.program_of(config)
    weights = published.arrays_of(state_dict, program)
    expected = published.expected_keys(config)
    expected = {key: expected[key] for key in published.arrays_of(expected, program)}
    if wrong := mismatches(describe(weights), expected):
        raise UserError(f"the keys do not fit the config {config.name}: {'; '.join(wrong)}")
    for key, array in weights.items():
        if not np.isfinite(array).all():
            raise UserError(f"{key} holds values that are not finite; download the file again")
    if workdir.exists() and not (workdir.is_dir() and not any(workdir.iterdir())):
        raise UserError(f"{workdir} exists and is not an empty folder; give the name of a new one")

    training = build_training(config)
    buffers = training.state.buffers
    arrays, kept = published.from_state_dict(state_dict, config, buffers)
    params = {name: arrays[name] for name in training.state.params}
    state = training.state.replace(
        step=jnp.asarray(config.train.num_steps, jnp.int32),
        params=jax.device_put(params),
        buffers={name: _buffer(name, arrays.get(name, x), x) for name, x in buffers.items()},
    )
    if published.is_on_slots(config):
        from smoothsa_jax.checkpoints import on_slots, sources

        _, frozen, _ = sources.begin(config, training, warn)
        source = config.companions[published.SLOT_MODEL].source
        on_slots.refuse_other_decoder(arrays, frozen, source)
        if any(map(of_tokenizer, state_dict)):
            on_slots.refuse_other_tokenizer(state_dict, _tokenizer_of(config, frozen, warn), source)
    else:
        frozen = {name: arrays[name] for name in training.frozen}
    progress = {"frozen_from": "the authors' checkpoint", RECORD: kept}
    with whole_folder(workdir) as folder:
        with contextlib.closing(CheckpointWriter(folder, config)) as writer:
            writer.save(config.train.num_steps, {"state": state, "frozen": frozen}, progress, {})
            writer.wait()
        write_config(config, folder)


def _buffer(name: str, found: np.ndarray, own: Any) -> Any:
    """Return a file's value of a buffer of a model, as an array like the model's own.

    Raises:
        UserError: they have different shapes.
    """
    import jax.numpy as jnp

    if found.shape != own.shape:
        raise UserError(
            f"{name} has the shape {found.shape}, and that of the config is {own.shape}; give its "
            "sizes with --config.model.KEY=value"
        )
    return jnp.asarray(found, own.dtype)


def read_workdir(workdir: Path, warn: Callable[[str], None]) -> dict[str, np.ndarray]:
    """Return the newest checkpoint of a workdir as a state dict of the authors' program.

    Raises:
        UserError: no checkpoint, or a model that their program does not have.
    """
    from smoothsa_jax.checkpoints import on_slots
    from smoothsa_jax.checkpoints.published import to_state_dict
    from smoothsa_jax.checkpoints.read import FOLDER, RECORD, restore_latest

    checkpoint = restore_latest(workdir, warn=warn)
    if checkpoint is None:
        raise UserError(f"no usable checkpoint in {workdir / FOLDER}; give a trained workdir")
    config = checkpoint.config
    # Those that a file of its program has.
    names = ("aggregator.queue", "aggregator.pointer", "aggregator.slots_share")
    buffers = {name: x for name, x in checkpoint.buffers.items() if name in names}
    arrays = {**checkpoint.weights, **buffers}
    record = checkpoint.progress.get(RECORD)
    if record is None:
        detach = config.model.get("initializer", {}).get("detach", 0.0)
        share = detach.get("at", 0.0) if hasattr(detach, "get") else float(detach)
        record = {"detach": checkpoint.step < share * config.train.num_steps}
    state_dict = to_state_dict(arrays, config, record)
    if on_slots.is_on_slots(config) and on_slots.has_tokenizer(config):
        source = config.companions[on_slots.SLOT_MODEL].source
        tokenizer = _tokenizer_of(config, checkpoint.weights, warn)
        if not tokenizer:
            warn(
                f"companions.{on_slots.SLOT_MODEL}.source {source} is no longer the run of the "
                "slot model with a tokenizer, so the file lacks that"
            )
        state_dict |= tokenizer
    return state_dict


def _tokenizer_of(
    config: ConfigDict, arrays: Mapping[str, np.ndarray], warn: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """Return what a rollouter's file has of the tokenizer of its slot model, from that one's run.

    Args:
        config: of the rollouter.
        arrays: of its run, those of the slot model too.
        warn: called with one line for each damaged checkpoint.

    Returns:
        Nothing if no run of that slot model is there, or it has no tokenizer.
    """
    from smoothsa_jax.checkpoints import on_slots, sources
    from smoothsa_jax.devices.host_arrays import on_host

    source, start = config.companions[on_slots.SLOT_MODEL].source, f"{on_slots.SLOT_MODEL}."
    if not (source and sources.is_trained(source)):
        return {}
    trained = sources.open_trained(source, warn)
    own = {k.removeprefix(start): x for k, x in arrays.items() if k.startswith(start)}
    if trained is None or sources.digest(trained.arrays) != sources.digest(on_host(own)):
        return {}
    return on_slots.tokenizer_keys(trained.tokenizer)
