"""Tokenizers: their task, their scores, and their place in a second stage."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import ROOT, here
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import save_file
from tiny import tiny_batch, tiny_config

from configs import base
from data import store
from smoothsa_jax.checkpoints.read import restore_latest
from smoothsa_jax.checkpoints.sources import begin
from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.tokenizers import TokenizerEvaluator
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.interop.perceptual import load_lpips
from smoothsa_jax.interop.tokenizers import load_taesd
from smoothsa_jax.models.build import build_model, model_shapes
from smoothsa_jax.models.encoders.pixels import RANGES, denormalize, normalize
from smoothsa_jax.models.layers.taesd import TinyDecoder, TinyEncoder
from smoothsa_jax.models.parameters import split
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.tasks.stored import refuse_other_features
from smoothsa_jax.training.step import build_training

FEATURES = {
    **base.VQ_FEATURES,
    "width": 6,
    "vocabulary": 10,
    "basis_size": 5,
    "hidden_size": 8,
    "decoder_width": 4,
    "blocks": 1,
    "strides": (2, 1, 1),
}
PIXELS = {
    **base.VQ_PIXELS,
    "width": 6,
    "vocabulary": 10,
    "layer_width": 4,
    "blocks": 1,
    "strides": (2, 1, 1),
}
KINDS = {"vq_features": FEATURES, "vq_pixels": PIXELS}


def first_stage(kind: str, num_frames: int = 2) -> ConfigDict:
    """The config of a tokenizer of 16 pixels and 4x4 tokens."""
    config = tiny_config(num_frames, "gaussian").copy_and_resolve_references().unlock()
    config.task, config.title = "tokenizer", "Tokenizer"
    encoder = {"encoder": config.model.encoder} if kind == "vq_features" else {}
    config.model = ConfigDict({**encoder, "tokenizer": KINDS[kind]})
    terms = {"reconstruction": 1.0, "codebook": 1.0, "commitment": 0.25}
    terms |= {"latent_norm": 0.1} if encoder else {}
    config.losses = ConfigDict({name: {"weight": weight} for name, weight in terms.items()})
    if not encoder:
        config.weights = ConfigDict()
    config.checkpoint.update(best_metric="psnr", best_mode="max")
    return config


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_step(kind):
    """One step trains all but the encoder and the random matrix, and lowers the loss."""
    config = first_stage(kind)
    check(config)
    setup = build_training(config)
    batch = tiny_batch(tiny_config(2, "gaussian"))
    batch["slot_mask"] = batch["slot_mask"][:, :1]
    before = jax.device_get(setup.state.params)
    state, found = setup.state, []
    for step in range(4):
        placed = setup.place(batch)
        state, metrics = setup.train_step(state, setup.frozen, placed, jax.random.key(step))
        found.append(float(metrics["loss/reconstruction"]))
    assert found[-1] < found[0]
    assert {f"loss/{name}" for name in config.losses} <= metrics.keys()
    # The codes of the vocabulary that nothing has chosen stay where they are.
    moved = {name for name, x in state.params.items() if np.any(x != before[name])}
    assert moved == set(before)
    still = {name.split(".")[0] for name in setup.frozen}
    assert still == ({"encoder", "tokenizer"} if kind == "vq_features" else set())
    outputs = setup.predict(state.params, setup.frozen, placed, jax.random.key(0))
    measured = setup.task.evaluator.measure(outputs, batch)
    scores = setup.task.evaluator.per_sample(jax.device_get(measured.tables), False)
    means = setup.task.evaluator.means(scores)
    codes = np.unique(jax.device_get(outputs["tokens"]))
    assert means["codes_in_use"] == len(codes) / 10
    assert measured.rendered.shape == (2, 2, 8, 8, 3)


def test_scores():
    """Frames that fill up a clip do not count; the codes of all samples together do."""
    evaluator = TokenizerEvaluator("unit", 100)
    target = np.full((2, 3, 4, 4, 3), 0.5, np.float32)
    predicted = target + np.array([0.1, 0.2, 0.3], np.float32)[:, None, None, None]
    tokens = np.array([[[0, 1], [1, 1], [99, 99]], [[50, 0], [0, 0], [0, 98]]], np.int32)
    batch = {"num_frames": np.array([2, 3])}
    outputs = {"prediction": predicted, "target": target, "tokens": tokens}
    tables = jax.device_get(evaluator.measure(outputs, batch).tables)
    scores = evaluator.per_sample(tables, False)
    errors = np.array([(0.01 + 0.04) / 2, (0.01 + 0.04 + 0.09) / 3])
    np.testing.assert_allclose(scores["mse"], errors, rtol=1e-5)
    np.testing.assert_allclose(scores["psnr"], -10 * np.log10(errors), rtol=1e-5)
    stacked = {name: np.asarray(x, np.float64)[None] for name, x in scores.items()}
    means = evaluator.means(stacked)
    assert means.keys() == set(evaluator.metrics)
    assert means["codes_in_use"] == [4 / 100]  # 0, 1, 50, 98


@pytest.mark.parametrize("seen", RANGES)
def test_ranges_of_pixels(seen):
    pixels = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
    encoder = type("Encoder", (), {"pixels": seen})
    unit = denormalize(normalize(pixels, encoder), seen)
    np.testing.assert_allclose(unit, pixels / 255.0, atol=1e-6)


def test_codes_follow_loaded_weights():
    """The codes are those of the present arrays, also where others were there before."""
    model = build_model(first_stage("vq_features").model, (16, 16), 0)
    before = model.tokenizer.codes(jnp.arange(10)[None])
    model.tokenizer.codebook.bias[...] += 1.0
    np.testing.assert_allclose(model.tokenizer.codes(jnp.arange(10)[None]), before + 1.0, rtol=1e-6)


def test_draws_differ_and_nearest_do_not():
    config = first_stage("vq_features").model
    model = build_model(config, (16, 16), 0)
    video = np.random.default_rng(0).integers(0, 255, (2, 3, 16, 16, 3), np.uint8)
    inputs, values = model.inputs(jnp.asarray(video), None), {"std": 1.0, "alpha": 0.0}
    sizes = type("Sizes", (), {"batch": 2, "frames": 3, "slots": 1})
    tokens = jax.jit(lambda draws: model.tokens(inputs, draws, values))
    drawn = [tokens(model.draw(jax.random.key(seed), sizes, True)) for seed in range(2)]
    assert np.any(drawn[0]["tokens"] != drawn[1]["tokens"])
    nearest = tokens(model.draw(jax.random.key(0), sizes, False))
    latents = jax.jit(model.tokenizer.encode)(inputs.reshape(6, 16, -1)).reshape(2, 3, 16, 1, 6)
    matrix = np.asarray(model.tokenizer.code_matrix())
    distances = np.square(np.asarray(latents, np.float64) - matrix).sum(-1)
    np.testing.assert_array_equal(nearest["tokens"], distances.argmin(-1))
    np.testing.assert_allclose(nearest["codes"], matrix[nearest["tokens"]], rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------- TAESD's weights


def published(layers: nnx.Module, first: int) -> dict[str, np.ndarray]:
    """A state dict of TAESD's numbering, with the arrays of ours and the layers that we lack."""
    rng, found = np.random.default_rng(0), {}
    for name in split(layers)[1]:
        _, number, *inner, leaf = name.split(".")
        key = f"{int(number) + first}."
        key += f"conv.{2 * int(inner[1])}." if inner else ""
        key += "weight" if leaf == "kernel" else "bias"
        shape = split(layers)[1][name].shape
        values = rng.normal(size=shape).astype(np.float32)
        found[key] = np.ascontiguousarray(
            values.transpose(3, 2, 0, 1) if leaf == "kernel" else values
        )
    return found


