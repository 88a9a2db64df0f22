"""Convolutions with the padding and the initial values of three programs.

Kernels are (k, k, in, out) and are never flipped, for transposed convolutions too: those put
stride - 1 zeros between the elements of their input, pad it, and correlate it with the kernel.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.backend import CPU
from smoothsa_jax.models.layers.basic import COMMON_STARTS, add_bias, check_start, uniform
from smoothsa_jax.parts import check_one_of, check_whole

# "same" is that of Flax and TensorFlow: n pixels become ceil(n / stride), or n * stride if
# transposed. "torch" has k // 2 zeros on either side, and `output_padding` = stride - 1 if
# transposed, so that for even strides its pictures are one pixel off those of "same".
PADDINGS = ("same", "torch")
STARTS = (*COMMON_STARTS, "he")
NORMS = ("none", "instance", "one_group", "unused")
LAYOUT = ("NHWC", "HWIO", "NHWC")


def padding_of(
    padding: str, kernel: int, stride: int, transposed: bool, size: int
) -> tuple[int, int]:
    """Return the zeros in front of and behind an axis.

    Args:
        padding: one of `PADDINGS`.
        kernel: k.
        stride: s.
        transposed: whether s - 1 zeros are between the elements of the input.
        size: number of elements of the input.
    """
    if not transposed:
        if padding == "torch":
            return kernel // 2, kernel // 2
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2
    if padding == "torch":
        low = kernel - 1 - kernel // 2
        return low, low + stride - 1
    total = kernel + stride - 2
    low = kernel - 1 if stride > kernel - 1 else math.ceil(total / 2)
    return low, total - low


def size_after(
    padding: str, kernel: int, stride: int, transposed: bool, size: tuple[int, int]
) -> tuple[int, int]:
    """Return the height and width of a convolution's output."""

    def side(n: int) -> int:
        zeros = sum(padding_of(padding, kernel, stride, transposed, n))
        if transposed:
            return (n - 1) * stride + 1 + zeros - kernel + 1
        return (n + zeros - kernel) // stride + 1

    return side(size[0]), side(size[1])


def check_strides(key: str, strides: Sequence[int]) -> None:
    """Refuse strides that are not a sequence of whole numbers of at least 1."""
    if isinstance(strides, str | int) or not len(strides):
        raise UserError(
            f"{key} is {strides!r}; expected the stride of each layer, such as (2, 1, 1, 1)"
        )
    for stride in strides:
        check_whole(key, stride)


class Convolution(nnx.Module):
    """A convolution, or a transposed one.

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        kernel_size: k, of a square kernel.
        stride: of both axes.
        transposed: whether it enlarges the input, rather than shrink it.
        padding: "same" or "torch"; see `PADDINGS`.
        bias: whether it has a bias.
        start: initial values, of `STARTS`, as of `linear`; the inputs of an output are those of the
            kernel. "he": uniform in +-sqrt(6/fan_in), for a layer in front of a ReLU (He et al.
            2015), and a bias of 0.
    """

    backend = CPU

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        stride: int = 1,
        *,
        transposed: bool = False,
        padding: str,
        bias: bool = True,
        start: str,
        rngs: nnx.Rngs,
    ):
        self.kernel_size, self.stride = kernel_size, stride
        self.transposed, self.padding = transposed, padding
        shape = (kernel_size, kernel_size, in_features, out_features)
        area = kernel_size**2
        # For torch, the inputs of a transposed convolution are those of its gradient.
        torch_inputs = area * (out_features if transposed else in_features)
        if start == "lecun":
            init = nnx.initializers.lecun_normal()
        elif start == "torch":
            init = uniform(torch_inputs**-0.5)
        elif start == "he":
            init = uniform((6.0 / torch_inputs) ** 0.5)
        else:
            init = uniform((6.0 / (area * (in_features + out_features))) ** 0.5)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        of_bias = uniform(torch_inputs**-0.5) if start == "torch" else nnx.initializers.zeros
        draw = lambda: of_bias(rngs.params(), (out_features,), jnp.float32)  # noqa: E731
        self.bias = nnx.Param(draw()) if bias else None

    def __call__(self, x: Float[Array, "B H W in"]) -> Float[Array, "B h w out"]:
        kernel, s = self.kernel[...], self.stride
        settings = (self.padding, self.kernel_size, s, self.transposed)
        zeros = [padding_of(*settings, side) for side in x.shape[1:3]]
        if not self.transposed:
            out = _correlate(x, kernel, zeros, window_strides=(s, s))
        elif s > 1 and not (self.backend.is_gpu or self.backend.is_tpu):
            out = enlarge(x, kernel, s, zeros)
        else:
            out = _correlate(x, kernel, zeros, window_strides=(1, 1), lhs_dilation=(s, s))
        return out if self.bias is None else add_bias(out, self.bias[...])


