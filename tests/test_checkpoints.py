"""Checkpoints: saved values are restored, damage is detected, nothing is lost."""

import errno
import os
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from run_config import get_config

from smoothsa_jax.checkpoints.read import (
    BROKEN_FOLDER,
    FOLDER,
    BrokenCheckpoint,
    best_step,
    flatten_state,
    read_checkpoint,
    restore_latest,
    restore_state,
    steps_found,
)
from smoothsa_jax.checkpoints.write import CheckpointWriter
from smoothsa_jax.config.values import canonical
from smoothsa_jax.errors import UserError
from smoothsa_jax.training.state import create_state

CONFIG = canonical(get_config())
PROGRESS = {"data": {"next_index": 7, "parts": [0.1, "x"]}, "means": {"count": 0, "sums": {}}}


def make_state(step: int, seed: int = 0) -> dict:
    key = jax.random.key(seed)
    params = {
        "decoder.layers.0.kernel": jax.random.normal(key, (8, 600)),
        "initializer.log_std": jnp.full((1, 1, 3), 0.1 * step),
        "scalar": jnp.float32(step),
    }
    state = create_state(params, optax.adam(1e-3))
    state = state.replace(step=jnp.int32(step))
    return {"state": state, "frozen": {"encoder.embed": jax.random.normal(key, (4,))}}


def write(workdir: Path, losses: dict[int, float], **options) -> None:
    writer = CheckpointWriter(workdir, CONFIG, **options)
    for step, loss in losses.items():
        writer.save(step, make_state(step), PROGRESS, {"loss": loss})
    writer.wait()
    writer.close()


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("three")
    write(workdir, {2: 3.0, 4: 2.0, 6: 1.0})
    return workdir


@pytest.fixture
def copy(three_steps, tmp_path) -> Path:
    shutil.copytree(three_steps, tmp_path / "run")
    return tmp_path / "run"


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_all_of_a_state_comes_back_bit_for_bit(three_steps):
    checkpoint = restore_latest(three_steps, warn=pytest.fail)
    assert checkpoint.step == 6
    assert checkpoint.progress == PROGRESS
    assert checkpoint.config == CONFIG
    expected = make_state(6)
    restored = restore_state(jax.tree.map(jnp.zeros_like, expected), checkpoint)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for name, array in flatten_state(expected).items():
        found = flatten_state(restored)[name]
        assert found.dtype == array.dtype and found.shape == array.shape
        np.testing.assert_array_equal(found, array, err_msg=name)
    some = restore_state({"frozen": expected["frozen"]}, checkpoint, only="frozen/")
    np.testing.assert_array_equal(
        some["frozen"]["encoder.embed"], expected["frozen"]["encoder.embed"]
    )


def test_arrays_land_where_the_template_lies(three_steps):
    checkpoint = read_checkpoint(three_steps, 6)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    restored = restore_state(jax.device_put(make_state(0), sharding), checkpoint)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(restored))


def test_a_state_given_away_right_after_save_does_not_change_what_is_saved(tmp_path):
    writer = CheckpointWriter(tmp_path, CONFIG)
    state = make_state(1)
    kept = jax.tree.map(np.array, state)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    writer.save(1, state, PROGRESS, {})
    for _ in range(5):
        state = step(state)
    writer.wait()
    found = read_checkpoint(tmp_path, 1).arrays
    for name, array in flatten_state(kept).items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_arrays_that_never_change_are_saved_beside_the_state(tmp_path):
    writer = CheckpointWriter(tmp_path, CONFIG)
    frozen = {"frozen": {"kernel": jnp.arange(6.0).reshape(2, 3)}}
    for step in (1, 2):
        writer.save(step, make_state(step), PROGRESS, {}, frozen)
    writer.wait()
    for step in (1, 2):
        found = read_checkpoint(tmp_path, step).arrays  # compares checksums
        np.testing.assert_array_equal(found["frozen/kernel"], frozen["frozen"]["kernel"])
        assert found.keys() == flatten_state(make_state(step)).keys() | {"frozen/kernel"}
    frozen["frozen"]["kernel"] = jnp.full(3, np.inf)
    writer = CheckpointWriter(tmp_path, CONFIG)
    with pytest.raises(UserError, match="frozen/kernel is not finite"):
        writer.save(3, make_state(3), PROGRESS, {}, frozen)
        writer.wait()


