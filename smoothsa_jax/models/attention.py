"""Multi-head attention: fused where nobody asks for its weights, written out where somebody does."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.layers import dropout, linear, uniform

# On a CPU:
ONE_BY_ONE = 2**16  # logits of one sample from which samples are taken one by one
WRITTEN_OUT = (
    32  # samples at most that are written out, so that they run beside each other; more are a loop
)


def attend(
    query: Float[Array, "B Q E"],
    key: Float[Array, "B S E"],
    value: Float[Array, "B S E"],
    num_heads: int,
    key_mask: Bool[Array, "B S"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Float[Array, "B Q E"]:
    """Scaled dot-product attention, in the fastest form there is for this device and these sizes.

    Args:
        key_mask: true = valid; the others get a logit of minus infinity. At least one key of every
            sample has to be valid.
        dropout_rate: applied to the weights where `dropout_key` is given, which are then written out.
    """
    if dropout_key is not None:
        return attend_with_weights(
            query, key, value, num_heads, key_mask, dropout_rate, dropout_key
        )[0]
    query, key, value = (_heads(x, num_heads) for x in (query, key, value))
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if jax.default_backend() == "cpu":
        mixed = _attend_on_cpu(query, key, value, mask)
    else:
        form = implementation(query.dtype, query.shape[-1], mask is not None, _capability())
        mixed = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=form)
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


def implementation(dtype: jnp.dtype, head_size: int, masked: bool, capability: float | None) -> str:
    """Which form of `jax.nn.dot_product_attention` takes these sizes: "cudnn" (flash attention) or "xla".

    Args:
        capability: the compute capability of an NVIDIA GPU; None for another device.
    """
    # A mask would be written out at full size for cuDNN; here only few keys, slots, are ever masked.
    flash = capability is not None and capability >= 8.0 and not masked
    fits = dtype in (jnp.bfloat16, jnp.float16) and head_size % 8 == 0 and head_size <= 128
    return "cudnn" if flash and fits else "xla"


def _capability() -> float | None:
    device = jax.devices()[0]
    try:
        return float(getattr(device, "compute_capability", ""))
    except ValueError:  # no NVIDIA GPU
        return None


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
    """Heads in front, and the softmax divided by its sum only after the values are mixed: fewer passes over the large array."""
    query, key, value = (x.swapaxes(-3, -2) for x in (query, key, value))
    logits = jnp.einsum("...qd,...sd->...qs", query * query.shape[-1] ** -0.5, key)
    logits = logits.astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    mixed = jnp.einsum("...qs,...sd->...qd", weights.astype(value.dtype), value)
    mixed = mixed / weights.sum(axis=-1, keepdims=True)
    return mixed.astype(value.dtype).swapaxes(-3, -2)


def _heads(x: Float[Array, "B S E"], num_heads: int) -> Float[Array, "B S H D"]:
    return x.reshape(*x.shape[:2], num_heads, -1)


class MultiHeadAttention(nnx.Module):
    """Bias-free multi-head attention, with torch's initial values (method section 5).

    The three input projections are packed in one (E, 3 E) kernel, which starts Xavier-uniform as a whole.
    """

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        xavier = uniform((6.0 / (4 * width)) ** 0.5)
        self.in_projection = nnx.Param(xavier(rngs.params(), (width, 3 * width)))
        self.out = linear(width, width, bias=False, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B Q E"],
        memory: Float[Array, "B S E"] | None = None,
        key_mask: Bool[Array, "B S"] | None = None,
        dropout_rate: float = 0.0,
        dropout_key: Array | None = None,
    ) -> Float[Array, "B Q E"]:
        """Attends from `x` to `memory`, or to `x` itself; see `attend` for the rest."""
        mixed = attend(
            *self._project(x, memory), self.num_heads, key_mask, dropout_rate, dropout_key
        )
        return self.out(mixed)

    def with_weights(
        self,
        x: Float[Array, "B Q E"],
        memory: Float[Array, "B S E"] | None = None,
        key_mask: Bool[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B Q E"], Float[Array, "B Q S"]]:
        """The same, and the weights; see `attend_with_weights`."""
        mixed, weights = attend_with_weights(*self._project(x, memory), self.num_heads, key_mask)
        return self.out(mixed), weights

    def _project(self, x, memory):
        kernel, width = self.in_projection[...], x.shape[-1]
        # On rows, as `layers.Linear`.
        product = lambda x, kernel: (x.reshape(-1, width) @ kernel).reshape(*x.shape[:2], -1)  # noqa: E731
        if memory is None:
            return jnp.split(product(x, kernel), 3, axis=-1)
        key, value = jnp.split(product(memory, kernel[:, width:]), 2, axis=-1)
        return product(x, kernel[:, :width]), key, value
