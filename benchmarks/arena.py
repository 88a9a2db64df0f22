"""Train systems on data sets with several seeds, and keep one row for each finished run.

    python benchmarks/arena.py                                 SmoothSA on sprites, seeds 0, 1, 2
    python benchmarks/arena.py --systems smoothsa dinosaur --data sprites sprites:gaussian
    python benchmarks/arena.py --config.train.num_steps=500 --seeds=0 --time-limit=60
    python benchmarks/arena.py --ablations full "no warmer" 3/3
    python benchmarks/arena.py --plan                          all that docs/arena.md asks for
    python benchmarks/arena.py --plan --rescore                what rows of finished runs lack
    python benchmarks/arena.py --list                          print the table, train nothing
    python benchmarks/arena.py --page                          write docs/arena.md, train nothing

`--systems` and `--data` name files of configs/systems/ and configs/, with further words after a
comma or colon: `--systems spot,student`, `--data coco:smoke`. A second stage such as
`spot,student` reads the first one of the same seed, whose run has to be finished.
`--config.key=value` changes every run. Each run is `main.py` in its own process and folder below
`--workdir`.

A finished run is one JSON line in benchmarks/recorded/arena.jsonl, written at once. A run whose row
exists (same system, data, words, ablation, overrides, seed and steps) is skipped; `--again` trains
it again and adds another row. The same command continues a run that was stopped or killed.

    system, data, words     what was trained; the words are those after the colon, less the system
    ablation                of `ABLATIONS` below; "full" changes nothing
    overrides               settings of the command line, without seed and number of steps
    seconds                 of the training steps, without compilation, scoring and pauses
    steps_per_second        of these
    step_seconds            processor time of a training step, summed over cores; other programs on
                            the machine hardly change it
    curve                   {"step", "seconds", "scores"} of about eight points of training, on
                            `CURVE_SAMPLES` samples of the validation split; scored as the rest is
    clips                   metric -> the score of each scored sample; likewise under these two
    baseline_clips          the same of k-means on the features, and of the block pattern
    segments                of the first samples, for pictures: see `packed`; of seed 0 alone
    scores                  mean of each metric; under "match_paper" by that protocol, if scored;
                            under "plain" those of as many slots as in training, none pruned, where
                            the config says otherwise; under "pruned" those of redundant slots left
                            out, where the config leaves out none and slots do not start from boxes
    parameters              numbers of trained and of frozen ones
    memory                  bytes of the training step on each device, as the compiler plans them
    folder                  below the --workdir that it was trained in
    revision                of git when the run began, "-dirty" where the checkout had changes
"""

import argparse
import collections
import dataclasses
import datetime
import itertools
import json
import math
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from ml_collections import ConfigDict

from benchmarks.arena_plan import PLAN
from benchmarks.arena_plan import SEEDS as DEFAULT_SEEDS
from benchmarks.arena_rows import (
    DEFAULT_SYSTEM,
    FULL,
    KEY,
    LEADING,
    OTHERS,
    ROWS_FILE,
    Row,
    append_row,
    clips_of,
    curve_of,
    key_of,
    kind_of,
    packed,
    read_rows,
    training_seconds,
)
from benchmarks.arena_table import counted, percent, table
from smoothsa_jax.checkpoints.sources import spec_of
from smoothsa_jax.config.load import (
    Overrides,
    config_from_command_line,
    load_config,
    split_command_line,
)
from smoothsa_jax.config.values import canonical, differences, flatten, from_json, to_json
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.scores import title_of
from smoothsa_jax.models.build import starts_from_boxes

IN_THE_KEY = ("seed", "train.num_steps")  # overrides with a key of their own
PLAIN = {"eval.prune": None, "eval.num_slots": None}
PRUNED = {"eval.prune": "auto"}
DISCOVERY = "discovery"  # the task
# Scored during training. These settings, as the seed, are not in the key: what is trained and how
# the end is scored do not depend on them.
CURVE_POINTS, CURVE_SAMPLES = 8, 64
OF_A_CURVE = ("checkpoint.every", "checkpoint.best_metric", "eval.validation_samples")
TIMED_STEPS = 20
SHOWN, SHOWN_SEED = 3, 0  # samples in pictures, and the training seed that they are of
CONFIG_CODE = '''"""The config of this run; benchmarks/arena.py wrote it."""

from pathlib import Path

from smoothsa_jax.config.values import from_json


def get_config():
    return from_json((Path(__file__).parent / "arena_config.json").read_text())
'''


