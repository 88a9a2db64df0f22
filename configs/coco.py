"""SmoothSA on COCO: images, 7 slots from Gaussian queries.

Cost: 100,000 steps of 32 images, 0.9 TFLOP each: 0.5 hours at 50 TFLOP/s, a third of an A100's TF32 peak
(counted, not run). Published scores in % (mean of 3 seeds, authors' current program, match_paper):
ARI 29.3, FG-ARI 41.3, mBO 33.4, mIoU 31.8. Data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import recipes

VARIANTS = recipes.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    config = recipes.image("coco", variant, num_slots=7, num_steps=100_000)
    config.eval.background_column_always = (
        True  # of match_paper: stuff is a segment, in view or not
    )
    return config
