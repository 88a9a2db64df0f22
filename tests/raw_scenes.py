"""Miniatures of CLEVR with masks, MultiShapeNet-hard and CLEVR3D in their public formats."""

import gzip
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from raw_clips import encoded, picture
from tensorflow_datasets.proto import tf_example_pb2

from data import tfrecords
from smoothsa_jax.inputs import cameras as pinhole

# ------------------------------------------------------------------------------------------- CLEVR


def clevr_scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture (240,320,3), and the object of each pixel (240,320)."""
    labels = np.zeros((240, 320), np.uint8)
    for k in range(1, 4):
        top, left = 20 + 40 * k + seed, 50 + 45 * k + 3 * seed
        labels[top : top + 37, left : left + 31] = k
    return picture(seed, 240, 320), labels


def clevr_source(folder: Path, count: int) -> Path:
    """The gzipped TFRecord file; every byte of image and masks is a value of its own."""
    folder.mkdir(parents=True)
    with gzip.open(folder / "clevr_with_masks_train.tfrecords", "wb", compresslevel=1) as file:
        for seed in range(count):
            pixels, labels = clevr_scene(seed)
            planes = 255 * (labels == np.arange(11)[:, None, None]).astype(np.uint8)
            example = tf_example_pb2.Example()
            features = example.features.feature
            for key, values in (("image", pixels), ("mask", planes)):
                features[key].bytes_list.value.extend(bytes([x]) for x in values.ravel().tolist())
            features["visibility"].float_list.value.extend([1.0] * 4 + [0.0] * 7)
            features["x"].float_list.value.extend([0.5] * 11)
            file.write(framed(example.SerializeToString()))
    return folder


def framed(record: bytes) -> bytes:
    """A record as a TFRecord file holds it."""
    length = struct.pack("<Q", len(record))
    crcs = [struct.pack("<I", tfrecords.masked_crc(data)) for data in (length, record)]
    return length + crcs[0] + record + crcs[1]


# ----------------------------------------------------------------------------- MultiShapeNet-hard

MSN_SIZE = (24, 32)
VIEWS = 10


def msn_cameras(seed: int) -> np.ndarray:
    """Cameras (10, 4, 3) that look at the middle of the scene."""
    rng = np.random.default_rng(seed)
    position = np.array([4.0, 0, 2]) + rng.normal(size=(VIEWS, 3))
    camera = pinhole.look_at(position, np.zeros((VIEWS, 3)), 0.43)
    camera[:, 3] *= MSN_SIZE[0] / MSN_SIZE[1]  # square pixels
    return camera


def msn_instances(seed: int, view: int) -> np.ndarray:
    """Instances (24, 32): 0 is an error of rendering, 1 the background, 36 too large."""
    instances = np.ones(MSN_SIZE, np.uint8)
    instances[2:12, 3 + view : 12 + view] = 2 + seed
    instances[14:20, 5:20] = 34
    instances[0, 0], instances[23, 31] = 0, 36
    return instances


def msn_source(folder: Path, counts: dict[str, int], rays: bool, bend: float = 0.0) -> Path:
    """A TFDS build, with cameras as matrices or as rays of every pixel, perhaps not pinhole's."""
    folder.mkdir(parents=True)
    splits = []
    for split, count in counts.items():
        records = [_msn_record(10 * len(split) + k, k, rays, bend) for k in range(count)]
        file = folder / f"kubric_frames-{split}.tfrecord-00000-of-00001"
        file.write_bytes(b"".join(map(framed, records)))
        splits.append({"name": split, "shardLengths": [str(count)], "numBytes": "1"})
    info = {"name": "kubric_frames", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def _msn_record(number: int, seed: int, rays: bool, bend: float) -> bytes:
    example = tf_example_pb2.Example()
    features = example.features.feature
    features["scene_name"].bytes_list.value.append(f"scene_{number}".encode())
    for view, camera in enumerate(msn_cameras(seed)):
        name = f"cameras/camera_{view}"
        colours = encoded(picture(seed + view, *MSN_SIZE), "PNG")
        features[f"{name}/color_image"].bytes_list.value.append(colours)
        instances = encoded(msn_instances(seed, view), "PNG")
        features[f"{name}/instance_image"].bytes_list.value.append(instances)
        if rays:
            directions = pinhole.ray_directions(camera, *MSN_SIZE)
            directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
            directions[0, 0] += bend
            origins = np.broadcast_to(camera[0], directions.shape)
            for key, values in (("ray_origins", origins), ("ray_directions", directions)):
                data = zlib.compress(values.astype(np.float32).tobytes())
                features[f"{name}/{key}"].bytes_list.value.append(data)
        else:
            for key, values in _matrices(camera).items():
                features[f"{name}/{key}"].float_list.value.extend(np.ravel(values).tolist())
    for key, values in {"R": _TURN, "t": _SHIFT}.items():
        features[f"pose/{key}"].float_list.value.extend(np.ravel(values).tolist())
    return example.SerializeToString()


# Of a frame in its scene: X_scene = R X_frame + t.
_TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
_SHIFT = np.array([0.5, -1.0, 0.25])


def _matrices(camera: np.ndarray) -> dict[str, np.ndarray]:
    """OpenCV's matrices of a camera, in the coordinates of the frame."""
    (height, width), (position, centre, right, down) = MSN_SIZE, camera
    lengths = [np.linalg.norm(x) for x in (right, down, centre)]
    axes = np.stack([right / lengths[0], down / lengths[1], centre / lengths[2]])
    focal = [lengths[2] / lengths[0] * width / 2, lengths[2] / lengths[1] * height / 2]
    matrix = [[focal[0], 0, width / 2], [0, focal[1], height / 2], [0, 0, 1]]
    turn, shift = axes @ _TURN, axes @ (_SHIFT - position)
    bent = {f"intrinsics/distortion/{key}": np.zeros(3) for key in ("radial", "tangential")}
    return {"intrinsics/K": matrix, "extrinsics/R": turn, "extrinsics/t": shift, **bent}


# ------------------------------------------------------------------------------------------ CLEVR3D


def clevr3d_source(folder: Path, scenes: dict[int, int], num_scenes: int) -> Path:
    """A folder with the scenes that are named, each with so many objects; others have too many."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    shapes = np.ones((num_scenes, 10), np.int64)
    positions = rng.normal(size=(num_scenes, 3, 3)).astype(np.float32) + [7, 0, 5]
    for scene, count in scenes.items():
        shapes[scene] = np.where(np.arange(10) < count, 1 + np.arange(10) % 3, 0)
        for view in range(3):
            name = f"{scene}_{view}.png"
            data = encoded(picture(scene % 50 + view, 240, 320), "PNG")
            (folder / "images" / f"img_{name}").write_bytes(data)
            (folder / "masks" / f"masks_{name}").write_bytes(
                encoded(clevr3d_labels(count, view), "PNG")
            )
    buffer = io.BytesIO()
    np.savez(buffer, camera_pos=positions, shape=shapes)
    (folder / "metadata.npz").write_bytes(buffer.getvalue())
    return folder


def clevr3d_labels(count: int, view: int) -> np.ndarray:
    labels = np.zeros((240, 320), np.uint8)
    for k in range(1, count + 1):
        labels[20 * k : 20 * k + 15, 30 * k + view : 30 * k + 22] = k
    return labels
