"""The wheel: its contents, and that it works outside the repository."""

import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent

# Imports every module, and records imports of PyTorch or TensorFlow.
IMPORT_ALL = """
import importlib, json, pkgutil, sys

asked = []

class Notes:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "tensorflow"):
            frame = sys._getframe(1)
            while frame and "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            asked.append(frame.f_globals.get("__name__", "") if frame else "")

sys.meta_path.insert(0, Notes())
import smoothsa_jax

names = [found.name for found in pkgutil.walk_packages(smoothsa_jax.__path__, "smoothsa_jax.")]
for name in names:
    importlib.import_module(name)
print(json.dumps({
    "file": smoothsa_jax.__file__,
    "names": names,
    "loaded": [name for name in ("torch", "tensorflow") if name in sys.modules],
    "asked": [name for name in asked if name.startswith("smoothsa_jax")],
}))
"""


def check_call(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment["JAX_PLATFORMS"] = "cpu"
    result = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder)
    check_call(*build, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def make_environment(folder: Path) -> Path:
    """An environment without any package; its Python."""
    check_call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    return folder / "bin" / "python"


def install(python: Path, *what: str | Path) -> None:
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    check_call(*pip, "install", "--quiet", *what, cwd=python.parent)


def import_all(python: Path, cwd: Path) -> dict:
    return json.loads(check_call(python, "-c", IMPORT_ALL, cwd=cwd).splitlines()[-1])


SEGMENT = """
import numpy, smoothsa_jax
found = smoothsa_jax.load("sprites_gaussian").segment(numpy.zeros((40, 60, 3), numpy.uint8))
print(found.masks.shape, found.slots.shape)
"""


def segment(python: Path, cwd: Path) -> str:
    """A bundled model's result on a picture."""
    return check_call(python, "-c", SEGMENT, cwd=cwd).splitlines()[-1]


def modules_of_the_source() -> list[str]:
    paths = [p.relative_to(ROOT).with_suffix("") for p in (ROOT / "smoothsa_jax").rglob("*.py")]
    names = {".".join(p.parts).removesuffix(".__init__") for p in paths}
    return sorted(names - {"smoothsa_jax"})


def test_the_wheel_holds_the_package_its_configs_and_data_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        fields = email.message_from_bytes(archive.read(metadata))
    tops = {name.split("/")[0] for name in names}
    assert tops == {"smoothsa_jax", metadata.split("/")[0]}
    found = {name for name in names if name.startswith("smoothsa_jax/")}
    folder = ROOT / "smoothsa_jax"
    source = {str(p.relative_to(ROOT)) for p in folder.rglob("*.py")}
    source.add("smoothsa_jax/inputs/clevrer_vocabulary.json")
    source.add("smoothsa_jax/checkpoints/published.toml")
    source |= {str(p.relative_to(ROOT)) for p in (folder / "pretrained").rglob("*") if p.is_file()}
    beside = [p for name in ("configs", "data") for p in (ROOT / name).rglob("*")]
    recipes = {p.relative_to(ROOT) for p in beside if p.suffix in (".py", ".md", ".json")}
    assert found == source | {f"smoothsa_jax/recipes/{path}" for path in recipes}
    core = [need for need in fields.get_all("Requires-Dist") if "extra ==" not in need]
    assert any(need.startswith("jax") for need in core)
    # tensorflow-datasets itself needs no TensorFlow.
    assert not {re.match(r"[\w.-]+", need)[0].lower() for need in core} & {"torch", "tensorflow"}
    assert {"test", "torch", "cuda12", "cuda13", "tpu"} <= set(fields.get_all("Provides-Extra"))


@pytest.fixture(scope="module")
def imported(wheel, tmp_path_factory) -> tuple[dict, Path]:
    """Import everything in an environment with the wheel, next to packages borrowed from here."""
    folder = tmp_path_factory.mktemp("environment")
    python = make_environment(folder / "venv")
    install(python, "--no-deps", "--no-index", wheel)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # Added after the wheel's own folder, and .pth files in it, such as this checkout's, are not
    # read.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return import_all(python, elsewhere), folder / "venv"


def test_the_installed_wheel_is_imported_from_another_folder(imported):
    found, environment = imported
    assert Path(found["file"]).is_relative_to(environment)
    assert sorted(found["names"]) == modules_of_the_source()


@pytest.mark.slow
def test_the_installed_wheel_segments_a_picture(imported):
    _, environment = imported
    assert segment(environment / "bin" / "python", environment.parent) == "(40, 60) (5, 48)"


def test_the_installed_wheel_has_the_recipes(imported):
    _, environment = imported
    program = "from smoothsa_jax.checkpoints.published import recipes; print(*recipes())"
    printed = check_call(environment / "bin" / "python", "-c", program, cwd=environment.parent)
    assert {"coco", "movi_c", "ytvis:recognition"} <= set(printed.split())


@pytest.fixture
def smoothsa(imported):
    """Run the installed command in a folder; the finished process."""
    command = imported[1] / "bin" / "smoothsa"

    def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        return subprocess.run(
            [command, *map(str, arguments)],
            cwd=cwd,
            env=environment | {"JAX_PLATFORMS": "cpu", "SMOOTHSA_JAX_CACHE": str(cwd / "cache")},
            capture_output=True,
            text=True,
        )

    return run


def test_the_command_prepares_and_checks_data(smoothsa, tmp_path):
    (tmp_path / "pictures").mkdir()
    for value in range(3):
        picture = np.full((40, 60, 3), 80 * value, np.uint8)
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{'abc'[value]}.png")
    (tmp_path / "data").mkdir()  # a folder of the same name, which must not be taken for ours
    options = ("--source=pictures", "--out=prepared/own", "--holdout=0.4", "--workers=1")
    done = smoothsa("prepare", "folder", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "smoothsa check prepared/own verifies it" in done.stdout
    assert smoothsa("check", "prepared/own", "--workers=1", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_the_command_trains_a_recipe_by_its_name(smoothsa, tmp_path):
    done = smoothsa("--config=sprites:smoke", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "runs" / "sprites_smoke" / "scores.json").read_text())
    assert 0 <= scores["metrics"]["fg_ari"]["mean"] <= 1
    assert "smoothsa --mode=evaluate --workdir=runs/sprites_smoke" in done.stdout
    assert "main.py" not in done.stdout + done.stderr
    done = smoothsa("--mode=evaluate", "--workdir=runs/sprites_smoke", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_importing_everything_needs_neither_pytorch_nor_tensorflow(imported):
    found, _ = imported
    assert found["loaded"] == [] and found["asked"] == []


@pytest.mark.slow
def test_the_wheel_brings_all_it_needs_into_an_empty_environment(wheel, tmp_path):
    """Downloads the dependencies, some 600 MB unpacked."""
    python = make_environment(tmp_path / "venv")
    install(python, wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    found = import_all(python, elsewhere)
    assert Path(found["file"]).is_relative_to(tmp_path / "venv")
    assert sorted(found["names"]) == modules_of_the_source()
    assert segment(python, elsewhere) == "(40, 60) (5, 48)"
    installed = {p.name for p in (tmp_path / "venv").glob("lib/python*/site-packages/*")}
    assert not installed & {"torch", "tensorflow"}
