"""The training step with and without each of some options, in turns in one process: rematerialisation, accumulation, unrolling, flags of XLA.

    python benchmarks/options.py --config=configs/movi_c.py --config.model.backbone.weights=random --config.train.batch_size=2
    python benchmarks/options.py --options train.accumulate=4 "train.xla_flags=xla_gpu_enable_triton_gemm=false" --rounds=5

Any `--config.key=value` works as for main.py. All are compiled side by side, which is why the time to compile is not told; then they
take turns. One that fails is told, with status 1 in the end. A figure is the best round's, the ratio that of the two: above 1 the step is faster with the option.
Memory is what the compiler plans besides state and batch.
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
    """The step with no option ("") and with each of `options`.

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
            f"JAX runs on {jax.default_backend()}, and train.xla_flags are for a GPU; run this on one"
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
