"""Published checkpoints by name: what is known of them, their configs, and their files here.

`published.toml` beside this file has the facts.
"""

import functools
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ml_collections import ConfigDict

from smoothsa_jax.checkpoints.on_slots import SLOT_MODEL, is_on_slots
from smoothsa_jax.checkpoints.published import completed
from smoothsa_jax.config.load import config_from_command_line, located
from smoothsa_jax.errors import UserError
from smoothsa_jax.files import expanded
from smoothsa_jax.interop import hub, state_dicts

FILE = Path(__file__).parent / "published.toml"
FOLDER_VARIABLE = "SMOOTHSA_JAX_MODELS"
OF_COMPANIONS = "companions."  # begins keys of a config
AUTHORS = "authors/"  # in front of older names, such as "authors/coco"


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a model that `load` takes by name; None: unknown.

    Attributes:
        name: the name.
        about: the system, and whose program made it.
        bundled: whether it is part of the package.
        recipe: the config of its model, as `--config` takes it.
        settings: keys of that config with other values.
        page: the web page that has or links its file.
        hub: the repository on the Hugging Face Hub that has its file.
        file: the name of the file there.
        url: where the page links to.
        called: the authors' name of the model, which their archive or folder has.
        size: of the file, in bytes.
        license: of the program that wrote it; the authors state no other one for the weights.
        scores: in percent, by the names of metrics that the page has.
        protocol: how the scores were measured.
    """

    name: str
    about: str
    bundled: bool = False
    recipe: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    page: str | None = None
    hub: str | None = None
    file: str | None = None
    url: str | None = None
    called: str | None = None
    size: int | None = None
    license: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    protocol: str | None = None


@functools.cache
def published() -> dict[str, ModelFacts]:
    """Return the facts of every published checkpoint, by name."""
    found: dict[str, ModelFacts] = {}
    for group in tomllib.loads(FILE.read_text()).values():
        shared = {key: value for key, value in group.items() if key != "models"}
        for name, own in group["models"].items():
            facts = {**shared, **own}
            facts["page"] = facts.get("page") or None
            found[name] = ModelFacts(name=name, **facts)
    return found


def facts_of(name: str) -> ModelFacts | None:
    """Return the facts of a published checkpoint; None: it is no name of one."""
    if name.startswith(AUTHORS):
        name = f"smoothsa_{name.removeprefix(AUTHORS)}"
    return published().get(name)


def config_of(facts: ModelFacts) -> ConfigDict:
    """Return the config of a published model, with those of its companions."""
    spec = located(facts.recipe)
    config = completed(config_from_command_line(overrides_of(facts), spec), spec)
    config.update_from_flattened_dict(
        {key: x for key, x in facts.settings.items() if key.startswith(OF_COMPANIONS)}
    )
    return config


def overrides_of(facts: ModelFacts) -> list[tuple[str, str]]:
    """Return the settings of a published model as on a command line, without its companions'.

    A recipe leaves the model of a companion to the run that it comes from.
    """
    own = {k: x for k, x in facts.settings.items() if not k.startswith(OF_COMPANIONS)}
    return [(f"config.{key}", str(value)) for key, value in own.items()]


def default_path(facts: ModelFacts) -> Path:
    """Return where `load` looks for the file: in `SMOOTHSA_JAX_MODELS`, or the user's cache."""
    folder = os.environ.get(FOLDER_VARIABLE) or "~/.cache/smoothsa_jax/models"
    name = facts.file or ".pth"
    suffix = next(x for x in sorted(state_dicts.SUFFIXES, key=len)[::-1] if name.endswith(x))
    # Without a home folder, ~ stays: no file is there, and the advice is still right.
    return Path(os.path.expanduser(folder)) / f"{facts.name}{suffix}"


def file_of(facts: ModelFacts, given: str | os.PathLike | None = None) -> Path:
    """Return the file of a published checkpoint on this machine.

    Args:
        facts: of the checkpoint.
        given: a file; the folder that has it; or "hf://owner/repo", a repository of the Hub that
            has it. None: it is looked for where `default_path` says, and else downloaded if
            the authors keep it on the Hub.

    Raises:
        UserError: there is no such file; the message says what to download, from which page.
    """
    if given is None:
        path = default_path(facts)
        stems = (facts.name, facts.name.removeprefix("smoothsa_"))  # the latter in version 0.2
        found = [x for stem in stems for x in _files_in(path.parent) if _stem(x) == stem]
        if found:
            return found[0]
        if facts.hub is None:
            raise UserError(f"{facts.name} is not in {path.parent}: {advice(facts)}")
        given = f"{hub.SCHEME}{facts.hub}"
    if hub.is_repository(given):
        if facts.file is None:
            raise UserError(
                f"the name of {facts.name}'s file in {given} is unknown; download the file, and "
                "give its path as file=..."
            )
        return hub.download(os.fspath(given), facts.file, advice(facts))
    path = expanded(given)
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path} is not a file: {advice(facts)}")
        return path
    found = _files_in(path)
    names = (facts.file, facts.name, facts.called)
    named = [x for x in found if x.name == facts.file or _stem(x) in names]
    if len(named or found) != 1:
        raise UserError(
            f"{path} has {', '.join(x.name for x in named or found) or 'no state dict'}; expected "
            f"one file of {facts.name}: give its path, or {advice(facts)}"
        )
    return (named or found)[0]


def advice(facts: ModelFacts) -> str:
    """Return what to download, from which page, and the command that converts it."""
    path = default_path(facts)
    what = f"{facts.file} of " if facts.file and facts.called else ""
    what += facts.called or facts.file or "its file"
    if facts.page is None:
        where = "no page is known to have it; if you have the file, "
    else:
        link = f"https://huggingface.co/{facts.hub}" if facts.hub else facts.url
        where = f"download {what} from {facts.page}{f' ({link})' if link else ''}, "
    return (
        f"{where}give it as load({facts.name!r}, file=...) or save it as {path} ({FOLDER_VARIABLE} "
        f"names another folder); {command_of(facts)}"
    )


def command_of(facts: ModelFacts) -> str:
    """Return the command that converts a file."""
    more = ""
    if is_on_slots(config_of(facts)):
        more = f" --config.{OF_COMPANIONS}{SLOT_MODEL}.source=RUN"
    return (
        f"python -m smoothsa_jax.convert FILE runs/{facts.name} --config={facts.name}{more} makes "
        "a workdir of it"
    )


def expected(facts: ModelFacts) -> str:
    """Return the scores that the authors state, in one line."""
    if not facts.scores:
        return "unknown"
    scores = ", ".join(f"{name} {value}" for name, value in facts.scores.items())
    return f"{scores}{f' ({facts.protocol})' if facts.protocol else ''}"


def _files_in(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        return []
    return sorted(x for x in folder.iterdir() if x.is_file() and state_dicts.is_state_dict(x))


def _stem(path: Path) -> str:
    suffix = max((x for x in state_dicts.SUFFIXES if path.name.endswith(x)), key=len)
    return path.name.removesuffix(suffix)
