"""Parts from outside the package, as other systems need them; see `test_interfaces.py`."""

import jax.numpy as jnp
from flax import nnx

from smoothsa_jax.models.aggregators.slot_attention import SlotAttention
from smoothsa_jax.models.decoders.mlp_mixture import MLPMixtureDecoder
from smoothsa_jax.models.targets import Features


class Narrowing(SlotAttention):
    """An aggregator that keeps two slots of a first frame, as pruning and MetaSlot do."""

    def __call__(self, prepared, queries, slot_mask=None, draws=None, first=True):
        if first:
            slot_mask = slot_mask & (jnp.arange(queries.shape[1]) < 2)
        return super().__call__(prepared, queries, slot_mask, draws, first)


class Scheduled(SlotAttention):
    """An aggregator with a scheduled setting, whose value it outputs for a loss."""

    scheduled = ("noise",)

    def __call__(self, prepared, queries, slot_mask, draws, first, scheduled):
        found = super().__call__(prepared, queries, slot_mask, draws, first)
        noise = jnp.full(len(queries), scheduled.get("noise", 0.0))
        return found._replace(extras={"noise": noise})


class WithoutMasks(MLPMixtureDecoder):
    """A decoder without masks, like SLATE's."""

    def __call__(self, slots, slot_mask=None, given=None, draws=None):
        return super().__call__(slots, slot_mask, given, draws)[0], None


class Depth(nnx.Module):
    """A target from the data."""

    batch_reads = ("depth",)

    def __init__(self, encoder, image_size, *, rngs):
        self.width = 1

    def __call__(self, batch, constants, draws):
        return {"target": batch["depth"]}

    def draw(self, keys, sizes, training):
        return None


class Noise:
    """A loss on an extra output of the aggregator."""

    reads = ("noise",)

    def __call__(self, outputs, batch, scheduled):
        return outputs["noise"].mean()


class Twice(Features):
    """Two targets by name."""

    def __call__(self, batch, constants, draws):
        found = super().__call__(batch, constants, draws)
        return {**found, "doubled": 2.0 * found["target"]}
