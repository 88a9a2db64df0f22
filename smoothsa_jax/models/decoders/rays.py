"""Decoders of rays: the colour of each ray of a scene, and the slot that it belongs to.

From OSRT (Sajjadi et al. 2022, arXiv 2206.06922, sections 2 and A.4). Rays never see each other, so
any rays of any views can be rendered, all at once or some at a time.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.layers.attention import attend_with_weights
from smoothsa_jax.models.layers.basic import layer_norm, linear
from smoothsa_jax.models.layers.rays import ray_encoding
from smoothsa_jax.models.layers.scene import SceneLayer
from smoothsa_jax.parts import check_flag, check_whole

PATH = "model.decoder"
# Rays of a batch to render at a time at evaluation, where a whole picture may not fit the memory.
AT_A_TIME = 2**15


class RayMLP(nnx.Module):
    """Linear layers with a leaky ReLU (0.01) between them.

    Args:
        sizes: width of the input, of each hidden layer, and of the output.
    """

    def __init__(self, sizes: tuple[int, ...], *, rngs: nnx.Rngs):
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.layers = nnx.List([linear(*pair, start="xavier", rngs=rngs) for pair in pairs])

    def __call__(self, x: Float[Array, "... E"]) -> Float[Array, "... K"]:
        *inner, last = self.layers
        for layer in inner:
            x = jax.nn.leaky_relu(layer(x), 0.01)
        return last(x)


class _RayDecoder(nnx.Module):
    """What the decoders of rays share; see `interfaces.Decoder`.

    It reads `positions` and `rays` (B,R,3) of what is given: where rays begin and their unit
    directions, in world coordinates. Its grid is one row of R rays.

    Args:
        octaves, position_octave, hidden_size, renderer_layers: see `RayMixerDecoder`.
    """

    exact = ("positions", "rays")  # high octaves need float32
    of_rays = True
    differentiated = True
    has_masks = True

    def __init__(self, octaves: int, position_octave: int, hidden_size: int, renderer_layers: int):
        self.encoding = ray_encoding(PATH, octaves, position_octave)
        check_whole(f"{PATH}.hidden_size", hidden_size)
        check_whole(f"{PATH}.renderer_layers", renderer_layers)
        self._hidden = (hidden_size,) * (renderer_layers - 1)
        self.remat = False  # whether the backward pass recomputes a layer's activations

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        given: Mapping[str, Array],
        draws: None = None,
    ) -> tuple[Float[Array, "B R K"], Float[Array, "B N 1 R"] | None]:
        """Return the colours from 0 to 1, and the masks."""
        del draws
        rays = given["positions"], given["rays"]
        (batch, num_rays, _), copies = rays[1].shape, self.copies(slots.shape[1])
        size = max(1, AT_A_TIME // (batch * copies))
        if self.differentiated or num_rays <= size:
            colours, weights = self.render(slots, slot_mask, *rays)
        else:
            turns = -(-num_rays // size)
            # The last slice is filled with copies of the last ray.
            cut = lambda x: jnp.moveaxis(  # noqa: E731
                jnp.pad(x, ((0, 0), (0, turns * size - num_rays), (0, 0)), "edge").reshape(
                    batch, turns, size, 3
                ),
                1,
                0,
            )
            join = lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, turns * size, -1)[:, :num_rays]  # noqa: E731
            render = lambda rays: self.render(slots, slot_mask, *rays)  # noqa: E731
            found = jax.lax.map(render, tuple(map(cut, rays)))
            colours, weights = jax.tree.map(join, found)
        return colours, None if weights is None else weights.swapaxes(1, 2)[:, :, None]

    def copies(self, num_slots: int) -> int:
        """Return how much more memory a ray takes than one of the mixer."""
        del num_slots
        return 1

    def render(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        positions: Float[Array, "B R 3"],
        rays: Float[Array, "B R 3"],
    ) -> tuple[Float[Array, "B R K"], Float[Array, "B R N"] | None]:
        """Return colours, and the weights of slots."""
        raise NotImplementedError

    def draw(self, keys, sizes, training) -> None:
        """Return None: nothing is random."""


class _Allocator(nnx.Module):
    """Rays that look at slots: an MLP over their encodings, then layers of cross-attention.

    Args:
        width: of the encodings.
        slot_size: D.
        query_size: hidden width of the MLP.
        num_layers, num_heads, head_size, feed_forward_size: of the layers.
    """

    def __init__(
        self,
        width: int,
        slot_size: int,
        *,
        query_size: int,
        num_layers: int,
        num_heads: int,
        head_size: int,
        feed_forward_size: int,
        rngs: nnx.Rngs,
    ):
        for key, value in (
            ("query_size", query_size),
            ("num_layers", num_layers),
            ("num_heads", num_heads),
            ("head_size", head_size),
            ("feed_forward_size", feed_forward_size),
        ):
            check_whole(f"{PATH}.{key}", value)
        self.hidden = linear(width, query_size, start="xavier", rngs=rngs)
        self.out = linear(query_size, width, start="xavier", rngs=rngs)
        self.layers = nnx.List(
            [
                SceneLayer(
                    width,
                    num_heads=num_heads,
                    head_size=head_size,
                    hidden_size=feed_forward_size,
                    memory_width=slot_size,
                    rngs=rngs,
                )
                for _ in range(num_layers)
            ]
        )

    def __call__(
        self,
        encoded: Float[Array, "B R E"],
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        remat: bool,
    ) -> tuple[Float[Array, "B R E"], Float[Array, "B R E"]]:
        """Return what the rays have found, and the output of the MLP."""
        queries = self.out(jax.nn.relu(self.hidden(encoded.astype(slots.dtype))))
        again = jax.checkpoint if remat else lambda function: function
        x = queries
        for layer in self.layers:
            x = again(lambda x, layer=layer: layer(x, slots, slot_mask))(x)
        return x, queries


class RayMixerDecoder(_RayDecoder):
    """OSRT's slot mixer: each ray mixes the slots once, and renders the mixture.

    Rays look at the slots in the layers of an allocator. One more attention, without values of its
    own, mixes the slots themselves, and its weights are the masks. An MLP renders the mixture
    beside the ray's query.

    Args:
        grid: (h, w) of the tokens; unused.
        width: C of the target, 3 for colours.
        slot_size: D.
        octaves: of the encodings of positions and rays.
        position_octave: the first of positions.
        query_size: hidden width of the MLP in front of the allocator.
        num_layers: number of the allocator's layers.
        num_heads: their attention heads.
        head_size: channels of each head.
        feed_forward_size: hidden width of their feed-forwards.
        mix_size: channels of the mixture's queries and keys.
        hidden_size: width of the renderer's hidden layers.
        renderer_layers: number of its Linear layers.
        norm: whether a LayerNorm precedes the mixture's queries and follows the mixture.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        slot_size: int,
        *,
        octaves: int,
        position_octave: int,
        query_size: int,
        num_layers: int,
        num_heads: int,
        head_size: int,
        feed_forward_size: int,
        mix_size: int,
        hidden_size: int,
        renderer_layers: int,
        norm: bool = False,
        rngs: nnx.Rngs,
    ):
        del grid
        super().__init__(octaves, position_octave, hidden_size, renderer_layers)
        check_whole(f"{PATH}.mix_size", mix_size)
        check_flag(f"{PATH}.norm", norm)
        encoded = self.encoding.width
        self.allocator = _Allocator(
            encoded,
            slot_size,
            query_size=query_size,
            num_layers=num_layers,
            num_heads=num_heads,
            head_size=head_size,
            feed_forward_size=feed_forward_size,
            rngs=rngs,
        )
        self.norm_query = layer_norm(encoded, rngs=rngs) if norm else None
        self.norm_mixed = layer_norm(slot_size, rngs=rngs) if norm else None
        self.query = linear(encoded, mix_size, bias=False, start="xavier", rngs=rngs)
        self.key = linear(slot_size, mix_size, bias=False, start="xavier", rngs=rngs)
        self.renderer = RayMLP((slot_size + encoded, *self._hidden, width), rngs=rngs)

    def render(self, slots, slot_mask, positions, rays):
        encoded = self.encoding(positions, rays)
        x, queries = self.allocator(encoded, slots, slot_mask, self.remat)
        x = x if self.norm_query is None else self.norm_query(x)
        mixed, weights = attend_with_weights(self.query(x), self.key(slots), slots, 1, slot_mask)
        mixed = mixed if self.norm_mixed is None else self.norm_mixed(mixed)
        colours = self.renderer(jnp.concatenate([mixed, queries], axis=-1))
        return jax.nn.sigmoid(colours), weights


