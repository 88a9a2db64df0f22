"""The PyTorch program that benchmarks/against_peer.py compares with: is it the same program?

Recorded numbers (tests/golden/README.md) are what ours is held against too (test_golden.py), with
the same bounds.
"""

import importlib
import json
import sys

import numpy as np
import pytest
from command import ROOT
from test_golden import (
    CLIP,
    DETACHED_STEPS,
    FORWARD,
    FORWARD_BACKBONE,
    GRADIENT,
    LOSS,
    LOSSES,
    MODELS,
    OWN_FOLDER,
    TRAINED,
    WEIGHTS,
    Golden,
    Recorded,
)

from smoothsa_jax.errors import UserError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")
pytestmark = pytest.mark.torch

torch.set_num_threads(
    1
)  # threads that wait for each other take minutes where other tests run beside
sys.path.append(str(ROOT / "benchmarks"))

from peer_torch.model import SmoothSA, losses  # noqa: E402
from peer_torch.parts import RandomARDecoder, Transition  # noqa: E402
from peer_torch.step import TrainStep, inference  # noqa: E402

load_script = importlib.import_module  # of benchmarks/


def tensor(array: np.ndarray):
    return torch.from_numpy(np.array(array))


def close(key: str, actual, expected: np.ndarray, tolerance: float) -> None:
    """Within `tolerance` of the largest value, as `Golden.compare`."""
    actual = actual.detach().numpy() if hasattr(actual, "detach") else np.asarray(actual)
    assert actual.shape == expected.shape, key
    error, largest = np.abs(actual - expected).max(), np.abs(expected).max()
    assert error <= tolerance * largest, f"{key}: error {error:.2e}, largest value {largest:.2e}"


