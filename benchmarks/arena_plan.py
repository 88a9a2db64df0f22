"""The runs that the page of the arena asks for, in the order of their value.

    python benchmarks/arena.py --plan              train what has no row with a curve yet
    python benchmarks/arena.py --plan --seeds=0    of each part, these of its seeds

A run has as many steps as take about four minutes on a core of the machine that the rows are from.
"""

import dataclasses

from benchmarks import arena_rows
from benchmarks.arena_rows import FULL

SEEDS = (0, 1, 2)
ONE_SEED = (0,)
PLAIN = tuple((f"config.{name}", str(value)) for name, value in arena_rows.PLAIN.items())
SLOWER = (("config.optimizer.learning_rate.peak", "2e-3"),)
FOREGROUND = (("config.eval.foreground", "True"),)


@dataclasses.dataclass(frozen=True)
class Part:
    """Runs that belong together.

    Attributes:
        systems, data, ablations, overrides: as for `arena.plan`.
        steps: of the training; None: as the config says.
        seeds: of the training.
    """

    systems: tuple[str, ...]
    data: tuple[str, ...]
    steps: int | None
    seeds: tuple[int, ...] = SEEDS
    ablations: tuple[str, ...] = (FULL,)
    overrides: tuple[tuple[str, str], ...] = ()

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """The overrides, with the number of steps."""
        steps = () if self.steps is None else (("config.train.num_steps", str(self.steps)),)
        return (*steps, *self.overrides)


IMAGE, GAUSSIAN, BOXES = ("sprites:image",), ("sprites:gaussian",), ("sprites",)
HARD, HARD_VIDEO = ("sprites:hard_image",), ("sprites:hard_gaussian",)
HARD_BOXES = ("sprites:hard",)
VIDEO_SYSTEMS = ("smoothsa", "slotcontrast", "videosaur", "randsfq")
SMOOTH = ("slotcontrast,smooth", "videosaur,smooth", "randsfq,smooth")
OF_TOKENS = ("vvo", "vvo,mlp", "vvo,dfz", "slotdiffusion", "slate")
INVERTED = ("inverted,tf", "inverted", "inverted,tf_inv_gru", "inverted,sa_no_gru", "inverted,sa")
LEARNED = ("inverted,tf,learned", "inverted,learned", "inverted,sa,learned")
SMALL_SCENES = (("config.data.image_size", "32"), ("config.model.decoder.cells", "8"))

PLAN = (
    # Pictures.
    Part(("smoothsa", "spot", "boqsa"), IMAGE, None),
    Part(("dinosaur",), IMAGE, 5500),
    Part(("dias",), IMAGE, 4500),
    Part(("metaslot",), IMAGE, 3000),
    # Scenes.
    Part(VIDEO_SYSTEMS, ("scenes",), 3500, ONE_SEED),
    Part(("smoothsa", "spot", "dinosaur"), ("scenes:image",), 7000, ONE_SEED),
    # Harder data.
    Part(VIDEO_SYSTEMS, HARD_BOXES, 3500),
    Part(("smoothsa", "spot", "boqsa"), HARD, None),
    Part(("dinosaur", "dias"), HARD, 4500),
    # The paper's claims about the warmer and about three iterations, then one.
    Part(("smoothsa",), IMAGE, None, SEEDS, ("no warmer",)),
    Part(("smoothsa",), BOXES, 3500, SEEDS, ("no warmer", "3/3", "1/1")),
    Part(("smoothsa",), BOXES, 3500, SEEDS, ("3/3", FULL), SLOWER),
    # Videos.
    Part(VIDEO_SYSTEMS, GAUSSIAN, 3500),
    Part(("smoothsa",), HARD_VIDEO, 3500),
    Part(("smoothsa",), GAUSSIAN, 3500, SEEDS, ("no warmer", "3/3", "1/1")),
    # The other systems on harder videos without boxes.
    Part(VIDEO_SYSTEMS[1:], HARD_VIDEO, 3500),
    Part(("smoothsa",), GAUSSIAN, 3500, SEEDS, ("3/3", FULL), SLOWER),
    # Slots that start from boxes.
    Part(VIDEO_SYSTEMS, BOXES, 3500),
    # The figures of the inverted-attention paper: 3, 7, 9 and 6.
    Part(INVERTED, IMAGE, 3000, SEEDS, (FULL,), (*PLAIN, *FOREGROUND)),
    Part(LEARNED, IMAGE, 3000, SEEDS, (FULL,), FOREGROUND),
    Part(("inverted,sa_id",), IMAGE, 3000, SEEDS, (FULL,), (*PLAIN, *FOREGROUND, *SLOWER)),
    Part(
        ("inverted", "inverted,sa"),
        IMAGE,
        3000,
        ONE_SEED,
        ("4 iterations", "6 iterations", "8 iterations"),
        (*PLAIN, *FOREGROUND),
    ),
    # The founding systems, trained on pixels.
    Part(("slot_attention",), IMAGE, 900),
    Part(("savi_slotformer",), GAUSSIAN, 500),
    # The paper's claim that the warmer can be attached.
    Part(SMOOTH, GAUSSIAN, 3500),
    Part(SMOOTH, BOXES, 3500, ONE_SEED),
    # Systems with a tokenizer, which comes first.
    Part(tuple(f"{name},tokenizer" for name in OF_TOKENS), IMAGE, None),
    Part(OF_TOKENS, IMAGE, None),
    Part(("steve,tokenizer", "vvo,tokenizer"), GAUSSIAN, None, ONE_SEED),
    Part(("steve", "vvo"), GAUSSIAN, None, ONE_SEED),
    Part(("spot,student",), IMAGE, 2500),
    # The inverted-attention paper's figure 4, on videos, and table 1, on views.
    Part(
        ("savi,sa", "savi,tf_inv", "savi,tf_inv_gru"),
        ("scenes",),
        1200,
        SEEDS,
        (FULL,),
        (*SMALL_SCENES, *FOREGROUND),
    ),
    Part(
        ("osrt", "osrt,sa", "osrt,sa_id", "osrt,tf_inv"),
        ("scenes:views",),
        1200,
        ONE_SEED,
    ),
)