# ---------------------------------------------------------------------------------------- ablations


def drop(terms: ConfigDict, name: str) -> None:
    if name in terms:
        del terms[name]


def without_warmer(config: ConfigDict) -> None:
    """Start from the cold queries."""
    if "cold" in config.model.initializer:
        config.model.initializer = config.model.initializer.cold
        drop(config.losses, "distillation")


def iterations(first: int, later: int | None) -> Callable[[ConfigDict], None]:
    """Set the iterations, or layers, on the first frame and on later ones; None: the same."""

    def change(config: ConfigDict) -> None:
        config.model.aggregator.update(first=first, later=later)

    return change


def without_smoothing(config: ConfigDict) -> None:
    """Leave out all that SmoothSA adds: cold queries, and as many iterations on every frame."""
    without_warmer(config)
    iterations(3, 3)(config)


def without_slot_contrast(config: ConfigDict) -> None:
    drop(config.losses, "slot_contrast")


def without_distillation(config: ConfigDict) -> None:
    """Drop the distillation of attention."""
    drop(config.losses, "attention_distillation")


def without_pruning(config: ConfigDict) -> None:
    """Prune at evaluation alone; plain scores are without any pruning."""
    drop(config.model, "pruning")


def without_both(config: ConfigDict) -> None:
    """Drop the distillation of attention and the pruning in training."""
    without_distillation(config)
    without_pruning(config)


# name -> changes a config in place
ABLATIONS: dict[str, Callable[[ConfigDict], None]] = {
    FULL: lambda config: None,
    "no warmer": without_warmer,
    "3/3": iterations(3, 3),
    "1/1": iterations(1, 1),
    "no warmer, 3/3": without_smoothing,
    **{f"{number} iterations": iterations(number, None) for number in (4, 6, 8)},
    "no slot contrast": without_slot_contrast,
    "no attention distillation": without_distillation,
    "no pruning in training": without_pruning,
    "no distillation, no pruning in training": without_both,
}


# --------------------------------------------------------------------------------------------- runs


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        key: the values of `KEY`, by name.
        config: what is trained.
        folder: where.
    """

    key: Mapping[str, Any]
    config: ConfigDict
    folder: Path

    @property
    def output(self) -> Path:
        """What its programs print."""
        return self.folder / "output.txt"

    @property
    def name(self) -> str:
        words = ":".join(filter(None, (self.key["data"], self.key["words"])))
        parts = [self.key["system"], f"on {words}", f"seed {self.key['seed']}"]
        if self.key["ablation"] != FULL:
            parts.insert(1, f"({self.key['ablation']})")
        return ", ".join([" ".join(parts[:-1]), parts[-1]])


class RunFailed(Exception):
    """One training failed; the others continue."""


class Interrupted(RunFailed):
    """One training was stopped and saved its state."""


def plan(
    systems: Iterable[str],
    data: Iterable[str],
    ablations: Sequence[str],
    seeds: Iterable[int],
    overrides: Overrides,
    workdir: Path,
) -> list[Run]:
    """Return all runs, seed by seed, so that the first hour's table has a row of each kind.

    Args:
        systems: such as "smoothsa" and "spot,student".
        data: such as "sprites", "coco:smoke" and "my/config.py:word".
        ablations: names in `ABLATIONS`.
        overrides: `("config.key", "value")` for every run.
        workdir: the parent of the runs' folders.

    Raises:
        UserError: a bad config, or an ablation that changes nothing in it.
    """
    made = [
        _configs(system, spec, ablations, overrides)
        for system, spec in itertools.product(systems, data)
    ]
    runs = []
    for seed, configs in itertools.product(seeds, made):
        for key, config in configs:
            config = config.copy_and_resolve_references().unlock()
            config.seed = seed
            whole = {**key, "seed": seed, "steps": config.train.num_steps}
            whole = {name: whole[name] for name in KEY}
            for companion in config.companions.values():
                if companion.source is None:  # one that is left out
                    continue
                companion.source = str(workdir / _folder_name(_earlier(whole, companion.source)))
            add_curve(config, whole["overrides"])
            runs.append(Run(whole, canonical(config), workdir / _folder_name(whole)))
    return runs


def add_curve(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Score a few times in training, for a learning curve, unless the command line says how.

    The newest checkpoint is scored in the end, whichever is the best. A config that scores the best
    one keeps its own rule, and the points of its curve.
    """
    if config.task == DISCOVERY and "eval.count_segments" not in overrides:
        config.eval.count_segments = True
    if config.eval.checkpoint == "best" or any(name in overrides for name in OF_A_CURVE):
        return
    if config.task == DISCOVERY:
        config.checkpoint.update(best_metric=LEADING[0], best_mode="max")
    # Between two scored steps there is one whose time is known.
    config.checkpoint.every = max(math.ceil(config.train.num_steps / CURVE_POINTS), 2)
    config.eval.validation_samples = CURVE_SAMPLES