def test_the_latest_and_the_best_are_kept(tmp_path):
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0, 5: 9.0, 6: 7.0, 7: 8.0}
    write(tmp_path, losses, max_to_keep=3, best_metric="loss", best_mode="min")
    assert steps_found(tmp_path) == [7, 6, 2]
    assert best_step(tmp_path, "loss", "min") == 2
    assert best_step(tmp_path, "loss", "max") == 7
    # Another process knows the metrics of what it finds.
    write(tmp_path, {8: 0.5, 9: 6.0, 10: 6.5}, max_to_keep=3, best_metric="loss", best_mode="min")
    assert steps_found(tmp_path) == [10, 9, 8]
    write(tmp_path, {12: 0.1, 14: 7.0}, max_to_keep=4, best_metric="loss", best_mode="max")
    assert steps_found(tmp_path) == [14, 12, 10, 9]
    write(tmp_path / "two", losses, max_to_keep=2, best_metric="loss", best_mode="min")
    assert steps_found(tmp_path / "two") == [max(losses), min(losses, key=losses.get)]
    write(tmp_path / "plain", losses, max_to_keep=2)
    assert steps_found(tmp_path / "plain") == [7, 6]


def test_a_save_without_metrics_is_never_the_best(tmp_path):
    writer = CheckpointWriter(
        tmp_path, CONFIG, max_to_keep=3, best_metric="fg_ari", best_mode="max"
    )
    for step, metrics in enumerate([{"fg_ari": 0.1}, {}, {"fg_ari": 0.3}, {}, {}], start=1):
        writer.save(step, make_state(step), PROGRESS, metrics)
    writer.wait()
    assert steps_found(tmp_path) == [5, 4, 3]
    assert best_step(tmp_path, "fg_ari", "max") == 3


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def half_copied(folder: Path) -> None:
    # As an interrupted copy leaves it: some items whole, one truncated, the others missing.
    shutil.rmtree(folder / "state")
    shutil.rmtree(folder / "progress")


def part_of_state(folder: Path) -> None:
    for file in (folder / "state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.unlink()


def truncated(folder: Path) -> None:
    for file in (folder / "state").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)


