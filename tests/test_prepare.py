"""Prepare MOVi from its real files: the bytes, resuming, and refusals."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from command import ROOT
from PIL import Image
from prepared_folders import interrupted_after_a_shard
from raw_clips import BUILD, MOVI, write_records
from tensorflow_datasets.proto import tf_example_pb2

from data import check, finished, prepare, shards, tfrecords
from data.family import Options
from smoothsa_jax.errors import UserError

EXPECTED = json.loads((MOVI / "expected.json").read_text())
TRAIN = "movi_c-train.tfrecord-00000-of-00001"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("movi") / "prepared"
    prepare.prepare("movi_c", str(MOVI), out)
    return out


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of the download that a test may damage."""
    return Path(shutil.copytree(MOVI, tmp_path / "movi_c"))


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_tfds_reads_the_videos_that_were_downloaded(prepared, split):
    samples = tfds.builder_from_directory(prepared).as_data_source(split=split)
    assert len(samples) == len(EXPECTED[split])
    for sample, expected in zip(samples, EXPECTED[split], strict=True):
        video = np.stack(sample["video"])
        assert list(video.shape) == expected["video_shape"]
        assert sha256(video) == expected["video_sha256"]
        segmentations = np.stack(sample["segmentations"])
        assert sha256(segmentations) == expected["segmentations_sha256"]
        assert sample["metadata"]["name"].decode() == expected["video_name"]
        assert len(sample["categories"]) == expected["num_instances"]
        for boxes, frames, values in zip(
            sample["bboxes"], expected["bbox_frames"], expected["bboxes"], strict=True
        ):
            np.testing.assert_allclose(boxes[frames], values, atol=1e-6)
            assert not np.delete(boxes, frames, axis=0).any()
    assert "tensorflow" not in sys.modules


def test_categories_are_those_of_the_download(prepared):
    builder = tfds.builder_from_directory(prepared)
    records = tfrecords.read_records(MOVI / BUILD / TRAIN)
    for sample, record in zip(builder.as_data_source(split="train"), records, strict=True):
        features = tf_example_pb2.Example.FromString(record).features.feature
        assert list(sample["categories"]) == list(features["instances/category"].int64_list.value)
    names = (MOVI / BUILD / "instances-category.labels.txt").read_text().splitlines()
    assert builder.info.features["categories"].feature.names == names


