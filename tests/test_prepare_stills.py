"""Preparing single images from miniatures in the real layouts: nested archives, and unpacked."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from raw_stills import (
    FULL,
    HEIGHT,
    WIDTH,
    clevrtex_source,
    coco_contents,
    coco_source,
    encoded,
    inst,
    instance_labels,
    palette_png,
    panoptic_labels,
    picture,
    rendered,
    sbd_contents,
    sbd_labels,
    scene_labels,
    scenes,
    segments,
    tarred,
    voc_labels,
    voc_source,
    write,
)

from data import check, finished, prepare
from data.archives import Files
from data.family import Options
from data.features import NO_SEGMENT
from smoothsa_jax.errors import UserError


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def unpack(source: Path) -> None:
    """Unpacks the archives of a folder there, and removes them; zips inside too."""
    while archives := [p for p in source.rglob("*") if p.name.endswith((".zip", ".tar", "gz"))]:
        for path in archives:
            files = Files(path)
            write(path.parent, {name: files.read(name) for name in files.names()})
            path.unlink()


def samples(out: Path, split: str) -> list[dict[str, Any]]:
    return list(tfds.builder_from_directory(out).as_data_source(split=split))


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def refuses(name: str, source: Path, **options) -> str:
    """The one-line error, after checking that nothing was left behind."""
    out = source.parent / f"{source.name}-refused"
    with pytest.raises(UserError) as error:
        prepare.prepare(name, str(source), out, options=Options(**options))
    assert not (out / "MANIFEST.json").exists()
    return " ".join(str(error.value).split())


# --------------------------------------------------------------------------------------------- COCO


@pytest.fixture
def coco(tmp_path) -> Path:
    return coco_source(tmp_path / "coco")


def check_coco(out: Path, source: Path, labels, num_objects: int) -> None:
    for split, stem in (("train", "train2017"), ("validation", "val2017")):
        images = coco_images(source, stem)
        found = samples(out, split)
        assert [s["metadata"]["name"].decode() for s in found] == [n[:-4] for n in sorted(images)]
        for index, sample in enumerate(found):
            name = sample["metadata"]["name"].decode()
            np.testing.assert_array_equal(sample["image"], pixels_of(images[f"{name}.jpg"]))
            np.testing.assert_array_equal(sample["segmentation"][..., 0], labels(index))
            assert len(sample["categories"]) == len(sample["bboxes"]) == num_objects
            assert (sample["metadata"]["height"], sample["metadata"]["width"]) == (HEIGHT, WIDTH)
    assert check.check(out) == []


def coco_images(source: Path, stem: str) -> dict[str, bytes]:
    files = Files(source / stem if (source / stem).exists() else source / f"{stem}.zip")
    return {name.split("/")[-1]: files.read(name) for name in files.names()}


@pytest.mark.parametrize("unpacked", [False, True])
def test_coco(coco, tmp_path, unpacked):
    if unpacked:
        unpack(coco)
    out = tmp_path / "out"
    prepare.prepare("coco", str(coco), out)
    check_coco(out, coco, lambda index: panoptic_labels(crowd=NO_SEGMENT), 2)
    sample = samples(out, "train")[0]
    builder = tfds.builder_from_directory(out)
    assert builder.info.features["categories"].feature.names == ["person", "cat"]
    assert list(sample["categories"]) == [1, 0]
    expected = [[0, 0, 8 / HEIGHT, 10 / WIDTH], [0, 20 / WIDTH, 8 / HEIGHT, 30 / WIDTH]]
    np.testing.assert_allclose(sample["bboxes"], expected, atol=1e-6)
    assert not (out / finished.UNFINISHED).exists()


def test_coco_crowds_as_segments(coco, tmp_path):
    options = Options(extra=(("crowd", "segment"),))
    prepare.prepare("coco", str(coco), tmp_path / "out", options=options)
    check_coco(tmp_path / "out", coco, lambda index: panoptic_labels(crowd=3), 3)
    prepare.prepare("coco_instances", str(coco), tmp_path / "instances", options=options)
    check_coco(tmp_path / "instances", coco, lambda index: instance_labels(index, 2, 3), 3)


@pytest.mark.parametrize("unpacked", [False, True])
def test_coco_instances(coco, tmp_path, unpacked):
    if unpacked:
        unpack(coco)
    prepare.prepare("coco_instances", str(coco), tmp_path / "out")
    check_coco(tmp_path / "out", coco, lambda i: instance_labels(i, NO_SEGMENT, 2), 2)
    assert list(samples(tmp_path / "out", "train")[1]["categories"]) == [0, 1]


def test_coco_masks_lie_in_the_stored_pixels(coco, tmp_path):
    """Whatever the orientation in EXIF; what is stored has none that another reader would apply."""
    unpack(coco)
    for orientation, path in zip((3, 6, 2), sorted((coco / "train2017").iterdir()), strict=True):
        image = Image.open(path)
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(path, exif=exif)
    prepare.prepare("coco_instances", str(coco), tmp_path / "out")
    check_coco(tmp_path / "out", coco, lambda i: instance_labels(i, NO_SEGMENT, 2), 2)
    source = tfds.builder_from_directory(tmp_path / "out").as_data_source(
        split="train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    for sample in source:
        assert 0x0112 not in Image.open(io.BytesIO(sample["image"])).getexif()


def test_coco_zips_of_windows(tmp_path):
    """Backslashes divide folders in them, also in the zip inside."""
    archives = coco_contents()
    inside = archives["panoptic_annotations_trainval2017.zip"]
    inside |= {name: backslashes(data) for name, data in inside.items() if name.endswith("zip")}
    source = coco_source(tmp_path / "coco", archives)
    for path in source.iterdir():
        path.write_bytes(backslashes(path.read_bytes()))
    prepare.prepare("coco", str(source), tmp_path / "out")
    check_coco(tmp_path / "out", source, lambda index: panoptic_labels(crowd=NO_SEGMENT), 2)


def backslashes(data: bytes) -> bytes:
    """The same zip, with names as some tools for Windows write them."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            member = zipfile.ZipInfo("x")
            member.filename = name.replace("/", "\\")
            new.writestr(member, old.read(name))
    return changed.getvalue()


