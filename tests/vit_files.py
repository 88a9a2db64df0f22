"""Files of a ViT's weights as Hugging Face and timm write them, made from known arrays."""

import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from smoothsa_jax.interop.vit_layouts import DINO, DINOV2, LAST_NORM, TIMM
from smoothsa_jax.models.encoders.vit import ViT
from smoothsa_jax.models.parameters import split

SMALL = {"width": 24, "depth": 2, "num_heads": 3, "patch": 14}
VARIANTS = {
    "registers": {**SMALL, "registers": 4, "swiglu": False},
    "plain": {**SMALL, "registers": 0, "swiglu": False},
    "registers_giant": {**SMALL, "registers": 4, "swiglu": True},
    "plain_giant": {**SMALL, "registers": 0, "swiglu": True},
    "normed": {
        **SMALL,
        "registers": 0,
        "swiglu": False,
        "class_position": True,
        "final_norm": True,
    },
    "dino": {**SMALL, "registers": 0, "swiglu": False, "layer_scale": False},
    "dino_normed": {
        **SMALL,
        "registers": 0,
        "swiglu": False,
        "layer_scale": False,
        "class_position": True,
        "final_norm": True,
    },
}


def make_vit(settings: dict, image_size: tuple[int, int], resize: float = 1.0, kind=ViT):
    """A ViT's definition, its arrays' shapes and its grid."""
    make = lambda: kind(image_size, **settings, resize=resize, rngs=nnx.Rngs(0))  # noqa: E731
    vit = nnx.eval_shape(make)
    definition, shapes, _ = split(vit)
    return definition, shapes, vit.grid


def random_arrays(shapes: dict, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: (0.1 * rng.standard_normal(x.shape)).astype(np.float32) for name, x in shapes.items()
    }


def apply(definition, arrays: dict, images: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(lambda a, x: definition.merge(a, {})(x)["features"])(arrays, images))


def timm_state_dict(arrays: dict[str, np.ndarray], registers: int) -> dict[str, np.ndarray]:
    """timm keeps the class token's position apart in models without registers alone."""
    arrays = dict(arrays)
    if not registers:
        _split_class_position(arrays)
    found = {name: (TIMM.table.theirs(name), array) for name, array in arrays.items()}
    state_dict = {key: transform.to_theirs(array) for (key, transform), array in found.values()}
    width = arrays["class_token"].shape[-1]
    norm = {f"norm.{leaf}": np.ones(width, np.float32) for leaf in ("weight", "bias")}
    return norm | _contiguous(state_dict)


def hugging_face_state_dict(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = dict(arrays)
    layout = DINOV2 if "blocks.0.scale_mlp" in arrays else DINO
    width = arrays["class_token"].shape[-1]
    arrays = {name: np.ones(width, np.float32) for name in LAST_NORM} | arrays
    _split_class_position(arrays)
    for name in [name for name in arrays if ".qkv." in name]:
        parts = np.split(arrays.pop(name), 3, axis=-1)
        for part, array in zip(("query", "key", "value"), parts, strict=True):
            arrays[name.replace(".qkv.", f".{part}.")] = array
    state_dict = {}
    swiglu = _is_swiglu(arrays)
    for name, array in arrays.items():
        key, transform = layout.table.theirs(name)
        if swiglu:
            key = key.replace("mlp.fc1", "mlp.weights_in").replace("mlp.fc2", "mlp.weights_out")
        state_dict[key] = transform.to_theirs(array)
    ignored = {key: np.ones((1, width), np.float32) for key in sorted(layout.ignored)}
    return _contiguous(state_dict) | ignored


def hugging_face_folder(folder: Path, arrays: dict, settings: dict, shards: int = 1) -> Path:
    """config.json with the keys of the real ones, and the weights."""
    folder.mkdir(parents=True)
    config = {
        "hidden_size": settings["width"],
        "num_hidden_layers": settings["depth"],
        "num_attention_heads": settings["num_heads"],
        "patch_size": settings["patch"],
        "hidden_act": "gelu",
        "qkv_bias": True,
    }
    if settings.get("layer_scale", True):
        kind = "dinov2_with_registers" if settings["registers"] else "dinov2"
        config |= {"model_type": kind, "use_swiglu_ffn": settings["swiglu"], "mlp_ratio": 4}
        config |= {"image_size": 518, "layer_norm_eps": 1e-6}
    else:
        config |= {"model_type": "vit", "intermediate_size": 4 * settings["width"]}
        config |= {"image_size": 224, "layer_norm_eps": 1e-12}
    if settings["registers"]:
        config["num_register_tokens"] = settings["registers"]
    (folder / "config.json").write_text(json.dumps(config))
    state_dict = hugging_face_state_dict(arrays)
    if shards == 1:
        save_file(state_dict, folder / "model.safetensors")
        return folder
    places = {key: f"model-{i % shards + 1}.safetensors" for i, key in enumerate(state_dict)}
    for file in set(places.values()):
        save_file({k: state_dict[k] for k in places if places[k] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def _is_swiglu(arrays: dict) -> bool:
    return arrays["blocks.0.mlp.hidden.kernel"].shape[1] != 4 * arrays["class_token"].shape[-1]


def _split_class_position(arrays: dict) -> None:
    """The class token's position, which files keep apart; some value for it if the ViT does not."""
    position = arrays.pop("class_position", None)
    if position is None:
        position = np.full_like(arrays["class_token"], 0.25)
        arrays["class_token"] = arrays["class_token"] - position
    arrays["position"] = np.concatenate([position, arrays["position"]], axis=1)


def _contiguous(state_dict: dict) -> dict:
    return {key: np.ascontiguousarray(array) for key, array in state_dict.items()}
