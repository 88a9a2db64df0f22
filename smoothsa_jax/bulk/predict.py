"""`main.py --mode=predict --engine=ray`: slots and masks of a whole corpus, by Ray Data.

    parts of the corpus -> decoded (tasks on cores) -> segmented (an actor an accelerator, or a
      core) -> brought to the picture's size and written (tasks on cores)

Ray Data schedules the three, holds back what is too fast, and does again what was lost with a
worker or a node. A part goes through as one row, so what it holds never depends on the others.
"""

import dataclasses
import json
import os
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from smoothsa_jax.bulk import corpus, parts
from smoothsa_jax.bulk.cluster import (
    ACTOR,
    Cluster,
    connected,
    program,
    quiet_ray_data,
    reason_of,
    refuse_other_program,
    taken_by_this_ray,
    telling_deaths,
)
from smoothsa_jax.bulk.packing import packed, unpacked
from smoothsa_jax.bulk.parts import Done
from smoothsa_jax.bulk.reading import Read
from smoothsa_jax.bulk.rows import MASKS
from smoothsa_jax.bulk.segmenting import Worker, shipped
from smoothsa_jax.bulk.storage import Folder
from smoothsa_jax.checkpoints.sources import digest
from smoothsa_jax.devices import runtime
from smoothsa_jax.devices.compiling import telling_out_of_memory
from smoothsa_jax.environment import settle
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference import predict as plain
from smoothsa_jax.inference.load import load
from smoothsa_jax.inference.results import check_num_slots
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.text import say
from smoothsa_jax.training import signals

MOST_BLOCKS = 1000  # tasks that read; each reads its parts one after the other
INIT_DEATHS = 10  # in a row, of workers that start: nodes may die at that moment
DEFAULT_MAX_ERRORS = 1000
# Options that make a picture or a folder for each input, or name inputs one by one.
WITHOUT_ENGINE = {
    "boxes": "names boxes of inputs one by one",
    "overwrite": "replaces results one by one",
    "reconstruct": "writes pictures",
    "edit": "writes pictures",
    "future": "writes the frames after each video",
}


class BulkOptions(NamedTuple):
    """Options of the engine.

    Attributes:
        address: of the cluster; see `cluster.connected`.
        masks: "rle" or "png": masks are stored too; None: they are not.
        max_errors: more unreadable files end the run.
        column: of a table; see `corpus.find`.
        places: videos at once in each worker; None: by the kind of device.
        workers: how many hold a model; None: one an accelerator, else one a core.
    """

    address: str | None = None
    masks: str | None = None
    max_errors: int = DEFAULT_MAX_ERRORS
    column: str | None = None
    places: int | None = None
    workers: int | None = None


def predict(
    options: plain.Options, bulk: BulkOptions, guard: signals.SignalGuard | None = None
) -> None:
    """Segment every input, and write parts.

    Finished parts are kept whatever happens; a rerun does what is missing.

    Args:
        options: those of plain predict.
        bulk: those of the engine.
        guard: has received a signal where its exception was lost in a callback of JAX or Ray.

    Raises:
        UserError: an option makes no sense here, or does not fit the model; there is nothing to
            read; the cluster, the corpus or the output cannot be reached; too many files are
            unreadable.
    """
    _refuse_options(options, bulk)
    jax.config.update("jax_platforms", "cpu")  # accelerators are the workers' alone
    output = Folder(options.output)
    found = corpus.find(options.input, options.folders, bulk.column, output.where)
    for line in found.left_out:
        print(line, file=sys.stderr, flush=True)
    model = load(options.workdir)
    arguments = _checked(options, model)
    made_of = _made_of(options, bulk, model, found)
    with connected(bulk.address) as cluster, parts.only_one(output):
        run = _Run(output, model, arguments, bulk, cluster, found.items)
        known = parts.begin(output, made_of)
        done = _known(run, known)
        if known is not None and len(done) == len(run.plan):
            say(f"{output.where} is finished already")
            return
        resumed = len(done)
        if resumed:
            say(f"{resumed} of {len(run.plan)} parts are finished; resuming")
        _do(run, done, guard)
        _refuse_without_frames(done.values(), options.input, output)
        parts.refuse_lost(output, list(done.values()), len(run.plan))
        parts.write_manifest(output, made_of, list(done.values()))
    frames, errors = (sum(getattr(x, key) for x in done.values()) for key in ("frames", "errors"))
    told = f", {errors} files could not be read (see {parts.ERRORS}/)" if errors else ""
    say(f"{frames} frames of {len(found.items) - errors} files{told}: {output.where}")