@pytest.mark.parametrize("layout", ["diffusers", "files"])
def test_taesd(tmp_path, layout):
    """Both layouts of the published files give the same layers; a wrong width is one line."""
    parts = {
        "encoder": TinyEncoder(4, (2, 2, 2), 3, rngs=nnx.Rngs(0)),
        "decoder": TinyDecoder(4, (2, 2, 2), 3, rngs=nnx.Rngs(0)),
    }
    whole = layout == "diffusers"
    first = {"encoder": 0, "decoder": 2 if whole else 3}
    theirs = {part: published(layers, first[part]) for part, layers in parts.items()}
    bottleneck = np.zeros((4, 4, 3, 3), np.float32)
    theirs["encoder"] |= {"14.weight": bottleneck, "14.bias": bottleneck[0, 0, 0]}
    number = first["decoder"] - 2
    theirs["decoder"] |= {f"{number}.weight": bottleneck, f"{number}.bias": bottleneck[:, 0, 0, 0]}
    sources = {part: str(tmp_path / f"taesd_{part}.safetensors") for part in parts}
    if whole:
        sources = dict.fromkeys(parts, str(tmp_path))
        arrays = {f"{p}.layers.{k}": x for p, found in theirs.items() for k, x in found.items()}
        save_file(arrays, tmp_path / "diffusion_pytorch_model.safetensors")
    else:
        for part, source in sources.items():
            save_file(theirs[part], source)
    for part, layers in parts.items():
        expected = split(layers)[1]
        found, _ = load_taesd(sources[part], part, expected, "weights.x")
        assert found.keys() == expected.keys()
        shift = first[part]
        for name, x in found.items():
            _, number, *inner, leaf = name.split(".")
            key = f"{int(number) + shift}." + (f"conv.{2 * int(inner[1])}." if inner else "")
            array = theirs[part][key + ("weight" if leaf == "kernel" else "bias")]
            np.testing.assert_array_equal(x, array.transpose(2, 3, 1, 0) if x.ndim == 4 else array)
        other = split(type(layers)(6, (2, 2, 2), 3, rngs=nnx.Rngs(0)))[1]
        with pytest.raises(UserError, match="does not fit the TAESD"):
            load_taesd(sources[part], part, other, "weights.x")


