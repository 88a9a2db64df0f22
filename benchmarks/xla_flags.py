"""Times the training step with and without each of some flags of XLA, in turns in one process; needs a GPU.

    python benchmarks/xla_flags.py --config=configs/movi_c.py --config.model.backbone.weights=random
    python benchmarks/xla_flags.py --flags="xla_gpu_enable_triton_gemm=false" --rounds=5 --json

Each set of flags is compiled once (`train.xla_flags`); then every round calls each program `--steps` times, one set after the other.
A ratio above 1 says that the step is faster with the flag.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from smoothsa_jax.config import config_from_command_line, split_command_line  # noqa: E402
from smoothsa_jax.errors import UserError  # noqa: E402
from smoothsa_jax.training.runtime import describe_machine  # noqa: E402
from smoothsa_jax.training.step import build_training  # noqa: E402

# What is not the default of jaxlib 0.7 to 0.10 and may help; docs/scaling.md says what each does.
FLAGS = (
    "xla_gpu_enable_latency_hiding_scheduler=true",
    "xla_gpu_enable_triton_gemm=false",
    "xla_gpu_exhaustive_tiling_search=true",
    "xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,WHILE",
    "xla_gpu_enable_while_loop_double_buffering=true",
)


def measure(
    config: ConfigDict, flags: Sequence[str], rounds: int, steps: int
) -> list[dict[str, Any]]:
    """Seconds to compile and of a step for no flags and each of `flags`."""
    rng = np.random.default_rng(0)
    data, batch = config.data, config.train.batch_size
    size = data.image_size if isinstance(data.image_size, tuple) else (data.image_size,) * 2
    slots = config.model.slot_attention.num_slots
    inputs = {
        "video": rng.integers(0, 256, (batch, data.num_frames, *size, 3), dtype=np.uint8),
        "boxes": rng.random((batch, data.num_frames, slots, 4), dtype=np.float32),
        "slot_mask": np.ones((batch, slots), bool),
    }
    programs, rows = [], []
    for flag in ("", *flags):
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            changed.train.xla_flags = flag
        training = build_training(changed)
        arguments = (training.frozen, training.place(inputs), jax.random.key(0))
        begin = time.perf_counter()
        compiled = training.train_step.lower(training.state, *arguments).compile()
        rows.append({"flag": flag, "compile_seconds": time.perf_counter() - begin, "seconds": []})
        programs.append((compiled, jax.tree.map(jnp.copy, training.state), arguments))
    for number in range(rounds + 1):  # the first round warms up
        for place, (row, (compiled, state, arguments)) in enumerate(
            zip(rows, programs, strict=True)
        ):
            begin = time.perf_counter()
            for _ in range(steps):
                state, _ = compiled(state, *arguments)
            jax.block_until_ready(state)
            if number:
                row["seconds"].append((time.perf_counter() - begin) / steps)
            programs[place] = (compiled, state, arguments)
    plain = statistics.median(rows[0]["seconds"])
    for row in rows:
        row["seconds"] = statistics.median(row["seconds"])
        row["ratio"] = plain / row["seconds"]
    return rows


def main(arguments: Sequence[str]) -> int:
    for_config, others = split_command_line(arguments)
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="config file, with :variant; default configs/sprites.py")
    parser.add_argument("--flags", nargs="*", default=FLAGS, help="sets of flags to try")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="calls in each turn")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    options = parser.parse_args(others)
    config = config_from_command_line(for_config, "configs/sprites.py")
    if jax.default_backend() != "gpu":
        raise UserError(
            f"JAX runs on {jax.default_backend()}, and these flags are for a GPU; run this on one"
        )
    rows = measure(config, options.flags, options.rounds, options.steps)
    if options.json:
        print(json.dumps(rows))
        return 0
    print(describe_machine())
    print(f"{'step ms':>10}{'ratio':>8}{'compile s':>11}  flag")
    for row in rows:
        print(
            f"{1e3 * row['seconds']:>10.2f}{row['ratio']:>8.3f}{row['compile_seconds']:>11.1f}  {row['flag'] or 'none'}"
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
