"""SlotDiffusion: slots that explain noisy codes (Wu et al. 2023, arXiv 2305.11281).

A tokenizer comes first: a VQ-VAE of pixels with codes of width 4. A UNet that sees the slots then
predicts the noise in its codes. The UNet has no masks; those of slot attention are scored.

    python main.py --config=configs/coco.py:slotdiffusion,tokenizer    # stage one
    python main.py --config=configs/coco.py:slotdiffusion              # stage two, on its run

(no word)   the re-implementation's parts and losses, on this program's encoder and schedule length
genera1z    the re-implementation by SmoothSA's author (VQ-VFM-OCL, arXiv 2502.20263), the image
            baseline of its tables

Cost of genera1z: 50,000 steps of 32 images. Of an image, the frozen ViT takes 11.0 GFLOP forward,
the UNet of 135 million parameters 5.2, the tokenizer's encoder 8.2. Masks need no UNet.
Published in % (ARI / FG-ARI / mBO / mIoU, mean of 3 seeds, match_paper): ClevrTex 66.1 / 82.7 /
54.3 / 53.4, COCO 17.7 / 29.0 / 27.0 / 25.6, VOC 17.0 / 21.7 / 35.2 / 34.0.
"""

from ml_collections import ConfigDict

from configs import base

TITLE = "SlotDiffusion"
KIND = "system"
CODE_SIZE = 4


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_boxes(data, TITLE)
    base.predict_features(
        config,
        projection={"name": "mlp", "hidden_ratio": 2.0, "to_slots": True},
        initializer=base.SEPARATE_GAUSSIANS,
        aggregator={
            "name": "slot_attention",
            "gradient": "last_and_queries",
            "first": 3,
            "later": 3,
            "dropout_rate": 0.01,
        },
        decoder=base.DENOISING_UNET,
    )
    config.model.target = ConfigDict({"name": "noise", "width": CODE_SIZE})
    config.losses = ConfigDict({"noise": {"weight": 1.0}})
    config.eval.masks = "aggregator"
    base.read_tokens(config)
    config.optimizer.learning_rate.peak, config.optimizer.clip_norm = 2e-4, 1.0
    base.follow(config, data)


def genera1z(config: ConfigDict, data: base.DataSet) -> None:
    base.use_encoder(config, data, base.DINOV2_SMALL_NORMED)
    base.use_length(config, data, num_steps=50_000)


def tokenizer(config: ConfigDict, data: base.DataSet, source: str) -> None:
    del source
    base.train_tokenizer(config, data, base.VQ_PIXELS, width=CODE_SIZE)
    config.model.tokenizer.width = CODE_SIZE  # of embedded data too


WORDS = {"genera1z": ("version", genera1z), "tokenizer": ("task", tokenizer)}
