"""Time the generation of tokens from slots, with the key-value cache and without.

    python benchmarks/generate.py                       STEVE's decoder: 1024 tokens, 8 layers
    python benchmarks/generate.py --config=configs/coco.py:slate --batch=8

Without the cache, each token runs all places again, in one program of full length.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp

from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.models.backend import backend_of
from smoothsa_jax.models.build import slot_model_shapes
from smoothsa_jax.models.parameters import split


def without_cache(decoder, slots, embed):
    """The same tokens as `generate`, by a run over all places for each of them."""
    num_tokens = decoder.grid[0] * decoder.grid[1]

    def step(tokens, place):
        given = {"tokens": tokens}
        if embed is not None:
            given["codes"] = embed(tokens)
        logits = decoder(slots, None, given, None)[0]["prediction"]
        chosen = jax.lax.dynamic_index_in_dim(logits, place, axis=1, keepdims=False)
        return tokens.at[:, place].set(chosen.argmax(axis=-1).astype(jnp.int32)), None

    start = jnp.zeros((len(slots), num_tokens), jnp.int32)
    return jax.lax.scan(step, start, jnp.arange(num_tokens))[0]


def timed(function, *inputs, repeat: int) -> tuple[float, jax.Array]:
    """Return the seconds of the fastest call after the first, and what it returned."""
    found, best = jax.block_until_ready(function(*inputs)), float("inf")
    for _ in range(repeat):
        begin = time.perf_counter()
        jax.block_until_ready(function(*inputs))
        best = min(best, time.perf_counter() - begin)
    return best, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/movi_d.py:steve,original")
    parser.add_argument("--batch", type=int, default=1, help="pictures at a time")
    parser.add_argument("--repeat", type=int, default=2, help="timed calls; the fastest counts")
    parser.add_argument("--tokens", type=int, default=0, help="of a side of the grid; 0: all")
    chosen = parser.parse_args()
    config = load_config(chosen.config).unlock()
    if chosen.tokens:
        config.model.target.grid = (chosen.tokens, chosen.tokens)
    model = slot_model_shapes(config.model, image_size_of(config))
    backend = backend_of(jax.local_devices()[0])
    definition, shapes, _ = split(model.decoder, config.dtype, backend)
    # Random weights do for the time; the tokens of both ways are compared.
    keys = jax.random.split(jax.random.key(0), len(shapes) + 2)
    arrays = {
        name: 0.1 * jax.random.normal(key, x.shape)
        for key, (name, x) in zip(keys, sorted(shapes.items()), strict=False)
    }
    size = (chosen.batch, config.model.num_slots, config.model.slot_size)
    slots = jax.random.normal(keys[-1], size)
    decoder = definition.merge(arrays, differentiated=False)
    embed = None
    if decoder.table is None:
        codes = jax.random.normal(keys[-2], (decoder.vocabulary, decoder.token_size))
        embed = lambda tokens: codes[tokens]  # noqa: E731

    def cached(arrays, slots):
        return definition.merge(arrays, differentiated=False).generate(slots, None, embed)

    def plain(arrays, slots):
        return without_cache(definition.merge(arrays, differentiated=False), slots, embed)

    ways = {"with cache": cached, "without cache": plain}
    rows, found = {}, []
    for name, way in ways.items():
        seconds, tokens = timed(jax.jit(way), arrays, slots, repeat=chosen.repeat)
        rows[name] = round(tokens.size / seconds, 1)
        found.append(tokens)
    same = float(jnp.mean(found[0] == found[1]))
    device = jax.local_devices()[0].device_kind
    row = {"config": chosen.config, "device": device, "batch": chosen.batch}
    row |= {"tokens": found[0].shape[1], "tokens per second": rows, "equal tokens": round(same, 4)}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
