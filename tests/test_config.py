"""Configs: command line, words, the closed contract, comparison, JSON."""

import sys
from pathlib import Path

import pytest

from smoothsa_jax.config.load import config_from_command_line, load_config, split_command_line
from smoothsa_jax.config.schema import check, check_keys
from smoothsa_jax.config.values import differences, flatten, from_json, to_json
from smoothsa_jax.errors import UserError
from smoothsa_jax.parts import is_schedule
from smoothsa_jax.tasks.checks import check as check_all

ROOT = Path(__file__).parent.parent
SPRITES = str(ROOT / "configs" / "sprites.py")
COCO = str(ROOT / "configs" / "coco.py")


def read(*arguments: str):
    mine, others = split_command_line(arguments)
    return config_from_command_line(mine, SPRITES), others


def error_of(work, *arguments) -> str:
    """The one line of a UserError."""
    with pytest.raises(UserError) as error:
        work(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# -------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--config.train.num_steps=7"], "train.num_steps", 7),
        (["--config.train.num_steps", "7"], "train.num_steps", 7),
        (["--config.train.num_steps=7", "--config.train.num_steps=8"], "train.num_steps", 8),
        (["--config.optimizer.clip_norm=2"], "optimizer.clip_norm", 2.0),
        (["--config.optimizer.learning_rate.peak=1"], "optimizer.learning_rate.peak", 1.0),
        (["--config.model.initializer.cold.log_std=0"], "model.initializer.cold.log_std", 0.0),
        (["--config.losses.distillation.weight=2"], "losses.distillation.weight", 2.0),
        (["--config.weights.encoder.seed=2"], "weights.encoder.seed", 2),
        (["--config.eval.seeds=(0, 1, 2)"], "eval.seeds", (0, 1, 2)),
        (["--config.eval.seeds=3"], "eval.seeds", (3,)),
        (["--config.eval.num_samples=None"], "eval.num_samples", None),
        (["--config.eval.num_samples=7"], "eval.num_samples", 7),
        (["--config.checkpoint.best_metric=none"], "checkpoint.best_metric", None),
        (["--config.checkpoint.best_metric=fg_ari"], "checkpoint.best_metric", "fg_ari"),
        (["--config.eval.baselines=false"], "eval.baselines", False),
        (["--noconfig.eval.baselines"], "eval.baselines", False),
        ([f"--config={SPRITES}:image"], "data.num_frames", 1),
        ([f"--config={SPRITES}:image", "--config.seed=5"], "seed", 5),
        ([f"--config={COCO}", "--config.eval.num_samples=5"], "eval.num_samples", 5),
    ],
)
def test_overrides_reach_the_config(arguments, key, value):
    config, others = read("--mode=train", *arguments)
    assert flatten(config)[key] == value
    assert type(flatten(config)[key]) is type(value)
    assert others == ["--mode=train"]
    untouched = read(*[a for a in arguments if a.startswith("--config=")])[0]
    assert [key] == [k for k, v in flatten(config).items() if v != flatten(untouched)[k]] or (
        flatten(untouched)[key] == value
    )


