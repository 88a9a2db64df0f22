"""Flow, depth, cameras and stored boxes: decoded, cropped and resized as pixels are, or refused."""

from pathlib import Path

import numpy as np
import pytest
from golden_files import FORWARD, golden
from prepared_folders import png
from raw_clips import MOVI, movi_source, write_records
from scipy.stats import ks_2samp
from tensorflow_datasets.proto import tf_example_pb2

from data import prepare, tfrecords
from data.family import Options
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import cameras as pinhole
from smoothsa_jax.inputs.augment import (
    View,
    draw_view,
    view_boxes,
    view_cameras,
    view_depth,
    view_flow,
    view_labels,
)
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.encoded import decode_flow, in_range, parse_clip
from smoothsa_jax.inputs.loader import evaluation_batches
from smoothsa_jax.inputs.prepared import PreparedFolder
from smoothsa_jax.inputs.resize import resize_pixels, resize_values
from smoothsa_jax.models.targets import flow_picture

# -------------------------------------------------------------------------------- SAVi's program


@pytest.mark.slow
def test_preprocessing_equals_that_of_savi():
    with golden("savi_targets", parts=("inp/", "out/")) as file:
        size = file["inp/video"].shape[1:3]
        video = file["inp/video"].astype(np.float32) / 255
        labels = file["inp/segmentations"][..., 0]
        depth = in_range(file["inp/depth"], file["inp/depth_range"])[..., 0]
        flow = in_range(file["inp/backward_flow"], file["inp/backward_flow_range"])
        boxes = _boxes(file)
        file.compare("out/plain/video", video, FORWARD)
        file.compare("out/plain/depth", depth[..., None], FORWARD)
        file.compare("out/plain/flow", flow, FORWARD)
        file.compare("out/plain/boxes", boxes, FORWARD)
        most = boxes.shape[1]
        views = {
            "plain": View(0, 0, *size),
            "targets": View(0, 0, *size),
            "small": View(0, 0, *size),
            "cropped": View(*map(int, file["inp/crop_top_left_height_width"])),
        }
        for case, view in views.items():
            found = file[f"out/{case}/video"].shape[1:3]
            cut = video[:, view.top : view.top + view.height, view.left : view.left + view.width]
            seen = view_labels(labels, view, found)
            file.compare(f"out/{case}/video", resize_values(cut, found), FORWARD)
            file.compare(f"out/{case}/boxes", view_boxes(boxes, view, size), FORWARD)
            file.compare(f"out/{case}/segmentations", np.where(seen > most, 0, seen), 0.0)
            assert (file[f"out/{case}/padding_mask"] == 1).all()
            if case != "plain":
                far = np.log1p(view_depth(depth, view, found))[..., None]
                file.compare(f"out/{case}/depth", far, FORWARD)
                recorded = file[f"out/{case}/flow"]
                off = np.abs(np.asarray(flow_picture(view_flow(flow, view, found))) - recorded)
                # Rounding to 256 levels may go either way, but rarely.
                assert off.max() < 1.01 / 255 and (off > 1e-5).mean() < 0.01
        draws = file["out/crop_draws"].astype(int)
    rng = np.random.default_rng(0)
    ours = np.array([draw_view(rng, 128, 128, "covering", 0.0)[:4] for _ in range(2000)])
    for measure in (
        lambda x: x[:, 2] * x[:, 3],
        lambda x: x[:, 3] / x[:, 2],
        lambda x: x[:, 0],
        lambda x: x[:, 1],
    ):
        assert ks_2samp(measure(draws), measure(ours)).pvalue > 1e-3
    areas = draws[:, 2] * draws[:, 3] / 128**2
    assert ks_2samp(areas, rng.uniform(0.75, 1, 2000)).pvalue < 1e-6  # the test tells laws apart


def _boxes(file) -> np.ndarray:
    """Boxes (T, K, 4) from the ragged ones of a record, of as many objects as were asked for."""
    frames, lengths = file["inp/box_frames"], file["inp/box_lengths"]
    boxes = np.zeros((len(file["inp/video"]), len(lengths), 4), np.float32)
    boxes[frames, np.repeat(np.arange(len(lengths)), lengths)] = file["inp/boxes"]
    return boxes[:, : file["out/plain/boxes"].shape[1]]


