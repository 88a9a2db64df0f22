"""LPIPS with VGG16: of files in their real layout, and as a score of predicted frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from tiny import as_dynamics, tiny_config

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.frames import PerceptualDistance
from smoothsa_jax.evaluation.prediction import PredictionEvaluator
from smoothsa_jax.evaluation.split import _apart
from smoothsa_jax.interop.perceptual import load_lpips
from smoothsa_jax.models.build import PERCEPTUALS
from smoothsa_jax.models.perceptual import BACKBONES
from smoothsa_jax.parts import make
from smoothsa_jax.tasks.checks import check

# Convolutions of torchvision's VGG16, by their numbers in `features`; "M" halves the picture.
VGG16 = (0, 2, "M", 5, 7, "M", 10, 12, 14, "M", 17, 19, 21, "M", 24, 26, 28)
TAPS = (2, 7, 14, 21, 28)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
SIZE = (20, 17)
ROWS = ("model", "copy", "line", "seen")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of random weights, and these weights."""
    folder = tmp_path_factory.mktemp("lpips")
    return folder, *vgg16_files(folder)


def vgg16_files(folder) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Write random weights in the files' layouts, narrower than the real ones."""
    rng = np.random.default_rng(0)
    network, heads, before = {}, {}, 3
    for place, number in enumerate(n for n in VGG16 if n != "M"):
        width = 4 + place
        kernel = rng.normal(size=(width, before, 3, 3)) * (2 / (9 * before)) ** 0.5
        network[f"features.{number}.weight"] = kernel.astype(np.float32)
        network[f"features.{number}.bias"] = 0.1 * rng.normal(size=width).astype(np.float32)
        before = width
        if number in TAPS:
            head = rng.uniform(size=(1, width, 1, 1)).astype(np.float32)
            heads[f"lin{TAPS.index(number)}.model.1.weight"] = head
    network["classifier.0.bias"] = np.zeros(4096, np.float32)  # unused
    save_file(network, folder / "vgg16-397923af.safetensors")
    save_file(heads, folder / "vgg.safetensors")
    return network, heads