def load(name: str):
    """A golden file, and the peer with the authors' weights: every key is used, none is missing."""
    file = Golden(f"model_{name}")
    case = Recorded(file)
    model = SmoothSA(case.config.to_dict(), case.image_size)
    recorded = torch.load(OWN_FOLDER / f"model_{name}.pth", weights_only=True)
    model.load_state_dict({key.removeprefix("m."): x for key, x in recorded.items()}, strict=True)
    boxes = None if case.boxes is None else tensor(case.boxes[:, 0])
    return file, case, model.eval(), (tensor(case.video), tensor(case.noise), boxes)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_losses_and_gradients(name):
    file, case, model, inputs = load(name)
    outputs = model(*inputs)

    def grid(x):
        return (x if case.is_video else x[:, 0]).unflatten(-1, case.grid)

    close("feature", grid(outputs["features"].mT), file["out/feature"], FORWARD_BACKBONE)
    close("recon", grid(outputs["reconstruction"].mT), file["out/recon"], FORWARD_BACKBONE)
    close("attenta", grid(outputs["attention"]), file["out/attenta"], FORWARD_BACKBONE)
    close("attentd", grid(outputs["decoder_attention"]), file["out/attentd"], FORWARD_BACKBONE)
    close("qinit", outputs["warm"], file["out/qinit"], FORWARD_BACKBONE)
    segments = model.masks(*inputs) if case.is_video else model.masks(*inputs)[:, 0]
    assert (segments.numpy() == file["out/segment"]).mean() > 0.999  # two slots may tie in a pixel

    fused = model(*inputs, weights=False)  # as in training
    assert "decoder_attention" not in fused
    terms = losses(fused, losses_of(case))
    for key, recorded in file.group("loss/").items():
        close(key, terms[LOSSES[key]], recorded, LOSS)
    sum(terms.values()).backward()
    gradients = {f"m.{k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
    for key, recorded in file.group("grad/").items():
        if np.abs(recorded).max() > 1e-6:  # else rounding noise of what is analytically zero
            close(key, gradients[key], recorded, GRADIENT)
    assert gradients.keys() == file.group("grad/").keys()


def losses_of(case: Recorded) -> dict:
    """The `losses` of a config: a term that a model does not have is absent."""
    return {term: {"weight": case.loss[term]} for term in WEIGHTS if case.loss.get(term)}


def training_config(name: str, case: Recorded, file: Golden) -> dict:
    """Of the recorded training steps."""
    rates = file["out/learning_rates"]
    num_steps, peak = len(rates) - 1, int(rates.argmax())
    return {
        "model": {"initializer": {"detach": {"at": DETACHED_STEPS / num_steps}}},
        "losses": losses_of(case),
        "optimizer": {
            "learning_rate": {
                "peak": float(rates[peak]),
                "warmup": peak / num_steps,
                "end_ratio": float(rates[-1] / rates[peak]),
            },
            "clip_norm": CLIP[name.split("_")[0]],
            "rates": {},
            "clip_by": "norm",
        },
        "train": {"num_steps": num_steps},
    }


@pytest.mark.parametrize("name", MODELS)
def test_six_training_steps(name):
    """The very step that is timed, with everything random but the recorded noise off."""
    _, case, model, inputs = load(name)
    file = Golden(f"trajectory_{name}")
    rates = file["out/learning_rates"]
    step = TrainStep(model, training_config(name, case, file))
    found = []
    for _ in rates[:-1]:
        rate = step.optimizer.param_groups[0]["lr"]
        found.append({"rate": rate, **step(*inputs)})
    close("rates", [f["rate"] for f in found], rates[:-1], LOSS)
    close("grad_norms", [f["grad_norm"] for f in found], file["out/grad_norms"], GRADIENT)
    terms = np.array([[f[term] for term in case.loss] for f in found])
    np.testing.assert_allclose(terms, file["out/losses"][:-1], rtol=LOSS)
    trained = {f"m.{key}": x for key, x in model.state_dict().items()}
    for key, recorded in file.group("param_end/").items():
        if recorded.dtype != bool:
            close(key, trained[key], recorded, TRAINED)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(name, dtype):
    """As on a GPU, by autocast, float16 with a scaled loss: near what is recorded in float32."""
    file, case, model, inputs = load(name)
    half = getattr(torch, dtype)
    found = inference(model, "cpu", half)(*inputs)
    recorded = file["out/attentd"]
    assert found["decoder_attention"].dtype == half
    attention = found["decoder_attention"].float().reshape(recorded.shape)
    close("attentd", attention, recorded, 1e-2)
    recorded = file["out/segment"]
    masks = inference(model.masks, "cpu", half)(*inputs).reshape(recorded.shape)
    assert (masks.numpy() == recorded).mean() > 0.8  # slots of these models are near each other

    file = Golden(f"trajectory_{name}")
    step = TrainStep(model, training_config(name, case, file), half)
    if (
        step.scaler.is_enabled()
    ):  # as it is after the first steps, which overflow and change nothing
        step.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    found = [step(*inputs) for _ in file["out/losses"][:-1]]
    terms = np.array([[f[term] for term in case.loss] for f in found])
    np.testing.assert_allclose(terms, file["out/losses"][:-1], rtol=2e-2)


def test_a_stream_finds_what_the_clip_has():
    """Frame by frame from previous slots, as `Segmenter.stream`; with the first frame's slots."""
    name = next(name for name in MODELS if Recorded(Golden(f"model_{name}")).is_video)
    _, _, model, (video, noise, boxes) = load(name)
    follow = inference(model.follow, "cpu")
    with torch.inference_mode():
        whole = model(video, noise, boxes)
        expected = model.masks(video, noise, boxes)
    slots = whole["slots"][:, 0]
    for frame in range(1, video.shape[1]):
        slots, masks = follow(video[:, frame : frame + 1], slots)
        close("slots", slots, whole["slots"][:, frame].numpy(), FORWARD)
        assert (masks[:, 0] == expected[:, frame]).float().mean() > 0.999


def test_ours_follows_as_its_model_does(compilation_cache):
    """The step that is timed, beside the model over a clip of two frames."""
    against_peer, one_side = load_script("against_peer"), load_script("one_side")
    options = against_peer.argparse.Namespace(
        quick=True, threads=1, clock="wall", compile_mode="default", compile_whole=False
    )
    case = against_peer.CASES["stream"]
    spec = against_peer.make_spec("ours", case, 1, "cpu", options)
    import jax
    from ml_collections import ConfigDict

    from smoothsa_jax.config.values import canonical
    from smoothsa_jax.evaluation.upsampling import segments_from_masks
    from smoothsa_jax.tasks.task import MODEL, run_task, sizes_of
    from smoothsa_jax.training.step import build_training

    training = build_training(canonical(ConfigDict(spec["config"])))
    batch = one_side.make_batch({**spec, "frames": 2})
    arrays = training.state.params, training.frozen
    models = {MODEL: training.definitions[MODEL].merge(*arrays, differentiated=False)}
    draws = training.task.draw(models, jax.random.key(0), sizes_of(batch), False)
    clip = jax.device_get(run_task(training.task, models, batch, draws))
    expected = segments_from_masks(clip["masks"], batch["video"].shape[2:4])
    second = {"video": batch["video"][:, 1:], "slot_mask": batch["slot_mask"]}
    follow = one_side.following_masks(training)
    slots, masks = follow(clip["slots"][:, 0], arrays, second)
    close("slots", slots, clip["slots"][:, 1], FORWARD)
    assert (np.asarray(masks)[:, 0] == np.asarray(expected)[:, 1]).mean() > 0.999


def test_the_decoder_in_training():
    file = Golden("decoder_random_ar_train_fixed_order")
    features, slots = tensor(file["inp/features"]), tensor(file["inp/slots"])
    sizes = features.shape[2], slots.shape[2], features.shape[1]
    recorded = {key: tensor(x) for key, x in file.group("param/").items()}
    layers = 1 + max(int(key.split(".")[2]) for key in recorded if ".layers." in key)
    decoder = RandomARDecoder(*sizes, layers, 4)
    decoder.load_state_dict(recorded, strict=True)
    drawn = tensor(file["inp/permutation"]), tensor(file["inp/num_visible"])
    reconstruction, attention = decoder(features, slots, *drawn)
    close("recon", reconstruction, file["out/recon"], FORWARD)
    close("attention", attention, file["out/attention"], FORWARD)
    fused, _ = decoder(features, slots, *drawn, weights=False)
    close("fused", fused, file["out/recon"], FORWARD)


def test_the_transition_in_training():
    file = Golden("transition_train_fixed_pairs")
    features, slots = tensor(file["inp/features"]), tensor(file["inp/slots"])
    recorded = {key: tensor(x) for key, x in file.group("param/").items()}
    history = len(recorded["te.weight"])
    transition = Transition(features.shape[3], slots.shape[3], 4, history, 0.5).eval()
    transition.load_state_dict(recorded, strict=True)
    slots, features = slots[:, 1 - history :], features[:, -history:]
    sample, past = torch.arange(len(slots)), slots.shape[1]
    slot_time, feature_time = tensor(file["inp/slot_time"]), tensor(file["inp/feature_time"])
    queries = transition(
        slots[sample, slot_time],
        features[sample, feature_time],
        past - slot_time,
        past - feature_time,
    )
    close("queries", queries, file["out/queries"], FORWARD)


def test_flop_are_those_of_the_matrix_products():
    """Counted by hand for a ViT; the whole step counts the backward pass of trained parts only."""
    against_peer = load_script("against_peer")
    one_side = load_script("one_side")
    config = against_peer.make_config(against_peer.CASES["train_coco"], "float32", quick=True)
    model, video = config["model"], (2, 1, 64, 64, 3)
    forward = one_side.count_flop(config, video, (2, 7, 32), "infer")
    step = one_side.count_flop(config, video, (2, 7, 32), "train")
    vit = model["encoder"]
    tokens, prefix, width = 16, 1 + vit["registers"], vit["width"]
    patches = 2 * tokens * 3 * vit["patch"] ** 2 * width
    block = 2 * (tokens + prefix) * width * 12 * width + 4 * (tokens + prefix) ** 2 * width
    encoder = 2 * (patches + vit["depth"] * block)  # two images
    assert 2 < (step - encoder) / (forward - encoder) < 3


def test_the_script_measures_both_sides(tmp_path, compilation_cache, monkeypatch, capsys):
    """Of two cases, in the second of which a side crashes: what was measured stays."""
    against_peer = load_script("against_peer")
    make_spec = against_peer.make_spec

    def crashing(name, case, *others):
        spec = make_spec(name, case, *others)
        return spec | {"dtype": "float31"} if (name, case.kind) == ("eager", "stream") else spec

    monkeypatch.setattr(against_peer, "make_spec", crashing)
    monkeypatch.setenv("BENCHMARK_TABLE", str(tmp_path / "table"))
    written = tmp_path / "found.json"
    arguments = ["--quick", "--device=cpu", "--sides", "ours", "eager", "--threads=1", "--pause=0"]
    cases = ["--cases", "stream", "train_movi_c", "--rounds=2", f"--json={written}"]
    assert against_peer.main([*arguments, *cases]) == 1
    stream, row = json.loads(written.read_text())["rows"]
    assert stream["case"] == "stream@1, quick" and stream["ratios"] == {}
    assert stream["sides"].keys() == {"ours"} and "status 1" in stream["failed"]["eager"]
    assert stream["sides"]["ours"]["p99_seconds"] >= stream["sides"]["ours"]["median_seconds"]
    assert row["case"] == "train_movi_c@1, quick" and not row["failed"]
    assert row["flop"] > 1e6 and row["ratios"].keys() == {"eager"}
    for side in row["sides"].values():
        assert len(side["turns"]) == 2 and side["median_seconds"] > 0
        assert 5e7 < side["peak_bytes"] < 1e10
    text = capsys.readouterr().out
    assert "Not measured on a GPU" in text and "training step, MOVi-C" in text
    assert f"**{row['ratios']['eager']:.2f}**" in text
    told = (tmp_path / "table").read_text()
    assert told.count("| failed |") == 1 and told.count(" ms |") == 3
    with pytest.raises(UserError, match="--cases train_mov_c is unknown"):
        against_peer.main(["--cases", "train_mov_c"])
    with pytest.raises(UserError, match="--rounds is 0"):
        against_peer.main(["--rounds=0"])


def test_a_side_that_is_never_ready_is_left_out(compilation_cache):
    against_peer = load_script("against_peer")
    arguments = ["--quick", "--device=cpu", "--sides", "eager", "--threads=1", "--cases", "image"]
    assert against_peer.main([*arguments, "--rounds=1", "--patience=0.1"]) == 1
