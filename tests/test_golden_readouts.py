"""SlotFormer's readouts against the numbers of its program: answers, gradients, training, files.

GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes.
"""

import functools
import json
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import FOLDER, FORWARD, LOSS, compare_gradients, count, golden, write_report
from ml_collections import ConfigDict
from tiny import tiny_config

from smoothsa_jax.errors import UserError
from smoothsa_jax.interop.slotformer import ALOE, PHYRE, PHYSION
from smoothsa_jax.losses.answers import ANSWER_LOGITS, CHOICE_LOGITS
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.build import ReadoutSizes, build_readout_model
from smoothsa_jax.models.parameters import split
from smoothsa_jax.models.readouts import REDUCTIONS
from smoothsa_jax.tasks.answers import OTHER_CLIP
from smoothsa_jax.tasks.task import run_task
from smoothsa_jax.training.step import build_training

# What the files do not tell.
HEADS = {"aloe": 2, "phyre": 4}
QUESTION_LENGTH = {"golden": 5, "published": 20}
WARMUP, PEAK, START_RATIO = 2, 2e-3, 0.01
FINAL = 2e-5  # of trained arrays, relative to each one's largest value
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
PHYRE_FRAMES = (0, 3)
FILES = ("readout_physion", "readout_phyre", "model_aloe", "trajectory_aloe")


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    write_report()


def is_null(name: str) -> bool:
    """Whether a part of a gradient is zero in exact arithmetic: the keys of attention's bias."""
    return name.endswith("in_bias")


def loaded(program, recorded: Mapping[str, np.ndarray], settings: dict, sizes: ReadoutSizes):
    """A readout's definition and arrays."""
    config = ConfigDict({"readout": settings})
    definition, expected, _ = split(
        nnx.eval_shape(lambda: build_readout_model(config, sizes, {}, 0))
    )
    arrays = program.to_ours(recorded, expected)
    assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}
    return definition, {k: jnp.asarray(x) for k, x in arrays.items()}


def binary_loss(logits, labels):
    return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()


def none(slots) -> jnp.ndarray:
    return jnp.zeros((len(slots), 0), jnp.int32)


