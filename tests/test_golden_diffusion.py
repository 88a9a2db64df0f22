"""SlotDiffusion against the numbers of its programs.

GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes.
"""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import (
    FORWARD,
    LOSS,
    Golden,
    compare_gradients,
    compare_norms,
    golden,
    inner,
    write_report,
)

from smoothsa_jax.config.load import load_config
from smoothsa_jax.interop.authors import below
from smoothsa_jax.interop.programs import GENERA1Z
from smoothsa_jax.interop.slotformer import ATTENTION
from smoothsa_jax.interop.table import KeyTable
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.build import AGGREGATORS, build_slot_model
from smoothsa_jax.models.layers.diffusion import betas, signal_shares
from smoothsa_jax.models.parameters import split
from smoothsa_jax.parts import make

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = ["slot_attention_slotdiffusion", "model_slotdiffusion"]
# What only the text beside the files says.
GROUPS, HEADS, ITERATIONS = 4, 4, 2
GRADIENT_OF_UNET = 2e-3  # its deepest level has one position, so that float32 rounds
# Zero in exact arithmetic: what one position attends to, and slot attention's bias of queries.
NOTHING = 1e-6  # of the largest gradient
# The slot attention of SlotDiffusion's own program.
ORIGINAL = {
    "name": "slot_attention",
    "first": ITERATIONS,
    "later": None,
    "gradient": "full",
    "epsilon": 1e-6,
    "epsilon_in": "weights",
    "activation": "relu",
    "zero_bias": False,
}
NAMES_OF_ORIGINAL = KeyTable(below("", "", ATTENTION))


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    write_report()


def test_slot_attention_of_the_original():
    """Outputs, and the gradient of the slots times the cotangent."""
    with golden("slot_attention_slotdiffusion") as file:
        recorded = file.group("param/")
        arrays = {}
        for key, array in recorded.items():
            name, transform = NAMES_OF_ORIGINAL.ours(f".{key}")
            arrays[name.removeprefix(".")] = jnp.asarray(transform.to_ours(array))
        tokens, queries = (jnp.asarray(file[f"inp/{x}"]) for x in ("tokens", "queries"))
        settings = {**ORIGINAL, "mlp_size": recorded["mlp.1.weight"].shape[0]}
        sizes = tokens.shape[-1], queries.shape[-1]
        build = lambda: make("model", settings, AGGREGATORS, *sizes, rngs=nnx.Rngs(0))  # noqa: E731
        definition, expected, _ = split(nnx.eval_shape(build))
        assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}

        @functools.partial(jax.value_and_grad, has_aux=True)
        def run(arrays):
            module = definition.merge(arrays)
            found = module(module.prepare(tokens), queries)
            return inner([(found.slots, file["inp/cotangent_slots"])]), found

        (_, found), gradients = jax.jit(run)(arrays)
        file.compare("out/slots", found.slots, FORWARD)
        file.compare("out/attention", found.attention[-1], FORWARD)
        recorded = {}
        for key, x in file.group("grad/").items():
            name, transform = NAMES_OF_ORIGINAL.ours(f".{key}")
            recorded[name.removeprefix(".")] = transform.to_ours(x)
        compare_gradients(file, gradients, recorded, rounding=NOTHING)


def unet_sizes(params: dict[str, np.ndarray]) -> dict:
    """Sizes of a UNet, of arrays by the names in its program."""
    first = r"m\.decode\.backbone\.down_blocks\.(\d+)\.resnets\.0\.conv1\.weight"
    widths = {int(m[1]): x.shape[0] for k, x in params.items() if (m := re.fullmatch(first, k))}
    blocks = r"m\.decode\.backbone\.down_blocks\.0\.resnets\.(\d+)\.conv1\.weight"
    number = sum(re.fullmatch(blocks, key) is not None for key in params)
    of_all = {"num_blocks": number, "groups": GROUPS, "num_heads": HEADS}
    return {"widths": tuple(widths[i] for i in sorted(widths)), **of_all}


def flat(x: np.ndarray) -> np.ndarray:
    """(B,C,h,w) -> (B,1,M,C)."""
    return np.moveaxis(x.reshape(*x.shape[:2], -1), 1, 2)[:, None]


