"""Recognition on COCO: category and box from each frozen slot of a run of `configs/coco.py`.

    python main.py --config=configs/recognition_coco.py --config.recognition.workdir=runs/coco

Cost: 10,000 steps of 32 images, 0.4 TFLOP each (the frozen ViT's forward, counted by hand): minutes at 50 TFLOP/s. Published scores in % (authors' current program, their matching):
top-1 89.3, top-3 97.3, box IoU 49.5. 91 classes as there; prepared folders number COCO's categories 0 to 79.
Data: docs/datasets.md.
"""

from ml_collections import ConfigDict

from configs import coco, recipes

VARIANTS = recipes.VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    return recipes.recognition(coco.get_config(variant), num_classes=91, num_steps=10_000)