def test_coco_workers_change_no_byte(coco, tmp_path):
    arguments = ["coco", f"--source={coco}"]
    for workers in (1, 2):
        out = tmp_path / str(workers)
        assert prepare.main([*arguments, f"--out={out}", f"--workers={workers}"]) == 0
        assert check.check(out, workers) == []
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")


def test_coco_splits_one_after_the_other(coco, tmp_path):
    prepare.prepare("coco", str(coco), tmp_path / "both")
    for split in ("validation", "train"):
        prepare.prepare("coco", str(coco), tmp_path / "one", (split,))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "both")


def test_coco_limit_and_size(coco, tmp_path):
    prepare.prepare("coco", str(coco), tmp_path / "out", options=Options(limit=1, size=12))
    (sample,) = samples(tmp_path / "out", "train")
    assert sample["image"].shape == (12, 16, 3) and sample["segmentation"].shape == (12, 16, 1)


def changed_json(archives: dict, name: str, change) -> dict:
    file = next(inside for inside in archives.values() if name in inside)
    content = json.loads(file[name])
    change(content)
    file[name] = json.dumps(content).encode()
    return archives


def many_segments() -> list[dict[str, Any]]:
    return [{**segment, "id": k + 1} for k, segment in enumerate(segments() * 130)]


PANOPTIC = "annotations/panoptic_train2017.json"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda j: j["images"][1].update(file_name="x.jpg"), "lacks 1 of the 3 images"),
        (lambda j: j.update(annotations=[]), "no annotations for its 3 images"),
        (lambda j: j["annotations"][0].update(image_id=99), "that it does not list: 99"),
        (lambda j: j["annotations"][0].pop("segments_info"), "holds no panoptic annotations"),
        (lambda j: j["images"][0].pop("height"), "an entry of images lacks 'height'"),
        (lambda j: j["images"][0].update(height=25), "24x32 pixels, its json says 25x32"),
        (
            lambda j: j["annotations"][0].update(file_name="x.png"),
            "has no panoptic_train2017/x.png",
        ),
        (lambda j: j["annotations"][0]["segments_info"].pop(), "has the id 300"),
        (lambda j: j["annotations"][0]["segments_info"][0].pop("bbox"), "the box is None"),
        (lambda j: j["annotations"][0].update(segments_info=many_segments()), "260 objects"),
    ],
)
def test_coco_faults_of_the_json(tmp_path, change, expected):
    archives = changed_json(coco_contents(), PANOPTIC, change)
    assert expected in refuses("coco", coco_source(tmp_path / "coco", archives))