def all_planned(seeds: Sequence[int] | None, overrides: Overrides, workdir: Path) -> list[Run]:
    """Return the runs of arena_plan.py in their order.

    Args:
        seeds: those of each part's that are wanted; None: all.
        overrides, workdir: as for `plan`.
    """
    runs = []
    for part in PLAN:
        wanted = [seed for seed in part.seeds if seeds is None or seed in seeds]
        what = part.systems, part.data, part.ablations
        runs += plan(*what, wanted, (*part.settings, *overrides), workdir)
    return runs


def _earlier(key: Row, source: str) -> Row:
    """Return the key of the earlier run, such as a teacher's, that a run of the same seed needs.

    Args:
        key: of the later run.
        source: the default workdir of the earlier one.

    Raises:
        UserError: no config of the gallery has that workdir.
    """
    spec = spec_of(Path(source).name)
    if spec is None:
        raise UserError(
            f"{source} is no default workdir of a config of the gallery; train it first"
        )
    words = [word for word in spec.partition(":")[2].split(",") if word != key["system"]]
    steps = load_config(str(ROOT / spec)).train.num_steps
    return {**key, "words": ",".join(sorted(words)), "ablation": FULL, "steps": steps}


def _configs(
    system: str, spec: str, ablations: Sequence[str], overrides: Overrides
) -> list[tuple[Row, ConfigDict]]:
    """Return (part of the key, config) of each ablation of a system on a data set."""
    path, _, words = spec.partition(":")
    path = path if path.endswith(".py") else str(ROOT / "configs" / f"{path}.py")
    system, *variants = system.split(",")
    others = [*filter(None, words.split(",")), *variants]
    taken = others if system == DEFAULT_SYSTEM else [system, *others]
    file = ":".join(filter(None, (path, ",".join(taken))))
    base = config_from_command_line([("config", file)], "")
    changed = config_from_command_line([("config", file), *overrides], "")
    before, after = flatten(base), flatten(changed)
    key = {
        "system": system,
        "data": Path(path).stem,
        "words": ",".join(sorted(others)),
        "overrides": {
            name: value
            for name, value in sorted(after.items())
            if before.get(name) != value and name not in IN_THE_KEY
        },
    }
    found = []
    for ablation in ablations:
        config = changed.copy_and_resolve_references().unlock()
        ABLATIONS[ablation](config)
        if ablation != FULL and not differences(changed, config):
            raise UserError(
                f"ablation {ablation!r} changes nothing in {spec}; leave it out of --ablations"
            )
        found.append(({**key, "ablation": ablation}, canonical(config)))
    return found


def _folder_name(key: Row) -> str:
    settings = [f"{name.split('.')[-1]}{value}" for name, value in key["overrides"].items()]
    parts = [key["system"], key["data"], key["words"], *settings]
    parts += [] if key["ablation"] == FULL else [key["ablation"]]
    parts += [f"steps{key['steps']}", f"seed{key['seed']}"]
    return "_".join(filter(None, (re.sub("[^A-Za-z0-9]+", "_", str(part)) for part in parts)))


