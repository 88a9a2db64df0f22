"""Pictures and videos look the same to every reader, and as viewers and players show them."""

import dataclasses
import io
import itertools
import json
import os
import struct
import warnings
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import tensorflow_datasets as tfds
from av.stream import Disposition
from fuzz_readers import clip as noise
from fuzz_readers import write_gif, write_video
from PIL import Image

from data import pictures, prepare
from data.family import BadSample, Options
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference import decoding
from smoothsa_jax.inference.frames import as_frame
from smoothsa_jax.inference.truncation import is_cut
from smoothsa_jax.inference.videos import read_video
from smoothsa_jax.inputs import media

ALL = Options(extra=(("holdout", 0.0),))  # nothing is held out
HEIGHT, WIDTH = 16, 24
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
# What is displayed for each orientation of EXIF, from its definition: where the first row and the
# first column of the stored pixels lie.
DISPLAYED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],  # top, right
    3: lambda x: x[::-1, ::-1],  # bottom, right
    4: lambda x: x[::-1],  # bottom, left
    5: lambda x: x.swapaxes(0, 1),  # left, top
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],  # right, top
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda x: x.swapaxes(0, 1)[::-1],  # left, bottom
}
# The same as display matrices of videos: a, b, c, d.
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def samples(folder: Path, split: str = "train") -> dict[str, dict]:
    """Samples of a prepared folder by name, as another program reads them."""
    source = tfds.builder_from_directory(folder).as_data_source(split=split)
    return {sample["metadata"]["name"].decode(): sample for sample in source}


def prepared(source: Path, out: Path, options: Options | None = None) -> dict[str, dict]:
    prepare.prepare("folder", str(source), out, ("train",), options or ALL)
    return samples(out)


def refused(source: Path, out: Path) -> str:
    with pytest.raises(UserError) as error:
        prepare.prepare("folder", str(source), out, ("train",), ALL)
    assert "\n" not in str(error.value)
    return str(error.value)


def saved(image: Image.Image, kind: str = "PNG", orientation: int = 1, **options) -> bytes:
    exif = Image.Exif()
    exif[media.ORIENTATION] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"exif": exif} if orientation != 1 else {}), **options)
    return buffer.getvalue()


def png_of(rows: bytes, size: tuple[int, int], depth: int, color: int, trns: bytes) -> bytes:
    """A PNG of kinds that Pillow does not write; each row begins with a zero."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", size[1], size[0], depth, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"tRNS", trns), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in chunks)


# ----------------------------------------------------------------------------------------- pictures


def kinds() -> dict[str, tuple[bytes, np.ndarray | None]]:
    """Pictures of many kinds, and their pixels where these are not Pillow's own conversion."""
    color, grey = Image.fromarray(PIXELS), PIXELS[..., 0]
    alpha = PIXELS[..., 1]
    rgba = Image.fromarray(np.dstack([PIXELS, alpha]))
    on_black = np.rint(PIXELS * (alpha[..., None] / 255)).astype(np.uint8)
    three = lambda x: np.repeat(x[..., None], 3, axis=-1)  # noqa: E731
    palette = color.quantize(32)
    deep = (grey.astype(np.uint16) << 8) + 7
    cut = np.where(grey == grey[2, 3], 0, grey)
    few = (grey >> 6).astype(np.uint8)  # 0 to 3, four to a byte
    packed = few.reshape(HEIGHT, -1, 4) @ np.array([64, 16, 4, 1], np.uint8)
    rows2 = b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in packed)
    wide = (PIXELS.astype(">u2") << 8) + 1
    rows16 = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    no_color = PIXELS.copy()
    no_color[2, 3] = 0
    key = tuple(PIXELS[2, 3].tolist())
    return {
        "rgb.png": (saved(color), PIXELS),
        "rgb.webp": (saved(color, "WEBP", lossless=True), PIXELS),
        "rgb.bmp": (saved(color, "BMP"), PIXELS),
        "rgb.jpg": (saved(color, "JPEG"), None),
        "l.png": (saved(Image.fromarray(grey)), three(grey)),
        "la.png": (
            saved(Image.fromarray(np.dstack([grey, alpha]), "LA")),
            three(np.rint(grey * (alpha / 255)).astype(np.uint8)),
        ),
        "p.png": (saved(palette), np.asarray(palette.convert("RGB"))),
        "p_trns.png": (
            saved(palette, transparency=5),
            np.where((np.asarray(palette) == 5)[..., None], 0, np.asarray(palette.convert("RGB"))),
        ),
        "rgba.png": (saved(rgba), on_black),
        "rgba.tif": (saved(rgba, "TIFF"), on_black),
        "rgb_trns.png": (saved(color, transparency=key), no_color),
        "l_trns.png": (saved(Image.fromarray(grey), transparency=int(grey[2, 3])), three(cut)),
        "cmyk.jpg": (saved(color.convert("CMYK"), "JPEG"), None),
        "cmyk.tif": (saved(color.convert("CMYK"), "TIFF"), None),
        "i16.png": (saved(Image.fromarray(deep)), three(grey)),
        "i16_trns.png": (
            png_of(
                b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep),
                (HEIGHT, WIDTH),
                *(16, 0, struct.pack(">H", int(deep[2, 3]))),
            ),
            three(cut),
        ),
        "bits1.png": (
            saved(Image.fromarray(grey > 99)),
            three(np.where(grey > 99, 255, 0).astype(np.uint8)),
        ),
        "bits2_trns.png": (
            png_of(rows2, (HEIGHT, WIDTH), 2, 0, struct.pack(">H", 3)),
            three(np.where(few == 3, 0, few * 85)),
        ),
        "rgb16_trns.png": (
            png_of(rows16, (HEIGHT, WIDTH), 16, 2, wide[2, 3].astype(">u2").tobytes()),
            no_color,
        ),
        "floats.tif": (
            saved(Image.fromarray((grey / 255).astype(np.float32)), "TIFF"),
            three(grey),
        ),
    }


