"""What the experiments on real data share: the recipes of the paper's image and video models (method section 6).

An experiment states how it differs. `VARIANTS`: `:smoke` is a tiny model, a few steps on a few samples, and an untrained
backbone: to see in a minute that a prepared folder and the whole program fit together. Its scores mean nothing.
"""

from ml_collections import ConfigDict

VARIANTS = ("", "smoke")


def image(
    name: str, variant: str = "", *, num_slots: int, num_steps: int, batch_size: int = 32
) -> ConfigDict:
    """The image model: Gaussian queries, 256x256 pixels."""
    config = _shared(name, num_slots=num_slots, num_steps=num_steps, batch_size=batch_size)
    config.data.update(num_frames=1, boxes=False)
    config.model.initializer.name = "gaussian"
    config.model.transition = ConfigDict({"name": "none"})
    config.loss.slot_contrast = 0.0
    config.optimizer.update(learning_rate=2e-4, clip_norm=1.0)
    config.eval.update(num_frames=1, batch_size=32)
    return _variant(config, variant)


def video(
    name: str,
    variant: str = "",
    *,
    num_slots: int,
    num_frames: int,
    boxes: bool,
    eval_frames: int,
    num_steps: int = 50_000,
    batch_size: int = 8,
) -> ConfigDict:
    """The video model: clips of `num_frames`, which also bound the transition's history.

    Args:
        boxes: slots start from the first frame's boxes, one for each object, none for the background.
        eval_frames: of a whole video; -1 where they differ.
    """
    config = _shared(name, num_slots=num_slots, num_steps=num_steps, batch_size=batch_size)
    config.data.update(num_frames=num_frames, boxes=boxes)
    config.model.initializer.name = "boxes" if boxes else "gaussian"
    config.model.transition = ConfigDict(
        {"name": "randsfq", "num_heads": 4, "history": num_frames, "dropout_rate": 0.5}
    )
    config.optimizer.update(learning_rate=5e-5, clip_norm=0.05)
    # The paper's batches, on which match_paper depends.
    config.eval.update(num_frames=eval_frames, batch_size=1 if eval_frames == -1 else 8)
    return _variant(config, variant)


def recognition(config: ConfigDict, *, num_classes: int, num_steps: int) -> ConfigDict:
    """A head on the frozen slots of a run of `config`: same model, pixels, batches and schedule.

    Where that run had settings of its own under `model`, this one needs them too, and says so.
    """
    config.recognition = ConfigDict(
        {
            "workdir": f"runs/{config.name}",  # of the run whose slots these are
            "num_classes": num_classes,
            "dropout_rate": 0.1,
            "match_paper": False,  # in training; eval.match_paper in scoring
        }
    )
    # The 63 objects of COCO's fullest picture (as DETR's paper counts) and some more; many cost memory in the matching.
    config.data.update(categories=True, max_objects=100)
    config.loss = ConfigDict({"category": 1.0, "box": 1.0})
    config.optimizer.update(learning_rate=1e-3, clip_norm=0.0)
    config.checkpoint.update(best_metric="top1", best_mode="max")
    if not config.name.endswith("_smoke"):
        config.train.num_steps = num_steps
        config.checkpoint.every = num_steps // 40
    config.name = f"recognition_{config.name}"
    return config


def _shared(name: str, *, num_slots: int, num_steps: int, batch_size: int) -> ConfigDict:
    data = {
        "name": "prepared",
        "folder": f"prepared/{name}",
        "image_size": 256,
        "background_box": False,
        "features": "",  # a folder of python -m data.cache_features, in place of the backbone in training
    }
    model = {
        # DINOv2 ViT-S/14 with registers; it sees 224 of 256 pixels, 16x16 tokens.
        "backbone": {
            "name": "vit",
            "weights": "facebook/dinov2-with-registers-small",
            "seed": 0,  # of random weights
            "width": 384,
            "depth": 12,
            "num_heads": 6,
            "patch": 14,
            "registers": 4,
            "swiglu": False,
            "resize": 0.875,
        },
        "projection": {"name": "mlp"},
        "initializer": {
            "warmer": True,
            "num_heads": 4,
            "cold_log_std": 0.0,
            "query_log_std": 0.0,
            "detach_until": 0.1,
            "straight_through": False,
        },
        "slot_attention": {
            "name": "slot_attention",
            "num_slots": num_slots,
            "slot_size": 256,
            "truncate": True,
            "first_iterations": 3,
            "later_iterations": 1,
        },
        "decoder": {"name": "random_ar", "num_layers": 4, "num_heads": 4},
    }
    return ConfigDict(
        {
            "name": name,
            "seed": 0,
            "dtype": "float32",
            "matmul_precision": "default",  # or high, highest: of float32 products (docs/performance.md)
            "data": data,
            "model": model,
            "loss": {"reconstruction": 1.0, "distillation": 100.0, "slot_contrast": 0.5},
            "optimizer": {"warmup_fraction": 0.05, "final_ratio": 1e-3},
            "train": {
                "num_steps": num_steps,
                "batch_size": batch_size,
                "accumulate": 1,  # parts that a batch is computed in, with the same result
                "xla_flags": "",  # for the training step on a GPU, as in XLA_FLAGS (docs/scaling.md)
                "log_every": 100,
                "num_threads": 8,
                "num_workers": 0,
                "remat": "none",  # or recurrence, decoder, all: less memory, more time (docs/performance.md)
                "scan_unroll": 0,  # frames written out in a row; 0: all on a GPU, 1 elsewhere
                "match_paper": False,  # as many slots for each sample as the one of its batch with the most boxes
            },
            "eval": {
                "split": "validation",
                "seeds": (0,),
                "match_paper": False,
                "baselines": False,  # k-means on every sample takes longer than the model
                "num_pictures": 8,
                "validation_samples": 128,
                "checkpoint": "latest",
            },
            "checkpoint": {
                "every": num_steps // 40,  # validates as often
                "max_to_keep": 3,
                "best_metric": "fg_ari",
                "best_mode": "max",
            },
            "mesh": {"data": -1, "fsdp": 1},  # devices (docs/scaling.md); -1: all that there are
        }
    )


def _variant(config: ConfigDict, variant: str) -> ConfigDict:
    if variant == "smoke":
        config.name += "_smoke"
        config.data.image_size = 64
        config.model.backbone.update(weights="random", width=32, depth=1, num_heads=2, registers=1)
        config.model.slot_attention.slot_size = 32
        config.model.decoder.num_layers = 1
        config.train.update(num_steps=6, batch_size=2, log_every=2, num_threads=1)
        config.eval.update(num_samples=2, batch_size=1, num_pictures=1, validation_samples=2)
        config.checkpoint.every = 3
    return config