def test_the_manifest_says_where_the_bytes_came_from(prepared):
    manifest = json.loads((prepared / "MANIFEST.json").read_text())
    train = next(entry for entry in manifest["sources"] if entry["file"] == TRAIN)
    original = (MOVI / BUILD / TRAIN).read_bytes()
    assert train["num_bytes"] == len(original)
    assert train["sha256"] == hashlib.sha256(original).hexdigest()
    assert {s: found["num_examples"] for s, found in manifest["splits"].items()} == {
        split: len(samples) for split, samples in EXPECTED.items()
    }
    for found in manifest["splits"].values():
        for shard in found["shards"]:
            data = (prepared / shard["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == shard["sha256"]


def test_the_manifest_says_how_many_frames_each_clip_has(prepared):
    text = (prepared / "MANIFEST.json").read_text()
    assert '"frames": [\n      24, 24\n' in text  # numbers take no line each
    (shard,) = json.loads(text)["splits"]["train"]["shards"]
    assert check._check_shard(prepared, shard) == []
    (wrong,) = check._check_shard(prepared, {**shard, "frames": [24, 23]})
    assert "clips of other lengths than MANIFEST.json says" in wrong


def test_checksums_of_the_source_show_their_progress(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "pictures" / "a.png")
    prepare.prepare("folder", str(tmp_path / "pictures"), tmp_path / "out")
    assert "checksums of the source: 100%" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_change_no_byte(prepared, tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "data.prepare",
            "movi_c",
            f"--source={MOVI}",
            f"--out={tmp_path / 'out'}",
            "--workers=2",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert files_of(tmp_path / "out") == files_of(prepared)


def test_a_finished_folder_is_recognised(prepared, capsys):
    before = files_of(prepared)
    prepare.prepare("movi_c", str(MOVI), prepared)
    assert "is prepared already" in capsys.readouterr().out
    assert files_of(prepared) == before


def test_an_interrupted_preparation_goes_on(prepared, tmp_path, capsys):
    arguments = ["movi_c", f"--source={MOVI}", f"--out={tmp_path}", "--workers=1"]
    with interrupted_after_a_shard() as made:
        assert prepare.main(arguments) == 130
    assert not (tmp_path / "MANIFEST.json").exists()
    first = (tmp_path / made[0]).stat().st_mtime_ns
    assert prepare.main(arguments) == 0
    assert "1 of 3 shards are finished" in capsys.readouterr().out
    assert (tmp_path / made[0]).stat().st_mtime_ns == first
    assert files_of(tmp_path) == files_of(prepared)


def test_splits_one_after_the_other_give_the_same_folder(prepared, tmp_path):
    for split in ("validation", "train", "test"):
        prepare.prepare("movi_c", str(MOVI), tmp_path, (split,))
    assert files_of(tmp_path) == files_of(prepared)


def test_limit_and_size(tmp_path):
    prepare.prepare("movi_c", str(MOVI), tmp_path, options=Options(limit=1, size=32))
    samples = tfds.builder_from_directory(tmp_path).as_data_source(split="train")
    assert len(samples) == 1
    assert np.stack(samples[0]["video"]).shape == (24, 32, 32, 3)
    labels = np.stack(samples[0]["segmentations"])
    assert labels.shape == (24, 32, 32, 1) and set(np.unique(labels)) <= set(range(7))


def test_without_compression_the_pictures_are_the_same(prepared, tmp_path):
    prepare.prepare("movi_c", str(MOVI), tmp_path, ("train",), Options(uncompressed=True))
    samples = tfds.builder_from_directory(tmp_path).as_data_source(split="train")
    for sample, expected in zip(samples, EXPECTED["train"], strict=True):
        assert sha256(np.stack(sample["video"])) == expected["video_sha256"]
        assert sha256(np.stack(sample["segmentations"])) == expected["segmentations_sha256"]
    (shard,) = tmp_path.glob("*array_record*")
    record = tf_example_pb2.Example.FromString(ArrayRecordReader(str(shard)).read([0])[0])
    frame = record.features.feature["video"].bytes_list.value[0]
    assert frame.startswith(b"\x89PNG") and 64 * 64 * 3 < len(frame) < 64 * 64 * 3 + 500


def test_further_annotations_are_kept_on_request(prepared, tmp_path):
    assert "depth" not in (prepared / "features.json").read_text()
    keep = ("depth", "events", "forward_flow")
    prepare.prepare("movi_c", str(MOVI), tmp_path, ("train",), Options(keep=keep))
    sample = tfds.builder_from_directory(tmp_path).as_data_source(split="train")[0]
    assert sample["forward_flow"].shape == (24, 64, 64, 2)
    assert np.stack(sample["depth"]).shape == (24, 64, 64, 1)
    assert sample["metadata"]["depth_range"].shape == (2,)
    assert sample["collisions"]["position"].shape[1:] == (3,)


def test_a_bucket_is_read_shard_by_shard(prepared, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(MOVI), "/kubric/movi_c", recursive=True)
    prepare.prepare("movi_c", "memory://kubric/movi_c", tmp_path)
    assert files_of(tmp_path) == files_of(prepared)


def refuses(source: object, out: Path, name: str = "movi_c", **options) -> str:
    with pytest.raises(UserError) as error:
        prepare.prepare(name, str(source), out, options=Options(**options))
    return str(error.value)


def test_a_web_address_is_answered_with_the_bucket(tmp_path):
    text = refuses("https://storage.googleapis.com/kubric-public/tfds/movi_c", tmp_path)
    assert "--source=gs://kubric-public/tfds/movi_c" in text


def test_a_source_that_is_not_there(tmp_path):
    assert "is not a folder" in refuses(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "dataset_info.json with movi_c-train.tfrecord" in refuses(
        tmp_path / "empty", tmp_path / "out"
    )


def test_another_data_set(source, tmp_path):
    assert "found movi_c in" in refuses(source, tmp_path / "out", name="movi_d")


def test_a_missing_file_is_named(source, tmp_path):
    (source / BUILD / TRAIN).unlink()
    assert f"{TRAIN} is missing" in refuses(source, tmp_path / "out")


def test_a_truncated_file_is_named_with_the_place(source, tmp_path):
    path = source / BUILD / TRAIN
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    second = 8 + 4 + length + 4
    path.write_bytes(data[:-10])
    text = refuses(source, tmp_path / "out")
    assert TRAIN in text and f"at byte {second}" in text and "cut off" in text
    path.write_bytes(data[:second])
    assert "holds 1 records, dataset_info.json says 2" in refuses(source, tmp_path / "out")


def test_a_flipped_bit_is_found(source, tmp_path):
    path = source / BUILD / TRAIN
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    text = refuses(source, tmp_path / "out")
    assert TRAIN in text and "at byte 0" in text and "CRC" in text


def damaged_frame(source: Path) -> None:
    """Cuts off a frame of the first training record; the record itself is whole."""
    path = source / BUILD / TRAIN
    first, second = tfrecords.read_records(path)

    example = tf_example_pb2.Example.FromString(first)
    video = example.features.feature["video"].bytes_list.value
    video[3] = video[3][: len(video[3]) // 2]
    write_records(path, [example.SerializeToString(), second])


def test_a_damaged_frame_stops_or_is_left_out(source, tmp_path, capsys):
    damaged_frame(source)
    text = refuses(source, tmp_path / "out")
    assert f"{TRAIN}, record 0, frame 3 is not a readable picture" in text and "--skip-bad" in text
    prepare.prepare("movi_c", str(source), tmp_path / "skipping", options=Options(skip_bad=True))
    assert "train: 1 samples" in (out := capsys.readouterr().out) and "record 0, frame 3" in out
    manifest = json.loads((tmp_path / "skipping" / "MANIFEST.json").read_text())
    assert len(manifest["splits"]["train"]["skipped"]) == 1
    samples = tfds.builder_from_directory(tmp_path / "skipping").as_data_source(split="train")
    assert [s["metadata"]["name"].decode() for s in samples] == [EXPECTED["train"][1]["video_name"]]


def test_going_on_with_samples_left_out(source, tmp_path):
    """The advice of the error can be followed: what was finished without it stays."""
    damaged_frame(source)
    refuses(source, tmp_path / "out")
    prepare.prepare("movi_c", str(source), tmp_path / "out", options=Options(skip_bad=True))
    assert "add --skip-bad" in refuses(source, tmp_path / "out")


def test_a_record_that_is_not_as_movis_are_is_one_bad_sample(source, tmp_path):
    path = source / BUILD / TRAIN
    first, second = tfrecords.read_records(path)
    example = tf_example_pb2.Example.FromString(first)
    del example.features.feature["instances/category"]
    write_records(path, [example.SerializeToString(), second])
    text = refuses(source, tmp_path / "out")
    assert f"{TRAIN}, record 0 does not match MOVi's format" in text and "disk" not in text


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (b"", "instances-category.labels.txt is empty"),
        (b"Bag\r\nHat\r\nBag\r\n", "has category names more than once: Bag; expected"),
        (b"Bag\nHat\n", "expected numbers below 2, the count of names"),
    ],
)
def test_faults_of_the_names_of_categories(source, tmp_path, names, expected):
    (source / BUILD / "instances-category.labels.txt").write_bytes(names)
    assert expected in refuses(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": [1]}, "is damaged (TypeError: a split has the name [1])"),
        ({"shardLengths": ["0", "2"]}, "train has the shardLengths [0, 2], expected at least one"),
        ({"shardLengths": []}, "train has the shardLengths [], expected at least one"),
    ],
)
def test_faults_of_the_description(source, tmp_path, change, expected):
    path = source / BUILD / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0] |= change
    path.write_text(json.dumps(info))
    assert expected in refuses(source, tmp_path / "out")


def test_pictures_of_absurd_size_are_refused(tmp_path):
    text = refuses(MOVI, tmp_path, max_pixels=1000)
    assert "64x64 pixels, more than 1000" in text and "--max_pixels" in text


def test_another_preparation_of_the_same_folder_is_refused(prepared, tmp_path):
    before = files_of(prepared)
    text = refuses(MOVI, prepared, size=32)
    assert "prepared with options.size None, now it is 32" in text
    assert files_of(prepared) == before


def test_a_lost_shard_is_made_again(prepared, tmp_path):
    folder = Path(shutil.copytree(prepared, tmp_path / "copy"))
    lost = next(folder.glob("*-train*"))
    others = {p: p.stat().st_mtime_ns for p in folder.glob("*record*") if p != lost}
    lost.unlink()
    prepare.prepare("movi_c", str(MOVI), folder)
    assert files_of(folder) == files_of(prepared)
    assert {p: p.stat().st_mtime_ns for p in others} == others


def test_other_samples_are_not_mixed_in(prepared, source, tmp_path):
    folder = Path(shutil.copytree(prepared, tmp_path / "copy"))
    info = source / BUILD / "dataset_info.json"
    info.write_text(info.read_text().replace('"974192"', '"974193"'))  # as of another build
    before = files_of(folder)
    assert "made from other samples than --source" in refuses(source, folder)
    assert files_of(folder) == before


def test_the_output_may_not_lie_in_the_source(source):
    assert "is inside --source" in refuses(source, source / "out")


def test_a_damaged_description_is_told(source, tmp_path):
    info = source / BUILD / "dataset_info.json"
    info.write_text(info.read_text()[:100])
    assert "dataset_info.json is damaged" in refuses(source, tmp_path / "out")


def test_a_folder_of_another_version_is_refused(tmp_path):
    prepare.prepare("movi_c", str(MOVI), tmp_path, ("test",))
    manifest = json.loads((tmp_path / "MANIFEST.json").read_text())
    (tmp_path / "MANIFEST.json").write_text(json.dumps({**manifest, "format": 0}))
    assert "prepared with format 0, now it is 1" in refuses(MOVI, tmp_path)


def test_two_at_once_are_refused(tmp_path):
    with finished.only_one(tmp_path):
        assert "being prepared by another process" in refuses(MOVI, tmp_path)


def test_a_full_disk_is_told_and_nothing_half_is_left(tmp_path):
    """A limit on the size of files stands in for a full disk: both end a write with an error."""
    script = (
        "import resource, sys; from data import prepare; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY)); "
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "sys.exit(prepare.main(sys.argv[1:]))"
    )
    arguments = ["movi_c", f"--source={MOVI}", f"--out={tmp_path}", "--workers=1"]
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and TRAIN.replace("tfrecord", "array_record") in last
    assert not [p for p in tmp_path.iterdir() if "train" in p.name]
    assert prepare.main(arguments) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["movi_x", "--source=a", "--out=b"], "did you mean 'movi_"),
        (["movi_c", "--source=a", "--out=b", "--limit=0"], "--limit is 0"),
        (
            ["movi_c", f"--source={MOVI}", "--out=b", "--keep=dept"],
            "--keep=dept is not an annotation",
        ),
    ],
)
def test_a_bad_command_line_gets_one_line(arguments, expected, capsys):
    assert prepare.main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and expected in lines[0]


