"""Names of tokenizers in the program of VQ-VFM-OCL, and of TAESD in its own files.

The published autoencoder has two layouts: a folder of diffusers, with encoder and decoder; and the
two files of its own repository, whose decoder counts a layer more (the clamp in front).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.files import expanded
from smoothsa_jax.interop import hub, state_dicts
from smoothsa_jax.interop.authors import below
from smoothsa_jax.interop.table import (
    FILTERS,
    LINEAR,
    NORM,
    ONE_BY_ONE,
    RAW,
    SAME,
    KeyTable,
    Row,
    describe,
    mismatches,
)

TAESD = "madebyollin/taesd"  # on the Hugging Face Hub
TAESD_FILE = "diffusion_pytorch_model.safetensors"  # of diffusers, in it
FILTER = {"weight": ("kernel", FILTERS), "bias": ("bias", SAME)}
POINTWISE = {"weight": ("kernel", ONE_BY_ONE), "bias": ("bias", SAME)}
# Of TAESD's encoder or decoder, below their `layers` and ours.
LAYERS: list[Row] = [
    ("{}", "{}", FILTER),
    *[("{}.conv." + str(2 * i), "{}.convs." + str(i), FILTER) for i in range(3)],
]


def _shifted(theirs: str, ours: str, offset: int, count: int = 20) -> list[Row]:
    """The same, where their layer i is our layer i + offset."""
    rows: list[Row] = []
    for number in range(max(0, -offset), count):
        layer = [(t.format(number), o.format(number + offset), x) for t, o, x in LAYERS]
        rows += below(theirs, ours, layer)
    return rows


# Below the tokenizer, of `vq_pixels`.
VQ_PIXELS: list[Row] = [
    *below("encode.1", "encoder.layers", LAYERS),
    ("encode.2", "norm", NORM),
    ("encode.3", "project", POINTWISE),
    ("decode.0", "expand", POINTWISE),
    ("decode.1", "expand_norm", NORM),
    *below("decode.2", "decoder.layers", LAYERS),
    ("codebook.templat.weight", "codebook", RAW),
]
# Of `vq_features`.
VQ_FEATURES: list[Row] = [
    ("encode.0.0", "encoder.convs.0", FILTER),
    ("encode.0.1", "encoder.norms.0", NORM),
    ("encode.0.3", "encoder.convs.1", FILTER),
    ("encode.0.4", "encoder.norms.1", NORM),
    ("encode.0.6", "encoder.convs.2", FILTER),
    ("encode.1", "encoder.norms.2", NORM),
    ("encode.2", "encoder.project", POINTWISE),
    ("decode.0", "expand.first", POINTWISE),
    ("decode.1.0", "expand.second", POINTWISE),
    ("decode.1.1", "expand.norm_second", NORM),
    ("decode.1.3.0", "expand.third", POINTWISE),
    ("decode.1.4", "expand.norm_third", NORM),
    ("decode.1.6", "expand.fourth", POINTWISE),
    ("decode.2", "expand.norm_fourth", NORM),
    *_shifted("decode.5", "decoder.layers", 4),  # without the first enlargement
    *below("decode.4", "decoder.layers", LAYERS),
    ("quant.codebook.weight", "basis", RAW),
    ("quant.project", "codebook", LINEAR),
]


def load_taesd(
    source: str, part: str, expected: Mapping[str, Any], path: str
) -> tuple[dict[str, np.ndarray], str]:
    """Load the layers of TAESD's encoder or decoder that a tokenizer has.

    Args:
        source: a repository of the Hugging Face Hub, a folder of diffusers, or a state dict.
        part: "encoder" or "decoder".
        expected: the arrays of that part or their shapes, by our names below it.
        path: the entry of `weights`, for messages.

    Returns:
        The arrays, and where they come from in words.

    Raises:
        UserError: the weights are not found, or do not fit.
    """
    local = expanded(source)
    if local.is_dir():
        what = str(local / TAESD_FILE)
        if not (local / TAESD_FILE).is_file():
            raise UserError(
                f"{path}.source: {local} has no {TAESD_FILE}; give the folder of a copy of {TAESD}"
            )
        found = state_dicts.read(local / TAESD_FILE)
    elif local.is_file():
        what, found = str(local), state_dicts.read(local)
    elif source.startswith(("/", ".", "~")) or state_dicts.is_state_dict(source):
        raise UserError(
            f"{path}.source: {local} is not there; give TAESD's weights: {TAESD}, the folder of a "
            "copy of it, or its file taesd_encoder or taesd_decoder"
        )
    else:
        file = hub.fetch_file(source, TAESD_FILE, path)
        what = f"{source.partition('@')[0]}@{file.parent.name}"
        found = state_dicts.read(file)
    arrays = _layers(found, part)
    arrays = {name: x for name, x in arrays.items() if name in expected}
    wrong = mismatches(describe(arrays), describe(expected))
    if wrong:
        raise UserError(
            f"{path}: {what} does not fit the TAESD {part} of model.tokenizer "
            f"({'; '.join(wrong)}); set its width to that of the file, 64 in {TAESD}, or choose "
            "other weights"
        )
    return arrays, what


def _layers(found: Mapping[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    """Return the layers of a part by our names; the first two of a decoder are left out."""
    front = f"{part}.layers."
    inside = {k.removeprefix(front): x for k, x in found.items() if k.startswith(front)}
    whole = bool(inside)
    first = 0 if part == "encoder" else -2 if whole else -3
    table = KeyTable([(t.lstrip("."), o, x) for t, o, x in _shifted("", "layers", first)])
    named = {}
    for key, array in (inside if whole else found).items():
        ours = table.ours(key)
        if ours is not None and array.ndim in (1, 4):
            named[ours[0]] = np.asarray(ours[1].to_ours(array), np.float32)
    return named
