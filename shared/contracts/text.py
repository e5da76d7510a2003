"""Text that can be written: what UTF-8 has no bytes for is shown escaped instead of raising.

Python makes lone surrogates of file names and of JSON's `\\udcff`; no encoder of a record, of Redis or of HTTP takes
them.
"""

import json
from collections.abc import Mapping
from typing import Any
from unicodedata import category


def writable(text: str) -> str:
    r"""Return the text with each lone surrogate written out as `\udcff`; any other text comes back as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def holds_nul(value: Any) -> bool:
    """Return whether a text or a key within a JSON value has a NUL in it. Does not recurse."""
    todo = [value]
    for one in todo:  # which grows
        if type(one) is str:
            if "\0" in one:
                return True
        elif type(one) is list:
            todo += _held(one)
        elif isinstance(one, Mapping):
            todo += one
            todo += one.values()
    return False


def _held(values: list[Any]) -> list[Any]:
    """Return what a list holds, all texts as one: a join is a tenth of a loop."""
    texts = [each for each in values if type(each) is str]
    return ["".join(texts), *(each for each in values if type(each) is not str)]


def printable(text: str, keep: str = "") -> str:
    """Return a text as a terminal may show it: what could steer one, or turn its line round, is escaped.

    That is all that Unicode calls control, format, surrogate, private, unassigned or a line's end, but for `keep`.
    The escapes are those of JSON, so that JSON that is shown so still says the same.
    """
    if text.isprintable():
        return text
    return "".join(each if each in keep or _is_seen(each) else json.dumps(each)[1:-1] for each in text)


def _is_seen(character: str) -> bool:
    return character.isprintable() or category(character) == "Zs"  # spaces of other widths
