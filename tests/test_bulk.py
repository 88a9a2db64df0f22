"""The parts of `--engine=ray` that need no Ray: what is read, decoded and written, and refusals."""

import errno
import importlib.util
import io
import json
import os
import socket
import subprocess
import tarfile
import time
import types

import fsspec
import numpy as np
import pytest
from command import here
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from tiny import as_dynamics, tiny_config

from data.rle import decode
from smoothsa_jax.bulk import cluster, corpus, lease, parts, predict, reading, storage
from smoothsa_jax.bulk.packing import packed, unpacked
from smoothsa_jax.bulk.reading import Bad, Clip, Long, decoded
from smoothsa_jax.bulk.rows import Rows, Segmented, encoded, segments_of
from smoothsa_jax.bulk.storage import Folder
from smoothsa_jax.checkpoints.sources import begin
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.inference.results import boxes_of
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.inputs.found import is_stored, opened
from smoothsa_jax.inputs.questions import QuestionsOfClips
from smoothsa_jax.tasks.stored import refuse_other_slots
from smoothsa_jax.training.step import build_training

pq = pytest.importorskip("pyarrow.parquet", reason="pip install '.[ray]'")
pa = pytest.importorskip("pyarrow")
SIZE = (8, 8)


def png(seed=0, size=(6, 10)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "inner").mkdir(parents=True)
    for seed, name in enumerate(("a12.png", "a10.png", "a9.png", "inner/b.png")):
        (folder / name).write_bytes(png(seed))
    (folder / "notes.doc").write_text("no picture")
    return folder


def in_memory(folder, name):
    store = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            store.pipe_file(f"/{name}/{path.relative_to(folder)}", path.read_bytes())
    return f"memory://{name}"


def tar_of(folder, path):
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.rglob("*.png")):
            tar.add(file, file.relative_to(folder))
    return path


def pixels_of(items):
    return [x.frames for x in decoded(list(items), SIZE)]


def test_every_form_of_a_corpus_gives_the_same_pictures(pictures, tmp_path):
    local = corpus.find(str(pictures))
    names = ["a9.png", "a10.png", "a12.png", "inner/b.png"]
    assert [item.name for item in local.items] == names
    assert any("notes.doc" in line for line in local.left_out)
    remote = corpus.find(in_memory(pictures, "bucket"))
    assert [item.name for item in remote.items] == names
    assert any("notes.doc" in line for line in remote.left_out)
    listed = tmp_path / "corpus.txt"
    listed.write_text("\n".join(f"pictures/{name}" for name in names) + "\n# the end\n")
    tar = tar_of(pictures, tmp_path / "shard-0.tar")
    columns = {
        "paths": pa.array([f"pictures/{name}" for name in names]),
        "pictures": pa.array([{"bytes": (pictures / name).read_bytes()} for name in names]),
    }
    pq.write_table(
        pa.table({"image": columns["pictures"]}), tmp_path / "b.parquet", row_group_size=2
    )
    pq.write_table(pa.table({"path": columns["paths"]}), tmp_path / "p.parquet")
    expected = pixels_of(local.items)
    others = [listed, tmp_path / "b.parquet", tmp_path / "p.parquet", in_memory(pictures, "bucket")]
    for other in others:
        found = pixels_of(corpus.find(str(other)).items)
        np.testing.assert_array_equal(found, expected, err_msg=str(other))
    in_tar = corpus.find(str(tar)).items
    assert [x.name for x in in_tar] == [f"shard-0.tar/{names[i]}" for i in (1, 2, 0, 3)]
    np.testing.assert_array_equal(pixels_of(in_tar), [expected[i] for i in (1, 2, 0, 3)])
    assert corpus.find(str(pictures)).digest == local.digest
    (pictures / "c.png").write_bytes(png(9))
    assert corpus.find(str(pictures)).digest != local.digest


