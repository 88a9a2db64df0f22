"""SlotContrast: slots that stay the same over time (Manasyan et al. 2025, arXiv 2412.14295).

    (no word)   the original's parts and losses, on this program's encoder and schedule length
    original    the published recipe: DINOv2 features of 336 pixels (YouTube-VIS: 518), 100,000
                steps of 64 clips (MOVi-E: 300,000)
    genera1z    the re-implementation by RandSF.Q's author

Without boxes, each slot has one learned query, and nothing is random.
"""

from ml_collections import ConfigDict

from configs import base

TITLE = "SlotContrast"
KIND = "system"
fits = base.has_videos


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_pictures(data, TITLE)
    slot_size = 128 if data.name == "movi_e" else 64
    base.carry_slots(
        config,
        data,
        slot_size=slot_size,
        queries={**base.LEARNED, "start_std": slot_size**-0.5},
        mlp_ratio=4.0,
    )
    config.model.decoder = ConfigDict(
        {
            "name": "mlp_mixture",
            "num_layers": 4,
            "hidden_size": 1024,
            "position": "slots",
            "position_start": "normal",
            "position_std": slot_size**-0.5,
            "activation": "relu",
        }
    )
    contrast = {"weight": 0.5, "temperature": 0.1, "over": "batch"}
    config.losses.slot_contrast = ConfigDict(contrast)
    config.optimizer.learning_rate.peak = _peak(config, data)


def original(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_boxes(data, f"{TITLE}'s original", videos=True)
    is_movi, is_movi_e = data.is_movi, data.name == "movi_e"
    encoder = base.dinov2("small" if is_movi and not is_movi_e else "base")
    base.use_encoder(config, data, encoder, image_size=336 if is_movi else 518)
    config.model.num_slots = base.ORIGINAL_SLOTS.get(data.name, data.num_slots)
    num_steps = 300_000 if is_movi_e else 100_000
    base.use_length(config, data, num_steps=num_steps, batch_size=64, num_frames=4)
    rate = config.optimizer.learning_rate
    rate.peak, rate.warmup = _peak(config, data), 2_500 / num_steps
    rate.half_life = 1.0 - rate.warmup
    base.see_videos_as_originals(config, data, clips={"flip": 0.0})


def genera1z(config: ConfigDict, data: base.DataSet) -> None:
    base.carry_slots_as_genera1z(config, data)
    config.model.decoder.update(
        hidden_size=2048,
        activation="gelu",
        position_start="truncated_normal",
        position_std=1.0,
    )


def _peak(config: ConfigDict, data: base.DataSet) -> float:
    return (4e-4 if data.is_movi else 8e-4) * config.train.batch_size / 64


WORDS = {
    "original": ("version", original),
    "genera1z": ("version", genera1z),
}
