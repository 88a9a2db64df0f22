"""Whole models and training steps of DIAS, SPOT and DINOSAUR, against their programs' numbers.

GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes: every size
is read from the files. The settings below are stated in the READMEs only.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import (
    FORWARD_BACKBONE,
    GRADIENT,
    LOSS,
    NO_GRADIENT,
    TRAINED,
    Golden,
    adam_state,
    compare_gradients,
    golden,
    write_report,
)
from ml_collections import ConfigDict
from recipes import quick
from tiny import tiny_config

from smoothsa_jax.devices.mesh import replicated
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.interop.programs import GENERA1Z, OCLF, SPOT, Program
from smoothsa_jax.interop.table import KeyTable
from smoothsa_jax.losses.attention import match_segments
from smoothsa_jax.models.build import build_slot_model
from smoothsa_jax.models.parameters import split
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.task import run_task
from smoothsa_jax.training.step import build_training

VIT_HEADS, HEADS, ITERATIONS = 3, 4, 3
DROPOUT = 0.01  # in the MLP of DINOSAUR's re-implementation; its draws are left out
RESIZE = {GENERA1Z: 0.875, SPOT: 1.0, OCLF: 1.0}

OURS = {"gradient": "full", "epsilon": 1e-5, "epsilon_in": "sum", "activation": "gelu"}
WEIGHTS = {"gradient": "full", "epsilon": 1e-8, "epsilon_in": "weights", "activation": "relu"}
BILEVEL = {"gradient": "last_and_queries"}
NORM = {"biases": "none", "activation": "gelu", "final_norm": False, "first_norm": "stream"}


@dataclasses.dataclass(frozen=True)
class System:
    """How a program's model is made of ours.

    Attributes:
        program: whose names it has.
        attention: settings of slot attention.
        decoder: settings of the decoder, besides its sizes.
        projection: activation of the projection.
        noise: of the initializer, "always" or "training".
        losses: their name of a loss -> ours, with its settings.
        clip: the norm's bound, and what it is.
        schedule: of the learning rate: settings besides peak and warm-up.
    """

    program: Program
    attention: Mapping[str, Any]
    decoder: Mapping[str, Any]
    projection: str
    losses: Mapping[str, Any]
    noise: str = "always"
    clip: tuple[float, str] = (1.0, "norm")
    schedule: Mapping[str, Any] = dataclasses.field(default_factory=dict)


COSINE = {"schedule": "warmup_cosine", "end_ratio": 1e-3}
RECON = {"recon": ("reconstruction", {"weight": 1.0})}
MATCH = {"match": ("attention_match", {"weight": 0.005, "on": "logits"})}
MATCH_MAP = {"match": ("attention_match", {"weight": 0.005, "on": "attention"})}
DISTILL = {"distill": ("attention_distillation", {"weight": None})}  # given in the files
SPOT_AR = {
    "name": "permuted_ar",
    "biases": "all_but_attention",
    "activation": "relu",
    "final_norm": True,
    "first_norm": "stream",
}
OCLF_AR = {
    "name": "permuted_ar",
    "biases": "all",
    "activation": "relu",
    "final_norm": False,
    "first_norm": "branch",
}
MIXTURE = {"name": "mlp_mixture", "position": "slots"}
LARGEST = (0.3, "largest")
HALVING = {"schedule": "warmup_halving", "half_life": 3}  # in steps
SYSTEMS = {
    "dias": System(GENERA1Z, OURS, {"name": "random_ar"}, "gelu", {**RECON, **DISTILL}),
    "spot_original": System(SPOT, WEIGHTS, SPOT_AR, "relu", RECON, clip=LARGEST),
    "spot_mlp_original": System(
        SPOT, WEIGHTS, {**MIXTURE, "activation": "relu", "widen": True}, "relu", RECON
    ),
    "spot_student_original": System(
        SPOT,
        {**WEIGHTS, **BILEVEL},
        SPOT_AR,
        "relu",
        {**RECON, **MATCH},
        clip=LARGEST,
        schedule={**COSINE, "ends_at_peak": True},
    ),
    "spot_genera1z": System(
        GENERA1Z, OURS, {"name": "permuted_ar", **NORM}, "gelu", RECON, clip=LARGEST
    ),
    "spot_distill_genera1z": System(
        GENERA1Z,
        {**OURS, **BILEVEL},
        {"name": "permuted_ar", **NORM},
        "gelu",
        {**RECON, **MATCH_MAP},
        "training",
        clip=LARGEST,
    ),
    "dinosaur_mlp_original": System(
        OCLF,
        WEIGHTS,
        {**MIXTURE, "activation": "relu"},
        "relu",
        {"mse": RECON["recon"]},
        schedule=HALVING,
    ),
    "dinosaur_ar_original": System(
        OCLF, WEIGHTS, OCLF_AR, "relu", {"mse": RECON["recon"]}, schedule=HALVING
    ),
    "dinosaur_genera1z": System(
        GENERA1Z,
        {**OURS, **BILEVEL},
        {**MIXTURE, "activation": "gelu"},
        "gelu",
        RECON,
        "training",
    ),
}
STUDENTS = {"spot_student_original": "spot_original", "spot_distill_genera1z": "spot_genera1z"}
TRAINED_IN = [
    "dias",
    "spot_student_original",
    "spot_distill_genera1z",
    "dinosaur_mlp_original",
    "dinosaur_ar_original",
    "dinosaur_genera1z",
]
# Recorded in training mode apart; the student's own files are in training mode.
DRAWN = ["dias", "dinosaur_genera1z"]
FILES = [
    *(f"model_{name}" for name in SYSTEMS),
    *(f"model_{name}_train_fixed_draws" for name in DRAWN),
    *(f"trajectory_{name}" for name in TRAINED_IN),
]


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    write_report()


# ------------------------------------------------------------------------------ models from files


def count(keys, pattern: str) -> int:
    found = [int(match[1]) for key in keys if (match := re.search(pattern, key))]
    return 1 + max(found, default=-1)


def part_of(params: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The arrays of a student or of its teacher, in a file of both; else all of them."""
    starts = [f"{name}.", f"m.{name}."]
    mine = {key: x for key, x in params.items() if key.startswith(tuple(starts))}
    if not mine:
        return dict(params)
    return {key.removeprefix(starts[0]).replace(f"m.{name}.", "m."): x for key, x in mine.items()}


