"""Every fault is a one-line error with exit status 2, and nothing is lost."""

import errno
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import fake_training
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
import run_config
from command import CONFIG, IMAGE, ROOT, here

from smoothsa_jax.checkpoints.read import FOLDER, restore_latest, steps_found
from smoothsa_jax.config import schema
from smoothsa_jax.config.load import config_from_command_line
from smoothsa_jax.config.values import differences
from smoothsa_jax.devices import compiling, runtime
from smoothsa_jax.errors import UserError
from smoothsa_jax.models.backend import CPU, Backend
from smoothsa_jax.training import evaluating, logging, loop

GPU = Backend("cuda", 9.0, has_cudnn=True)
COCO = f"--config={ROOT / 'configs' / 'coco.py'}:smoke"
HEAD = f"{COCO},recognition"
SHORT = ("--config.train.num_steps=9", "--config.checkpoint.every=3")


def one_line(capfd) -> str:
    """The printed error; fails if it has more than one line."""
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    assert errors == [len(lines) - 1], lines
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config=configs/sprite.py"], "does not exist"),
        ([f"--config={CONFIG}:imag"], "did you mean 'image'?"),
        (["--config.train.nun_steps=3"], "the nearest is 'train.num_steps'"),
        (["--config.train.num_steps=few"], "expected int"),
        (["--config.train.num_steps=0"], "train.num_steps is 0"),
        (["--config.train.batch_size=-1"], "train.batch_size is -1"),
        (["--config.model.num_slots=0"], "num_slots is 0"),
        (["--config.data.image_size=63"], "patches of"),
        (["--config.mesh.data=64"], "mesh.data asks for 64 devices, 1 found"),
        (["--config.model.encoder.name=vitt"], "did you mean 'vit'?"),
        (["--config.data.name=sprite"], "did you mean 'sprites'?"),
        (["--config.checkpoint.best_metric=fgari"], "did you mean 'fg_ari'?"),
        (["--config.model.aggregator.first=0"], "model.aggregator.first is 0; expected a whole"),
        (["--config.model.aggregator.later=-1"], "model.aggregator.later is -1; expected a whole"),
        (["--config.model.transition.history=1"], "history is 1; expected a whole number of at le"),
        (["--config.model.transition.dropout_rate=1"], "dropout_rate is 1.0; expected a number of"),
        (["--config.model.transition.num_heads=0"], "transition.num_heads is 0; expected a whole"),
        (["--config.model.transition.num_heads=5"], "does not divide model.slot_size 48"),
        (
            ["--config.model.initializer.num_heads=0"],
            "initializer.num_heads is 0; expected a whole",
        ),
        (["--config.model.initializer.num_heads=5"], "does not divide model.slot_size 48"),
        (["--config.model.initializer.detach.at=-1"], "model.initializer.detach.at is -1.0"),
        (["--config.model.decoder.num_layers=0"], "model.decoder.num_layers is 0: expected at le"),
        (["--config.model.decoder.hidden_size=0"], "model.decoder.hidden_size is 0; expected a wh"),
        ([COCO, "--config.model.decoder.num_layers=0"], "model.decoder.num_layers is 0; expected"),
        ([COCO, "--config.model.decoder.num_heads=0"], "model.decoder.num_heads is 0; expected a"),
        ([COCO, "--config.model.encoder.num_heads=5"], "does not divide model.encoder.width 32"),
        ([HEAD, "--config.model.num_classes=0"], "model.num_classes is 0; expected a whole number"),
        ([HEAD, "--config.model.dropout_rate=1"], "model.dropout_rate is 1.0; expected a number"),
        (
            ["--config.losses.slot_contrast.temperature=0"],
            "temperature is 0.0; expected a number ab",
        ),
        (
            ["--config.data.num_frames=1", "--config.eval.num_frames=1"],
            "data.num_frames to at least 2, or --config.losses.slot_contrast.weight=0",
        ),
        (["--mode=evaluation"], "value should be one of <train|evaluate|"),
        (["--wrkdir=x"], "Did you mean: workdir"),
        (["train"], "found the argument 'train', expected flags only"),
        (["--mode=evaluate"], "nothing to restore: no checkpoint found in"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_bad_command_is_one_line_and_leaves_no_folder(tmp_path, capfd, arguments, expected):
    workdir = tmp_path / "run"
    assert here(*arguments, f"--workdir={workdir}") == 2
    assert expected in one_line(capfd)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "config.model.initializer = config.model.initializer.cold",
            "losses.distillation needs warm_queries, which this model does not give; remove "
            "losses.distillation, or set --config.losses.distillation.weight=0",
        ),
        (
            "config.losses.category = {'weight': 1.0}",
            "losses.category needs logits, which this model does not give",
        ),
        (
            "config.losses.distillation = {'weight': {'schedule': 'cosine', 'begin': 0, 'ent': 1}}",
            "losses.distillation.weight.ent is not a setting of losses.distillation.weight."
            "schedule='cosine': expected among begin, end, until; did you mean 'end'?",
        ),
        (
            "config.optimizer.learning_rate.schedule = 'no_module:wave'",
            "optimizer.learning_rate.schedule is 'no_module:wave', which cannot be imported",
        ),
        ("config.data.sead = 1", "data.sead is not an option of 'sprites'"),
    ],
)
def test_parts_that_do_not_fit_together_are_one_line(tmp_path, capfd, change, expected):
    config = tmp_path / "own.py"
    config.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import run_config\n"
        "def get_config(words=''):\n"
        f"    config = run_config.get_config(words)\n    {change}\n    return config\n"
    )
    assert here(f"--config={config}:image", f"--workdir={tmp_path / 'run'}") == 2
    assert expected in one_line(capfd)
    assert not (tmp_path / "run").exists()


