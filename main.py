"""Train, evaluate and show SmoothSA.

    python main.py                                      train on sprites, evaluate, write runs/sprites
    python main.py --config=configs/sprites.py:smoke    another config or variant
    python main.py --config.train.num_steps=500         another value of any key of the config
    python main.py --workdir=runs/mine                  another folder; default runs/<name of the config>
    python main.py --mode=evaluate --workdir=runs/mine  score a trained run; needs no --config
    python main.py --mode=report --workdir=runs/mine    a page with curves, masks, attention, slots of a scored run

The same command goes on where a stopped or killed run was. Exit status: 0 done; 2 something to mend, told in one line;
130 stopped by Ctrl-C and 143 by SIGTERM, after saving.
"""

import sys
from pathlib import Path

from absl import flags

from smoothsa_jax.config import config_from_command_line, split_command_line
from smoothsa_jax.errors import UserError

DEFAULT_CONFIG = str(Path(__file__).parent / "configs" / "sprites.py")


def main(arguments: list[str]) -> int:
    """Run a command line (without the program's name) and return the exit status."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        return run(arguments)
    except UserError as error:
        return leave(f"error: {error}", 2)
    except KeyboardInterrupt:
        return leave("stopped by Ctrl-C", 130)
    except OSError as error:
        if error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return leave(f"error: {where}{error.strerror}; mend that, then run the same command", 2)


def run(arguments: list[str]) -> int:
    for_config, others = split_command_line(arguments)
    mode, workdir = read_flags(others)
    names_config = any(name == "config" for name, _ in for_config)
    # A mistyped override is told at once; JAX takes a second to import.
    needs_config = mode == "train" or names_config or workdir is None
    config = config_from_command_line(for_config, DEFAULT_CONFIG) if needs_config else None
    folder = Path("runs") / config.name if workdir is None else Path(workdir)

    from smoothsa_jax.training import loop, runtime

    runtime.start(loop.say)
    try:
        if mode == "train":
            loop.train(config, folder)
            return 0

        def choose(stored):
            return config if names_config else config_from_command_line(for_config, stored)

        if mode == "evaluate":
            loop.evaluate(folder, choose)
        else:
            from smoothsa_jax.report.build import report

            print(f"report       {report(folder, choose, loop.say)}")
    except runtime.Stopped as stopped:
        return leave(str(stopped), stopped.exit_code)
    return 0


def read_flags(arguments: list[str]) -> tuple[str, str | None]:
    """The values of --mode and --workdir."""
    values = flags.FlagValues()
    mode = flags.DEFINE_enum(
        "mode", "train", ["train", "evaluate", "report"], "what to do", flag_values=values
    )
    workdir = flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    try:
        unused = values(["main.py", *arguments])[1:]
    except flags.Error as error:
        raise UserError(f"{' '.join(str(error).split())}; see python main.py --help") from error
    if unused:
        raise UserError(
            f"found the argument {unused[0]!r}, expected flags only; see python main.py --help"
        )
    if workdir.value == "":
        raise UserError(
            "--workdir is empty, expected a folder; leave it out for runs/<name of the config>"
        )
    return mode.value, workdir.value


def leave(message: str, status: int) -> int:
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
