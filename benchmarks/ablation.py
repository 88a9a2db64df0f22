"""What each part of SmoothSA contributes: the same training with one part changed, over several seeds.

    python benchmarks/ablation.py                          every variant, seeds 0, 1, 2
    python benchmarks/ablation.py --jobs=2                 two runs at a time, each on its half of the cores
    python benchmarks/ablation.py --variants=full,3/3 --seeds=0
    python benchmarks/ablation.py --table                  write the table again, train nothing

Each run is `main.py` in a process and a folder of its own. A finished run becomes one row of <workdir>/rows.jsonl, and
the table is made of the rows alone. The same command goes on where a stopped or killed one was.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import queue
import re
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from smoothsa_jax.config.load import config_from_command_line, split_command_line
from smoothsa_jax.config.values import differences, to_json
from smoothsa_jax.errors import UserError
from smoothsa_jax.files import atomic_file

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no warmer": {"model.initializer.warmer": False, "loss.distillation": 0},
    "3/3": {
        "model.slot_attention.first_iterations": 3,
        "model.slot_attention.later_iterations": 3,
    },
    "1/1": {
        "model.slot_attention.first_iterations": 1,
        "model.slot_attention.later_iterations": 1,
    },
    "no slot contrast": {"loss.slot_contrast": 0},
}
METRICS = {"fg_ari": "FG-ARI", "ari": "ARI", "mbo": "mBO", "miou": "mIoU"}
ROWS_FILE = "rows.jsonl"
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        changes: what differs from the full config, as `key=value`.
        arguments: for main.py, all but --workdir.
        config: the config of the whole ablation, as typed, and its fingerprint.
    """

    variant: str
    seed: int
    folder: Path
    changes: tuple[str, ...]
    arguments: tuple[str, ...]
    config: tuple[str, ...]
    fingerprint: str

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.seed}"


class RunFailed(Exception):
    """One training did not end well; the others go on."""


# ------------------------------------------------------------------------------------------------------------ runs


def plan(
    arguments: Sequence[str], variants: Iterable[str], seeds: Iterable[int], workdir: Path
) -> list[Run]:
    """All runs, seed by seed, so that a table of the first hour has every variant.

    Args:
        arguments: `--config=...` and `--config.key=value`, which hold for every variant.

    Raises:
        UserError: a bad config, or a variant that changes nothing in it.
    """

    def resolve(extra: Sequence[str]):
        return config_from_command_line(split_command_line([*arguments, *extra])[0], "")

    base = resolve(["--config.seed=0"])
    fingerprint = hashlib.sha256(to_json(base).encode()).hexdigest()[:12]
    changes: dict[str, tuple[str, ...]] = {}
    for variant in variants:
        overrides = tuple(f"{key}={value}" for key, value in VARIANTS[variant].items())
        config = resolve(["--config.seed=0", *(f"--config.{change}" for change in overrides)])
        if overrides and not differences(base, config):
            raise UserError(
                f"variant {variant!r} changes nothing: the config has {', '.join(overrides)} already; "
                "leave it out of --variants"
            )
        different = [line.split(" ")[0] for line in differences(base, config)]
        changes[variant] = tuple(c for c in overrides if c.split("=")[0] in different)
    return [
        Run(
            variant,
            seed,
            workdir / f"{re.sub('[^a-z0-9]+', '_', variant)}_seed{seed}",
            changes[variant],
            (*arguments, *(f"--config.{c}" for c in changes[variant]), f"--config.seed={seed}"),
            tuple(arguments),
            fingerprint,
        )
        for seed in seeds
        for variant in changes
    ]