def test_another_process_says_it_the_same_way(tmp_path):
    command = [sys.executable, str(ROOT / "main.py"), "--config.seeed=3"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert (
        result.stderr
        == "error: --config.seeed: the config has no key 'seeed'; the nearest is 'seed'\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_cannot_be_used(tmp_path, capfd, monkeypatch):
    (tmp_path / "file").write_text("mine")
    assert here(f"--config={IMAGE}", f"--workdir={tmp_path / 'file'}") == 2
    assert f"workdir {tmp_path / 'file'} cannot be written" in one_line(capfd)
    assert (tmp_path / "file").read_text() == "mine"
    assert here("--mode=evaluate", f"--workdir={tmp_path / 'file'}") == 2
    assert "cannot be read: Not a directory" in one_line(capfd)

    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert here(f"--config={IMAGE}", f"--workdir={tmp_path / 'closed'}") == 2
    assert "cannot be written: Permission denied; fix its permissions" in one_line(capfd)


def train_fake(workdir: Path, *arguments: str) -> int:
    return here(f"--config={IMAGE}", f"--workdir={workdir}", *SHORT, *arguments)


def test_a_workdir_of_another_config_is_refused_with_the_keys(tmp_path, capfd, monkeypatch):
    fake_training.use(monkeypatch)
    assert train_fake(tmp_path) == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"}
    capfd.readouterr()
    assert train_fake(tmp_path, "--config.seed=3", "--config.losses.distillation.weight=0.5") == 2
    text = one_line(capfd)
    assert "losses.distillation.weight (found 10.0, asked 0.5), seed (found 0, asked 3)" in text
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"}
    assert before == after
    # The same before the first checkpoint, and if no usable one is left.
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    assert train_fake(tmp_path, "--config.seed=3") == 2
    assert "seed (found 0, asked 3)" in one_line(capfd)
    (tmp_path / "elsewhere").rename(tmp_path / "checkpoints")
    # The frequency of saves, logs and validations may change.
    free = ["--config.checkpoint.every=5", "--config.log.every=4", "--config.eval.seeds=(3,)"]
    assert train_fake(tmp_path, *free) == 0


def test_a_checkpoint_of_another_architecture(tmp_path, capfd, monkeypatch):
    fake_training.use(monkeypatch)
    assert train_fake(tmp_path) == 0
    fake_training.use(monkeypatch, width=7)
    for mode in ("train", "evaluate"):
        capfd.readouterr()
        arguments = (f"--config={IMAGE}", *SHORT) if mode == "train" else ()
        assert here(f"--mode={mode}", f"--workdir={tmp_path}", *arguments) == 2
        text = one_line(capfd)
        assert "holds another architecture" in text
        assert "params/w (checkpoint float32[5], model float32[7])" in text


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capfd, monkeypatch):
    fake_training.use(monkeypatch)
    build = loop.build_training

    def poisoned(config):
        import dataclasses

        training = build(config)

        def train_step(state, frozen, batch, key):
            bad = int(state.step) == 7
            state, metrics = training.train_step(state, frozen, batch, key)
            if bad:
                metrics["loss"] = metrics["loss/reconstruction"] = jnp.float32(jnp.nan)
                state = state.replace(params={"w": state.params["w"] * jnp.nan})
            return state, metrics

        return dataclasses.replace(training, train_step=train_step)

    monkeypatch.setattr(loop, "build_training", poisoned)
    assert train_fake(tmp_path) == 2
    text = one_line(capfd)
    assert "step 8 is not finite: " in text
    assert "loss nan" in text and "loss/reconstruction nan" in text and "grad_norm" in text
    assert f"the last good checkpoint is {tmp_path / FOLDER / '6'}" in text
    assert steps_found(tmp_path) == [6, 3]
    assert restore_latest(tmp_path, warn=pytest.fail).step == 6
    rows = logging.read_log(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]


def test_a_device_that_is_out_of_memory(tmp_path, capfd, monkeypatch):
    """A real one: no machine has 140 TB. Before it, a checkpoint was saved."""

    def allocate(step):
        if step == 4:
            jax.block_until_ready(jnp.zeros(1 << 45))

    fake_training.use(monkeypatch, on_step=allocate)
    assert train_fake(tmp_path, "--config.train.batch_size=4") == 2
    text = one_line(capfd)
    assert "a training step of train.batch_size=4 does not fit into the memory of a device" in text
    assert "Out of memory allocating 140737488355328 bytes" in text
    assert "use --config.train.accumulate=2 (the same training, in parts), " in text
    assert "--config.train.remat=all (slower, the same training), or with another" in text
    assert text.rstrip().endswith("--config.dtype=bfloat16 or a smaller train.batch_size")
    assert restore_latest(tmp_path, warn=pytest.fail).step == 3
    # The command in the error changes only how the batch is computed.
    monkeypatch.undo()
    fake_training.use(monkeypatch)
    again = ("--config.train.batch_size=4", "--config.train.accumulate=2")
    assert train_fake(tmp_path, *again) == 0
    assert "resuming from step 3 of 9" in capfd.readouterr().err


def test_out_of_memory_in_a_validation_loses_nothing(tmp_path, capfd, monkeypatch):
    """The command in the error resumes from the same step."""
    fake_training.use(monkeypatch)
    best = ["--config.checkpoint.best_metric=mbo", "--config.checkpoint.best_mode=max"]

    def validation_scores(config, training, params, workdir):
        if config.eval.batch_size > 1:
            jax.block_until_ready(jnp.zeros(1 << 45))
        return {"mbo": 0.5, "ari": 0.5, "fg_ari": 0.5, "miou": 0.5}

    monkeypatch.setattr(loop, "validation_scores", validation_scores)
    assert train_fake(tmp_path, *best) == 2
    text = one_line(capfd)
    assert "run the same command with --config.eval.batch_size=1, or more devices" in text
    assert text.endswith(f"the last good checkpoint is {tmp_path / FOLDER / '3'}")
    assert train_fake(tmp_path, *best, "--config.eval.batch_size=1") == 0
    assert "resuming from step 3 of 9" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"train.batch_size": 8}, ["mesh.fsdp=2", "train.remat=all"]),
        (
            {"train.batch_size": 32, "train.accumulate": 2, "mesh.data": 8, "dtype": "bfloat16"},
            ["train.accumulate=4", "mesh.data=4 mesh.fsdp=2", "train.remat=all"],
        ),
        ({"train.batch_size": 24, "mesh.fsdp": 8, "train.remat": "all"}, []),
    ],
)
def test_what_is_said_to_do_without_memory_can_be_done(monkeypatch, settings, options):
    """On eight devices, each option alone: the run resumes with it."""
    monkeypatch.setattr(jax, "devices", lambda: [None] * 8)
    config = run_config.get_config("image")
    config.mesh.data, config.train.remat = -1, "none"
    config.update_from_flattened_dict(settings)
    same, _, others = compiling.advice_for_training(config).partition("with another --workdir ")
    found = [re.findall(r"--config\.(\S+)", x) for x in same.split(", ")]
    assert [" ".join(x) for x in found if x] == options
    for changes in found:
        changed = config_from_command_line(
            [(f"config.{name}", value) for name, value in (x.split("=") for x in changes)], config
        )
        assert not differences(config, changed)
        schema.check(changed, 8, batches=("train.batch_size",))
    assert ("bfloat16" in others) == (config.dtype == "float32")
    assert ("a smaller train.batch_size" in others) == (config.train.batch_size > 8)


