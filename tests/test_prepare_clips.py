"""Families of clips and the user's own folders, each from a miniature in its real layout."""

import dataclasses
import io
import json
import os
import shutil
import zipfile
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

from data import check, finished, prepare, shards
from data.clips import held_out_of, is_held_out
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


@pytest.mark.parametrize("name, last", [("ytvis_2021", 5), ("ytvis_2019", 1)])
def test_the_last_videos_of_train_are_validation_on_request(tmp_path, name, last):
    """In the order of the json, of which ids and names say nothing; the last but one has no
    mask."""
    videos = Videos(12, num_frames=2)
    videos.videos = videos.videos[6:] + videos.videos[5::-1]
    order = [Path(video["file_names"][0]).parent.name for video in videos.videos]
    write_zip(
        tmp_path / "in" / "train.zip",
        {**prefixed("train/JPEGImages/", videos.frames), "train/instances.json": videos.json()},
    )
    out, extra = tmp_path / "out", (("holdout_last", last),)
    prepare.prepare(name, str(tmp_path / "in"), out, options=Options(extra=extra))
    for split, expected in (("train", order[:-last]), ("validation", order[-last:])):
        samples = read(out, split)
        # The video without a mask counts, but is left out.
        assert [sample["name"] for sample in samples] == [x for x in expected if x in videos.labels]
        for sample in samples:
            videos.check(sample)
    held_out = manifest(out)["metadata"]["held_out_of_train"]
    assert held_out == sorted(x for x in order[-last:] if x in videos.labels)
    assert len(read(out, "validation")) == (4 if last == 5 else 1)
    assert check.check(out) == []
    # Another holdout is another folder.
    text = refuses(name, tmp_path / "in", out, prepare.SPLITS)
    assert f"--holdout_last {last}, now it is None" in text
    for wrong in (0, 12):
        text = refuses(name, tmp_path / "in", tmp_path / "b", extra={"holdout_last": wrong})
        assert f"--holdout_last is {wrong}" in text and "12 videos; expected 1 to 11" in text


def test_other_data_sets_hold_out_no_last_videos(tmp_path):
    ytvis_2022(tmp_path / "in", "zip")
    text = refuses("ytvis_2022", tmp_path / "in", tmp_path / "out", extra={"holdout_last": 1})
    assert "--holdout_last is for ytvis_2019 and ytvis_2021; ytvis_2022 has a validation" in text


def test_the_option_is_part_of_the_settings_only_where_it_is_given():
    """Folders that were prepared before there was one go on."""
    line = ["ytvis_2021", "--source=a", "--out=b"]
    assert prepare.read_command_line(line)[-1].extra == (("frames", None),)
    *_, options = prepare.read_command_line([*line, "--holdout_last=300"])
    assert options.extra == (("frames", None), ("holdout_last", 300))


def test_the_held_out_part_never_changes():
    names = [f"video_{k}" for k in range(40)]
    assert [n for n in names if is_held_out(n, 0.1)] == HELD_OUT_OF_FORTY
    assert set(HELD_OUT_OF_FORTY) <= {n for n in names if is_held_out(n, 0.3)}
    many = [is_held_out(f"video_{k}", 0.1) for k in range(5000)]
    assert 0.085 < np.mean(many) < 0.115


HELD_OUT_OF_FORTY = ["video_7", "video_27", "video_38"]


@pytest.mark.parametrize("beside", [True, False])
def test_hq_ytvis(tmp_path, beside):
    """Compressed and uncompressed masks, boxes that are not stored, frames in either place."""
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


def same_frames(values):
    values["videos"][2]["file_names"] = values["videos"][0]["file_names"]


def one_number(values):
    values["annotations"][0]["segmentations"][0]["size"] = HEIGHT


def no_category(values):
    values["annotations"][0]["category_id"] = 99