def _correlate(x, kernel, zeros, **strides):
    return jax.lax.conv_general_dilated(
        x, kernel, padding=zeros, dimension_numbers=LAYOUT, **strides
    )


def enlarge(
    x: Float[Array, "B H W in"],
    kernel: Float[Array, "k k in out"],
    stride: int,
    zeros: Sequence[tuple[int, int]],
) -> Float[Array, "B h w out"]:
    """A transposed convolution as an ordinary one, with `stride`**2 times as many channels.

    Each output pixel sees only every `stride`-th row and column of the kernel, depending on its
    place, so there is a smaller kernel for each of the `stride`**2 places. XLA's compiler for CPUs
    multiplies by the zeros between the elements, and its gradient takes ten times as long.

    Args:
        x: the input.
        kernel: not flipped.
        stride: s.
        zeros: zeros in front of and behind either axis, after s - 1 zeros between the elements.
    """
    size, (num_in, num_out), s = kernel.shape[0], kernel.shape[2:], stride
    shifts, length = [], 0
    for low, _ in zeros:
        # Row r of every s-th output sees the kernel's rows t with r + t - low divisible by s.
        first = [(low - r) % s for r in range(s)]
        starts = [(r + t - low) // s for r, t in enumerate(first)]
        shifts.append((first, starts))
        ends = [at + len(range(t, size, s)) for t, at in zip(first, starts, strict=True)]
        length = max(length, max(ends) - min(starts))
    small = jnp.zeros((length, length, num_in, s, s, num_out), kernel.dtype)
    (rows, row_starts), (columns, column_starts) = shifts
    for i in range(s):
        for j in range(s):
            part = kernel[rows[i] :: s, columns[j] :: s]
            y, x0 = row_starts[i] - min(row_starts), column_starts[j] - min(column_starts)
            small = small.at[y : y + len(part), x0 : x0 + part.shape[1], :, i, j].set(part)
    small = small.reshape(length, length, num_in, s * s * num_out)
    padding = []
    for axis, starts in enumerate((row_starts, column_starts), start=1):
        count = -(-((x.shape[axis] - 1) * s + 1 + sum(zeros[axis - 1]) - size + 1) // s)
        low = -min(starts)
        padding.append((low, count - x.shape[axis] + length - 1 - low))
    out = _correlate(x, small, padding, window_strides=(1, 1))
    batch, height, width = out.shape[:3]
    out = out.reshape(batch, height, width, s, s, num_out).transpose(0, 1, 3, 2, 4, 5)
    out = out.reshape(batch, height * s, width * s, num_out)
    sides = [(n - 1) * s + 2 + sum(z) - size for n, z in zip(x.shape[1:3], zeros, strict=True)]
    return out[:, : sides[0], : sides[1]]


class Convolutions(nnx.Module):
    """Convolutions, each followed by a ReLU.

    Args:
        in_features: channels of the input.
        widths: channels after each layer.
        kernels: kernel size of each layer.
        strides: stride of each layer.
        transposed: whether each layer is transposed.
        padding: "same" or "torch"; see `PADDINGS`.
        norm: "none"; "instance": a GroupNorm of as many groups as channels in front of each ReLU,
            and convolutions without bias; "one_group": the same with one group (SLATE); or
            "unused": without bias too, but no norm, which is what SAVi's program does for its other
            norms.
        last_relu: whether a ReLU follows the last layer.
        start: initial values; see `Convolution`. With "he", a layer without a ReLU has "xavier".
    """

    def __init__(
        self,
        in_features: int,
        widths: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        *,
        transposed: Sequence[bool] = (),
        padding: str,
        norm: str = "none",
        last_relu: bool = True,
        start: str,
        rngs: nnx.Rngs,
    ):
        self.last_relu = last_relu
        ins = (in_features, *widths[:-1])
        transposed = tuple(transposed) or (False,) * len(widths)
        more = {"padding": padding, "rngs": rngs}
        biases, starts = [norm == "none"] * len(widths), [start] * len(widths)
        if norm == "one_group" and not last_relu:
            biases[-1] = True  # without a ReLU, it has no norm
        if start == "he" and not last_relu:
            starts[-1] = "xavier"
        each = zip(ins, widths, kernels, strides, transposed, starts, biases, strict=True)
        self.layers = nnx.List(
            [
                Convolution(*sizes, transposed=enlarges, start=own, bias=bias, **more)
                for *sizes, enlarges, own, bias in each
            ]
        )
        self.norms = nnx.List(norms) if (norms := self._norms(norm, widths, rngs)) else None

    def _norms(self, norm: str, widths: Sequence[int], rngs: nnx.Rngs) -> list[nnx.GroupNorm]:
        if norm == "instance":
            return [group_norm(width, width, rngs=rngs) for width in widths]
        if norm == "one_group":
            normed = widths if self.last_relu else widths[:-1]
            return [group_norm(width, 1, epsilon=1e-5, rngs=rngs) for width in normed]
        return []

    def __call__(self, x: Float[Array, "B H W in"]) -> Float[Array, "B h w out"]:
        for number in range(len(self.layers)):
            x = self.layer(number, x)
        return x

    def layer(self, number: int, x: Float[Array, "B H W in"]) -> Float[Array, "B h w out"]:
        """Apply one layer with its norm and ReLU."""
        x = self.layers[number](x)
        if self.norms is not None and number < len(self.norms):
            x = self.norms[number](x)
        is_last = number == len(self.layers) - 1
        return jax.nn.relu(x) if self.last_relu or not is_last else x


def size_after_all(
    settings: Sequence[tuple[str, int, int, bool]], size: tuple[int, int]
) -> tuple[int, int]:
    """Return the height and width after several layers; the settings are those of `size_after`."""
    for of_layer in settings:
        size = size_after(*of_layer, size)
    return size


def check_convolutions(path: str, padding: str, start: str) -> None:
    """Refuse a padding or initial values that do not exist."""
    check_one_of(f"{path}.padding", padding, PADDINGS)
    check_start(f"{path}.start", start, STARTS)


def group_norm(
    width: int, num_groups: int, *, epsilon: float = 1e-6, rngs: nnx.Rngs
) -> nnx.GroupNorm:
    """A GroupNorm, with linen's epsilon by default; its statistics are float32."""
    return nnx.GroupNorm(
        width, num_groups=num_groups, epsilon=epsilon, use_fast_variance=False, rngs=rngs
    )


def pixel_shuffle(x: Float[Array, "B h w C"], factor: int) -> Float[Array, "B H W D"]:
    """Make an image `factor` times as large of its channels (Shi et al. 2016, arXiv 1609.05158).

    As in torch, channel `factor`**2 c + `factor` i + j becomes channel c of row i and column j of
    each cell.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, channels // factor**2, factor, factor)
    x = x.transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, height * factor, width * factor, -1)
