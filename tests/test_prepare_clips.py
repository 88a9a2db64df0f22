"""Families of clips and folders of one's own, each from a miniature in its real layout."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from raw_clips import (
    HEIGHT,
    NAMES,
    SEQUENCES,
    WIDTH,
    Videos,
    block,
    box_of,
    compressed,
    davis,
    decoded,
    encoded,
    palette_png,
    picture,
    prefixed,
    uncompressed,
    write,
    write_zip,
    ytvis_2022,
)

from data import check, finished, prepare, ytvis
from data.clips import is_held_out
from data.family import Options
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.sources import natural


def read(out: Path, split: str) -> list[dict]:
    """Samples of a prepared folder, by name; frames and labels as arrays."""
    found = []
    for sample in tfds.builder_from_directory(out).as_data_source(split=split):
        for key in ("video", "segmentations"):
            if key in sample:
                sample[key] = np.stack(sample[key])
        sample["name"] = sample["metadata"]["name"].decode()
        found.append(sample)
    return found


def manifest(out: Path) -> dict:
    return json.loads((out / "MANIFEST.json").read_text())


def refuses(name: str, source: Path, out: Path, splits=("train",), **options) -> str:
    extra = tuple(sorted(options.pop("extra", {}).items()))
    with pytest.raises(UserError) as error:
        prepare.prepare(name, str(source), out, splits, Options(extra=extra, **options))
    assert "\n" not in str(error.value)
    return str(error.value)


# -------------------------------------------------------------------------------------- YouTube-VIS


@pytest.mark.parametrize("layout", ["zip", "zip without its folder, json beside", "unpacked"])
def test_youtube_vis_2022(tmp_path, layout):
    drawn = ytvis_2022(tmp_path / "in", layout)
    out = tmp_path / "out"
    prepare.prepare("ytvis_2022", str(tmp_path / "in"), out)
    for split, videos in drawn.items():
        samples = read(out, split)
        assert [sample["name"] for sample in samples] == list(videos.labels)
        for sample in samples:
            videos.check(sample)
    metadata = manifest(out)["metadata"]
    assert metadata["categories"] == NAMES
    assert metadata["without_annotation"] == {"train": 1, "validation": 1}
    assert check.check(out) == []
    sources = {source["file"] for source in manifest(out)["sources"]}
    assert sources == {
        "zip": {"train.zip", "valid.zip", "validation_gt.zip"},
        "unpacked": {"JPEGImages", "instances.json", "gt.json"},
    }.get(layout, {"train.zip", "valid.zip", "train.json", "valid.json"})


def test_frames_stay_the_bytes_that_were_downloaded(tmp_path):
    drawn = ytvis_2022(tmp_path / "in", "zip")
    prepare.prepare("ytvis_2022", str(tmp_path / "in"), tmp_path / "out", ("train",))
    shard = next((tmp_path / "out").glob("*train*")).read_bytes()
    for name in drawn["train"].labels:
        assert drawn["train"].frames[f"{name}/00000.jpg"] in shard


def test_one_split_after_the_other_and_a_size(tmp_path):
    ytvis_2022(tmp_path / "in", "zip")
    out = tmp_path / "out"
    for split in ("validation", "train"):
        prepare.prepare("ytvis_2022", str(tmp_path / "in"), out, (split,), Options(size=12))
    assert list(manifest(out)["splits"]) == ["train", "validation"]
    sample = read(out, "train")[0]
    assert sample["video"].shape == (3, 12, 16, 3)
    assert sample["segmentations"].shape == (3, 12, 16, 1)


@pytest.mark.parametrize("name", ["ytvis_2019", "ytvis_2021"])
def test_a_part_of_train_is_validation_and_is_listed(tmp_path, name):
    videos = Videos(60, num_frames=1)
    contents = prefixed("train/JPEGImages/", videos.frames)
    write_zip(tmp_path / "in" / "train.zip", contents)
    write(tmp_path / "in", {"train.json": videos.json()})
    write(
        tmp_path / "in", {"valid.json": videos.json(annotations=None)}
    )  # not public: not looked at
    out = tmp_path / "out"
    prepare.prepare(name, str(tmp_path / "in"), out)
    held_out = [sample["name"] for sample in read(out, "validation")]
    assert held_out == [video for video in videos.labels if is_held_out(video, 0.1)]
    assert manifest(out)["metadata"]["held_out_of_train"] == sorted(held_out)
    train = [sample["name"] for sample in read(out, "train")]
    assert train == [video for video in videos.labels if video not in held_out]
    assert len(train) > 32 and len(manifest(out)["splits"]["train"]["shards"]) == 2


def test_the_held_out_part_never_changes():
    names = [f"video_{k}" for k in range(40)]
    assert [n for n in names if is_held_out(n, 0.1)] == HELD_OUT_OF_FORTY
    assert set(HELD_OUT_OF_FORTY) <= {n for n in names if is_held_out(n, 0.3)}
    many = [is_held_out(f"video_{k}", 0.1) for k in range(5000)]
    assert 0.085 < np.mean(many) < 0.115


HELD_OUT_OF_FORTY = ["video_7", "video_27", "video_38"]


@pytest.mark.parametrize("beside", [True, False])
def test_hq_ytvis(tmp_path, beside):
    """Compressed and uncompressed masks, boxes that are not stored, frames beside or elsewhere."""
    videos = {
        "train": Videos(3, compressed),
        "validation": Videos(1, seed=20),
        "test": Videos(1, seed=40),
    }
    source, frames = tmp_path / "in", tmp_path / "frames"
    for annotation in videos["train"].annotations:
        del annotation["bboxes"]
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
        write(source, {f"ytvis_hq-{short}.json": videos[split].json()})
    contents = {name: data for v in videos.values() for name, data in v.frames.items()}
    extra = ()
    if beside:
        write(source, prefixed("JPEGImages/", contents))
    else:
        write_zip(
            frames / "train_all_frames.zip", prefixed("train_all_frames/JPEGImages/", contents)
        )
        extra = (("frames", str(frames)),)
    prepare.prepare("ytvis_hq", str(source), tmp_path / "out", options=Options(extra=extra))
    for split, drawn in videos.items():
        for sample in read(tmp_path / "out", split):
            drawn.check(sample)
    # Missing frames are named.
    if beside:
        shutil.rmtree(source / "JPEGImages" / next(iter(videos["train"].labels)))
        text = refuses("ytvis_hq", source, tmp_path / "out2")
        assert f"{next(iter(videos['train'].frames))}, " in text and "ytvis_hq-train.json" in text
        assert "--skip-bad" in text
        prepare.prepare(
            "ytvis_hq", str(source), tmp_path / "out2", ("train",), Options(skip_bad=True)
        )
        assert len(manifest(tmp_path / "out2")["splits"]["train"]["skipped"]) == 1
    else:
        shutil.rmtree(frames)
        text = refuses("ytvis_hq", source, tmp_path / "out2")
        assert "train_all_frames.zip" in text and "give their folder as --frames" in text


def test_masks_may_be_polygons(tmp_path):
    def polygons(mask: np.ndarray) -> list[list[float]]:
        left, top, width, height = box_of(mask)
        right, bottom = left + width, top + height
        return [[left, top, right, top, right, bottom, left, bottom]]

    train = Videos(3, polygons)
    write(tmp_path / "in", prefixed("train/JPEGImages/", train.frames))
    write(tmp_path / "in", {"train/instances.json": train.json()})
    prepare.prepare("ytvis_2022", str(tmp_path / "in"), tmp_path / "out", ("train",))
    samples = read(tmp_path / "out", "train")
    assert len(samples) == 2
    for sample in samples:
        train.check(sample)


def broken(folder: Path, change) -> Path:
    """A 2022 download whose training annotations are changed."""
    ytvis_2022(folder, "unpacked")
    path = folder / "train" / "instances.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return folder


def absent_frame(values):
    values["videos"][2]["file_names"][1] = "nowhere/00005.jpg"


def short_runs(values):
    values["annotations"][0]["segmentations"][1]["counts"][-1] -= 1


def other_size(values):
    values["annotations"][0]["segmentations"][1] = uncompressed(np.ones((HEIGHT, WIDTH + 1), bool))


def other_video_size(values):
    values["videos"][0]["height"] += 1
    for annotation in values["annotations"][:2]:
        annotation["segmentations"] = [None, None, uncompressed(np.ones((HEIGHT + 1, WIDTH)))]


def fewer_masks(values):
    values["annotations"][0]["segmentations"].pop()


def no_category(values):
    values["annotations"][0]["category_id"] = 99


def unknown_video(values):
    values["annotations"][0]["video_id"] = 99


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (absent_frame, "nowhere/00005.jpg, named by"),
        (
            short_runs,
            "frame 1, annotation 0: the RLE counts 767 pixels, its size [24, 32] has 768",
        ),
        (other_size, "the RLE has size [24, 33], the image [24, 32]"),
        (other_video_size, "has 24x32 pixels (height x width), its labels 25x32"),
        (fewer_masks, "annotation 0 has 2 masks, the video 3 frames"),
        (no_category, "KeyError(99)"),
        (unknown_video, "annotations of 1 videos that it does not list, such as id 99"),
        (lambda values: values.update(annotations=[]), "has no annotations, expected"),
        (lambda values: values.pop("videos"), "expected videos, categories and annotations"),
    ],
)
def test_a_json_that_does_not_fit(tmp_path, change, expected):
    source = broken(tmp_path / "in", change)
    assert expected in refuses("ytvis_2022", source, tmp_path / "out")


def test_annotations_that_are_missing(tmp_path):
    ytvis_2022(tmp_path / "in", "zip")
    (tmp_path / "in" / "validation_gt.zip").unlink()
    text = refuses("ytvis_2022", tmp_path / "in", tmp_path / "out", prepare.SPLITS)
    assert "valid.zip: valid/instances.json has no annotations" in text and "gt.json" in text
    prepare.prepare("ytvis_2022", str(tmp_path / "in"), tmp_path / "out", ("train",))
    (tmp_path / "empty").mkdir()
    text = refuses("ytvis_2021", tmp_path / "empty", tmp_path / "out2")
    assert "looked for train/instances.json, train/train.json, train.json" in text
    assert "is not a folder" in refuses("ytvis_2021", tmp_path / "nowhere", tmp_path / "out2")
    write(tmp_path / "empty", {"train.json": b'{"videos": ['})
    assert "is not valid json" in refuses("ytvis_2021", tmp_path / "empty", tmp_path / "out2")
    write(tmp_path / "empty", {"train.json": Videos(1).json()})
    text = refuses("ytvis_2021", tmp_path / "empty", tmp_path / "out2")
    assert "looked for [.../]JPEGImages/0000f3a9c1/00000.jpg in" in text and "train.zip" in text


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_is_read_element_by_element(indent):
    values = {"info": {"a": [1]}, "videos": [], "annotations": [{"id": 1, "x": [None, "]}"]}, 7]}
    found: dict = {}
    for key, value, text in ytvis._elements(json.dumps(values, indent=indent)):
        if text:
            assert json.loads(text) == value
            found[key].append(value)
        else:
            found[key] = [] if value is None else value
    assert found == values
    assert list(ytvis._elements(" {} ")) == []


@pytest.mark.parametrize("text", ["", "[]", '{"a"', '{"a": [1', '{"a": [1 2]}', '{"a": 1 "b": 2}'])
def test_no_json_of_that_kind(text):
    with pytest.raises(json.JSONDecodeError):
        list(ytvis._elements(text))


def test_natural_order():
    names = ["f10", "f9", "f1", "g2", "f1b"]
    assert sorted(names, key=natural) == ["f1", "f1b", "f9", "f10", "g2"]


# -------------------------------------------------------------------------------------------- DAVIS


@pytest.mark.parametrize("layout", ["zip", "the zip itself", "unpacked", "the folder itself"])
@pytest.mark.parametrize("year", [2016, 2017])
def test_davis(tmp_path, year, layout):
    contents, drawn = davis(year)
    source = tmp_path / "in"
    if "zip" in layout:
        name = {2016: "DAVIS-data.zip", 2017: "DAVIS-2017-trainval-480p.zip"}[year]
        path = write_zip(source / name, prefixed("DAVIS/", contents))
        source = path if layout == "the zip itself" else source
    else:
        write(source, prefixed("DAVIS/", contents))
        source = source / "DAVIS" if layout == "the folder itself" else source
    out = tmp_path / "out"
    prepare.prepare(f"davis_{year}", str(source), out)
    for split, short in (("train", "train"), ("validation", "val")):
        samples = read(out, split)
        assert [sample["name"] for sample in samples] == SEQUENCES[short]
        for sample in samples:
            video, labels = drawn[sample["name"]]
            assert np.array_equal(sample["video"], video)
            assert np.array_equal(sample["segmentations"][..., 0], labels)
            assert sample["metadata"]["height"] == HEIGHT
    assert manifest(out)["metadata"]["no_segment"] == 255
    assert check.check(out) == []


def test_davis_with_the_unsupervised_labels_and_a_limit(tmp_path):
    contents, drawn = davis(2017, "Annotations_unsupervised/480p")
    write(tmp_path / "in" / "DAVIS", contents)
    prepare.prepare("davis_2017", str(tmp_path / "in"), tmp_path / "out", options=Options(limit=1))
    (sample,) = read(tmp_path / "out", "train")
    assert np.array_equal(sample["segmentations"][..., 0], drawn["bear"][1])
    assert "unsupervised" in manifest(tmp_path / "out")["metadata"]["annotations"]


def test_davis_2016_of_the_download_of_2017(tmp_path):
    contents, drawn = davis(2017)
    contents["ImageSets/2016/train.txt"] = b"bear\n"
    write(tmp_path / "in", contents)
    prepare.prepare("davis_2016", str(tmp_path / "in"), tmp_path / "out")
    (sample,) = read(tmp_path / "out", "train")
    assert np.array_equal(sample["segmentations"][..., 0], drawn["bear"][1] > 0)


def test_faults_of_davis(tmp_path):
    contents, _ = davis(2017)
    (tmp_path / "empty").mkdir()
    text = refuses("davis_2017", tmp_path / "empty", tmp_path / "out")
    assert "DAVIS-2017-trainval-480p.zip: DAVIS/ImageSets/2017/train.txt" in text
    assert "does not exist" in refuses("davis_2016", tmp_path / "nowhere", tmp_path / "out")

    def refused(name: str, change: dict[str, bytes | None]) -> str:
        kept = {**contents, **change}
        source = write(tmp_path / name, {f: data for f, data in kept.items() if data is not None})
        return refuses("davis_2017", source, tmp_path / "out")

    labels = [name for name in contents if name.startswith("Annotations/480p/bear")]
    text = refused("one label", {labels[1]: None})
    assert f"has no {labels[1]}, named by the frames of ImageSets/2017/train.txt" in text
    all_labels = {name: None for name in contents if name.startswith("Annotations")}
    text = refused("no labels", all_labels)
    assert "has no annotations; looked for Annotations/480p" in text
    frames = {name: None for name in contents if name.startswith("JPEGImages/480p/bear")}
    assert "has no frames of bear" in refused("no frames", frames)
    other = {labels[0]: palette_png(np.zeros((HEIGHT, WIDTH + 2), np.uint8))}
    assert "has 24x32 pixels (height x width), its labels 24x34" in refused("other size", other)
    assert "is not a readable picture" in refused("cut", {labels[0]: contents[labels[0]][:40]})
    colours = {labels[0]: encoded(picture(0), "PNG")}
    assert "has mode RGB, expected a label map" in refused("colours", colours)


# --------------------------------------------------------------------------------- one's own folder


def drawn_labels(t: int, count: int = 2) -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for k in range(count):
        labels[block(2 + 6 * k, 3 + t, 5, 9)] = k + 1
    return labels


def video_file(path: Path, frames: list[np.ndarray]) -> bytes:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    code = {"mp4": "mp4v", "avi": "MJPG"}[path.suffix[1:]]
    size = (frames[0].shape[1], frames[0].shape[0])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 10, size)
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path.read_bytes()


def gif(frames: list[np.ndarray]) -> bytes:
    images = [Image.fromarray(frame).quantize(64) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], optimize=False)
    return buffer.getvalue()


def as_source(kind: str, folder: Path, contents: dict[str, bytes]) -> Path:
    if kind == "folder":
        return write(folder / "mydata", contents)
    inside = prefixed("mydata/", contents) if kind == "zip of the folder" else contents
    return write_zip(folder / "mydata.zip", {**inside, "__MACOSX/._cat.jpg": b"x"})


KINDS_OF_SOURCE = ["folder", "zip", "zip of the folder"]


@pytest.mark.parametrize("kind", KINDS_OF_SOURCE)
def test_stills_with_labels(tmp_path, kind):
    pictures = {
        "cat 10.jpg": encoded(picture(1), "JPEG"),
        "cat 9.png": encoded(picture(2), "PNG"),
        "dog.bmp": encoded(picture(3), "BMP"),
    }
    labels = {name: drawn_labels(t) for t, name in enumerate(pictures)}
    contents = {
        **pictures,
        "labels/cat 10.png": encoded(labels["cat 10.jpg"], "PNG"),
        "labels/cat 9.png": palette_png(labels["cat 9.png"]),
        "labels/dog.png": palette_png(labels["dog.bmp"]),
        "README.txt": b"not a picture",
        ".DS_Store": b"x",
    }
    source = as_source(kind, tmp_path, contents)
    prepare.prepare("folder", str(source), tmp_path / "out")
    samples = read(tmp_path / "out", "train")
    assert [s["name"] for s in samples] == ["cat 9", "cat 10", "dog"]
    for sample, name in zip(samples, ["cat 9.png", "cat 10.jpg", "dog.bmp"], strict=True):
        assert np.array_equal(sample["image"], decoded(pictures[name]))
        assert np.array_equal(sample["segmentation"][..., 0], labels[name])
        assert sample["metadata"]["width"] == WIDTH
    assert manifest(tmp_path / "out")["metadata"]["labelled"] == ["train"]
    assert check.check(tmp_path / "out") == []


@pytest.mark.parametrize("kind", KINDS_OF_SOURCE)
def test_folders_of_frames_and_videos(tmp_path, kind):
    frames = [picture(3 * t) for t in range(12)]
    contents = {
        "run.mp4": video_file(tmp_path / "made" / "run.mp4", frames),
        "old.avi": video_file(tmp_path / "made" / "old.avi", frames),
        "walk.gif": gif(frames),
        **{f"deep/swim/f{t}.jpg": encoded(f, "JPEG") for t, f in enumerate(frames)},
    }
    for clip in ("run", "old", "walk"):
        for t in range(12):
            contents[f"labels/{clip}/{t}.png"] = palette_png(drawn_labels(t))
    for t in range(12):
        contents[f"labels/deep/swim/f{t}.png"] = encoded(drawn_labels(t), "PNG")
    source = as_source(kind, tmp_path, contents)
    prepare.prepare("folder", str(source), tmp_path / "out")
    samples = {s["name"]: s for s in read(tmp_path / "out", "train")}
    assert list(samples) == ["deep/swim", "old", "run", "walk"]
    labels = np.stack([drawn_labels(t) for t in range(12)])
    for sample in samples.values():
        assert sample["video"].shape == (12, HEIGHT, WIDTH, 3)
        assert np.array_equal(sample["segmentations"][..., 0], labels)
    # f10 follows f9; jpg and gif are taken as they are, mp4 and avi are lossy.
    exact = np.stack([decoded(contents[f"deep/swim/f{t}.jpg"]) for t in range(12)])
    assert np.array_equal(samples["deep/swim"]["video"], exact)
    image = Image.open(io.BytesIO(contents["walk.gif"]))
    for t in range(12):
        image.seek(t)
        assert np.array_equal(samples["walk"]["video"][t], np.asarray(image.convert("RGB")))
    for name in ("run", "old"):
        video = samples[name]["video"].astype(int)
        errors = [[np.abs(video[t] - frames[s]).mean() for s in range(12)] for t in range(12)]
        assert np.diag(errors).max() < 12 and (np.argmin(errors, axis=1) == np.arange(12)).all()
    assert not (tmp_path / "out" / finished.UNFINISHED).exists()


def test_without_labels_all_is_in_no_segment(tmp_path):
    source = write(tmp_path / "in", {f"{k}.jpg": encoded(picture(k), "JPEG") for k in range(3)})
    prepare.prepare("folder", str(source), tmp_path / "out", options=Options(size=12))
    for sample in read(tmp_path / "out", "train"):
        assert sample["image"].shape == (12, 16, 3)
        assert sample["segmentation"].shape == (12, 16, 1) and (sample["segmentation"] == 255).all()
    source = write(tmp_path / "clips", {"walk.gif": gif([picture(0), picture(5)])})
    prepare.prepare("folder", str(source), tmp_path / "out2")
    (sample,) = read(tmp_path / "out2", "train")
    assert sample["segmentations"].shape == (2, HEIGHT, WIDTH, 1)
    assert (sample["segmentations"] == 255).all()
    assert manifest(tmp_path / "out2")["metadata"]["labelled"] == []


def test_sub_folders_are_splits_and_labels_may_be_elsewhere(tmp_path):
    contents = {
        f"{split}/clip/{t}.png": encoded(picture(t + 10 * s), "PNG")
        for s, split in enumerate(prepare.SPLITS)
        for t in range(2)
    }
    source = write(tmp_path / "in", contents)
    labels = {
        f"{split}/clip/{t}.png": encoded(drawn_labels(t + s), "PNG")
        for s, split in enumerate(("validation", "test"))
        for t in range(2)
    }
    arguments = ["folder", f"--source={source}", f"--out={tmp_path / 'out'}", "--workers=1"]
    arguments.append(f"--labels={write(tmp_path / 'masks', labels)}")
    assert prepare.main(arguments) == 0
    for s, split in enumerate(prepare.SPLITS):
        (sample,) = read(tmp_path / "out", split)
        assert np.array_equal(sample["video"], np.stack([picture(t + 10 * s) for t in range(2)]))
        if split == "train":
            assert (sample["segmentations"] == 255).all()
        else:
            expected = np.stack([drawn_labels(t + s - 1) for t in range(2)])
            assert np.array_equal(sample["segmentations"][..., 0], expected)
    assert manifest(tmp_path / "out")["metadata"]["labelled"] == ["test", "validation"]


def test_a_part_held_out_by_name(tmp_path):
    contents = {f"video_{k}.png": encoded(picture(k), "PNG") for k in range(40)}
    source = write(tmp_path / "in", contents)
    arguments = ["folder", f"--source={source}", f"--out={tmp_path / 'out'}", "--workers=1"]
    assert prepare.main([*arguments, "--holdout=0.1"]) == 0
    assert [s["name"] for s in read(tmp_path / "out", "validation")] == HELD_OUT_OF_FORTY
    assert len(read(tmp_path / "out", "train")) == 37
    listed = manifest(tmp_path / "out")["metadata"]["held_out_of_train"]
    assert listed == sorted(HELD_OUT_OF_FORTY)
    assert "--holdout is 1.5" in refuses("folder", source, tmp_path / "o", extra={"holdout": 1.5})


def test_pixels_in_no_segment_by_their_label(tmp_path):
    labels = drawn_labels(0).astype(np.uint8)
    labels[0] = 255
    contents = {"a.png": encoded(picture(0), "PNG"), "labels/a.png": encoded(labels, "PNG")}
    source = write(tmp_path / "in", contents)
    text = refuses("folder", source, tmp_path / "out")
    assert "labels/a.png has label 255, expected 0 to 254" in text and "--void" in text
    options = Options(extra=(("void", 255),))
    prepare.prepare("folder", str(source), tmp_path / "out2", options=options)
    assert np.array_equal(read(tmp_path / "out2", "train")[0]["segmentation"][..., 0], labels)


STILL = {"a.png": encoded(picture(0), "PNG")}
CLIP = {f"c/{t}.png": encoded(picture(t), "PNG") for t in range(2)}
MADE_GIF = {"c.gif": gif([picture(0), picture(4)])}


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"notes.txt": b""}, "has no pictures; looked for images (.jpg"),
        ({**STILL, **CLIP}, "has stills (a.png) and clips (c); expected one kind"),
        ({**STILL, "a.jpg": STILL["a.png"]}, "both named a"),
        ({**CLIP, "c.gif": MADE_GIF["c.gif"]}, "both named c"),
        ({**CLIP, "c/0.jpg": STILL["a.png"]}, "has several files c/0.*"),
        ({**CLIP, "c/last.png": STILL["a.png"]}, "has c/last.png, expected a number at its end"),
        (
            {"train/a.png": STILL["a.png"], "val/a.png": STILL["a.png"]},
            "has val/a.png beside the splits train",
        ),
        ({**STILL, "b.png": STILL["a.png"][:300]}, "b.png is not a readable picture"),
        (
            {**STILL, "b.png": STILL["a.png"], "labels/a.png": palette_png(drawn_labels(0))},
            "the labels have no labels/b.png for b.png",
        ),
        ({**STILL, "labels/a.png": palette_png(drawn_labels(0)[1:])}, "its labels 23x32"),
        ({**STILL, "labels/a.png": STILL["a.png"]}, "has mode RGB, expected a label map"),
        (
            {**STILL, "labels/a.png": encoded(np.full((HEIGHT, WIDTH), 300, np.uint16), "PNG")},
            "has label 300, expected 0 to 254",
        ),
        ({**STILL, "labels/a.txt": b""}, "has no label pictures"),
        (
            {**CLIP, "c/3.png": encoded(picture(0, 20), "PNG")},
            "c/3.png has 20x32 pixels (height x width), the first frame of this clip 24x32",
        ),
        (
            {**MADE_GIF, "labels/c/0.png": palette_png(drawn_labels(0))},
            "c.gif has more than 1 frames",
        ),
        (
            {
                **MADE_GIF,
                **{f"labels/c/{t}.png": palette_png(drawn_labels(0)) for t in range(3)},
            },
            "c.gif has 2 frames",
        ),
        (
            {**MADE_GIF, "labels/d/0.png": palette_png(drawn_labels(0))},
            "the labels have no labels/c/*.png for c.gif",
        ),
        ({"c.mp4": b"no video at all"}, "c.mp4 is not a readable video"),
        ({"c.gif": b"no video at all"}, "c.gif is not a readable video"),
    ],
)
def test_folders_that_are_refused(tmp_path, contents, expected):
    assert expected in refuses("folder", write(tmp_path / "in", contents), tmp_path / "out")


def test_sources_and_options_that_are_refused(tmp_path):
    assert "does not exist" in refuses("folder", tmp_path / "nowhere", tmp_path / "out")
    source = write(tmp_path / "in", STILL)
    text = refuses("folder", source, tmp_path / "out", extra={"labels": str(tmp_path / "no")})
    assert "--labels=" in text and "does not exist" in text
    splits = write(tmp_path / "splits", {"train/a.png": STILL["a.png"]})
    text = refuses("folder", splits, tmp_path / "out", extra={"holdout": 0.1})
    assert "--holdout=0.1 and the sub-folders train" in text
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b")
    assert "compressed tar" in refuses("folder", tmp_path / "x.tar.gz", tmp_path / "out")
    big = write(tmp_path / "big", MADE_GIF)
    assert "raise --max_pixels" in refuses("folder", big, tmp_path / "out", max_pixels=100)
    video_file(tmp_path / "video" / "v.mp4", [picture(0)])
    text = refuses("folder", tmp_path / "video", tmp_path / "out", max_pixels=100)
    assert "32x24 pixels, more than 100" in text


def test_a_bad_clip_is_left_out(tmp_path):
    contents = {"bad.mp4": b"no video at all", **MADE_GIF}
    source = write(tmp_path / "in", contents)
    prepare.prepare("folder", str(source), tmp_path / "out", options=Options(skip_bad=True))
    assert [s["name"] for s in read(tmp_path / "out", "train")] == ["c"]
    assert "bad.mp4" in manifest(tmp_path / "out")["splits"]["train"]["skipped"][0]
