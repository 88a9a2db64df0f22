"""SmoothSA on MOVi-D: boxes-started video, at most 20 objects.

Cost: 50,000 steps of 8 clips of 6 frames, 1.4 TFLOP each: 0.4 hours at 50 TFLOP/s, a third of an A100's TF32 peak
(counted, not run). Published scores in % (mean of 3 seeds, authors' current program, match_paper):
ARI 43.8, FG-ARI 70.5, mBO 31.4, mIoU 30.2. Data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import recipes

VARIANTS = recipes.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    return recipes.video("movi_d", variant, num_slots=20, num_frames=6, boxes=True, eval_frames=24)
