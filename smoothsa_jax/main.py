"""Train and evaluate slot models, and segment pictures and videos with them.

    python main.py                                   train on sprites, evaluate, write runs/sprites
    python main.py --config=coco:smoke               another recipe, with words (configs/README.md)
    python main.py --config=my/config.py             a config file of yours
    python main.py --config.train.num_steps=500      another value of any key of the config
    python main.py --workdir=runs/mine               another folder; default runs/<config.name>
    python main.py --mode=evaluate --workdir=runs/mine    score a trained run; needs no --config
    python main.py --mode=predict --workdir=runs/mine --input=clip.mp4 --output=found
    python main.py --mode=report --workdir=runs/mine      an HTML page about a scored run

Options of --mode=predict (docs/use.md). Its --workdir is a trained run, the folder of a saved
model, hf://OWNER/NAME, or the name of a bundled or published model.

    --input=PATH|GLOB|FOLDER    pictures, videos (mp4, webm, gif, ...), folders of frames
    --output=DIR                gets a folder of results for each input; finished ones are skipped
    --overwrite                 replaces finished results
    --folders=video|pictures    how to treat folders of pictures; default: evenly numbered ones are
                                videos
    --boxes=FILE.json           for models that start from boxes:
                                {"clip.mp4": [[left, top, right, bottom], ...], ...}
    --num_slots=N --seed=N      for models with Gaussian queries
    --iterations=N|N,M          how many iterations find the slots of each frame; N,M: of the first
                                frame and of later ones; default: as in the model's evaluation
    --prune=DISTANCE|auto|off   leaves out redundant slots, of a cosine distance up to 0 .. 2
    --prune_restart=slots|queries|none|merge --prune_iterations=N --prune_video=fixed|renewed
                                how the rest is aggregated once more
    --shot-cuts[=THRESHOLD]     starts new slots where a video cuts to another scene
    --cut_signal=features|error what tells cuts: features of two frames, or the decoder's error
    --requery[=SHARE]           starts a slot anew that explains nothing, for objects that enter
    --reconstruct               also writes the decoded picture of each frame's slots
    --edit=remove:K             also writes the decoded picture without slot K
    --edit=swap:K,FILE:J        also writes it with slot J of another picture or video in place of
                                slot K; several --edit apply one after the other
    --future=K                  of a run with the word `dynamics`: also predicts the K frames after
                                each video

    --engine=ray                for a whole corpus, on Ray: writes Parquet files; needs '.[ray]'
    --address=auto|HOST:PORT    of a cluster; default: the cores or accelerators of this machine
    --masks=rle|png             with --engine=ray: also stores masks
    --max-errors=1000           with --engine=ray: more unreadable files end the run
    --column=NAME               with --engine=ray, of an --input of Parquet files

Options of --mode=demo, a page in the browser to try a model on; needs '.[demo]' (docs/use.md). Its
--workdir is as for --mode=predict, or a run with the word `dynamics`; default: a bundled model.

    --port=N                    to listen on; default 7860; 0: any free one
    --host=ADDRESS              0.0.0.0 lets other machines in; default: this one alone

Ray, for --mode=evaluate (docs/devices.md): --engine=ray, and --address=auto|HOST:PORT of a cluster
whose machines share the workdir and the data; default: the cores or accelerators of this machine.

Several hosts, for --mode=train and --mode=evaluate (docs/devices.md): give the same command on each
host, with a workdir that all of them share.

    --distributed               finds the other processes under SLURM, Open MPI, Kubernetes or on a
                                TPU pod
    --coordinator=HOST:PORT --num_processes=N --process_id=I
                                names them instead; a free port on the host of process 0
    --heartbeat_timeout_seconds=100
                                a process silent for this long counts as dead, and the others exit

The same command resumes a run that was stopped or killed. Exit status: 0 done; 2 an error that you
can fix, described in one line; 130 stopped by Ctrl-C and 143 by SIGTERM, after saving; 3 or 134
another process died.
"""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from smoothsa_jax.checkout import ROOT, as_started, beside_the_package
from smoothsa_jax.config.load import Overrides, config_from_command_line, split_command_line
from smoothsa_jax.environment import settle
from smoothsa_jax.errors import UserError
from smoothsa_jax.guard import exit_status

