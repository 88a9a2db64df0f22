"""Send the log of a run to Weights & Biases too, where `log.wandb` names a project.

The package `wandb` is an extra. Its own variables apply: with `WANDB_MODE=offline` everything stays
in the workdir, for `wandb sync` later.
"""

import secrets
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from smoothsa_jax.errors import UserError
from smoothsa_jax.files import atomic_file

FOLDER = "wandb"  # in the workdir; wandb itself makes it
ID_FILE = "run_id.txt"
LEAVE_OUT = "leave --config.log.wandb out"


def check_wandb(config: ConfigDict) -> None:
    """Refuse a config that asks for the package where it is missing.

    Raises:
        UserError: it cannot be imported.
    """
    if config.log.wandb is not None:
        _package(config.log.wandb)


def _package(project: str) -> ModuleType:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"log.wandb is {project!r}, and the package wandb cannot be imported ({error}); run "
            f"pip install 'smoothsa_jax[wandb]', or {LEAVE_OUT}"
        ) from error
    if not hasattr(wandb, "init"):  # a folder of that name, such as what wandb writes
        raise UserError(
            f"log.wandb is {project!r}, and `import wandb` finds {list(wandb.__path__)[0]}, which "
            f"is not the package; run pip install 'smoothsa_jax[wandb]', or {LEAVE_OUT}"
        )
    return wandb


class WandbRun:
    """A run of Weights & Biases that belongs to a workdir, also after a resume.

    Args:
        config: the whole config, with `log.wandb`.
        workdir: of the run.

    Raises:
        UserError: the package is missing, nobody is logged in, or its server refuses.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        wandb = _package(config.log.wandb)
        try:
            self._run = wandb.init(
                project=str(config.log.wandb),
                name=config.name,
                id=_id_of(workdir),
                resume="allow",
                dir=workdir,
                config=config.to_dict(),
                # Its capture of the terminal would repeat the progress bar line by line.
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases does not take the run ({' '.join(str(error).split())}); run "
                f"`wandb login`, set WANDB_MODE=offline, or {LEAVE_OUT}"
            ) from error
        # A resumed run repeats steps, which wandb's own counter would drop.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of a step, by their names in TensorBoard."""
        self._run.log({"step": step, **values})

    def summarize(self, scores: Mapping[str, Any]) -> None:
        """Send the means of `scores.json`, which the table of runs shows."""
        for name, entry in scores["metrics"].items():
            self._run.summary[f"scores/{name}"] = entry["mean"]

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()


def send_scores(config: ConfigDict, workdir: Path, scores: Mapping[str, Any]) -> None:
    """Send the scores of a finished run, if its config asks for it.

    Raises:
        UserError: as `WandbRun`.
    """
    if config.log.wandb is None:
        return
    run = WandbRun(config, workdir)
    run.summarize(scores)
    run.close()


def _id_of(workdir: Path) -> str:
    """Return the id of a workdir's run, the same after a resume."""
    path = workdir / FOLDER / ID_FILE
    if not path.is_file():
        with atomic_file(path) as temporary:
            temporary.write_text(secrets.token_hex(4))
    return path.read_text().strip()
