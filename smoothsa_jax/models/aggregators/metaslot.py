"""MetaSlot (arXiv 2505.20772): slots are compared with a codebook, and duplicates are removed.

Slot attention runs twice with the same weights. In between, every slot is quantized to its nearest
prototype, a row of a learned codebook; of slots with the same prototype, the first one stays. The
second run starts from the prototypes.

The defaults follow the authors' program, and its paper where `return_mask` is concerned: the
program decodes removed slots like the others. In training, the program removes no slot and starts
the second run from prototypes in a share of the steps that soon fades. The paper's method is:

    slots_share=0.0, mask="always", gradient="last_and_queries", noise_in="second",
    codebook="moving_average", replace="cosine"
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.aggregators.slot_attention import SlotAttention
from smoothsa_jax.models.buffers import Buffer
from smoothsa_jax.models.interfaces import Aggregated, Sizes
from smoothsa_jax.models.layers.basic import split_key, uniform
from smoothsa_jax.parts import (
    check_above_zero,
    check_flag,
    check_number,
    check_one_of,
    check_whole,
)

Prepared = tuple[Float[Array, "*b M C"], Float[Array, "*b M D"], Float[Array, "*b M D"]]

GROWTH = 1.001  # of the share of training steps that start from slots, at every step
DECAY = 0.05  # weight of the new means in the moving average
BLEND, JITTER = 0.8, 0.01  # of a replaced code: weight of the slot, and its relative noise
LLOYD_ITERATIONS, LLOYD_TOLERANCE = 100, 1e-4


class MetaSlot(SlotAttention):
    """Slot attention in two stages, with prototypes in between; on later frames one stage.

    Section 3 of the paper. Stage 2 starts from prototypes at evaluation, and in training with a
    probability that starts at 1 - `slots_share` and reaches 0 as the share of steps that start from
    slots grows by 0.1 % in each of them.

    Buffers: `queue`, the slots of the last batches, and `pointer`, where the next one goes;
    `counters`, the updates that each code has left before it counts as dead; `calls` and `tied`,
    see `update`; `slots_share`.

    Args:
        width: C of the tokens.
        slot_size: D.
        first: number of iterations of each stage on the first frame.
        later: number of iterations on every later frame, which is plain slot attention with the
            slots that the first frame has left.
        codes: K, number of prototypes.
        capacity: rows of the queue; in the authors' recipes, the slots of four batches.
        timeout: a code is dead once it was not used by about this many queued slots per code.
        temperature: of the random choice of a prototype in training: distances are divided by it.
        noise: standard deviation of the noise on normalized tokens in a stage's first iteration, in
            training; it falls to 0 until the last.
        noise_in: the stages with noise, "both" or "second".
        prototypes: whether stage 2 may start from prototypes. Otherwise they only tell which slots
            are duplicates.
        slots_share: initial probability that stage 2 of a training step starts from slots; 0:
            always from prototypes.
        mask: when duplicates are removed: at "evaluation" only, or "always".
        return_mask: whether removed slots are masked in what follows. Otherwise they are decoded,
            each as the same constant slot.
        gradient: what the gradient passes through: "full", both stages; "last_and_queries", the
            last iteration and from there the queries.
        codebook: how the update moves all codes: "kmeans_once", at the first update only; then the
            optimizer moves those that stage 2 started from; or "moving_average", of k-means.
        replace: which queued slot replaces a dead code: the one farthest from the codes in use by
            Euclidean "distance", mixed with the old code; or least similar by "cosine".
        mlp_ratio: hidden width of the MLP, as a multiple of D.
    """

    # What `update` reads; the slot mask too, where there is one.
    update_reads = ("slots", "slots_kept")

    def __init__(
        self,
        width: int,
        slot_size: int,
        *,
        first: int,
        later: int,
        codes: int,
        capacity: int = 1024,
        timeout: int = 4096,
        temperature: float = 1.0,
        noise: float = 0.5,
        noise_in: str = "both",
        prototypes: bool = True,
        slots_share: float = 0.02,
        mask: str = "evaluation",
        return_mask: bool = True,
        gradient: str = "full",
        codebook: str = "kmeans_once",
        replace: str = "distance",
        mlp_ratio: float = 4.0,
        rngs: nnx.Rngs,
    ):
        path = "model.aggregator"
        check_whole(f"{path}.codes", codes)
        check_whole(f"{path}.capacity", capacity)
        check_whole(f"{path}.timeout", timeout)
        check_above_zero(f"{path}.temperature", temperature)
        check_number(f"{path}.noise", noise)
        check_one_of(f"{path}.noise_in", noise_in, ("both", "second"))
        check_flag(f"{path}.prototypes", prototypes)
        check_number(f"{path}.slots_share", slots_share, below=1.0)
        check_one_of(f"{path}.mask", mask, ("evaluation", "always"))
        check_flag(f"{path}.return_mask", return_mask)
        check_one_of(f"{path}.gradient", gradient, ("full", "last_and_queries"))
        check_one_of(f"{path}.codebook", codebook, ("kmeans_once", "moving_average"))
        check_one_of(f"{path}.replace", replace, ("distance", "cosine"))
        if capacity < codes:
            raise UserError(
                f"{path}.capacity is {capacity}, less than {path}.codes={codes}: every code may be "
                f"replaced by a queued slot; set --config.{path}.capacity={codes} or more"
            )
        super().__init__(
            width,
            slot_size,
            first=first,
            later=later,
            gradient=gradient,
            mlp_ratio=mlp_ratio,
            rngs=rngs,
        )
        self.temperature, self.noise, self.noise_in = temperature, noise, noise_in
        self.prototypes, self.mask, self.return_mask = prototypes, mask, return_mask
        self.always_prototypes = slots_share == 0.0
        self.moves, self.replace = codebook, replace
        self.lifetime = math.ceil(timeout * codes / capacity)
        start = uniform(1.0 / codes)(rngs.params(), (codes, slot_size), jnp.float32)
        self.codebook = nnx.Param(start)
        queue = jax.random.normal(rngs.params(), (capacity, slot_size), jnp.float32)
        self.queue = Buffer(queue)
        self.pointer = Buffer(jnp.zeros((), jnp.int32))
        self.counters = Buffer(jnp.ones((codes,), jnp.int32))
        self.calls = Buffer(jnp.zeros((), jnp.int32))
        self.tied = Buffer(jnp.zeros((), jnp.int32))
        self.slots_share = Buffer(jnp.float32(slots_share))

    def check_num_slots(self, num_slots: int, path: str = "model.num_slots") -> None:
        """Refuse a codebook that leaves fewer slots than asked for.

        Args:
            num_slots: N.
            path: of the setting that asks for them.

        Raises:
            UserError: there are fewer codes than slots.
        """
        codes = self.codebook.shape[0]
        if codes < num_slots:
            raise UserError(
                f"model.aggregator.codes is {codes}, less than {path}={num_slots}: slots "
                "of the same code are removed, so some would never be used; set "
                f"--config.model.aggregator.codes={num_slots} or more"
            )

    # ------------------------------------------------------------------------------ forward pass

    def prepare(self, tokens: Float[Array, "*b M C"]) -> Prepared:
        """Return normalized tokens, to which training adds noise, and their keys and values."""
        normed = self.norm_features(tokens)
        return normed, self.key(normed), self.value(normed)

    def __call__(
        self,
        prepared: Prepared,
        queries: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None = None,
        draws: dict[str, Array] | None = None,
        first: bool = True,
        iterations: int | None = None,
    ) -> Aggregated:
        """Run both stages; see `interfaces.Aggregator`.

        Attention and states are those of stage 1 followed by those of stage 2. Extras: the
        `attention_logits` (B,N,M) of the last iteration; `slots_kept` (B,), number of slots with
        different prototypes; `codebook_gradient` (B,), 1 if the codebook gets a gradient.
        """
        normed, *of_tokens = prepared
        if not first:
            return super().__call__(tuple(of_tokens), queries, slot_mask, None, False, iterations)
        num = iterations or self.first
        noise = [None] * (2 * num)
        if draws is not None and self.noise:
            noise = self._noise(draws["noise"], normed, num)
        inputs = [of_tokens if x is None else self._noisy(normed, x) for x in noise]
        detached = jax.lax.stop_gradient(queries)
        found, attentions, states = detached, [], []

        def run(found, iteration, mask):
            found, attention, logits = self._iterate(found, *inputs[iteration], mask)
            attentions.append(attention)
            states.append(found)
            return found, logits

        for iteration in range(num):
            found, _ = run(found, iteration, slot_mask)
        chosen = self._choose(found, None if draws is None else draws["gumbel"])
        kept = first_of_its_code(chosen, slot_mask)
        found, mask, from_prototypes = self._between(found, chosen, kept, slot_mask, draws)
        for iteration in range(num, 2 * num):
            if iteration == 2 * num - 1:
                if self.gradient == "last_and_queries":
                    found = jax.lax.stop_gradient(found)
                found = found + (queries - detached)
            found, logits = run(found, iteration, mask)
        learns = from_prototypes & (self.gradient == "full")
        extras = {
            "attention_logits": logits,
            "slots_kept": kept.sum(axis=1),
            "codebook_gradient": learns,
        }
        left = mask if self.return_mask else slot_mask
        return Aggregated(found, jnp.stack(attentions), jnp.stack(states), left, extras)

    def _noise(self, draws, normed, num) -> list[Array | None]:
        """Return the noise of each iteration, None where there is none.

        `draws` are keys (B,), so that no noise is kept for the backward pass, or the noise itself,
        standard normal, (B,2*num,M,C).
        """
        scales = [self.noise * (1 - i / max(num - 1, 1)) for i in range(num)]
        scales = [0.0] * num * (self.noise_in == "second") + scales * 2
        if jnp.issubdtype(draws.dtype, jax.dtypes.prng_key):
            normal = jax.vmap(lambda key: jax.random.normal(key, normed.shape[1:], jnp.float32))
            noise = [normal(key) for key in split_key(draws, 2 * num)]
        else:
            noise = draws.swapaxes(0, 1)
        pairs = zip(scales, noise, strict=False)
        return [(scale * x).astype(normed.dtype) if scale else None for scale, x in pairs]

    def _noisy(self, normed, noise):
        normed = normed + noise
        return self.key(normed), self.value(normed)

    def _choose(self, slots, gumbel) -> Int[Array, "... N"]:
        """Return the code of each slot: the nearest, or a random near one, given Gumbel noise."""
        closeness = -squared_distances(slots, self.codebook[...]) / self.temperature
        if gumbel is not None:
            closeness = closeness + gumbel
        return jax.lax.stop_gradient(closeness.argmax(axis=-1))

    def _between(self, slots, chosen, kept, slot_mask, draws):
        """Return where stage 2 starts, its mask, and for each sample whether from prototypes."""
        batch = slots.shape[0]
        if not self.prototypes:
            from_prototypes = jnp.zeros((batch,), bool)
        elif draws is None or self.always_prototypes:
            from_prototypes = jnp.ones((batch,), bool)
        else:
            from_prototypes = draws["coin"] > self._grown_share()
        # A product with one-hot rows: its gradient is the same in each run, unlike that of a
        # gather on a GPU.
        one_hot = jax.nn.one_hot(chosen, self.codebook.shape[0], dtype=slots.dtype)
        prototypes = precise(one_hot, self.codebook[...])
        slots = jnp.where(from_prototypes[:, None, None], prototypes, slots)
        if draws is not None and self.mask == "evaluation":
            return slots, slot_mask, from_prototypes
        return jnp.where(kept[..., None], slots, 0), kept, from_prototypes

    def _grown_share(self) -> Float[Array, ""]:
        return jnp.minimum(self.slots_share[...] * GROWTH, 1.0)

    def draw(self, keys, sizes: Sizes, training: bool) -> dict[str, Array] | None:
        """Draw what a forward pass in training needs.

        Returns:
            noise: keys (B,T); see `_noise`. gumbel (B,T,N,K): for the choice of prototypes. coin
            (B,T), the same uniform number for all samples: above the share of steps that start from
            slots, stage 2 starts from prototypes.
        """
        if not training:
            return None
        batch, frames = sizes.batch, sizes.frames
        of_noise, of_gumbel, of_coin = jax.random.split(keys[0], 3)
        shape = (batch, frames, sizes.slots, self.codebook.shape[0])
        return {
            "noise": jax.random.split(of_noise, batch * frames).reshape(batch, frames),
            "gumbel": jax.random.gumbel(of_gumbel, shape, jnp.float32),
            "coin": jnp.broadcast_to(jax.random.uniform(of_coin), (batch, frames)),
        }

    # ---------------------------------------------------------------------------------- update

    def with_gradient(self) -> dict[str, str]:
        """See `models.buffers`."""
        return {"codebook": "codebook_gradient"}

    def draw_update(self, key: Array, sizes: Sizes) -> dict[str, Array]:
        """Draw gumbel (B,N,K), for the choice of codes, and noise (K,D) on replacements."""
        of_gumbel, of_noise = jax.random.split(key)
        codebook = self.codebook.shape
        return {
            "gumbel": jax.random.gumbel(of_gumbel, (sizes.batch, sizes.slots, codebook[0])),
            "noise": jax.random.normal(of_noise, codebook, jnp.float32),
        }

    def update(
        self, outputs: dict[str, Array], draws: dict[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Queue the final slots, move the codebook by k-means, replace dead codes.

        The paper's appendix, and the authors' program: its first update replaces the codebook by
        the result of k-means. The next one does one more iteration if the first has replaced no
        code (`tied`), since the program's array of means then still is the codebook.

        Args:
            outputs: of the whole batch: slots (B,T,N,D), of which the first frame's count; and
                slot_mask (B,N), unless all are valid.
            draws: what `draw_update` returned.
        """
        slots = outputs["slots"][:, 0]
        valid = outputs.get("slot_mask")
        valid = jnp.ones(slots.shape[:2], bool) if valid is None else valid
        codebook, calls = self.codebook[...], self.calls[...]
        num_codes = codebook.shape[0]
        chosen = self._choose(slots, draws["gumbel"])
        used = (
            jnp.zeros((num_codes,), bool)
            .at[jnp.where(valid, chosen, num_codes)]
            .set(True, mode="drop")
        )
        queue, pointer = self._queued(slots.reshape(-1, slots.shape[-1]), valid.reshape(-1))

        if self.moves == "moving_average":
            codebook = codebook + DECAY * (lloyd(codebook, queue) - codebook)
        else:
            again = (calls == 1) & (self.tied[...] == 1)
            limit = jnp.where(calls == 0, LLOYD_ITERATIONS, jnp.where(again, 1, 0))
            codebook = k_means(codebook, queue, limit)

        counters = self.counters[...] - 1
        counters = jnp.where(used, self.lifetime, counters)
        dead = counters <= 0
        codebook = self._replaced(codebook, queue, used, dead, draws["noise"])
        written = {
            "codebook": codebook,
            "queue": queue,
            "pointer": pointer,
            "counters": jnp.where(dead, counters + self.lifetime, counters),
            "calls": jnp.minimum(calls + 1, 2),
            "tied": jnp.where(calls == 0, 1 - jnp.any(dead), self.tied[...]).astype(jnp.int32),
            "slots_share": self._grown_share(),
        }
        numbers = {
            "slots_kept": outputs["slots_kept"].mean(),
            "codes_used": used.mean(),
        }
        return written, numbers

    def _queued(self, slots, valid):
        """Write the valid slots of a batch into the queue, in their order."""
        capacity = self.queue.shape[0]
        rank = jnp.cumsum(valid) - 1
        count = rank[-1] + 1
        pointer = self.pointer[...]
        # If a batch has more slots than the queue, its last ones stay.
        place = jnp.where(valid & (rank >= count - capacity), (pointer + rank) % capacity, capacity)
        return self.queue[...].at[place].set(slots, mode="drop"), (pointer + count) % capacity

    def _replaced(self, codebook, queue, used, dead, noise):
        """Return the codebook with dead codes replaced by queued slots far from the used codes."""
        num_codes = codebook.shape[0]
        if self.replace == "cosine":
            unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)  # noqa: E731
            far = -precise(unit(queue), unit(codebook).T)
        else:
            squares = squared_distances(queue, codebook) + square(queue)[:, None]
            far = jnp.sqrt(jnp.maximum(squares, 0.0))
        _, farthest = jax.lax.top_k((far * used).sum(axis=1), num_codes)
        rank = jnp.clip(jnp.cumsum(dead) - 1, 0)  # of a dead code among the dead
        rows = queue[farthest][rank]
        if self.replace == "cosine":
            new = rows
        else:
            size = jnp.linalg.norm(rows, axis=1, keepdims=True)
            new = (1 - BLEND) * codebook + BLEND * (rows + JITTER * size * noise[rank])
        return jnp.where(dead[:, None], new, codebook)


