"""The data sets that can be prepared."""

from data.authors_lmdb import AuthorsLmdb
from data.clevr import Clevr
from data.clevr3d import Clevr3d
from data.clevrer import Clevrer
from data.clevrtex import Clevrtex
from data.coco import Coco
from data.davis import Davis
from data.family import Family, Options
from data.folder import Folder
from data.movi import Movi
from data.msn import MsnHard
from data.physion import Physion
from data.voc import Voc
from data.ytvis import YoutubeVis

FAMILIES: tuple[type[Family], ...] = (
    Movi,
    Coco,
    Voc,
    Clevr,
    Clevrtex,
    Clevr3d,
    MsnHard,
    YoutubeVis,
    Davis,
    Clevrer,
    Physion,
    Folder,
)


def family_of(name: str, options: Options) -> type[Family]:
    if options.get("from") == "lmdb":
        return AuthorsLmdb
    return next(family for family in FAMILIES if name in family.names)
