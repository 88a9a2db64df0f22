"""Multi-head attention: fused where nobody asks for its weights, written out where somebody does."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.backend import CPU, Backend
from smoothsa_jax.models.layers.basic import dropout, linear, packed_products, product, uniform

KeysValues = tuple[Float[Array, "... S E"], Float[Array, "... S E"]]

LONG = 64  # queries from which cuDNN's attention pays
ON_CHIP = 40_000_000  # bytes of 16-bit weights, tiles' padding not counted; v5e has 128 MB
# On a CPU:
ONE_BY_ONE = 2**16  # logits of one sample from which samples are taken one by one
WRITTEN_OUT = (
    32  # samples at most that are written out, so that they run beside each other; more are a loop
)


def samples_at_once(num_heads: int, queries: int, keys: int) -> int:
    """Of how many samples the weights of attention stay in a TPU's vector memory; with more, time a sample grows by 40 to 70 %."""
    return max(1, ON_CHIP // (2 * num_heads * queries * keys))


def attend(
    query: Float[Array, "B Q E"],
    key: Float[Array, "B S E"],
    value: Float[Array, "B S E"],
    num_heads: int,
    key_mask: Bool[Array, "B S"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    *,
    backend: Backend,
    differentiated: bool,
) -> Float[Array, "B Q E"]:
    """Scaled dot-product attention, in the fastest form there is for this backend and these sizes.

    Args:
        key_mask: true = valid; the others get a logit of minus infinity. At least one key of every
            sample has to be valid.
        dropout_rate: applied to the weights where `dropout_key` is given, which are then written out.
        differentiated: whether a gradient may pass.
    """
    head_size, lengths = query.shape[-1] // num_heads, (query.shape[1], key.shape[1])
    masked, dropped = key_mask is not None, dropout_key is not None
    cudnn = not dropped and takes_cudnn(
        backend, query.dtype, head_size, lengths, masked, differentiated
    )
    # Of the plain form a GPU's compiler makes one kernel: scale, mask, softmax and cast.
    if dropped or (backend.is_gpu and not cudnn):
        return attend_with_weights(
            query, key, value, num_heads, key_mask, dropout_rate, dropout_key
        )[0]
    query, key, value = (_heads(x, num_heads) for x in (query, key, value))
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if cudnn:
        mixed = jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
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
) -> tuple[Float[Array, "B Q E"], Float[Array, "B Q S"]]:
    """The same, written out.

    Returns:
        The mixed values, and the weights averaged over heads (before dropout), float32.
    """
    query, key, value = (_heads(x, num_heads) for x in (query, key, value))
    logits = jnp.einsum("bqhd,bshd->bhqs", query, key).astype(jnp.float32)
    logits = logits * query.shape[-1] ** -0.5
    if key_mask is not None:
        logits = jnp.where(key_mask[:, None, None, :], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1)
    dropped = dropout(weights, dropout_rate, dropout_key).astype(value.dtype)
    mixed = jnp.einsum("bhqs,bshd->bqhd", dropped, value)
    return mixed.reshape(*mixed.shape[:2], -1), weights.mean(axis=1)


def takes_cudnn(
    backend: Backend,
    dtype: jnp.dtype,
    head_size: int,
    lengths: tuple[int, int],
    masked: bool,
    differentiated: bool,
) -> bool:
    """Whether cuDNN's flash attention takes these sizes, and is worth it.

    Args:
        lengths: of queries and keys. Under a gradient cuDNN refuses odd ones.
        masked: a mask would be written out at full size for cuDNN; here only few keys, slots, are ever masked.
    """
    is_there = backend.platform == "cuda" and backend.has_cudnn and backend.capability >= 8.0
    fits = dtype in (jnp.bfloat16, jnp.float16) and head_size % 8 == 0 and head_size <= 128
    odd = any(length % 2 for length in lengths)
    return is_there and fits and not masked and lengths[0] >= LONG and not (differentiated and odd)


def _attend_on_cpu(query, key, value, mask):
    num_heads, keys = query.shape[-2], key.shape[-3]
    # Sample by sample the logits stay in the cache.
    large = num_heads * query.shape[-3] * keys >= ONE_BY_ONE
    if not large or mask is not None:
        return _divided_last(query, key, value, mask)
    if len(query) <= WRITTEN_OUT:
        return jnp.stack([_divided_last(*sample) for sample in zip(query, key, value, strict=True)])
    return jax.lax.map(lambda sample: _divided_last(*sample), (query, key, value))


def _divided_last(query, key, value, mask=None):
    return _mixed_and_weights(query, key, value, mask, query.dtype)[0]


@jax.custom_vjp
def _with_few_residuals(query, key, value, mask):
    """Sums in float32, and a gradient that keeps the weights in the dtype of the values, where JAX's own keeps float32."""
    return _mixed_and_weights(query, key, value, mask, jnp.float32)[0]


def _forward(query, key, value, mask):
    mixed, weights, total = _mixed_and_weights(query, key, value, mask, jnp.float32)
    return mixed, (query, key, value, mixed, weights, total)


def _backward(residuals, cotangent):
    query, key, value, mixed, weights, total = residuals
    dtype, float32 = value.dtype, jnp.float32
    cotangent = cotangent.astype(float32) / total.swapaxes(-3, -2)
    # By which all logits of a query fall, as the weights sum to one: the sum over each head's channels, as a matrix product,
    # since a TPU would turn the array around for a sum.
    products = (cotangent * mixed.astype(float32)).reshape(*mixed.shape[:-2], -1)
    of_head = jnp.repeat(jnp.eye(mixed.shape[-2]), mixed.shape[-1], axis=0)
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
    """Heads in front, and the softmax divided by its sum only after the values are mixed: fewer passes over the large array.

    Args:
        dtype: of what the two products give.

    Returns:
        The mixed values (B,Q,H,D), the weights (B,H,Q,S) before they are divided, and their sums.
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
    """Bias-free multi-head attention, with torch's initial values (method section 5).

    The three input projections are packed in one (E, 3 E) kernel, which starts Xavier-uniform as a whole.
    """

    backend = CPU
    differentiated = True

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        xavier = uniform((6.0 / (4 * width)) ** 0.5)
        self.in_projection = nnx.Param(xavier(rngs.params(), (width, 3 * width)))
        self.out = linear(width, width, bias=False, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B Q E"],
        memory: KeysValues | None = None,
        key_mask: Bool[Array, "B S"] | None = None,
        dropout_rate: float = 0.0,
        dropout_key: Array | None = None,
    ) -> Float[Array, "B Q E"]:
        """Attends from `x` to what `remember` made of a memory, or to `x` itself; see `attend` for the rest."""
        mixed = attend(
            *self._project(x, memory),
            self.num_heads,
            key_mask,
            dropout_rate,
            dropout_key,
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
        """The same, and the weights; see `attend_with_weights`."""
        mixed, weights = attend_with_weights(*self._project(x, memory), self.num_heads, key_mask)
        return self.out(mixed), weights

    def remember(self, memory: Float[Array, "... S E"]) -> KeysValues:
        """Keys and values of a memory, of any leading axes: of all frames at once, where it is looked at frame by frame."""
        width = memory.shape[-1]
        kernel = self.in_projection[...][:, width:]
        key, value = packed_products(memory, kernel, 2, self.backend)
        return key, value

    def _project(self, x, memory):
        kernel, width = self.in_projection[...], x.shape[-1]
        if memory is None:
            return packed_products(x, kernel, 3, self.backend)
        return product(x, kernel[:, :width], self.backend), *memory
