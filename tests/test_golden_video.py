"""VideoSAUR, SlotContrast and RandSF.Q against the numbers of their programs.

The models are those of the gallery, with the sizes of the files. GOLDEN_DIR names another folder of
the same layout, with other numbers and other sizes.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import (
    FORWARD,
    FORWARD_BACKBONE,
    GRADIENT,
    LOSS,
    METRIC,
    TRAINED,
    Golden,
    adam_state,
    compare_gradients,
    golden,
    inner,
    write_report,
)
from ml_collections import ConfigDict
from recipes import quick
from tiny import tiny_config

from smoothsa_jax.config.load import load_config
from smoothsa_jax.devices.mesh import replicated
from smoothsa_jax.interop.programs import GENERA1Z, VIDEOSAUR, Program
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.losses.slots import slot_contrast_loss
from smoothsa_jax.losses.time import time_similarity, time_similarity_loss
from smoothsa_jax.models.build import (
    AGGREGATORS,
    DECODERS,
    TRANSITIONS,
    build_slot_model,
)
from smoothsa_jax.models.parameters import split
from smoothsa_jax.parts import make
from smoothsa_jax.schedules import schedule_of
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.task import run_task
from smoothsa_jax.training.step import build_training

CONFIGS = Path(__file__).parent.parent / "configs"
VIT_HEADS = 3
WARMUP = 2_500  # steps


@dataclasses.dataclass(frozen=True)
class System:
    """A model of the gallery, and the names that its program gives to losses.

    Attributes:
        words: data set and words of its config.
        program: whose names the arrays have.
        losses: their name -> ours.
    """

    words: str
    program: Program
    losses: Mapping[str, str]


SIMILARITY, CONTRAST = "time_similarity", "slot_contrast"
FEATURES = {"loss_featrec": "reconstruction"}
RECON = {"recon": "reconstruction"}
SYSTEMS = {
    "videosaur_original": System(
        "movi_c:gaussian,videosaur,original", VIDEOSAUR, {"loss_timesim": SIMILARITY}
    ),
    "videosaur_original_features": System(
        "ytvis:videosaur,dinov2,original", VIDEOSAUR, {**FEATURES, "loss_timesim": SIMILARITY}
    ),
    "videosaur_genera1z": System(
        "ytvis_hq:videosaur,genera1z", GENERA1Z, {**RECON, "tsim": SIMILARITY}
    ),
    "slotcontrast_original": System(
        "movi_c:gaussian,slotcontrast,original", VIDEOSAUR, {**FEATURES, "loss_ss": CONTRAST}
    ),
    "slotcontrast_genera1z": System(
        "ytvis_hq:slotcontrast,genera1z", GENERA1Z, {**RECON, "ssc": CONTRAST}
    ),
    "randsfq_bbox": System("movi_c:randsfq", GENERA1Z, {**RECON, "ssc": CONTRAST}),
    "randsfq_shared_tsim": System("ytvis_hq:randsfq,tsim", GENERA1Z, {**RECON, "tsim": SIMILARITY}),
}
DRAWN = [name for name, system in SYSTEMS.items() if system.program is GENERA1Z]
TRAINED_IN = [x for x in SYSTEMS if x not in ("videosaur_original", "randsfq_bbox")]
# A part: the system it is of, its kind, and what its names have in front in the program.
PARTS = {
    "slot_attention_videosaur": ("videosaur_original", "aggregator"),
    "slot_attention_slotcontrast": ("slotcontrast_original", "aggregator"),
    "transition_slotcontrast": ("slotcontrast_original", "transition"),
    "transition_post_norm_encoder": ("slotcontrast_genera1z", "transition"),
    "decoder_slot_mixer_videosaur": ("videosaur_original_features", "decoder"),
    "decoder_slot_mixer_genera1z": ("videosaur_genera1z", "decoder"),
    "decoder_mlp_slotcontrast": ("slotcontrast_original", "decoder"),
}
IN_FRONT = {
    (VIDEOSAUR.title, "aggregator"): "processor.module.corrector.",
    (VIDEOSAUR.title, "transition"): "processor.module.predictor.",
    (VIDEOSAUR.title, "decoder"): "decoder.module.",
    (GENERA1Z.title, "transition"): "transit.",
    (GENERA1Z.title, "decoder"): "decode.",
}
ITERATIONS = {"slot_attention_videosaur": 3, "slot_attention_slotcontrast": 2}
FILES = [
    *PARTS,
    "loss_time_similarity",
    "loss_slot_contrast_per_video",
    "schedule_exp_decay",
    *(f"model_{name}" for name in SYSTEMS),
    *(f"model_{name}_train_fixed_draws" for name in DRAWN),
    *(f"trajectory_{name}" for name in TRAINED_IN),
]


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    write_report()


@functools.cache
def of_gallery(name: str) -> ConfigDict:
    data_set, _, words = SYSTEMS[name].words.partition(":")
    return load_config(f"{CONFIGS / data_set}.py:{words}")


def is_null(name: str) -> bool:
    """Whether a gradient, or a part of it, is zero in exact arithmetic."""
    null = ("norm_slots.bias", "norm_key.bias", "in_bias", "decoder.out.bias")
    return name.endswith(null)


def not_null(name: str, x: np.ndarray) -> np.ndarray:
    """The part of a trained array that is not left to rounding noise."""
    if name.endswith(("norm_slots.bias", "norm_key.bias")):
        return x[:0]
    if name.endswith("decoder.out.bias"):
        return x[:-1]  # alpha is the last
    if name.endswith("in_bias"):
        queries, _, values = np.split(x, 3)
        return np.concatenate([queries, values])
    return x


# -------------------------------------------------------------------------------------------- sizes


def count(keys, pattern: str) -> int:
    found = [int(match[1]) for key in keys if (match := re.search(pattern, key))]
    return 1 + max(found, default=-1)


def decoder_sizes(decoder: ConfigDict, names: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Sizes of a decoder, of arrays by the names in its program."""
    names = {key: x for key, x in names.items() if "decode" in key}
    shape = lambda pattern: next(x.shape for k, x in names.items() if re.search(pattern, k))  # noqa: E731
    if decoder.name == "random_ar":
        return {"num_layers": count(names, r"backbone\.layers\.(\d+)")}
    if decoder.name == "mlp_mixture":
        layer = r"(?:decode\.backbone|mlp\.layers)\.(\d+)\.weight$"
        last = count(names, layer)
        return {
            "num_layers": (last + 1) // 2,
            "hidden_size": shape(layer.replace(r"(\d+)", "0"))[0],
        }
    number = r"(?:renderer\.layers|render)\.(\d+)\.weight$"
    rendered = {k: x for k, x in names.items() if re.search(number, k) and x.ndim == 2}
    last = any("output_transform" in key for key in names)
    return {
        "num_layers": count(names, r"(?:allocator\.blocks|allocat\.layers)\.(\d+)"),
        "hidden_size": next(iter(rendered.values())).shape[0],
        "renderer_layers": len(rendered) + last,
    }


