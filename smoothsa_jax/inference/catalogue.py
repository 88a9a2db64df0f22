"""The published checkpoints that `load` reads, as far as they are known here.

What is unknown is None: a page or a file name is never guessed.
"""

from typing import NamedTuple

from smoothsa_jax.inference import released


class Published(NamedTuple):
    """A published checkpoint.

    Attributes:
        name: its recipe: `load(file, config=name)`.
        about: the system, and whose program wrote the file.
        page: the web page that has the file; None: unknown.
        file: the name of the file there; None: unknown.
    """

    name: str
    about: str
    page: str | None
    file: str | None


_PROGRAM = "the program of SmoothSA's author"
_RANDSFQ = "RandSF.Q's program"


def _of_stills(system: str) -> str:
    """Recipes of a system that explains tokens of pictures, one of them with r384."""
    words = f"{system},genera1z"
    more = f"coco:{system},r384,genera1z"
    return f"clevrtex:{words} coco:{words} voc:{words} {more}"


# System and program, page, file, and the recipes of all files.
_FILES: tuple[tuple[str, str | None, str | None, str], ...] = (
    ("SmoothSA", released.PAGE, None, " ".join(released.NAMES)),
    ("SmoothSA, recognition", None, None, "coco:recognition ytvis:recognition"),
    (
        f"DIAS, {_PROGRAM}",
        None,
        None,
        "clevrtex:dias,genera1z coco:dias,genera1z voc:dias,genera1z",
    ),
    (
        "SPOT, teacher, its own program",
        None,
        None,
        "coco:spot,original voc:spot,original movi_c:image,spot,original "
        "movi_e:image,spot,original",
    ),
    (
        "SPOT, student, its own program",
        None,
        None,
        "coco:spot,original,student voc:spot,original,student "
        "movi_c:image,spot,original,student movi_e:image,spot,original,student",
    ),
    (
        f"SPOT, {_PROGRAM}",
        None,
        None,
        "clevrtex:spot,genera1z coco:spot,genera1z voc:spot,genera1z coco:spot,genera1z,student",
    ),
    (
        f"DINOSAUR, {_PROGRAM}",
        None,
        None,
        "clevrtex:dinosaur,genera1z coco:dinosaur,genera1z voc:dinosaur,genera1z "
        "coco:dinosaur,r384,genera1z",
    ),
    ("DINOSAUR, VideoSAUR's program", None, None, "coco:dinosaur,dinov2,original"),
    (
        "MetaSlot, its own program",
        None,
        None,
        "clevrtex:metaslot,genera1z coco:metaslot,genera1z voc:metaslot,genera1z "
        "coco:metaslot,b16,genera1z coco:metaslot,ar,genera1z "
        "clevrtex:metaslot,tokens,genera1z coco:metaslot,tokens,genera1z "
        "voc:metaslot,tokens,genera1z clevrtex:metaslot,noise,genera1z "
        "coco:metaslot,noise,genera1z voc:metaslot,noise,genera1z",
    ),
    (
        "VideoSAUR, its own program",
        None,
        None,
        "movi_c:gaussian,videosaur,original movi_e:gaussian,videosaur,original "
        "ytvis_2021:videosaur,original ytvis_2021:videosaur,dinov2,original",
    ),
    (
        f"VideoSAUR, {_RANDSFQ}",
        None,
        None,
        "movi_c:videosaur,genera1z movi_d:videosaur,genera1z ytvis_hq:videosaur,genera1z",
    ),
    (
        "SlotContrast, its own program",
        None,
        None,
        "movi_c:gaussian,slotcontrast,original movi_e:gaussian,slotcontrast,original "
        "ytvis_2021:slotcontrast,original",
    ),
    (
        f"SlotContrast, {_RANDSFQ}",
        None,
        None,
        "movi_c:slotcontrast,genera1z movi_d:slotcontrast,genera1z "
        "ytvis_hq:slotcontrast,genera1z ytvis_hq:slotcontrast,genera1z,recognition",
    ),
    (
        "RandSF.Q, its own program",
        None,
        None,
        "movi_c:randsfq movi_d:randsfq ytvis_hq:randsfq,original movi_c:randsfq,tsim "
        "movi_d:randsfq,tsim ytvis_hq:randsfq,tsim,original "
        "ytvis_hq:randsfq,tsim,original,recognition",
    ),
    (
        "SAVi, the program of SlotFormer",
        None,
        None,
        "movi_c:gaussian,savi_slotformer movi_c:gaussian,savi_slotformer,stochastic",
    ),
    (f"SLATE, {_PROGRAM}", None, None, _of_stills("slate")),
    (f"STEVE, {_PROGRAM}", None, None, "movi_d:steve,genera1z"),
    ("STEVE, its own program", None, None, "movi_d:steve,original"),
    (f"SlotDiffusion, {_PROGRAM}", None, None, _of_stills("slotdiffusion")),
    ("VQ-VFM-OCL, transformer, its own program", None, None, _of_stills("vvo,tfd")),
    (
        "VQ-VFM-OCL, transformer of videos, its own program",
        None,
        None,
        "movi_d:vvo,tfdt,genera1z",
    ),
    ("VQ-VFM-OCL, MLP, its own program", None, None, _of_stills("vvo,mlp")),
    ("VQ-VFM-OCL, diffusion, its own program", None, None, _of_stills("vvo,dfz")),
)
CATALOGUE = tuple(
    Published(name, about, page, file)
    for about, page, file, names in _FILES
    for name in names.split()
)
