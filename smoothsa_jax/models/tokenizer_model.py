"""TokenizerModel: a tokenizer, and the frozen encoder whose features it may read."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.backend import CPU
from smoothsa_jax.models.encoders.pixels import normalize
from smoothsa_jax.models.interfaces import Draws, Encoder, Scheduled, Sizes, Tokenizer

TOKENIZER = "tokenizer"
FEATURES, PIXELS = "features", "pixels"  # what a tokenizer may read


class TokenizerModel(nnx.Module):
    """What the task `tokenizer` trains, and what a later stage has as its companion.

    Args:
        encoder: of the features that the tokenizer reads; None: it reads pixels.
        tokenizer: the tokenizer.
    """

    backend = CPU
    compute_dtype = "float32"
    frozen_parts: frozenset[str] = frozenset()

    def __init__(self, encoder: Encoder | None, tokenizer: Tokenizer):
        self.encoder, self.tokenizer = encoder, tokenizer

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype that it computes in; `ModelDefinition.merge` sets it."""
        return jnp.dtype(self.compute_dtype)

    def draw(self, key: Array, sizes: Sizes, training: bool) -> dict[str, Draws]:
        """Draw all random numbers of a pass, by the name of the part."""
        return {TOKENIZER: self.tokenizer.draw([key], sizes, training)}

    def encode(self, video: Array) -> dict[str, Array]:
        """Return `features` (B,T,M,C) of all frames of (B,T,H,W,3); nothing without an encoder."""
        if self.encoder is None:
            return {}
        frames = jax.lax.stop_gradient(normalize(fold(video), self.encoder))
        found = self.encoder(frames)["features"].astype(self.dtype)
        return {"features": unfold(found, len(video))}

    def inputs(self, video: Array | None, features: Array | None) -> Array:
        """Return what the tokenizer reads, (B,T,...): normalized pixels, or features.

        Args:
            video: pixels (B,T,H,W,3).
            features: features of the encoder; None: they are computed of the pixels.
        """
        if self.tokenizer.reads == PIXELS:
            return normalize(video, self.tokenizer)
        return self.encode(video)["features"] if features is None else features

    def __call__(
        self, inputs: Array, draws: Mapping[str, Draws], scheduled: Scheduled
    ) -> dict[str, Array]:
        """Return the tokenizer's outputs (B,T,...), to train it.

        Args:
            inputs: what `inputs` returned.
            draws: what `draw` returned.
            scheduled: the current values of the tokenizer's schedules.
        """
        drawn = jax.tree.map(fold, draws[TOKENIZER])
        found = self.tokenizer(fold(inputs), drawn, scheduled)
        return {name: floats(unfold(x, len(inputs))) for name, x in found.items()}

    def target(self, video: Array) -> Array:
        """Return what the decoded pixels should be, (B,T,H',W',3), without parameters."""
        frames = normalize(fold(video), self.tokenizer)
        return jax.lax.stop_gradient(unfold(self.tokenizer.target(frames), len(video)))

    def tokens(
        self, inputs: Array, draws: Mapping[str, Draws], scheduled: Scheduled
    ) -> dict[str, Array]:
        """Return `tokens` (B,T,M) int32 and `codes` (B,T,M,D); nothing is decoded.

        They are constants of the step: no gradient passes through them. The arguments are those of
        a call.
        """
        drawn = jax.tree.map(fold, draws[TOKENIZER])
        latents = self.tokenizer.encode(fold(inputs))
        found = self.tokenizer.quantize(latents, drawn, scheduled)
        outputs = {"tokens": found.tokens, "codes": floats(found.codes)}
        return {name: jax.lax.stop_gradient(unfold(x, len(inputs))) for name, x in outputs.items()}

    def of_tokens(self, tokens: Array) -> dict[str, Array]:
        """Return the same for tokens (B,T,M) that are known."""
        codes = unfold(floats(self.tokenizer.codes(fold(tokens))), len(tokens))
        return {"tokens": tokens, "codes": jax.lax.stop_gradient(codes)}


def check_reads(name: str, reads: str) -> None:
    """Refuse a tokenizer of a user that says neither of the two.

    Args:
        name: its name in the config.
        reads: its attribute.
    """
    if reads not in (FEATURES, PIXELS):
        raise UserError(
            f"model.tokenizer.name={name!r} reads {reads!r}; expected {FEATURES!r} or {PIXELS!r}; "
            "set the attribute `reads` of its class"
        )


def fold(x: Array) -> Array:
    """Fold frames into the batch: (B,T,...) -> (B*T,...)."""
    return x.reshape(-1, *x.shape[2:])


def unfold(x: Array, batch: int) -> Array:
    """The inverse of `fold`."""
    return x.reshape(batch, -1, *x.shape[1:])


def floats(x: Array) -> Array:
    """Losses and metrics are float32; tokens stay whole numbers."""
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
