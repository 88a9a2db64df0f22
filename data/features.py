"""The features of prepared samples: TFDS features with MOVi's names.

Stills have `image` and `segmentation`; clips have `video` and `segmentations`. Frames stay encoded
as JPEG or PNG. Labels are PNG: 0 = background, k = object k, NO_SEGMENT = in no segment. Annotation
lists have one row per object, in the order of the labels 1, 2, ....
"""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from smoothsa_jax.inputs import NO_SEGMENT as NO_SEGMENT  # one number for writer and reader


def still_features(**more: Any) -> dict[str, Any]:
    """`image` (H,W,3) and `segmentation` (H,W,1), uint8, `metadata`, and the features `more`."""
    return {"image": _frame(), "segmentation": _labels(), "metadata": _metadata(), **more}


def clip_features(**more: Any) -> dict[str, Any]:
    """`video` (T,H,W,3) and `segmentations` (T,H,W,1), uint8, `metadata`, and `more`."""
    sequence = tfds.features.Sequence
    return {
        "video": sequence(_frame()),
        "segmentations": sequence(_labels()),
        "metadata": {**_metadata(), "num_frames": np.int32},
        **more,
    }


def table(dtype: Any, *widths: int) -> Any:
    """Numbers for each object in each frame: (objects, frames, *widths)."""
    return tfds.features.Tensor(shape=(None, None, *widths), dtype=dtype, encoding="bytes")


def column(dtype: Any, *widths: int) -> Any:
    """Numbers for each object: (objects, *widths)."""
    return tfds.features.Tensor(shape=(None, *widths), dtype=dtype)


def view_cameras() -> Any:
    """The camera of each frame (T,4,3), see smoothsa_jax/inputs/cameras.py."""
    return tfds.features.Tensor(shape=(None, 4, 3), dtype=np.float32)


def categories(names: list[str]) -> Any:
    """The category of each object, as an index into `names`."""
    return tfds.features.Sequence(tfds.features.ClassLabel(names=names))


def _frame() -> Any:
    return tfds.features.Image(shape=(None, None, 3), dtype=np.uint8)


def _labels() -> Any:
    return tfds.features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png")


def _metadata() -> dict[str, Any]:
    return {"name": tfds.features.Text(), "height": np.int32, "width": np.int32}
