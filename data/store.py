"""Store the encoder's features, or a run's slots, of whole data sets, so that training runs no
encoder and no slot model.

    python -m data.store configs/movi_c.py --config.data.folder=prepared/movi_c
    python main.py --config=configs/movi_c.py --config.data.folder=prepared/movi_c \\
        --config.data.features=prepared/movi_c_features

    python -m data.store configs/sprites.py:dynamics
    python main.py --config=configs/sprites.py:dynamics \\
        --config.data.slots=prepared/sprites_dynamics_slots

The same command resumes an interrupted one. --engine=ray spreads the work over the machines of a
Ray cluster, which share the folders (docs/devices.md).

Features are bfloat16, of all frames of each training clip, seen in a fixed view. For a system of
tokens, whose tokenizer is trained already, the nearest tokens are stored with them.

Where the task builds on the slots of an earlier run, its slots, slot attention and decoded masks
are stored, in float16, of the splits train, validation and test, as far as there are any.
"""

import sys

if __name__ == "__main__":  # before the imports: what makes one of them fail is explained as well
    from smoothsa_jax.guard import run_module

    sys.exit(run_module("data.store", uses_jax=True))

import argparse
import contextlib
import dataclasses
import itertools
import math
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from data.family import SPLITS, Job, Plan
from data.finished import (
    FORMAT,
    UNFINISHED,
    in_manifest,
    in_notes,
    is_there,
    manifest_of,
    only_one,
    remove_notes,
    remove_unwritten,
    write_note,
)
from data.manifest import say_end, write_manifest
from data.shards import shard_name, write_shard
from smoothsa_jax import text
from smoothsa_jax.bulk import pieces
from smoothsa_jax.bulk.cluster import Cluster
from smoothsa_jax.bulk.command_line import add_engine, engine_of
from smoothsa_jax.checkout import as_started
from smoothsa_jax.checkpoints.sources import begin, with_companions
from smoothsa_jax.config.load import config_from_command_line, split_command_line
from smoothsa_jax.devices import runtime
from smoothsa_jax.devices.host_arrays import on_host
from smoothsa_jax.devices.over_samples import over_samples
from smoothsa_jax.errors import UserError
from smoothsa_jax.files import expanded
from smoothsa_jax.guard import exit_status
from smoothsa_jax.inputs.addresses import is_remote
from smoothsa_jax.inputs.build import PREPARED, Subset, build_dataset
from smoothsa_jax.inputs.features import (
    HALF,
    MADE_TOKENS,
    SLOT_ARRAYS,
    STORED,
    TOKENS,
    beside,
)
from smoothsa_jax.inputs.loader import Source, evaluation_batches
from smoothsa_jax.inputs.manifest import frame_counts
from smoothsa_jax.inputs.records import NoSuchSplit
from smoothsa_jax.inputs.remote import local_folder
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.tokenizer_model import TOKENIZER
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.tasks.discovery import features_of
from smoothsa_jax.tasks.frozen_slots import SLOT_MODEL, SLOTS, find_slots
from smoothsa_jax.tasks.stored import features_made_of, slots_made_of, tokens_made_of
from smoothsa_jax.tasks.task import MODEL
from smoothsa_jax.training.evaluating import source_of_split
from smoothsa_jax.training.logging import say, warn
from smoothsa_jax.training.step import Training, build_training

SPLIT = "train"  # the only one that training sees
SHARD_BYTES = 1 << 28  # of features at most, and at least one clip
SLOT_SHARD_BYTES = 1 << 25  # of slots: minutes of work
FRAMES_AT_ONCE = 16  # through the encoder, on each device
SEED = 0  # of the random numbers with which slots are found

Frame = dict[str, np.ndarray]
Arrays = Mapping[str, tuple[np.dtype, tuple[int, ...]]]  # name -> dtype and shape


@dataclasses.dataclass(frozen=True)
class Stored:
    """What is stored.

    Attributes:
        kind: "features" or "slots".
        arrays: of each frame.
        about: their form, in words.
        made_of: what determines them, as JSON values.
        sources: the clips, by split.
        lengths: number of frames of each clip, by split.
        shard_bytes: of a shard, at most.
        frames: (source, indices of clips, list to append each clip's length to) -> their frames.
    """

    kind: str
    arrays: Arrays
    about: str
    made_of: dict[str, Any]
    sources: dict[str, Source]
    lengths: dict[str, np.ndarray]
    shard_bytes: int
    frames: Callable[[Source, Sequence[int], list[int]], Iterator[Frame]]

    @property
    def frame_bytes(self) -> int:
        """Of the arrays of a frame."""
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in self.arrays.values())


