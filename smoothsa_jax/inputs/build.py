"""Build the data set that a config names."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.inputs import OPTIONAL
from smoothsa_jax.inputs.loader import RandomSource, Source
from smoothsa_jax.inputs.scenes import Scenes
from smoothsa_jax.inputs.sprite_questions import SpriteQuestions
from smoothsa_jax.inputs.sprites import Sprites

# A class, or "module:class" if the module needs packages that other data sets do not. Those are
# imported on use only: importing one of them breaks imports that run in other threads.
DATASETS = {
    "sprites": Sprites,
    "scenes": Scenes,
    "sprite_questions": SpriteQuestions,
    "prepared": "smoothsa_jax.inputs.prepared:PreparedFolder",
    "clevrer_questions": "smoothsa_jax.inputs.video_questions:ClevrerClips",
    "physion_contacts": "smoothsa_jax.inputs.video_questions:PhysionClips",
}

FOLDERS = ("features", "slots")  # keys that name what is stored of the clips
GENERATED = ("sprites", "scenes", "sprite_questions")  # of DATASETS, those without files

# Those of clips of a prepared folder.
PREPARED = ("prepared", "clevrer_questions", "physion_contacts")

# Arguments that the program passes to a data set, so a config cannot set them.
OF_PROGRAM = {
    "split": "training reads 'train', and eval.split names the split to score",
    "num_slots": "it is that of the model, model.num_slots",
    "windows": "eval.windows cuts the videos that are scored",
    "window_rest": "it is eval.window_rest",
    "also": "samples have what the parts, losses and the task read",
}


def build_dataset(
    config: Mapping[str, Any],
    split: str,
    *,
    reads: Iterable[str] = (),
    may_be_shorter: bool = False,
    with_pixels: bool = False,
    scores: bool = False,
    **options: Any,
) -> Source:
    """Build the data set `config.name` with the other entries of `config` as its options.

    If `config.features` names a folder, samples have the features stored there instead of pixels,
    and the tokens, where these are stored and read. If `config.slots` names one, they have slots.
    Questions have those of their clips.

    Args:
        config: the `data` part of a config.
        split: name of the split.
        reads: names of the keys of samples that will be read, such as `Task.inputs`; of these, a
            data set with the argument `also` gets the optional ones.
        may_be_shorter: whether clips may have fewer frames than requested.
        with_pixels: whether samples with stored features have the pixels as well.
        scores: whether the samples are scored; questions then also have what another clip shows.
        **options: override `config`, for example `num_frames` or `num_samples` of an evaluation.

    Returns:
        The samples. Unless they may be shorter, accessing one raises UserError if its clip does
        not have the requested number of frames.

    Raises:
        UserError: the name or an option is unknown.
    """
    dataset = check_data(config, options)
    reads = tuple(reads)
    also = tuple(name for name in OPTIONAL if name in reads)
    if "also" in inspect.signature(dataset).parameters:
        options["also"] = also
    elif also and config.get("name") in DATASETS:
        raise UserError(
            f"a part, a loss or the task reads {also[0]!r}, which {config['name']} do not have; "
            "choose scenes, or a prepared folder that has it"
        )
    arguments = {**config, **options, "split": split}
    del arguments["name"]
    named, of_slots = (arguments.pop(key, "") for key in FOLDERS)
    source = dataset(**arguments)
    if hasattr(source, "kinds"):
        return _of_clips(config, source, split, reads, scores)
    if named:
        # Imported on use only, as above.
        from smoothsa_jax.inputs.features import CachedFeatures, features_folder

        tokens = "tokens" in tuple(reads)
        return CachedFeatures(source, features_folder(config), split, with_pixels, tokens)
    if of_slots:
        from smoothsa_jax.inputs.features import SLOT_ARRAYS, slots_folder
        from smoothsa_jax.inputs.found import opened

        arrays = [name for name in SLOT_ARRAYS if name in reads]
        return opened(source, slots_folder(config), split, config, arrays, with_pixels)
    num_frames = arguments.get("num_frames")
    if num_frames is None or may_be_shorter:
        return source
    random = isinstance(source, RandomSource)
    return (_WholeRandomClips if random else _WholeClips)(source, num_frames)


def _of_clips(
    config: Mapping[str, Any], questions: Any, split: str, reads: Sequence[str], scores: bool
) -> Source:
    """Return questions with the slots, or the pixels, of their clips."""
    # Imported on use only, as above.
    from smoothsa_jax.inputs.features import SLOT_ARRAYS, slots_folder
    from smoothsa_jax.inputs.found import opened
    from smoothsa_jax.inputs.questions import PLACES, STATE, QuestionsOfClips, clips_of

    clips = clips_of(questions)
    if config.get("slots"):
        arrays = [name for name in SLOT_ARRAYS if name in reads]
        clips = opened(clips, slots_folder(config), split, config, arrays)
    return QuestionsOfClips(
        questions, clips, others=scores, with_state=STATE in reads, ahead=PLACES in reads
    )


def check_data(
    config: Mapping[str, Any], options: Iterable[str] = ("num_slots", "num_samples")
) -> Callable[..., Source]:
    """Refuse settings that the data set does not take, and missing ones.

    Args:
        config: the `data` part of a config.
        options: names of the arguments that the program passes besides these settings and the
            split; by default those of training and evaluation.

    Returns:
        The class of the data set.

    Raises:
        UserError: the name or a setting is unknown, or a setting is missing.
    """
    name = config.get("name")
    if name not in DATASETS and ":" not in str(name):
        raise UserError(
            f"data.name is {name!r}, which is not a data set; choose one of {', '.join(DATASETS)}"
            f"{did_you_mean(name, DATASETS)}"
        )
    dataset = _class_of(name)
    takes = inspect.signature(dataset).parameters
    for key in ("split", *options):
        if key not in takes:
            raise UserError(
                f"data.name={name!r} takes no {key!r}, which the program gives it: add it to the "
                "arguments of the class"
            )
    known = [key for key in takes if key not in OF_PROGRAM]
    for key in config:
        if key in OF_PROGRAM:
            raise UserError(f"data.{key} is not a setting: {OF_PROGRAM[key]}; remove data.{key}")
        if key not in (*known, "name", *FOLDERS):
            raise UserError(
                f"data.{key} is not an option of {name!r}; choose one of {', '.join(known)}"
                f"{did_you_mean(key, known)}"
            )
    for key in known:
        if takes[key].default is inspect.Parameter.empty and key not in (*config, *options):
            raise UserError(f"data.name={name!r} needs data.{key}: add it to the config file")
    return dataset


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


def is_labelled(source: Source) -> bool:
    """Whether samples have true segments to score masks against."""
    return getattr(source, "is_labelled", True)


def long_enough(source: Source, num_frames: int, num_samples: int | None = None) -> Source:
    """The first samples of a source that have at least `num_frames` frames, as far as it knows.

    Args:
        source: all samples.
        num_frames: frames that a sample needs.
        num_samples: how many of these samples to take; None: all.

    Raises:
        UserError: none has.
    """
    indices = _long_enough(source, num_frames)[:num_samples]
    if not len(indices):
        raise UserError(
            f"none of the {len(source)} samples to score has the {num_frames} frames of a training "
            "clip; lower data.num_frames, or hold out longer videos"
        )
    return source if len(indices) == len(source) else Subset(source, indices)


def _long_enough(source: Source, num_frames: int) -> np.ndarray:
    known = getattr(source, "long_enough", None)
    return np.arange(len(source)) if known is None else known(num_frames)


class Subset:
    """Some samples of a source, by their indices."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self._source, self._indices = source, indices

    @property
    def is_labelled(self) -> bool:
        return is_labelled(self._source)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._source[int(self._indices[index])]


class _WholeClips:
    """A source that checks that every clip has the requested number of frames."""

    def __init__(self, source: Source, num_frames: int):
        self._source, self._num_frames = source, num_frames

    @property
    def is_labelled(self) -> bool:
        return is_labelled(self._source)

    def long_enough(self, num_frames: int) -> np.ndarray:
        return _long_enough(self._source, num_frames)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._checked(index, self._source[index])

    def _checked(self, index: int, sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if (found := len(sample["video"])) != self._num_frames:
            raise UserError(
                f"clip {index} has {found} frames, but {self._num_frames} are expected; "
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
