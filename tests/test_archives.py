"""Folders and archives give the same samples; hostile or damaged archives are refused."""

import gzip
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest

from data.archives import Files
from data.family import BadSample
from smoothsa_jax.errors import UserError

CONTENTS = {"a/one.txt": b"1" * 5000, "a/b/two.txt": bytes(range(256)) * 40, "three.txt": b""}


def make(path: Path, contents=CONTENTS) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in contents.items():
                member = zipfile.ZipInfo("x")
                member.filename = name  # as it is, whatever the system's separator
                member.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(member, data)
    elif path.suffixes:
        with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
            for name, data in contents.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        for name, data in contents.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["folder", "x.zip", "x.tar", "x.tar.gz", "x.tgz"])
def test_all_kinds_give_the_same(tmp_path, name):
    files = Files(make(tmp_path / name))
    assert files.names() == sorted(CONTENTS)
    assert {name: files.read(name) for name in files.names()} == CONTENTS
    assert dict(files.in_order()) == CONTENTS
    assert "a/one.txt" in files and "a" not in files
    elsewhere = pickle.loads(pickle.dumps(files))
    assert elsewhere.read("a/b/two.txt") == CONTENTS["a/b/two.txt"]
    with pytest.raises(UserError, match=r"has no nothing\.txt"):
        files.read("nothing.txt")


@pytest.mark.parametrize(("made", "kept"), [("x.tar", "y.tgz"), ("x.tar.gz", "y.tar")])
def test_the_first_bytes_tell_whether_a_tar_is_compressed(tmp_path, made, kept):
    """Some browsers unpack a .tgz and keep its name, so SBD's is often a plain tar."""
    files = Files(make(tmp_path / made).rename(tmp_path / kept))
    assert files.is_sequential == made.endswith("gz")
    assert dict(files.in_order()) == CONTENTS


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize(
    "name",
    ["../out.txt", "/etc/out.txt", "a/../../out.txt", "a\\..\\..\\out.txt", "C:\\out.txt", "\\o"],
)
def test_members_that_leave_the_folder_are_refused(tmp_path, ending, name):
    files = Files(make(tmp_path / f"x.{ending}", {"fine.txt": b"1", name: b"2"}))
    with pytest.raises(UserError, match="outside the folder"):
        files.names()
    with pytest.raises(UserError, match="outside the folder"):
        list(files.in_order())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = kind, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UserError, match="'link', which is a link"):
        Files(tmp_path / "x.tar").names()


