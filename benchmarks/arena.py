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
`spot,student` reads the first one of the same seed, which is finished or in the same command.
`--config.key=value` changes every run. Each run is `main.py` in its own process and folder below
`--workdir`.

A finished run is one JSON line in benchmarks/recorded/arena.jsonl, written at once. A run whose row
exists (same system, data, words, ablation, overrides, seed and steps) is skipped, but for a first
stage that a missing run needs and whose folder is not here. `--again` trains every run, and adds
another row. The same command continues a run that was stopped or killed.

    system, data, words     what was trained; the words are those after the colon, less the system
    ablation                of `ABLATIONS` below; "full" changes nothing
    overrides               settings of the command line, without seed and number of steps
    seconds                 of the training steps, without compilation, scoring and pauses
    steps_per_second        of these
    step_seconds            processor time of a training step, summed over cores; other programs on
                            the machine hardly change it
    curve                   {"step", "seconds", "scores"} of about eight points of training, on
                            `CURVE_SAMPLES` samples of the validation split; scored as the rest is
    clips                   FG-ARI of each scored sample; likewise under "plain" and "pruned"
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
import json
import math
import os
import queue
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.arena_plan import SEEDS as DEFAULT_SEEDS
from benchmarks.arena_program import MainProgram, add_scores, measure, own_cores, scored_again
from benchmarks.arena_rows import (
    DEFAULT_SYSTEM,
    FULL,
    LEADING,
    ROWS_FILE,
    Row,
    append_row,
    key_of,
    kind_of,
    read_rows,
)
from benchmarks.arena_runs import ABLATIONS, Interrupted, Run, RunFailed, all_planned, plan
from benchmarks.arena_table import counted, percent, table
from smoothsa_jax.config.load import split_command_line
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.scores import title_of


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

    A run whose first stage has a row but no folder here has it trained again, before itself.

    Args:
        runs: first stages before the runs that need them.
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
    lacking = [run for run in runs if again or key_of(run.key) not in done]
    missing = _with_first_stages(lacking, runs)
    say(f"{len(runs) - len(lacking)} of {len(runs)} runs have a row; {len(missing)} to do")
    before = collections.Counter(key_of(row) for row in rows)
    missing = [_in_own_folder(run, before[key_of(run.key)]) for run in missing]
    failures = []
    pool = ThreadPoolExecutor(jobs, initializer=_pin_thread, initargs=(_shares(jobs),))
    try:
        futures: dict[Future, Run] = {}
        for run in missing:
            sources = run.sources
            stages = [future for future, one in futures.items() if one.folder in sources]
            futures[pool.submit(_train_after, stages, train, run)] = run
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


def _with_first_stages(wanted: Sequence[Run], runs: Sequence[Run]) -> list[Run]:
    """Return the wanted of the runs, and before each the first stages that have no folder here."""
    found, sources, keys = [], set(), {key_of(run.key) for run in wanted}
    for run in reversed(runs):
        is_source = run.folder in sources and not (run.folder / "scores.json").exists()
        if key_of(run.key) in keys or is_source:
            found.append(run)
            sources.update(run.sources)
    return found[::-1]


def _train_after(stages: Sequence[Future], train: Callable[[Run], Row], run: Run) -> Row:
    # First stages began earlier, so that no thread waits for one that waits for a thread.
    wait(stages)
    return train(run)


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
    cores = own_cores()
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for job in range(jobs):
        shares.put(set(cores[job::jobs]) or set(cores))
    return shares


def _pin_thread(shares: "queue.SimpleQueue[set[int]]") -> None:
    # The thread, not the process: a child inherits it from its first instruction on.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, shares.get())


def score_missing(runs: Sequence[Run], rows_file: Path, program: MainProgram) -> None:
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
