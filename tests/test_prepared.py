"""Samples and batches from prepared folders."""

import itertools
import json
import pickle
import shutil

import cv2
import fake_training
import numpy as np
import pytest
import run_config
from ml_collections import ConfigDict
from prepared_folders import blobs, png, write_folder
from scipy.ndimage import maximum_filter, minimum_filter

from smoothsa_jax.config.load import load_config
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import NO_SEGMENT, encoded
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.encoded import EncodedClip, decode_frames, decode_labels
from smoothsa_jax.inputs.loader import evaluation_batches, training_batches
from smoothsa_jax.inputs.prepared import PreparedFolder
from smoothsa_jax.inputs.records import Records
from smoothsa_jax.inputs.resize import resize_pixels
from smoothsa_jax.training.evaluating import batches_of, source_of_split
from smoothsa_jax.training.loop import train

SIZE = (20, 30)
OBJECTS = 4


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    return [blobs(rng, 7, *SIZE, OBJECTS) for _ in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clips):
    return write_folder(tmp_path_factory.mktemp("clips") / "mini", clips)


def _source(folder, **options):
    return PreparedFolder(
        folder, **{"image_size": 16, "num_frames": 3, "max_objects": OBJECTS, **options}
    )


def _assert_same(got, want):
    assert got.keys() == want.keys()
    for key in want:
        np.testing.assert_array_equal(got[key], want[key], err_msg=key)


def _loop_boxes(labels, count):
    """Boxes (T, count, 4) of objects 1..count, pixel by pixel."""
    frames, height, width = labels.shape
    boxes = np.zeros((frames, count, 4), np.float32)
    for t, k in itertools.product(range(frames), range(1, count + 1)):
        places = [(y, x) for y in range(height) for x in range(width) if labels[t, y, x] == k]
        if places:
            rows, columns = zip(*places, strict=True)
            corners = min(columns), min(rows), max(columns), max(rows)
            boxes[t, k - 1] = np.array(corners) / np.array([width, height, width, height])
    return boxes


# ---------------------------------------------------------------------------------------- samples


def test_evaluation_shows_the_centre_square_of_the_whole_video(folder, clips):
    source = _source(folder, image_size=20, num_frames=None)
    assert len(source) == len(clips)
    for index, (video, labels) in enumerate(clips):
        sample = source[index]
        np.testing.assert_array_equal(sample["video"], video[:, :, 5:25])
        assert sample["video"].dtype == sample["segmentations"].dtype == np.uint8
        assert sample["boxes"].shape == (7, OBJECTS + 1, 4)
        seen = labels[:, :, 5:25]
        # The same segments under any numbers; background and no segment keep theirs.
        for value in (0, 255):
            np.testing.assert_array_equal(sample["segmentations"] == value, seen == value)
        pairs = set(zip(sample["segmentations"].ravel(), seen.ravel(), strict=True))
        assert len(pairs) == len(np.unique(seen)) == len(np.unique(sample["segmentations"]))


def test_evaluation_of_a_number_of_frames_starts_at_the_first(folder, clips):
    sample = _source(folder, image_size=20, num_frames=3)[2]
    np.testing.assert_array_equal(sample["video"], clips[2][0][:3, :, 5:25])


@pytest.mark.parametrize("background_box", [False, True])
def test_boxes_are_those_of_the_final_labels(folder, background_box):
    source = _source(folder, background_box=background_box, num_slots=OBJECTS + 2)
    first = int(background_box)
    for index, seed in itertools.product(range(4), range(4)):
        for sample in (source.draw(index, np.random.default_rng(seed)), source[index]):
            labels, boxes = sample["segmentations"], sample["boxes"]
            count = len(set(np.unique(labels)) - {0, 255})
            assert set(np.unique(labels)) <= {0, 255, *range(1, count + 1)}  # numbered compactly
            np.testing.assert_allclose(
                boxes[:, first : first + count], _loop_boxes(labels, count), rtol=1e-6
            )
            assert (boxes[:, first + count :] == -1).all()
            assert sample["slot_mask"].tolist() == [i < first + count for i in range(OBJECTS + 2)]
            if background_box:
                np.testing.assert_allclose(boxes[:, 0] - [0, 0, 15 / 16, 15 / 16], 0, atol=1e-7)


