"""CLEVRER and Physion, each prepared from a miniature in its real layout."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import raw_videos
import tensorflow_datasets as tfds
from golden_files import FOLDER
from prepared_folders import interrupted_after_a_shard
from raw_clips import compressed, write
from raw_videos import BALL, CUBE, HEIGHT, SIZE, WIDTH, clevrer, corner, cut, moving, physion, place

from data import beside, check, prepare, show, videos
from data import clevrer as family
from data import physion as physion_family
from data.archives import Files
from data.family import BadSample, Options
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference import decoding
from smoothsa_jax.inference.videos import read_video
from smoothsa_jax.inputs.clevrer_questions import ClevrerQuestions
from smoothsa_jax.inputs.manifest import entries, frame_counts, sample_names
from smoothsa_jax.inputs.physion_labels import SCENARIOS, PhysionLabels
from smoothsa_jax.inputs.prepared import PreparedFolder
from smoothsa_jax.inputs.resize import resize_labels, resize_pixels

RECORDED = json.loads((FOLDER / "physion_splits.json").read_text())


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """The downloads, which no test changes."""
    folder = tmp_path_factory.mktemp("raw")
    clevrer(folder / "clevrer")
    physion(folder / "physion")
    return folder


class InThisProcess:
    """A video as `read_video` gives it, without the process of its own, which takes a second."""

    def __init__(self, path: Path, max_pixels: int):
        self._messages = decoding._messages(path, max_pixels)
        *_, self.height, self.width = next(self._messages)

    def __iter__(self):
        for kind, value in self._messages:
            if kind == "frame":
                yield value
        self.missing = value

    def __enter__(self):
        return self

    def __exit__(self, *ignored):
        self._messages.close()


@pytest.fixture(scope="module")
def in_this_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(videos, "read_video", InThisProcess)
        yield


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory, in_this_process) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    prepare.prepare("clevrer", str(raw / "clevrer"), out / "clevrer")
    for name in ("physion", "physion_readout"):
        prepare.prepare(name, str(raw / "physion"), out / name)
    return out


def test_a_process_of_its_own_decodes_the_same(raw, prepared, monkeypatch):
    monkeypatch.setattr(videos, "read_video", read_video)
    for number in (7, 7648):
        name = f"videos/train/video_0{number // 1000}000-0{number // 1000 + 1}000"
        name = f"{name}/video_{number:05d}.mp4"
        found = videos.video_frames(Files(raw / "clevrer"), name, None, 10**8, may_be_cut=True)
        stored = read(prepared / "clevrer", "train")[f"video_{number:05d}"]["video"]
        expected = resize_pixels(np.stack(list(found)), (SIZE, SIZE), "plain_bilinear")
        np.testing.assert_array_equal(np.stack(stored), expected)


@pytest.fixture
def download(raw, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(raw, tmp_path / "raw"))


def read(out: Path, split: str) -> dict[str, dict]:
    samples = tfds.builder_from_directory(out).as_data_source(split=split)
    return {sample["metadata"]["name"].decode(): sample for sample in samples}


def manifest(out: Path) -> dict:
    return json.loads((out / "MANIFEST.json").read_text())


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def refuses(name: str, source: Path, out: Path, splits=prepare.SPLITS, **options) -> str:
    with pytest.raises(UserError) as error:
        prepare.prepare(name, str(source), out, splits, Options(**options))
    assert "\n" not in str(error.value)
    return str(error.value)


def is_near(video, frames: np.ndarray) -> bool:
    """Whether stored frames are these, resized; mp4 is lossy."""
    expected = resize_pixels(frames, (SIZE, SIZE), "plain_bilinear").astype(int)
    return np.abs(np.stack(video) - expected).mean() < 4


# ------------------------------------------------------------------------------------------ CLEVRER


def test_the_videos_of_clevrer_are_kept_whole(prepared):
    out = prepared / "clevrer"
    for split, numbers in raw_videos.SPLITS.items():
        samples = read(out, split)
        assert list(samples) == [f"video_{number:05d}" for number in numbers]
        assert list(samples) == list(sample_names(out, split))
        for number, sample in zip(numbers, samples.values(), strict=True):
            # One video is damaged, as it is in the public files.
            count = 4 if number == 7648 else 5
            assert sample["metadata"]["num_frames"] == count == len(sample["video"])
            assert np.stack(sample["video"]).shape == (count, SIZE, SIZE, 3)
            assert is_near(sample["video"], moving(number % 13, count))
    assert list(frame_counts(out, "train")) == [5, 4]
    assert check.check(out) == []


def test_damaged_videos_are_named(prepared):
    (shard,) = manifest(prepared / "clevrer")["splits"]["train"]["shards"]
    (text,) = shard["remarks"]
    assert "kept with fewer than 128 frames" in text
    assert shard["remarks"][text] == [1, "video_07000-08000/video_07648.mp4"]


def test_proposals_become_segments(prepared):
    """The sphere is label 2 in every frame, though it comes first in some; the first one wins."""
    sample = read(prepared / "clevrer", "validation")["video_10001"]
    for t, found in enumerate(sample["segmentations"]):
        first, second = (corner(), place(t)) if t % 2 else (place(t), corner())
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        labels[second] = 1 if t % 2 else 2
        labels[first] = 2 if t % 2 else 1
        if t == 4:
            labels[:] = 0
        np.testing.assert_array_equal(found[..., 0], resize_labels(labels, (SIZE, SIZE)))
    metadata = manifest(prepared / "clevrer")["metadata"]
    assert metadata["labelled"] == ["test", "train", "validation"]
    assert "proposals" in metadata["labels"] and "not truth" in metadata["labels"]


def test_annotations_are_kept(prepared):
    metadata = manifest(prepared / "clevrer")["metadata"]
    assert metadata["annotated"] == ["train", "validation"]
    sample = read(prepared / "clevrer", "validation")["video_10001"]
    in_view = sample["in_view"]
    np.testing.assert_array_equal(in_view[:, :5], [[1] * 5, [0, 0, 1, 1, 1]])
    assert in_view.shape == (2, 128) and not in_view[:, 5:].any()
    for key, names in (("color", "colors"), ("material", "materials"), ("shape", "shapes")):
        found = [metadata[names][k] for k in sample[names]]
        assert found == [CUBE[key], BALL[key]]
    np.testing.assert_array_equal(sample["collisions"]["frame"], [3])
    np.testing.assert_array_equal(sample["collisions"]["objects"], [[0, 1]])
    of_test = read(prepared / "clevrer", "test")["video_15002"]
    assert of_test["in_view"].shape == (0, 128) and of_test["colors"].shape == (0,)
    assert of_test["collisions"]["objects"].shape == (0, 2)


def clips(folder: Path, split: str = "train", **options) -> PreparedFolder:
    given = {"num_frames": 3, "last_entry": 1, "crop": "none", "flip": 0.0, **options}
    return PreparedFolder(
        folder, split, 16, num_slots=7, boxes=False, background_box=False, **given
    )


def test_windows_into_which_an_object_enters_late_are_left_out(prepared):
    """The sphere enters at frame 2 of 5 frames, and of 4 of the damaged video."""
    out = prepared / "clevrer"
    entered = {split: entries(out, split) for split in prepare.SPLITS}
    assert [x.tolist() for x in entered["train"]] == [[2], [2]]
    assert entered["test"] == [None]  # it has no annotation

    assert list(clips(out).epoch()) == [0, 0, 1]  # windows that begin at 1 and 2, and at 1
    assert list(clips(out, last_entry=0).epoch()) == [0] and len(clips(out, last_entry=0)) == 2
    for last_entry, starts in ((1, {1, 2}), (0, {2})):
        source = clips(out, last_entry=last_entry)
        drawn = [source.without_pixels(0, np.random.default_rng(k))[1] for k in range(20)]
        assert {which.start for which in drawn} == starts and {len(x) for x in drawn} == {3}
    sample = clips(out).draw(1, np.random.default_rng(0))
    assert is_near_enough(sample["video"], read(out, "train")["video_07648"]["video"][1:])
    only = clips(out, "validation", num_frames=None, windows=3, last_entry=0)
    assert [str(only[k]["name"]) for k in range(len(only))] == ["video_10001 frames 2-4"]
    two = clips(out, "validation", num_frames=None, windows=3)  # half a window is one frame
    names = [str(two[k]["name"]) for k in range(len(two))]
    assert names == ["video_10001 frames 1-3", "video_10001 frames 2-4"]
    # Whole videos and single frames are taken as they are.
    assert list(clips(out, num_frames=None).epoch()) == [0, 1]
    assert len(clips(out, "test", num_frames=1)[0]["video"]) == 1


def is_near_enough(small: np.ndarray, frames: list[np.ndarray]) -> bool:
    """Whether these are the same frames, of which the block's place tells the time."""
    large = [resize_pixels(frame, small.shape[1:3], "bilinear") for frame in frames]
    return np.abs(small.astype(int) - np.stack(large)).max() < 3


