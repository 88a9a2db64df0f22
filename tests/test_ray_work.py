"""Preparation, stores and evaluation on a local Ray: equal to those of one process."""

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from prepared_folders import five_clips
from raw_clips import MOVI
from run_of_samples import untrained_run, written
from tiny import as_dynamics, tiny_config

from data import prepare, store, workers
from data.check import check
from smoothsa_jax.bulk import cluster as ray_cluster
from smoothsa_jax.bulk import pieces, predict
from smoothsa_jax.bulk.cluster import connected, quiet_ray_data
from smoothsa_jax.bulk.evaluate import evaluate_run
from smoothsa_jax.bulk.predict import rows_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.training import evaluating

pytestmark = pytest.mark.ray
pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # of the workers
        patch.setenv("RAY_worker_niceness", "0")  # else other tests starve them
        with connected(num_cpus=2) as cluster:
            yield cluster


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


# ---------------------------------------------------------------------------------- preparation


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("movi") / "prepared"
    prepare.prepare("movi_c", str(MOVI), out)
    return out


def test_shards_made_on_ray_are_those_of_one_process(prepared, tmp_path):
    arguments = ["movi_c", f"--source={MOVI}", f"--out={tmp_path / 'out'}", "--engine=ray"]
    assert prepare.main(arguments) == 0
    assert files_of(tmp_path / "out") == files_of(prepared)


def test_a_worker_that_dies_in_a_shard_changes_nothing(cluster, prepared, tmp_path, monkeypatch):
    import ray_work

    monkeypatch.setattr(workers, "MakeShard", ray_work.DyingPreparation)
    prepare.prepare("movi_c", str(MOVI), tmp_path / "out", cluster=cluster)
    assert (tmp_path / ".died").exists()
    assert files_of(tmp_path / "out") == files_of(prepared)


def test_after_an_interruption_finished_shards_are_not_made_again(prepared, tmp_path, monkeypatch):
    in_tasks = pieces.in_tasks

    def interrupted(*arguments):
        for note in in_tasks(*arguments):
            yield note
            raise KeyboardInterrupt

    arguments = ["movi_c", f"--source={MOVI}", f"--out={tmp_path}", "--engine=ray"]
    monkeypatch.setattr(pieces, "in_tasks", interrupted)
    assert prepare.main(arguments) == 130
    assert not (tmp_path / "MANIFEST.json").exists()
    finished = [p.name.removesuffix(".json") for p in tmp_path.glob(".unfinished/*record*.json")]
    first = {name: (tmp_path / name).stat().st_mtime_ns for name in finished}
    assert first
    monkeypatch.setattr(pieces, "in_tasks", in_tasks)
    assert prepare.main(arguments) == 0
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in finished} == first
    assert files_of(tmp_path) == files_of(prepared)


def test_an_error_of_a_shard_is_one_line(tmp_path, capsys):
    source = tmp_path / "pictures"
    source.mkdir()
    (source / "a.png").write_bytes(b"no picture")
    arguments = ["folder", f"--source={source}", f"--out={tmp_path / 'out'}"]
    assert prepare.main(arguments) == 2
    expected = capsys.readouterr().err.splitlines()[-1]
    assert prepare.main([*arguments, "--engine=ray"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == expected
    assert "a.png" in expected


TOLD = {6: "a worker died 6 times at the same piece of work, ", 2: "a worker died 2 times, "}


@pytest.fixture
def few_deaths(monkeypatch):
    """A lower limit for actors, each of which takes seconds to begin."""
    monkeypatch.setattr(ray_cluster, "DEATHS", 1)
    monkeypatch.setitem(ray_cluster.ACTOR, "max_restarts", 1)


@pytest.mark.slow
@pytest.mark.parametrize(("do", "times"), [(pieces.in_tasks, 6), (pieces.in_actors, 2)])
def test_a_piece_that_kills_every_worker_is_one_line(cluster, tmp_path, few_deaths, do, times):
    work, cluster = "ray_work:Killer", () if do is pieces.in_tasks else (cluster,)
    with pieces.marked("--out=here", tmp_path) as mark:
        found = do(*cluster, work, (tmp_path,), ["good", "bad"], mark)
        with pytest.raises(UserError, match=f"^{TOLD[times]}") as told:
            list(found)
    assert "\n" not in str(told.value)
    assert len(list(tmp_path.iterdir())) == times


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "times"), [("reading", 6), ("segmenting", 2)])
def test_a_part_of_predict_that_kills_every_worker_is_one_line(
    cluster, tmp_path, few_deaths, monkeypatch, stage, times
):
    import ray
    import ray_work

    quiet_ray_data()
    reader = ray_work.KillerOfRows(tmp_path) if stage == "reading" else lambda row: row
    monkeypatch.setattr(predict, "Read", lambda *arguments: reader)
    monkeypatch.setattr(predict, "_Segment", ray_work.KillerInActor)
    data = ray.data.from_items(["good", "bad"], override_num_blocks=2)
    model = SimpleNamespace(image_size=(8, 8))
    run = predict._Run(None, model, {}, predict.BulkOptions(), cluster, ())
    data = predict._segmented(data, run, tmp_path, 1)
    with pytest.raises(UserError, match=f"^{TOLD[times]}") as told:
        list(rows_of(data))
    assert "\n" not in str(told.value)
    assert len(list(tmp_path.iterdir())) == times


