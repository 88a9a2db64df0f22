"""CLEVR with masks, MultiShapeNet-hard and CLEVR3D: from their public formats to samples."""

import json
from pathlib import Path

import numpy as np
import pytest
from raw_clips import picture
from raw_scenes import (
    MSN_SIZE,
    clevr3d_labels,
    clevr3d_source,
    clevr_scene,
    clevr_source,
    msn_cameras,
    msn_instances,
    msn_source,
)

from data import check, prepare, show
from data.family import Options
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import cameras as pinhole
from smoothsa_jax.inputs.prepared import PreparedFolder
from smoothsa_jax.inputs.resize import resize_labels, resize_values


def _prepared(name: str, source: Path, out: Path, **options) -> Path:
    extra = tuple(sorted(options.items()))
    prepare.prepare(name, str(source), out, options=Options(extra=extra))
    splits = json.loads((out / "MANIFEST.json").read_text())["splits"].values()
    for shard in (shard for found in splits for shard in found["shards"]):
        assert check._check_shard(out, shard) == []  # without a process of its own
    return out


def _refused(name: str, source: Path, out: Path, **options) -> str:
    with pytest.raises(UserError) as error:
        prepare.prepare(name, str(source), out, options=Options(**options))
    assert "\n" not in str(error.value)
    return str(error.value)


def _views(folder: Path, split: str, **options) -> PreparedFolder:
    settings = {"num_frames": None, "boxes": False, "num_slots": 40, "views": True}
    return PreparedFolder(folder, split, also=("cameras",), **{**settings, **options})


# ------------------------------------------------------------------------------------------- CLEVR


@pytest.fixture(scope="module")
def clevr(tmp_path_factory) -> Path:
    return clevr_source(tmp_path_factory.mktemp("raw") / "clevr" / "clevr_with_masks", 3).parent


def test_clevr_is_cropped_resized_and_split_as_in_the_papers(clevr, tmp_path):
    out = _prepared("clevr", clevr, tmp_path / "out", parts="1,1,1")
    options = {"image_size": 128, "boxes": False, "num_slots": 11}
    splits = ("train", "validation", "test")
    for index, split in enumerate(splits):
        source = PreparedFolder(out, split, interpolation="plain_bilinear", **options)
        assert len(source) == 1
        pixels, labels = clevr_scene(index)
        crop = np.s_[29:221, 64:256]
        expected = np.rint(resize_values(pixels[crop].astype(np.float32)[None], (128, 128)))
        sample = source[0]
        np.testing.assert_array_equal(sample["video"], expected)
        seen = resize_labels(labels[crop][None], (128, 128))
        present = np.unique(seen)
        np.testing.assert_array_equal(sample["segmentations"], np.searchsorted(present, seen))
        assert sample["name"] == f"clevr_{index:06d}"


def test_clevr_in_the_split_of_isa(clevr, tmp_path):
    options = Options(limit=2, extra=(("parts", "isa"),))
    prepare.prepare("clevr", str(clevr), tmp_path, ("validation",), options)
    source = PreparedFolder(tmp_path, "validation", boxes=False, num_slots=11)
    assert [str(source[k]["name"]) for k in range(2)] == [f"clevr_{k:06d}" for k in range(2)]


def test_clevr_refuses_what_it_cannot_read(clevr, tmp_path):
    assert "holds 3 scenes, but --parts asks for 6" in _refused(
        "clevr", clevr, tmp_path / "a", extra=(("parts", "6"),)
    )
    assert "--parts is a,b; expected" in _refused(
        "clevr", clevr, tmp_path / "b", extra=(("parts", "a,b"),)
    )
    (tmp_path / "empty").mkdir()
    assert "has no clevr_with_masks_train.tfrecords" in _refused(
        "clevr", tmp_path / "empty", tmp_path / "c"
    )
    file = clevr / "clevr_with_masks" / "clevr_with_masks_train.tfrecords"
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / file.name).write_bytes(file.read_bytes()[:-4000])
    assert "is damaged at byte" in _refused(
        "clevr", tmp_path / "cut", tmp_path / "d", extra=(("parts", "3"),)
    )


# ------------------------------------------------------------------------------ MultiShapeNet-hard


@pytest.mark.parametrize("rays", [False, True])
def test_msn_hard_has_views_cameras_and_labels(rays, tmp_path):
    source = msn_source(tmp_path / "raw" / "2.8.0", {"train": 2, "test": 1}, rays)
    out = _prepared("msn_hard", source.parent, tmp_path / "out")
    for index in range(2):
        sample = _views(out, "train", image_size=MSN_SIZE)[index]
        frames = np.stack([picture(index + view, *MSN_SIZE) for view in range(10)])
        np.testing.assert_array_equal(sample["video"], frames)
        instances = np.stack([msn_instances(index, view) for view in range(10)])
        stored = np.clip(instances.astype(int), 1, 34) - 1
        present = np.unique(stored)
        np.testing.assert_array_equal(sample["segmentations"], np.searchsorted(present, stored))
        camera = msn_cameras(index)
        np.testing.assert_allclose(sample["cameras"][:, 0], camera[:, 0], atol=1e-4)
        directions = []
        for cameras in (camera, sample["cameras"].astype(np.float64)):
            found = pinhole.ray_directions(cameras, *MSN_SIZE)
            directions.append(found / np.linalg.norm(found, axis=-1, keepdims=True))
        np.testing.assert_allclose(*directions, atol=1e-5)
    assert len(_views(out, "test")) == 1
    rows = show.look(out, "train", 0, 48, 10, seed=0)[1]  # whole views, not mirrored
    assert all(row[1].shape == (10, 36, 48, 3) for row in rows[2:])
    np.testing.assert_array_equal(rows[2][1], rows[4][1])


