"""Times the training step of a config: compiling, the first call, the steady state, and its parts.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --config=configs/sprites.py:smoke --steps=50 --json

Any `--config.key=value` works as for main.py. Times are medians of single calls on one batch that is on the device
already; FLOP are XLA's count for one device, the peak is a large matrix product of the same type, measured here.
"""

import argparse
import contextlib
import inspect
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import cases  # noqa: E402
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.loader import training_batches
from smoothsa_jax.losses.build import active_terms, weighted_losses
from smoothsa_jax.models.draws import sample_training_draws
from smoothsa_jax.models.layers import attention
from smoothsa_jax.training.optimizer import build_optimizer
from smoothsa_jax.training.step import Training, build_training

PEAK_SIZE = {"cpu": 2048}  # rows of the square matrices; elsewhere 8192


def measure(config: ConfigDict, steps: int) -> dict[str, Any]:
    """All figures: seconds, FLOP of one call, FLOP a second.

    Raises:
        UserError: a config that cannot run on this machine.
    """
    training = cases.training_of(config)
    slots = config.model.slot_attention.num_slots
    source = build_dataset(config.data, "train", num_slots=slots)
    batch = training.place(next(training_batches(source, config.train.batch_size, config.seed)))
    key = jax.random.key(config.seed)
    frozen, params = training.frozen, jax.tree.map(jnp.copy, training.state.params)
    arguments = (training.state, frozen, batch, key)
    begin = time.perf_counter()
    compiled = training.train_step.lower(*arguments).compile()
    compile_seconds = time.perf_counter() - begin
    whole = config.copy_and_resolve_references()
    with whole.unlocked():
        whole.train.accumulate = 1  # its parts are a loop
    flop = count_flop(build_training(whole).train_step, *arguments)
    begin = time.perf_counter()
    state, _ = jax.block_until_ready(compiled(*arguments))  # gives its state away
    first = time.perf_counter() - begin
    holder = [state]

    def step() -> Any:
        holder[0], metrics = compiled(holder[0], frozen, batch, key)
        return holder[0], metrics

    parts = {}
    for name, (function, inputs) in parts_of(training, config, params, batch, key).items():
        program = jax.jit(function)
        ready = program.lower(*inputs).compile()
        parts[name] = {
            "seconds": median_of(lambda ready=ready, inputs=inputs: ready(*inputs), steps),
            "flop": count_flop(program, *inputs),
        }
    return {
        "compile_seconds": compile_seconds,
        "first_seconds": first,
        "steady_seconds": median_of(step, steps),
        "flop": flop,
        "parts": parts,
        **matmul_peak(config.dtype),
    }


def parts_of(
    training: Training, config: ConfigDict, params: Any, batch: dict, key: jax.Array
) -> dict[str, tuple[Callable, tuple]]:
    """The parts of a step as functions with their inputs. They overlap: the gradient contains both forward parts."""
    frozen, merge = training.frozen, training.definition.merge
    batch_size, num_frames = batch["video"].shape[:2]
    draws = sample_training_draws(
        key,
        *batch["slot_mask"].shape,
        config.model.slot_attention.slot_size,
        num_frames=num_frames,
        num_tokens=training.grid[0] * training.grid[1],
        history=config.model.transition.get("history", 2),
    )
    per_sample = {name: value for name, value in vars(draws).items() if name != "dropout"}
    draws = draws.replace(**jax.device_put(per_sample, training.batch_sharding))
    weights = active_terms(config.loss, config.model.initializer.warmer, num_frames)
    detach = config.model.initializer.detach_until > 0  # as in the first step
    mask = batch["slot_mask"]
    optimizer = build_optimizer(config.optimizer, config.train.num_steps)

    def backbone(params, frozen, video):
        return merge(params, frozen).extract(video)

    def forward(params, frozen, features, draws, batch):
        return merge(params, frozen)(features, draws, batch["boxes"], batch["slot_mask"], detach)

    def slot_attention(*inputs):
        outputs = forward(*inputs)
        # XLA drops the decoder, on which these do not depend.
        return {name: outputs[name] for name in ("slots", "warm_queries") if name in outputs}

    def decoder(params, frozen, features, slots, visible, mask):
        fold = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        frames = jnp.repeat(mask, num_frames, axis=0)
        return merge(params, frozen).decoder(fold(features), fold(slots), fold(visible), frames)

    def gradient(params, frozen, features, draws, batch):
        def loss(params):
            outputs = forward(params, frozen, features, draws, batch)
            return sum(weighted_losses(outputs, batch["slot_mask"], weights).values())

        return jax.value_and_grad(loss)(params)

    def update(params, grads, opt_state):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    features = jax.jit(backbone)(params, frozen, batch["video"])
    inputs = (params, frozen, features, draws, batch)
    slots = jax.jit(slot_attention)(*inputs)["slots"]
    grads = jax.tree.map(jnp.ones_like, params)
    return {
        "backbone": (backbone, (params, frozen, batch["video"])),
        "slot attention, forward": (slot_attention, inputs),
        "decoder, forward": (decoder, (params, frozen, features, slots, draws.visible, mask)),
        "loss and gradient": (gradient, inputs),
        "update": (update, (params, grads, optimizer.init(params))),
    }