def run_missing(
    runs: Sequence[Run],
    rows_file: Path,
    train: Callable[[Run], Row],
    *,
    jobs: int = 1,
    again: bool = False,
    counts_as_done: Callable[[Row], bool] = lambda row: True,
    say: Callable[[str], None] = print,
    stop: Callable[[], None] = lambda: None,
) -> list[str]:
    """Train every run without a row, and append its row as it ends.

    Args:
        train: trains and scores one run; may raise RunFailed.
        jobs: runs at a time, each on its own share of the cores.
        again: train runs that have a row as well, in another folder.
        counts_as_done: tells whether a row makes its run one that need not be trained.
        stop: asks running trainings to stop; called when this function is interrupted.

    Returns:
        One line for each run that failed.
    """
    rows = read_rows(rows_file)
    done = {key_of(row) for row in rows if counts_as_done(row)}
    missing = [run for run in runs if again or key_of(run.key) not in done]
    say(f"{len(runs) - len(missing)} of {len(runs)} runs have a row; {len(missing)} to do")
    before = collections.Counter(key_of(row) for row in rows)
    missing = [_in_own_folder(run, before[key_of(run.key)]) for run in missing]
    failures = []
    pool = ThreadPoolExecutor(jobs, initializer=_pin_thread, initargs=(_shares(jobs),))
    try:
        futures = {pool.submit(train, run): run for run in missing}
        for future in as_completed(futures):
            run = futures[future]
            try:
                row = future.result()
            except Interrupted as error:
                say(f"stopped: {run.name}: {error}")
                continue
            except RunFailed as error:
                failures.append(f"{run.name}: {error}")
                say(f"failed: {failures[-1]}")
                continue
            append_row(rows_file, row)
            say(f"done: {run.name}: {_headline(row)}")
    except BaseException:
        stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return failures


def _in_own_folder(run: Run, rows: int) -> Run:
    """Return a run in a folder that holds none of the finished ones, of which there are `rows`."""
    names = [run.folder.name, *(f"{run.folder.name}_again{number + 1}" for number in range(rows))]
    folders = [run.folder.with_name(name) for name in names]
    free = (folder for folder in folders if not (folder / "scores.json").exists())
    return dataclasses.replace(run, folder=next(free, folders[-1]))


def _headline(row: Row) -> str:
    name = next((name for name in (*LEADING, *row["scores"]) if name in row["scores"]), None)
    return "no score" if name is None else f"{title_of(name)} {percent(row['scores'][name])}"


def _shares(jobs: int) -> "queue.SimpleQueue[set[int]]":
    """Divide this process's cores among `jobs` jobs; what remains goes to the first ones."""
    cores = _cores()
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for job in range(jobs):
        shares.put(set(cores[job::jobs]) or set(cores))
    return shares