class _Run(NamedTuple):
    """What a run is about.

    Attributes:
        output: its folder.
        model: the model.
        arguments: of `SideBySide`.
        bulk: options of the engine.
        cluster: where it runs.
        items: of the corpus.
    """

    output: Folder
    model: Segmenter
    arguments: dict[str, Any]
    bulk: BulkOptions
    cluster: Cluster
    items: Sequence[corpus.Item]

    @property
    def plan(self) -> list[tuple[int, int]]:
        return parts.planned(self.items)


def _refuse_options(options: plain.Options, bulk: BulkOptions) -> None:
    for name, why in WITHOUT_ENGINE.items():
        if getattr(options, name):
            raise UserError(
                f"--{name} {why}, and --engine=ray makes tables of many; leave one of them out"
            )
    if bulk.masks not in (None, *MASKS):
        raise UserError(f"--masks is {bulk.masks!r}, expected {' or '.join(MASKS)}")
    if bulk.max_errors < 0:
        raise UserError(f"--max-errors is {bulk.max_errors}, expected 0 or more")


def _checked(options: plain.Options, model: Segmenter) -> dict[str, Any]:
    """Check the options against the model, and return the arguments of `SideBySide`."""
    if model.starts_from_boxes:
        raise UserError(
            "this model starts its slots from boxes, and --engine=ray has none for a whole corpus; "
            "use a model with Gaussian queries"
        )
    model.chosen_num_slots(options.num_slots)
    check_num_slots(max(model.num_slots, options.num_slots or 0))
    model.chosen_pruning(**options.pruning)
    model.chosen_iterations(options.iterations)
    model.chosen_anew(**options.starts)
    return {
        "num_slots": options.num_slots,
        "seed": options.seed,
        "iterations": options.iterations,
        "pruning": options.pruning,
        **options.starts,
    }


def _made_of(
    options: plain.Options, bulk: BulkOptions, model: Segmenter, found: corpus.Corpus
) -> dict[str, Any]:
    """Return everything that determines the parts, as JSON values."""
    pruning = model.chosen_pruning(**options.pruning)
    iterations = model.chosen_iterations(options.iterations)
    return {
        "format": parts.FORMAT,
        **of_model(model),
        "step": model.step,
        "files": len(found.items),
        "corpus": found.digest,
        "part_weights": [parts.PART_WEIGHT, parts.VIDEO_WEIGHT],
        "num_slots": options.num_slots or model.num_slots,
        "seed": options.seed,
        "shot_cuts": options.shot_cuts,
        "cut_signal": options.cut_signal,
        "requery": options.requery,
        "prune": None if pruning is None else dataclasses.asdict(pruning),
        "iterations": None if iterations is None else dataclasses.asdict(iterations),
        "masks": bulk.masks,
    }


def of_model(model: Segmenter) -> dict[str, Any]:
    """Return what identifies a model, as JSON values; stored slots are told by the same."""
    return {
        "weights": model.checksum,
        "digest": digest({name: np.asarray(x) for name, x in model.params.items()}),
        "model": json.loads(json.dumps(model.config.model.to_dict())),
        "image_size": list(model.image_size),
    }


def _known(run: _Run, listed: Sequence[Done] | None) -> dict[int, Done]:
    """The parts that are finished. Those that no manifest lists are read, to be certain of them."""
    number, sizes = len(run.plan), run.output.sizes(parts.PARTS)
    names = {parts.part_name(part, number): part for part in range(number)}
    done = {
        x.part: x for x in listed or () if sizes.get(parts.part_name(x.part, number)) == x.bytes
    }
    unsure = [part for name, part in names.items() if name in sizes and part not in done]
    if unsure:
        import ray

        quiet_ray_data()
        data = ray.data.from_items(unsure, override_num_blocks=min(len(unsure), MOST_BLOCKS))
        with taken_by_this_ray():
            checked = data.map(parts.Verify(run.output.where, number), **run.cluster.of_reader)
        for row in rows_of(checked):
            if (found := pickle.loads(row["done"])) is not None:
                done[found.part] = found
    return done


