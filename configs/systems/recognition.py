"""Recognition: a head reads category and box from each frozen slot of an earlier run.

    python main.py --config=configs/coco.py                 # the slots
    python main.py --config=configs/coco.py:recognition     # the head, on runs/coco

The earlier run has the same data set and the same other words, in its default workdir;
`--config.companions.slot_model.source=` names another one. Where that run had data settings of its
own, this one needs them too. Only data sets with categories have this word.
"""

from ml_collections import ConfigDict

from configs.base import DataSet

KIND = "task"


def fits(data: DataSet) -> bool:
    return data.num_classes is not None


def apply(config: ConfigDict, data: DataSet, source: str) -> None:
    num_steps = 5_000 if data.is_video else 10_000
    config.task = "recognition"
    config.model = ConfigDict(
        {"name": "recognition_head", "num_classes": data.num_classes, "dropout_rate": 0.1}
    )
    config.companions = ConfigDict({"slot_model": {"source": source}})
    config.weights = ConfigDict()
    config.losses = ConfigDict({"category": {"weight": 1.0}, "box": {"weight": 1.0}})
    # COCO's fullest image has 63 objects (as DETR's paper counts); the matching pays for more.
    config.data.update(categories=True, max_objects=100)
    config.optimizer.learning_rate.peak, config.optimizer.clip_norm = 1e-3, 0.0
    # A version may have chosen how masks are scored.
    config.eval.update(score_at=None, per_frame=False, foreground=False)
    config.train.num_steps = num_steps
    config.checkpoint.update(every=num_steps // 40, best_metric="top1", best_mode="max")