TWICE = "more than once: "


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("coco", lambda j: j["images"][1].update(id=7), f"image ids {TWICE}7; expected each once"),
        (
            "coco",
            lambda j: j["images"][1].update(file_name="000000000007.jpg"),
            f"image file names {TWICE}000000000007.jpg",
        ),
        (
            "coco",
            lambda j: j["images"][1].update(file_name="sub/000000000007.jpg"),
            f"image names (file names without folder and ending) {TWICE}000000000007",
        ),
        ("coco", lambda j: j["annotations"][1].update(image_id=7), "more than one annotation of 1"),
        ("coco", lambda j: j["categories"][1].update(id=1), "the category id 1 twice (person and"),
        ("coco", lambda j: j["categories"][1].update(name="person"), "name 'person' twice"),
        (
            "coco",
            lambda j: j["annotations"][1]["segments_info"][0].update(category_id=77),
            "such as 77 (annotation 1000 of image 8); add them to its categories",
        ),
        (
            "coco",
            lambda j: j["annotations"][1]["segments_info"][1].update(id=1000),
            "000000000008.jpg: its panoptic annotation has a segment with the id 1000, expected",
        ),
        ("coco_instances", lambda j: j["annotations"][4].update(id=0), f"annotation ids {TWICE}0"),
        (
            "coco_instances",
            lambda j: j["annotations"][4].update(category_id=77),
            "such as 77 (annotation 11 of image 8)",
        ),
        (
            "coco_instances",
            lambda j: j["annotations"][5].update(bbox=[1, 2, float("nan"), 3]),
            "annotation 12: the box is [1, 2, nan, 3], expected four finite numbers",
        ),
    ],
)
def test_coco_ids_that_are_not_unique_or_name_nothing(tmp_path, name, change, expected):
    kind = {"coco": "panoptic", "coco_instances": "instances"}[name]
    file = f"annotations/{kind}_train2017.json"
    source = coco_source(tmp_path / "coco", changed_json(coco_contents(), file, change))
    text = refuses(name, source)
    assert expected in text and "train2017" in text


def test_coco_images_with_unlisted_categories_are_skipped_on_request(tmp_path):
    def unlist(content):
        content["annotations"][1]["segments_info"][1]["category_id"] = 77

    source = coco_source(tmp_path / "coco", changed_json(coco_contents(), PANOPTIC, unlist))
    prepare.prepare("coco", str(source), tmp_path / "out", ("train",), Options(skip_bad=True))
    assert names_of(tmp_path / "out", "train") == ["000000000007", "000000000009"]
    (line,) = json.loads((tmp_path / "out/MANIFEST.json").read_text())["splits"]["train"]["skipped"]
    assert "000000000008.jpg, segment 66000 has the category_id 77" in line


def test_coco_pictures_without_annotation_are_listed(tmp_path, capsys):
    archives = changed_json(coco_contents(), PANOPTIC, lambda j: j["annotations"].pop())
    prepare.prepare("coco", str(coco_source(tmp_path / "coco", archives)), tmp_path / "out")
    assert names_of(tmp_path / "out", "train") == ["000000000007", "000000000008"]
    line = "left out: pictures without an annotation in panoptic_train2017.json (1): 000000000009"
    assert line in capsys.readouterr().out


def test_coco_damaged_json(tmp_path):
    archives = coco_contents()
    inside = archives["panoptic_annotations_trainval2017.zip"]
    inside[PANOPTIC] = inside[PANOPTIC][:-30]
    text = refuses("coco", coco_source(tmp_path / "coco", archives))
    assert "panoptic_train2017.json is not valid json" in text


def test_coco_image_of_another_size(tmp_path):
    archives = coco_contents()
    name = sorted(archives["train2017.zip"])[0]
    archives["train2017.zip"][name] = picture(0, size=(20, 32))
    source = coco_source(tmp_path / "coco", archives)
    text = refuses("coco", source)
    assert f"{name} has 20x32 pixels, its labels 24x32" in text
    prepare.prepare("coco", str(source), tmp_path / "out", options=Options(skip_bad=True))
    assert len(samples(tmp_path / "out", "train")) == 2


