"""Entries of a json's lists, one by one."""

import json
from typing import Any

import pytest

from data.big_json import entries
from smoothsa_jax.errors import UserError

CONTENT = {
    "info": {"lists": [1, 2], "text": "]}"},
    "empty": [],
    "images": [{"id": 1, "name": "a, ]b\u00e4"}, {"id": 2, "more": [[1.5], {}]}],
    "year": 2017,
    "numbers": [3, -4.5e3, None, "x"],
}


@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":")}])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_all_entries_come_in_order(layout, mark):
    data = json.dumps(CONTENT, ensure_ascii=False, **layout).replace("\n", "\r\n").encode()
    found: dict[str, Any] = {}
    for key, value, text in entries(mark + b"\n " + data + b"\n", "x"):
        if text:
            assert json.loads(text) == value
            found[key].append(value)
        else:
            found[key] = [] if value is None else value
    assert found == CONTENT
    assert list(entries(mark + b" {} ", "x")) == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_another_encoding_is_named(encoding):
    data = json.dumps(CONTENT).encode(encoding)
    with pytest.raises(UserError, match=f"file.json is {encoding[:6].upper()}, expected .*UTF-8"):
        list(entries(data, "file.json"))


NO_JSON = [b"", b"[1]", b"<html>", b"{'a': []}", b'{"a": [1 2]}', b'{"a"', b'{"a": 1 "b": 2}']
NO_JSON += [b"\xff", b"{1: 2}", b'{"a": ' + b"[" * 100_000]


@pytest.mark.parametrize("data", NO_JSON)
def test_what_is_no_such_json_is_named(data):
    with pytest.raises(UserError, match=r"file.json is not (valid json|UTF-8)"):
        list(entries(data, "file.json"))


def test_wherever_it_is_cut_off():
    data = json.dumps(CONTENT).encode()
    for end in range(len(data)):
        with pytest.raises(UserError, match="download it again"):
            list(entries(data[:end], "file.json"))