BAD = [
    ("--config=configs/sprite.py", "config file 'configs/sprite.py' does not exist"),
    (
        f"--config={SPRITES}:imag",
        "no word 'imag' fits here; it takes answers, ar, b16, boqsa, dfz, dias, dinosaur, dinov2,",
    ),
    (f"--config={SPRITES}:imag", "did you mean 'image'?"),
    ("--config", "without a value"),
    ("--config.train.num_step=3", "no key 'train.num_step'; the nearest is 'train.num_steps'"),
    ("--config.num_slots=3", "the nearest is 'model.num_slots'"),
    ("--config.train=3", "--config.train is a group of settings"),
    ("--config.companions=3", "--config.companions is a group of settings, not a setting; it is"),
    (
        "--config.optimizer.learning_rate=1e-3",
        "is a schedule, not a number; set one of its keys, such as "
        "--config.optimizer.learning_rate.peak",
    ),
    ("--config.model.initializer.detach=1", "such as --config.model.initializer.detach.begin"),
    ("--config.train.num_steps=many", "expected int, as in 7000"),
    ("--config.train.num_steps=1.5", "expected int, as in 7000"),
    ("--config.optimizer.clip_norm=fast", "expected float, as in 1.0"),
    ("--config.eval.baselines=maybe", "expected bool, as in True"),
    ("--config.train.num_steps=0", "train.num_steps is 0; expected a whole number of at least 1"),
    ("--config.train.num_steps=-4", "train.num_steps is -4"),
    ("--config.train.batch_size=0", "train.batch_size is 0"),
    ("--config.train.batch_size=-2", "train.batch_size is -2"),
    ("--config.log.every=0", "log.every is 0"),
    ("--config.data.num_frames=0", "data.num_frames is 0"),
    ("--config.eval.num_samples=0", "eval.num_samples is 0"),
    ("--config.eval.num_samples=all", "eval.num_samples is 'all'"),
    ("--config.eval.seeds=(0, -1)", "eval.seeds is (0, -1)"),
    (f"--config.eval.seeds=({2**63},)", "expected whole numbers from 0 to"),
    (f"--config.seed={2**63}", f"seed is {2**63}; expected at most"),
    ("--config.eval.split=tset", "did you mean 'test'?"),
    ("--config.eval.masks=decoders", "eval.masks is 'decoders'; expected one of aggregator"),
    ("--config.mesh.data=4", "mesh.data asks for 4 devices, 2 found"),
    ("--config.mesh.fsdp=3", "mesh.fsdp is 3, which does not divide the 2 devices found"),
    ("--config.train.batch_size=3", "train.batch_size is 3, which 2 devices do not divide"),
    ("--config.train.accumulate=0", "train.accumulate is 0; expected a whole number"),
    ("--config.train.accumulate=3", "train.accumulate=3 does not divide into equal parts on each"),
    ("--config.dtype=float16", "dtype is 'float16'; expected one of bfloat16, float32"),
    ("--config.name=a/b", "name is 'a/b'"),
]
# Refused by the constructors, before anything is built.
BAD_PARTS = [
    ("--config.model.num_slots=0", "model.num_slots is 0"),
    ("--config.model.slot_size=-1", "model.slot_size is -1"),
    ("--config.eval.num_frames=-1", "eval.num_frames is -1"),  # sprites have no whole videos
    ("--config.data.image_size=30", "does not divide into patches of 4"),
    ("--config.model.num_slots=3", "more than the 3 slots that start from boxes"),
    ("--config.data.max_objects=5", "and one box for the background, more than the 5 slots"),
    (
        "--config.data.boxes=False",
        "data.boxes is False, but model.initializer.cold.name is 'boxes'",
    ),
    ("--config.model.decoder.name=mlp_mixtur", "did you mean 'mlp_mixture'?"),
    ("--config.optimizer.learning_rate.peak=nan", "optimizer.learning_rate.peak is nan"),
    ("--config.optimizer.learning_rate.peak=0", "expected a number above 0"),
    ("--config.optimizer.learning_rate.warmup=1", "expected a number of at least 0 and below 1"),
    ("--config.optimizer.learning_rate.warmup=0.99999", "which leaves no step of 7000"),
    (
        "--config.optimizer.learning_rate.schedule=step",
        "learning_rate.end_ratio is not a setting of optimizer.learning_rate.schedule='step'",
    ),
    ("--config.optimizer.learning_rate.schedule=cosin", "did you mean 'cosine'?"),
    ("--config.eval.masks=foo", "eval.masks is 'foo'; expected one of aggregator, decoder"),
    ("--config.checkpoint.best_mode=max", "checkpoint.best_mode is 'max' for loss"),
    ("--config.checkpoint.best_metric=fgari", "did you mean 'fg_ari'?"),
    ("--config.checkpoint.best_metric=losss", "did you mean 'loss'?"),
    ("--config.losses.distillation.weight=-1", "losses.distillation.weight is -1.0"),
]


@pytest.mark.parametrize(("argument", "expected"), BAD, ids=[argument for argument, _ in BAD])
def test_a_bad_config_is_one_clear_line(argument, expected):
    def work():
        config, _ = read(argument)
        check(config, 2)

    assert expected in error_of(work)


@pytest.mark.parametrize(("argument", "expected"), BAD_PARTS, ids=[x for x, _ in BAD_PARTS])
def test_what_parts_data_and_schedules_refuse_is_one_clear_line(argument, expected):
    assert expected in error_of(check_all, read(argument)[0])


def test_a_config_file_that_fails_is_named_with_its_reason(tmp_path):
    for text, expected in [
        ("def get_config(:", "SyntaxError"),
        ("def get_config(words=''):\n    raise KeyError('lost')", "KeyError: 'lost'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def get_config(words=''):\n    return {}", "returned dict"),
        ("x = 1", "has no get_config"),
    ]:
        file = tmp_path / "odd.py"
        file.write_text(text)
        message = error_of(load_config, str(file))
        assert "odd.py" in message and expected in message