def test_no_permission(tmp_path):
    if os.geteuid() == 0:
        (tmp_path / "out").write_text("a file")
        assert "cannot be written" in refuses(MOVI, tmp_path / "out")
        return
    tmp_path.chmod(0o500)
    assert "cannot be written" in refuses(MOVI, tmp_path / "out")


def test_check_accepts_what_was_prepared(prepared, capsys):
    assert check.main([str(prepared), "--workers=1"]) == 0
    assert "train: 2 samples in 1 shards" in capsys.readouterr().out


def rewritten(folder: Path, change) -> str:
    """Rewrite the training shard with changed records and its new hash: only contents are wrong."""
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    shard = manifest["splits"]["train"]["shards"][0]
    path = folder / shard["file"]
    reader = ArrayRecordReader(str(path))
    records = [reader.read([index])[0] for index in range(reader.num_records())]
    reader.close()
    _, _, shard["sha256"] = shards.write_shard(path, change(records))
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    return shard["file"]


def cut_frame(records: list[bytes]) -> list[bytes]:
    example = tf_example_pb2.Example.FromString(records[1])
    video = example.features.feature["video"].bytes_list.value
    video[2] = video[2][:100]
    return [records[0], example.SerializeToString()]


def fewer_objects(records: list[bytes]) -> list[bytes]:
    example = tf_example_pb2.Example.FromString(records[0])
    del example.features.feature["categories"].int64_list.value[1:]
    return [example.SerializeToString(), records[1]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda records: records[:1], "has 1 records, MANIFEST.json says 2"),
        (cut_frame, "record 1: frame 2 cannot be read"),
        (fewer_objects, "record 0: frame"),
    ],
)
def test_check_finds_what_is_wrong_inside(prepared, tmp_path, capsys, change, expected):
    folder = Path(shutil.copytree(prepared, tmp_path / "copy"))
    file = rewritten(folder, change)
    assert check.main([str(folder), "--workers=1"]) == 2
    assert f"wrong: {file}" in (text := capsys.readouterr().err) and expected in text


def test_check_finds_changed_and_missing_files(prepared, tmp_path, capsys):
    folder = Path(shutil.copytree(prepared, tmp_path / "copy"))
    shard = next(folder.glob("*train*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    next(folder.glob("*-test*")).unlink()
    assert check.main([str(folder), "--workers=1"]) == 2
    text = capsys.readouterr().err
    assert "SHA-256 differs" in text and "is missing" in text
    (folder / "MANIFEST.json").unlink()
    assert check.main([str(folder)]) == 2
    assert "not finished" in capsys.readouterr().err
