"""The files of docs/cluster that start Ray, and what is refused without a cluster."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from command import ROOT, here

from data import prepare, store
from smoothsa_jax.bulk import cluster, pieces
from smoothsa_jax.bulk.cluster import Cluster
from smoothsa_jax.errors import UserError
from smoothsa_jax.main import read_flags, refuse_engine

SLURM, RAYJOB = ROOT / "docs" / "cluster" / "ray.sh", ROOT / "docs" / "cluster" / "rayjob.yaml"
ENGINE = ["--engine=ray", "--address=auto"]
# Names and types of fields, as of KubeRay's ray.io/v1; `object` is a pod template, checked apart.
JOB_FIELDS = {
    "activeDeadlineSeconds": int, "backoffLimit": int, "rayClusterSpec": dict, "metadata": dict,
    "submitterPodTemplate": dict, "clusterSelector": dict, "submitterConfig": dict,
    "managedBy": str, "deletionStrategy": dict, "entrypoint": str, "runtimeEnvYAML": str,
    "jobId": str, "submissionMode": str, "entrypointResources": str, "entrypointNumCpus": float,
    "entrypointNumGpus": float, "ttlSecondsAfterFinished": int, "shutdownAfterJobFinishes": bool,
    "suspend": bool,
}  # fmt: skip
CLUSTER_FIELDS = {
    "headGroupSpec": dict, "workerGroupSpecs": list, "rayVersion": str, "suspend": bool,
    "enableInTreeAutoscaling": bool, "autoscalerOptions": dict, "headServiceAnnotations": dict,
}  # fmt: skip
GROUP_FIELDS = {"rayStartParams": dict, "template": dict}
HEAD_FIELDS = {**GROUP_FIELDS, "serviceType": str, "headService": dict, "enableIngress": bool}
WORKER_FIELDS = {
    **GROUP_FIELDS, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int,
    "numOfHosts": int, "scaleStrategy": dict,
}  # fmt: skip


def check(found: dict, fields: dict, required: tuple[str, ...]) -> None:
    assert found.keys() <= fields.keys() and set(required) <= found.keys()
    for name, value in found.items():
        assert type(value) is fields[name], name


def test_the_rayjob_has_the_fields_of_its_api_and_its_pods_share_what_they_need():
    """Fields written down by hand from KubeRay's types of RayJob and RayCluster, ray.io/v1."""
    job = yaml.safe_load(RAYJOB.read_text())
    assert job.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    check(job["spec"], JOB_FIELDS, ("entrypoint", "rayClusterSpec"))
    cluster = job["spec"]["rayClusterSpec"]
    check(cluster, CLUSTER_FIELDS, ("headGroupSpec", "rayVersion"))
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    check(head, HEAD_FIELDS, ("rayStartParams", "template"))
    check(workers, WORKER_FIELDS, ("groupName", "minReplicas", "maxReplicas", "template"))
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    containers = []
    for group in (head, workers):
        assert all(type(value) is str for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        containers.append((container["image"], container["workingDir"], container["env"], mounts))
    assert containers[0] == containers[1], "the same program and folders on all machines"
    assert "nvidia.com/gpu" in str(workers) and head["rayStartParams"]["num-gpus"] == "0"


def printing(folder: Path, *names: str) -> dict[str, str]:
    """Programs that print their arguments as JSON lists, in front of the others."""
    for name in names:
        (folder / name).write_text(
            "#!/usr/bin/env python3\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"
        )
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_command_of_the_rayjob_is_one_that_main_py_takes(tmp_path):
    entry = yaml.safe_load(RAYJOB.read_text())["spec"]["entrypoint"]
    assert entry.startswith("cd /smoothsa_jax && ")
    command = entry.replace("/smoothsa_jax", str(tmp_path), 1)
    path = printing(tmp_path, "python")
    found = subprocess.run(["sh", "-c", command], env=path, capture_output=True, text=True)
    program, *arguments = json.loads(found.stdout)
    assert program == "main.py" and arguments[-2:] == ENGINE
    given = read_flags(arguments)
    assert (given.mode, given.engine, given.address) == ("predict", "ray", "auto")
    refuse_engine(given)
    assert given.input == "/shared/clips/*.mp4"


@pytest.mark.parametrize(
    "command",
    ["python main.py --mode=evaluate --workdir='my runs/a'", "python -m data.store coco --out=x"],
)
def test_slurm_starts_ray_on_all_nodes_and_the_command_on_it(tmp_path, command):
    path = printing(tmp_path, "ray")
    (tmp_path / "srun").write_text(
        '#!/bin/bash\necho "$RAY_AUTH_MODE" "$RAY_AUTH_TOKEN" > "$0.token"\n'
        'while [[ $1 == -* ]]; do echo "$1" >> "$0.options"; shift; done\n'
        'for task in 0 1; do "$@"; done\n'
    )
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho node7; echo node8\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "123"}
    slurm["SLURM_CPUS_PER_TASK"] = "64"
    asked = shlex.split(command)
    found = subprocess.run(
        ["bash", str(SLURM), *asked], env=slurm | path, capture_output=True, text=True, check=True
    )
    first, second = map(json.loads, found.stdout.splitlines())
    assert first == second, "the same on each node"
    of_ray, entry = first[: first.index("--")], first[first.index("--") + 1 :]
    assert of_ray == (
        ["symmetric-run", "--address", "node7:20123", "--min-nodes", "2", "--num-cpus=64"]
    )
    assert entry == [*asked, *ENGINE]
    options = (tmp_path / "srun.options").read_text().split()
    assert options == ["--cpus-per-task=64", "--kill-on-bad-exit=1"]
    # Whether a node sends its user's token depends on how it joins; this one all nodes send.
    mode, token = (tmp_path / "srun.token").read_text().split()
    assert mode == "token" and len(token) == 64 and int(token, 16)
    empty = subprocess.run(["bash", str(SLURM)], env=slurm | path, capture_output=True, text=True)
    assert empty.returncode == 2 and empty.stderr.startswith("expected: ray.sh COMMAND")


