"""What stands in docs/inference.md runs, and gives what its comments say."""

import re
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parent.parent


def test_the_snippets_on_inference_run():
    text = (ROOT / "docs" / "inference.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(snippets) == 5
    names: dict = {}
    for number, snippet in enumerate(snippets, start=1):
        exec(compile(snippet, f"docs/inference.md, snippet {number}", "exec"), names)

    found, outputs, slot_size = names["found"], names["outputs"], names["model"].slot_size
    assert found.slots.shape == (3, 4, slot_size) and found.masks.shape == (3, 90, 120)
    assert found.soft_masks.shape == (3, 4, 90, 120)
    assert outputs["slots"].shape == (2, 3, 4, slot_size)
    assert outputs["warm_queries"].shape == (2, 4, slot_size)
    assert names["masks"].shape == (2, 3, 90, 120)
    # The same samples with other queries give other slots.
    assert np.abs(names["several"][0] - names["several"][1]).max() > 1e-3
    # A step along the gradient makes the slot larger, as the text says.
    slots, features, share = (
        outputs["slots"][:, 0],
        names["features"],
        jax.jit(names["share_of_slot_0"]),
    )
    step = 1e-2 * names["direction"] / np.abs(names["direction"]).max()
    assert share(slots + step, features) > share(slots, features)
    assert names["gradient"].keys() == names["trained"].keys()
    moved = {name for name, x in names["gradient"].items() if np.abs(x).max() > 0}
    assert {"slot_attention.value.kernel", "slot_attention.gru.input.kernel"} & moved, moved
