"""Converts the authors' PyTorch checkpoints to workdirs and back, and folders of earlier versions.

    python -m smoothsa_jax.convert IN.pth runs/coco --config=coco    a state dict -> a workdir for main.py
    python -m smoothsa_jax.convert runs/coco OUT.pth                 the newest checkpoint of a workdir -> a state dict
    python -m smoothsa_jax.convert OLD NEW    a run or a saved model from before version 0.2 -> a new folder

A state dict is a .pth file (needs PyTorch) or a .safetensors file. Which config one belongs to is found out from its keys and shapes;
where several fit, choose with --config: a name in configs/, or a config file with any --config.key=value.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from smoothsa_jax.config.load import config_from_command_line, split_command_line
from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.interop import state_dicts


def main(arguments: Sequence[str]) -> int:
    """Run a command line (without the program's name) and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m smoothsa_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN", type=Path)
    parser.add_argument("target", metavar="OUT", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    try:
        for_config, others = split_command_line(arguments)
        given = parser.parse_args(others)
        if given.source.is_dir() and state_dicts.is_state_dict(given.target):
            to_file(given.source, given.target, given.overwrite)
        elif not given.source.is_dir() and not state_dicts.is_state_dict(given.target):
            to_workdir(given.source, given.target, for_config)
        elif given.source.is_dir() and _is_ours(given.source):
            to_new_layout(given.source, given.target)
        else:
            raise UserError(
                f"from {given.source} to {given.target}: expected a state dict ({', '.join(state_dicts.SUFFIXES)}) and a new "
                "folder, a workdir and the name of a state dict, or the folder of a run or saved "
                "model of an earlier version and a new folder"
            )
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.strerror is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def to_workdir(source: Path, target: Path, for_config: Sequence[tuple[str, str | None]]) -> None:
    state_dict = state_dicts.read(source)

    from smoothsa_jax.devices import runtime
    from smoothsa_jax.training import conversion
    from smoothsa_jax.training.logging import say

    runtime.start(say)
    configs = _chosen(for_config) or conversion.recipes()
    try:
        names = conversion.configs_of(state_dict, configs)
        if len(names) > 1:
            raise UserError(
                f"it fits the configs {', '.join(names)}, whose models differ in no key; choose the one it was trained with, "
                f"such as --config={names[0]}"
            )
        conversion.write_workdir(state_dict, configs[names[0]], target)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    print(f"{source}: {len(state_dict)} keys, each used once; now a run of {names[0]} in {target}")
    print(f"evaluate     python main.py --mode=evaluate --workdir={target}")


def to_file(source: Path, target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; give another name, or --overwrite to replace it")

    from smoothsa_jax.devices import runtime
    from smoothsa_jax.files import atomic_file
    from smoothsa_jax.training import conversion
    from smoothsa_jax.training.logging import say, warn

    runtime.start(say)
    state_dict = conversion.read_workdir(source, warn=warn)
    with atomic_file(target) as temporary:
        state_dicts.write(temporary, state_dict)
    print(f"{source}: {len(state_dict)} keys, now in {target}")


def to_new_layout(source: Path, target: Path) -> None:
    """A run or saved model from before version 0.2 -> a new folder, whole or not at all."""
    old, new = source.resolve(), target.resolve()
    if new == old or old in new.parents or new in old.parents:
        raise UserError(
            f"{target} is {source}, or one lies in the other; give the name of a new folder "
            "beside it"
        )
    if target.is_symlink() or (
        target.exists() and not (target.is_dir() and not any(target.iterdir()))
    ):
        raise UserError(f"{target} exists and is no empty folder; give the name of a new one")

    from smoothsa_jax.checkpoints.upgrade import convert_run
    from smoothsa_jax.devices import runtime
    from smoothsa_jax.files import whole_folder
    from smoothsa_jax.inference.model_files import WEIGHTS_FILE
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
    print(f"{source}: {what} converted, now in {target}; to go on: {command}")


def _is_ours(folder: Path) -> bool:
    """Whether a folder looks like a workdir or a saved model, of any version."""
    return any((folder / name).exists() for name in ("config.json", "checkpoints"))


def _convert_saved_model(source: Path, folder: Path) -> None:
    from smoothsa_jax.checkpoints.before import convert_config, convert_names, is_before
    from smoothsa_jax.checkpoints.read import fingerprint
    from smoothsa_jax.checkpoints.upgrade import already_converted, copy_other_files
    from smoothsa_jax.inference import model_files

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


def _chosen(for_config: Sequence[tuple[str, str | None]]) -> dict:
    """The config that the command line names, if it does."""
    if not for_config:
        return {}
    given = next((value for name, value in for_config if name == "config"), None)
    if given is None:
        raise UserError("--config.key=value changes a config; name it with --config")
    from smoothsa_jax.training.conversion import CONFIGS

    spec = given
    if not given.partition(":")[0].endswith(".py"):
        names = sorted(path.stem for path in CONFIGS.glob("*.py"))
        if given.partition(":")[0] not in names:
            raise UserError(
                f"--config={given} is no config of {CONFIGS}{did_you_mean(given, names)}; give a name there, or a file"
            )
        name, colon, variant = given.partition(":")
        spec = f"{CONFIGS / name}.py{colon}{variant}"
    others = [("config", spec), *(pair for pair in for_config if pair[0] != "config")]
    return {given: config_from_command_line(others, spec)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