# ------------------------------------------------------------------------------------- bad input


def refused(capsys, status: int) -> str:
    assert status == 2
    *_, line = capsys.readouterr().err.splitlines()
    return line


def test_flags_that_do_not_fit_are_refused_in_one_line(tmp_path, capsys):
    movi = ["movi_c", "--source=x", f"--out={tmp_path / 'out'}"]
    assert "add --engine=ray" in refused(capsys, prepare.main([*movi, "--address=auto"]))
    line = refused(capsys, prepare.main([*movi, "--engine=ray", "--workers=2"]))
    assert line.startswith("error: --workers is the number of processes of this machine")
    recipe = "sprites:dynamics"
    assert "add --engine=ray" in refused(capsys, store.main([recipe, "--address=auto"]))
    evaluate = ["--mode=evaluate", f"--workdir={tmp_path}"]
    assert "add --engine=ray" in refused(capsys, here(*evaluate, "--address=auto"))
    line = refused(capsys, here(*evaluate, "--engine=ray", "--coordinator=a:1"))
    assert "leave --distributed and --coordinator out" in line
    assert "--engine=ray goes with" in refused(capsys, here("--engine=ray"))


@pytest.mark.ray
def test_a_cluster_that_cannot_be_reached_is_one_line(tmp_path, capsys):
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    nowhere = ["--engine=ray", "--address=localhost:1"]
    expected = "--address=localhost:1: nothing can be reached there"
    status = prepare.main(["movi_c", "--source=x", f"--out={tmp_path / 'out'}", *nowhere])
    assert expected in refused(capsys, status)
    assert expected in refused(capsys, store.main(["sprites:dynamics,smoke", *nowhere]))
    assert expected in refused(capsys, here("--mode=evaluate", f"--workdir={tmp_path}", *nowhere))


@pytest.mark.ray
def test_a_cluster_that_asks_for_a_token_is_one_line(monkeypatch):
    """The errors are those of Ray 2.60."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

    def refuses(**options):
        cause = RuntimeError(
            "Failed to connect to GCS. Last connection error: Traceback (most recent call last):\n"
            "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken"
        )
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379") from cause

    monkeypatch.setattr(cluster, "check_reachable", lambda address: None)
    monkeypatch.setattr(cluster, "_init", refuses)
    with pytest.raises(UserError, match="lets in who has its token; .* RAY_AUTH_MODE=token"):
        with cluster.connected("10.0.0.1:6379"):
            pass
    with pytest.raises(UserError, match="Ray cannot start on this machine"):
        with cluster.connected():
            pass


def test_an_accelerator_that_the_cluster_lacks_is_refused(monkeypatch):
    cores = Cluster(None, cpus=4, accelerator=None, accelerators=0)
    pieces.refuse_missing_accelerator(cores)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    pieces.refuse_missing_accelerator(cores._replace(accelerator="GPU", accelerators=1))
    with pytest.raises(UserError, match="JAX_PLATFORMS=cuda is set, and no machine"):
        pieces.refuse_missing_accelerator(cores)
