"""DIAS: slot attention that distills itself, and prunes redundant slots (arXiv 2507.23755).

    (no word)   all three ideas of the paper: the first iteration learns from the attention of the
                last; redundant slots are removed, and the rest is aggregated once more; the random
                autoregressive decoder
    genera1z    the published program by the paper's author, without pruning

The rule by which slots are redundant, and how the rest starts again, is ours: the paper describes
the idea, and the published program lacks it (docs/design.md).
"""

from ml_collections import ConfigDict

from configs import base

TITLE = "DIAS"
KIND = "system"


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_boxes(data, TITLE)
    base.predict_features(
        config,
        projection={"name": "mlp"},
        initializer=base.SHARED_GAUSSIAN,
        aggregator={"name": "slot_attention", "gradient": "full", "first": 3, "later": 3},
        decoder={"name": "random_ar", "num_layers": 4, "num_heads": 4},
    )
    config.losses.attention_distillation = ConfigDict(
        {"weight": {"schedule": "cosine", "begin": 0.0, "end": 1.0}}
    )
    config.model.pruning = ConfigDict(
        {
            "name": "redundancy",
            "distance": 0.7,
            "relative": True,  # as `eval.prune="auto"` at evaluation
            "begin": 0.2,  # before that share of the steps, all slots are alike
            "restart": "slots",
            "iterations": 1,
        }
    )
    config.eval.prune = "auto"
    config.optimizer.learning_rate.peak, config.optimizer.clip_norm = 2e-4, 1.0
    base.follow(config, data)


def genera1z(config: ConfigDict, data: base.DataSet) -> None:
    del data
    del config.model.pruning
    config.eval.prune = None


WORDS = {"genera1z": ("version", genera1z)}