def run_missing(
    runs: Sequence[Run],
    rows_file: Path,
    train: Callable[[Run], Row],
    jobs: int = 1,
    say: Callable[[str], None] = print,
    stop: Callable[[], None] = lambda: None,
) -> list[str]:
    """Train what has no row yet; append a row as each run ends.

    Args:
        train: trains and scores one run; may raise RunFailed.
        jobs: runs at a time, each on its own share of the cores.
        stop: asks running trainings to leave; called when this function is interrupted.

    Returns:
        one line for each run that failed.

    Raises:
        UserError: the rows belong to another config.
    """
    rows = read_rows(rows_file)
    for row in rows:
        if runs and row["fingerprint"] != runs[0].fingerprint:
            raise UserError(
                f"{rows_file} holds rows of another config (of {row['variant']!r}, seed {row['seed']}: "
                f"{' '.join(row['config'])}, or its file has changed since); use another --workdir"
            )
    done = {(row["variant"], row["seed"]) for row in rows}
    missing = [run for run in runs if (run.variant, run.seed) not in done]
    if missing:
        say(f"{len(runs) - len(missing)} of {len(runs)} runs have a row; {len(missing)} to do")
    failures = []
    pool = ThreadPoolExecutor(jobs, initializer=_pin_thread, initargs=(_shares(jobs),))
    try:
        futures = {pool.submit(train, run): run for run in missing}
        for future in as_completed(futures):
            run = futures[future]
            try:
                row = future.result()
            except RunFailed as error:
                failures.append(f"{run.name}: {error}")
                say(f"failed: {failures[-1]}")
                continue
            append_row(rows_file, row)
            say(f"done: {run.name}: FG-ARI {_percent(row['fg_ari'])}")
    except BaseException:
        stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return failures


def _shares(jobs: int) -> "queue.SimpleQueue[set[int]]":
    """The cores of this process dealt out to `jobs` jobs; what remains goes to the first ones."""
    cores = _cores()
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for job in range(jobs):
        shares.put(set(cores[job::jobs]) or set(cores))
    return shares


