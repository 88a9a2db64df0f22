"""The numbers of the programs of SLATE, STEVE and VQ-VFM-OCL for decoders of tokens and models.

GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes: every size
is read from the files.
"""

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
    TRAINED,
    Golden,
    compare_gradients,
    golden,
    write_report,
)
from ml_collections import ConfigDict

from smoothsa_jax.config.load import load_config
from smoothsa_jax.devices.mesh import replicated
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.interop.authors import ROWS, TORCH_LAYER, below
from smoothsa_jax.interop.programs import GENERA1Z, mixture_rows
from smoothsa_jax.interop.table import KERNEL, LINEAR, NORM, RAW, SAME, KeyTable
from smoothsa_jax.interop.tokenizers import VQ_FEATURES, VQ_PIXELS
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.decoders.causal_transformer import CausalTransformerDecoder
from smoothsa_jax.models.parameters import split
from smoothsa_jax.training.step import Training, build_training

CONFIGS = Path(__file__).parent.parent / "configs"
# The recipe of each file.
RECIPES = {
    "slate": "coco:slate,genera1z",
    "steve": "movi_d:steve,genera1z",
    "vqdino_tfd": "coco:vvo,tfd,genera1z",
    "vqdino_mlp": "coco:vvo,mlp,genera1z",
}
FILES = ["decoder_slate_ar", *(f"model_{name}" for name in RECIPES), "trajectory_slate"]
# Stated in the READMEs only.
HEADS, VIT_HEADS = 4, 3
CLIP = 1.0
NO_GRADIENT = 1e-6  # of the largest gradient, for what is zero in exact arithmetic

# Its first LayerNorm stands in front of the layers; ours is the first layer's.
DECODER = [
    ("bos", "first", RAW),
    ("posit_embed.pe", "position", RAW),
    ("norm0", "layers.0.norm_self", {"weight": ("scale", SAME)}),
    *below("backbone.layers.{}", "layers.{}", TORCH_LAYER),
    ("readout", "readout", {"weight": ("kernel", KERNEL)}),
]
OF_DECODER = KeyTable(DECODER)
INITIALIZER = [
    ("initializ.mean", "initializer.mean", RAW),
    ("initializ.logstd", "initializer.log_std", RAW),
    ("initializ.0", "initializer.mlp.hidden", LINEAR),
    ("initializ.2", "initializer.mlp.out", LINEAR),
]
TRANSITION = [
    *below("transit", "transition.layer", TORCH_LAYER[:2]),
    ("transit.linear1", "transition.layer.feed_forward.hidden", LINEAR),
    ("transit.linear2", "transition.layer.feed_forward.out", LINEAR),
    ("transit.norm1", "transition.layer.norm_self", NORM),
    ("transit.norm2", "transition.layer.norm_feed_forward", NORM),
]


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    write_report()


def decoder_of(params: dict[str, np.ndarray], num_tokens: int):
    """The definition of SLATE's decoder, and its recorded arrays by our names."""
    vocabulary, size = params["readout.weight"].shape
    layers = {key.split(".")[2] for key in params if key.startswith("backbone.layers.")}
    side = round(num_tokens**0.5)
    make = lambda: CausalTransformerDecoder(  # noqa: E731
        (side, side),
        vocabulary,
        size,
        num_layers=len(layers),
        num_heads=HEADS,
        embed="codes",
        rngs=nnx.Rngs(0),
    )
    definition, expected, _ = split(nnx.eval_shape(make))
    arrays = {}
    for key, x in params.items():
        name, transform = OF_DECODER.ours(key)
        arrays[name] = jnp.asarray(transform.to_ours(x))
    assert {n: x.shape for n, x in arrays.items()} == {n: x.shape for n, x in expected.items()}
    return definition, arrays