def test_entries_that_are_unknown_are_refused(prepared, tmp_path):
    out = prepared / "clevrer"
    with pytest.raises(UserError, match="its video has no annotation; raise data.last_entry"):
        clips(out, "test", num_frames=None, windows=3)
    with pytest.raises(UserError, match="into every window of 5 frames of split 'train'"):
        clips(out, num_frames=5).epoch()
    source = clips(out, last_entry=0)
    assert 1 not in source.epoch()
    with pytest.raises(UserError, match="every window of 3 frames of sample 1 of split 'train'"):
        source.draw(1, np.random.default_rng(0))
    for options in ({"cut_frames": 4}, {"repeat_frames": 3}):
        with pytest.raises(UserError, match="data.last_entry is 1, which says how often a video"):
            clips(out, **options)
    with pytest.raises(UserError, match="data.last_entry is -1; expected a frame of a clip"):
        clips(out, last_entry=-1)
    with pytest.raises(UserError, match="does not say when objects enter the videos of split 'tra"):
        clips(prepared / "physion")
    # A folder that was prepared before entries were kept serves everything else.
    older = tmp_path / "older"
    shutil.copytree(out, older)
    found = manifest(older)
    # A shard whose samples were all left out has none.
    shards = found["splits"]["train"]["shards"]
    shards.append({**shards[0], "num_examples": 0, "frames": []})
    del shards[-1]["entries"]
    (older / "MANIFEST.json").write_text(json.dumps(found))
    assert len(entries(older, "train")) == 2
    shards.pop()
    for split in found["splits"].values():
        for shard in split["shards"]:
            del shard["entries"]
    (older / "MANIFEST.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match="it lacks 'entries'.*prepare CLEVRER into a new folder"):
        clips(older)
    source = clips(older, last_entry=None)
    assert len(source.draw(0, np.random.default_rng(0))["video"]) == 3
    assert check.check(older) == []


def test_questions_lie_beside_the_videos(prepared):
    out = prepared / "clevrer"
    for split, numbers in raw_videos.SPLITS.items():
        source = ClevrerQuestions(out, split)
        assert [source[k]["clip"] for k in range(len(source))] == [
            clip for clip in range(len(numbers)) for _ in range(2)
        ]
        assert source.is_labelled == (split != "test") and source.left_out == 0
        text = (out / f"questions-{split}.json").read_text()
        assert "program" not in text and len(json.loads(text)) == len(numbers)
    assert source[1]["choices"].shape == (2, 12)


def test_the_library_reads_and_shows_them(prepared, tmp_path, capsys):
    out = prepared / "clevrer"
    source = PreparedFolder(out, "train", 64, None, num_slots=7, boxes=False, background_box=False)
    assert [len(source[k]["video"]) for k in range(2)] == [5, 4] and source.is_labelled
    picture = tmp_path / "sheet.png"
    assert show.main([str(out), f"--out={picture}", "--image_size=64", "--num_frames=3"]) == 0
    assert picture.stat().st_size > 1000 and "video_00007" in capsys.readouterr().out
    other = PreparedFolder(prepared / "physion", "train", 64, 2, num_slots=6, boxes=False)
    assert other[0]["video"].shape == (2, 64, 64, 3) and not other.is_labelled


def test_archives_give_the_same_frames(raw, prepared, tmp_path):
    """And without questions and proposals, which the notes say."""
    zips = raw_videos.zipped(raw / "clevrer", tmp_path / "zips")
    prepare.prepare("clevrer", str(zips), tmp_path / "out", ("validation",), Options(size=64))
    sample = read(tmp_path / "out", "validation")["video_10001"]
    whole = read(prepared / "clevrer", "validation")["video_10001"]
    assert np.stack(sample["video"]).shape == (5, 64, 64, 3)
    np.testing.assert_array_equal(sample["in_view"], whole["in_view"])
    assert (np.stack(sample["segmentations"]) == 255).all()
    metadata = manifest(tmp_path / "out")["metadata"]
    assert metadata["labelled"] == [] and metadata["annotated"] == ["validation"]
    # Questions that come later are put beside the videos, which stay as they are.
    shard = next((tmp_path / "out").glob("*array_record*"))
    before = shard.stat().st_mtime_ns
    questions = (raw / "clevrer/questions/validation.json").read_bytes()
    write(zips, {"questions/val.json": questions})
    prepare.prepare("clevrer", str(zips), tmp_path / "out", ("validation",), Options(size=64))
    assert shard.stat().st_mtime_ns == before
    assert beside.wrong_files(tmp_path / "out", manifest(tmp_path / "out")) == []
    assert len(ClevrerQuestions(tmp_path / "out", "validation")) == 2
    # Others are not mixed with them, and damage is found.
    write(zips, {"questions/val.json": questions.replace(b'"1"', b'"2"')})
    options = {"splits": ("validation",), "size": 64}
    text = refuses("clevrer", zips, tmp_path / "out", **options)
    assert "holds questions-validation.json, which was made from other files" in text
    (tmp_path / "out" / "questions-validation.json").write_text("[]")
    (line,) = check.check(tmp_path / "out")
    assert "questions-validation.json differs from its checksum" in line
    (tmp_path / "out" / "questions-validation.json").unlink()
    (line,) = beside.wrong_files(tmp_path / "out", manifest(tmp_path / "out"))
    assert line == "questions-validation.json is missing"


def test_splits_one_after_the_other_give_the_same_folder(raw, prepared, tmp_path):
    for split in ("validation", "train", "test"):
        prepare.prepare("clevrer", str(raw / "clevrer"), tmp_path, (split,))
    assert files_of(tmp_path) == files_of(prepared / "clevrer")


def test_what_a_split_has_is_said_of_that_split(download, tmp_path):
    """Proposals and annotations that come later, or are removed, do not change finished splits."""
    source, later = download / "clevrer", tmp_path / "later"
    parts = ("derender_proposals", "annotations")
    later.mkdir()

    def listed(split: str) -> list[list[str]]:
        prepare.prepare("clevrer", str(source), tmp_path / "out", (split,))
        return [manifest(tmp_path / "out")["metadata"][key] for key in ("labelled", "annotated")]

    for part in parts:
        (source / part).rename(later / part)
    assert listed("train") == [[], []]
    for part in parts:
        (later / part).rename(source / part)
    assert listed("validation") == [["validation"], ["validation"]]
    shutil.rmtree(source / parts[0])
    assert listed("test") == [["validation"], ["validation"]]


def masks(*objects: dict) -> dict:
    return {"frames": [{"objects": list(objects)}]}


def segments(proposals: dict, count: int = 1) -> list[np.ndarray]:
    return list(family._segments(proposals, count, HEIGHT, "x.json"))


def test_proposals_without_properties_are_numbered_frame_by_frame():
    one, two = ({"mask": compressed(mask)} for mask in (corner(), place(30)))
    (frame,) = segments(masks(one, two))
    assert set(np.unique(frame)) == {0, 1, 2} and frame.shape == (HEIGHT, HEIGHT)
    both = {"frames": [*masks(one, two)["frames"], *masks(two)["frames"]]}
    first, second = segments(both, 2)
    assert second.max() == 1 and (first == 2).sum() == (second == 1).sum()


def test_two_proposals_of_one_kind_stay_two_segments():
    one, two = ({**CUBE, "mask": compressed(mask)} for mask in (corner(), place(30)))
    assert set(np.unique(segments(masks(one, two))[0])) == {0, 1, 2}


@pytest.mark.parametrize(
    ("proposals", "expected"),
    [
        ({"frames": [{}]}, "is not a file of CLEVRER's proposals (KeyError: 'objects')"),
        (masks({**CUBE, "color": ["red"], "mask": {}}), "unhashable type: 'list'"),
        ({"frames": []}, "has 0 frames, its video 1"),
        (masks({"mask": {"size": [0, 4], "counts": ""}}), "frame 0, object 0: the RLE has size"),
        (masks({"mask": {"size": [2, 2], "counts": [3]}}), "object 0: the RLE counts 3 pixels"),
        (
            masks(*({"mask": compressed(np.ones(s, bool))} for s in ((2, 3), (3, 2)))),
            "object 1: the RLE has size [3, 2], the image [2, 3]",
        ),
    ],
)
def test_proposals_that_do_not_fit(proposals, expected):
    with pytest.raises(BadSample) as error:
        segments(proposals)
    assert expected in str(error.value)


def test_the_damaged_annotation_is_left_out_and_no_other(tmp_path):
    write(tmp_path, {"a/x.json": b'{"object_property": []'})
    for number in (10800, 10801):
        source = family.Clevrer("clevrer", str(tmp_path), Options())
        clip = family.Clip(number, (tmp_path, "v"), (tmp_path / "a", "x.json"), None)
        if number == 10800:
            assert source._annotation(clip, 3)["in_view"].shape == (0, 128)
            assert "annotation is damaged" in source.remarks[0][0]
        else:
            with pytest.raises(BadSample, match="x.json is not valid json"):
                source._annotation(clip, 3)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x["motion_trajectory"].pop(), "^a.json has 4 frames, its video 5"),
        (lambda x: x["object_property"][0].update(color="pink"), "is not an annotation of CLEVRER"),
        (lambda x: x["motion_trajectory"][0]["objects"][0].update(object_id=9), "KeyError: 9"),
        (lambda x: x["collision"][0].update(object_ids=[0]), "is not an annotation"),
        (lambda x: x.pop("motion_trajectory"), "KeyError: 'motion_trajectory'"),
        (lambda x: x.clear(), "is not an annotation of CLEVRER"),
    ],
)
def test_annotations_that_do_not_fit(change, expected):
    values = raw_videos.annotation(3, 5)
    change(values)
    with pytest.raises(BadSample, match=expected):
        family._annotated(values, 5, "a.json")