def vit(arrays: Mapping[str, np.ndarray], prefix: str, resize: float, is_genera1z: bool) -> dict:
    """Settings of the encoder whose keys start with `prefix`."""
    keys = {key.removeprefix(prefix): x for key, x in arrays.items() if key.startswith(prefix)}
    patch = keys["patch_embed.proj.weight"].shape[-1]
    registers = keys["reg_token"].shape[1] if "reg_token" in keys else 0
    num_tokens = keys["pos_embed"].shape[1]
    return {
        "name": "vit",
        "width": keys["cls_token"].shape[-1],
        "depth": count(keys, r"blocks\.(\d+)\."),
        "num_heads": VIT_HEADS,
        "patch": patch,
        "registers": registers,
        "resize": resize,
        "layer_scale": "blocks.0.ls1.gamma" in keys,
        "class_position": round(num_tokens**0.5) ** 2 != num_tokens,
        "final_norm": "norm.weight" in keys,
        "apply_norm": is_genera1z,
    }


def model_config(name: str, system: System, params: Mapping[str, np.ndarray]) -> dict:
    """The `model` of our config, for these arrays by their names."""
    resize = RESIZE[system.program]
    is_genera1z = system.program is GENERA1Z
    starts = {
        GENERA1Z: ("m.encode_backbone.1.", "m.encode_backbone2.1."),
        SPOT: ("encoder.", "second_encoder."),
        OCLF: ("models.feature_extractor.model.", "none"),
    }[system.program]
    shape = lambda ending: next(x.shape for key, x in params.items() if key.endswith(ending))  # noqa: E731
    has = lambda ending: any(key.endswith(ending) for key in params)  # noqa: E731
    mean = next(k for k in ("slots_init.weight", "slot_mu", "slots_mu", "initializ.mean") if has(k))
    slot_size = shape(mean)[-1]
    encoder = vit(params, starts[0], resize, is_genera1z)
    projection = {GENERA1Z: "encode_project.", SPOT: "slot_attn.", OCLF: "layers.1."}
    hidden, out = {
        GENERA1Z: ("1.weight", "3.weight"),
        SPOT: ("mlp.0.weight", "mlp.2.weight"),
        OCLF: ("1.weight", "3.weight"),
    }[system.program]
    start = projection[system.program]
    sizes = shape(f"{start}{hidden}")[0], shape(f"{start}{out}")[0]
    if mean == "slots_init.weight":
        initializer = {"name": "learned", "start": "xavier", "noise": 0.0}
    else:
        separate = shape(mean)[1] > 1
        initializer = {"name": "gaussian", "log_std": 0.0, "separate": separate}
        initializer["noise"] = system.noise if separate else "always"
    decoder = dict(system.decoder)
    if decoder["name"] == "mlp_mixture":
        first = next(k for k in params if re.search(r"(backbone|decoder|dec)\.0\.weight$", k))
        layers = count(params, re.escape(first).replace("0", r"(\d+)"))
        decoder |= {"num_layers": (layers + 1) // 2, "hidden_size": params[first].shape[0]}
    else:
        decoder["num_layers"] = count(params, r"(?:decode\.backbone|decoder)\.layers\.(\d+)\.")
        decoder["num_layers"] = decoder["num_layers"] or count(params, r"dec\.blocks\.(\d+)\.")
        decoder["num_heads"] = HEADS
    if decoder["name"] == "permuted_ar":
        bos = next(x for key, x in params.items() if re.search(r"bos(_tokens|_token)?$", key))
        decoder |= {"orders": bos.shape[0], "evaluate": "first", "bos_std": 1.0}
    mlp = {GENERA1Z: "ffn.0.weight", SPOT: "attention.mlp.0.weight", OCLF: "ff_mlp.module.1.weight"}
    ratio = shape(mlp[system.program])[0] / slot_size
    settings = {"first": ITERATIONS, "later": 1, "mlp_ratio": ratio}
    if any(key.endswith("ffn.3.weight") for key in params):
        settings["dropout_rate"] = DROPOUT
    config = {
        "num_slots": 1,
        "slot_size": slot_size,
        "encoder": encoder,
        "projection": {
            "name": "mlp",
            "hidden_ratio": sizes[0] / encoder["width"],
            "to_slots": sizes[1] != encoder["width"],
            "activation": system.projection,
        },
        "initializer": initializer,
        "aggregator": {"name": "slot_attention", **settings, **system.attention},
        "transition": {"name": "none"},
        "decoder": decoder,
        "target": {"name": "features"},
    }
    if any(key.startswith(starts[1]) for key in params):
        config["target_encoder"] = vit(params, starts[1], resize, is_genera1z)
    return config


class Recorded:
    """A file's model in our layout: its config, and its arrays by our names."""

    def __init__(self, name: str, file: Golden):
        self.name, self.system = name, SYSTEMS[name]
        image = np.moveaxis(file["inp/image"], 1, -1)
        self.video = np.ascontiguousarray(image)[:, None]
        params = file.group("param/")
        self.params = params
        own = part_of(params, "student")
        slots = file["out/slots" if "out/slots" in file else "out/slotz"].shape[1]
        self.model = {**model_config(name, self.system, own), "num_slots": slots}
        self.names, self.arrays = self._loaded(self.model, self.system, own)
        self.companions = {}
        if name in STUDENTS:
            of_teacher = SYSTEMS[STUDENTS[name]]
            theirs = part_of(params, "teacher")
            teacher = {**model_config(name, of_teacher, theirs), "num_slots": slots}
            _, arrays = self._loaded(teacher, of_teacher, theirs)
            self.arrays |= {f"teacher.{key}": x for key, x in arrays.items()}
            self.companions["teacher"] = {"source": "", "title": "SPOT", "model": teacher}

    def _loaded(self, model: dict, system: System, params) -> tuple[frozenset[str], dict]:
        size = self.video.shape[2:4]
        make = lambda: build_slot_model(ConfigDict(model), size, seed=0)  # noqa: E731
        _, trained, frozen = split(nnx.eval_shape(make))
        expected = {key: x.shape for key, x in {**trained, **frozen}.items()}
        if "decoder.widen.kernel" in expected:
            arrays = _of_spot_mlp(params, expected)
        else:
            arrays = system.program.to_ours(params, expected, model)
        assert {key: x.shape for key, x in arrays.items()} == expected
        return frozenset(expected), arrays

    def name_of(self, key: str) -> tuple[str, Callable]:
        """Our name of a key of the student, and how to bring its array to our layout."""
        program = self.system.program
        found = KeyTable(program.rows(self.names, self.model)).ours(key.removeprefix("m."))
        assert found is not None, key
        return found[0], found[1].to_ours

    def to_ours(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays such as gradients, of which some may be missing."""
        if "decoder.widen.kernel" in self.names:
            return _of_spot_mlp(arrays, self.names)
        return self.system.program.to_ours(arrays, self.names, self.model)

    def config(self, weights: Mapping[str, float], trained: frozenset[str]) -> ConfigDict:
        """The whole config; encoder arrays outside `trained` are frozen."""
        config = tiny_config(num_frames=1, initializer="gaussian").to_dict()
        config["data"]["image_size"] = self.video.shape[2:4]
        config["model"], config["companions"] = self.model, self.companions
        config["weights"] = {}
        for part in ("encoder", "target_encoder"):
            still = sorted(key for key in self.names - trained if key.startswith(f"{part}."))
            if part in self.model:
                entry = {"into": part, "source": "random", "seed": 0}
                patterns = tuple(key.removeprefix(f"{part}.") for key in still)
                config["weights"][part] = {**entry, "frozen": patterns}
        config["losses"] = {
            ours: {**settings, "weight": weights.get(theirs, settings["weight"])}
            for theirs, (ours, settings) in self.system.losses.items()
        }
        clip_norm, clip_by = self.system.clip
        config["optimizer"] |= {"clip_norm": clip_norm, "clip_by": clip_by}
        config["train"] |= {"batch_size": len(self.video), "match_paper": False}
        return ConfigDict(config)


def _of_spot_mlp(params: Mapping[str, np.ndarray], names) -> dict[str, np.ndarray]:
    """SPOT with its MLP decoder, which no released checkpoint has: the rest is its usual layout."""
    inner = {
        "slot_proj.0.weight": ("decoder.widen.kernel", np.transpose),
        "slot_proj.1.weight": ("decoder.norm_slots.scale", np.asarray),
        "slot_proj.1.bias": ("decoder.norm_slots.bias", np.asarray),
        "dec.pos_embed": ("decoder.position", np.asarray),
    }
    layers = sorted({int(k.split(".")[2]) for k in params if k.startswith("dec.decoder.")})
    places = ["project_slots", *(f"layers.{i}" for i in range(len(layers) - 2)), "out"]
    for number, place in zip(layers, places, strict=True):
        inner[f"dec.decoder.{number}.weight"] = (f"decoder.{place}.kernel", np.transpose)
        inner[f"dec.decoder.{number}.bias"] = (f"decoder.{place}.bias", np.asarray)
    # Not used by this decoder.
    unused = ("bos_tokens", "input_proj.")
    rest = {k: x for k, x in params.items() if k not in inner and not k.startswith(unused)}
    found = SPOT.to_ours(rest, names)
    return found | {inner[k][0]: inner[k][1](x) for k, x in params.items() if k in inner}


# ------------------------------------------------------------------------------------ the numbers


def draws_of(case: Recorded, noise, *, decoder=None, teacher=None) -> dict:
    found = {"initializer": noise, "decoder": decoder, "transition": None, "aggregator": None}
    found["target"] = None
    return found if teacher is None else {**found, "teacher": teacher}


def visible_of(file: Golden) -> np.ndarray:
    order, number = file["inp/permutation"], file["inp/num_visible"]
    seen = np.zeros((len(order), 1, order.shape[1]), bool)
    for sample, (places, k) in enumerate(zip(order, number, strict=True)):
        seen[sample, 0, places[:k]] = True
    return seen


def order_of(number: int, batch: int) -> np.ndarray:
    return np.full((batch, 1), number, np.int32)


def training_draws(case: Recorded, model: Golden, drawn: Golden | None, step: int) -> dict:
    """The draws of a training step that a file was recorded with."""
    batch, name = len(case.video), case.name
    if name == "spot_student_original":
        student, of_teacher = (model[f"inp/{k}"][step] for k in ("orders", "teacher_orders"))
        teacher = draws_of(case, model["inp/noise"], decoder=order_of(of_teacher, batch))
        return draws_of(case, None, decoder=order_of(student, batch), teacher=teacher)
    if name == "spot_distill_genera1z":
        teacher = draws_of(case, model["inp/teacher_noise"])
        order = order_of(model["inp/student_orders"][step], batch)
        return draws_of(case, model["inp/noise"], decoder=order, teacher=teacher)
    noise = (drawn if drawn is not None and "inp/noise" in drawn else model)["inp/noise"]
    if name == "dias":
        return draws_of(case, noise, decoder=visible_of(drawn))
    return draws_of(case, noise)


OUTPUTS = {  # their name -> our output
    "feature": "features",
    "features": "features",
    "slotz": "slots",
    "slots": "slots",
    "attenta": "attention",
    "attent": "attention",
    "attention": "attention",
    "attention_logits": "attention_logits",
    "recon": "prediction",
    "reconstruction": "prediction",
    "attentd": "masks",
    "attent2": "masks",
    "decoder_attention": "masks",
    "decoder_masks": "masks",
    "attentd2": "teacher.masks",
    "teacher_decoder_attention": "teacher.masks",
}


def compare_outputs(
    case: Recorded, file: Golden, outputs: Mapping[str, Any], mode: str = ""
) -> None:
    """Compare every recorded output that has one of these names."""
    for key in [key for key in file.arrays if key.startswith("out/")]:
        name = OUTPUTS.get(key.removeprefix("out/"))
        if name is None:
            continue
        found, recorded = np.asarray(outputs[name]), file.arrays[key]
        if name == "attention" and recorded.ndim == 5:  # of all iterations
            found = np.asarray(outputs["first_attention"]).swapaxes(0, 1)
        elif name == "attention_logits":
            found = found.swapaxes(1, 2)
        else:
            found = found[:, 0]
        if name in ("features", "prediction") and recorded.ndim == 4:  # channels first, on a grid
            found = found.swapaxes(1, 2)
        file.compare(key, found.reshape(recorded.shape), FORWARD_BACKBONE)


def compare_recorded(case: Recorded, file: Golden, gradients: Mapping[str, np.ndarray]) -> None:
    """Compare all recorded gradients; what has none recorded has to be zero."""
    recorded = {k: x for k, x in file.group("grad/").items() if not k.startswith("inp/")}
    recorded = {
        key.removeprefix("student.").replace("m.student.", "m."): x for key, x in recorded.items()
    }
    compare_gradients(
        file,
        gradients,
        case.to_ours(recorded),
        null=is_null,
        rounding=0.0,
        not_recorded=NO_GRADIENT,
    )


def is_null(name: str) -> bool:
    """Whether a gradient, or a part of it, is zero in exact arithmetic."""
    null = ("aggregator.norm_slots.bias", "in_bias", "qkv.bias", "decoder.out.bias")
    return name.endswith(null)


def not_null(name: str, x: np.ndarray) -> np.ndarray:
    """The part of a trained array that is not left to rounding noise."""
    if name.endswith("aggregator.norm_slots.bias"):
        return x[:0]
    if name.endswith("decoder.out.bias"):
        return x[:-1]  # alpha is the last
    if name.endswith(("in_bias", "qkv.bias")):
        return x[2 * len(x) // 3 :]  # of the values
    return x


def setup_of(case: Recorded, config: ConfigDict):
    """The real training step with the recorded arrays."""
    setup = build_training(config)
    put = lambda names: jax.device_put(  # noqa: E731
        {name: jnp.asarray(case.arrays[name]) for name in names}, replicated(setup.mesh)
    )
    state = setup.state.replace(params=put(setup.state.params))
    slots = case.model["num_slots"]
    boxes = np.full((len(case.video), 1, slots, 4), -1, np.float32)
    mask = np.ones((len(case.video), slots), bool)
    batch = setup.place({"video": case.video, "boxes": boxes, "slot_mask": mask})
    return setup, state, put(setup.frozen), batch


def losses_and_gradients(case: Recorded, config: ConfigDict, draws: dict):
    """The first step's losses, its clipped norm, and gradients before clipping."""
    setup, state, frozen, batch = setup_of(case, config)
    state, metrics = setup.train_step(state, frozen, batch, jax.random.key(0), draws)
    metrics, moment = jax.device_get((metrics, adam_state(state).mu))
    # After one step Adam's first moment is a tenth of the clipped gradient.
    scale = 0.1 * min(1.0, config.optimizer.clip_norm / (metrics["grad_norm"] + 1e-6))
    return metrics, {name: x / scale for name, x in moment.items()}


def outputs_of(case: Recorded, config: ConfigDict, draws: dict) -> dict:
    """All outputs of a forward pass."""
    task = build_task(config)
    models = {"model": task.build(shapes_only=False)}
    prefixes = {"model": ""}
    for name, companion in case.companions.items():
        size = case.video.shape[2:4]
        models[name] = build_slot_model(ConfigDict(companion["model"]), size, seed=0)
        prefixes[name] = f"{name}."
    patterns = tuple(
        f"{part}.{pattern}" for part, entry in config.weights.items() for pattern in entry.frozen
    )
    parts = {n: split(m, frozen=patterns if n == "model" else ("*",), prefix=prefixes[n])[0]
             for n, m in models.items()}  # fmt: skip
    mask = np.ones((len(case.video), case.model["num_slots"]), bool)
    batch = {"video": case.video, "slot_mask": mask}

    @jax.jit
    def run(arrays, batch):
        merged = {name: part.merge(arrays, differentiated=False) for name, part in parts.items()}
        outputs = run_task(task, merged, batch, draws)
        if "features" not in outputs:
            outputs["features"] = merged["model"].encode(batch["video"])["features"]
        return outputs

    found = run({k: jnp.asarray(x) for k, x in case.arrays.items()}, batch)
    if "target_features" in found:
        found = {**found, "features": found["target_features"]}
    return found


def weights_of(file: Golden) -> dict[str, float]:
    return {"distill": float(file["inp/distill_weight"])} if "inp/distill_weight" in file else {}


def trained_by(case: Recorded, file: Golden) -> frozenset[str]:
    """Names of the arrays with a recorded gradient."""
    keys = [k.removeprefix("grad/") for k in file.arrays if k.startswith("grad/")]
    keys = [k.removeprefix("student.").replace("m.student.", "m.") for k in keys if "inp/" not in k]
    stand_in = {key: part_of(case.params, "student")[key] for key in keys}
    return frozenset(case.to_ours(stand_in))


@pytest.mark.parametrize("name", quick([x for x in SYSTEMS if x not in STUDENTS]))
def test_model_at_evaluation(name):
    """Outputs, losses and gradients with evaluation's draws."""
    with golden(f"model_{name}") as file:
        case = Recorded(name, file)
        noise = file["inp/noise"] if "inp/noise" in file else None
        draws = draws_of(case, noise)
        config = case.config(weights_of(file), trained_by(case, file))
        outputs = outputs_of(case, config, draws)
        compare_outputs(case, file, outputs)
        if "out/masks_as_image_argmax" in file:
            recorded = file["out/masks_as_image_argmax"]
            found = segments_from_masks(outputs["masks"][:, 0], recorded.shape[-2:])
            assert (np.asarray(found) == recorded).mean() > 0.999
        metrics, gradients = losses_and_gradients(case, config, draws)
        compare_losses(case, file, metrics)
        if "loss/all_orders_recon" in file:
            compare_all_orders(case, file, config, draws)
        compare_recorded(case, file, gradients)


def compare_losses(case: Recorded, file: Golden, metrics: Mapping[str, Any]) -> None:
    for theirs, (ours, _) in case.system.losses.items():
        file.compare(f"loss/{theirs}", metrics[f"loss/{ours}"], LOSS)


def compare_all_orders(case: Recorded, file: Golden, config: ConfigDict, draws: dict) -> None:
    """SPOT's evaluation with the mean over nine orders."""
    config = config.copy_and_resolve_references().unlock()
    config.model.decoder.evaluate = "all"
    outputs = outputs_of(case, config, draws)
    prediction, masks = (np.asarray(outputs[k])[:, 0] for k in ("prediction", "masks"))
    file.compare("out/all_orders_recon", prediction, FORWARD_BACKBONE)
    file.compare("out/all_orders_decoder_attention", masks, FORWARD_BACKBONE)
    loss = np.mean((prediction - np.asarray(outputs["target"])[:, 0]) ** 2)
    file.compare("loss/all_orders_recon", loss, LOSS)


@pytest.mark.parametrize("name", quick([*DRAWN, *STUDENTS]))
def test_model_in_training(name):
    """Outputs, losses and gradients with the recorded draws of a training step."""
    is_student = name in STUDENTS
    with contextlib.ExitStack() as files:
        kinds = ("inp/", "out/", "loss/", "grad/") if is_student else ()
        model = files.enter_context(golden(f"model_{name}", parts=kinds))
        file = model
        if not is_student:
            file = files.enter_context(golden(f"model_{name}_train_fixed_draws"))
        case = Recorded(name, model)
        draws = training_draws(case, model, None if is_student else file, step=0)
        config = case.config(weights_of(file), trained_by(case, file))
        compare_outputs(case, file, outputs_of(case, config, draws))
        metrics, gradients = losses_and_gradients(case, config, draws)
        compare_losses(case, file, metrics)
        compare_recorded(case, file, gradients)
        key = "out/matched_slot_of_teacher_slot"
        if key in file:
            compare_matching(file, key)


def compare_matching(file: Golden, key: str) -> None:

    logits, teacher = (
        file.arrays["out/attention_logits"],
        file.arrays["out/teacher_decoder_attention"],
    )
    labels = teacher.reshape(*teacher.shape[:2], -1).argmax(axis=1)
    slots = np.asarray(match_segments(logits.argmax(axis=2), labels, logits.shape[2]))
    recorded = file[key]
    for sample, used in enumerate(labels):  # an unused slot may get any that is left
        for slot in set(used.tolist()):
            assert slots[sample, slot] == recorded[sample, slot]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED_IN)
def test_training(name):
    """Six steps of the train step that `main.py` calls."""
    with (
        golden(f"model_{name}", parts=()) as model,
        golden(f"trajectory_{name}", parts=("inp/", "loss/", "out/", "param/")) as file,
    ):
        case = Recorded(name, model)
        rates, norms = file["out/learning_rates"], file["out/grad_norm"]
        weights = file["inp/distill_weights"] if "inp/distill_weights" in file else None
        if "inp/student_orders" in file:
            np.testing.assert_array_equal(file["inp/student_orders"], model["inp/student_orders"])
        gradients = model
        if name in DRAWN:
            gradients = Golden(f"model_{name}_train_fixed_draws")
        config = case.config({"distill": 1.0}, trained_by(case, gradients))
        steps, peak = len(rates), int(rates.argmax())
        schedule = {**(case.system.schedule or COSINE), "peak": float(rates.max())}
        schedule["warmup"] = peak / steps
        if schedule.get("ends_at_peak"):
            schedule["warmup"] = (peak + 1) / steps
        if "half_life" in schedule:
            schedule["half_life"] = schedule["half_life"] / steps
        config.optimizer.learning_rate = ConfigDict(schedule)
        config.train.num_steps = steps
        if weights is not None:
            cosine = {"schedule": "cosine", "begin": 0.0, "end": 1.0}
            with config.losses.ignore_type():
                config.losses.attention_distillation.weight = ConfigDict(cosine)
        setup, state, frozen, batch = setup_of(case, config)
        found, final = [], None
        for step in range(steps + 1):
            draws = training_draws(case, model, file if "inp/noise" in file or weights is not None
                                   else None, step)  # fmt: skip
            state, metrics = setup.train_step(state, frozen, batch, jax.random.key(step), draws)
            found.append(jax.device_get(metrics))
            if step == steps - 1:  # one more step tells the losses after the last
                final = jax.device_get(state.params)
        file.compare("out/learning_rates", [m["learning_rate"] for m in found[:steps]], LOSS)
        file.compare("out/grad_norm", [m["grad_norm"] for m in found[: len(norms)]], GRADIENT)
        for theirs, (ours, _) in case.system.losses.items():
            terms = np.array([m[f"loss/{ours}"] for m in found])
            file.compare(f"loss/{theirs}", terms, LOSS)
        trained = part_of(file.group("param/"), "student")
        recorded = case.to_ours(trained)
        compared = 0
        for key, expected in recorded.items():
            actual = not_null(key, final[key] if key in final else case.arrays[key])
            expected = not_null(key, expected)
            error = np.abs(actual - expected).max(initial=0.0)
            assert error <= TRAINED * np.abs(expected).max(initial=1e-12), f"{key}: {error:.1e}"
            compared += key in final
        assert compared == len(final)