def test_decoder_of_slate():
    """Logits, cross-entropy and gradients; and the cache of generation gives the same logits."""
    with golden("decoder_slate_ar") as file:
        codes, slots = file["inp/codes"], file["inp/slots"]
        tokens = jnp.asarray(file["inp/tokens"], jnp.int32)
        definition, arrays = decoder_of(file.group("param/"), codes.shape[1])

        @jax.jit
        @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
        def run(arrays, slots, codes):
            given = {"codes": codes, "tokens": tokens}
            found, masks = definition.merge(arrays)(slots, None, given, None)
            assert masks is None
            return found["token_loss"].mean(), found["prediction"]

        (loss, logits), gradients = run(arrays, slots, codes)
        file.compare("out/logits", logits, FORWARD)
        file.compare("loss/recon", loss, LOSS)
        for key in file.group("grad/"):
            name, transform = OF_DECODER.ours(key)
            file.compare(f"grad/{key}", gradients[0][name], GRADIENT, change=transform.to_ours)
        for key, found in zip(("slots", "codes"), gradients[1:], strict=True):
            file.compare(f"grad_inp/{key}", found, GRADIENT)

        # Codes that any token could have.
        table = jnp.asarray(
            np.random.default_rng(0).standard_normal(arrays["readout.kernel"].T.shape), "f"
        )

        @jax.jit
        def generate(arrays, slots):
            return definition.merge(arrays).generate_with_logits(slots, None, lambda x: table[x])

        @jax.jit
        def prefixed(arrays, slots, codes):
            return definition.merge(arrays)(slots, None, {"codes": codes}, None)[0]

        found, from_cache = generate(arrays, slots)
        whole = prefixed(arrays, slots, table[found])
        np.testing.assert_array_equal(found, whole["prediction"].argmax(axis=-1))
        assert len(np.unique(found)) > 1
        error = np.abs(from_cache - whole["prediction"]).max()
        assert error < FORWARD * np.abs(whole["prediction"]).max()


# ------------------------------------------------------------------------------------ whole models


def count(keys, pattern: str) -> int:
    return 1 + max(int(match[1]) for key in keys if (match := re.search(pattern, key)))


def flat(x: np.ndarray) -> np.ndarray:
    """(B,C,h,w) or (B,T,C,h,w) -> (B,T,M,C)."""
    x = x.reshape(*x.shape[:-2], -1).swapaxes(-1, -2)
    return x[:, None] if x.ndim == 3 else x