def precise(a: Array, b: Array) -> Array:
    """Return a matrix product in full precision: codes are compared by small differences."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def square(x: Float[Array, "... D"]) -> Float[Array, "..."]:
    return jnp.sum(x * x, axis=-1)


def squared_distances(
    x: Float[Array, "... D"], codebook: Float[Array, "K D"]
) -> Float[Array, "... K"]:
    """Return squared distances to all codes, less the square of `x`, in float32."""
    x, codebook = x.astype(jnp.float32), codebook.astype(jnp.float32)
    return square(codebook) - 2 * precise(x, codebook.T)


def first_of_its_code(
    chosen: Int[Array, "B N"], slot_mask: Bool[Array, "B N"] | None
) -> Bool[Array, "B N"]:
    """Tell which valid slots have a code that no valid slot of a smaller index has."""
    valid = jnp.ones(chosen.shape, bool) if slot_mask is None else slot_mask
    same = (chosen[:, :, None] == chosen[:, None, :]) & valid[:, None, :]
    before = jnp.tril(jnp.ones(same.shape[1:], bool), -1)
    return valid & ~jnp.any(same & before, axis=2)


def lloyd(codebook: Float[Array, "K D"], rows: Float[Array, "R D"]) -> Float[Array, "K D"]:
    """Return the mean of the rows nearest to each code; a code without rows keeps its value."""
    nearest = squared_distances(rows, codebook).argmin(axis=1)
    one_hot = jax.nn.one_hot(nearest, codebook.shape[0], dtype=rows.dtype)
    count = one_hot.sum(axis=0)[:, None]
    return jnp.where(count > 0, precise(one_hot.T, rows) / jnp.maximum(count, 1), codebook)


def k_means(
    codebook: Float[Array, "K D"], rows: Float[Array, "R D"], limit: Int[Array, ""]
) -> Float[Array, "K D"]:
    """Run Lloyd's iterations, at most `limit`, until the codes hardly move."""

    def go_on(carry):
        _, moved, done = carry
        return (done < limit) & (moved >= LLOYD_TOLERANCE)

    def iterate(carry):
        codes, _, done = carry
        new = lloyd(codes, rows)
        moved = jnp.linalg.norm(new - codes + 1e-6, axis=1).mean()
        return new, moved, done + 1

    start = codebook, jnp.float32(jnp.inf), jnp.int32(0)
    return jax.lax.while_loop(go_on, iterate, start)[0]
