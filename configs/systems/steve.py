"""STEVE: slots of videos that explain discrete tokens (Singh et al. 2022, arXiv 2205.14065).

A tokenizer comes first: a VQ-VAE of pixels. A causal transformer that sees the slots then predicts
its tokens. The transformer has no masks; those of slot attention are scored.

    python main.py --config=configs/movi_d.py:steve,tokenizer    # stage one
    python main.py --config=configs/movi_d.py:steve              # stage two, on its run

(no word)   the re-implementation's parts and losses, on this program's encoder and schedule length
genera1z    the re-implementation by SmoothSA's author (VQ-VFM-OCL, arXiv 2502.20263): slots
            without a box start from a box of zeros. They stay equal for ever and share the
            background, so that an object's slot wins where each of them has less than it.
original    a discrete VAE is trained along, and everything from pixels
slotformer  the program of SlotFormer (arXiv 2210.05861), there on Physion: the discrete VAE comes
            first, and what makes slots is its SAVi's, with an LSTM and a query for each slot

Cost of genera1z: 50,000 steps of 8 clips of 6 frames. Of a frame, the frozen ViT takes 11.0 GFLOP
forward, the tokenizer's encoder 8.2, the transformer 2.4. Masks need neither tokenizer nor
transformer. Published in % (ARI / FG-ARI / mBO / mIoU, mean of 3 seeds, match_paper): MOVi-D 33.7 /
66.2 / 22.6 / 20.9. (The row of STEVE in SmoothSA's repository is that of SLATE on COCO.)

Cost of the original: 200,000 steps of 24 clips of 3 frames, 24 GFLOP forward a frame of 128 pixels,
16.6 of them the decoder's. Its paper reports FG-ARI of clips of 6 frames, on other splits. Cost of
slotformer: 700,000 steps of 64 frames for the tokenizer, then 460,000 of 48 clips of 6 frames.
"""

from ml_collections import ConfigDict

from configs import base
from configs.systems import savi_slotformer
from smoothsa_jax.errors import UserError

TITLE = "STEVE"
KIND = "system"
fits = base.has_videos
STEPS, BATCH, FRAMES, SLOTS, IMAGE_SIZE = 200_000, 24, 3, 15, 128
WARMUP, HALF_LIFE = 30_000, 250_000  # steps
TARGET = {"name": "tokens", "vocabulary": 4096, "width": 4096, "grid": (32, 32)}
# Of SlotFormer's program, with a GroupNorm in place of biases.
NORMED_DVAE = {
    "name": "dvae",
    "vocabulary": 4096,
    "hidden_size": 64,
    "group_norm": True,
    "pixels": "signed",
    "tau": {"schedule": "cosine", "begin": 1.0, "end": 0.1, "until": 0.15},
}


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_pictures(data, TITLE)
    base.predict_tokens(config)
    base.carry_tokens(config, data)
    base.read_tokens(config, data)


def tokenizer(config: ConfigDict, data: base.DataSet, source: str, version: str | None) -> None:
    """The first stage: a VQ-VAE of pixels, with TAESD's layers; or a discrete VAE."""
    del source
    if version == "original":
        raise UserError("'original' trains its tokenizer along; leave the word tokenizer out")
    if version == "slotformer":
        base.train_discrete_vae(config, data, NORMED_DVAE)
        return
    base.train_tokenizer(config, data, base.VQ_PIXELS)


def _read_pixels(config: ConfigDict, data: base.DataSet) -> int:
    """See pictures of 128 pixels through an encoder that is trained; return the width of slots."""
    config.data.update(boxes=False, background_box=data.data["background_box"])
    config.weights = ConfigDict()  # nothing is frozen, but a tokenizer of an earlier stage
    if data.small is not None:
        return 48
    with config.data.ignore_type():  # it may be a pair of numbers
        config.data.image_size = IMAGE_SIZE
    config.data.update(crop="none", flip=0.0)
    return 192


def original(config: ConfigDict, data: base.DataSet) -> None:
    """The program of the paper: 128 pixels, 15 slots, 1024 tokens of a vocabulary of 4096."""
    is_small = data.small is not None
    width = _read_pixels(config, data)
    config.companions = ConfigDict()  # the tokenizer is a part of the model
    if not is_small:
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
        "initializer": base.SHARED_GAUSSIAN,
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
        "target": TARGET,
    }
    for name, settings in parts.items():
        config.model[name] = ConfigDict(settings)
    config.model.slot_size = width
    base.explain_own_tokens(config, data)
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


def slotformer(config: ConfigDict, data: base.DataSet) -> None:
    """The program of SlotFormer on Physion: 128 pixels, a frozen tokenizer of pixels."""
    config.title = f"{TITLE} of SlotFormer"
    width = _read_pixels(config, data)
    if "features" in config.data:
        config.data.features = ""
    parts = {
        "encoder": {**savi_slotformer.ENCODER, "strides": (2, 1, 1, 1)},
        "projection": savi_slotformer.projection(width),
        "initializer": savi_slotformer.QUERIES,
        "aggregator": {"name": "slot_attention", **savi_slotformer.ATTENTION},
        "transition": savi_slotformer.predictor(width),
        "decoder": {
            "name": "causal_transformer",
            "num_layers": 4,
            "num_heads": 4,
            "embed": "table",
            "start_in_table": True,
            "spare_position": False,
            "token_size": width,
            "project_slots": True,
            "project_bias": True,
            "biases": "all_but_attention",
            "activation": "relu",
            "final_norm": True,
            "dropout_rate": 0.1,
            "start": "xavier",
            "outer_start": "torch",
        },
        "target": TARGET,
    }
    for name, settings in parts.items():
        config.model[name] = ConfigDict(settings)
    config.model.slot_size = width
    rises = {"schedule": "warmup_cosine", "warmup": 0.05, "end_ratio": 0.0}
    config.optimizer.learning_rate = ConfigDict({**rises, "peak": 1e-4})
    config.optimizer.rates = ConfigDict(
        {"decoder": {"of": ("decoder.*",), "learning_rate": {**rises, "peak": 3e-4}}}
    )
    config.optimizer.clip_norm = 0.05
    config.checkpoint.update(best_metric="loss", best_mode="min")
    base.use_length(config, data, num_steps=460_000, batch_size=48, num_frames=6)


WORDS = {
    "genera1z": ("version", base.explain_tokens_as_genera1z),
    "original": ("version", original),
    "slotformer": ("version", slotformer),
    "tokenizer": ("task", tokenizer),
}