def test_links_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="'link', which is a link"):
        Files(tmp_path / "x.zip").names()


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_a_truncated_archive_is_named(tmp_path, name):
    path = make(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        list(Files(path).in_order())


def test_a_truncated_tar_is_named(tmp_path):
    path = make(tmp_path / "x.tar")
    path.write_bytes(path.read_bytes()[:6500])  # inside the second file
    with pytest.raises(UserError, match=r"x\.tar"):
        list(Files(path).in_order())


def test_a_damaged_member_is_named(tmp_path):
    path = make(tmp_path / "x.zip")
    data = bytearray(path.read_bytes())
    data[data.index(b"a/one.txt") + 15] ^= 0xFF
    path.write_bytes(data)
    files = Files(path)
    with pytest.raises(BadSample, match=r"x\.zip: a/one\.txt cannot be read"):
        files.read("a/one.txt")
    assert files.read("a/b/two.txt") == CONTENTS["a/b/two.txt"]


def test_what_is_no_archive(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Files(tmp_path / "x.zip")
    (tmp_path / "x.rar").write_bytes(b"")
    with pytest.raises(UserError, match="neither a folder nor one of"):
        Files(tmp_path / "x.rar")
    (tmp_path / "x.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="not an archive: download it again"):
        Files(tmp_path / "x.zip").names()


def test_a_compressed_tar_cut_between_members_or_changed_is_told(tmp_path):
    """tarfile alone reads both without a word."""
    whole = gzip.decompress(make(tmp_path / "x.tar.gz").read_bytes())
    second = 512 + 5120  # a header and 5,000 bytes, filled up
    (tmp_path / "x.tar").write_bytes(whole[:second])
    with pytest.raises(UserError, match="its end is missing"):
        Files(tmp_path / "x.tar").names()
    packed = bytearray((tmp_path / "x.tar.gz").read_bytes())
    packed[-8] ^= 1  # of the checksum
    (tmp_path / "x.tar.gz").write_bytes(packed)
    with pytest.raises(UserError, match=r"x\.tar\.gz is damaged"):
        list(Files(tmp_path / "x.tar.gz").in_order())


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_damaged_header_within_a_tar_is_told(tmp_path, name):
    """tarfile alone takes it for the end of the archive."""
    path = make(tmp_path / name)
    data = bytearray(path.read_bytes() if name == "x.tar" else gzip.decompress(path.read_bytes()))
    data[512 + 5120] ^= 1  # the second member's name
    path.write_bytes(data if name == "x.tar" else gzip.compress(bytes(data)))
    with pytest.raises(UserError, match="damaged header"):
        list(Files(path).in_order())


BACKSLASHES = {name.replace("/", "\\"): data for name, data in CONTENTS.items()}


@pytest.mark.parametrize("name", ["x.zip", "x.ZIP", "x.tar", "x.tar.gz"])
def test_backslashes_divide_folders_in_archives(tmp_path, name):
    folder = {"a\\b\\": b"", "empty\\": b""} if name.lower().endswith("zip") else {}
    made = make(tmp_path / name.lower(), {**BACKSLASHES, **folder}).rename(tmp_path / name)
    files = Files(made)
    assert dict(files.in_order()) == CONTENTS
    assert files.left_out.lines() == ["left out: empty folders (1): empty"] * bool(folder)


@pytest.mark.parametrize("twice", ["a/one.txt", "a\\one.txt", "./a//one.txt"])
@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path, ending, twice):
    path = tmp_path / f"x.{ending}"
    data = io.BytesIO(b"2")
    if ending == "zip":
        with zipfile.ZipFile(make(path), "a") as archive:
            member = zipfile.ZipInfo("x")
            member.filename = twice
            archive.writestr(member, data.getvalue())
    else:
        with tarfile.open(path, "w:gz" if ending == "tar.gz" else "w") as archive:
            for name in ("a/one.txt", twice):
                member = tarfile.TarInfo(name)
                member.size = 1
                archive.addfile(member, io.BytesIO(b"1"))
    for listed in (lambda files: files.names(), lambda files: list(files.in_order())):
        with pytest.raises(UserError, match="two members 'a/one.txt', expected one"):
            listed(Files(path))


def test_a_zip_that_python_cannot_unpack_is_told(tmp_path):
    data = bytearray(make(tmp_path / "x.zip").read_bytes())
    for start, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(start) + flags] |= 1  # encrypted
    (tmp_path / "locked.zip").write_bytes(data)
    with pytest.raises(
        BadSample, match="a/one.txt cannot be read: .*encrypted.*without a password"
    ):
        Files(tmp_path / "locked.zip").read("a/one.txt")
    place = data.rindex(b"PK\1\2")
    data[place + 9] |= 8  # the name is said to be UTF-8
    data[place + 46] = 0xE9
    (tmp_path / "name.zip").write_bytes(data)
    with pytest.raises(UserError, match="name.zip cannot be listed"):
        Files(tmp_path / "name.zip").names()


def test_links_in_folders_are_followed_but_not_in_circles(tmp_path):
    inside, outside = make(tmp_path / "in"), make(tmp_path / "out")
    (inside / "linked").symlink_to(outside / "a")
    (inside / "three2.txt").symlink_to(inside / "three.txt")
    (inside / "gone.txt").symlink_to(tmp_path / "nowhere")
    (inside / "circle").symlink_to(inside / "circle")
    (inside / "a" / "up").symlink_to(tmp_path)
    (outside / "a" / "back").symlink_to(inside / "a")
    (inside / "a" / "b" / "again").symlink_to(outside / "a")
    files = Files(inside)
    again = [f"a/b/again/{name}" for name in ("one.txt", "b/two.txt")]
    linked = ["linked/one.txt", "linked/b/two.txt", "linked/back/one.txt", "linked/back/b/two.txt"]
    assert files.names() == sorted([*CONTENTS, *again, *linked, "three2.txt"])
    assert files.read("linked/one.txt") == CONTENTS["a/one.txt"]
    assert files.left_out.lines() == [
        "followed: links to folders (3): linked, linked/back, ...",
        "left out: links that lead nowhere (2): circle, gone.txt",
        "left out: links to a folder above them (4): linked/back/up, linked/back/b/again, ...",
    ]
    assert "../out/a/one.txt" not in files and str(outside / "a/one.txt") not in files