class Recorded:
    """The model of a file: the recipe of the gallery, with the file's sizes and arrays."""

    def __init__(self, name: str, file: Golden):
        self.params = params = file.group("param/m.")
        slots = next(file.arrays[x] for x in ("out_eval/slotz", "out/slotz") if x in file)
        data_set, words = RECIPES[name].split(":")
        config = load_config(f"{CONFIGS / data_set}.py:{words}").copy_and_resolve_references()
        self.config = config = config.unlock()
        model, slot_size = config.model, slots.shape[-1]
        model.num_slots, model.slot_size = slots.shape[-2:]
        self.batch = self._batch(file, slots)
        image_size = self._fit_encoder(model, file)
        last = max(k for k in params if re.fullmatch(r"encode_project\.\d\.weight", k))
        model.projection.hidden_ratio = params[last].shape[1] / model.encoder.width
        model.aggregator.mlp_ratio = len(params["aggregat.ffn.0.weight"]) / slot_size
        if "readout.weight" in " ".join(params):
            layers = count(params, r"decode\.backbone\.layers\.(\d+)")
            model.decoder.update(num_layers=layers, num_heads=HEADS)
            model.target.update(vocabulary=len(params["decode.readout.weight"]), width=slot_size)
        else:
            layers = count(params, r"decode\.backbone\.(\d+)\.weight") // 2 + 1
            hidden = len(params["decode.backbone.0.weight"])
            model.decoder.update(num_layers=layers, hidden_size=hidden)
            model.target.codes.width = slot_size
        if "name" in model.transition and model.transition.name != "none":
            model.transition.update(num_heads=HEADS)
        self._fit_tokenizer(config, file)
        with config.data.ignore_type():
            config.data.image_size = image_size
        config.data.num_frames, config.train.batch_size = slots.shape[1:2][0], len(slots)
        config.data.num_frames = 1 if slots.ndim == 3 else slots.shape[1]
        config.weights = ConfigDict(
            {"encoder": {"into": "encoder", "source": "random", "seed": 0, "frozen": ("*",)}}
        )
        config.mesh.update(data=1, fsdp=1)
        self.training: Training = build_training(config, shapes_only=True)
        self.trained = {**self.training.state.params}
        self.still = {**self.training.frozen}
        self.table = KeyTable(self._rows())
        self.arrays = self._arrays()

    def _batch(self, file: Golden, slots: np.ndarray) -> dict[str, Any]:
        frames = 1 if slots.ndim == 3 else slots.shape[1]
        batch = {"slot_mask": np.ones((len(slots), slots.shape[-2]), bool)}
        boxes = np.full((len(slots), frames, slots.shape[-2], 4), -1, np.float32)
        batch["boxes"] = file["inp/boxes"] if "inp/boxes" in file else boxes
        if "inp/image" in file:
            image = np.moveaxis(file["inp/image"], 1, -1)
            return {**batch, "video": np.ascontiguousarray(image)[:, None]}
        return {**batch, "features": flat(file["inp/feature"])}

    def _fit_encoder(self, model: ConfigDict, file: Golden) -> tuple[int, int]:
        """Give the encoder the file's sizes; without pixels, any of that grid and width."""
        keys = {k.removeprefix("encode_backbone.1."): x for k, x in self.params.items()}
        if "inp/image" in file:
            patch = keys["patch_embed.proj.weight"].shape[-1]
            sizes = {"width": keys["cls_token"].shape[-1], "num_heads": VIT_HEADS, "patch": patch}
            model.encoder.update(depth=count(keys, r"^blocks\.(\d+)\."), **sizes)
            return self.batch["video"].shape[2:4]
        width, *grid = file["inp/feature"].shape[-3:]
        model.encoder.update(width=width, depth=1, num_heads=1, patch=2, resize=1.0)
        return tuple(2 * side for side in grid)

    def _fit_tokenizer(self, config: ConfigDict, file: Golden) -> None:
        """Let the companion have the file's sizes; its decoder, which is not in it, has any."""
        words = RECIPES[self.name_of_recipe(config)].split(":")
        inside = [k for k in self.params if k.startswith("mediat.")]
        if not inside:
            config.companions = ConfigDict()
            return
        stage_one = load_config(f"{CONFIGS / words[0]}.py:{words[1]},tokenizer").unlock()
        tokenizer = stage_one.model.tokenizer
        if "mediat.codebook.templat.weight" in self.params:
            vocabulary, width = self.params["mediat.codebook.templat.weight"].shape
            tokenizer.layer_width = len(self.params["mediat.encode.1.0.weight"])
            model = {"tokenizer": tokenizer}
        else:
            vocabulary, basis = self.params["mediat.quant.codebook.weight"].shape
            width = len(self.params["mediat.quant.project.weight"])
            tokenizer.update(basis_size=basis, hidden_size=4, decoder_width=4)
            model = {"encoder": config.model.encoder, "tokenizer": tokenizer}
        tokenizer.update(vocabulary=vocabulary, width=width)
        old = config.companions.tokenizer
        config.companions.tokenizer = ConfigDict({**old.to_dict(), "source": "", "model": model})

    @staticmethod
    def name_of_recipe(config: ConfigDict) -> str:
        return next(
            n for n, x in RECIPES.items() if x.replace(":", "_").replace(",", "_") == config.name
        )

    def _rows(self) -> list:
        names = set(self.trained)
        projection = "projection.norm.scale" not in names
        rows = [row for row in ROWS if row[0].startswith(("aggregat.", "encode_project."))]
        if projection:  # without a LayerNorm
            rows = [row for row in rows if row[0].startswith("aggregat.")]
            rows += [("encode_project.0", "projection.mlp.hidden", LINEAR)]
            rows += [("encode_project.2", "projection.mlp.out", LINEAR)]
        is_mixture = "decoder.readout.kernel" not in names
        position = ("decode.posit_embed.pe", "decoder.position", RAW)
        of_decoder = below("decode", "decoder", DECODER)
        if is_mixture:
            of_decoder = [position, *mixture_rows("decode.backbone", names)]
        start = "tokenizer.tokenizer"
        of_pixels = "mediat.codebook.templat.weight" in self.params
        of_tokenizer = below("mediat", start, VQ_PIXELS if of_pixels else VQ_FEATURES)
        return [*rows, *INITIALIZER, *TRANSITION, *of_decoder, *of_tokenizer]

    def _arrays(self) -> dict[str, jax.Array]:
        """All arrays by our names; those that a file lacks are zeros, and used by nothing."""
        of_encoder = "encode_backbone.1."
        names = [name for name in self.still if name.startswith("encoder.")]
        backbone = {k: x for k, x in self.params.items() if k.startswith(of_encoder)}
        found = {}
        if backbone:
            theirs = {f"m.{key}": x for key, x in backbone.items()}
            found = GENERA1Z.to_ours(theirs, names, self.config.model)
            assert set(found) == set(names)
        for key in self.params.keys() - backbone.keys():
            name, transform = self.table.ours(key)
            found[name] = transform.to_ours(self.params[key])
        expected = {**self.trained, **self.still}
        assert not found.keys() - expected.keys(), found.keys() - expected.keys()
        assert not self.trained.keys() - found.keys(), self.trained.keys() - found.keys()
        whole = {}
        for name, x in expected.items():
            array = found.get(name, np.zeros(x.shape, x.dtype))
            assert array.shape == x.shape, f"{name}: {array.shape}, ours {x.shape}"
            whole[name] = jnp.asarray(array)
        return whole

    def draws(self, noise=None, gumbel=None) -> dict[str, Any]:
        parts = ("projection", "aggregator", "transition", "decoder", "target")
        if gumbel is not None:
            gumbel = jnp.asarray(gumbel.reshape(len(gumbel), 1, -1, gumbel.shape[-1]))
        drawn = {"initializer": noise, "tokenizer": {"tokenizer": gumbel}}
        return {**dict.fromkeys(parts), **drawn}

    def run(self, draws: dict[str, Any], given: Mapping[str, Any] | None = None):
        """Return outputs, losses by name and gradients, computed as a step does.

        Args:
            draws: all random numbers.
            given: constants that a file has in place of a tokenizer.
        """
        task, definitions = self.training.task, self.training.definitions
        losses = build_losses(self.config.losses)

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def run(params, still, batch):
            arrays = {**params, **still}
            models = {
                name: x.merge(arrays, differentiated=name == "model")
                for name, x in definitions.items()
            }
            if given is None:
                constants = task.constants(models, batch, draws, False)
            else:
                constants = {"features": batch["features"], **given}
            constants |= task.targets(models, batch, constants, draws)
            outputs = {**constants, **task.forward(models, batch, constants, draws, {})}
            terms = losses(outputs, batch, losses.schedules)
            return sum(terms.values()), (outputs, terms)

        params = {name: self.arrays[name] for name in self.trained}
        still = {name: self.arrays[name] for name in self.still}
        batch = {name: jnp.asarray(x) for name, x in self.batch.items()}
        (_, (outputs, terms)), gradients = run(params, still, batch)
        return jax.device_get((outputs, terms, gradients))