def test_coco_run_lengths_that_do_not_fit(tmp_path):
    def shorten(content):
        content["annotations"][4]["segmentation"]["counts"][-1] -= 1

    archives = changed_json(coco_contents(), "annotations/instances_train2017.json", shorten)
    text = refuses("coco_instances", coco_source(tmp_path / "coco", archives))
    assert "000000000008.jpg, annotation 11: the RLE counts 767 pixels" in text


def test_coco_images_without_objects(tmp_path):
    def only_the_last(content):
        content["annotations"] = content["annotations"][-3:]

    archives = changed_json(coco_contents(), "annotations/instances_train2017.json", only_the_last)
    source = coco_source(tmp_path / "coco", archives)
    prepare.prepare("coco_instances", str(source), tmp_path / "out", ("train",))
    found = samples(tmp_path / "out", "train")
    assert [len(s["categories"]) for s in found] == [0, 0, 2]
    assert found[0]["bboxes"].shape == (0, 4) and not found[0]["segmentation"].any()
    assert check.check(tmp_path / "out") == []


def test_options_of_families_on_the_command_line(coco, clevrtex, tmp_path, capsys):
    common = ["--workers=1", "--split=validation"]
    crowds = ["coco", f"--source={coco}", f"--out={tmp_path / 'crowds'}", "--crowd=segment"]
    assert prepare.main([*crowds, *common]) == 0
    assert len(samples(tmp_path / "crowds", "validation")[0]["categories"]) == 3
    camo = ["clevrtex", f"--source={clevrtex}", f"--out={tmp_path / 'camo'}", "--variant=camo"]
    assert prepare.main([*camo, *common]) == 0
    assert names_of(tmp_path / "camo", "validation")[0] == "CLEVRTEX_camo_000000"
    capsys.readouterr()
    for name, source in (("coco", coco), ("clevrtex", clevrtex), ("voc", coco)):
        arguments = [name, f"--source={source}", f"--out={tmp_path / 'x'}", "--keep=depth"]
        assert prepare.main(arguments) == 2
        assert f"--keep=depth is not an annotation of {name}" in capsys.readouterr().err


def test_coco_missing_files(coco, tmp_path):
    (coco / "panoptic_annotations_trainval2017.zip").unlink()
    text = refuses("coco", coco)
    assert "annotations/panoptic_train2017.json" in text and "download panoptic_ann" in text
    (tmp_path / "empty").mkdir()
    text = refuses("coco", tmp_path / "empty")
    assert "train2017.zip" in text and "val2017.zip" in text
    assert "is not a folder" in refuses("coco", tmp_path / "nowhere")


def test_coco_missing_label_maps(coco):
    unpack(coco)
    (coco / "annotations" / "panoptic_train2017").rename(coco / "elsewhere")
    assert "but the label maps are missing; looked for" in refuses("coco", coco)
    (coco / "elsewhere").rename(coco / "panoptic_train2017")
    prepare.prepare("coco", str(coco), coco.parent / "out")


def test_coco_a_damaged_zip_inside(tmp_path):
    archives = coco_contents()
    inside = archives["panoptic_annotations_trainval2017.zip"]
    inside["annotations/panoptic_train2017.zip"] = inside["annotations/panoptic_train2017.zip"][
        :-90
    ]
    text = refuses("coco", coco_source(tmp_path / "coco", archives))
    assert "panoptic_train2017.zip is damaged" in text


# ---------------------------------------------------------------------------------------------- VOC


@pytest.fixture
def voc(tmp_path) -> Path:
    return voc_source(tmp_path / "voc")


def names_of(out: Path, split: str) -> list[str]:
    return [s["metadata"]["name"].decode() for s in samples(out, split)]


@pytest.mark.parametrize("unpacked", [False, True])
def test_voc(voc, tmp_path, unpacked):
    if unpacked:
        unpack(voc)
    out = tmp_path / "out"
    prepare.prepare("voc", str(voc), out)
    assert names_of(out, "train") == ["2007_000032", "2008_000001", "2009_000005"]
    assert names_of(out, "validation") == ["000032", "000039"]
    assert names_of(out, "test") == ["000068"]
    for split in ("train", "validation", "test"):
        for sample in samples(out, split):
            name = sample["metadata"]["name"].decode()
            expected = pixels_of(picture(int(name[-4:])))
            np.testing.assert_array_equal(sample["image"], expected)
            np.testing.assert_array_equal(sample["segmentation"][..., 0], voc_labels())
            assert list(sample["categories"]) == [11, 18]
    assert check.check(out) == []
    names = tfds.builder_from_directory(out).info.features["categories"].feature.names
    assert len(names) == 20 and (names[11], names[18]) == ("dog", "train")


