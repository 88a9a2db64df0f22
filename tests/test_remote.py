"""Prepared folders in a bucket: copies of shards, and what can go wrong."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fake_training
import fsspec
import numpy as np
import pytest
from command import ROOT
from fsspec.implementations.memory import MemoryFileSystem
from prepared_folders import blobs, write_folder
from test_prepared import _assert_same, _run_config, _source

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import addresses, remote
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.features import CachedFeatures, features_folder
from smoothsa_jax.inputs.found import is_stored
from smoothsa_jax.inputs.loader import training_batches
from smoothsa_jax.inputs.records import NoSuchSplit, Records
from smoothsa_jax.training.loop import train

ADDRESS = "memory://bucket/sets/mini"
SHARDS = [f"mini-train.array_record-{i:05d}-of-00003" for i in range(3)]


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    return [blobs(rng, 4, 20, 30, 4) for _ in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clips):
    return write_folder(tmp_path_factory.mktemp("clips") / "mini", clips)


@pytest.fixture
def bucket(folder):
    """The folder in fsspec's memory, as if this process had just started."""
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/sets/", recursive=True)
    remote._opened.cache_clear()
    yield memory
    memory.rm("/bucket", recursive=True)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def fetched(monkeypatch):
    """The names of the shards that are copied from memory, in order."""
    names, get = [], MemoryFileSystem.get_file

    def counted(self, there, here, **options):
        names.append(there.rsplit("/", 1)[-1])
        return get(self, there, here, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counted)
    return names


def copies(cache: Path) -> list[str]:
    """The shards in the cache, and any half of one."""
    return sorted(path.name for path in cache.glob("*/*.array_record*"))


def refused(cache, address=ADDRESS, **options) -> str:
    """The one line of opening a folder and reading its first record."""
    with pytest.raises(UserError) as error:
        Records(address, "train", cache, **options)[0]
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------------------------- reading


def test_samples_are_those_of_the_folder(bucket, folder, cache, fetched):
    here, there = _source(folder), _source(ADDRESS, cache=cache)
    assert fetched == [] and there.fingerprint() == here.fingerprint() is not None
    assert list(there.epoch()) == list(here.epoch())
    for index in (7, 0, 7, 1):
        drawn = [source.draw(index, np.random.default_rng(3)) for source in (there, here)]
        for got, want in [(there[index], here[index]), drawn]:
            _assert_same(got, want)
    assert fetched == [SHARDS[2], SHARDS[0]]  # what was read, once
    assert copies(cache) == sorted(fetched)
    for name in fetched:
        assert (next(cache.iterdir()) / name).read_bytes() == (folder / name).read_bytes()


def test_another_process_copies_nothing_again(bucket, cache, fetched):
    first = [Records(ADDRESS, "train", cache)[i] for i in range(8)]
    assert fetched == SHARDS
    remote._opened.cache_clear()  # as another process finds it
    assert [Records(f"{ADDRESS}/", "train", cache)[i] for i in range(8)] == first
    assert fetched == SHARDS


def test_training_batches_are_those_of_the_folder(bucket, folder, cache, fetched):
    def batches(folder, **options):
        taken = training_batches(_source(folder, **options), 3, seed=2, num_threads=4)
        return [next(taken) for _ in range(6)]

    for got, want in zip(batches(ADDRESS, cache=cache), batches(folder), strict=True):
        _assert_same(got, want)
    assert sorted(fetched) == SHARDS


