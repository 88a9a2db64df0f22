"""The gallery: every data set with every word gives a valid config, and its table is complete."""

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recipes import quick

from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.schema import check
from smoothsa_jax.config.words import KINDS
from smoothsa_jax.errors import UserError
from smoothsa_jax.tasks.build import build_task

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
DATA_SETS = sorted(p.stem for p in CONFIGS.glob("*.py"))
SYSTEMS = sorted(p.stem for p in (CONFIGS / "systems").glob("*.py"))
VARIANTS = {
    "sprites": {"gaussian", "image", "hard", "hard_gaussian", "hard_image", "full"},
    "scenes": {"gaussian", "moving", "image", "views"},
    "own": {"image", "video"},
    "movi_a": {"image"},
    "movi_c": {"image", "gaussian"},
    "movi_e": {"image", "gaussian"},
}
# Words of systems, by system; each is a system variant, a version or a task.
WORDS = {
    "boqsa": {"mixture", "transformer"},
    "dias": {"genera1z"},
    "dinosaur": {"ar", "r384", "dinov2", "original", "genera1z"},
    "inverted": {"tf", "tf_inv_gru", "sa_no_gru", "sa", "sa_id", "learned", "original"},
    "metaslot": {"ar", "b16", "paper", "tokens", "noise", "genera1z", "tokenizer"},
    "osrt": {"broadcast", "srt", "sa", "sa_id", "tf_inv"},
    "randsfq": {"tsim", "original"},
    "savi": {"medium", "large", "sa", "tf_inv", "tf_inv_gru"},
    "savi_plus": {"sa", "tf_inv", "tf_inv_gru"},
    "savi_slotformer": {"stochastic"},
    "slot_attention": set(),
    "slate": {"r384", "genera1z", "tokenizer"},
    "slotcontrast": {"original", "genera1z"},
    "slotdiffusion": {"r384", "genera1z", "tokenizer"},
    "smoothsa": set(),
    "spot": {"original", "genera1z", "student"},
    "steve": {"original", "genera1z", "slotformer", "tokenizer"},
    "videosaur": {"dinov2", "original", "genera1z"},
    "vvo": {"tfd", "tfdt", "mlp", "dfz", "r384", "genera1z", "tokenizer"},
}
# Variants that a version does not have, by system.
WITHOUT = {
    "dinosaur": {("ar", "genera1z"), ("dinov2", "genera1z"), ("r384", "original")},
    "videosaur": {("dinov2", "genera1z")},
}
OF_FLOW = ("savi", "savi_plus")
WITH_FLOW = ("movi_a", "movi_b", "movi_c", "movi_d", "movi_e", "scenes")  # data sets
OF_VIDEOS = ("randsfq", "savi_slotformer", "slotcontrast", "steve", "videosaur", *OF_FLOW)
TASKS = ("recognition", "tokenizer", "dynamics", "answers")
WITH_QUESTIONS = ("sprites", "clevrer", "physion")  # data sets
OF_SCENES = ("osrt",)
WITH_VIEWS = ("clevr3d", "msn_hard", "obsurf_msn", "scenes")  # data sets, or a variant of them
OF_PICTURES = ("clevr", "clevrtex", "coco", "voc")  # the data sets
OF_VIEWS = ("clevr3d", "msn_hard", "obsurf_msn")  # the data sets
# Slots, steps, batch, frames, frames to score, learning rate, clipping: the paper's.
TABLE = {
    "coco": (7, 100_000, 32, 1, 1, 2e-4, 1.0),
    "voc": (6, 50_000, 32, 1, 1, 2e-4, 1.0),
    "clevrtex": (11, 50_000, 32, 1, 1, 2e-4, 1.0),
    "movi_c": (10, 50_000, 8, 6, 24, 5e-5, 0.05),
    "movi_d": (20, 50_000, 8, 6, 24, 5e-5, 0.05),
    "movi_e": (23, 50_000, 8, 6, 24, 5e-5, 0.05),
    "ytvis": (7, 50_000, 8, 5, -1, 5e-5, 0.05),
    "ytvis_2021": (7, 50_000, 8, 4, -1, 5e-5, 0.05),  # the others' recipe; not a published one
    "ytvis_hq": (7, 50_000, 8, 5, -1, 5e-5, 0.05),
}
# Steps, batch, frames, classes.
RECOGNITION_TABLE = {
    "coco": (10_000, 32, 1, 91),
    "ytvis": (5_000, 8, 5, 41),
    "ytvis_hq": (5_000, 8, 5, 41),
}


