"""`--from lmdb`: data sets converted by the authors' programs, one LMDB file per split.

The key `__keys__` holds the pickled list of sample keys, `000000`, `000001`, .... Each of these
keys holds the pickled dict of a sample, uncompressed. An *encoded* picture is bytes, or a uint8
array of them as returned by OpenCV's `imencode`.

    coco      image    the downloaded JPEG
              segment  encoded WebP or (2026) PNG, gray: 0 = not annotated, k = panoptic segment k
              clazz    (S,) uint8, COCO's id of each segment's category;  isthing  (S,) bool
    voc       image;  segment  as above: 0 = boundary, 1 = background, 2.. = objects, in color order
    clevrtex  image;  segment  as above: 0 = background, 1.. = objects;  depth
    movi_*    video    io.BytesIO of an AVI, H.264 RGB lossless;
                       or (2026) T encoded PNGs with red and blue swapped
              segment  io.BytesIO of an AVI, FFV1 gray; or (2026) T encoded PNGs: MOVi's own labels
              bbox     (T,K,4) float32: left, top, right, bottom in 0..1;  flow;  depth;
                       s (2026): K
    ytvis_*   video    T downloaded JPEGs;  segment  T encoded WebP or (2026) PNG: k = annotation k
              clazz    (T,K) uint8, the category's id, from 1;  s (2026): K

The format was confirmed in Genera1Z's public code, below object_centric_bench/: SmoothSA
datum/dataset_movi.py (139029d), datum/dataset_ytvis.py (1b05922), util_datum.py (5a8c476);
VQ-VFM-OCL datum/dataset_coco.py, dataset_movi.py (54a0350); DIAS datum/dataset_clevrtex.py
(7083c2a); xSSC datum/dataset_ytvis.py, util.py (0a8f727). The 2026 formats of coco and voc come
from a copy of VQ-VFM-OCL, Yashvir835/VQ-VFM-OCL (16679ae); that of MOVi comes from a text of
unknown repository. No converted file was available for testing.

`data/plain_pickle.py` reads the records without running anything that they name. The LMDB library
trusts a file's pages; the only check possible beforehand is that the file is not truncated.

Flow and depth are not converted. Records of earlier converters, which count pixels in no segment as
background, are refused (DIAS 7083c2a: coco without `isthing`, voc with 0 = background). These files
lack the names of samples and categories, COCO's crowd flags (each crowd is an object here), and
MOVi's categories and visibility. In a VOC image without any background, the first object would be
read as background.
"""

import contextlib
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import clips, plain_pickle, stills
from data.clips import clip_example
from data.family import SPLITS, BadSample, Job, Plan, refuse_twice, shards_of
from data.features import NO_SEGMENT, categories, clip_features, still_features, table
from data.pictures import labels_or_colours, png, without_alpha
from data.stills import Stills, check_number
from smoothsa_jax.errors import UserError

FILES = {
    "train": ("train.lmdb",),
    "validation": ("val.lmdb", "validation.lmdb"),
    "test": ("test.lmdb",),
}
KEYS = b"__keys__"
# Keys that identify a kind of record: those that it must have, and those that it must not have.
KINDS = {
    "coco": ({"image", "segment", "clazz", "isthing"}, {"video"}),
    "voc": ({"image", "segment"}, {"video", "clazz", "depth"}),
    "clevrtex": ({"image", "segment", "depth"}, {"video", "clazz"}),
    "movi": ({"video", "segment", "bbox"}, {"image", "clazz"}),
    "ytvis": ({"video", "segment", "clazz"}, {"image", "bbox"}),
}
# COCO's ids of things; category k of a prepared folder is the k-th of them, as in `data/coco.py`.
NO_THINGS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
THINGS = [number for number in range(1, 91) if number not in NO_THINGS]
NUM_YTVIS = 40
# In a VOC image, boundaries cover about 5 % and non-objects about 75 % of the pixels.
MAX_BOUNDARY, LOOKED_AT = 0.4, 32