def _cores() -> list[int]:
    """Return the cores of the calling thread; the processes that it starts inherit them."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _pin_thread(shares: "queue.SimpleQueue[set[int]]") -> None:
    # The thread, not the process: a child inherits it from its first instruction on.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, shares.get())


class MainProgram:
    """Trains a run with `main.py` in another process, resuming from the run's checkpoints if any.

    Args:
        say: prints a line.
        time_limit: seconds from now after which runs stop.
    """

    def __init__(self, say: Callable[[str], None] = print, time_limit: float = math.inf):
        self._say = say
        self._end = time.monotonic() + time_limit
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen] = set()
        self._stopped = False

    def __call__(self, run: Run) -> Row:
        """Train a run and return its row.

        Raises:
            RunFailed: main.py left with another status than 0.
            Interrupted: the time limit was reached.
        """
        if time.monotonic() >= self._end:
            raise Interrupted("not begun within the time limit")
        begun = revision()
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "arena_config.json").write_text(to_json(run.config))
        (run.folder / "arena_config.py").write_text(CONFIG_CODE)
        self._say(f"training {run.name}; its output: {run.output}")
        arguments = [f"--config={run.folder / 'arena_config.py'}", f"--workdir={run.folder}"]
        status = self._run([str(ROOT / "main.py"), *arguments], run.output, self._end)
        if status == 128 + signal.SIGTERM and time.monotonic() >= self._end:
            raise Interrupted("the time limit is reached; the same command continues it")
        _refuse_failure(status, run.output)
        for name, settings in scored_again(run.config).items():
            self.score_again(run, name, settings)
        self.measure(run)
        return make_row(run, len(_cores()), begun)

    def measure(self, run: Run) -> None:
        """Call the function `measure` in another process; this one takes no accelerator's memory.

        Raises:
            RunFailed: the run cannot be measured.
        """
        if self._run([str(Path(__file__).resolve()), f"--measure={run.folder}"], run.output):
            raise RunFailed(f"its training step cannot be measured; see {run.output}")

    def score_again(self, run: Run, name: str, settings: Mapping[str, Any]) -> None:
        """Score a finished run with other settings, in a copy, so that what it wrote stays.

        Args:
            name: of the copy, one of `OTHERS`.

        Raises:
            RunFailed: main.py left with another status than 0.
        """
        copy = run.folder / name
        skipped = shutil.ignore_patterns(*OTHERS)
        shutil.copytree(run.folder, copy, ignore=skipped, dirs_exist_ok=True)
        settings = {**settings, "eval.baselines": False}
        arguments = [f"--config.{key}={value}" for key, value in settings.items()]
        command = [str(ROOT / "main.py"), "--mode=evaluate", f"--workdir={copy}", *arguments]
        status = self._run(command, run.output)
        if name == "pruned" and status == 2:  # main.py has said why it cannot be
            self._say(f"not scored {name}: {run.name}; see {run.output}")
            (copy / "scores.json").unlink()  # of the run itself
        else:
            _refuse_failure(status, run.output)

    def _run(self, arguments: Sequence[str], output: Path, end: float = math.inf) -> int:
        """Run a Python program, ask it to leave when the time ends, and return its status."""
        # A new session: Ctrl-C reaches it through `stop` alone; a second signal would keep
        # it from saving.
        with open(output, "a") as file:
            with self._lock:
                if self._stopped:
                    raise RunFailed("stopped before it began")
                process = subprocess.Popen(
                    [sys.executable, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._processes.add(process)
            try:
                left = end - time.monotonic()
                return process.wait(None if math.isinf(left) else max(left, 0.0))
            except subprocess.TimeoutExpired:
                process.terminate()
                return process.wait()
            finally:
                with self._lock:
                    self._processes.discard(process)

    def stop(self) -> None:
        """Ask the running trainings to save and stop."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()


