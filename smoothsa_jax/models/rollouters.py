"""Rollouters: models that continue the slots of a video, frame by frame.

They are trained on slots of a frozen slot model, by the task `dynamics`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.buffers import Buffer
from smoothsa_jax.models.interfaces import Rollouter, Sizes
from smoothsa_jax.models.layers.basic import linear, split_key
from smoothsa_jax.models.layers.transformer import NORMS, copied_layers, run_copied_layers
from smoothsa_jax.parts import (
    check_dropout,
    check_flag,
    check_heads,
    check_one_of,
    check_whole,
)

POSITIONS = ("time", "token", "learned")
SEEN = "seen_slots"  # an output: the slots of which the mean and the deviation are kept
LEAST_SCALE = 1e-6  # of a channel that never changes


class SlotFormer(nnx.Module):
    """A transformer over the slots of the last frames, without any mask (SlotFormer).

    All slots of a window of frames see each other, in both directions of time. The outputs at the
    newest frame are the next frame's slots, which enter the window as the oldest frame leaves. From
    Wu et al. 2023 (arXiv 2210.05861, section 3.2).

    Args:
        num_slots: N.
        slot_size: D.
        width: E of the transformer.
        num_layers: number of its layers, which start as copies of one.
        num_heads: number of its attention heads.
        mlp_size: hidden width of its feed-forwards.
        window: the most frames that it sees, and as many rows of positions as there are.
        history: the fewest frames that it continues; with fewer than `window`, the window grows
            first, and its frames have the last rows of the positions. None: a whole window.
        every: of a video, it sees each so-many-th frame.
        positions: "time": sinusoids of the age of a frame, 0 for the newest. "token": sinusoids
            of the place among all tokens of the window, 0 for the last: every token has its own.
            "learned": a learned row for each frame.
        slot_positions: whether there is also a learned row for each slot. With it, or with
            positions "token", the order of slots counts.
        residual: whether the next slots are those of the newest frame plus the output. The paper
            has it, its program does not.
        norm: where the LayerNorms are; see `EncoderLayer`.
        dropout_rate: in training, of the attention weights, of the hidden units and of each branch.
        normalize: whether slots are shifted and scaled by the mean and the deviation of each
            channel over the slots of training so far; the losses compare these. The authors'
            program does not.
    """

    def __init__(
        self,
        num_slots: int,
        slot_size: int,
        *,
        width: int,
        num_layers: int,
        num_heads: int,
        mlp_size: int,
        window: int,
        history: int | None = None,
        every: int = 1,
        positions: str = "time",
        slot_positions: bool = False,
        residual: bool = False,
        norm: str = "pre",
        dropout_rate: float,
        normalize: bool = False,
        rngs: nnx.Rngs,
    ):
        path = "model.rollouter"
        for key, value in (("width", width), ("num_layers", num_layers), ("mlp_size", mlp_size)):
            check_whole(f"{path}.{key}", value)
        check_heads(f"{path}.num_heads", num_heads, width, f"{path}.width {width}")
        check_whole(f"{path}.window", window)
        if history is not None:
            check_whole(f"{path}.history", history)
        if (history or window) > window:
            raise UserError(
                f"{path}.history is {history}, more than the {window} frames of {path}.window, "
                f"which are all that it sees; set --config.{path}.history=None"
            )
        check_whole(f"{path}.every", every)
        check_one_of(f"{path}.positions", positions, POSITIONS)
        check_flag(f"{path}.slot_positions", slot_positions)
        check_flag(f"{path}.residual", residual)
        check_one_of(f"{path}.norm", norm, NORMS)
        check_dropout(f"{path}.dropout_rate", dropout_rate)
        check_flag(f"{path}.normalize", normalize)
        if positions != "learned" and width % 2:
            raise UserError(
                f"{path}.width is {width}, but half of it are sines and half cosines of "
                f"{path}.positions={positions!r}; set an even number"
            )
        self.num_slots, self.slot_size = num_slots, slot_size
        self.window, self.history, self.every = window, history or window, every
        self.of_tokens, self.residual = positions == "token", residual
        self.dropout_rate = dropout_rate
        self.in_projection = linear(slot_size, width, rngs=rngs)
        learned = lambda rows: nnx.Param(jnp.zeros((rows, width), jnp.float32))  # noqa: E731
        self.time_positions = learned(window) if positions == "learned" else None
        self.slot_positions = learned(num_slots) if slot_positions else None
        self.layers = copied_layers(
            num_layers,
            width,
            num_heads,
            norm=norm,
            dropout_rate=dropout_rate,
            mlp_size=mlp_size,
            rngs=rngs,
        )
        self.out_projection = linear(width, slot_size, rngs=rngs)
        mean, scale = jnp.zeros(slot_size, jnp.float32), jnp.ones(slot_size, jnp.float32)
        self.slot_mean = nnx.Param(mean) if normalize else None
        self.slot_scale = nnx.Param(scale) if normalize else None
        # How many slots these are of.
        self.seen = Buffer(jnp.zeros((), jnp.float32)) if normalize else None
        if normalize:
            self.update_reads = (SEEN,)

    def __call__(
        self,
        past: Float[Array, "B H N D"],
        num_steps: int,
        slot_mask: Bool[Array, "B N"] | None = None,
        draws: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B K N D"]:
        """Continue slots; see `interfaces.Rollouter`.

        Raises:
            UserError: there are fewer past frames than `history`.
        """
        if past.shape[1] < self.history:
            raise UserError(
                f"there are slots of {past.shape[1]} past frames, but model.rollouter.history is "
                f"{self.history}; give at least as many frames"
            )
        if past.shape[2] != self.num_slots and (self.of_tokens or self.slot_positions is not None):
            raise UserError(
                f"there are {past.shape[2]} slots, but the positions of model.rollouter are those "
                f"of {self.num_slots}; give as many slots as in training"
            )
        window, found = self.scaled(past[:, -self.window :]), []
        keys = None if draws is None else split_key(draws, num_steps)
        growing = min(self.window - window.shape[1], num_steps)
        for step in range(growing):
            following = self._next(window, slot_mask, None if keys is None else keys[step])
            window = jnp.concatenate([window, following[:, None]], axis=1)
            found.append(following)

        def slide(window, key):
            following = self._next(window, slot_mask, key)
            return jnp.concatenate([window[:, 1:], following[:, None]], axis=1), following

        if num_steps > growing:
            rest = None if keys is None else keys[growing:]
            _, later = jax.lax.scan(slide, window, rest, length=num_steps - growing)
            found += [*later]
        return self.unscaled(jnp.stack(found, axis=1))

    def scaled(self, slots: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Return the slots as it computes with them, and as losses compare them."""
        if self.slot_mean is None:
            return slots
        mean, scale = self._statistics()
        return ((slots - mean) / scale).astype(slots.dtype)

    def unscaled(self, slots: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Undo `scaled`."""
        if self.slot_mean is None:
            return slots
        mean, scale = self._statistics()
        return (slots * scale + mean).astype(slots.dtype)

    def _statistics(self):
        # No gradient: training counts them.
        return jax.lax.stop_gradient((self.slot_mean[...], self.slot_scale[...]))

    def _next(self, window, slot_mask, key):
        """Return the slots (B,N,D) that follow a window."""
        batch, frames, slots, size = window.shape
        x = window.reshape(batch, frames * slots, size).astype(self.in_projection.kernel.dtype)
        x = self.in_projection(x)
        x = x + self._positions(frames, slots).astype(x.dtype)
        mask = None if slot_mask is None else jnp.tile(slot_mask, (1, frames))
        x = run_copied_layers(self.layers, x, mask, key)
        following = self.out_projection(x[:, -slots:]).astype(window.dtype)
        return window[:, -1] + following if self.residual else following

    def _positions(self, frames: int, slots: int) -> Float[Array, "H*N E"]:
        width = self.in_projection.out_features
        if self.time_positions is not None:
            of_frames = self.time_positions[...][-frames:]
        else:
            of_frames = sinusoids(frames * (slots if self.of_tokens else 1), width)
        found = of_frames if self.of_tokens else jnp.repeat(of_frames, slots, axis=0)
        if self.slot_positions is None:
            return found
        return found + jnp.tile(self.slot_positions[...], (frames, 1))

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Key[Array, "B"] | None:
        """Draw the keys of dropout; None: no dropout."""
        if not training or not self.dropout_rate:
            return None
        return jax.random.split(keys[0], sizes.batch)

    def draw_update(self, key: Array, sizes: Sizes) -> None:
        """Draw nothing: no update is random."""

    def with_gradient(self) -> dict[str, str]:
        return {}

    def update(self, outputs: dict[str, Array], draws: None) -> tuple[dict[str, Array], dict]:
        """Return the statistics with the slots of this step; see `models.buffers`."""
        del draws
        slots, mask = outputs[SEEN], outputs.get("slot_mask")
        slots = slots.astype(jnp.float32).swapaxes(1, 2)  # (B,N,T,D)
        weight = jnp.ones(slots.shape[:2]) if mask is None else mask.astype(jnp.float32)
        weight = jnp.broadcast_to(weight[..., None, None], (*slots.shape[:3], 1))
        count, before = weight.sum(), self.seen[...]
        some = jnp.maximum(count, 1.0)  # a batch may have masked slots alone
        mean = (weight * slots).sum(axis=(0, 1, 2)) / some
        variance = (weight * jnp.square(slots - mean)).sum(axis=(0, 1, 2)) / some
        share = count / jnp.maximum(before + count, 1.0)
        apart = mean - self.slot_mean[...]
        together = (1.0 - share) * jnp.square(self.slot_scale[...]) + share * variance
        together = together + share * (1.0 - share) * jnp.square(apart)
        return {
            "seen": before + count,
            "slot_mean": self.slot_mean[...] + share * apart,
            "slot_scale": jnp.sqrt(jnp.maximum(together, LEAST_SCALE**2)),
        }, {}


def sinusoids(length: int, width: int) -> Float[np.ndarray, "T E"]:
    """Sines, then cosines, of the age of each place: 0 for the last one (Vaswani et al. 2017)."""
    ages = np.arange(length)[::-1, None]
    angles = ages * 10_000.0 ** (-2.0 * np.arange(width // 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def interleaved(
    rollouter: Rollouter,
    slots: Float[Array, "B L N D"],
    num_steps: int,
    slot_mask: Bool[Array, "B N"] | None = None,
) -> Float[Array, "B K N D"]:
    """Continue all frames of a video with a rollouter that sees every so-many-th alone.

    Each phase of the video is continued by itself, from its last frames. L may be any number of
    frames that has enough of each phase.

    Args:
        rollouter: the rollouter.
        slots: of all observed frames.
        num_steps: K, number of frames to predict.
        slot_mask: true = valid.

    Raises:
        UserError: there are fewer frames than the rollouter's history.
    """
    every, (batch, length, *rest) = rollouter.every, slots.shape
    frames = min(length // every, rollouter.window)
    if frames < rollouter.history:
        raise UserError(
            f"there are slots of {length} past frames, but model.rollouter.history is "
            f"{rollouter.history}, of every {every}; give at least {rollouter.history * every} "
            "frames"
        )
    phases = slots[:, length - frames * every :].reshape(batch, frames, every, *rest)
    phases = phases.swapaxes(1, 2).reshape(batch * every, frames, *rest)
    mask = None if slot_mask is None else jnp.repeat(slot_mask, every, axis=0)
    steps = -(-num_steps // every)
    found = rollouter(phases, steps, mask).reshape(batch, every, steps, *rest)
    return found.swapaxes(1, 2).reshape(batch, steps * every, *rest)[:, :num_steps]


class RolloutModel(nnx.Module):
    """The trained model of the task `dynamics`: a rollouter.

    Args:
        rollouter: the part.
    """

    def __init__(self, rollouter: Any):
        self.rollouter = rollouter