class RayBroadcastDecoder(_RayDecoder):
    """Each slot renders each ray on its own: a colour, and a logit of its weight.

    OSRT's paper calls it the spatial broadcast decoder. It takes N times the work of the mixer.

    Args:
        grid: (h, w) of the tokens; unused.
        width: C of the target, 3 for colours.
        slot_size: D.
        octaves: of the encodings of positions and rays.
        position_octave: the first of positions.
        hidden_size: width of the renderer's hidden layers.
        renderer_layers: number of its Linear layers.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        slot_size: int,
        *,
        octaves: int,
        position_octave: int,
        hidden_size: int,
        renderer_layers: int,
        rngs: nnx.Rngs,
    ):
        del grid
        super().__init__(octaves, position_octave, hidden_size, renderer_layers)
        self.renderer = RayMLP(
            (slot_size + self.encoding.width, *self._hidden, 1 + width), rngs=rngs
        )

    def copies(self, num_slots: int) -> int:
        return num_slots

    def render(self, slots, slot_mask, positions, rays):
        encoded = self.encoding(positions, rays).astype(slots.dtype)
        shape = (*encoded.shape[:2], slots.shape[1])
        encoded = jnp.broadcast_to(encoded[:, :, None], (*shape, encoded.shape[-1]))
        copies = jnp.broadcast_to(slots[:, None], (*shape, slots.shape[-1]))
        render = jax.checkpoint(self.renderer) if self.remat else self.renderer
        found = render(jnp.concatenate([encoded, copies], axis=-1))
        logits = found[..., 0].astype(jnp.float32)
        if slot_mask is not None:
            logits = jnp.where(slot_mask[:, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1)
        colours = jax.nn.sigmoid(found[..., 1:])
        return jnp.einsum("brn,brnk->brk", weights.astype(colours.dtype), colours), weights


class RayTransformerDecoder(_RayDecoder):
    """SRT's decoder, as OSRT improved it: rays look at a scene's tokens. It has no masks.

    With the initializer `tokens` and the aggregator `none`, the tokens stand where slots would.

    Args:
        grid: (h, w) of the tokens; unused.
        width: C of the target, 3 for colours.
        slot_size: D.
        octaves: of the encodings of positions and rays.
        position_octave: the first of positions.
        query_size: hidden width of the MLP in front of the layers.
        num_layers: number of layers.
        num_heads: their attention heads.
        head_size: channels of each head.
        feed_forward_size: hidden width of their feed-forwards.
        hidden_size: width of the renderer's hidden layers.
        renderer_layers: number of its Linear layers.
    """

    has_masks = False

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        slot_size: int,
        *,
        octaves: int,
        position_octave: int,
        query_size: int,
        num_layers: int,
        num_heads: int,
        head_size: int,
        feed_forward_size: int,
        hidden_size: int,
        renderer_layers: int,
        rngs: nnx.Rngs,
    ):
        del grid
        super().__init__(octaves, position_octave, hidden_size, renderer_layers)
        self.allocator = _Allocator(
            self.encoding.width,
            slot_size,
            query_size=query_size,
            num_layers=num_layers,
            num_heads=num_heads,
            head_size=head_size,
            feed_forward_size=feed_forward_size,
            rngs=rngs,
        )
        self.renderer = RayMLP((self.encoding.width, *self._hidden, width), rngs=rngs)

    def copies(self, num_slots: int) -> int:
        return max(1, num_slots // 64)  # the attention's weights grow with the scene's tokens

    def render(self, slots, slot_mask, positions, rays):
        encoded = self.encoding(positions, rays)
        x, _ = self.allocator(encoded, slots, slot_mask, self.remat)
        return jax.nn.sigmoid(self.renderer(x)), None
