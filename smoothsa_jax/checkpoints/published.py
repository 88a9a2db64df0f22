"""Published state dicts: which config one belongs to, and its arrays by our names.

The keys and shapes of a state dict identify its model, but not the data set that it was trained on.
If several recipes share a model, one has to be chosen by name.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from smoothsa_jax.checkpoints.on_slots import (
    SLOT_MODEL,
    advice_on_slots,
    arrays_on_slots,
    as_published,
    facts_on_slots,
    is_on_slots,
    may_be_on_slots,
    program_on_slots,
    shapes_on_slots,
    with_readout_of_phyre,
)
from smoothsa_jax.config.load import CONFIGS_PARENT, load_config
from smoothsa_jax.config.values import canonical, image_size_of
from smoothsa_jax.config.words import split_words
from smoothsa_jax.errors import UserError
from smoothsa_jax.interop.authors import DETACH_FLAG, HEAD, from_authors, to_authors
from smoothsa_jax.interop.pixel_programs import (
    BOQSA,
    BOQSA_TOKENS,
    IMAGE_SIZE,
    ORIGINAL,
    SAVI,
)
from smoothsa_jax.interop.programs import GENERA1Z, OCLF, OSRT, SPOT, VIDEOSAUR, Program
from smoothsa_jax.interop.slotformer import ALOE, DVAE, PHYRE, PHYSION, ROLLOUTER
from smoothsa_jax.interop.slotformer import SAVI as SLOTFORMER_SAVI
from smoothsa_jax.interop.slotformer import STEVE as SLOTFORMER_STEVE
from smoothsa_jax.interop.steve import STEVE
from smoothsa_jax.interop.table import describe, mismatches
from smoothsa_jax.models.build import (
    build_head,
    is_slot_model,
    is_tokenizer_model,
    model_shapes,
)
from smoothsa_jax.models.parameters import ENCODER, split
from smoothsa_jax.models.tokenizer_model import TOKENIZER

StateDict = Mapping[str, np.ndarray]
CONFIGS = CONFIGS_PARENT / "configs"
OWN = "own.py"  # for a user's pictures, which no published model was trained on
# Words of a config file, after the colon.
RECOGNITION, STUDENT = "recognition", "student"
DYNAMICS, ANSWERS = "dynamics", "answers"
OF_TOKENIZER = "m.mediat."  # in front of the keys of a tokenizer in a second stage
TEACHER = "teacher"  # a companion
# Keys of the initial queries, one for each slot or one for all: (..., N, D) or (..., 1, D).
QUERIES = (
    "initializ.mean",
    "initializer.mean",
    "initializer.slots",
    "slots_init.weight",
    "slot_mu",
    "slots_mu",
    "initial_slots",
    "init_latents",
)
SPREADS = ("initializ.logstd",)  # the same, of a Gaussian for each slot


def _each(data: str, *words: str) -> tuple[str, ...]:
    """Return a recipe for each data set of a text and each of these words."""
    return tuple(
        f"{name},{word}" if ":" in name else f"{name}:{word}"
        for name, word in itertools.product(data.split(), words)
    )


def _of_stills(system: str, task: str = "") -> tuple[str, ...]:
    """Return the recipes of a system that explains tokens of pictures, one also with `r384`."""
    ending = f",genera1z{',' * bool(task)}{task}"
    return (
        *_each("clevrtex coco voc", f"{system}{ending}"),
        f"coco:{system},r384{ending}",
    )


# Data sets with published models, and the words that make them fit.
_PICTURES = "clevrtex coco voc movi_c:image movi_e:image"
_CLIPS = "movi_d movi_e"  # of STEVE's own program
_VIDEOS_2025 = "movi_c movi_d ytvis_hq"
_VIDEOS_WITHOUT_BOXES = "movi_c:gaussian movi_e:gaussian ytvis_2021"


@dataclasses.dataclass(frozen=True)
class Family:
    """The models of one system in one program.

    Attributes:
        title: in messages.
        program: how it names arrays; None: SmoothSA's own table.
        has: whether a state dict with these keys is one.
        recipes: names of the configs that its models may have been trained with.
    """

    title: str
    program: Program | None
    has: Callable[[Iterable[str]], bool]
    recipes: tuple[str, ...]


def _any(*parts: str) -> Callable[[Iterable[str]], bool]:
    return lambda keys: any(part in key for key in keys for part in parts)


def _all(*parts: str) -> Callable[[Iterable[str]], bool]:
    return lambda keys: all(any(part in key for key in keys) for part in parts)


# The first that fits counts.
FAMILIES = (
    Family(
        "SAVi",
        SAVI,
        _any("SlotAttention_0/GRU_0/"),
        ("movi_a:savi", "movi_a:savi,medium", "movi_a:savi,large", "movi_e:savi_plus"),
    ),
    Family(
        "SAVi of SlotFormer",
        SLOTFORMER_SAVI,
        _any("kernel_dist_layer."),
        (
            *_each("movi_c:gaussian", "savi_slotformer", "savi_slotformer,stochastic"),
            "clevrer:savi_slotformer,stochastic",
        ),
    ),
    Family(
        "STEVE of SlotFormer",
        SLOTFORMER_STEVE,
        _any("trans_decoder.tok_emb."),
        ("physion:steve,slotformer",),
    ),
    Family(
        "SlotFormer",
        ROLLOUTER,
        _any("rollouter.in_proj."),
        ("clevrer:savi_slotformer,stochastic,dynamics", "physion:steve,slotformer,dynamics"),
    ),
    Family(
        "Aloe of SlotFormer",
        ALOE,
        _any("transformer_model.q_in_proj."),
        ("clevrer:savi_slotformer,stochastic,answers",),
    ),
    Family(
        "SlotFormer's readout of Physion",
        PHYSION,
        _all("comb_idx", "linear1.", "linear2."),
        ("physion:steve,slotformer,answers",),
    ),
    Family(
        "SlotFormer's readout of PHYRE",
        PHYRE,
        _all("cls_mlp.", "enc_t_pe"),
        ("physion:savi_slotformer,answers",),
    ),
    Family(
        "the tokenizer of SlotFormer's STEVE",
        SLOTFORMER_STEVE,
        lambda keys: {"encoder.7.weight", "decoder.11.weight"} <= set(keys),
        (f"physion:steve,slotformer,{TOKENIZER}",),
    ),
    Family(
        "slot attention on pixels",
        ORIGINAL,
        _any("encoder_cnn/0/kernel"),
        ("clevr:slot_attention",),
    ),
    Family(
        "BO-QSA on pixels",
        BOQSA,
        _any("decoder.conv.0.0.conv.0."),
        ("clevrtex:boqsa,mixture",),
    ),
    Family(
        "BO-QSA on tokens",
        BOQSA_TOKENS,
        _all("slot_attn.slots_init.", "dictionary.dictionary."),
        ("coco:boqsa,transformer",),
    ),
    Family(
        "DINOSAUR",
        OCLF,
        _any("models.perceptual_grouping."),
        _each(_PICTURES, "dinosaur,original", "dinosaur,ar,original"),
    ),
    Family(
        "SPOT",
        SPOT,
        _any("slot_attn."),
        _each(_PICTURES, "spot,original", "spot,original,student"),
    ),
    Family(
        "VideoSAUR",
        VIDEOSAUR,
        _any("decoder.module.allocator."),
        (
            *_each(_VIDEOS_WITHOUT_BOXES, "videosaur,original"),
            "ytvis_2021:videosaur,dinov2,original",
        ),
    ),
    Family(
        "SlotContrast",
        VIDEOSAUR,
        _any("processor.module."),
        _each(_VIDEOS_WITHOUT_BOXES, "slotcontrast,original"),
    ),
    Family(
        "DINOSAUR in VideoSAUR's program",
        VIDEOSAUR,
        _any("processor.corrector."),
        ("coco:dinosaur,dinov2,original",),
    ),
    Family(
        "SPOT's re-implementation",
        GENERA1Z,
        _any("m.teacher."),
        _each(_PICTURES, "spot,genera1z,student"),
    ),
    Family(
        "MetaSlot",
        GENERA1Z,
        _any("aggregat.vq."),
        (
            *_each(_PICTURES, "metaslot,genera1z", "metaslot,ar,genera1z", "metaslot,b16,genera1z"),
            *_each("clevrtex coco voc", "metaslot,tokens,genera1z", "metaslot,noise,genera1z"),
        ),
    ),
    Family("SmoothSA", None, _any("initializ.qinit", DETACH_FLAG), ()),
    Family("STEVE", STEVE, _any("steve_encoder."), _each(_CLIPS, "steve,original")),
    Family(
        "STEVE's re-implementation",
        GENERA1Z,
        _all("mediat.codebook.", "transit."),
        ("movi_d:steve,genera1z",),
    ),
    Family(
        "SLATE's re-implementation",
        GENERA1Z,
        _all("mediat.codebook.", "decode.bos"),
        _of_stills("slate"),
    ),
    Family(
        "SlotDiffusion's re-implementation",
        GENERA1Z,
        _all("mediat.codebook.", "decode.backbone.conv_in."),
        _of_stills("slotdiffusion"),
    ),
    Family(
        "VQ-VFM-OCL, transformer of videos",
        GENERA1Z,
        _all("mediat.quant.", "transit."),
        ("movi_d:vvo,tfdt,genera1z",),
    ),
    Family(
        "VQ-VFM-OCL, transformer",
        GENERA1Z,
        _all("mediat.quant.", "decode.bos"),
        _of_stills("vvo,tfd"),
    ),
    Family(
        "VQ-VFM-OCL, diffusion",
        GENERA1Z,
        _all("mediat.quant.", "decode.backbone.conv_in."),
        _of_stills("vvo,dfz"),
    ),
    Family(
        "VQ-VFM-OCL, MLP",
        GENERA1Z,
        _all("mediat.quant.", "decode.backbone.0."),
        _of_stills("vvo,mlp"),
    ),
    Family(
        "a tokenizer of pixels",
        GENERA1Z,
        _any("m.codebook.templat."),
        (
            *_of_stills("slate", TOKENIZER),
            *_of_stills("slotdiffusion", TOKENIZER),
            "movi_d:steve,genera1z,tokenizer",
        ),
    ),
    Family(
        "a tokenizer of features",
        GENERA1Z,
        _any("mediat.quant."),
        (
            *_of_stills("vvo,tfd", TOKENIZER),
            *_of_stills("vvo,mlp", TOKENIZER),
            *_of_stills("vvo,dfz", TOKENIZER),
            "movi_d:vvo,tfdt,genera1z,tokenizer",
        ),
    ),
    Family(
        "RandSF.Q",
        GENERA1Z,
        _any("transit.te."),
        (
            *_each("movi_c movi_d", "randsfq", "randsfq,tsim"),
            *_each("ytvis_hq", "randsfq,original", "randsfq,tsim,original"),
            "ytvis_hq:randsfq,original,recognition",
            "ytvis_hq:randsfq,tsim,original,recognition",
        ),
    ),
    Family(
        "VideoSAUR's re-implementation",
        GENERA1Z,
        _any("decode.allocat."),
        (
            *_each(_VIDEOS_2025, "videosaur,genera1z"),
            "ytvis_hq:videosaur,genera1z,recognition",
        ),
    ),
    Family(
        "SlotContrast's re-implementation",
        GENERA1Z,
        _any("transit.self_attn."),
        (
            *_each(_VIDEOS_2025, "slotcontrast,genera1z"),
            "ytvis_hq:slotcontrast,genera1z,recognition",
        ),
    ),
    Family(
        "SPOT's re-implementation",
        GENERA1Z,
        _any("decode.bos"),
        _each(_PICTURES, "spot,genera1z"),
    ),
    Family(
        "DINOSAUR's re-implementation",
        GENERA1Z,
        _any("decode.backbone.0.weight"),
        _each(_PICTURES, "dinosaur,genera1z", "dinosaur,r384,genera1z"),
    ),
    Family("DIAS", GENERA1Z, _any("decode.mask_token"), _each(_PICTURES, "dias,genera1z")),
    Family("OSRT", OSRT, _any("srt_encoder."), _each("msn_hard clevr3d obsurf_msn", "osrt")),
)
SMOOTHSA = next(family for family in FAMILIES if family.program is None)


def recipes() -> dict[str, ConfigDict]:
    """Return every config in configs/ whose model has a published program, by name.

    Raises:
        UserError: there are no configs, for example in a copy of the package alone.
    """
    found = {}
    for path in sorted(CONFIGS.glob("*.py")):
        if path.name == OWN or "def get_config" not in path.read_text():
            continue
        config = load_config(str(path))
        if config.model.encoder.name != "vit":
            continue
        found[path.stem] = config
        if (head := _recognition_of(path, config)) is not None:
            found[f"{path.stem}:{RECOGNITION}"] = head
    if not found:
        raise UserError(
            f"no configs found in {CONFIGS}; run from a checkout of the project, or give the "
            "config file with --config"
        )
    for name in itertools.chain(*(family.recipes for family in FAMILIES)):
        file, _, words = name.partition(":")
        if (CONFIGS / f"{file}.py").is_file():
            spec = f"{CONFIGS / file}.py:{words}"
            found[name] = completed(load_config(spec), spec)
    return found


def completed(config: ConfigDict, spec: str) -> ConfigDict:
    """Return a config with the models of its companions: a teacher, or the model of the slots.

    Args:
        config: the config.
        spec: what it was loaded from, such as "configs/coco.py:spot,genera1z,student".
    """
    if SLOT_MODEL in config.companions and "model" not in config.companions[SLOT_MODEL]:
        slots = load_config(_without(spec, RECOGNITION, DYNAMICS, ANSWERS))
        config = with_slot_model(config, slots)
    if is_on_slots(config):
        return as_published(config)
    if SLOT_MODEL in config.companions:
        return config
    if TOKENIZER in config.companions and "model" not in config.companions[TOKENIZER]:
        path, colon, words = spec.partition(":")
        return with_tokenizer(config, load_config(f"{path}:{words}{',' * bool(words)}{TOKENIZER}"))
    return with_teacher(config, spec)


def with_tokenizer(config: ConfigDict, first: ConfigDict) -> ConfigDict:
    """Return a config of a second stage with the tokenizer of its first, as its files have it.

    In the program of SmoothSA's author, it is without its decoder.
    """
    config = config.copy_and_resolve_references().unlock()
    model = first.model.copy_and_resolve_references().unlock()
    if program_of(first) is GENERA1Z:
        model.tokenizer.decodes = False
    config.companions[TOKENIZER].update(title=first.title, model=model)
    return canonical(config)


def _without(spec: str, *left_out: str) -> str:
    """Return what a config is loaded from, without some words."""
    path, _, words = spec.partition(":")
    rest = ",".join(word for word in split_words(words) if word not in left_out)
    return f"{path}:{rest}" if rest else path


def with_teacher(config: ConfigDict, spec: str) -> ConfigDict:
    """Return a config with the model of its teacher, if it has one.

    A file of the original SPOT's student has no teacher; its training cannot go on.

    Args:
        config: the config.
        spec: what it was loaded from, such as "configs/coco.py:spot,genera1z,student".
    """
    if TEACHER not in config.companions or "model" in config.companions[TEACHER]:
        return config
    config = config.copy_and_resolve_references().unlock()
    if program_of(config) is SPOT:
        del config.companions[TEACHER]
        del config.losses.attention_match
        return canonical(config)
    teacher = load_config(_without(spec, STUDENT))
    config.companions[TEACHER].update(title=teacher.title, model=teacher.model)
    return canonical(config)


def lacks_teacher(config: ConfigDict) -> bool:
    """Tell whether a config is that of a student whose file has no teacher."""
    return "target_encoder" in config.model and TEACHER not in config.companions


def _recognition_of(path: Path, slots: ConfigDict) -> ConfigDict | None:
    try:
        config = load_config(f"{path}:{RECOGNITION}")
    except UserError:  # the data set has no categories
        return None
    return with_slot_model(config, slots)


def with_slot_model(config: ConfigDict, slots: ConfigDict) -> ConfigDict:
    """Return a recognition config that contains the slot model of another config."""
    config = config.copy_and_resolve_references().unlock()
    config.companions.slot_model.update(title=slots.title, model=slots.model)
    return canonical(config)


def program_of(config: ConfigDict) -> Program | None:
    """Return the program that a config's model belongs to; None: SmoothSA's.

    The numerics of slot attention tell the programs apart, and OSRT's encoder of scenes.
    """
    if is_on_slots(config):
        return program_on_slots(config)
    model = _slot_model_of(config)
    if model is None or "cold" in model.get("initializer", {}):
        return None
    if TOKENIZER in model:
        if is_tokenizer_model(model):
            return SLOTFORMER_STEVE if model.tokenizer.name == "dvae" else GENERA1Z
        return BOQSA_TOKENS if model.decoder.get("start_in_table", False) else STEVE
    if model.decoder.get("start_in_table", False):
        return SLOTFORMER_STEVE
    if model.decoder.name == "spatial_broadcast":
        if model.aggregator.name == "drawn_queries":
            return SLOTFORMER_SAVI
        if model.decoder.head == "separate":
            return SAVI
        return BOQSA if model.decoder.padding == "torch" else ORIGINAL
    if model.get("encoder", {}).get("name") == "scene":
        return OSRT
    if model.aggregator.get("epsilon_in", "sum") == "sum":
        return GENERA1Z
    if model.aggregator.get("state", "slots") == "normalized":
        return VIDEOSAUR
    return OCLF if model.projection.get("to_slots", False) else SPOT


def _slot_model_of(config: ConfigDict) -> ConfigDict | None:
    """Return the slot model of a config, or the one that its head reads, if that is known."""
    if SLOT_MODEL in config.companions:
        return config.companions[SLOT_MODEL].get("model")
    return config.model


def from_state_dict(
    state_dict: StateDict, config: ConfigDict, buffers: Iterable[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Convert a state dict to the arrays of a config's model and of its companions.

    Args:
        state_dict: with exactly `expected_keys(config)`.
        config: the whole config.
        buffers: names of the model's buffers to convert too.

    Returns:
        The arrays by our names, companions' with theirs in front; and what else the file tells, as
        JSON values, for `to_state_dict`.
    """
    program = program_of(config)
    if program is None:
        flag = next((bool(x) for key, x in state_dict.items() if key.endswith(DETACH_FLAG)), False)
        arrays = renamed(from_authors(state_dict), config, to_ours=True)
        return arrays, {"detach": flag}
    found: dict[str, np.ndarray] = {}
    models, root = _models_of(config), "m." if program is GENERA1Z else ""
    starts = sorted((start for _, start, _ in models), key=len, reverse=True)
    start_of = {key: next((x for x in starts if key.startswith(x)), None) for key in state_dict}
    for prefix, start, model in models:
        own = {key: x for key, x in state_dict.items() if start_of[key] == start}
        own = {key.replace(start, root, 1) if start else key: x for key, x in own.items()}
        names = {*_shapes_of(model, config), *buffers}
        arrays = program.to_ours(own, names, model)
        found |= {f"{prefix}{name}": x for name, x in arrays.items()}
    if _shares_encoder(config):  # once in a file, and in ours once more with the tokenizer
        own = [name for name in found if name.startswith(f"{ENCODER}.")]
        found |= {f"{TOKENIZER}.{name}": found[name] for name in own}
    return found, program.kept(state_dict)