def load(data_set: str, *words: str):
    return load_config(f"{CONFIGS / data_set}.py" + (f":{','.join(words)}" if words else ""))


def words_of(data_set: str) -> dict[str, str]:
    load(data_set)  # puts `configs` on the path
    from configs import base

    module = __import__(f"configs.{data_set}", fromlist=["DATA"])
    assert module.WORDS == base.words_of(module.DATA)
    return module.WORDS


def combinations_of(data_set: str):
    """Every set of words that fit together; of harder data, those without versions."""
    by_kind, kinds = {}, words_of(data_set)
    for word, kind in kinds.items():
        by_kind.setdefault(kind, [()]).append((word,))
    for choice in itertools.product(*by_kind.values()):
        words = tuple(itertools.chain(*choice))
        is_hard = any(word.startswith("hard") for word in words)
        if is_hard and {"version", "smooth", "smoke"} & {kinds[word] for word in words}:
            continue  # as on the same data that are not harder
        system = next((word for word in words if word in WORDS), "smoothsa")
        of_systems = set().union(*WORDS.values())
        if not (set(words) & of_systems) - WORDS[system]:
            yield words


# The others are composed in the same way.
@pytest.mark.parametrize("data_set", quick(DATA_SETS, "coco"))
def test_every_combination_of_words_is_sound(data_set):
    """Each gives a valid config, or says which word is missing or too many."""
    names, kinds = {}, words_of(data_set)
    for words in combinations_of(data_set):
        own = not {"smoothsa", *WORDS} & set(words) or "smoothsa" in words
        if data_set == "scenes" and {"version", "smooth"} & {kinds[word] for word in words}:
            continue  # as on sprites
        try:
            config = load(data_set, *words)
        except UserError as error:
            # A system with queries of its own refuses boxes, and one of videos refuses pictures;
            # SmoothSA is smooth already.
            from_boxes = "start from boxes" in str(error) and not own
            only_videos = {*OF_VIDEOS, "tfdt", "dynamics", "answers"}
            of_videos = "is a system of videos" in str(error) and only_videos & {*words}
            none = "has no variant" in str(error) and _are_apart(words)
            of_pictures = "write tfdt in place of tfd" in str(error) and "tfd" in words
            along = "trains its tokenizer along" in str(error) and "original" in words
            along |= "is for MetaSlot with tokens" in str(error) and "metaslot" in words
            of_scenes = "is a system of scenes" in str(error) and set(OF_SCENES) & set(words)
            has_no_use = own or "srt" in words
            smooth = "smooth" in words and has_no_use and "leave that word out" in str(error)
            assert from_boxes or of_videos or of_scenes or smooth or none or of_pictures or along
            continue
        assert not _are_apart(words)
        check(config)
        task = next((word for word in words if kinds[word] == "task"), None)
        of_system = "views" if set(OF_SCENES) & set(words) else "discovery"
        assert config.task == (task if task in TASKS else of_system)
        assert ("smoke" not in words) or config.train.num_steps <= 20
        # The name is the data set and the words, in the order of their kinds.
        ordered = sorted(set(words) - {"smoothsa"}, key=lambda word: KINDS.index(kinds[word]))
        assert config.name == "_".join([data_set, *ordered])
        # No two share a workdir.
        same = names.setdefault(config.name, set(words) - {"smoothsa"})
        assert same == set(words) - {"smoothsa"}
    assert data_set in names


def _are_apart(words) -> bool:
    pairs = set().union(*(WITHOUT.get(word, ()) for word in words))
    return any(set(pair) <= set(words) for pair in pairs)


def test_the_words_of_each_system():
    load("coco")  # puts `configs` on the path
    from configs import base

    for name, words in WORDS.items():
        assert set(getattr(base.systems()[name], "WORDS", {})) == words