def test_pixels_are_resized_as_numbers_are_and_rounded():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
    exact = resize_values(pixels.astype(np.float32), (7, 9))
    ours = resize_pixels(pixels, (7, 9), "plain_bilinear")
    np.testing.assert_array_equal(ours, np.rint(exact).astype(np.uint8))
    assert (ours != resize_pixels(pixels, (7, 9))).any()


# ------------------------------------------------------------------------------------ the loader


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The miniature of MOVi-C, whose depth and flow are constant, with random numbers in them."""
    source = movi_source(tmp_path_factory.mktemp("kept") / "movi_c", "movi_c")
    (file,) = source.glob("*train.tfrecord*")
    rng, records = np.random.default_rng(0), []
    for record in tfrecords.read_records(file):
        example = tf_example_pb2.Example.FromString(record)
        features = example.features.feature
        values = rng.integers(0, 65536, (24, 64, 64), dtype=np.uint16)
        features["depth"].bytes_list.value[:] = [png(depth) for depth in values]
        features["metadata/depth_range"].float_list.value[:] = (2.5, 17.0)
        values = rng.integers(0, 65536, 24 * 64 * 64 * 2)
        features["backward_flow"].int64_list.value[:] = values.tolist()
        features["metadata/backward_flow_range"].float_list.value[:] = (-9.5, 11.0)
        records.append(example.SerializeToString())
    write_records(file, records)
    out = source.parent / "prepared"
    prepare.prepare("movi_c", str(source), out, ("train",), Options(keep=("depth", "flow")))
    return out


def _source(folder: Path, **options) -> PreparedFolder:
    settings = {"image_size": 64, "num_frames": 6, "max_objects": 10, "flip": 0.0}
    return PreparedFolder(folder, **{**settings, "also": ("flow", "depth"), **options})


def test_whole_frames_have_the_stored_numbers(folder):
    sample = _source(folder, crop="none")[0]
    source = PreparedFolder(folder, max_objects=10)
    features = parse_clip(source.records[0], "x").features
    low, high = features["metadata/depth_range"].float_list.value
    assert sample["depth"].shape == (6, 64, 64) and sample["depth"].dtype == np.float32
    assert low - 1e-3 <= sample["depth"].min() < sample["depth"].max() <= high + 1e-3
    low, high = features["metadata/backward_flow_range"].float_list.value
    assert sample["flow"].shape == (6, 64, 64, 2) and sample["flow"].dtype == np.float32
    assert low - 1e-3 <= sample["flow"].min() < sample["flow"].max() <= high + 1e-3
    assert "flow" not in source[0] and "depth" not in source[0]  # on request only


def test_flow_follows_window_crop_size_and_flip(folder):
    whole = _source(folder, num_frames=24)[0]
    rng = lambda: np.random.default_rng(5)  # noqa: E731
    found = _source(folder, num_frames=6, crop="area", flip=1.0, image_size=32).draw(0, rng())
    plain = _source(folder, num_frames=6, crop="area", flip=0.0, image_size=32).draw(0, rng())
    np.testing.assert_allclose(found["depth"], plain["depth"][:, :, ::-1])
    np.testing.assert_allclose(found["flow"], plain["flow"][:, :, ::-1] * [1, -1])
    small = _source(folder, num_frames=24, image_size=32)[0]
    scaled = resize_values(whole["flow"], (32, 32)) / 2
    np.testing.assert_allclose(small["flow"], scaled, atol=1e-5)
    batch = next(evaluation_batches(_source(folder, num_frames=5), 2, fill_lengths=True))
    assert batch["flow"].shape[:2] == (2, 6) and batch["depth"].shape[:2] == (2, 6)


def test_stored_boxes_are_those_of_the_data_set(folder):
    stored = _source(folder, stored_boxes=True, background_box=False)[0]
    computed = _source(folder, background_box=False)[0]
    seen = computed["slot_mask"] & (computed["boxes"][0] > 0).any(axis=-1)
    # A pixel lies between the last row of an object and the edge of its box.
    gap = (stored["boxes"] - computed["boxes"])[0, seen]
    assert seen.any() and np.abs(gap[:, :2]).max() <= 1.01 / 64
    assert (gap[:, 2:] >= -1e-6).all() and np.abs(gap[:, 2:]).max() <= 2.01 / 64


@pytest.mark.parametrize("flipped", [False, True])
def test_boxes_and_cameras_of_a_crop_see_what_its_pixels_see(flipped):
    view, size = View(3, 5, 20, 24, flipped), (40, 48)
    box = np.array([[10 / 40, 12 / 48, 15 / 40, 20 / 48]], np.float32)
    labels = np.zeros((1, 40, 48), np.uint8)
    labels[0, 10:15, 12:20] = 1
    rows, columns = np.nonzero(view_labels(labels, view, (20, 24))[0])
    expected = [
        rows.min() / 20,
        columns.min() / 24,
        (rows.max() + 1) / 20,
        (columns.max() + 1) / 24,
    ]
    np.testing.assert_allclose(view_boxes(box, view, size)[0], expected, atol=1e-6)
    camera = pinhole.look_at(np.array([[4.0, -5.0, 3.0]]), np.zeros((1, 3)), 0.4)
    rays = pinhole.ray_directions(camera, *size)[0]
    cut = rays[3:23, 5:29][:, :: -1 if flipped else 1]
    ours = pinhole.ray_directions(view_cameras(camera, view, size), 20, 24)[0]
    np.testing.assert_allclose(ours, cut, atol=1e-6)


def test_boxes_outside_of_a_crop_and_absent_ones_are_zero():
    boxes = np.array([[0, 0, 0.2, 0.2], [0, 0, 0, 0], [0.1, 0.1, 0.6, 0.6]], np.float32)
    seen = view_boxes(boxes, View(5, 5, 5, 5), (10, 10))
    np.testing.assert_allclose(seen, [[0] * 4, [0] * 4, [0, 0, 0.2, 0.2]], atol=1e-6)


def test_the_central_square_comes_before_everything_else(folder):
    source = _source(folder, centre_crop=48, image_size=48)
    whole = _source(folder, crop="none")[0]
    np.testing.assert_array_equal(source[0]["video"], whole["video"][:, 8:56, 8:56])
    np.testing.assert_allclose(source[0]["depth"], whole["depth"][:, 8:56, 8:56])
    drawn = _source(folder, centre_crop=48, image_size=48, crop="none", num_frames=24)
    np.testing.assert_array_equal(
        drawn.draw(0, np.random.default_rng(0))["video"][:6], whole["video"][:, 8:56, 8:56]
    )
    with pytest.raises(UserError, match=r"data\.centre_crop is 65; lower it"):
        _source(folder, centre_crop=65)[0]


# ------------------------------------------------------------------------------------- bad input


def test_keys_that_a_folder_lacks_are_refused_in_one_line(tmp_path):
    prepare.prepare("movi_c", str(MOVI), tmp_path / "plain", ("train",))
    data = {"name": "prepared", "folder": str(tmp_path / "plain"), "max_objects": 10}
    for key, what in {
        "flow": "has no flow.*--keep=flow",
        "depth": "has no depth.*--keep=depth",
        "cameras": "has no cameras.*choose data with camera poses",
        "contacts": "prepared folders do not have",
    }.items():
        with pytest.raises(UserError, match=what) as error:
            build_dataset(data, "train", reads=("video", key))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="sprites do not have"):
        build_dataset({"name": "sprites"}, "train", reads=("flow",))
    keep = Options(keep=("depth",), size=32)
    prepare.prepare("movi_c", str(MOVI), tmp_path / "small", ("train",), keep)
    with pytest.raises(UserError, match="depth of 64x64; prepare the folder again without --size"):
        _source(tmp_path / "small", also=("depth",))[0]


def test_a_damaged_flow_is_refused(folder):
    source = PreparedFolder(folder, max_objects=10, also=("flow",))
    example = tf_example_pb2.Example.FromString(source.records[0])
    example.features.feature["backward_flow/value"].bytes_list.value[0] = b"no zlib"
    clip = parse_clip(example.SerializeToString(), "the clip")
    with pytest.raises(UserError, match="the flow of the clip .* cannot be decoded"):
        decode_flow(clip, range(2))