def median_of(call: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call, after one that is not timed."""
    jax.block_until_ready(call())
    waited = lambda: jax.block_until_ready(call())  # noqa: E731
    return statistics.median(cases.in_turn([waited], repeats, time.perf_counter)[0])


def count_flop(program: Callable, *inputs: Any) -> float:
    """FLOP of one call on one device, as XLA counts them before it compiles.

    XLA counts the body of a loop once and knows nothing of what a library's call does, so what is counted is the same program with
    the scan over frames unrolled and attention written out.
    """
    plain = inspect.unwrap(program)
    with unrolled_scans():
        lowered = jax.jit(lambda *inputs: plain(*inputs)).lower(*inputs)
    return float(lowered.cost_analysis().get("flops", 0.0))


@contextlib.contextmanager
def unrolled_scans() -> Iterator[None]:
    """Programs traced inside have no loop over frames or samples, and no library's attention."""
    scan, one_by_one, form = jax.lax.scan, attention.ONE_BY_ONE, attention.takes_cudnn
    jax.lax.scan = lambda *given, **options: scan(*given, **{**options, "unroll": True})
    attention.ONE_BY_ONE, attention.takes_cudnn = math.inf, lambda *ignored: False
    try:
        yield
    finally:
        jax.lax.scan, attention.ONE_BY_ONE, attention.takes_cudnn = scan, one_by_one, form


def matmul_peak(dtype: str) -> dict[str, Any]:
    """FLOP a second of one large square matrix product on one device: the best of five."""
    size = PEAK_SIZE.get(jax.default_backend(), 8192)
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        times.append(time.perf_counter() - begin)
    return {"peak_size": size, "peak_flop_per_second": 2 * size**3 / min(times)}


def report(found: dict[str, Any]) -> str:
    """The figures as lines for people."""
    steady, peak = found["steady_seconds"], found["peak_flop_per_second"]
    lines = [
        found["machine"],
        found["config"],
        "",
        f"compile  {found['compile_seconds']:10.2f} s",
        f"first    {1e3 * found['first_seconds']:10.2f} ms",
        f"steady   {1e3 * steady:10.2f} ms   {1 / steady:.2f} steps/s",
        "",
        f"{'part':<26}{'ms':>10}{'of the step':>13}{'TFLOP':>12}{'of the peak':>13}",
    ]
    rows = {**found["parts"], "the whole step": {"seconds": steady, "flop": found["flop"]}}
    for name, row in rows.items():
        lines.append(
            f"{name:<26}{1e3 * row['seconds']:>10.2f}{row['seconds'] / steady:>13.1%}"
            f"{row['flop'] / 1e12:>12.3g}{row['flop'] / row['seconds'] / peak:>13.1%}"
        )
    size = found["peak_size"]
    lines += [
        "",
        f"peak: {peak / 1e12:.3f} TFLOP/s, measured with {size} x {size} matrices of {found['dtype']}",
        "The parts are compiled and timed one by one; loss and gradient contain both forward parts.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="calls that are timed")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    config, options = cases.arguments_of(parser, arguments)
    if options.steps < 1:
        raise UserError(f"--steps is {options.steps}; expected at least 1")
    about = {"machine": cases.machine(), "config": cases.of_config(config), "dtype": config.dtype}
    found = {**about, **measure(config, options.steps)}
    print(json.dumps(found) if options.json else report(found))
    return 0


if __name__ == "__main__":
    cases.run(main)
