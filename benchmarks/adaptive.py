"""Sprites whose training has no fixed number of iterations; see `halting.py` and `iterations.py`.

    python main.py --config=benchmarks/adaptive.py:gaussian,drawn --config.seed=1
    python main.py --config=benchmarks/adaptive.py:gaussian,halting --config.seed=1

The other words are those of `configs/sprites.py`.
"""

from ml_collections import ConfigDict

from configs import sprites

WAYS = {
    "drawn": {"iterations": (1, 6)},
    "halting": {
        "halting": {"signal": "max_slot", "threshold": 0.05, "minimum": 1, "maximum": 6},
    },
}


def get_config(words: str = "") -> ConfigDict:
    """Return the config of sprites with one of the words above."""
    given = [word for word in words.split(",") if word]
    config = sprites.get_config(",".join(word for word in given if word not in WAYS))
    for word in given:
        if word in WAYS:
            config.model.aggregator.update(ConfigDict(WAYS[word]))
            config.name, config.title = f"{config.name}_{word}", f"{config.title}, {word}"
    return config
