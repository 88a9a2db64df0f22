"""Several hosts as two processes on one machine: one run, refusals, and the death of a process."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from command import CONFIG, IMAGE, ROOT, assert_same_run, environment, here, losses, run, start
from run_config import get_config
from tiny import as_recognition

from smoothsa_jax.checkpoints.model_files import save_model
from smoothsa_jax.checkpoints.read import BROKEN_FOLDER, FOLDER, read_checkpoint, steps_found
from smoothsa_jax.config.values import canonical
from smoothsa_jax.devices import hosts
from smoothsa_jax.devices.host_arrays import on_host
from smoothsa_jax.evaluation.split import Evaluation, predictions, scored, whole_split
from smoothsa_jax.inputs.loader import evaluation_batches
from smoothsa_jax.training.logging import read_log
from smoothsa_jax.training.step import build_training

HEARTBEAT = 10  # seconds
ALL_DEVICES = "--config.mesh.data=-1"
SLURM, JOBSET = ROOT / "docs" / "cluster" / "slurm.sh", ROOT / "docs" / "cluster" / "jobset.yaml"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


# Programs in place of `main.py`, which do something before it.
BEGIN = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\nimport main\n"
END = "sys.exit(main.main(sys.argv[1:]))\n"
# A training step that compiles at once, for what does not depend on the model.
FAKE = """
import fake_training, pytest, time
fake_training.use(pytest.MonkeyPatch(), num_devices=2, on_step=lambda step: time.sleep(0.05))
"""
# Small arrays are cut over devices too: those of the model of these tests.
CUT = "from smoothsa_jax.devices import mesh; mesh.SMALL = 64\n"
# Process 1 fails to read a checkpoint once.
UNREADABLE = """
from smoothsa_jax.checkpoints import read as reading
read = reading.read_checkpoint
def fail_once(workdir, step):
    reading.read_checkpoint = read
    raise reading.BrokenCheckpoint("Input/output error")
if "--process_id=1" in sys.argv:
    reading.read_checkpoint = fail_once
"""


def program_of(before: str) -> tuple[str, str]:
    """Python's arguments for `main.py` after these lines."""
    return ("-c", BEGIN + before + END) if before else (str(ROOT / "main.py"),)


def begin(
    *arguments: str, cache: str, of_each=((), ()), before: str = ""
) -> list[subprocess.Popen]:
    """Two processes that run together, with the same arguments and those of each."""
    port = free_port()
    return [
        start(
            *arguments,
            *own,
            f"--coordinator=localhost:{port}",
            "--num_processes=2",
            f"--process_id={index}",
            f"--heartbeat_timeout_seconds={HEARTBEAT}",
            cache=cache,
            program=program_of(before),
        )
        for index, own in enumerate(of_each)
    ]


def end(processes: list[subprocess.Popen], seconds: float = 600) -> list[tuple[int, str]]:
    """Exit status and standard error of each."""
    try:
        return [(p.returncode, err) for p in processes for _, err in [p.communicate(None, seconds)]]
    finally:
        for process in processes:
            process.kill()


def end_well(processes: list[subprocess.Popen]) -> None:
    ends = end(processes)
    assert [status for status, _ in ends] == [0, 0], ends[0][1] + ends[1][1]
    assert ends[1][1] == "", "only the first process talks"


# ---------------------------------------------------------------------------------------- its parts