def main(arguments: Sequence[str]) -> int:
    def work() -> int:
        for_config, others = split_command_line(arguments)
        parser = argparse.ArgumentParser(
            prog=as_started("python -m data.store"),
            description=as_started(__doc__),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "config", help="a recipe or a config file; --config.key=value overrides"
        )
        parser.add_argument(
            "--out",
            type=Path,
            help="the folder to write; default: data.folder with _features or _slots appended",
        )
        add_engine(parser)
        given = parser.parse_args(others)
        engine = engine_of(given)
        config = config_from_command_line(for_config, given.config)
        kind = SLOTS if SLOT_MODEL in config.companions else "features"
        folder = config.data.get("folder", f"prepared/{config.name}")
        # Beside the data, if these are on this machine.
        out = beside(f"prepared/{config.name}" if is_remote(folder) else folder, kind)
        out = out if given.out is None else expanded(given.out)
        runtime.start(say, computes=engine is None)
        with engine or contextlib.nullcontext() as cluster:
            store(config, out, cluster=cluster)
        text.say(f"train with --config.data.{kind}={out}")
        return 0

    return exit_status(work, "stopped by Ctrl-C; the same command resumes with the next shard")


def store(
    config: ConfigDict,
    out: Path,
    splits: Sequence[str] = SPLITS,
    cluster: Cluster | None = None,
) -> None:
    """Write the folder `out`; see the module.

    Args:
        config: the config of the run that will read it.
        out: the folder.
        splits: of slots, those to store, as far as there are any. Features are those of training.
        cluster: of Ray, which computes them in place of this process.

    Raises:
        UserError: a config that cannot run, a folder of something else, too little room. Finished
            shards are kept.
    """
    if cluster is not None:
        config = pieces.on_one_device(config)
    found = what_is_stored(config, splits)
    name = f"{config.name}_{found.kind}"
    num_clips = {split: len(source) for split, source in found.sources.items()}
    num_frames = sum(int(lengths.sum()) for lengths in found.lengths.values())
    num_bytes = num_frames * found.frame_bytes
    text.say(
        f"{found.kind} of {sum(num_clips.values())} clips, {num_frames} frames of {found.about}: "
        f"{num_bytes / 1e9:.3g} GB in {out}"
    )
    if config.data.name == "prepared":
        text.say(
            f"stored {found.kind} are those of the largest center square, not flipped: training on "
            "them has no random crops and flips (windows of frames stay random); to train on "
            f"pixels, set --config.data.{found.kind}="
        )
    settings = {"format": FORMAT, "dataset": name, "made_of": found.made_of}
    settings["num_clips"] = num_clips if found.kind == SLOTS else num_clips[SPLIT]
    plan = _plan(found)
    files = {}
    for split in found.sources:
        jobs = [job for job in plan.jobs if job.split == split]
        files |= {shard_name(name, split, i, len(jobs)): job for i, job in enumerate(jobs)}
    with only_one(out):
        remove_unwritten(out)
        manifest = manifest_of(out, settings)
        known = {**in_manifest(manifest), **in_notes(out, settings)}
        missing = {file: job for file, job in files.items() if not is_there(out, file, known)}
        if manifest and not missing:
            text.say(f"{out} is finished already")
            return
        if known:
            text.say(f"{len(files) - len(missing)} of {len(files)} shards are finished; resuming")
        needed = sum(job.num_items for job in missing.values()) * found.frame_bytes
        if (free := shutil.disk_usage(out).free) < needed:
            raise UserError(
                f"{found.kind} need {needed / 1e9:.3g} GB, {out} has {free / 1e9:.3g} GB free; "
                "give another --out, or fewer clips with --config.data.num_samples"
            )
        if cluster is None:
            _make_shards(out, found, missing)
        else:
            _make_shards_on_ray(cluster, out, config, splits, found, missing)
        known |= in_notes(out, settings)
        write_manifest(out, name, settings, plan, {file: known[file] for file in files}, manifest)
        remove_notes(out, files)
    say_end(out)