def annotation_twice(values):
    values["annotations"].append(values["annotations"][0])


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
        (no_category, "has the category_id 99, which the file does not list"),
        (unknown_video, "annotations of 1 videos that it does not list, such as id 99"),
        (lambda values: values["videos"][1].update(id=100), "has video ids more than once: 100"),
        (annotation_twice, "the video 100 has annotation ids more than once: 1; expected each"),
        (same_frames, "(folders of their frames) more than once: 0000f3a9c1"),
        (lambda values: values["categories"][1].update(id=3), "id 3 twice (ape and person)"),
        (lambda values: values["categories"][1].update(name="ape"), "name 'ape' twice"),
        (lambda values: values["videos"][0].update(height="24"), "says height '24' and width 32"),
        (one_number, "frame 0, annotation 0: the RLE has size 24, the image [24, 32]"),
        (lambda values: values.update(annotations=[]), "has no annotations, expected"),
        (lambda values: values.pop("videos"), "expected videos, categories and annotations"),
    ],
)
def test_a_json_that_does_not_fit(tmp_path, change, expected):
    source = broken(tmp_path / "in", change)
    assert expected in refuses("ytvis_2022", source, tmp_path / "out")


def test_videos_without_a_mask_are_listed(tmp_path, capsys):
    def change(values):
        values["annotations"] = values["annotations"][2:]

    prepare.prepare("ytvis_2022", str(broken(tmp_path / "in", change)), tmp_path / "out")
    out = capsys.readouterr().out
    assert "train/instances.json (2): 0000f3a9c1, 0001f3a9c1" in out


def test_videos_with_unlisted_categories_are_skipped_on_request(tmp_path):
    source = broken(tmp_path / "in", no_category)
    prepare.prepare("ytvis_2022", str(source), tmp_path / "out", ("train",), Options(skip_bad=True))
    found = manifest(tmp_path / "out")["splits"]["train"]
    assert found["num_examples"] == 2 and "has the category_id 99" in found["skipped"][0]


def test_videos_below_a_further_folder_keep_names_and_holdout(tmp_path):
    """And a JSON as an editor on Windows saves it."""
    videos = Videos(30, num_frames=1)
    values = json.loads(videos.json())
    for video in values["videos"]:
        video["file_names"] = [f"mine/clips/{file}" for file in video["file_names"]]
    data = b"\xef\xbb\xbf" + json.dumps(values, indent=1).replace("\n", "\r\n").encode()
    flat, deep = tmp_path / "flat", tmp_path / "deep"
    write(flat, {"train.json": videos.json(), **prefixed("train/", videos.frames)})
    write(deep, {"train.json": data, **prefixed("train/mine/clips/", videos.frames)})
    for source in (flat, deep):
        prepare.prepare("ytvis_2021", str(source), tmp_path / f"{source.name}_out")
    for split in ("train", "validation"):
        names = [s["name"] for s in read(tmp_path / "deep_out", split)]
        assert names and names == [s["name"] for s in read(tmp_path / "flat_out", split)]


def test_samples_that_two_splits_share_are_refused(tmp_path):
    videos = Videos(1)
    write(tmp_path / "in", prefixed("JPEGImages/", videos.frames))
    for short in ("train", "val"):
        write(tmp_path / "in", {f"ytvis_hq-{short}.json": videos.json()})
    text = refuses("ytvis_hq", tmp_path / "in", tmp_path / "out", prepare.SPLITS)
    assert "train and validation share 1 samples, such as" in text and "0000f3a9c1/" in text


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


def test_natural_order():
    names = ["f10", "f9", "f1", "g2", "f1b"]
    assert sorted(names, key=natural) == ["f1", "f1b", "f9", "f10", "g2"]


# -------------------------------------------------------------------------------------------- DAVIS


@pytest.mark.parametrize("layout", ["zip", "the zip itself", "unpacked", "the folder itself"])
@pytest.mark.parametrize("year", [pytest.param(2016, marks=pytest.mark.slow), 2017])
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


