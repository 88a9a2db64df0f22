"""Small layers with the initial values and numerics of the authors' program."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.models.backend import CPU, Backend
from smoothsa_jax.parts import check_one_of

FEW_ROWS = 64
MERGED_ON_A_GPU = 2**24  # elements; XLA's limit is 32 MB per product
EPSILON = 1e-5  # of LayerNorm, as in torch; linen has 1e-6, Keras 1e-3


def gelu(x: Float[Array, "..."], backend: Backend = CPU) -> Float[Array, "..."]:
    """The exact (erf) GELU, computed in float32; `nnx.gelu` is the tanh approximation by default.

    `jax.nn.gelu(approximate=False)` uses erfc, which takes twice as long. A TPU has an instruction
    for tanh but not for erf. For 16-bit inputs on a TPU, erf(x / sqrt 2) = tanh(x p(x^2)) with a
    polynomial p, fitted until the GELU was within one rounding to bfloat16
    (`tests/test_backend.py`).
    """
    wide = x.astype(jnp.float32)
    if backend.is_tpu and x.dtype != jnp.float32:
        square = jnp.minimum(jnp.square(wide), 40.0)  # beyond, tanh is 1, and p would decrease
        p = 0.7970838304 + square * (0.037321364 - square * 0.0003931366005)
        erf = jnp.tanh(wide * p)
    else:
        erf = jax.lax.erf(wide * 0.5**0.5)
    return (0.5 * wide * (1.0 + erf)).astype(x.dtype)


def activate(
    x: Float[Array, "..."], activation: str, backend: Backend = CPU
) -> Float[Array, "..."]:
    """Apply the "gelu" or the "relu", or "none"."""
    if activation == "none":
        return x
    return jax.nn.relu(x) if activation == "relu" else gelu(x, backend)


def uniform(bound: float) -> nnx.Initializer:
    """An initializer that is uniform on [-bound, bound)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def packed_products(
    x: Float[Array, "... in"], kernel: Float[Array, "in n*out"], num: int, backend: Backend
) -> list[Float[Array, "... out"]]:
    """Compute the `num` products with the equal parts that a kernel packs side by side.

    This is either one product that is split, or separate products. Splitting is a copy on a GPU or
    TPU, but for few rows a single kernel suffices, and a GPU compiler merges small products of one
    input again.
    """
    many = {"tpu": x.shape[-2] >= FEW_ROWS, "cuda": x.size >= MERGED_ON_A_GPU}
    if many.get(backend.platform, False):
        return list(_products_apart(x, kernel, num))
    return jnp.split(product(x, kernel, backend), num, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _products_apart(x, kernel, num):
    """Compute separate products; their gradient is that of one product, which is cheaper."""
    return tuple(x @ part for part in jnp.split(kernel, num, axis=-1))


def _products_forward(x, kernel, num):
    return _products_apart(x, kernel, num), (x, kernel)


def _products_backward(num, residuals, cotangents):
    x, kernel = residuals
    packed = jnp.concatenate(cotangents, axis=-1)
    return packed @ kernel.T, jnp.einsum("...c,...d->cd", x, packed)


_products_apart.defvjp(_products_forward, _products_backward)


def in_turns(function: Callable, inputs: Any, most: int) -> Any:
    """Compute `function(*inputs)` on (B, ...) inputs, at most `most` samples at a time.

    The samples are split into equal parts; if that is impossible, all run at once.
    """
    batch = jax.tree.leaves(inputs)[0].shape[0]
    least = -(-batch // most)
    turns = next((n for n in range(least, 2 * least + 1) if batch % n == 0), 1)
    if turns == 1:
        return function(*inputs)
    cut = lambda x: x.reshape(turns, batch // turns, *x.shape[1:])  # noqa: E731
    join = lambda x: x.reshape(batch, *x.shape[2:])  # noqa: E731
    found = jax.lax.map(lambda inputs: function(*inputs), jax.tree.map(cut, inputs))
    return jax.tree.map(join, found)


def product(
    x: Float[Array, "... in"], kernel: Float[Array, "in out"], backend: Backend
) -> Float[Array, "... out"]:
    """Compute `x @ kernel` over rows, with all leading axes merged; on a TPU over all axes.

    With more axes, XLA's compilers for CPU and GPU transpose arrays for the gradient of the kernel.
    On a TPU, 261 rows do not fill tiles, so merging 8 x 261 is a copy (docs/measurements.md).
    """
    if backend.is_tpu:
        return x @ kernel
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def add_bias(x: Float[Array, "... C"], bias: Float[Array, "*some C"]) -> Float[Array, "... C"]:
    """Return `x + bias`; the gradient of the bias is summed over the other axes in float32.

    In bfloat16, a sum stops growing after a few hundred terms, and the pixels of a batch are
    millions.
    """
    return x + bias


def _add_bias_forward(x, bias):
    # Of `x`, the backward pass needs the dtype alone.
    return x + bias, (jnp.zeros(0, x.dtype), bias)


def _add_bias_backward(residuals, cotangent):
    (of_x, bias), axes = residuals, tuple(range(cotangent.ndim - residuals[1].ndim))
    of_bias = jnp.sum(cotangent, axis=axes, dtype=jnp.float32)
    return cotangent.astype(of_x.dtype), of_bias.astype(bias.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


class Linear(nnx.Linear):
    """`nnx.Linear` with the fastest product for the backend (see `product`)."""

    backend = CPU

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        out = product(x, self.kernel[...], self.backend)
        return out if self.bias is None else add_bias(out, self.bias[...])


COMMON_STARTS = ("torch", "xavier", "lecun", "glorot")  # convolutions and attention have them too
STARTS = (*COMMON_STARTS, "truncated")
GRUS = ("torch", "linen")
ACTIVATIONS = ("gelu", "relu")


def check_start(key: str, value: str, starts: Sequence[str] = STARTS) -> None:
    """Refuse a name of initial values that does not exist."""
    check_one_of(key, value, starts)


def linear(
    in_features: int,
    out_features: int,
    *,
    bias: bool = True,
    zero_bias: bool = False,
    start: str = "torch",
    before_relu: bool = False,
    rngs: nnx.Rngs,
) -> Linear:
    """A Linear layer with the initial values of torch, of flax linen or of Keras.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: whether it has a bias.
        zero_bias: whether the bias starts at 0; it does with all starts but "torch".
        start: "torch": uniform in +-1/sqrt(fan_in), the bias likewise. "glorot" (Keras) and
            "xavier": uniform in +-sqrt(6/(fan_in+fan_out)) (Glorot and Bengio 2010). "lecun"
            (flax linen): normal of variance 1/fan_in, truncated at two standard deviations.
            "truncated" (OSRT): the same, but for the variance, which the cut makes smaller.
        before_relu: with "xavier", whether a ReLU follows; then uniform in +-sqrt(6/fan_in) (He et
            al. 2015).
    """
    bound = like_torch = in_features**-0.5
    if start in ("xavier", "glorot"):
        all_in = start == "xavier" and before_relu
        bound = (6.0 / (in_features if all_in else in_features + out_features)) ** 0.5
    zero_bias = zero_bias or start != "torch"
    kernel_init = uniform(bound)
    if start == "lecun":
        kernel_init = nnx.initializers.lecun_normal()
    elif start == "truncated":
        kernel_init = nnx.initializers.truncated_normal(like_torch, lower=-2.0, upper=2.0)
    return Linear(
        in_features,
        out_features,
        use_bias=bias,
        kernel_init=kernel_init,
        bias_init=nnx.initializers.zeros_init() if zero_bias else uniform(like_torch),
        rngs=rngs,
    )


class LayerNorm(nnx.LayerNorm):
    """`nnx.LayerNorm` in fewer passes over its input, with statistics in float32.

    The variance is the mean square about the mean, because the difference of two means loses digits
    on features of large mean. That difference keeps all digits of a bfloat16 input, so a TPU
    computes both means in one pass there. A GPU compiler makes one kernel of the other form.
    """

    backend = CPU

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        wide = x.astype(jnp.float32)
        mean = wide.mean(axis=-1, keepdims=True)
        if x.dtype == jnp.float32 or not self.backend.is_tpu:
            # The gradient of the variance with respect to the mean is zero.
            deviation = wide - jax.lax.stop_gradient(mean)
            variance = jnp.square(deviation).mean(axis=-1, keepdims=True)
        else:
            variance = jnp.square(wide).mean(axis=-1, keepdims=True) - jnp.square(mean)
            variance = jnp.maximum(variance, 0.0)
        scale = jax.lax.rsqrt(variance + self.epsilon) * self.scale[...]
        out = (wide - mean) * scale
        return (out if self.bias is None else out + self.bias[...]).astype(x.dtype)


def layer_norm(
    features: int, *, bias: bool = True, epsilon: float = EPSILON, rngs: nnx.Rngs
) -> LayerNorm:
    """A LayerNorm that is initially the identity on standardized input."""
    return LayerNorm(features, epsilon=epsilon, use_bias=bias, rngs=rngs)


def dropout(x: Float[Array, "..."], rate: float, key: Array | None) -> Float[Array, "..."]:
    """Drop entries with probability `rate` and rescale the rest; no dropout if `key` is None.

    `key` is one key for all of `x`, or keys (B,), one per sample. With the latter, a sample's draw
    is the same in any batch.
    """
    if key is None or rate == 0.0:
        return x
    draw = lambda key, shape: jax.random.bernoulli(key, jnp.float32(1.0 - rate), shape)  # noqa: E731
    keep = jax.vmap(lambda key: draw(key, x.shape[1:]))(key) if key.ndim else draw(key, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0)


def drop_branch(x: Float[Array, "B ..."], rate: float, keys: Array | None) -> Float[Array, "B ..."]:
    """Drop a residual branch of whole samples with probability `rate`, and rescale the rest.

    This is stochastic depth (Huang et al. 2016). `keys` (B,) are those of the branch's dropout, one
    per sample, which are not used up; None: no branch is dropped.
    """
    if keys is None or rate == 0.0:
        return x
    own = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    of_sample = lambda key, x: dropout(jnp.ones((), x.dtype), rate, key) * x  # noqa: E731
    return jax.vmap(of_sample)(own, x)


def split_key(key: Array, num: int) -> Array:
    """Split a key into `num` keys, or keys (B,) into (num, B)."""
    split = lambda key: jax.random.split(key, num)  # noqa: E731
    return jax.vmap(split, out_axes=1)(key) if key.ndim else split(key)


class MLP(nnx.Module):
    """Linear, GELU or ReLU, Linear.

    Args:
        sizes: input, hidden and output width.
        bias: whether the two Linear layers have biases.
        zero_bias: whether the biases start at 0.
        activation: "gelu" or "relu".
        start: initial values; see `linear`.
    """

    def __init__(
        self,
        sizes: tuple[int, int, int],
        *,
        bias: bool = True,
        zero_bias: bool = False,
        activation: str = "gelu",
        start: str = "torch",
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.hidden = linear(
            *sizes[:2],
            bias=bias,
            zero_bias=zero_bias,
            start=start,
            before_relu=activation == "relu",
            rngs=rngs,
        )
        self.out = linear(*sizes[1:], bias=bias, zero_bias=zero_bias, start=start, rngs=rngs)

    def __call__(
        self, x: Float[Array, "... in"], dropout_rate: float = 0.0, key: Array | None = None
    ) -> Float[Array, "... out"]:
        hidden = activate(self.hidden(x), self.activation, self.hidden.backend)
        return self.out(dropout(hidden, dropout_rate, key))


class SwiGLU(nnx.Module):
    """Linear to two halves of `hidden_size`, silu(one) * other, Linear: a gated MLP."""

    def __init__(self, width: int, hidden_size: int, *, rngs: nnx.Rngs):
        self.hidden = linear(width, 2 * hidden_size, rngs=rngs)
        self.out = linear(hidden_size, width, rngs=rngs)

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        gate, value = jnp.split(self.hidden(x), 2, axis=-1)
        return self.out(jax.nn.silu(gate) * value)


class GRUCell(nnx.Module):
    """The GRU of torch: the reset gate multiplies `W_hn h + b_hn`, including the hidden bias.

    (`nnx.GRUCell` has no hidden bias.) Gates are packed in the order reset, update, new. Keras 2
    computes the same, with its gates in the order update, reset, new.

    Args:
        size: D.
        input_size: width of the input; None: D.
        form: "torch", with hidden biases of all gates; or "linen", with one of the new gate alone.
        start: initial values: those of "torch", as with "truncated"; or "xavier", "glorot" or
            "lecun" for the input's kernel and an orthogonal matrix for the hidden one ("lecun":
            one for each gate).
        zero_bias: whether the biases start at 0.
    """

    def __init__(
        self,
        size: int,
        input_size: int | None = None,
        *,
        form: str = "torch",
        start: str = "torch",
        zero_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        start = "torch" if start == "truncated" else start
        of_input = {"zero_bias": zero_bias, "start": start, "rngs": rngs}
        self.input = linear(input_size or size, 3 * size, **of_input)
        all_gates = form == "torch"
        self.hidden = linear(size, 3 * size, bias=all_gates, zero_bias=zero_bias, rngs=rngs)
        self.new_bias = None if all_gates else nnx.Param(jnp.zeros(size, jnp.float32))
        if start != "torch":
            draw = nnx.initializers.orthogonal()
            shapes = [(size, size)] * 3 if start == "lecun" else [(size, 3 * size)]
            parts = [draw(rngs.params(), shape, jnp.float32) for shape in shapes]
            self.hidden.kernel[...] = jnp.concatenate(parts, axis=1)

    def __call__(
        self, x: Float[Array, "... I"], state: Float[Array, "... D"]
    ) -> Float[Array, "... D"]:
        x_reset, x_update, x_new = jnp.split(self.input(x), 3, axis=-1)
        h_reset, h_update, h_new = jnp.split(self.hidden(state), 3, axis=-1)
        if self.new_bias is not None:
            h_new = add_bias(h_new, self.new_bias[...])
        reset = jax.nn.sigmoid(x_reset + h_reset)
        update = jax.nn.sigmoid(x_update + h_update)
        new = jnp.tanh(x_new + reset * h_new)
        return (1.0 - update) * new + update * state


class LSTMCell(nnx.Module):
    """The LSTM of torch, with two biases; gates are packed in the order input, forget, new, output.

    (`nnx.LSTMCell` has one bias.)

    Args:
        input_size: width of the input.
        size: width of the state.
    """

    def __init__(self, input_size: int, size: int, *, rngs: nnx.Rngs):
        self.input = linear(input_size, 4 * size, rngs=rngs)
        self.hidden = linear(size, 4 * size, rngs=rngs)

    def __call__(
        self, x: Float[Array, "... I"], state: Float[Array, "... D"], cell: Float[Array, "... D"]
    ) -> tuple[Float[Array, "... D"], Float[Array, "... D"]]:
        """Return the new state and the new cell."""
        gates = self.input(x) + self.hidden(state)
        enter, forget, new, leave = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
        return jax.nn.sigmoid(leave) * jnp.tanh(cell), cell