@pytest.mark.parametrize("marker", ["/marked", "/marked/", "/marked/inner/"])
def test_an_empty_object_that_stands_for_a_folder_is_no_input(pictures, monkeypatch, marker):
    """A console of S3 makes one for each folder, and s3fs lists it among the files."""
    url = in_memory(pictures, "marked")
    expected = corpus.find(url)
    find = fsspec.get_filesystem_class("memory").find
    monkeypatch.setattr(
        fsspec.get_filesystem_class("memory"), "find", lambda *x: sorted([marker, *find(*x)])
    )
    found = corpus.find(url)
    assert (found.items, found.left_out) == (expected.items, expected.left_out)


@pytest.mark.parametrize("cpus", [2, 4])
def test_readers_have_cores_where_each_accelerator_takes_one(cpus):
    """Two accelerators and a reader at least fit onto the cores at once, else nothing begins."""
    found = cluster.Cluster(None, cpus, "GPU", 2)
    assert found.workers == 2 and found.of_worker["num_gpus"] == 1
    taken = found.workers * found.of_worker["num_cpus"]
    assert taken + found.of_reader["num_cpus"] <= cpus


def test_numbered_pictures_in_a_store_are_a_video(tmp_path):
    folder = tmp_path / "clips" / "one"
    folder.mkdir(parents=True)
    for number in (8, 9, 10):
        (folder / f"{number}.png").write_bytes(png(number))
    url = in_memory(tmp_path / "clips", "videos")
    (item,) = corpus.find(url).items
    assert (item.name, item.kind) == ("one", "frames")
    assert [x.rpartition("/")[2] for x in item.urls] == ["8.png", "9.png", "10.png"]
    assert len(corpus.find(url, "pictures").items) == 3
    (clip,) = decoded([item], SIZE)
    assert clip.frames.shape == (3, *SIZE, 3) and clip.size == (6, 10)
    assert decoded([item], SIZE, most_bytes=2 * 8 * 8 * 3) == [Long(item)]
    (folder / "11.png").write_bytes(png(11, (7, 10)))
    (bad,) = decoded(list(corpus.find(str(tmp_path / "clips")).items), SIZE)
    assert "a frame has 7x10 pixels, those before it 6x10" in bad.reason


def test_a_glob_of_a_store_is_read_as_one_here(tmp_path):
    """Folders that match are searched; files that match are no frames."""
    for folder in ("shots/a1", "shots/a2", "shots/b1"):
        (tmp_path / folder).mkdir(parents=True)
        for number in (1, 2):
            (tmp_path / folder / f"{number}.png").write_bytes(png(number))
    url = in_memory(tmp_path, "globs")
    for pattern in ("shots/a?", "shots/[a]*", "shots/a[12]/*.png", "**/1.png", "shots/**"):
        here, there = (corpus.find(f"{x}/{pattern}").items for x in (tmp_path, url))
        assert [(x.name, x.kind) for x in there] == [(x.name, x.kind) for x in here], pattern
        np.testing.assert_array_equal(pixels_of(there), pixels_of(here), err_msg=pattern)


def test_another_corpus_of_the_same_names_is_told_apart(tmp_path, monkeypatch):
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png())
        digests.add(corpus.find(str(tmp_path / name)).digest)
    table = {name: pa.array([png(seed)]) for seed, name in enumerate(("left", "right"))}
    pq.write_table(pa.table(table), tmp_path / "views.parquet")
    digests |= {corpus.find(str(tmp_path / "views.parquet"), column=x).digest for x in table}
    assert len(digests) == 4
    monkeypatch.chdir(tmp_path)  # workers may run in another folder
    assert corpus.find("one").items == corpus.find(str(tmp_path / "one")).items
    assert Folder("out").where == str(tmp_path / "out")


def test_what_cannot_be_read_is_told_and_the_rest_is_read(pictures):
    (pictures / "broken.png").write_bytes(png()[:50])
    items = [
        *corpus.find(str(pictures)).items,
        corpus.Item("gone.png", "picture", ("/no/gone.png",)),
    ]
    found = {x.name: x for x in decoded(items, SIZE)}
    assert isinstance(found["broken.png"], Bad) and found["broken.png"].reason
    assert found["gone.png"].reason == "it does not exist"
    assert sum(isinstance(x, Clip) for x in found.values()) == 4


