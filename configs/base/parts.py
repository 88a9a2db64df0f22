"""The parts that several systems share, and how parts are changed."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from configs.base.data_sets import DataSet, Settings
from configs.base.keys import LEARNING_RATE
from configs.base.published import (
    DINOV2_SMALL_NORMED,
    see_windows_of_20,
    use_encoder,
    use_length,
)

# -------------------------------------------------------------------------------- settings of parts

# To the width of slots, by a wider layer.
PROJECTION = {"name": "mlp", "hidden_ratio": 2.0, "to_slots": True}
# Each object's box is embedded, without noise.
PLAIN_BOXES = {"name": "boxes", "log_std": None, "norm": False}
# One Gaussian for all slots, with random parameters at the start.
SHARED_GAUSSIAN = {"name": "gaussian", "log_std": None, "mean": "xavier"}
# A Gaussian for each slot, whose means are the queries at evaluation.
SEPARATE_GAUSSIANS = {
    "name": "gaussian",
    "log_std": -2.7725887,  # log(256**-0.5)
    "mean": "xavier_matrix",
    "separate": True,
    "noise": "training",
}
# A learned query for each slot.
LEARNED = {"name": "learned", "start": "normal", "start_std": 1.0, "noise": 0.0}
# The mixture decoder of DINOSAUR, which others took over.
DINOSAUR_DECODER = {
    "name": "mlp_mixture",
    "num_layers": 4,
    "hidden_size": 2048,
    "position": "slots",
    "position_std": 0.02,
    "activation": "relu",
}
# The same in the program of SmoothSA's author.
GENERA1Z_DECODER = {**DINOSAUR_DECODER, "position_std": 1.0, "activation": "gelu"}
# A torch encoder layer from the slots of a frame to the queries of the next, in that program.
GENERA1Z_TRANSITION = {
    "name": "transformer",
    "num_heads": 4,
    "norm": "post",
    "activation": "gelu",
    "bias": False,
    "dropout_rate": 0.1,
}


# ------------------------------------------------------------------------------------------- models


def predict_features(config: ConfigDict, **parts: Settings) -> None:
    """A model of images that predicts the features of its frozen encoder from its slots.

    Args:
        **parts: projection, initializer, aggregator, decoder.
    """
    config.model.update(
        slot_size=256, transition={"name": "none"}, target={"name": "features"}, **parts
    )
    config.losses.reconstruction = ConfigDict({"weight": 1.0})


def follow(config: ConfigDict, data: DataSet) -> None:
    """On video, carry slots from frame to frame as SmoothSA does: RandSF.Q's transition and the
    contrast of slots over time."""
    if not data.is_video:
        return
    # The transition sees at most as many frames as a training clip has.
    history = data.data["num_frames"]
    config.model.transition.update(name="randsfq", num_heads=4, history=history, dropout_rate=0.5)
    config.losses.slot_contrast = ConfigDict({"weight": 0.5, "temperature": 0.1})
    config.optimizer.learning_rate.peak, config.optimizer.clip_norm = 5e-5, 0.05


def carry_slots(
    config: ConfigDict, data: DataSet, *, slot_size: int, queries: Settings, mlp_ratio: float
) -> None:
    """The parts that the programs of VideoSAUR and SlotContrast share, and their optimizer.

    Args:
        slot_size: D.
        queries: the initializer, for data whose slots do not start from boxes.
        mlp_ratio: of slot attention; 0: no MLP.
    """
    predict_features(
        config,
        projection={
            "name": "mlp",
            "hidden_ratio": 2.0,
            "to_slots": True,
            "activation": "relu",
            "zero_bias": False,
        },
        initializer=PLAIN_BOXES if data.boxes else queries,
        aggregator={
            "name": "slot_attention",
            "gradient": "full",
            "first": 3,
            "later": 2,
            "epsilon": 1e-8,
            "epsilon_in": "weights",
            "state": "normalized",
            "mlp_ratio": mlp_ratio,
            "activation": "relu",
            "attention_start": "xavier",
            "zero_bias": False,
        },
    )
    config.model.slot_size = slot_size
    config.model.transition = ConfigDict(
        {
            "name": "transformer",
            "num_heads": 4,
            "norm": "pre",
            "activation": "relu",
            "bias": True,
            "query_scale": "divide",
            "attention_start": "xavier",
        }
    )
    config.optimizer.learning_rate = ConfigDict(
        {"schedule": "warmup_halving", "peak": 4e-4, "warmup": 0.025, "half_life": 0.975}
    )
    config.optimizer.clip_norm = 0.05


def carry_slots_as_genera1z(config: ConfigDict, data: DataSet) -> None:
    """The same parts, optimizer and length in the program of RandSF.Q's author."""
    use_encoder(config, data, DINOV2_SMALL_NORMED)
    queries = {**SEPARATE_GAUSSIANS, "log_std": -2.0794415}  # log(64**-0.5)
    config.model.slot_size = 64
    # Whole parts are replaced.
    for part, settings in {
        "projection": PROJECTION,
        "initializer": PLAIN_BOXES if data.boxes else queries,
        "aggregator": {
            "name": "slot_attention",
            "gradient": "last_and_queries",
            "first": 3,
            "later": 3,
        },
        "transition": GENERA1Z_TRANSITION,
    }.items():
        config.model[part] = ConfigDict(settings)
    config.optimizer.learning_rate = ConfigDict(LEARNING_RATE)
    config.optimizer.learning_rate.peak, config.optimizer.clip_norm = 5e-5, 0.05
    use_length(config, data, num_steps=50_000)
    see_windows_of_20(config, data)