def test_the_words_of_each_data_set():
    for data_set in DATA_SETS:
        systems = {
            name: words
            for name, words in WORDS.items()
            if (name not in OF_VIDEOS or data_set not in OF_PICTURES)
            and (name not in OF_SCENES or data_set in WITH_VIEWS)
            and (name not in OF_FLOW or data_set in WITH_FLOW)
        }
        if data_set in OF_VIEWS:
            systems = {name: WORDS[name] for name in ("smoothsa", *OF_SCENES)}
        expected = {"smooth", "smoke", *systems}.union(*systems.values())
        expected |= VARIANTS.get(data_set, set())
        expected |= {"recognition"} if data_set in RECOGNITION_TABLE else set()
        expected |= set() if data_set in (*OF_PICTURES, *OF_VIEWS) else {"dynamics"}
        expected |= {"answers"} if data_set in WITH_QUESTIONS else set()
        assert set(words_of(data_set)) == expected


# -------------------------------------------------------------------------- the paper's settings


@pytest.mark.parametrize("name", TABLE)
def test_settings_are_the_papers(name):
    config = load(name)
    rate = config.optimizer.learning_rate
    found = (
        config.model.num_slots,
        config.train.num_steps,
        config.train.batch_size,
        config.data.num_frames,
        config.eval.num_frames,
        rate.peak,
        config.optimizer.clip_norm,
    )
    assert found == TABLE[name]
    assert (rate.schedule, rate.warmup, rate.end_ratio) == ("warmup_cosine", 0.05, 1e-3)
    assert config.title == "SmoothSA" and config.checkpoint.every == config.train.num_steps // 40
    initializer = config.model.initializer
    assert initializer.detach.to_dict() == {
        "schedule": "step",
        "begin": 1.0,
        "end": 0.0,
        "at": 0.1,
    }
    assert (config.model.aggregator.first, config.model.aggregator.later) == (3, 1)
    starts_from_boxes = name.startswith("movi")
    assert config.data.boxes == starts_from_boxes
    assert initializer.cold.name == ("boxes" if starts_from_boxes else "gaussian")
    losses = {"reconstruction": {"weight": 1.0}, "distillation": {"weight": 100.0}}
    if config.data.num_frames > 1:
        losses["slot_contrast"] = {"weight": 0.5, "temperature": 0.1}
        assert config.model.transition.history == config.data.num_frames
    else:
        assert config.model.transition.to_dict() == {"name": "none"}
    assert config.losses.to_dict() == losses
    assert config.weights.to_dict() == {
        "encoder": {
            "into": "encoder",
            "source": "facebook/dinov2-with-registers-small",
            "frozen": ("*",),
        }
    }
    assert config.eval.background_column_always == (name == "coco")


@pytest.mark.parametrize("name", RECOGNITION_TABLE)
def test_recognition_is_the_papers(name):
    config, trained = load(name, "recognition"), load(name)
    found = (
        config.train.num_steps,
        config.train.batch_size,
        config.data.num_frames,
        config.model.num_classes,
    )
    assert found == RECOGNITION_TABLE[name]
    assert config.companions.to_dict() == {"slot_model": {"source": f"runs/{trained.name}"}}
    assert config.weights.to_dict() == {}
    assert (config.optimizer.learning_rate.peak, config.optimizer.clip_norm) == (1e-3, 0.0)
    for key in ("warmup", "end_ratio"):
        assert config.optimizer.learning_rate[key] == trained.optimizer.learning_rate[key]
    assert config.losses.to_dict() == {"category": {"weight": 1.0}, "box": {"weight": 1.0}}
    assert config.model.dropout_rate == 0.1
    assert not config.train.match_paper and not config.eval.match_paper
    assert {k: v for k, v in config.data.items() if k not in ("categories", "max_objects")} == (
        trained.data.to_dict()
    )


def test_smoke_of_recognition_has_an_untrained_companion():
    smoke = load("coco", "recognition", "smoke")
    companion = smoke.companions.slot_model
    assert companion.source == "" and companion.title == "SmoothSA"
    assert companion.model == load("coco", "smoke").model
    assert smoke.train.num_steps == 6


