"""Slot attention (Locatello et al. 2020, arXiv 2006.15055) with its published variants.

The defaults are those of SmoothSA (docs/design.md, section 1.1). Conventions of other programs:

    SAVi and the inverted-attention paper (flax linen)
        epsilon=1e-8, activation="relu", gru="linen", norm_epsilon=1e-6, start="lecun"
    the original (Keras)
        epsilon=1e-8, epsilon_in="weights", activation="relu", norm_epsilon=1e-3, start="glorot"
    OSRT
        epsilon=1e-8, epsilon_in="weights", activation="relu", start="truncated", zero_bias=False
    STEVE
        epsilon=1e-8, epsilon_in="weights", activation="relu", start="xavier", last_mlp=False
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.interfaces import Aggregated, Sizes
from smoothsa_jax.models.layers.attention import KeysValues
from smoothsa_jax.models.layers.basic import (
    ACTIVATIONS,
    EPSILON,
    GRUS,
    MLP,
    GRUCell,
    check_start,
    drop_branch,
    layer_norm,
    linear,
    split_key,
)
from smoothsa_jax.models.layers.competition import (
    EPSILON_IN,
    mix_tokens,
    mix_tokens_by_heads,
    truncated,
)
from smoothsa_jax.parts import (
    check_above_zero,
    check_dropout,
    check_flag,
    check_heads,
    check_number,
    check_one_of,
    check_settings,
    check_whole,
)

GRADIENTS = ("full", "last", "last_and_queries")
SIGNALS = ("max_slot", "mean_slot")
HALTING = ("signal", "threshold", "minimum", "maximum")
SMALL = 1e-6  # keeps the relative change of slots of 0 finite


class SlotAttention(nnx.Module):
    """Competition of slots for tokens: a softmax over slots, an average over tokens, a GRU.

    Args:
        width: C of the tokens.
        slot_size: D.
        first: number of iterations on the first frame.
        later: number of iterations on every later frame; None: as on the first.
        gradient: what the gradient passes through. "full": all iterations. "last": the last one
            only, so the queries get none (Chang et al. 2022). "last_and_queries": the last one,
            and from there straight to the queries (bi-level truncation: BO-QSA, SmoothSA).
        extra_iteration: with a gradient of the last iteration only, whether that one comes on top
            of the others, as in the programs of Chang et al. and of DINOSAUR.
        epsilon: keeps the average over tokens finite; 1e-5 in SmoothSA, 1 in BO-QSA.
        epsilon_in: "sum": added to each slot's sum of weights. "weights": added to every weight
            before they are summed, as in the original and in DINOSAUR (1e-8).
        state: what the GRU updates: the "slots"; or the "normalized" ones that the queries are made
            of, as in the programs of VideoSAUR and SlotContrast.
        qkv_size: Q, width of queries, keys and values; None: D.
        num_heads: number of heads. With several, each has its own softmax over slots, and a Linear
            layer takes all of them to the width of one (SAVi).
        gru: which biases the GRU has, those of "torch" (and Keras) or of flax "linen".
        norm_epsilon: of every LayerNorm; 1e-5 in torch, 1e-6 in flax linen, 1e-3 in Keras.
        mlp_ratio: hidden width of the MLP, as a multiple of D; 0: no MLP.
        mlp_size: hidden width of the MLP, in place of `mlp_ratio`; 0: no MLP.
        last_mlp: whether the MLP also follows the last iteration of a frame; not in STEVE (arXiv
            2205.14065).
        activation: "gelu" or "relu", of the MLP.
        dropout_rate: in training, of the MLP's hidden units.
        mlp_drop_rate: in training, probability that a sample goes without the MLP of an iteration
            (stochastic depth; 0.2 in BO-QSA).
        start: initial values: those of "torch"; or, with an orthogonal GRU, "xavier" (SPOT),
            "lecun" (flax linen) or "glorot" (Keras); or "truncated" with torch's GRU (OSRT).
        attention_start: of the projections to queries and keys; None: as `start`.
        zero_bias: whether the biases of GRU and MLP start at 0; with "torch".
        halting: when a sample stops iterating; None: after the same number as all others. A group:
            `signal`, what is compared with `threshold`: the relative change of the "max_slot", the
            slot that an iteration has changed most, or the "mean_slot" (see `relative_change`); and
            the `minimum` and `maximum` of iterations, of every frame. A threshold of 0 never stops:
            all run `maximum`. A call's `iterations` take the place of `maximum`.
        iterations: the number drawn in training, (low, high), both ends included: one for a step,
            the same for all samples and frames. None: as `first` and `later` say, as at evaluation.
    """

    groups = ("halting",)
    of_frames = ("iterations",)  # where samples may stop early, or the number is drawn
    # Whether gradients may flow; `ModelDefinition.merge` sets it. Only without can a loop end when
    # all samples have stopped.
    differentiated = True

    def __init__(
        self,
        width: int,
        slot_size: int,
        *,
        first: int,
        later: int | None,
        gradient: str = "full",
        extra_iteration: bool = False,
        epsilon: float = 1e-5,
        epsilon_in: str = "sum",
        state: str = "slots",
        qkv_size: int | None = None,
        num_heads: int = 1,
        gru: str = "torch",
        norm_epsilon: float = EPSILON,
        mlp_ratio: float = 4.0,
        mlp_size: int | None = None,
        last_mlp: bool = True,
        activation: str = "gelu",
        dropout_rate: float = 0.0,
        mlp_drop_rate: float = 0.0,
        start: str = "torch",
        attention_start: str | None = None,
        zero_bias: bool = True,
        halting: Mapping[str, Any] | None = None,
        iterations: Sequence[int] | None = None,
        rngs: nnx.Rngs,
    ):
        path = "model.aggregator"
        check_whole(f"{path}.first", first)
        if later is not None:
            check_whole(f"{path}.later", later)
        check_one_of(f"{path}.gradient", gradient, GRADIENTS)
        check_flag(f"{path}.extra_iteration", extra_iteration)
        check_above_zero(f"{path}.epsilon", epsilon)
        check_one_of(f"{path}.epsilon_in", epsilon_in, EPSILON_IN)
        check_one_of(f"{path}.state", state, ("slots", "normalized"))
        if qkv_size is not None:
            check_whole(f"{path}.qkv_size", qkv_size)
        inner = qkv_size or slot_size
        check_heads(f"{path}.num_heads", num_heads, inner, f"the width {inner} of its queries")
        check_one_of(f"{path}.gru", gru, GRUS)
        check_above_zero(f"{path}.norm_epsilon", norm_epsilon)
        check_number(f"{path}.mlp_ratio", mlp_ratio)
        if mlp_size is not None:
            check_whole(f"{path}.mlp_size", mlp_size, least=0)
        check_flag(f"{path}.last_mlp", last_mlp)
        check_one_of(f"{path}.activation", activation, ACTIVATIONS)
        check_dropout(f"{path}.dropout_rate", dropout_rate)
        check_dropout(f"{path}.mlp_drop_rate", mlp_drop_rate)
        check_start(f"{path}.start", start)
        if attention_start is not None:
            check_start(f"{path}.attention_start", attention_start)
        check_flag(f"{path}.zero_bias", zero_bias)
        if extra_iteration and gradient == "full":
            raise UserError(
                f"{path}.extra_iteration is True, but the gradient passes through all iterations; "
                f"set --config.{path}.gradient=last or last_and_queries"
            )
        self.halting, self.drawn = _halting(f"{path}.halting", halting), None
        if iterations is not None:
            self.drawn = _range(f"{path}.iterations", iterations)
        self._check_varied(path, extra_iteration, last_mlp)
        extra = int(extra_iteration)
        self.first, self.later = first + extra, (later or first) + extra
        self.gradient = gradient
        self.averages = {"epsilon": epsilon, "epsilon_in": epsilon_in}
        self.num_heads, self.normalized = num_heads, state == "normalized"
        self.dropout_rate, self.mlp_drop_rate = dropout_rate, mlp_drop_rate
        self.last_mlp = last_mlp
        hidden = round(mlp_ratio * slot_size) if mlp_size is None else mlp_size
        of_queries = attention_start or start
        norm = lambda size: layer_norm(size, epsilon=norm_epsilon, rngs=rngs)  # noqa: E731
        self.norm_features = norm(width)
        self.norm_slots = norm(slot_size)
        self.norm_mlp = norm(slot_size) if hidden else None
        self.query = linear(slot_size, inner, bias=False, start=of_queries, rngs=rngs)
        self.key = linear(width, inner, bias=False, start=of_queries, rngs=rngs)
        self.value = linear(width, inner, bias=False, start=start, rngs=rngs)
        updates = inner // num_heads
        of_gru = {"form": gru, "start": start, "zero_bias": zero_bias, "rngs": rngs}
        self.gru = GRUCell(slot_size, updates, **of_gru)
        sizes = (slot_size, hidden, slot_size)
        of_mlp = {"zero_bias": zero_bias, "activation": activation, "start": start, "rngs": rngs}
        self.mlp = MLP(sizes, **of_mlp) if hidden else None
        self.out = linear(inner, updates, start=start, rngs=rngs) if num_heads > 1 else None

    def prepare(self, tokens: Float[Array, "*batch M C"]) -> KeysValues:
        """Return keys and values (*batch, M, Q)."""
        normed = self.norm_features(tokens)
        return self.key(normed), self.value(normed)

    def __call__(
        self,
        prepared: KeysValues,
        queries: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None = None,
        draws: Array | None = None,
        first: bool = True,
        iterations: int | None = None,
    ) -> Aggregated:
        """Run the iterations; see `interfaces.Aggregator`.

        The returned attention is not yet normalized over tokens. The extra `attention_logits`
        (B,N,M) are those of the last iteration, before the softmax over slots. With several heads,
        the attention is their mean, and the extra `head_attention` (B,I,H,N,M) has them all.

        Where samples may stop early, I is the largest number, a sample that has stopped keeps its
        slots and attention, and the extra `iterations` (B,) int32 is how many it has run.
        """
        count = None
        if isinstance(draws, dict):  # the number is drawn
            draws, count = draws["dropout"], draws["iterations"] if iterations is None else None
        num_iterations = iterations or (self.first if first else self.later)
        if self.halting is not None and iterations is None:
            num_iterations = self.halting.maximum
        if count is not None:
            num_iterations = self.drawn[1]
        keys = [None] * num_iterations
        if draws is not None:
            keys = split_key(draws, num_iterations)
        if count is not None or (self.halting is not None and self.halting.threshold > 0):
            return self._until_it_stops(prepared, queries, slot_mask, keys, count)
        slots, states, attentions, logits = queries, [], [], None
        for iteration in range(num_iterations):
            is_last = iteration == num_iterations - 1
            if is_last:
                slots = truncated(slots, queries, self.gradient)
            inputs, with_mlp = (slots, *prepared, slot_mask), self.last_mlp or not is_last
            slots, attention, logits = self._iterate(*inputs, keys[iteration], with_mlp)
            states.append(slots)
            attentions.append(attention)
        used = None
        if self.halting is not None or self.drawn is not None:
            used = jnp.full(len(queries), num_iterations, jnp.int32)
        maps = jnp.stack(attentions), logits
        return self._aggregated(slots, *maps, jnp.stack(states), slot_mask, used)

    def _aggregated(self, slots, attention, logits, states, slot_mask, used) -> Aggregated:
        extras = {"attention_logits": logits}
        if self.num_heads > 1:
            extras = {"head_attention": attention.swapaxes(0, 1)}
            attention = attention.mean(axis=2)
        extras |= {} if used is None else {"iterations": used}
        return Aggregated(slots, attention, states, slot_mask, extras)

    def _until_it_stops(self, prepared, queries, slot_mask, keys, count) -> Aggregated:
        """Run iterations until each sample has stopped, or has run `count` (B,) of them.

        The gradient is that of each sample's own iterations: of all of them, or of its last one.
        """
        run = lambda slots, key: self._iterate(slots, *prepared, slot_mask, key)  # noqa: E731
        most = len(keys)

        def goes_on(new: Array, old: Array, done: Int[Array, ""] | int) -> Bool[Array, " B"]:
            if count is not None:
                return done < count
            change = jax.lax.stop_gradient(relative_change(new, old, slot_mask))
            change = (
                change.max(axis=1)
                if self.halting.signal == "max_slot"
                else _mean_of_valid(change, slot_mask)
            )
            return (done < self.halting.minimum) | (change >= self.halting.threshold)

        def step(state: _Running, done: Int[Array, ""] | int) -> _Running:
            key = None if keys[0] is None else keys[done]
            new, attention, logits = run(state.slots, key)
            active = state.active
            found = new, attention, logits, state.slots
            kept = state.slots, state.attention, state.logits, state.before
            found = jax.tree.map(lambda one, two: _where(active, one, two), found, kept)
            go_on = active & goes_on(new, state.slots, done + 1)
            return _Running(*found, go_on, state.used + active)

        slots, attention, logits = run(queries, keys[0])
        used = jnp.ones(len(queries), jnp.int32)
        state = _Running(slots, attention, logits, queries, goes_on(slots, queries, 1), used)
        if self.differentiated:
            states, attentions = [slots], [attention]
            for done in range(1, most):
                state = step(state, done)
                states.append(state.slots)
                attentions.append(state.attention)
            states, attentions = jnp.stack(states), jnp.stack(attentions)
        else:
            state, states, attentions = _while_any(step, state, most)
        slots, attention, logits = state.slots, state.attention, state.logits
        if self.differentiated and self.gradient != "full":
            # Once more what was each sample's last iteration, with its gradient alone.
            start = truncated(state.before, queries, self.gradient)
            own = None if keys[0] is None else keys[state.used - 1, jnp.arange(len(queries))]
            slots, attention, logits = run(start, own)
        last = jnp.arange(most)[:, None] >= state.used - 1  # (I,B)
        states = _where(last, slots, states)
        attentions = _where(last, attention, attentions)
        return self._aggregated(slots, attentions, logits, states, slot_mask, state.used)

    def _check_varied(self, path: str, extra_iteration: bool, last_mlp: bool) -> None:
        """Refuse settings that do not go with a number of iterations that varies."""
        halts = self.halting is not None
        if halts and self.drawn is not None:
            raise UserError(
                f"{path} has both halting and iterations={self.drawn}; expected one of them: leave "
                "one out"
            )
        name = "halting" if halts else "iterations" if self.drawn is not None else ""
        for key, value in (("extra_iteration", extra_iteration), ("last_mlp", not last_mlp)):
            if name and value:
                raise UserError(
                    f"{path}.{key} is {key == 'extra_iteration'}, which does not go with "
                    f"{path}.{name}: which iteration is the last one is not known before; leave "
                    f"{name} out"
                )

    def _iterate(self, slots, keys, values, slot_mask, dropout_key=None, with_mlp=True):
        normed = self.norm_slots(slots)
        inputs = self.query(normed), keys, values, slot_mask
        if self.num_heads == 1:
            mixed, attention, logits = mix_tokens(*inputs, **self.averages)
        else:
            settings = {"num_heads": self.num_heads, **self.averages}
            mixed, attention, logits = mix_tokens_by_heads(*inputs, **settings)
            mixed = self.out(mixed)
        slots = self.gru(mixed, normed if self.normalized else slots)
        if self.mlp is not None and with_mlp:
            update = self.mlp(self.norm_mlp(slots), self.dropout_rate, dropout_key)
            slots = slots + drop_branch(update, self.mlp_drop_rate, dropout_key)
        return slots, attention, logits

    def draw(self, keys, sizes: Sizes, training: bool) -> Array | dict[str, Array | None] | None:
        """Return the keys (B,T) of dropout and stochastic depth; None: neither.

        With a number of iterations that is drawn, these keys are `dropout` in a dictionary, beside
        `iterations` (B,T) int32, one number again and again.
        """
        if not training:
            return None
        places, found = (sizes.batch, sizes.frames), None
        if self.dropout_rate or self.mlp_drop_rate:
            found = jax.random.split(keys[0], sizes.batch * sizes.frames).reshape(places)
        if self.drawn is None:
            return found
        low, high = self.drawn
        number = jax.random.randint(jax.random.fold_in(keys[0], 1), (), low, high + 1, jnp.int32)
        return {"dropout": found, "iterations": jnp.broadcast_to(number, places)}


class Halting(NamedTuple):
    """When a sample stops iterating; see `SlotAttention`."""

    signal: str
    threshold: float
    minimum: int
    maximum: int


class _Running(NamedTuple):
    """A batch between two iterations.

    Attributes:
        slots: what each sample has found.
        attention: of its last iteration, with heads where there are several.
        logits: the same before the softmax.
        before: the slots that entered its last iteration.
        active: whether it goes on.
        used: how many iterations it has run.
    """

    slots: Float[Array, "B N D"]
    attention: Float[Array, "B ... N M"]
    logits: Float[Array, "B ... N M"]
    before: Float[Array, "B N D"]
    active: Bool[Array, " B"]
    used: Int[Array, " B"]


def relative_change(
    new: Float[Array, "B N D"], old: Float[Array, "B N D"], slot_mask: Bool[Array, "B N"] | None
) -> Float[Array, "B N"]:
    """Return how far slots have moved: the squared distance over the new squared norm, float32.

    Masked slots have 0, and so have slots that are 0 and stay so.
    """
    new, old = new.astype(jnp.float32), old.astype(jnp.float32)
    square = lambda x: jnp.square(x).sum(axis=-1)  # noqa: E731
    change = square(new - old) / (square(new) + SMALL)
    return change if slot_mask is None else jnp.where(slot_mask, change, 0.0)


def _mean_of_valid(x, slot_mask):
    number = x.shape[1] if slot_mask is None else jnp.maximum(slot_mask.sum(axis=1), 1)
    return x.sum(axis=1) / number


def _where(chosen: Bool[Array, "*b"], one: Array, two: Array) -> Array:
    """Choose by the leading axes, which `chosen` has; `one` may lack the first of them."""
    return jnp.where(chosen.reshape(*chosen.shape, *(1,) * (two.ndim - chosen.ndim)), one, two)


def _while_any(step, state: _Running, most: int):
    """Take steps until no sample is active, at most until `most` iterations are done.

    Returns:
        The last state; and slots and attention after every iteration, of which those after the last
        one are empty.
    """
    rows = [jnp.zeros((most, *x.shape), x.dtype).at[0].set(x) for x in state[:2]]

    def go_on(carry):
        done, state, _ = carry
        return (done < most) & jnp.any(state.active)

    def once(carry):
        done, state, rows = carry
        state = step(state, done)
        rows = [x.at[done].set(new) for x, new in zip(rows, state[:2], strict=True)]
        return done + 1, state, rows

    _, state, rows = jax.lax.while_loop(go_on, once, (jnp.int32(1), state, rows))
    return state, *rows


def _halting(path: str, settings: Mapping[str, Any] | None) -> Halting | None:
    """Check the settings of halting.

    Raises:
        UserError: names the first that does not fit.
    """
    if settings is None:
        return None
    if not hasattr(settings, "items"):
        raise UserError(
            f"{path} is {settings!r}; expected None or a group of {', '.join(HALTING)}, such as "
            '{"signal": "max_slot", "threshold": 0.05, "minimum": 1, "maximum": 6}'
        )
    check_settings(path, path, dict(settings.items()), dict.fromkeys(HALTING, False))
    found = Halting(**{name: settings[name] for name in HALTING})
    check_one_of(f"{path}.signal", found.signal, SIGNALS)
    check_number(f"{path}.threshold", found.threshold)
    check_whole(f"{path}.minimum", found.minimum)
    check_whole(f"{path}.maximum", found.maximum, found.minimum)
    return found


def _range(path: str, value: Sequence[int]) -> tuple[int, int]:
    """Check a range of iterations.

    Raises:
        UserError: it is no such range.
    """
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    whole = is_pair and all(isinstance(x, int) and not isinstance(x, bool) for x in value)
    if not whole or not 1 <= value[0] <= value[1]:
        raise UserError(
            f"{path} is {value!r}; expected the lowest and the highest number of iterations that a "
            "training step draws, such as (1, 6); the number at evaluation is eval.iterations"
        )
    return tuple(value)