def test_a_list_of_davis_with_a_byte_order_mark_and_other_files(tmp_path, capsys):
    contents, _ = davis(2017)
    contents["ImageSets/2017/train.txt"] = b"\xef\xbb\xbfbear\r\n"
    contents["JPEGImages/480p/bear/00000.webp"] = contents["JPEGImages/480p/bear/more/1.jpg"] = b""
    write(tmp_path / "in", contents)
    prepare.prepare("davis_2017", str(tmp_path / "in"), tmp_path / "out", ("train",))
    assert [sample["name"] for sample in read(tmp_path / "out", "train")] == ["bear"]
    lines = capsys.readouterr().out
    assert "files in sub-folders of a sequence (1): JPEGImages/480p/bear/more/1.jpg" in lines
    assert "files with other endings (1): .webp: JPEGImages/480p/bear/00000.webp" in lines


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

    assert "train.txt is empty" in refused("no_sequence", {"ImageSets/2017/train.txt": b"\n"})
    labels = [name for name in contents if name.startswith("Annotations/480p/bear")]
    text = refused("one label", {labels[1]: None})
    assert f"has no {labels[1]}, named by the frames of ImageSets/2017/train.txt" in text
    all_labels = {name: None for name in contents if name.startswith("Annotations")}
    text = refused("no labels", all_labels)
    assert "has no annotations; looked for Annotations/480p" in text
    for lines, expected in (
        (b"bear\nbear\n", "train.txt has lines more than once: bear"),
        (b"/bear.jpg /x.png\n", "has the line '/bear.jpg', expected the name of a sequence"),
        ("bear\n".encode("utf-16"), "train.txt is UTF-16, expected text in UTF-8"),
    ):
        assert expected in refused(expected[-5:], {"ImageSets/2017/train.txt": lines})
    frames = {name: None for name in contents if name.startswith("JPEGImages/480p/bear")}
    assert "has no frames of bear" in refused("no frames", frames)
    other = {labels[0]: palette_png(np.zeros((HEIGHT, WIDTH + 2), np.uint8))}
    assert "has 24x32 pixels (height x width), its labels 24x34" in refused("other size", other)
    assert "is not a readable picture" in refused("cut", {labels[0]: contents[labels[0]][:40]})
    colours = {labels[0]: encoded(picture(0), "PNG")}
    assert "has mode RGB, expected a label map" in refused("colours", colours)


# -------------------------------------------------------------------------------- the user's folder


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


ALL_IN_TRAIN = Options(extra=(("holdout", 0.0),))
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
    prepare.prepare("folder", str(source), tmp_path / "out", options=ALL_IN_TRAIN)
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
    prepare.prepare("folder", str(source), tmp_path / "out", options=ALL_IN_TRAIN)
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
    options = dataclasses.replace(ALL_IN_TRAIN, size=12)
    prepare.prepare("folder", str(source), tmp_path / "out", options=options)
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


@pytest.mark.parametrize("arguments", [(), ("--split=train",), ("--holdout=0.1",)])
def test_a_tenth_is_held_out_by_default(tmp_path, capsys, arguments):
    source = write(tmp_path / "in", {f"video_{k}.png": STILL["a.png"] for k in range(40)})
    command = ["folder", f"--source={source}", f"--out={tmp_path / 'out'}", "--workers=1"]
    assert prepare.main([*command, *arguments]) == 0
    assert "3 of 40 samples are held out for validation (--hold" in capsys.readouterr().out
    splits = manifest(tmp_path / "out")["splits"]
    assert splits["train"]["num_examples"] == 37
    assert ("validation" in splits) == (arguments != ("--split=train",))
    assert manifest(tmp_path / "out")["metadata"]["held_out_of_train"] == sorted(HELD_OUT_OF_FORTY)
    if arguments:  # the same settings as by default
        assert prepare.main(command) == 0
    assert prepare.main([*command, "--holdout=0"]) == 2
    text = capsys.readouterr().err
    assert "was prepared with --holdout 0.1, now it is 0.0; nothing was changed" in text


def test_at_least_one_sample_is_held_out_but_never_all():
    names = [f"video_{k}" for k in range(40)]
    assert held_out_of(names, 0.1) == set(HELD_OUT_OF_FORTY)
    few = [name for name in names if name not in HELD_OUT_OF_FORTY]
    (one,) = held_out_of(few, 0.1)
    assert is_held_out(one, 0.9) and held_out_of([*few, "video_7"], 0.1) == {"video_7"}
    assert len(held_out_of(names[:2], 0.1)) == 1
    assert len(held_out_of(HELD_OUT_OF_FORTY, 0.1)) == 2
    assert held_out_of(["video_7"], 0.1) == held_out_of(names, 0.0) == set()


def test_what_is_said_of_the_validation_split(tmp_path, capsys):
    def said(name: str, contents: dict[str, bytes], *arguments: str) -> str:
        source = write(tmp_path / name, contents)
        out = f"--out={tmp_path / name}_out"
        assert prepare.main(["folder", f"--source={source}", out, "--workers=1", *arguments]) == 0
        return capsys.readouterr().out

    assert "nothing is held out for validation, since there is only one" in said("one", STILL)
    text = said("split", {"train/a.png": STILL["a.png"]})
    assert "there is no validation split: put samples for it into the sub-folder" in text
    both = {"train/a.png": STILL["a.png"], "validation/a.png": STILL["a.png"]}
    assert "validation split" not in said("both", both)
    assert "held" not in said("all", {**STILL, "b.png": STILL["a.png"]}, "--holdout=0")


