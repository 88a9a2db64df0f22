"""Read the lists of a large JSON file entry by entry.

COCO's JSON files are half a gigabyte, and many times that as Python objects.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from smoothsa_jax.errors import UserError

_SPACE = re.compile(r"[ \t\r\n]*")


def entries(data: bytes, where: str) -> Iterator[tuple[str, Any, str]]:
    """Yield the entries of all lists in the outermost object: the list's key, the entry, its text.

    Raises:
        UserError: the JSON is damaged, or its outermost value is not an object.
    """
    try:
        text = data.decode()
        yield from _entries(text)
    except (ValueError, IndexError) as error:  # from the decoders; at the end of the text
        raise UserError(
            f"{where} is not valid json ({error or 'it ends too early'}); download it again"
        ) from error


def _entries(text: str) -> Iterator[tuple[str, Any, str]]:
    decode = json.JSONDecoder().raw_decode

    def skip(place: int) -> int:
        return _SPACE.match(text, place).end()

    def after(expected: str, place: int) -> int:
        place = skip(place)
        if text[place] not in expected:
            raise ValueError(f"found {text[place]!r} at character {place}, expected {expected!r}")
        return skip(place + 1)

    place = after("{", 0)
    while text[place] != "}":
        key, place = decode(text, place)
        place = after(":", place)
        if text[place] == "[":
            place = skip(place + 1)
            while text[place] != "]":
                entry, end = decode(text, place)
                yield key, entry, text[place:end]
                place = skip(end)
                place = place if text[place] == "]" else after(",", place)
            place += 1
        else:
            _, place = decode(text, place)
        place = skip(place)
        place = place if text[place] == "}" else after(",", place)