def what_is_stored(config: ConfigDict, splits: Sequence[str]) -> Stored:
    """Return what a config's run can read in place of computing it, before it is computed.

    Raises:
        UserError: the config cannot run, or its run reads pixels alone.
    """
    task = None if SLOT_MODEL in config.companions else build_task(config)
    if config.task == "tokenizer" and "features" not in task.inputs:
        raise UserError(
            f"model.tokenizer.name is {config.model.tokenizer.name!r}, which reads pixels alone; "
            "there are no features to store"
        )
    config = with_companions(config, None, warn)
    task = task or build_task(config)
    of_slots = SLOT_MODEL in config.companions and SLOTS in task.inputs
    if config.task not in ("discovery", "tokenizer") and not of_slots:
        raise UserError(
            f"the task {config.task!r} is trained on pixels; give the config of the slot model "
            "that it is trained on"
        )
    if "slots" in config.data:
        config = config.copy_and_resolve_references().unlock()
        config.data.slots = ""
    check(config)
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
    return _slots(config, training, splits) if of_slots else _features(config, training)


def _plan(found: Stored) -> Plan:
    """Consecutive clips make a shard, as many as its size allows."""
    jobs = []
    for split, lengths in found.lengths.items():
        clips: list[int] = []
        frames = 0
        for index, length in enumerate(map(int, lengths)):
            if clips and (frames + length) * found.frame_bytes > found.shard_bytes:
                jobs.append(Job(split, tuple(clips), frames))
                clips, frames = [], 0
            clips, frames = [*clips, index], frames + length
        jobs.append(Job(split, tuple(clips), frames))
    bits = {HALF: STORED}  # TFDS knows no type of 16 bits but whole numbers
    features = {
        name: tfds.features.Tensor(
            shape=shape, dtype=np.dtype(bits.get(dtype, dtype)).newbyteorder("="), encoding="bytes"
        )
        for name, (dtype, shape) in found.arrays.items()
    }
    about = {"kind": found.kind, found.kind: "16 bits of each number, a frame a record"}
    if found.kind == "features":
        about[found.kind] = "the 16 bits of each bfloat16, a frame a record"
    return Plan(jobs=tuple(jobs), sources=(), features=features, metadata=about)


def _make_shards(out: Path, found: Stored, missing: dict[str, Job]) -> None:
    total = sum(job.num_items for job in missing.values())
    with tqdm(total=total, unit=" frames", desc=found.kind) as bar:
        for file, job in missing.items():
            _make_shard(out, found, file, job, bar.update)


def _make_shard(
    out: Path, found: Stored, file: str, job: Job, on_frame: Callable[[], Any]
) -> dict[str, Any]:
    """Write one shard and its note, and return the note."""

    def records(frames: Iterable[Frame]) -> Iterator[bytes]:
        for arrays in frames:
            yield _record(arrays)
            on_frame()

    lengths: list[int] = []
    frames = found.frames(found.sources[job.split], job.payload, lengths)
    written = write_shard(out / file, records(frames))  # fills `lengths`
    return write_note(out, file, job, written, frames=lengths, skipped=[])


def _make_shards_on_ray(
    cluster: Cluster,
    out: Path,
    config: ConfigDict,
    splits: Sequence[str],
    found: Stored,
    missing: dict[str, Job],
) -> None:
    """Have actors make the shards, each with a model of its own."""
    total = sum(job.num_items for job in missing.values())
    work = f"{MakeShard.__module__}:{MakeShard.__name__}"
    settings = (out.resolve(), config, tuple(splits), found.made_of)
    with (
        pieces.marked(f"--out={out}", out / UNFINISHED) as mark,
        tqdm(total=total, unit=" frames", desc=found.kind) as bar,
    ):
        notes = pieces.in_actors(cluster, work, settings, list(missing.items()), mark)
        with contextlib.closing(notes):
            for note in notes:
                bar.update(note["num_examples"])


class MakeShard:
    """Makes a shard of a file's name and its job, in an actor that holds the model."""

    def __init__(
        self, out: Path, config: ConfigDict, splits: Sequence[str], made_of: dict[str, Any]
    ):
        self._out, self._found = out, what_is_stored(config, splits)
        if self._found.made_of != made_of:
            raise UserError(
                f"the machine {platform.node()} has other weights than the one on which this was "
                "started; give all machines the same files and packages"
            )

    def __call__(self, piece: tuple[str, Job]) -> dict[str, Any]:
        return _make_shard(self._out, self._found, *piece, lambda: None)


def _record(arrays: Frame) -> bytes:
    """Serialize a frame as TFDS does, whose own way takes longer than a small model."""
    example = tf_example_pb2.Example()
    for name, x in arrays.items():
        example.features.feature[name].bytes_list.value.append(x.tobytes())
    return example.SerializeToString(deterministic=True)


# ---------------------------------------------------------------------------------------- features


