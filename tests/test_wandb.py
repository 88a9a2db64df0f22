"""Logs in Weights & Biases: the rows of the log, one run for a workdir, one line where it fails."""

import importlib.util
import os
import subprocess
import sys
import types

import pytest
from command import IMAGE, ROOT, here
from fake_training import SCORES, use

from smoothsa_jax.training.logging import read_log


class Run(types.SimpleNamespace):
    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in of the package, with the runs that were begun."""
    module = types.ModuleType("wandb")
    module.Error = type("UsageError", (Exception,), {})
    module.Settings = lambda **given: given
    module.runs, module.refuses = [], False

    def init(**given):
        if module.refuses:
            raise module.Error("No API key configured.")
        module.runs.append(Run(given=given, rows=[], metrics=[], summary={}, finished=False))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def one_line(capfd) -> str:
    return capfd.readouterr().err.splitlines()[-1]


def test_rows_and_scores_are_sent_also_after_a_resume(wandb, monkeypatch, tmp_path):
    use(monkeypatch)
    more = ["--config.log.wandb=mine", "--config.log.every=2"]
    run = lambda: here(f"--config={IMAGE}", f"--workdir={tmp_path / 'run'}", *more)  # noqa: E731
    assert run() == 0
    training, scoring = wandb.runs
    given = training.given
    assert given["project"] == "mine" and given["dir"] == tmp_path / "run"
    assert given["config"]["log"] == {"every": 2, "wandb": "mine"}
    assert training.metrics == [("step", None), ("*", "step")]
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [row["step"] for row in training.rows] == [row["step"] for row in rows]
    for sent, row in zip(training.rows, rows, strict=True):
        assert sent["train/loss"] == row["loss"] and sent.keys() >= {"train/steps_per_second"} & {
            f"train/{name}" for name in row
        }
    means = {f"scores/{name}": entry["mean"] for name, entry in SCORES["metrics"].items()}
    assert scoring.summary == means and training.finished and scoring.finished

    assert run() == 0  # finished: it evaluates alone
    assert len(wandb.runs) == 3 and len({run.given["id"] for run in wandb.runs}) == 1
    # What is watched may change between two runs of a workdir.
    assert here(f"--config={IMAGE}", f"--workdir={tmp_path / 'run'}") == 0
    assert len(wandb.runs) == 3


def test_nobody_is_logged_in(wandb, monkeypatch, tmp_path, capfd):
    use(monkeypatch)
    wandb.refuses = True
    arguments = [f"--config={IMAGE}", f"--workdir={tmp_path / 'run'}", "--config.log.wandb=mine"]
    assert here(*arguments) == 2
    assert "(No API key configured.); run `wandb login`, set WANDB_MODE=offline, or leave" in (
        one_line(capfd)
    )


@pytest.mark.parametrize("found", ["nothing", "a folder"])
def test_the_package_is_missing(found, monkeypatch, tmp_path, capfd):
    monkeypatch.setitem(sys.modules, "wandb", None)
    expected = "the package wandb cannot be imported"
    if found == "a folder":  # as wandb writes one
        folder = types.ModuleType("wandb")
        folder.__path__ = ["/here/wandb"]
        monkeypatch.setitem(sys.modules, "wandb", folder)
        expected = "`import wandb` finds /here/wandb, which is not the package"
    arguments = [f"--config={IMAGE}", f"--workdir={tmp_path / 'run'}", "--config.log.wandb=mine"]
    assert here(*arguments) == 2
    line = one_line(capfd)
    assert expected in line and "pip install 'smoothsa_jax[wandb]', or leave --config.log" in line
    assert not (tmp_path / "run").exists()


def test_a_project_has_a_name(tmp_path, capfd):
    assert here(f"--config={IMAGE}", f"--workdir={tmp_path}", "--config.log.wandb=a/b") == 2
    assert "log.wandb is 'a/b'; expected letters" in one_line(capfd)


OFFLINE = """
import sys
from pathlib import Path
from smoothsa_jax.config.load import load_config
from smoothsa_jax.training.logging import RunLog
from smoothsa_jax.training.weights_and_biases import WandbRun, send_scores
workdir = Path(sys.argv[1])
config = load_config("sprites:smoke").copy_and_resolve_references().unlock()
config.log.wandb = "mine"
wandb = WandbRun(config, workdir)
log = RunLog(workdir, first_step=0, num_steps=2, log_every=1, wandb=wandb)
for step in (1, 2):
    log.record(step, {"loss": 0.5 * step})
log.close()
send_scores(config, workdir, {"metrics": {"fg_ari": {"mean": 0.25}}})
"""


def test_the_package_itself_works_offline(tmp_path):
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed: pip install 'smoothsa_jax[wandb]'")
    environment = os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", OFFLINE, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    run_id = (tmp_path / "wandb" / "run_id.txt").read_text()
    assert [path.name for path in files] == 2 * [f"run-{run_id}.wandb"]
    training, scoring = (path.read_bytes() for path in files)
    assert b"train/loss" in training and b"scores/fg_ari" not in training
    assert b"scores/fg_ari" in scoring and b"0.25" in scoring
    assert not done.stdout  # the command's own lines are all that is printed