class Numbers:
    """A split whose samples are their numbers."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"video": np.array([index]), "segmentations": np.array([index])}


def scored_with(batches) -> list[tuple[int, tuple]]:
    """The samples that count and the key that each batch is predicted with."""
    return [
        (int(batch["video"][b, 0]), key)
        for batch, _, key in predictions(lambda _, key: jax.random.key_data(key), batches, (7,))
        for b in scored(batch)
        for key in [tuple(np.asarray(key).tolist())]
    ]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_a_split_out_and_put_it_together(length, count):
    source = Numbers(length)
    parts = [
        scored_with(evaluation_batches(source, 2, process_index=i, process_count=count))
        for i in range(count)
    ]
    whole = scored_with(evaluation_batches(source, 2))
    assert whole_split(parts, 2, length) == whole

    def evaluation(numbers):
        columns = np.array([numbers, [-x for x in numbers]], np.float64)  # (seeds, samples)
        return Evaluation({"ari": columns}, None, [str(x) for x in numbers], [])

    found = whole_split([evaluation([x for x, _ in part]) for part in parts], 2, length)
    np.testing.assert_array_equal(found.scores["ari"][1], -np.arange(length))
    assert found.names == [str(x) for x in range(length)]
    assert found.paper_scores is None
    assert [sample for sample, _ in whole] == list(range(length))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--num_processes=2"], "--num_processes belongs to several processes"),
        (["--coordinator=localhost"], "expected the host of process 0 and a free port"),
        (
            ["--mode=report", "--distributed", "--workdir=x"],
            "--mode=report takes one process",
        ),
    ],
)
def test_flags_that_do_not_fit_are_told(capfd, arguments, line):
    assert here(*arguments) == 2
    err = capfd.readouterr().err
    assert line in err and err.count("\n") == 1


def test_the_jobset_has_the_fields_of_its_api_and_its_pods_know_each_other(tmp_path):
    """Fields as of JobSet's v1alpha2 and batch/v1; host names as its `network` documents them."""
    jobset = yaml.safe_load(JOBSET.read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = jobset["spec"]
    assert spec.keys() <= {
        "replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend",
        "coordinator", "managedBy", "ttlSecondsAfterFinished",
    }  # fmt: skip
    assert spec["network"].keys() <= {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"}
    assert spec["failurePolicy"].keys() <= {"maxRestarts", "restartStrategy", "rules"}
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    (group,) = spec["replicatedJobs"]
    assert group.keys() <= {"name", "groupName", "template", "replicas", "dependsOn"}
    job = group["template"]["spec"]
    assert (group["replicas"], job["completionMode"], job["backoffLimit"]) == (1, "Indexed", 0)
    assert job["completions"] == job["parallelism"] == 2
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]  # of an error that a restart does not fix
    codes = {"containerName": container["name"], "operator": "In", "values": [2]}
    assert rule == {"action": "FailJob", "onExitCodes": codes}
    assert {v["name"] for v in pod["volumes"]} == {v["name"] for v in container["volumeMounts"]}
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    name = jobset["metadata"]["name"]
    port = container["ports"][0]["containerPort"]
    assert given["COORDINATOR"] == f"{name}-{group['name']}-0-0.{name}:{port}"
    assert given["NUM_PROCESSES"] == str(job["completions"])
    python_that_prints(tmp_path)
    printed = subprocess.run(
        [*container["command"], *container["args"]],
        env={**given, "JOB_COMPLETION_INDEX": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    flags = [f"--coordinator={given['COORDINATOR']}", "--num_processes=2", "--process_id=1"]
    assert printed == ["main.py", *container["args"], *flags]


def python_that_prints(folder: Path) -> None:
    (folder / "python").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (folder / "python").chmod(0o755)


@pytest.mark.more
def test_differing_configs_are_refused_by_all_in_one_line(tmp_path, compilation_cache):
    workdir = tmp_path / "none"
    command = [f"--config={IMAGE}", ALL_DEVICES, f"--workdir={workdir}"]
    steps = [[f"--config.train.num_steps={n}"] for n in (20, 40)]
    (status, err), (other_status, other_err) = end(
        begin(*command, cache=compilation_cache, of_each=steps), 120
    )
    assert (status, other_status) == (2, 2), err + other_err
    line = (
        "error: process 1 has train.num_steps=40, process 0 has 20; start all with the same command"
    )
    assert err.splitlines()[-1].startswith(line)
    assert other_err.startswith(line) and other_err.count("\n") == 1
    assert not workdir.exists()


# --------------------------------------------------------------------------------------- whole runs

SRUN = """#!/bin/bash
# Starts the tasks as srun does, all on this machine.
while [[ $1 == -* ]]; do echo "$1" >> "$0.options"; shift; done
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=0 "$@" & tasks[$task]=$!; done
status=0
for task in 0 1; do wait ${tasks[$task]} || status=$?; done
exit $status
"""


def through_slurm(
    folder: Path, cache: str, before: str, *arguments: str
) -> subprocess.CompletedProcess:
    """Run `bash docs/cluster/slurm.sh ...` with stand-ins for SLURM and `python main.py`."""
    folder.mkdir()
    programs = {"srun": SRUN, "scontrol": "#!/bin/bash\necho localhost; echo another\n"}
    program = shlex.join([sys.executable, *program_of(before)])
    programs["python"] = f'#!/bin/bash\n[ "$1" = main.py ] && exec {program} "${{@:2}}"\n'
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "localhost,another", "SLURM_NTASKS": "2"}
    slurm["SLURM_CPUS_PER_TASK"] = "32"
    slurm["SLURM_JOB_ID"] = str(free_port() % 10000)
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", str(SLURM), *arguments],
        cwd=ROOT,
        env=environment(cache) | slurm | path,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 2])
