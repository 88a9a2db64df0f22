"""State dicts of other systems than SmoothSA: recognized, converted both ways, refused."""

import json

import numpy as np
import pytest
from golden_files import FOLDER, golden
from recipes import quick
from test_golden_metaslot import CODEBOOK
from test_golden_systems import SYSTEMS, Recorded, part_of

from smoothsa_jax.checkpoints import published
from smoothsa_jax.convert import read_workdir, write_workdir
from smoothsa_jax.errors import UserError
from smoothsa_jax.interop.programs import GENERA1Z
from smoothsa_jax.interop.torch_files import read_state_dict

LAYOUTS = {
    system: json.loads((FOLDER / f"{system}_state_dicts.json").read_text())
    for system in (
        "dias",
        "spot",
        "dinosaur",
        "metaslot",
        "videosaur",
        "slotcontrast",
        "randsfq",
        "osrt",
        "generative",
    )
}
# Of SLATE's and SlotDiffusion's own programs, which this one does not have.
LEFT_OUT = ("slate_original", "slotdiffusion_original")


def whole(found: dict) -> dict[str, dict[str, list[int]]]:
    """Layouts in full, of which some are told by how they differ from another one."""
    full = {}
    for name, keys in found.items():
        if not name.startswith(LEFT_OUT):
            full[name] = {**full[keys["like"]], **keys["differs"]} if "like" in keys else keys
    return full


# Of MetaSlot in models of tokens, the file lists what is not SLATE's or SlotDiffusion's.
OTHER_PARTS = ("m.encode_backbone.", "m.mediat.", "m.decode.")
# They have the keys of another one, in other sizes.
ALIKE = frozenset(name for name, keys in LAYOUTS["generative"].items() if "like" in keys)
LAYOUTS["generative"] = whole(LAYOUTS["generative"])
for layout, own in LAYOUTS["metaslot"].items():
    if layout in LAYOUTS["generative"]:
        others = LAYOUTS["generative"][layout].items()
        own |= {key: shape for key, shape in others if key.startswith(OTHER_PARTS)}
# Parts of OSRT's models alone, see tests/test_views.py.
LATER = {"osrt": ("decoder_",)}
# The name of a layout -> the recipe that it has to be among.
RECIPES = {
    "dias": {"dias_r": "dias,genera1z"},
    "spot": {
        "original teacher": "spot,original",
        "original student": "spot,original,student",
        "spot_r_distill": "spot,genera1z,student",
        "spot_r": "spot,genera1z",
    },
    "dinosaur": {
        "dinosaur_r-coco-r384": "dinosaur,r384,genera1z",
        "dinosaur_r": "dinosaur,genera1z",
        "mlp": "dinosaur,original",
        "ar": "dinosaur,ar,original",
    },
    "metaslot": {
        "ViT_B16": "metaslot,b16,genera1z",
        "dinosaur_r": "metaslot,genera1z",
        "spot_r": "metaslot,ar,genera1z",
        "slate_r": "metaslot,tokens,genera1z",
        "slotdiffusion_r": "metaslot,noise,genera1z",
    },
}
# Of videos: the name of a layout -> the whole name of the recipe.
VIDEO_RECIPES = {
    "videosaur": {
        "genera1z movi_c": "movi_c:videosaur,genera1z",
        "genera1z movi_d": "movi_d:videosaur,genera1z",
        "genera1z ytvis": "ytvis_hq:videosaur,genera1z",
        "original movi_c": "movi_c:gaussian,videosaur,original",
        "original movi_e": "movi_e:gaussian,videosaur,original",
        "original ytvis": "ytvis_2021:videosaur,original",
        "original ytvis_dinov2": "ytvis_2021:videosaur,dinov2,original",
        "original dinosaur coco": "coco:dinosaur,dinov2,original",
    },
    "slotcontrast": {
        "genera1z movi_c": "movi_c:slotcontrast,genera1z",
        "genera1z movi_d": "movi_d:slotcontrast,genera1z",
        "genera1z ytvis": "ytvis_hq:slotcontrast,genera1z",
        "genera1z recognition ytvis": "ytvis_hq:slotcontrast,genera1z,recognition",
        "original movi_c": "movi_c:gaussian,slotcontrast,original",
        "original movi_e": "movi_e:gaussian,slotcontrast,original",
        "original ytvis2021": "ytvis_2021:slotcontrast,original",
    },
    "osrt": {name: f"{name}:osrt" for name in ("msn_hard", "clevr3d", "obsurf_msn")},
    "randsfq": {
        "movi_c": "movi_c:randsfq",
        "movi_d": "movi_d:randsfq",
        "ytvis": "ytvis_hq:randsfq,original",
        "movi_c tsim": "movi_c:randsfq,tsim",
        "movi_d tsim": "movi_d:randsfq,tsim",
        "ytvis tsim": "ytvis_hq:randsfq,tsim,original",
        "recognition ytvis": "ytvis_hq:randsfq,tsim,original,recognition",
    },
}
# Of systems that explain tokens: the layout up to its first "-" -> words; of tokenizers, those of
# codes of width 256 and 4.
TOKEN_RECIPES = {
    "slate_r_vqvae": "slate",
    "steve_c_vqvae": "steve",
    "slotdiffusion_r_vqvae": "slotdiffusion",
    "vqdino_tfd_r": "vvo,tfd",
    "vqdino_tfdt_c": "vvo,tfdt",
    "vqdino_dfz_r": "vvo,dfz",
    "vqdino_mlp_r": "vvo,mlp",
    "vqvae": ("slate", "slotdiffusion"),
    "vqdino": ("vvo,tfd", "vvo,dfz"),
}
OF_VIDEOS = {"slate": "steve", "vvo,tfd": "vvo,tfdt"}


