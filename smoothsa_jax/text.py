"""Text from outside and for the terminal: byte order marks, odd file names, narrow encodings."""

import json
import sys

from smoothsa_jax.checkout import as_started
from smoothsa_jax.errors import UserError


def text_of(data: bytes, where: str) -> str:
    """Decode the contents of a text file: UTF-8, with or without a byte order mark.

    Raises:
        UserError: the file has another encoding; the message calls it `where`.
    """
    encoding = json.detect_encoding(data)  # by the mark, or by where zeros are
    if encoding.startswith("utf-8"):
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            encoding = f"not UTF-8 ({error.reason} at byte {error.start})"
    else:
        encoding = encoding[:6].upper()
    raise UserError(f"{where} is {encoding}, expected text in UTF-8; save it as UTF-8")


def printable(name: str) -> str:
    """The same name as text that can be stored: a byte that is no UTF-8 becomes `\\xe9`.

    Python reads such bytes of file names as lone surrogates, which no encoder accepts.
    """
    try:
        data = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates of another origin, such as JSON
        data = name.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


def short(value: object) -> str:
    """A value for an error message, in one line of at most 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def say(text: str) -> None:
    """Print a line to stdout; what the terminal's encoding lacks becomes escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = as_started(text)
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