# ---------------------------------------------------------------------------------------- any model


def rate_of_slotformer(peak: float, warmup: float) -> ConfigDict:
    """The learning rate of SlotFormer's program: a cosine that begins and ends at 1 % of its peak.

    Args:
        peak: the largest.
        warmup: share of the steps until then.
    """
    return ConfigDict(
        {
            "schedule": "warmup_cosine",
            "peak": peak,
            "warmup": warmup,
            "begin_ratio": 0.01,
            "end_ratio": 0.01,
        }
    )


def train_on_slots(config: ConfigDict, peak: float, warmup: float) -> None:
    """Train a model on the slots of an earlier run, as SlotFormer's program does.

    What the earlier run asks of its own evaluation is put back.

    Args:
        config: changed in place.
        peak, warmup: see `rate_of_slotformer`.
    """
    config.weights = ConfigDict()
    config.optimizer.learning_rate = rate_of_slotformer(peak, warmup)
    config.optimizer.update(clip_norm=0.0, clip_by="norm")
    config.optimizer.rates = ConfigDict()  # `update` would keep those of the slot model's parts
    config.train.update(match_paper=False, remat="none")
    config.eval.update(score_at=None, per_frame=False, foreground=False, skip_frames=0)
    config.eval.count_segments = False
    config.eval.update(masks="decoder", match_paper=False, num_slots=None, prune=None)
    config.eval.update(windows=None, window_rest="back")


def cold_of(model: ConfigDict) -> ConfigDict:
    """Settings of the initializer that draws or reads the first queries, inside a warmer or not."""
    return model.initializer.get("cold", model.initializer)


def draws_any_number(model: ConfigDict) -> bool:
    """Whether the initializer can make any number of queries."""
    cold = cold_of(model)
    return cold.name != "learned" and not cold.get("separate", False)


def set_parts(model: ConfigDict, settings: Mapping[str, Settings]) -> None:
    """Change parts, however deep they are, by their names.

    Args:
        settings: part's name -> settings to change; with another `name`, the part is replaced.
    """
    for key, part in model.items():
        if not isinstance(part, ConfigDict):
            continue
        set_parts(part, settings)
        new = settings.get(part.get("name"))
        if new is not None and new.get("name", part.name) != part.name:
            # What a decoder predicts is not its size.
            logits = {"logits": part.logits} if "logits" in part else {}
            model[key] = ConfigDict({**new, **logits})
        elif new is not None:
            part.update(new)