def recipe_of_tokens(layout: str) -> str:
    if layout == "steve_original":
        return "movi_d:steve,original"
    kind, data, *more = layout.split("-")
    words = TOKEN_RECIPES[kind]
    task = "" if isinstance(words, str) else ",tokenizer"
    if task:
        words = words[0 if "c256" in more else 1]
        words = OF_VIDEOS[words] if data == "movi_d" else words
    return f"{data}:{words}{',r384' * ('r384' in more)},genera1z{task}"


def recipe_of(system: str, layout: str) -> str:
    if system == "generative":
        return recipe_of_tokens(layout)
    if system in VIDEO_RECIPES:
        return VIDEO_RECIPES[system][layout]
    words = next(words for part, words in RECIPES[system].items() if part in layout)
    data = next(x for x in ("clevrtex", "coco", "voc", "movi_c", "movi_e") if x in layout)
    return f"{data}:image,{words}" if data.startswith("movi") else f"{data}:{words}"


def is_later(system: str, layout: str) -> bool:
    return layout.startswith(LATER.get(system, ("none",)))


def layouts() -> list:
    names = [(s, n) for s, found in LAYOUTS.items() for n in found if not is_later(s, n)]
    marks = dict.fromkeys(("dinosaur_r-voc", "dias_r-coco", "recognition ytvis"), pytest.mark.more)
    marks |= dict.fromkeys(("original dinosaur coco", "vqvae-coco-c4", "vqdino_mlp_r-coco"), ())
    return [
        pytest.param(*pair, marks=marks.get(pair[1], pytest.mark.slow), id="-".join(pair))
        for pair in names
    ]


