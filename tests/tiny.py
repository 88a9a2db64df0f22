"""The smallest config and batch that go through the whole program, for tests."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from smoothsa_jax.inputs.sprites import Sprites

CAUSAL = {"name": "causal_transformer", "num_layers": 1, "num_heads": 2}
DVAE = {"name": "dvae", "vocabulary": 6, "hidden_size": 4, "tau": 0.5}
TOKENS = {"name": "tokens", "vocabulary": 6, "width": 8}


def tiny_config(
    num_frames: int = 3, initializer: str = "boxes", decoder: str = "random_ar", seed: int = 0
) -> ConfigDict:
    """A whole config: 16 pixels, 16 tokens, 4 slots, color features; all losses of the video model
    on."""
    decoders = {
        "random_ar": {"name": "random_ar", "num_layers": 1, "num_heads": 2},
        "mlp_mixture": {"name": "mlp_mixture", "num_layers": 3, "hidden_size": 16},
    }
    transition = {"name": "randsfq", "num_heads": 2, "history": 4, "dropout_rate": 0.5}
    losses = {"reconstruction": {"weight": 1.0}, "distillation": {"weight": 10.0}}
    if num_frames > 1:
        losses["slot_contrast"] = {"weight": 0.5, "temperature": 0.1}
    return ConfigDict(
        {
            "name": "tiny",
            "title": "SmoothSA",
            "task": "discovery",
            "seed": seed,
            "dtype": "float32",
            "matmul_precision": "default",
            "data": {
                "name": "sprites",
                "image_size": 16,
                "num_frames": num_frames,
                "max_objects": 4,
                "boxes": initializer == "boxes",
            },
            "model": {
                "num_slots": 4,
                "slot_size": 8,
                "encoder": {
                    "name": "colour_fourier",
                    "width": 12,
                    "patch": 4,
                    "window": 6,
                    "bandwidth": 3.0,
                    "position_width": 8,
                    "position_scale": 0.3,
                },
                "projection": {"name": "mlp"},
                "initializer": {
                    "name": "warmed",
                    "cold": {"name": initializer, "log_std": 0.0},
                    "num_heads": 2,
                    "log_std": 0.0,
                    "straight_through": False,
                    "detach": {"schedule": "step", "begin": 1.0, "end": 0.0, "at": 0.1},
                },
                "aggregator": {
                    "name": "slot_attention",
                    "gradient": "last_and_queries",
                    "first": 2,
                    "later": 1,
                },
                "transition": transition if num_frames > 1 else {"name": "none"},
                "decoder": decoders[decoder],
                "target": {"name": "features"},
            },
            "losses": losses,
            "companions": {},
            "weights": {
                "encoder": {"into": "encoder", "source": "random", "seed": 0, "frozen": ("*",)}
            },
            "optimizer": {
                "learning_rate": {
                    "schedule": "warmup_cosine",
                    "peak": 1e-2,
                    "warmup": 0.05,
                    "end_ratio": 1e-3,
                },
                "clip_norm": 1.0,
                "rates": {},
                "clip_by": "norm",
            },
            "train": {
                "num_steps": 20,
                "batch_size": 2,
                "accumulate": 1,
                "num_threads": 1,
                "num_workers": 0,
                "remat": "none",
                "scan_unroll": 0,
                "match_paper": False,
                "xla_flags": "",
            },
            "log": {"every": 1, "wandb": None},
            "eval": {
                "split": "test",
                "num_samples": 3,
                "num_frames": num_frames,
                "windows": None,
                "window_rest": "back",
                "num_slots": None,
                "iterations": None,
                "prune": None,
                "prune_restart": "slots",
                "prune_iterations": 1,
                "prune_video": "fixed",
                "batch_size": 2,
                "seeds": (0,),
                "masks": "decoder",
                "score_at": None,
                "per_frame": False,
                "foreground": False,
                "skip_frames": 0,
                "count_segments": False,
                "lpips": "",
                "observed": None,
                "match_paper": False,
                "background_column_always": False,
                "baselines": True,
                "num_pictures": 1,
                "validation_samples": 32,
                "checkpoint": "latest",
            },
            "checkpoint": {
                "every": 10,
                "max_to_keep": 3,
                "best_metric": "loss",
                "best_mode": "min",
            },
            "mesh": {"data": 1, "fsdp": 1},
        }
    )


def with_tokens_along(config: ConfigDict) -> ConfigDict:
    """The same with a discrete VAE that is trained along, and a decoder of its tokens."""
    config = config.copy_and_resolve_references().unlock()
    config.model.decoder = ConfigDict({**CAUSAL, "embed": "table"})
    config.model.tokenizer = ConfigDict(DVAE)
    config.model.target = ConfigDict({**TOKENS, "width": 6})
    of_tokenizer = {"name": "reconstruction", "of": "tokenizer", "weight": 1.0}
    config.losses = ConfigDict({"token": {"weight": 1.0}, "tokenizer": of_tokenizer})
    config.eval.masks = "aggregator"
    return config.lock()


def as_recognition(config: ConfigDict, num_classes: int, source: str = "") -> ConfigDict:
    """A config of recognition on the slot model of another config; without a source, an untrained
    one."""
    config = config.copy_and_resolve_references().unlock()
    companion = {"source": source}
    if not source:
        companion |= {"title": config.title, "model": config.model}
    config.task = "recognition"
    config.model = ConfigDict(
        {"name": "recognition_head", "num_classes": num_classes, "dropout_rate": 0.1}
    )
    config.losses = ConfigDict({"category": {"weight": 1.0}, "box": {"weight": 1.0}})
    config.companions = ConfigDict({"slot_model": companion})
    config.weights = ConfigDict()
    return config


def as_dynamics(config: ConfigDict, source: str = "", **rollouter: Any) -> ConfigDict:
    """A config of dynamics on the slot model of another config, which has a mixture decoder;
    without a source, an untrained one. It observes two frames and predicts two."""
    config = config.copy_and_resolve_references().unlock()
    companion = {"source": source}
    if not source:
        companion |= {"title": config.title, "model": config.model}
    settings = {"width": 8, "num_layers": 1, "num_heads": 2, "mlp_size": 12, "window": 2}
    settings |= {"name": "slotformer", "dropout_rate": 0.0, **rollouter}
    config.task = "dynamics"
    config.model = ConfigDict({"rollouter": settings, "future": 2})
    config.losses = ConfigDict({"slots": {"weight": 1.0, "decay": 1.0}, "decoded": {"weight": 1.0}})
    config.companions = ConfigDict({"slot_model": companion})
    config.weights = ConfigDict()
    config.data.slots = ""
    config.eval.observed = 2
    return config


class TinyQuestions:
    """Three questions about two clips of sprites, of which the last one has choices."""

    words = ("", "how", "many", "is", "it", "red")
    answers = ("no", "yes", "two")
    kinds = ("count", "colour", "why")

    def __init__(
        self,
        image_size=16,
        num_frames=3,
        split="train",
        num_samples=None,
        num_slots=None,
        boxes=True,
    ):
        settings = {"split": split, "num_samples": 2, "num_slots": num_slots, "boxes": boxes}
        self.clips = Sprites(image_size, num_frames, 3, 2, **settings)
        self.number = num_samples or 3

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        kind = index % 3
        allowed = [(False, False, True), (True, True, False), (False,) * 3][kind]
        choices = [[0, 0], [0, 0]] if kind < 2 else [[3, 4], [5, 0]]
        number = lambda x: np.array(x, np.int32)  # noqa: E731
        return {
            "question": number([[1, 2, 0], [3, 4, 5], [1, 0, 0]][kind]),
            "choices": number(choices),
            "answer": number([2, 1, -1][kind]),
            "choice_answers": number([-1, -1] if kind < 2 else [1, 0]),
            "allowed": np.array(allowed),
            "kind": number(kind),
            "clip": number(index % 2),
        }

    def state(self, clip):
        return np.full((3, 2, 4), clip, np.float32), np.array([True, False])

    @staticmethod
    def state_shape_of(settings):
        return 2, 4


def as_answers(config: ConfigDict, source: str = "", **readout: Any) -> ConfigDict:
    """A config of answers to `TinyQuestions` on the slot model of another config; without a source,
    an untrained one."""
    config = config.copy_and_resolve_references().unlock()
    companion = {"source": source}
    if not source:
        companion |= {"title": config.title, "model": config.model}
    settings = {"name": "aloe", "width": 8, "num_layers": 1, "num_heads": 2, "mlp_size": 12}
    settings |= {"word_size": 4, "hidden_size": 6, "question_length": 3, "choice_length": 2}
    settings |= {"positions": "time", "dropout_rate": 0.0, **readout}
    facts = {key: getattr(TinyQuestions, key) for key in ("words", "answers", "kinds")}
    beside = ("words_only", "observed_frames", "pooled_features", "true_state")
    config.task = "answers"
    config.model = ConfigDict({"readout": settings, "future": 2, "beside": beside, **facts})
    config.losses = ConfigDict({x: {"weight": 1.0} for x in ("answer", "choice", "beside")})
    config.companions = ConfigDict({"slot_model": companion})
    config.weights = ConfigDict()
    size, frames, boxes = (config.data[x] for x in ("image_size", "num_frames", "boxes"))
    config.data = ConfigDict({"name": "tiny:TinyQuestions", "image_size": size})
    config.data.update(num_frames=frames, boxes=boxes, slots="")
    config.optimizer.clip_norm = 0.0
    config.checkpoint.update(best_metric="accuracy", best_mode="max")
    return config


def tiny_batch(
    config: ConfigDict, batch_size: int | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random frames and boxes that fit the config, every slot valid."""
    rng = np.random.default_rng(seed)
    batch = batch_size or config.train.batch_size
    frames, side = config.data.num_frames, config.data.image_size
    corners = rng.random((batch, frames, config.model.num_slots, 2, 2))
    corners.sort(axis=-2)  # left, top <= right, bottom
    return {
        "video": rng.integers(0, 256, (batch, frames, side, side, 3), dtype=np.uint8),
        "segmentations": rng.integers(0, 3, (batch, frames, side, side), dtype=np.uint8),
        "boxes": corners.reshape(*corners.shape[:3], 4).astype(np.float32),
        "slot_mask": np.ones(corners.shape[:1] + corners.shape[2:3], bool),
    }


class WithCategories(Sprites):
    """Sprites whose object k has category k."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "categories": np.arange(3, dtype=np.int32)}