def scored_again(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Return how else a run is scored: the name of the scores, and settings of evaluation.

    A run is scored plain and pruned, once as its config says. Slots that start from boxes are as
    many as the boxes.
    """
    if config.task != DISCOVERY:
        return {}
    before = flatten(config)
    if plain := {name: x for name, x in PLAIN.items() if before.get(name) != x}:
        return {"plain": plain}
    return {} if starts_from_boxes(config.model) else {"pruned": PRUNED}


def add_scores(row: Row, run: Run) -> Row:
    """Return a row with the other scores of a finished run, read from its folder."""
    scores, clips = dict(row["scores"]), dict(row.get("clips", {}))
    for name in OTHERS:
        file = run.folder / name / "scores.json"
        if file.exists():
            scores[name] = means_of(json.loads(file.read_text()))
            clips[name] = clips_of(run.folder / name, run.config.title)["clips"]
    return {**row, "scores": scores, **({"clips": clips} if clips else {})}


def score_missing(runs: Sequence[Run], rows_file: Path, program: "MainProgram") -> None:
    """Add what rows lack of runs whose folders still stand: scores, and the time of a step.

    A step is measured once for all seeds.
    """
    rows = {key_of(row): row for row in read_rows(rows_file)}
    timed = {kind_of(row) for row in rows.values() if "step_seconds" in row}
    for run in runs:
        row, asked = rows.get(key_of(run.key)), scored_again(run.config)
        if row is None or "curve" not in row or not (run.folder / "scores.json").exists():
            continue
        lacking = {name: x for name, x in asked.items() if name not in row["scores"]}
        for name, settings in lacking.items():
            program.score_again(run, name, settings)
        found = add_scores(row, run)
        if kind_of(row) not in timed:
            program.measure(run)
            measured = json.loads((run.folder / "arena_measured.json").read_text())
            found["step_seconds"] = measured["step_seconds"]
            timed.add(kind_of(row))
        if found != row:
            append_row(rows_file, found)
            print(f"{', '.join([*found.keys() - row.keys(), *lacking])}: {run.name}", flush=True)


def means_of(scores: Mapping[str, Any]) -> dict[str, float]:
    return {name: x["mean"] for name, x in scores["metrics"].items()}


def _refuse_failure(status: int, output: Path) -> None:
    """Raise RunFailed with the last line of a program's output if it failed."""
    if status:
        lines = output.read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        raise RunFailed(f"main.py left with status {status}: {last.strip()}; see {output}")


def measure(folder: Path) -> None:
    """Write parameters, planned memory and devices of a finished run to its folder."""
    import jax

    from benchmarks import programs
    from smoothsa_jax.devices import runtime
    from smoothsa_jax.devices.compiling import memory_of
    from smoothsa_jax.devices.mesh import make_mesh
    from smoothsa_jax.training.step import build_training

    runtime.start(print)
    config = from_json((folder / "config.json").read_text())  # with its companions' architecture
    training = build_training(config, shapes_only=True)
    count = lambda arrays: sum(math.prod(x.shape) for x in arrays.values())  # noqa: E731
    (call,) = programs.calls(config, make_mesh(config.mesh), config.train.batch_size, ("train",))
    compiled = call.function.lower(*call.arguments).compile()
    memory = memory_of(compiled)
    device = jax.devices()[0]
    found = {
        "parameters": {
            "trained": count(training.state.params),
            "frozen": count(training.frozen),
        },
        "memory": None if memory is None else memory.peak,
        "step_seconds": _step_seconds(compiled, call.arguments),
        "device": device.device_kind,
        "devices": len(jax.devices()),
    }
    if config.task == DISCOVERY and config.seed == SHOWN_SEED:
        found["segments"] = packed(_segments(folder))
    (folder / "arena_measured.json").write_text(json.dumps(found))


def _step_seconds(compiled: Callable, shapes: tuple[Any, ...]) -> float:
    """Return the mean processor time of a training step, on arrays of these shapes."""
    import jax

    rng = np.random.default_rng(0)

    def filled(x: Any) -> Any:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(0), x.sharding)
        values = rng.normal(scale=0.1, size=x.shape) * jax.numpy.issubdtype(x.dtype, float)
        return jax.device_put(values.astype(x.dtype), x.sharding)

    state, *rest = jax.tree.map(filled, shapes)
    state, _ = jax.block_until_ready(compiled(state, *rest))  # gives its state away
    begin = time.process_time()
    for _ in range(TIMED_STEPS):
        state, _ = jax.block_until_ready(compiled(state, *rest))
    return round((time.process_time() - begin) / TIMED_STEPS, 5)


def _segments(folder: Path) -> list[np.ndarray]:
    """Return the segments (T,H,W) of the first samples, as a finished run scored them."""
    from smoothsa_jax.checkpoints.read import restore_state
    from smoothsa_jax.training import evaluating
    from smoothsa_jax.training.step import build_training

    checkpoint, config = evaluating.restored(folder, lambda stored: stored)
    training = evaluating.untrained(build_training(config))
    frozen = restore_state({"frozen": training.frozen}, checkpoint, only="frozen/")["frozen"]
    training = dataclasses.replace(training, frozen=frozen)
    params = evaluating.params_of(checkpoint, training)
    seeds = tuple(config.eval.seeds)[:1]
    found = evaluating.evaluate_split(
        config, training, params, config.eval.split, SHOWN, seeds, keep_samples=SHOWN
    )
    return [sample["masks"] for sample in found.samples]


