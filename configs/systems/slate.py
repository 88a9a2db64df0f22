"""SLATE: slots that explain discrete tokens (Singh et al. 2022, arXiv 2110.11405).

A tokenizer comes first: a VQ-VAE of pixels. A causal transformer that sees the slots then predicts
its tokens. The transformer has no masks; those of slot attention are scored.

    python main.py --config=configs/coco.py:slate,tokenizer    # stage one
    python main.py --config=configs/coco.py:slate              # stage two, on its run

(no word)   the re-implementation's parts and losses, on this program's encoder and schedule length
r384        pictures of 384 pixels instead of 256, so 576 tokens instead of 256
genera1z    the re-implementation by SmoothSA's author (VQ-VFM-OCL, arXiv 2502.20263), the image
            baseline of its tables

The tokenizer of the original is trained along; this program does not have it.

Cost of genera1z: 50,000 steps of 32 images. Of an image, the frozen ViT takes 11.0 GFLOP forward,
the tokenizer's encoder 8.2, the transformer 2.4. Masks need neither tokenizer nor transformer.
Published in % (ARI / FG-ARI / mBO / mIoU, mean of 3 seeds, match_paper): ClevrTex 17.4 / 87.4 /
44.5 / 43.3, COCO 17.5 / 28.8 / 26.8 / 25.4, VOC 18.6 / 26.2 / 37.2 / 36.1; COCO with r384 41.4 /
34.0 / 27.4 / 25.9, whose ARI carries the overflow of the authors' program.
"""

from ml_collections import ConfigDict

from configs import base

TITLE = "SLATE"
KIND = "system"


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_boxes(data, TITLE)
    base.predict_tokens(config)
    base.read_tokens(config, data)
    base.follow(config, data)


def tokenizer(config: ConfigDict, data: base.DataSet, source: str) -> None:
    """The first stage: a VQ-VAE of pixels, with TAESD's layers."""
    del source
    base.train_tokenizer(config, data, base.VQ_PIXELS)


WORDS = {
    "r384": ("size", base.r384),
    "genera1z": ("version", base.explain_tokens_as_genera1z),
    "tokenizer": ("task", tokenizer),
}