def in_numpy(x, y, network, heads) -> np.ndarray:
    """LPIPS of pairs (B,H,W,3), from its paper, in float64."""
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    pair = [(z.astype(np.float64) - shift) / scale for z in (x, y)]
    total = np.zeros(len(x))
    for number in VGG16:
        if number == "M":
            halves = [z[:, : z.shape[1] // 2 * 2, : z.shape[2] // 2 * 2] for z in pair]
            apart = [z.reshape(len(z), z.shape[1] // 2, 2, -1, 2, z.shape[-1]) for z in halves]
            pair = [z.max(axis=(2, 4)) for z in apart]
            continue
        kernel = network[f"features.{number}.weight"].astype(np.float64)
        bias = network[f"features.{number}.bias"]
        for k, z in enumerate(pair):
            height, width = z.shape[1:3]
            padded = np.pad(z, ((0, 0), (1, 1), (1, 1), (0, 0)))
            found = sum(
                padded[:, i : i + height, j : j + width] @ kernel[:, :, i, j].T
                for i in range(3)
                for j in range(3)
            )
            pair[k] = np.maximum(found + bias, 0.0)
        if number in TAPS:
            unit = [z / (np.linalg.norm(z, axis=-1, keepdims=True) + 1e-10) for z in pair]
            head = heads[f"lin{TAPS.index(number)}.model.1.weight"][0, :, 0, 0]
            total += ((unit[0] - unit[1]) ** 2 @ head).mean(axis=(1, 2))
    return total


def frames(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, 3, *SIZE, 3)).astype(np.float32)


def test_vgg16_gives_the_distance_of_a_plain_computation(files):
    folder, network, heads = files
    distance, x, y = PerceptualDistance(str(folder), SIZE), frames(0), frames(1)
    expected = in_numpy(x.reshape(6, *SIZE, 3), y.reshape(6, *SIZE, 3), network, heads)
    assert expected.std() > 0.01 * expected.mean()  # the frames differ
    np.testing.assert_allclose(distance(x, y).reshape(6), expected, rtol=1e-5)
    np.testing.assert_allclose(distance(y, x), distance(x, y), rtol=1e-5)
    np.testing.assert_allclose(distance(x, x), 0.0, atol=1e-12)


def test_widths_are_the_published_ones():
    """Of torchvision's VGG16, configuration D, and of the heads; a part of a config may name it."""
    settings = {"name": "lpips", "backbone": "vgg16"}
    model = nnx.eval_shape(lambda: make("x", settings, PERCEPTUALS, rngs=nnx.Rngs(0)))
    widths = [conv.kernel.shape for conv in model.convs]
    channels = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    assert widths == [(3, 3, a, b) for a, b in zip((3, *channels[:-1]), channels, strict=True)]
    assert [head.shape for head in model.heads] == [(64,), (128,), (256,), (512,), (512,)]
    assert len(BACKBONES["vgg16"].pooled) == 4


def evaluator(lpips: str, pixels: str | None = "signed", **more) -> PredictionEvaluator:
    settings = {"has_masks": False, "decodes": True, "observed": 1, "steps": 2, **more}
    return PredictionEvaluator(pixels=pixels, image_size=SIZE, lpips=lpips, **settings)


@pytest.mark.parametrize("pixels", ["signed", "unit"])
def test_predicted_frames_have_the_score_beside_psnr(files, pixels):
    """Every row, frame by frame, of pixels from -1 to 1 that are not cut off."""
    folder, network, heads = files
    scored = evaluator(str(folder), pixels)
    assert scored.metrics == ("slot_error", "decoded_error", "psnr", "ssim", "lpips")
    assert scored.protocol["lpips"] == "vgg16" and "lpips" in scored.errors
    signed = {row: frames(k)[:1, :2] for k, row in enumerate((*ROWS, "target"))}
    outputs = {"slot_mask": np.ones((1, 3), bool)}
    for row, x in signed.items():
        flat = (x if pixels == "signed" else (x + 1) / 2).reshape(1, 2, -1, 3)
        outputs["target" if row == "target" else f"{row}.prediction"] = flat
    outputs |= {f"{row}.slots": np.zeros((1, 2, 3, 2), np.float32) for row in ROWS}
    batch = {"video": np.zeros((1, 3, *SIZE, 3), np.uint8), "num_frames": np.array([3])}
    measured = scored.measure({k: jnp.asarray(x) for k, x in outputs.items()}, batch)
    own, rows = _apart(scored.per_sample(jax.device_get(measured.tables), False), scored.rows)
    for row, found in {"model": own, **rows}.items():
        expected = in_numpy(signed[row][0], signed["target"][0], network, heads)
        np.testing.assert_allclose([found[f"lpips_{k}"][0] for k in (1, 2)], expected, rtol=1e-4)
        np.testing.assert_allclose(found["lpips"], expected.mean(), rtol=1e-4)
    assert "lpips" in scored.means(own)
    assert "lpips" not in evaluator("").metrics and "lpips" not in evaluator("").protocol


def test_what_cannot_be_scored_is_refused(files, tmp_path):
    folder, network, heads = files
    with pytest.raises(UserError, match="eval.lpips: .* has no vgg16-.*vgg16-397923af.pth .*vgg.p"):
        evaluator(str(tmp_path))
    save_file(network, tmp_path / "vgg16-397923af.safetensors")
    with pytest.raises(UserError, match=r"has no vgg\.\*; expected a folder with torchvision's"):
        evaluator(str(tmp_path))
    narrow = {**heads, "lin2.model.1.weight": np.zeros((1, 5, 1, 1), np.float32)}
    save_file(narrow, tmp_path / "vgg.safetensors")
    with pytest.raises(UserError, match="lin2.model.1.weight of 5 channels, but .* has 10 there"):
        load_lpips(str(tmp_path), "eval.lpips", "vgg16")
    fewer = {key: x for key, x in heads.items() if key != "lin4.model.1.weight"}
    save_file(fewer, tmp_path / "vgg.safetensors")
    with pytest.raises(UserError, match="should hold lin4.model.1.weight, but has no such array"):
        load_lpips(str(tmp_path), "eval.lpips", "vgg16")
    with pytest.raises(UserError, match="decoder makes no pixels of slots alone"):
        evaluator(str(folder), None)
    with pytest.raises(UserError, match="15x20 pixels, but vgg16 needs at least 16; raise data.im"):
        PerceptualDistance(str(folder), (15, 20))
    config = tiny_config()
    config.eval.lpips = str(folder)
    with pytest.raises(UserError, match="which is for the task 'dynamics', but the task is 'disc"):
        check(config)
    config = as_dynamics(tiny_config(5, decoder="mlp_mixture"))
    config.eval.lpips = str(folder)
    with pytest.raises(UserError, match="decoder makes no pixels of slots alone"):
        check(config)
