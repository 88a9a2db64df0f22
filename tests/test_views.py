"""The task `views`: which rays are drawn, what is scored, and what is refused."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_torch_files
from flax import nnx
from golden_files import FOLDER
from ml_collections import ConfigDict
from recipes import quick
from test_torch_files import plain

from configs import base
from smoothsa_jax.checkpoints import published
from smoothsa_jax.config.load import load_config
from smoothsa_jax.convert import read_workdir, write_workdir
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.pictures import scene_sheet
from smoothsa_jax.evaluation.split import Measured, evaluate
from smoothsa_jax.evaluation.views import ViewsEvaluator
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.interop import state_dicts
from smoothsa_jax.models.build import DECODERS, ENCODERS
from smoothsa_jax.models.decoders import rays as ray_decoders
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.layers.rays import pixel_rays
from smoothsa_jax.models.parameters import split
from smoothsa_jax.models.views import Rays
from smoothsa_jax.parts import make
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.training import loop
from smoothsa_jax.training.step import build_training

write = test_torch_files.write  # a fixture
CONFIG = f"{Path(__file__).parent.parent / 'configs' / 'scenes.py'}:views,osrt,smoke"
HEIGHT, WIDTH, VIEWS = 6, 8, 5


def target(**settings) -> Rays:
    chosen = {"input_views": 2, "targets": "others", "order": "drawn", "rays": 40, **settings}
    return Rays(None, (HEIGHT, WIDTH), **chosen, rngs=None)


def scenes(batch: int = 2, size: tuple[int, int] = (HEIGHT, WIDTH), views: int = VIEWS) -> dict:
    rng = np.random.default_rng(0)
    return {
        "video": rng.integers(0, 256, (batch, views, *size, 3), np.uint8),
        "segmentations": rng.integers(0, 3, (batch, views, *size), np.uint8),
        "cameras": rng.standard_normal((batch, views, 4, 3)).astype(np.float32),
        "slot_mask": np.ones((batch, 3), bool),
    }


def tiny(words: str = "osrt") -> ConfigDict:
    config = load_config(CONFIG.replace("osrt", words)).unlock()
    base.set_parts(config.model, base.SMOKE_PARTS)
    config.model.slot_size = base.SMOKE_SLOT_SIZE
    config.model.target.update(input_views=2, rays=64)
    config.data.image_size, config.data.num_frames = 16, 4
    config.eval.num_frames, config.train.batch_size = 4, 2
    return config


# --------------------------------------------------------------------------------------- the rays


@pytest.mark.parametrize("targets", ["others", "all"])
def test_rays_are_drawn_without_replacement_from_the_target_views(targets):
    """Every ray has the colour and the camera of its pixel, and no pixel comes twice."""
    part, batch = target(targets=targets), scenes()
    draws = part.draw([jax.random.key(0)], Sizes(2, VIEWS, 3), True)
    found = jax.jit(part)(batch, {}, draws)
    frames, cameras = part.seen(batch, draws)
    every = pixel_rays(
        batch["cameras"][:, :, None, None], *np.mgrid[:HEIGHT, :WIDTH], (HEIGHT, WIDTH)
    )[1]
    for b in range(2):
        order = np.asarray(draws["order"][b])
        assert sorted(order) == list(range(VIEWS))
        inputs, rest = order[:2], order[2:] if targets == "others" else order
        np.testing.assert_array_equal(frames[b], batch["video"][b][inputs])
        np.testing.assert_array_equal(cameras[b], batch["cameras"][b][inputs])
        rays, colours = np.asarray(found["rays"][b, 0]), np.asarray(found["target"][b, 0])
        distance = np.abs(np.asarray(every[b]).reshape(-1, 1, 3) - rays).max(-1)
        at = distance.argmin(0)
        assert distance.min(0).max() < 1e-6
        assert len(set(at)) == len(at) == 40
        view = at // (HEIGHT * WIDTH)
        assert set(view) <= set(rest)
        np.testing.assert_allclose(colours * 255, batch["video"][b].reshape(-1, 3)[at], atol=1e-3)
        np.testing.assert_array_equal(found["positions"][b, 0], batch["cameras"][b, view, 0])
    assert not np.array_equal(draws["order"][0], draws["order"][1])


def test_all_rays_at_evaluation():
    """In the given order: view by view, row by row."""
    part, batch = target(), scenes()
    assert part.draw([jax.random.key(0)], Sizes(2, VIEWS, 3), False) is None
    found = part(batch, {}, None)
    pictures = np.asarray(found["target"])[:, 0].reshape(2, VIEWS - 2, HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(pictures * 255, batch["video"][:, 2:], atol=1e-3)
    np.testing.assert_array_equal(part.seen(batch, None)[0], batch["video"][:, :2])


def test_given_views_stay_in_their_order():
    draws = target(order="given").draw([jax.random.key(0)], Sizes(2, VIEWS, 3), True)
    np.testing.assert_array_equal(draws["order"], [range(VIEWS)] * 2)


def test_rays_of_a_camera():
    """Through the centres of pixels, of length one, for any length of the camera's vectors."""
    camera = jnp.array([[1.0, 2, 3], [0, 0, 2], [1, 0, 0], [0, 1, 0]])
    positions, rays = pixel_rays(
        jnp.broadcast_to(camera, (2, 4, 3)), jnp.array([0, 1]), jnp.array([0, 3]), (2, 4)
    )
    expected = np.array([[-0.75, -0.5, 2], [0.75, 0.5, 2]])
    np.testing.assert_allclose(positions, [[1, 2, 3]] * 2)
    np.testing.assert_allclose(rays, expected / np.linalg.norm(expected, axis=1)[:, None], 1e-6)


