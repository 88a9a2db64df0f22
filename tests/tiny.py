"""The smallest config and batch that go through the whole program, for tests."""

import numpy as np
from ml_collections import ConfigDict


def tiny_config(
    num_frames: int = 3, initializer: str = "boxes", decoder: str = "random_ar", seed: int = 0
) -> ConfigDict:
    """A whole config: 16 pixels, 16 tokens, 4 slots, color features; both video losses on."""
    decoders = {
        "random_ar": {"name": "random_ar", "num_layers": 1, "num_heads": 2},
        "mlp_mixture": {"name": "mlp_mixture", "num_layers": 3, "hidden_size": 16},
    }
    transition = {"name": "randsfq", "num_heads": 2, "history": 4, "dropout_rate": 0.5}
    return ConfigDict(
        {
            "name": "tiny",
            "seed": seed,
            "dtype": "float32",
            "data": {
                "name": "sprites",
                "image_size": 16,
                "num_frames": num_frames,
                "max_objects": 4,
            },
            "model": {
                "backbone": {
                    "name": "colour_fourier",
                    "width": 12,
                    "patch": 4,
                    "window": 6,
                    "bandwidth": 3.0,
                    "seed": 0,
                },
                "initializer": {
                    "name": initializer,
                    "warmer": True,
                    "num_heads": 2,
                    "detach_until": 0.1,
                },
                "projection": {"name": "mlp"},
                "slot_attention": {
                    "name": "slot_attention",
                    "num_slots": 4,
                    "slot_size": 8,
                    "truncate": True,
                    "first_iterations": 2,
                    "later_iterations": 1,
                },
                "transition": transition if num_frames > 1 else {"name": "none"},
                "decoder": decoders[decoder],
            },
            "loss": {
                "reconstruction": 1.0,
                "distillation": 10.0,
                "slot_contrast": 0.5 if num_frames > 1 else 0.0,
            },
            "optimizer": {
                "learning_rate": 1e-2,
                "warmup_fraction": 0.05,
                "final_ratio": 1e-3,
                "clip_norm": 1.0,
            },
            "train": {"num_steps": 20, "batch_size": 2, "accumulate": 1, "log_every": 1},
            "mesh": {"data": 1, "fsdp": 1},
        }
    )


def tiny_batch(
    config: ConfigDict, batch_size: int | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random frames and boxes that fit the config, every slot valid."""
    rng = np.random.default_rng(seed)
    batch = batch_size or config.train.batch_size
    frames, side = config.data.num_frames, config.data.image_size
    corners = rng.random((batch, frames, config.model.slot_attention.num_slots, 2, 2))
    corners.sort(axis=-2)  # left, top <= right, bottom
    return {
        "video": rng.integers(0, 256, (batch, frames, side, side, 3), dtype=np.uint8),
        "segmentations": rng.integers(0, 3, (batch, frames, side, side), dtype=np.uint8),
        "boxes": corners.reshape(*corners.shape[:3], 4).astype(np.float32),
        "slot_mask": np.ones(corners.shape[:1] + corners.shape[2:3], bool),
    }