def test_a_folder_prepared_before_the_default_holdout(tmp_path, capsys):
    """Going on with it is refused where it would mix, and works where nothing changed."""
    for name, contents in (("flat", {**STILL, "b.png": STILL["a.png"]}), ("split", None)):
        contents = contents or {f"{s}/a.png": STILL["a.png"] for s in ("train", "validation")}
        source, out = write(tmp_path / name, contents), tmp_path / f"{name}_out"
        command = ["folder", f"--source={source}", f"--out={out}", "--workers=1"]
        assert prepare.main([*command, "--holdout=0"]) == 0
        assert manifest(out)["options"]["extra"][0] == ["holdout", 0.0]
        before = (out / "MANIFEST.json").read_bytes()
        assert prepare.main(command) == (2 if name == "flat" else 0)
        assert (out / "MANIFEST.json").read_bytes() == before
        text = capsys.readouterr()
        assert ("give --holdout=0.0, or use another folder" in text.err) == (name == "flat")
        assert prepare.main([*command, "--holdout=0"]) == 0


def test_pictures_in_sub_folders_are_frames_or_stills(tmp_path):
    contents = {
        "beach.png": encoded(picture(0), "PNG"),
        "2024/IMG_1.png": encoded(picture(1), "PNG"),
        "2024/sunset.png": encoded(picture(2), "PNG"),
        "labels/2024/IMG_1.png": encoded(drawn_labels(1), "PNG"),
        "labels/2024/sunset.png": encoded(drawn_labels(2), "PNG"),
        "labels/beach.png": encoded(drawn_labels(0), "PNG"),
    }
    arguments = ["folder", f"--source={write(tmp_path / 'in', contents)}", "--workers=1"]
    arguments += [f"--out={tmp_path / 'out'}", "--holdout=0"]
    assert prepare.main(arguments) == 2
    assert prepare.main([*arguments, "--folders=pictures"]) == 0
    samples = read(tmp_path / "out", "train")
    names = [sample["metadata"]["name"].decode() for sample in samples]
    assert names == ["2024/IMG_1", "2024/sunset", "beach"]
    for sample, i in zip(samples, (1, 2, 0), strict=True):
        assert np.array_equal(sample["image"], picture(i))
        assert np.array_equal(sample["segmentation"][..., 0], drawn_labels(i))


@pytest.mark.parametrize("kind", KINDS_OF_SOURCE)
def test_what_is_left_out_of_a_folder_is_said(tmp_path, capsys, kind):
    contents = {
        **{f"{name}.png": STILL["a.png"] for name in "ab"},
        **{f"labels/{name}.png": palette_png(drawn_labels(0)) for name in "abc"},
        "IMG_1.heic": b"",
        "IMG_2.HEIC": b"",
        "notes.txt": b"",
        "old.zip": b"",
        "labels/README": b"",
        ".hidden.png": STILL["a.png"],
        ".git/hooks/x": b"",
        "Thumbs.db": b"",
    }
    source = as_source(kind, tmp_path, contents)
    if kind == "folder":
        (source / ".git" / "empty").mkdir()
    prepare.prepare("folder", str(source), tmp_path / "out")
    lines = capsys.readouterr().out.replace("mydata/", "").splitlines()
    assert lines[:5] == [
        "left out: hidden names (2): .git, .hidden.png",
        "left out: files of the labels that are not .png (1): labels/README",
        "left out: label pictures without a sample (1): labels/c.png",
        "left out: archives inside, to be unpacked (1): old.zip",
        "left out: files with other endings (3): .heic: IMG_1.heic, IMG_2.HEIC; .txt: notes.txt",
    ]


