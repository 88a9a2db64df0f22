"""BO-QSA: learned queries with bi-level optimization (Jia et al. 2023, arXiv 2210.08990).

Each slot has a learned query, to which training adds noise that decreases to nothing. The gradient
passes through the last iteration alone, and from there straight to the queries.

    (no word)   on features of the frozen encoder, with DINOSAUR's MLP decoder
    mixture     the paper's model of pixels, trained as a whole with a broadcast decoder
    transformer the paper's model of tokens, which is SLATE: a discrete VAE is trained along, and
                slots explain its tokens; slot attention's masks are scored

Cost of transformer: 250,000 steps of 128 pictures of 128 pixels. Each has 16,384 features, to which
slots attend, and 1024 tokens. The number of slots is that of the published model of COCO.
"""

from ml_collections import ConfigDict

from configs import base
from configs.systems import slot_attention

TITLE = "BO-QSA"
KIND = "system"
SLOTS = 6  # of the model of tokens


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


def transformer(config: ConfigDict, data: base.DataSet) -> None:
    config.title = f"{TITLE}, tokens"
    is_small = data.small is not None
    width = 48 if is_small else 256
    stride = 2 if is_small else 1
    slot_attention.from_pixels(config, data, stride, padding="torch", start="xavier")
    config.model.encoder.pixels = "unit"  # as the tokenizer has them
    config.model.projection.update(hidden_size=width)
    config.model.aggregator.update(mlp_size=width, mlp_drop_rate=0.2)
    config.model.slot_size = width
    if not is_small:
        config.model.num_slots = SLOTS
    config.model.tokenizer = ConfigDict(
        {
            "name": "dvae",
            "vocabulary": 1024,
            "hidden_size": 64,
            "group_norm": True,
            "kernel_size": 3,
            "tau": {"schedule": "cosine", "begin": 1.0, "end": 0.1, "until": 0.12},
        }
    )
    config.model.decoder = ConfigDict(
        {
            "name": "causal_transformer",
            "num_layers": 4,
            "num_heads": 4,
            "embed": "table",
            "start_in_table": True,
            "token_size": width,
            "project_slots": True,
            "biases": "all_but_attention",
            "activation": "relu",
            "final_norm": True,
            "dropout_rate": 0.1,
            "start": "xavier",
        }
    )
    config.model.target = ConfigDict(
        {"name": "tokens", "vocabulary": 1024, "width": 1024, "grid": (32, 32)}
    )
    base.explain_own_tokens(config, data)
    halves = {**config.optimizer.learning_rate.to_dict(), "warmup": 0.04}  # 10,000 steps
    config.optimizer.learning_rate = ConfigDict({**halves, "peak": 1e-4})
    config.optimizer.rates = ConfigDict(
        {
            "tokenizer": {
                "of": ("tokenizer.*",),
                "learning_rate": {**halves, "peak": 3e-4, "warmup": 0.0},
            }
        }
    )
    config.eval.masks = "aggregator"
    base.use_length(config, data, num_steps=250_000, batch_size=128)


WORDS = {
    "mixture": ("system variant", mixture),
    "transformer": ("system variant", transformer),
}
