"""SmoothSA: slot attention with warmed queries, 3 iterations on the first frame and 1 later.

Smoothing Slot Attention Iterations and Recurrences, ICML 2026, arXiv 2508.05417. On images and
videos, on frozen features; a video's slots are carried from frame to frame by a transition.
"""

from ml_collections import ConfigDict

from configs import base

TITLE = "SmoothSA"
KIND = "system"


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.predict_features(
        config,
        projection={"name": "mlp"},
        initializer={"name": "boxes" if data.boxes else "gaussian", "log_std": 0.0},
        aggregator={
            "name": "slot_attention",
            "gradient": "last_and_queries",
            "first": 3,
            "later": 3,
        },
        decoder={"name": "random_ar", "num_layers": 4, "num_heads": 4},
    )
    config.optimizer.learning_rate.peak, config.optimizer.clip_norm = 2e-4, 1.0
    base.follow(config, data)
    smooth(config)


def smooth(config: ConfigDict) -> None:
    """Put the warmer and 3/1 iterations on a config; also what the word `smooth` does."""
    # `detach` is 1 while the warmer sees the features through a stop-gradient: the first tenth of
    # the steps.
    config.model.initializer = ConfigDict(
        {
            "name": "warmed",
            "cold": config.model.initializer,
            "num_heads": 4,
            "log_std": 0.0,
            "straight_through": False,
            "detach": {"schedule": "step", "begin": 1.0, "end": 0.0, "at": 0.1},
        }
    )
    config.model.aggregator.update(first=3, later=1)
    config.losses.distillation = ConfigDict({"weight": 100.0})
