"""Time the training step of a config: compilation, first call, steady state, and its parts.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --config=configs/sprites.py:smoke --steps=50 --json
    python benchmarks/train_step.py --config=configs/coco.py:spot --steps=3 --whole

Any `--config.key=value` works as for main.py. Pixels and boxes are random, so discovery needs no
data; recognition reads its data set. Times are medians of single calls on one batch that is on the
device already. "Of cores" is the mean processor time of a step, summed over the CPU's cores; other
programs on the machine hardly change it. Memory is what the compiler plans for one device. FLOP are
XLA's count for one device; the peak is a large matrix product of the same type, measured here.
Parts are timed only for a slot model with a frozen encoder.
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
import numpy as np  # noqa: E402
import optax  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import cases  # noqa: E402
from smoothsa_jax.devices.compiling import memory_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import OPTIONAL
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.loader import training_batches
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.interfaces import GIVEN
from smoothsa_jax.models.layers import attention
from smoothsa_jax.models.parameters import ENCODER
from smoothsa_jax.schedules import Schedules
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.task import MODEL, sizes_of
from smoothsa_jax.training.optimizer import build_optimizer
from smoothsa_jax.training.step import Training, build_training

PEAK_SIZE = {"cpu": 2048}  # rows of the square matrices; elsewhere 8192


def measure(config: ConfigDict, steps: int, whole_only: bool = False) -> dict[str, Any]:
    """Return all figures: seconds, bytes, FLOP of one call, FLOP a second.

    Args:
        config: what is trained.
        steps: number of calls that are timed.
        whole_only: whether to leave out the parts of the step.

    Raises:
        UserError: a config that cannot run on this machine.
    """
    training = cases.training_of(config)
    batch = training.place(batch_of(config))
    key = jax.random.key(config.seed)
    frozen, params = training.frozen, jax.tree.map(jnp.copy, training.state.params)
    arguments = (training.state, frozen, batch, key)
    begin = time.perf_counter()
    compiled = training.train_step.lower(*arguments).compile()
    compile_seconds = time.perf_counter() - begin
    whole = config.copy_and_resolve_references()
    with whole.unlocked():
        whole.train.accumulate = 1  # the parts of a batch are a loop
    flop = count_flop(build_training(whole).train_step, *arguments)
    begin = time.perf_counter()
    state, _ = jax.block_until_ready(compiled(*arguments))  # gives its state away
    first = time.perf_counter() - begin
    holder = [state]

    def step() -> Any:
        holder[0], metrics = compiled(holder[0], frozen, batch, key)
        return holder[0], metrics

    parts, made = {}, {}
    if not whole_only and ENCODER in training.definitions[MODEL].frozen_parts:
        made = parts_of(training, config, params, batch, key)
    for name, (function, inputs) in made.items():
        program = jax.jit(function)
        ready = program.lower(*inputs).compile()
        parts[name] = {
            "seconds": median_of(lambda ready=ready, inputs=inputs: ready(*inputs), steps),
            "flop": count_flop(program, *inputs),
        }
    begin = time.process_time()
    steady = median_of(step, steps)
    return {
        "compile_seconds": compile_seconds,
        "first_seconds": first,
        "steady_seconds": steady,
        # One call of `median_of` is not timed, but it computes.
        "processor_seconds": (time.process_time() - begin) / (steps + 1),
        "memory": None if (memory := memory_of(compiled)) is None else memory.peak,
        "flop": flop,
        "parts": parts,
        **matmul_peak(config.dtype),
    }


def batch_of(config: ConfigDict) -> dict[str, np.ndarray]:
    """Return random pixels, or samples of the data set where more than pixels is read."""
    task = build_task(config)
    if not {"segmentations", *OPTIONAL} & set(task.inputs):
        return cases.random_batch(config)
    source = build_dataset(
        config.data, "train", reads=task.inputs, num_slots=task.slot_model.num_slots
    )
    return next(training_batches(source, config.train.batch_size, config.seed))


def parts_of(
    training: Training, config: ConfigDict, params: Any, batch: dict, key: jax.Array
) -> dict[str, tuple[Callable, tuple]]:
    """Return the parts of a step as functions with their inputs.

    They overlap: the gradient contains both forward parts.
    """
    task, frozen = training.task, training.frozen
    # Moving averages of the model are made by the step itself.
    averages = {name for name, x in config.companions.items() if "average_of" in x}
    definitions = {name: x for name, x in training.definitions.items() if name not in averages}
    skeletons = {name: x.skeleton() for name, x in definitions.items()}
    draws = task.draw(skeletons, key, sizes_of(batch), True)
    losses = build_losses(config.losses)
    settings = {"losses": losses.schedules, MODEL: task.schedules}
    # As in the first step.
    scheduled = Schedules(settings, config.train.num_steps).at(jnp.zeros((), jnp.int32))
    optimizer = build_optimizer(config.optimizer, config.train.num_steps)

    def models(params, frozen):
        return {name: x.merge(params, frozen) for name, x in definitions.items()}

    def encoder(params, frozen, batch):
        merged = models(params, frozen)
        constants = task.constants(merged, batch, draws, False)
        return {**constants, **task.targets(skeletons, batch, constants, draws)}

    def forward(params, frozen, constants, draws, batch):
        merged = models(params, frozen)
        return task.forward(merged, batch, constants, draws, scheduled[MODEL])

    def aggregator(*inputs):
        outputs = forward(*inputs)
        # XLA drops the decoder, on which these do not depend.
        return {name: outputs[name] for name in ("slots", "warm_queries") if name in outputs}

    def decoder(params, frozen, constants, slots, draws, mask):
        fold = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        frames = jnp.repeat(mask, slots.shape[1], axis=0)
        model = models(params, frozen)[MODEL]
        exact = getattr(model.decoder, "exact", ())
        given = {name: fold(constants[name]) for name in GIVEN if name in constants}
        given = {n: x if n in exact else x.astype(model.dtype) for n, x in given.items()}
        return model.decoder(
            fold(slots).astype(model.dtype), frames, given, jax.tree.map(fold, draws)
        )

    def gradient(params, frozen, constants, draws, batch):
        def loss(params):
            outputs = forward(params, frozen, constants, draws, batch)
            terms = losses({**constants, **outputs}, batch, scheduled["losses"])
            return sum(terms.values())

        return jax.value_and_grad(loss)(params)

    def update(params, grads, opt_state):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    constants = jax.jit(encoder)(params, frozen, batch)
    inputs = (params, frozen, constants, draws, batch)
    slots = jax.jit(aggregator)(*inputs)["slots"]
    of_decoder = (params, frozen, constants, slots, draws["decoder"], batch["slot_mask"])
    grads = jax.tree.map(jnp.ones_like, params)
    return {
        "encoder": (encoder, (params, frozen, batch)),
        "aggregator, forward": (aggregator, inputs),
        "decoder, forward": (decoder, of_decoder),
        "loss and gradient": (gradient, inputs),
        "update": (update, (params, grads, optimizer.init(params))),
    }


def median_of(call: Callable[[], Any], repeats: int) -> float:
    """Return the median seconds of a call, after one that is not timed."""
    jax.block_until_ready(call())
    waited = lambda: jax.block_until_ready(call())  # noqa: E731
    return statistics.median(cases.times_of(waited, repeats))


def count_flop(program: Callable, *inputs: Any) -> float:
    """Return the FLOP of one call on one device, as XLA counts them before it compiles.

    XLA counts the body of a loop once and cannot see into library calls, so it counts the same
    program with the scan over frames unrolled and attention written out.
    """
    plain = inspect.unwrap(program)
    with unrolled_scans():
        lowered = jax.jit(lambda *inputs: plain(*inputs)).lower(*inputs)
    return float(lowered.cost_analysis().get("flops", 0.0))


@contextlib.contextmanager
def unrolled_scans() -> Iterator[None]:
    """Trace programs without loops over frames or samples, and without a library's attention."""
    scan, one_by_one, form = jax.lax.scan, attention.ONE_BY_ONE, attention.takes_cudnn
    jax.lax.scan = lambda *given, **options: scan(*given, **{**options, "unroll": True})
    attention.ONE_BY_ONE, attention.takes_cudnn = math.inf, lambda *ignored: False
    try:
        yield
    finally:
        jax.lax.scan, attention.ONE_BY_ONE, attention.takes_cudnn = scan, one_by_one, form


