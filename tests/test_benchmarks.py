"""The scripts in benchmarks/: the arena's rows and table, and the timing of a step."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import CONFIG, IMAGE, ROOT

from smoothsa_jax.errors import UserError
from smoothsa_jax.tasks.checks import check as check_config


def load(name: str):
    spec = importlib.util.spec_from_file_location(
        f"benchmark_{name}", ROOT / f"benchmarks/{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


arena, against_peer, check = load("arena"), load("against_peer"), load("check")
arena_rows = load("arena_rows")
TINY = [str(CONFIG)]
STEPS = [("config.train.num_steps", "7")]


def row(ablation: str, seed: int, fg_ari: float | None, **other) -> dict:
    return {
        "system": "smoothsa",
        "data": "sprites",
        "words": "",
        "ablation": ablation,
        "overrides": {},
        "seed": seed,
        "steps": 1500,
        "seconds": 100.0,
        "scores": {"fg_ari": fg_ari, "ari": 0.5, "mbo": 0.25, "miou": 0.125},
        "parameters": {"trained": 3, "frozen": 2},
        "memory": 10,
        "device": "cpu",
        "revision": "abc",
        "date": "2030-01-01",
        "title": "SmoothSA",
        **other,
    }


def cells(page: str, ablation: str) -> list[str]:
    rows = (line.strip("|").split("|") for line in page.splitlines() if line.startswith("| "))
    return next([cell.strip() for cell in row] for row in rows if row[2].strip() == ablation)


def test_the_table_gives_mean_spread_and_each_seed():
    rows = [
        row("full", s, v, seconds=t) for s, v, t in ((2, 0.8, 90), (0, 0.6, 110), (1, 0.7, 130))
    ]
    rows += [row("1/1", s, v) for s, v in ((0, 0.65), (1, 0.5), (2, 0.1))]
    rows.append(row("1/1", 2, 0.5))  # trained again: the newest counts
    page = arena.table(rows)
    assert cells(page, "full") == [
        *("SmoothSA", "sprites", "full", "none", "1500", "3"),
        *("70.0 ± 10.0", "50.0 ± 0.0", "25.0 ± 0.0", "12.5 ± 0.0"),
        *("0: 60.0, 1: 70.0, 2: 80.0", "110"),
    ]
    assert cells(page, "1/1")[6] == "55.0 ± 8.7"  # of 65, 50, 50: square root of 225 / 3
    assert (
        "1/1: mean FG-ARI 15.0 points below full over the 3 seeds that both have; "
        "below full with 2 of 3." in page
    )
    assert "Not complete" not in page


def test_the_table_keeps_apart_what_differs():
    rows = [
        row("full", 0, 0.5),
        row("full", 0, 0.6, words="gaussian"),
        row("full", 0, 0.7, steps=3000),
        row("full", 0, 0.8, overrides={"model.encoder.patch": 5}),
        row("full", 0, 0.9, system="spot", title="SPOT"),
        row("full", 0, None, data="coco", scores={"top1": 0.25}),
    ]
    page = arena.table(rows)
    lines = [line for line in page.splitlines() if line.startswith(("| SmoothSA", "| SPOT"))]
    assert len(lines) == 6
    assert "| sprites:gaussian |" in lines[1] and "| `model.encoder.patch=5` |" in lines[3]
    assert "| top-1 |" in page.splitlines()[0] and "| 25.0 |" in lines[5]


def test_the_table_tells_plain_scores_apart():
    plain = {"fg_ari": 0.5, "ari": 0.25, "mbo": 0.25, "miou": 0.25}
    pruned = {**plain, "fg_ari": 0.75, "slots": 4.25}
    rows = [row("full", 0, None, scores={**pruned, "plain": plain}), row("1/1", 0, 0.6)]
    page = arena.table(rows)
    assert cells(page, "full")[6:11] == ["75.0", "25.0", "25.0", "25.0", "4.25"]
    assert cells(page, "full, plain")[6:12] == ["50.0", "25.0", "25.0", "25.0", "-", "0: 50.0"]
    assert "1/1, plain" not in page and "\nPlain: with as many slots as in training" in page
    assert "mean FG-ARI 15.0 points below full" in page


def test_a_partial_table_says_what_is_missing():
    rows = [row("full", 0, 0.5), row("full", 1, 0.7), row("3/3", 1, 0.9), row("no warmer", 0, None)]
    page = arena.table(rows)
    assert cells(page, "3/3")[5:7] == ["1", "90.0"]  # one seed has no spread
    assert cells(page, "no warmer")[6] == "-"
    # Compared with the same seed of `full`, not with its mean.
    assert "3/3: mean FG-ARI 20.0 points above full over the 1 seed that both have" in page
    assert "Not complete: smoothsa on sprites, 3/3, has 1 of 2 seeds." in page
    assert "No run has finished yet" in arena.table([])


OF_DIAS = [name for name in arena.ABLATIONS if "distillation" in name or "pruning" in name]
OF_INVERTED = [name for name in arena.ABLATIONS if name.endswith("iterations")]
OF_SMOOTHSA = [name for name in arena.ABLATIONS if name not in (*OF_DIAS, *OF_INVERTED)]


def test_the_ideas_of_dias_can_be_left_out(tmp_path):
    plain = [("config.mesh.data", "1")]
    runs = arena.plan(["dias"], ["sprites:image"], ["full", *OF_DIAS], [0], plain, tmp_path)
    assert len(OF_DIAS) == 3
    has = {
        run.key["ablation"]: (
            "attention_distillation" in run.config.losses,
            "pruning" in run.config.model,
        )
        for run in runs
    }
    assert has["full"] == (True, True)
    assert sorted(has[name] for name in OF_DIAS) == [(False, False), (False, True), (True, False)]
    for run in runs:
        check_config(run.config)


def test_transformers_and_slot_attention_take_more_iterations(tmp_path):
    systems, ablations = ["inverted", "inverted,sa"], ["full", *OF_INVERTED]
    runs = arena.plan(systems, ["sprites:image"], ablations, [0], STEPS, tmp_path)
    found = [run.config.model.aggregator for run in runs]
    assert [(x.first, x.later) for x in found] == 2 * [(n, None) for n in (3, 4, 6, 8)]
    assert [x.name for x in found] == 4 * ["inverted_transformer"] + 4 * ["slot_attention"]


def test_every_ablation_trains_what_its_name_says(tmp_path):
    runs = arena.plan(["smoothsa"], TINY, OF_SMOOTHSA, [0, 1], STEPS, tmp_path)
    assert len(runs) == 12 and len({run.folder for run in runs}) == 12
    assert [run.key["seed"] for run in runs] == [0] * 6 + [1] * 6
    assert [run.config.seed for run in runs] == [0] * 6 + [1] * 6
    configs = {run.key["ablation"]: run.config for run in runs[:6]}
    model = {ablation: config.model for ablation, config in configs.items()}
    assert all(config.train.num_steps == 7 for config in configs.values())
    assert all(run.key["steps"] == 7 and run.key["overrides"] == {} for run in runs)
    assert model["no warmer"].initializer.name == "boxes"
    assert "distillation" not in configs["no warmer"].losses
    assert (model["3/3"].aggregator.first, model["3/3"].aggregator.later) == (3, 3)
    assert (model["1/1"].aggregator.first, model["1/1"].aggregator.later) == (1, 1)
    both = model["no warmer, 3/3"]
    assert (both.initializer.name, both.aggregator.later) == ("boxes", 3)
    assert "slot_contrast" not in configs["no slot contrast"].losses
    for ablation in ("full", "3/3", "1/1"):
        assert model[ablation].initializer.name == "warmed"
        assert configs[ablation].losses.slot_contrast.weight > 0


def test_every_ablation_of_the_default_config_can_run(tmp_path):
    """An ablation gives a config that passes every check."""
    from smoothsa_jax.tasks.checks import check as check_config

    for run in arena.plan(
        ["smoothsa"], ["sprites"], OF_SMOOTHSA, [0], [("config.mesh.data", "1")], tmp_path
    ):
        check_config(run.config)


def test_an_ablation_that_changes_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="'no slot contrast' changes nothing"):
        ablations = ["full", "no slot contrast"]
        arena.plan(["smoothsa"], [str(IMAGE)], ablations, [0], STEPS, tmp_path)


def test_a_companion_that_is_left_out_needs_no_earlier_run(tmp_path):
    """Tokenizers have LPIPS as a companion, which is not there without a weight."""
    systems = ["slotdiffusion,tokenizer", "slotdiffusion"]
    first, second = arena.plan(systems, ["sprites:image"], ["full"], [0], [], tmp_path)
    assert first.config.companions.perceptual.source is None
    assert second.config.companions.tokenizer.source == str(first.folder)


def test_words_and_settings_make_a_run(tmp_path):
    overrides = [*STEPS, ("config.model.encoder.patch", "5")]
    data = ["sprites:gaussian", "sprites"]
    gaussian, boxes = arena.plan(["smoothsa"], data, ["full"], [3], overrides, tmp_path)
    assert gaussian.key == {
        "system": "smoothsa",
        "data": "sprites",
        "words": "gaussian",
        "ablation": "full",
        "overrides": {"model.encoder.patch": 5},
        "seed": 3,
        "steps": 7,
    }
    assert not gaussian.config.data.boxes and boxes.config.data.boxes
    assert arena.key_of(boxes.key) != arena.key_of(gaussian.key)
    with pytest.raises(UserError, match="no word 'nosystem' fits here"):
        arena.plan(["nosystem"], data, ["full"], [0], STEPS, tmp_path)
    for wrong in ("--config=configs/sprites.py", "--config.seed=1", "--jobs=0"):
        with pytest.raises(UserError, match=wrong.split("=")[0]):
            arena.main([wrong])


def test_finished_runs_are_skipped_and_failed_ones_tried_again(tmp_path):
    rows_file, asked, broken = tmp_path / "rows.jsonl", [], {"smoothsa on run_config, seed 1"}

    def train(run):
        asked.append(run.name)
        if run.name in broken:
            raise arena.RunFailed("no luck")
        return {**row("full", 0, 0.5), **run.key}

    def planned(overrides):
        return arena.plan(["smoothsa"], TINY, ["full", "3/3"], [0, 1], overrides, tmp_path)

    runs, quiet = planned(STEPS), {"say": lambda text: None}
    failures = arena.run_missing(runs, rows_file, train, **quiet)
    assert failures == ["smoothsa on run_config, seed 1: no luck"]
    names = [
        f"smoothsa {ablation}on run_config, seed {seed}"
        for seed in (0, 1)
        for ablation in ("", "(3/3) ")
    ]
    assert asked == names

    # As after a kill while the last row was written.
    lines = rows_file.read_text().splitlines(keepends=True)
    rows_file.write_text("".join(lines[:-1]) + lines[-1][:20])
    asked.clear(), broken.clear()
    assert arena.run_missing(runs, rows_file, train, jobs=2, **quiet) == []
    assert sorted(asked) == sorted(names[2:])
    assert len(arena.read_rows(rows_file)) == 4

    asked.clear()
    arena.run_missing(runs, rows_file, train, **quiet)
    assert asked == []

    # Another setting is another run; one file has rows of both.
    arena.run_missing(
        planned([*STEPS, ("config.train.batch_size", "4")]), rows_file, train, **quiet
    )
    assert len(asked) == 4 and len(arena.read_rows(rows_file)) == 8


def test_again_trains_in_another_folder(tmp_path):
    rows_file, folders = tmp_path / "rows.jsonl", []

    def train(run):
        folders.append(run.folder)
        run.folder.mkdir()
        (run.folder / "scores.json").touch()
        return {**row("full", 0, 0.5), **run.key}

    runs = arena.plan(["smoothsa"], TINY, ["full"], [0], STEPS, tmp_path)
    for _ in range(3):
        arena.run_missing(runs, rows_file, train, again=True, say=lambda text: None)
    assert len(set(folders)) == len(arena.read_rows(rows_file)) == 3
    # Rows may come without folders, from elsewhere; a second stage looks for the plain one.
    shutil.rmtree(runs[0].folder)
    arena.run_missing(runs, rows_file, train, again=True, say=lambda text: None)
    assert folders[3] == folders[0] == runs[0].folder


def test_a_plan_trains_again_what_has_no_curve(tmp_path):
    rows_file, asked = tmp_path / "rows.jsonl", []

    def train(run):
        asked.append(run.key["seed"])
        return {**row("full", 0, 0.5), **run.key, "curve": []}

    runs = arena.plan(["smoothsa"], TINY, ["full"], [0, 1], STEPS, tmp_path)
    arena.append_row(rows_file, {**row("full", 0, 0.5), **runs[0].key})
    arena.append_row(rows_file, {**row("full", 0, 0.5), **runs[1].key, "curve": []})
    for expected in ([0], [0]):
        with_curve = {"counts_as_done": lambda row: "curve" in row, "say": lambda text: None}
        arena.run_missing(runs, rows_file, train, **with_curve)
        assert asked == expected
    arena.run_missing(runs, rows_file, train, say=lambda text: None)
    assert asked == [0]


def test_a_first_stage_without_a_folder_is_trained_before_the_second(tmp_path):
    """Rows may come from another machine; what they were trained in does not."""
    rows_file, asked = tmp_path / "rows.jsonl", []

    def train(run):
        if not run.sources:
            time.sleep(0.2)  # the second stage has a thread already
        assert all((folder / "scores.json").exists() for folder in run.sources)
        asked.append(run.folder)
        run.folder.mkdir()
        (run.folder / "scores.json").touch()
        return {**row("full", 0, 0.5), **run.key}

    what = ["slate,tokenizer", "slate"], ["sprites:image"], ["full"], [0]
    first, second = arena.plan(*what, [], tmp_path)
    assert second.sources == [first.folder]
    arena.append_row(rows_file, {**row("full", 0, 0.5), **first.key})
    quiet = {"jobs": 2, "say": lambda text: None}
    for _ in range(2):  # nothing is left to do the second time
        assert arena.run_missing([first, second], rows_file, train, **quiet) == []
        assert asked == [first.folder, second.folder]
    # With its folder here, the first stage is not trained again.
    shutil.rmtree(second.folder)
    rows_file.write_text("".join(rows_file.read_text().splitlines(keepends=True)[:2]))
    assert arena.run_missing([first, second], rows_file, train, **quiet) == []
    assert asked == [first.folder, second.folder, second.folder]


def test_a_plan_without_the_asked_seeds_is_refused():
    with pytest.raises(UserError, match="no run of these --seeds; expected some of 0, 1, 2"):
        arena.main(["--plan", "--seeds=7"])


@pytest.mark.slow
def test_all_planned_runs_can_run(tmp_path):
    runs = arena.all_planned([0], [("config.mesh.data", "1")], tmp_path)
    keys = [arena.key_of(run.key) for run in runs]
    assert len(set(keys)) == len(keys) and all(run.key["seed"] == 0 for run in runs)
    folders = [run.folder for run in runs]
    for number, run in enumerate(runs):
        for companion in (x for x in run.config.companions.values() if x.source):
            assert Path(companion.source) in folders[:number], run.name  # its first stage is before
        if not run.config.companions:
            check_config(run.config)


def test_where_processes_are_not_pinned_all_cores_are_shared_out(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    shares = arena._shares(2)
    assert [shares.get(), shares.get()] == [{0, 2, 4}, {1, 3}]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no processes")
def test_parallel_runs_have_their_own_cores(tmp_path):
    mine = os.sched_getaffinity(0)
    if len(mine) < 2:
        pytest.skip("one core cannot be shared out")
    seen = {}

    def train(run):
        code = "import os, time; time.sleep(0.5); print(sorted(os.sched_getaffinity(0)))"
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        seen[run.name] = set(json.loads(out.stdout))
        return {**row("full", 0, 0.5), **run.key}

    runs = arena.plan(["smoothsa"], TINY, ["full"], [0, 1], STEPS, tmp_path)
    arena.run_missing(runs, tmp_path / "rows.jsonl", train, jobs=2, say=lambda text: None)
    first, second = seen.values()
    assert first and second and not first & second and first | second == mine
    assert os.sched_getaffinity(0) == mine


def test_the_time_of_training_leaves_out_pauses():
    log = [
        {"step": 1},
        {"step": 11, "steps_per_second": 2.0},  # 10 steps in 5 s
        {"step": 12, "validation/ari": 0.1},
        {"step": 22, "steps_per_second": 1.0},  # 10 steps in 10 s
    ]
    assert arena_rows.training_seconds(log) == pytest.approx(15 * 22 / 20)
    assert arena_rows.training_seconds([{"step": 1}]) is None


def test_a_curve_has_times_without_scoring():
    log = [
        {"step": 1},
        {"step": 5, "steps_per_second": 2.0, "validation/fg_ari": 0.25, "validation/slots": 4.0},
        {"step": 9, "steps_per_second": 1.0},
        {"step": 10, "steps_per_second": 1.0, "validation/fg_ari": 0.123456},
    ]
    mean = (4 / 2 + 4 + 1) / 9
    first, second = arena_rows.curve_of(log)
    assert first == {"step": 5, "seconds": round(mean + 2, 3), "scores": {"fg_ari": 0.25}}
    assert second["step"] == 10 and second["scores"] == {"fg_ari": 0.1235}
    assert second["seconds"] == arena_rows.training_seconds(log) == round(mean + 7, 3)
    assert arena_rows.curve_of([{"step": 1}]) == []


def test_a_curve_is_asked_for_without_another_key(tmp_path):
    def planned(*overrides, system="smoothsa", data="sprites:image"):
        (run,) = arena.plan([system], [data], ["full"], [0], [*STEPS, *overrides], tmp_path)
        check_config(run.config)
        return run

    plain = [("config.mesh.data", "1")]
    run = planned(*plain, ("config.train.num_steps", "4000"))
    assert run.key["overrides"] == {"mesh.data": 1} and run.config.checkpoint.every == 500
    assert (run.config.checkpoint.best_metric, run.config.checkpoint.best_mode) == ("fg_ari", "max")
    assert run.config.eval.count_segments and run.config.eval.validation_samples == 64
    # The best checkpoint depends on which there are; so a run that scores it keeps its own.
    best = planned(*plain, ("config.eval.checkpoint", "best"))
    assert (best.config.checkpoint.best_metric, best.config.checkpoint.every) == ("loss", 1000)
    asked = planned(*plain, ("config.checkpoint.every", "3"))
    assert asked.config.checkpoint.every == 3 and asked.config.eval.validation_samples == 16
    tokens = planned(*plain, system="slate,tokenizer")
    assert tokens.config.checkpoint.best_metric == "psnr" and not tokens.config.eval.count_segments


def test_segments_fit_into_a_row():
    clips = [np.arange(3 * 4 * 5).reshape(3, 4, 5) % 7, np.ones((3, 4, 5), int)]
    found = arena_rows.unpacked(json.loads(json.dumps(arena_rows.packed(clips))))
    np.testing.assert_array_equal(found, np.stack([clip[[0, -1]] for clip in clips]))
    assert arena_rows.unpacked(arena_rows.packed([clip[:1] for clip in clips])).shape == (
        2,
        1,
        4,
        5,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "data", "names"),
    [
        ("smoothsa", "sprites:image", {"plain"}),
        ("slotcontrast", "sprites:gaussian", {"pruned"}),
        ("boqsa", "sprites:image", {"pruned"}),
        ("smoothsa", "sprites", set()),  # a box for each slot
        ("slate,tokenizer", "sprites:image", set()),
    ],
)
def test_runs_are_scored_plain_and_pruned(system, data, names, tmp_path):
    (run,) = arena.plan([system], [data], ["full"], [0], (), tmp_path)
    assert set(arena.scored_again(run.config)) == names


@pytest.mark.more
def test_the_arena_trains_with_main_and_writes_its_row(tmp_path, compilation_cache, capsys):
    rows_file, folder = tmp_path / "rows.jsonl", tmp_path / "runs"
    arguments = [
        *("--data", IMAGE, "--seeds=3", f"--rows={rows_file}", f"--workdir={folder}"),
        *("--config.train.num_steps=4", "--config.log.every=1", "--config.eval.match_paper=True"),
        "--config.eval.prune=0.5",
    ]
    assert arena.main([*arguments, "--time-limit=0"]) == 0
    assert "not begun within the time limit" in capsys.readouterr().out and not rows_file.exists()
    assert arena.main(arguments) == 0
    (run,) = folder.iterdir()
    scores = json.loads((run / "scores.json").read_text())
    (found,) = arena.read_rows(rows_file)
    pruned, plain = found["scores"], found["scores"]["plain"]
    assert plain.keys() == {"ari", "fg_ari", "mbo", "miou", "segments_found", "count_error"}
    assert pruned.keys() > {*plain, "match_paper", "slots"}
    in_copy = json.loads((run / "plain" / "scores.json").read_text())
    assert plain["fg_ari"] == in_copy["metrics"]["fg_ari"]["mean"] != pruned["fg_ari"]
    assert found["scores"]["fg_ari"] == scores["metrics"]["fg_ari"]["mean"]
    paper = scores["match_paper"]["metrics"]["fg_ari"]["mean"]
    assert found["scores"]["match_paper"]["fg_ari"] == paper
    assert found["baselines"] == scores["baselines"]
    assert [point["step"] for point in found["curve"]] == [2, 4]
    assert all({"fg_ari", "count_error"} <= point["scores"].keys() for point in found["curve"])
    clips = found["clips"]
    for own, means in ((clips, pruned), (clips["plain"], plain)):
        defined = [x for x in own["fg_ari"] if x is not None]
        assert np.mean(defined) == pytest.approx(means["fg_ari"], abs=1e-4)
    key = (found["system"], found["data"], found["words"], found["seed"], found["steps"])
    assert key == ("smoothsa", "run_config", "image", 3, 4)
    assert found["overrides"] == {
        "eval.match_paper": True,
        "eval.prune": 0.5,
    }  # every step is logged already
    assert found["seconds"] > 0 and found["title"] == "SmoothSA" and found["device"] == "cpu"
    assert found["parameters"]["trained"] > found["parameters"]["frozen"] > 0
    assert found["memory"] > 4 * 4 * found["parameters"]["trained"]  # state, moments, gradients
    stored = json.loads((run / "config.json").read_text())
    assert stored["seed"] == 3 and stored["train"]["num_steps"] == 4

    capsys.readouterr()
    assert arena.main([*arguments, "--list"]) == 0
    assert capsys.readouterr().out == arena.table([found])
    assert arena.main(arguments) == 0
    assert "1 of 1 runs have a row" in capsys.readouterr().out

    del (before := json.loads(rows_file.read_text()))["scores"]["plain"], before["clips"]["plain"]
    rows_file.write_text(json.dumps(before) + "\n")
    for _ in range(2):  # the second time, nothing is lacking
        assert arena.main([*arguments, "--rescore"]) == 0
        assert arena.read_rows(rows_file) == [before, found]


@pytest.mark.slow
def test_a_failed_run_tells_why(tmp_path):
    (run,) = arena.plan(["smoothsa"], [str(IMAGE)], ["full"], [0], [], tmp_path)
    run.folder.mkdir()
    (run.folder / "checkpoints").write_text("a file where a folder should be")
    quiet = {"say": lambda text: None}
    program = arena.MainProgram(**quiet)
    failures = arena.run_missing([run], tmp_path / "rows.jsonl", program, **quiet)
    assert len(failures) == 1 and "status 2: error: " in failures[0]
    assert arena.read_rows(tmp_path / "rows.jsonl") == []


def test_recorded_rows_are_whole():
    for found in arena.read_rows(arena.ROWS_FILE):
        assert {
            *arena_rows.KEY,
            "seconds",
            "scores",
            "parameters",
            "memory",
            "revision",
        } <= found.keys()
        assert {"device", "title"} <= found.keys()
        if "curve" in found:
            assert {"steps_per_second", "clips", "folder"} <= found.keys()
            assert all(point.keys() == {"step", "seconds", "scores"} for point in found["curve"])


@pytest.mark.slow
def test_the_training_step_is_timed(capsys):
    train_step = load("train_step")
    train_step.PEAK_SIZE["cpu"] = 256
    assert train_step.main([f"--config={IMAGE}", "--steps=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    parts = found["parts"]
    assert len(parts) == 5 and all(part["seconds"] > 0 for part in parts.values())
    # A gradient costs more than the forward parts it contains; a step more than its gradient.
    forward = parts["aggregator, forward"]["flop"] + parts["decoder, forward"]["flop"]
    assert 0 < forward < parts["loss and gradient"]["flop"] < found["flop"]
    assert found["compile_seconds"] > 0 and found["peak_flop_per_second"] > 1e8
    text = train_step.report(found)
    assert found["machine"] in text and "jax" in text and "steps/s" in text
    assert found["memory"] > 0 and f"{found['memory'] / 1e9:.2f} GB" in text
    assert train_step.main([f"--config={IMAGE}", "--steps=1", "--json", "--whole"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["parts"] == {} and whole["memory"] == found["memory"]


@pytest.mark.slow
def test_the_training_step_of_a_second_stage_is_timed(capsys):
    """Its companion has untrained values; a run is not opened for it."""
    train_step = load("train_step")
    train_step.PEAK_SIZE["cpu"] = 256
    spec = "--config=configs/sprites.py:image,slate"
    assert train_step.main([f"{spec},smoke", "--steps=1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["parts"]) == 5
    with pytest.raises(UserError, match="weights of companions.tokenizer"):
        train_step.main([spec, "--steps=1"])


def test_sizes_of_batches_are_numbers():
    with pytest.raises(SystemExit, match="2"):
        load("predict").main(["--batches=many"])


def test_flop_of_a_loop_count_every_round():
    train_step = load("train_step")
    jax, jnp = train_step.jax, train_step.jnp

    @jax.jit
    def ten_products(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, None, length=10)[0]

    x = jnp.ones((32, 32))
    counted = train_step.count_flop(ten_products, x)
    assert counted == pytest.approx(10 * 2 * 32**3, rel=0.01)


def test_the_input_pipeline_is_timed_beside_the_authors(capsys):
    pytest.importorskip("lmdb", reason="the test extra brings lmdb")
    pipeline = load("input_pipeline")
    small = ["--clips=8", "--rounds=1", "--size=32", "--length=12"]
    assert pipeline.main([*small, "--frames=uncompressed", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"ours", "authors 2026"} <= found["milliseconds"].keys()
    for stages in found["milliseconds"].values():
        assert list(stages) == ["read", "decode", "augment", "batch"]
        assert stages["read"] > 0 and sum(stages.values()) > stages["read"]
    assert 32 * 32 * 4 / 1000 < found["kilobytes_per_frame"]
    text = pipeline.report(found)
    assert "ours against authors 2026" in text and "150 clips/s take" in text
    with pytest.raises(UserError, match="--clips is 3; expected a multiple of 8"):
        pipeline.main(["--clips=3"])


def test_the_pictures_of_the_authors_way_are_the_same():
    """The authors' way really decodes the frames and finds the boxes."""
    pytest.importorskip("lmdb", reason="the test extra brings lmdb")
    pipeline = load("input_pipeline")
    labels = np.zeros((1, 8, 10), np.uint8)
    labels[0, 2:5, 3:9] = 1
    masks = labels[..., None] == np.arange(1, 3)
    expected = [[[3 / 10, 2 / 8, 8 / 10, 4 / 8], [0, 0, 0, 0]]]
    np.testing.assert_allclose(pipeline._boxes(masks), expected, rtol=1e-6)
    if pipeline._can_write_avi():
        video = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
        np.testing.assert_array_equal(pipeline._frames_of(pipeline._avi(video)), video)
        np.testing.assert_array_equal(
            pipeline._frames_of(pipeline._avi(video[..., 0])), video[..., 0]
        )


