"""SAVi++: SAVi with a larger encoder, random crops, and depth as a second target.

Elsayed et al. 2022, arXiv 2206.07764. The tokens of a ResNet-34 see each other in a transformer,
and the decoder's channels are summed over slots before they become a prediction.

    (no word)   slot attention that is twice as wide as the slots
    sa, tf_inv, tf_inv_gru
                as the inverted-attention paper has it, with one iteration of slot attention, or
                one layer of TF-Inv or TF-Inv-GRU, per frame
"""

from ml_collections import ConfigDict

from configs import base
from configs.systems import savi

TITLE = "SAVi++"
KIND = "system"
STEPS = 500_000
fits = savi.fits


def apply(config: ConfigDict, data: base.DataSet) -> None:
    savi.refuse_without_flow(data, TITLE)
    savi.apply(config, data)
    config.model.encoder = ConfigDict(savi.RESNET_34)
    config.model.projection = ConfigDict(
        {
            "name": "token_transformer",
            "hidden_size": 64,
            "size": 64,
            "num_layers": 4,
            "num_heads": 4,
            "mlp_size": 1024,
            "norm_epsilon": 1e-6,
            "start": "lecun",
        }
    )
    config.model.aggregator.qkv_size = 256
    config.model.transition.update(qkv_size=256, mlp_size=1024)
    config.model.decoder = ConfigDict(savi.decoder(4, "early"))
    config.model.target = ConfigDict(
        {"name": "several", "flow": {"name": "flow"}, "depth": {"name": "depth"}}
    )
    config.losses = ConfigDict(
        {
            of: {"name": "reconstruction", "weight": 1.0, "reduction": "sum", "of": of}
            for of in ("flow", "depth")
        }
    )
    savi.see_videos(config, data, image_size=128, crop="covering")
    base.use_length(config, data, num_steps=STEPS, batch_size=savi.BATCH, num_frames=savi.FRAMES)
    config.optimizer.learning_rate.warmup = 2_500 / STEPS


WORDS = savi.CORRECTORS
