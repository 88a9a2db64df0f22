"""Build the data set that a config names."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.inputs.loader import RandomSource, Source
from smoothsa_jax.inputs.sprites import Sprites

# A class, or "module:class" if the module needs packages that other data sets do not. Those are
# imported on use only: importing one of them breaks imports that run in other threads.
DATASETS = {"sprites": Sprites, "prepared": "smoothsa_jax.inputs.prepared:PreparedFolder"}
OF_THE_PROGRAM = ("split", "num_slots")  # options of a data set that no config sets


def build_dataset(config: Mapping[str, Any], split: str, **options: Any) -> Source:
    """Build the data set `config.name` with the other entries of `config` as its options.

    If `config.features` names a folder, samples have the features stored there instead of pixels.

    Args:
        config: the `data` part of a config.
        split: name of the split.
        **options: override `config`, for example `num_frames` or `num_samples` of an evaluation.

    Returns:
        The samples. Accessing one raises UserError if its clip does not have the requested number
        of frames.

    Raises:
        UserError: the name or an option is unknown.
    """
    check_settings(config)
    arguments = {**config, **options, "split": split}
    dataset = _class_of(arguments.pop("name"))
    features = arguments.pop("features", "")
    _check_options(config["name"], dataset, options)
    source = dataset(**arguments)
    if features:
        # Imported on use only, as above.
        from smoothsa_jax.inputs.features import CachedFeatures

        return CachedFeatures(source, features, split)
    num_frames = arguments.get("num_frames")
    if num_frames is None:
        return source
    random = isinstance(source, RandomSource)
    return (_WholeRandomClips if random else _WholeClips)(source, num_frames)


def check_settings(config: Mapping[str, Any]) -> None:
    """Refuse the `data` part of a config whose data set does not exist or lacks such a setting.

    Raises:
        UserError: names the first problem.
    """
    name = config.get("name")
    if name not in DATASETS and ":" not in str(name):
        raise UserError(
            f"data.name is {name!r}, which is no data set; choose one of {', '.join(DATASETS)}"
            f"{did_you_mean(name, DATASETS)}"
        )
    settings = [key for key in config if key not in ("name", "features")]
    for key in settings:
        if key in OF_THE_PROGRAM:
            raise UserError(f"data.{key} is no setting: the program chooses it; remove it")
    _check_options(name, _class_of(name), settings)


def _check_options(name: str, dataset: Callable, options: Iterable[str]) -> None:
    known = inspect.signature(dataset).parameters
    for key in options:
        if key not in known:
            choices = [option for option in known if option not in OF_THE_PROGRAM]
            raise UserError(
                f"data.{key} is no option of {name!r}; choose one of {', '.join(choices)}"
                f"{did_you_mean(key, choices)}"
            )


def _class_of(name: str) -> Callable[..., Source]:
    entry = DATASETS.get(name, name)
    if not isinstance(entry, str):
        return entry
    module, _, attribute = entry.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if name not in DATASETS:
            raise UserError(
                f"data.name is {name!r}, which cannot be imported ({error}); expected "
                '"package.module:Class" of a module on the Python path'
            ) from error
        raise UserError(
            f"data set {name!r} needs the module {error.name!r}, which is not installed; run "
            "pip install array_record opencv-python-headless tensorflow-datasets"
        ) from error
    except AttributeError as error:
        raise UserError(
            f"data.name is {name!r}, but {module} has no {attribute}; name a class of that module"
        ) from error


class _WholeClips:
    """A source that checks that every clip has the requested number of frames."""

    def __init__(self, source: Source, num_frames: int):
        self._source, self._num_frames = source, num_frames

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._checked(index, self._source[index])

    def _checked(self, index: int, sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if (found := len(sample["video"])) != self._num_frames:
            raise UserError(
                f"clip {index} has {found} frames, {self._num_frames} were asked for; "
                "lower eval.num_frames, or score whole clips with eval.num_frames=-1"
            )
        return sample


class _WholeRandomClips(_WholeClips):
    """The same check for a source of random samples for training."""

    _source: RandomSource

    def epoch(self) -> Sequence[int]:
        return self._source.epoch()

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return self._checked(index, self._source.draw(index, rng))

    def fingerprint(self) -> str | None:
        return self._source.fingerprint()