class AuthorsLmdb(Stills):
    names = (
        *("coco", "voc", "clevrtex"),
        *("movi_a", "movi_b", "movi_c", "movi_d", "movi_e"),
        *("ytvis_2022", "ytvis_hq"),
    )
    summary = (
        "with --from lmdb: a folder with train.lmdb, val.lmdb, test.lmdb, as written by the "
        "authors' programs"
    )

    @property
    def kind(self) -> str:
        return self.name.split("_")[0]

    def plan(self, splits: tuple[str, ...]) -> Plan:
        self.check_options()
        jobs: list[Job] = []
        sources: list[Path] = []
        for split in SPLITS:
            path = next((p for p in self._paths(split) if p.exists()), None)
            if split not in splits or path is None:
                continue
            with Records(path) as records:
                keys = records.keys()
                named = (key.decode(errors="replace") for key in keys)
                refuse_twice(named, str(path), "record keys", "get the authors' file again")
                self._check_kind(path, records, keys)
                first = records.digest(keys[0])
            per_shard = clips.PER_SHARD if self._has_clips() else stills.PER_SHARD
            found = shards_of(split, keys[: self.options.limit], per_shard)
            # Keys are numbers in every file; size and first record tell files apart.
            which = (path, path.stat().st_size, first)
            jobs += [Job(job.split, (*which, job.payload), job.num_items) for job in found]
            sources.append(path)
        if not jobs:
            looked_for = ", ".join(str(p) for split in splits for p in self._paths(split))
            raise UserError(
                f"--source={self.source} has no LMDB file of {self.name}; looked for {looked_for}"
            )
        metadata = {
            "kind": "clips" if self._has_clips() else "stills",
            "no_segment": NO_SEGMENT,
            "converted_by": "the authors' programs, to LMDB",
        }
        features, names = still_features(), None
        if self.kind == "coco":
            names = list(map(str, THINGS))
            features = still_features(categories=categories(names))
        elif self.kind == "ytvis":
            names = list(map(str, range(1, NUM_YTVIS + 1)))
            features = clip_features(categories=categories(names))
        elif self.kind == "movi":
            features = clip_features(bboxes=table(np.float32, 4))
        if names is not None:
            metadata |= {"categories": names, "category_names": "ids of the original annotation"}
        return Plan(tuple(jobs), tuple(sources), features, metadata)

    def _has_clips(self) -> bool:
        return self.kind in ("movi", "ytvis")

    def _paths(self, split: str) -> list[Path]:
        folder = self.folder
        return [place / file for place in (folder, folder / self.name) for file in FILES[split]]

    def _check_kind(self, path: Path, records: "Records", keys: Sequence[bytes]) -> None:
        """Raise UserError if the file belongs to another data set or an earlier converter."""
        sample = records.sample(keys[0])
        if not _is_of(sample, self.kind):
            known = [kind for kind in KINDS if _is_of(sample, kind)]
            found = f"{known[0]}'s" if known else "of no known data set"
            raise UserError(
                f"{path} is not of {self.name}: its records hold {', '.join(sorted(sample))}, "
                f"which is {found}; expected {', '.join(sorted(KINDS[self.kind][0]))}: give "
                "another --source, or get the authors' file of version 3 or later"
            )
        if self.kind == "voc":
            some = [records.sample(key) for key in keys[:LOOKED_AT]]
            where = f"{path}, one of the first records"
            share = np.mean([(self._labels(s["segment"], where) == 0).mean() for s in some])
            if share > MAX_BOUNDARY:
                raise UserError(
                    f"{path} has label 0 on {share:.0%} of its pixels, expected about 5 %, the "
                    "boundaries: an earlier converter made it, which counted them as background; "
                    "get the authors' file of version 3 or later"
                )

    def items(self, job: Job) -> Iterator[tuple[str, dict[str, Any] | BadSample]]:
        path, _, _, keys = job.payload
        with Records(path) as records:
            for key in keys:
                try:
                    yield f"{path}, record {key.decode()}", records.sample(key)
                except BadSample as error:
                    yield f"{path}, record {key.decode()}", error

    def example(self, item: tuple[str, dict[str, Any] | BadSample]) -> dict[str, Any]:
        where, sample = item
        if isinstance(sample, BadSample):
            raise sample
        if not _is_of(sample, self.kind):
            raise BadSample(f"{where} holds {', '.join(sorted(sample))}: it is not of {self.name}")
        try:
            return getattr(self, f"_{self.kind}")(where, where.rsplit(" ", 1)[1], sample)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise BadSample(
                f"{where} does not match the authors' converter ({type(error).__name__}: {error}); "
                "download the file again"
            ) from error

    # --------------------------------------------------------------------------------------- stills

    def _coco(self, where: str, name: str, sample: dict[str, Any]) -> dict[str, Any]:
        segments = self._labels(sample["segment"], where)
        is_thing, ids = sample["isthing"].astype(bool), sample["clazz"]
        if segments.max(initial=0) > len(is_thing) or len(is_thing) != len(ids):
            raise BadSample(f"{where} has segment {segments.max()}, but only {len(ids)} categories")
        check_number(int(is_thing.sum()), where)
        values = np.concatenate([[NO_SEGMENT], np.where(is_thing, np.cumsum(is_thing), 0)])
        objects = [THINGS.index(number) for number in ids[is_thing].tolist()]
        labels = values.astype(np.uint8)[segments]
        return self.still(_bytes(sample["image"]), labels, where, name, categories=objects)

    def _voc(self, where: str, name: str, sample: dict[str, Any]) -> dict[str, Any]:
        # 0, the boundary, becomes 255; the background 0.
        labels = self._labels(sample["segment"], where) - np.uint8(1)
        return self.still(_bytes(sample["image"]), labels, where, name)

    def _clevrtex(self, where: str, name: str, sample: dict[str, Any]) -> dict[str, Any]:
        labels = self._labels(sample["segment"], where)
        check_number(int(labels.max(initial=0)), where)
        image = without_alpha(_bytes(sample["image"]), where, self.options)
        return self.still(image, labels, where, name)

    # ---------------------------------------------------------------------------------------- clips

    def _movi(self, where: str, name: str, sample: dict[str, Any]) -> dict[str, Any]:
        boxes = np.asarray(sample["bbox"], np.float32)
        if isinstance(sample["video"], bytes):
            frames = _avi_frames(sample["video"], 3, where)
            maps = _avi_frames(sample["segment"], 1, where)
        else:
            # The converter passed RGB to OpenCV, which expects BGR; swap the channels back.
            frames = [self._pixels(data, where)[..., ::-1] for data in sample["video"]]
            maps = [self._labels(data, where) for data in sample["segment"]]
        largest = max((int(labels.max(initial=0)) for labels in maps), default=0)
        if not len(frames) == len(maps) == len(boxes) or largest > boxes.shape[1]:
            raise BadSample(
                f"{where} has {len(frames)} frames, {len(maps)} label maps with labels up to "
                f"{largest}, and boxes of {boxes.shape[1]} objects in {len(boxes)} frames; "
                "expected them to agree: download the file again"
            )
        example = clip_example(
            name,
            ((f"{where}, frame {t}", png(np.ascontiguousarray(x))) for t, x in enumerate(frames)),
            maps,
            self.options,
        )
        # (frames, objects) of left, top, right, bottom -> (objects, frames) of top, left, bottom,
        # right.
        return {**example, "bboxes": np.ascontiguousarray(boxes.swapaxes(0, 1)[..., [1, 0, 3, 2]])}

    def _ytvis(self, where: str, name: str, sample: dict[str, Any]) -> dict[str, Any]:
        frames, maps, ids = sample["video"], sample["segment"], sample["clazz"]
        if not len(frames) == len(maps) == len(ids):
            raise BadSample(
                f"{where} has {len(frames)} frames, {len(maps)} label maps and categories for "
                f"{len(ids)}; expected equal numbers: download the file again"
            )
        check_number(ids.shape[1], where)
        objects = ids[0].astype(int) - 1
        if objects.size and not 0 <= objects.min() <= objects.max() < NUM_YTVIS:
            raise BadSample(
                f"{where} has category {ids[0].max()}, expected 1 to {NUM_YTVIS}: it is not from "
                "YouTube-VIS"
            )
        maps = [self._labels(data, where) for data in maps]
        largest = max((int(labels.max(initial=0)) for labels in maps), default=0)
        if largest > len(objects):
            raise BadSample(
                f"{where} has label {largest}, but only {len(objects)} categories; download the "
                "file again"
            )
        example = clip_example(
            name,
            ((f"{where}, frame {t}", _bytes(data)) for t, data in enumerate(frames)),
            maps,
            self.options,
        )
        return {**example, "categories": objects.tolist()}

    def _pixels(self, data: Any, where: str) -> np.ndarray:
        pixels = labels_or_colours(_bytes(data), where, self.options)
        if pixels.ndim != 3 or pixels.dtype != np.uint8:
            raise BadSample(f"{where} has a frame that is not 8-bit color; download it again")
        return pixels

    def _labels(self, data: Any, where: str) -> np.ndarray:
        """Decode a gray picture to (H,W) uint8; WebP stores it as three equal channels."""
        values = labels_or_colours(_bytes(data), where, self.options)
        if values.ndim == 3:
            if (values != values[..., :1]).any():
                raise BadSample(f"{where} has color labels, expected gray; download it again")
            values = values[..., 0]
        if values.dtype != np.uint8:
            raise BadSample(
                f"{where} has labels of {values.dtype}, expected uint8; download it again"
            )
        return values