# ------------------------------------------------------------------------------------------ parts


def test_an_encoder_of_every_third_pixel():
    """Sees pixels and rays of the whole picture, from the middle of the first ones on."""
    every = 3
    settings = {"name": "scene", **base.SMOKE_PARTS["scene"], "num_blocks": 1, "every": every}
    build = lambda: make("e", settings, ENCODERS, (HEIGHT, WIDTH), rngs=nnx.Rngs(0))  # noqa: E731
    encoder, batch = build(), scenes()
    run = jax.jit(lambda *inputs: encoder(*inputs)["features"])
    found = run(batch["video"] / 255.0, batch["cameras"])
    rows, columns = np.mgrid[every // 2 : HEIGHT : every, every // 2 : WIDTH : every]
    positions, rays = pixel_rays(batch["cameras"][:, :, None, None], rows, columns, (HEIGHT, WIDTH))
    seen = batch["video"][:, :, every // 2 :: every, every // 2 :: every] / 255.0
    expected = jax.jit(encoder.encode)(seen, positions[:, :, 0, 0], rays)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert found.shape[1] == VIEWS * encoder.grid[0] * encoder.grid[1]


def test_tokens_of_all_views_meet():
    """Another pixel in one view changes the tokens of the others, and the order of views does not
    change a view's tokens."""
    settings = {"name": "scene", **base.SMOKE_PARTS["scene"], "num_blocks": 1}
    encoder = make("e", settings, ENCODERS, (HEIGHT, WIDTH), rngs=nnx.Rngs(0))
    batch = scenes(1, views=2)
    video, cameras = batch["video"] / 255.0, batch["cameras"]
    run = jax.jit(lambda video, cameras: encoder(video, cameras)["features"])
    tokens = run(video, cameras).reshape(2, -1, encoder.width)
    turned = run(video[:, ::-1], cameras[:, ::-1]).reshape(2, -1, encoder.width)
    np.testing.assert_allclose(turned[::-1], tokens, atol=1e-4)
    changed = video.copy()
    changed[0, 1, 0, 0] = 1 - changed[0, 1, 0, 0]
    assert np.abs(run(changed, cameras).reshape(tokens.shape)[0] - tokens[0]).max() > 1e-6


@pytest.mark.parametrize(
    "name", quick(["ray_mixer", "ray_broadcast", "ray_transformer"], "ray_broadcast")
)
def test_slices_of_rays(name, monkeypatch):
    """At evaluation a few rays at a time give what all at once do."""
    settings = {"name": name, **base.SMOKE_PARTS[name]}
    build = lambda: make("d", settings, DECODERS, (1, 1), 3, 8, rngs=nnx.Rngs(0))  # noqa: E731
    definition, params, _ = split(build())
    rng = np.random.default_rng(0)
    slots = rng.standard_normal((2, 3, 8)).astype(np.float32)
    given = {x: rng.standard_normal((2, 23, 3)).astype(np.float32) for x in ("positions", "rays")}

    def run(slots):
        return definition.merge(params, differentiated=False)(slots, None, given)

    whole = jax.jit(run)(slots)
    monkeypatch.setattr(ray_decoders, "AT_A_TIME", 30)
    sliced = jax.jit(lambda slots: run(slots))(slots)
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(sliced), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    loops = lambda differentiated: str(  # noqa: E731
        jax.make_jaxpr(
            lambda x: definition.merge(params, differentiated=differentiated)(x, None, given)
        )(slots)
    ).count("scan[")
    assert loops(False) == 1 and loops(True) == 0


# ---------------------------------------------------------------------------------------- scoring


def outputs_of(colours: np.ndarray, slots: np.ndarray, batch: dict, part: Rays) -> dict:
    """What a model would return: colours (B,T,H,W,3), and the slot (B,T,H,W) of each pixel."""
    one_hot = np.eye(3, dtype=np.float32)[slots.reshape(len(slots), -1)]
    return {
        "prediction": jnp.asarray(colours.reshape(len(colours), 1, -1, 3)),
        "target": part(batch, {}, None)["target"],
        "masks": jnp.asarray(one_hot.swapaxes(1, 2)[:, None, :, None]),
    }


def test_scores_of_scenes():
    """PSNR is averaged over scenes; a slot has to keep its object from view to view."""
    part, batch = target(), scenes()
    evaluator = ViewsEvaluator(part, has_masks=True)
    true = batch["video"][:, 2:].astype(np.float32) / 255
    off = np.array([0.1, 0.01], np.float32).reshape(2, 1, 1, 1, 1)
    labels = batch["segmentations"][:, 2:]
    turned = np.where(np.arange(VIEWS - 2)[:, None, None] == 1, (labels + 1) % 3, labels)
    for slots, kept in ((labels, True), (turned, False)):
        outputs = outputs_of(true + off, slots, batch, part)
        predict = lambda *_, outputs=outputs: outputs  # noqa: E731
        found = evaluate(predict, [batch], evaluator, keep_samples=1)
        assert (found.scores["fg_ari"] == 1).all() == kept
        np.testing.assert_allclose(found.scores["psnr"][0], [20, 40], rtol=1e-4)
        np.testing.assert_allclose(evaluator.means(found.scores)["psnr"], [30], rtol=1e-4)
    (scene,) = found.samples
    np.testing.assert_array_equal(scene["inputs"], batch["video"][0, :2])
    np.testing.assert_array_equal(scene["masks"], turned[0])
    np.testing.assert_array_equal(scene["video"], batch["video"][0, 2:])
    assert scene["rendered"].shape == scene["video"].shape


def test_scores_without_slots(tmp_path):
    part, batch = target(), scenes()
    evaluator = ViewsEvaluator(part, has_masks=False)
    assert evaluator.metrics == ("psnr",) and "masks" not in evaluator.outputs
    true = batch["video"][:, 2:].astype(np.float32) / 255
    outputs = outputs_of(true, batch["segmentations"][:, 2:], batch, part)
    measured = evaluator.measure(outputs, batch)
    assert isinstance(measured, Measured) and measured.segments is None
    (scene,) = evaluator.kept(measured, batch, [0])
    np.testing.assert_array_equal(scene["rendered"], batch["video"][0, 2:])
    scene_sheet(scene, tmp_path / "scene.png")
    assert (tmp_path / "scene.png").stat().st_size > 0


# ---------------------------------------------------------------------------------- the whole task


@pytest.mark.slow
@pytest.mark.parametrize("words", quick(["osrt", "osrt,tf_inv", "osrt,srt"], "osrt"))
def test_a_step_of_training_and_an_evaluation(words):
    """The loss is over the rays that were drawn; scores are over all pixels."""
    config = tiny(words)
    config.optimizer.learning_rate.update(peak=5e-4, warmup=0.0)
    training = build_training(config)
    size, views = (config.data.image_size,) * 2, config.data.num_frames
    raw = scenes(size=size, views=views)
    raw["slot_mask"] = np.ones((2, config.model.num_slots), bool)
    batch, state, losses = training.place(raw), training.state, []
    assert "cameras" in batch
    for _ in range(8):
        state, metrics = training.train_step(state, training.frozen, batch, jax.random.key(0))
        losses.append(float(metrics["loss/reconstruction"]))
    assert losses[-1] < losses[0]
    found = training.predict(state.params, training.frozen, batch, jax.random.key(1))
    again = training.predict(state.params, training.frozen, batch, jax.random.key(2))
    pixels = 2 * size[0] * size[1]
    assert found["prediction"].shape == (2, 1, pixels, 3)
    if "masks" in training.task.evaluator.outputs:
        assert found["masks"].shape == (2, 1, config.model.num_slots, 1, pixels)
    np.testing.assert_array_equal(found["prediction"], again["prediction"])


def test_learned_slots_that_are_not_trained_are_said(capsys):
    """With the gradient of the last iteration alone, none reaches them; once, when a run begins."""
    for words, is_said in (("osrt,sa_id", True), ("osrt,sa", False)):
        loop._begin(tiny(words), None)
        said = capsys.readouterr().err
        assert said.count("\n") == is_said
        assert ("model.initializer.name='learned' gets no gradient" in said) == is_said


def test_one_line_of_what_is_wrong():
    config = tiny()
    task = build_task(config)
    with pytest.raises(UserError, match="the data has no 'cameras'"):
        task.check_batch({"video": np.zeros((1, 4, 16, 16, 3), np.uint8)})
    for change, expected in (
        ({"data.num_frames": 2}, "scenes have 2 views, expected at least 3"),
        ({"eval.num_frames": 2}, "scenes have 2 views, expected at least 3"),
        ({"eval.num_frames": -4}, "eval.num_frames is -4, but the task 'views' scores as many"),
        ({"model.target.rays": 513}, r"rays is 513, but 2 target views of 16x16 pixels have 512"),
        ({"model.target.targets": "most"}, "targets is 'most'; expected one of all, others"),
        ({"eval.num_slots": 7}, "eval.num_slots is 7, but model.initializer.name='learned'"),
        ({"eval.masks": "aggregator"}, "eval.masks is 'aggregator', but the task 'views'"),
        ({"eval.prune": "auto"}, "eval.prune is 'auto', but the task 'views'"),
        ({"model.encoder.name": "vit"}, "model.encoder.name is 'vit', which the task 'views'"),
        ({"data.boxes": True}, "data.boxes is True, but model.initializer.name is 'learned'"),
    ):
        other = tiny()
        for key, value in change.items():
            with other.ignore_type():
                other.update_from_flattened_dict({key: value})
        with pytest.raises(UserError, match=expected):
            check(other)
    with pytest.raises(UserError, match=r"task 'views' renders a scene .* finds no segments"):
        Segmenter(config, {})
    with pytest.raises(UserError, match="tokens have 32 channels and model.slot_size is 48"):
        other = tiny("osrt,srt")
        other.model.slot_size = 48
        build_task(other).build(shapes_only=True)


def test_data_without_views():
    with pytest.raises(UserError, match="OSRT is a system of scenes.*add the word views"):
        load_config(CONFIG.replace("views,", ""))
    with pytest.raises(UserError):
        load_config(CONFIG.replace("scenes.py:views", "sprites.py:image"))


# ------------------------------------------------------------------------------------- state dicts

LAYOUTS = json.loads((FOLDER / "osrt_state_dicts.json").read_text())
# (slots, views) of the data sets.
DATA = {"msn_hard": (32, 10), "clevr3d": (6, 3), "obsurf_msn": (5, 3)}


def recipe(name: str, words: str = "osrt") -> ConfigDict:
    slots, views = DATA[name]
    size = 128 if name == "msn_hard" else (240, 320)
    data = base.DataSet(
        name=name,
        data={"name": "prepared", "views": True, "image_size": size, "num_frames": views},
        num_slots=slots,
        num_steps=1,
        batch_size=1,
    )
    return base.compose(data, words)


def shapes_of(expected: dict[str, str]) -> dict[str, list[int]]:
    assert all(x.startswith("float32") for x in expected.values())
    return {key: json.loads(re.sub(r"^\w+", "", x)) for key, x in expected.items()}


@pytest.mark.parametrize("name", quick(list(DATA), "clevr3d"))
def test_a_published_layout(name):
    """Our model of a recipe has exactly the arrays of the program's."""
    config = recipe(name)
    assert shapes_of(published.expected_keys(config)) == LAYOUTS[name]
    zeros = {key: np.broadcast_to(np.float32(0), shape) for key, shape in LAYOUTS[name].items()}
    assert published.family_of(zeros).title == "OSRT"
    configs = {f"{x}:osrt": recipe(x) for x in DATA}
    assert published.configs_of(zeros, configs) == [f"{name}:osrt"]


@pytest.mark.parametrize(
    "word, layout", [("broadcast", "decoder_spatial_broadcast"), ("srt", "decoder_srt")]
)
def test_the_layout_of_another_decoder(word, layout):
    found = shapes_of(published.expected_keys(recipe("msn_hard", f"osrt,{word}")))
    assert {k: x for k, x in found.items() if k.startswith("decoder.")} == LAYOUTS[layout]


@pytest.fixture(scope="module")
def arrays():
    """A small state dict of the program, by its keys."""
    rng = np.random.default_rng(0)
    expected = shapes_of(published.expected_keys(tiny()))
    return {key: rng.standard_normal(x).astype(np.float32) for key, x in expected.items()}


def test_a_file_comes_back_bit_for_bit(arrays, tmp_path):
    source, target = tmp_path / "model.safetensors", tmp_path / "back.safetensors"
    state_dicts.write(source, arrays)
    write_workdir(state_dicts.read(source), tiny(), tmp_path / "run")
    state_dicts.write(target, read_workdir(tmp_path / "run", pytest.fail))
    again = state_dicts.read(target)
    assert again.keys() == arrays.keys()
    for key, x in arrays.items():
        np.testing.assert_array_equal(again[key], x, err_msg=key, strict=True)


def of_part(arrays: dict, part: str) -> dict:
    return {k.removeprefix(f"{part}."): x for k, x in arrays.items() if k.startswith(f"{part}.")}


def test_the_program_saves_the_parts_side_by_side(arrays, write):
    """A state dict of the encoder and of the decoder each, beside the optimizer's and numbers."""
    parts = {
        part: {k: plain(x, entry=f"{part}.{k}") for k, x in of_part(arrays, part).items()}
        for part in ("encoder", "decoder")
    }
    moments = plain(np.ones(3, np.float32), entry="moments")
    optimizer = {"state": {0: {"exp_avg": moments}}, "param_groups": [{"lr": 1e-4}]}
    path = write({**parts, "optimizer": optimizer, "it": 7, "loss_val_best": -3.0}, "model.pt")
    found = state_dicts.read(path)
    assert found.keys() == arrays.keys()
    for key, x in arrays.items():
        np.testing.assert_array_equal(found[key], x, err_msg=key, strict=True)


def test_a_file_for_the_program(arrays, tmp_path):
    torch = pytest.importorskip("torch")
    state_dicts.write(tmp_path / "model.pt", arrays)
    whole = torch.load(tmp_path / "model.pt", weights_only=True)
    assert whole.keys() == {"encoder", "decoder"}
    for part, found in whole.items():
        expected = of_part(arrays, part)
        assert found.keys() == expected.keys()
        for key, x in expected.items():
            np.testing.assert_array_equal(found[key].numpy(), x, err_msg=key)
    again = state_dicts.read(tmp_path / "model.pt")
    for key, x in arrays.items():
        np.testing.assert_array_equal(again[key], x, err_msg=key, strict=True)