def test_an_object_outside_of_the_crop_is_dropped(tmp_path):
    labels = np.zeros((2, 20, 60), np.uint8)
    labels[:, 5:9, 0:4], labels[1, 5:9, 28:32] = 1, 2
    video = np.zeros((2, 20, 60, 3), np.uint8)
    sample = _source(write_folder(tmp_path / "a", [(video, labels)]), image_size=20)[0]
    assert set(np.unique(sample["segmentations"])) == {0, 1}
    assert sample["slot_mask"].tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(sample["boxes"][:, 1] * 20, [[0, 0, 0, 0], [8, 5, 11, 8]], atol=1e-5)


def test_a_clip_without_objects_leaves_one_slot(tmp_path):
    """A model whose slots are all masked would have no softmax to take."""
    clip = np.zeros((2, 16, 16, 3), np.uint8), np.zeros((2, 16, 16), np.uint8)
    sample = _source(write_folder(tmp_path / "a", [clip]), background_box=False)[0]
    assert sample["slot_mask"].sum() == 1 and sample["slot_mask"][0]
    np.testing.assert_allclose(sample["boxes"][:, 0], [[0, 0, 15 / 16, 15 / 16]] * 2)
    assert (sample["boxes"][:, 1:] == -1).all()


def test_one_draw_serves_all_frames_of_a_clip_and_its_labels(tmp_path):
    # Every frame is the same picture, and its red is the label: they have to stay so.
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 4, (1, 40, 50), dtype=np.uint8), 6, axis=0)
    labels = np.kron(labels[:, ::10, ::10], np.ones((1, 10, 10), np.uint8))
    video = np.stack([labels * 60] * 3, axis=-1)
    source = _source(write_folder(tmp_path / "a", [(video, labels)]), image_size=64)
    shown = set()
    for seed in range(12):
        sample = source.draw(0, np.random.default_rng(seed))
        assert (sample["video"] == sample["video"][:1]).all()
        assert (sample["segmentations"] == sample["segmentations"][:1]).all()
        agree = sample["video"][..., 0] == sample["segmentations"] * 60
        assert agree.mean() > 0.6  # the rest are outlines, mixed by the resize
        shown.add(sample["video"].tobytes())
    assert len(shown) == 12


