"""DINOSAUR: reconstruct frozen features from slots (Seitzer et al. 2023, arXiv 2209.14860).

    (no word)   the MLP decoder and the original's parts, on this program's encoder and schedule
                length
    ar          the autoregressive decoder
    r384        pictures of 384 pixels instead of 256, so 576 tokens instead of 256
    dinov2      DINOv2's ViT-B/14 and the parts of VideoSAUR's program, on pictures of 224 pixels
    original    the published recipe: DINO (v1) features of 224 pixels, 500,000 steps of 64 images
                (VOC: 300,000); with dinov2, that of VideoSAUR's authors
    genera1z    the re-implementation by SmoothSA's author: DINOv2, separate Gaussians, bi-level
                truncation

The authors' rule of thumb: the MLP decoder gives the higher FG-ARI, the autoregressive one the
higher mBO.
"""

from ml_collections import ConfigDict

from configs import base

TITLE = "DINOSAUR"
KIND = "system"


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_boxes(data, TITLE)
    base.predict_features(
        config,
        projection={"name": "mlp", "to_slots": True, "activation": "relu"},
        initializer=base.SHARED_GAUSSIAN,
        aggregator={
            "name": "slot_attention",
            "gradient": "full",
            "first": 3,
            "later": 3,
            "epsilon": 1e-8,
            "epsilon_in": "weights",
            "activation": "relu",
        },
        decoder={**base.DINOSAUR_DECODER, "hidden_size": 1024 if data.is_movi else 2048},
    )
    config.optimizer.learning_rate = ConfigDict(
        {"schedule": "warmup_halving", "peak": 4e-4, "warmup": 0.02, "half_life": 0.2}
    )
    config.optimizer.clip_norm = 1.0
    base.follow(config, data)


def ar(config: ConfigDict, data: base.DataSet) -> None:
    config.title = f"{TITLE}, autoregressive"
    config.model.decoder = ConfigDict(
        {
            "name": "permuted_ar",
            "num_layers": 4,
            "num_heads": 4 if data.name == "voc" else 8,
            "orders": 1,
            "evaluate": "first",
            "biases": "all",
            "activation": "relu",
            "final_norm": False,
            "first_norm": "branch",
            "bos_std": config.model.encoder.width**-0.5,
        }
    )


def dinov2(config: ConfigDict, data: base.DataSet) -> None:
    config.title = f"{TITLE}, DINOv2"
    slot_size, optimizer = 256, config.optimizer.to_dict()
    queries = {"name": "gaussian", "log_std": -2.7725887}  # log(slot_size**-0.5)
    base.carry_slots(config, data, slot_size=slot_size, queries=queries, mlp_ratio=4.0)
    config.model.transition = ConfigDict({"name": "none"})
    config.model.decoder.update(
        hidden_size=2048, position_start="normal", position_std=slot_size**-0.5
    )
    config.optimizer = ConfigDict(optimizer)
    config.optimizer.learning_rate.half_life = 0.18
    base.follow(config, data)
    base.use_encoder(config, data, base.dinov2("base"), image_size=224)


def original(config: ConfigDict, data: base.DataSet, variant: str | None, size: str | None) -> None:
    base.refuse_variant(size, ("r384",), "original")
    num_steps = 300_000 if data.name == "voc" else 500_000
    base.use_length(config, data, num_steps=num_steps, batch_size=64)
    if data.small is None:
        config.data.update(crop="centre", interpolation="bicubic")
    half_life = 90_000
    if variant != "dinov2":
        half_life = 100_000
        size, patch = ("small", 8) if data.is_movi else ("base", 16)
        encoder = base.dino(size, patch, final_norm=False)
        base.use_encoder(config, data, encoder, image_size=224)
        config.model.slot_size = 128 if data.is_movi else 256
    rate = config.optimizer.learning_rate
    rate.warmup, rate.half_life = (x / num_steps for x in (10_000, half_life))


def genera1z(config: ConfigDict, data: base.DataSet, variant: str | None) -> None:
    base.refuse_variant(variant, ("ar", "dinov2"), "genera1z")
    base.use_encoder(config, data, base.DINOV2_SMALL_NORMED)
    config.model.update(
        projection={"name": "mlp", "hidden_ratio": 2.0, "to_slots": True, "activation": "gelu"},
        initializer=base.SEPARATE_GAUSSIANS,
        aggregator={
            "name": "slot_attention",
            "gradient": "last_and_queries",
            "first": 3,
            "later": 3,
            "epsilon": 1e-5,
            "epsilon_in": "sum",
            "activation": "gelu",
            "dropout_rate": 0.01,
        },
    )
    config.model.decoder.update(hidden_size=2048, position_std=1.0, activation="gelu")
    config.optimizer.learning_rate = ConfigDict(base.LEARNING_RATE)
    base.use_length(config, data, num_steps=50_000)


WORDS = {
    "ar": ("system variant", ar),
    "r384": ("size", base.r384),
    "dinov2": ("system variant", dinov2),
    "original": ("version", original),
    "genera1z": ("version", genera1z),
}