def test_other_damaged_videos_are_refused_or_skipped(download, tmp_path):
    """The questions about a skipped video are left out by their reader."""
    source = download / "clevrer"
    video = source / "videos/train/video_00000-01000/video_00007.mp4"
    cut(video, 0.75)
    text = refuses("clevrer", source, tmp_path / "out", ("train",))
    assert "of 5 frames could be read" in text and "expected a complete video" in text
    options = Options(skip_bad=True)
    prepare.prepare("clevrer", str(source), tmp_path / "out", ("train",), options)
    assert sample_names(tmp_path / "out", "train") == ("video_07648",)
    questions = ClevrerQuestions(tmp_path / "out", "train")
    assert questions.left_out == 2 and {q.scene_index for q in questions.records} == {7648}
    assert questions[0]["clip"] == 0


def test_what_is_skipped_is_told(download, tmp_path, capsys):
    source = download / "clevrer"
    (source / "derender_proposals/proposal_07648.json").unlink()
    (source / VIDEO_7).unlink()
    arguments = ["clevrer", f"--source={source}", f"--out={tmp_path / 'out'}", "--split=train"]
    assert prepare.main([*arguments, "--workers=1", "--skip-bad"]) == 0
    text = capsys.readouterr().out
    assert "left out: questions about videos of train that are not there (1)" in text
    assert f"left out: {source}/derender_proposals has no proposals of video_07648; down" in text
    rewritten(TABLE, ("test10_0007", "test10_0008"))(download / "physion")
    options = Options(skip_bad=True)
    out = tmp_path / "physion"
    prepare.prepare("physion_readout", str(download / "physion"), out, ("train",), options)
    assert "left out: videos of train without a row in" in capsys.readouterr().out
    assert sample_names(out, "train") == (f"Support/{raw_videos.TOWER}_0008_img",)
    assert len(PhysionLabels(out, "train")) == 1


