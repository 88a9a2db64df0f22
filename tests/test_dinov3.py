"""DINOv3: tokens and files against transformers' model (with PyTorch), RoPE, and faults."""

import functools
import http.server
import json
import threading
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from ml_collections import ConfigDict
from run_config import get_config
from safetensors.numpy import load_file, save_file
from vit_files import apply, make_vit, random_arrays

from smoothsa_jax.checkpoints import sources
from smoothsa_jax.config.values import canonical
from smoothsa_jax.errors import UserError
from smoothsa_jax.interop import hub
from smoothsa_jax.interop.dinov3 import DINOV3, DINOV3_GATED
from smoothsa_jax.interop.encoder_weights import load_encoder
from smoothsa_jax.models.encoders.dinov3 import DINOv3, axial_rotation, rotate
from smoothsa_jax.training.step import build_training

FULL = {"width": 384, "depth": 12, "num_heads": 6, "patch": 16, "registers": 4, "swiglu": False}
SMALL = {"width": 24, "depth": 2, "num_heads": 3, "patch": 16, "registers": 4, "swiglu": False}
GATED = {**SMALL, "swiglu": True}


def load(weights, settings: dict, shapes: dict, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    return load_encoder(str(weights), {"name": "dinov3", **settings}, shapes, grid)[0]


def case(settings: dict, size: tuple[int, int] = (48, 80)):
    """Shapes, grid and random arrays of a small model."""
    _, shapes, grid = make_vit(settings, size, kind=DINOv3)
    return shapes, grid, random_arrays(shapes)


def folder_of(folder: Path, arrays: dict[str, np.ndarray], settings: dict, **changes) -> Path:
    """config.json with the keys of the real ones, and the weights in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    width, gated = settings["width"], settings["swiglu"]
    config = {
        "model_type": "dinov3_vit",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": settings["depth"],
        "num_attention_heads": settings["num_heads"],
        "patch_size": settings["patch"],
        "num_register_tokens": settings["registers"],
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "layer_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "query_bias": True,
        "key_bias": False,
        "value_bias": True,
        "proj_bias": True,
        "mlp_bias": True,
        "image_size": 224,
        "num_channels": 3,
        "pos_embed_rescale": 2.0,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    apart = {".qkv.": (".query.", ".key.", ".value.")}
    if gated:
        apart[".mlp.hidden."] = (".mlp.gate.", ".mlp.value.")
    arrays = dict(arrays)
    for packed, parts in apart.items():
        for name in [name for name in arrays if packed in name]:
            for part, array in zip(parts, np.split(arrays.pop(name), len(parts), -1), strict=True):
                arrays[name.replace(packed, part)] = array
    table = (DINOV3_GATED if gated else DINOV3).table
    state_dict = {"embeddings.mask_token": np.ones((1, 1, width), np.float32)}
    state_dict |= {f"norm.{leaf}": np.ones(width, np.float32) for leaf in ("weight", "bias")}
    for name, array in arrays.items():
        key, transform = table.theirs(name)
        state_dict[key] = np.ascontiguousarray(transform.to_theirs(array))
    save_file(state_dict, folder / "model.safetensors")
    return folder


# ----------------------------------------------------------------------------- against transformers


def transformers_model(settings: dict, folder: Path):
    """A model of transformers with random values, saved like its repositories."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import transformers

    config = transformers.DINOv3ViTConfig(
        hidden_size=settings["width"],
        intermediate_size=4 * settings["width"],
        num_hidden_layers=settings["depth"],
        num_attention_heads=settings["num_heads"],
        patch_size=settings["patch"],
        num_register_tokens=settings["registers"],
        use_gated_mlp=settings["swiglu"],
        hidden_act="silu" if settings["swiglu"] else "gelu",
    )
    torch.manual_seed(0)
    model = transformers.DINOv3ViTModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Attention has to differ between tokens, or positions would have no effect.
            matrix = parameter.ndim > 1 and "token" not in name
            scale = 1.5 * parameter[0].numel() ** -0.5 if matrix else 0.3
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(offset + scale * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def tokens_of(model, images: np.ndarray, prefix: int) -> np.ndarray:
    """Patch tokens as they leave the last block, in front of the last LayerNorm."""
    import torch

    seen = []
    handle = model.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    handle.remove()
    return seen[0].numpy()[:, prefix:]


CASES = {
    "small": (FULL, (256, 256)),
    "small, not square": (FULL, (224, 144)),
    "gated": (GATED, (80, 80)),
    "gated, not square": (GATED, (48, 112)),
    "one row": (GATED, (16, 80)),
    "two registers": ({**SMALL, "registers": 2}, (112, 48)),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_transformers(name, tmp_path):
    settings, size = CASES[name]
    model = transformers_model(settings, tmp_path / "model")
    images = np.random.default_rng(0).standard_normal((2, *size, 3), dtype=np.float32)
    expected = tokens_of(model, images, prefix=1 + settings["registers"])
    definition, shapes, grid = make_vit(settings, size, kind=DINOv3)
    found = apply(definition, load(tmp_path / "model", settings, shapes, grid), images)
    assert found.shape == expected.shape
    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"{name}: {error:.1e}")
    assert error <= 1e-4


# ------------------------------------------------------------------------------------ without torch


def test_rotation_knows_offsets_alone():
    """The product of query and key depends on their patches' distance, not on their position."""
    grid, prefix, heads, size = (5, 7), 3, 2, 12
    query, key = np.random.default_rng(0).standard_normal((2, heads * size), dtype=np.float32)
    rotation = axial_rotation(grid, prefix, size)
    spread = lambda x: np.broadcast_to(x, (1, prefix + 35, heads * size))  # noqa: E731
    query, key = (np.asarray(rotate(spread(x), rotation, heads))[0] for x in (query, key))
    np.testing.assert_array_equal(query[:prefix], spread(query[0])[0, :prefix])
    products = (query[prefix:] @ key[prefix:].T).reshape(*grid, *grid)
    one_down, one_right = products[0, 0, 1, 0], products[0, 0, 0, 1]
    for y in range(4):
        for x in range(6):
            assert products[y, x, y + 1, x] == pytest.approx(one_down, abs=1e-4)
            assert products[y, x, y, x + 1] == pytest.approx(one_right, abs=1e-4)
    assert len({round(float(p), 2) for p in (one_down, one_right, products[0, 0, 0, 0])}) == 3


def test_pictures_of_256_pixels_stay_so():
    _, shapes, grid = make_vit(SMALL, (256, 256), kind=DINOv3)
    assert grid == (16, 16)
    assert "position" not in shapes and "blocks.0.qkv.bias" not in shapes


@pytest.mark.parametrize("settings", [SMALL, GATED])
def test_a_folder_comes_back(settings, tmp_path):
    shapes, grid, arrays = case(settings)
    found = load(folder_of(tmp_path, arrays, settings), settings, shapes, grid)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_a_run_takes_it(tmp_path):
    config = get_config("image")
    config.data.image_size = 48
    config.model.encoder = ConfigDict({"name": "dinov3", "resize": 1.0, **GATED})
    source = {"into": "encoder", "source": str(tmp_path), "frozen": ("*",)}
    config.weights.encoder = ConfigDict(source)
    config.model.decoder = ConfigDict({"name": "random_ar", "num_layers": 1, "num_heads": 2})
    config = canonical(config)
    arrays = case(GATED, (48, 48))[2]
    folder_of(tmp_path, arrays, GATED)
    training = build_training(config)
    _, frozen, words = sources.begin(config, training, warn=pytest.fail)
    assert words == str(tmp_path)
    assert training.definitions["model"].skeleton().encoder.grid == (3, 3)
    assert frozen.keys() == {f"encoder.{name}" for name in arrays}
    for name, array in arrays.items():
        np.testing.assert_array_equal(frozen[f"encoder.{name}"], array, err_msg=name)


# ------------------------------------------------------------------------------------------- faults


def refusal(weights, settings: dict = SMALL) -> str:
    """The one-line error of loading."""
    shapes, grid, _ = case(settings)
    with pytest.raises(UserError) as caught:
        load(weights, settings, shapes, grid)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_architecture(tmp_path):
    arrays = case(SMALL)[2]
    for changes, expected in (
        ({"hidden_size": 48, "intermediate_size": 192}, "set --config.model.encoder.width=48"),
        ({"key_bias": True}, "has key_bias True; this ViT has"),
        ({"rope_theta": 10.0}, "has rope_theta 10.0; this ViT has"),
        ({"intermediate_size": 64}, "has intermediate_size 64; this ViT has"),
        ({"hidden_act": "silu"}, "has hidden_act 'silu'; this ViT has"),
        ({"model_type": "dinov2"}, "set --config.model.encoder.name=vit"),
        ({"patch_size": [16, 8]}, "has patch [16, 8]; model.encoder has patch 16"),
        ({"hidden_size": "many"}, "config.json cannot be read"),
    ):
        assert expected in refusal(folder_of(tmp_path, arrays, SMALL, **changes))
    folder_of(tmp_path, arrays, SMALL)
    shapes, grid, _ = case(SMALL)
    with pytest.raises(UserError, match=r"set --config\.model\.encoder\.name=dinov3"):
        load_encoder(str(tmp_path), {"name": "vit", **SMALL}, shapes, grid)
    with pytest.raises(UserError, match="a multiple of 4 channels per head"):
        case({**SMALL, "num_heads": 4})
    with pytest.raises(UserError, match="does not divide into patches of 16"):
        case(SMALL, (48, 72))


def test_keys_that_do_not_fit(tmp_path):
    arrays = case(SMALL)[2]
    whole = load_file(folder_of(tmp_path, arrays, SMALL) / "model.safetensors")

    def told(change: dict, without: str = "") -> str:
        state_dict = {key: x for key, x in (whole | change).items() if key != without}
        save_file(state_dict, tmp_path / "model.safetensors")
        return refusal(tmp_path)

    one = np.ones(24, np.float32)
    bias = "layer.0.attention.k_proj.bias"
    assert f"unknown keys {bias}, expected those of DINOv3" in told({bias: one})
    gate = "layer.0.mlp.gate_proj.bias"
    assert f"unknown keys {gate}, expected those of DINOv3" in told({gate: np.ones(96)})
    assert "missing: blocks.1.qkv.kernel; left over: blocks.1.query.kernel" in told(
        {}, without="layer.1.attention.k_proj.weight"
    )
    assert "missing: blocks.1.value_bias" in told({}, without="layer.1.attention.v_proj.bias")
    assert "left over: blocks.2.norm_mlp.scale" in told({"layer.2.norm2.weight": one})
    assert "(found float32[5], expected float32[24])" in told({"layer.0.norm1.bias": one[:5]})
    assert "give its path" in refusal(tmp_path / "model.safetensors")


class _Gated(http.server.BaseHTTPRequestHandler):
    """Answer as the Hub does if a license has not been accepted."""

    def do_HEAD(self):
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args):
        pass


def test_a_license_that_is_not_accepted(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Gated)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    download = functools.partial(
        huggingface_hub.hf_hub_download, endpoint=address, cache_dir=tmp_path
    )
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    names = [name for name in hub.REVISIONS if "dinov3" in name]
    try:
        told = {name: refusal(name) for name in names}
    finally:
        server.shutdown()
        server.server_close()
    assert len(told) == 5
    for name, line in told.items():
        assert f"accept its license at https://huggingface.co/{name}," in line
        assert "`hf auth login`" in line
