"""Values that nobody may read, taken out of what is said: whatever an answer, a log line or an error repeats of them.

This guards against slips, not against whoever writes the pipeline: a value that is turned round is another text.
"""

import html
import json
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from urllib.parse import quote, quote_plus, urlsplit

from anabranch.shared.contracts.limits import MIN_HIDDEN_CHARS
from anabranch.shared.contracts.urls import HIDDEN, redacted, shown_url, without_credentials

_PIECE_CHARS: Final = 16  # of what is cut off: so much of a value, or two thirds of a shorter one, is hidden as well
_LINE_CHARS: Final = 8  # of a value of several lines, each is one: shorter ones are braces
_ESCAPE: Final = re.compile(r"%[0-9A-F]{2}")
_IN_QUERIES: Final = "-._~!$'()*,/:;@?"  # what URL libraries leave as it is there
_AS_THEY_ARE: Final = ("", "/", _IN_QUERIES, "-._~!$'()*,:;@&=+/")  # the last: in paths (RFC 3986 §3.3)


class Hiding:
    """Shows texts without the values it knows: as they are, and as JSON, URLs, HTML, Python, base64 and hex have them.

    A value of fewer than `MIN_HIDDEN_CHARS` is hidden only where it is the whole text.
    """

    __slots__ = ("_forms", "_short", "values")

    def __init__(self, values: Iterable[str]) -> None:
        self.values = tuple(dict.fromkeys(value for value in values if value))
        self._short = frozenset(value for value in self.values if len(value) < MIN_HIDDEN_CHARS)
        forms = {form for value in self.values if value not in self._short for form in _forms(value)}
        self._forms = sorted(forms, key=lambda form: (-len(form), form))  # what contains another goes first

    def whole(self, text: str) -> str:
        """Return a text without the values. Pieces of them stay: an output may have such texts of its own."""
        if text in self._short:
            return HIDDEN
        for form in self._forms:
            if form in text:
                text = text.replace(form, HIDDEN)
        return text

    def text(self, text: str) -> str:
        """Return a text for people to read without the values, and without pieces of them where one was cut off."""
        text = self.whole(text)
        for form in self._forms:
            text = _without_beginnings(text, form)
            text = _without_beginnings(text[::-1], form[::-1])[::-1]
        return text

    def output(self, value: Any) -> Any:
        """Return a JSON value, of bounded depth, without the values in its texts, names and numbers."""
        return self._walked(value, self.whole)

    def told(self, value: Any) -> Any:
        """Return a JSON value for people to read, of bounded depth, as `text` does a text."""
        return self._walked(value, self.text)

    def _walked(self, value: Any, shown: Callable[[str], str]) -> Any:
        match value:
            case str():
                return shown(value)
            case dict():
                return {shown(key): self._walked(each, shown) for key, each in value.items()}
            case list():
                return [self._walked(each, shown) for each in value]
            case int() | float() if str(value) in self._forms:
                return HIDDEN
            case _:
                return value


NOTHING_HIDDEN: Final = Hiding(())


def _without_beginnings(text: str, form: str) -> str:
    """Return a text without what begins as a form does and breaks off, if that is enough of it to matter."""
    size = min(_PIECE_CHARS, max(MIN_HIDDEN_CHARS, 2 * len(form) // 3))
    beginning, shown, done = form[:size], list[str](), 0
    while (at := text.find(beginning, done)) >= 0:
        end = at + size
        while end < len(text) and end - at < len(form) and text[end] == form[end - at]:
            end += 1
        shown += (text[done:at], HIDDEN)
        done = end
    return "".join([*shown, text[done:]]) if shown else text


def _forms(value: str) -> Iterator[str]:
    """Yield how a value may be written where it is repeated, but for what is too short to be told from other texts."""
    texts = [value, *(line for each in value.splitlines() if len(line := each.strip()) >= _LINE_CHARS)]
    if "://" in value:
        texts += [redacted(value), without_credentials(value), shown_url(value), *_normal(value)]
    for text in texts:
        yield from (form for form in _written(text) if len(form) >= MIN_HIDDEN_CHARS)
    yield from (form for form in _encoded(value.encode()) if len(form) >= MIN_HIDDEN_CHARS)


def _written(text: str) -> Iterator[str]:
    """Yield the escaped forms of a text."""
    yield text
    for escaped in (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
        yield escaped
        yield json.dumps(escaped, ensure_ascii=False)[1:-1]  # JSON within a text within JSON
        yield escaped.replace("/", "\\/")
    yield repr(text)[1:-1]
    yield ascii(text)[1:-1]
    yield html.escape(text)
    yield html.escape(text, quote=False)
    for quoted in (*(quote(text, safe) for safe in _AS_THEY_ARE), quote_plus(text), quote_plus(text, _IN_QUERIES)):
        yield quoted
        yield _ESCAPE.sub(lambda escape: escape[0].lower(), quoted)


def _encoded(raw: bytes) -> Iterator[str]:
    """Yield what base64 and hex make of bytes, wherever they stand in what is encoded (RFC 4648 §4, §5, §8)."""
    yield raw.hex()
    yield raw.hex().upper()
    for before in range(3):  # six bits a character: what stands before shifts them
        first, last = (8 * before + 5) // 6, 8 * (before + len(raw)) // 6  # those that are of these bytes alone
        for encoder in (b64encode, urlsafe_b64encode):
            yield encoder(b"\0" * before + raw).decode()[first:last]


def _normal(url: str) -> Iterator[str]:
    """Yield a URL as libraries write it again."""
    try:
        parts = urlsplit(url)
    except ValueError:  # it is no URL
        return
    parts = parts._replace(netloc=parts.netloc.lower(), path=parts.path or "/")
    yield parts.geturl()
    yield without_credentials(parts.geturl())