def test_msn_hard_refuses_rays_of_other_lenses(tmp_path):
    source = msn_source(tmp_path / "raw", {"train": 1}, rays=True, bend=0.01)
    text = _refused("msn_hard", source, tmp_path / "out")
    assert "view 0 has rays that differ by up to" in text and "a pinhole camera" in text
    (tmp_path / "empty").mkdir()
    assert "holds no TFDS build of kubric_frames" in _refused(
        "msn_hard", tmp_path / "empty", tmp_path / "b"
    )
    assert "--keep=depth is not an annotation" in _refused(
        "msn_hard", source, tmp_path / "c", keep=("depth",)
    )


# ----------------------------------------------------------------------------------------- CLEVR3D


def test_clevr3d_has_views_and_cameras_of_scenes_with_few_objects(tmp_path):
    scenes = {0: 3, 1: 7, 2: 6, 70_000: 2, 85_000: 5}
    source = clevr3d_source(tmp_path / "raw", scenes, 85_001)
    given = np.load(source / "metadata.npz")
    out = _prepared("clevr3d", source, tmp_path / "out")
    train = _views(out, "train", image_size=(240, 320))
    assert [str(train[k]["name"]) for k in range(len(train))] == [
        "clevr3d_000000",
        "clevr3d_000002",
    ]
    assert [len(_views(out, split)) for split in ("validation", "test")] == [1, 1]
    sample = train[1]
    assert sample["video"].shape == (3, 240, 320, 3)
    labels = np.stack([clevr3d_labels(6, view) for view in range(3)])
    np.testing.assert_array_equal(sample["segmentations"], labels)
    rays = _rays_of_the_contract(given["camera_pos"][2].astype(np.float64), 240, 320)
    ours = pinhole.ray_directions(sample["cameras"].astype(np.float64), 240, 320)
    ours /= np.linalg.norm(ours, axis=-1, keepdims=True)
    np.testing.assert_allclose(ours, rays, atol=1e-5)
    half = pinhole.halved(sample["cameras"].astype(np.float64), 240, 320)
    half = pinhole.ray_directions(half, 120, 160)
    half /= np.linalg.norm(half, axis=-1, keepdims=True)
    np.testing.assert_allclose(half, rays[:, 1::2, 1::2], atol=1e-5)


def _rays_of_the_contract(position: np.ndarray, height: int, width: int) -> np.ndarray:
    """Section 1 of OSRT's contract, pixel by pixel."""
    found = np.zeros((len(position), height, width, 3))
    for view, c in enumerate(position):
        z = -c / np.linalg.norm(c)
        x = np.cross(z, [0, 0, 1])
        x /= np.linalg.norm(x)
        y = np.cross(z, x)
        for i in range(height):
            u = ((2 * np.arange(width) + 1) / width - 1) * 0.016
            v = ((2 * i + 1) / height - 1) * 0.016 * height / width
            ray = z * 0.035 + u[:, None] * x + v * y
            found[view, i] = ray / np.linalg.norm(ray, axis=-1, keepdims=True)
    return found


def test_clevr3d_refuses_what_it_cannot_read(tmp_path):
    source = clevr3d_source(tmp_path / "raw", {0: 3}, 2)
    (source / "images" / "img_0_1.png").unlink()
    assert "has no images/img_0_1.png" in _refused("clevr3d", source, tmp_path / "a")
    (source / "metadata.npz").write_bytes(b"no archive")
    assert "metadata.npz cannot be used" in _refused("clevr3d", source, tmp_path / "b")
    (source / "metadata.npz").unlink()
    assert "has 0 files metadata.npz, expected one" in _refused("clevr3d", source, tmp_path / "c")


# ----------------------------------------------------------------------------------------- cameras


def test_fitted_cameras_have_the_given_rays():
    camera = msn_cameras(3)[0] * np.array([1, 2.5, 2.5, 2.5])[:, None]
    rays = pinhole.ray_directions(camera, 12, 20)
    rays *= np.random.default_rng(0).uniform(0.5, 2, (12, 20, 1))  # of any length
    found = pinhole.fit(np.broadcast_to(camera[0], rays.shape), rays, "x")
    np.testing.assert_allclose(found[1:] * np.linalg.norm(camera[1]), camera[1:], atol=1e-6)
    for bad in (np.where(rays < 9, np.nan, 0), 0 * rays):
        with pytest.raises(UserError, match="rays without a direction"):
            pinhole.fit(np.zeros_like(rays), bad, "x")
    with pytest.raises(UserError, match="differ by up to"):  # several positions
        pinhole.fit(np.random.default_rng(0).normal(size=rays.shape), rays, "x")