def test_taesd_is_not_there():
    with pytest.raises(UserError, match="taesd_encoder"):
        load_taesd("./nowhere/taesd_encoder.pth", "encoder", {}, "weights.x")


# ------------------------------------------------------------------------------------- bad input


def second_stage(kind: str = "vq_features") -> ConfigDict:
    """A model of tokens, on an untrained tokenizer."""
    config = tiny_config(1, "gaussian").copy_and_resolve_references().unlock()
    first = first_stage(kind, 1)
    config.model.decoder = ConfigDict({"name": "mlp_mixture", "num_layers": 3, "hidden_size": 16})
    config.model.target = ConfigDict({"name": "codes", "width": 6})
    config.companions.tokenizer = ConfigDict(
        {"source": "", "title": first.title, "model": first.model}
    )
    return config


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_second_stage(kind):
    """The codes of the companion are the target, with and without its draws."""
    config = second_stage(kind)
    check(config)
    setup = build_training(config)
    params, frozen, what = begin(config, setup, print)
    assert "companion tokenizer: untrained" in what
    batch = tiny_batch(config)
    models = {
        name: x.merge({**params, **frozen}, differentiated=False)
        for name, x in setup.definitions.items()
    }
    placed = setup.place(batch)

    found = setup.task.constants(models, placed, {"tokenizer": {"tokenizer": None}}, False)
    assert found["tokens"].shape == (2, 1, 16) and found["tokens"].dtype == jnp.int32
    assert found["codes"].shape == (2, 1, 16, 6)
    companion = models["tokenizer"]
    np.testing.assert_array_equal(
        found["codes"][:, 0], companion.tokenizer.codes(found["tokens"][:, 0])
    )
    state = setup.state.replace(params=params)
    _, metrics = setup.train_step(state, frozen, placed, jax.random.key(0))
    assert np.isfinite(metrics["loss/reconstruction"])


def changed_encoder(config):
    config.companions.tokenizer.model = (
        config.companions.tokenizer.model.copy_and_resolve_references()
    )
    config.companions.tokenizer.model.encoder.window = 4


def other_grid(config):
    config.companions.tokenizer.model = first_stage("vq_pixels").model.copy_and_resolve_references()
    config.companions.tokenizer.model.tokenizer.strides = (2, 2, 1)


