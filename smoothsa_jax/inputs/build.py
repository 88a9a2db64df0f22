"""The data set that a config names."""

import inspect
from collections.abc import Mapping
from typing import Any

from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.inputs.loader import Source
from smoothsa_jax.inputs.sprites import Sprites

DATASETS = {"sprites": Sprites}


def build_dataset(config: Mapping[str, Any], split: str, **options: Any) -> Source:
    """Build the data set `config.name` with the other entries of `config` as its options.

    `options` take precedence over `config`, for example `num_frames` or `num_samples` of an
    evaluation. Raises UserError for an unknown name or option.
    """
    arguments = {**config, **options, "split": split}
    name = arguments.pop("name", None)
    if name not in DATASETS:
        raise UserError(
            f"data.name is {name!r}, which is no data set; choose one of {', '.join(DATASETS)}"
            f"{did_you_mean(name, DATASETS)}"
        )
    known = inspect.signature(DATASETS[name]).parameters
    for key in arguments:
        if key not in known:
            raise UserError(
                f"data.{key} is no option of {name!r}; choose one of {', '.join(known)}"
                f"{did_you_mean(key, known)}"
            )
    return DATASETS[name](**arguments)
