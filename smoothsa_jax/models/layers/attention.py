"""Multi-head attention: fused if its weights are not needed, else written out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.models.backend import CPU, Backend
from smoothsa_jax.models.layers.basic import (
    add_bias,
    dropout,
    in_turns,
    linear,
    packed_products,
    product,
    uniform,
)

QUERY_SCALES = ("multiply", "divide")
KeysValues = tuple[Float[Array, "... S E"], Float[Array, "... S E"]]

LONG = 64  # number of queries from which cuDNN's attention is faster
ON_CHIP = 40_000_000  # bytes of 16-bit weights, without the tiles' padding; v5e has 128 MB
# On a CPU:
ONE_BY_ONE = 2**16  # logits per sample from which samples are processed one by one
WRITTEN_OUT = 32  # maximum number of samples to unroll, so that they run in parallel; more: a loop


def fit_on_chip(
    function: Callable,
    inputs: Any,
    *,
    num_heads: int,
    length: int,
    backend: Backend,
    differentiated: bool = False,
) -> Any:
    """Compute `function(*inputs)` on (B, ...) inputs, whose costliest step is self-attention.

    On a TPU, as many samples at a time as have attention weights that fit its vector memory: with
    more, time per sample grows by 40 to 70 %. Elsewhere, or for a gradient, all at once.

    Args:
        function: computes on each sample alone.
        inputs: its arguments.
        num_heads: heads of self-attention.
        length: number of tokens that attend to each other.
        backend: what the computation runs on.
        differentiated: whether a gradient is taken.
    """
    if not backend.is_tpu or differentiated:
        return function(*inputs)
    return in_turns(function, inputs, max(1, ON_CHIP // (2 * num_heads * length * length)))


def attend(
    query: Float[Array, "B Q E"],
    key: Float[Array, "B S E"],
    value: Float[Array, "B S E"],
    num_heads: int,
    key_mask: Bool[Array, "B S"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    *,
    causal: bool = False,
    backend: Backend,
    differentiated: bool,
) -> Float[Array, "B Q E"]:
    """Scaled dot-product attention in the fastest form for this backend and these sizes.

    Args:
        query: queries, with heads side by side.
        key: keys, with heads side by side.
        value: values, with heads side by side.
        num_heads: number of heads.
        key_mask: true = valid; other keys get a logit of minus infinity. Every sample needs at
            least one valid key.
        dropout_rate: rate of dropout on the weights; used only with `dropout_key`.
        dropout_key: random key of dropout; None: no dropout. With a key, the weights are written
            out.
        causal: whether query i sees keys up to i alone.
        backend: the backend to compile for.
        differentiated: whether a gradient may pass through.

    Returns:
        The mixed values, with heads side by side.
    """
    head_size, lengths = query.shape[-1] // num_heads, (query.shape[1], key.shape[1])
    masked, dropped = key_mask is not None, dropout_key is not None
    cudnn = not dropped and takes_cudnn(
        backend, query.dtype, head_size, lengths, masked, differentiated
    )
    # A GPU compiler makes one kernel of the plain form: scale, mask, softmax and cast.
    if dropped or (backend.is_gpu and not cudnn):
        return attend_with_weights(
            query, key, value, num_heads, key_mask, dropout_rate, dropout_key, causal=causal
        )[0]
    query, key, value = (_heads(x, num_heads) for x in (query, key, value))
    mask = _mask(key_mask, lengths, causal)
    if cudnn:
        mixed = jax.nn.dot_product_attention(
            query, key, value, is_causal=causal, implementation="cudnn"
        )
    elif backend.is_cpu:
        mixed = _attend_on_cpu(query, key, value, mask)
    else:
        mixed = _with_few_residuals(query, key, value, mask)
    return mixed.reshape(*mixed.shape[:2], -1)


def attend_with_weights(
    query: Float[Array, "B Q E"],
    key: Float[Array, "B S E"],
    value: Float[Array, "B S E"],
    num_heads: int,
    key_mask: Bool[Array, "B S"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    *,
    causal: bool = False,
) -> tuple[Float[Array, "B Q E"], Float[Array, "B Q S"]]:
    """Scaled dot-product attention, written out; see `attend`.

    Returns:
        The mixed values, and the weights averaged over heads (before dropout), float32.
    """
    query, key, value = (_heads(x, num_heads) for x in (query, key, value))
    logits = jnp.einsum("bqhd,bshd->bhqs", query, key).astype(jnp.float32)
    logits = logits * query.shape[-1] ** -0.5
    mask = _mask(key_mask, logits.shape[-2:], causal)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1)
    dropped = dropout(weights, dropout_rate, dropout_key).astype(value.dtype)
    mixed = jnp.einsum("bhqs,bshd->bqhd", dropped, value)
    return mixed.reshape(*mixed.shape[:2], -1), weights.mean(axis=1)


def _mask(
    key_mask: Bool[Array, "B S"] | None, lengths: tuple[int, int], causal: bool
) -> Bool[Array, "#B 1 #Q S"] | None:
    """Return which keys each query sees; None: all."""
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if not causal:
        return mask
    earlier = jnp.tril(jnp.ones(lengths, bool))[None, None]
    return earlier if mask is None else mask & earlier


def takes_cudnn(
    backend: Backend,
    dtype: jnp.dtype,
    head_size: int,
    lengths: tuple[int, int],
    masked: bool,
    differentiated: bool,
) -> bool:
    """Whether cuDNN's flash attention supports these sizes and is faster.

    Args:
        backend: the backend to compile for.
        dtype: of queries, keys and values.
        head_size: channels per head.
        lengths: numbers of queries and keys. Under a gradient, cuDNN rejects odd ones.
        masked: whether there is a key mask. cuDNN would need it written out at full size; here,
            only the few slots are ever masked as keys.
        differentiated: whether a gradient may pass through.
    """
    is_there = backend.platform == "cuda" and backend.has_cudnn and backend.capability >= 8.0
    fits = dtype in (jnp.bfloat16, jnp.float16) and head_size % 8 == 0 and head_size <= 128
    odd = any(length % 2 for length in lengths)
    return is_there and fits and not masked and lengths[0] >= LONG and not (differentiated and odd)


def _attend_on_cpu(query, key, value, mask):
    num_heads, keys = query.shape[-2], key.shape[-3]
    # Sample by sample, the logits stay in the cache.
    large = num_heads * query.shape[-3] * keys >= ONE_BY_ONE
    shared = mask is None or len(mask) == 1
    if not large or not shared:
        return _divided_last(query, key, value, mask)
    of_all = None if mask is None else mask[0]
    alone = lambda sample: _divided_last(*sample, of_all)  # noqa: E731
    if len(query) <= WRITTEN_OUT:
        return jnp.stack([alone(sample) for sample in zip(query, key, value, strict=True)])
    return jax.lax.map(alone, (query, key, value))


def _divided_last(query, key, value, mask=None):
    return _mixed_and_weights(query, key, value, mask, query.dtype)[0]


@jax.custom_vjp
def _with_few_residuals(query, key, value, mask):
    """Attention with sums in float32 and low-precision residuals.

    Its gradient keeps the weights in the dtype of the values, whereas JAX's own keeps float32.
    """
    return _mixed_and_weights(query, key, value, mask, jnp.float32)[0]


def _forward(query, key, value, mask):
    mixed, weights, total = _mixed_and_weights(query, key, value, mask, jnp.float32)
    return mixed, (query, key, value, mixed, weights, total)


def _backward(residuals, cotangent):
    query, key, value, mixed, weights, total = residuals
    dtype, float32 = value.dtype, jnp.float32
    cotangent = cotangent.astype(float32) / total.swapaxes(-3, -2)
    # The decrease that all logits of a query share, because the weights sum to one: the sum over
    # each head's channels. It is a matrix product, since a TPU would transpose the array for a sum.
    products = (cotangent * mixed.astype(float32)).reshape(*mixed.shape[:-2], -1)
    of_head = jnp.repeat(jnp.eye(mixed.shape[-2], dtype=float32), mixed.shape[-1], axis=0)
    shared = jnp.einsum("...qe,eh->...hq", products, of_head, precision="highest")[..., None]
    cotangent = cotangent.astype(dtype)
    to_value = jnp.einsum("...hqs,...qhd->...shd", weights, cotangent)
    to_weights = jnp.einsum(
        "...qhd,...shd->...hqs", cotangent, value, preferred_element_type=float32
    )
    to_logits = (weights.astype(float32) * (to_weights - shared)).astype(dtype)
    scale = query.shape[-1] ** -0.5
    to_query = jnp.einsum("...hqs,...shd->...qhd", to_logits, key) * scale
    to_key = jnp.einsum("...hqs,...qhd->...shd", to_logits, query * scale)
    return to_query, to_key, to_value, None


_with_few_residuals.defvjp(_forward, _backward)


def _mixed_and_weights(query, key, value, mask, dtype):
    """Attend with heads in front; divide by the softmax's sum only after mixing the values.

    This needs fewer passes over the large array.

    Args:
        query: (B,Q,H,D), or without B.
        key: (B,S,H,D), or without B.
        value: (B,S,H,D), or without B.
        mask: true = valid; None: all keys are valid.
        dtype: of the results of both products.

    Returns:
        The mixed values (B,Q,H,D), the weights (B,H,Q,S) before division, and their sums.
    """
    query, key, value = (x.swapaxes(-3, -2) for x in (query, key, value))
    scaled = query * query.shape[-1] ** -0.5
    logits = jnp.einsum("...qd,...sd->...qs", scaled, key, preferred_element_type=dtype)
    logits = logits.astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(value.dtype)
    mixed = jnp.einsum("...qs,...sd->...qd", weights, value, preferred_element_type=dtype)
    return (mixed / total).astype(value.dtype).swapaxes(-3, -2), weights, total


def _heads(x: Float[Array, "B S E"], num_heads: int) -> Float[Array, "B S H D"]:
    return x.reshape(*x.shape[:2], num_heads, -1)


class MultiHeadAttention(nnx.Module):
    """Multi-head attention with the initial values of torch, of SLATE and SPOT, or of flax linen.

    The three input projections are packed in one (E, 3 Q) kernel. With `memory_size`, that has the
    queries alone, and a second one (S, 2 Q) has keys and values.

    Args:
        width: E.
        num_heads: number of attention heads.
        qkv_size: Q, the width of all heads together; None: E.
        memory_size: width of a memory that is not as wide as `x`; None: E.
        bias: whether the four projections have biases, which start at 0.
        out_bias: whether the output projection has one; None: as `bias`.
        causal: whether attention to `x` itself sees earlier entries alone.
        start: "torch": the packed kernel starts Xavier-uniform as a whole. "xavier", "glorot":
            each projection does. "lecun": each is normal, as in flax linen; see `linear`.
        out_gain: factor of the initial output projection, with "xavier".
        query_scale: what is done to the queries with (width of a head)**-0.5. "multiply": the usual
            scale. "divide": its inverse, as in the programs of VideoSAUR and SlotContrast.
    """

    backend = CPU
    differentiated = True

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        qkv_size: int | None = None,
        memory_size: int | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        causal: bool = False,
        start: str = "torch",
        out_gain: float = 1.0,
        query_scale: str = "multiply",
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.causal = num_heads, causal
        self.qkv_size = inner = qkv_size or width
        # Attention multiplies by (width of a head)**-0.5 in any case.
        self.query_gain = inner // num_heads if query_scale == "divide" else 1

        def kernel(fan_in: int, number: int) -> nnx.Param:
            packed = number if start == "torch" else 1
            xavier = uniform((6.0 / (fan_in + packed * inner)) ** 0.5)
            init = nnx.initializers.lecun_normal() if start == "lecun" else xavier
            return nnx.Param(init(rngs.params(), (fan_in, number * inner), jnp.float32))

        self.in_projection = kernel(width, 3 if memory_size is None else 1)
        self.memory_projection = None if memory_size is None else kernel(memory_size, 2)
        self.in_bias = nnx.Param(jnp.zeros(3 * inner, jnp.float32)) if bias else None
        out_bias = bias if out_bias is None else out_bias
        self.out = linear(inner, width, bias=out_bias, zero_bias=True, start=start, rngs=rngs)
        if out_gain != 1.0:
            self.out.kernel[...] = out_gain * self.out.kernel[...]

    def __call__(
        self,
        x: Float[Array, "B Q E"],
        memory: KeysValues | None = None,
        key_mask: Bool[Array, "B S"] | None = None,
        dropout_rate: float = 0.0,
        dropout_key: Array | None = None,
    ) -> Float[Array, "B Q E"]:
        """Attend from `x` to a memory prepared by `remember`, or to `x` itself; see `attend`."""
        mixed = attend(
            *self._project(x, memory),
            self.num_heads,
            key_mask,
            dropout_rate,
            dropout_key,
            causal=self.causal,
            backend=self.backend,
            differentiated=self.differentiated,
        )
        return self.out(mixed)

    def with_weights(
        self,
        x: Float[Array, "B Q E"],
        memory: KeysValues | None = None,
        key_mask: Bool[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B Q E"], Float[Array, "B Q S"]]:
        """Attend as in `__call__`, and also return the weights; see `attend_with_weights`."""
        inputs = self._project(x, memory)
        mixed, weights = attend_with_weights(*inputs, self.num_heads, key_mask, causal=self.causal)
        return self.out(mixed), weights

    def remember(self, memory: Float[Array, "... S E"]) -> KeysValues:
        """Compute keys and values of a memory, with any leading axes.

        With all frames at once, later frame-by-frame attention does not repeat this.
        """
        if self.memory_projection is None:
            kernel = self.in_projection[...][:, self.qkv_size :]
        else:
            kernel = self.memory_projection[...]
        key, value = packed_products(memory, kernel, 2, self.backend)
        return self._biased((key, value), 1)

    def extend(
        self, x: Float[Array, "B 1 E"], cache: KeysValues, place: Int[Array, ""]
    ) -> tuple[Float[Array, "B 1 E"], KeysValues]:
        """Attend from one place to itself and to the earlier ones, as if causal.

        Args:
            x: the token of that place.
            cache: keys and values (B,M,Q) of M places; those from `place` on are not seen.
            place: number of the place, from 0.

        Returns:
            The update, and the cache with the key and the value of this place.
        """
        query, *new = self._project(x, None)
        key, value = (
            jax.lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), place, axis=1)
            for old, x in zip(cache, new, strict=True)
        )
        seen = jnp.broadcast_to(jnp.arange(key.shape[1]) <= place, key.shape[:2])
        mixed, _ = attend_with_weights(query, key, value, self.num_heads, seen)
        return self.out(mixed), (key, value)

    def _project(self, x, memory):
        kernel, width = self.in_projection[...], self.qkv_size
        if memory is None:
            query, *memory = self._biased(packed_products(x, kernel, 3, self.backend), 0)
        else:
            (query,) = self._biased((product(x, kernel[:, :width], self.backend),), 0)
        return (query if self.query_gain == 1 else self.query_gain * query), *memory

    def _biased(self, projected, first: int):
        """Add the biases, of which those from the number `first` on belong to `projected`."""
        if self.in_bias is None:
            return tuple(projected)
        biases = jnp.split(self.in_bias[...], 3)[first:]
        return tuple(add_bias(x, bias) for x, bias in zip(projected, biases, strict=False))
