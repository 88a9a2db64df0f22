"""Time the training step with and without each of some options, in turns in one process.

    python benchmarks/options.py --config=configs/movi_c.py \\
        --config.weights.encoder.source=random --config.train.batch_size=2
    python benchmarks/options.py --rounds=5 \\
        --options train.accumulate=4 "train.xla_flags=xla_gpu_enable_triton_gemm=false"

The options are rematerialization, accumulation, unrolling and XLA's flags. Any `--config.key=value`
works as for main.py. All are compiled in parallel, so compile times are not reported; then they
take turns. An option that fails is reported, and the exit status is 1. A figure is the best round;
the ratio is above 1 where the option makes the step faster. Memory is what the compiler plans
besides state and batch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import cases  # noqa: E402
from smoothsa_jax.config.load import config_from_command_line
from smoothsa_jax.errors import UserError

OPTIONS = (
    "train.remat=recurrence",
    "train.remat=decoder",
    "train.remat=all",
    "train.accumulate=2",
    "train.scan_unroll=5",
)
# What is not the default of jaxlib 0.7 to 0.10 and may help; docs/devices.md says what each does.
GPU_FLAGS = (
    "xla_gpu_enable_latency_hiding_scheduler=true",
    "xla_gpu_enable_triton_gemm=false",
    "xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,WHILE",
    "xla_gpu_enable_while_loop_double_buffering=true",
)


def measure(config: ConfigDict, options: Sequence[str], rounds: int) -> dict[str, cases.Timed]:
    """Time the step with no option ("") and with each of `options`.

    Raises:
        UserError: an option that the config does not have.
    """
    changes = {
        option: [(f"config.{option.partition('=')[0]}", option.partition("=")[2])]
        for option in options
    }
    configs = [config, *(config_from_command_line(x, config) for x in changes.values())]
    return dict(zip(("", *changes), cases.time_steps(configs, rounds), strict=True))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--options", nargs="*", help="KEY=VALUE of the config, each on its own")
    parser.add_argument("--rounds", type=int, default=5)
    config, given = cases.arguments_of(parser, arguments)
    options = given.options
    if options is None:
        flags = GPU_FLAGS if jax.default_backend() == "gpu" else ()
        options = [*OPTIONS, *(f"train.xla_flags={flag}" for flag in flags)]
    elif jax.default_backend() != "gpu" and any("xla_flags" in x for x in options):
        raise UserError(
            f"JAX runs on {jax.default_backend()}, and train.xla_flags are for a GPU; run this on "
            "a GPU"
        )
    found = measure(config, options, given.rounds)
    print(f"{cases.machine()}\n{cases.of_config(config)}")
    for option, timed in found.items():
        what = f"{config.name}: {option.removeprefix('train.xla_flags=') or 'no option'}"
        if timed.failed:
            cases.tell(what, "failed", timed.failed)
            continue
        remark = f"{found[''].seconds / timed.seconds:.2f} x as fast"
        if timed.temporary_gb is not None:
            remark += f", {timed.temporary_gb:.2f} GB temporary"
        cases.tell(what, f"{1e3 * timed.seconds:.1f} ms", remark)
    return int(any(timed.failed for timed in found.values()))


if __name__ == "__main__":
    cases.run(main)
