"""What the shell, the system and its disks do to a command: it runs the same, or says why not."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import huggingface_hub.constants  # noqa: F401, read with a home folder
import jax
import numpy as np
import pytest
from command import IMAGE, ROOT, assert_same_run, environment, here

import smoothsa_jax
from smoothsa_jax.checkpoints import catalogue
from smoothsa_jax.devices import hosts, runtime
from smoothsa_jax.environment import PINNED
from smoothsa_jax.errors import UserError
from smoothsa_jax.files import atomic_file, expanded
from smoothsa_jax.guard import exit_status
from smoothsa_jax.interop import hub

MAIN = f"{sys.executable} {ROOT / 'main.py'}"
NO_HOME = "import pwd\ndef getpwuid(uid):\n    raise KeyError(uid)\npwd.getpwuid = getpwuid\n"


def shell(command: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """Run a command line of bash, in the environment of the tests and some more variables."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=cwd,
        env=environment(os.environ["SMOOTHSA_JAX_CACHE"])
        | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
        | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def only_line(result: subprocess.CompletedProcess) -> str:
    """The error that is all a command printed."""
    assert result.returncode == 2 and result.stdout == "", result
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.fixture
def without_home(monkeypatch):
    def unknown(uid: int):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)


# ------------------------------------------------------------------------------------ the guard


def raising(error: BaseException):
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("two\nlines"), 2, "error: two lines"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device; fix this"),
        (PermissionError(13, "Permission denied", "x"), 2, "error: x: Permission denied; fix this"),
    ],
)
def test_what_a_person_can_fix_is_one_line(capfd, error, status, line):
    assert exit_status(raising(error)) == status
    printed = capfd.readouterr().err
    assert printed.startswith(line) and printed.count("\n") == 1


def test_other_errors_keep_their_traceback():
    with pytest.raises(ValueError, match="a mistake of ours"):
        exit_status(raising(ValueError("a mistake of ours")))
    with pytest.raises(OSError, match="no reason"):  # the system did not raise this
        exit_status(raising(OSError("no reason")))


def test_imports_are_guarded(tmp_path):
    (tmp_path / "command.py").write_text("import missing_disk\ndef main(arguments): return 0\n")
    (tmp_path / "missing_disk.py").write_text("open('/nowhere/at/all')\n")
    start = "import sys; from smoothsa_jax.guard import run_module; sys.exit(run_module('command'))"
    result = shell(f'{sys.executable} -c "{start}"', PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert "error: /nowhere/at/all: No such file or directory" in only_line(result)
    (tmp_path / "missing_disk.py").write_text("raise KeyboardInterrupt\n")
    result = shell(f'{sys.executable} -c "{start}"', PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert (result.returncode, result.stderr) == (130, "stopped by Ctrl-C\n")


@pytest.mark.parametrize(
    ("redirected", "status", "expected"),
    [
        ("--help | true", 141, ""),
        ("--help >&-", 0, ""),
        ("--help >/dev/full", 2, "error: No space left on device"),
        ("--config=configs/no.py 2>&-", 2, ""),
        ("--config=configs/no.py 2>/dev/full", 2, ""),
        ("--config=configs/sprités.py", 2, "error: config file 'configs/sprit\\xe9s.py' does not"),
    ],
)
def test_streams_of_all_kinds(redirected, status, expected):
    result = shell(f"{MAIN} {redirected}", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stdout) == (status, "")
    assert result.stderr.startswith(expected) and bool(result.stderr) == bool(expected)
    assert result.stderr.count("\n") <= 1


def test_the_current_folder_is_gone(tmp_path, capfd, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert exit_status(lambda: Path("results").resolve().mkdir()) == 2
    assert capfd.readouterr().err.startswith("error: the current folder was removed; change to")


# ------------------------------------------------------------------------- variables of JAX, XLA


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TQDM_NCOLS", "junk", "tqdm refuses TQDM_NCOLS: invalid literal"),
        ("JAX_ENABLE_X64", "perhaps", "JAX refuses a variable of the environment: invalid truth"),
        ("XLA_FLAGS", "--xla_no_flag=1", "XLA refuses XLA_FLAGS=--xla_no_flag=1: Unknown flag"),
        ("XLA_FLAGS", "--xla_dump_hlo_as_text=9x", "Couldn't interpret value 9x for flag xla_dum"),
        ("JAX_PLATFORMS", "gpuu", "JAX_PLATFORMS=gpuu is set, and JAX cannot start it: Unable to"),
    ],
)
def test_a_variable_that_is_refused_is_one_line(tmp_path, name, value, expected):
    line = only_line(shell(f"{MAIN} --mode=evaluate --workdir={tmp_path}", **{name: value}))
    assert expected in line


@pytest.mark.slow
def test_a_library_whose_platform_is_not_there():
    script = "import smoothsa_jax; smoothsa_jax.load('sprites_gaussian')"
    result = shell(f'{sys.executable} -c "{script}"', JAX_PLATFORMS="nowhere")
    assert "UserError: JAX_PLATFORMS=nowhere is set" in result.stderr.splitlines()[-1]


def test_a_platform_without_devices(monkeypatch):
    """JAX logs a traceback of its plugin, and fails with an empty assertion."""
    logger = logging.getLogger("jax._src.xla_bridge")
    handled = []
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, RecordsIn(handled)])

    def devices(works: bool = False):
        try:
            raise RuntimeError("no driver")
        except RuntimeError:
            logger.exception("plugin failed")
        logger.warning("something else")
        if not works:
            raise AssertionError
        return ["device"]

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr(hosts.jax.distributed, "initialize", lambda *_, **__: None)
    for start in (
        lambda: runtime.find_devices(pytest.fail),
        lambda: hosts.connect("host:1", 2, 0, heartbeat_timeout_seconds=10),
    ):
        with pytest.raises(UserError, match="plugin failed: no driver; unset JAX_PLATFORMS"):
            start()
    said = []
    monkeypatch.setattr(jax, "devices", lambda: devices(works=True))
    assert runtime.find_devices(said.append) == ["device"]
    assert said == ["warning: plugin failed: no driver"]
    assert {record.getMessage() for record in handled} == {"something else"}


