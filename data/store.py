"""Store the encoder's features of all training clips, so that training runs no encoder.

    python -m data.store configs/movi_c.py --config.data.folder=prepared/movi_c
    python main.py --config=configs/movi_c.py --config.data.folder=prepared/movi_c \\
        --config.data.features=prepared/movi_c_features

The same command resumes an interrupted one. Features are bfloat16, of all frames of each clip, seen
in a fixed view. For a system of tokens, whose tokenizer is trained already, the nearest tokens are
stored with them.
"""

import sys

if __name__ == "__main__":  # before the imports: what makes one of them fail is explained as well
    from smoothsa_jax.guard import run_module

    sys.exit(run_module("data.store", uses_jax=True))

import argparse
import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from tqdm import tqdm

from data.family import Job, Plan
from data.finished import (
    FORMAT,
    UNFINISHED,
    digest_of,
    in_manifest,
    in_notes,
    is_there,
    manifest_of,
    only_one,
    remove_notes,
)
from data.manifest import say_end, write_manifest
from data.shards import PARTIAL, serializer, shard_name, write_shard
from smoothsa_jax import text
from smoothsa_jax.checkpoints.sources import begin, with_companions
from smoothsa_jax.config.load import config_from_command_line, split_command_line
from smoothsa_jax.devices import runtime
from smoothsa_jax.devices.host_arrays import on_host
from smoothsa_jax.devices.over_samples import over_samples
from smoothsa_jax.errors import UserError
from smoothsa_jax.files import atomic_file, expanded
from smoothsa_jax.guard import exit_status
from smoothsa_jax.inputs.build import Subset, build_dataset
from smoothsa_jax.inputs.features import MADE_TOKENS, STORED, TOKENS, beside
from smoothsa_jax.inputs.loader import Source, evaluation_batches
from smoothsa_jax.inputs.manifest import frame_counts
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.tokenizer_model import TOKENIZER
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.tasks.stored import features_made_of, tokens_made_of
from smoothsa_jax.tasks.task import MODEL
from smoothsa_jax.training.logging import say, warn
from smoothsa_jax.training.step import Training, build_training

SPLIT = "train"  # the only one that training sees
SHARD_BYTES = 1 << 28  # of features at most, and at least one clip
FRAMES_AT_ONCE = 16  # through the encoder, on each device


def main(arguments: Sequence[str]) -> int:
    def work() -> int:
        for_config, others = split_command_line(arguments)
        parser = argparse.ArgumentParser(
            prog="python -m data.store",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "config", help="a config file, as for main.py; --config.key=value overrides"
        )
        parser.add_argument(
            "--out",
            type=Path,
            help="the folder to write; default: data.folder with _features appended",
        )
        given = parser.parse_args(others)
        config = config_from_command_line(for_config, given.config)
        out = beside(config.data.get("folder", f"prepared/{config.name}"))
        out = out if given.out is None else expanded(given.out)
        runtime.start(say)
        store(config, out)
        text.say(f"train with --config.data.features={out}")
        return 0

    return exit_status(work, "stopped by Ctrl-C; the same command resumes with the next shard")