@pytest.mark.parametrize("unpacked", [False, True])
def test_voc_trainaug(voc, tmp_path, unpacked):
    if unpacked:
        unpack(voc)
    out = tmp_path / "out"
    prepare.prepare("voc_trainaug", str(voc), out)
    found = {s["metadata"]["name"].decode(): s for s in samples(out, "train")}
    assert list(found) == ["2007_000032", "2008_000001", "2010_000011", "2011_000009"]
    np.testing.assert_array_equal(found["2008_000001"]["segmentation"][..., 0], voc_labels())
    sample = found["2010_000011"]
    np.testing.assert_array_equal(sample["segmentation"][..., 0], sbd_labels())
    np.testing.assert_array_equal(sample["image"], pixels_of(picture(11)))
    assert list(sample["categories"]) == [2, 19]
    assert list(found["2011_000009"]["categories"]) == [4]
    assert names_of(out, "validation") == ["000032", "000039"]
    assert check.check(out) == []
    prepare.prepare("voc_trainaug", str(voc), tmp_path / "few", ("train",), Options(limit=3))
    assert names_of(tmp_path / "few", "train") == list(found)[:3]


def test_voc_values_that_no_pixel_has_are_left_out(tmp_path):
    name = "VOCdevkit/VOC2012/SegmentationObject/2007_000032.png"
    source = voc_source(tmp_path / "voc", **{name: palette_png(voc_labels(gap=5))})
    prepare.prepare("voc", str(source), tmp_path / "out", ("train",))
    sample = samples(tmp_path / "out", "train")[0]
    np.testing.assert_array_equal(sample["segmentation"][..., 0], voc_labels())


def test_voc_a_list_with_a_byte_order_mark(tmp_path):
    file = "VOCdevkit/VOC2012/ImageSets/Segmentation/trainval.txt"
    source = voc_source(tmp_path / "voc", **{file: b"\xef\xbb\xbf2008_000001\r\n2007_000032\r\n"})
    prepare.prepare("voc", str(source), tmp_path / "out", ("train",))
    assert names_of(tmp_path / "out", "train") == ["2008_000001", "2007_000032"]


def test_voc_missing_files(voc, tmp_path):
    write(tmp_path / "empty", {"benchmark.tgz": b""})
    text = refuses("voc", tmp_path / "empty")
    for name in ("VOCtrainval_11-May-2012.tar", "VOCtrainval_06-Nov-2007.tar", "VOCdevkit/VOC2012"):
        assert name in text
    (voc / "benchmark.tgz").unlink()
    text = refuses("voc_trainaug", voc)
    assert "benchmark.tgz" in text and "benchmark_RELEASE/dataset" in text
    unpack(voc)
    (voc / "VOCdevkit/VOC2012/SegmentationClass/2009_000005.png").unlink()
    assert "lacks 1 of the 9 files" in refuses("voc", voc)


@pytest.mark.parametrize(
    ("file", "data", "expected"),
    [
        ("JPEGImages/2008_000001.jpg", picture(1, size=(20, 30)), "has 20x30 pixels, its labels"),
        ("SegmentationClass/2008_000001.png", encoded(Image.new("P", (3, 3))), "Class 3x3"),
        (
            "SegmentationClass/2008_000001.png",
            encoded(Image.new("P", (32, 24))),
            "object 1 has none of",
        ),
        ("SegmentationObject/2008_000001.png", picture(0, "PNG"), "has mode RGB, expected a label"),
        ("ImageSets/Segmentation/trainval.txt", b"\n", "trainval.txt is empty: no annotations"),
        (
            "ImageSets/Segmentation/trainval.txt",
            b"2007_000032\n2008_000001\n2007_000032\n",
            "trainval.txt has names more than once: 2007_000032",
        ),
        (
            "ImageSets/Segmentation/trainval.txt",
            "2007_000032\n".encode("utf-16"),
            "trainval.txt is UTF-16, expected text in UTF-8",
        ),
    ],
)
def test_voc_faults(tmp_path, file, data, expected):
    source = voc_source(tmp_path / "voc", **{f"VOCdevkit/VOC2012/{file}": data})
    assert expected in refuses("voc", source)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"MATLAB", "2010_000011.mat has no GTinst"),
        (inst(sbd_labels(), [3]), "has labels up to 2"),
        (inst(sbd_labels(), [3, 21]), r"has the classes [3, 21], expected 1 to 20"),
    ],
)
def test_voc_faults_of_sbd(voc, data, expected):
    name = "benchmark_RELEASE/dataset/inst/2010_000011.mat"
    (voc / "benchmark.tgz").write_bytes(tarred({**sbd_contents(), name: data}, "gz"))
    assert expected in refuses("voc_trainaug", voc)