def test_windows_are_drawn_from_the_cut_video(folder, tmp_path):
    video = np.repeat(np.arange(7, dtype=np.uint8), 20 * 20 * 3).reshape(7, 20, 20, 3) * 30
    source = _source(write_folder(tmp_path / "a", [(video, np.zeros((7, 20, 20), np.uint8))]))
    drawn = {
        tuple(source.draw(0, np.random.default_rng(seed))["video"][:, 3, 3, 0] // 30)
        for seed in range(40)
    }
    assert drawn == {(0, 1, 2), (3, 4, 5), (4, 5, 6)}
    assert len(_source(folder, num_frames=20).draw(0, np.random.default_rng(0))["video"]) == 7


def test_a_still_is_a_clip_of_one_frame(tmp_path, clips):
    stills = [(video[:1], labels[:1]) for video, labels in clips]
    source = _source(write_folder(tmp_path / "a", stills, stills=True), image_size=20, num_frames=1)
    for index, (video, _) in enumerate(stills):
        np.testing.assert_array_equal(source[index]["video"], video[:, :, 5:25])
    assert source.draw(0, np.random.default_rng(0))["video"].shape == (1, 20, 20, 3)


def test_slots_without_a_box_may_start_from_zeros(folder):
    settings = {"background_box": False, "num_slots": OBJECTS + 2}
    masked, zeros = (_source(folder, zero_boxes=x, **settings)[0] for x in (False, True))
    assert zeros["slot_mask"].all() and not masked["slot_mask"].all()
    expected = np.where(masked["boxes"] == -1, 0, masked["boxes"])
    np.testing.assert_array_equal(zeros["boxes"], expected)


def test_without_boxes_every_slot_takes_part(folder):
    sample = _source(folder, boxes=False, background_box=False, max_objects=None, num_slots=2)[0]
    assert sample["slot_mask"].all() and sample["boxes"].shape == (3, 2, 4)


def test_only_frames_that_are_used_are_decoded(folder, monkeypatch):
    decoded = []
    decode = encoded._decode

    def counted(data, mode, what):
        decoded.append(what)
        return decode(data, mode, what)

    monkeypatch.setattr(encoded, "_decode", counted)
    _source(folder).draw(0, np.random.default_rng(0))
    assert len(decoded) == 2 * 3  # frames and labels
    decoded.clear()
    _source(folder, num_frames=2)[0]
    assert len(decoded) == 2 * 2
    decoded.clear()
    assert len(_source(folder, repeat_frames=3).epoch()) == 16 and not decoded


# ------------------------------------------------------------------------------------------ order


def test_long_videos_count_more_often(tmp_path):
    rng = np.random.default_rng(0)
    videos = [blobs(rng, length, 8, 8, 1) for length in (2, 5, 9)]
    path = write_folder(tmp_path / "a", videos)
    options = {"num_frames": 2, "repeat_frames": 3}
    assert list(_source(path, **options).epoch()) == [0, 1, 2, 2, 2]
    assert list(_source(path, num_frames=2).epoch()) == [0, 1, 2]
    assert list(_source(path, **options, num_samples=2).epoch()) == [0, 1]


def test_short_videos_are_left_out_of_training(tmp_path):
    rng = np.random.default_rng(0)
    path = write_folder(tmp_path / "a", [blobs(rng, length, 8, 8, 1) for length in (2, 5, 9, 4)])
    source = _source(path, num_frames=5, repeat_frames=3)
    assert list(source.epoch()) == [1, 2, 2, 2]
    batches = training_batches(source, 2, seed=0)
    assert {next(batches)["video"].shape for _ in range(6)} == {(2, 5, 16, 16, 3)}
    with pytest.raises(UserError, match="has the 10 frames .* the longest has 9; lower data.num_f"):
        _source(path, num_frames=10).epoch()
    assert len(_source(path, num_frames=None).epoch()) == 4


def test_lengths_are_known_from_the_manifest_alone(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    path = write_folder(tmp_path / "a", [blobs(rng, length, 8, 8, 1) for length in (2, 5)])
    monkeypatch.setattr(Records, "__getitem__", lambda self, index: pytest.fail("a record is read"))
    assert list(_source(path, num_frames=3).epoch()) == [1]
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["metadata"]["frames"] = "of another kind of entry"
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    assert list(_source(path, num_frames=3).epoch()) == [1]
    manifest["splits"]["train"]["shards"][0]["frames"].pop()
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="2 samples .* gives the length of 1; prepare"):
        _source(path, num_frames=3).epoch()
    (path / "MANIFEST.json").unlink()
    with pytest.raises(UserError, match="MANIFEST.json does not say how many frames"):
        _source(path, num_frames=3).epoch()
    assert list(_source(path, num_frames=1).epoch()) == [0, 1]


def test_a_fingerprint_is_of_the_contents_wherever_they_lie(folder, tmp_path, clips):
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert _source(moved).fingerprint() == _source(folder).fingerprint() is not None
    other = write_folder(tmp_path / "other", clips[::-1])
    assert _source(other).fingerprint() != _source(folder).fingerprint()


def test_training_draws_anew_every_epoch(folder):
    batches = training_batches(_source(folder), 8, seed=0)
    first, second = next(batches)["video"], next(batches)["video"]
    assert len({video.tobytes() for video in [*first, *second]}) == 16


# ------------------------------------------------------------------------------------- categories


def test_categories_follow_their_objects(tmp_path):
    """An object is known by its color, which gives its label, after any window, crop and flip."""
    rng = np.random.default_rng(0)
    clips, categories = [], []
    for index in range(4):
        _, labels = blobs(rng, 5, 40, 60, 6 if index else 0)
        labels[:4][labels[:4] == 2] = 0  # in the last frame alone
        clips.append((np.stack([labels] * 3, axis=-1), labels))
        categories.append(rng.permutation(10)[: 6 if index else 0].tolist())
    path = write_folder(tmp_path / "a", clips, categories=categories)
    source = _source(path, max_objects=8, categories=True, image_size=80, num_frames=2)
    some_absent, checked = False, 0
    for index, seed in itertools.product(range(4), range(6)):
        for sample in (source.draw(index, np.random.default_rng(seed)), source[index]):
            found, labels = sample["categories"], sample["segmentations"]
            assert found.dtype == np.int32 and found.shape == (8,)
            count = len(set(np.unique(labels)) - {0, 255})
            assert (found[count:] == -1).all()
            some_absent |= 0 < count < 6
            inside = maximum_filter(labels, (1, 7, 7)) == minimum_filter(labels, (1, 7, 7))
            for k in range(count):
                # Outlines are mixed with their neighbours by the resize.
                colours = np.unique(sample["video"][..., 0][(labels == k + 1) & inside])
                assert len(colours) <= 1
                checked += len(colours)
                assert all(found[k] == categories[index][colour - 1] for colour in colours)
    assert some_absent and checked > 50
    assert "categories" not in _source(path, max_objects=8)[1]


def test_categories_without_boxes_may_be_more_than_slots(tmp_path, clips):
    path = write_folder(tmp_path / "a", clips, categories=[[3, 1, 4, 1]] * len(clips))
    config = {"name": "prepared", "folder": str(path), "image_size": 16, "num_frames": 3}
    config |= {"boxes": False, "background_box": False, "categories": True, "max_objects": 6}
    batch = next(evaluation_batches(build_dataset(config, "train", num_slots=2), 3))
    assert batch["categories"].shape == (3, 6) and batch["slot_mask"].shape == (3, 2)
    config["max_objects"] = 1
    with pytest.raises(UserError, match=r"data.max_objects is 1; raise it$"):
        build_dataset(config, "train", num_slots=2)[0]


def test_categories_that_are_not_there_are_told(tmp_path, folder, clips):
    with pytest.raises(UserError, match=r"clip_0\) has no categories, and data.categories needs"):
        _source(folder, categories=True)[0]
    path = write_folder(tmp_path / "a", clips, categories=[[0]] * len(clips))
    with pytest.raises(UserError, match=r"clip_0\) has label \d and categories of 1 objects"):
        _source(path, categories=True)[0]


# ----------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, id="workers", marks=pytest.mark.slow)])
def test_a_resumed_training_draws_the_identical_batches(folder, num_workers):
    want = list(itertools.islice(training_batches(_source(folder), 3, seed=1), 6))
    options = {"num_threads": 2, "num_workers": num_workers}
    whole = training_batches(_source(folder), 3, seed=1, **options)
    for batch in want[:4]:
        _assert_same(next(whole), batch)
    state = json.loads(json.dumps(whole.get_state()))
    resumed = training_batches(_source(folder), 3, seed=1, **options)
    resumed.set_state(state)
    for batch in want[4:]:
        _assert_same(next(resumed), batch)
    whole.close()
    resumed.close()
    # The position is also good for another number of workers.
    alone = training_batches(_source(folder), 3, seed=1)
    alone.set_state(state)
    _assert_same(next(alone), want[4])


@pytest.mark.parametrize("count", [2, 3])
def test_hosts_share_out_what_one_would_draw(folder, count):
    alone = training_batches(_source(folder), 2 * count, seed=5)
    hosts = [
        training_batches(_source(folder), 2, seed=5, process_index=i, process_count=count)
        for i in range(count)
    ]
    for _ in range(6):
        whole, parts = next(alone), [next(host) for host in hosts]
        for key in whole:
            together = np.concatenate([part[key] for part in parts])
            np.testing.assert_array_equal(together, whole[key])


def test_process_out_of_range_is_refused(folder):
    with pytest.raises(UserError, match="process 2 of 2"):
        training_batches(_source(folder), 2, seed=0, process_index=2, process_count=2)


def test_evaluation_sees_each_sample_once(folder):
    source = _source(folder)
    batches = list(evaluation_batches(source, 3))
    videos = np.concatenate([batch["video"][batch["valid"]] for batch in batches])
    assert len(videos) == 8
    for index, video in enumerate(videos):
        np.testing.assert_array_equal(video, source[index]["video"])


def test_a_split_that_is_missing_is_told_before_training(tmp_path):
    config = load_config("configs/movi_c.py:smoke")
    rng = np.random.default_rng(0)
    config.data.folder = str(write_folder(tmp_path / "a", [blobs(rng, 6, 64, 64, 2)]))
    with pytest.raises(UserError, match="has no split 'validation'; it has: train"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_whole_videos_of_different_lengths_are_filled_up(tmp_path):
    rng = np.random.default_rng(0)
    path = write_folder(tmp_path / "a", [blobs(rng, length, 8, 8, 1) for length in (3, 5)])
    source = _source(path, num_frames=None)
    (batch,) = evaluation_batches(source, 2, fill_lengths=True)
    assert batch["num_frames"].tolist() == [3, 5]
    for b, length in enumerate(batch["num_frames"]):
        for key in ("video", "segmentations", "boxes"):
            assert batch[key].shape[:2] == (2, 6)
            np.testing.assert_array_equal(batch[key][b, :length], source[b][key])
        assert (batch["video"][b, length:] == batch["video"][b, length - 1]).all()
        assert (batch["segmentations"][b, length:] == NO_SEGMENT).all()
    with pytest.raises(UserError, match="clips of 3, 5 frames.*eval.num_frames=-1"):
        next(evaluation_batches(source, 2))


def test_a_source_travels_to_other_processes(folder):
    source = _source(folder)
    want = source[5]  # with a shard open
    _assert_same(pickle.loads(pickle.dumps(source))[5], want)


def test_config_names_it(folder):
    config = {"name": "prepared", "folder": str(folder), "image_size": 16, "num_frames": 3}
    source = build_dataset(config, "train", num_slots=5)
    assert next(training_batches(source, 2, seed=0))["video"].shape == (2, 3, 16, 16, 3)
    long = build_dataset({**config, "num_frames": 9}, "train", num_slots=5)
    with pytest.raises(UserError, match="the longest has 7"):
        training_batches(long, 2, seed=0)
    with pytest.raises(UserError, match="has 7 frames, but 9 are expected; lower eval.num_frames"):
        next(evaluation_batches(long, 2))
    assert len(build_dataset(config, "train", num_slots=5, num_samples=100)) == 8


# ---------------------------------------------------------------------------------------- windows


def numbered(lengths, size=(8, 12)) -> list:
    """Clips whose pixels are 30 times the number of the frame."""
    clips = []
    for length in lengths:
        frames = np.arange(length, dtype=np.uint8)[:, None, None] * 30
        labels = np.zeros((length, *size), np.uint8)
        clips.append((np.repeat((frames + labels)[..., None], 3, axis=-1), labels))
    return clips


def frames_of(sample) -> list[int]:
    return (sample["video"][:, 2, 2, 0] // 30).tolist()


@pytest.mark.parametrize(
    "rest, expected",
    [
        ("back", [(1, [0, 1, 2]), (2, [0, 1, 2]), (2, [3, 4, 5]), (2, [4, 5, 6])]),
        ("drop", [(1, [0, 1, 2]), (2, [0, 1, 2]), (2, [3, 4, 5])]),
        ("keep", [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2]), (2, [3, 4, 5]), (2, [6])]),
    ],
)
def test_videos_are_scored_in_windows(tmp_path, rest, expected):
    path = write_folder(tmp_path / "a", numbered((2, 3, 7)))
    source = _source(path, num_frames=None, windows=3, window_rest=rest)
    samples = [source[index] for index in range(len(source))]
    assert [frames_of(sample) for sample in samples] == [frames for _, frames in expected]
    names = [f"clip_{video} frames {frames[0]}-{frames[-1]}" for video, frames in expected]
    assert [str(sample["name"]) for sample in samples] == names
    assert source.long_enough(3).tolist() == [i for i, (_, f) in enumerate(expected) if len(f) == 3]
    assert len(_source(path, num_frames=None, windows=3, window_rest=rest, num_samples=2)) == 2
    # Every frame is scored once, but for those that a moved window has twice and those left out.
    with pytest.raises(IndexError):
        source[len(source)]
    with pytest.raises(UserError, match="has the 8 frames of a window, the longest has 7; lower"):
        _source(path, num_frames=None, windows=8, window_rest="drop")


def test_windows_of_a_config_are_those_of_evaluation_alone(tmp_path):
    folder = write_folder(tmp_path / "a", numbered((7, 2)), split="validation")
    config = load_config("configs/ytvis_2021.py:smoke").unlock()
    config.data.update(folder=str(folder), image_size=8, cut_frames=4)
    config.eval.num_samples = None
    lengths = {}
    for windows, rest in ((None, "back"), (3, "back"), (3, "keep")):
        config.eval.update(windows=windows, window_rest=rest)
        source = source_of_split(config, 7, "validation", None)
        batches = batches_of(config, source)
        lengths[windows, rest] = [int(n) for batch in batches for n in batch["num_frames"]]
    assert lengths == {(None, "back"): [7, 2], (3, "back"): [3] * 3, (3, "keep"): [3, 3, 1, 2]}
    own = {"name": "sprites", "image_size": 16, "num_frames": 2, "max_objects": 3}
    with pytest.raises(UserError, match="takes no 'windows', which the program gives it"):
        build_dataset(own, "test", num_slots=4, windows=3)


def test_training_cuts_videos_first(tmp_path):
    """As RandSF.Q's program cuts YouTube-VIS."""
    path = write_folder(tmp_path / "a", numbered((3, 4, 7)))
    source = _source(path, num_frames=2, cut_frames=4)
    assert list(source.epoch()) == [1, 2, 2]  # a video of 3 frames is too short
    drawn = {tuple(frames_of(source.draw(2, np.random.default_rng(seed)))) for seed in range(60)}
    assert drawn == {(0, 1), (2, 3), (3, 4), (5, 6)}  # of 0 to 3 and of 3 to 6
    whole = _source(path, num_frames=2, rest="drop")
    drawn = {tuple(frames_of(whole.draw(2, np.random.default_rng(seed)))) for seed in range(40)}
    assert drawn == {(0, 1), (2, 3), (4, 5)}
    assert list(whole.epoch()) == [0, 1, 2]


def test_frames_may_be_resized_bicubically(folder, clips):
    """In evaluation as in training; labels stay the nearest pixels."""
    options = {"image_size": 32, "num_frames": None, "crop": "none", "flip": 0.0}
    source, plain = (_source(folder, **options, interpolation=x) for x in ("bicubic", "bilinear"))
    video = clips[1][0]
    expected = resize_pixels(video[:, :, 5:25], (32, 32), "bicubic")
    np.testing.assert_array_equal(source[1]["video"], expected)
    sample = source.draw(1, np.random.default_rng(0))
    np.testing.assert_array_equal(sample["video"], resize_pixels(video, (32, 32), "bicubic"))
    other = plain.draw(1, np.random.default_rng(0))
    assert not np.array_equal(sample["video"], other["video"])
    np.testing.assert_array_equal(sample["segmentations"], other["segmentations"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cut_frames": 2}, "cut_frames is 2, shorter than a clip of data.num_frames=3"),
        ({"cut_frames": 4, "repeat_frames": 3}, "both say how often a video counts"),
        ({"rest": "keep"}, "data.rest is 'keep'; expected one of back, drop"),
        ({"crop": "corner"}, "data.crop is 'corner'; expected one of area, centre, covering, none"),
        ({"interpolation": "nearest"}, "data.interpolation is 'nearest'; expected one of"),
        ({"flip": 1.5}, "data.flip is 1.5; expected a probability"),
    ],
)
def test_options_of_training_clips_are_checked(folder, options, message):
    with pytest.raises(UserError, match=message):
        _source(folder, **options)


# ----------------------------------------------------------------------------------------- faults


def test_missing_folder_and_split_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder.*python -m data.prepare"):
        _source(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no dataset_info.json"):
        _source(tmp_path)
    with pytest.raises(UserError, match="no split 'test'; it has: train"):
        _source(folder, split="test")


def _copy(folder, tmp_path, clips):
    return write_folder(tmp_path / "copy", clips)


def test_a_missing_shard_is_named(tmp_path, clips):
    path = _copy(None, tmp_path, clips)
    (path / "mini-train.array_record-00001-of-00003").unlink()
    with pytest.raises(UserError, match="lacks mini-train.array_record-00001-of-00003, of 3"):
        _source(path)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_shard_is_named(tmp_path, clips, keep):
    path = _copy(None, tmp_path, clips)
    file = path / "mini-train.array_record-00001-of-00003"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    source = _source(path)
    source[0]
    with pytest.raises(UserError, match="00001-of-00003.*truncated"):
        source[3]


def test_a_damaged_record_is_named(tmp_path, clips):
    path = _copy(None, tmp_path, clips)
    file = path / "mini-train.array_record-00000-of-00003"
    data = bytearray(file.read_bytes())
    place = data.find(b"\x89PNG") + 40
    data[place : place + 20] = bytes(20)
    file.write_bytes(data)
    with pytest.raises(UserError, match="record 0 of .*00000-of-00003 cannot be read"):
        _source(path)[0]


def test_too_many_objects_name_the_sample(folder):
    with pytest.raises(UserError, match=r"clip_0\) shows \d objects, data.max_objects is 1"):
        _source(folder, max_objects=1)[0]
    with pytest.raises(UserError, match="num_slots to at least 5"):
        _source(folder, max_objects=4, num_slots=4)


def test_pictures_that_cannot_be_decoded_are_named():
    clip = EncodedClip("clip_7", [png(np.zeros((4, 5, 3), np.uint8)), b"no picture", b""], None)
    assert decode_frames(clip, [0]).shape == (1, 4, 5, 3)
    for t in (1, 2):
        with pytest.raises(UserError, match=f"frame {t} of clip_7 cannot be decoded"):
            decode_frames(clip, [t])


def test_labels_have_to_be_8_bit_maps_and_frames_of_one_size():
    deep = cv2.imencode(".png", np.zeros((4, 5), np.uint16))[1].tobytes()
    colour = png(np.zeros((4, 5, 3), np.uint8))
    for data in (deep, colour):
        with pytest.raises(UserError, match="label map 0 of clip_7 is uint"):
            decode_labels(EncodedClip("clip_7", [colour], [data]), [0])
    frames = [colour, png(np.zeros((4, 6, 3), np.uint8))]
    with pytest.raises(UserError, match="sizes 4x5, 4x6"):
        decode_frames(EncodedClip("clip_7", frames, None), [0, 1])


def test_frames_are_red_green_blue():
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    clip = EncodedClip("clip", [png(picture)], None)
    np.testing.assert_array_equal(decode_frames(clip, [0])[0], picture)


def test_labels_of_another_size_are_refused(tmp_path):
    video, labels = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 9), np.uint8)
    with pytest.raises(UserError, match="frames of 8x8 pixels and label maps of 8x9"):
        _source(write_folder(tmp_path / "a", [(video, labels)]))[0]