def vit_sizes(names: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    keys = {key.removeprefix(prefix): x for key, x in names.items() if key.startswith(prefix)}
    return {
        "width": keys["cls_token"].shape[-1],
        "depth": count(keys, r"blocks\.(\d+)\."),
        "num_heads": VIT_HEADS,
        "patch": keys["patch_embed.proj.weight"].shape[-1],
        "registers": keys["reg_token"].shape[1] if "reg_token" in keys else 0,
    }


# -------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    "name", quick(list(PARTS), "slot_attention_slotcontrast", "transition_post_norm_encoder")
)
def test_part(name):
    """Outputs of a part, and the gradient of their sum with the cotangents."""
    system, kind = PARTS[name]
    program = SYSTEMS[system].program
    front = IN_FRONT[program.title, kind]
    with golden(name) as file:
        slots = file["inp/slots"]
        recorded = {front + key: x for key, x in file.group("param/").items()}
        settings = of_gallery(system).model[kind].to_dict()
        width, slot_size = slots.shape[-1], slots.shape[-1]
        sizes = (width, slot_size)
        if kind == "decoder":
            masks = file["out/attention"]
            channels, tokens = file["out/reconstruction"].shape[-1], masks.shape[-1]
            settings |= decoder_sizes(ConfigDict(settings), recorded)
            settings.pop("logits", None)  # all channels at once
            sizes = ((1, tokens), channels, slot_size)
        elif kind == "aggregator":
            settings["first"] = ITERATIONS[name]
            sizes = (file["inp/features"].shape[-1], slot_size)
        table = {"aggregator": AGGREGATORS, "transition": TRANSITIONS, "decoder": DECODERS}[kind]
        build = lambda: make(kind, settings, table, *sizes, rngs=nnx.Rngs(0))  # noqa: E731
        definition, expected, _ = split(nnx.eval_shape(build), prefix=f"{kind}.")
        # The position of other parts in a name tells which program's layout it is.
        names = {*expected, "transition.layer"}
        arrays = program.to_ours(recorded, names)
        assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}
        inputs = {key: jnp.asarray(x) for key, x in file.group("inp/").items() if "cot" not in key}
        cotangents = file.group("inp/cotangent_")

        def apply(arrays, inputs):
            module, slots = definition.merge(arrays), inputs["slots"]
            if kind == "transition":
                return {"queries": module(slots, None, None)[0]}
            if kind == "decoder":
                predicted, masks = module(slots)
                return {"reconstruction": predicted, "attention": masks[:, :, 0]}
            found = module(module.prepare(inputs["features"]), slots)
            return {"slots": found.slots, "attention": found.attention[-1]}

        @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
        def run(arrays, inputs):
            outputs = apply(arrays, inputs)
            return inner([(outputs[k], x) for k, x in cotangents.items()]), outputs

        arrays = {k: jnp.asarray(x) for k, x in arrays.items()}
        (_, outputs), (of_arrays, of_inputs) = jax.jit(run)(arrays, inputs)
        for key, value in outputs.items():
            file.compare(f"out/{key}", value, FORWARD)
        for key, value in of_inputs.items():
            file.compare(f"grad/inp/{key}", value, GRADIENT)
        theirs = {k: x for k, x in file.group("grad/").items() if not k.startswith("inp/")}
        theirs = {front + k: x for k, x in theirs.items()}
        compare_recorded(file, program, theirs, names, of_arrays)


