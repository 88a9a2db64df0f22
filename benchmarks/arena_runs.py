"""The runs of the arena: what is trained, how it is changed, and where."""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks.arena_plan import PLAN
from benchmarks.arena_rows import DEFAULT_SYSTEM, FULL, KEY, LEAD, ROOT, Row
from smoothsa_jax.checkpoints.sources import spec_of
from smoothsa_jax.config.load import Overrides, config_from_command_line, load_config
from smoothsa_jax.config.values import canonical, differences, flatten
from smoothsa_jax.errors import UserError

DISCOVERY = "discovery"  # the task
IN_THE_KEY = ("seed", "train.num_steps")  # overrides with a key of their own
# Scored during training. These settings, as the seed, are not in the key: what is trained and how
# the end is scored do not depend on them.
CURVE_POINTS, CURVE_SAMPLES = 8, 64
OF_A_CURVE = ("checkpoint.every", "checkpoint.best_metric", "eval.validation_samples")


# ---------------------------------------------------------------------------------------- ablations


def drop(terms: ConfigDict, name: str) -> None:
    if name in terms:
        del terms[name]


def without_warmer(config: ConfigDict) -> None:
    """Start from the cold queries."""
    if "cold" in config.model.initializer:
        config.model.initializer = config.model.initializer.cold
        drop(config.losses, "distillation")


def iterations(first: int, later: int | None) -> Callable[[ConfigDict], None]:
    """Set the iterations, or layers, on the first frame and on later ones; None: the same."""

    def change(config: ConfigDict) -> None:
        config.model.aggregator.update(first=first, later=later)

    return change


def without_smoothing(config: ConfigDict) -> None:
    """Leave out all that SmoothSA adds: cold queries, and as many iterations on every frame."""
    without_warmer(config)
    iterations(3, 3)(config)


def without_slot_contrast(config: ConfigDict) -> None:
    drop(config.losses, "slot_contrast")


def without_distillation(config: ConfigDict) -> None:
    """Drop the distillation of attention."""
    drop(config.losses, "attention_distillation")


def without_pruning(config: ConfigDict) -> None:
    """Prune at evaluation alone; plain scores are without any pruning."""
    drop(config.model, "pruning")


def without_both(config: ConfigDict) -> None:
    """Drop the distillation of attention and the pruning in training."""
    without_distillation(config)
    without_pruning(config)


# name -> changes a config in place
ABLATIONS: dict[str, Callable[[ConfigDict], None]] = {
    FULL: lambda config: None,
    "no warmer": without_warmer,
    "3/3": iterations(3, 3),
    "1/1": iterations(1, 1),
    "no warmer, 3/3": without_smoothing,
    **{f"{number} iterations": iterations(number, None) for number in (4, 6, 8)},
    "no slot contrast": without_slot_contrast,
    "no attention distillation": without_distillation,
    "no pruning in training": without_pruning,
    "no distillation, no pruning in training": without_both,
}


# --------------------------------------------------------------------------------------------- runs


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        key: the values of `KEY`, by name.
        config: what is trained.
        folder: where.
    """

    key: Mapping[str, Any]
    config: ConfigDict
    folder: Path

    @property
    def sources(self) -> list[Path]:
        """The folders of its first stages, such as a teacher's."""
        return [Path(x.source) for x in self.config.companions.values() if x.source]

    @property
    def output(self) -> Path:
        """What its programs print."""
        return self.folder / "output.txt"

    @property
    def name(self) -> str:
        words = ":".join(filter(None, (self.key["data"], self.key["words"])))
        parts = [self.key["system"], f"on {words}", f"seed {self.key['seed']}"]
        if self.key["ablation"] != FULL:
            parts.insert(1, f"({self.key['ablation']})")
        return ", ".join([" ".join(parts[:-1]), parts[-1]])


class RunFailed(Exception):
    """One training failed; the others continue."""


class Interrupted(RunFailed):
    """One training was stopped and saved its state."""