def test_folders_that_are_links_are_read(tmp_path, capsys):
    source = write(tmp_path / "in", {f"train/{k}.png": STILL["a.png"] for k in range(2)})
    other = write(tmp_path / "other", {"a.png": STILL["a.png"], "masks/a.png": b"?"})
    (source / "validation").symlink_to(other)
    (other / "masks").rename(tmp_path / "masks")
    (source / "masks").symlink_to(tmp_path / "masks")
    (source / "train" / "gone.png").symlink_to(tmp_path / "nowhere")
    (source / "train" / "up").symlink_to("..")
    write(tmp_path / "masks", {"validation/a.png": palette_png(drawn_labels(0))})
    arguments = ["folder", f"--source={source}", f"--out={tmp_path / 'out'}", "--workers=1"]
    assert prepare.main([*arguments, f"--labels={tmp_path / 'masks'}"]) == 0
    assert [s["name"] for s in read(tmp_path / "out", "train")] == ["0", "1"]
    (sample,) = read(tmp_path / "out", "validation")
    assert np.array_equal(sample["segmentation"][..., 0], drawn_labels(0))
    text = capsys.readouterr().out
    assert "followed: links to folders (2): masks, validation" in text
    assert "left out: links that lead nowhere (1): train/gone.png" in text
    assert "left out: links to a folder above them (1): train/up" in text
    before = {s["file"]: s["sha256"] for s in manifest(tmp_path / "out")["sources"]}
    write(other, {"a.png": MADE_GIF["c.gif"]})  # what a link leads to is part of the source
    assert shards.sha256_of(source) != before["in"]


def test_names_that_may_mean_something_else_are_said(tmp_path, capsys):
    contents = {f"Val/clip/{t}.png": data for t, data in enumerate(CLIP.values())}
    contents |= {f"masks/{t}.png": data for t, data in enumerate(CLIP.values())}
    source = write(tmp_path / "in", {**contents, **CLIP, "a\\1.png": STILL["a.png"]})
    (source / "a\\1.png").rename(source / "c" / "a\\2.png")
    prepare.prepare("folder", str(source), tmp_path / "out", options=ALL_IN_TRAIN)
    text = capsys.readouterr().out
    assert "the folder Val is read as clips, not as a split; if it is a split, rename" in text
    assert "the folder masks is read as clips, not as labels; labels/ of --source holds" in text
    assert "1 names have a backslash, such as c/a\\2.png" in text
    (tmp_path / "stills" / "Train").mkdir(parents=True)
    write(tmp_path / "stills", {"Train/x.png": STILL["a.png"]})
    text = refuses("folder", tmp_path / "stills", tmp_path / "out2")
    assert "expected a number at its end" in text and "rename a split to one of train," in text


def test_zips_of_windows_are_as_others(tmp_path):
    contents = {"labels\\train\\a.png": palette_png(drawn_labels(0))}
    contents |= {f"{split}\\a.png": STILL["a.png"] for split in ("train", "validation")}
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, data in contents.items():
            member = zipfile.ZipInfo("x")
            member.filename = name  # as it is, whatever the system's separator
            archive.writestr(member, data)
    prepare.prepare("folder", str(tmp_path / "in.zip"), tmp_path / "out")
    (train,), (validation,) = (read(tmp_path / "out", s) for s in ("train", "validation"))
    assert train["name"] == validation["name"] == "a"
    assert np.array_equal(train["segmentation"][..., 0], drawn_labels(0))
    assert (validation["segmentation"] == 255).all()


def test_names_that_are_not_utf_8_are_read(tmp_path, capsys):
    source = write(tmp_path / "in", STILL)
    labels = palette_png(drawn_labels(0))
    write(source, {"labels/a.png": labels, os.fsdecode(b"labels/b\xe4r.png"): labels})
    write(source, {os.fsdecode(b"b\xe4r.png"): STILL["a.png"]})
    prepare.prepare("folder", str(source), tmp_path / "out", options=ALL_IN_TRAIN)
    assert [s["name"] for s in read(tmp_path / "out", "train")] == ["a", "b\\xe4r"]
    prepare.prepare("folder", str(source), tmp_path / "out", options=ALL_IN_TRAIN)
    assert "is prepared already" in capsys.readouterr().out
    text = refuses("folder", source, tmp_path / os.fsdecode(b"\xe4"))
    assert "ArrayRecord needs a name in UTF-8" in text
    write(source, {"b\\xe4r.jpg": STILL["a.png"]})
    assert "both named b\\xe4r" in refuses("folder", source, tmp_path / "out2")


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
        ({"b.png": STILL["a.png"][:300]}, "b.png is not a readable picture"),
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
    options = dataclasses.replace(ALL_IN_TRAIN, skip_bad=True)
    prepare.prepare("folder", str(source), tmp_path / "out", options=options)
    assert [s["name"] for s in read(tmp_path / "out", "train")] == ["c"]
    assert "bad.mp4" in manifest(tmp_path / "out")["splits"]["train"]["skipped"][0]