def test_every_kind_of_picture_has_the_same_pixels_for_every_reader(tmp_path):
    (tmp_path / "in").mkdir()
    expected = {}
    for name, (data, pixels) in kinds().items():
        stem, ending = name.split(".")
        path = tmp_path / "in" / f"{stem}_{ending}.{ending}"
        path.write_bytes(data)
        expected[path.stem] = as_frame(path)
        if pixels is not None:
            # Compositing rounds; everything else is exact.
            atol = 1 if "a." in name else 0
            np.testing.assert_allclose(expected[path.stem], pixels, rtol=0, atol=atol, err_msg=name)
        np.testing.assert_array_equal(as_frame(Image.open(path)), expected[path.stem], name)
    found = prepared(tmp_path / "in", tmp_path / "out")
    assert len(found) == len(kinds())
    for name, sample in found.items():
        np.testing.assert_array_equal(sample["image"], expected[name], name)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_and_mirrored_as_their_exif_says(tmp_path, orientation):
    alpha = Image.fromarray(np.dstack([PIXELS, PIXELS[..., 1]]))
    images = {"jpg": Image.fromarray(PIXELS), "png": alpha, "webp": alpha, "tif": alpha}
    formats = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF"}
    for ending, image in images.items():
        more = {"lossless": True} if ending == "webp" else {}
        plain = as_frame(Image.open(io.BytesIO(saved(image, formats[ending], **more))))
        path = tmp_path / "in" / f"{ending}.{ending}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(saved(image, formats[ending], orientation, **more))
        expected = DISPLAYED[orientation](plain)
        np.testing.assert_array_equal(as_frame(path), expected, ending)
        image = Image.open(io.BytesIO(path.read_bytes()))
        np.testing.assert_array_equal(as_frame(image), expected, ending)
        # Official data sets, whose masks lie in the stored pixels.
        data, height, width = pictures.frame(path.read_bytes(), ending, Options())
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), plain, ending)
        assert (height, width) == (HEIGHT, WIDTH)
        assert Image.open(io.BytesIO(data)).getexif().get(media.ORIENTATION, 1) == 1
    if orientation in (1, 7):
        for name, sample in prepared(tmp_path / "in", tmp_path / "out").items():
            np.testing.assert_array_equal(sample["image"], as_frame(tmp_path / f"in/{name}.{name}"))


