"""Models on the user's pictures: inputs, outputs, streams, saving and loading."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from command import trained
from ml_collections import ConfigDict
from PIL import Image
from safetensors import SafetensorError
from tiny import tiny_config

import smoothsa_jax as ssa
from smoothsa_jax.checkpoints import model_files
from smoothsa_jax.checkpoints.model_files import WEIGHTS_FILE
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.metrics import score_batch
from smoothsa_jax.inference.load import SHIPPED
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.inputs.boxes import boxes_from_segmentation
from smoothsa_jax.inputs.sprites import Sprites
from smoothsa_jax.models.build import build_slot_model
from smoothsa_jax.models.parameters import split

BOXES = [[1, 2, 9, 12], [10, 4, 25, 18]]  # in pictures of 30x20


def model_of(config: ConfigDict) -> Segmenter:
    size = (config.data.image_size,) * 2
    _, params, frozen = split(build_slot_model(config.model, size, config.seed))
    return Segmenter(config, {**params, **frozen})


@pytest.fixture(scope="module")
def gaussian() -> Segmenter:
    return model_of(tiny_config(initializer="gaussian", decoder="mlp_mixture"))


@pytest.fixture(scope="module")
def boxes() -> Segmenter:
    return model_of(tiny_config(decoder="mlp_mixture"))


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3), dtype=np.uint8)


def assert_close(found, expected, rtol=1e-5):
    for field in dataclasses.fields(found):
        one, two = getattr(found, field.name), getattr(expected, field.name)
        if one is two is None:
            continue
        if one.dtype.kind == "f":
            np.testing.assert_allclose(one, two, atol=rtol * np.abs(two).max(), rtol=0)
        else:
            np.testing.assert_array_equal(one, two)


def test_what_is_found_has_the_shape_of_what_was_given(gaussian, video):
    for pictures, lead in ((video[0], ()), (video, (5,)), (video[None], (1, 5)), ([*video], (5,))):
        found = gaussian.segment(pictures)
        assert found.slots.shape == (*lead, 4, 8)
        assert found.masks.shape == (*lead, 20, 30)
        assert found.attention.shape == found.decoder_attention.shape == (*lead, 4, 4, 4)
        assert found.reconstruction_error.shape == (*lead, 4, 4)
        assert found.slot_mask.shape == (*lead, 4)
        soft = found.soft_masks
        assert soft.shape == (*lead, 4, 20, 30)
        np.testing.assert_allclose(soft.sum(axis=-3), 1, atol=1e-5)
        np.testing.assert_array_equal(soft.argmax(axis=-3), found.masks)
    whole = gaussian.segment(video, video=True)
    assert whole.slots.shape == (5, 4, 8)
    # Frames of a video depend on those before them, pictures of a batch do not.
    assert np.abs(whole.slots[1] - gaussian.segment(video).slots[1]).max() > 1e-3


def test_pictures_may_be_handed_in_in_many_ways(gaussian, video, tmp_path):
    picture = video[0]
    Image.fromarray(picture).save(tmp_path / "a.png")
    alpha = np.concatenate([picture, np.full_like(picture[..., :1], 255)], axis=-1)
    expected = gaussian.segment(picture)
    for same in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(picture),
        Image.fromarray(alpha),
        alpha,
        jax.numpy.asarray(picture),
        picture / 255.0,
        (picture / 255.0).astype(np.float32),
    ):
        assert_close(gaussian.segment(same), expected, rtol=0)
    alpha[:10, :, 3] = 0
    black = picture.copy()
    black[:10] = 0
    for same in (alpha, Image.fromarray(alpha)):
        assert_close(gaussian.segment(same), gaussian.segment(black), rtol=0)
    grey = gaussian.segment(np.repeat(picture[..., :1], 3, axis=-1))
    for same in (picture[..., 0], picture[..., :1], Image.fromarray(picture[..., 0])):
        assert_close(gaussian.segment(same), grey, rtol=0)
    deep = picture[..., 0].astype(np.uint16) * 256 + 7
    deep[0, 0] = 65535
    for same, like in (
        (Image.fromarray(deep), (deep // 256).astype(np.uint8)),
        (Image.fromarray((picture[..., 0] / 255).astype(np.float32)), picture[..., 0]),
    ):
        assert_close(gaussian.segment(same), gaussian.segment(like), rtol=0)
    turned = Image.fromarray(picture)
    exif = turned.getexif()
    exif[0x112] = 6  # to be shown turned by a quarter
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert gaussian.segment(tmp_path / "turned.jpg").masks.shape == (30, 20)


def test_the_seed_and_the_number_of_slots_can_be_chosen(gaussian, video):
    found = gaussian.segment(video[0], num_slots=7)
    assert found.slots.shape == (7, 8) and found.masks.max() < 7
    assert np.abs(gaussian.segment(video[0], seed=1).slots - gaussian.segment(video[0]).slots).max()
    assert_close(gaussian.segment(video[0]), gaussian.segment(video[0]), rtol=0)


@pytest.mark.parametrize("start", ["gaussian", pytest.param("boxes", marks=pytest.mark.more)])
def test_a_stream_finds_what_the_whole_video_gives(start, request, video, tmp_path):
    model = request.getfixturevalue(start)
    options = {"boxes": BOXES} if start == "boxes" else {"num_slots": 5}
    whole = model.segment(video, video=True, seed=3, **options)
    frames = list(model.stream(iter(video), seed=3, **options))
    stacked = [
        np.stack([getattr(f, field.name) for f in frames]) for field in dataclasses.fields(whole)
    ]
    assert_close(type(whole)(*stacked), whole)

    first = next(iter(model.stream(video[:1], seed=3, **options)))
    np.savez(tmp_path / "state.npz", **first.state)
    with np.load(tmp_path / "state.npz") as state:
        later = list(model.stream(video[1:], state=state))
    for found, expected in zip(later, frames[1:], strict=True):
        assert_close(found, expected, rtol=0)


VIT = {"name": "vit", "width": 12, "depth": 1, "num_heads": 2, "patch": 4, "registers": 0}


@pytest.mark.more
def test_a_trained_encoder_leaves_the_target_to_its_own_encoder(video):
    """A stream finds the same as a whole picture: the decoder sees part of the target."""
    config = tiny_config(num_frames=1, initializer="gaussian")
    config.model.encoder = ConfigDict({**VIT, "resize": 1.0})
    config.model.target_encoder = config.model.encoder.copy_and_resolve_references()
    config.weights.encoder.frozen = ()
    config.weights.target = {"into": "target_encoder", "source": "random", "frozen": ("*",)}
    model = model_of(config)
    (found,) = model.stream(video[:1])
    assert_close(found, model.segment(video[0]))


def test_boxes_are_those_of_the_training(boxes, video):
    """Inclusive pixels over width and height; then the slot of the whole frame comes first."""
    found = boxes.segment(video[0], boxes=BOXES)
    assert found.slot_mask.tolist() == [True, True, True, False]
    assert found.masks.max() < 3
    padded = boxes.segment(video[:2], boxes=[[*BOXES], [BOXES[0], [-1] * 4]])
    assert padded.slot_mask[:, 2].tolist() == [True, False]
    other = boxes.segment(video[0], boxes=BOXES[::-1])
    assert np.abs(other.slots[1] - found.slots[1]).max() > 1e-3


def test_slots_without_a_box_start_as_in_training(boxes, video):
    """From boxes of zeros, and taking part, where the data set has it so."""
    config = boxes.config.copy_and_resolve_references().unlock()
    config.data.background_box = False
    plain = Segmenter(config, boxes.params)
    config.data.zero_boxes = True
    zeros = Segmenter(config, boxes.params)
    found = zeros.segment(video[0], boxes=BOXES)
    absent = [[0, 0, 0, 0]] * (boxes.num_slots - len(BOXES))
    given = plain.segment(video[0], boxes=[*BOXES, *absent])
    assert absent and found.slot_mask.all()
    assert_close(found, given)


def test_a_second_call_of_the_same_shape_compiles_nothing(gaussian, video, caplog):
    def call(pictures):
        gaussian.segment(pictures[0], num_slots=3)
        gaussian.segment(pictures, num_slots=3, video=True)
        list(gaussian.stream(pictures, num_slots=3))

    call(video)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        call(255 - video)
        assert not [r for r in caplog.records if "ompil" in r.getMessage()]
        gaussian.segment(video[0], num_slots=2)  # another shape: the log does tell
        assert [r for r in caplog.records if "ompil" in r.getMessage()]


def test_a_saved_model_is_the_same_model(gaussian, video, tmp_path):
    gaussian.save(tmp_path / "model")
    loaded = ssa.load(tmp_path / "model")
    assert_close(loaded.segment(video[0]), gaussian.segment(video[0]), rtol=0)
    assert loaded.config.to_dict() == gaussian.config.to_dict()
    with pytest.raises(UserError, match="exists; nothing was changed"):
        gaussian.save(tmp_path / "model")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("of another run")
    with pytest.raises(UserError, match="exists; nothing was changed"):
        gaussian.save(tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == "of another run"
    weights = tmp_path / "model" / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        ssa.load(tmp_path / "model")


def test_names_of_models_and_of_folders(tmp_path, monkeypatch):
    assert ssa.load(Path("sprites_gaussian")).step == 7000
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sprites").mkdir()
    with pytest.raises(
        UserError, match="is the name of a model and of a folder here; write ./sprites"
    ):
        ssa.load("sprites")
    with pytest.raises(UserError, match="holds no model"):
        ssa.load("./sprites")


def test_a_stream_tells_what_it_takes(gaussian, video):
    for wrong in ("clip.mp4", video[0]):
        with pytest.raises(UserError, match="stream takes the frames of a video, and got"):
            next(gaussian.stream(wrong))
    state = gaussian.segment(video, video=True).state
    with pytest.raises(UserError, match="the last frame that `stream` gave"):
        next(gaussian.stream(video, state=state))


def test_a_full_disk_while_saving_is_one_line(gaussian, tmp_path, monkeypatch):
    def full(*arguments):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(model_files, "save_file", full)
    with pytest.raises(UserError, match="cannot be written: I/O error: No space left"):
        gaussian.save(tmp_path / "model")
    assert not (tmp_path / "model" / WEIGHTS_FILE).exists()


@pytest.mark.slow
def test_a_workdir_is_loaded(tmp_path_factory, compilation_cache, tmp_path):
    workdir = trained(tmp_path_factory.getbasetemp(), compilation_cache)
    model = ssa.load(workdir)
    assert model.step == 60
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    found = model.segment(picture, boxes=[[2, 3, 9, 9]])
    assert found.slots.shape == (model.num_slots, 8)
    with pytest.raises(UserError, match="trained on images and a video was given"):
        model.segment([picture, picture], boxes=[[2, 3, 9, 9]], video=True)
    with pytest.raises(UserError, match="has no transition and got a further frame"):
        list(model.stream([picture, picture], boxes=[[2, 3, 9, 9]]))
    with pytest.raises(UserError, match="holds no model: no usable checkpoint"):
        ssa.load(tmp_path)
    with pytest.raises(UserError, match="neither a folder nor the name of a model"):
        ssa.load("spritess")


SHIPPED_MODELS = [
    "sprites",
    *(pytest.param(f"sprites_{name}", marks=pytest.mark.more) for name in ("dias", "gaussian")),
    "sprites_slate",
    *(pytest.param(f"sprites_{name}", marks=pytest.mark.more) for name in ("slotcontrast", "spot")),
]


def test_shipped_models_are_small():
    names = [getattr(x, "values", [x])[0] for x in SHIPPED_MODELS]
    assert [model.name for model in ssa.list_models(published=False)] == names
    for folder in map(SHIPPED.joinpath, names):
        assert sum(path.stat().st_size for path in folder.iterdir()) < 2e6
        assert str(Path.home()) not in (folder / "config.json").read_text()


@pytest.mark.parametrize("name", SHIPPED_MODELS)
def test_shipped_models_find_objects(name):
    """On clips outside the training set, next to the scores on the whole test split."""
    model = ssa.load(name)
    scores = json.loads((SHIPPED / name / "scores.json").read_text())
    expected = scores["metrics"]["fg_ari"]["mean"]
    assert scores["step"] == model.step == model.config.train.num_steps
    clips = Sprites(split="test", num_frames=3, num_samples=6)
    found = []
    for index in range(len(clips)):
        clip = clips[index]
        height, width = clip["video"].shape[1:3]
        ids = np.arange(1, clip["segmentations"][0].max() + 1)
        boxes = boxes_from_segmentation(clip["segmentations"], ids)[0]
        boxes = boxes[(boxes != 0).any(axis=1)] * [width, height, width, height]
        options = {"boxes": np.rint(boxes)} if model.starts_from_boxes else {}
        if "prune" in (protocol := scores["protocol"]):  # of more slots than in training
            options |= {name: protocol[name] for name in ("prune", "num_slots")}
        masks = model.segment(clip["video"], video=model.follows, **options).masks
        pair = masks, clip["segmentations"]
        of_whole = [x[None] for x in pair] if model.follows else pair  # a picture is scored alone
        found.append(np.nanmean(score_batch(*of_whole)["fg_ari"]))
    assert np.mean(found) > expected - 0.15


def test_what_is_found_can_be_drawn(gaussian, video, tmp_path):
    ssa.draw(video[0], gaussian.segment(video[0]), tmp_path / "one.png")
    ssa.draw(video, list(gaussian.stream(video)), tmp_path / "video.gif")
    with Image.open(tmp_path / "video.gif") as gif:
        assert gif.n_frames == 5
    with Image.open(tmp_path / "one.png") as png:
        assert png.width > 60 and png.height > 40
    ssa.draw(video[None], gaussian.segment(video[None]), tmp_path / "videos.png")
    ssa.draw(iter(video), list(gaussian.stream(video)), tmp_path / "stream.gif")
    other = gaussian.segment(video[0, :10])
    for found in ([], [gaussian.segment(video[0]), other]):
        with pytest.raises(UserError, match="expected one shape: draw the result"):
            ssa.draw(video[:2], found, tmp_path / "no.png")
    with pytest.raises(UserError, match="expected one of .png, .gif"):
        ssa.draw(video[0], gaussian.segment(video[0]), tmp_path / "one.tiff")


def bad_pictures():
    nan = np.zeros((4, 4, 3))
    nan[1, 1, 1] = np.nan
    return {
        "1 values that are not finite": nan,
        "from 0 to 200, expected 0..1": np.linspace(0, 200, 48).reshape(4, 4, 3),
        "is int64, expected uint8": np.zeros((4, 4, 3), np.int64),
        r"shape \(4, 4, 2\)": np.zeros((4, 4, 2), np.uint8),
        r"shape \(0, 4, 3\)": np.zeros((0, 4, 3), np.uint8),
        "picture 1 has 5x4 pixels": [np.zeros((4, 4), np.uint8), np.zeros((5, 4), np.uint8)],
        "no picture was given": [],
        "does not exist": "no/such/file.png",
    }


@pytest.mark.parametrize("message", bad_pictures())
def test_bad_pictures_are_told(gaussian, message):
    with pytest.raises(UserError, match=message):
        gaussian.segment(bad_pictures()[message])


def test_a_file_that_is_no_image_is_told(gaussian, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be read as an image"):
        gaussian.segment(tmp_path / "a.png")


@pytest.mark.parametrize(
    "message, options",
    {
        "none were given; give boxes=": {},
        "num_slots=3 was given, and this model has a slot for each box": {"num_slots": 3},
        r"boxes have shape \(4,\)": {"boxes": [1, 2, 3, 4]},
        r"box \[1.0, 2.0, 30.0, 9.0\] does not lie in a picture of 30x20": {
            "boxes": [[1, 2, 30, 9]]
        },
        r"box \[9.0, 2.0, 3.0, 9.0\] does not lie": {"boxes": [[9, 2, 3, 9]]},
    }.items(),
)
def test_bad_boxes_are_told(boxes, video, message, options):
    with pytest.raises(UserError, match=message):
        boxes.segment(video[0], **options)


def test_bad_slots_are_told(gaussian, video):
    with pytest.raises(UserError, match="num_slots is 0"):
        gaussian.segment(video[0], num_slots=0)
    with pytest.raises(UserError, match="starts its slots from Gaussian queries; leave them out"):
        gaussian.segment(video[0], boxes=BOXES)


def test_weights_of_another_model_are_refused(gaussian):
    other = tiny_config(initializer="gaussian", decoder="mlp_mixture")
    other.model.slot_size = 16
    with pytest.raises(UserError, match="weights and config do not belong together"):
        Segmenter(other, gaussian.params)


def test_nothing_is_imported_before_it_is_used():
    assert {"load", "list_models", "draw"} <= set(dir(ssa))
    assert not hasattr(ssa, "nothing_of_this_name")