def matmul_peak(dtype: str) -> dict[str, Any]:
    """Return the FLOP/s of a large square matrix product on one device, the best of five."""
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
    """Return the figures as text."""
    steady, peak = found["steady_seconds"], found["peak_flop_per_second"]
    memory = "-" if found["memory"] is None else f"{found['memory'] / 1e9:.2f}"
    lines = [
        found["machine"],
        found["config"],
        "",
        f"compile  {found['compile_seconds']:10.2f} s",
        f"first    {1e3 * found['first_seconds']:10.2f} ms",
        f"steady   {1e3 * steady:10.2f} ms   {1 / steady:.3g} steps/s",
        f"of cores {1e3 * found['processor_seconds']:10.2f} ms",
        f"memory   {memory:>10} GB",
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
        f"peak: {peak / 1e12:.3f} TFLOP/s, measured with {size} x {size} matrices of "
        f"{found['dtype']}",
    ]
    if found["parts"]:
        lines.append("Parts are timed one by one; loss and gradient contain both forward parts.")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="calls that are timed")
    parser.add_argument("--whole", action="store_true", help="time the step, not its parts")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    config, options = cases.arguments_of(parser, arguments)
    if options.steps < 1:
        raise UserError(f"--steps is {options.steps}; expected at least 1")
    about = {"machine": cases.machine(), "config": cases.of_config(config), "dtype": config.dtype}
    found = {**about, **measure(config, options.steps, options.whole)}
    if options.json:
        print(json.dumps(found))
        return 0
    print(report(found))
    steady, peak = found["steady_seconds"], found["peak_flop_per_second"]
    share = f"{found['flop'] / steady / peak:.0%} of the measured peak"
    cases.tell(f"{config.name}: a training step", f"{1e3 * steady:.1f} ms", share)
    return 0


if __name__ == "__main__":
    cases.run(main)