def test_the_default_cache_is_the_users(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("SMOOTHSA_JAX_CACHE", str(tmp_path / "named"))
    assert Records(ADDRESS, "train").folder.parent == tmp_path / "named" / "prepared"
    monkeypatch.delenv("SMOOTHSA_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = tmp_path / "home" / ".cache" / "smoothsa_jax" / "prepared"
    assert Records(ADDRESS, "train").folder.parent == expected
    data = {"name": "prepared", "folder": ADDRESS, "cache": "~/mine", "max_objects": 4}
    build_dataset({**data, "image_size": 16, "num_frames": 3}, "train")[0]
    assert copies(tmp_path / "home" / "mine") == [SHARDS[0]]


def test_another_preparation_gets_another_folder_of_copies(bucket, clips, cache, tmp_path):
    before = Records(ADDRESS, "train", cache)
    old = before[0]
    other = write_folder(tmp_path / "mini", clips[::-1])
    bucket.put(str(other), "/bucket/sets/", recursive=True)
    remote._opened.cache_clear()
    after = Records(ADDRESS, "train", cache)
    assert after.folder != before.folder
    assert after[0] == Records(other, "train")[0] != old
    assert before[0] == old


def test_a_run_moves_from_a_folder_to_a_bucket(tmp_path, clips, monkeypatch, capsys):
    fake_training.use(monkeypatch)
    folder = write_folder(tmp_path / "set", clips)
    config = _run_config(folder)
    train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    config.data.folder, config.data.cache = f"file://{folder}", str(tmp_path / "cache")
    train(config, tmp_path / "run")
    assert "resuming from step 2 of 4" in capsys.readouterr().err
    assert copies(tmp_path / "cache")


def test_features_and_slots_may_lie_there_too(bucket, cache):
    data = {"folder": "x", "cache": str(cache)}
    copied = features_folder({**data, "features": ADDRESS})
    assert copied.parent == cache and (copied / "MANIFEST.json").is_file()
    assert not is_stored({**data, "slots": ADDRESS}, "train")
    with pytest.raises(UserError, match="bucket/sets/mini is not on this machine; store them"):
        features_folder({"folder": ADDRESS, "features": "auto"})


# ------------------------------------------------------------------------------ several processes


def test_threads_copy_a_shard_once_and_several_at_once(bucket, cache, monkeypatch):
    get, running, most, names = MemoryFileSystem.get_file, set(), [0], []
    both = threading.Barrier(2, timeout=20)

    def slow(self, there, here, **options):
        running.add(there)
        names.append(there)
        most[0] = max(most[0], len(running))
        both.wait()  # the copy of another shard has begun
        get(self, there, here, **options)
        running.discard(there)

    monkeypatch.setattr(MemoryFileSystem, "get_file", slow)
    several = [Records(ADDRESS, "train", cache) for _ in range(3)]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: several[i % 3][3 * (i % 2)], range(8)))
    assert len(names) == len(set(names)) == most[0] == 2
    assert len(set(read)) == 2


# Copies one shard, half of it at once; a line tells that it has begun.
COPY = """
import sys, time
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from smoothsa_jax.inputs import remote

def get(self, there, here, **options):
    data = Path(there).read_bytes()
    with open(here, "wb") as file:
        file.write(data[:100])
        file.flush()
        print("begun", flush=True)
        time.sleep(float(sys.argv[4]))
        file.write(data[100:])

LocalFileSystem.get_file = get
print(remote.available(remote.local_folder(sys.argv[1], sys.argv[2]), sys.argv[3]), flush=True)
"""


