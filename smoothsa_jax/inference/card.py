"""The model card of a model on the Hugging Face Hub: data, scores, config, how to load it."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from ml_collections import ConfigDict

from smoothsa_jax import __version__
from smoothsa_jax.config.values import to_json
from smoothsa_jax.evaluation.scores import TITLES, scores_rows

CARD_FILE = "README.md"
TAGS = ["object-centric-learning", "slot-attention", "jax"]
# What a card says of the data, by the key of the config.
DATA_KEYS = {
    "folder": "folder",
    "image_size": "image size in pixels",
    "num_frames": "frames of a training clip",
    "boxes": "slots start from boxes",
}


def data_set_of(config: ConfigDict) -> str:
    """Return the name of what a model was trained on: its prepared folder's, or its reader's."""
    return PurePath(config.data.get("folder") or "").name or config.data.get("name") or "unknown"


def model_card(
    config: ConfigDict,
    step: int,
    scores: Mapping[str, Any] | None,
    repository: str,
    license: str | None = None,
) -> str:
    """Return the text of a model card, with the Hub's metadata at its top.

    Args:
        config: the whole config that the model was trained with.
        step: number of training steps done.
        scores: the content of its `scores.json`; None: it has not been scored.
        repository: "owner/name".
        license: of the weights, as the Hub abbreviates it; None: not stated.
    """
    title = config.get("title") or config.name
    data = data_set_of(config)
    metadata = ModelCardData(
        library_name="smoothsa_jax",
        license=license,
        pipeline_tag="image-segmentation",
        tags=TAGS,
        model_name=repository.partition("/")[2],
        eval_results=_results(scores, config.name, data) or None,
    )
    told = {words: config.data.get(key) for key, words in DATA_KEYS.items()}
    facts = [f"* {words}: {x}" for words, x in told.items() if x not in (None, "", False)]
    call = 'model.segment("picture.png"'
    call += ", boxes=[[left, top, right, bottom], ...])" if config.data.get("boxes") else ")"
    return f"""---
{metadata.to_yaml()}
---

# {title}: {config.name}

A model of object-centric learning: it describes a picture or video by slots, each with a mask.
Made with smoothsa_jax {__version__}, {step} training steps, {config.model.get("num_slots")} slots.

## How to load it

```python
import smoothsa_jax as ssa

model = ssa.load("hf://{repository}")
found = {call}
found.masks, found.slots  # the slot of each pixel (H,W), the slots (N,D)
```

## Data

{chr(10).join([f"* data set: {data}", *facts])}

## Scores

{_scores_text(title, scores)}

## Config

<details><summary>The whole config that it was trained with</summary>

```json
{to_json(config).strip()}
```

</details>
"""


def _results(scores: Mapping[str, Any] | None, name: str, data: str) -> list[EvalResult]:
    """Return the scores as the Hub shows them beside a card, in percent."""
    found = {} if scores is None else scores["metrics"]
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=re.sub(r"[^\w.-]+", "-", data.lower()),  # more is refused
            dataset_name=name,
            dataset_split=scores.get("split"),
            metric_type=metric,
            metric_name=TITLES[metric],
            metric_value=round(100 * found[metric]["mean"], 2),
        )
        for metric in ("ari", "fg_ari", "mbo", "miou")
        if metric in found and found[metric]["mean"] is not None
    ]


def _scores_text(title: str, scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return "It has not been scored."
    head, *rows = scores_rows(title, scores)
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    protocol = ", ".join(f"{key} {value}" for key, value in scores.get("protocol", {}).items())
    return (
        f"Of the {scores.get('split', 'scored')} split after {scores.get('step')} steps, in "
        f"percent:\n\n{table}\n\nProtocol: {protocol or 'not stated'}."
    )