class Recorded:
    """The model of the file: the gallery's, with the file's sizes and arrays."""

    def __init__(self, file: Golden):
        params = file.group("param/")
        features, codes = file["inp/feature"], file["inp/codes"]
        slots = file["out/slotz"]
        config = load_config(f"{CONFIGS / 'coco'}.py:slotdiffusion,genera1z").unlock()
        self.losses = build_losses(config.losses)
        model = config.model
        model.num_slots, model.slot_size = slots.shape[1:]
        side = features.shape[2]
        patches = {"name": "colour_fourier", "window": 3, "bandwidth": 2.0, "position_scale": 0.3}
        sizes = {"width": features.shape[1], "patch": 2, "position_width": 4}
        model.encoder = {**patches, **sizes}
        model.decoder.update(unet_sizes(params))
        model.target.update(width=codes.shape[1], grid=codes.shape[2:])
        model.aggregator.dropout_rate = 0.0
        build = lambda: build_slot_model(model, (2 * side, 2 * side), 0)  # noqa: E731
        self.definition, trained, constant = split(nnx.eval_shape(build))
        names = {name: x for name, x in trained.items() if not name.startswith("encoder.")}
        self.config = model
        self.arrays = GENERA1Z.to_ours(params, names, model)
        found = {name: x.shape for name, x in self.arrays.items()}
        assert found == {name: x.shape for name, x in names.items()}
        self.encoder = {
            name: jnp.zeros(x.shape, x.dtype)
            for name, x in {**trained, **constant}.items()
            if name.startswith("encoder.")
        }
        self.features, self.codes = flat(features), flat(codes)
        self.noise, self.step = flat(file["inp/noise"]), file["inp/step"][:, None]
        self.back = GENERA1Z.to_theirs(self.arrays, model)

    def run(self, arrays):
        model = self.definition.merge({**arrays, **self.encoder})
        draws = {"noise": jnp.asarray(self.noise), "time": jnp.asarray(self.step)}
        given = model.target({}, {"codes": jnp.asarray(self.codes)}, draws)
        drawn = dict.fromkeys(("initializer", "aggregator", "transition", "decoder"))
        outputs = {**given, **model(jnp.asarray(self.features), given, drawn)}
        losses = self.losses(outputs, {}, self.losses.schedules)
        return sum(losses.values()), outputs


def test_schedule():
    with golden("model_slotdiffusion", parts=()) as file:
        file.compare("out/betas", betas(), FORWARD)
        file.compare("out/alphas_bar", signal_shares(), FORWARD)


@pytest.mark.slow
def test_model():
    """Outputs, loss and gradients; of large arrays, the file has the norm of the gradient."""
    with golden("model_slotdiffusion", unused=("out/betas", "out/alphas_bar")) as file:
        case = Recorded(file)
        for key, array in file.group("param/").items():
            np.testing.assert_array_equal(case.back[key], array, err_msg=key)
        run = jax.jit(jax.value_and_grad(case.run, has_aux=True))
        (loss, outputs), gradients = run({k: jnp.asarray(x) for k, x in case.arrays.items()})
        assert "masks" not in outputs
        shape = file["inp/codes"].shape
        on_grid = lambda x: np.moveaxis(np.asarray(x)[:, 0], 2, 1).reshape(shape)  # noqa: E731
        file.compare("out/slotz", outputs["slots"][:, 0], FORWARD)
        file.compare("out/attent", outputs["attention"][:, 0], FORWARD)
        file.compare("out/noisy", on_grid(outputs["noisy"]), FORWARD)
        file.compare("out/prediction", on_grid(outputs["prediction"]), FORWARD)
        file.compare("loss/recon", loss, LOSS)
        gradients = {name: np.asarray(x) for name, x in gradients.items()}
        theirs = GENERA1Z.to_theirs(gradients, case.config)
        largest = max(file["grad_norm/norms"])
        least = NOTHING * largest
        tolerance = GRADIENT_OF_UNET
        norms = compare_norms(
            file, theirs.__getitem__, tolerance=tolerance, least=least, of_entries=True
        )
        compare_gradients(
            file,
            {key: x for key, x in theirs.items() if key not in norms},
            file.group("grad/"),
            tolerance=tolerance,
            rounding=NOTHING,
            not_recorded=0.0,
            largest=largest,
        )
