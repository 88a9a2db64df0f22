"""VQ-VFM-OCL: slots that explain tokens of a backbone's features (Zhao et al. 2025, arXiv
2502.20263).

A tokenizer comes first: a vocabulary of the frozen encoder's features, whose codes also explain
pixels. Slots then explain these tokens, with one of three decoders.

    python main.py --config=configs/coco.py:vvo,tokenizer    # stage one
    python main.py --config=configs/coco.py:vvo              # stage two, on its run

(no word)   as tfd; on videos as tfdt
tfd         a causal transformer predicts the tokens, as in SLATE; slot attention's masks
tfdt        the same on videos, as in STEVE
mlp         a mixture of MLPs predicts codes and features, as in DINOSAUR; the decoder's masks
dfz         a UNet predicts the noise in codes of width 4, as in SlotDiffusion; slot attention's
r384        pictures of 384 pixels instead of 256, so 576 tokens instead of 256
genera1z    the published recipe

The published tokenizer of dfz has LPIPS among its losses, with weight 1; see SlotDiffusion for how
to switch it on.

In the published program, tokens are drawn in training of stage two as well, as a side effect:
`--config.companions.tokenizer.draws=` gives the nearest ones.

Cost of genera1z: 50,000 steps of 32 images, on videos of 8 clips of 6 frames. Of an image, the
frozen ViT takes 11.0 GFLOP forward, the tokenizer's encoder 4.2, and the decoder 2.4 (tfd), 36.7
(mlp, 7 slots) or 5.2 (dfz). With tfd and dfz, masks need neither tokenizer nor decoder.
Published in % (ARI / FG-ARI / mBO / mIoU, mean of 3 seeds, match_paper):

        ClevrTex                    COCO                        VOC
tfd     55.4 / 85.9 / 54.4 / 53.6   21.1 / 31.5 / 29.6 / 28.2   22.7 / 26.6 / 39.8 / 38.9
mlp     66.0 / 88.7 / 57.0 / 56.6   19.2 / 35.9 / 28.7 / 27.4   21.7 / 35.4 / 41.0 / 40.1
dfz     72.2 / 81.9 / 57.6 / 56.8   18.3 / 28.7 / 27.2 / 25.8   19.1 / 24.2 / 36.9 / 35.9

tfdt on MOVi-D: 37.2 / 72.7 / 25.7 / 24.3. COCO with r384, where ARI carries the overflow of the
authors' program: tfd 44.1 / 37.5 / 29.6 / 28.0, mlp 44.6 / 42.6 / 29.8 / 28.6, dfz 43.4 / 34.2 /
28.3 / 26.9.
"""

from ml_collections import ConfigDict

from configs import base
from configs.systems import slotdiffusion
from smoothsa_jax.errors import UserError

TITLE = "VQ-VFM-OCL"
KIND = "system"


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.predict_tokens(config)
    config.model.projection = ConfigDict(
        {
            "name": "mlp",
            "hidden_ratio": 2.0,
            "to_slots": True,
            "norm": False,
            "activation": "none",
            "dropout_rate": 0.01,
        }
    )
    base.read_tokens(config, data, draws="training")
    if data.is_video:
        base.carry_tokens(config, data)
    else:
        base.refuse_boxes(data, TITLE)


def tfd(config: ConfigDict, data: base.DataSet) -> None:
    config.title = f"{TITLE}, transformer"
    if data.is_video:
        raise UserError(
            f"{config.title} is a system of pictures, but {data.name} has videos here; write tfdt "
            "in place of tfd"
        )


def tfdt(config: ConfigDict, data: base.DataSet) -> None:
    config.title = f"{TITLE}, transformer of videos"
    base.refuse_pictures(data, config.title)


def mlp(config: ConfigDict, data: base.DataSet) -> None:
    del data
    config.title = f"{TITLE}, MLP"
    config.model.projection = ConfigDict(base.PROJECTION)
    config.model.decoder = ConfigDict(base.GENERA1Z_DECODER)
    config.model.target = ConfigDict(
        {
            "name": "several",
            "codes": {"name": "codes", "width": 256},
            "features": {"name": "features"},
        }
    )
    config.losses = ConfigDict(
        {
            name: {"name": "reconstruction", "of": name, "weight": 1.0}
            for name in ("codes", "features")
        }
    )
    config.eval.masks = "decoder"


def dfz(config: ConfigDict, data: base.DataSet) -> None:
    del data
    config.title = f"{TITLE}, diffusion"
    slotdiffusion.predict_noise(config)


def tokenizer(config: ConfigDict, data: base.DataSet, source: str, variant: str | None) -> None:
    """The first stage: a vocabulary of features, of codes of width 4 for a UNet."""
    del source
    width = base.CODE_SIZE if variant == "dfz" else None
    base.train_tokenizer(config, data, base.VQ_FEATURES, width=width)


WORDS = {
    "tfd": ("system variant", tfd),
    "tfdt": ("system variant", tfdt),
    "mlp": ("system variant", mlp),
    "dfz": ("system variant", dfz),
    "r384": ("size", base.r384),
    "genera1z": ("version", base.explain_tokens_as_genera1z),
    "tokenizer": ("task", tokenizer),
}