OUTPUTS = {
    "slotz": "slots",
    "attent": "attention",
    "attent2": "masks",
    "zidx": "tokens",
    "quant": "codes",
    "recon": "prediction",
}


def compare_outputs(file: Golden, outputs: Mapping[str, Any], group: str) -> None:
    for key in [key for key in file.arrays if key.startswith(f"{group}/")]:
        name = OUTPUTS.get(key.removeprefix(f"{group}/"))
        if name is None:
            continue
        found, recorded = outputs[name], file[key]
        if name == "tokens":  # choices have a margin, so they agree exactly
            np.testing.assert_array_equal(found, recorded.reshape(found.shape))
            continue
        grid_last = name in ("codes", "prediction")
        change = lambda x, shape=found.shape, moved=grid_last: (  # noqa: E731
            flat(x) if moved else x.reshape(shape)
        )
        file.compare(key, found, FORWARD_BACKBONE, change=change)


def compare_recorded(case: Recorded, file: Golden, gradients: Mapping, group: str) -> None:
    """Compare all; what has none recorded has to be zero, and what is rounding noise small."""
    recorded = {}
    for key, x in file.group(f"{group}/m.").items():
        name, transform = case.table.ours(key)
        recorded[name] = transform.to_ours(x)
    compare_gradients(
        file,
        gradients,
        recorded,
        null=is_null,
        nothing=NO_GRADIENT,
        rounding=0.0,
        not_recorded=NO_GRADIENT,
    )


def is_null(name: str) -> bool:
    """Whether a gradient, or a part of it, is zero in exact arithmetic."""
    return name in ("aggregator.norm_slots.bias", "decoder.out.bias")