def run_of(device: str = "cpu", **ratios: float) -> dict:
    """A run as against_peer.py writes it: `case` -> ratio to the eager peer."""
    return {
        "device": device,
        "rows": [{"case": case, "ratios": {"eager": ratio}} for case, ratio in ratios.items()],
    }


@pytest.mark.parametrize(
    ("train", "told"), [(1.84, "-8%"), (1.75, "-12%  train beside eager  slower")]
)
def test_what_got_slower_is_named(tmp_path, capsys, train, told):
    for name, run in (
        ("recorded", run_of(train=2.0, image=1.0, clip=3.0)),
        ("new", run_of(train=train, image=1.2, other=1.0)),
    ):
        (tmp_path / name).write_text(json.dumps(run))
    arguments = [str(tmp_path / "new"), f"--recorded={tmp_path / 'recorded'}"]
    slower = "slower" in told
    assert check.main([*arguments, "--partial"]) == int(slower)
    out = capsys.readouterr().out
    assert told in out and "+20%  image beside eager\n" in out
    assert out.count("slower") == slower
    assert out.endswith("not measured anew: clip beside eager\n") and "other" not in out
    assert check.main(arguments) == (1 if slower else 2)  # a missing case is a failure


@pytest.mark.parametrize(
    ("new", "told"),
    [
        ("{", "holds no run of benchmarks/against_peer.py"),
        ("[]", "holds no run of benchmarks/against_peer.py"),
        (json.dumps(run_of("H200", train=2.0)), "of H200, the recorded one of cpu"),
        (json.dumps(run_of(other=2.0)), "found other beside eager, expected some of train"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_runs_that_cannot_be_compared(tmp_path, capsys, new, told):
    (tmp_path / "recorded").write_text(json.dumps(run_of(train=2.0)))
    if new is not None:
        (tmp_path / "new").write_text(new)
    arguments = [str(tmp_path / "new"), f"--recorded={tmp_path / 'recorded'}"]
    assert check.main(arguments) == 2
    err = capsys.readouterr().err
    assert told in err and err.startswith("error: ") and err.count("\n") == 1


def test_the_recorded_run_is_what_the_script_measures():
    """Otherwise the two would have no case in common."""
    recorded = json.loads((check.RECORDED / "cpu.json").read_text())
    names = [row["case"] for row in recorded["rows"]]
    cases = [f"{name}@{case.cpu_batch}" for name, case in against_peer.CASES.items()]
    assert names and set(names) <= set(cases)


def test_each_side_of_a_case_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BENCHMARK_TABLE", str(tmp_path / "table"))
    side = {"peak_bytes": 2e6, "p99_seconds": 9.0, "each": False}
    row = {
        "what": "training step",
        "batch": 8,
        "frames": 6,
        "flop": 2e9,
        "sides": {
            "ours": {**side, "median_seconds": 0.5, "program_bytes": 1e6},
            "eager": {**side, "median_seconds": 1.0, "each": True},
        },
        "ratios": {"eager": 2.125},
        "failed": {"compiled": "no luck"},
    }
    against_peer.tell(row, peak=1e10)
    expected = [
        "| training step, 8 x 6: ours | 500 ms | 2 (1) MB, 40% of the peak |",
        "| training step, 8 x 6: eager | 1000 ms | 2.12 times as long as ours, p99 9000 ms, 2 MB |",
        "| training step, 8 x 6: compiled | failed | no luck |",
    ]
    assert (tmp_path / "table").read_text().splitlines() == expected
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_turns_beside_each_other_are_compared():
    found = against_peer.ratios({"eager": {"turns": [2.0, 20.0, 3.0]}})
    assert found == {}  # nothing to compare with
    ours, eager = {"turns": [1.0, 10.0, 1.0]}, {"turns": [2.0, 20.0, 3.0]}
    assert against_peer.ratios({"ours": ours, "eager": eager}) == {"eager": 2.0}
    assert against_peer.peak_of("NVIDIA H100 PCIe") < against_peer.peak_of("NVIDIA H100 80GB HBM3")
    assert against_peer.peak_of("another") is None


@pytest.mark.parametrize(
    ("asked", "torch", "jax", "found"),
    [
        ("auto", "cpu", "cpu", "cpu"),
        ("auto", "gpu", "gpu", "gpu"),
        ("cpu", "gpu", "gpu", "cpu"),
        ("gpu", "cpu", "gpu", "PyTorch sees no GPU"),
        ("gpu", "gpu", "cpu", "PyTorch computes on a GPU and JAX on cpu"),
        ("auto", "gpu", "no device", "JAX on no device"),
    ],
)
def test_both_sides_are_measured_on_the_same_kind_of_device(monkeypatch, asked, torch, jax, found):
    devices = {against_peer.TORCH_DEVICE: torch, against_peer.JAX_DEVICE: jax}
    monkeypatch.setattr(against_peer, "run_python", devices.get)
    if found in ("cpu", "gpu"):
        assert against_peer.find_device(asked, ["ours", "eager"]) == found
    else:
        with pytest.raises(UserError, match=found):
            against_peer.find_device(asked, ["ours", "eager"])
        if torch == "gpu":
            assert against_peer.find_device(asked, ["eager"]) == "gpu"


@pytest.mark.slow
def test_the_process_that_compares_starts_no_device():
    """It would take the memory of a GPU from those that are measured."""
    script = ROOT / "benchmarks" / "against_peer.py"
    environment = {**os.environ, "JAX_PLATFORMS": "none"}  # a device that cannot be started
    result = subprocess.run(
        [sys.executable, script, "--help"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0 and "--patience" in result.stdout, result.stderr
