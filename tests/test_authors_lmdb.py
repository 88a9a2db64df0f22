"""`--from lmdb`: miniatures in the authors' record format, and pickles that try to run code."""

import io
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data import check, plain_pickle, prepare
from data.family import Options
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.prepared import PreparedFolder

lmdb = pytest.importorskip("lmdb", reason="the test extra brings lmdb")

HEIGHT, WIDTH, FRAMES = 16, 24, 4
RNG = np.random.default_rng(0)
FROM = Options(extra=(("from", "lmdb"),))


# ------------------------------------------------------------------------------------------- making


def write(path: Path, samples: list[Any], change=lambda data: data) -> Path:
    """An LMDB file as the authors' programs write it; `change` damages the last pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [f"{i:06d}".encode() for i in range(len(samples))]
    with lmdb.open(str(path), map_size=1 << 26, subdir=False) as environment:
        with environment.begin(write=True) as transaction:
            for key, sample in zip(keys, samples, strict=True):
                data = sample if isinstance(sample, bytes) else pickle.dumps(sample)
                transaction.put(key, change(data) if key == keys[-1] else data)
            transaction.put(b"__keys__", pickle.dumps(keys))
    return path.parent


def encoded(pixels: np.ndarray, ending: str) -> np.ndarray:
    return cv2.imencode(ending, pixels)[1]


def jpeg(seed: int) -> bytes:
    return encoded(np.full((HEIGHT, WIDTH, 3), (20 * seed, 90, 200), np.uint8), ".jpg").tobytes()


def maps(values: int) -> np.ndarray:
    """Labels (FRAMES, HEIGHT, WIDTH) with each of 0 .. values - 1."""
    labels = RNG.integers(0, values, (FRAMES, HEIGHT, WIDTH), dtype=np.uint8)
    labels.reshape(FRAMES, -1)[:, :values] = np.arange(values)
    return labels


def pictures() -> np.ndarray:
    return RNG.integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)


def avi(frames: np.ndarray) -> io.BytesIO:
    """As the authors' converter of 2025 encodes a clip, without loss."""
    av = pytest.importorskip("av", reason="the test extra brings av")
    grey = frames.ndim == 3
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="avi") as container:
        stream = container.add_stream("ffv1" if grey else "libx264rgb", rate=12)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "gray" if grey else "rgb24"
        stream.options = {"level": "3"} if grey else {"qp": "0", "preset": "ultrafast"}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format=stream.pix_fmt)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    buffer.seek(0)
    return buffer


