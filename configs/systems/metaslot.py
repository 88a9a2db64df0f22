"""MetaSlot: prototypes, and no two slots of the same one (arXiv 2505.20772).

MetaSlot replaces slot attention and nothing else. Around it are the parts of DINOSAUR's
re-implementation by SmoothSA's author, as in the authors' program.

    (no word)   the program, except that removed slots are masked in decoder, losses and scores
    ar          SPOT's autoregressive decoder instead of the MLP
    tokens      SLATE's decoder, on a tokenizer that is trained first with the word tokenizer
    noise       SlotDiffusion's, likewise
    paper       the method as the paper describes it, which its program is not
    b16         with genera1z: DINO's ViT-B/16 after its last LayerNorm, 100,000 steps
    genera1z    the published recipe: DINOv2 without registers; removed slots are decoded
"""

from ml_collections import ConfigDict

from configs import base
from configs.systems import slate, slotdiffusion
from smoothsa_jax.errors import UserError

TITLE = "MetaSlot"
KIND = "system"


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_boxes(data, TITLE)
    base.predict_features(
        config,
        projection=base.PROJECTION,
        initializer=base.SEPARATE_GAUSSIANS,
        aggregator={
            "name": "metaslot",
            "gradient": "full",
            "first": 3,
            "later": 1,
            "codes": 512,
            "capacity": max(4 * data.batch_size * data.num_slots, 512),
            "return_mask": True,
        },
        decoder=base.GENERA1Z_DECODER,
    )
    config.optimizer.learning_rate.peak, config.optimizer.clip_norm = 2e-4, 1.0
    base.follow(config, data)


def ar(config: ConfigDict, data: base.DataSet) -> None:
    del data
    config.title = f"{TITLE}, autoregressive"
    config.model.projection = ConfigDict({"name": "mlp"})
    config.model.initializer = ConfigDict(base.SHARED_GAUSSIAN)
    config.model.decoder = ConfigDict(
        {
            "name": "permuted_ar",
            "num_layers": 4,
            "num_heads": 4,
            "orders": 9,
            "evaluate": "first",
            "biases": "none",
            "activation": "gelu",
            "final_norm": False,
            "first_norm": "stream",
            "bos_std": config.model.encoder.width**-0.5,
        }
    )
    config.optimizer.clip_norm, config.optimizer.clip_by = 0.3, "largest"


def tokens(config: ConfigDict, data: base.DataSet) -> None:
    config.title = f"{TITLE}, tokens"
    kept = {x: config.model[x] for x in ("projection", "initializer", "aggregator")}
    for name in (*kept, "decoder", "transition"):
        del config.model[name]
    base.predict_tokens(config)
    for name, part in kept.items():
        config.model[name] = part
    base.read_tokens(config, data)
    base.follow(config, data)


def noise(config: ConfigDict, data: base.DataSet) -> None:
    tokens(config, data)
    config.title = f"{TITLE}, noise"
    slotdiffusion.predict_noise(config)
    base.follow(config, data)


def tokenizer(config: ConfigDict, data: base.DataSet, source: str, variant: str | None) -> None:
    """The first stage of `tokens` and `noise`."""
    if variant not in ("tokens", "noise"):
        raise UserError(
            "the word 'tokenizer' is for MetaSlot with tokens or noise; write metaslot,tokens"
            ",tokenizer or metaslot,noise,tokenizer"
        )
    system = {"tokens": slate, "noise": slotdiffusion}[variant]
    system.tokenizer(config, data, source)


def paper(config: ConfigDict, data: base.DataSet) -> None:
    del data
    config.title = f"{TITLE}, as in the paper"
    config.model.aggregator.update(
        slots_share=0.0,
        mask="always",
        gradient="last_and_queries",
        noise_in="second",
        codebook="moving_average",
        replace="cosine",
    )


def b16(config: ConfigDict, data: base.DataSet) -> None:
    config.title = f"{TITLE}, ViT-B/16"
    settings, source = base.dino("base", 16)
    # 256 patches; the positions of 224 pixels are resampled.
    more = {"apply_norm": True, "position_side": 14}
    base.use_encoder(config, data, ({**settings, **more}, source))
    base.use_length(config, data, num_steps=100_000)


def genera1z(config: ConfigDict, data: base.DataSet, variant: str | None) -> None:
    if variant not in ("ar", "b16"):
        base.use_encoder(config, data, base.DINOV2_SMALL_NORMED)
        base.use_length(config, data, num_steps=50_000)
    config.model.aggregator.return_mask = False


WORDS = {
    "ar": ("system variant", ar),
    "b16": ("system variant", b16),
    "paper": ("system variant", paper),
    "tokens": ("system variant", tokens),
    "noise": ("system variant", noise),
    "genera1z": ("version", genera1z),
    "tokenizer": ("task", tokenizer),
}