def without(*names: str):
    def change(source: Path) -> None:
        for name in names:
            path = source / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def renamed(old: str, new: str):
    return lambda source: (source / old).rename(source / new)


def rewritten(name: str, *pairs: tuple[str, str]):
    def change(source: Path) -> None:
        text = (source / name).read_text()
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        (source / name).write_text(text)

    return change


VIDEO_7 = "videos/train/video_00000-01000/video_00007.mp4"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("videos"), "holds no videos of CLEVRER; looked for video_NNNNN.mp4 in videos/tr"),
        (without(VIDEO_7), "has no video_00007, named by "),
        (
            renamed(VIDEO_7, f"{VIDEO_7[:-9]}12345.mp4"),
            "has video_00000-01000/video_12345.mp4, but the videos of train are 00000 to 09999",
        ),
        (
            lambda source: shutil.copy(source / VIDEO_7, source / "videos/train/video_00007.mp4"),
            "has video_00000-01000/video_00007.mp4 and video_00007.mp4; expected each number once",
        ),
        (
            without("annotations/train/annotation_00000-01000/annotation_00007.json"),
            "has no annotation of video_00007, but of other videos of train",
        ),
        (
            without("derender_proposals/proposal_00007.json"),
            "has no proposals of video_00007, but of other videos of train",
        ),
        (rewritten("questions/train.json", ("metal", "golden")), "has the word 'golden'"),
        (rewritten("questions/train.json", ('"answer"', '"other"')), "has no answers, which those"),
    ],
)
def test_downloads_of_clevrer_that_are_refused(download, tmp_path, change, expected):
    change(download / "clevrer")
    assert expected in refuses("clevrer", download / "clevrer", tmp_path / "out", ("train",))


