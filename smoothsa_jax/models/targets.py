"""Targets of the decoder: constants of a training step."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.encoders.pixels import normalize
from smoothsa_jax.models.interfaces import Encoder, Sizes, Target
from smoothsa_jax.models.layers.diffusion import NUM_STEPS, add_noise
from smoothsa_jax.parts import check_whole


class Features(nnx.Module):
    """The features of a frozen encoder (DINOSAUR, Seitzer et al. 2023).

    They are those of the model's `target_encoder`, if it has one, and otherwise of its encoder.

    Args:
        encoder: the encoder whose features are the target; its width is the target's.
        image_size: (H, W) of the frames, in pixels; unused.
    """

    def __init__(self, encoder: Encoder, image_size: tuple[int, int], *, rngs: nnx.Rngs):
        del image_size, rngs
        self.width = encoder.width

    def __call__(
        self, batch: Mapping[str, Array], constants: Mapping[str, Array], draws: None = None
    ) -> dict[str, Float[Array, "B T M C"]]:
        """Return the features, through which no gradient flows."""
        del batch, draws
        for name in ("target_features", "features"):
            if name in constants:
                return {"target": jax.lax.stop_gradient(constants[name])}
        raise UserError(
            "model.target.name is 'features', but the encoder is trained, so that its features "
            'are not constant; set weights.encoder.frozen to ("*",), add a model.target_encoder, '
            "or choose another target"
        )

    def draw(self, keys, sizes, training) -> None:
        """Draw nothing: the target is not random."""


class _OfPixels(nnx.Module):
    """A target with a value for each pixel, row by row.

    Subclasses have `width`, `batch_reads` and `of_batch`. Without what it reads, as at inference,
    there is no target, and no decoder of such a target needs it.

    Args:
        encoder: unused, but for the range of its pixels.
        image_size: (H, W) of the frames, in pixels.
    """

    width: int
    batch_reads: tuple[str, ...]

    def __init__(self, encoder: Encoder, image_size: tuple[int, int], *, rngs: nnx.Rngs):
        del rngs
        self.grid = tuple(image_size)
        self.pixels = getattr(encoder, "pixels", "imagenet")

    def __call__(
        self, batch: Mapping[str, Array], constants: Mapping[str, Array], draws: None = None
    ) -> dict[str, Float[Array, "B T H*W C"]]:
        """Return the target, through which no gradient flows."""
        del constants, draws
        if any(name not in batch for name in self.batch_reads):
            return {}
        found = self.of_batch(batch)
        found = found.reshape(*found.shape[:2], -1, self.width).astype(jnp.float32)
        return {"target": jax.lax.stop_gradient(found)}

    def draw(self, keys, sizes, training) -> None:
        """Draw nothing: the target is not random."""


class Pixels(_OfPixels):
    """The pixels, in the range in which the encoder sees them."""

    width = 3
    of_pixels = True
    batch_reads = ("video",)

    def of_batch(self, batch: Mapping[str, Array]) -> Float[Array, "B T H W 3"]:
        return normalize(batch["video"], self)


class Flow(_OfPixels):
    """The flow towards the previous frame as a picture: its direction is the hue (SAVi).

    Kipf et al. 2022 (arXiv 2111.12594). What stands still is white.
    """

    width = 3
    batch_reads = ("flow",)

    def of_batch(self, batch: Mapping[str, Array]) -> Float[Array, "B T H W 3"]:
        return flow_picture(batch["flow"])


class Depth(_OfPixels):
    """log(1 + distance to the camera in world units), from SAVi++ (arXiv 2206.07764)."""

    width = 1
    batch_reads = ("depth",)

    def of_batch(self, batch: Mapping[str, Array]) -> Float[Array, "B T H W 1"]:
        return jnp.log1p(batch["depth"].astype(jnp.float32))[..., None]


class _OfCodes(nnx.Module):
    """A target with a value for each channel of a tokenizer's codes.

    Args:
        encoder: unused, but for its grid.
        image_size: (H, W) of the frames, in pixels; unused.
        width: D of a code.
        grid: (h, w) of the codes; None: that of the encoder's features.
    """

    of_tokenizer = True

    def __init__(
        self,
        encoder: Encoder,
        image_size: tuple[int, int],
        *,
        width: int,
        grid: Sequence[int] | None = None,
        rngs: nnx.Rngs,
    ):
        del image_size, rngs
        check_whole("model.target.width", width)
        self.width, self.grid = width, checked_grid(grid) or tuple(encoder.grid)


class Noise(_OfCodes):
    """The noise in a frozen tokenizer's codes (SlotDiffusion, Wu et al. 2023, arXiv 2305.11281).

    For each frame, a step of the noise schedule and the noise are drawn, at evaluation too, so that
    the loss is random there.
    """

    def __call__(
        self,
        batch: Mapping[str, Array],
        constants: Mapping[str, Array],
        draws: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Return the noise as `target`, `noisy` codes (B,T,M,D) and their `time` (B,T).

        Without codes, or without draws as at inference, there is no target.

        Args:
            batch: unused.
            constants: `codes` (B,T,M,D).
            draws: what `draw` returned.
        """
        del batch
        if draws is None or "codes" not in constants:
            return {}
        codes = jax.lax.stop_gradient(constants["codes"]).astype(jnp.float32)
        noise, time = draws["noise"], draws["time"]
        return {"target": noise, "noisy": add_noise(codes, noise, time), "time": time}

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> dict[str, Array]:
        """Draw `time` (B,T), a whole number from 0 to 999, and `noise` (B,T,M,D)."""
        del training
        of_time, of_noise = jax.random.split(keys[0])
        frames = sizes.batch, sizes.frames
        shape = (*frames, self.grid[0] * self.grid[1], self.width)
        return {
            "time": jax.random.randint(of_time, frames, 0, NUM_STEPS, jnp.int32),
            "noise": jax.random.normal(of_noise, shape, jnp.float32),
        }