CONNECT_FLAGS = "coordinator num_processes process_id heartbeat_timeout_seconds".split()
PRUNE_FLAGS = "prune prune_restart prune_iterations prune_video".split()
PREDICT_FLAGS = (
    "input output boxes num_slots seed shot_cuts overwrite folders reconstruct edit future".split()
    + ["iterations", "cut_signal", "requery", *PRUNE_FLAGS]
)
DEMO_FLAGS = ("host", "port")
ENGINE_MODES = ("predict", "evaluate")  # those that --engine=ray runs
BULK_FLAGS = ("masks", "max_errors", "column")  # of --mode=predict --engine=ray
DEFAULT_CONFIG = str(ROOT / "configs" / "sprites.py")


def main(arguments: list[str]) -> int:
    """Run a command line (without the program's name) and return the exit status."""
    return exit_status(lambda: run(arguments))


def run(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(as_started(__doc__))
        return 0
    for_config, others = split_command_line(arguments)
    given = read_flags(others)
    connected = given.distributed or given.coordinator is not None
    refuse_connect_flags(given, connected)
    for mode, names in (("predict", PREDICT_FLAGS), ("demo", DEMO_FLAGS)):
        for name in names:
            if given[name].present and given.mode != mode:
                raise UserError(f"--{name} belongs to --mode={mode}; leave it out, or add that")
    refuse_engine(given)
    if given.mode in ("predict", "demo"):
        refuse_config(given.mode, for_config)
        return run_predict(given) if given.mode == "predict" else run_demo(given)
    names_config = any(name == "config" for name, _ in for_config)
    # Report a mistyped override immediately; importing JAX takes a second.
    needs_config = given.mode == "train" or names_config or given.workdir is None
    config = config_from_command_line(for_config, DEFAULT_CONFIG) if needs_config else None
    folder = Path("runs") / config.name if given.workdir is None else Path(given.workdir)

    def choose(stored: ConfigDict) -> ConfigDict:
        return config if names_config else config_from_command_line(for_config, stored)

    def work() -> int:
        return run_training(given, config, choose, folder, arguments if connected else None)

    settle()
    if not connected:
        return work()
    from smoothsa_jax.devices import hosts

    hosts.connect(**{name: given[name].value for name in CONNECT_FLAGS})
    return hosts.to_the_end(lambda: exit_status(work))


def run_training(
    given: flags.FlagValues,
    config: ConfigDict | None,
    choose: Callable[[ConfigDict], ConfigDict],
    folder: Path,
    restart: list[str] | None,
) -> int:
    """Train, evaluate or report.

    Args:
        choose: the config of a checkpoint -> the one to look at it with.
        restart: this process's command line where there are several.
    """
    from smoothsa_jax.devices import hosts, runtime
    from smoothsa_jax.training import evaluating, loop, signals
    from smoothsa_jax.training.logging import say

    runtime.start(say, computes=given.engine is None)
    if restart is not None:
        command = shlex.join(["python", "main.py", *restart])
        say(hosts.what_a_death_looks_like(given.heartbeat_timeout_seconds, command))
    try:
        if given.mode == "train":
            if restart is None:
                store_features(config)
                config = store_slots(config, folder)
            loop.train(config, folder)
            return 0

        if given.engine is not None:
            from smoothsa_jax.bulk import cluster, evaluate

            with cluster.connected(given.address) as found:
                evaluate.evaluate_run(found, folder, choose)
        elif given.mode == "evaluate":
            evaluating.evaluate_run(folder, choose)
        else:
            from smoothsa_jax.report.build import report

            print(f"report       {report(folder, choose, say)}")
    except signals.Stopped as stopped:
        return leave(str(stopped), stopped.exit_code)
    return 0


def store_features(config: ConfigDict) -> None:
    """Store the encoder's features before training, if the config asks for it and there are none.

    Several processes do not: `python -m data.store` makes them before.
    """
    from smoothsa_jax.inputs.features import AUTO, features_folder
    from smoothsa_jax.inputs.manifest import MANIFEST
    from smoothsa_jax.training.signals import SignalGuard

    if config.data.get("features") != AUTO:
        return
    folder = features_folder(config.data)
    if not (folder / MANIFEST).is_file():
        with SignalGuard():
            beside_the_package("data.store").store(config, folder)


def store_slots(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Store the slots of clips in the workdir, if the config asks for it.

    They are those of the training clips, and for some tasks those of the clips that are scored.

    Returns:
        The config, with that folder.
    """
    from smoothsa_jax.inputs.features import AUTO
    from smoothsa_jax.inputs.manifest import MANIFEST
    from smoothsa_jax.training.signals import SignalGuard

    if config.data.get("slots") != AUTO:
        return config
    from smoothsa_jax.config.values import canonical

    folder = workdir / "slots"
    config = config.copy_and_resolve_references().unlock()
    config.data.slots = str(folder)
    config = canonical(config)
    if not (folder / MANIFEST).is_file():
        from smoothsa_jax.tasks.build import stored_splits

        with SignalGuard():
            beside_the_package("data.store").store(config, folder, stored_splits(config))
    return config


def refuse_config(mode: str, for_config: Overrides) -> None:
    """Refuse overrides in modes that take a model as it was trained."""
    if for_config:
        raise UserError(
            f"--{for_config[0][0]} was given; --mode={mode} takes a model as it was trained: "
            "leave it out"
        )


def run_demo(given: flags.FlagValues) -> int:
    settle()
    from smoothsa_jax.demo import server
    from smoothsa_jax.devices import runtime

    server.check_gradio()  # before anything that takes seconds
    runtime.start(lambda line: leave(line, 0))
    where = {name: given[name].value for name in DEMO_FLAGS if given[name].present}
    return server.serve(given.workdir, **where)


def run_predict(given: flags.FlagValues) -> int:
    for name in ("workdir", "input", "output"):
        if not given[name].value:
            raise UserError(f"--mode=predict needs --{name}=...; see python main.py --help")

    if given.engine is not None:
        from smoothsa_jax.bulk.cluster import check_ray

        check_ray()  # before anything that takes seconds
    settle()
    from smoothsa_jax.devices import runtime
    from smoothsa_jax.inference import predict, shot_cuts
    from smoothsa_jax.training import signals

    values = {name: given[name].value for name in ("workdir", *PREDICT_FLAGS)}
    values["output"] = Path(given.output)
    values["edit"] = tuple(given.edit or ())
    values["iterations"] = iterations_from(given.iterations)
    values["prune"] = distance_from(given.prune)
    default = shot_cuts.DEFAULTS[given.cut_signal]
    values["shot_cuts"] = shot_cuts.threshold_from(given.shot_cuts, default)
    default, flag = shot_cuts.DEFAULT_REQUERY, "--requery"
    values["requery"] = shot_cuts.threshold_from(given.requery, default, flag)
    if given.engine is None:
        runtime.start(lambda line: leave(line, 0))
    try:
        with signals.SignalGuard() as guard:
            if given.engine is None:
                predict.predict(predict.Options(**values))
            else:
                run_bulk(given, predict.Options(**values | {"output": given.output}), guard)
    except signals.Stopped as stopped:
        return leave(str(stopped), stopped.exit_code)
    return 0


def run_bulk(given: flags.FlagValues, options: Any, guard: Any) -> None:
    from smoothsa_jax.bulk import predict

    values = {name: given[name].value for name in ("address", *BULK_FLAGS) if given[name].present}
    predict.predict(options, predict.BulkOptions(**values), guard)


def distance_from(text: str | None) -> float | str | bool | None:
    """The value of --prune: a number, False for "off", or the text, which is checked elsewhere."""
    if text == "off":
        return False
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def iterations_from(text: str | None) -> int | tuple[int, ...] | None:
    """The value of --iterations: a number, or several with commas in between.

    Raises:
        UserError: the text is neither.
    """
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--iterations={text}: expected a whole number such as 6, or two for the first frame "
            "and for later ones, such as 6,2"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def refuse_connect_flags(given: flags.FlagValues, connected: bool) -> None:
    """Refuse flags of several processes in modes that take one process."""
    if connected and given.mode in ("predict", "report", "demo"):
        raise UserError(
            f"--mode={given.mode} takes one process; leave --distributed and --coordinator out"
        )
    for name in CONNECT_FLAGS:
        if given[name].present and not connected:
            raise UserError(
                f"--{name} belongs to several processes; add --coordinator=HOST:PORT or "
                "--distributed"
            )


def refuse_engine(given: flags.FlagValues) -> None:
    """Refuse --engine in modes that it does not run, and --address without it."""
    if given.engine is not None and given.mode not in ENGINE_MODES:
        modes = " and ".join(f"--mode={mode}" for mode in ENGINE_MODES)
        raise UserError(f"--engine={given.engine} goes with {modes}; leave it out")
    if given.address is not None and given.engine is None:
        raise UserError("--address names a Ray cluster; add --engine=ray, or leave it out")
    if given.engine is not None and (given.distributed or given.coordinator is not None):
        raise UserError(
            f"--engine={given.engine} starts processes on other machines itself; leave "
            "--distributed and --coordinator out"
        )
    for name in BULK_FLAGS:
        if given[name].present and (given.engine is None or given.mode != "predict"):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} belongs to --mode=predict --engine=ray; leave it out")


def read_flags(arguments: list[str]) -> flags.FlagValues:
    """The values of all flags but the config's."""
    values = flags.FlagValues()
    here = {"flag_values": values}
    modes = ["train", "evaluate", "report", "predict", "demo"]
    flags.DEFINE_enum("mode", "train", modes, "what to do", **here)
    flags.DEFINE_string("workdir", None, "folder of the run", **here)
    flags.DEFINE_string("input", None, "picture, video, folder or glob", **here)
    flags.DEFINE_string("output", None, "folder of the results", **here)
    flags.DEFINE_string("boxes", None, "JSON file", **here)
    flags.DEFINE_integer("num_slots", None, "of Gaussian queries", lower_bound=1, **here)
    flags.DEFINE_integer("seed", 0, "of queries", lower_bound=0, upper_bound=2**32 - 1, **here)
    flags.DEFINE_string("shot_cuts", None, "threshold", **here)
    flags.DEFINE_enum("cut_signal", "features", ["features", "error"], "of cuts", **here)
    flags.DEFINE_string("requery", None, "share of a token", **here)
    flags.DEFINE_string("iterations", None, "on each frame", **here)
    flags.DEFINE_string("prune", None, "largest distance of redundant slots", **here)
    flags.DEFINE_string("prune_restart", None, "of the slots that stay", **here)
    flags.DEFINE_integer("prune_iterations", None, "of the extra aggregation", **here)
    flags.DEFINE_string("prune_video", None, "of later frames", **here)
    flags.DEFINE_bool("reconstruct", False, "write decoded pictures", **here)
    flags.DEFINE_multi_string("edit", None, "of slots, for decoded pictures", **here)
    flags.DEFINE_integer("future", None, "frames to predict after each video", **here)
    flags.DEFINE_bool("overwrite", False, "replace finished outputs", **here)
    flags.DEFINE_enum("folders", "auto", ["auto", "video", "pictures"], "of pictures", **here)
    flags.DEFINE_string("host", None, "address to listen on", **here)
    flags.DEFINE_integer("port", None, "to listen on", lower_bound=0, upper_bound=65535, **here)
    flags.DEFINE_enum("engine", None, ["ray"], "that runs the work", **here)
    flags.DEFINE_string("address", None, "of a Ray cluster", **here)
    flags.DEFINE_enum("masks", None, ["rle", "png"], "how to store masks", **here)
    flags.DEFINE_integer("max_errors", 1000, "unreadable files", lower_bound=0, **here)
    flags.DEFINE_string("column", None, "of Parquet files", **here)
    flags.DEFINE_bool("distributed", False, "find the other processes", **here)
    flags.DEFINE_string("coordinator", None, "host:port of process 0", **here)
    flags.DEFINE_integer("num_processes", None, "that run together", lower_bound=1, **here)
    flags.DEFINE_integer("process_id", None, "of this one", lower_bound=0, **here)
    flags.DEFINE_integer("heartbeat_timeout_seconds", 100, "of a dead one", lower_bound=1, **here)
    # With or without a value, which absl does not know.
    names = [a.replace("--shot-cuts", "--shot_cuts", 1) for a in arguments]
    names = [a.replace("--max-errors", "--max_errors", 1) for a in names]
    alone = ("--shot_cuts", "--requery")
    names = [f"{name}=default" if name in alone else name for name in names]
    try:
        unused = values(["main.py", *names])[1:]
    except flags.Error as error:
        raise UserError(f"{' '.join(str(error).split())}; see python main.py --help") from error
    if unused:
        raise UserError(
            f"found the argument {unused[0]!r}, expected flags only; see python main.py --help"
        )
    if values.workdir == "":
        raise UserError(
            "--workdir is empty, expected a folder; leave it out for runs/<name of the config>"
        )
    return values


def leave(message: str, status: int) -> int:
    print(as_started(" ".join(message.split())), file=sys.stderr, flush=True)
    return status
