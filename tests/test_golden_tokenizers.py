"""The tokenizers of VQ-VFM-OCL against the numbers of their program.

Sizes come from the files. GOLDEN_DIR names another folder of the same layout, with other numbers
and other sizes.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import FORWARD, GRADIENT, LOSS, METRIC, Golden, golden

from smoothsa_jax.interop.table import KeyTable, Row
from smoothsa_jax.interop.tokenizers import VQ_FEATURES, VQ_PIXELS
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.build import TOKENIZERS
from smoothsa_jax.models.layers.quantize import distance_moments
from smoothsa_jax.models.parameters import split
from smoothsa_jax.parts import make

FEATURES, PIXELS = "vqdino", "vqvae"


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
        self.kind, front = KINDS[kind], KINDS[kind].front
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
                "strides": strides_of(layers[1] // 2 // tokens),
                "pixels": "imagenet",
            }
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


def compare_gradients(case: Recorded, file: Golden, gradients: Mapping, group: str) -> None:
    """Compare with the recorded arrays, or with their norms where only these are recorded."""
    front, seen = case.kind.front, set()
    whole = {key: x for key, x in file.group(f"{group}/").items()}
    norms = f"{group}_norm"
    for key in whole:
        name, transform = case.table.ours(key.removeprefix(front))
        seen.add(name)
        change = transform.to_ours
        file.compare(f"{group}/{key}", gradients[name], GRADIENT, change=change)
    if f"{norms}/keys" in file:
        for key, norm in zip(file[f"{norms}/keys"], file[f"{norms}/norms"], strict=True):
            name, _ = case.table.ours(str(key).removeprefix(front))
            seen.add(name)
            found = float(np.linalg.norm(np.asarray(gradients[name]).ravel()))
            assert abs(found - norm) <= GRADIENT * max(norm, 1e-8), f"{key}: {found}, {norm}"
    assert seen


def test_vq_pixels():
    """Outputs, losses, and the gradient of what is trained."""
    with golden(f"tokeniser_{PIXELS}") as file:
        case = Recorded(PIXELS, file)
        outputs, terms, gradients = case.run(None, {})
        compare_outputs(case, file, outputs, "out")
        for theirs, ours in case.kind.losses.items():
            file.compare(f"loss/{theirs}", terms[ours], LOSS)
        compare_gradients(case, file, gradients, "grad")


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
        compare_gradients(case, file, gradients, f"grad_{mode}")
        mean, deviation = distance_moments(case.settings["width"])
        file.compare("out/mu", mean, METRIC)
        file.compare("out/sigma", deviation, METRIC)