def test_sprites_are_small():
    config = load("sprites")
    assert config.model.decoder.name == "mlp_mixture" and config.model.slot_size == 48
    assert config.model.initializer.detach.at == 1.0 and config.model.initializer.straight_through
    assert config.losses.distillation.weight == 0.1
    assert config.losses.slot_contrast.to_dict() == {"weight": 0.02, "temperature": 0.1}
    assert config.model.initializer.cold.to_dict() == {"name": "boxes", "log_std": -4.0}
    gaussian = load("sprites", "gaussian").model.initializer
    assert gaussian.cold.to_dict() == {"name": "gaussian", "log_std": -1.0}
    image = load("sprites", "image")
    assert image.model.transition.name == "none" and "slot_contrast" not in image.losses
    assert load("sprites", "full").train.num_steps == 12_000
    smoke = load("sprites", "smoke")
    assert smoke.model == config.model  # small enough as it is
    assert (smoke.train.num_steps, smoke.log.every, smoke.checkpoint.every) == (20, 5, 10)


@pytest.mark.slow
def test_sprites_keep_their_length_and_batch():
    """Also where a version has published ones."""
    for words in combinations_of("sprites"):
        if {"smoke", "tokenizer", "dynamics", "answers"} & set(words) or _are_apart(words):
            continue
        try:
            config = load("sprites", *words)
        except UserError:
            continue
        steps = 12_000 if "full" in words else 7_000
        if {"token", "noise", "codes"} & {*config.losses}:  # with a tokenizer, steps cost more
            steps = 2_500
        assert (config.train.num_steps, config.train.batch_size) == (steps, 16), words
        assert config.checkpoint.every == 1000


# ---------------------------------------------------------------------------------- the table


def rows(head: str = "| data set | ") -> list[dict[str, str]]:
    lines = (CONFIGS / "README.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    head, _, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table)
    return [dict(zip(head, cells, strict=True)) for cells in body]


def test_every_table_has_a_head():
    """A blank line inside a table would hide the rows behind it."""
    lines = (CONFIGS / "README.md").read_text().splitlines()
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        if line.startswith("|") and not before.startswith("|"):
            assert after.startswith("| ---"), line


def test_the_gallery_has_every_data_set_with_every_system():
    expected = {(name, "smoothsa") for name in DATA_SETS}
    expected |= {(name, "recognition") for name in RECOGNITION_TABLE}
    found = [(row["data set"], row["system"]) for row in rows()]
    assert len(found) == len(set(found)) and set(found) == expected
    assert {system for _, system in found} == {"smoothsa", "recognition"}
    assert {"recognition", "dynamics", "answers", *WORDS} == set(SYSTEMS)
    text = (CONFIGS / "README.md").read_text()
    for word in set().union(*map(words_of, DATA_SETS)).difference(*VARIANTS.values()):
        assert f"| `{word}` |" in text


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['data set']}-{row['system']}")
def test_a_row_of_the_gallery_is_what_the_files_say(row):
    name, system = row["data set"], row["system"]
    config = load(name, *(() if system == "smoothsa" else (system,)))
    slots = load(name).model.num_slots
    assert row["slots"] == str(slots) and row["steps"] == f"{config.train.num_steps:,}"
    assert row["slots start from"] == ("boxes" if config.data.boxes else "Gaussian")
    variants = [word for word, kind in words_of(name).items() if kind == "data variant"]
    assert row["words"] == ", ".join(variants if system == "smoothsa" else [])
    assert row["cost"] and row["ours"]
    # The data set's file has the published scores too.
    docstring = (CONFIGS / f"{name}.py").read_text()
    for score in re.findall(r"[\d.]+", row["published"].replace("none", "")):
        assert f" {score}" in docstring


@pytest.mark.parametrize(
    "row", rows("| data set and words | "), ids=lambda row: row["data set and words"].strip("`")
)
def test_a_published_recipe_of_the_gallery_is_what_the_files_say(row):
    data_set, _, words = row["data set and words"].strip("`").partition(":")
    config = load(data_set, *words.split(","))
    found = config.model.num_slots, config.train.num_steps, config.train.batch_size
    assert (row["slots"], row["steps"], row["batch"]) == tuple(f"{x:,}" for x in found)
    assert row["published"] and row["scores"] and re.fullmatch(r"[\d.]+ h", row["cost"])
    assert config.checkpoint.every == config.train.num_steps // 40