# ----------------------------------------------------------------------------------------- ClevrTex


@pytest.fixture
def clevrtex(tmp_path) -> Path:
    return clevrtex_source(tmp_path / "clevrtex")


@pytest.mark.parametrize(
    "kind", ["tar.gz", *(pytest.param(x, marks=pytest.mark.slow) for x in ("tar", "unpacked"))]
)
def test_clevrtex(tmp_path, kind):
    source = clevrtex_source(tmp_path / "clevrtex", "" if kind == "tar" else "gz")
    if kind == "unpacked":
        unpack(source)
    out = tmp_path / "out"
    prepare.prepare("clevrtex", str(source), out)
    metadata = json.loads((out / "MANIFEST.json").read_text())["metadata"]
    held_out = metadata["held_out"]
    assert 4500 < len(held_out) < 5500 and metadata["validation"] == "outd"
    names = [f"CLEVRTEX_full_{n:06d}" for numbers in FULL.values() for n in numbers]
    test = [name for name in names if name in held_out]
    assert test and names_of(out, "test") == test
    assert sorted(names_of(out, "train")) == sorted(set(names) - set(test))
    assert names_of(out, "validation") == [f"CLEVRTEX_outd_{n:06d}" for n in range(3)]
    for split in ("train", "validation", "test"):
        for sample in samples(out, split):
            number = int(sample["metadata"]["name"][-6:])
            expected = pixels_of(picture(number, "PNG"))
            np.testing.assert_array_equal(sample["image"], expected)
            np.testing.assert_array_equal(sample["segmentation"][..., 0], scene_labels(number))
    assert check.check(out) == []


def test_clevrtex_trains_on_all_of_full_on_request(clevrtex, tmp_path):
    options = Options(extra=(("holdout", 0.0),))
    prepare.prepare("clevrtex", str(clevrtex), tmp_path / "out", options=options)
    assert len(names_of(tmp_path / "out", "train")) == sum(map(len, FULL.values()))
    manifest = json.loads((tmp_path / "out/MANIFEST.json").read_text())
    assert set(manifest["splits"]) == {"train", "validation"}
    assert not manifest["metadata"]["held_out"]
    assert "--holdout is 1.0; expected" in refuses("clevrtex", clevrtex, extra=(("holdout", 1.0),))


def test_clevrtex_limit(clevrtex, tmp_path):
    options = Options(limit=13)  # more than the first part has
    prepare.prepare("clevrtex", str(clevrtex), tmp_path / "tars", options=options)
    unpack(clevrtex)
    prepare.prepare("clevrtex", str(clevrtex), tmp_path / "folders", options=options)
    for split, number in (("train", 13), ("validation", 3)):
        names = names_of(tmp_path / "tars", split)
        assert len(names) == number and names == names_of(tmp_path / "folders", split)


def test_clevrtex_memory_does_not_grow_with_the_tar(clevrtex, tmp_path, monkeypatch):
    """No more waits than a scene's first half."""
    from data import clevrtex as module

    largest = max(len(rendered(n)) for numbers in FULL.values() for n in numbers)
    monkeypatch.setattr(module, "MAX_WAITING", largest)
    prepare.prepare("clevrtex", str(clevrtex), tmp_path / "out", ("train",))
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    assert "too far apart" in refuses("clevrtex", clevrtex)