def test_sources_and_options_that_are_refused(raw, tmp_path):
    for name, source in (("clevrer", raw / "clevrer"), ("physion", raw / "physion")):
        assert "is not a folder" in refuses(name, source / "no", tmp_path / "out")
        assert "--keep=depth is not" in refuses(name, source, tmp_path / "out", keep=("depth",))


# ------------------------------------------------------------------------------------------ Physion


def test_the_splits_are_the_recorded_ones():
    ours = physion_family.published_splits()
    assert ours["bad_stimuli"] == RECORDED["bad_stimuli"]
    assert ours["test_order_of_scenarios"] == RECORDED["test_order_of_scenarios"]
    for part in ("training", "readout"):
        held_out, recorded = ours[f"{part}_validation"], RECORDED[f"{part}_val"]
        assert held_out == recorded and sorted(held_out) == sorted(SCENARIOS)
        name = {"training": "physion", "readout": "physion_readout"}[part]
        count = sum(len(names) for names in recorded.values())
        assert physion_family.COUNTS[name]["validation"] == count


def scenario_of(stimulus: str) -> str:
    """That of a validation video whose name begins in the longest same way."""
    pairs = [(name, s) for s, names in RECORDED["training_val"].items() for name in names]

    def common(name: str) -> int:
        same = itertools.takewhile(lambda x: x[0] == x[1], zip(name, stimulus, strict=False))
        return len(list(same))

    return max(pairs, key=lambda pair: common(pair[0]))[1]


