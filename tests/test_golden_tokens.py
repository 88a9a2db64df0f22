"""The numbers of the programs of SLATE, STEVE and VQ-VFM-OCL for decoders of tokens and models.

GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes: every size
is read from the files.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from golden_files import FORWARD, GRADIENT, LOSS, golden

from smoothsa_jax.interop.authors import TORCH_LAYER, below
from smoothsa_jax.interop.table import KERNEL, RAW, KeyTable
from smoothsa_jax.models.decoders.causal_transformer import CausalTransformerDecoder
from smoothsa_jax.models.parameters import split

FILES = ["decoder_slate_ar"]
HEADS = 4  # stated in the README only

# Its first LayerNorm stands in front of the layers; ours is the first layer's.
DECODER = KeyTable(
    [
        ("bos", "first", RAW),
        ("posit_embed.pe", "position", RAW),
        ("norm0", "layers.0.norm_self", {"weight": ("scale", RAW[""][1])}),
        *below("backbone.layers.{}", "layers.{}", TORCH_LAYER),
        ("readout", "readout", {"weight": ("kernel", KERNEL)}),
    ]
)


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
        name, transform = DECODER.ours(key)
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
            name, transform = DECODER.ours(key)
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

        found, from_cache = generate(arrays, slots)
        whole, _ = definition.merge(arrays)(slots, None, {"codes": table[found]}, None)
        np.testing.assert_array_equal(found, whole["prediction"].argmax(axis=-1))
        assert len(np.unique(found)) > 1
        error = np.abs(from_cache - whole["prediction"]).max()
        assert error < FORWARD * np.abs(whole["prediction"]).max()
