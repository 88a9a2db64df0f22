"""VideoSAUR: predict where patches go (Zadaianchuk et al. 2023, arXiv 2306.04829).

    (no word)   the original's parts and losses, on this program's encoder and schedule length
    dinov2      DINOv2's ViT-B/14 and pictures of 518 pixels
    original    the published recipe: DINO (v1) features of 224 pixels, 100,000 steps of 128 clips
    genera1z    the re-implementation by RandSF.Q's author

For each patch, the decoder predicts logits over the patches of the next frame. On MOVi the original
predicts nothing else.
"""

from ml_collections import ConfigDict

from configs import base

TITLE = "VideoSAUR"
KIND = "system"
fits = base.has_videos


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_pictures(data, TITLE)
    is_movi = data.is_movi
    slot_size = 128 if is_movi else 64
    log_std = -2.4260151 if is_movi else -2.0794415  # log(slot_size**-0.5)
    base.carry_slots(
        config,
        data,
        slot_size=slot_size,
        queries={"name": "gaussian", "log_std": log_std},
        mlp_ratio=0.0,
    )
    config.model.decoder = ConfigDict(
        {
            "name": "slot_mixer",
            "num_layers": 2 if is_movi else 3,
            "num_heads": 4,
            "mix_heads": 1,
            "hidden_size": 1024,
            "renderer_layers": 5 if is_movi else 4,
            "renderer_norm": False,
            "activation": "relu",
            "bias": True,
            "norm": False,
            "query_scale": "divide",
            "position_start": "normal",
            "position_std": slot_size**-0.5,
            "start": "xavier",
            "logits": "only" if is_movi else "next_frame",
        }
    )
    # Keys exist in a ViT, and not in stored features.
    has_keys = data.encoder["name"] == "vit" and not data.data["features"]
    config.losses.time_similarity = ConfigDict(
        {
            "weight": 0.1,
            "temperature": 0.075 if is_movi else 0.15,
            "threshold": 0.0,
            "shift": 1,
            "of": "keys" if has_keys else "features",
        }
    )
    if is_movi:
        config.losses.reconstruction.weight = 0.0
    config.optimizer.learning_rate.peak = _peak(config)


def dinov2(config: ConfigDict, data: base.DataSet) -> None:
    config.title = f"{TITLE}, DINOv2"
    base.use_encoder(config, data, base.dinov2("base"), image_size=518)


def original(config: ConfigDict, data: base.DataSet, variant: str | None) -> None:
    base.refuse_boxes(data, f"{TITLE}'s original", videos=True)
    is_movi, scored = data.is_movi, {"windows": 6, "window_rest": "drop"}
    if variant == "dinov2":
        batch_size, scored = 64, {**scored, "score_at": 224}
    else:
        batch_size = 128
        encoder = base.dino("base", 8 if is_movi else 16, final_norm=False)
        base.use_encoder(config, data, encoder, image_size=224)
        if data.small is None:
            config.losses.time_similarity.temperature = 0.075 if is_movi else 0.25
    config.model.num_slots = base.ORIGINAL_SLOTS.get(data.name, data.num_slots)
    base.use_length(config, data, num_steps=100_000, batch_size=batch_size, num_frames=4)
    config.optimizer.learning_rate.peak = _peak(config)
    base.see_videos_as_originals(config, data, scored=scored)


def genera1z(config: ConfigDict, data: base.DataSet, variant: str | None) -> None:
    base.refuse_variant(variant, ("dinov2",), "genera1z")
    base.carry_slots_as_genera1z(config, data)
    config.model.decoder.update(
        num_layers=3,
        mix_heads=4,
        hidden_size=1024,
        renderer_layers=4,
        renderer_norm=True,
        activation="gelu",
        bias=False,
        norm=True,
        query_scale="multiply",
        position_start="truncated_normal",
        position_std=1.0,
        start="torch",
        logits="next_frame",
    )
    config.losses.reconstruction.weight = 1.0
    with config.losses.ignore_type():
        config.losses.time_similarity.update(temperature=1.0, threshold=None, of="features")


def _peak(config: ConfigDict) -> float:
    return 1e-4 * config.train.batch_size / 32


WORDS = {
    "dinov2": ("system variant", dinov2),
    "original": ("version", original),
    "genera1z": ("version", genera1z),
}