def test_bad_stimuli_and_the_scenarios_of_the_program():
    """1,174 of 1,200 remain. In the program the first ones of a scenario count as the one before.

    In the test part each scenario has 150 videos; the names of good ones do not matter here.
    """
    bad = RECORDED["bad_stimuli"]
    marked = [name.replace("_img", "") for name in bad if "-redyellow" in name]
    plain = [name for name in bad if "-redyellow" not in name]
    files = {scenario: [] for scenario in RECORDED["test_order_of_scenarios"]}
    for name in plain + marked:
        stem, _, number = name.rpartition("_")
        files[scenario_of(name)].append(f"{stem.removesuffix('-redyellow')}-redyellow_{number}_img")
    for scenario, names in files.items():
        names += [f"good_{scenario}-redyellow_{k:04d}_img" for k in range(150 - len(names))]
    listed = [(scenario, name) for scenario, names in files.items() for name in names]
    kept = [(s, name) for s, name in listed if not physion_family.is_bad(name, bad)]
    assert len(listed) == 1200 and len(kept) == physion_family.COUNTS["physion_readout"]["test"]
    assert len(marked) == 3 and sum("ledge" in name for _, name in kept) == 3
    # The program: the scenario of the position before anything was dropped.
    theirs = [scenario for scenario, _ in listed[: len(kept)]]
    dominoes = [t for t, (s, _) in zip(theirs, kept, strict=True) if s == "Dominoes"]
    assert dominoes == ["Contain"] * 26 + ["Dominoes"] * 124
    contain = [t for t, (s, _) in zip(theirs, kept, strict=True) if s == "Contain"]
    assert contain == ["Collide"] * 13 + ["Contain"] * (150 - 13 - 13)