def inputs_of(case: Recorded, file: Golden, mode: str) -> dict[str, Any]:
    """The draws that a file was recorded with."""
    if mode == "eval":
        return case.draws()
    gumbel = file["inp/gumbel"] if "inp/gumbel" in file else None
    return case.draws(file["inp/query_noise"], gumbel)


LOSS_NAMES = {
    "slate": {"recon": "token"},
    "steve": {"recon": "token"},
    "vqdino_tfd": {"recon": "token"},
    "vqdino_mlp": {"recon0": "codes", "recon": "features"},
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["slate", "vqdino_tfd", "vqdino_mlp"])
def test_model(name, mode):
    """Outputs and losses of both modes; gradients of training."""
    parts = (f"out_{mode}/", f"loss_{mode}/", f"grad_{mode}/", "out/")
    with golden(f"model_{name}", parts=parts) as file:
        case = Recorded(name, file)
        outputs, terms, gradients = case.run(inputs_of(case, file, mode))
        compare_outputs(file, outputs, f"out_{mode}")
        for theirs, ours in LOSS_NAMES[name].items():
            file.compare(f"loss_{mode}/{theirs}", terms[ours], LOSS)
        if mode == "train":
            compare_recorded(case, file, gradients, "grad_train")
        if "out/feature" in file:
            change = flat
            file.compare("out/feature", outputs["features"], FORWARD_BACKBONE, change=change)
            segments = file["out/segment"]
            if mode == "eval":
                attention = outputs["attention"][:, 0]
                found = segments_from_masks(jnp.asarray(attention), segments.shape[-2:])
                assert (np.asarray(found) == segments).mean() > 0.999


@pytest.mark.slow
def test_model_of_steve():
    """Three frames from boxes, of which the last is padded with zeros."""
    with golden("model_steve") as file:
        case = Recorded("steve", file)
        tokens = file["inp/tokens"]
        given = {
            "tokens": jnp.asarray(tokens.reshape(*tokens.shape[:2], -1), jnp.int32),
            "codes": flat(file["inp/codes"]),
        }
        outputs, terms, gradients = case.run(case.draws(), given)
        compare_outputs(file, outputs, "out")
        file.compare("loss/recon", terms["token"], LOSS)
        compare_recorded(case, file, gradients, "grad")


@pytest.mark.slow
def test_training_of_slate():
    """Six steps of the train step that `main.py` calls."""
    with (
        golden("model_slate", parts=()) as model,
        golden("trajectory_slate", parts=("traj/", "final/")) as file,
    ):
        assert list(file["traj/terms"]) == ["recon"]
        case = Recorded("slate", model)
        draws = inputs_of(case, model, "train")
        rates, config = file["traj/learning_rates"], case.config
        config.train.num_steps = len(rates)
        config.optimizer.update(clip_norm=CLIP, clip_by="norm")
        config.optimizer.learning_rate.update(
            peak=float(rates.max()), warmup=int(rates.argmax()) / len(rates), end_ratio=1e-3
        )
        setup = build_training(config)
        put = lambda names: jax.device_put(  # noqa: E731
            {name: case.arrays[name] for name in names}, replicated(setup.mesh)
        )
        state, frozen = setup.state.replace(params=put(case.trained)), put(case.still)
        batch, found = setup.place(case.batch), []
        for step in range(len(rates) + 1):
            state, metrics = setup.train_step(state, frozen, batch, jax.random.key(step), draws)
            found.append(jax.device_get(metrics))
            if step == len(rates) - 1:  # one more step tells the loss after the last
                final = jax.device_get(state.params)
        file.compare("traj/losses", [[m["loss/token"]] for m in found], LOSS)
        learning_rates = [m["learning_rate"] for m in found[: len(rates)]]
        file.compare("traj/learning_rates", learning_rates, LOSS)
        file.compare("traj/gradient_norms", [m["grad_norm"] for m in found[: len(rates)]], GRADIENT)
        recorded = file.group("final/m.")
        compared = set()
        for key, expected in recorded.items():
            name, transform = case.table.ours(key)
            compared.add(name)
            if is_null(name):  # Adam makes large steps of rounding noise
                continue
            expected = transform.to_ours(expected)
            error = np.abs(final[name] - expected).max()
            assert error <= TRAINED * np.abs(expected).max(), f"{key}: {error:.1e}"
        assert compared >= set(final)