def test_clevrtex_scene_over_two_parts(tmp_path):
    """Unpacked into one folder it is complete; a part alone is an error."""
    source = tmp_path / "clevrtex"
    parts = {part: scenes("full", numbers) for part, numbers in FULL.items()}
    moved = next(name for name in parts[1] if name.endswith("_flat.png"))
    parts[2][moved] = parts[1].pop(moved)
    for part, inside in parts.items():
        write(source, {f"clevrtex_full_part{part}.tar.gz": tarred(inside, "gz")})
    text = refuses("clevrtex", source)
    assert "only one of image and labels" in text and "all parts of full into one folder" in text
    unpack(source)
    prepare.prepare("clevrtex", str(source), tmp_path / "out", ("train", "test"))
    names = names_of(tmp_path / "out", "train") + names_of(tmp_path / "out", "test")
    assert len(names) == sum(map(len, FULL.values()))


def test_clevrtex_scenes_twice(tmp_path):
    def made(folder: str, change, compression: str = "gz") -> Path:
        source = clevrtex_source(tmp_path / folder, compression)
        parts = {part: scenes("full", numbers) for part, numbers in FULL.items()}
        change(parts)
        for part, inside in parts.items():
            name = f"clevrtex_full_part{part}.tar" + f".{compression}" * bool(compression)
            write(source, {name: tarred(inside, compression)})
        return source

    def repeat(parts):
        parts[2] |= scenes("full", [10])

    def elsewhere(parts):
        moved = {name.replace("/0/", "/1/"): data for name, data in scenes("full", [10]).items()}
        parts[1] = {**moved, **parts[1]}

    name = "CLEVRTEX_full_000010"
    assert f"has scenes more than once: {name}" in refuses("clevrtex", made("a", repeat, ""))
    text = refuses("clevrtex", made("b", elsewhere, ""))
    assert f"clevrtex_full/1/{name}" in text and "one scene twice" in text
    text = refuses("clevrtex", made("c", repeat), limit=60, extra=(("holdout", 0.0),))
    assert f"part2.tar.gz has the scene {name} a second time" in text
    text = refuses("clevrtex", made("e", repeat), extra=(("holdout", 0.0),))
    assert f"has samples more than once: {name}; expected each once: take the archive" in text
    source = made("d", lambda parts: None)
    (source / "clevrtex_full_part3.tar.gz").write_bytes(
        (source / "clevrtex_full_part1.tar.gz").read_bytes()
    )
    text = refuses("clevrtex", source)
    assert "part1.tar.gz and" in text and "part3.tar.gz are the same archive" in text


def test_clevrtex_missing_files(clevrtex, tmp_path):
    (clevrtex / "clevrtex_full_part3.tar.gz").unlink()
    text = refuses("clevrtex", clevrtex)
    assert "has 4 of the 5 archives of full; clevrtex_full_part3.tar.gz missing" in text
    (tmp_path / "empty").mkdir()
    text = refuses("clevrtex", tmp_path / "empty")
    assert "clevrtex_full_part5.tar.gz" in text and "clevrtex_outd.tar.gz" in text


@pytest.mark.parametrize("compression", ["gz", ""])
def test_clevrtex_faults(tmp_path, compression):
    source = clevrtex_source(tmp_path / "clevrtex", compression)
    tar = next(source.glob("clevrtex_outd.*"))

    def holds(changes: dict[str, bytes | None]) -> str:
        contents = {**scenes("outd", [0, 1]), **changes}
        inside = {name: data for name, data in contents.items() if data is not None}
        tar.write_bytes(tarred(inside, compression))
        with pytest.raises(UserError) as error:
            prepare.prepare("clevrtex", str(source), tmp_path / "out", ("validation",))
        return str(error.value)

    name = "clevrtex_outd/0/CLEVRTEX_outd_000001"
    assert "1 scenes with only one of image and labels" in holds({f"{name}_flat.png": None})
    text = holds({f"{name}_flat.png": picture(0, "PNG", (20, 30))})
    assert "000001.png has 600 objects, more than the 254" in text
    small = encoded(Image.new("RGB", (30, 20)))
    assert "has 24x32 pixels, its labels 20x30" in holds({f"{name}_flat.png": small})
    tar.write_bytes(tarred(scenes("pbg", [0]), compression))
    text = refuses("clevrtex", source)
    assert "holds no scene named CLEVRTEX_outd_000000.png" in text