# --------------------------------------------------------------------------------------- words


def test_words_come_in_any_order_and_name_the_run():
    one = load_config(f"{COCO}:recognition,smoke")
    assert (
        one
        == load_config(f"{COCO}:smoke,recognition")
        == load_config(f"{COCO}: smoke, recognition")
    )
    assert one.name == "coco_recognition_smoke"
    assert load_config(f"{SPRITES}:smoke,gaussian").name == "sprites_gaussian_smoke"
    assert load_config(f"{COCO}:smoothsa") == load_config(COCO)  # the default, given by name


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (f"{SPRITES}:image,gaussian", "'image' and 'gaussian' are both of the kind 'data variant'"),
        (f"{SPRITES}:smoke,smoke", "the word 'smoke' is given 2 times"),
        (f"{SPRITES}:recognition", "no word 'recognition' fits here"),  # no categories
        (f"{COCO}:recogniton", "did you mean 'recognition'?"),
        (f"{COCO}:gaussian", "smoke, smooth, smoothsa, spot, student"),
        (f"{COCO}:smoke,", "no word '' fits here"),
        (f"{COCO}:smooth", "SmoothSA already has what 'smooth' adds"),
        (f"{COCO}:smooth,smoothsa", "SmoothSA already has what 'smooth' adds"),
    ],
)
def test_words_that_do_not_fit_are_one_clear_line(spec, expected):
    message = error_of(load_config, spec)
    assert expected in message and message.startswith(f"config {spec}: ")


@pytest.mark.parametrize(
    ("words", "in_training", "at_evaluation"),
    [("", 5, 8), (",boqsa", 5, None), (",dias", 8, None), (",dias,genera1z", 5, 8)],
)
def test_what_prunes_in_training_has_its_slots_there(words, in_training, at_evaluation):
    config = load_config(f"configs/sprites.py:image{words}")
    assert config.model.num_slots == in_training and config.eval.num_slots == at_evaluation


def test_smoke_comes_last():
    smoke = load_config(f"{COCO}:recognition,smoke")
    assert (smoke.train.num_steps, smoke.checkpoint.every, smoke.log.every) == (6, 3, 2)
    full = load_config(f"{SPRITES}:full,smoke")
    assert (full.train.num_steps, full.eval.num_frames, full.eval.num_samples) == (20, 24, 4)


def test_an_own_config_file_takes_any_words(tmp_path):
    file = tmp_path / "own.py"
    body = (
        "from configs import base, coco\n"
        "def get_config(words=''):\n"
        "    config = coco.get_config()\n"
        "    config.name = f'own_{words}'\n"
        "    return config\n"
    )
    file.write_text(body)
    assert load_config(f"{file}:a,b").name == "own_a,b"
    file.write_text(body + "VARIANTS = ('', 'good')\n")
    assert load_config(str(file)).name == "own_" and load_config(f"{file}:good").name == "own_good"
    assert "no word 'god' fits here; it takes good" in error_of(load_config, f"{file}:god")


