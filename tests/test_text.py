"""Text from outside, and for terminals of any encoding."""

import io
import os
import sys

import pytest

from smoothsa_jax.errors import UserError
from smoothsa_jax.text import printable, say, text_of


def test_text_is_utf_8_with_or_without_a_mark():
    for data in ("bär\r\n".encode(), "bär\r\n".encode("utf-8-sig")):
        assert text_of(data, "x") == "bär\r\n"
    assert text_of(b"", "x") == ""


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ("bear\n".encode("utf-16"), "UTF-16"),
        ("bear\n".encode("utf-16-be"), "UTF-16"),
        ("bear\n".encode("utf-32"), "UTF-32"),
        ("bär\n".encode("latin-1"), "not UTF-8 (invalid continuation byte at byte 1)"),
    ],
)
def test_another_encoding_is_named(data, found):
    with pytest.raises(UserError) as error:
        text_of(data, "list.txt")
    assert str(error.value).startswith(f"list.txt is {found}, expected text in UTF-8")


def test_names_become_text():
    assert printable("bär") == "bär"
    assert printable(os.fsdecode(b"b\xe4r")) == "b\\xe4r"
    assert printable("b\udcc3\udca4r") == "bär"  # as Python reads it where nothing is UTF-8
    assert printable("\ud800") == "\\ud800"


def test_every_terminal_shows_a_line(monkeypatch):
    for encoding, shown in (("ascii", "b\\xe4r \\udce4"), ("utf-8", "bär \\udce4")):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", terminal)
        say("bär \udce4")
        assert terminal.buffer.getvalue().decode(encoding) == f"{shown}\n"