def _is_of(sample: Any, kind: str) -> bool:
    there, absent = KINDS[kind]
    return isinstance(sample, dict) and there <= sample.keys() and not absent & sample.keys()


def _bytes(data: bytes | np.ndarray) -> bytes:
    return data.tobytes() if isinstance(data, np.ndarray) else data


class Records:
    """The records of an LMDB file, for use in a `with` statement.

    Raises:
        UserError: the lmdb module is missing, or the file is not LMDB or is truncated.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            import lmdb
        except ModuleNotFoundError as error:
            raise _lacks("lmdb") from error
        self._error = lmdb.Error
        try:
            # No lock: nothing writes to these files, and their folder may be read-only.
            self._environment = lmdb.open(
                str(path), subdir=False, readonly=True, lock=False, readahead=False
            )
        except lmdb.Error as error:
            raise UserError(
                f"{path} is not an LMDB file ({error}); expected one made by the authors' "
                "programs: download it again"
            ) from error
        # Reading a missing page would kill the process.
        needed = (self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"]
        if (found := path.stat().st_size) < needed:
            self._environment.close()
            raise UserError(
                f"{path} is truncated: it has {found} bytes, its records need {needed}; download "
                "it again"
            )

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *_: Any) -> None:
        self._environment.close()

    def keys(self) -> list[bytes]:
        """The keys of all samples, in order."""
        keys = self._value(KEYS)
        if not (isinstance(keys, list) and keys and all(isinstance(key, bytes) for key in keys)):
            raise UserError(
                f"{self._path} has no list of keys under {KEYS.decode()}: the authors' programs "
                "did not make it; give another --source"
            )
        return keys

    def sample(self, key: bytes) -> dict[str, Any]:
        """One sample as stored.

        Raises:
            BadSample: the record is missing or damaged.
            UserError: the record is more than plain values, and may be harmful.
        """
        return self._value(key)

    def digest(self, key: bytes) -> str:
        """A hash of the record stored under a key."""
        return hashlib.sha256(self._bytes(key)).hexdigest()

    def _bytes(self, key: bytes) -> bytes:
        try:
            with self._environment.begin() as transaction:
                data = transaction.get(key)
        except self._error as error:
            raise BadSample(
                f"{self._where(key)} cannot be read ({error}); download the file again"
            ) from error
        if data is None:
            raise BadSample(f"{self._where(key)} is missing; download the file again")
        return data

    def _where(self, key: bytes) -> str:
        return f"{self._path}, record {key.decode(errors='replace')}"

    def _value(self, key: bytes) -> Any:
        data, where = self._bytes(key), self._where(key)
        try:
            return plain_pickle.loads(data)
        except plain_pickle.Refused as error:
            raise UserError(
                f"{where} is a pickle that holds more than arrays and plain values: {error}; "
                "nothing was run: do not trust this file"
            ) from error
        except ValueError as error:
            raise BadSample(f"{where}: {error}; download the file again") from error


def _avi_frames(data: bytes, channels: int, where: str) -> list[np.ndarray]:
    """Decode all frames, (H,W,3) RGB or, with one channel, (H,W), without color conversion."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise _lacks("av") from error
    try:
        with contextlib.closing(av.open(io.BytesIO(data), format="avi")) as container:
            frames = [frame.to_ndarray() for frame in container.decode(video=0)]
    except av.FFmpegError as error:
        raise BadSample(
            f"{where} has a video that cannot be decoded ({error}); download it again"
        ) from error
    shape = frames[0].shape[2:] if frames else None
    if shape != ((3,) if channels == 3 else ()):
        raise BadSample(
            f"{where} has a video of frames {shape}, expected {channels} channels; download it "
            "again"
        )
    return frames


def _lacks(module: str) -> UserError:
    return UserError(
        f"--from lmdb needs the module {module}, which is not installed; run pip install -e "
        "'.[lmdb]'"
    )
