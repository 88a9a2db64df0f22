"""The tokenizers of VQ-VFM-OCL against the numbers of their program.

Sizes come from the files. GOLDEN_DIR names another folder of the same layout, with other numbers
and other sizes.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import (
    FORWARD,
    GRADIENT,
    LOSS,
    METRIC,
    TRAINED,
    Golden,
    compare_gradients,
    compare_norms,
    golden,
)
from ml_collections import ConfigDict

from configs import base, coco, sprites
from smoothsa_jax.config.load import load_config
from smoothsa_jax.devices.mesh import replicated
from smoothsa_jax.interop.table import KeyTable, Row
from smoothsa_jax.interop.tokenizers import VQ_FEATURES, VQ_PIXELS
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.build import TOKENIZERS
from smoothsa_jax.models.layers.quantize import distance_moments
from smoothsa_jax.models.parameters import split
from smoothsa_jax.models.tokenizer_model import TOKENIZER
from smoothsa_jax.parts import make
from smoothsa_jax.schedules import Schedules
from smoothsa_jax.training.step import build_training

FEATURES, PIXELS = "vqdino", "vqvae"
FILES = [f"{kind}_{x}" for kind in ("tokeniser", "trajectory") for x in (FEATURES, PIXELS)]
CONFIGS = Path(__file__).parent.parent / "configs"
SCHEDULED = ("alpha", "std")
BLOCKS = 3  # of TAESD, for each stride


@dataclasses.dataclass(frozen=True)
class Kind:
    """A tokenizer's names in the program.

    Attributes:
        name: ours.
        front: what its arrays have in front.
        rows: the table of their names.
        losses: their term -> ours.
    """

    name: str
    front: str
    rows: list[Row]
    losses: Mapping[str, str]


TERMS = {"recon": "reconstruction", "align": "codebook", "commit": "commitment"}
KINDS = {
    PIXELS: Kind("vq_pixels", "m.", VQ_PIXELS, TERMS),
    FEATURES: Kind("vq_features", "m.mediat.", VQ_FEATURES, {**TERMS, "norm_e": "latent_norm"}),
}
WEIGHTS = {"reconstruction": 1.0, "codebook": 1.0, "commitment": 0.25, "latent_norm": 0.1}


class Recorded:
    """A file's tokenizer in our layout."""

    def __init__(self, kind: str, file: Golden):
        self.name, self.kind, front = kind, KINDS[kind], KINDS[kind].front
        self.table = KeyTable(self.kind.rows)
        arrays = file.group(f"param/{front}")
        self.image = np.moveaxis(file["inp/image"], 1, -1)
        grid, features = None, None
        layers = len(file["out/target"][0, 0]), self.image.shape[1]
        if kind == FEATURES:
            features, *grid = file["inp/feature"].shape[1:]
            self.inputs = np.moveaxis(file["inp/feature"], 1, -1).reshape(
                len(self.image), -1, features
            )
            vocabulary, basis = arrays["quant.codebook.weight"].shape
            self.settings = {
                "width": len(arrays["quant.project.weight"]),
                "vocabulary": vocabulary,
                "basis_size": basis,
                "hidden_size": len(arrays["decode.0.weight"]),
                "decoder_width": len(arrays["decode.5.0.weight"]),
                "blocks": BLOCKS,
                "strides": strides_of(layers[0] // grid[0]),
                "alpha": 0.0,
                "std": 1.0,
            }
        else:
            self.inputs = self.image
            vocabulary, width = arrays["codebook.templat.weight"].shape
            tokens = file.arrays["out/zidx"].shape[1]
            self.settings = {
                "width": width,
                "vocabulary": vocabulary,
                "layer_width": len(arrays["encode.1.0.weight"]),
                "blocks": BLOCKS,
                "strides": strides_of(layers[1] // 2 // tokens),
                "pixels": "imagenet",
            }
        self.grid = grid
        sizes = self.image.shape[1:3], None if grid is None else tuple(grid), features
        config = {"name": self.kind.name, **self.settings}
        self.build = lambda rngs: make("model.tokenizer", config, TOKENIZERS, *sizes, rngs=rngs)
        self.definition, params, frozen = split(nnx.eval_shape(lambda: self.build(nnx.Rngs(0))))
        self.arrays = self.to_ours(arrays)
        expected = {name: x.shape for name, x in {**params, **frozen}.items()}
        assert {name: x.shape for name, x in self.arrays.items()} == expected
        self.params = {name: self.arrays[name] for name in params}
        self.still = {name: self.arrays[name] for name in frozen}

    def to_ours(self, arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        found = {}
        for key, x in arrays.items():
            name, transform = self.table.ours(key)
            found[name] = jnp.asarray(transform.to_ours(x))
        return found

    def run(self, draws, scheduled):
        """Return outputs, weighted losses and the gradient of their sum."""
        config = {ours: {"weight": WEIGHTS[ours]} for ours in self.kind.losses.values()}
        losses = build_losses(config)

        @jax.jit
        def run(params):
            tokenizer = self.definition.merge(params, self.still)
            outputs = tokenizer(jnp.asarray(self.inputs), draws, scheduled)
            outputs["target"] = tokenizer.target(jnp.asarray(self.image))
            # Losses read frames of clips.
            clips = {name: x[:, None] for name, x in outputs.items()}
            terms = losses(clips, {}, losses.schedules)
            return sum(terms.values()), (outputs, terms)

        (_, (outputs, terms)), gradients = jax.value_and_grad(run, has_aux=True)(self.params)
        return outputs, terms, gradients


def strides_of(factor: int) -> tuple[int, ...]:
    """Three strides of 1 or 2, of which the last ones are 1."""
    return tuple(2 if factor >= 2 ** (i + 1) else 1 for i in range(3))


OUTPUTS = {  # theirs -> ours
    "encode": "latents",
    "zidx": "tokens",
    "quant": "codes",
    "residual": "mixed",
    "decode": "prediction",
    "target": "target",
}


def compare_outputs(case: Recorded, file: Golden, outputs: Mapping, group: str) -> None:
    for key, name in OUTPUTS.items():
        if (full := f"{group}/{key}") not in file:
            continue
        found = np.asarray(outputs[name])
        if name == "tokens":  # choices have a margin, so they agree exactly
            np.testing.assert_array_equal(found, file[full].reshape(found.shape))
            continue
        change = lambda x, shape=found.shape: np.moveaxis(x, 1, -1).reshape(shape)  # noqa: E731
        file.compare(full, found, FORWARD, change=change)


def compare_recorded(case: Recorded, file: Golden, gradients: Mapping, group: str) -> None:
    """Compare with the recorded arrays, or with their norms where only these are recorded."""
    ours = lambda key: case.table.ours(key.removeprefix(case.kind.front))  # noqa: E731
    recorded = {}
    for key, x in file.group(f"{group}/").items():
        name, transform = ours(key)
        recorded[name] = transform.to_ours(x)
    has_norms = f"{group}_norm/keys" in file
    assert recorded or has_norms
    if recorded:
        found = {name: gradients[name] for name in recorded}
        compare_gradients(file, found, recorded, rounding=0.0)
    if has_norms:
        norm = f"{group}_norm"
        least = GRADIENT * 1e-8
        compare_norms(file, lambda key: gradients[ours(key)[0]], group=norm, least=least)


@pytest.mark.slow
def test_vq_pixels():
    """Outputs, losses, and the gradient of what is trained."""
    with golden(f"tokeniser_{PIXELS}") as file:
        case = Recorded(PIXELS, file)
        outputs, terms, gradients = case.run(None, {})
        compare_outputs(case, file, outputs, "out")
        for theirs, ours in case.kind.losses.items():
            file.compare(f"loss/{theirs}", terms[ours], LOSS)
        compare_recorded(case, file, gradients, "grad")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_vq_features(mode):
    """The nearest codes, and codes drawn with the recorded noise."""
    parts = (f"out_{mode}/", f"loss_{mode}/", f"grad_{mode}", "out/")
    with golden(f"tokeniser_{FEATURES}", parts=parts) as file:
        case = Recorded(FEATURES, file)
        noise = jnp.asarray(file["inp/gumbel"]) if mode == "train" else None
        scheduled = {key: float(file[f"inp/{key}"]) for key in ("alpha", "std")}
        outputs, terms, gradients = case.run(noise, scheduled)
        compare_outputs(case, file, outputs, f"out_{mode}")
        compare_outputs(case, file, outputs, "out")
        for theirs, ours in case.kind.losses.items():
            file.compare(f"loss_{mode}/{theirs}", terms[ours], LOSS)
        compare_recorded(case, file, gradients, f"grad_{mode}")
        mean, deviation = distance_moments(case.settings["width"])
        file.compare("out/mu", mean, METRIC)
        file.compare("out/sigma", deviation, METRIC)


# ------------------------------------------------------------------------------------- trajectories


def config_of(case: Recorded, steps: int, peak: float, at: int) -> ConfigDict:
    """The config of the first stage, with the file's sizes; schedules as the gallery has them."""
    shipped = {PIXELS: base.VQ_PIXELS, FEATURES: base.VQ_FEATURES}[case.name]
    config, data = load_config(f"{CONFIGS}/coco.py"), coco.DATA
    base.train_tokenizer(config, data, shipped)
    config.model.tokenizer.update({k: x for k, x in case.settings.items() if k not in SCHEDULED})
    side = case.image.shape[1]
    config.data.image_size, config.mesh.data = side, 1
    if case.name == FEATURES:
        grid, width = case.grid, case.inputs.shape[-1]
        # The features are given, so that any encoder of this grid and width does.
        config.model.encoder = {**sprites.DATA.encoder, "width": width, "patch": side // grid[0]}
        config.model.encoder.window = side // grid[0]
        config.weights.encoder.update(source="random", seed=0)
    del config.weights.taesd_decoder
    if "taesd_encoder" in config.weights:
        config.weights.taesd_encoder.source = "random"
    config.train.update(num_steps=steps, batch_size=len(case.image))
    config.optimizer.learning_rate.update(peak=peak, warmup=at / steps)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", [PIXELS, FEATURES])
def test_training(name):
    """Six steps of the training step that `main.py` calls, with the optimizer of the gallery."""
    with (
        golden(f"tokeniser_{name}", parts=()) as start,
        golden(f"trajectory_{name}", parts=("inp/", "traj/", "final/")) as file,
    ):
        case = Recorded(name, start)
        rates = file["traj/learning_rates"]
        steps, at = len(rates), int(rates.argmax())
        config = config_of(case, steps, float(rates.max()), at)
        setup = build_training(config)
        front = f"{TOKENIZER}."
        given = {f"{front}{key}": x for key, x in case.arrays.items()}
        place = lambda arrays: jax.device_put(  # noqa: E731
            {k: given.get(k, x) for k, x in arrays.items()}, replicated(setup.mesh)
        )
        state = setup.state.replace(params=place(setup.state.params))
        frozen = place(setup.frozen)
        trained = {key.removeprefix(front) for key in state.params}
        recorded = case.to_ours(
            {k.removeprefix(case.kind.front): x for k, x in file.group("final/").items()}
        )
        assert recorded.keys() == trained
        batch = {"video": case.image[:, None], "slot_mask": np.ones((len(case.image), 1), bool)}
        if name == FEATURES:
            batch["features"] = case.inputs[:, None]
            values = Schedules({"model": setup.task.schedules}, steps)
            for key in SCHEDULED:
                found = [values.at(n)["model"][TOKENIZER][key] for n in range(steps + 1)]
                file.compare(f"traj/{key}", found, LOSS)
        batch, found = setup.place(batch), []
        for step in range(steps + 1):
            draws = {TOKENIZER: None}
            if name == FEATURES:
                noise = file["inp/gumbel"][step]
                draws[TOKENIZER] = jnp.asarray(noise.reshape(len(noise), 1, -1, noise.shape[-1]))
            state, metrics = setup.train_step(state, frozen, batch, jax.random.key(step), draws)
            found.append(jax.device_get(metrics))
            if step == steps - 1:  # one more step tells the losses after the last
                final = jax.device_get(state.params)
        file.compare("traj/learning_rates", [m["learning_rate"] for m in found[:steps]], LOSS)
        file.compare("traj/gradient_norms", [m["grad_norm"] for m in found[:steps]], GRADIENT)
        names = [f"loss/{case.kind.losses[str(term)]}" for term in file["traj/terms"]]
        file.compare("traj/losses", [[m[x] for x in names] for m in found], LOSS)
        for key, expected in recorded.items():
            error = np.abs(final[front + key] - expected).max()
            assert error <= TRAINED * np.abs(expected).max(), f"{key}: {error:.1e}"
