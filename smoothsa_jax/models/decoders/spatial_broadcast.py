"""The spatial broadcast decoder: every slot becomes a picture and a mask."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.layers.basic import linear
from smoothsa_jax.models.layers.conv import (
    Convolution,
    Convolutions,
    check_convolutions,
    check_strides,
    size_after_all,
)
from smoothsa_jax.models.layers.positions import PlaceEmbedding, check_position
from smoothsa_jax.parts import check_flag, check_one_of, check_whole

HEADS = ("separate", "joint")
FUSIONS = ("early", "late")


class SpatialBroadcastDecoder(nnx.Module):
    """A decoder that copies each slot to all cells of a small grid and enlarges it to the target.

    Transposed convolutions with ReLUs make channels and a mask logit of each slot at each pixel. A
    softmax over slots weights their sum, and serves as masks. From Watters et al. 2019 (arXiv
    1901.07017), as slot attention (arXiv 2006.15055, appendix E.3), SAVi (arXiv 2111.12594), SAVi++
    (arXiv 2206.07764) and BO-QSA (arXiv 2210.08990) have it. It sees nothing of the target and
    draws no random numbers, so `given` and `draws` are unused.

    Args:
        grid: (h, w) of the prediction.
        width: C of the prediction.
        slot_size: D.
        cells: rows and columns of the small grid; one number for both.
        hidden_size: channels after every layer.
        kernel_size: of every layer.
        strides: of each layer; their product is the factor from cells to pixels.
        transposed: whether each layer is a transposed convolution. With stride 1 that changes
            nothing but torch's initial values; a layer with another stride has to be.
        padding: "same", as in Flax and TensorFlow, or "torch", one pixel off.
        position: the functions of the place that are added to the slots: "linear", "borders" or
            "fourier"; or "none".
        position_waves: how many periods "fourier" has.
        head: what makes prediction and mask logit. "separate": two Linear layers (SAVi). "joint": a
            3x3 convolution, whose last channel is the logit (slot attention, BO-QSA).
        fusion: "late": each slot's prediction is weighted by its mask. "early": each slot's last
            channels are, and their sum is turned into the prediction, which is the same function
            for a Linear layer and needs less memory.
        start: initial values, "torch", "xavier", "lecun" or "glorot".
    """

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        slot_size: int,
        *,
        cells: int | Sequence[int],
        hidden_size: int,
        kernel_size: int,
        strides: Sequence[int],
        transposed: Sequence[bool],
        padding: str,
        position: str,
        position_waves: int | None = None,
        head: str,
        fusion: str,
        start: str,
        rngs: nnx.Rngs,
    ):
        path = "model.decoder"
        self.cells = (cells, cells) if isinstance(cells, int) else tuple(cells)
        for side in self.cells:
            check_whole(f"{path}.cells", side)
        check_whole(f"{path}.hidden_size", hidden_size)
        check_whole(f"{path}.kernel_size", kernel_size)
        check_strides(f"{path}.strides", strides)
        _check_transposed(f"{path}.transposed", transposed, strides)
        check_convolutions(path, padding, start)
        check_position(path, position, position_waves)
        check_one_of(f"{path}.head", head, HEADS)
        check_one_of(f"{path}.fusion", fusion, FUSIONS)
        if head == "joint" and fusion == "early":
            raise UserError(
                f"{path}.fusion is 'early', but the head 'joint' makes predictions of each slot; "
                f"set --config.{path}.fusion=late, or --config.{path}.head=separate"
            )
        layers = [(padding, kernel_size, *x) for x in zip(strides, transposed, strict=True)]
        reached = size_after_all(layers, self.cells)
        if reached != tuple(grid):
            raise UserError(_misfit(self.cells, strides, reached, grid))
        self.grid, self.width, self.early = grid, width, fusion == "early"
        self.remat = False  # as in `RandomARDecoder`
        more = {"start": start, "rngs": rngs}
        place = (self.cells, slot_size, position, position_waves)
        self.place = None if position == "none" else PlaceEmbedding(*place, **more)
        count = len(strides)
        sizes = ((hidden_size,) * count, (kernel_size,) * count, tuple(strides))
        self.layers = Convolutions(
            slot_size, *sizes, transposed=transposed, padding=padding, **more
        )
        of_joint = {"transposed": transposed[-1], "padding": padding, **more}
        is_joint = head == "joint"
        self.joint = Convolution(hidden_size, width + 1, 3, **of_joint) if is_joint else None
        self.alpha = None if is_joint else linear(hidden_size, 1, **more)
        self.values = None if is_joint else linear(hidden_size, width, **more)

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None = None,
        given: Mapping[str, Array] | None = None,
        draws: None = None,
    ) -> tuple[Float[Array, "B M C"], Float[Array, "B N h w"]]:
        """Return the prediction, row by row, and the masks."""
        del given, draws
        batch, num_slots, slot_size = slots.shape
        x = slots.reshape(batch * num_slots, 1, 1, slot_size)
        x = jnp.broadcast_to(x, (len(x), *self.cells, slot_size))
        x = x if self.place is None else self.place(x)
        again = jax.checkpoint if self.remat else lambda function: function
        for number in range(len(self.layers.layers)):
            x = again(lambda x, number=number: self.layers.layer(number, x))(x)
        of_slots = lambda x: x.reshape(batch, num_slots, -1, x.shape[-1])  # noqa: E731
        if self.joint is not None:
            x = of_slots(self.joint(x))
            x, logits = x[..., :-1], x[..., -1]
        else:
            x = of_slots(x)
            logits = self.alpha(x)[..., 0]
        logits = logits.astype(jnp.float32)
        if slot_mask is not None:
            logits = jnp.where(slot_mask[:, :, None], logits, -jnp.inf)
        alpha = jax.nn.softmax(logits, axis=1)
        if self.values is not None and not self.early:
            x = self.values(x)
        prediction = jnp.einsum("bnm,bnmc->bmc", alpha.astype(x.dtype), x)
        if self.early:
            prediction = self.values(prediction)
        return prediction, alpha.reshape(batch, num_slots, *self.grid)

    def draw(self, keys, sizes, training) -> None:
        """Return None: nothing is random."""


def _check_transposed(key: str, transposed: Sequence[bool], strides: Sequence[int]) -> None:
    if isinstance(transposed, bool | str) or len(transposed) != len(strides):
        raise UserError(
            f"{key} is {transposed!r}; expected True or False for each of {len(strides)} strides"
        )
    for enlarges, stride in zip(transposed, strides, strict=True):
        check_flag(key, enlarges)
        if stride > 1 and not enlarges:
            raise UserError(
                f"{key} is {tuple(transposed)} for the strides {tuple(strides)}: a layer of stride "
                f"{stride} would shrink the grid; set it to True there"
            )


def _misfit(
    cells: tuple[int, int],
    strides: Sequence[int],
    reached: tuple[int, int],
    grid: tuple[int, int],
) -> str:
    """Say which cells or strides would reach the target."""
    names = ["{}x{}".format(*x) for x in (cells, reached, grid)]
    text = (
        f"model.decoder.cells {names[0]} with strides {tuple(strides)} reach {names[1]} pixels, "
        f"and the target has {names[2]}; "
    )
    factor = reached[0] // cells[0]
    if factor and not (grid[0] % factor or grid[1] % factor):
        fits = (grid[0] // factor, grid[1] // factor)
        one = fits[0] if fits[0] == fits[1] else fits
        return text + f"set --config.model.decoder.cells={one}, or change the strides"
    return text + (
        f"choose cells times strides that give {names[2]}, or data.image_size={reached[0]}"
    )
