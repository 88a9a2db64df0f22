"""Weights of DINO and DINOv2: against transformers (with PyTorch), from files, and faults."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from command import ROOT
from ml_collections import ConfigDict
from run_config import get_config
from safetensors.numpy import load_file, save_file
from tiny import tiny_batch
from vit_files import (
    VARIANTS,
    apply,
    hugging_face_folder,
    make_vit,
    random_arrays,
    timm_state_dict,
)

from smoothsa_jax.checkpoints import sources
from smoothsa_jax.checkpoints.read import FOLDER, read_checkpoint, steps_found
from smoothsa_jax.config.values import canonical
from smoothsa_jax.convert import read_workdir, write_workdir
from smoothsa_jax.errors import UserError
from smoothsa_jax.interop import hub
from smoothsa_jax.interop.encoder_weights import load_encoder
from smoothsa_jax.interop.vit_layouts import resample_positions
from smoothsa_jax.training import evaluating, loop
from smoothsa_jax.training.step import build_training

GOLDEN = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "golden")


def load(weights, settings: dict, shapes: dict, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    arrays, _ = load_encoder(str(weights), {"name": "vit", **settings}, shapes, grid)
    return arrays


def case(variant: str = "registers", side: int = 42):
    """Settings, shapes, grid and random arrays of a small ViT."""
    settings = VARIANTS[variant]
    _, shapes, grid = make_vit(settings, (side, side))
    return settings, shapes, grid, random_arrays(shapes)


def assert_loaded(found: dict, arrays: dict) -> None:
    """All arrays are bit-identical, except a class token that is a sum."""
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        if name == "class_token" and "class_position" not in arrays:
            np.testing.assert_allclose(found[name], array, atol=1e-6)
        else:
            np.testing.assert_array_equal(found[name], array, err_msg=name)


# ----------------------------------------------------------------------------- against transformers


def transformers_model(settings: dict, grid_side: int, folder: Path):
    """A model of transformers with random values, saved like its repositories."""
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")
    import torch
    import transformers

    if settings.get("layer_scale", True):
        more = {"num_register_tokens": settings["registers"]} if settings["registers"] else {}
        kind = "Dinov2WithRegisters" if more else "Dinov2"
        more["use_swiglu_ffn"] = settings["swiglu"]
    else:
        kind, more = "ViT", {"intermediate_size": 4 * settings["width"]}
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=settings["width"],
        num_hidden_layers=settings["depth"],
        num_attention_heads=settings["num_heads"],
        patch_size=settings["patch"],
        image_size=settings["patch"] * grid_side,
        **more,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():  # as made, LayerScale is 1, biases are 0 and registers are 0
        for name, parameter in model.named_parameters():
            scale = 0.02 if parameter.ndim > 1 and "embeddings.p" not in name else 0.3
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(offset + scale * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def tokens_of(model, images: np.ndarray, settings: dict) -> np.ndarray:
    """Patch tokens, in front of the last LayerNorm or behind it."""
    import torch

    seen = []
    see = lambda module, inputs, output: seen.append((inputs[0], output))  # noqa: E731
    handle = model.layernorm.register_forward_hook(see)
    is_dino = not settings.get("layer_scale", True)
    with torch.no_grad():
        images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        model(images, **({"interpolate_pos_encoding": True} if is_dino else {}))
    handle.remove()
    tokens = seen[0][settings.get("final_norm", False)]
    return tokens.numpy()[:, 1 + settings["registers"] :]


FULL = {"width": 384, "depth": 12, "num_heads": 6, "patch": 14, "swiglu": False}
CASES = {
    "small with registers": ({**FULL, "registers": 4}, 37, (224, 224)),
    "small, plain": ({**FULL, "registers": 0}, 37, (224, 224)),
    "small, DINO": (
        {**FULL, "patch": 16, "registers": 0, "layer_scale": False, "class_position": True},
        14,
        (224, 224),
    ),
    **{name: (settings, 5, (42, 98)) for name, settings in VARIANTS.items()},
    "same grid": (VARIANTS["plain"], 5, (70, 70)),
    "odd, larger": (VARIANTS["registers"], 3, (126, 70)),
    "odd, larger, plain": (VARIANTS["plain"], 3, (126, 70)),
    "odd, larger, DINO": (VARIANTS["dino_normed"], 3, (126, 70)),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_transformers(name, tmp_path):
    settings, side, image_size = CASES[name]
    model = transformers_model(settings, side, tmp_path / "model")
    images = np.random.default_rng(0).standard_normal((2, *image_size, 3), dtype=np.float32)
    expected = tokens_of(model, images, settings)
    definition, shapes, grid = make_vit(settings, image_size)
    found = apply(definition, load(tmp_path / "model", settings, shapes, grid), images)
    assert found.shape == expected.shape
    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"{name}: {error:.1e}")
    assert error <= 1e-4


# ----------------------------------------------------------------------------- files, without torch


def test_tokens_are_those_of_timm(tmp_path):
    """The recorded ViT in timm's layout, through a file and the loader."""
    with np.load(GOLDEN / "backbone_timm.npz") as file:
        arrays = dict(file)
    theirs = {k.removeprefix("param/1."): x for k, x in arrays.items() if k.startswith("param/1.")}
    save_file(theirs, tmp_path / "vit.safetensors")
    images = np.moveaxis(arrays["inp/image"], -3, -1)
    settings = VARIANTS["registers"]
    definition, shapes, grid = make_vit(settings, images.shape[1:3], resize=0.875)
    found = apply(definition, load(tmp_path / "vit.safetensors", settings, shapes, grid), images)
    expected = np.moveaxis(arrays["out/feature"], -3, -1).reshape(found.shape)
    assert np.abs(found - expected).max() <= 3e-5 * np.abs(expected).max()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_of_hugging_face_comes_back(variant, shards, tmp_path):
    settings, shapes, grid, arrays = case(variant)
    folder = hugging_face_folder(tmp_path / "model", arrays, settings, shards)
    assert_loaded(load(folder, settings, shapes, grid), arrays)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_of_timm_comes_back(variant, tmp_path):
    settings, shapes, grid, arrays = case(variant)
    save_file(timm_state_dict(arrays, settings["registers"]), tmp_path / "vit.safetensors")
    assert_loaded(load(tmp_path / "vit.safetensors", settings, shapes, grid), arrays)


