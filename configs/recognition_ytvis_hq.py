"""Recognition on HQ-YTVIS: category and box from each frozen slot of a run of `configs/ytvis_hq.py`.

    python main.py --config=configs/recognition_ytvis_hq.py --config.recognition.workdir=runs/ytvis_hq

Cost: 5,000 steps of 8 clips of 5 frames, 0.5 TFLOP each (the frozen ViT's forward, counted by hand): minutes at 50 TFLOP/s. Published scores in % (authors' current program, their matching):
top-1 90.4, top-3 97.6, box IoU 42.6. 41 classes as there; prepared folders number the categories 0 to 39.
Data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import recipes, ytvis_hq

VARIANTS = recipes.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    return recipes.recognition(ytvis_hq.get_config(variant), num_classes=41, num_steps=5_000)