BAD = {
    "vocabulary": (
        lambda c: setattr(
            c.model, "target", ConfigDict({"name": "tokens", "vocabulary": 11, "width": 6})
        ),
        "companions.tokenizer has vocabulary 10, but model.target.vocabulary is 11",
    ),
    "width": (
        lambda c: setattr(c.model.target, "width", 7),
        "companions.tokenizer has width 6, but model.target.width is 7",
    ),
    "encoder": (changed_encoder, "reads features of another encoder than model.encoder: .* window"),
    "nothing": (
        lambda c: setattr(c, "companions", ConfigDict()),
        "model.target.name='codes' needs a tokenizer, but the config has no companions.tokenizer",
    ),
    "grid": (other_grid, "has a grid of 2x2 tokens, but the decoder has one of 4x4"),
    "no tokenizer": (
        lambda c: setattr(c.companions.tokenizer, "model", tiny_config(1, "gaussian").model),
        "companions.tokenizer holds Tokenizer, which is no tokenizer",
    ),
    "a teacher": (
        lambda c: setattr(c, "companions", ConfigDict({"teacher": c.companions.tokenizer})),
        "companions.teacher holds Tokenizer, which is no slot model",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_tokenizer_of_another_kind(case):
    config = second_stage()
    change, message = BAD[case]
    change(config)
    with pytest.raises(UserError, match=message) as error:
        check(config)
    assert "\n" not in str(error.value)


BAD_FIRST = {
    "slots": ({"num_slots": 4}, "trains model.tokenizer alone"),
    "decoder": ({"decoder": {"name": "mlp_mixture"}}, "model.decoder is not a part of a model"),
    "strides": ({"tokenizer": {"strides": (2, 3, 1)}}, "each 1 or 2"),
    "vocabulary": ({"tokenizer": {"vocabulary": 1}}, "model.tokenizer.vocabulary is 1"),
    "no decoder": ({"tokenizer": {"decodes": False}}, "model.tokenizer.decodes is False"),
}


@pytest.mark.parametrize("case", BAD_FIRST)
def test_bad_first_stage(case):
    config = first_stage("vq_features")
    change, message = BAD_FIRST[case]
    with config.ignore_type():
        config.model.update(change)
    with pytest.raises(UserError, match=message):
        check(config)


@pytest.mark.parametrize("metric, right", [("mse", "min"), ("psnr", "max"), ("loss", "min")])
def test_the_best_of_a_metric(metric, right):
    config = first_stage("vq_pixels")
    for mode in ("min", "max"):
        config.checkpoint.update(best_metric=metric, best_mode=mode)
        if mode == right:
            check(config)
            continue
        with pytest.raises(UserError, match=f"best_mode={right}"):
            check(config)


@pytest.mark.parametrize("code_range, bound", [(None, 1 / 10), (1.0, 1.0)])
def test_where_codes_of_pixels_start(code_range, bound):
    config = first_stage("vq_pixels")
    config.model.tokenizer.update(code_range=code_range)
    model = build_model(config.model, image_size_of(config), 0)
    largest = np.abs(np.asarray(model.tokenizer.codebook[...])).max()
    assert 0.8 * bound < largest <= bound


def test_pixels_do_not_divide():
    config = first_stage("vq_pixels")
    config.data.image_size = 18
    with pytest.raises(UserError, match="does not divide into tokens of 4 pixels"):
        build_model(config.model, image_size_of(config), 0)


def test_other_weights_of_the_encoder():
    """Features of equal settings but other weights are refused, too."""
    config = second_stage()
    setup = build_training(config)
    frozen = dict(setup.frozen)
    name = next(name for name in frozen if name.startswith("encoder."))
    frozen[name] = frozen[name] + 1.0
    with pytest.raises(UserError, match="of other weights than model.encoder has"):
        begin(config, type("T", (), {"frozen": frozen, "state": setup.state})(), print)


# ------------------------------------------------------------------------------------------ LPIPS


def lpips_files(folder) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Random weights in the layouts of torchvision and of the package lpips."""
    random, network, heads = np.random.default_rng(0), {}, {}
    shapes = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
    for i, (number, (out, num_in, size)) in enumerate(zip((0, 3, 6, 8, 10), shapes, strict=True)):
        shape = (out, num_in, size, size)
        kernel = random.normal(size=shape) * (2 / (num_in * size**2)) ** 0.5
        network[f"features.{number}.weight"] = kernel.astype(np.float32)
        network[f"features.{number}.bias"] = random.normal(size=out).astype(np.float32)
        head = random.uniform(size=(1, out, 1, 1)) / out
        heads[f"lin{i}.model.1.weight"] = head.astype(np.float32)
    network["classifier.1.bias"] = np.zeros(4096, np.float32)  # unused
    save_file(network, folder / "alexnet-owt-7be5be79.safetensors")
    save_file(heads, folder / "alex.safetensors")
    return network, heads


def lpips_in_numpy(x, y, network, heads) -> np.ndarray:
    """LPIPS as its paper and program have it, by sums over windows."""

    def windows(x, size, stride):
        found = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
        return found[:, ::stride, ::stride]  # (B,h,w,C,size,size)

    total = 0.0
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    x, y = ((z.astype(np.float64) - shift) / scale for z in (x, y))
    layers = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))
    for i, (number, stride, pad) in enumerate(layers):
        kernel = network[f"features.{number}.weight"].astype(np.float64)
        outputs = []
        for z in (x, y):
            if i in (1, 2):
                z = windows(z, 3, 2).max(axis=(-2, -1))
            z = np.pad(z, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
            seen = windows(z, kernel.shape[-1], stride)
            z = np.einsum("bhwcij,ocij->bhwo", seen, kernel, optimize=True)
            outputs.append(np.maximum(z + network[f"features.{number}.bias"], 0.0))
        x, y = outputs
        unit = [z / (np.linalg.norm(z, axis=-1, keepdims=True) + 1e-10) for z in outputs]
        head = heads[f"lin{i}.model.1.weight"][0, :, 0, 0]
        total = total + ((unit[0] - unit[1]) ** 2 @ head).mean(axis=(1, 2))
    return total


def test_lpips(tmp_path):
    """The files' network gives the distance of a plain computation; equal pictures have none."""
    files = lpips_files(tmp_path)
    arrays, _ = load_lpips(str(tmp_path), "companions.perceptual.source")
    model = model_shapes(ConfigDict({"perceptual": {"name": "lpips"}}), (1, 1))
    definition = split(model)[0]
    assert arrays.keys() == set(definition.names)
    run = jax.jit(lambda arrays, x, y: definition.merge(arrays)(x, y))
    x, y = (np.random.default_rng(i).normal(size=(2, 40, 35, 3)).astype(np.float32) for i in (0, 1))
    np.testing.assert_allclose(run(arrays, x, y), lpips_in_numpy(x, y, *files), rtol=1e-5)
    np.testing.assert_array_equal(run(arrays, x, x), 0.0)
    still = jax.grad(lambda x: run(arrays, x, y).sum())(np.zeros_like(x))
    assert np.isfinite(still).all()


@pytest.mark.slow
def test_lpips_in_training(tmp_path, monkeypatch, capsys):
    """LPIPS is off, is a term of the loss with its files, and says which files it needs."""
    monkeypatch.chdir(tmp_path)
    spec = f"--config={ROOT}/configs/sprites.py:image,slotdiffusion,tokenizer,smoke"
    weight, folder = "--config.losses.perceptual.weight=1.0", tmp_path / "lpips"
    source = f"--config.companions.perceptual.source={folder}"
    larger = "--config.data.image_size=64"
    folder.mkdir()
    for more, says in {
        (weight,): "alexnet-owt-7be5be79.pth",
        (weight, source): "has no alexnet-owt-*; expected a folder with torchvision's",
    }.items():
        assert here(spec, *QUICK, larger, *more, "--workdir=run") == 2
        assert says in capsys.readouterr().err
    lpips_files(folder)
    assert here(spec, *QUICK, larger, source, "--workdir=run") == 2
    assert "companions.perceptual is used by nothing" in capsys.readouterr().err
    assert here(spec, *QUICK, larger, weight, source, "--workdir=run") == 0
    shutil.rmtree(folder)
    assert here("--mode=evaluate", "--workdir=run") == 0
    stored = restore_latest(tmp_path / "run", warn=print)
    assert "perceptual.heads.0" in stored.weights
    logged = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any(x.get("loss/perceptual", 0.0) > 0.0 for x in logged)


# ------------------------------------------------------------------------------------- whole runs

QUICK = ("--config.train.num_steps=4", "--config.checkpoint.every=2", "--config.eval.num_samples=2")


@pytest.mark.slow
@pytest.mark.parametrize("system", ["slate", "vvo"])
def test_two_stages(tmp_path, monkeypatch, capsys, system):
    """Stage two needs stage one, copies it, and stands alone; stage one resumes and is scored."""
    monkeypatch.chdir(tmp_path)
    config = load_config(f"{ROOT}/configs/sprites.py:image,{system}")
    source = config.companions.tokenizer.source
    spec = f"--config={ROOT}/configs/sprites.py:image,{system}"
    assert here(spec, *QUICK) == 2
    assert (
        f"train it first: python main.py --config=configs/sprites.py:image,{system},tokenizer"
        in (capsys.readouterr().err)
    )
    assert here(f"{spec},tokenizer", *QUICK, f"--workdir={source}") == 0
    scores = json.loads((tmp_path / source / "scores.json").read_text())
    assert scores["metrics"].keys() == {"psnr", "mse", "codes_in_use"}
    assert "queries" not in scores["protocol"]
    assert not re.search("_0", (tmp_path / source / "scores.csv").read_text())
    assert list((tmp_path / source / "pictures").glob("test_*.png"))
    assert here("--mode=evaluate", f"--workdir={source}") == 0
    assert json.loads((tmp_path / source / "scores.json").read_text()) == scores
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(picture)
    given = {"report": (), "predict": (f"--input={picture}", "--output=out")}
    for mode, more in given.items():
        assert here(f"--mode={mode}", f"--workdir={source}", *more) == 2
        assert "finds no segments" in capsys.readouterr().err
    assert here(spec, *QUICK, "--workdir=second") == 0
    first = restore_latest(tmp_path / source, warn=print).weights
    shutil.rmtree(tmp_path / source)
    second = restore_latest(tmp_path / "second", warn=print).weights
    for name, x in first.items():
        np.testing.assert_array_equal(second[f"tokenizer.{name}"], x)
    assert here("--mode=evaluate", "--workdir=second") == 0


@pytest.mark.slow
def test_stored_features(tmp_path):
    """A tokenizer of stored features sees the pixels of the same frames as its target."""
    config = load_config(f"{ROOT}/configs/sprites.py:image,vvo,tokenizer,smoke").unlock()
    config.data.num_samples = 8
    with_pixels = [tuple(x[k].shape for k in ("video",)) for x in _batches(config)]
    store.store(config, tmp_path / "features")
    config.data.features = str(tmp_path / "features")
    with_both = [tuple(x[k].shape for k in ("video",)) for x in _batches(config)]
    assert with_both == with_pixels
    assert all("features" in x for x in _batches(config))


@pytest.mark.slow
@pytest.mark.parametrize("system", ["slate", "vvo"])
def test_stored_tokens(tmp_path, system):
    """They stand for the pixels that they were made of, are looked up, and have to be the run's."""
    config = load_config(f"{ROOT}/configs/sprites.py:image,{system},smoke").unlock()
    config.data.num_samples, config.companions.tokenizer.draws = 8, "evaluation"
    store.store(config, tmp_path / "features")
    setup = build_training(config)
    params, frozen, _ = begin(config, setup, print)
    arrays, found = {**params, **frozen}, {}
    for folder in ("", str(tmp_path / "features")):
        config.data.features = folder
        task = build_training(config).task
        options = {"reads": task.inputs, "with_pixels": task.needs_pixels, "num_slots": 4}
        source = build_dataset(config.data, "train", **options)
        samples = [source[i] for i in range(2)]
        batch = {k: np.stack([x[k] for x in samples]) for k in samples[0]}
        assert ("video" in batch) == (not folder) == ("tokens" not in batch)
        models = {k: x.merge(arrays, differentiated=False) for k, x in setup.definitions.items()}
        draws = {"tokenizer": {"tokenizer": None}}
        found[folder] = setup.task.constants(models, batch, draws, False)
    one, two = found.values()
    np.testing.assert_array_equal(one["tokens"], two["tokens"])
    np.testing.assert_array_equal(one["codes"], two["codes"])
    refuse_other_features(source, config, frozen)
    changed = {k: x + 1 if k.startswith("tokenizer.tokenizer.") else x for k, x in frozen.items()}
    with pytest.raises(UserError, match="holds tokens of another tokenizer"):
        refuse_other_features(source, config, changed)
    config.companions.tokenizer.draws = "training"
    assert "tokens" not in build_training(config).task.inputs


def _batches(config):
    source = build_dataset(
        config.data, "train", reads=("video", "features"), num_slots=1, with_pixels=True
    )
    return [source[i] for i in range(2)]