def to_state_dict(
    arrays: Mapping[str, np.ndarray], config: ConfigDict, kept: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Convert the arrays of a config's model and of its companions to a state dict.

    Args:
        arrays: by our names; buffers too, where the program has them.
        config: the whole config.
        kept: what `from_state_dict` returned, or nothing.

    Raises:
        UserError: the program has no place for an array.
    """
    program = program_of(config)
    if program is None:
        return to_authors(renamed(arrays, config, to_ours=False), kept.get("detach", False))
    if is_on_slots(config):
        facts = {**facts_on_slots(config), **kept}
        return program.to_theirs(arrays_on_slots(arrays, config), config.model.to_dict(), facts)
    companions = tuple(f"{name}." for name in config.companions)
    found: dict[str, np.ndarray] = {}
    for prefix, start, model in _models_of(config):
        own = {
            name.removeprefix(prefix): x
            for name, x in arrays.items()
            if (name.startswith(prefix) if prefix else not name.startswith(companions))
        }
        if prefix == f"{TOKENIZER}." and program is GENERA1Z:  # what such a file has of it
            left_out = (f"{ENCODER}.", "tokenizer.decoder.", "tokenizer.expand")
            own = {name: x for name, x in own.items() if not name.startswith(left_out)}
        # Some files hold functions of the place on the grid of an encoder.
        state_dict = program.to_theirs(
            own, model, {IMAGE_SIZE: list(image_size_of(config)), **kept}
        )
        root = "m." if program is GENERA1Z else ""
        bare = f"{root}mediat." if start == OF_TOKENIZER else root
        found |= {
            f"{start}{key.removeprefix(bare).removeprefix(root)}" if start else key: x
            for key, x in state_dict.items()
        }
    return found


def _models_of(config: ConfigDict) -> list[tuple[str, str, ConfigDict]]:
    """Return (prefix of our names, prefix of their keys, model) of each model in a file."""
    program, teacher = program_of(config), config.companions.get(TEACHER)
    if program is SLOTFORMER_STEVE and TOKENIZER in config.companions:
        tokenizer = config.companions[TOKENIZER].model
        return [("", "", config.model), (f"{TOKENIZER}.", DVAE, tokenizer)]
    if program is not GENERA1Z:
        return [("", "", config.model)]
    if SLOT_MODEL in config.companions:
        slots = config.companions[SLOT_MODEL].model
        return [("", "m.", config.model), (f"{SLOT_MODEL}.", "m.discov.", slots)]
    if TOKENIZER in config.companions:
        tokenizer = config.companions[TOKENIZER].model
        return [("", "m.", config.model), (f"{TOKENIZER}.", OF_TOKENIZER, tokenizer)]
    if teacher is None:
        return [("", "m.", config.model)]
    return [("", "m.student.", config.model), (f"{TEACHER}.", "m.teacher.", teacher.model)]


def _shares_encoder(config: ConfigDict) -> bool:
    """Whether the model's encoder is also that of a frozen tokenizer."""
    return ENCODER in config.companions.get(TOKENIZER, {}).get("model", {})


def renamed(
    arrays: Mapping[str, np.ndarray], config: ConfigDict, to_ours: bool
) -> dict[str, np.ndarray]:
    """Rename between a run's arrays and those of `interop.authors`.

    In a run of recognition the head has no prefix and the slot model's arrays have one; there it
    is the other way around.
    """
    if SLOT_MODEL not in config.companions:
        return dict(arrays)
    slots = f"{SLOT_MODEL}."
    mine, other = (HEAD, slots) if to_ours else (slots, HEAD)
    return {
        name.removeprefix(mine) if name.startswith(mine) else f"{other}{name}": array
        for name, array in arrays.items()
    }


def expected_keys(config: ConfigDict) -> dict[str, str]:
    """Describe the state dict of a config's model, without keys that stand for no array.

    Returns:
        key -> dtype and shape.

    Raises:
        UserError: no program has this model.
    """
    if program_of(config) is not None:
        shapes: dict[str, Any] = {}
        for prefix, _, model in _models_of(config):
            found = _shapes_of(model, config)
            shapes |= {f"{prefix}{name}": x for name, x in found.items()}
        arrays = {name: np.broadcast_to(x.dtype.type(0), x.shape) for name, x in shapes.items()}
        return describe(to_state_dict(arrays, config, {}))
    model = _slot_model_of(config)
    head = None if model is config.model else json.dumps(config.model.to_dict())
    return dict(_expected_keys(_as_json(model), image_size_of(config), head))


def _shapes_of(model: ConfigDict, config: ConfigDict) -> dict[str, Any]:
    """Return the shapes of the arrays of a slot model, or of the head that reads another one."""
    if is_on_slots(config):
        return shapes_on_slots(config)
    slots = _slot_model_of(config)
    if model is config.model and model is not slots:
        return _head_shapes(json.dumps(model.to_dict(), sort_keys=True), slots.slot_size)
    shapes = _shapes(_as_json(model), image_size_of(config))
    if model is not config.model and is_tokenizer_model(model):  # its encoder is the model's
        return {name: x for name, x in shapes.items() if not name.startswith(f"{ENCODER}.")}
    return shapes


def _as_json(model: ConfigDict) -> str:
    """Return a model's config, without what does not affect its arrays."""
    found = model.to_dict()
    if is_slot_model(model) and not _has_query_of_each_slot(model):
        found["num_slots"] = 1
    return json.dumps(found, sort_keys=True)


def _has_query_of_each_slot(model: ConfigDict) -> bool:
    initializer = model.get("initializer", {"name": "none"})
    return initializer.get("separate", False) or initializer["name"] == "learned"


@functools.cache  # most recipes share a model, and each model takes a second
def _shapes(model: str, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return the shapes of the arrays of a slot model, or of a tokenizer and its encoder."""
    _, trained, frozen = split(model_shapes(ConfigDict(json.loads(model)), image_size))
    return {**trained, **frozen}


@functools.cache
def _head_shapes(head: str, slot_size: int) -> dict[str, Any]:
    """Return the shapes of a head's arrays."""
    settings = ConfigDict(json.loads(head))
    return split(nnx.eval_shape(lambda: build_head(settings, slot_size, 0)))[1]


@functools.cache
def _expected_keys(model: str, image_size: tuple[int, int], head: str | None) -> dict[str, str]:
    """Describe SmoothSA's state dict of a slot model and an optional head on it, given as JSON."""
    config, shapes = ConfigDict(json.loads(model)), dict(_shapes(model, image_size))
    if head is not None:
        of_head = _head_shapes(head, config.slot_size)
        shapes |= {f"{HEAD}{name}": x for name, x in of_head.items()}
    # The table transforms arrays, not shapes.
    arrays = {name: np.broadcast_to(x.dtype.type(0), x.shape) for name, x in shapes.items()}
    return describe(to_authors(arrays, detach=False))


def family_of(keys: Iterable[str]) -> Family | None:
    """Return the family of a state dict with these keys, if there is one."""
    keys = list(keys)
    return next((family for family in FAMILIES if family.has(keys)), None)


def arrays_of(state_dict: StateDict, program: Program | None) -> StateDict:
    """Return a state dict by today's keys, without those that stand for no array of a model."""
    if program is None:
        return state_dict
    prefixes = ("m.student.", "m.teacher.", "m.discov.", "m.")

    def is_array(key: str) -> bool:
        bare = next((key.removeprefix(p) for p in prefixes if key.startswith(p)), key)
        return not program.ignored(bare) or program.sized(bare)

    return {program.today(key): x for key, x in state_dict.items() if is_array(key)}


def fitted(configs: Mapping[str, ConfigDict], state_dict: StateDict) -> dict[str, ConfigDict]:
    """Return configs to choose from for a file, by the same names.

    PHYRE is no data set here. Its readout takes the place of that of Physion, of as many answers.
    """
    family = family_of(state_dict)
    if family is None or family.program is not PHYRE:
        return dict(configs)
    return {name: with_readout_of_phyre(x, state_dict) for name, x in configs.items()}


def configs_of(state_dict: StateDict, configs: Mapping[str, ConfigDict]) -> list[str]:
    """Return the names of the configs whose models match a state dict exactly.

    Keys, dtypes and shapes all have to match.

    Raises:
        UserError: no config matches; the message compares the state dict with the closest one.
    """
    family = family_of(state_dict)
    if family is not None and all(program_of(x) is not family.program for x in configs.values()):
        raise UserError(
            f"it is a checkpoint of {family.title}, and {', '.join(configs)} describes a model of "
            f"another program; give the config {_recipes_for(state_dict, family, configs)}"
        )
    # To make a model of shapes takes half a second. One of another system cannot match, unless the
    # user has chosen the config.
    near = {name: x for name, x in configs.items() if _is_of(name, x, family)} or configs
    near = {name: x for name, x in near.items() if _may_be(x, state_dict)} or near
    found = describe(arrays_of(state_dict, None if family is None else family.program))
    layouts = {name: _described(config) for name, config in near.items()}
    exact = [name for name, expected in layouts.items() if expected == found]
    if exact:
        return exact
    common = {
        name: len(found.items() & expected.items()) - abs(len(found) - len(expected))
        for name, expected in layouts.items()
    }
    nearest = max(common, key=lambda name: common[name])
    expected = layouts[nearest]
    if not found.keys() & expected.keys():
        known = (family or SMOOTHSA,) if len(configs) == 1 else FAMILIES
        raise UserError(
            f"no checkpoint of {' or '.join(dict.fromkeys(x.title for x in known))}: it has "
            f"{len(found)} keys such as {next(iter(found), None)!r}, expected those of the "
            f"authors' program, such as {next(iter(expected))!r}"
        )
    if family is not None and program_of(near[nearest]) is family.program:
        line = advice_on_slots(state_dict, nearest, near[nearest])
        if line is not None:
            raise UserError(line)
    if (number := _other_slots(found, expected)) is not None:
        raise UserError(
            f"each of its slots has a query of its own, and there are {number}, where the config "
            f"{nearest} has {_slot_model_of(near[nearest]).num_slots}; convert it with "
            f"--config={nearest} --config.model.num_slots={number}"
        )
    advice = "download the file again, or give its config with --config"
    if family is not None and len(configs) == 1:
        others = _recipes_for(state_dict, family, configs)
        if nearest not in others.split(" or "):
            advice = f"it is a checkpoint of {family.title}: give the config {others}"
    raise UserError(
        f"the keys do not fit; against the config {nearest}, "
        f"{'; '.join(mismatches(found, expected))}; {advice}"
    )


def _other_slots(found: Mapping[str, str], expected: Mapping[str, str]) -> int | None:
    """Return how many slots a file has queries for, if that is all that does not fit.

    Args:
        found: key -> dtype and shape, as `describe` makes it.
        expected: the same of a config's model.
    """
    different = [key for key in found if found[key] != expected.get(key)]
    if found.keys() != expected.keys() or not different:
        return None
    numbers = set()
    for key in different:
        sizes = [json.loads(x[x.index("[") :]) for x in (found[key], expected[key])]
        if not key.endswith((*QUERIES, *SPREADS)) or min(map(len, sizes)) < 2:
            return None
        number = sizes[0].pop(-2)
        if sizes[1].pop(-2) == 1 or sizes[0] != sizes[1]:
            return None
        numbers.add(number)
    return numbers.pop() if len(numbers) == 1 else None


def _recipes_for(state_dict: StateDict, family: Family, chosen: Mapping[str, ConfigDict]) -> str:
    """Name the recipes of a file: those that fit, and of the chosen config's data set, if any do.

    Args:
        state_dict: the file's.
        family: its family.
        chosen: the config that it does not fit.
    """
    data = Path(next(iter(chosen)).partition(":")[0]).stem
    if not family.recipes:
        return data
    known, found = recipes(), describe(arrays_of(state_dict, family.program))
    names = [x for x in family.recipes if x in known and _may_be(known[x], state_dict)]
    names = [x for x in names if _described(known[x]) == found] or list(family.recipes)
    return " or ".join([x for x in names if x.partition(":")[0] == data] or names)


def _is_of(name: str, config: ConfigDict, family: Family | None) -> bool:
    family = family or SMOOTHSA
    if program_of(config) is not family.program:
        return False
    same = lambda recipe: _parts_of(recipe) == _parts_of(name)  # noqa: E731
    return family.program is None or any(map(same, family.recipes))


def _parts_of(name: str) -> tuple[str, frozenset[str]]:
    """Return the data set and the words of a config's name, in which words have any order."""
    data, _, words = name.partition(":")
    return Path(data).stem, frozenset(split_words(words))


def _may_be(config: ConfigDict, state_dict: StateDict) -> bool:
    """Tell by two signs whether a state dict may be of a config's model, without making it."""
    if is_on_slots(config):
        return may_be_on_slots(config, state_dict)
    model = _slot_model_of(config)
    separate = _has_query_of_each_slot(model)
    if "encoder" not in model:  # a tokenizer of pixels
        return True
    for key, array in state_dict.items():
        if key.endswith("patch_embed.proj.weight") and array.ndim == 4:
            if (array.shape[0], array.shape[-1]) != (model.encoder.width, model.encoder.patch):
                return False
        elif key.endswith(QUERIES) and not key.startswith("m.teacher."):
            if array.ndim > 1 and array.shape[-2] != (model.num_slots if separate else 1):
                return False
    return True


def _described(config: ConfigDict) -> dict[str, str]:
    expected, program = expected_keys(config), program_of(config)
    return {key: expected[key] for key in arrays_of(expected, program)}