def _cores() -> list[int]:
    """Of the calling thread; the processes that it starts inherit them."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _pin_thread(shares: "queue.SimpleQueue[set[int]]") -> None:
    # Of the thread, not of the process: what it starts inherits it from the first instruction on.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, shares.get())


class MainProgram:
    """Trains a run with `main.py` in a process of its own, which goes on from the run's own checkpoints."""

    def __init__(self, say: Callable[[str], None] = print):
        self._say = say
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen] = set()
        self._stopped = False

    def __call__(self, run: Run) -> Row:
        """The row of a finished run.

        Raises:
            RunFailed: main.py left with another status than 0.
        """
        run.folder.mkdir(parents=True, exist_ok=True)
        output = run.folder / "output.txt"
        command = [sys.executable, str(ROOT / "main.py"), *run.arguments, f"--workdir={run.folder}"]
        # A session of its own: Ctrl-C reaches it through `stop` alone; a second signal would keep it from saving.
        with open(output, "a") as file:
            with self._lock:
                if self._stopped:
                    raise RunFailed("stopped before it began")
                self._say(f"training {run.name}; its output: {output}")
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._processes.add(process)
            status = process.wait()
        with self._lock:
            self._processes.discard(process)
        if status:
            lines = output.read_text(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no output")
            raise RunFailed(f"main.py left with status {status}: {last.strip()}; see {output}")
        return make_row(run, len(_cores()))

    def stop(self) -> None:
        """Ask what runs to save and leave."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()


def make_row(run: Run, cores: int) -> Row:
    """The row of a finished run, read from what `main.py` left in its folder.

    Raises:
        RunFailed: a file is missing or not as expected.
    """
    try:
        config = json.loads((run.folder / "config.json").read_text())
        scores = json.loads((run.folder / "scores.json").read_text())
        log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
        machines = re.findall(
            r"^\d+ \w+ devices? \(.*", (run.folder / "output.txt").read_text(errors="replace"), re.M
        )
        return {
            "variant": run.variant,
            "seed": run.seed,
            "steps": scores["step"],
            **{name: scores["metrics"][name]["mean"] for name in METRICS},
            "seconds": training_seconds(log),
            "changes": list(run.changes),
            "config": list(run.config),
            "fingerprint": run.fingerprint,
            "batch_size": config["train"]["batch_size"],
            "num_frames": config["data"]["num_frames"],
            "split": scores["split"],
            "eval_samples": scores["protocol"]["num_samples"],
            "eval_frames": scores["protocol"]["num_frames"],
            "cores": cores,
            "machine": machines[-1] if machines else "unknown machine",
            "date": datetime.date.today().isoformat(),
        }
    except (OSError, ValueError, KeyError) as error:
        raise RunFailed(
            f"{run.folder} is not as a finished run leaves it: {type(error).__name__}: {error}"
        ) from error


def training_seconds(log: Sequence[Row]) -> float | None:
    """Time of the training steps, from the speeds in a `log.jsonl`: without compiling, scoring, or a stop between."""
    seconds, timed, last = 0.0, 0, 0
    for row in log:
        if row.get("steps_per_second"):
            seconds += (row["step"] - last) / row["steps_per_second"]
            timed += row["step"] - last
        last = row["step"]
    # Rows without a speed (the first, and those after a pause) count with the mean of the others.
    return round(seconds * last / timed, 3) if timed else None


# ------------------------------------------------------------------------------------------------------------ rows


def read_rows(path: Path) -> list[Row]:
    """The rows, one for each variant and seed (the newest); a line that was cut short is left out."""
    rows: dict[tuple[str, int], Row] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["variant"], row["seed"]] = row
    return list(rows.values())


def append_row(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        # A line that a kill cut short must not swallow this one.
        file.seek(0)
        text = file.read()
        begin = b"\n" if text and not text.endswith(b"\n") else b""
        file.write(begin + json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


# ----------------------------------------------------------------------------------------------------------- table


def document(rows: Sequence[Row]) -> str:
    """The page of the table, from the rows alone."""
    groups = {
        variant: sorted((r for r in rows if r["variant"] == variant), key=lambda row: row["seed"])
        for variant in VARIANTS
    }
    groups = {variant: found for variant, found in groups.items() if found}
    command = " ".join(["python benchmarks/ablation.py", *rows[0]["config"]]) if rows else ""
    if not rows:
        return "# Ablation\n\nNo run has finished yet: `python benchmarks/ablation.py` makes this page.\n"
    head = [
        "variant",
        "changes",
        "seeds",
        *METRICS.values(),
        "FG-ARI of each seed",
        "training, s",
    ]
    table = [head, ["---"] * 3 + ["---:"] * 4 + ["---", "---:"]]
    for variant, found in groups.items():
        each = ", ".join(f"{row['seed']}: {_percent(row['fg_ari'])}" for row in found)
        times = [row["seconds"] for row in found if row["seconds"] is not None]
        table.append(
            [
                variant,
                ", ".join(f"`{change}`" for change in found[0]["changes"]) or "none",
                str(len(found)),
                *(_mean_and_spread([row[name] for row in found]) for name in METRICS),
                each,
                f"{statistics.mean(times):.0f}" if times else "-",
            ]
        )
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    return "\n".join(
        [
            "# Ablation",
            "",
            "Made by `benchmarks/ablation.py` from its rows; do not edit.",
            "",
            *lines,
            "",
            "Scores in percent: mean ± standard deviation (n - 1) over the training seeds. Training: mean time of the "
            "training steps, without compiling and scoring.",
            "",
            "## Budget",
            "",
            *_budget(rows),
            "",
            "## What the figures say",
            "",
            *(f"* {sentence}" for sentence in _sentences(groups)),
            "",
            "## Again",
            "",
            f"    {command}",
            "",
            "Runs that have a row are not repeated; `--workdir=<another folder>` starts from nothing.",
            "",
        ]
    )


def _budget(rows: Sequence[Row]) -> list[str]:
    def all_of(*names: str) -> list[tuple]:
        found = {json.dumps([row[name] for name in names]) for row in rows}
        return [json.loads(values) for values in sorted(found)]

    lines = [
        f"* Each run: {steps} steps of {batch} clips of {frames} frames."
        for steps, batch, frames in all_of("steps", "batch_size", "num_frames")
    ]
    lines += [
        f"* Scored on {samples} clips of {frames} frames of the {split} split."
        for samples, frames, split in all_of("eval_samples", "eval_frames", "split")
    ]
    for (arguments,) in all_of("config"):
        flags = ", ".join(f"`{argument.removeprefix('--')}`" for argument in arguments)
        lines.append(f"* With {flags}.")
    for cores, machine in all_of("cores", "machine"):
        dates = sorted({r["date"] for r in rows if (r["cores"], r["machine"]) == (cores, machine)})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        lines.append(f"* On {cores} CPU core{'s' * (cores > 1)} a run: {machine}; {when}.")
    return lines


def _sentences(groups: dict[str, list[Row]]) -> list[str]:
    scores = {
        variant: {row["seed"]: row["fg_ari"] for row in found if row["fg_ari"] is not None}
        for variant, found in groups.items()
    }
    means = {variant: statistics.mean(s.values()) for variant, s in scores.items() if s}
    sentences = []
    if len(means) > 1:
        best, worst = max(means, key=means.get), min(means, key=means.get)
        sentences.append(f"Highest mean FG-ARI: {best}, {_percent(means[best])}.")
        sentences.append(f"Lowest mean FG-ARI: {worst}, {_percent(means[worst])}.")
    for variant in means:
        seeds = sorted(scores[variant].keys() & scores.get("full", {}).keys())
        if variant == "full" or not seeds:
            continue
        gaps = [scores[variant][seed] - scores["full"][seed] for seed in seeds]
        gap = statistics.mean(gaps)
        below = sum(gap < 0 for gap in gaps)
        sentences.append(
            f"{variant}: mean FG-ARI {abs(100 * gap):.1f} points {'below' if gap < 0 else 'above'} full over the "
            f"{_count(len(seeds), 'seed')} that both have; below full with {below} of {len(seeds)}."
        )
    most = max(len(found) for found in groups.values())
    sentences += [
        f"Not complete: {variant} has {len(found)} of {_count(most, 'seed')}."
        for variant, found in groups.items()
        if len(found) < most
    ]
    if absent := [variant for variant in VARIANTS if variant not in groups]:
        sentences.append(f"No run has finished of: {', '.join(absent)}.")
    return sentences


def _mean_and_spread(values: Sequence[float | None]) -> str:
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return _percent(statistics.mean(values)) + spread


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


# ---------------------------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str]) -> int:
    """0 done, 1 a run failed, 2 something to mend, 130 stopped."""
    for_config, others = split_command_line(arguments)
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", default="configs/sprites.py", help="and --config.key=value, for all variants"
    )
    parser.add_argument("--variants", type=_variants, default=list(VARIANTS), help="comma between")
    parser.add_argument("--seeds", type=_seeds, default=[0, 1, 2], help="comma between")
    parser.add_argument("--num_steps", type=int, help="as --config.train.num_steps")
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablation/table.md"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--table", action="store_true", help="write --out from the rows, train nothing"
    )
    options = parser.parse_args(others)
    config = [f"--{name}" if value is None else f"--{name}={value}" for name, value in for_config]
    if not any(name == "config" for name, _ in for_config):
        config.insert(0, f"--config={options.config}")
    if options.num_steps is not None:
        config.append(f"--config.train.num_steps={options.num_steps}")
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; expected at least 1")

    rows_file, failures = options.workdir / ROWS_FILE, []
    if not options.table:
        runs = plan(config, options.variants, options.seeds, options.workdir)
        failures = _train(runs, rows_file, options.jobs, options.out)
    write_document(rows_file, options.out)
    print(f"{options.out} is made from {_count(len(read_rows(rows_file)), 'row')} of {rows_file}")
    if failures:
        print(
            f"{_count(len(failures), 'run')} failed; the same command tries again", file=sys.stderr
        )
    return 1 if failures else 0


def write_document(rows_file: Path, out: Path) -> None:
    with atomic_file(out) as temporary:
        temporary.write_text(document(read_rows(rows_file)))


def _train(runs: Sequence[Run], rows_file: Path, jobs: int, out: Path) -> list[str]:
    def say(text: str) -> None:
        print(text, flush=True)

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    program = MainProgram(say)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        return run_missing(runs, rows_file, program, jobs, say, program.stop)
    except KeyboardInterrupt:
        if rows_file.exists():
            write_document(rows_file, out)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _variants(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in VARIANTS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(VARIANTS)}")
    return names


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
