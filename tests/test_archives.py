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
                archive.writestr(name, data)
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
@pytest.mark.parametrize("name", ["../out.txt", "/etc/out.txt", "a/../../out.txt"])
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