def test_the_parts_of_physion(prepared):
    parts = {"physion": raw_videos.OF_TRAINING, "physion_readout": raw_videos.OF_READOUT}
    held_out = {"physion": "0018", "physion_readout": "0007"}
    for name, of in parts.items():
        out = prepared / name
        everything = {f"{s}/{x}_img" for s, stimuli in of.items() for x in stimuli}
        train, validation = read(out, "train"), read(out, "validation")
        assert list(validation) == [f"Support/{raw_videos.TOWER}_{held_out[name]}_img"]
        assert {*train, *validation} == everything and not {*train} & {*validation}
        for sample in (*train.values(), *validation.values()):
            assert np.stack(sample["video"]).shape == (4, SIZE, SIZE, 3)
            assert (np.stack(sample["segmentations"]) == 255).all()
        assert list(manifest(out)["splits"]) == (
            ["train", "validation"] + ["test"] * (name == "physion_readout")
        )
    video = read(prepared / "physion", "train")["Support/" + raw_videos.TOWER + "_0001_img"][
        "video"
    ]
    assert is_near(video, moving(0, 4, 48, 48))
    assert not list((prepared / "physion").glob("labels*"))


def test_the_bad_stimulus_is_dropped_and_the_misspelt_one_stays(prepared):
    out = prepared / "physion_readout"
    assert sample_names(out, "test") == (
        "Drape/test10-redyellow_0013_img",
        f"Roll/{raw_videos.LEDGE}_img",
    )
    scenarios = [s["metadata"]["scenario"].decode() for s in read(out, "test").values()]
    assert scenarios == ["Drape", "Roll"]