def _features(config: ConfigDict, training: Training) -> Stored:
    """The encoder's features of the training clips, and their tokens."""
    data = {key: value for key, value in config.data.items() if key != "features"}
    if data["name"] == "prepared":  # whole videos, independent of their content
        data |= {"num_frames": None, "boxes": False, "categories": False}
    source = build_dataset(data, SPLIT, num_slots=training.task.slot_model.num_slots)
    shape, of_tokens = _shape_of(training, source), tokens_made_of(config, training.frozen)
    arrays: dict[str, tuple[np.dtype, tuple[int, ...]]] = {"features": (STORED, shape)}
    made_of = {**features_made_of(config, training.frozen), "shape": list(shape)}
    about = f"{shape[0]}x{shape[1]} in bfloat16"
    if of_tokens is not None:
        made_of[MADE_TOKENS] = of_tokens
        number = math.prod(_tokenizer_of(training).tokenizer.grid)
        arrays["tokens"] = (TOKENS, (number,))
        about += f", and {number} tokens of each"
    return Stored(
        kind="features",
        arrays=arrays,
        about=about,
        made_of=made_of,
        sources={SPLIT: source},
        lengths={SPLIT: _lengths(config, SPLIT, len(source), config.data.get("num_frames"))},
        shard_bytes=SHARD_BYTES,
        frames=_features_of(training, of_tokens is not None),
    )


def _lengths(config: ConfigDict, split: str, num_clips: int, generated: int) -> np.ndarray:
    """Return the number of frames of each clip.

    Args:
        generated: that of generated clips.
    """
    if config.data.name in PREPARED:
        folder = local_folder(config.data.folder, config.data.get("cache"))
        return frame_counts(folder, split)[:num_clips]
    return np.full(num_clips, generated)


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


def _features_of(
    training: Training, with_tokens: bool
) -> Callable[[Source, Sequence[int], list[int]], Iterator[Frame]]:
    together, arrays = FRAMES_AT_ONCE * training.mesh.size, _arrays(training)

    @jax.jit
    def compute(*inputs: Any) -> dict[str, jax.Array]:
        found = {"features": training.features(*inputs).astype(jax.numpy.bfloat16)}
        return {**found, "tokens": _tokens(training, *inputs)} if with_tokens else found

    def pixels(source: Source, clips: Sequence[int], lengths: list[int]) -> Iterator[np.ndarray]:
        for batch in evaluation_batches(Subset(source, clips), 1, num_threads=2):
            lengths.append(len(batch["video"][0]))
            yield from batch["video"][0]

    def frames(source: Source, clips: Sequence[int], lengths: list[int]) -> Iterator[Frame]:
        """Yield those of each frame; always as many frames at once, of one clip or several, so that
        one program serves all."""
        every = pixels(source, clips, lengths)
        while some := list(itertools.islice(every, together)):
            filled = np.resize(np.stack(some), (together, *some[0].shape))[:, None]
            placed = training.place({"video": filled})["video"]
            found = {k: x[: len(some), 0] for k, x in on_host(compute(*arrays, placed)).items()}
            width = found["features"].shape[-1]
            found["features"] = found["features"].reshape(len(some), -1, width).view(STORED)
            for frame in range(len(some)):
                yield {name: x[frame] for name, x in found.items()}

    return frames


# ------------------------------------------------------------------------------------------- slots


def _slots(config: ConfigDict, training: Training, splits: Sequence[str]) -> Stored:
    """What the companion `slot_model` finds in the clips of these splits, as far as there are any.

    Videos are whole. Each clip has random numbers of its own, from one seed.
    """
    num_slots = training.task.slot_model.num_slots
    sources, lengths = {}, {}
    for split in splits:
        try:
            source = _clips(config, split, num_slots, training.task.inputs)
        except NoSuchSplit:
            continue
        source = getattr(source, "clips", source)  # of questions
        sources[split] = source
        frames = config.data.get("num_frames")
        if split != SPLIT and (config.eval.num_frames or 0) > 0:
            frames = config.eval.num_frames
        frames = getattr(source, "num_frames", frames)
        lengths[split] = _lengths(config, split, len(source), frames)
    compute = _slot_program(training)
    first = next(iter(sources.values()))[0]
    batch = {name: first[name][None] for name in training.task.inputs if name in first}
    spread = lambda x: jax.ShapeDtypeStruct((training.mesh.size, *x.shape[1:]), x.dtype)  # noqa: E731
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), training.mesh.size))
    shapes = jax.eval_shape(compute, training.frozen, jax.tree.map(spread, batch), keys)
    arrays = {name: (HALF, x.shape[2:]) for name, x in shapes.items() if name in SLOT_ARRAYS}
    arrays["slot_mask"] = (np.dtype("u1"), shapes["slot_mask"].shape[2:])
    made_of = slots_made_of(config, training.frozen, tuple(sources))
    listed = {name: list(shape) for name, (_, shape) in arrays.items()}
    count, width = listed[SLOTS]
    also = [name for name in SLOT_ARRAYS[1:] if name in arrays]
    return Stored(
        kind=SLOTS,
        arrays=arrays,
        about=f"{count} slots of {width} numbers, with {' and '.join(also)}, in float16",
        made_of={**made_of, "seed": SEED, "shapes": listed},
        sources=sources,
        lengths=lengths,
        shard_bytes=SLOT_SHARD_BYTES,
        frames=_slots_of_clips(config, training, compute),
    )


