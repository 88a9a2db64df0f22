"""Pictures of slots, and edits of them: in Python, and by `main.py --mode=predict`."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from command import here
from fuzz_readers import clip, write_video
from ml_collections import ConfigDict
from PIL import Image
from tiny import CAUSAL, TOKENS, tiny_config, with_tokens_along

from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference import predict
from smoothsa_jax.inference.load import load
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.models.build import model_shapes
from smoothsa_jax.models.parameters import split

BROADCAST = {
    "name": "spatial_broadcast",
    "cells": 4,
    "hidden_size": 4,
    "kernel_size": 3,
    "strides": (2, 2),
    "transposed": (True, True),
    "head": "joint",
    "fusion": "late",
    "position": "linear",
    "padding": "same",
    "start": "torch",
}
UNET = {
    "name": "denoising_unet",
    "widths": (4, 4),
    "num_blocks": 1,
    "groups": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "zero_start": False,
}
VQ = {
    "name": "vq_pixels",
    "width": 8,
    "vocabulary": 6,
    "layer_width": 4,
    "strides": (2, 1, 1),
    "blocks": 1,
    "pixels": "imagenet",
}


def config_of(kind: str) -> ConfigDict:
    """A tiny model of images or videos whose decoder tells pixels: directly, or by a tokenizer."""
    num_frames = 1 if kind == "image" else 3
    config = tiny_config(num_frames, initializer="gaussian", decoder="mlp_mixture").unlock()
    model, losses = config.model, {"reconstruction": {"weight": 1.0}}
    if kind in ("pixels", "image"):
        model.decoder, model.target = ConfigDict(BROADCAST), ConfigDict({"name": "pixels"})
    elif kind == "along":
        return with_tokens_along(config)
    elif kind in ("codes", "noise"):
        frozen = {"title": "tokenizer", "source": "", "model": {"tokenizer": VQ}}
        config.companions.tokenizer = ConfigDict(frozen)
        model.decoder = ConfigDict({**CAUSAL, "embed": "codes"} if kind == "codes" else UNET)
        model.target = ConfigDict(TOKENS if kind == "codes" else {"name": "noise", "width": 8})
        losses = {"token" if kind == "codes" else "noise": {"weight": 1.0}}
    config.losses = ConfigDict(losses)
    if kind not in ("pixels", "image", "features"):
        config.eval.masks = "aggregator"
    return config.lock()


def segmenter(kind: str) -> Segmenter:
    """A model with random weights."""
    return segmenter_of(config_of(kind))


def segmenter_of(config: ConfigDict) -> Segmenter:
    rng = np.random.default_rng(0)

    def random(model: ConfigDict) -> dict[str, np.ndarray]:
        _, params, frozen = split(model_shapes(model, image_size_of(config)), frozen=("encoder.*",))
        shapes = {name: x.shape for name, x in {**params, **frozen}.items()}
        return {n: 0.5 * rng.standard_normal(x, np.float32) for n, x in shapes.items()}

    companion = config.companions.get("tokenizer")
    tokenizer = None if companion is None else random(companion.model)
    return Segmenter(config, random(config.model), tokenizer=tokenizer)


MODELS: dict[str, Segmenter] = {}
KINDS = (
    "pixels",
    "along",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("codes", "noise")),
)


def model_of(kind: str) -> Segmenter:
    if kind not in MODELS:
        MODELS[kind] = segmenter(kind)
    return MODELS[kind]


STEPS = 2  # of a denoising decoder


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, 24, 20, 3), dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_slot_has_no_effect_and_a_swapped_one_has(kind, frames):
    model = model_of(kind)
    found = model.segment(frames, video=True)
    show = lambda found: model.reconstruct(found, steps=STEPS)  # noqa: E731
    picture, without = show(found), show(found.without(1))
    size = (8, 8) if kind in ("codes", "noise") else model.image_size
    assert picture.shape == (3, *size, 3) and picture.dtype == np.uint8
    noise = 30.0 * np.random.default_rng(0).standard_normal(found.slots.shape, np.float32)
    assert (picture != show(dataclasses.replace(found, slots=noise))).any()
    changed = found.slots.copy()
    changed[:, 1] = 7.0
    garbage = dataclasses.replace(found.without(1), slots=changed)
    np.testing.assert_array_equal(show(garbage), without)
    np.testing.assert_array_equal(show(found.swapped(1, found, 1)), picture)
    other = model.segment(frames[0][::-1])
    swapped = found.swapped(1, other, 0)
    np.testing.assert_array_equal(swapped.slots[:, 1], other.slots[[0, 0, 0]])
    np.testing.assert_array_equal(show(swapped), show(garbage_at(found, other.slots[0])))
    # One frame after the other, as a stream has them.
    for number, frame in enumerate(model.stream(frames)):
        single = np.int16(show(frame))
        assert np.abs(single - picture[number]).max() <= 1


def garbage_at(found, slot):
    slots = found.slots.copy()
    slots[:, 1] = slot
    return dataclasses.replace(found, slots=slots)


def test_many_frames_in_parts(frames):
    """Parts of one shape give what each frame gives."""
    model = model_of("pixels")
    found = model.segment(np.concatenate([frames] * 6))
    whole = model.reconstruct(found)
    assert len(whole) == 18
    alone = model.reconstruct(
        dataclasses.replace(
            found, **{name: getattr(found, name)[17] for name in ("slots", "slot_mask")}
        )
    )
    assert np.abs(np.int16(whole[17]) - alone).max() <= 1


@pytest.mark.parametrize("kind", ["codes"])
def test_a_saved_model_keeps_its_tokenizer(kind, frames, tmp_path):
    model = model_of(kind)
    model.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    found = model.segment(frames[0])
    np.testing.assert_array_equal(again.reconstruct(found), model.reconstruct(found))
    assert again.params.keys() == model.params.keys()


@pytest.mark.more
@pytest.mark.parametrize("kind", ["codes"])
def test_a_picture_is_what_the_tokenizer_decodes_of_the_most_likely_tokens(kind, frames):
    """The pictures of an uncached forward pass over the generated tokens agree with them."""
    model = model_of(kind)
    found = model.segment(frames[0])
    part = model.definition.merge(model.params, differentiated=False)
    tokenizer = model._tokenizer.merge(model._tokenizer_params, differentiated=False).tokenizer
    slots = found.slots[None]
    tokens = part.decoder.generate(slots, None, tokenizer.codes)
    given = {"codes": tokenizer.codes(tokens), "tokens": tokens}
    logits = part.decoder(slots, None, given, None)[0]["prediction"]
    np.testing.assert_array_equal(np.argmax(logits, axis=-1), tokens)
    pixels = np.asarray(tokenizer.decode(tokenizer.codes(tokens)))[0]
    from smoothsa_jax.models.encoders.pixels import denormalize

    unit = np.clip(np.asarray(denormalize(jax.numpy.asarray(pixels), "imagenet")), 0.0, 1.0)
    picture = model.reconstruct(found)
    assert np.abs(np.round(255.0 * unit) - picture).max() <= 1


def test_faults_in_python(frames):
    model = model_of("pixels")
    found = model.segment(frames[0])
    with pytest.raises(UserError, match="there is no slot 4; expected one of 0, 1, 2, 3"):
        found.without(4)
    with pytest.raises(UserError, match="no slot is left"):
        found.without(0, 1, 2, 3)
    with pytest.raises(UserError, match="there is no slot 2; expected one of 0, 1, 3"):
        found.without(2).without(2)
    wide = dataclasses.replace(found, slots=np.zeros((4, 9), np.float32))
    with pytest.raises(UserError, match="width 9 cannot replace one of width 8"):
        found.swapped(0, wide, 1)
    with pytest.raises(UserError, match="the slots are 9 wide, those of this model 8"):
        model.reconstruct(wide)
    several = model.segment(frames)
    with pytest.raises(UserError, match="one picture"):
        found.swapped(0, several, 1)
    bare = segmenter("features")
    with pytest.raises(UserError, match="predicts 'features', not pixels"):
        bare.reconstruct(bare.segment(frames[0]))
    config = config_of("codes")
    without = Segmenter(config, model_of("codes").params)
    with pytest.raises(UserError, match="which its files do not hold"):
        without.reconstruct(without.segment(frames[0]))
    second = config.copy_and_resolve_references().unlock()
    second.companions.tokenizer.model.tokenizer.decodes = False
    with pytest.raises(UserError, match="tokenizer has no decoder"):
        segmenter_of(second).check_pictures()


# --------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("pixels", "image", "features"):
        model_of(kind).save(folder / kind)
    return {kind: folder / kind for kind in ("pixels", "image", "features")}


@pytest.fixture(autouse=True)
def kept_models(monkeypatch):
    """Compiled once for this file."""
    monkeypatch.setattr(predict, "load", lambda source: model_of(Path(source).name))


def command(model: Path, source: Path, output: Path, *others: str) -> int:
    flags = (f"--workdir={model}", f"--input={source}", f"--output={output}")
    return here("--mode=predict", *flags, *others)


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.more
def test_pictures_of_a_video(saved, tmp_path):
    write_video(tmp_path / "a.mp4", clip(4))
    write_video(tmp_path / "b.mp4", clip(2)[::-1])
    others = ("--edit=remove:1", f"--edit=swap:0,{tmp_path / 'b.mp4'}:2", "--reconstruct")
    assert command(saved["pixels"], tmp_path / "a.mp4", tmp_path / "out", *others) == 0
    folder = tmp_path / "out" / "a.mp4"
    plain = [read(folder / f"reconstruction/{t:06d}.png") for t in range(4)]
    edited = [read(folder / f"edited/{t:06d}.png") for t in range(4)]
    assert plain[0].shape == (16, 16, 3) and len(list((folder / "edited").iterdir())) == 4
    assert all((a != b).any() for a, b in zip(plain, edited, strict=True))
    model = model_of("pixels")
    found = model.segment(clip(4), video=True)
    about = json.loads((folder / "about.json").read_text())["made_of"]
    assert about["reconstruct"] and about["edit"][0] == [1]
    slots = np.load(folder / "slots.npz")["slots"]
    np.testing.assert_allclose(slots.shape, found.slots.shape)
    # The same command has nothing to do; another edit is another output.
    assert command(saved["pixels"], tmp_path / "a.mp4", tmp_path / "out", *others) == 0
    assert command(saved["pixels"], tmp_path / "a.mp4", tmp_path / "out", "--reconstruct") == 2


def test_pictures_of_a_picture(saved, tmp_path):
    picture, other = clip(2)
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(other).save(tmp_path / "b,1.png")
    edit = f"--edit=swap:0,{tmp_path / 'b,1.png'}:2"
    assert command(saved["image"], tmp_path / "a.png", tmp_path / "out", edit) == 0
    model = model_of("image")
    found = model.segment(picture).swapped(0, model.segment(other), 2)
    np.testing.assert_array_equal(
        read(tmp_path / "out" / "a.png" / "edited.png"), model.reconstruct(found)
    )
    assert not (tmp_path / "out" / "a.png" / "reconstruction.png").exists()


FAULTS = [
    ("pixels", "--edit=remove:9", "there is no slot 9; expected one of 0, 1, 2, 3"),
    ("pixels", "--edit=remove:x", "--edit=remove:x is not an edit; expected remove:K or swap:K"),
    ("pixels", "--edit=swap:1,a.png", "is not an edit"),
    ("pixels", "--edit=swap:1,nowhere.png:0", "nowhere.png is no file"),
    ("pixels", "--edit=swap:1,text.txt:0", "text.txt has an unknown format"),
    ("pixels", "--edit=swap:1,text.png:0", "cannot be read as an image"),
    ("pixels", "--edit=swap:1,a.png:7", "the other picture has no slot 7"),
    ("features", "--edit=remove:1", "predicts 'features', not pixels"),
    ("features", "--reconstruct", "predicts 'features', not pixels"),
]


@pytest.mark.parametrize("kind, flag, message", FAULTS)
def test_faults(kind, flag, message, saved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(clip(1)[0]).save("a.png")
    Path("text.txt").write_text("no picture")
    Path("text.png").write_text("no picture")
    assert command(saved[kind], Path("a.png"), Path("out"), flag) == 2
    error = capsys.readouterr().err.strip()
    line = error.splitlines()[-1]  # the progress bar may stand before it
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out" / "a.png").exists()


def test_edits_belong_to_predict(capsys):
    assert here("--mode=evaluate", "--edit=remove:1") == 2
    assert "--edit belongs to --mode=predict" in capsys.readouterr().err