def test_records_know_their_bounds(folder):
    records = Records(folder, "train")
    assert len(records) == 8 and records[7]
    for index in (-1, 8):
        with pytest.raises(IndexError):
            records[index]


# ------------------------------------------------------------------------------------------- runs


def _run_config(folder):
    config = run_config.get_config()
    config.data = ConfigDict(
        {
            "name": "prepared",
            "folder": str(folder),
            "image_size": 16,
            "num_frames": 2,
            "max_objects": 4,
            "boxes": True,
            "background_box": False,
            "repeat_frames": 3,
        }
    )
    config.train.update(num_steps=4, num_threads=2)
    config.checkpoint.every = 2
    config.eval.update(split="train", batch_size=1, num_frames=-1, num_samples=2)
    return config


def test_a_run_goes_on_where_its_data_moved_to_and_not_with_others(
    tmp_path, clips, monkeypatch, capsys
):
    fake_training.use(monkeypatch)
    short = (clips[0][0][:1], clips[0][1][:1])
    config = _run_config(write_folder(tmp_path / "set", [*clips, short]))
    train(config, tmp_path / "run")
    assert "1 of 9 training samples are left out: they have fewer than" in capsys.readouterr().err
    # To go on, a run needs something left to do.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    (tmp_path / "set").rename(tmp_path / "moved")
    config.data.folder = str(write_folder(tmp_path / "others", clips[::-1]))
    with pytest.raises(UserError, match="others holds other training samples than the run of"):
        train(config, tmp_path / "run")
    config.data.folder = str(tmp_path / "moved")
    train(config, tmp_path / "run")
    assert "resuming from step 2 of 4" in capsys.readouterr().err


@pytest.mark.slow  # the chains of test_gallery_runs.py go the same way
def test_a_run_trains_and_scores_on_prepared_folders(tmp_path, clips):
    config = _run_config(write_folder(tmp_path / "set", clips))
    scores = train(config, tmp_path / "run")
    assert np.isfinite(scores["metrics"]["ari"]["mean"])
    assert scores["protocol"]["num_samples"] == 2