@pytest.mark.torch
def test_a_torch_file_of_timm_comes_back(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    settings, shapes, grid, arrays = case()
    theirs = timm_state_dict(arrays, settings["registers"])
    torch.save({key: torch.from_numpy(x) for key, x in theirs.items()}, tmp_path / "vit.pth")
    assert_loaded(load(tmp_path / "vit.pth", settings, shapes, grid), arrays)


@pytest.mark.torch
def test_a_pickled_folder_comes_back(tmp_path):
    """DINO's repositories hold no safetensors."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    settings, shapes, grid, arrays = case("dino_normed")
    folder = hugging_face_folder(tmp_path / "model", arrays, settings)
    theirs = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    theirs = {key: torch.from_numpy(x) for key, x in theirs.items()}
    torch.save(theirs, folder / hub.PICKLED)
    assert_loaded(load(folder, settings, shapes, grid), arrays)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_floats_of_two_bytes_become_float32(dtype, tmp_path):
    settings, shapes, grid, arrays = case()
    arrays = {name: x.astype(dtype).astype(np.float32) for name, x in arrays.items()}
    theirs = timm_state_dict(arrays, settings["registers"])
    save_file({key: x.astype(dtype) for key, x in theirs.items()}, tmp_path / "vit.safetensors")
    found = load(tmp_path / "vit.safetensors", settings, shapes, grid)
    assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}
    assert_loaded(found, arrays)


@pytest.mark.parametrize("antialias", [True, False])
def test_positions_at_another_size(antialias):
    """Constants stay; a straight slope stays one away from the border; each axis has its own."""
    side, grid = 8, (4, 16)
    rows, columns = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5, indexing="ij")
    position = np.stack([np.ones((side, side)), rows / side, columns / side], axis=-1)
    position = position.reshape(1, -1, 3).astype(np.float32)
    found = resample_positions(position, grid, antialias).reshape(*grid, 3)
    np.testing.assert_allclose(found[..., 0], 1.0, atol=1e-6)
    y = np.broadcast_to((np.arange(4) + 0.5)[:, None] / 4, grid)
    x = np.broadcast_to((np.arange(16) + 0.5)[None] / 16, grid)
    inner = (slice(1, -1), slice(4, -4))
    np.testing.assert_allclose(found[inner][..., 1], y[inner], atol=0.02)
    np.testing.assert_allclose(found[inner][..., 2], x[inner], atol=0.02)
    assert resample_positions(position, (side, side), antialias) is position


# --------------------------------------------------------------------------------------- whole runs


def run_with(weights) -> ConfigDict:
    """Two steps of an image model over a small ViT."""
    config = get_config("image")
    config.data.image_size = 42
    vit = {"name": "vit", "resize": 1.0}
    config.model.encoder = ConfigDict({**vit, **VARIANTS["registers"]})
    config.weights.encoder.source = str(weights)
    if weights != "random":
        with config.unlocked():
            del config.weights.encoder.seed
    config.model.decoder = ConfigDict({"name": "random_ar", "num_layers": 1, "num_heads": 2})
    config.train.num_steps, config.checkpoint.every = 2, 1
    return canonical(config)


@pytest.mark.slow
def test_a_run_takes_its_encoder_along(tmp_path, capsys):
    """The weights are loaded once; afterwards resuming and evaluating need no file."""
    settings, _, _, arrays = case()
    folder, workdir = tmp_path / "model", tmp_path / "run"
    config = run_with(folder)
    with pytest.raises(UserError, match="is not there"):
        loop.train(config, workdir)
    assert not steps_found(workdir)
    hugging_face_folder(folder, arrays, settings)
    scores = loop.train(config, workdir)
    assert f"frozen weights: {folder}" in capsys.readouterr().err
    checkpoint = read_checkpoint(workdir, 2)
    assert checkpoint.progress["frozen_from"] == str(folder)
    names = {name for name in checkpoint.arrays if name.startswith("frozen/")}
    stored = {name.removeprefix("frozen/encoder."): checkpoint.arrays[name] for name in names}
    assert_loaded(stored, arrays)

    shutil.rmtree(folder)
    shutil.rmtree(workdir / FOLDER / "2")
    assert loop.train(config, workdir) == scores
    again = read_checkpoint(workdir, 2)
    assert again.progress["frozen_from"] == str(folder)
    for name, array in again.arrays.items():
        np.testing.assert_array_equal(array, checkpoint.arrays[name], err_msg=name)
    assert evaluating.evaluate_run(workdir) == scores

    # A run of ours goes to the authors' program and comes back.
    state_dict = read_workdir(workdir, warn=pytest.fail)
    assert not state_dict["m.initializ.detach_flag"]
    write_workdir(state_dict, config, tmp_path / "back")
    back = read_checkpoint(tmp_path / "back", 2).arrays
    for name, array in checkpoint.arrays.items():
        if name.startswith(("state/params/", "frozen/")):
            np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_an_untrained_encoder_is_said():
    training = build_training(config := run_with("random"))
    params, frozen, words = sources.begin(config, training, warn=print)
    assert frozen.keys() == training.frozen.keys() and params.keys() == training.state.params.keys()
    assert all(isinstance(x, jax.Array) for x in frozen.values())
    assert words.startswith("random values")  # a run says it, and keeps it as above


def test_nothing_runs_before_the_weights_are_there():
    config = run_with("facebook/dinov2-with-registers-small")
    training = build_training(config)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in training.frozen.values())
    with pytest.raises(TypeError, match="ShapeDtypeStruct"):
        training.predict(
            training.state.params,
            training.frozen,
            training.place(tiny_batch(config)),
            jax.random.key(0),
        )


# ------------------------------------------------------------------------------------------- faults


def refusal(weights, settings=None, variant: str = "registers") -> str:
    """The one-line error of loading."""
    own, shapes, grid, _ = case(variant)
    with pytest.raises(UserError) as caught:
        load(weights, settings or own, shapes, grid)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_is_cut_short(tmp_path):
    settings, _, _, arrays = case()
    folder = hugging_face_folder(tmp_path / "model", arrays, settings)
    whole = (folder / "model.safetensors").read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:size])
        message = refusal(folder)
        assert "model.safetensors cannot be read" in message and "fetch it again" in message


def test_what_is_not_there(tmp_path):
    settings, _, _, arrays = case()
    folder = hugging_face_folder(tmp_path / "model", arrays, settings, shards=2)
    (folder / "model-2.safetensors").unlink()
    assert "model-2.safetensors is not a file" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other"}}')
    assert "index.json cannot be read" in refusal(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "has no model.safetensors" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json does not exist" in refusal(folder)
    assert "is not there; give a folder or a file" in refusal(tmp_path / "nothing.safetensors")
    assert "is not there; give a folder or a file" in refusal("./nothing")
    assert "did you mean 'facebook/dinov2-small'" in refusal("facebook/dinov2-smal")
    assert "expected 'random', a name" in refusal("")


def test_another_architecture(tmp_path):
    settings, _, _, arrays = case()
    folder = hugging_face_folder(tmp_path / "model", arrays, settings)
    message = refusal(folder, {**settings, "width": 48, "num_heads": 4})
    assert "has width 24, num_heads 3; model.encoder has width 48, num_heads 4" in message
    assert "--config.model.encoder.width=24 --config.model.encoder.num_heads=3" in message
    assert "swiglu False; model.encoder has swiglu True" in refusal(
        folder, {**settings, "swiglu": True}
    )
    config = json.loads((folder / "config.json").read_text())
    for change, expected in (
        ({"model_type": "clip"}, "describes a 'clip', expected vit or dinov2 or dinov2_with_reg"),
        ({"mlp_ratio": 2}, "has mlp_ratio 2; this ViT has mlp_ratio 4"),
        ({"hidden_size": "many"}, "config.json cannot be read"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        assert expected in refusal(folder)
    dino = case("dino")
    other = hugging_face_folder(tmp_path / "dino", dino[3], dino[0])
    message = refusal(other)
    assert "registers 0, layer_scale False; model.encoder has registers 4, layer_scale" in message
    assert message.endswith("model.encoder.layer_scale=False, or choose other weights")
    written = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(written | {"intermediate_size": 7}))
    assert "has intermediate_size 7; this ViT has" in refusal(other, variant="dino")
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(folder)


def test_keys_that_do_not_fit(tmp_path):
    settings, _, _, arrays = case()
    path = tmp_path / "vit.safetensors"
    theirs = timm_state_dict(arrays, settings["registers"])

    def told(change: dict, without: str = "") -> str:
        save_file({k: x for k, x in (theirs | change).items() if k != without}, path)
        return refusal(path)

    one = np.ones(24, np.float32)
    assert "unknown keys head.weight, expected those of DINO or DINOv2" in told(
        {"head.weight": one}
    )
    assert "missing: blocks.1.mlp.out.bias" in told({}, without="blocks.1.mlp.fc2.bias")
    assert "left over: blocks.2.norm_mlp.scale" in told({"blocks.2.norm2.weight": one})
    short = told({"blocks.0.ls1.gamma": one[:5]})
    assert "blocks.0.scale_attention (found float32[5], expected float32[24])" in short
    bad = told({"blocks.0.ls1.gamma": np.full(24, np.nan, np.float32)})
    assert "scale_attention holds values that are not finite" in bad
    grid = told({"pos_embed": np.ones((1, 7, 24), np.float32)})
    assert "positions of shape [1, 7, 24], expected those of a square grid" in grid
    save_file(theirs, path)
    # timm's files with registers have no position of the class token.
    _, shapes, grid = make_vit(own := settings | {"class_position": True}, (42, 42))
    with pytest.raises(UserError, match="missing: class_position"):
        load(path, own, shapes, grid)
    folder = hugging_face_folder(tmp_path / "model", arrays, settings)
    assert "set --config.weights.encoder.source to the folder" in refusal(
        folder / "model.safetensors"
    )
    state_dict = load_file(folder / "model.safetensors")
    del state_dict["encoder.layer.1.attention.attention.key.bias"]
    save_file(state_dict, folder / "model.safetensors")
    assert "missing: blocks.1.qkv.bias" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "variant", "file"),
    [
        ("facebook/dinov2-small", "plain", "model.safetensors"),
        ("facebook/dino-vits16", "dino", "pytorch_model.bin"),
    ],
)
def test_no_hub(name, variant, file, tmp_path):
    """Offline, an empty cache is a one-line error that names the download; a full one works."""
    code = f"""
import sys
from smoothsa_jax.errors import UserError
from smoothsa_jax.interop import hub
try:
    print(hub.fetch("{name}"))
except UserError as error:
    print(error)
"""
    environment = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }

    def fetch() -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            text=True,
            capture_output=True,
            check=True,
        )
        return done.stdout.strip()

    revision = hub.REVISIONS[name]
    told = fetch()
    assert told.startswith(f"{name} cannot be fetched from the Hugging Face Hub")
    assert f"download config.json and {file} of revision {revision}" in told
    assert told.endswith("set --config.weights.encoder.source to its path") and "\n" not in told

    cached = tmp_path / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / revision
    settings, _, _, arrays = case(variant)
    hugging_face_folder(cached, arrays, settings)
    (cached / "model.safetensors").rename(cached / file)
    assert fetch() == str(cached)


def serve(folder: Path, served: Path, monkeypatch) -> list[tuple[str, str, str]]:
    """Let the Hub serve a folder's files into another one; returns what is asked for."""
    asked = []

    def download(repository, file, revision):
        from huggingface_hub.errors import EntryNotFoundError

        asked.append((repository, file, revision))
        if not (served / file).exists():
            raise EntryNotFoundError(f"{file} is not in the repository")
        target = folder / "snapshots" / f"commit_of_{revision}" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(served / file, target)
        return str(target)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def test_a_pickled_file_from_the_hub(tmp_path, monkeypatch):
    settings, _, _, arrays = case("dino")
    served = hugging_face_folder(tmp_path / "served", arrays, settings)
    (served / "model.safetensors").rename(served / hub.PICKLED)
    asked = serve(tmp_path, served, monkeypatch)
    folder = hub.fetch("facebook/dino-vits16")
    assert {path.name for path in folder.iterdir()} == {"config.json", hub.PICKLED}
    revision = hub.REVISIONS["facebook/dino-vits16"]
    files = ("config.json", "model.safetensors", hub.PICKLED)
    assert asked == [("facebook/dino-vits16", file, revision) for file in files]


def test_from_the_hub(tmp_path, monkeypatch):
    """The pinned revision is requested, or another one with `@`; the result names its commit."""
    settings, shapes, grid, arrays = case("plain")
    served = hugging_face_folder(tmp_path / "served", arrays, settings, shards=2)
    asked = serve(tmp_path, served, monkeypatch)
    pinned = hub.REVISIONS["facebook/dinov2-small"]
    for name, revision in (
        ("facebook/dinov2-small", pinned),
        ("facebook/dinov2-small@main", "main"),
    ):
        asked.clear()
        found, what = load_encoder(name, {"name": "vit", **settings}, shapes, grid)
        assert_loaded(found, arrays)
        assert what == f"facebook/dinov2-small@commit_of_{revision}"
        assert {(x, y) for x, _, y in asked} == {("facebook/dinov2-small", revision)}
        assert [file for _, file, _ in asked] == [
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "model-1.safetensors",
            "model-2.safetensors",
        ]
