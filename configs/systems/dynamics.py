"""Dynamics: SlotFormer continues the slots of an earlier run (Wu et al. 2023, arXiv 2210.05861).

    python main.py --config=configs/sprites.py               # the slots
    python main.py --config=configs/sprites.py:dynamics      # the rollouter, on runs/sprites

The earlier run has the same data set and the same other words, in its default workdir;
`--config.companions.slot_model.source=` names another one. Its slots are stored in the workdir
before the training begins; `--config.data.slots=` names a folder of `python -m data.store`, or
none. Only videos have this word.

Published on OBJ3D, 44 frames after 6: PSNR 32.40, SSIM 0.91, LPIPS 0.080. On CLEVRER, 42 frames
after 6 of every second one: 30.21, 0.89, 0.11, and of predicted masks AR 53.14, ARI 63.45,
FG-ARI 63.00, FG-mIoU 49.42 (29.81 before the program's fix of 2023).
"""

from ml_collections import ConfigDict

from configs import base

KIND = "task"
FUTURE = 10  # frames that are predicted in training
SLOTS_ALONE = ("mlp_mixture", "slot_mixer", "spatial_broadcast")  # decoders that see nothing else


def fits(data: base.DataSet) -> bool:
    return base.has_videos(data)


def apply(config: ConfigDict, data: base.DataSet, source: str) -> None:
    base.refuse_pictures(data, "Dynamics")
    title, decoder = config.title, config.model.decoder
    # Nothing is compared where the decoder sees its target, predicts what a tokenizer makes, or
    # where patches go (VideoSAUR on MOVi).
    decodes = decoder.name in SLOTS_ALONE and "codes" not in config.model.target
    decodes = decodes and decoder.get("logits") != "only"
    config.task, config.title = "dynamics", f"SlotFormer on {title}"
    config.companions = ConfigDict({"slot_model": {"source": source}})
    config.model = ConfigDict(
        {
            "rollouter": {
                "name": "slotformer",
                "width": 256,
                "num_layers": 4,
                "num_heads": 8,
                "mlp_size": 1024,
                "window": 6,
                "history": None,
                "every": 1,
                "positions": "time",
                "residual": False,
                "norm": "pre",
                "dropout_rate": 0.1,
                "normalize": False,
            },
            "future": FUTURE,
        }
    )
    # Decoding takes half of a step. On the embedded data, more steps without it follow motion
    # further in less time (docs/measurements.md; measured on sprites).
    decoded = {"decoded": {"weight": 1.0}} if decodes and data.small is None else {}
    config.losses = ConfigDict({"slots": {"weight": 1.0, "decay": 1.0}, **decoded})
    config.data.slots = "auto"
    config.data.num_frames = 6 + FUTURE
    if "features" in config.data:
        config.data.features = ""
    base.train_on_slots(config, peak=2e-4, warmup=0.05)
    config.train.update(num_steps=100_000, batch_size=64)
    config.eval.update(observed=6, num_frames=6 + FUTURE)
    config.checkpoint.update(every=2_500, best_metric="slot_error", best_mode="min")
    config.update(data.dynamics)
    if data.small is not None:
        _make_small(config)


def _make_small(config: ConfigDict) -> None:
    """The embedded task: minutes on two cores."""
    config.model.rollouter.update(
        width=96, num_layers=2, num_heads=4, mlp_size=192, window=4, normalize=True
    )
    config.model.future = 4
    # Clips of 12 frames, of which training sees windows of 8.
    config.data.update(num_frames=12, num_samples=4096)
    config.eval.update(num_frames=12, observed=6)
    config.optimizer.learning_rate.peak = 2e-3
    config.train.update(num_steps=2_600, batch_size=32)
    config.checkpoint.every = 650
