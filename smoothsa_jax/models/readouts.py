"""Readouts: models that answer questions about a clip from the slots of its frames.

They are trained on slots of a frozen slot model, by the task `answers`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from smoothsa_jax.errors import UserError
from smoothsa_jax.losses.answers import ANSWER_LOGITS, CHOICE_LOGITS
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.layers.basic import MLP, linear, split_key
from smoothsa_jax.models.layers.transformer import copied_layers, run_to_first
from smoothsa_jax.models.rollouters import sinusoids
from smoothsa_jax.parts import check_dropout, check_heads, check_number, check_one_of, check_whole

POSITIONS = ("time", "token")
REDUCTIONS = ("max", "mean", "sum")
PATH = "model.readout"
# What tells tokens apart, beside their content: (text, vision), and of text (choice's question,
# choice); a question without choices counts as a choice.
TEXT, VISION = (1.0, 0.0), (0.0, 1.0)


class Aloe(nnx.Module):
    """A transformer over the slots of all frames and the words of a question (Aloe).

    A learned token stands in front, from which two MLPs read the logits of all answers, or the
    logit of a choice. Each choice is a sequence of its own: slots, question, choice. The layers
    start as copies of one. As SlotFormer's program has it (Wu et al. 2023, arXiv 2210.05861,
    section 4.4), after Ding et al. 2021 (arXiv 2012.08508); no masked slots are predicted.

    Args:
        num_slots: N.
        slot_size: D.
        num_frames: F.
        num_words: V, with the padding, which is word 0.
        num_answers: A.
        width: E of the transformer.
        num_layers: number of its layers.
        num_heads: number of its attention heads.
        mlp_size: hidden width of its feed-forwards.
        word_size: width of the embedding of a word.
        hidden_size: hidden width of the two MLPs.
        question_length: the most words of a question.
        choice_length: the most words of a choice; 0: no question has choices.
        positions: "time": all slots of a frame have one learned position, so that the order of
            slots does not count. "token": each token has its own, as in the program.
        position_scale: standard deviation of the positions, and of the learned token in front, when
            training starts. 0: they start at zero, as in the program. Frames then start alike, and
            motion is learned late or never.
        dropout_rate: in training, of the attention weights, of the hidden units and of each branch.
    """

    def __init__(
        self,
        num_slots: int,
        slot_size: int,
        num_frames: int,
        num_words: int,
        num_answers: int,
        *,
        width: int,
        num_layers: int,
        num_heads: int,
        mlp_size: int,
        word_size: int,
        hidden_size: int,
        question_length: int,
        choice_length: int = 0,
        positions: str = "time",
        position_scale: float = 0.0,
        dropout_rate: float,
        rngs: nnx.Rngs,
    ):
        _check_transformer(width, num_layers, num_heads, mlp_size, dropout_rate)
        for key, value in (("word_size", word_size), ("hidden_size", hidden_size)):
            check_whole(f"{PATH}.{key}", value)
        check_whole(f"{PATH}.question_length", question_length)
        check_whole(f"{PATH}.choice_length", choice_length, least=0)
        check_one_of(f"{PATH}.positions", positions, POSITIONS)
        check_number(f"{PATH}.position_scale", position_scale, 0.0)
        if not num_words:
            raise UserError(
                f"{PATH}.name is 'aloe', which reads words, but the questions have none; set "
                f"--config.{PATH}.name=pairs"
            )
        self.question_length, self.choice_length = question_length, choice_length
        self.of_tokens, self.dropout_rate = positions == "token", dropout_rate
        self.num_slots, self.num_frames = num_slots, num_frames
        self.slot_projection = linear(slot_size + 2, width, rngs=rngs)
        self.word_projection = linear(word_size + 4, width, rngs=rngs)
        drawn = jax.random.normal(rngs.params(), (num_words, word_size), jnp.float32)
        self.embedding = nnx.Param(drawn)
        self._of_slots = num_frames * (num_slots if self.of_tokens else 1)
        rows = 1 + self._of_slots + question_length + choice_length
        start = jnp.zeros((1 + rows, width), jnp.float32)
        if position_scale:
            start = position_scale * jax.random.normal(rngs.params(), start.shape, jnp.float32)
        self.first, self.position = nnx.Param(start[0]), nnx.Param(start[1:])
        self.layers = _layers(width, num_layers, num_heads, mlp_size, dropout_rate, rngs)
        head = lambda out: MLP((width, hidden_size, out), activation="relu", rngs=rngs)  # noqa: E731
        self.answer = head(num_answers)
        self.choice = head(1) if choice_length else None

    def __call__(
        self,
        slots: Float[Array, "B F N D"],
        slot_mask: Bool[Array, "B N"] | None,
        question: Int[Array, "B Q"],
        choices: Int[Array, "B K L"] | None = None,
        draws: Key[Array, "B"] | None = None,
    ) -> dict[str, Array]:
        """Answer questions; see `interfaces.Readout`.

        Raises:
            UserError: there are other frames or slots than the positions are for, or more words.
        """
        self._check(slots, question, choices)
        batch, frames, number, _ = slots.shape
        words, flags, places = self._text(question, choices)
        sequences = words.shape[1]
        x = jnp.concatenate(
            [
                self._sequences(self._seen(slots), sequences),
                self._read(words, flags, places),
            ],
            axis=2,
        )
        x = x.reshape(batch * sequences, *x.shape[2:])
        valid = jnp.ones((batch, number), bool) if slot_mask is None else slot_mask
        valid = jnp.pad(jnp.tile(valid, (1, frames)), ((0, 0), (1, 0)), constant_values=True)
        mask = jnp.concatenate([self._sequences(valid, sequences), words > 0], axis=2)
        keys = None
        if draws is not None:
            keys = split_key(draws, sequences).swapaxes(0, 1).reshape(-1)
        mask = mask.reshape(batch * sequences, -1)
        found = run_to_first(self.layers, x, mask, keys).reshape(batch, sequences, -1)
        # A question without choices is the first sequence, and the others are not there.
        outputs = {ANSWER_LOGITS: self.answer(found[:, 0]).astype(jnp.float32)}
        if choices is not None:
            outputs[CHOICE_LOGITS] = self.choice(found)[..., 0].astype(jnp.float32)
        return outputs

    def _check(self, slots, question, choices) -> None:
        if slots.shape[1] != self.num_frames:
            raise UserError(
                f"there are slots of {slots.shape[1]} frames, but {PATH} has positions of "
                f"{self.num_frames}; give as many frames as in training"
            )
        if self.of_tokens and slots.shape[2] != self.num_slots:
            raise UserError(
                f"there are {slots.shape[2]} slots, but {PATH} has positions of "
                f"{self.num_slots}; give as many slots as in training"
            )
        lengths = {"question_length": question.shape[1]}
        if choices is not None:
            lengths["choice_length"] = choices.shape[2]
        for key, found in lengths.items():
            if found > (most := getattr(self, key)):
                raise UserError(
                    f"there are {found} words, but {PATH}.{key} is {most}; set "
                    f"--config.{PATH}.{key}={found}"
                )

    def _sequences(self, x, number: int):
        """Repeat (B, ...) as (B, number, ...)."""
        return jnp.broadcast_to(x[:, None], (len(x), number, *x.shape[1:]))

    def _seen(self, slots):
        """Return the first token and those of the slots (B, 1 + F * N, E)."""
        batch, frames, number, size = slots.shape
        dtype = self.slot_projection.kernel.dtype
        x = slots.reshape(batch, frames * number, size).astype(dtype)
        kind = jnp.broadcast_to(jnp.asarray(VISION, dtype), (*x.shape[:2], 2))
        x = self.slot_projection(jnp.concatenate([x, kind], axis=-1))
        position = self.position[...].astype(dtype)
        of_slots = position[1 : 1 + self._of_slots]
        if not self.of_tokens:
            of_slots = jnp.repeat(of_slots, number, axis=0)
        first = self.first[...].astype(dtype) + position[0]
        first = jnp.broadcast_to(first, (batch, 1, first.shape[-1]))
        return jnp.concatenate([first, x + of_slots], axis=1)

    def _text(self, question, choices):
        """Return the words (B,K,Q+L) of all sequences, whether each belongs to a question of a
        choice, and the place (Q+L) of each."""
        places = np.arange(question.shape[1])
        if choices is None:
            words = question[:, None]
            return words, jnp.zeros(words.shape, bool), places
        words = jnp.concatenate([self._sequences(question, choices.shape[1]), choices], axis=2)
        of_choice = (choices > 0).any(axis=(1, 2))  # (B,)
        is_question = np.arange(words.shape[2]) < question.shape[1]
        flags = jnp.broadcast_to(of_choice[:, None, None] & is_question, words.shape)
        later = self.question_length + np.arange(choices.shape[2])
        return words, flags, np.concatenate([places, later])

    def _read(self, words, flags, places):
        """Return the tokens (B,K,Q+L,E) of words."""
        dtype = self.word_projection.kernel.dtype
        kind = jnp.stack([flags, ~flags], axis=-1).astype(dtype)
        text = jnp.broadcast_to(jnp.asarray(TEXT, dtype), kind.shape)
        x = jnp.concatenate([self.embedding[...].astype(dtype)[words], kind, text], axis=-1)
        return (
            self.word_projection(x) + self.position[...].astype(dtype)[1 + self._of_slots + places]
        )

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Key[Array, "B"] | None:
        """Draw the keys of dropout; None: no dropout."""
        return _dropout_keys(keys, sizes, training and self.dropout_rate > 0)


class Pairs(nnx.Module):
    """Linear layers on all pairs of slots: does anything touch (SlotFormer's readout of Physion)?

    Linear 2D -> H of each pair of slots of a frame, the largest value over pairs, Linear H -> 1,
    the largest logit over frames, without any non-linearity. It is that of the second of two
    answers. A pair has its slots in their order, so that the order counts. From Wu et al. 2023
    (arXiv 2210.05861, section 4.5), as in its program.

    Args:
        num_slots: N, at least two.
        slot_size: D.
        num_frames: F; any number will do.
        num_words: V; words are not read.
        num_answers: A, which is 2.
        hidden_size: H; D in the program.
        reduction: over pairs, "max", "mean" or "sum".
    """

    fewest_slots = 2

    def __init__(
        self,
        num_slots: int,
        slot_size: int,
        num_frames: int,
        num_words: int,
        num_answers: int,
        *,
        hidden_size: int,
        reduction: str = "max",
        rngs: nnx.Rngs,
    ):
        del num_frames, num_words
        check_whole(f"{PATH}.hidden_size", hidden_size)
        check_one_of(f"{PATH}.reduction", reduction, REDUCTIONS)
        _check_two_answers("pairs", num_answers)
        if num_slots < 2:
            raise UserError(
                f"{PATH}.name is 'pairs', but there is {num_slots} slot; give at least 2"
            )
        self.reduction = reduction
        self.of_pair = linear(2 * slot_size, hidden_size, rngs=rngs)
        self.out = linear(hidden_size, 1, rngs=rngs)

    def __call__(
        self,
        slots: Float[Array, "B F N D"],
        slot_mask: Bool[Array, "B N"] | None,
        question: Int[Array, "B Q"],
        choices: Int[Array, "B K L"] | None = None,
        draws: None = None,
    ) -> dict[str, Array]:
        """Answer questions; see `interfaces.Readout`."""
        del question, choices, draws
        kernel = self.of_pair.kernel[...]
        first, second = np.triu_indices(slots.shape[2], 1)
        # Each slot is multiplied once, not once for each of its pairs.
        halves = [slots.astype(kernel.dtype) @ half for half in jnp.split(kernel, 2)]
        pairs = halves[0][:, :, first] + halves[1][:, :, second] + self.of_pair.bias[...]
        valid = jnp.ones((len(slots), len(first)), bool)
        if slot_mask is not None:
            valid = slot_mask[:, first] & slot_mask[:, second]
        valid = valid[:, None, :, None]
        if self.reduction == "max":
            reduced = jnp.where(valid, pairs, -jnp.inf).max(axis=2)
            reduced = jnp.where(valid.any(axis=2), reduced, 0.0)  # there may be one valid slot
        else:
            reduced = jnp.where(valid, pairs, 0.0).sum(axis=2)
        if self.reduction == "mean":
            reduced = reduced / jnp.maximum(valid.sum(axis=2), 1).astype(reduced.dtype)
        return _of_two(self.out(reduced)[..., 0].max(axis=1))

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> None:
        """Draw nothing."""


class FramesTransformer(nnx.Module):
    """A transformer over the slots of some frames (SlotFormer's readout of PHYRE).

    A learned token stands in front, from which an MLP reads the logit of the second of two answers.
    Slots have sinusoids of the age of their frame. From Wu et al. 2023 (arXiv 2210.05861, section
    4.6), as in its program.

    Args:
        num_slots: N; any number will do.
        slot_size: D.
        num_frames: F.
        num_words: V; words are not read.
        num_answers: A, which is 2.
        frames: the numbers of the frames that it sees, from 0.
        width: E of the transformer.
        num_layers: number of its layers.
        num_heads: number of its attention heads.
        mlp_size: hidden width of its feed-forwards.
        dropout_rate: in training, of the attention weights, of the hidden units and of each branch.
    """

    def __init__(
        self,
        num_slots: int,
        slot_size: int,
        num_frames: int,
        num_words: int,
        num_answers: int,
        *,
        frames: Sequence[int],
        width: int,
        num_layers: int,
        num_heads: int,
        mlp_size: int,
        dropout_rate: float,
        rngs: nnx.Rngs,
    ):
        del num_slots, num_words
        _check_transformer(width, num_layers, num_heads, mlp_size, dropout_rate)
        _check_two_answers("frames_transformer", num_answers)
        if width % 2:
            raise UserError(
                f"{PATH}.width is {width}, but half of it are sines and half cosines; set an even "
                "number"
            )
        for frame in frames:
            check_whole(f"{PATH}.frames", frame, least=0)
        if not frames or max(frames) >= num_frames:
            raise UserError(
                f"{PATH}.frames is {tuple(frames)}, but clips have {num_frames} frames; name "
                f"frames from 0 to {num_frames - 1}"
            )
        self.frames, self.dropout_rate = tuple(frames), dropout_rate
        self.in_projection = linear(slot_size, width, rngs=rngs)
        self.first = nnx.Param(jnp.zeros(width, jnp.float32))
        self.layers = _layers(width, num_layers, num_heads, mlp_size, dropout_rate, rngs)
        self.answer = MLP((width, width, 1), activation="relu", rngs=rngs)

    def __call__(
        self,
        slots: Float[Array, "B F N D"],
        slot_mask: Bool[Array, "B N"] | None,
        question: Int[Array, "B Q"],
        choices: Int[Array, "B K L"] | None = None,
        draws: Key[Array, "B"] | None = None,
    ) -> dict[str, Array]:
        """Answer questions; see `interfaces.Readout`.

        Raises:
            UserError: a frame is missing.
        """
        del question, choices
        if slots.shape[1] <= max(self.frames):
            raise UserError(
                f"there are slots of {slots.shape[1]} frames, but {PATH}.frames is {self.frames}; "
                "give more frames"
            )
        slots = slots[:, list(self.frames)]
        batch, frames, number, size = slots.shape
        x = slots.astype(self.in_projection.kernel.dtype).reshape(batch, frames * number, size)
        x = self.in_projection(x)
        ages = jnp.repeat(sinusoids(frames, x.shape[-1]), number, axis=0)
        first = jnp.broadcast_to(self.first[...].astype(x.dtype), (batch, 1, x.shape[-1]))
        x = jnp.concatenate([first, x + ages.astype(x.dtype)], axis=1)
        mask = None
        if slot_mask is not None:
            mask = jnp.tile(slot_mask, (1, frames))
            mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        return _of_two(self.answer(run_to_first(self.layers, x, mask, draws))[..., 0])

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Key[Array, "B"] | None:
        """Draw the keys of dropout; None: no dropout."""
        return _dropout_keys(keys, sizes, training and self.dropout_rate > 0)


def _check_transformer(
    width: int, num_layers: int, num_heads: int, mlp_size: int, dropout_rate: float
) -> None:
    for key, value in (("width", width), ("num_layers", num_layers), ("mlp_size", mlp_size)):
        check_whole(f"{PATH}.{key}", value)
    check_heads(f"{PATH}.num_heads", num_heads, width, f"{PATH}.width {width}")
    check_dropout(f"{PATH}.dropout_rate", dropout_rate)


def _layers(
    width: int, num_layers: int, num_heads: int, mlp_size: int, dropout_rate: float, rngs: nnx.Rngs
) -> nnx.List:
    return copied_layers(
        num_layers,
        width,
        num_heads,
        norm="pre",
        dropout_rate=dropout_rate,
        mlp_size=mlp_size,
        rngs=rngs,
    )


def _check_two_answers(name: str, num_answers: int) -> None:
    if num_answers != 2:
        raise UserError(
            f"{PATH}.name is {name!r}, which tells two answers apart, but there are {num_answers}; "
            f"set --config.{PATH}.name=aloe"
        )


def _of_two(logit: Float[Array, "B"]) -> dict[str, Float[Array, "B 2"]]:
    """Return the logit of the second answer beside a zero: cross-entropy is then binary."""
    logit = logit.astype(jnp.float32)
    return {ANSWER_LOGITS: jnp.stack([jnp.zeros_like(logit), logit], axis=-1)}


def _dropout_keys(keys: Sequence[Array], sizes: Sizes, is_random: bool) -> Key[Array, "B"] | None:
    return jax.random.split(keys[0], sizes.batch) if is_random else None


class ReadoutModel(nnx.Module):
    """The trained model of the task `answers`: a readout, and copies that see something else.

    Args:
        readout: the part.
        beside: by name, such as "words_only", parts of the same kind that are trained beside it.
    """

    def __init__(self, readout: Any, beside: Mapping[str, Any]):
        self.readout, self.beside = readout, nnx.Dict(**beside)