def truncated_largest(folder: Path) -> None:
    file = max((folder / "state").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    os.truncate(file, file.stat().st_size - 1)


def truncated_config(folder: Path) -> None:
    os.truncate(folder / "config" / "metadata", 40)


def truncated_metrics(folder: Path) -> None:
    (folder / "metrics").mkdir(exist_ok=True)
    (folder / "metrics" / "metrics").write_text('{"lo')


DAMAGE = [
    empty,
    half_copied,
    part_of_state,
    truncated,
    truncated_largest,
    truncated_config,
    truncated_metrics,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=[d.__name__ for d in DAMAGE])
def test_a_broken_newest_step_is_skipped_with_a_warning_and_kept(copy, capfd, damage):
    damage(copy / FOLDER / "6")
    before = files_below(copy)
    warnings: list[str] = []
    assert restore_latest(copy, warn=warnings.append).step == 4
    assert len(warnings) == 1 and str(copy / FOLDER / "6") in warnings[0]
    assert "\n" not in warnings[0]
    assert files_below(copy) == before
    assert "Traceback" not in capfd.readouterr().err

    # A resumed run sets it aside, and saves at its number again.
    warnings.clear()
    assert restore_latest(copy, warn=warnings.append, set_aside=True).step == 4
    assert str(copy / BROKEN_FOLDER / "6") in warnings[0]
    broken = {k.replace(f"{FOLDER}/6/", ""): v for k, v in before.items() if f"{FOLDER}/6/" in k}
    assert files_below(copy / BROKEN_FOLDER / "6") == broken
    write(copy, {6: 1.0})
    assert restore_latest(copy, warn=pytest.fail).step == 6
    # Once more: the first broken one stays too.
    damage(copy / FOLDER / "6")
    assert restore_latest(copy, warn=warnings.append, set_aside=True).step == 4
    assert files_below(copy / BROKEN_FOLDER / "6") == broken
    assert (copy / BROKEN_FOLDER / "6_2").is_dir()


@pytest.mark.parametrize("damage", DAMAGE, ids=[d.__name__ for d in DAMAGE])
def test_a_broken_older_step_does_not_stop_a_run(copy, damage):
    damage(copy / FOLDER / "2")
    assert restore_latest(copy, warn=lambda _: None, set_aside=True).step == 6
    write(copy, {8: 1.0}, best_metric="loss")
    assert restore_latest(copy, warn=pytest.fail).step == 8


def test_two_broken_steps_and_all_broken(copy):
    warnings: list[str] = []
    truncated(copy / FOLDER / "6")
    empty(copy / FOLDER / "4")
    assert restore_latest(copy, warn=warnings.append).step == 2
    assert len(warnings) == 2
    half_copied(copy / FOLDER / "2")
    assert restore_latest(copy, warn=warnings.append) is None
    assert restore_latest(copy / "nowhere", warn=pytest.fail) is None


def test_a_changed_value_is_noticed_although_every_file_can_be_read(copy):
    """The store has its own checksums; the checkpoint's checksum covers what Orbax returns."""
    import json

    file = copy / FOLDER / "6" / "arrays" / "metadata"
    listed = json.loads(file.read_text())
    listed["frozen/encoder.embed"][2] += 1
    file.write_text(json.dumps(listed))
    with pytest.raises(BrokenCheckpoint, match="frozen/encoder.embed is damaged"):
        read_checkpoint(copy, 6)


def test_what_a_killed_save_left_is_no_checkpoint(copy):
    shutil.copytree(copy / FOLDER / "6", copy / FOLDER / "8.orbax-checkpoint-tmp")
    assert steps_found(copy) == [6, 4, 2]
    write(copy, {8: 1.0}, max_to_keep=5)
    assert restore_latest(copy, warn=pytest.fail).step == 8


def test_another_architecture_names_the_first_arrays_that_differ(three_steps):
    checkpoint = read_checkpoint(three_steps, 6)
    template = make_state(0)
    params = template["state"].params
    params["decoder.layers.0.kernel"] = jnp.zeros((8, 700))
    params["decoder.layers.1.kernel"] = jnp.zeros(2)
    del params["scalar"]
    with pytest.raises(UserError) as error:
        restore_state({"state": {"params": params}}, checkpoint, only="state/params/")
    text = str(error.value)
    assert (
        "state/params/decoder.layers.0.kernel (checkpoint float32[8, 600], model float32[8, 700])"
        in text
    )
    assert "state/params/decoder.layers.1.kernel (checkpoint absent, model float32[2])" in text
    assert "state/params/scalar (checkpoint float32[], model absent)" in text


def save_and_wait(writer: CheckpointWriter, step: int) -> None:
    writer.save(step, make_state(step), PROGRESS, {"loss": 1.0})
    writer.wait()


def wait_until_still(folder: Path) -> None:
    """A run ends after a failure, while Orbax's other threads may still be writing."""
    before, deadline = None, time.monotonic() + 20
    while before != (now := sorted(folder.rglob("*"))) and time.monotonic() < deadline:
        before = now
        time.sleep(0.5)


def test_a_full_disk_is_one_line_and_leaves_earlier_checkpoints(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path, CONFIG)
    save_and_wait(writer, 2)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # Below Orbax, in its background thread: where a full disk is met.
    with monkeypatch.context() as patch:
        patch.setattr(ocp.JsonCheckpointHandler, "_save_fn", full, raising=True)
        with pytest.raises(UserError) as error:
            save_and_wait(writer, 4)
    text = str(error.value)
    assert "checkpoint of step 4 could not be written" in text
    assert "No space left on device" in text and "\n" not in text
    assert f"the last good checkpoint is {tmp_path / FOLDER / '2'}" in text
    assert restore_latest(tmp_path, warn=lambda _: None).step == 2
    writer.close()
    wait_until_still(tmp_path)
    # When there is space again, the same step can be saved.
    assert restore_latest(tmp_path, warn=lambda _: None, set_aside=True).step == 2
    writer = CheckpointWriter(tmp_path, CONFIG)
    save_and_wait(writer, 4)
    assert restore_latest(tmp_path, warn=pytest.fail).step == 4


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    writer = CheckpointWriter(tmp_path, CONFIG)
    save_and_wait(writer, 2)
    state = make_state(4)
    state["state"].params["scalar"] = jnp.float32(np.nan)
    with pytest.raises(UserError, match="state/params/scalar is not finite") as error:
        writer.save(4, state, PROGRESS, {"loss": 1.0})
        writer.wait()
    assert str(tmp_path / FOLDER / "2") in str(error.value)
    writer.close()
    assert steps_found(tmp_path) == [2]


def test_no_permission_is_told_and_is_no_broken_checkpoint(copy, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        restore_latest(copy, warn=pytest.fail)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        restore_latest(copy, warn=pytest.fail)


def test_a_folder_whose_name_is_not_utf8_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match=r"w\\xffr/checkpoints, whose name is not UTF-8"):
        CheckpointWriter(f"{tmp_path}/w\udcffr", get_config("image"))
