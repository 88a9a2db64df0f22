"""OSRT: slots of a scene that several cameras see (Sajjadi et al. 2022, arXiv 2206.06922).

A transformer makes one set of tokens of all input views; slot attention groups them once, in one
iteration from learned slots; and the slot mixer renders rays of other views. For scenes with
cameras: `msn_hard`, `clevr3d`, `obsurf_msn`, and `scenes` with the word `views`.

    (no word)   the program that published checkpoints (stelzner/osrt), with the paper's 4,000,000
                steps
    broadcast   each slot renders every ray on its own, in N times the work
    srt         SRT as OSRT improved it: rays look at the scene's tokens, without slots

Aggregators of "Inverted-Attention Transformers can Learn Object Representations", which trained
for 1,000,000 steps:

    sa          slot attention, 5 iterations
    sa_id       the same, with the gradient of the last iteration alone. None reaches the learned
                slots, which stay at their start; with
                --config.model.aggregator.gradient=last_and_queries it goes straight to them
    tf_inv      an inverted transformer of 5 layers, with LayerNorms instead of means and on
                queries and keys
"""

import math

from ml_collections import ConfigDict

from configs import base
from configs.systems import inverted

TITLE = "OSRT"
KIND = "system"
fits = base.has_views

RAYS = {"octaves": 15, "position_octave": -5, "hidden_size": 1536, "renderer_layers": 5}
ALLOCATOR = {
    "query_size": 360,
    "num_layers": 2,
    "num_heads": 12,
    "head_size": 128,
    "feed_forward_size": 3072,
}
# What each data set has been trained with; others follow the first.
RECIPES = {
    "msn_hard": {"batch_size": 256, "warmup": 10_000, "rays": 2304},
    "clevr3d": {"batch_size": 256, "warmup": 5_000, "rays": 8192},
    "obsurf_msn": {"batch_size": 128, "warmup": 2_500, "rays": 6144},
}
STEPS, STEPS_OF_INVERTED = 4_000_000, 1_000_000
# In which the learning rate halves: it falls to 0.16 in 4,000,000 steps.
HALF_LIFE = 4_000_000 * math.log(0.5) / math.log(0.16)


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_without_views(data, TITLE)
    one = data.data["num_frames"] <= 3  # views: one of them is the input, and all are targets
    config.task = "views"
    config.weights = ConfigDict()  # nothing is frozen
    config.model.encoder = ConfigDict(
        {
            "name": "scene",
            "width": 768,
            "channels": 96,
            "num_blocks": 3,
            "num_layers": 5,
            "num_heads": 12,
            "hidden_size": 1536,
            "octaves": 15,
            "position_octave": -5,
            "every": 2 if data.name in ("clevr3d", "obsurf_msn") else 1,
        }
    )
    config.model.update(
        slot_size=1536,
        projection={"name": "none"},
        initializer=base.LEARNED,
        aggregator={
            "name": "slot_attention",
            "gradient": "full",
            "first": 1,
            "later": None,
            "epsilon": 1e-8,
            "epsilon_in": "weights",
            "mlp_ratio": 2.0,
            "activation": "relu",
            "start": "truncated",
            "zero_bias": False,
        },
        transition={"name": "none"},
        decoder={"name": "ray_mixer", **RAYS, **ALLOCATOR, "mix_size": 1536},
        target={
            "name": "rays",
            "input_views": 1 if one else 5,
            "targets": "all" if one else "others",
            "order": "drawn",
            "rays": RECIPES.get(data.name, RECIPES["msn_hard"])["rays"],
        },
    )
    config.losses.reconstruction = ConfigDict({"weight": 1.0})
    config.optimizer.clip_norm = 0.0
    _train_for(config, data, STEPS)


def _train_for(config: ConfigDict, data: base.DataSet, num_steps: int) -> None:
    """Set the length of the training. The learning rate depends on the step, not on the length."""
    recipe = RECIPES.get(data.name, RECIPES["msn_hard"])
    base.use_length(config, data, num_steps=num_steps, batch_size=recipe["batch_size"])
    embedded = data.small is not None
    config.optimizer.learning_rate = ConfigDict(
        {
            "schedule": "warmup_halving",
            "peak": 1e-4,
            "warmup": 0.05 if embedded else recipe["warmup"] / num_steps,
            "half_life": HALF_LIFE / (STEPS if embedded else num_steps),
        }
    )


def broadcast(config: ConfigDict, data: base.DataSet) -> None:
    config.title = f"{TITLE}, broadcast"
    config.model.decoder = ConfigDict({"name": "ray_broadcast", **RAYS})


def srt(config: ConfigDict, data: base.DataSet) -> None:
    config.title = "SRT"
    settings = {**RAYS, **ALLOCATOR, "head_size": 64, "feed_forward_size": 1536}
    for part, chosen in {
        "initializer": {"name": "tokens"},
        "aggregator": {"name": "none"},
        "decoder": {"name": "ray_transformer", **settings},
    }.items():
        config.model[part] = ConfigDict(chosen)
    config.model.slot_size = config.model.encoder.width
    config.checkpoint.best_metric = "psnr"


def sa(config: ConfigDict, data: base.DataSet) -> None:
    config.title = f"{TITLE}, SA"
    config.model.aggregator.first = 5
    _train_for(config, data, STEPS_OF_INVERTED)


def sa_id(config: ConfigDict, data: base.DataSet) -> None:
    sa(config, data)
    config.title = f"{TITLE}, SA-ID"
    config.model.aggregator.gradient = "last"


def tf_inv(config: ConfigDict, data: base.DataSet) -> None:
    config.title = f"{TITLE}, TF-Inv"
    config.model.aggregator = ConfigDict({**inverted.TF_INV, **inverted.NORMALIZED, "first": 5})
    _train_for(config, data, STEPS_OF_INVERTED)


WORDS = {
    "broadcast": ("system variant", broadcast),
    "srt": ("system variant", srt),
    "sa": ("system variant", sa),
    "sa_id": ("system variant", sa_id),
    "tf_inv": ("system variant", tf_inv),
}