@pytest.mark.parametrize("error", [MemoryError(), UserWarning("of a client")])
def test_only_what_is_wrong_with_a_file_is_noted(error, pictures, monkeypatch):
    """A worker without memory is not the file's fault; errors of a store's client are."""

    def raising(*arguments):
        raise error

    monkeypatch.setattr(reading, "read", raising)
    items = list(corpus.find(str(pictures)).items)
    if isinstance(error, MemoryError):
        with pytest.raises(MemoryError):
            decoded(items, SIZE)
    else:
        assert {x.reason for x in decoded(items, SIZE)} == {"UserWarning: of a client"}


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("gs://bucket/clips", "gs://bucket/clips"),
        ("nothing://here", "nothing://here cannot be read"),
        ("memory://no-such-bucket", "memory://no-such-bucket does not exist"),
        ("{tmp}/none", "does not exist; expected images"),
        ("{tmp}", "contains no readable input"),
        ("{tmp}/x.tar.gz", "is a compressed tar"),
        ("{tmp}/bad.tar", "cannot be read as a tar"),
        ("{tmp}/bad.parquet", "cannot be read as Parquet"),
        ("{tmp}/numbers.parquet", "expected one column of paths or bytes, it has none"),
        ("{tmp}/list.txt", "line 1 of --input={tmp}/list.txt is clip.doc"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_refused_in_one_line(named, told, tmp_path, monkeypatch):
    if named.startswith("gs"):

        def no_credentials(*arguments, **options):
            raise PermissionError("Anonymous caller does not have storage.objects.list access")

        monkeypatch.setattr(fsspec.core, "url_to_fs", no_credentials)
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    (tmp_path / "bad.parquet").write_bytes(b"x" * 2000)
    (tmp_path / "list.txt").write_text("clip.doc\n")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "numbers.parquet")
    with pytest.raises(UserError) as error:
        corpus.find(named.format(tmp=tmp_path))
    assert told.format(tmp=tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_column_of_something_else_is_refused(tmp_path):
    file = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"n": [1], "path": ["a.png"]}), file)
    assert corpus.find(str(file)).items[0].name == "a.png"
    with pytest.raises(UserError, match=r"column 'n' of .* is int64; expected paths or bytes"):
        corpus.find(str(file), column="n")
    with pytest.raises(UserError, match="has no column 'x'; it has n, path"):
        corpus.find(str(file), column="x")


class EndpointConnectionError(Exception):
    """As botocore has it."""


def without_its_client():
    error = UserError("s3://bucket/a.png cannot be read (Install s3fs)")
    error.__cause__ = ImportError("Install s3fs")
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EBUSY, "Please reduce your request rate"),
        TimeoutError(),
        EndpointConnectionError("Could not connect"),
        without_its_client(),
    ],
)
def test_what_is_wrong_with_the_machine_is_not_noted_of_the_file(error, pictures, monkeypatch):
    """The part would count as finished, and its good files would never be read."""
    (item, *_) = corpus.find(str(pictures / "*.png")).items

    def fails(*arguments):
        raise error

    monkeypatch.setattr(reading, "read", fails)
    monkeypatch.setattr(reading.media, "opened", fails)
    with pytest.raises(UserError) as told:
        decoded([item], SIZE)
    assert item.urls[0] in str(told.value) or "Install s3fs" in str(told.value)


class Bucket(MemoryFileSystem):
    """What s3fs and gcsfs do: they make buckets when asked for a folder."""

    protocol = ("s3", "s3a")
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(
            path.replace("s3a://", "memory://").replace("s3://", "memory://")
        )

    def unstrip_protocol(self, name):
        return f"s3://{name.lstrip('/')}"

    def makedirs(self, path, exist_ok=False):
        raise AssertionError("a bucket was made")


@pytest.fixture
def bucket(monkeypatch):
    system = Bucket(skip_instance_cache=True)
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (system, system._strip_protocol(url)))
    return system


def test_writing_makes_no_bucket(bucket):
    Folder("s3://typo/out").write("run.json", b"{}")
    assert Folder("s3://typo/out").read("run.json") == b"{}"