def make_row(run: Run, cores: int, revision: str) -> Row:
    """Return the row of a finished run, read from its folder.

    Raises:
        RunFailed: a file is missing or not as expected.
    """
    try:
        scores = json.loads((run.folder / "scores.json").read_text())
        log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
        measured = json.loads((run.folder / "arena_measured.json").read_text())
        clips = clips_of(run.folder, run.config.title)
        paper = {"match_paper": means_of(scores["match_paper"])} if "match_paper" in scores else {}
        seconds = training_seconds(log)
        row = {
            **run.key,
            "seconds": seconds,
            "steps_per_second": round(log[-1]["step"] / seconds, 3) if seconds else None,
            "scores": {**means_of(scores), **paper},
            **({"baselines": scores["baselines"]} if scores["baselines"] else {}),
            **clips,
            "curve": curve_of(log),
            **measured,
            "folder": run.folder.name,
            "cores": cores,
            "revision": revision,
            "date": datetime.date.today().isoformat(),
            "title": run.config.title,
        }
        return add_scores(row, run)
    except (OSError, ValueError, KeyError) as error:
        raise RunFailed(
            f"{run.folder} is not as a finished run leaves it: {type(error).__name__}: {error}"
        ) from error


def revision() -> str:
    """Return git's revision of this checkout; "unknown" without git."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    try:
        head = git("rev-parse", "--short=12", "HEAD").strip()
        made = (str(ROWS_FILE.relative_to(ROOT)), "docs/arena.md", "docs/arena")  # of runs
        others = [".", *(f":!{path}" for path in made)]
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *others).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


# ------------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str]) -> int:
    """Return 0 done, 1 a run failed, 2 a bad command, 130 stopped."""
    overrides, others = split_command_line(arguments)
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--systems", nargs="+", default=[DEFAULT_SYSTEM], metavar="SYSTEM")
    parser.add_argument("--data", nargs="+", default=["sprites"], metavar="DATA")
    parser.add_argument("--ablations", nargs="+", default=[FULL], choices=ABLATIONS)
    parser.add_argument("--seeds", type=_seeds, help="such as 0,1,2, which is the default")
    parser.add_argument("--workdir", type=Path, default=Path("runs/arena"))
    parser.add_argument("--rows", type=Path, default=ROWS_FILE, help="the file of the rows")
    parser.add_argument("--again", action="store_true", help="train runs that have a row as well")
    parser.add_argument("--time-limit", type=float, default=math.inf, help="in minutes")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; 1 on an accelerator")
    parser.add_argument("--plan", action="store_true", help="train what arena_plan.py lists")
    parser.add_argument("--rescore", action="store_true", help="of finished runs, what rows lack")
    parser.add_argument("--page", action="store_true", help="write docs/arena.md, train nothing")
    parser.add_argument("--list", action="store_true", help="print the table, train nothing")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # for MainProgram
    options = parser.parse_args(others)
    if options.measure:
        measure(options.measure)
        return 0
    if options.list:
        print(table(read_rows(options.rows)), end="")
        return 0
    if options.page:
        from benchmarks import arena_page

        arena_page.write(read_rows(options.rows))
        return 0
    if any(name == "config" for name, _ in overrides):
        raise UserError("--config was given; name the data set, or a config file, with --data")
    if any(name == "config.seed" for name, _ in overrides):
        raise UserError("--config.seed was given; use --seeds")
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; expected at least 1")
    if options.plan:
        runs = all_planned(options.seeds, overrides, options.workdir)
        if not runs:
            seeds = ", ".join(map(str, DEFAULT_SEEDS))
            raise UserError(f"the plan has no run of these --seeds; expected some of {seeds}")
    else:
        what, seeds = (
            (options.systems, options.data, options.ablations),
            options.seeds or DEFAULT_SEEDS,
        )
        runs = plan(*what, seeds, overrides, options.workdir)
    if options.rescore:
        score_missing(runs, options.rows, MainProgram())
        return 0
    failures = _train(runs, options)
    if failures:
        print(f"{counted(len(failures), 'run')} failed; the same command retries", file=sys.stderr)
    return 1 if failures else 0


def _train(runs: Sequence[Run], options: argparse.Namespace) -> list[str]:
    def say(text: str) -> None:
        print(text, flush=True)

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    program = MainProgram(say, 60 * options.time_limit)
    before = signal.signal(signal.SIGTERM, interrupt)
    settings = {"jobs": options.jobs, "again": options.again, "say": say, "stop": program.stop}
    if options.plan:  # its page needs curves
        settings["counts_as_done"] = lambda row: "curve" in row
    try:
        return run_missing(runs, options.rows, program, **settings)
    finally:
        signal.signal(signal.SIGTERM, before)


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command continues from there", file=sys.stderr)
        sys.exit(130)
