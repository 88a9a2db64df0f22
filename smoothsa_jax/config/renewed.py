"""Bring the stored config of an earlier run up to date: keys that were added or renamed since.

Each added key stands here with the value under which a program of now does what the earlier one
did, so that earlier runs resume, evaluate and predict as before.
"""

from collections.abc import Mapping
from typing import Any

ADDED: dict[str, Any] = {
    "optimizer.clip_by": "norm",
    "optimizer.rates": {},
    "eval.num_slots": None,
    "eval.iterations": None,
    "eval.prune": None,
    "eval.prune_restart": "slots",
    "eval.prune_iterations": 1,
    "eval.prune_video": "fixed",
    "eval.windows": None,
    "eval.window_rest": "back",
    "eval.score_at": None,
    "eval.per_frame": False,
    "eval.foreground": False,
    "eval.skip_frames": 0,
    "eval.count_segments": False,
    "eval.observed": None,
    "eval.lpips": "",
    "log.wandb": None,
}


def renewed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole config, as nested dictionaries, with today's keys.

    Args:
        config: a config as it was stored; those of before version 0.2 are left to
            `checkpoints/before.py`.
    """
    config = {key: _copied(value) for key, value in config.items()}
    if "losses" not in config:
        return config
    for path, value in ADDED.items():
        group, _, key = path.rpartition(".")
        if isinstance(config.get(group), dict):
            config[group].setdefault(key, _copied(value))
    companions = config.get("companions")
    inside = companions.values() if isinstance(companions, dict) else ()
    for owner in (config, *inside):
        if isinstance(owner, dict) and isinstance(owner.get("model"), dict):
            _renew_model(owner["model"])
    return config


def _renew_model(model: dict[str, Any]) -> None:
    """Rename, in place, what a slot model's parts called otherwise."""
    aggregator = model.get("aggregator")
    # An aggregator from elsewhere may have a setting of the same name.
    own = isinstance(aggregator, dict) and aggregator.get("name") == "slot_attention"
    if own and "truncate" in aggregator:
        truncate = aggregator.pop("truncate")
        aggregator.setdefault("gradient", "last_and_queries" if truncate else "full")


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return value
