"""Running `main.py` for the arena, and the row of a finished run."""

import dataclasses
import datetime
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.arena_rows import (
    OTHERS,
    PLAIN,
    ROOT,
    ROWS_FILE,
    Row,
    clips_of,
    curve_of,
    packed,
    training_seconds,
)
from benchmarks.arena_runs import DISCOVERY, Interrupted, Run, RunFailed
from smoothsa_jax.config.values import flatten, from_json, to_json
from smoothsa_jax.models.build import starts_from_boxes

PRUNED = {"eval.prune": "auto"}
TIMED_STEPS = 20
SHOWN, SHOWN_SEED = 3, 0  # samples in pictures, and the training seed that they are of
CONFIG_CODE = '''"""The config of this run; benchmarks/arena.py wrote it."""

from pathlib import Path

from smoothsa_jax.config.values import from_json


def get_config():
    return from_json((Path(__file__).parent / "arena_config.json").read_text())
'''


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
        return make_row(run, len(own_cores()), begun)

    def measure(self, run: Run) -> None:
        """Call the function `measure` in another process; this one takes no accelerator's memory.

        Raises:
            RunFailed: the run cannot be measured.
        """
        script = str(ROOT / "benchmarks" / "arena.py")
        if self._run([script, f"--measure={run.folder}"], run.output):
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


def own_cores() -> list[int]:
    """Return the cores of the calling thread; the processes that it starts inherit them."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


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
