"""The configs of real data at full size, for tests that trace and lower but run nothing."""

import pytest
from command import ROOT
from ml_collections import ConfigDict

from benchmarks.cases import without_weights
from smoothsa_jax.config.load import load_config


def recipes() -> list[str]:
    """Return all data sets that SmoothSA's recipe is for, and recognition where they have it."""
    others = ("sprites", "scenes", "own", "clevr", "clevr3d", "clevrer", "msn_hard")
    others += ("obsurf_msn", "physion")
    names = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    names = [name for name in names if name not in others]
    has_categories = ("coco", "ytvis", "ytvis_hq")
    return [*names, *(f"{name}:recognition" for name in has_categories)]


def recipe(name: str, dtype: str = "bfloat16") -> ConfigDict:
    """Load a config with random weights and a single block in the encoder.

    The chosen forms do not depend on the number of blocks.
    """
    data, colon, words = name.partition(":")
    config = without_weights(load_config(f"{ROOT / 'configs' / data}.py{colon}{words}")).unlock()
    config.dtype, config.train.batch_size = dtype, 2
    companions = [companion.model for companion in config.companions.values()]
    for model in companions or [config.model]:
        model.encoder.depth = 1
    return config


def quick(names: list[str], *chosen: str) -> list:
    """Parameters, of which all but the `chosen` ones are slow."""
    return [
        name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]