def copying(folder, cache, seconds) -> subprocess.Popen:
    command = [sys.executable, "-c", COPY, f"file://{folder}", str(cache), SHARDS[1], str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_copy_a_shard_once(folder, cache):
    processes = [copying(folder, cache, 0.5) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sum(output.count("begun") for output in outputs) == 1
    assert {output[-1] for output in outputs} == {str(next(cache.iterdir()) / SHARDS[1])}
    assert copies(cache) == [SHARDS[1]]


def test_a_killed_copy_leaves_nothing_that_is_read(folder, cache):
    process = copying(folder, cache, 60)
    assert process.stdout.readline() == "begun\n"
    waiting = copying(folder, cache, 0)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    waiting.communicate(timeout=60)
    (copy,) = cache.iterdir()
    assert copies(cache) == [SHARDS[1]]  # and no half of it
    assert (copy / SHARDS[1]).read_bytes() == (folder / SHARDS[1]).read_bytes()


# ---------------------------------------------------------------------------------------- refusals


def test_no_bucket_and_no_prepared_folder(bucket, cache):
    line = refused(cache, "memory://elsewhere/mini")
    assert line.startswith("memory://elsewhere/mini has no MANIFEST.json: there is no such bucket")
    bucket.rm("/bucket/sets/mini/dataset_info.json")
    assert "has no dataset_info.json" in refused(cache)
    assert "nowhere://bucket/x cannot be read" in refused(cache, "nowhere://bucket/x")
    assert not copies(cache)


def test_a_library_that_is_not_installed(cache, monkeypatch):
    def absent(address):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    line = refused(cache, "gs://bucket/absent")
    assert "Please install gcsfs" in line and "'smoothsa_jax[cloud]'" in line


class NoCredentialsError(Exception):
    """As botocore has it."""


class HttpError(Exception):
    """As gcsfs has it."""

    code = 401


@pytest.mark.parametrize(
    "error, expected",
    [
        (NoCredentialsError("Unable to locate"), "with the credentials of this machine"),
        (HttpError("Anonymous caller"), "with the credentials of this machine"),
        (PermissionError("Forbidden"), "with the credentials of this machine"),
        (TimeoutError(), "cannot be read .TimeoutError: TimeoutError.; check the address and the"),
        (RuntimeError("two\nlines"), "cannot be read .RuntimeError: two lines."),
    ],
)
def test_what_libraries_raise_is_one_line(bucket, cache, monkeypatch, error, expected):
    def fails(*arguments, **options):
        raise error

    for method in ("cat_file", "ls", "get_file"):
        remote._opened.cache_clear()
        shutil.rmtree(cache, ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, method, fails)
            line = refused(cache)
        assert line.startswith("memory://bucket/sets/mini")
        with pytest.raises(UserError, match=expected):
            raise UserError(line)
    assert not copies(cache)


@pytest.mark.parametrize(
    "address, told",
    [
        ("--input=gs://bucket/x", "gs://bucket/x may not be read with the credentials"),
        ("--input=/data/x", "/data/x cannot be read .*Denied.; correct this"),
    ],
)
def test_what_may_not_be_read_is_told_for_buckets_and_for_disks(address, told):
    with pytest.raises(UserError, match=told), addresses.explained(address):
        raise PermissionError(13, "Denied")


def test_a_shard_that_changed(bucket, cache):
    records = Records(ADDRESS, "train", cache)
    bucket.pipe(f"/bucket/sets/mini/{SHARDS[0]}", b"x" * 200_000)
    with pytest.raises(UserError, match=f"mini/{SHARDS[0]} has the SHA-256 .*changed or damaged"):
        records[0]
    assert not copies(cache) and len(records[3]) > 0
    bucket.rm(f"/bucket/sets/mini/{SHARDS[2]}")
    with pytest.raises(UserError, match=f"{SHARDS[2]} is not there any more"):
        records[7]
    assert copies(cache) == [SHARDS[1]]


def test_a_bucket_that_lacks_shards_or_checksums(bucket, cache):
    bucket.rm([f"/bucket/sets/mini/{name}" for name in SHARDS[1:]])
    line = refused(cache)
    assert f"{ADDRESS} lacks {SHARDS[1]} and 1 more, of 3 shards" in line
    assert line.endswith("copy the whole folder there again")  # data.prepare writes no bucket
    expected = f"{ADDRESS} has no split 'test'; it has: train; .* or copy a folder there that has"
    with pytest.raises(NoSuchSplit, match=expected):
        Records(ADDRESS, "test", cache)
    manifest = json.loads(bucket.cat("/bucket/sets/mini/MANIFEST.json"))
    del manifest["splits"]["train"]["shards"][0]["sha256"]
    for damaged in (json.dumps(manifest).encode(), b"{", b"[]"):
        bucket.pipe("/bucket/sets/mini/MANIFEST.json", damaged)
        remote._opened.cache_clear()
        assert "MANIFEST.json does not list the checksums" in refused(cache)


def test_a_damaged_copy_is_named(bucket, cache):
    records = Records(ADDRESS, "train", cache)
    copy = remote.available(records.folder, SHARDS[0])
    copy.write_bytes(copy.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{copy} holds 0 .*delete it and run the same command"):
        records[0]


def test_too_little_room(bucket, folder, cache, monkeypatch):
    one = (folder / SHARDS[0]).stat().st_size
    usage = shutil.disk_usage("/")
    free = remote.RESERVE + int(1.5 * one)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    source = _source(ADDRESS, cache=cache)
    with pytest.raises(UserError, match="make room, or name a larger disk with --config.data.cach"):
        training_batches(source, 1, seed=0)  # before anything is read
    # The first three samples are all in the first shard, and to look at one needs no more.
    assert list(_source(ADDRESS, cache=cache, num_samples=3).epoch()) == [0, 1, 2]
    assert len(source[1]["video"])
    free = remote.RESERVE
    with pytest.raises(UserError, match=f"the copy of {ADDRESS}/{SHARDS[1]} takes .* GB left"):
        source.records[3]
    free += 2 * (folder / SHARDS[1]).stat().st_size  # what is there already needs no room
    assert len(source.epoch()) == 8


def test_copies_of_stored_features_need_room(folder, bucket, cache, monkeypatch):
    path = "/bucket/sets/mini/MANIFEST.json"
    bucket.pipe(path, bucket.cat(path).replace(b'"clips"', b'"features"'))
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    copied = features_folder({"folder": folder, "features": ADDRESS, "cache": cache})
    stored = CachedFeatures(_source(folder), copied, "train")
    with pytest.raises(UserError, match=f"the copy of {ADDRESS} takes .* make room"):
        training_batches(stored, 1, seed=0)


def test_a_file_system_without_locks(bucket, cache, monkeypatch):
    def absent(handle, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(remote.fcntl, "flock", absent)
    line = refused(cache)
    assert line.endswith("name a folder on a disk of this machine with --config.data.cache")
    assert f"{SHARDS[0]} cannot be locked (Function not implemented)" in line
    assert not copies(cache)


def test_a_disk_that_fills_up(bucket, cache, monkeypatch):
    def full(self, there, here, **options):
        Path(here).write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MemoryFileSystem, "get_file", full)
    assert f"the disk is full while {ADDRESS}/{SHARDS[0]} is copied" in refused(cache)
    assert not copies(cache)