def compare_recorded(
    file: Golden, program: Program, recorded, names, gradients: Mapping[str, Any]
) -> None:
    """Compare gradients; one that is not recorded has to be zero."""
    recorded = program.to_ours(recorded, names)
    compare_gradients(file, gradients, recorded, null=is_null, not_recorded=0.0)


def test_time_similarity():
    with golden("loss_time_similarity") as file:
        features, logits = file["inp/features"], file["inp/logits"]
        cases = {"genera1z": (1.0, None)}
        for key in file.group("loss/"):
            if key.startswith("videosaur_"):
                cases[key] = float(key.removeprefix("videosaur_")), 0.0
        assert len(cases) > 1
        # The decoder's logits have a frame more, which has no target.
        whole = jnp.concatenate([logits, jnp.full_like(logits[:, :1], 7.0)], axis=1)
        for case, (temperature, threshold) in cases.items():
            of = jax.jit(functools.partial(time_similarity, threshold=threshold))
            target = of(features, temperature)
            file.compare(f"out/target_{case}", target, FORWARD)
            loss, gradient = jax.jit(jax.value_and_grad(time_similarity_loss))(whole, target)
            file.compare(f"loss/{case}", loss, LOSS)
            file.compare(f"grad/inp/logits_{case}", gradient[:, :-1], GRADIENT)
            assert not np.any(gradient[:, -1])