def test_damaged_exif_turns_nothing_and_is_not_passed_on(monkeypatch):
    data = saved(Image.fromarray(PIXELS), "JPEG", 6)
    assert media.opened(data).orientation == 6

    def damaged(image):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", damaged)
    picture = media.opened(data)
    np.testing.assert_array_equal(picture.displayed(), picture.stored())
    assert pictures.frame(data, "a.jpg", Options())[0][:4] == b"\x89PNG"


def test_animated_pictures_are_their_first_frame(tmp_path, capsys):
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    data = saved(frames[0], save_all=True, append_images=frames[1:])
    stored, *_ = pictures.frame(data, "a.png", Options())
    assert not Image.open(io.BytesIO(stored)).is_animated
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored))), PIXELS)
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(as_frame(tmp_path / "a.png"), PIXELS)
    prepared(tmp_path, tmp_path.with_name("out"))
    assert "a single picture, the first of its frames or pages" in capsys.readouterr().out


def test_huge_and_odd_pictures_are_refused_in_one_line(tmp_path):
    row = b"\0" + bytes(30_000 // 8)
    huge = png_of(row * 9_000, (9_000, 30_000), 1, 0, b"\0\0")
    floats = saved(Image.fromarray(np.full((4, 4), 2, np.float32)), "TIFF")
    expected = {"huge.png": "30000x9000 pixels, more than", "f.tif": "0..1"}
    for (name, text), data in zip(expected.items(), (huge, floats), strict=True):
        (tmp_path / name).write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserError, match=text) as told:
                as_frame(tmp_path / name)
            with pytest.raises(BadSample, match=text) as bad:
                pictures.frame(data, name, Options())
        assert "\n" not in f"{told.value}{bad.value}"
    with pytest.raises(UserError, match="cannot be read"):
        as_frame(Image.open(io.BytesIO(saved(Image.fromarray(PIXELS))[:300])))
    assert Image.MAX_IMAGE_PIXELS


# ------------------------------------------------------------------------ pictures and their labels


def labels(shape: tuple[int, int]) -> bytes:
    found = np.zeros(shape, np.uint8)
    found[:4, :9] = 1
    return saved(Image.fromarray(found))


