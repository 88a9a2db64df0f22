"""Which slots stay, by a program of its own.

GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes.
"""

import numpy as np
from golden_files import golden

from smoothsa_jax.models.pruning import survivors

FILES = ["prune_reference"]


def test_survivors():
    with golden("prune_reference") as file:
        slots, attention = file["inp/slots"], file["inp/attention"]
        for distance, expected in zip(file["inp/thresholds"], file["out/slot_mask"], strict=True):
            found = np.asarray(survivors(slots, attention, distance))
            np.testing.assert_array_equal(found, expected, err_msg=f"at {distance}")
