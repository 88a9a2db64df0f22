"""The denoising decoder: a UNet that predicts the noise in a tokenizer's codes (SlotDiffusion)."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.layers.basic import split_key
from smoothsa_jax.models.layers.conv import group_norm
from smoothsa_jax.models.layers.diffusion import NUM_STEPS, sample_ddim
from smoothsa_jax.models.layers.unet import (
    BLOCK_EPSILON,
    Level,
    StepEmbedding,
    convolution,
    twice_as_large,
)
from smoothsa_jax.parts import check_dropout, check_flag, check_heads, check_whole

PATH = "model.decoder"
SAMPLING_STEPS = 200  # of DDIM, in the paper


class DenoisingUNet(nnx.Module):
    """A decoder that predicts the noise in noisy codes, and sees slots by cross-attention.

    It has no masks. All levels but the first have transformers, and so has the middle. From
    SlotDiffusion (Wu et al. 2023, arXiv 2305.11281, section 3.2).

    Args:
        grid: (h, w) of the codes.
        width: D of a code.
        slot_size: width of the slots.
        widths: channels of each level, the finest first; the first one is even.
        num_blocks: residual blocks of a level on the way down; there is one more on the way up.
        groups: of all GroupNorms; divides all widths.
        num_heads: attention heads on every level, as in the re-implementation; or None.
        head_size: channels of a head, as in the original; or None. One of the two is given.
        dropout_rate: of the residual blocks, in training.
        zero_start: whether each residual block, each transformer and the output start at 0, as in
            the original.
    """

    exact = ("time",)
    needs = ("noisy", "time")

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        slot_size: int,
        *,
        widths: Sequence[int],
        num_blocks: int,
        groups: int,
        num_heads: int | None = None,
        head_size: int | None = None,
        dropout_rate: float,
        zero_start: bool,
        rngs: nnx.Rngs,
    ):
        check_widths(widths, groups)
        check_whole(f"{PATH}.num_blocks", num_blocks)
        check_dropout(f"{PATH}.dropout_rate", dropout_rate)
        check_flag(f"{PATH}.zero_start", zero_start)
        heads = heads_of(widths, num_heads, head_size)
        self.grid, self.width, self.dropout_rate = tuple(grid), width, dropout_rate
        self.remat = False  # whether the backward pass recomputes each block
        self.embedding = StepEmbedding(widths[0], rngs=rngs)
        step_size, last = 4 * widths[0], len(widths) - 1

        def level(number: int, in_features: Sequence[int], resample: str | None) -> Level:
            return Level(
                in_features,
                widths[number],
                step_size,
                transformers=len(in_features) if number else 0,
                slot_size=slot_size,
                num_heads=heads[number],
                groups=groups,
                dropout_rate=dropout_rate,
                zero_start=zero_start,
                resample=resample,
                rngs=rngs,
            )

        self.conv_in = convolution(width, widths[0], rngs=rngs)
        skips, down, up = [widths[0]], [], []
        for number, of_level in enumerate(widths):
            ins = [skips[-1]] + [of_level] * (num_blocks - 1)
            down.append(level(number, ins, "down" if number < last else None))
            skips += [of_level] * (num_blocks + (number < last))
        self.middle = Level(
            [widths[-1]] * 2,
            widths[-1],
            step_size,
            transformers=1,
            slot_size=slot_size,
            num_heads=heads[-1],
            groups=groups,
            dropout_rate=dropout_rate,
            zero_start=zero_start,
            resample=None,
            rngs=rngs,
        )
        current = widths[-1]
        for number in reversed(range(len(widths))):
            ins = []
            for _ in range(num_blocks + 1):
                ins.append(current + skips.pop())
                current = widths[number]
            up.append(level(number, ins, "up" if number else None))
        self.down, self.up = nnx.List(down), nnx.List(up)
        self.norm_out = group_norm(widths[0], groups, epsilon=BLOCK_EPSILON, rngs=rngs)
        self.conv_out = convolution(widths[0], width, zero=zero_start, rngs=rngs)

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        given: Mapping[str, Array],
        draws: Array | None = None,
    ) -> tuple[dict[str, Float[Array, "B M D"]], None]:
        """Return the predicted noise as `prediction`, and no masks.

        Args:
            slots: the slots of each frame.
            slot_mask: true = valid.
            given: `noisy` (B,M,D), the codes with noise, and `time` (B,), how many steps of noise,
                counted from 0.
            draws: the keys (B,) of dropout; None: no dropout.
        """
        found = self.denoise(given["noisy"], given["time"], slots, slot_mask, draws)
        return {"prediction": found}, None

    def denoise(
        self,
        noisy: Float[Array, "B M D"],
        time: Int[Array, "B"],
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        dropout_keys: Array | None = None,
    ) -> Float[Array, "B M D"]:
        """Return the predicted noise; the arguments are those of a call."""
        levels = [*self.down, self.middle, *self.up]
        number = sum(len(level.blocks) for level in levels)
        keys = iter([None] * number if dropout_keys is None else split_key(dropout_keys, number))
        embedded = self.embedding(time, noisy.dtype)

        def step(level: Level, number: int, x: Array) -> Array:
            def apply(x, embedded, slots, key):
                return level.step(number, x, embedded, slots, slot_mask, key)

            again = jax.checkpoint(apply) if self.remat else apply
            return again(x, embedded, slots, next(keys))

        x = self.conv_in(noisy.reshape(len(noisy), *self.grid, self.width))
        skips = [x]
        for level in self.down:
            for i in range(len(level.blocks)):
                x = step(level, i, x)
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)
        for i in range(len(self.middle.blocks)):
            x = step(self.middle, i, x)
        for level in self.up:
            for i in range(len(level.blocks)):
                x = step(level, i, jnp.concatenate([x, skips.pop()], axis=-1))
            if level.resample is not None:
                x = level.resample(twice_as_large(x, skips[-1].shape[1:3]))
        x = self.conv_out(jax.nn.silu(self.norm_out(x)))
        return x.reshape(noisy.shape)

    def generate(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        key: Array,
        steps: int,
    ) -> Float[Array, "B M D"]:
        """Draw codes of pictures with these slots, by DDIM; float32.

        Args:
            slots: the slots of each frame.
            slot_mask: true = valid.
            key: of the noise to start from, the only draw.
            steps: how often the UNet runs, 1 to 1000; 200 in the paper.

        Raises:
            UserError: the number of steps is impossible.
        """
        check_whole("steps", steps)
        if steps > NUM_STEPS:
            raise UserError(f"steps is {steps}; expected at most {NUM_STEPS}, as in training")
        start = jax.random.normal(
            key, (len(slots), self.grid[0] * self.grid[1], self.width), jnp.float32
        )
        predict = lambda x, time: self.denoise(x.astype(slots.dtype), time, slots, slot_mask)  # noqa: E731
        return sample_ddim(predict, start, steps)

    def draw_codes(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        codes_of: Callable,
        key: Array,
        steps: int | None,
    ) -> Float[Array, "B M D"]:
        """Return codes by DDIM, each picture from the same noise; see `interfaces.Decoder`."""
        del codes_of
        one = lambda slots, mask: self.generate(  # noqa: E731
            slots[None], None if mask is None else mask[None], key, steps or SAMPLING_STEPS
        )
        return jax.vmap(one)(slots, slot_mask)[:, 0]

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Array | None:
        """Return the keys (B,T) of dropout; None: no dropout."""
        if not training or not self.dropout_rate:
            return None
        found = jax.random.split(keys[0], sizes.batch * sizes.frames)
        return found.reshape(sizes.batch, sizes.frames)


def check_widths(widths: Sequence[int], groups: int) -> None:
    """Refuse widths of levels that GroupNorms, or waves of the step, do not divide."""
    check_whole(f"{PATH}.groups", groups)
    if isinstance(widths, str | int) or not len(widths):
        raise UserError(
            f"{PATH}.widths is {widths!r}; expected the channels of each level, such as "
            "(128, 256, 384, 512)"
        )
    for width in widths:
        check_whole(f"{PATH}.widths", width)
        if width % groups:
            raise UserError(
                f"{PATH}.widths has {width}, which {PATH}.groups={groups} does not divide; set "
                f"--config.{PATH}.groups to a divisor of all widths"
            )
    if widths[0] % 2:
        raise UserError(
            f"{PATH}.widths starts with {widths[0]}; expected an even number, half of which are "
            "cosines of the step"
        )


def heads_of(
    widths: Sequence[int], num_heads: int | None, head_size: int | None
) -> tuple[int, ...]:
    """Return the number of heads of each level; that of a level without attention is unused.

    Raises:
        UserError: both or neither of the two are given, or a width is not divisible.
    """
    if (num_heads is None) == (head_size is None):
        raise UserError(
            f"{PATH} has num_heads {num_heads} and head_size {head_size}; set one of them, and the "
            "other to None"
        )
    name, number = ("num_heads", num_heads) if head_size is None else ("head_size", head_size)
    for width in widths[1:] or widths:
        check_heads(f"{PATH}.{name}", number, width, f"the width {width} of a level")
    return tuple(num_heads or max(1, width // head_size) for width in widths)
