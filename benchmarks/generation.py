"""Time the generation of tokens from slots, with the cache of keys and values and without.

    python benchmarks/generation.py
    python benchmarks/generation.py --batch=8 --repeats=5

The decoder is that of SLATE at 256 pixels: 256 tokens of a vocabulary of 4096, 4 layers of width
256, with random weights. Without the cache, each token takes a pass over all places, as in the
programs of SLATE and STEVE, which run the whole prefix for each.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402

from benchmarks import cases  # noqa: E402
from smoothsa_jax.models.decoders.causal_transformer import CausalTransformerDecoder  # noqa: E402

GRID, VOCABULARY, SIZE, SLOTS = (16, 16), 4096, 256, 7


def by_prefixes(model: CausalTransformerDecoder, slots: jax.Array, codes: jax.Array) -> jax.Array:
    """Return the same tokens (B,M) with one pass over all places for each."""
    num_tokens = GRID[0] * GRID[1]

    def step(tokens: jax.Array, place: jax.Array) -> tuple[jax.Array, None]:
        # A place sees those before it alone, so what stands behind does not matter.
        found, _ = model(slots, None, {"codes": codes[tokens]}, None)
        logits = jax.lax.dynamic_index_in_dim(found["prediction"], place, axis=1, keepdims=False)
        return tokens.at[:, place].set(logits.argmax(axis=-1).astype(jnp.int32)), None

    tokens = jnp.zeros((len(slots), num_tokens), jnp.int32)
    return jax.lax.scan(step, tokens, jnp.arange(num_tokens))[0]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1, help="images at a time")
    parser.add_argument("--repeats", type=int, default=3, help="calls that are timed")
    options = parser.parse_args(arguments)
    settings = {"num_layers": 4, "num_heads": 4, "embed": "codes"}
    model = CausalTransformerDecoder(GRID, VOCABULARY, SIZE, **settings, rngs=nnx.Rngs(0))
    slots = jax.random.normal(jax.random.key(0), (options.batch, SLOTS, SIZE))
    codes = jax.random.normal(jax.random.key(1), (VOCABULARY, SIZE))
    definition, weights = nnx.split(model)
    merged = lambda weights: nnx.merge(definition, weights)  # noqa: E731
    ways = {
        "with the cache": lambda w, s, c: merged(w).generate(s, None, lambda tokens: c[tokens]),
        "by prefixes": lambda w, s, c: by_prefixes(merged(w), s, c),
    }
    print(cases.machine())
    for name, way in ways.items():
        run = jax.jit(way).lower(weights, slots, codes).compile()
        call = lambda run=run: jax.block_until_ready(run(weights, slots, codes))  # noqa: E731
        call()
        seconds = statistics.median(cases.times_of(call, options.repeats))
        tokens = options.batch * GRID[0] * GRID[1]
        print(f"{name:<16}{tokens / seconds:>12,.0f} tokens/s{seconds:>10.3f} s a batch")
    return 0


if __name__ == "__main__":
    cases.run(main)