def test_splits_that_are_not_wanted_are_not_looked_at(download, tmp_path, capsys):
    source = download / "physion"
    (source / "PhysionTestMP4s/Roll").rename(source / "PhysionTestMP4s/Rolling")
    prepare.prepare("physion_readout", str(source), tmp_path / "out", ("validation",))
    assert "bad stimuli" not in capsys.readouterr().out
    text = refuses("physion_readout", source, tmp_path / "test", ("test",))
    assert "is of the scenario Rolling" in text


def test_labels_of_physion(prepared):
    out = prepared / "physion_readout"
    for split in prepare.SPLITS:
        source = PhysionLabels(out, split)
        for index, name in enumerate(sample_names(out, split)):
            scenario, _, stimulus = name.partition("/")
            sample = source[index]
            contact = {
                **{f"{key}_img": value for key, value in raw_videos.CONTACTS.items()},
                **raw_videos.TEST_CONTACTS,
            }[stimulus.replace("-redyellow", "")]
            assert source.answers[sample["answer"]] == ("yes" if contact else "no")
            assert source.kinds[sample["kind"]] == scenario and sample["clip"] == index
            assert sample["question"].shape == (0,) and sample["allowed"].all()
        assert len(source) == index + 1
    with pytest.raises(UserError, match="has no labels-train.json; expected a folder made with"):
        PhysionLabels(prepared / "physion", "train")


def test_at_most_so_many_frames_are_kept(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(physion_family, "MAX_FRAMES", 3)
    options = Options(limit=1)
    source = str(raw / "physion")
    prepare.prepare("physion_readout", source, tmp_path / "out", ("train",), options)
    assert list(frame_counts(tmp_path / "out", "train")) == [3]
    assert len(PhysionLabels(tmp_path / "out", "train")) == 1


def test_an_interrupted_preparation_goes_on(raw, prepared, tmp_path, capsys):
    arguments = ["physion", f"--source={raw / 'physion'}", f"--out={tmp_path}", "--workers=1"]
    with interrupted_after_a_shard():
        assert prepare.main(arguments) == 130
    assert not (tmp_path / "MANIFEST.json").exists()
    assert prepare.main(arguments) == 0
    assert "1 of 2 shards are finished" in capsys.readouterr().out
    assert files_of(tmp_path) == files_of(prepared / "physion")
    assert prepare.main(arguments) == 0
    assert "is prepared already" in capsys.readouterr().out


TABLE = "PhysionTrainMP4s/readout_labels.csv"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("PhysionTrainMP4s"), "has no videos of physion_readout for train"),
        (without(TABLE), "readout_labels.csv does not exist; it holds the labels"),
        (rewritten(TABLE, (",ground truth outcome", "name,outcome")), "begins with 'name,outcome'"),
        (rewritten(TABLE, ("True", "a" * 200_000)), "readout_labels.csv is not a table (field lar"),
        (rewritten(TABLE, ("True", "1")), "line 2 is 'pilot_towers_nb2_fr015_SJ010_mono0_dis0_oc"),
        (rewritten(TABLE, ("True", "True,False")), "expected a name and True or False"),
        (rewritten(TABLE, ("_0008,", "_0007,")), "line 3 repeats 'pilot_towers_nb2"),
        (rewritten(TABLE, ("test10_0007", "test10_0008")), "has no row test10_0007, the label of"),
        (
            renamed("PhysionTrainMP4s/Drape_readout_MP4s", "PhysionTrainMP4s/Fall_readout_MP4s"),
            "is of the scenario Fall, expected one of Collide, ",
        ),
    ],
)
def test_downloads_of_physion_that_are_refused(download, tmp_path, change, expected):
    change(download / "physion")
    text = refuses("physion_readout", download / "physion", tmp_path / "out", ("train",))
    assert expected in text
