"""SlotDiffusion: slots that explain noisy codes (Wu et al. 2023, arXiv 2305.11281).

A tokenizer comes first: a VQ-VAE of pixels with codes of width 4. A UNet that sees the slots then
predicts the noise in its codes. The UNet has no masks; those of slot attention are scored.

    python main.py --config=configs/coco.py:slotdiffusion,tokenizer    # stage one
    python main.py --config=configs/coco.py:slotdiffusion              # stage two, on its run

(no word)   the re-implementation's parts and losses, on this program's encoder and schedule length
r384        pictures of 384 pixels instead of 256, so 24x24 codes instead of 16x16
genera1z    the re-implementation by SmoothSA's author (VQ-VFM-OCL, arXiv 2502.20263), the image
            baseline of its tables

Cost of genera1z: 50,000 steps of 32 images. Of an image, the frozen ViT takes 11.0 GFLOP forward,
the UNet of 135 million parameters 5.2, the tokenizer's encoder 8.2. Masks need no UNet. A training
step of COCO is 1.12 TFLOP. Compiled for a CPU, it takes 3.5 GB in float32, 1.6 of them weights and
Adam's state.
Published in % (ARI / FG-ARI / mBO / mIoU, mean of 3 seeds, match_paper): ClevrTex 66.1 / 82.7 /
54.3 / 53.4, COCO 17.7 / 29.0 / 27.0 / 25.6, VOC 17.0 / 21.7 / 35.2 / 34.0; COCO with r384 41.6 /
34.5 / 27.7 / 26.2, whose ARI carries the overflow of the authors' program.

The published tokenizer of width 4 has LPIPS among its losses, with weight 1. It is off here, since
its weights have to be fetched: torchvision's alexnet-owt-7be5be79.pth, and alex.pth of the package
lpips (its folder weights/v0.1), both into one folder. To switch it on, add to stage one:

    --config.losses.perceptual.weight=1.0 --config.companions.perceptual.source=FOLDER
"""

from ml_collections import ConfigDict

from configs import base

TITLE = "SlotDiffusion"
KIND = "system"
# Of 135 million parameters.
UNET = {
    "name": "denoising_unet",
    "widths": (128, 256, 384, 512),
    "num_blocks": 2,
    "groups": 32,
    "num_heads": 8,
    "dropout_rate": 0.1,
    "zero_start": False,
}


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_boxes(data, TITLE)
    base.predict_tokens(config)
    predict_noise(config)
    base.read_tokens(config, data)
    base.follow(config, data)


def predict_noise(config: ConfigDict) -> None:
    """Decoder, target and loss."""
    config.model.decoder = ConfigDict(UNET)
    config.model.target = ConfigDict({"name": "noise", "width": base.CODE_SIZE})
    config.losses = ConfigDict({"noise": {"weight": 1.0}})


def tokenizer(config: ConfigDict, data: base.DataSet, source: str) -> None:
    """The first stage: a VQ-VAE of pixels, with TAESD's layers and codes of width 4."""
    del source
    base.train_tokenizer(config, data, base.VQ_PIXELS, width=base.CODE_SIZE)


WORDS = {
    "r384": ("size", base.r384),
    "genera1z": ("version", base.explain_tokens_as_genera1z),
    "tokenizer": ("task", tokenizer),
}
