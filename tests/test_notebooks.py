"""Notebooks: each runs in its own checkout, and all begin with the same installation."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
REPOSITORY = "https://github.com/ORG/here"
PICTURE = "<IPython.core.display.Image object>"
sys.path.insert(0, str(FOLDER))
import first_cells  # noqa: E402

import smoothsa_jax as ssa  # noqa: E402


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout that notebooks may write to, in which the package counts as installed."""
    for name in ("main.py", "smoothsa_jax", "configs", "tests", "notebooks", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    metadata = tmp_path / "smoothsa_jax-0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: smoothsa_jax\nVersion: 0\n")
    return tmp_path


def executed(name: str, checkout: Path) -> str:
    """What its cells print, after running them all."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "run_notebook.py", FOLDER / name],
        cwd=checkout,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


# ----------------------------------------------------------------------------------------- they run


@pytest.mark.slow
def test_own_video_runs(checkout):
    text = executed("own_video.ipynb", checkout)
    assert "8 frames of 60x60 pixels" in text
    assert text.count("of the first frame") == 5  # the slider's first value
    assert (checkout / "runs" / "overlay.gif").stat().st_size > 10_000


@pytest.mark.slow
def test_quickstart_runs(checkout, monkeypatch):
    # It trains: quick steps count for more than quick compiling.
    monkeypatch.delenv("XLA_FLAGS")
    text = executed("quickstart.ipynb", checkout)
    score = re.search(r"FG-ARI ([\d.]+) on the test split after 1500 steps", text)
    assert float(score[1]) > 40  # 62.4 when it was written
    assert "slots (8, 5, 48) masks (8, 60, 60)" in text
    assert text.count(PICTURE) == 1 + 4 + 2


@pytest.mark.slow
def test_compare_systems_runs(checkout):
    text = executed("compare_systems.ipynb", checkout)
    rows = re.findall(r"^(\w.*?) +([\d.]+) +([\d.]+) +([\d.]+)$", text, flags=re.MULTILINE)
    scores = {name: tuple(map(float, values)) for name, *values in rows}
    assert scores.keys() > {model.name for model in ssa.list_models(published=False)}
    assert len(scores) >= 5
    assert min(scores["sprites"][0], scores["sprites_gaussian"][0]) > 60
    assert scores["k-means on RGB"][0] < 50
    assert (checkout / "runs" / "compared.png").stat().st_size > 10_000
    assert text.count(PICTURE) == 1


@pytest.mark.slow
@pytest.mark.torch
def test_from_pytorch_runs(checkout):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")
    text = executed("from_pytorch.ipynb", checkout)
    assert "masks: 100.00% of the pixels are the same" in text
    assert "arrays, the same bits" in text


# ----------------------------------------------------------------------------------- how they begin


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_has_the_shared_cells_and_no_outputs(name):
    path = FOLDER / name
    text = path.read_text()
    assert text == first_cells.text_of(path), "run python notebooks/first_cells.py"
    published = bool(first_cells.REPOSITORY)
    assert (f"/blob/main/notebooks/{name}" in text) == ("clone" in text) == published


def test_an_address_gives_a_badge_and_a_clone():
    assert f"/github/ORG/here/blob/main/notebooks/{NOTEBOOKS[0]}" in first_cells.badge_of(
        NOTEBOOKS[0], REPOSITORY
    )
    assert f'"{REPOSITORY}"' in first_cells.install_of(REPOSITORY)


class Killed(Exception):
    pass


def run_install(
    monkeypatch,
    folder: Path,
    *,
    found: str = "",
    loaded: bool = False,
    repository: str = REPOSITORY,
) -> list[list]:
    """What the cell installs on a machine without the package; `found`: its program or device."""
    asked = []

    def fake_run(command, check):
        asked.append([str(word) for word in command])
        if "clone" in command:
            (command[-1] / "smoothsa_jax").mkdir(parents=True)
            (command[-1] / "main.py").touch()

    def fake_kill(process, number):
        assert (process, number) == (os.getpid(), 9)
        raise Killed

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(subprocess, "run", fake_run)
    monkeypatch.setattr(os, "kill", fake_kill)
    monkeypatch.setattr(shutil, "which", lambda name: name if name == found else None)
    monkeypatch.setattr(
        "glob.glob", lambda name: [name] if found and name.startswith(found) else []
    )
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: iter(()))
    modules = {name: module for name, module in sys.modules.items() if name != "jax"}
    monkeypatch.setattr(sys, "modules", modules | ({"jax": None} if loaded else {}))
    exec(compile(first_cells.install_of(repository), "install", "exec"), {})
    return asked


@pytest.mark.parametrize(
    "found, extras",
    [("", "notebooks"), ("nvidia-smi", "notebooks,cuda12"), ("/dev/accel", "notebooks,tpu")],
)
def test_the_installation_takes_the_right_jax(monkeypatch, tmp_path, found, extras):
    clone, install = run_install(monkeypatch, tmp_path, found=found)
    folder = tmp_path / "smoothsa_jax_checkout"
    assert clone == ["git", "clone", "--depth=1", REPOSITORY, str(folder)]
    assert install == [sys.executable, "-m", "pip", "install", "-q", f".[{extras}]"]
    assert Path.cwd() == folder


def test_the_installation_starts_the_runtime_again_where_jax_was_imported(monkeypatch, tmp_path):
    with pytest.raises(Killed):
        run_install(monkeypatch, tmp_path, loaded=True)


def test_in_a_checkout_nothing_is_cloned(monkeypatch, checkout):
    (checkout / "deeper").mkdir()
    for repository in ("", REPOSITORY):
        (install,) = run_install(monkeypatch, checkout / "deeper", repository=repository)
        assert "pip" in install and Path.cwd() == checkout


def test_without_an_address_a_checkout_is_needed(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="Start Jupyter in a checkout"):
        run_install(monkeypatch, tmp_path, repository="")
