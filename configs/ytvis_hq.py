"""SmoothSA on HQ-YTVIS: video, 7 slots from Gaussian queries.

Cost: 50,000 steps of 8 clips of 5 frames, 1.1 TFLOP each: 0.3 hours at 50 TFLOP/s, a third of an A100's TF32 peak
(counted, not run). Published scores in % (mean of 3 seeds, authors' current program, match_paper):
ARI 42.4, FG-ARI 63.0, mBO 38.9, mIoU 38.3. Data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import recipes

VARIANTS = recipes.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    config = recipes.video(
        "ytvis_hq", variant, num_slots=7, num_frames=5, boxes=False, eval_frames=-1
    )
    config.data.folder = "prepared/ytvis_hq"
    config.data.repeat_frames = 30  # a video of t frames counts floor(t / 30) times
    return config
