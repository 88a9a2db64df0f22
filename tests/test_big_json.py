"""Entries of a json's lists, one by one."""

import json

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
def test_all_entries_come_in_order(layout):
    data = json.dumps(CONTENT, ensure_ascii=False, **layout).encode()
    found = list(entries(b"\n " + data + b"\n", "x"))
    expected = [(key, entry) for key in ("images", "numbers") for entry in CONTENT[key]]
    assert [(key, entry) for key, entry, _ in found] == expected
    assert [json.loads(text) for _, _, text in found] == [entry for _, entry in expected]
    assert list(entries(b"{}", "x")) == []


@pytest.mark.parametrize("data", [b"", b"[1]", b"<html>", b"{'a': []}", b'{"a": [1 2]}', b"\xff"])
def test_what_is_no_such_json_is_named(data):
    with pytest.raises(UserError, match="file.json is not valid json"):
        list(entries(data, "file.json"))


def test_wherever_it_is_cut_off():
    data = json.dumps(CONTENT).encode()
    for end in range(len(data)):
        with pytest.raises(UserError, match="download it again"):
            list(entries(data[:end], "file.json"))