def test_slot_contrast_of_each_video():
    with golden("loss_slot_contrast_per_video") as file:
        run = jax.value_and_grad(lambda slots: slot_contrast_loss(slots, alone=True))
        loss, gradient = jax.jit(run)(jnp.asarray(file["inp/slots"]))
        file.compare("loss/unweighted", loss, LOSS)
        file.compare("grad/inp/slots", gradient, GRADIENT)


def test_schedule():
    """Warm-up, then halving by the last step, for any number of steps."""
    shipped = of_gallery("slotcontrast_original").optimizer.learning_rate.to_dict()
    with golden("schedule_exp_decay") as file:
        for key in file.group("inp/steps_"):
            warmup = WARMUP / int(key)
            settings = {**shipped, "peak": 1.0, "warmup": warmup, "half_life": 1.0 - warmup}
            schedule = schedule_of("optimizer.learning_rate", settings, int(key))
            found = np.array([schedule(step) for step in file[f"inp/steps_{key}"]])
            file.compare(f"out/factor_{key}", found, METRIC)


# ------------------------------------------------------------------------------------------- models


class Recorded:
    """A file's model in our layout: its config, its arrays by our names, its batch."""

    def __init__(self, name: str, file: Golden):
        self.name, self.system = name, SYSTEMS[name]
        video = np.moveaxis(file["inp/video"], 2, -1)
        self.video = np.ascontiguousarray(video)
        self.boxes = file["inp/bbox"] if "inp/bbox" in file else None
        params = file.group("param/")
        slots = file["out/slotz" if "out/slotz" in file else "out/slots"]
        self.num_slots = slots.shape[2]
        is_genera1z = self.system.program is GENERA1Z
        backbone = "m.encode_backbone.1." if is_genera1z else "encoder.module.backbone.model."
        model = of_gallery(name).model.copy_and_resolve_references().unlock()
        model.num_slots, model.slot_size = self.num_slots, slots.shape[-1]
        model.encoder.update(vit_sizes(params, backbone))
        model.encoder.layer_scale = f"{backbone}blocks.0.ls1.gamma" in params
        side = round((params[f"{backbone}pos_embed"].shape[1] - 0.5) ** 0.5)
        if model.encoder.get("position_side"):
            model.encoder.position_side = side
        model.decoder.update(decoder_sizes(model.decoder, params))
        if model.transition.name == "randsfq":
            model.transition.history = params["m.transit.te.weight"].shape[0]
        self.model = model
        size = self.video.shape[2:4]
        build = lambda: build_slot_model(self.model, size, seed=0)  # noqa: E731
        _, trained, frozen = split(nnx.eval_shape(build))
        expected = {key: x.shape for key, x in {**trained, **frozen}.items()}
        self.names = frozenset(expected)
        self.arrays = self.to_ours(params)
        assert {key: x.shape for key, x in self.arrays.items()} == expected

    def to_ours(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays such as gradients, of which some may be missing."""
        return self.system.program.to_ours(arrays, self.names, self.model)

    def config(self) -> ConfigDict:
        """The whole config: that of the gallery where the numbers depend on it."""
        shipped = of_gallery(self.name)
        config = tiny_config(num_frames=self.video.shape[1]).to_dict()
        config["data"] |= {"image_size": self.video.shape[2:4], "boxes": self.boxes is not None}
        config["model"] = self.model.to_dict()
        config["losses"] = shipped.losses.to_dict()
        config["optimizer"] = shipped.optimizer.to_dict()
        config["train"] |= {"batch_size": len(self.video), "match_paper": False}
        return ConfigDict(config)

    def draws(self, file: Golden, training: bool) -> dict[str, Any]:
        """The draws that a file names; all others are off."""
        found = dict.fromkeys(("initializer", "decoder", "transition", "aggregator", "target"))
        if "inp/noise" in file:
            noise = file["inp/noise"]
            always = self.model.initializer.get("noise", "always") == "always"
            found["initializer"] = noise if training or always else None
        if not training or "inp/slot_frame" not in file:
            return found
        batch, frames = self.video.shape[:2]
        order, number = file["inp/permutation"], file["inp/num_visible"]
        visible = np.zeros(order.shape, bool)
        for row, (places, k) in enumerate(zip(order, number, strict=True)):
            visible[row, places[:k]] = True
        found["decoder"] = visible.reshape(batch, frames, -1)
        now = np.arange(1, frames)
        # The second frame never draws.
        before = np.concatenate([np.zeros((batch, 1), int), file["inp/slot_frame"]], axis=1)
        seen = np.concatenate([np.ones((batch, 1), int), file["inp/feature_frame"]], axis=1)
        offsets = {"slot_offset": now - before, "feature_offset": now - seen}
        found["transition"] = {k: x.astype(np.int32) for k, x in offsets.items()}
        found["transition"]["dropout"] = None
        return found

    def batch(self) -> dict[str, np.ndarray]:
        batch, frames = self.video.shape[:2]
        boxes = self.boxes
        if boxes is None:
            boxes = np.full((batch, frames, self.num_slots, 4), -1, np.float32)
        mask = np.ones((batch, self.num_slots), bool)
        return {"video": self.video, "boxes": boxes, "slot_mask": mask}


OUTPUTS = {  # their name -> our output
    "feature": "features",
    "features": "features",
    "encoded": "tokens",
    "slotz": "slots",
    "slots": "slots",
    "queries_next": "queries_next",
    "attent": "attention",
    "attention": "attention",
    "recon": "all_channels",
    "reconstruction": "all_channels",
    "attent2": "masks",
    "decoder_attention": "masks",
    "block_keys": "keys",
    "target_loss_timesim": "similarity",
}


def compute(case: Recorded, draws: dict) -> tuple[dict, dict, dict]:
    """Return all outputs, the weighted losses, and the gradient of their sum.

    Outputs include those of parts alone where a file has their numbers.
    """
    config = case.config()
    task, losses = build_task(config), build_losses(config.losses)
    definition, _, frozen = split(task.build(shapes_only=True), frozen=("encoder.*",))
    settings, batch = config.losses.get(SIMILARITY), case.batch()
    is_original = case.system.program is VIDEOSAUR

    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, still):
        model = definition.merge(params, still)
        outputs = run_task(task, {"model": model}, batch, draws)
        terms = losses(outputs, batch, losses.schedules)
        # Not every system has a loss that reads the keys.
        outputs |= model.encode(batch["video"], also=("keys",) if is_original else ())
        outputs["tokens"] = model.projection(outputs["features"])
        if is_original:
            slots = outputs["slots"]
            queries, _ = model.transition(slots.reshape(-1, *slots.shape[2:]), None, None)
            outputs["queries_next"] = queries.reshape(slots.shape)
        if settings is not None:
            of = outputs["keys" if settings.of == "keys" else "target"]
            found = time_similarity(of, settings.temperature, settings.threshold, settings.shift)
            outputs["similarity"] = found
        both = [outputs[k] for k in ("prediction", "next_frame_logits") if k in outputs]
        outputs["all_channels"] = jnp.concatenate(both, axis=-1)
        return sum(terms.values()), (outputs, terms)

    arrays = {k: jnp.asarray(x) for k, x in case.arrays.items()}
    params = {k: x for k, x in arrays.items() if k not in frozen}
    (_, found), gradients = jax.jit(run)(params, {k: arrays[k] for k in frozen})
    return *found, gradients


def compare_model(case: Recorded, file: Golden, draws: dict) -> None:
    """Compare outputs, losses and gradients."""
    outputs, terms, gradients = compute(case, draws)
    for key in [key for key in file.arrays if key.startswith("out/")]:
        name = OUTPUTS[key.removeprefix("out/")]
        found, shape = np.asarray(outputs[name]), file.arrays[key].shape
        if name in ("features", "all_channels") and len(shape) == 5:  # channels first, on a grid
            found = found.swapaxes(2, 3)
        file.compare(key, found.reshape(shape), FORWARD_BACKBONE)
    assert set(terms) == set(case.system.losses.values())
    for theirs, ours in case.system.losses.items():
        file.compare(f"loss/{theirs}", terms[ours], LOSS)
    compare_recorded(file, case.system.program, file.group("grad/"), case.names, gradients)


@pytest.mark.parametrize("name", quick(list(SYSTEMS)))
def test_model_at_evaluation(name):
    """Outputs, losses and gradients with evaluation's draws."""
    with golden(f"model_{name}") as file:
        case = Recorded(name, file)
        compare_model(case, file, case.draws(file, training=False))


@pytest.mark.parametrize("name", quick(DRAWN))
def test_model_in_training(name):
    """Outputs, losses and gradients with the recorded draws of a training step."""
    with (
        golden(f"model_{name}", parts=()) as model,
        golden(f"model_{name}_train_fixed_draws") as file,
    ):
        case = Recorded(name, model)
        compare_model(case, file, case.draws(file, training=True))


def setup_of(case: Recorded, config: ConfigDict):
    """The real training step with the recorded arrays."""
    setup = build_training(config)
    put = lambda names: jax.device_put(  # noqa: E731
        {name: jnp.asarray(case.arrays[name]) for name in names}, replicated(setup.mesh)
    )
    state = setup.state.replace(params=put(setup.state.params))
    return setup, state, put(setup.frozen), setup.place(case.batch())


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED_IN)
def test_training(name):
    """Six steps of the train step that `main.py` calls, with the optimizer of the gallery."""
    with (
        golden(f"model_{name}", parts=()) as model,
        golden(f"trajectory_{name}", parts=("inp/", "loss/", "out/", "param/")) as file,
    ):
        case = Recorded(name, model)
        rates, norms = file["out/learning_rates"], file["out/grad_norm"]
        steps, peak = len(rates), int(rates.argmax())
        config = case.config()
        rate = config.optimizer.learning_rate
        rate.peak, rate.warmup = float(rates.max()), peak / steps
        if "half_life" in rate:
            rate.half_life = 1.0 - rate.warmup
        config.train.num_steps = steps
        setup, state, frozen, batch = setup_of(case, config)
        draws = case.draws(file if "inp/noise" in file else model, training=True)
        found, final, first = [], None, None
        for step in range(steps + 1):
            state, metrics = setup.train_step(state, frozen, batch, jax.random.key(step), draws)
            found.append(jax.device_get(metrics))
            if step == 0:
                first = jax.device_get(adam_state(state).mu)
            if step == steps - 1:  # one more step tells the losses after the last
                final = jax.device_get(state.params)
        # After one step Adam's first moment is a tenth of the clipped gradient.
        clipped = sum(float(np.square(x).sum()) for x in first.values()) ** 0.5
        bound = min(config.optimizer.clip_norm, norms[0])
        np.testing.assert_allclose(10 * clipped, bound, rtol=GRADIENT)
        file.compare("out/learning_rates", [m["learning_rate"] for m in found[:steps]], LOSS)
        file.compare("out/grad_norm", [m["grad_norm"] for m in found[: len(norms)]], GRADIENT)
        for theirs, ours in case.system.losses.items():
            file.compare(f"loss/{theirs}", [m[f"loss/{ours}"] for m in found], LOSS)
        recorded = case.to_ours(file.group("param/"))
        assert recorded.keys() == final.keys()
        for key, expected in recorded.items():
            actual, expected = not_null(key, final[key]), not_null(key, expected)
            error = np.abs(actual - expected).max(initial=0.0)
            assert error <= TRAINED * np.abs(expected).max(initial=1e-12), f"{key}: {error:.1e}"