@pytest.mark.parametrize(
    "row", rows("| video recipe | "), ids=lambda row: row["video recipe"].strip("`")
)
def test_a_published_video_recipe_of_the_gallery_is_what_the_files_say(row):
    data_set, _, words = row["video recipe"].strip("`").partition(":")
    config = load(data_set, *words.split(","))
    assert row["slots"] == str(config.model.num_slots)
    assert row["steps"] == f"{config.train.num_steps:,}"
    assert row["batch x frames"] == f"{config.train.batch_size} x {config.data.num_frames}"
    assert float(row["peak rate"]) == pytest.approx(config.optimizer.learning_rate.peak)
    windows = re.search(r"windows of (\d+)(, rest dropped)?", row["protocol"])
    assert config.eval.windows == (int(windows[1]) if windows else None)
    if windows:
        assert config.eval.window_rest == ("drop" if windows[2] else "back")
    # The originals report scores of the objects alone.
    assert config.eval.foreground == ("original" in words and "randsfq" not in words)
    scored_at = config.eval.score_at or config.data.image_size
    if at := re.search(r"at (\d+)$", row["protocol"]):
        assert scored_at == int(at[1])
    assert row["published"] and row["scores"] and re.fullmatch(r"[\d.]+ h", row["cost"])


@pytest.mark.parametrize(
    "row", rows("| recipe of tokens | "), ids=lambda row: row["recipe of tokens"].strip("`")
)
def test_a_recipe_of_tokens_is_what_the_files_say(row):
    data_set, _, words = row["recipe of tokens"].strip("`").partition(":")
    config = load(data_set, *words.split(","))
    assert row["slots"] == str(config.model.num_slots)
    assert row["steps"] == f"{config.train.num_steps:,}"
    assert row["batch x frames"] == f"{config.train.batch_size} x {config.data.num_frames}"
    assert float(row["peak rate"]) == pytest.approx(config.optimizer.learning_rate.peak)
    assert row["masks of"] == config.eval.masks
    if "tokenizer" in config.companions:
        first = load(data_set, *words.split(","), "tokenizer")
        assert config.companions.tokenizer.source == f"runs/{first.name}"
        assert first.train.num_steps == 30_000
        assert first.train.batch_size == (16 if config.data.num_frames > 1 else 64)
    # The system's file has the published scores too.
    docstring = (CONFIGS / "systems" / f"{words.split(',')[0]}.py").read_text()
    for score in re.findall(r"[\d.]+", row["published"].replace("none", "")):
        assert f"{score}" in docstring
    assert row["scores"]
    assert all(re.fullmatch(r"[\d.]+ h", row[x]) for x in ("cost", "cost of stage one"))


@pytest.mark.parametrize(
    "row", rows("| recipe of scenes | "), ids=lambda row: row["recipe of scenes"].strip("`")
)
def test_a_recipe_of_scenes_is_what_the_files_say(row):
    data_set, _, words = row["recipe of scenes"].strip("`").partition(":")
    config = load(data_set, *words.split(","))
    target, views = config.model.target, config.data.num_frames
    others = "others" == target.targets
    found = f"{target.input_views} / " + (
        f"the other {views - target.input_views}" if others else f"all {views}"
    )
    assert row["views in / target"] == found and row["rays"] == f"{target.rays:,}"
    assert row["slots"] == ("none" if "srt" in words.split(",") else str(config.model.num_slots))
    assert row["steps"] == f"{config.train.num_steps:,}"
    assert row["batch"] == str(config.train.batch_size)
    assert row["published"] and row["scores"] and re.fullmatch(r"\d+ h", row["cost"])


@pytest.mark.parametrize(
    "row", rows("| recipe of dynamics | "), ids=lambda row: row["recipe of dynamics"].strip("`")
)
def test_a_recipe_of_dynamics_is_what_the_files_say(row):
    data_set, _, words = row["recipe of dynamics"].strip("`").partition(":")
    config = load(data_set, *words.split(","))
    earlier = load(data_set, *(word for word in words.split(",") if word != "dynamics"))
    assert config.companions.to_dict() == {"slot_model": {"source": f"runs/{earlier.name}"}}
    assert row["slots"] == str(earlier.model.num_slots)
    assert row["steps"] == f"{config.train.num_steps:,}"
    assert row["batch"] == str(config.train.batch_size)
    observed, frames = config.eval.observed, config.eval.windows or config.eval.num_frames
    assert row["observed + predicted"] == f"{observed} + {frames - observed}"
    decodes = earlier.model.decoder.name in ("mlp_mixture", "spatial_broadcast")
    assert ("decoded" in config.losses) == (decodes and data_set != "sprites")
    assert config.data.slots == "auto" and row["scores"] and row["cost"]


