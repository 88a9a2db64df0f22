"""MOVi A to E from TFDS builds (TFRecord), in a folder or the bucket gs://kubric-public/tfds."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data import tfrecords
from data.builds import TfdsBuild, find_build
from data.examples import Values
from data.family import BadSample, Job, Plan, refuse_twice
from data.features import categories, clip_features, column, table
from data.pictures import frame, label_png, labels
from smoothsa_jax.errors import UserError
from smoothsa_jax.text import text_of

# Other fields of a record, for `--keep`; for pictures, the number of values per pixel.
PICTURES = {"depth": 1, "normal": 3, "object_coordinates": 3}
FLOWS = ("forward_flow", "backward_flow")
COLLISIONS = {
    "frame": (),
    "force": (),
    "position": (3,),
    "image_position": (2,),
    "contact_normal": (3,),
    "instances": (2,),
}
RANGES = {
    "depth": "depth_range",
    "forward_flow": "forward_flow_range",
    "backward_flow": "backward_flow_range",
}
KEPT = (*PICTURES, *FLOWS, "events")
FLOW = "flow"  # of samples: the backward one
CATEGORY_KEYS = ("category", "shape_label")  # MOVi C to E; A and B


class Movi(TfdsBuild):
    names = ("movi_a", "movi_b", "movi_c", "movi_d", "movi_e")
    summary = (
        "a folder of TFDS TFRecord files, at any resolution; or gs://kubric-public/tfds/movi_..."
    )

    def plan(self, splits: tuple[str, ...]) -> Plan:
        tfrecords.check_address(self.source)
        if unknown := set(self.options.keep) - {*KEPT, FLOW}:
            raise UserError(
                f"--keep={','.join(sorted(unknown))} is not an annotation of MOVi; expected some "
                f"of {', '.join((*KEPT, FLOW))}"
            )
        folder, info = find_build(self.source, self.name)
        jobs = self.shards(folder, info, {split: split for split in splits})
        key, names = _category_names(folder)
        return Plan(
            jobs=jobs,
            sources=(),
            features=self._features(names),
            metadata={"kind": "clips", "categories": names, "category_key": key},
        )

    def _features(self, names: list[str]) -> dict[str, Any]:
        more: dict[str, Any] = {
            "categories": categories(names),
            "bboxes": table(np.float32, 4),
            "visibility": table(np.int32),
        }
        keep = self._keep
        for name in PICTURES.keys() & set(keep):
            more[name] = tfds.features.Sequence(
                tfds.features.Image(
                    shape=(None, None, PICTURES[name]), dtype=np.uint16, encoding_format="png"
                )
            )
        for name in set(FLOWS) & set(keep):
            shape = (None, None, None, 2)
            more[name] = tfds.features.Tensor(shape=shape, dtype=np.uint16, encoding="zlib")
        if "events" in keep:
            more["collisions"] = {
                name: column(np.int32 if name in ("frame", "instances") else np.float32, *widths)
                for name, widths in COLLISIONS.items()
            }
        features = clip_features(**more)
        for name, key in RANGES.items():
            if name in keep:
                features["metadata"][key] = tfds.features.Tensor(shape=(2,), dtype=np.float32)
        return features

    @property
    def _keep(self) -> tuple[str, ...]:
        return tuple("backward_flow" if name == FLOW else name for name in self.options.keep)

    def items(self, job: Job) -> Iterator[tuple[str, bytes, int]]:
        num_categories = len(_category_names(job.payload[0])[1])
        for where, record in self.records(job):
            yield where, record, num_categories

    def example(self, item: tuple[str, bytes, int]) -> dict[str, Any]:
        where, record, num_categories = item
        try:
            return self._example(where, record, num_categories)
        except BadSample as error:
            raise error if where in str(error) else BadSample(f"{where}: {error}") from error
        except (KeyError, IndexError, ValueError, StopIteration) as error:
            raise BadSample(
                f"{where} does not match MOVi's format ({type(error).__name__}: {error}); download "
                "it again"
            ) from error

    def _example(self, where: str, record: bytes, num_categories: int) -> dict[str, Any]:
        values = Values(record, where, "MOVi")
        num_frames = int(values.numbers("metadata/num_frames")[0])
        num_objects = int(values.numbers("metadata/num_instances")[0])
        frames = values.encoded("video")
        segmentations = values.encoded("segmentations")
        if not len(frames) == len(segmentations) == num_frames:
            raise BadSample(
                f"{where} has {len(frames)} frames and {len(segmentations)} label maps, its "
                f"metadata says {num_frames}"
            )
        video, sizes, maps = [], set(), []
        for t, (picture, segmentation) in enumerate(zip(frames, segmentations, strict=True)):
            data, height, width = frame(picture, f"{where}, frame {t}", self.options)
            video.append(data)
            sizes.add((height, width))
            maps.append(self._labels(segmentation, f"{where}, labels of frame {t}", num_objects))
        if len(sizes) != 1:
            raise BadSample(f"{where} has frames of several sizes: {sorted(sizes)}")
        height, width = sizes.pop()
        key = next(key for key in CATEGORY_KEYS if f"instances/{key}" in values)
        objects = [int(k) for k in values.numbers(f"instances/{key}")]
        if objects and not 0 <= min(objects) <= max(objects) < num_categories:
            raise BadSample(
                f"{where} has the categories {objects}, expected numbers below "
                f"{num_categories}, the count of names in instances-{key}.labels.txt; "
                "download both again"
            )
        example = {
            "video": video,
            "segmentations": maps,
            "metadata": {
                "name": values.encoded("metadata/video_name")[0].decode(),
                "num_frames": num_frames,
                "height": height,
                "width": width,
            },
            "categories": objects,
            "bboxes": _boxes(values, num_objects, num_frames),
            "visibility": values.numbers("instances/visibility")
            .astype(np.int32)
            .reshape(num_objects, num_frames),
        }
        return self._kept(example, values, num_frames)

    def _labels(self, data: bytes, where: str, num_objects: int) -> bytes:
        segmentation = labels(data, where, self.options)
        if segmentation.max(initial=0) > num_objects:
            raise BadSample(
                f"{where}: label {segmentation.max()}, but the record has {num_objects} objects"
            )
        is_kept = self.options.size is None and not self.options.uncompressed
        if is_kept and segmentation.dtype == np.uint8:
            return data
        return label_png(segmentation.astype(np.uint8), self.options)

    def _kept(self, example: dict[str, Any], values: Values, num_frames: int) -> dict[str, Any]:
        keep = self._keep
        for name in PICTURES.keys() & set(keep):
            example[name] = values.encoded(name)
        for name in set(FLOWS) & set(keep):
            height, width = (
                int(values.numbers(f"metadata/{side}")[0]) for side in ("height", "width")
            )
            flow = values.numbers(name).astype(np.uint16)
            example[name] = flow.reshape(num_frames, height, width, 2)
        if "events" in keep:
            example["collisions"] = {
                name: values.numbers(f"events/collisions/{name}")
                .astype(np.int32 if name in ("frame", "instances") else np.float32)
                .reshape(-1, *widths)
                for name, widths in COLLISIONS.items()
            }
        for name, key in RANGES.items():
            if name in keep:
                example["metadata"][key] = values.numbers(f"metadata/{key}").astype(np.float32)
        return example


def _boxes(values: Values, num_objects: int, num_frames: int) -> np.ndarray:
    """Boxes (objects, frames, 4) as ymin, xmin, ymax, xmax in 0..1; 0 where no box is stored."""
    lengths = values.numbers("instances/bbox_frames/ragged_row_lengths_0").astype(int)
    frames = values.numbers("instances/bbox_frames/ragged_flat_values").astype(int)
    flat = values.numbers("instances/bboxes/ragged_flat_values").astype(np.float32).reshape(-1, 4)
    boxes = np.zeros((num_objects, num_frames, 4), np.float32)
    boxes[np.repeat(np.arange(num_objects), lengths), frames] = flat
    return boxes


def _category_names(folder: str) -> tuple[str, list[str]]:
    for key in CATEGORY_KEYS:
        file = f"instances-{key}.labels.txt"
        try:
            with tfrecords.staged(folder, file) as path:
                data = path.read_bytes()
        except (OSError, UserError):
            continue
        where = f"{folder}/{file}"
        names = [line.strip() for line in text_of(data, where).splitlines() if line.strip()]
        refuse_twice(names, where, "category names", "download it again")
        if not names:
            raise UserError(f"{where} is empty, expected category names; download it again")
        return key, names
    wanted = " or ".join(f"instances-{key}.labels.txt" for key in CATEGORY_KEYS)
    raise UserError(f"{folder} has no {wanted}, the names of the categories; download it too")
