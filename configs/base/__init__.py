"""What every config is made of; config files say `from configs import base`, and then `base.NAME`.

    words.py      how a config is composed of a data set and words; what a file of `systems/` states
    keys.py       every key that all runs have, with its default
    data_sets.py  the facts of a data set, and what systems ask of them
    published.py  what a published recipe replaces: encoder, length, clips and scores
    parts.py      the parts that several systems share, and how parts are changed
    sizes.py      small models: of embedded data, and of the word `smoke`
    tokens.py     tokenizers, and systems whose decoders explain tokens or codes

Bottom up: keys and data_sets, published, parts, sizes, tokens, words. Each imports those below it
alone, and none imports a data set. Systems are found by `words.systems`.
"""

from configs.base.data_sets import (
    DINOV2_SMALL,
    DataSet,
    Questions,
    Settings,
    has_videos,
    has_views,
    only_views,
    prepared,
    prepared_views,
    refuse_boxes,
    refuse_pictures,
    refuse_without_views,
    single_frames,
    without_boxes,
)
from configs.base.keys import LEARNING_RATE, defaults
from configs.base.parts import (
    DINOSAUR_DECODER,
    GENERA1Z_DECODER,
    GENERA1Z_TRANSITION,
    LEARNED,
    PLAIN_BOXES,
    PROJECTION,
    SEPARATE_GAUSSIANS,
    SHARED_GAUSSIAN,
    carry_slots,
    carry_slots_as_genera1z,
    follow,
    predict_features,
    rate_of_slotformer,
    set_parts,
    train_on_slots,
)
from configs.base.published import (
    DINOV2_SMALL_NORMED,
    ORIGINAL_SLOTS,
    all_but_last_third,
    dino,
    dinov2,
    r384,
    refuse_variant,
    see_videos_as,
    see_videos_as_originals,
    see_windows_of_20,
    use_encoder,
    use_length,
)
from configs.base.sizes import SMOKE_PARTS, SMOKE_SLOT_SIZE
from configs.base.tokens import (
    CODE_SIZE,
    VQ_FEATURES,
    VQ_PIXELS,
    carry_tokens,
    explain_own_tokens,
    explain_tokens_as_genera1z,
    predict_tokens,
    read_tokens,
    train_discrete_vae,
    train_tokenizer,
)
from configs.base.words import DEFAULT_SYSTEM, compose, systems, words_of

__all__ = [
    "CODE_SIZE",
    "DEFAULT_SYSTEM",
    "DINOSAUR_DECODER",
    "DINOV2_SMALL",
    "DINOV2_SMALL_NORMED",
    "GENERA1Z_DECODER",
    "GENERA1Z_TRANSITION",
    "LEARNED",
    "LEARNING_RATE",
    "ORIGINAL_SLOTS",
    "PLAIN_BOXES",
    "PROJECTION",
    "SEPARATE_GAUSSIANS",
    "SHARED_GAUSSIAN",
    "SMOKE_PARTS",
    "SMOKE_SLOT_SIZE",
    "VQ_FEATURES",
    "VQ_PIXELS",
    "DataSet",
    "Questions",
    "Settings",
    "all_but_last_third",
    "carry_slots",
    "carry_slots_as_genera1z",
    "carry_tokens",
    "compose",
    "defaults",
    "dino",
    "dinov2",
    "explain_own_tokens",
    "explain_tokens_as_genera1z",
    "follow",
    "has_videos",
    "has_views",
    "only_views",
    "predict_features",
    "predict_tokens",
    "prepared",
    "prepared_views",
    "r384",
    "rate_of_slotformer",
    "read_tokens",
    "refuse_boxes",
    "refuse_pictures",
    "refuse_variant",
    "refuse_without_views",
    "see_videos_as",
    "see_videos_as_originals",
    "see_windows_of_20",
    "set_parts",
    "single_frames",
    "systems",
    "train_discrete_vae",
    "train_on_slots",
    "train_tokenizer",
    "use_encoder",
    "use_length",
    "without_boxes",
    "words_of",
]
