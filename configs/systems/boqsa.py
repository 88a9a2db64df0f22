"""BO-QSA: learned queries with bi-level optimization (Jia et al. 2023, arXiv 2210.08990).

Each slot has a learned query, to which training adds noise that decreases to nothing. The gradient
passes through the last iteration alone, and from there straight to the queries.

    (no word)   on features of the frozen encoder, with DINOSAUR's MLP decoder
    mixture     the paper's model of pixels, trained as a whole with a broadcast decoder
"""

from ml_collections import ConfigDict

from configs import base
from configs.systems import slot_attention

TITLE = "BO-QSA"
KIND = "system"


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_boxes(data, TITLE)
    base.predict_features(
        config,
        projection={"name": "mlp", "to_slots": True, "activation": "relu", "start": "xavier"},
        initializer={
            "name": "learned",
            "start": "xavier",
            # Over 30,000 of 250,000 steps.
            "noise": {"schedule": "cosine_to_zero", "begin": 1.0, "until": 0.12},
        },
        aggregator={
            "name": "slot_attention",
            "gradient": "last_and_queries",
            "first": 3,
            "later": 3,
            "epsilon": 1.0,
            "epsilon_in": "sum",
            "activation": "relu",
            "start": "xavier",
        },
        decoder=base.DINOSAUR_DECODER,
    )
    # The program multiplies the warm-up by the decay too: 5,000 and 50,000 of 250,000 steps.
    config.optimizer.learning_rate = ConfigDict(
        {
            "schedule": "warmup_halving",
            "peak": 4e-4,
            "warmup": 0.02,
            "half_life": 0.2,
            "from_zero": True,
        }
    )
    config.optimizer.clip_norm = 1.0
    base.follow(config, data)


def mixture(config: ConfigDict, data: base.DataSet) -> None:
    config.title = f"{TITLE}, pixels"
    config.model.projection.update(hidden_size=128)
    config.model.aggregator.update(mlp_size=128, mlp_drop_rate=0.2, start="xavier")
    slot_attention.from_pixels(config, data, 2, padding="torch", start="xavier")
    base.use_length(config, data, num_steps=250_000, batch_size=128)


WORDS = {"mixture": ("system variant", mixture)}