def of_physion(recorded: Mapping[str, np.ndarray], reduction: str, frames: int = 1):
    hidden, double = recorded["linear1.weight"].shape
    sizes = ReadoutSizes(int(recorded["comb_idx"].max()) + 1, double // 2, frames, 0, 2)
    settings = {"name": "pairs", "hidden_size": hidden, "reduction": reduction}
    return loaded(PHYSION, recorded, settings, sizes)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_physion(reduction):
    others = tuple(x for x in REDUCTIONS if x != reduction)
    with golden("readout_physion", parts=("inp/",)) as file:
        recorded, slots = file.group("param/"), file["inp/slots"]
        labels = file["inp/label"]
        definition, arrays = of_physion(recorded, reduction, slots.shape[1])

        @functools.partial(jax.value_and_grad, has_aux=True)
        def total(arrays):
            logits = definition.merge(arrays).readout(slots, None, none(slots))[ANSWER_LOGITS]
            return binary_loss(logits, labels), logits

        (loss, logits), gradients = jax.jit(total)(arrays)
        file.compare(f"out/logits_{reduction}", logits[:, 1], FORWARD)
        file.compare(f"loss/{reduction}", loss, LOSS)
        yes = np.asarray(jax.nn.softmax(logits))[:, 1]
        right = [np.mean((yes > threshold) == labels) for threshold in THRESHOLDS]
        file.compare(f"out/accuracy_{reduction}", right, FORWARD)
        ending = f"_{reduction}"
        theirs = {
            k.removesuffix(ending): x for k, x in file.group("grad/").items() if k.endswith(ending)
        }
        compare_gradients(file, gradients, PHYSION.to_ours(theirs, arrays))
        left = [k for k in file.arrays if k not in file.used and not k.endswith(others)]
        assert not left


def of_phyre(recorded: Mapping[str, np.ndarray], frames: int):
    width, slot_size = recorded["in_proj.weight"].shape
    settings = {
        "name": "frames_transformer",
        "frames": PHYRE_FRAMES,
        "width": width,
        "num_layers": count(recorded, r"layers\.(\d+)\."),
        "num_heads": HEADS["phyre"],
        "mlp_size": recorded["transformer_encoder.layers.0.linear1.weight"].shape[0],
        "dropout_rate": 0.0,
    }
    return loaded(PHYRE, recorded, settings, ReadoutSizes(1, slot_size, frames, 0, 2))


@pytest.mark.slow
def test_phyre():
    with golden("readout_phyre") as file:
        slots, labels = file["inp/slots"], file["inp/label"]
        definition, arrays = of_phyre(file.group("param/"), slots.shape[1])

        @functools.partial(jax.value_and_grad, has_aux=True)
        def total(arrays):
            logits = definition.merge(arrays).readout(slots, None, none(slots))[ANSWER_LOGITS]
            return binary_loss(logits, labels), logits

        (loss, logits), gradients = jax.jit(total)(arrays)
        file.compare("out/logits", logits[:, 1], FORWARD)
        file.compare("loss/readout", loss, LOSS)
        theirs = PHYRE.to_ours(file.group("grad/"), arrays)
        compare_gradients(file, gradients, theirs, null=is_null)


def aloe_settings(recorded: Mapping[str, np.ndarray], slots_and_frames: int, length: int) -> dict:
    """Settings of an Aloe, from its arrays by the names in the program."""
    of = lambda key: recorded[f"transformer_model.{key}"].shape  # noqa: E731
    rows, width = of("transformer_encoder.pos_embedding")[1:]
    return {
        "name": "aloe",
        "width": width,
        "num_layers": count(recorded, r"layers\.(\d+)\."),
        "num_heads": HEADS["aloe"],
        "mlp_size": of("transformer_encoder.layers.0.linear1.weight")[0],
        "word_size": of("q_embedding.weight")[1],
        "hidden_size": of("cls_answer_mlp.0.weight")[0],
        "question_length": length,
        "choice_length": rows - 1 - slots_and_frames - length,
        "positions": "token",
        "dropout_rate": 0.0,
    }


def of_aloe(recorded: Mapping[str, np.ndarray], num_slots: int, frames: int, length: int):
    of = lambda key: recorded[f"transformer_model.{key}"].shape  # noqa: E731
    settings = aloe_settings(recorded, num_slots * frames, length)
    words, answers = of("q_embedding.weight")[0], of("cls_answer_mlp.2.weight")[0]
    sizes = ReadoutSizes(num_slots, of("vision_in_proj.weight")[1] - 2, frames, words, answers)
    return settings, sizes, loaded(ALOE, recorded, settings, sizes)


def questions_of(file, length: int) -> dict[str, np.ndarray]:
    """The batch of a file as the common interface has it: questions, then each choice by itself.

    In these made-up numbers, the choices of one question have different words in front.
    """
    flags, tokens = file["inp/mc_flag"], file["inp/mc_q_tokens"]
    for kind in ("cls", "mc"):  # padding is word 0
        mask = file[f"inp/{kind}_q_pad_mask"]
        np.testing.assert_array_equal(file[f"inp/{kind}_q_tokens"] == 0, mask)
    descriptive, with_choices = len(file["inp/cls_label"]), len(flags)
    number = descriptive + with_choices
    answers = file.arrays["out/descriptive_logits"].shape[1]
    question = np.zeros((number, length), np.int32)
    question[:descriptive] = file["inp/cls_q_tokens"][:, :length]
    assert not file["inp/cls_q_tokens"][:, length:].any()
    choices = np.zeros((number, 1, tokens.shape[1] - length), np.int32)
    labels = np.full((number, 1), -1, np.int32)
    question[descriptive:] = tokens[:, :length]
    choices[descriptive:, 0] = tokens[:, length:]
    labels[descriptive:, 0] = file["inp/mc_label"]
    answer = np.concatenate([file["inp/cls_label"], np.full(with_choices, -1)]).astype(np.int32)
    kinds = np.concatenate([np.zeros(descriptive), file["inp/mc_subtype"][flags]])
    return {
        "slots": np.concatenate([file["inp/cls_video_emb"], file["inp/mc_video_emb"][flags]]),
        "question": question,
        "choices": choices,
        "answer": answer,
        "choice_answers": labels,
        "allowed": np.ones((number, answers), bool),
        "kind": kinds.astype(np.int32),
        "clip": np.arange(number, dtype=np.int32),
    }


@pytest.mark.slow
def test_a_choice_has_words_that_a_question_lacks():
    """The sequence of a question without choices is not that of a choice, whatever the draws."""
    with golden("model_aloe", parts=()) as file:
        length = QUESTION_LENGTH["golden"]
        batch = questions_of(file, length)
        _, frames, slots, _ = batch["slots"].shape
        _, _, (definition, arrays) = of_aloe(file.group("param/"), slots, frames, length)
        readout = definition.merge(arrays).readout
        some = batch["slots"][:2], None, batch["question"][:2]
        alone = readout(*some)[ANSWER_LOGITS]
        together = readout(*some, batch["choices"][:2])[ANSWER_LOGITS]
        np.testing.assert_allclose(alone, together, atol=1e-6)


def answers_config(file) -> ConfigDict:
    """A run of the task `answers` with the sizes of `model_aloe`, and its batch."""
    length = QUESTION_LENGTH["golden"]
    batch = questions_of(file, length)
    number, frames, slots, size = batch["slots"].shape
    settings, sizes, _ = of_aloe(file.group("param/"), slots, frames, length)
    config = tiny_config(frames, decoder="mlp_mixture").copy_and_resolve_references().unlock()
    model = config.model
    model.update(num_slots=slots, slot_size=size)
    model.initializer = ConfigDict({"name": "gaussian", "log_std": 0.0})
    model.transition.num_heads = 1
    names = {
        "words": tuple(map(str, range(sizes.num_words))),
        "answers": tuple(map(str, range(sizes.num_answers))),
        "kinds": tuple(map(str, range(batch["kind"].max() + 1))),
    }
    config.task = "answers"
    config.model = ConfigDict({"readout": settings, "beside": (), **names})
    config.losses = ConfigDict({"answer": {"weight": 1.0}, "choice": {"weight": 1.0}})
    config.companions.slot_model = ConfigDict({"source": "", "title": "", "model": model})
    config.weights = ConfigDict()
    config.data.update(boxes=False, slots="", max_objects=2)
    config.train.num_steps, config.train.batch_size = 6, number
    config.optimizer.clip_norm = 0.0
    config.optimizer.learning_rate = ConfigDict(
        {
            "schedule": "warmup_cosine",
            "peak": PEAK,
            "warmup": WARMUP / 6,
            "begin_ratio": START_RATIO,
            "end_ratio": START_RATIO,
        }
    )
    config.checkpoint.update(best_metric="accuracy", best_mode="max")
    batch["slot_mask"] = np.ones((number, slots), bool)
    return config, batch


def begun(file):
    """The training of a file, its state and frozen arrays, and its batch."""
    config, batch = answers_config(file)
    training = build_training(config)
    params = ALOE.to_ours(file.group("param/"), training.state.params)
    assert params.keys() == training.state.params.keys()
    params = {k: jnp.asarray(x) for k, x in params.items()}
    frozen = {k: jnp.zeros(x.shape, x.dtype) for k, x in training.frozen.items()}
    return training, training.state.replace(params=params), frozen, batch


def draws_of(batch) -> dict:
    return {"slot_model": {}, "readout": None}


@pytest.mark.slow
def test_aloe():
    """Logits, losses and their gradient, of questions of both kinds in one batch."""
    with golden("model_aloe") as file:
        training, state, frozen, batch = begun(file)
        task, losses = training.task, build_losses(answers_config(file)[0].losses)
        given = {k: jnp.asarray(x) for k, x in batch.items()}

        @functools.partial(jax.value_and_grad, has_aux=True)
        def total(params):
            models = {
                name: found.merge({**params, **frozen})
                for name, found in training.definitions.items()
            }
            outputs = run_task(task, models, given, draws_of(batch))
            weights = {name: {"weight": 1.0} for name in losses.terms}
            terms = losses(outputs, given, weights)
            return sum(terms.values()), (terms, outputs)

        (_, (terms, outputs)), gradients = jax.jit(total)(state.params)
        descriptive = batch["answer"] >= 0
        file.compare("out/descriptive_logits", outputs[ANSWER_LOGITS][descriptive], FORWARD)
        there = batch["choice_answers"] >= 0
        file.compare("out/choice_logits", outputs[CHOICE_LOGITS][there], FORWARD)
        file.compare("loss/descriptive", terms["answer"], LOSS)
        file.compare("loss/choices", terms["choice"], LOSS)
        theirs = ALOE.to_ours(file.group("grad/"), gradients)
        # Of the choices of padding the program has none.
        compare_gradients(file, gradients, theirs, null=is_null, not_recorded=0.0)
        questions, logits = joined(file, batch, outputs)
        rows = {f"{row}.{k}": x for row in ("model", OTHER_CLIP) for k, x in logits.items()}
        tables = jax.device_get(task.evaluator.measure(rows, questions).tables)
        scores = task.evaluator.means(task.evaluator.per_sample(tables, False))
        kinds = ("descriptive", "explanatory", "predictive", "counterfactual")
        for kind, name in enumerate(kinds):
            file.compare(f"out/{name}_acc", scores[f"accuracy/{kind}"], FORWARD)
            assert int(file[f"out/{name}_bs"]) == (questions["kind"] == kind).sum()
        right = np.asarray(task.evaluator.per_sample(tables, False)["right"])
        of_choices = questions["answer"] < 0
        file.compare("out/multiple-choice_acc", right[of_choices].mean(), FORWARD)
        assert int(file["out/multiple-choice_bs"]) == of_choices.sum()


def joined(file, batch, outputs):
    """The questions with all of their choices, and the logits of these."""
    flags, first = file["inp/mc_flag"], batch["answer"] >= 0
    number, most = flags.max() + 1, np.bincount(flags).max()
    place = np.concatenate([np.arange(n) for n in np.bincount(flags)])
    labels, logits = np.full((number, most), -1), np.zeros((number, most), np.float32)
    labels[flags, place] = batch["choice_answers"][~first, 0]
    logits[flags, place] = np.asarray(outputs[CHOICE_LOGITS])[~first, 0]
    none, kept = np.zeros((first.sum(), most)), np.unique(flags, return_index=True)[1]
    kept = np.concatenate([np.flatnonzero(first), first.sum() + kept])
    questions = {name: batch[name][kept] for name in ("kind", "answer", "allowed")}
    questions["choice_answers"] = np.concatenate([none - 1, labels]).astype(int)
    found = {ANSWER_LOGITS: outputs[ANSWER_LOGITS][kept]}
    found[CHOICE_LOGITS] = jnp.asarray(np.concatenate([none, logits]))
    return questions, found


@pytest.mark.slow
def test_trajectory():
    """Six steps of the program's training step, with its learning rates and without clipping."""
    with golden("model_aloe", parts=()) as model, golden("trajectory_aloe") as file:
        training, state, frozen, batch = begun(model)
        found = {"descriptive": [], "choices": []}
        rates, norms = [], []
        placed = {k: jnp.asarray(x) for k, x in batch.items()}
        for step in range(len(file.arrays["loss/descriptive"])):
            if step == len(file.arrays["out/learning_rates"]):
                trained = {k: np.asarray(x) for k, x in state.params.items()}
            arguments = state, frozen, placed, jax.random.key(step), draws_of(batch)
            state, metrics = training.train_step(*arguments)
            found["descriptive"].append(float(metrics["loss/answer"]))
            found["choices"].append(float(metrics["loss/choice"]))
            rates.append(float(metrics["learning_rate"]))
            norms.append(float(metrics["grad_norm"]))
        for name, values in found.items():
            file.compare(f"loss/{name}", values, LOSS)
        steps = len(file.arrays["out/learning_rates"])
        file.compare("out/learning_rates", rates[:steps], 1e-6)
        file.compare("out/gradient_norms", norms[:steps], 2e-5)
        final = ALOE.to_ours(file.group("final/"), trained)
        for name, expected in final.items():
            mine = trained[name]
            if is_null(name):
                keep = np.r_[: len(mine) // 3, 2 * len(mine) // 3 : len(mine)]
                mine, expected = mine[keep], expected[keep]
            np.testing.assert_allclose(
                mine, expected, atol=FINAL * np.abs(expected).max(), rtol=0, err_msg=name
            )


# ---------------------------------------------------------------------------------------- files

LAYOUTS = json.loads((FOLDER / "slotformer_state_dicts.json").read_text())


def filled(name: str) -> dict[str, np.ndarray]:
    """Small random values, and the constants as the program computes them."""
    rng, found = np.random.default_rng(0), {}
    kinds = {"text": (1, 0), "vision": (0, 1), "cls": (0, 1)}
    kinds |= {"mc_question": (1, 0), "mc_choice": (0, 1)}
    for key, shape in LAYOUTS[name].items():
        found[key] = np.float32(0.02) * rng.standard_normal(shape, np.float32)
        if key.endswith("_token"):
            last = key.split(".")[-1].removesuffix("_token")
            found[key] = np.array(kinds[last], np.float32)
        elif key == "comb_idx":
            pairs = [(i, j) for i in range(100) for j in range(i + 1, 100)]
            size = int((1 + (1 + 4 * shape[0]) ** 0.5) / 2)
            pairs = [(i, j) for i in range(size) for j in range(i + 1, size)]
            found[key] = np.array(pairs, np.int64).reshape(-1)
        elif key == "enc_t_pe":
            ages = np.arange(shape[1])[::-1, None]
            angles = ages / 10_000 ** (2 * np.arange(shape[2] // 2) / shape[2])
            found[key] = np.concatenate([np.sin(angles), np.cos(angles)], -1)[None].astype("f")
    return found


OF_FILES = [name for name in LAYOUTS if name.startswith(("readout_", "aloe_"))]
CLEVRER = {"slots": 7, "frames": 25}  # of the published files


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_FILES)
def test_a_file_of_a_readout_comes_back(name):
    state_dict = filled(name)
    if name.startswith("aloe_"):
        length = QUESTION_LENGTH["published"]
        _, _, (_, arrays) = of_aloe(state_dict, CLEVRER["slots"], CLEVRER["frames"], length)
        program = ALOE
    elif "physion" in name:
        program, (_, arrays) = PHYSION, of_physion(state_dict, "max")
    else:
        program, (_, arrays) = PHYRE, of_phyre(state_dict, max(PHYRE_FRAMES) + 1)
    arrays = {k: np.asarray(x) for k, x in arrays.items()}
    kept = json.loads(json.dumps(program.kept(state_dict)))  # as in a checkpoint
    back = program.to_theirs(arrays, {}, kept)
    assert back.keys() == state_dict.keys()
    for key, x in state_dict.items():
        assert back[key].dtype == x.dtype
        np.testing.assert_allclose(back[key], x, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("aloe_clevrer_params", "transformer_model.cls_token"),
        ("readout_physion_params", "comb_idx"),
        ("readout_phyre_params-fold0", "enc_t_pe"),
    ],
)
def test_other_constants_are_refused(name, key):
    state_dict = filled(name)
    state_dict[key] = state_dict[key][::-1] + 1
    program = {"a": ALOE, "p": PHYSION if "physion" in name else PHYRE}[name[0].replace("r", "p")]
    with pytest.raises(UserError, match=f"{re.escape(key)} is not what the program"):
        program.to_ours(state_dict, {"readout.first"})