@pytest.mark.parametrize(
    "row", rows("| recipe of answers | "), ids=lambda row: row["recipe of answers"].strip("`")
)
def test_a_recipe_of_answers_is_what_the_files_say(row):
    data_set, _, words = row["recipe of answers"].strip("`").partition(":")
    config = load(data_set, *words.split(","))
    earlier = load(data_set, *(word for word in words.split(",") if word != "answers"))
    companions = {"slot_model": {"source": f"runs/{earlier.name}"}, "rollouter": {"source": None}}
    assert config.companions.to_dict() == companions
    assert row["slots"] == str(earlier.model.num_slots)
    assert row["steps"] == f"{config.train.num_steps:,}"
    assert row["batch"] == str(config.train.batch_size)
    number = f"{config.data.num_samples:,}" if "num_samples" in config.data else "all"
    assert row["questions"] == f"{number} of {len(config.model.kinds)} kinds"
    assert config.data.slots == "auto" and row["scores"] and row["cost"]


@pytest.mark.parametrize("task", ["dynamics", "answers"])
def test_what_is_trained_on_slots_has_no_rates_of_the_slot_model(task):
    words = "steve", "slotformer"
    assert load("physion", *words).optimizer.rates
    assert not load("physion", *words, task).optimizer.rates


def test_steve_of_slotformer_is_its_programs():
    config = load("physion", "steve", "slotformer")
    assert (config.model.num_slots, config.model.slot_size, config.data.image_size) == (6, 192, 128)
    assert (config.train.num_steps, config.train.batch_size, config.data.num_frames) == (
        460_000,
        48,
        6,
    )
    peaks = (config.optimizer, config.optimizer.rates.decoder)
    assert [x.learning_rate.peak for x in peaks] == [1e-4, 3e-4]
    assert (config.optimizer.clip_norm, config.optimizer.clip_by) == (0.05, "norm")
    first = load("physion", "steve", "slotformer", "tokenizer")
    assert config.companions.tokenizer.source == f"runs/{first.name}"
    tokens = config.model.target
    assert tokens.vocabulary == tokens.width == first.model.tokenizer.vocabulary == 4096


@pytest.mark.slow
@pytest.mark.parametrize("data_set", ["movi_a", "sprites"])
def test_dynamics_run_on_every_system(data_set):
    """Their losses fit what the decoder of the earlier run makes of slots."""
    seen = []
    for words in combinations_of(data_set):
        if "dynamics" not in words or {"smoke", "smooth", "tokenizer"} & {*words}:
            continue
        try:
            config = load(data_set, *words)
        except UserError:
            continue  # tested above
        model = load(data_set, *(word for word in words if word != "dynamics")).model
        if (kind := (model.decoder, model.target)) in seen:
            continue
        seen.append(kind)
        config = config.copy_and_resolve_references().unlock()
        config.companions.slot_model.model = model
        build_task(config).build(shapes_only=True)
    assert len(seen) >= 6


def test_configs_are_loaded_from_any_folder(tmp_path):
    """As from a wheel: the folder lies elsewhere, and the working directory is another one."""
    copied = tmp_path / "recipes" / "configs"
    shutil.copytree(CONFIGS, copied)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.py").write_text(
        "from configs import base\n"
        "DATA = base.prepared('own', num_slots=4, num_steps=80, batch_size=2)\n"
        "def get_config(words=''):\n"
        "    return base.compose(DATA, words)\n"
    )
    program = (
        "from smoothsa_jax.config.load import load_config\n"
        f"print(load_config({str(copied / 'coco.py')!r} + ':recognition,smoke').name)\n"
        "print(load_config('own.py:smoke').name)\n"
        "import sys; print('jax' in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path / "mine",
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["coco_recognition_smoke", "own_smoke", "False"]