def test_workers_of_another_version_or_without_the_folder_are_refused(
    cluster, tmp_path, monkeypatch
):
    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match) as found:
            prepare.prepare("movi_c", str(MOVI), tmp_path / "out", cluster=cluster)
        assert "\n" not in str(found.value)

    with monkeypatch.context() as patch:
        patch.setattr(pieces, "program", lambda: "of another version")
        refused("install the same version")
    with monkeypatch.context() as patch:
        patch.setattr(pieces.os, "getcwd", lambda: "/of/this/machine/alone")
        refused("has no folder /of/this/machine/alone")
    marked = pieces.marked

    @contextlib.contextmanager
    def elsewhere(option, folder):
        with marked(option, tmp_path) as mark:
            mark.file.unlink()
            yield mark

    with monkeypatch.context() as patch:
        patch.setattr(pieces, "marked", elsewhere)
        refused("does not see --out=.*/out")


# --------------------------------------------------------------------------------------- stores


def test_stored_features_are_those_of_one_process(cluster, tmp_path, monkeypatch):
    import ray_work

    config = tiny_config(2)
    config.data = five_clips(tmp_path / "clips")
    monkeypatch.setattr(store, "SHARD_BYTES", 2 * 7 * 16 * 12 * 2)  # two clips
    store.store(config, tmp_path / "alone")
    monkeypatch.setattr(store, "MakeShard", ray_work.DyingStore)
    store.store(config, tmp_path / "ray", cluster=cluster)
    assert (tmp_path / ".died").exists() and check(tmp_path / "ray") == []
    assert len(list((tmp_path / "ray").glob("*array_record*"))) == 3
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "alone")


def test_stored_slots_are_those_of_one_process(cluster, tmp_path, monkeypatch, capsys):
    config = as_dynamics(tiny_config(5, decoder="mlp_mixture"))
    config.data.update(num_samples=3, min_objects=2, max_objects=3)
    config.eval.update(num_frames=5, validation_samples=1, num_samples=2)
    monkeypatch.setattr(store, "SLOT_SHARD_BYTES", 1)  # one clip in a shard
    store.store(config, tmp_path / "alone")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "write_manifest", interrupted)
        store.store(config, tmp_path / "ray", cluster=cluster)
    store.store(config, tmp_path / "ray", cluster=cluster)  # all but the manifest is there
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "alone")
    store.store(config, tmp_path / "ray", cluster=cluster)
    assert "finished already" in capsys.readouterr().out


# ----------------------------------------------------------------------------------- evaluation


def test_scores_are_those_of_one_process(cluster, tmp_path):
    workdir = untrained_run(tmp_path / "run", 3)
    evaluating.evaluate_run(workdir)
    expected = written(workdir)
    for name in ("scores.json", "scores.csv"):
        (workdir / name).unlink()
    evaluate_run(cluster, workdir)
    assert written(workdir) == expected


def test_a_workdir_without_checkpoint_is_one_line(cluster, tmp_path):
    with pytest.raises(UserError, match="nothing to restore"):
        evaluate_run(cluster, tmp_path)