@pytest.mark.parametrize(
    ("batch", "option"),
    [(8, "fewer eval.num_frames"), (24, "--config.eval.batch_size=8"), (64, "batch_size=32")],
)
def test_a_smaller_batch_to_score_fits_the_devices(monkeypatch, batch, option):
    config = run_config.get_config("image")
    config.eval.batch_size, config.mesh.data = batch, -1
    monkeypatch.setattr(jax, "devices", lambda: [None] * 8)
    out_of_memory = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no")
    with (
        pytest.raises(UserError, match=f"{option}, or more devices"),
        evaluating.evaluating(config, evaluating.GO_ON),
    ):
        raise out_of_memory


def test_out_of_memory_while_scoring_and_the_estimate():
    config = run_config.get_config("image")
    with pytest.raises(UserError) as error, evaluating.evaluating(config, evaluating.REPORT_AGAIN):
        jax.block_until_ready(jnp.zeros(1 << 45))
    assert "scoring eval.batch_size=2 samples at a time does not fit" in str(error.value)
    assert "use --mode=evaluate with --config.eval.batch_size=1" in str(error.value)
    program = compiling.CompiledOnce(jax.jit(lambda x: x + 1), say=lambda text: None)
    program(jnp.zeros(250_000_000, jnp.uint8))
    assert program.memory.peak == 500_000_000
    with (
        pytest.raises(UserError, match="the compiler estimated 0.50 GB, Out of memory"),
        compiling.telling_out_of_memory("this", "do that", program),
    ):
        jax.block_until_ready(jnp.zeros(1 << 45))
    with pytest.raises(jax.errors.JaxRuntimeError), compiling.telling_out_of_memory("this", "that"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_flags_for_xla_reach_a_gpu_only():
    config = run_config.get_config("image")
    config.train.xla_flags = "--xla_gpu_enable_triton_gemm=false xla_gpu_autotune_level=2"
    assert compiling.compiler_options(config, CPU) is None
    options = compiling.compiler_options(config, GPU)
    assert options == {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": "2"}
    # The compiler for a CPU knows them too, and checks names and values.
    jax.jit(lambda x: x * 2, compiler_options=options).lower(1.0).compile()
    for flag, expected in [
        ("xla_gpu_warp_speed=true", "No such compile option: 'xla_gpu_warp_speed'"),
        ("xla_gpu_enable_triton_gemm=perhaps", "'perhaps' is not a valid bool value"),
    ]:
        config.train.xla_flags = flag
        step = jax.jit(lambda x: x * 3, compiler_options=compiling.compiler_options(config, GPU))
        with pytest.raises(UserError, match="train.xla_flags is refused") as error:
            compiling.CompiledOnce(step, say=pytest.fail, has_flags=True)(1.0)
        assert expected in str(error.value)
        with pytest.raises(jax.errors.JaxRuntimeError):  # of another cause, where no flag was given
            compiling.CompiledOnce(step, say=pytest.fail)(1.0)


def test_a_disk_that_fills_up_while_saving(tmp_path, capfd, monkeypatch):
    saved: list[int] = []

    def full_after_two(self, x, directory):
        if "config" in str(directory):
            saved.append(1)
        if len(saved) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, x, directory)

    save = ocp.JsonCheckpointHandler._save_fn
    fake_training.use(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.JsonCheckpointHandler, "_save_fn", full_after_two)
        assert train_fake(tmp_path) == 2
    text = one_line(capfd)
    assert "checkpoint of step 9 could not be written" in text and "No space left on device" in text
    assert f"the last good checkpoint is {tmp_path / FOLDER / '6'}" in text
    assert restore_latest(tmp_path, warn=pytest.fail).step == 6
    # With space again, the same command resumes.
    assert train_fake(tmp_path) == 0
    assert "resuming from step 6 of 9" in capfd.readouterr().err
    assert restore_latest(tmp_path, warn=pytest.fail).step == 9


def test_a_write_that_the_system_refuses_in_orbax_own_threads(tmp_path):
    """The system limits files to 100 kB, so the arrays cannot be written."""
    script = f"""
import resource, sys
import absl.logging, numpy as np
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from run_config import get_config
from smoothsa_jax.errors import UserError
from smoothsa_jax.checkpoints.write import CheckpointWriter
absl.logging.set_verbosity(absl.logging.FATAL)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
writer = CheckpointWriter({str(tmp_path)!r}, get_config())
rng = np.random.default_rng(0)
try:
    for step, size in ((1, 10), (2, 1_000_000)):
        writer.save(step, {{"a": rng.random(size)}}, {{}}, {{}})
    writer.wait()
except UserError as error:
    print(error)
writer.close()
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "checkpoint of step 2 could not be written" in result.stdout
    assert "File too large" in result.stdout and result.stdout.count("\n") == 1
    assert "Traceback" not in result.stderr
    assert restore_latest(tmp_path, warn=pytest.fail).step == 1


def test_a_log_that_cannot_be_written_is_told(tmp_path):
    log = logging.RunLog(tmp_path, first_step=0, num_steps=3, log_every=1)
    log._rows.close()
    log._rows = open("/dev/full", "w")  # noqa: SIM115, closed by the log
    with pytest.raises(UserError, match="cannot be written at step 1: No space left on device"):
        log.record(1, {"loss": 1.0})
    log.close()


def test_a_gpu_that_is_not_used_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda self: False)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    assert runtime.idle_accelerator() is None
    monkeypatch.setattr(runtime.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "an NVIDIA GPU is visible, but JAX runs on the CPU; unset JAX_PLATFORMS=cpu" in (
        runtime.idle_accelerator()
    )
    monkeypatch.delenv("JAX_PLATFORMS")
    text = runtime.idle_accelerator()
    assert 'pip install "smoothsa_jax[cuda13]"' in text and "\n" not in text


MEMORY_SCRIPT = """
import ctypes, resource, sys, threading
from smoothsa_jax.devices.memory_allocator import keep_freed_memory

if sys.argv[1:]:
    print(keep_freed_memory())
library, size = ctypes.CDLL(None), 48 << 20  # fits into a heap of any thread
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def use():
    block = library.malloc(size)
    ctypes.memset(block, 1, size)
    library.free(block)

def measure():
    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        use()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)

def measure_beside():
    held = library.malloc(40 << 20)  # so that the next block needs a second heap of 64 MiB
    measure()

measure()
thread = threading.Thread(target=measure_beside)  # XLA allocates in threads of its own
thread.start()
thread.join()
"""


def faults_a_call(*arguments: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", MEMORY_SCRIPT, *arguments]
    return subprocess.run(
        command, env={**clean, **environment}, capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_freed_memory_is_kept_for_the_next_step():
    taken_anew = faults_a_call()
    done, *kept = faults_a_call("keep")
    assert done == "True" and len(kept) == 2
    assert min(map(float, taken_anew)) > 1000 and max(map(float, kept)) < 10  # of 48 MiB
    assert faults_a_call("keep", MALLOC_ARENA_MAX="2")[0] == "False"  # the user's own choice