def store(config: ConfigDict, out: Path) -> None:
    """Write the folder `out`; see the module.

    Raises:
        UserError: a config that cannot run, a folder of other features, too little room. Finished
            shards are kept.
    """
    task = build_task(config)
    if config.task == "tokenizer" and "features" not in task.inputs:
        raise UserError(
            f"model.tokenizer.name is {config.model.tokenizer.name!r}, which reads pixels alone; "
            "there are no features to store"
        )
    if config.task not in ("discovery", "tokenizer"):
        raise UserError(
            f"the task {config.task!r} is trained on pixels; give the config of the slot model "
            "that it is trained on"
        )
    config = with_companions(config, None, warn)
    check(config)
    data = {key: value for key, value in config.data.items() if key != "features"}
    prepared = data["name"] == "prepared"
    if prepared:  # whole videos, independent of their content
        data |= {"num_frames": None, "boxes": False, "categories": False}
    source = build_dataset(data, SPLIT, num_slots=task.slot_model.num_slots)
    lengths = _lengths(config, len(source))
    # Right for runs of either dtype: rounded once, when they are stored.
    exact = config.copy_and_resolve_references()
    exact.dtype = "float32"
    training = build_training(exact)
    params, frozen, words = begin(exact, training, warn)
    training = dataclasses.replace(
        training, state=training.state.replace(params=params), frozen=frozen
    )
    if words:
        say(f"frozen weights: {words}")
    shape, of_tokens = _shape_of(training, source), tokens_made_of(config, frozen)
    num_tokens = 0 if of_tokens is None else math.prod(_tokenizer_of(training).tokenizer.grid)
    frame_bytes = math.prod(shape) * STORED.itemsize + num_tokens * TOKENS.itemsize
    num_bytes = int(lengths.sum()) * frame_bytes
    also = f", and {num_tokens} tokens of each" if num_tokens else ""
    text.say(
        f"features of {len(source)} clips, {lengths.sum()} frames of {shape[0]}x{shape[1]} in "
        f"bfloat16{also}: {num_bytes / 1e9:.3g} GB in {out}"
    )
    if prepared:
        text.say(
            "stored features are those of the largest center square, not flipped: training on them "
            "has no random crops and flips (windows of frames stay random); to train on pixels, "
            "set --config.data.features="
        )
    name = f"{config.name}_features"
    made_of = {**features_made_of(config, frozen), "shape": list(shape)}
    if of_tokens is not None:
        made_of[MADE_TOKENS] = of_tokens
    settings = {"format": FORMAT, "dataset": name, "made_of": made_of}
    settings["num_clips"] = len(source)
    plan = _plan(name, lengths, frame_bytes, shape, num_tokens)
    files = {
        shard_name(name, SPLIT, index, len(plan.jobs)): job for index, job in enumerate(plan.jobs)
    }
    with only_one(out):
        for stray in out.glob(f".*{PARTIAL}"):  # of a run that was killed
            stray.unlink()
        manifest = manifest_of(out, settings)
        known = {**in_manifest(manifest), **in_notes(out, settings)}
        missing = {file: job for file, job in files.items() if not is_there(out, file, known)}
        if manifest and not missing:
            text.say(f"{out} is finished already")
            return
        if known:
            text.say(f"{len(files) - len(missing)} of {len(files)} shards are finished; resuming")
        needed = num_bytes * sum(len(j.payload) for j in missing.values()) // len(source)
        if (free := shutil.disk_usage(out).free) < needed:
            raise UserError(
                f"features need {needed / 1e9:.3g} GB, {out} has {free / 1e9:.3g} GB free; give "
                "another --out, or fewer clips with --config.data.num_samples"
            )
        _make_shards(out, training, source, missing, plan)
        known |= in_notes(out, settings)
        write_manifest(out, name, settings, plan, {file: known[file] for file in files}, manifest)
        remove_notes(out, files)
    say_end(out)


def _lengths(config: ConfigDict, num_clips: int) -> np.ndarray:
    """Return the number of frames of each clip."""
    if config.data.name == "prepared":
        return frame_counts(expanded(config.data.folder), SPLIT)[:num_clips]
    return np.full(num_clips, config.data.num_frames)


def _shape_of(training: Training, source: Source) -> tuple[int, int]:
    """Return the number of tokens and the width of a frame's features."""
    size = source[0]["video"].shape[1:]
    video = jax.ShapeDtypeStruct((training.mesh.size, 1, *size), np.uint8)
    *_, rows, columns, width = jax.eval_shape(training.features, *_arrays(training), video).shape
    return rows * columns, width


def _tokenizer_of(training: Training) -> Any:
    return training.definitions[TOKENIZER].skeleton()


