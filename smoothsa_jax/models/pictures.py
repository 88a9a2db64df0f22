"""Pictures of slots: what a model's decoder says that frames look like."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.encoders.pixels import denormalize
from smoothsa_jax.models.interfaces import Tokenizer
from smoothsa_jax.models.slot_model import SlotModel
from smoothsa_jax.models.tokenizer_model import fold, unfold


def check_pictures(model: SlotModel, tokenizer: Tokenizer | None, name: str) -> None:
    """Refuse a model whose decoder tells no pixels.

    Args:
        model: the model, with arrays or shapes.
        tokenizer: that of its target's codes, or None.
        name: of its target in the config.

    Raises:
        UserError: it predicts something else; or codes, and there is no tokenizer that decodes.
    """
    if not _needs_tokenizer(model) and _channels(model.target, "of_pixels") is None:
        raise UserError(
            f"this model's decoder predicts {name}, not pixels, so that there is no picture of its "
            "slots; leave --reconstruct and --edit out, or use a model of the target 'pixels' or "
            "of a tokenizer"
        )
    if _needs_tokenizer(model) and tokenizer is None:
        raise UserError(
            "this model's decoder predicts the codes of a tokenizer, which its files do not hold; "
            "give the workdir of its training"
        )
    if _needs_tokenizer(model) and not getattr(tokenizer, "decodes", True):
        raise UserError(
            "this model's tokenizer has no decoder, as it comes from a published file of a second "
            "stage, so that there is no picture of its slots; leave --reconstruct and --edit out, "
            "or train a second stage on a tokenizer of your own"
        )


def pictures(
    model: SlotModel,
    tokenizer: Tokenizer | None,
    slots: Float[Array, "B T N D"],
    slot_mask: Bool[Array, "B T N"],
    key: Array,
    steps: int | None,
) -> Float[Array, "B T H W 3"]:
    """Decode slots to pixels from 0 to 1, at the decoder's own size.

    Args:
        model: one that `check_pictures` accepts.
        tokenizer: as there.
        slots: the slots of each frame.
        slot_mask: true = valid; the picture is as if the others did not exist.
        key: of the noise that a denoising decoder starts from, the same for every frame.
        steps: how often a denoising decoder runs; None: as many as it was published with.
    """
    slots = slots.astype(model.dtype)
    if hasattr(model.decoder, "draw_codes"):
        inputs = fold(slots), fold(slot_mask), tokenizer.codes, key, steps
        return _decoded(tokenizer, unfold(model.decoder.draw_codes(*inputs), len(slots)))
    prediction = model.decode(slots, slot_mask)
    of_pixels = _channels(model.target, "of_pixels")
    if of_pixels is None:
        codes = prediction[..., _channels(model.target, "of_codes")]
        return _decoded(tokenizer, codes)
    pixels = prediction[..., of_pixels].reshape(*slots.shape[:2], *model.target.grid, -1)
    seen = getattr(model.encoder, "pixels", "imagenet")
    return jnp.clip(denormalize(pixels, seen), 0.0, 1.0)


def _decoded(tokenizer: Tokenizer, codes: Float[Array, "B T M D"]) -> Float[Array, "B T H W 3"]:
    pixels = tokenizer.decode(fold(codes)).astype(jnp.float32)
    pixels = denormalize(pixels, getattr(tokenizer, "pixels", "imagenet"))
    return unfold(jnp.clip(pixels, 0.0, 1.0), len(codes))


def _needs_tokenizer(model: SlotModel) -> bool:
    """Tell whether the decoder predicts codes, and no pixels."""
    of_pixels = _channels(model.target, "of_pixels")
    of_codes = _channels(model.target, "of_codes")
    return of_pixels is None and (of_codes is not None or hasattr(model.decoder, "draw_codes"))


def _channels(target: Any, kind: str) -> slice | None:
    """Return the channels of a prediction that are of this kind; None: there are none."""
    if getattr(target, kind, False):
        return slice(None)
    for name, channels in getattr(target, "parts", {}).items():
        if getattr(target.targets[name], kind, False):
            return channels
    return None
