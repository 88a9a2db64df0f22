"""The causal transformer over discrete tokens: each from the slots and the tokens before it."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.backend import CPU
from smoothsa_jax.models.interfaces import TOKEN_LOSS, Sizes
from smoothsa_jax.models.layers.attention import fit_on_chip
from smoothsa_jax.models.layers.basic import (
    ACTIVATIONS,
    check_start,
    dropout,
    in_turns,
    layer_norm,
    linear,
    split_key,
    uniform,
)
from smoothsa_jax.models.layers.positions import learned_positions
from smoothsa_jax.models.layers.quantize import chosen
from smoothsa_jax.models.layers.transformer import BIASES, causal_layers
from smoothsa_jax.parts import check_dropout, check_flag, check_heads, check_one_of, check_whole

EMBEDS = ("codes", "table")
AT_ONCE = 2**24  # bytes of float32 logits that the token loss has at a time


class CausalTransformerDecoder(nnx.Module):
    """A decoder that predicts the tokens of an image one after the other, in row-major order.

    A start vector comes first, then all tokens but the last. Cross-attention reads the slots. It
    has no masks: the systems that use it score those of slot attention. In SLATE and STEVE as
    SmoothSA's author implements them, tokens enter as codes of a frozen tokenizer and slots as they
    are. In the original STEVE (Singh et al. 2022, arXiv 2205.14065), tokens have a learned table
    and slots a projection; in SLATE (arXiv 2110.11405), that table has a row for the start too. In
    the program of SlotFormer (arXiv 2210.05861), the projection has a bias as well.

    Args:
        grid: (h, w) of the tokens.
        width: V, the size of the vocabulary.
        slot_size: D.
        num_layers: number of transformer layers.
        num_heads: number of attention heads.
        embed: what a token enters as: its "codes" in the tokenizer, or a row of a learned "table".
        start_in_table: whether the start vector is row 0 of the table, and token k is row k+1.
        token_size: E, width of the layers; None: D. Codes have this width.
        project_slots: whether a Linear layer takes the slots to E. Without it, E is D.
        project_bias: whether that layer has a bias.
        biases: which parts have biases; see `PreNormLayer`.
        activation: "gelu" or "relu", of the feed-forward.
        final_norm: whether a LayerNorm follows the last layer.
        spare_position: with a table, whether there is a position after the last token as well,
            which nothing reads, as in the programs of STEVE and SLATE.
        dropout_rate: in training, of the input, of attention weights and of each branch.
        start: initial values: "torch", with layers that start as copies of one; or "xavier", with
            projections onto the residual stream scaled by (3 layers)**-0.5 (STEVE).
        outer_start: of what takes slots in and makes logits; None: as `start`.
    """

    backend = CPU
    differentiated = True
    exact = ("tokens",)

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        slot_size: int,
        *,
        num_layers: int,
        num_heads: int,
        embed: str,
        start_in_table: bool = False,
        token_size: int | None = None,
        project_slots: bool = False,
        project_bias: bool = False,
        biases: str = "none",
        activation: str = "gelu",
        final_norm: bool = False,
        spare_position: bool = True,
        dropout_rate: float = 0.0,
        start: str = "torch",
        outer_start: str | None = None,
        rngs: nnx.Rngs,
    ):
        path = "model.decoder"
        check_whole(f"{path}.num_layers", num_layers)
        check_one_of(f"{path}.embed", embed, EMBEDS)
        check_flag(f"{path}.start_in_table", start_in_table)
        if start_in_table and embed != "table":
            raise UserError(
                f"{path}.start_in_table is True, but {path}.embed={embed!r} has no table; set "
                f"--config.{path}.embed=table or --config.{path}.start_in_table=False"
            )
        if token_size is not None:
            check_whole(f"{path}.token_size", token_size)
        size = token_size or slot_size
        check_flag(f"{path}.project_slots", project_slots)
        check_flag(f"{path}.project_bias", project_bias)
        if project_bias and not project_slots:
            raise UserError(
                f"{path}.project_bias is True, but no layer takes the slots in; set "
                f"--config.{path}.project_slots=True or --config.{path}.project_bias=False"
            )
        if size != slot_size and not project_slots:
            raise UserError(
                f"{path}.token_size is {size}, but slots are {slot_size} wide and enter as they "
                f"are; set --config.{path}.project_slots=True or token_size={slot_size}"
            )
        check_heads(f"{path}.num_heads", num_heads, size, f"the {size} channels of a token")
        check_one_of(f"{path}.biases", biases, BIASES)
        check_one_of(f"{path}.activation", activation, ACTIVATIONS)
        check_flag(f"{path}.final_norm", final_norm)
        check_flag(f"{path}.spare_position", spare_position)
        check_dropout(f"{path}.dropout_rate", dropout_rate)
        check_start(f"{path}.start", start, ("torch", "xavier"))
        if outer_start is not None:
            check_start(f"{path}.outer_start", outer_start, ("torch", "xavier"))
        outer = outer_start or start
        self.grid, self.vocabulary, self.token_size = grid, width, size
        self.dropout_rate = dropout_rate
        num_tokens = grid[0] * grid[1]
        if start_in_table:
            first = None
        elif start == "torch":
            first = size**-0.5 * jax.random.normal(rngs.params(), (1, 1, size), jnp.float32)
        else:
            first = uniform((3.0 / size) ** 0.5)(rngs.params(), (1, 1, size), jnp.float32)
        self.first = None if first is None else nnx.Param(first)
        rows = width + int(start_in_table)
        draw_table = lambda: jax.random.normal(rngs.params(), (rows, size), jnp.float32)  # noqa: E731
        self.table = nnx.Param(draw_table()) if embed == "table" else None
        self.needs = ("codes",) if self.table is None else ("tokens",)
        places = num_tokens + int(embed == "table" and spare_position)
        self.position = nnx.Param(
            learned_positions(rngs.params(), places, size, "truncated_normal", 1.0)
        )
        self.project_slots = (
            linear(slot_size, size, bias=project_bias, start=outer, rngs=rngs)
            if project_slots
            else None
        )
        self.norm_out = layer_norm(size, bias=biases != "none", rngs=rngs) if final_norm else None
        self.readout = linear(size, width, bias=False, start=outer, rngs=rngs)
        self.remat = False  # whether the backward pass recomputes a layer's activations
        self.layers = causal_layers(
            size,
            num_heads,
            num_layers,
            norm_stream=True,
            biases=biases,
            activation=activation,
            dropout_rate=dropout_rate,
            start=start,
            rngs=rngs,
        )

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        given: Mapping[str, Array],
        draws: Array | None,
    ) -> tuple[dict[str, Array], None]:
        """Return `prediction`, the logits (B,M,V), and, given tokens, their `token_loss` (B,M).

        What nothing reads is not compiled. The loss never has the logits of a whole batch.

        Args:
            slots: the slots of each frame.
            slot_mask: true = valid.
            given: `codes` (B,M,E) or, with a table of its own, `tokens` (B,M), of which each place
                sees those before it.
            draws: keys (B,) of dropout; None: no dropout.

        Returns:
            The outputs, and None: there are no masks.
        """
        (name,) = self.needs
        if self.table is None and given["codes"].shape[-1] != self.token_size:
            found = given["codes"].shape[-1]
            raise UserError(
                f"the tokenizer's codes are {found} wide, but model.decoder takes codes of "
                f"{self.token_size}; train a tokenizer of that width, or change model.slot_size"
            )
        inputs = given[name], slots, draws, slot_mask
        x = fit_on_chip(
            self._decoded,
            inputs,
            num_heads=self.layers[0].self_attention.num_heads,
            length=given[name].shape[1],
            backend=self.backend,
            differentiated=self.differentiated,
        )
        found = {"prediction": self._logits(x)}
        if "tokens" in given:
            most = max(1, AT_ONCE // (4 * x.shape[1] * self.vocabulary))
            again = jax.checkpoint(self._loss)  # the backward pass has no logits either
            found[TOKEN_LOSS] = in_turns(again, (x, given["tokens"]), most)
        return found, None

    def generate(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        embed: Callable[[Int[Array, "B 1"]], Float[Array, "B 1 E"]] | None = None,
    ) -> Int[Array, "B M"]:
        """Return the tokens that are most likely one after the other.

        Keys and values of earlier tokens are kept, so each token is processed once.

        Args:
            slots: the slots of each frame.
            slot_mask: true = valid.
            embed: tokens -> codes, of the tokenizer; None for a decoder with a table of its own.
        """
        return self.generate_with_logits(slots, slot_mask, embed)[0]

    def draw_codes(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        codes_of: Callable[[Int[Array, "B M"]], Float[Array, "B M E"]],
        key: Array,
        steps: int | None,
    ) -> Float[Array, "B M E"]:
        """Return the codes of the most likely tokens; see `interfaces.Decoder`."""
        del key, steps
        embed = codes_of if self.table is None else None
        return codes_of(self.generate(slots, slot_mask, embed))

    def generate_with_logits(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        embed: Callable[[Int[Array, "B 1"]], Float[Array, "B 1 E"]] | None = None,
    ) -> tuple[Int[Array, "B M"], Float[Array, "B M V"]]:
        """Return the tokens of `generate`, and the logits that each is the largest of."""
        memory = self._memory(slots)
        of_layers = [layer.cross_attention.remember(memory) for layer in self.layers]
        num_tokens = self.grid[0] * self.grid[1]
        empty = jnp.zeros((len(slots), num_tokens, self.token_size), memory.dtype)
        caches = [(empty, empty) for _ in self.layers]
        embed = embed or (lambda tokens: chosen(self.table[...], self._row(tokens)))

        def step(state, place):
            token, caches = state
            x = self._input(embed(token).astype(memory.dtype), place)
            kept = []
            for layer, cache, remembered in zip(self.layers, caches, of_layers, strict=True):
                x, cache = layer.extend(x, cache, place, remembered, memory_mask=slot_mask)
                kept.append(cache)
            x = x if self.norm_out is None else self.norm_out(x)
            logits = self._logits(x)
            token = logits.argmax(axis=-1).astype(jnp.int32)
            return (token, kept), (token[:, 0], logits[:, 0])

        start = jnp.zeros((len(slots), 1), jnp.int32), caches
        _, (tokens, logits) = jax.lax.scan(step, start, jnp.arange(num_tokens))
        return tokens.T, logits.swapaxes(0, 1)

    def _input(self, embedded, place):
        """The input of one place: the start vector, or the embedding of the token before it."""
        first = self._start().astype(embedded.dtype)
        embedded = jnp.where(place == 0, first, embedded)
        position = jax.lax.dynamic_slice_in_dim(self.position[...], place, 1, axis=1)
        return embedded + position.astype(embedded.dtype)

    def _start(self):
        return self.table[...][:1][None] if self.first is None else self.first[...]

    def _row(self, tokens):
        return tokens + 1 if self.first is None else tokens

    def _memory(self, slots):
        return slots if self.project_slots is None else self.project_slots(slots)

    def _logits(self, x):
        return self.readout(x).astype(jnp.float32)

    def _loss(self, x, tokens):
        return optax.softmax_cross_entropy_with_integer_labels(self._logits(x), tokens)

    def _decoded(self, sequence, slots, dropout_key, slot_mask):
        embedded = self._embedded(sequence)
        first = jnp.broadcast_to(self._start(), (len(slots), 1, self.token_size))
        x = jnp.concatenate([first.astype(embedded.dtype), embedded[:, :-1]], axis=1)
        x = x + self.position[...][:, : x.shape[1]].astype(x.dtype)
        keys = [None] * (len(self.layers) + 1)
        if dropout_key is not None:
            keys = list(split_key(dropout_key, len(keys)))
        x, memory = dropout(x, self.dropout_rate, keys[0]), self._memory(slots)
        again = jax.checkpoint if self.remat else lambda function: function
        for layer, key in zip(self.layers, keys[1:], strict=True):
            run = lambda x, key, layer=layer: layer(  # noqa: E731
                x, memory, memory_mask=slot_mask, dropout_key=key
            )
            x = again(run)(x, key)
        return x if self.norm_out is None else self.norm_out(x)

    def _embedded(self, sequence):
        return sequence if self.table is None else chosen(self.table[...], self._row(sequence))

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Array | None:
        """Draw the keys (B,T) of dropout; None without any."""
        if not training or not self.dropout_rate:
            return None
        found = jax.random.split(keys[0], sizes.batch * sizes.frames)
        return found.reshape(sizes.batch, sizes.frames)