def _do(run: _Run, done: dict[int, Done], guard: signals.SignalGuard | None) -> None:
    """Make the missing parts, and add them to those that are done."""
    import ray

    plan, errors = run.plan, sum(x.errors for x in done.values())
    _refuse_errors(errors, run)
    missing = [part for part in range(len(plan)) if part not in done]
    if not missing:
        return
    quiet_ray_data().max_consecutive_actor_init_deaths = INIT_DEATHS
    model, cluster = ray.put(shipped(run.model)), run.cluster
    number = run.arguments["num_slots"] or run.model.num_slots
    items = (
        {"part": part, "data": pickle.dumps(list(run.items[slice(*plan[part])]))}
        for part in missing
    )
    workers = min(run.bulk.workers or cluster.workers, len(missing))
    write = parts.Write(
        run.output.where,
        len(plan),
        run.model.checksum,
        (number, run.model.slot_size),
        run.bulk.masks,
        program(),
    )
    data = ray.data.from_items(list(items), override_num_blocks=min(len(missing), MOST_BLOCKS))
    with taken_by_this_ray():
        data = _segmented(data, run, model, workers).map(write, **cluster.of_reader)
    before = sum(x.files for x in done.values())
    with tqdm(
        total=len(run.items), initial=before, unit=" files", smoothing=0.1, leave=False
    ) as bar:
        for row in rows_of(data):
            found: Done = pickle.loads(row["done"])
            done[found.part] = found
            errors += found.errors
            bar.update(found.files)
            _refuse_errors(errors, run)
            if guard is not None and guard.received is not None:
                raise signals.Stopped(guard.received)


def _segmented(data: Any, run: _Run, model: Any, workers: int) -> Any:
    """The data set of parts, read and then segmented by so many actors."""
    import ray

    cluster = run.cluster
    return data.map(Read(run.model.image_size, program()), **cluster.of_reader).map(
        _Segment,
        fn_constructor_args=(
            [model],
            run.arguments,
            run.bulk.masks,
            run.bulk.places,
            max(1, cluster.cpus // workers) if cluster.accelerator is None else None,
            program(),
        ),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
        ray_remote_args_fn=lambda: dict(ACTOR),
        **cluster.of_worker,
    )


def _refuse_errors(errors: int, run: _Run) -> None:
    if errors > run.bulk.max_errors:
        raise UserError(
            f"{errors} files could not be read, more than --max-errors={run.bulk.max_errors}; see "
            f"{run.output.path(parts.ERRORS)}: correct them and use another --output, or allow more"
        )


def _refuse_without_frames(done: Any, named: str, output: Folder) -> None:
    if not sum(x.frames for x in done):
        raise UserError(
            f"--input={named}: none of its files could be read; see {output.path(parts.ERRORS)} "
            "for the reasons"
        )


def rows_of(data: Any) -> Iterator[dict[str, Any]]:
    """Run a data set and yield its rows; what a worker raised becomes one line."""
    import ray

    try:
        yield from data.iter_rows()
    except signals.Stopped:
        raise
    except Exception as error:  # Ray wraps what workers raise in classes of its own
        if (reason := reason_of(error)) is not None:
            raise reason from error
        memory = (ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectStoreFullError)
        if isinstance(error, memory):
            text = " ".join(str(error).split())[:300]
            raise UserError(
                f"the cluster has too little memory ({text}); use larger nodes or fewer workers, "
                "then run the same command, which does what is missing"
            ) from error
        with telling_deaths():
            raise


class _Segment:
    """Segment parts with one model: an actor.

    Args:
        model: a reference to what `segmenting.shipped` has made, in a list: Ray would resolve it.
        arguments: of `SideBySide`.
        masks: how masks are stored.
        places: how many videos run at once; None: by the kind of device.
        threads: of XLA, on cores; None: on accelerators.
        own_program: what `cluster.program` says where the run was started.
    """

    def __init__(
        self,
        model: list[Any],
        arguments: Mapping[str, Any],
        masks: str | None,
        places: int | None,
        threads: int | None,
        own_program: str,
    ):
        self._worker: Worker | None = None
        self._refused: UserError | None = None
        try:
            refuse_other_program(own_program, program(), "a worker")
            if threads is not None:  # XLA would start as many threads as cores, in each worker
                os.environ.setdefault("NPROC", str(threads))
            self._worker = _worker(model[0], arguments, masks, places)
        except UserError as error:  # raised by a part: Ray would start this anew, many times
            self._refused = error

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if self._refused is not None:
            raise self._refused
        with telling_out_of_memory(
            "a frame of each place", "use fewer --num_slots or larger accelerators"
        ):
            outcomes = self._worker(unpacked(row["data"]))
        return {"part": row["part"], "data": packed(outcomes)}


def _worker(model: Any, arguments: Mapping[str, Any], masks: str | None, places: int | None):
    """Return the `Worker` of this process; its programs are kept for later starts."""
    import ray

    settle()
    runtime.use_compilation_cache()
    return Worker(ray.get(model), arguments, masks, places)