def checked_grid(grid: Sequence[int] | None) -> tuple[int, int] | None:
    """Return the grid of a target; None: that of the encoder's features.

    Raises:
        UserError: it is not a pair of whole numbers.
    """
    if grid is None:
        return None
    if isinstance(grid, str) or not isinstance(grid, Sequence) or len(grid) != 2:
        raise UserError(
            f"model.target.grid is {grid!r}; expected (h, w), the tokenizer's, or None for that of "
            "the encoder's features"
        )
    for side in grid:
        check_whole("model.target.grid", side)
    return tuple(grid)


class Several(nnx.Module):
    """Several targets of one grid at once, side by side as channels of one prediction.

    A loss reads all of them, or one with the setting `of`, such as `of="flow"`, so that each can
    have a weight. SAVi++ predicts flow and depth; VQ-VFM-OCL's mixture predicts codes and features.

    Args:
        encoder: the encoder; its grid is that of codes and features.
        image_size: (H, W) of the frames, in pixels.
        pixels, flow, depth, codes, features: the targets; at least two. Channels have this order.

    Attributes:
        parts: name -> the channels of that target.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: tuple[int, int],
        *,
        pixels: Target | None = None,
        flow: Target | None = None,
        depth: Target | None = None,
        codes: Target | None = None,
        features: Target | None = None,
        rngs: nnx.Rngs,
    ):
        del image_size, rngs
        given = {"pixels": pixels, "flow": flow, "depth": depth}
        given |= {"codes": codes, "features": features}
        kinds = ", ".join(list(given)[:-1]) + f" and {list(given)[-1]}"
        given = {name: target for name, target in given.items() if target is not None}
        if len(given) < 2:
            raise UserError(
                f"model.target.name is 'several', with {' and '.join(given) or 'none'}; expected "
                f"at least two of {kinds}; or give model.target.name that one's name"
            )
        grids = {name: getattr(x, "grid", tuple(encoder.grid)) for name, x in given.items()}
        if len(set(grids.values())) > 1:
            sizes = ", ".join(f"{name} {h}x{w}" for name, (h, w) in grids.items())
            raise UserError(
                f"model.target.name is 'several', with grids of different sizes: {sizes}; choose "
                "targets of one grid"
            )
        self.targets = nnx.Dict(given)
        self.grid, self.parts, self.width = next(iter(grids.values())), {}, 0
        for name, target in given.items():
            self.parts[name] = slice(self.width, self.width + target.width)
            self.width += target.width

    def __call__(
        self, batch: Mapping[str, Array], constants: Mapping[str, Array], draws: None = None
    ) -> dict[str, Float[Array, "B T M C"]]:
        """Return `target`, all channels, and the part of each target, such as `flow.target`."""
        found = {name: x(batch, constants, draws) for name, x in self.targets.items()}
        if not all(found.values()):
            return {}
        parts = {f"{name}.target": x["target"] for name, x in found.items()}
        return {"target": jnp.concatenate(list(parts.values()), axis=-1), **parts}

    def draw(self, keys, sizes, training) -> None:
        """Draw nothing: the targets are not random."""


class Codes(_OfCodes):
    """The codes of a frozen tokenizer (VQ-VFM-OCL, arXiv 2502.20263)."""

    of_codes = True

    def __call__(
        self, batch: Mapping[str, Array], constants: Mapping[str, Array], draws: None = None
    ) -> dict[str, Float[Array, "B T M D"]]:
        """Return the codes, through which no gradient flows; nothing without a tokenizer."""
        del batch, draws
        if "codes" not in constants:
            return {}
        return {"target": jax.lax.stop_gradient(constants["codes"]).astype(jnp.float32)}

    def draw(self, keys, sizes, training) -> None:
        """Draw nothing: the target is not random."""


class DiscreteTokens(nnx.Module):
    """The tokens of a tokenizer, which is frozen or trained along (SLATE, STEVE).

    Args:
        encoder: unused, but for its grid.
        image_size: (H, W) of the frames, in pixels; unused.
        vocabulary: V, the number of tokens there are; the prediction has as many logits.
        width: D of a code.
        grid: (h, w) of the tokens; None: that of the encoder's features.
    """

    of_tokenizer = True

    def __init__(
        self,
        encoder: Encoder,
        image_size: tuple[int, int],
        *,
        vocabulary: int,
        width: int,
        grid: Sequence[int] | None = None,
        rngs: nnx.Rngs,
    ):
        del image_size, rngs
        check_whole("model.target.vocabulary", vocabulary, 2)
        check_whole("model.target.width", width)
        self.width, self.code_width = vocabulary, width
        self.grid = checked_grid(grid) or tuple(encoder.grid)

    def __call__(
        self, batch: Mapping[str, Array], constants: Mapping[str, Array], draws: None = None
    ) -> dict[str, Int[Array, "B T M"]]:
        """Return the tokens; nothing where there are none yet."""
        del batch, draws
        return {"target": constants["tokens"]} if "tokens" in constants else {}

    def draw(self, keys, sizes, training) -> None:
        """Draw nothing: the target is not random."""


def flow_picture(flow: Float[Array, "... H W 2"]) -> Float[Array, "... H W 3"]:
    """Return SAVi's picture of a flow, RGB in 0..1 in steps of 1/255.

    The hue is the angle of (row, column), the saturation the length in units of 1/50 of the
    picture's diagonal, at most 1, and the value 1.

    Args:
        flow: rows, then columns, in pixels of this picture.
    """
    flow = flow.astype(jnp.float32)
    height, width = flow.shape[-3:-1]
    rows, columns = flow[..., 0], flow[..., 1]
    hue = (jnp.arctan2(columns, rows) / math.pi + 1.0) / 2.0
    length = jnp.sqrt(jnp.square(rows) + jnp.square(columns))
    saturation = jnp.minimum(length * (50.0 / math.sqrt(height**2 + width**2)), 1.0)
    # HSV to RGB in TensorFlow's order of operations, since the last one rounds down.
    sixths = 6.0 * hue
    red, green, blue = (jnp.abs(sixths - x) for x in (3.0, 2.0, 4.0))
    pure = jnp.clip(jnp.stack([red - 1.0, 2.0 - green, 2.0 - blue], axis=-1), 0.0, 1.0)
    saturation = saturation[..., None]
    rgb = (1.0 - saturation) + saturation * pure
    return jnp.floor(255.5 * rgb) / 255.0