class RecordsIn(logging.Handler):
    """A handler that keeps records in a list."""

    def __init__(self, records: list[logging.LogRecord]):
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


OTHERS = {
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_DISABLE_JIT": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_RANDOM_SEED_OFFSET": "7",
    "JAX_SOFTMAX_CUSTOM_JVP": "1",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_DEBUG_KEY_REUSE": "1",
    "JAX_ERROR_CHECKING_BEHAVIOR_NAN": "raise",
    "JAX_ERROR_CHECKING_BEHAVIOR_DIVIDE": "raise",
    "JAX_ERROR_CHECKING_BEHAVIOR_OOB": "raise",
}


@pytest.mark.more
def test_a_run_does_not_depend_on_variables_of_jax(tmp_path):
    """The same numbers, whatever the shell sets, and a line about each variable."""
    assert {name.upper() for name in PINNED} == set(OTHERS)
    script = (
        "from smoothsa_jax.environment import settle; settle()\n"
        "import jax, jax.numpy as jnp\n"
        "draws = jax.random.normal(jax.random.key(3), (1000,))\n"
        "print(draws.dtype, float(jnp.square(draws).sum()), jax.nn.softmax(draws + 1)[0], draws[0])"
    )
    command = f"{sys.executable} -c '{script}'"
    plain, others = shell(command), shell(command, **OTHERS, JAX_LOG_COMPILES="0")
    assert plain.returncode == others.returncode == 0, others.stderr
    assert plain.stdout == others.stdout and plain.stdout.startswith("float32 ")
    assert plain.stderr == ""
    told = [line.partition(" is ignored: ")[0] for line in others.stderr.splitlines()]
    assert sorted(told) == sorted(f"{name}={value}" for name, value in OTHERS.items())


