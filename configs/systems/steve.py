"""STEVE: slots of videos that explain discrete tokens (Singh et al. 2022, arXiv 2205.14065).

    original    a discrete VAE is trained along, and everything from pixels

Cost of the original: 200,000 steps of 24 clips of 3 frames, 24 GFLOP forward a frame of 128 pixels,
16.6 of them the decoder's. Its paper reports FG-ARI of clips of 6 frames, on other splits.
"""

from ml_collections import ConfigDict

from configs import base

TITLE = "STEVE"
KIND = "system"
STEPS, BATCH, FRAMES, SLOTS, IMAGE_SIZE = 200_000, 24, 3, 15, 128
WARMUP, HALF_LIFE = 30_000, 250_000  # steps


def fits(data: base.DataSet) -> bool:
    """Whether a data set has videos."""
    return base.has_videos(data)


def original(config: ConfigDict, data: base.DataSet) -> None:
    """The program of the paper: 128 pixels, 15 slots, 1024 tokens of a vocabulary of 4096."""
    base.refuse_pictures(data, TITLE)
    config.data.boxes = False
    is_small = data.small is not None
    width = 48 if is_small else 192
    config.weights = ConfigDict()  # nothing is frozen
    config.companions = ConfigDict()  # the tokenizer is a part of the model
    if not is_small:
        with config.data.ignore_type():  # it may be a pair of numbers
            config.data.image_size = IMAGE_SIZE
        config.data.update(crop="none", flip=0.0)
        config.model.num_slots = SLOTS
    start = {"activation": "relu", "start": "xavier"}
    parts = {
        "encoder": {
            "name": "conv",
            "width": 64,
            "out_width": width,
            "kernel_size": 5,
            "strides": (2, 1, 1, 1),
            "padding": "torch",
            "last_relu": False,
            "norm": "none",
            "position": "centers",
            "pixels": "unit",
            "start": "he",
        },
        "projection": {"name": "mlp", "hidden_size": width, **start},
        "initializer": {"name": "gaussian", "log_std": None, "mean": "xavier"},
        "aggregator": {
            "name": "slot_attention",
            "first": 2,
            "later": 2,
            "gradient": "full",
            "epsilon": 1e-8,
            "epsilon_in": "weights",
            "mlp_size": width,
            "last_mlp": False,
            **start,
        },
        "transition": {
            "name": "transformer",
            "num_heads": 4,
            "norm": "pre",
            "bias": True,
            "attention_bias": False,
            "num_layers": 1,
            "norm_stream": True,
            "final_norm": True,
            "out_gain": 2**-0.5,
            "attention_start": "xavier",
            **start,
        },
        "decoder": {
            "name": "causal_transformer",
            "num_layers": 8,
            "num_heads": 4,
            "embed": "table",
            "token_size": width,
            "project_slots": True,
            "biases": "all_but_attention",
            "final_norm": True,
            "dropout_rate": 0.1,
            **start,
        },
        "tokenizer": {
            "name": "dvae",
            "vocabulary": 4096,
            "hidden_size": 64,
            "tau": {"schedule": "cosine", "begin": 1.0, "end": 0.1, "until": WARMUP / STEPS},
        },
        "target": {"name": "tokens", "vocabulary": 4096, "width": 4096, "grid": (32, 32)},
    }
    for name, settings in parts.items():
        config.model[name] = ConfigDict(settings)
    config.model.slot_size = width
    base.fit_tokens(config)
    config.losses = ConfigDict(
        {
            "token": {"weight": 1.0, "reduction": "sum"},
            "tokenizer": {
                "name": "reconstruction",
                "of": "tokenizer",
                "reduction": "frame",
                "weight": 1.0,
            },
        }
    )
    faster = 10 if is_small else 1  # embedded data train for minutes
    rises = {
        "schedule": "warmup_halving",
        "warmup": WARMUP / STEPS,
        "half_life": HALF_LIFE / STEPS,
        "from_zero": True,
        "starts_above_zero": True,
    }
    slots = ("encoder", "projection", "initializer", "aggregator", "transition")
    config.optimizer.learning_rate = ConfigDict({**rises, "peak": 3e-4})  # of the decoder
    config.optimizer.rates = ConfigDict(
        {
            "slots": {
                "of": (*(f"{name}.*" for name in slots), "decoder.project_slots.*"),
                "learning_rate": {**rises, "peak": faster * 1e-4},
            },
            "tokenizer": {"of": ("tokenizer.*",), "learning_rate": faster * 3e-4},
        }
    )
    config.optimizer.update(clip_norm=0.05, clip_by="largest")
    config.eval.masks = "aggregator"
    config.checkpoint.update(best_metric="loss", best_mode="min")
    base.use_length(config, data, num_steps=STEPS, batch_size=BATCH, num_frames=FRAMES)


apply = original
WORDS = {"original": ("version", original)}
