"""Answers: train a readout to answer questions about clips from slots of a frozen slot model.

The config has the readout as `model.readout`, the facts of the questions as `model.words`,
`model.answers` and `model.kinds`, and the slot model as the companion `slot_model`. A sample is a
question about a clip; the clip's slots were stored (`data.slots`), or are found anew in each step.
With the companion `rollouter`, a run of the task `dynamics`, the slots of `model.future` predicted
frames follow the observed ones.

`model.beside` lists readouts of the same kind that are trained beside the model, on something else:
they tell how much of an answer is in the slots. Samples and gradients of one do not reach another.
From Wu et al. 2023 (arXiv 2210.05861, section 4.4).
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.answers import MODEL as OWN
from smoothsa_jax.evaluation.answers import AnswerEvaluator, majority_of
from smoothsa_jax.evaluation.split import Batch, scored
from smoothsa_jax.inputs.build import build_dataset, check_data
from smoothsa_jax.inputs.questions import (
    BY_RULES,
    OTHER,
    PLACES,
    QUESTION,
    SEEN,
    STATE,
    STATE_MASK,
)
from smoothsa_jax.losses.answers import (
    ANSWER_LOGITS,
    BESIDE_ANSWERS,
    BESIDE_CHOICES,
    CHOICE_LOGITS,
)
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.build import (
    READOUT,
    READOUTS,
    ROLLOUTER,
    ReadoutSizes,
    build_readout_model,
    has_rollouter,
    model_shapes,
    readout_sizes,
    slot_model_shapes,
)
from smoothsa_jax.models.interfaces import Draws, Scheduled, Sizes
from smoothsa_jax.models.rollouters import interleaved
from smoothsa_jax.models.slot_model import SlotModel
from smoothsa_jax.parts import check_one_of, check_whole, choose
from smoothsa_jax.tasks.discovery import features_of
from smoothsa_jax.tasks.dynamics import continued
from smoothsa_jax.tasks.frozen_slots import (
    SLOT_MODEL,
    SLOTS,
    find_slots,
    refuse_other_parts,
    slot_model_of,
)
from smoothsa_jax.tasks.task import MODEL, Models, Outputs

POOLED = "pooled"
# What `model.beside` may list, and what those readouts see in place of the model's slots.
WORDS_ONLY, OBSERVED = "words_only", "observed_frames"
FEATURES, TRUE_STATE = "pooled_features", "true_state"
BESIDE = (WORDS_ONLY, OBSERVED, FEATURES, TRUE_STATE)
# Rows of the trained readout with other slots.
OTHER_CLIP, LAST_COPIED = "other clip's slots", "last frame copied"
KEYS = (READOUT, "future", "words", "answers", "kinds", "beside")


class Answers:
    """See `task.Task`. The trained model is a `ReadoutModel`."""

    untrained = "untrained readout"
    companions = (SLOT_MODEL, ROLLOUTER)
    averages = False
    whole_clips = True
    stored = (SLOTS, POOLED)
    stored_splits = ("train", "validation", "test")
    no_segments = (
        "answers questions and finds no segments; give the workdir of the slot model that it was "
        "trained on"
    )

    def __init__(self, config: ConfigDict):
        self._config = config
        self.slot_model = slot_model_of(config, "read")
        self.schedules: dict[str, dict[str, Any]] = {}
        refuse_other_parts(config, KEYS)
        self._predicts = has_rollouter(config)
        # Whether questions choose among the observed and predicted frames.
        self._chooses = self._predicts and "past" in config.data
        self._words, self._answers = (tuple(config.model.get(x, ())) for x in ("words", "answers"))
        self._kinds = tuple(config.model.get("kinds", ()))
        self._beside = self._checked_beside(config.model.get("beside", ()))
        self._of_training: tuple[np.ndarray, np.ndarray] | None = None
        self._has_choices = bool(config.model.get(READOUT, {}).get("choice_length", 0))
        of_clip = (SLOTS, "slot_mask", "video", "boxes")
        more = (POOLED,) * (FEATURES in self._beside)
        more += (STATE, STATE_MASK) * (TRUE_STATE in self._beside)
        of_clip += (PLACES,) * self._chooses
        self.inputs = (*QUESTION, *of_clip, *more, *(f"{OTHER}{name}" for name in of_clip))

    def _checked_beside(self, names: Iterable[str]) -> tuple[str, ...]:
        for name in names:
            check_one_of("model.beside", name, BESIDE)
        # Without predicted frames, the model itself sees observed frames alone.
        return tuple(x for x in BESIDE if x in names and (self._predicts or x != OBSERVED))

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Arrays of a sample besides those of its clip; see `task.Task`."""
        readout, (height, width) = self._config.model[READOUT], image_size_of(self._config)
        frames, slots = self._observed, self.slot_model.num_slots
        found = {
            "question": ((readout.get("question_length", 0),), jnp.int32),
            "answer": ((), jnp.int32),
            "allowed": ((len(self._answers),), bool),
            "kind": ((), jnp.int32),
            "clip": ((), jnp.int32),
            "video": ((frames, height, width, 3), jnp.uint8),
            "boxes": ((frames, slots, 4), jnp.float32),
        }
        if self._has_choices:
            found["choices"] = ((1, readout.choice_length), jnp.int32)
            found["choice_answers"] = ((1,), jnp.int32)
        if self._chooses:
            found[PLACES] = found[f"{OTHER}{PLACES}"] = ((frames,), jnp.int32)
        if TRUE_STATE in self._beside:
            objects, size = self._state_shape
            found[STATE] = ((frames, objects, size), jnp.float32)
            found[STATE_MASK] = ((objects,), bool)
        other = {f"{OTHER}{name}": found[name] for name in ("video", "boxes")}
        return {**found, **other, f"{OTHER}slot_mask": ((slots,), bool)}

    @property
    def _observed(self) -> int:
        """The number of observed frames."""
        data = self._config.data
        return data.get("observed") or data.get("num_frames") or 1

    @property
    def _past(self) -> int:
        """The number of frames that a rollouter continues."""
        return self._config.data.past if self._chooses else self._observed

    @property
    def _future(self) -> int:
        """The number of predicted frames."""
        return self._config.model.get("future") if self._predicts else 0

    @functools.cached_property
    def _frozen_shapes(self) -> SlotModel:
        """The slot model, with shapes."""
        return slot_model_shapes(self.slot_model, image_size_of(self._config))

    @functools.cached_property
    def _state_shape(self) -> tuple[int, int]:
        """The numbers of objects and of features of the true state."""
        data = self._config.data
        found = getattr(check_data(data), "state_shape_of", None)
        if found is None:
            raise UserError(
                f"model.beside has {TRUE_STATE!r}, which the data set {data.name!r} does not have; "
                "remove it"
            )
        return found(data)

    @functools.cached_property
    def _fewest(self) -> int:
        """The fewest slots that the readout takes."""
        readout = choose(f"model.{READOUT}", self._config.model[READOUT].name, READOUTS)
        return getattr(readout, "fewest_slots", 1)

    def _sizes(self) -> tuple[ReadoutSizes, dict[str, ReadoutSizes]]:
        """Return the sizes of the readout and of those beside it."""
        frames = self._observed
        whole = readout_sizes(self._config, self.slot_model)
        found = {}
        for name in self._beside:
            if name == WORDS_ONLY:  # zeros, of which one says as much as many
                found[name] = whole._replace(num_slots=self._fewest, num_frames=1)
            elif name == OBSERVED:
                found[name] = whole._replace(num_frames=frames)
            elif name == FEATURES:
                width = self._frozen_shapes.encoder.width
                found[name] = whole._replace(
                    num_slots=self._fewest, slot_size=width, num_frames=frames
                )
            else:
                objects, size = self._state_shape
                found[name] = whole._replace(num_slots=objects, slot_size=size, num_frames=frames)
        return whole, found

    @functools.cached_property
    def evaluator(self) -> AnswerEvaluator:
        """How a split is scored."""
        copied = (LAST_COPIED,) if self._predicts else ()
        return AnswerEvaluator(
            kinds=self._kinds,
            answers=self._answers,
            rows=(*map(_title, self._beside), OTHER_CLIP, *copied),
            has_choices=self._has_choices,
            protocol={"observed": self._observed, "predicted": self._future},
        )

    def build(self, shapes_only: bool) -> nnx.Module:
        self._check_settings()
        config, (sizes, beside) = self._config, self._sizes()
        make = lambda: build_readout_model(config.model, sizes, beside, config.seed)  # noqa: E731
        return nnx.eval_shape(make) if shapes_only else make()

    def _check_settings(self) -> None:
        config = self._config
        for key in ("answers", "kinds"):
            if not config.model.get(key):
                raise UserError(
                    f"model.{key} is empty; expected the {key} of the data set's questions; use "
                    "the word 'answers' of a config"
                )
        if config.eval.observed is not None:
            raise UserError(
                f"eval.observed is {config.eval.observed}, but questions say what is observed; set "
                "--config.eval.observed=None"
            )
        if (clip := config.optimizer.clip_norm) and self._beside:
            raise UserError(
                f"optimizer.clip_norm is {clip}, which would let the readouts of model.beside "
                "change the model's steps; set --config.optimizer.clip_norm=0 or "
                '--config.model.beside="()"'
            )
        if self._beside and "beside" not in build_losses(config.losses).terms:
            raise UserError(
                f"model.beside is {self._beside}, but no loss trains them; set "
                '--config.losses.beside.weight=1.0, or --config.model.beside="()"'
            )
        if not self._predicts:
            return
        check_whole("model.future", future := config.model.get("future"))
        if (of_data := config.data.get("future", future)) != future:
            raise UserError(
                f"model.future is {future}, but data.future is {of_data}; set both to the number "
                "of predicted frames"
            )
        path = f"companions.{ROLLOUTER}"
        if ROLLOUTER not in config.companions[ROLLOUTER].model:
            raise UserError(
                f"{path} holds {config.companions[ROLLOUTER].get('title') or 'a model'}, which is "
                f"no rollouter; give a run of the task 'dynamics' with --config.{path}.source"
            )
        found = model_shapes(
            config.companions[ROLLOUTER].model, image_size_of(config), self.slot_model
        ).rollouter
        if (fewest := found.history * found.every) > self._past:
            key = "past" if self._chooses else "num_frames"
            raise UserError(
                f"there are {self._past} observed frames, but {path} continues {found.history} "
                f"frames of every {found.every}; give clips of {fewest} observed frames or more "
                f"(data.{key}), or another --config.{path}.source"
            )

    def check_source(self, source: Any) -> None:
        """Refuse questions of another list of words, answers or kinds.

        Raises:
            UserError: names what differs.
        """
        questions = getattr(source, "questions", None)
        if questions is None:
            raise UserError(
                f"data.name is {self._config.data.name!r}, which holds no questions; use the word "
                "'answers' of a config"
            )
        for key, mine in (
            ("words", self._words),
            ("answers", self._answers),
            ("kinds", self._kinds),
        ):
            found = tuple(getattr(questions, key))
            if found != mine:
                here = next((a for a, b in zip(found, mine, strict=False) if a != b), None)
                what = f"{len(found)} {key}" if here is None else f"{key} such as {here!r}"
                raise UserError(
                    f"the questions have {what}, but model.{key} lists {len(mine)}, in another "
                    "order or other ones; give the data that the config was made for"
                )

    def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:
        if not any(name in batch for name in QUESTION):
            return  # clips whose slots are stored; `check_source` has seen to questions
        for name in QUESTION:
            if name in ("choices", "choice_answers") and not self._has_choices:
                continue
            if name not in batch:
                raise UserError(
                    f"the data has no {name!r}, expected it in every question; choose a data set "
                    "with questions"
                )
        answers, allowed = np.asarray(batch["answer"]), np.asarray(batch["allowed"])
        if allowed.shape[1] != len(self._answers) or answers.max() >= len(self._answers):
            raise UserError(
                f"an answer is number {max(answers.max(), allowed.shape[1] - 1)}, but "
                f"model.answers lists {len(self._answers)}; give the data that the config was "
                "made for"
            )
        if self._has_choices and np.any(
            (answers >= 0) == (np.asarray(batch["choice_answers"]) >= 0).any(axis=1)
        ):
            raise UserError(
                "a question has both an answer and choices, or neither (answer, choice_answers); "
                "mend the data"
            )
        given = np.flatnonzero(answers >= 0)
        if not allowed[given, answers[given]].all():
            raise UserError(
                "the right answer of a question is not among those that it may have (allowed); "
                "mend the data"
            )
        if not self._has_choices and len(given) < len(answers):
            raise UserError(
                "a question has no answer (-1), and model.readout reads no choices; set "
                "--config.model.readout.choice_length"
            )
        for name in ("question", *(("choices",) if self._has_choices else ())):
            words = np.asarray(batch[name])
            if words.size and not 0 <= words.min() <= words.max() < max(len(self._words), 1):
                raise UserError(
                    f"{name} holds word number {words.max()}, but model.words lists "
                    f"{len(self._words)}; give the data that the config was made for"
                )

    def draw(self, models: Models, key: Array, sizes: Sizes, training: bool) -> Draws:
        slots_key, readout_key = jax.random.split(key) if training else (key, key)
        # The readout's own draws are the same with and without others beside it.
        readout_key, key = jax.random.split(readout_key)
        model = models[MODEL]
        drawn = {READOUT: model.readout.draw([readout_key], sizes, training)}
        for number, (name, part) in enumerate(model.beside.items()):
            drawn[name] = part.draw([jax.random.fold_in(key, number)], sizes, training)
        return {SLOT_MODEL: models[SLOT_MODEL].draw(slots_key, sizes, False), **drawn}

    def constants(
        self, models: Models, batch: Mapping[str, Array], draws: Draws, match_paper: bool
    ) -> Outputs:
        del match_paper
        found = self._of_clip(models, batch, draws, "")
        if f"{OTHER}slot_mask" in batch:  # to be scored
            other = self._of_clip(models, batch, draws, OTHER)
            found |= {f"{OTHER}{name}": x for name, x in other.items() if name != POOLED}
        if TRUE_STATE in self._beside:
            found |= {STATE: batch[STATE], STATE_MASK: batch[STATE_MASK]}
        return found

    def _of_clip(
        self, models: Models, batch: Mapping[str, Array], draws: Draws, front: str
    ) -> Outputs:
        """Return the slots (B,F,N,D) of all frames, which of them are seen, the slot mask and the
        mean of features."""
        mine = (SLOTS, POOLED, *SEEN, *(PLACES,) * self._chooses)
        mine = {name: f"{front}{name}" for name in mine}
        mine = {name: batch[full] for name, full in mine.items() if full in batch}
        if SLOTS in mine:
            found = {k: mine[k].astype(jnp.float32) for k in (SLOTS, POOLED) if k in mine}
            found["slot_mask"] = mine["slot_mask"]
        else:
            model = models[SLOT_MODEL]
            found = find_slots(model, mine, features_of(model, mine), draws[SLOT_MODEL])
            found = {name: found[name] for name in (SLOTS, POOLED, "slot_mask")}
            found["slot_mask"] = found["slot_mask"].all(axis=1)
        if self._chooses:
            found[PLACES] = mine[PLACES]
        if self._predicts:
            past, rollouter = found[SLOTS], models[ROLLOUTER].rollouter
            before, mask = past[:, -self._past :], found["slot_mask"]
            later = interleaved(rollouter, before, self._future, mask)
            found[SLOTS] = jnp.concatenate([past, later], axis=1)
        return jax.lax.stop_gradient(found)

    def targets(
        self, models: Models, batch: Mapping[str, Array], constants: Outputs, draws: Draws
    ) -> Outputs:
        del models, batch, constants, draws
        return {}

    def forward_inputs(self, constants: Outputs) -> tuple[str, ...]:
        del constants
        return ("question", "choices") if self._has_choices else ("question",)

    def forward(
        self,
        models: Models,
        batch: Mapping[str, Array],
        constants: Outputs,
        draws: Draws,
        scheduled: Scheduled,
    ) -> Outputs:
        del scheduled
        model, slots, mask = models[MODEL], constants[SLOTS], constants["slot_mask"]
        words = batch["question"], batch["choices"] if self._has_choices else None

        def run(readout: Any, slots: Array, mask: Array | None, draws: Draws) -> Outputs:
            return readout(slots, mask, *words, draws)

        whole = _chosen(slots, constants.get(PLACES))
        found = run(model.readout, whole, mask, draws[READOUT])
        rows = {OWN: dict(found)}
        for name in self._beside:
            seen = self._seen(name, constants)
            rows[_title(name)] = run(model.beside[name], *seen, draws[name])
        found |= _together([rows[_title(name)] for name in self._beside])
        if f"{OTHER}{SLOTS}" in constants:
            other = _chosen(constants[f"{OTHER}{SLOTS}"], constants.get(f"{OTHER}{PLACES}"))
            rows[OTHER_CLIP] = run(
                model.readout, other, constants[f"{OTHER}slot_mask"], draws[READOUT]
            )
            if self._predicts:
                past = slots[:, : -self._future]
                copied = continued(past, self._future)["copy"]
                copied = jnp.concatenate([past, copied], axis=1)
                copied = _chosen(copied, constants.get(PLACES))
                rows[LAST_COPIED] = run(model.readout, copied, mask, draws[READOUT])
        found |= {f"{row}.{name}": x for row, own in rows.items() for name, x in own.items()}
        return found

    def _seen(self, name: str, constants: Outputs) -> tuple[Array, Array | None]:
        """Return what a readout beside the model sees in place of slots, and its mask."""
        slots, mask = constants[SLOTS], constants["slot_mask"]
        if name == WORDS_ONLY:
            return jnp.zeros_like(slots[:, :1, : self._fewest]), None
        if name == OBSERVED:
            return slots[:, : self._observed], mask
        if name == FEATURES:
            pooled = constants[POOLED][:, : self._observed, None]
            return jnp.repeat(pooled, self._fewest, axis=2), None
        return constants[STATE], constants[STATE_MASK]

    def monitor(self, constants: Outputs) -> Outputs:
        del constants
        return {}

    def baselines(
        self, batches: Callable[[], Iterable[Batch]], features: Callable[[Batch], Any]
    ) -> dict[str, dict[str, np.ndarray]]:
        del features
        rules = getattr(check_data(self._config.data), "rules", ())
        rows: dict[str, list] = {}
        for batch in batches():
            valid = scored(batch)
            names = (*QUESTION, BY_RULES)
            some = {name: np.asarray(batch[name])[valid] for name in names if name in batch}
            answer, taken = self._majority(some)
            of_kind = answer[some["kind"]]
            labels = some.get("choice_answers", np.zeros((len(valid), 0), int))
            choices = np.broadcast_to(taken[some["kind"]][:, None], labels.shape)
            of = functools.partial(self.evaluator.of_questions, some)
            found = {"majority answer": of(of_kind, choices)}
            chance = of(1.0 / np.maximum(some["allowed"].sum(axis=1), 1), choices)
            if self._has_choices:
                number = (labels >= 0).sum(axis=1)
                of_choices = some["answer"] < 0
                chance["right"] = np.where(of_choices, 0.5**number, chance["right"])
                chance["_options_right"] = 0.5 * chance["_options"]
            found["chance"] = chance
            for r, rule in enumerate(rules if BY_RULES in some else ()):
                values = some[BY_RULES][:, r].astype(np.float64)
                none = {name: np.zeros(len(values)) for name in chance if "options" in name}
                found[rule] = {**chance, **none, "right": values}
            for row, values in found.items():
                rows.setdefault(row, []).append(values)
        return {
            row: {name: np.concatenate([part[name] for part in found]) for name in found[0]}
            for row, found in rows.items()
        }

    def _majority(self, questions: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return what `majority_of` does for the training questions.

        Args:
            questions: some of the scored split.
        """
        data = {key: x for key, x in self._config.data.items() if key != "slots"}
        if getattr(check_data(ConfigDict(data)), "balanced", False):  # the first that is allowed
            answer = np.zeros(len(self._kinds), int)
            answer[questions["kind"]] = questions["allowed"].argmax(axis=1)
            return answer, np.zeros(len(self._kinds), bool)
        if self._of_training is None:  # once, because all questions of training are read
            train = build_dataset(data, "train", num_slots=self.slot_model.num_slots).questions
            every = (train[j] for j in range(len(train)))
            self._of_training = majority_of(every, len(self._kinds), len(self._answers))
        return self._of_training


def _chosen(slots: Array, places: Array | None) -> Array:
    """Return the frames `places` (B,F) of slots (B,T,N,D); None: all."""
    if places is None:
        return slots
    return jnp.take_along_axis(slots, places[:, :, None, None], axis=1)


def _title(name: str) -> str:
    """Return the name of a row, of one in `model.beside`."""
    return name.replace("_", " ")


def _together(found: list[Outputs]) -> Outputs:
    """Return the logits of several readouts, (B,R,...), as the loss `beside` reads them."""
    names = {ANSWER_LOGITS: BESIDE_ANSWERS, CHOICE_LOGITS: BESIDE_CHOICES}
    return {
        whole: jnp.stack([x[name] for x in found], axis=1)
        for name, whole in names.items()
        if found and name in found[0]
    }
