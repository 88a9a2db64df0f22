"""The original STEVE against the numbers of its program.

GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import FORWARD, GRADIENT, LOSS, Golden, golden, inner, write_report

from smoothsa_jax.interop.steve import DVAE as DVAE_ROWS
from smoothsa_jax.interop.steve import STEVE
from smoothsa_jax.interop.table import KeyTable
from smoothsa_jax.models.aggregators.slot_attention import SlotAttention
from smoothsa_jax.models.initializers import Gaussian
from smoothsa_jax.models.parameters import split
from smoothsa_jax.models.tokenizers.dvae import DVAE
from smoothsa_jax.models.transitions import Transformer

# What the files do not tell.
HEADS, ITERATIONS = 4, 2
ATTENTION = {
    "first": ITERATIONS,
    "gradient": "full",
    "epsilon": 1e-8,
    "epsilon_in": "weights",
    "activation": "relu",
    "start": "xavier",
    "last_mlp": False,
}
PREDICTOR = {
    "num_heads": HEADS,
    "norm": "pre",
    "activation": "relu",
    "bias": True,
    "attention_bias": False,
    "norm_stream": True,
    "final_norm": True,
    "attention_start": "xavier",
    "start": "xavier",
}


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    write_report()


def numbers(keys, start: str) -> int:
    """How many numbers follow `start` in these keys."""
    return len({key[len(start) :].split(".")[0] for key in keys if key.startswith(start)})


def compare_gradients(file: Golden, recorded: dict, gradients: dict) -> None:
    """Compare gradients by our names; those that are zero in exact arithmetic absolutely."""
    of_file = max(np.abs(x).max() for x in gradients.values())
    for name, expected in recorded.items():
        error, largest = np.abs(gradients[name] - expected).max(), np.abs(expected).max()
        # Of queries' biases, which shift all logits of a softmax alike.
        floor = 1e-5 * of_file if name.endswith("norm_slots.bias") else 1e-7 * of_file
        assert error <= max(GRADIENT * largest, floor), f"{name}: {error:.1e} of {largest:.1e}"


def compare_norms(file: Golden, to_ours, gradients: dict) -> None:
    """Compare the norms of large arrays' gradients."""
    for key, expected in zip(file["grad_norm/keys"], file["grad_norm/norms"], strict=True):
        found = np.linalg.norm(np.asarray(gradients[to_ours(str(key))], np.float64))
        np.testing.assert_allclose(found, expected, rtol=GRADIENT, err_msg=str(key))


def grid_last(x: np.ndarray) -> np.ndarray:
    """(B,V,h,w) -> (B,M,V)."""
    return np.moveaxis(x, 1, -1).reshape(len(x), -1, x.shape[1])


def test_dvae():
    """Log-probabilities, relaxed sample, reconstruction, loss and gradients."""
    table = KeyTable(DVAE_ROWS)
    with golden("tokeniser_dvae") as file:
        theirs = file.group("param/")
        arrays = {}
        for key, x in theirs.items():
            name, transform = table.ours(key)
            arrays[name] = jnp.asarray(transform.to_ours(x))
        image = np.moveaxis(file["inp/image"], 1, -1)
        vocabulary, hidden = theirs["encoder.7.weight"].shape[:2]
        make = lambda: DVAE(  # noqa: E731
            image.shape[1:3], None, None, vocabulary=vocabulary, hidden_size=hidden, rngs=nnx.Rngs(0)
        )
        definition, expected, _ = split(nnx.eval_shape(make))
        assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}
        noise = jnp.asarray(grid_last(file["inp/gumbel"]))
        scheduled = {"tau": file["inp/tau"]}

        def run(arrays):
            model = definition.merge(arrays)
            latents = model.encode(image)
            found = model.quantize(latents, {"soft": noise, "hard": noise}, scheduled)
            recon = model.decode(found.mixed)
            loss = jnp.sum((recon - image) ** 2) / len(image)
            return loss, (latents, found, recon)

        (loss, (latents, found, recon)), gradients = jax.jit(
            jax.value_and_grad(run, has_aux=True)
        )(arrays)
        file.compare("out/log_probability", jnp.moveaxis(latents, -1, 1), FORWARD)
        file.compare("out/soft", found.mixed, FORWARD, change=grid_last)
        file.compare("out/recon", jnp.moveaxis(recon, -1, 1), FORWARD)
        file.compare("loss/mse", loss, LOSS)
        np.testing.assert_array_equal(found.tokens, np.argmax(found.mixed, axis=-1))
        recorded = {}
        for key, x in file.group("grad/").items():
            name, transform = table.ours(key)
            recorded[name] = transform.to_ours(x)
        compare_gradients(file, recorded, gradients)
        compare_norms(file, lambda key: table.ours(key)[0], gradients)


class Recurrence(nnx.Module):
    """Slots of a clip of tokens."""

    def __init__(self, width: int, slot_size: int, mlp_size: int, num_layers: int):
        rngs = nnx.Rngs(0)
        gaussian = {"log_std": None, "mean": "xavier"}
        self.initializer = Gaussian(width, slot_size, 1, **gaussian, rngs=rngs)
        self.aggregator = SlotAttention(
            width, slot_size, **ATTENTION, mlp_size=mlp_size, rngs=rngs
        )
        self.transition = Transformer(
            width, slot_size, **PREDICTOR, num_layers=num_layers, rngs=rngs
        )

    def __call__(self, tokens, noise):
        queries, _ = self.initializer(tokens[:, 0], None, None, noise, {})
        slots, attentions = [], []
        for frame in range(tokens.shape[1]):
            found = self.aggregator(self.aggregator.prepare(tokens[:, frame]), queries)
            slots.append(found.slots)
            attentions.append(found.attention[-1])
            queries, _ = self.transition(found.slots, None, None)
        return jnp.stack(slots, axis=1), jnp.stack(attentions, axis=1)


def test_slot_attention():
    """Slots, attention and gradients over a clip."""
    with golden("slot_attention_steve") as file:
        theirs = {f"steve_encoder.savi.{k}": x for k, x in file.group("param/").items()}
        of = lambda key: theirs[f"steve_encoder.savi.{key}"].shape  # noqa: E731
        sizes = of("project_k.weight")[1], of("project_q.weight")[0], of("mlp.0.weight")[0]
        layers = numbers(theirs, "steve_encoder.savi.predictor.blocks.")
        definition, expected, _ = split(nnx.eval_shape(lambda: Recurrence(*sizes, layers)))
        convert = lambda found: STEVE.to_ours(found, expected)  # noqa: E731
        arrays = {k: jnp.asarray(x) for k, x in convert(theirs).items()}
        assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}
        tokens, noise = file["inp/tokens"], file["inp/noise"]
        cotangents = file["inp/cotangent_slots"], file["inp/cotangent_attention"].swapaxes(2, 3)

        @jax.jit
        def run(arrays):
            def total(arrays):
                outputs = definition.merge(arrays)(tokens, noise)
                return inner(list(zip(outputs, cotangents, strict=True))), outputs

            return jax.value_and_grad(total, has_aux=True)(arrays)

        (_, (slots, attention)), gradients = run(arrays)
        file.compare("out/slots", slots, FORWARD)
        file.compare("out/attention", attention.swapaxes(2, 3), FORWARD)
        recorded = {f"steve_encoder.savi.{k}": x for k, x in file.group("grad/").items()}
        compare_gradients(file, convert(recorded), gradients)