def _clips(config: ConfigDict, split: str, num_slots: int, reads: tuple[str, ...]) -> Source:
    """Return the clips of a split in a fixed view: whole videos, or generated clips."""
    if config.data.name not in PREPARED and split != SPLIT:
        of_split = {"validation": config.eval.validation_samples, "test": config.eval.num_samples}
        return source_of_split(config, num_slots, split, of_split[split])
    data = {key: value for key, value in config.data.items() if key not in ("features", SLOTS)}
    if data["name"] in PREPARED:
        data["num_frames"] = None
    if split != SPLIT:
        data.pop("num_samples", None)
    return build_dataset(data, split, reads=reads, num_slots=num_slots)


def _slot_program(training: Training) -> Callable[..., dict[str, jax.Array]]:
    """Return the compiled function (frozen arrays, clips, keys (B)) -> what is stored of them."""
    definition = training.definitions[SLOT_MODEL]
    wanted = getattr(training.task, "stored", SLOT_ARRAYS[:-1])

    def look(frozen: Any, inputs: tuple[Any, jax.Array]) -> dict[str, jax.Array]:
        batch, keys = inputs
        model = definition.merge(frozen, differentiated=False)
        sizes = Sizes(1, batch["video"].shape[1], batch["slot_mask"].shape[1])
        # Each clip as if it were alone, so that batches do not matter.
        draws = jax.vmap(lambda key: model.draw(key, sizes, False))(keys)
        draws = jax.tree.map(lambda x: x[:, 0], draws)
        features = features_of(model, batch)
        found = find_slots(model, batch, features, draws, decodes="masks" in wanted)
        half = {name: x.astype(np.float16) for name, x in found.items() if name in wanted}
        return {**half, "slot_mask": found["slot_mask"].astype(np.uint8)}

    return jax.jit(
        lambda frozen, batch, keys: over_samples(look, training.mesh, 1, frozen, (batch, keys))
    )


def _slots_of_clips(
    config: ConfigDict, training: Training, compute: Callable[..., dict[str, jax.Array]]
) -> Callable[[Source, Sequence[int], list[int]], Iterator[Frame]]:
    root, size = jax.random.key(SEED), config.eval.batch_size

    def computed(
        source: Source, clips: Sequence[int]
    ) -> Iterator[tuple[list[int], dict[str, jax.Array]]]:
        """Yield the lengths of the clips of a batch, and their slots, still on the device."""
        batches = evaluation_batches(Subset(source, clips), size, fill_lengths=True, num_threads=2)
        for number, batch in enumerate(batches):
            valid = int(batch["valid"].sum())
            some = [*clips[number * size : (number + 1) * size]]
            numbers = np.resize(some, size).astype(np.uint32)
            keys = jax.vmap(lambda index: jax.random.fold_in(root, index))(numbers)
            seen = {name: x for name, x in batch.items() if name != "num_frames"}
            placed = training.place(seen)
            keys = jax.device_put(keys, training.batch_sharding)
            lengths = batch["num_frames"][:valid].tolist()
            yield lengths, compute(training.frozen, placed, keys)

    def frames(source: Source, clips: Sequence[int], lengths: list[int]) -> Iterator[Frame]:
        waiting = None  # one batch is computed while the one before is written
        for of_batch in itertools.chain(computed(source, clips), [None]):
            if waiting is not None:
                mine, found = waiting[0], on_host(waiting[1])
                for clip, length in enumerate(mine):
                    lengths.append(length)
                    for frame in range(length):
                        yield {name: x[clip, frame] for name, x in found.items()}
            waiting = of_batch

    return frames
