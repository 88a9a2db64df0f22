"""SPOT: patch-order permutations and self-training (Kakogeorgiou et al. 2024, arXiv 2312.00648).

python main.py --config=configs/coco.py:spot              # stage 1, the teacher
python main.py --config=configs/coco.py:spot,student      # stage 2, on runs/coco_spot

(no word)   the original's parts and losses, on this program's encoder and schedule length
student     the second stage: queries are learned, the last third of the encoder is tuned, and
            the student's slot attention learns from the masks of the frozen teacher
original    the published recipe: DINO (v1) features of 224 pixels, 64 images a step
genera1z    the re-implementation by SmoothSA's author, the image baseline of its tables
"""

from ml_collections import ConfigDict

from configs import base

TITLE = "SPOT"
KIND = "system"
# Epochs of 64 images, times the steps of an epoch: COCO 50 x 1,848, VOC 560 x 165, MOVi 65 x 1,371.
ORIGINAL_STEPS = {"coco": 92_400, "voc": 92_400, "movi_c": 89_115, "movi_e": 89_115}


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_boxes(data, TITLE)
    base.predict_features(
        config,
        projection={"name": "mlp", "activation": "relu", "start": "xavier"},
        initializer=base.SHARED_GAUSSIAN,
        aggregator={
            "name": "slot_attention",
            "gradient": "full",
            "first": 3,
            "later": 3,
            "epsilon": 1e-8,
            "epsilon_in": "weights",
            "activation": "relu",
            "start": "xavier",
        },
        decoder={
            "name": "permuted_ar",
            "num_layers": 4,
            "num_heads": 6,
            "orders": 9,
            "evaluate": "all",
            "biases": "all_but_attention",
            "activation": "relu",
            "final_norm": True,
            "first_norm": "stream",
            "bos_std": 0.02,
            "start": "xavier",
        },
    )
    config.optimizer.learning_rate = ConfigDict(
        {
            "schedule": "warmup_cosine",
            "peak": 4e-4,
            "warmup": 0.1,
            "end_ratio": 1e-3,
            "ends_at_peak": True,
        }
    )
    config.optimizer.clip_norm, config.optimizer.clip_by = 0.3, "largest"
    base.follow(config, data)


def original(config: ConfigDict, data: base.DataSet) -> None:
    base.use_encoder(config, data, base.dino("base", 16), image_size=224)
    num_steps = ORIGINAL_STEPS.get(data.name, 92_400)
    base.use_length(config, data, num_steps=num_steps, batch_size=64)
    config.optimizer.learning_rate.warmup = 10_000 / num_steps
    if data.is_movi:
        config.optimizer.learning_rate.update(peak=2e-4, end_ratio=0.2)


def genera1z(config: ConfigDict, data: base.DataSet) -> None:
    config.model.update(
        projection={"name": "mlp", "activation": "gelu", "start": "torch"},
        aggregator={
            "name": "slot_attention",
            "gradient": "full",
            "first": 3,
            "later": 3,
            "epsilon": 1e-5,
            "epsilon_in": "sum",
            "activation": "gelu",
            "start": "torch",
        },
    )
    config.model.decoder.update(
        num_heads=4,
        evaluate="first",
        activation="gelu",
        biases="none",
        final_norm=False,
        start="torch",
        bos_std=config.model.encoder.width**-0.5,
    )
    config.optimizer.learning_rate.update(
        peak=2e-4, warmup=0.05, end_ratio=1e-3, ends_at_peak=False
    )


def student(
    config: ConfigDict, data: base.DataSet, source: str, version: str | None = None
) -> None:
    config.title = f"{TITLE}, student"
    config.model.aggregator.gradient = "last_and_queries"
    config.eval.update(num_slots=None, prune=None)  # each slot has a query of its own
    config.companions.teacher = ConfigDict({"source": source})
    small = (data.small or {}).get("losses", {})
    weight = small.get("attention_match", 0.005)
    if data.encoder_source != "random":
        # The target stays the features of the encoder as it was.
        config.model.target_encoder = config.model.encoder.copy_and_resolve_references()
        config.weights.target_encoder = ConfigDict(
            {**config.weights.encoder.to_dict(), "into": "target_encoder"}
        )
        config.weights.encoder.frozen = base.all_but_last_third(config.model.encoder)
    if version == "genera1z":
        config.model.initializer = ConfigDict(base.SEPARATE_GAUSSIANS)
        # The student starts from its teacher.
        without = ["initializer.*", *(["target_encoder.*"] * ("target_encoder" in config.model))]
        config.weights.start = ConfigDict({"into": "", "source": source, "without": tuple(without)})
        config.losses.attention_match = ConfigDict({"weight": weight, "on": "attention"})
        return
    config.model.initializer = ConfigDict({"name": "learned", "start": "xavier", "noise": 0.0})
    # The teacher decodes in an order that is drawn anew in each step.
    config.companions.teacher.draws = "training"
    config.losses.attention_match = ConfigDict({"weight": weight, "on": "logits"})
    if version == "original" and data.is_movi:
        num_steps = 30 * 1_371
        base.use_length(config, data, num_steps=num_steps)
        config.optimizer.learning_rate.update(warmup=10_000 / num_steps, end_ratio=0.75)


WORDS = {
    "original": ("version", original),
    "genera1z": ("version", genera1z),
    "student": ("task", student),
}
