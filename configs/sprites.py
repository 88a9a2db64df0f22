"""SmoothSA on sprites, the embedded default: no download, no accelerator.

Procedural clips of textured, moving, overlapping shapes (smoothsa_jax/inputs/sprites.py). FG-ARI on the test clips in %:

    (none)      boxes-started video, 7 min on 2 cores: 75
    :gaussian   video, slots start from one learned Gaussian instead of boxes; same budget: 68
    :image      single frames, Gaussian; 6 min on one core: 74
    :full       longer, scored on 24-frame clips; 26 min on one core: 70
    :smoke      seconds, to see that everything runs
"""

from ml_collections import ConfigDict

VARIANTS = ("", "gaussian", "image", "full", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = f"sprites_{variant}" if variant else "sprites"
    config.seed = 0
    config.dtype = "float32"
    config.matmul_precision = (
        "default"  # or high, highest: of float32 products (docs/performance.md)
    )
    config.data = ConfigDict(
        {
            "name": "sprites",
            "seed": 0,  # of the clips; fixed over training seeds, so that the test clips stay the same
            "image_size": 60,
            "num_frames": 2,
            "num_samples": 8192,  # of training; drawn in the first epoch, then kept in memory (240 MB)
            "keep": True,
            "min_objects": 2,
            "max_objects": 4,
            "boxes": True,
            "background_box": True,  # slot 0 starts from the whole frame
            "features": "",  # a folder of python -m data.cache_features, in place of the backbone in training
        }
    )
    config.model = ConfigDict(
        {
            # Frozen features that need no download: statistics of colour in each patch. Not DINOv2, and nothing like it:
            # enough for textures, of no use on photographs.
            "backbone": {
                "name": "colour_fourier",
                "seed": 0,
                "width": 32,
                "patch": 4,
                "window": 5,
                "bandwidth": 2.0,
                "position_width": 8,
                "position_scale": 0.3,
            },
            # Three departures from the paper, for a training of minutes in place of hours. (1) Both noises start at
            # e^-4 in place of 1: there are too few steps to learn them down, and under them boxes cannot be told apart.
            # (2) The distillation loss trains the warmer alone, never the projection and the box embedding: with the
            # paper's 10 % all slots collapsed. (3) The box embedding learns from the reconstruction instead, as if the
            # warmer were the identity (straight-through).
            "initializer": {
                "name": "boxes",
                "warmer": True,
                "num_heads": 4,
                "cold_log_std": -4.0,
                "query_log_std": -4.0,
                "detach_until": 1.0,
                "straight_through": True,
            },
            "projection": {"name": "mlp"},
            "slot_attention": {
                "name": "slot_attention",
                "num_slots": 5,
                "slot_size": 48,
                "truncate": True,
                "first_iterations": 3,
                "later_iterations": 1,
            },
            "transition": {"name": "randsfq", "num_heads": 4, "history": 6, "dropout_rate": 0.5},
            # The plain mixture decoder learns masks in fewer steps than the autoregressive one. Each slot has one
            # appearance for all its tokens: otherwise slots share the scene, add up, and no masks form.
            "decoder": {
                "name": "mlp_mixture",
                "num_layers": 3,
                "hidden_size": 64,
                "uniform_values": True,
            },
        }
    )
    # The weights of the paper, 100 and 0.5, are set against DINOv2's features, of much larger variance.
    config.loss = ConfigDict({"reconstruction": 1.0, "distillation": 0.1, "slot_contrast": 0.02})
    config.optimizer = ConfigDict(
        {"learning_rate": 5e-3, "warmup_fraction": 0.05, "final_ratio": 1e-3, "clip_norm": 1.0}
    )
    config.train = ConfigDict(
        {
            "num_steps": 7000,
            "batch_size": 16,
            "log_every": 50,
            "accumulate": 1,
            "remat": "none",
            "scan_unroll": 0,
            "xla_flags": "",
        }
    )
    config.eval = ConfigDict(
        {
            "split": "test",
            "num_samples": 64,
            "num_frames": 12,
            "batch_size": 16,
            "seeds": (0,),
            "match_paper": False,
            "baselines": True,
            "num_pictures": 8,
            "validation_samples": 16,
            "checkpoint": "latest",
        }
    )
    config.checkpoint = ConfigDict(
        {"every": 1000, "max_to_keep": 3, "best_metric": "loss", "best_mode": "min"}
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})

    if variant in ("gaussian", "image"):
        config.data.boxes = False
        config.model.initializer.name = "gaussian"
        config.model.initializer.cold_log_std = -1.0  # this noise alone tells the slots apart
    if variant == "image":
        config.data.num_frames = config.eval.num_frames = 1
        config.model.transition = ConfigDict({"name": "none"})
        config.loss.slot_contrast = 0.0
    elif variant == "full":
        config.train.num_steps = 12_000
        config.eval.num_frames = 24
    elif variant == "smoke":
        config.train.num_steps = 20
        config.train.log_every = 5
        config.checkpoint.every = 10
        config.eval.num_samples = 4
        config.eval.batch_size = 8
        config.eval.num_pictures = 2
    return config
