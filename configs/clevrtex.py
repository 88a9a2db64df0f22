"""SmoothSA on ClevrTex: images, 11 slots from Gaussian queries.

Cost: 50,000 steps of 32 images, 0.9 TFLOP each: 0.3 hours at 50 TFLOP/s, a third of an A100's TF32 peak
(counted, not run). Published scores in % (mean of 3 seeds, authors' current program, match_paper):
ARI 76.8, FG-ARI 82.2, mBO 60.6, mIoU 58.9. Data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import recipes

VARIANTS = recipes.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    return recipes.image("clevrtex", variant, num_slots=11, num_steps=50_000)