def movi(generation: int, video: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> dict:
    """`boxes`: (objects, frames, 4) as a prepared folder has them."""
    number = {"min": np.float32(-1), "max": np.float32(1)}
    sample = {
        "bbox": boxes.swapaxes(0, 1)[..., [1, 0, 3, 2]],
        "flow": {"data": [io.BytesIO(b"flow")], **number},
        "depth": {"data": io.BytesIO(b"depth"), **number},
    }
    if generation == 2025:
        return {"video": avi(video), "segment": avi(labels), **sample}
    # The frames are red, green, blue; OpenCV writes them as if they were blue, green, red.
    return {
        "video": [encoded(frame, ".png") for frame in video],
        "segment": [encoded(frame, ".png") for frame in labels],
        "s": labels.max(),
        **sample,
    }


def ytvis(labels: np.ndarray, ending: str = ".webp") -> dict:
    return {
        "video": [jpeg(t) for t in range(len(labels))],
        "segment": [encoded(frame, ending) for frame in labels],
        "clazz": np.tile(np.array([40, 1], np.uint8), (len(labels), 1)),
    }


def coco(segments: np.ndarray, ending: str = ".webp") -> dict:
    return {
        "image": jpeg(0),
        "segment": encoded(segments, ending),
        "clazz": np.array([1, 184, 90, 200], np.uint8),
        "isthing": np.array([True, False, True, False]),
    }


def voc(segments: np.ndarray, ending: str = ".webp") -> dict:
    return {"image": jpeg(0), "segment": encoded(segments, ending)}


def clevrtex(segments: np.ndarray) -> dict:
    return {**voc(segments), "depth": encoded(segments, ".webp")}


def framed(segments: np.ndarray) -> np.ndarray:
    """Labels as the authors number VOC's: 0, the boundary, is rare."""
    return np.where(np.arange(WIDTH) == 3, 0, segments + 1).astype(np.uint8)


def read(out: Path, split: str = "train") -> list[dict]:
    return list(tfds.builder_from_directory(out).as_data_source(split=split))


def prepared(name: str, source: Path, **options) -> Path:
    out = source.parent / "out"
    prepare.prepare(name, str(source), out, options=Options(extra=FROM.extra, **options))
    for found in json.loads((out / "MANIFEST.json").read_text())["splits"].values():
        assert [line for shard in found["shards"] for line in check._check_shard(out, shard)] == []
    return out


def refuses(name: str, source: Path, **options) -> str:
    with pytest.raises(UserError) as error:
        prepared(name, source, **options)
    text = str(error.value)
    assert "\n" not in text and not (source.parent / "out" / "MANIFEST.json").exists()
    return text


# ------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("generation", [2025, 2026])
@pytest.mark.parametrize("file", ["val.lmdb", "validation.lmdb"])
def test_movi(tmp_path, generation, file):
    clips = [(pictures(), maps(3), RNG.random((2, FRAMES, 4), np.float32)) for _ in range(3)]
    source = write(tmp_path / "movi_c" / "train.lmdb", [movi(generation, *c) for c in clips])
    write(source / file, [movi(generation, *clips[0])])
    out = prepared("movi_c", source)
    assert len(read(out, "validation")) == 1
    for sample, (video, labels, boxes) in zip(read(out), clips, strict=True):
        np.testing.assert_array_equal(np.stack(sample["video"]), video)
        np.testing.assert_array_equal(np.stack(sample["segmentations"])[..., 0], labels)
        np.testing.assert_array_equal(sample["bboxes"], boxes)
    names = [sample["metadata"]["name"].decode() for sample in read(out)]
    assert names == ["000000", "000001", "000002"]
    source = PreparedFolder(out, image_size=16, num_frames=FRAMES, max_objects=2)
    drawn = source.draw(source.epoch()[1], np.random.default_rng(0))
    assert drawn["video"].shape == (FRAMES, 16, 16, 3)


@pytest.mark.parametrize("ending", [".webp", ".png"])
def test_ytvis(tmp_path, ending):
    labels = maps(3)
    out = prepared("ytvis_hq", write(tmp_path / "y" / "train.lmdb", [ytvis(labels, ending)]))
    (sample,) = read(out)
    np.testing.assert_array_equal(np.stack(sample["segmentations"])[..., 0], labels)
    expected = cv2.imdecode(np.frombuffer(jpeg(2), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(sample["video"][2], expected)
    assert list(sample["categories"]) == [39, 0]


@pytest.mark.parametrize("ending", [".webp", ".png"])
def test_coco(tmp_path, ending):
    segments = maps(5)[0]
    out = prepared("coco", write(tmp_path / "c" / "val.lmdb", [coco(segments, ending)]))
    (sample,) = read(out, "validation")
    # Not annotated, thing, stuff, thing, stuff.
    expected = np.array([255, 1, 0, 2, 0], np.uint8)[segments]
    np.testing.assert_array_equal(sample["segmentation"][..., 0], expected)
    assert list(sample["categories"]) == [0, 79]  # the first and the last of COCO's things
    labels = tfds.builder_from_directory(out).info.features["categories"].feature
    assert labels.num_classes == 80 and labels.int2str(79) == "90"


@pytest.mark.parametrize("ending", [".webp", ".png"])
def test_voc(tmp_path, ending):
    segments = framed(maps(3)[0])
    out = prepared("voc", write(tmp_path / "v" / "train.lmdb", [voc(segments, ending)]))
    expected = np.array([255, 0, 1, 2], np.uint8)[segments]
    np.testing.assert_array_equal(read(out)[0]["segmentation"][..., 0], expected)


def test_clevrtex(tmp_path):
    segments = maps(4)[0]
    out = prepared("clevrtex", write(tmp_path / "x" / "train.lmdb", [clevrtex(segments)]))
    np.testing.assert_array_equal(read(out)[0]["segmentation"][..., 0], segments)


def test_the_command_line(tmp_path, capsys):
    source = write(tmp_path / "x" / "train.lmdb", [clevrtex(maps(2)[0]) for _ in range(5)])
    write(source / "val.lmdb", [clevrtex(maps(2)[0])])
    arguments = ["clevrtex", "--from", "lmdb", f"--source={source}", f"--out={tmp_path / 'out'}"]
    assert prepare.main([*arguments, "--limit=3", "--workers=1"]) == 0
    assert "train: 3 samples" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / "MANIFEST.json").read_text())
    assert [found["file"] for found in manifest["sources"]] == ["train.lmdb", "val.lmdb"]
    assert prepare.main([*arguments, "--limit=3"]) == 0
    assert "is prepared already" in capsys.readouterr().out
    # Of the same names, counts and keys, and another file all the same.
    other = write(tmp_path / "y" / "train.lmdb", [clevrtex(maps(3)[0]) for _ in range(5)])
    write(other / "val.lmdb", [clevrtex(maps(2)[0])])
    assert prepare.main([*arguments[:3], f"--source={other}", arguments[4], "--limit=3"]) == 2
    assert "was made from other samples than --source" in capsys.readouterr().err
    # The name may stand anywhere.
    late = ["--from", "lmdb", "--source", str(source), "clevrtex", "--out", str(tmp_path / "late")]
    assert prepare.main([*late, "--workers=1"]) == 0
    assert prepare.main(["davis_2017", *arguments[1:]]) == 2
    assert "'davis_2017' is not a data set in LMDB; choose one of coco" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("module", ["lmdb", "av"])
def test_a_missing_module_is_named_with_its_extra(tmp_path, monkeypatch, module):
    clip = movi(2025, pictures(), maps(2), np.zeros((1, FRAMES, 4), np.float32))
    source = write(tmp_path / "movi_c" / "train.lmdb", [clip])
    monkeypatch.setitem(sys.modules, module, None)
    text = refuses("movi_c", source)
    assert f"module {module}, which is not installed; run pip install -e '.[lmdb]'" in text


def test_files_that_are_no_lmdb_or_cut_off(tmp_path):
    (tmp_path / "x").mkdir()
    assert "looked for" in (text := refuses("voc", tmp_path / "x")) and "x/train.lmdb" in text
    (tmp_path / "x" / "train.lmdb").write_bytes(b"no database" * 1000)
    assert "train.lmdb is not an LMDB file" in refuses("voc", tmp_path / "x")
    path = write(tmp_path / "y" / "train.lmdb", [clevrtex(maps(2)[0])] * 40) / "train.lmdb"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "train.lmdb is truncated" in refuses("clevrtex", tmp_path / "y")


def test_a_damaged_page_is_told(tmp_path):
    source = write(tmp_path / "x" / "train.lmdb", [clevrtex(maps(2)[0]) for _ in range(5)])
    path = source / "train.lmdb"
    whole, told = path.read_bytes(), 0
    for page in range(2, len(whole) // 4096):
        path.write_bytes(whole[: 4096 * page] + bytes(4096) + whole[4096 * (page + 1) :])
        try:
            prepare.prepare("clevrtex", str(source), tmp_path / str(page), ("train",), FROM)
        except UserError as error:
            told += 1
            assert "\n" not in str(error)
    assert told


def test_a_damaged_record_is_named_or_left_out(tmp_path, capsys):
    samples = [clevrtex(maps(2)[0]) for _ in range(3)]
    cut = write(tmp_path / "x" / "train.lmdb", samples, change=lambda data: data[:-20])
    assert "train.lmdb, record 000002: cut off or damaged" in refuses("clevrtex", cut)
    assert len(read(prepared("clevrtex", cut, skip_bad=True))) == 2
    assert "record 000002" in capsys.readouterr().out
    half = {**samples[0], "segment": samples[0]["segment"][:10]}
    bad = write(tmp_path / "z" / "y" / "train.lmdb", [samples[0], half])
    assert "record 000001 is not a readable picture" in refuses("clevrtex", bad)
    more = write(tmp_path / "v" / "y" / "train.lmdb", [ytvis(maps(4))])
    assert "record 000000 has label 3, but only 2 categories" in refuses("ytvis_hq", more)
    clip = {**ytvis(maps(3)), "clazz": np.zeros((2, 1), np.uint8)}
    bad = write(tmp_path / "w" / "y" / "train.lmdb", [clip])
    assert "record 000000 has 4 frames, 4 label maps and categories for 2" in refuses(
        "ytvis_hq", bad
    )


@pytest.mark.parametrize(
    ("name", "sample", "expected"),
    [
        ("voc", coco(maps(5)[0]), "its records hold clazz, image, isthing, segment, which is coco"),
        ("coco", clevrtex(maps(2)[0]), "which is clevrtex's"),
        ("movi_d", ytvis(maps(3)), "which is ytvis's"),
        ("coco", {**voc(maps(2)[0]), "clazz": np.zeros(1)}, "of no known data set"),
        ("voc", voc(np.zeros((HEIGHT, WIDTH), np.uint8)), "an earlier converter"),
    ],
)
def test_another_data_set_or_an_earlier_converter(tmp_path, name, sample, expected):
    assert expected in refuses(name, write(tmp_path / "x" / "train.lmdb", [sample]))


# ------------------------------------------------------------------------------------------ pickles


class Evil:
    """A pickle of it calls `function` when it is loaded as Python does."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "wrap",
    [
        lambda evil: evil,
        lambda evil: {"image": evil},
        lambda evil: np.array([evil], object),
        lambda evil: [1, (2, evil)],
    ],
)
@pytest.mark.parametrize("kind", ["system", "eval", "open", "numpy"])
def test_a_pickle_that_runs_something_is_refused_and_runs_nothing(tmp_path, wrap, kind):
    marker = tmp_path / "ran"
    evil = {
        "system": Evil(os.system, f"touch {marker}"),
        "eval": Evil(eval, f"open({str(marker)!r}, 'w')"),
        "open": Evil(open, str(marker), "w"),
        "numpy": Evil(np.memmap, str(marker), "u1", "w+", 0, (1,)),
    }[kind]
    data = pickle.dumps(wrap(evil))
    source = write(tmp_path / "x" / "train.lmdb", [clevrtex(maps(2)[0]), data])
    assert not marker.exists()
    text = refuses("clevrtex", source, skip_bad=True)  # not left out in silence either
    assert "record 000001 is a pickle that holds more than arrays" in text and "nothing was" in text
    assert not marker.exists()
    pickle.loads(pickle.dumps(evil))  # it is a real one
    assert marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy\ndtype\n}b.",  # changes what it named
        b"cnumpy\nndarray\n(I2\ntR.",  # calls it
        b"cnumpy\ndtype\n.",  # hands it out
        b"cnumpy\ndtype\n(S'O8'\ntR.",  # would read addresses
        pickle.dumps(np.array([None], object)),
        pickle.dumps(np.array([(1, 2)], "i4,f4")),
        pickle.dumps(np.array(["text"])),
        pickle.dumps({1, 2}),
        pickle.dumps(1j),
    ],
)
def test_what_is_not_plain_is_refused(data):
    with pytest.raises(plain_pickle.Refused):
        plain_pickle.loads(data)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_values_come_back(protocol):
    value = {
        "bytes": b"\x00\xff",
        "list": [1, 2.5, None, True, "text", (3, [])],
        "buffer": io.BytesIO(b"abc"),
        "number": np.uint8(7),
        "float": np.float32(-0.5),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float32),
        "columns": np.asfortranarray(RNG.random((3, 4))),
        "big": np.arange(5, dtype=">u2"),
        "slice": RNG.integers(0, 9, (6, 6))[::2, 1:3],
    }
    data = pickle.dumps(value, protocol)
    for found in (
        plain_pickle.loads(data),
        # As NumPy 1 names its functions; protocol 3 does so in text.
        plain_pickle.loads(data.replace(b"cnumpy._core.", b"cnumpy.core.")),
    ):
        assert found.keys() == value.keys() and found.pop("buffer") == b"abc"
        for key, entry in found.items():
            if isinstance(value[key], np.ndarray):
                np.testing.assert_array_equal(entry, value[key], err_msg=key, strict=True)
            else:
                assert entry == value[key]
    for length in range(0, len(data), 7):
        with pytest.raises(ValueError, match="cut off or damaged"):
            plain_pickle.loads(data[:length])


def test_a_value_that_contains_itself_is_refused():
    value: list = []
    value.append(value)
    with pytest.raises(ValueError, match="RecursionError"):
        plain_pickle.loads(pickle.dumps(value))


def test_an_image_of_the_folder_is_the_downloaded_one(tmp_path):
    out = prepared("voc", write(tmp_path / "v" / "train.lmdb", [voc(framed(maps(2)[0]))]))
    (sample,) = read(out)
    with Image.open(io.BytesIO(jpeg(0))) as picture:
        np.testing.assert_allclose(sample["image"], np.asarray(picture), atol=3)
