"""Read a large JSON file of annotations entry by entry, and check what it says.

COCO's JSON files are half a gigabyte, and many times that as Python objects.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from data.family import BadSample
from smoothsa_jax.errors import UserError
from smoothsa_jax.text import short, text_of

_SPACE = re.compile(r"[ \t\r\n]*")
LARGEST = 1e9  # of coordinates in pixels


def entries(data: bytes, where: str) -> Iterator[tuple[str, Any, str]]:
    """Yield the contents of the outermost object, in order.

    Of a list, yield its key, None and "", then for each entry the key, the entry and its text. Of
    any other value, yield its key, the value and "".

    Raises:
        UserError: the JSON is damaged, not in UTF-8, or its outermost value is not an object.
    """
    text = text_of(data, where)
    try:
        yield from _entries(text)
    # From the decoders; at the end of the text; nested too deeply.
    except (ValueError, IndexError, RecursionError) as error:
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
        if not isinstance(key, str):
            raise ValueError(f"found the key {key!r}, expected a text")
        place = after(":", place)
        if text[place] == "[":
            place = skip(place + 1)
            yield key, None, ""
            while text[place] != "]":
                entry, end = decode(text, place)
                yield key, entry, text[place:end]
                place = skip(end)
                place = place if text[place] == "]" else after(",", place)
            place += 1
        else:
            value, place = decode(text, place)
            yield key, value, ""
        place = skip(place)
        place = place if text[place] == "}" else after(",", place)


def is_number(value: Any) -> bool:
    """Whether it is a number of at most LARGEST; JSON in Python's manner also has NaN."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= LARGEST  # not true of NaN


def is_whole(value: Any) -> bool:
    return is_number(value) and math.floor(value) == value


def is_id(value: Any) -> bool:
    """Whether something can be named by it: a whole number of any size, or a text."""
    return isinstance(value, int | str) and not isinstance(value, bool) or is_whole(value)


def sizes_of(height: Any, width: Any, max_pixels: int, where: str) -> tuple[int, int]:
    """The height and width of a picture in pixels.

    Raises:
        BadSample: they are no such numbers, or larger than --max_pixels allows.
    """
    if not all(is_whole(side) and side > 0 for side in (height, width)):
        raise BadSample(
            f"{where}: its json says height {short(height)} and width {short(width)}, expected "
            "two whole numbers from 1; correct the json"
        )
    if height * width > max_pixels:
        raise BadSample(
            f"{where}: its json says {height}x{width} pixels (height x width), more than "
            f"{max_pixels}; raise --max_pixels if you want this"
        )
    return int(height), int(width)


def box_of(value: Any, where: str) -> list[float]:
    """The left, top, width and height of a box in pixels.

    Raises:
        BadSample: it is no such list.
    """
    if not (isinstance(value, list) and len(value) == 4 and all(map(is_number, value))):
        raise BadSample(
            f"{where}: the box is {short(value)}, expected four finite numbers: left, top, width "
            "and height in pixels; correct the json"
        )
    return value


def category_names(kinds: list[Any], where: str) -> dict[Any, str]:
    """The names of categories by their ids, in file order.

    Raises:
        UserError: an id or name is missing, of another type, or not unique.
    """
    found: dict[Any, str] = {}
    for kind in kinds:
        number, name = (kind.get(k) if isinstance(kind, dict) else None for k in ("id", "name"))
        if not (is_id(number) and _is_name(name)):
            raise UserError(
                f"{where} has the category {short(kind)}, expected an id, and a name of one line; "
                "correct the json"
            )
        if number in found:
            raise UserError(
                f"{where} has the category id {number!r} twice ({found[number]} and {name}); "
                "number the categories anew"
            )
        if name in found.values():
            raise UserError(
                f"{where} has the category name {name!r} twice; expected one id for each: join the "
                "two, or rename one"
            )
        found[number] = name
    return found


def _is_name(name: Any) -> bool:
    if not isinstance(name, str) or not name or len(name.splitlines()) != 1:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in name)