def made(keys: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Arrays of these shapes that need no memory."""
    dtype = lambda key: bool if key.endswith("self_attn_mask") else np.float32  # noqa: E731
    return {key: np.broadcast_to(dtype(key)(0), shape) for key, shape in keys.items()}


@pytest.fixture(scope="module")
def recipes():
    return published.recipes()


@pytest.mark.parametrize("system, layout", layouts())
def test_a_published_layout_is_recognized(system, layout, recipes):
    """By its keys and shapes alone, and our model fills every key of it."""
    keys = LAYOUTS[system][layout]
    state_dict = made(keys)
    names = published.configs_of(state_dict, recipes)
    assert recipe_of(system, layout) in names
    assert all(published.family_of(keys).program is published.program_of(recipes[n]) for n in names)
    config = recipes[recipe_of(system, layout)]
    expected = published.expected_keys(config)
    program = published.program_of(config)
    assert expected.keys() == published.arrays_of(keys, program).keys() | (
        expected.keys() - published.arrays_of(expected, program).keys()
    )


@pytest.mark.parametrize(
    "name",
    quick(
        [x for x in SYSTEMS if x != "spot_mlp_original"],
        "spot_student_original",
        "dinosaur_ar_original",
        "dinosaur_genera1z",
    ),
)
def test_arrays_come_back_bit_for_bit(name):
    """Their arrays -> ours -> theirs, of every recorded model and of teachers."""
    with golden(f"model_{name}", parts=()) as file:
        case = Recorded(name, file)
        program, theirs = case.system.program, part_of(case.params, "student")
        ours = {n: x for n, x in case.arrays.items() if not n.startswith("teacher.")}
        back = program.to_theirs(ours, case.model)
        back = {key: x for key, x in back.items() if key in theirs or not is_mask(key)}
        assert back.keys() == theirs.keys()
        for key, array in theirs.items():
            assert back[key].dtype == array.dtype
            np.testing.assert_array_equal(back[key], array, err_msg=key, strict=True)


def is_mask(key: str) -> bool:
    return key.endswith(("self_attn_mask", "object_decoder.mask", "decode.mask"))


def test_metaslots_state_comes_back_bit_for_bit():
    with golden("model_metaslot", parts=()) as file:
        theirs = {f"m.{key}": x for key, x in file.group("param/").items()}
        names = {"aggregator.queue", "aggregator.pointer", "aggregator.slots_share", CODEBOOK}
        model = {"aggregator": {"name": "metaslot"}}
        layers = sum(key.startswith("m.decode.backbone") for key in theirs) // 2 - 2
        names |= {"decoder.out.kernel", *(f"decoder.layers.{i}.kernel" for i in range(layers))}
        names |= {f"decoder.layers.{i}.bias" for i in range(layers)}
        ours = GENERA1Z.to_ours(theirs, names, model)
        assert ours["aggregator.pointer"].dtype == np.int32
        back = GENERA1Z.to_theirs(ours, model, GENERA1Z.kept(theirs))
        assert back.keys() == theirs.keys()
        for key, array in theirs.items():
            assert back[key].dtype == array.dtype, key
            np.testing.assert_array_equal(back[key], array, err_msg=key, strict=True)


@pytest.mark.more
@pytest.mark.parametrize(
    "name",
    quick(
        ["dias.pth", "spot_original.pt.tar", "spot_genera1z.pth", "dinosaur_genera1z.pth"],
        "spot_original.pt.tar",
    ),
)
def test_a_file_becomes_a_workdir_and_comes_back(name, tmp_path):
    """A small file of the program, with a config of its size."""
    state_dict = read_state_dict(FOLDER / f"model_{name}")
    with golden(f"model_{name.partition('.')[0]}", parts=()) as file:
        case = Recorded(name.partition(".")[0], file)
    everything = frozenset(n for n in case.names if not n.startswith("encoder."))
    config = case.config({"distill": 1.0}, everything)
    write_workdir(state_dict, config, tmp_path / "run")
    back = read_workdir(tmp_path / "run", pytest.fail)
    assert back.keys() == state_dict.keys()
    for key, array in state_dict.items():
        assert back[key].dtype == array.dtype
        np.testing.assert_array_equal(back[key], array, err_msg=key, strict=True)


@pytest.mark.slow
def test_a_file_that_does_not_fit_names_its_program(recipes):
    keys = dict(LAYOUTS["spot"]["original teacher coco"])
    keys["slot_attn.extra"] = [3]
    with pytest.raises(UserError, match="the keys do not fit.*spot,original.*slot_attn.extra"):
        published.configs_of(
            made(keys), {n: x for n, x in recipes.items() if n == "coco:spot,original"}
        )
    wrong = {"m.decode.mask_token": np.zeros(3, np.float32), "x": np.zeros(2, np.float32)}
    one = {"coco:dias,genera1z": recipes["coco:dias,genera1z"]}
    with pytest.raises(UserError, match="the keys do not fit; against the config coco:dias"):
        published.configs_of(wrong, one)