def with_labels(folder: Path, orientation: int, shape: tuple[int, int], name: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(saved(Image.fromarray(PIXELS), "JPEG", orientation))
    path = (folder / "labels" / name).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(labels(shape))


def test_the_shape_of_labels_decides_whether_pictures_are_turned(tmp_path, capsys):
    source, upright = tmp_path / "in", media.opened(saved(Image.fromarray(PIXELS), "JPEG")).stored()
    with_labels(source, 6, (WIDTH, HEIGHT), "displayed.jpg")
    with_labels(source, 6, (HEIGHT, WIDTH), "stored.jpg")
    with_labels(source, 8, (HEIGHT, WIDTH), "stored2.jpg")
    with_labels(source, 3, (HEIGHT, WIDTH), "both.jpg")
    with_labels(source, 1, (HEIGHT, WIDTH), "upright.jpg")
    found = prepared(source, tmp_path / "out")
    expected = {
        **{name: upright for name in ("stored", "stored2", "upright")},
        "displayed": DISPLAYED[6](upright),
        "both": DISPLAYED[3](upright),
    }
    assert set(found) == set(expected)
    for name, sample in found.items():
        np.testing.assert_array_equal(sample["image"], expected[name], name)
        assert sample["segmentation"].shape == (*expected[name].shape[:2], 1)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2
    assert notes[0].startswith("note: 1 picture, first both.jpg: turned as the EXIF")
    assert notes[1].startswith("note: 2 pictures, first stored.jpg: taken as stored")

    with_labels(source, 6, (5, 5), "neither.jpg")
    assert "neither.jpg has 24x16 pixels (height x width), its labels 5x5" in refused(
        source, tmp_path / "out2"
    )
    found = prepared(source, tmp_path / "out3", dataclasses.replace(ALL, skip_bad=True, size=8))
    assert found["stored"]["image"].shape == (8, 12, 3)
    assert found["displayed"]["image"].shape == (12, 8, 3)


def test_notes_survive_workers_and_a_second_split(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("data.folder.STILLS_PER_SHARD", 1)
    for split, name in itertools.product(("train", "test"), ("b", "a")):
        path = tmp_path / "in" / split / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(saved(Image.fromarray(PIXELS), "JPEG", 6))
        path = tmp_path / "in" / "labels" / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(labels((HEIGHT, WIDTH)))
    source, out = str(tmp_path / "in"), tmp_path / "out"
    prepare.prepare("folder", source, out, ("train",), Options(), workers=2)
    assert "note: 2 pictures, first train/a.jpg: taken as stored" in capsys.readouterr().out
    prepare.prepare("folder", source, out, ("test",), Options())
    assert "note: 4 pictures, first train/a.jpg: taken as stored" in capsys.readouterr().out


def test_frames_of_a_clip_are_turned_too(tmp_path, capsys):
    upright = media.opened(saved(Image.fromarray(PIXELS), "JPEG")).stored()
    for t in range(3):
        with_labels(tmp_path / "in", 6, (HEIGHT, WIDTH), f"stored/{t}.jpg")
        with_labels(tmp_path / "in", 5, (WIDTH, HEIGHT), f"displayed/{t}.jpg")
    found = prepared(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(np.stack([*found["stored"]["video"]])[2], upright)
    frames = np.stack([*found["displayed"]["video"]])
    np.testing.assert_array_equal(frames[2], DISPLAYED[5](upright))
    assert "note: 3 pictures, first stored/0.jpg: taken as stored" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- videos


def clip(num_frames: int = 6) -> np.ndarray:
    """A bright bar at the upper left that becomes longer, (T,48,64,3)."""
    frames = np.full((num_frames, 48, 64, 3), 40, np.uint8)
    for t, frame in enumerate(frames):
        frame[4:14, 4 : 24 + 2 * t] = 230, 40, 40
    return frames


def length(frame: np.ndarray) -> int:
    """Which frame of `clip` this is."""
    return round(((frame[4:14, :, 0] > 130).sum(axis=1).mean() - 20) / 2)


def seen(path: Path) -> tuple[list[np.ndarray], str]:
    """Frames and what is missing, without the process of `read_video`, which takes time."""
    _, *frames, (_, missing) = decoding._messages(path, media.MAX_PIXELS)
    return [frame for _, frame in frames], missing


def patched(data: bytes, box: bytes, offset: int, *values: int) -> bytes:
    """Overwrite 32-bit numbers behind the name of an mp4's box."""
    at = data.index(box) + len(box) + offset
    new = b"".join((value & 0xFFFFFFFF).to_bytes(4, "big") for value in values)
    return data[:at] + new + data[at + len(new) :]


def with_matrix(data: bytes, a: float, b: float, c: float, d: float) -> bytes:
    one = 1 << 16
    numbers = [round(x * one) for x in (a, b, 0, c, d, 0, 0, 0)]
    return patched(data, b"tkhd", 40, *numbers, 1 << 30)


def test_videos_are_turned_and_mirrored_as_players_do(tmp_path):
    write_video(tmp_path / "a.mp4", clip(2))
    data = (tmp_path / "a.mp4").read_bytes()
    plain = seen(tmp_path / "a.mp4")[0][0]
    assert length(plain) == 0
    for orientation, matrix in MATRICES.items():
        (tmp_path / "a.mp4").write_bytes(with_matrix(data, *matrix))
        expected = DISPLAYED[orientation](plain)
        np.testing.assert_array_equal(seen(tmp_path / "a.mp4")[0][0], expected, str(matrix))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(with_matrix(data, *MATRICES[5]))
    (sample,) = prepared(tmp_path / "in", tmp_path / "out").values()
    np.testing.assert_array_equal(sample["video"][0], DISPLAYED[5](plain))


@pytest.mark.parametrize(
    "matrix, orientation",
    [((-2, 0, 0, 2), 2), ((0.1, 0.9, -0.9, 0.1), 6), ((0, 0, 0, 0), 1), ((1, 1, 1, 1), 1)],
)
def test_other_matrices_are_taken_for_the_nearest_of_the_eight(matrix, orientation):
    a, b, c, d = (round(x * (1 << 16)) for x in matrix)
    numbers = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32)
    assert media.orientation_of_matrix(numbers) == orientation


def test_motion_jpeg_with_exif_is_read(tmp_path):
    """Frames carry data then that some versions of PyAV cannot list."""
    upright = media.opened(saved(Image.fromarray(clip(1)[0]), "JPEG")).stored()
    for orientation in (3, 6):
        with av.open(str(tmp_path / "a.avi"), "w") as container:
            stream = container.add_stream("mjpeg", rate=10)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
            for t in range(2):
                packet = av.Packet(saved(Image.fromarray(clip(1)[0]), "JPEG", orientation))
                packet.stream, packet.pts, packet.dts = stream, t, t
                packet.time_base, packet.is_keyframe = Fraction(1, 10), True
                container.mux(packet)
        frames, missing = seen(tmp_path / "a.avi")
        assert len(frames) == 2 and not missing
        assert np.abs(frames[1] - DISPLAYED[orientation](upright).astype(int)).mean() < 3


def write_streams(path: Path, films: dict[str, list[np.ndarray]], cover: str = "") -> None:
    """Write streams in order; "song" is sound, others are codecs. `cover` marks that codec's."""
    with av.open(str(path), "w") as container:
        streams = {}
        for codec, frames in films.items():
            if codec == "song":
                streams[codec] = container.add_stream("aac", rate=8000)
                continue
            stream = streams[codec] = container.add_stream(codec, rate=8)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")
            if codec == cover:
                stream.disposition = Disposition.attached_pic
        for codec, stream in streams.items():
            if codec == "song":
                sound = np.zeros((1, 1024), np.float32)
                frame = av.AudioFrame.from_ndarray(sound, "fltp", "mono")
                frame.sample_rate = 8000
                container.mux(stream.encode(frame))
            for t, pixels in enumerate(films[codec]):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = t
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


PICTURE = [np.full((32, 32, 3), 200, np.uint8)]


@pytest.mark.parametrize(
    "name, codec", [("a.mp4", "mjpeg"), ("b.mov", "png"), ("c.mkv", "mjpeg"), ("d.avi", "png")]
)
def test_a_cover_picture_is_not_the_video(tmp_path, name, codec):
    if name == "a.mp4":
        write_streams(tmp_path / name, {codec: PICTURE, "libx264": clip(8)}, cover=codec)
        assert len(seen(tmp_path / name)[0]) == 8
    write_streams(tmp_path / name, {codec: PICTURE, "libx264": clip(8)})
    frames, missing = seen(tmp_path / name)
    assert [length(frame) for frame in frames] == [*range(8)] and not missing


def test_of_two_videos_the_default_is_read(tmp_path):
    write_streams(tmp_path / "a.mp4", {"libx264": [*clip(4)], "mpeg4": [*255 - clip(4)]})
    data = (tmp_path / "a.mp4").read_bytes()
    assert length(seen(tmp_path / "a.mp4")[0][3]) == 3
    first, second = (m for m in range(len(data)) if data.startswith(b"tkhd", m))
    enabled = bytearray(data)
    enabled[first + 7], enabled[second + 7] = data[second + 7], data[first + 7]
    assert bytes(enabled) != data
    (tmp_path / "a.mp4").write_bytes(enabled)
    assert seen(tmp_path / "a.mp4")[0][3][0, 0, 0] > 180


def test_a_song_with_a_cover_holds_no_video(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "song.mp4"
    for cover in ("mjpeg", ""):
        write_streams(path, {"song": [], "mjpeg": PICTURE}, cover)
        with pytest.raises(media.Unreadable, match="it holds a cover picture, and no video"):
            seen(path)
    assert "it holds a cover picture, and no video" in refused(path.parent, tmp_path / "out")
    write_streams(path, {"mjpeg": PICTURE})  # a video of one frame
    assert len(seen(path)[0]) == 1


def edit_list(data: bytes, first: int, count: int) -> bytes:
    """Show `count` frames from frame `first` on, of 8 a second."""
    at = data.index(b"elst") + 4
    assert data[at : at + 8] == b"\0\0\0\0\0\0\0\1"
    scale = int.from_bytes(data[(m := data.index(b"mdhd") + 4) + 12 : m + 16], "big") // 8
    start = int.from_bytes(data[at + 12 : at + 16], "big")
    return patched(data, b"elst", 8, count * 125, start + first * scale)


@pytest.mark.parametrize("first, count", [(0, 10), (5, 10), (7, 13), (0, 20), (19, 1)])
def test_an_edit_list_shows_a_part(tmp_path, first, count):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.mp4"
    write_video(path, clip(20))
    path.write_bytes(edit_list(path.read_bytes(), first, count))
    frames, missing = seen(path)
    assert [length(frame) for frame in frames] == [*range(first, first + count)] and not missing
    if first == 5:
        (sample,) = prepared(path.parent, tmp_path / "out").values()
        np.testing.assert_array_equal(np.stack([*sample["video"]]), np.stack(frames))


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.avi"])
def test_frames_may_last_for_different_times(tmp_path, name):
    """In an AVI, a frame that lasts longer is followed by empty ones."""
    times = [0, 1, 2, 9, 10, 25]
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for pts, pixels in zip(times, clip(6), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames, missing = seen(tmp_path / name)
    assert [length(frame) for frame in frames] == [*range(6)] and not missing


@pytest.mark.parametrize("flags", ["dash", "frag_keyframe+empty_moov", "negative_cts_offsets", ""])
def test_videos_in_fragments_and_those_that_start_late_are_complete(tmp_path, flags):
    """Their headers have no count, or times that include what comes before the first frame."""
    options = {"movflags": flags} if flags else {}
    with av.open(str(tmp_path / "a.mp4"), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "4"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for t, pixels in enumerate(clip(10)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = t + 30
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames, missing = seen(tmp_path / "a.mp4")
    assert [length(frame) for frame in frames] == [*range(10)] and not missing


@pytest.mark.parametrize("count", [72_000, 3, 1, 0])
def test_a_wrong_count_in_a_header_changes_nothing(tmp_path, count):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.avi"
    write_video(path, clip(), codec="mpeg4")
    data = bytearray(path.read_bytes())
    for box, offset in ((b"avih", 4 + 16), (b"strh", 4 + 32)):
        at = data.index(box) + 4 + offset
        data[at : at + 4] = count.to_bytes(4, "little")
    path.write_bytes(data)
    frames, missing = seen(path)
    assert [length(frame) for frame in frames] == [*range(6)] and not missing
    if count:
        (sample,) = prepared(path.parent, tmp_path / "out").values()
        assert len(sample["video"]) == 6


def test_a_live_recording_without_counts_is_complete(tmp_path):
    with av.open(str(tmp_path / "a.webm"), "w", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for pixels in clip(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(tmp_path / "a.webm")) as container:
        assert container.duration is None
    frames, missing = seen(tmp_path / "a.webm")
    assert [length(frame) for frame in frames] == [*range(6)] and not missing


@pytest.mark.parametrize("part", [0.6, 0.9, "between frames"])
@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.webm", "d.avi", "e.gif"])
def test_files_that_are_cut_are_noticed(tmp_path, name, part):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / name
    if name == "e.gif":
        write_gif(path, noise(20))
    else:
        codec = {"a.mp4": "libx264", "c.webm": "libvpx"}.get(name, "mpeg4")
        options = {"movflags": "faststart"} if name == "a.mp4" else {}
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream(codec, rate=10)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for pixels in noise(20, 48, 64):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    data = path.read_bytes()
    assert not seen(path)[1]
    with av.open(str(path)) as container:
        starts = sorted(packet.pos for packet in container.demux(video=0) if packet.size)
    path.write_bytes(data[: starts[12] if part == "between frames" else int(len(data) * part)])
    frames, missing = seen(path)
    assert 0 < len(frames) < 20 and "the file is cut or damaged" in missing
    if part == 0.6:
        assert "the file is cut or damaged" in refused(path.parent, tmp_path / "out")


@pytest.mark.parametrize(
    "start",
    [
        *(b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\x00", b"\x1a\x45\xdf\xa3\x01" + b"\xff" * 12),
        *(b"RIFF", b"RIFF\xfe\xff\xff\xff", b"GIF89a", b"\0\0\0\1mdat" + b"\xff" * 8, b"ab", b""),
    ],
)
def test_short_and_damaged_headers_are_no_error(tmp_path, start):
    (tmp_path / "a").write_bytes(start)
    assert is_cut(tmp_path / "a") in (True, False)


@pytest.mark.parametrize(
    "name",
    [
        *("2024-05-01T12:30:45.mp4", "-x.mp4", "a%03d.mp4", "concat:b.mp4", "http:x.mp4", "#.mp4"),
        *("a b|c.mp4", os.fsdecode(b"caf\xe9.mp4")),
    ],
)
def test_any_name_is_that_of_a_file(tmp_path, name, monkeypatch):
    write_video(tmp_path / "in.mp4", clip(3))
    (tmp_path / "in.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with read_video(name) as video:
        assert len([*video]) == 3
    assert len(seen(tmp_path / name)[0]) == 3
    picture = Path(name).with_suffix(".png")
    picture.write_bytes(saved(Image.fromarray(PIXELS)))
    np.testing.assert_array_equal(as_frame(picture), PIXELS)


def test_a_playlist_leads_nowhere(tmp_path):
    (tmp_path / "a.mp4").write_text(
        "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(av.FFmpegError):
        seen(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "name, codec, layout",
    [
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("b.webm", "libvpx", "yuva420p"),
        ("c.mov", "prores_ks", "yuva444p10le"),
        ("d.mov", "qtrle", "argb"),
    ],
)
def test_transparent_videos_are_composited_on_black(tmp_path, name, codec, layout):
    frames = np.dstack([np.full((48, 64, 3), 200, np.uint8), np.zeros((48, 64), np.uint8)])
    frames[:, 32:, 3] = 255
    frames[:, 16:32, 3] = 128
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, layout
        if codec == "libvpx":
            stream.options = {"auto-alt-ref": "0"}
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames), format="rgba")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for frame in seen(tmp_path / name)[0]:
        shares = [frame[4:-4, left + 4 : left + 12].mean() for left in (0, 16, 32)]
        np.testing.assert_allclose(shares, [0, 100, 200], atol=6)


def test_transparent_gifs_are_composited_on_black(tmp_path):
    (tmp_path / "in").mkdir()
    values = np.zeros((3, 12, 16), np.uint8)
    values[0, :6], values[1, 3:9, 4:12], values[2, 8:, :4] = 1, 2, 1
    images = [Image.fromarray(value, "P") for value in values]
    for image in images:
        image.putpalette([90, 90, 90, 255, 0, 0, 0, 255, 0])
    path = tmp_path / "in" / "a.gif"
    more = {"append_images": images[1:], "transparency": 0, "disposal": 2}
    images[0].save(path, save_all=True, **more)
    frames, missing = seen(path)
    assert not missing
    expected = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[values]
    np.testing.assert_array_equal(np.stack(frames), expected)
    (sample,) = prepared(path.parent, tmp_path / "out").values()
    np.testing.assert_array_equal(np.stack([*sample["video"]]), expected)


def test_gifs_without_times_have_all_their_frames(tmp_path):
    frames = [Image.fromarray(frame).quantize(8) for frame in clip(5)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found, missing = seen(tmp_path / "a.gif")
    assert [length(frame) for frame in found] == [*range(5)] and not missing
    with open(tmp_path / "a.gif", "ab") as file:
        file.write(b"what a program appends")
    assert not seen(tmp_path / "a.gif")[1]


def test_prepared_manifests_keep_the_notes(tmp_path):
    with_labels(tmp_path / "in", 6, (HEIGHT, WIDTH), "a.jpg")
    prepared(tmp_path / "in", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "MANIFEST.json").read_text())
    ((count, first),) = found["splits"]["train"]["shards"][0]["remarks"].values()
    assert (count, first) == (1, "a.jpg")