@pytest.mark.slow
def test_a_library_in_64_bits_finds_the_same():
    """A notebook may compute in 64 bits; models do not."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), dtype=np.uint8)

    def segment():
        model = smoothsa_jax.load("sprites_gaussian")
        return model.segment(frames, video=True, num_slots=4, seed=0)

    expected = segment()
    with jax.enable_x64(True):
        assert jax.numpy.zeros(1).dtype == np.float64
        found = segment()
    for name in ("slots", "masks", "soft_masks", "attention", "reconstruction_error"):
        array, like = getattr(found, name), getattr(expected, name)
        assert array.dtype == like.dtype != np.float64
        np.testing.assert_array_equal(array, like, err_msg=name)


# ------------------------------------------------------------------------- folders of the system


def test_nothing_needs_a_home_folder(tmp_path, without_home, monkeypatch):
    with pytest.raises(UserError, match="~/data starts with ~, and there is no home folder"):
        expanded("~/data")
    assert expanded(tmp_path) == tmp_path
    assert smoothsa_jax.list_models()
    with pytest.raises(UserError, match="SMOOTHSA_JAX_MODELS names another folder"):
        catalogue.file_of(catalogue.facts_of("smoothsa_coco"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")
    with pytest.raises(UserError, match="there is no home folder; set HF_HOME"):
        hub.fetch("facebook/dinov2-small")


@pytest.mark.slow
def test_a_command_without_a_home_folder(tmp_path):
    """As in a container that runs as any user; the cache of compiled programs is left out."""
    (tmp_path / "sitecustomize.py").write_text(NO_HOME)
    command = f"unset HOME {runtime.CACHE_VARIABLE}; {MAIN} --mode=evaluate --workdir={tmp_path}/a"
    result = shell(command, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: nothing to restore")


def test_a_cache_on_a_full_disk_keeps_what_is_whole(tmp_path, capfd):
    whole, cut = tmp_path / "whole-cache", tmp_path / "cut-cache"
    reason = "for 'jit_step': OSError: [Errno 28] No space left on device"
    with warnings.catch_warnings():
        runtime.drop_unfinished_entries(tmp_path)
        for _ in range(2):
            for file, age in ((whole, 100), (cut, 0)):
                file.touch()
                os.utime(file, times=(file.stat().st_atime, file.stat().st_mtime - age))
            warnings.warn(f"{runtime.NOT_CACHED} {reason}", stacklevel=1)
            assert whole.exists() and not cut.exists()
        warnings.warn(f"{runtime.NOT_CACHED} {reason}", stacklevel=1)
        assert whole.exists()
    assert capfd.readouterr().err == (
        f"warning: compiled programs cannot be kept in {tmp_path} (No space left on device); later "
        "starts compile again\n"
    )


def test_importing_the_old_place_of_runtime_stays_cheap():
    script = "import sys, smoothsa_jax.training; print('jax' in sys.modules)"
    assert shell(f'{sys.executable} -c "{script}"').stdout == "False\n"
    from smoothsa_jax.training import runtime as found

    assert found is runtime


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with (
        pytest.raises(OSError, match="No space") as error,
        atomic_file(tmp_path / "scores.json"),
        open("/dev/full", "w") as full,
    ):
        full.write("text")
        full.flush()
    assert error.value.filename == str(tmp_path / "scores.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as error, atomic_file(tmp_path / "file" / "scores.json"):
        pass
    assert "scores.json" not in str(error.value.filename)  # the folder is what is wrong


@pytest.mark.slow
def test_a_disk_that_fills_up_is_the_last_line_and_loses_nothing(tmp_path, compilation_cache):
    """No file may grow beyond 20 kB, so the arrays of a checkpoint cannot be written.

    `test_faults.py` has a quicker form, with the writer of checkpoints alone.
    """
    options = ["--config.train.num_steps=3", "--config.checkpoint.every=3"]
    arguments = [f"--config={IMAGE}", *options]
    # First, so that the other finds its programs compiled.
    assert here(*arguments, f"--workdir={tmp_path / 'whole'}") == 0
    command = f"ulimit -f 20; {MAIN} {' '.join(arguments)} --workdir={tmp_path / 'full'}"
    result = shell(command, XLA_FLAGS=os.environ["XLA_FLAGS"])
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: checkpoint of step 3 could not be written to ")
    assert "File too large; there is no earlier checkpoint; raise the limit" in last
    # With space again, the same command makes the run that there would have been.
    assert here(*arguments, f"--workdir={tmp_path / 'full'}") == 0
    assert_same_run(tmp_path / "full", tmp_path / "whole", 3)