def _tokens(training: Training, params: Any, frozen: Any, video: jax.Array) -> jax.Array:
    """Return the nearest tokens (B,T,M), as a training step would compute them of the pixels."""

    def look(arrays: tuple[Any, Any], video: jax.Array) -> jax.Array:
        models = {
            name: training.definitions[name].merge(*arrays, differentiated=False)
            for name in (MODEL, TOKENIZER)
        }
        sizes = Sizes(len(video), video.shape[1], 1)
        draws = {TOKENIZER: models[TOKENIZER].draw(jax.random.key(0), sizes, False)}
        return training.task.constants(models, {"video": video}, draws, False)["tokens"]

    return over_samples(look, training.mesh, 1, (params, frozen), video)


def _arrays(training: Training) -> tuple[Any, Any]:
    return training.state.params, training.frozen


def _plan(
    name: str, lengths: np.ndarray, frame_bytes: int, shape: tuple[int, int], num_tokens: int
) -> Plan:
    """Consecutive clips make a shard, as many as SHARD_BYTES hold."""
    jobs, clips, size = [], [], 0
    for index, length in enumerate(lengths):
        if clips and size + length * frame_bytes > SHARD_BYTES:
            jobs.append(clips)
            clips, size = [], 0
        clips, size = [*clips, index], size + length * frame_bytes
    jobs.append(clips)
    tensor = tfds.features.Tensor(shape=shape, dtype=np.uint16, encoding="bytes")
    features, about = {"features": tensor}, "the 16 bits of each bfloat16, a frame a record"
    if num_tokens:
        features["tokens"] = tfds.features.Tensor(
            shape=(num_tokens,), dtype=np.int32, encoding="bytes"
        )
    return Plan(
        jobs=tuple(Job(SPLIT, tuple(c), int(lengths[list(c)].sum())) for c in jobs),
        sources=(),
        features=features,
        metadata={"kind": "features", "features": about},
    )


def _make_shards(
    out: Path, training: Training, source: Source, missing: dict[str, Job], plan: Plan
) -> None:
    serialize = serializer(plan.features)
    together, arrays = FRAMES_AT_ONCE * training.mesh.size, _arrays(training)

    @jax.jit
    def compute(*inputs: Any) -> dict[str, jax.Array]:
        found = {"features": training.features(*inputs).astype(jax.numpy.bfloat16)}
        return (
            {**found, "tokens": _tokens(training, *inputs)} if "tokens" in plan.features else found
        )

    def features_of(frames: Iterator[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Yield those of each frame; always as many frames at once, of one clip or several, so that
        one program serves all."""
        while some := list(itertools.islice(frames, together)):
            filled = np.resize(np.stack(some), (together, *some[0].shape))[:, None]
            placed = training.place({"video": filled})["video"]
            found = {k: x[: len(some), 0] for k, x in on_host(compute(*arrays, placed)).items()}
            width = found["features"].shape[-1]
            found["features"] = found["features"].reshape(len(some), -1, width).view(STORED)
            for frame in range(len(some)):
                yield {name: x[frame] for name, x in found.items()}

    total = sum(job.num_items for job in missing.values())
    with tqdm(total=total, unit=" frames", desc="features") as bar:
        for file, job in missing.items():
            lengths: list[int] = []

            def frames(job: Job = job, lengths: list[int] = lengths) -> Iterator[np.ndarray]:
                for batch in evaluation_batches(Subset(source, job.payload), 1, num_threads=2):
                    lengths.append(len(batch["video"][0]))
                    yield from batch["video"][0]

            def records(frames: Iterator[np.ndarray]) -> Iterator[bytes]:
                for of_frame in features_of(frames):
                    yield serialize(of_frame)
                    bar.update()

            num_examples, num_bytes, sha256 = write_shard(out / file, records(frames()))
            note = {
                "file": file,
                "job": digest_of(job),
                "file_size": (out / file).stat().st_size,
                "num_examples": num_examples,
                "num_bytes": num_bytes,
                "sha256": sha256,
                "frames": lengths,
                "skipped": [],
            }
            with atomic_file(out / UNFINISHED / f"{file}.json") as path:
                path.write_text(json.dumps(note))