def plan(
    systems: Iterable[str],
    data: Iterable[str],
    ablations: Sequence[str],
    seeds: Iterable[int],
    overrides: Overrides,
    workdir: Path,
) -> list[Run]:
    """Return all runs, seed by seed, so that the first hour's table has a row of each kind.

    Args:
        systems: such as "smoothsa" and "spot,student".
        data: such as "sprites", "coco:smoke" and "my/config.py:word".
        ablations: names in `ABLATIONS`.
        overrides: `("config.key", "value")` for every run.
        workdir: the parent of the runs' folders.

    Raises:
        UserError: a bad config, or an ablation that changes nothing in it.
    """
    made = [
        _configs(system, spec, ablations, overrides)
        for system, spec in itertools.product(systems, data)
    ]
    runs = []
    for seed, configs in itertools.product(seeds, made):
        for key, config in configs:
            config = config.copy_and_resolve_references().unlock()
            config.seed = seed
            whole = {**key, "seed": seed, "steps": config.train.num_steps}
            whole = {name: whole[name] for name in KEY}
            for companion in config.companions.values():
                if companion.source is None:  # one that is left out
                    continue
                companion.source = str(workdir / _folder_name(_earlier(whole, companion.source)))
            add_curve(config, whole["overrides"])
            runs.append(Run(whole, canonical(config), workdir / _folder_name(whole)))
    return runs


def add_curve(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Score a few times in training, for a learning curve, unless the command line says how.

    The newest checkpoint is scored in the end, whichever is the best. A config that scores the best
    one keeps its own rule, and the points of its curve.
    """
    if config.task == DISCOVERY and "eval.count_segments" not in overrides:
        config.eval.count_segments = True
    if config.eval.checkpoint == "best" or any(name in overrides for name in OF_A_CURVE):
        return
    if config.task == DISCOVERY:
        config.checkpoint.update(best_metric=LEAD, best_mode="max")
    # Between two scored steps there is one whose time is known.
    config.checkpoint.every = max(math.ceil(config.train.num_steps / CURVE_POINTS), 2)
    config.eval.validation_samples = CURVE_SAMPLES


def all_planned(seeds: Sequence[int] | None, overrides: Overrides, workdir: Path) -> list[Run]:
    """Return the runs of arena_plan.py in their order.

    Args:
        seeds: those of each part's that are wanted; None: all.
        overrides, workdir: as for `plan`.
    """
    runs = []
    for part in PLAN:
        wanted = [seed for seed in part.seeds if seeds is None or seed in seeds]
        what = part.systems, part.data, part.ablations
        runs += plan(*what, wanted, (*part.settings, *overrides), workdir)
    return runs


def _earlier(key: Row, source: str) -> Row:
    """Return the key of the earlier run, such as a teacher's, that a run of the same seed needs.

    Args:
        key: of the later run.
        source: the default workdir of the earlier one.

    Raises:
        UserError: no config of the gallery has that workdir.
    """
    spec = spec_of(Path(source).name)
    if spec is None:
        raise UserError(
            f"{source} is no default workdir of a config of the gallery; train it first"
        )
    words = [word for word in spec.partition(":")[2].split(",") if word != key["system"]]
    steps = load_config(str(ROOT / spec)).train.num_steps
    return {**key, "words": ",".join(sorted(words)), "ablation": FULL, "steps": steps}


def _configs(
    system: str, spec: str, ablations: Sequence[str], overrides: Overrides
) -> list[tuple[Row, ConfigDict]]:
    """Return (part of the key, config) of each ablation of a system on a data set."""
    path, _, words = spec.partition(":")
    path = path if path.endswith(".py") else str(ROOT / "configs" / f"{path}.py")
    system, *variants = system.split(",")
    others = [*filter(None, words.split(",")), *variants]
    taken = others if system == DEFAULT_SYSTEM else [system, *others]
    file = ":".join(filter(None, (path, ",".join(taken))))
    base = config_from_command_line([("config", file)], "")
    changed = config_from_command_line([("config", file), *overrides], "")
    before, after = flatten(base), flatten(changed)
    key = {
        "system": system,
        "data": Path(path).stem,
        "words": ",".join(sorted(others)),
        "overrides": {
            name: value
            for name, value in sorted(after.items())
            if before.get(name) != value and name not in IN_THE_KEY
        },
    }
    found = []
    for ablation in ablations:
        config = changed.copy_and_resolve_references().unlock()
        ABLATIONS[ablation](config)
        if ablation != FULL and not differences(changed, config):
            raise UserError(
                f"ablation {ablation!r} changes nothing in {spec}; leave it out of --ablations"
            )
        found.append(({**key, "ablation": ablation}, canonical(config)))
    return found


def _folder_name(key: Row) -> str:
    settings = [f"{name.split('.')[-1]}{value}" for name, value in key["overrides"].items()]
    parts = [key["system"], key["data"], key["words"], *settings]
    parts += [] if key["ablation"] == FULL else [key["ablation"]]
    parts += [f"steps{key['steps']}", f"seed{key['seed']}"]
    return "_".join(filter(None, (re.sub("[^A-Za-z0-9]+", "_", str(part)) for part in parts)))