def test_both_protocols_of_a_store_name_the_same_files(bucket):
    for place in ("1", "2"):
        bucket.pipe_file(f"/sets/{place}/a.png", png())
        bucket.pipe_file(f"/sets/{place}/out/b.png", png())
    found = [
        [x.name for x in corpus.find(f"{protocol}://sets", without="s3a://sets/1/out").items]
        for protocol in ("s3", "s3a")
    ]
    assert found[0] == found[1] == ["1/a.png", "2/a.png", "2/out/b.png"]


def test_an_empty_member_of_a_tar_in_a_store_is_no_bytes(bucket):
    bucket.pipe_file("/sets/x.tar", b"x" * 1000)
    assert storage.read("s3://sets/x.tar", 512, 0) == b""
    assert storage.read("s3://sets/x.tar", 998, 9) == b"xx"


@pytest.mark.parametrize("size", [(8, 8), (30, 41), (5, 3)])
def test_masks_at_the_size_of_the_picture_are_those_of_plain_predict(size):
    rng = np.random.default_rng(1)
    shares = rng.random((5, 7, 9)).astype(np.float32)
    used = np.array([True, True, False, True, True])
    expected = segments_from_masks(shares, size, used)
    np.testing.assert_array_equal(segments_of(shares, size, used), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_boxes_and_areas_are_those_of_each_mask_alone(dtype):
    segments = (
        np.random.default_rng(0).choice([0, 2, 5], (7, 11), p=[0.9, 0.07, 0.03]).astype(dtype)
    )
    found = boxes_of(segments)
    assert [x["slot"] for x in found] == [0, 2, 5]
    for x in found:
        rows, columns = np.nonzero(segments == x["slot"])
        assert x["box"] == [columns.min(), rows.min(), columns.max(), rows.max()]
        assert x["pixels"] == len(rows)


def test_run_lengths_decode_to_the_mask():
    rng = np.random.default_rng(2)
    masks = [rng.random((50, 70)) < share for share in (0.0, 0.02, 0.5, 1.0)]
    masks.append(np.zeros((300, 200), bool))
    masks[-1][3:, 20:40] = True
    for mask in masks:
        rle = {"size": list(mask.shape), "counts": encoded(mask)}
        np.testing.assert_array_equal(decode(rle, mask.shape, "mask"), mask)


def segmented(name, frames, seed=0, note=""):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.random((frames, *shape)).astype(np.float32)  # noqa: E731
    used, cold = np.ones((frames, 3), bool), np.arange(frames) == 0
    return Segmented(name, (12, 10), note, draw(3, 4), draw(3, 4, 4), used, cold)


@pytest.mark.parametrize("masks", [None, "rle", "png"])
def test_a_part_is_the_same_bytes_each_time_and_reads_back(masks, tmp_path):
    outcomes = [Rows.of(segmented("a.mp4", 3, 1, "frame 4 is missing"), masks)]
    outcomes += [Bad("b.png", "broken"), Rows.of(segmented("c.png", 1, 2), masks)]
    folder = Folder(tmp_path)
    done = parts.write_part(folder, 0, 1, outcomes, 7, (3, 4), masks)
    assert parts.write_part(folder, 0, 1, outcomes, 7, (3, 4), masks) == done
    assert parts.finished_part(folder, 0, 1) == done
    assert (done.files, done.frames, done.errors, done.noted) == (3, 4, 1, 2)
    name = parts.part_name(0, 1)
    table = pq.read_table(tmp_path / "parts" / name)
    rows = table.to_pylist()
    assert [(x["file"], x["frame"]) for x in rows] == [
        *(("a.mp4", t) for t in range(3)),
        ("c.png", 0),
    ]
    np.testing.assert_array_equal(rows[3]["slots"], outcomes[2].slots[0])
    assert all(sum(x["areas"]) == 120 for x in rows) and {x["model"] for x in rows} == {7}
    if masks == "rle":
        for slot, text in enumerate(rows[0]["masks"]):
            mask = decode({"size": [12, 10], "counts": text}, (12, 10), "mask")
            assert mask.sum() == rows[0]["areas"][slot]
    if masks == "png":
        labels = np.asarray(Image.open(io.BytesIO(rows[0]["masks"])))
        assert np.bincount(labels.ravel(), minlength=3).tolist() == rows[0]["areas"]
    errors = pq.read_table(tmp_path / "errors" / name).to_pylist()
    assert {x["file"]: x["frames"] for x in errors} == {"b.png": 0, "a.mp4": 3}
    assert table.num_rows == 4
    data = (tmp_path / "parts" / name).read_bytes()
    (tmp_path / "parts" / name).write_bytes(data[: len(data) // 2])
    assert parts.finished_part(folder, 0, 1) is None


def test_arrays_are_packed_and_come_back_without_a_copy():
    frames = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    given = [Clip("a", frames, (10, 14)), Bad("b", "why"), np.float32(frames[:, 0]), np.zeros(0)]
    data = packed(given)
    clip, bad, numbers, empty = unpacked(data)
    np.testing.assert_array_equal(clip.frames, frames)
    np.testing.assert_array_equal(numbers, np.float32(frames[:, 0]))
    assert (clip.name, clip.size, bad, len(empty)) == ("a", (10, 14), Bad("b", "why"), 0)
    whole = np.frombuffer(data, np.uint8)
    assert np.shares_memory(whole, clip.frames) and np.shares_memory(whole, numbers)
    assert numbers.flags.aligned and not clip.frames.flags.writeable
    assert unpacked(packed([])) == []


def test_a_part_of_nothing_but_errors_is_whole(tmp_path):
    done = parts.write_part(Folder(tmp_path), 0, 1, [Bad("b.png", "broken")], 7, (3, 4), "rle")
    assert (done.frames, done.errors) == (0, 1) and parts.finished_part(
        Folder(tmp_path), 0, 1
    ) == done


def test_a_file_that_a_second_attempt_reads_is_no_error(tmp_path):
    for folder in (Folder(tmp_path), Folder("memory://attempts")):
        parts.write_part(folder, 0, 1, [Bad("a.png", "broken")], 7, (3, 4), None)
        assert folder.sizes("errors")
        rows = Rows.of(segmented("a.png", 1), None)
        done = parts.write_part(folder, 0, 1, [rows], 7, (3, 4), None)
        assert folder.sizes("errors") == {} and parts.finished_part(folder, 0, 1) == done


def test_parts_on_the_disk_of_another_node_are_no_end(tmp_path):
    folder = Folder(tmp_path)
    done = [parts.write_part(folder, 0, 1, [Bad("b.png", "broken")], 7, (3, 4), None)]
    parts.refuse_lost(folder, done, 1)
    (tmp_path / "parts" / parts.part_name(0, 1)).unlink()
    with pytest.raises(UserError, match="1 of 1 parts were written and are not in --output="):
        parts.refuse_lost(folder, done, 1)


def test_parts_in_a_store_appear_by_one_put():
    folder = Folder("memory://results")
    assert parts.begin(folder, {"weights": 1}) is None
    done = parts.write_part(folder, 1, 2, [Rows.of(segmented("a.png", 1), None)], 7, (3, 4), None)
    assert folder.sizes("parts") == {parts.part_name(1, 2): done.bytes}
    assert parts.finished_part(folder, 1, 2) == done and folder.sizes("errors") == {}
    assert parts.begin(folder, {"weights": 1}) is None


def test_datasets_reads_the_parts(tmp_path):
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    done = [Rows.of(segmented(f"{i}.png", 2, i), "rle") for i in range(2)]
    for part, rows in enumerate(done):
        parts.write_part(Folder(tmp_path), part, 2, [rows], 7, (3, 4), "rle")
    files = str(tmp_path / "parts" / "*.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["file"][:4] == ["0.png", "0.png", "1.png", "1.png"]
    np.testing.assert_allclose(loaded[2]["slots"], done[1].slots[0])


def test_a_folder_of_something_else_is_refused(tmp_path):
    folder, made_of = Folder(tmp_path / "out"), {"weights": 1, "seed": 0}
    assert parts.begin(folder, made_of) is None and parts.begin(folder, made_of) is None
    with pytest.raises(UserError, match=r"other settings \(weights: 1, now 2\)"):
        parts.begin(folder, {**made_of, "weights": 2})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds notes.txt, which"):
        parts.begin(Folder(tmp_path / "mine"), made_of)
    done = parts.write_part(folder, 0, 1, [Bad("b.png", "broken")], 1, (3, 4), None)
    (tmp_path / "out" / "parts" / ".part-00000-killed.parquet").write_bytes(b"half")
    parts.write_manifest(folder, made_of, [done])
    assert [x.name for x in (tmp_path / "out" / "parts").iterdir()] == [parts.part_name(0, 1)]
    assert parts.begin(folder, made_of) == [done]
    assert json.loads((tmp_path / "out" / "MANIFEST.json").read_text())["errors"] == 1
    with parts.only_one(folder), pytest.raises(UserError, match="in use by another run"):
        with parts.only_one(folder):
            pass


def own(where, **other):
    """Leave what another owner has written."""
    data = {"host": "elsewhere", "process": 4711, "token": "theirs", "count": 0, **other}
    Folder(where).write(lease.NAME, json.dumps(data).encode())


def test_a_folder_in_a_store_has_one_owner(capsys):
    folder = Folder("memory://one_owner")
    quick = {"period": 0.05, "patience": 5.0}
    with lease.held(folder, **quick):
        assert parts.begin(folder, {"weights": 1}) is None
        with pytest.raises(UserError, match=f"in use by another run .process {os.getpid()} on "):
            with lease.held(folder, **quick):
                pass
        assert "waiting up to 5 s" in capsys.readouterr().out
    assert folder.sizes(".") == {parts.RUN: len(folder.read(parts.RUN))}


def test_an_owner_without_signs_of_life_is_gone():
    folder = Folder("memory://gone")
    own(folder.where)
    with lease.held(folder, period=0.05, patience=0.2):
        assert json.loads(folder.read(lease.NAME))["process"] == os.getpid()
    gone = subprocess.Popen(["true"])
    gone.wait()
    own(folder.where, host=socket.gethostname(), process=gone.pid)
    began = time.monotonic()
    with lease.held(folder, period=0.05, patience=60.0):  # nothing to wait for
        assert time.monotonic() - began < 10
    for damaged in (b"damaged", b"[]", b'{"process": 4711, "token": "theirs"}'):
        folder.write(lease.NAME, damaged)
        with lease.held(folder, period=0.05, patience=60.0):
            assert time.monotonic() - began < 20


def test_of_two_that_begin_at_once_one_goes_on():
    folder, reads = Folder("memory://at_once"), []

    class Overtaken(Folder):
        """Nothing is there at first; after the first write, another owner's."""

        def write(self, name, data):
            super().write(name, data)
            own(self.where)

        def read(self, name):
            reads.append(super().read(name))
            return reads[-1]

    with pytest.raises(UserError, match="in use by another run .process 4711 on elsewhere"):
        with lease.held(Overtaken(folder.where), period=0.05):
            pass
    assert reads[0] is None
    assert json.loads(folder.read(lease.NAME))["token"] == "theirs"


def test_the_slower_of_two_that_begin_at_once_goes_on(monkeypatch):
    """It has found no owner, and writes after the other one has."""
    folder = Folder("memory://slower")
    clock = types.SimpleNamespace(sleep=lambda _: own(folder.where), monotonic=time.monotonic)
    monkeypatch.setattr(lease, "time", clock)
    with pytest.raises(UserError, match="in use by another run .process 4711 on elsewhere"):
        with lease.held(folder, period=0.05):
            pass


def test_an_owner_that_was_taken_for_dead_leaves_the_file_to_the_next(capsys):
    folder, found = Folder("memory://for_dead"), ""
    with lease.held(folder, period=0.02):
        own(folder.where)
        end = time.monotonic() + 10
        while "is in use by process 4711 on elsewhere too" not in found:
            assert time.monotonic() < end
            time.sleep(0.02)
            found += capsys.readouterr().out
    assert json.loads(folder.read(lease.NAME))["token"] == "theirs"


def test_a_store_that_is_away_at_the_end_hides_no_error():
    class Away(Folder):
        def remove(self, name):
            raise UserError("away")

    with pytest.raises(KeyError):
        with lease.held(Away("memory://away"), period=0.05):
            raise KeyError
    with lease.held(Away("memory://away_too"), period=0.05):
        pass


def test_parts_hold_pictures_and_videos_by_weight():
    picture, video = (corpus.Item("x", kind, ("x",)) for kind in ("picture", "video"))
    assert parts.planned([]) == []
    assert parts.planned([picture] * 513) == [(0, 512), (512, 513)]
    assert parts.planned([video] * 33) == [(0, 32), (32, 33)]
    assert parts.planned([picture, video] * 31) == [(0, 61), (61, 62)]


def test_a_worker_of_another_version_is_refused():
    mine = cluster.program()
    cluster.refuse_other_program(mine, mine, "node 1")
    with pytest.raises(UserError, match=r"node 1 has smoothsa_jax 0\.1 \(abc\), and this process"):
        cluster.refuse_other_program(mine, "0.1 (abc)", "node 1")
    wrapped = RuntimeError("gone")
    wrapped.__cause__ = UserError("one line")
    assert str(cluster.reason_of(wrapped)) == "one line"
    text = "actor died\nsmoothsa_jax.errors.UserError: told by text\n"
    assert str(cluster.reason_of(RuntimeError(text))) == "told by text"
    assert cluster.reason_of(ValueError("other")) is None


def refused(capsys, *arguments):
    """The one line with which a command is refused."""
    assert here(*arguments) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ") and "\n" not in line
    return line


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", "nothing can be reached there"),
        ("ray://head:10001", "expected auto, or HOST:PORT"),
        ("head", "expected auto, or HOST:PORT"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_refused(address, told):
    with pytest.raises(UserError, match=f"--address={address}: {told}"):
        cluster.check_reachable(address)


NEEDS_RAY = (
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
)
PREDICT = ("--mode=predict", "--workdir=sprites_gaussian", "--input=x", "--output=y")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--engine=ray", "--mode=report"), "--engine=ray goes with"),
        (("--address=auto", *PREDICT), "--address names a Ray cluster; add --engine=ray"),
        (("--masks=rle", *PREDICT), "--masks belongs to --mode=predict --engine=ray"),
        (("--max-errors=3", *PREDICT), "--max-errors belongs to --mode=predict --engine=ray"),
        pytest.param(
            ("--engine=ray", "--reconstruct", *PREDICT),
            "--reconstruct writes pictures",
            marks=NEEDS_RAY,
        ),
        pytest.param(
            ("--engine=ray", "--overwrite", *PREDICT),
            "--overwrite replaces results one by one",
            marks=NEEDS_RAY,
        ),
    ],
)
def test_flags_that_make_no_sense_are_refused(arguments, told, capsys):
    assert told in refused(capsys, *arguments)


def test_without_ray_one_line_says_what_to_install(monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'smoothsa_jax[ray]'" in refused(capsys, "--engine=ray", *PREDICT)


# ---------------------------------------------------------------------------------- as stored slots


class Clips:
    """Samples of a prepared folder without their pixels: a window of two frames."""

    def __len__(self):
        return 2

    def without_pixels(self, index, rng):
        return {"slot_mask": np.ones(3, bool)}, range(1, 3)


def as_found(
    folder, model="aaa", size=(10, 10), names=("b.mp4", "a.mp4", "more.mp4"), frames=3, **options
):
    """A folder of results, and a prepared folder whose manifest lists the clips a and b."""
    prepared = folder / "prepared"
    prepared.mkdir()
    shards = [{"sample_names": ["a", "b"], "frames": [3, 3], "sha256": "0"}]
    manifest = {"splits": {"train": {"shards": shards}}, "metadata": {"kind": "clips"}}
    (prepared / "MANIFEST.json").write_text(json.dumps(manifest))
    out = Folder(folder / "out")
    made_of = {"weights": 7, "digest": model, "model": {"num_slots": 3}, "image_size": [8, 8]}
    made_of |= {"num_slots": 3, **options}
    parts.begin(out, made_of)
    rows = [
        Rows.of(segmented(f"in/{x}", frames, i)._replace(size=size), None)
        for i, x in enumerate(names)
    ]
    done = [
        parts.write_part(out, i, 2, some, 7, (3, 4), None)
        for i, some in enumerate([rows[:2], rows[2:]])
    ]
    parts.write_manifest(out, made_of, done)
    return folder / "out", {"folder": str(prepared), "slots": str(folder / "out")}, rows


@pytest.mark.parametrize("options", [{}, {"size": (10, 15), "frames": 5}])
def test_results_open_as_stored_slots(options, tmp_path):
    """Those of videos of another shape and with more frames than were prepared, as well."""
    folder, data, rows = as_found(tmp_path, **options)
    assert is_stored(data, "train") and not is_stored(data, "test")
    slots = opened(Clips(), folder, "train", data, ["slots"])
    for index, row in ((0, rows[1]), (1, rows[0])):
        sample = slots[index]
        assert sample["slots"].dtype == np.float16 and slots.length(index) == 3
        np.testing.assert_array_equal(sample["slots"], row.slots[1:3].astype(np.float16))
        np.testing.assert_array_equal(sample["slot_mask"], [True] * 3)
    np.testing.assert_array_equal(
        slots.of_frames(0, [2, 0])["slots"], rows[1].slots[[2, 0]].astype(np.float16)
    )
    with pytest.raises(UserError, match="has no masks, which is read"):
        opened(Clips(), folder, "train", data, ["slots", "masks"])
    with pytest.raises(UserError, match="matched by the names of a prepared folder"):
        opened(Clips(), folder, "train", {}, ["slots"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"names": ("a.mp4",)}, "clip b of .* has none"),
        ({"names": ("a.mp4", "b.mp4", "b.webm")}, "clip b of .* names two files so"),
        ({"frames": 2}, "clip a of .* has 2 frames of it, and 3 were prepared"),
        ({"num_slots": 4}, "was found with num_slots=4, which training does not use"),
        ({"shot_cuts": 0.75}, "was found with shot_cuts=0.75, which training does not use"),
    ],
)
def test_results_that_do_not_fit_the_clips_are_refused(options, told, tmp_path):
    folder, data, _ = as_found(tmp_path, **options)
    with pytest.raises(UserError, match=told):
        opened(Clips(), folder, "train", data, ["slots"])


def test_stored_results_are_told_by_their_bytes_wherever_they_are(tmp_path):
    told = []
    for where, names in (("here", "ab"), ("there", "ab"), ("others", "bac")):
        (tmp_path / where).mkdir()
        folder, data, _ = as_found(tmp_path / where, names=[f"{x}.mp4" for x in names])
        told.append(opened(Clips(), folder, "train", data, ["slots"]).fingerprint())
    assert told[0] == told[1] != told[2]


def test_results_of_another_model_are_refused_as_stored_slots(tmp_path):
    """What a run says of its own slot model equals what predict writes of the same model."""
    config = as_dynamics(tiny_config(4, initializer="gaussian", decoder="mlp_mixture"))
    training = build_training(config)
    frozen = begin(config, training, pytest.fail)[1]
    start = "slot_model."
    arrays = {
        k.removeprefix(start): np.asarray(x) for k, x in frozen.items() if k.startswith(start)
    }
    trained = tiny_config(4, initializer="gaussian", decoder="mlp_mixture")
    model = Segmenter(trained, arrays)
    made_of = predict.of_model(model)
    folder, data, _ = as_found(tmp_path)
    source = opened(Clips(), folder, "train", data, ["slots"])
    source.made_of = {key: made_of[key] for key in ("model", "image_size")}
    source.made_of |= {"weights": made_of["digest"]}
    questions = QuestionsOfClips([], source)
    for known in (source, questions):
        refuse_other_slots(known, config, frozen)
    source.made_of["weights"] = "another"
    for known in (source, questions):
        with pytest.raises(UserError, match="holds slots of other weights: found another"):
            refuse_other_slots(known, config, frozen)