def test_two_processes_make_the_run_of_one_with_two_devices(tmp_path, compilation_cache, fsdp):
    """Video, boxes, dropout, random history, a best checkpoint; scored again by two, and by one.

    With `fsdp` 2 each process keeps half of parameters, moments and frozen arrays.
    """
    before, program = (CUT, program_of(CUT)) if fsdp > 1 else ("", program_of(""))
    command = [f"--config={CONFIG}", ALL_DEVICES, "--config.train.num_steps=8"]
    command += ["--config.checkpoint.every=4", "--config.checkpoint.best_metric=mbo"]
    command += ["--config.checkpoint.best_mode=max", "--config.eval.num_samples=5"]
    command += ["--config.eval.num_pictures=4", "--config.eval.seeds=(0,1)"]
    command += [f"--config.mesh.fsdp={fsdp}"]
    one, two = tmp_path / "one", tmp_path / "two"
    options = {"cache": compilation_cache, "devices": 2, "program": program}
    alone = run(*command, f"--workdir={one}", **options)
    assert alone.returncode == 0, alone.stderr
    command.append(f"--workdir={two}")
    together = through_slurm(tmp_path / "bin", compilation_cache, before, *command)
    assert together.returncode == 0, together.stderr
    assert together.stderr.count("going on") == 0
    asked = (tmp_path / "bin" / "srun.options").read_text().split()
    assert asked == ["--cpus-per-task=32", "--kill-on-bad-exit=1"]
    waits = [row for row in read_log(two / "log.jsonl") if "data_wait_share" in row]
    assert waits and all("data_wait_process" in row for row in waits)

    found, expected = read_checkpoint(two, 8), read_checkpoint(one, 8)
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        scale = np.abs(array).max(initial=1e-30)
        np.testing.assert_allclose(found.arrays[name] / scale, array / scale, atol=1e-5)
    assert found.progress["data"] == expected.progress["data"]
    for row, other in zip(losses(two), losses(one), strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    for name in ("scores.json", "scores.csv"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    pictures = sorted(p.name for p in (one / "pictures").iterdir())
    assert [p.name for p in sorted((two / "pictures").iterdir())] == pictures and len(pictures) == 8

    scored_before = (two / "scores.json").read_bytes()
    (two / "scores.json").unlink()
    end_well(begin("--mode=evaluate", f"--workdir={two}", cache=compilation_cache, before=before))
    assert (two / "scores.json").read_bytes() == scored_before
    (two / "scores.json").unlink()
    result = run("--mode=evaluate", f"--workdir={two}", **options)
    assert result.returncode == 0, result.stderr
    assert (two / "scores.json").read_bytes() == scored_before


# A head on the slots of one saved model, which starts from the arrays of another saved head.
HEAD = """
import sys
sys.path.insert(0, {tests!r})
from run_config import get_config as get_slot_model
from smoothsa_jax.inputs import build
from tiny import WithCategories, as_recognition

build.DATASETS["sprites"] = WithCategories

def get_config():
    config = as_recognition(get_slot_model("image"), 3, {slot_model!r})
    config.name = "head"
    config.weights = {{"start": {{"into": "", "source": {head!r}}}}}
    config.train.num_steps = 2
    config.eval.num_samples = 2
    config.checkpoint.every = 2
    return config
"""


@pytest.mark.slow
def test_two_processes_start_from_a_source_and_a_companion(tmp_path, compilation_cache):
    """The order in which arrays are placed may not depend on the process's hashes."""
    config = canonical(get_config("image"))
    slot_model = build_training(config)
    arrays = on_host({**slot_model.state.params, **slot_model.frozen})
    save_model(tmp_path / "slot_model", config, arrays, step=3)
    config = canonical(as_recognition(get_config("image"), 3))
    first = on_host(build_training(config).state.params)
    head = {name: x + 1 for name, x in first.items()}
    save_model(
        tmp_path / "head",
        config,
        {**head, **{f"slot_model.{name}": x for name, x in arrays.items()}},
        step=3,
    )
    paths = {name: str(tmp_path / name) for name in ("slot_model", "head")}
    file = tmp_path / "two.py"
    file.write_text(HEAD.format(tests=str(ROOT / "tests"), **paths))
    command = [f"--config={file}", ALL_DEVICES, f"--workdir={tmp_path / 'run'}"]
    command.append("--config.mesh.fsdp=2")
    end_well(begin(*command, cache=compilation_cache, before=CUT))
    found = read_checkpoint(tmp_path / "run", 2)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.weights[f"slot_model.{name}"], array, err_msg=name)
    for name, array in head.items():
        np.testing.assert_allclose(found.weights[name], array, atol=0.1, err_msg=name)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["baselines"] == {}

    # One process has other arrays of the same name: both refuse them.
    other = "from smoothsa_jax.checkpoints import sources\n" + (
        "read = sources.read_model\n"
        "def changed(path):\n"
        "    config, arrays, step = read(path)\n"
        "    return config, {k: x + 1 for k, x in arrays.items()}, step\n"
        "if '--process_id=1' in sys.argv:\n"
        "    sources.read_model = changed\n"
    )
    command[2] = f"--workdir={tmp_path / 'another'}"
    ends = end(begin(*command, cache=compilation_cache, before=other))
    assert [status for status, _ in ends] == [2, 2]
    for _, err in ends:
        assert "process 1 has what companions.slot_model.source=" in err and "Traceback" not in err


def rows_in(workdir: Path) -> int:
    log = workdir / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def saving_since(workdir: Path, began: float) -> bool:
    """Whether a save left an incomplete folder, other than those that an earlier run left."""
    try:
        return any(p.stat().st_mtime > began for p in (workdir / FOLDER).glob("*tmp*"))
    except FileNotFoundError:  # it was just completed
        return False


def wait_for(condition, processes: list[subprocess.Popen], seconds: float = 300) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < limit, f"not seen in {seconds} s"
        time.sleep(0.002)


def survivor_of(
    processes: list[subprocess.Popen], victim: int, number: int = signal.SIGKILL
) -> tuple[int, str]:
    """Signal one process; the other's exit status, and its log after start-up; ends in time."""
    processes[victim].send_signal(number)
    began = time.monotonic()
    try:
        _, err = processes[1 - victim].communicate(timeout=HEARTBEAT + 30)
    finally:
        processes[victim].kill()
        processes[1 - victim].kill()
    _, of_victim = processes[victim].communicate()
    print(f"process {1 - victim} ended {time.monotonic() - began:.1f} s after process {victim}")
    status = processes[1 - victim].returncode
    # The log of process 0 explained this in advance.
    log = of_victim if victim == 0 else err
    first_lines = log.splitlines()[:3]
    assert hosts.LOST_LINE in first_lines[1] and hosts.JAX_LINE in first_lines[1]
    assert "--process_id=0" in first_lines[2] and "start every process again" in first_lines[2]
    later = err if victim == 0 else "\n".join(err.splitlines()[3:])
    assert status != 0 and (hosts.LOST_LINE in later or hosts.JAX_LINE in later), err
    return status, later


@pytest.mark.slow
def test_stopped_and_killed_two_processes_end_with_the_same_bits(tmp_path, compilation_cache):
    command = [f"--config={IMAGE}", ALL_DEVICES]
    whole, workdir = tmp_path / "whole", tmp_path / "killed"
    end_well(begin(*command, f"--workdir={whole}", cache=compilation_cache, before=FAKE))
    command.append(f"--workdir={workdir}")

    processes = begin(*command, cache=compilation_cache, before=FAKE)
    wait_for(lambda: rows_in(workdir) >= 5, processes)
    processes[1].send_signal(signal.SIGTERM)
    ends = end(processes)
    assert [status for status, _ in ends] == [143, 143], ends[0][1] + ends[1][1]
    step = steps_found(workdir)[0]
    for _, err in ends:
        assert f"stopped by SIGTERM after step {step} of 60" in err
    assert rows_in(workdir) == step

    for victim in (0, 1):
        began = time.time()
        processes = begin(*command, cache=compilation_cache, before=FAKE)
        # In the middle of a save: Orbax has begun a folder and not yet given it its name.
        wait_for(lambda began=began: saving_since(workdir, began), processes)
        survivor_of(processes, victim)
        assert steps_found(workdir)[0] < 60
    shutil.copytree(workdir, tmp_path / "as_it_was_left")

    end_well(begin(*command, cache=compilation_cache, before=FAKE))
    assert_same_run(workdir, whole, 60)


# Process 1 gets a signal in its last step, when it has told the others for the last time that there
# was none.
LATE = """
import fake_training, os, pytest, signal
def on_step(step):
    if step == 9 and "--process_id=1" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
fake_training.use(pytest.MonkeyPatch(), num_devices=2, on_step=on_step)
"""


@pytest.mark.slow
def test_a_signal_in_the_last_step_stops_both(tmp_path, compilation_cache):
    command = [f"--config={IMAGE}", ALL_DEVICES, "--config.train.num_steps=10"]
    command += [f"--workdir={tmp_path}"]
    for status, err in end(begin(*command, cache=compilation_cache, before=LATE), 120):
        assert status == 143 and "stopped by SIGTERM after step 10 of 10" in err, err


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_not_heard_of_ends_the_other(tmp_path, compilation_cache, victim):
    """As after a power loss of its host: no connection is closed, only the heartbeat is missing."""
    command = [f"--config={IMAGE}", ALL_DEVICES, "--config.train.num_steps=100000"]
    processes = begin(*command, f"--workdir={tmp_path}", cache=compilation_cache, before=FAKE)
    wait_for(lambda: rows_in(tmp_path) >= 3, processes)
    status, later = survivor_of(processes, victim, signal.SIGSTOP)
    assert status == -signal.SIGABRT and hosts.JAX_LINE in later


@pytest.mark.slow
def test_processes_that_do_not_see_the_same_are_refused(tmp_path, compilation_cache):
    """Other folders under --workdir; a checkpoint that one process cannot read, which stays."""
    command, cache = (
        [f"--config={IMAGE}", ALL_DEVICES, "--config.train.num_steps=20"],
        compilation_cache,
    )
    own = [[f"--workdir={tmp_path / name}"] for name in ("one", "other")]
    for status, err in end(begin(*command, cache=cache, of_each=own, before=FAKE), 120):
        assert status == 2 and f"process 1 has the workdir {tmp_path / 'other'}" in err, err
        assert f"not the folder {tmp_path / 'one'} of process 0" in err
    assert not (tmp_path / "other").exists()
    assert not [p for p in (tmp_path / "one").iterdir() if p.name != ".lock"]

    command += [f"--workdir={tmp_path / 'one'}"]
    end_well(begin(*command, cache=cache, before=FAKE))
    for mode in ("train", "evaluate"):
        arguments = command if mode == "train" else command[-1:]
        processes = begin(f"--mode={mode}", *arguments, cache=cache, before=FAKE + UNREADABLE)
        for status, err in end(processes, 120):
            assert status == 2, err
            line = (
                r"process 1 has newest checkpoint that can be read=step 10 .*process 0 has step 20"
            )
            assert re.search(line, err.splitlines()[-1]), err
    assert steps_found(tmp_path / "one") == [20, 10]
    assert not (tmp_path / "one" / BROKEN_FOLDER).exists()
