"""RandSF.Q: queries from random pairs of slots and features of the past (arXiv 2508.01345).

(no word)   the published recipe; SmoothSA took its transition, decoder and slot contrast
tsim        VideoSAUR's similarity over time instead of the slot contrast
original    the same, and YouTube-VIS in windows of 20 frames, as in the scores of October 2025
"""

from ml_collections import ConfigDict

from configs import base

TITLE = "RandSF.Q"
KIND = "system"
fits = base.has_videos


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_pictures(data, TITLE)
    base.predict_features(
        config,
        projection={"name": "mlp"},
        initializer=base.PLAIN_BOXES if data.boxes else base.SHARED_GAUSSIAN,
        aggregator={"name": "slot_attention", "gradient": "full", "first": 3, "later": 1},
        decoder={"name": "random_ar", "num_layers": 4, "num_heads": 4},
    )
    base.follow(config, data)


def tsim(config: ConfigDict, data: base.DataSet) -> None:
    del data
    config.title = f"{TITLE}, similarity over time"
    config.model.decoder.logits = "next_frame"
    del config.losses.slot_contrast
    config.losses.time_similarity = ConfigDict(
        {"weight": 0.1, "temperature": 1.0, "threshold": None, "shift": 1, "of": "features"}
    )


def original(config: ConfigDict, data: base.DataSet) -> None:
    base.see_windows_of_20(config, data)


WORDS = {"tsim": ("system variant", tsim), "original": ("version", original)}
