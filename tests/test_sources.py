"""The inputs that --input names."""

from pathlib import Path

import pytest

from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.given_boxes import read_boxes
from smoothsa_jax.inference.listing import LeftOut
from smoothsa_jax.inference.sources import find_sources


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def kinds(named: object, **options) -> dict[str, str]:
    return {source.name: source.kind for source in find_sources(str(named), **options)}


def test_a_folder_is_searched_and_evenly_numbered_pictures_are_a_video(tmp_path):
    made(tmp_path, "b.mp4", "a.JPG", "notes.txt", ".hidden.png", "photos/3.jpg", "photos/7.jpg")
    made(tmp_path, "photos/8.jpg", "swim/f_5.png", "swim/f_10.png", "swim/f_15.png", "one/1.png")
    found = {s.name: s for s in find_sources(str(tmp_path))}
    assert {name: source.kind for name, source in found.items()} == {
        "a.JPG": "picture",
        "b.mp4": "video",
        "one/1.png": "picture",
        "photos/3.jpg": "picture",
        "photos/7.jpg": "picture",
        "photos/8.jpg": "picture",
        "swim": "frames",
    }
    assert [file.name for file in found["swim"].files] == ["f_5.png", "f_10.png", "f_15.png"]
    assert kinds(tmp_path / "swim") == {"swim": "frames"}
    assert set(kinds(tmp_path / "swim", folders="pictures").values()) == {"picture"}
    assert kinds(tmp_path / "photos", folders="video") == {"photos": "frames"}


def test_a_glob_names_inputs_by_what_is_behind_its_fixed_part(tmp_path):
    made(tmp_path, "x/clip.mp4", "y/clip.mp4", "y/clip.txt", "y/frames/1.png", "y/frames/2.png")
    assert kinds(tmp_path / "*" / "clip.*") == {"x/clip.mp4": "video", "y/clip.mp4": "video"}
    assert kinds(tmp_path / "y" / "f*") == {"frames": "frames"}
    assert kinds(tmp_path / "x" / "clip.mp4") == {"clip.mp4": "video"}


def test_a_glob_names_nothing_twice(tmp_path):
    made(tmp_path, "a.png", "seq/1.png", "seq/2.png", "sub/deep/x.png")
    for pattern in ("**", "**/*", "*"):
        found = kinds(tmp_path / pattern)
        assert found == {"a.png": "picture", "seq": "frames", "sub/deep/x.png": "picture"}
        files = [f.resolve() for s in find_sources(str(tmp_path / pattern)) for f in s.files]
        assert len(files) == len(set(files)) == 4


def test_numbered_pictures_beside_something_else_are_asked_about(tmp_path):
    made(tmp_path, "1.jpg", "2.jpg", "clip.mp4")
    with pytest.raises(UserError, match="numbered pictures, .*and clip.mp4; use --folders=video"):
        find_sources(str(tmp_path))
    assert len(kinds(tmp_path, folders="pictures")) == 3


def test_the_outputs_are_not_inputs(tmp_path):
    made(tmp_path, "a.png", "found/a.png/overlay.png")
    found = tmp_path / "found"
    assert kinds(tmp_path, without=found) == {"a.png": "picture"}
    for pattern in ("*", "**", "**/*.png", "*/*"):
        try:
            names = set(kinds(tmp_path / pattern, without=found))
        except UserError:
            names = set()
        assert names <= {"a.png"}


def test_nothing_to_read_is_told(tmp_path):
    made(tmp_path, "notes.txt")
    for named, message in (
        (tmp_path, "contains no readable input"),
        (tmp_path / "notes.txt", "has an unknown format"),
        (tmp_path / "*.mp4", "contains no readable input"),
        (tmp_path / "clip.mp4", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            find_sources(str(named))


def told(named: object, **options) -> tuple[list[str], list[str]]:
    """The names of the inputs, and the lines on what was left out."""
    left_out = LeftOut()
    names = [s.name for s in find_sources(str(named), left_out=left_out, **options)]
    return names, left_out.lines()


def test_links_are_followed_but_not_in_circles(tmp_path):
    source = made(tmp_path / "in", "a/1.png", "a/2.png")
    made(tmp_path, "other/x.png", "other/deep/y.png")
    (source / "b").symlink_to(tmp_path / "other")
    (source / "c.png").symlink_to(source / "a" / "1.png")
    (source / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "other" / "deep" / "up").symlink_to(tmp_path)
    (tmp_path / "other" / "deep" / "in").symlink_to(source)
    names = ["a", "b/deep/y.png", "b/x.png", "c.png"]
    lines = [
        "followed: links to folders (1): b",
        "left out: links that lead nowhere (1): gone.png",
        "left out: links to a folder above them (2): b/deep/in, b/deep/up",
    ]
    assert told(source) == (names, lines)
    for pattern in ("*", "**"):
        assert told(source / pattern) == (names, lines)
    found, _ = told(source / "**" / "*.png")
    assert found == ["a/1.png", "a/2.png", *names[1:]]
    assert told(source / "b" / "*" / "?.png")[0] == ["deep/y.png"]


def test_what_is_left_out_is_listed(tmp_path):
    made(tmp_path, "a.png", "b.HEIC", "c.heic", "notes.txt", "README", ".hidden.png", ".git/x.png")
    made(tmp_path, "Thumbs.db", "sub/.DS_Store", "__MACOSX/a.png", "._a.png", "more.zip", "d.avif")
    (tmp_path / "empty").mkdir()
    assert told(tmp_path, folders="pictures") == (
        ["a.png"],
        [
            "left out: hidden names (2): .hidden.png, .git",
            "left out: empty folders (2): empty, sub",
            "left out: archives inside, to be unpacked (1): more.zip",
            "left out: files with other endings (5): no ending: README; .heic: b.HEIC, c.heic; "
            ".avif: d.avif; .txt: notes.txt",
        ],
    )
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"no readable input; .*\.heic: b.HEIC, c.heic"):
        find_sources(str(tmp_path))


def test_what_is_beside_frames_is_listed(tmp_path):
    made(tmp_path, "1.png", "2.png", "sub/3.png", "b.mp4", "out/1.png/labels.png")
    names, lines = told(tmp_path, folders="video", without=tmp_path / "out")
    assert names == [tmp_path.name]
    assert lines == ["left out: videos and sub-folders beside frames (2): b.mp4, sub"]


def test_boxes_with_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_bytes(b'\xef\xbb\xbf{"a.png":\r\n [[1, 2, 3, 4]]}\r\n')
    assert read_boxes(path) == {"a.png": [[1, 2, 3, 4]]}
    path.write_bytes('{"a.png": [[1, 2, 3, 4]]}'.encode("utf-16"))
    with pytest.raises(UserError, match=r"boxes.json is UTF-16, expected text in UTF-8"):
        read_boxes(path)
    path.write_text('{"a.png": [[1, 2, 3, 4]], "a.png": [[1, 2, 3, 5]]}')
    with pytest.raises(UserError, match=r"has 'a.png' twice"):
        read_boxes(path)