@pytest.fixture
def plain_system(tmp_path, monkeypatch):
    """A system in a file outside the checkout, with its own version, task and part."""
    from configs import base

    folder = tmp_path / "configs" / "systems"
    folder.mkdir(parents=True)
    (folder / "plain.py").write_text(
        "TITLE, KIND = 'Plain', 'system'\n"
        "def apply(config, data):\n"
        "    name = 'boxes' if data.boxes else 'gaussian'\n"
        "    config.model.update(slot_size=256, projection={'name': 'mlp'},\n"
        "        initializer={'name': name, 'log_std': 0.0},\n"
        "        aggregator={'name': 'inverted', 'first': 5, 'later': 5},\n"
        "        transition={'name': 'randsfq', 'num_heads': 4, 'history': 2},\n"
        "        decoder={'name': 'random_ar', 'num_layers': 4, 'num_heads': 4})\n"
        "    config.losses.reconstruction = {'weight': 1.0}\n"
        "def original(config, data):\n"
        "    config.model.aggregator.first = 7\n"
        "def student(config, data, source):\n"
        "    config.companions = {'teacher': {'source': source}}\n"
        "def faded(config, data):\n"
        "    fading = {'schedule': 'cosine', 'begin': 2, 'end': 8}\n"
        "    config.losses.slot_contrast = {'weight': fading, 'temperature': 0.1}\n"
        "WORDS = {'original': ('version', original), 'student': ('task', student),\n"
        "    'faded': ('system variant', faded)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    base.systems.cache_clear()
    yield
    base.systems.cache_clear()
    sys.modules.pop("configs.systems.plain")


def test_a_system_is_a_file(plain_system):
    config = load_config(f"{SPRITES}:plain")
    assert config.name == "sprites_plain" and config.title == "Plain"
    # The small block gives every part its settings, by name.
    assert config.model.slot_size == 48 and config.model.initializer.log_std == -4.0
    assert config.model.decoder.name == "mlp_mixture" and config.model.transition.history == 6
    assert list(config.losses) == ["reconstruction"]
    check(config)
    smooth = load_config(f"{SPRITES}:smooth,plain,smoke")
    assert smooth.name == "sprites_plain_smooth_smoke" and smooth.title == "Plain, smooth"
    assert smooth.model.initializer.name == "warmed" and smooth.losses.distillation.weight == 0.1
    assert smooth.model.initializer.cold.name == "boxes"
    assert (smooth.model.aggregator.first, smooth.model.aggregator.later) == (3, 1)
    check(smooth)
    assert load_config(f"{SPRITES}:original,plain").model.aggregator.first == 7
    student = load_config(f"{SPRITES}:image,student,plain,original")
    assert student.name == "sprites_image_plain_original_student"
    assert student.companions.teacher.source == "runs/sprites_image_plain_original"
    # A small data set scales a scheduled weight, so that the larger end becomes the small weight.
    faded = load_config(f"{SPRITES}:faded,plain")
    small = load_config(SPRITES).losses.slot_contrast.weight
    scaled = {"schedule": "cosine", "begin": small / 4, "end": small}
    assert faded.losses.slot_contrast.weight.to_dict() == scaled
    clash = error_of(load_config, f"{SPRITES}:plain,smoothsa")
    assert "'plain' and 'smoothsa' are both of the kind 'system'" in clash
    missing = error_of(load_config, f"{SPRITES}:student")
    assert "'student' is a word of plain, spot, not of smoothsa; write plain,student" in missing


# ------------------------------------------------------------------------- the closed contract

EDITS = [
    ("optimizer.weight_decay = 0.1", "no key 'optimizer.weight_decay'; the nearest is 'optimizer."),
    ("train.num_step = 10", "no key 'train.num_step'; the nearest is 'train.num_steps'"),
    ("num_steps = 10", "no key 'num_steps'; the nearest is 'train.num_steps'"),
    ("seeed = 10", "no key 'seeed'; the nearest is 'seed'"),
    ("loss = {'reconstruction': 1.0}", "no key 'loss'; the nearest is 'losses'"),
    ("seed = {'a': 1}", "no key 'seed.a'; the nearest is 'seed'"),
    ("train = 3", "train is 3; expected a group of settings"),
    ("model = 3", "model is 3; expected a group of settings"),
    ("optimizer.learning_rate = {'peak': 1.0}", "optimizer.learning_rate has no key 'schedule'"),
    ("model.decoder = {'num_layers': 3}", "the config has no model.decoder.name"),
    ("companions.teacher = {'sorce': 'x'}", "the nearest is 'companions.teacher.source'"),
    ("companions.teacher = {}", "companions.teacher has no key; expected either source"),
    ("companions.teacher = {'average_of': 'model'}", "needs average_of and decay together"),
    ("companions.teacher = {'source': 'a', 'average_of': 'model', 'decay': 0.9}", "either source"),
    (
        "companions.teacher = {'source': ''}",
        "companions.teacher.source is ''; expected the workdir",
    ),
    (
        "companions.teacher = {'average_of': 'model', 'decay': 1.0}",
        "decay is 1.0; expected a number",
    ),
    (
        "companions.teacher = {'average_of': 'other', 'decay': 0.9}",
        "companions.teacher.average_of is 'other'; expected 'model'",
    ),
    (
        "companions.teacher = {'average_of': 'model', 'decay': 0.9, 'model': {}}",
        "companions.teacher.model does not go with average_of",
    ),
    ("weights.encoder.frozn = ('*',)", "the nearest is 'weights.encoder.frozen'"),
    ("weights.start = {'source': 'x'}", "the config has no weights.start.into"),
    ("weights.encoder.frozen = '*'", "weights.encoder.frozen is '*'; expected a tuple of texts"),
    ("train.match_paper = 1", "train.match_paper is 1; expected True or False"),
    ("train.num_steps = '10'", "train.num_steps is '10'; expected a whole number"),
    ("eval.windows = 6", "eval.windows is 6, but eval.num_frames is"),
    ("eval.windows = 0", "eval.windows is 0; expected a whole number of at least 1"),
    ("eval.window_rest = 'move'", "eval.window_rest is 'move'; expected one of back, drop, keep"),
    ("eval.score_at = (224, 224)", "eval.score_at is (224, 224); expected a whole number"),
    ("eval.per_frame = 1", "eval.per_frame is 1; expected True or False"),
]
# Refused by the constructors, before anything is built.
EDITS_OF_PARTS = [
    ("optimizer.learning_rate.peek = 1.0", "did you mean 'peak'?"),
    (
        "optimizer.learning_rate = {'schedule': 'step', 'begin': 1.0}",
        "needs optimizer.learning_rate.end",
    ),
    ("model.initializer.detach.until = 1", "detach.until is not a setting of"),
    ("losses.reconstruction = 1.0", "losses.reconstruction is 1.0; expected its settings"),
    ("losses.reconstruction = {}", "losses.reconstruction has no weight"),
    (
        "losses.reconstruction.weight = {'schedule': 'cosine', 'begin': -1.0, 'end': 0}",
        "begin is -1",
    ),
    ("data.sead = 1", "data.sead is not an option of 'sprites'"),
    ("data.sead = 1", "did you mean 'seed'?"),
    ("data.split = 'test'", "data.split is not a setting: training reads 'train'"),
    ("data.windows = 9", "data.windows is not a setting: eval.windows cuts the videos"),
    ("data.num_slots = 9", "data.num_slots is not a setting: it is that of the model"),
    ("data.name = 'sprtes'", "did you mean 'sprites'?"),
    ("data = {'name': 'prepared', 'image_size': 16}", "data.name='prepared' needs data.folder"),
    (
        "losses.reconstruction.weight = {'begin': 1.0}",
        "losses.reconstruction.weight is {'begin': 1.0}; expected a number or a schedule",
    ),
]


def edited(tmp_path, edit: str, check=check):
    """The default config, changed by a line of a config file, loaded and checked."""
    file = tmp_path / "edited.py"
    file.write_text(
        "from configs import sprites\n"
        "from ml_collections import ConfigDict\n"
        "def get_config(words=''):\n"
        "    config = sprites.get_config(words)\n"
        "    with config.ignore_type():\n"
        f"        {edit}\n"
        "    return config\n"
    )
    config = load_config(str(file))
    check(config)
    return config


@pytest.mark.parametrize(("edit", "expected"), EDITS, ids=[edit for edit, _ in EDITS])
def test_a_config_file_is_closed(tmp_path, edit, expected):
    assert expected in error_of(edited, tmp_path, f"config.{edit}")


EDIT_IDS = [f"{edit}: {expected}" for edit, expected in EDITS_OF_PARTS]


@pytest.mark.parametrize(("edit", "expected"), EDITS_OF_PARTS, ids=EDIT_IDS)
def test_a_config_file_is_closed_inside_parts_data_and_schedules(tmp_path, edit, expected):
    assert expected in error_of(edited, tmp_path, f"config.{edit}", check_all)


@pytest.mark.parametrize("key", ["train.scan_unroll", "log.every", "title", "losses", "data"])
def test_a_config_without_a_key_is_refused(tmp_path, key):
    group, _, name = key.rpartition(".")
    edit = f"del config{'.' if group else ''}{group}[{name!r}]"
    assert f"the config has no {key}; add it" in error_of(edited, tmp_path, edit)


@pytest.mark.parametrize(
    "edit",
    [
        "config.optimizer.learning_rate = 1e-3",
        "config.losses.distillation.weight = {'schedule': 'cosine', 'begin': 0.0, 'end': 1.0}",
        "config.model.initializer.detach = 0.0",
        "config.checkpoint.best_metric = None",
        "config.companions.teacher = {'average_of': 'model', 'decay': 0.996}",
        "config.weights.start = {'into': '', 'source': 'runs/a', 'without': ('initializer.*',)}",
        "config.losses.mine = {'weight': 1.0, 'other': 3}",  # its constructor checks this
    ],
)
def test_what_the_contract_allows(tmp_path, edit):
    edited(tmp_path, edit)


def test_only_masks_have_options_of_scoring_masks():
    config = load_config(f"{COCO}:recognition,smoke")
    check_all(config)
    asked = {"per_frame": True, "foreground": True, "skip_frames": 1, "count_segments": True}
    for key, value in asked.items():
        with config.unlocked():
            config.eval[key], before = value, config.eval[key]
        message = f"eval.{key} is {value}, but recognition is not scored by its masks; set --config"
        assert message in error_of(check_all, config)
        with config.unlocked():
            config.eval[key] = before


def test_a_companion_that_the_program_has_filled_is_sound():
    config = load_config(f"{COCO}:recognition")
    check(config)
    filled = config.unlock().copy_and_resolve_references()
    filled.companions.slot_model.update(title="SmoothSA", model=load_config(COCO).model)
    check(filled)
    filled.companions.slot_model.model.initializer.cold.name = "boxes"
    key = "companions.slot_model.model.initializer.cold.name"
    assert f"data.boxes is False, but {key} is 'boxes'" in error_of(check_all, filled)
    filled.companions.slot_model.model.initializer.cold.name = "gaussian"
    for setting, value, expected in [
        ("data", {"features": "x"}, "recognition is trained on pixels"),
        ("train", {"remat": "all"}, "train.remat is 'all', which is for slot models"),
    ]:
        other = filled.copy_and_resolve_references()
        other[setting].update(value)
        assert expected in error_of(check_all, other)
    config, _ = read(f"--config={COCO}:recognition", "--config.companions.slot_model.source=")
    assert "companions.slot_model.source is ''" in error_of(check, config)


def test_a_box_initializer_from_outside_is_known_by_what_it_does():
    """`my:MyBoxes` starts from boxes as `boxes` does; its name says nothing."""
    config = load_config(SPRITES).unlock()
    config.model.initializer.cold.name = "smoothsa_jax.models.initializers:Boxes"
    check_all(config)
    config.model.num_slots = 3
    assert "more than the 3 slots that start from boxes" in error_of(check_all, config)
    config.data.boxes = False
    assert "data.boxes is False, but model.initializer.cold.name" in error_of(check_all, config)


def test_schedules_are_told_from_other_groups():
    config = load_config(SPRITES)
    assert is_schedule(config.optimizer.learning_rate)
    assert is_schedule({"schedule": "cosine", "begin": 0.0, "end": 1.0})
    assert not is_schedule(0.5) and not is_schedule(config.model.encoder)


# ------------------------------------------------------------------------------ JSON, comparison


@pytest.mark.parametrize("spec", [SPRITES, f"{COCO}:recognition,smoke"])
def test_json_gives_back_the_config_with_its_tuples(spec):
    config, _ = read(
        f"--config={spec}", "--config.eval.seeds=(0, 1)", "--config.optimizer.clip_norm=1.0"
    )
    back = from_json(to_json(config))
    assert back == config and back.eval.seeds == (0, 1)
    assert type(back.optimizer.clip_norm) is float
    assert to_json(back) == to_json(config)
    check_keys(back)


def test_differences_that_matter():
    config, _ = read()
    assert config.weights.encoder.frozen == ("*",)
    same, _ = read(
        "--config.checkpoint.every=9",
        "--config.eval.seeds=(4,)",
        "--config.log.every=3",
        "--config.name=other",
        "--config.title=Other",
        "--config.mesh.data=1",
        "--config.train.num_threads=3",
    )
    assert differences(config, same) == []
    moved = from_json(to_json(config).replace('"data": {', '"data": {"folder": "elsewhere",'))
    assert differences(config, moved) == []  # its contents are compared instead
    for key in (
        "seed",
        "train.num_steps",
        "train.batch_size",
        "data.num_frames",
        "losses.distillation.weight",
        "optimizer.learning_rate.peak",
        "weights.encoder.seed",
    ):
        other, _ = read(f"--config.{key}=7")
        lines = differences(config, other)
        assert len(lines) == 1 and lines[0].startswith(f"{key} (found ")
    lines = differences(config, load_config(f"{SPRITES}:image"))
    assert "model.transition.history (found 6, asked nothing)" in lines


def test_differences_between_companions():
    asked = load_config(f"{COCO}:recognition")
    filled = asked.unlock().copy_and_resolve_references()
    filled.companions.slot_model.update(
        source="runs/moved", title="SmoothSA", model=load_config(COCO).model
    )
    assert differences(filled, asked) == differences(asked, filled) == []
    other = filled.copy_and_resolve_references()
    other.companions.slot_model.model.num_slots = 8
    assert differences(filled, other) == [
        "companions.slot_model.model.num_slots (found 7, asked 8)"
    ]
    assert differences(filled, load_config(COCO))  # not the same run at all
