"""Bytes of a client to a JSON value, with line and column of whatever is wrong in them.

JSON is RFC 8259 without duplicate keys. YAML is 1.2 with the core schema (yaml.org/spec/1.2.2 §10.3), so `on` and
`yes` are strings, and without tags, merge keys and further documents. What comes out is JSON with 64-bit integers.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from json.decoder import scanstring  # type: ignore[attr-defined]  # not in the stubs
from typing import Any, Final

import yaml
from yaml.cyaml import CParser  # type: ignore[attr-defined]  # not in the stubs
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.limits import MAX_BODY_BYTES, MAX_INTEGER, MAX_NESTING, MAX_POINTER_CHARS

Position = tuple[int, int]  # line and column, both from 1

_JSON: Final = re.compile(r"application/(json|[\w.+-]+\+json)|text/json")
_YAML: Final = re.compile(r"(application|text)/(yaml|x-yaml|[\w.+-]+\+yaml)")
_MAX_DIGITS: Final = 20  # of a 64-bit integer, with room for zeros in front; Python's own limit is never met


class SourceError(AnabranchError):
    """A body that cannot be read. Line and column are from 1, and None where there is no place to name."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


@dataclass(slots=True)
class _Place:
    """Where a value stands whose line and column are asked for, and those asked for in it by their key or index."""

    position: Position | None = None
    below: dict[str, "_Place"] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A client's body, or a part of it, as a JSON value. Positions are found when asked for: only errors need them.

    `base` is where `value` stands in the body; pointers passed in are those of the body.
    """

    value: Any
    text: str = field(repr=False, default="")
    is_yaml: bool = False
    base: str = ""
    _whole: "Source | None" = field(repr=False, default=None)

    def part(self, *path: str | int) -> "Source":
        """Return the part of the body at the path, which must be there."""
        value = self.value
        for key in path:
            value = value[key]
        return Source(value, self.text, self.is_yaml, self.base + pointer_to(*path), self._whole or self)

    def positions(self, pointers: Iterable[str]) -> dict[str, Position | None]:
        """Return where each value stands, or else the nearest value around it: in one go through the body.

        What is not asked for is passed over, and what comes after the last one is not looked at.
        """
        if self._whole is not None:
            return self._whole.positions(pointers)
        found: dict[str, Position | None] = dict.fromkeys(pointers)
        if not self.text:
            return found
        root, ways = _Place(), {}
        for pointer in found:
            ways[pointer] = _way_to(pointer, self.value, root)
        if self.is_yaml:
            _YamlReader(self.text, root).read()
        else:
            _JsonPlaces(self.text, root).find()
        for pointer, way in ways.items():
            found[pointer] = next((place.position for place in reversed(way) if place.position), None)
        return found

    def position(self, pointer: str) -> Position | None:
        """Return where the value stands, or else the nearest value around it."""
        return self.positions([pointer])[pointer]

    def within(self, place: Position | None, text: str, offset: int) -> Position | None:
        """Return where a character of a string stands that stands at a place: exactly, if its line reads like the
        string up to there.
        """
        if place is None:
            return None
        line = self._lines[place[0] - 1]
        start = place[1] - 1
        start += line[start : start + 1] in ("'", '"')
        return (place[0], start + offset + 1) if line.startswith(text[:offset], start) else place

    @cached_property
    def _lines(self) -> list[str]:
        return self._whole._lines if self._whole is not None else self.text.split("\n")


def pointer_to(*parts: str | int) -> str:
    """Return the JSON Pointer (RFC 6901) of a path."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def _way_to(pointer: str, value: Any, place: _Place) -> list[_Place]:
    """Add the places on the way to a value, as far as there is one, to those that are asked for, and return them."""
    way = [place]
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and key.isascii() and int(key) < len(value):
            value = value[int(key)]
        else:
            break
        place = place.below.setdefault(key, _Place())
        way.append(place)
    return way


def _count(place: _Place) -> int:
    return 1 + sum(_count(each) for each in place.below.values())


def nearest_pointer(pointer: str) -> str:
    """Return the pointer, or that of the nearest value around it which is not too long to be named."""
    while len(pointer) > MAX_POINTER_CHARS:
        pointer = pointer.rpartition("/")[0]
    return pointer


def parse_source(body: bytes, media_type: str = "application/json") -> Source:
    """Return the body's value. Raises `SourceError`, and nothing else."""
    if len(body) > MAX_BODY_BYTES:
        raise SourceError(f"the body has {len(body)} bytes, at most {MAX_BODY_BYTES} are accepted")
    kind = media_type.partition(";")[0].strip().lower()
    if _YAML.fullmatch(kind):
        text = _decode(body)
        return Source(_YamlReader(text).read(), text, is_yaml=True)
    if _JSON.fullmatch(kind):
        text = _decode(body)
        return Source(_read_json(text), text)
    raise SourceError(f"{kind[:80] or 'no media type'} is not read here: send application/json or application/yaml")


def _decode(body: bytes) -> str:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = body[: error.start].decode("utf-8", "replace")
        raise SourceError("the body is not UTF-8", *_position_at(before, len(before))) from error
    if "\0" in text:
        raise SourceError("the body contains a NUL character", *_position_at(text, text.index("\0")))
    return text


def _position_at(text: str, offset: int) -> Position:
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


# ---- JSON ----------------------------------------------------------------------------------------------------------


class _RefusedError(ValueError):
    """Raised inside the JSON parser's hooks, where the position is not known; `literal` is how the text spells it."""

    def __init__(self, message: str, literal: str | None = None) -> None:
        super().__init__(message)
        self.literal = literal


def _read_json(text: str) -> Any:
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise SourceError(f"not JSON: {error.msg}", error.lineno, error.colno) from error
    except _RefusedError as error:
        raise SourceError(str(error), *_json_position_of(text, error.literal)) from error
    _check_json(value, text)
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _RefusedError(f"the key {twice[:80]!r} stands twice in one object")
    return value


def _integer(literal: str, base: int = 10) -> int:
    digits = literal.lstrip("+-0") or "0"
    value = 2 * MAX_INTEGER if len(digits) > _MAX_DIGITS * 2 else int(digits, base)
    value = -value if literal.startswith("-") else value
    if not -MAX_INTEGER - 1 <= value <= MAX_INTEGER:
        raise _RefusedError(f"the integer {literal[:40]} does not fit in 64 bits", literal)
    return value


def _float(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise _RefusedError(f"the number {literal[:40]} is too large", literal)
    return value


def _constant(literal: str) -> None:
    raise _RefusedError(f"{literal} is not JSON", literal)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _check_json(value: Any, text: str) -> None:
    """Refuse what the JSON grammar allows and we do not: deep nesting, NUL, lone surrogates."""
    strings = "\\u" in text  # only an escape can make them
    level = [value]
    for _ in range(MAX_NESTING + 1):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below.extend(one.values())
                if strings:
                    below.extend(one)
            elif isinstance(one, list):
                below.extend(one)
            elif strings and isinstance(one, str):
                _check_string(one)
        if not below:
            return
        level = below
    raise _too_deep()


def _check_string(text: str) -> None:
    if "\0" in text:
        raise SourceError(r"a string contains NUL (\u0000), which no step could store")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise SourceError("a string contains half of a surrogate pair, which is not a character")


def _too_deep(position: Position | tuple[None, None] = (None, None)) -> SourceError:
    return SourceError(f"nested deeper than {MAX_NESTING} levels", *position)


_SPACE: Final = re.compile(r"[ \t\n\r]*")
_JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


def _json_position_of(text: str, literal: str | None) -> Position | tuple[None, None]:
    for match in _JSON_TOKEN.finditer(text) if literal else ():
        if match.group() == literal:
            return _position_at(text, match.start())
    return None, None


class _JsonPlaces:
    """Finds places in a text that is known to be JSON; values that are not asked for are passed over by the parser."""

    _pass_over: Final = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # not in the stubs

    def __init__(self, text: str, root: _Place) -> None:
        self._text = text
        self._root = root
        self._left = _count(root)
        self._line, self._line_start, self._seen = 1, 0, 0

    def find(self) -> None:
        """Give every place its position."""
        self._value(self._next(0), self._root)

    def _value(self, at: int, place: _Place | None) -> int:
        """Return where the value at an offset ends; anything, when all places are found."""
        if place is not None:
            place.position = self._position(at)
            self._left -= 1
        if place is None or not place.below:
            return self._pass_over(self._text, at)[1] if self._left else at
        return self._object(at + 1, place) if self._text[at] == "{" else self._list(at + 1, place)

    def _object(self, at: int, place: _Place) -> int:
        at = self._next(at)
        while self._text[at] != "}" and self._left:
            key, at = scanstring(self._text, self._next(at) + 1)
            at = self._next(self._value(self._next(self._next(at) + 1), place.below.get(key)))
            at = self._next(at + 1) if self._left and self._text[at] == "," else at
        return at + 1

    def _list(self, at: int, place: _Place) -> int:
        at, number = self._next(at), 0
        while self._text[at] != "]" and self._left:
            at = self._next(self._value(at, place.below.get(str(number))))
            at, number = self._next(at + 1) if self._left and self._text[at] == "," else at, number + 1
        return at + 1

    def _next(self, at: int) -> int:
        return _SPACE.match(self._text, at).end()  # type: ignore[union-attr]  # matches nothing too

    def _position(self, at: int) -> Position:
        newlines = self._text.count("\n", self._seen, at)
        if newlines:
            self._line, self._line_start = self._line + newlines, self._text.rfind("\n", self._seen, at) + 1
        self._seen = at
        return self._line, at - self._line_start + 1


@dataclass(frozen=True, slots=True)
class Piece:
    """One value of a list in a body as it is written there, and where it begins."""

    text: str
    line: int
    column: int


def pieces_of(body: bytes, name: str) -> list[Piece] | None:
    """Return the values of the list that is all a JSON object has, under this name; None when a body is no such object.

    They are passed over, not judged: each may be read alone, and is wrong alone. Raises `SourceError`.
    """
    text = _decode(body)
    try:
        spans = _spans(text, name)
    except (ValueError, StopIteration, RecursionError):
        return None
    pieces, line, line_start, seen = [], 1, 0, 0
    for start, end in spans:
        if newlines := text.count("\n", seen, start):
            line, line_start = line + newlines, text.rfind("\n", seen, start) + 1
        seen = start
        pieces.append(Piece(text[start:end], line, start - line_start + 1))
    return pieces


_PASS_OVER: Final = json.JSONDecoder(  # numbers stay texts: those of any length are passed over
    parse_int=str, parse_float=str, parse_constant=str
).scan_once  # type: ignore[attr-defined]  # not in the stubs


def _spans(text: str, name: str) -> list[tuple[int, int]]:
    at = _behind("{", text, 0)
    key, at = scanstring(text, at + 1) if text.startswith('"', at) else ("", at)
    if key != name:
        raise ValueError("something else comes first")
    at = _behind("[", text, _behind(":", text, at))
    spans: list[tuple[int, int]] = []
    while not text.startswith("]", at):
        start = _behind(",", text, at) if spans else at
        end = _PASS_OVER(text, start)[1]
        spans.append((start, end))
        at = _behind("", text, end)
    if _behind("}", text, _behind("]", text, at)) != len(text):
        raise ValueError("something else follows")
    return spans


def _behind(mark: str, text: str, at: int) -> int:
    """Return where the token begins that follows a mark and the space around it. Raises `ValueError`."""
    at = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # matches nothing too
    if not text.startswith(mark, at):
        raise ValueError(f"{mark} is not there")
    return _SPACE.match(text, at + len(mark)).end()  # type: ignore[union-attr]


# ---- YAML ----------------------------------------------------------------------------------------------------------

_NULL: Final = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT: Final = re.compile(r"[-+]?[0-9]+")
_OCTAL: Final = re.compile(r"0o[0-7]+")
_HEX: Final = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_MAY_BE_NUMBER: Final = frozenset("-+.0123456789")
_NO_KEY: Final = object()


_PROLOGUE: Final = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n|%[^\n]*\n)*")


def _check_directives(text: str) -> None:
    """Refuse what libyaml compares with one another, each with all before it, before it says a word."""
    directives = list(re.finditer(r"^%", _PROLOGUE.match(text)[0], re.MULTILINE))  # type: ignore[index]  # may be empty
    if len(directives) > 1:
        raise SourceError("only YAML 1.2 without %TAG is read", *_position_at(text, directives[1].start()))


def _plain(text: str) -> Any:
    """Return what a plain scalar means in the core schema. Raises `_RefusedError`."""
    if text in _NULL:
        return None
    if text[0] in _MAY_BE_NUMBER:
        return _number_or_text(text)
    return _BOOL.get(text, text)


def _number_or_text(text: str) -> Any:
    if _INT.fullmatch(text):
        return _integer(text)
    if _FLOAT.fullmatch(text):
        return _float(text)
    if _OCTAL.fullmatch(text):
        return _integer(text[2:], 8)
    if _HEX.fullmatch(text):
        return _integer(text[2:], 16)
    if _NOT_FINITE.fullmatch(text):
        raise _RefusedError(f"{text} is not a number that JSON has")
    return text


@dataclass(slots=True)
class _Frame:
    """An open mapping or sequence."""

    container: dict[str, Any] | list[Any]
    anchor: str | None
    place: _Place | None
    key: Any = _NO_KEY
    height: int = 1
    weight: int = 1


@dataclass(slots=True, frozen=True)
class _Anchored:
    """What an anchor names: its value, how deep it is nested, and what it would weigh when written out again."""

    value: Any
    height: int
    weight: int


class _YamlReader:
    """Builds one value from libyaml's events, without recursion; or finds places, and stops at the last one."""

    def __init__(self, text: str, root: _Place | None = None) -> None:
        self._text = text
        self._root = root
        self._left = 0 if root is None else _count(root)
        self._frames: list[_Frame] = []
        self._anchors: dict[str, _Anchored | None] = {}  # None while the anchored value is still open
        self._expanded = 0
        self._result: Any = None

    def read(self) -> Any:
        """Return the document's value. Raises `SourceError`."""
        documents = 0
        _check_directives(self._text)
        for event in self._events():
            match event:
                case ScalarEvent():
                    self._scalar(event)
                case MappingStartEvent() | SequenceStartEvent():
                    self._open(event)
                case MappingEndEvent() | SequenceEndEvent():
                    self._close(event)
                case AliasEvent():
                    self._alias(event)
                case DocumentStartEvent():
                    documents += 1
                    self._start(event, documents)
                case _:
                    pass
        if not documents:
            raise SourceError("the body is empty", 1, 1)
        return self._result

    def _events(self) -> Iterator[Any]:
        parser: Any = CParser(self._text)
        try:
            while parser.check_event() and (self._root is None or self._left):
                yield parser.get_event()
        except yaml.reader.ReaderError as error:
            raise SourceError(
                f"not YAML: {error.reason}", *_position_at(self._text, min(int(error.position), len(self._text)))
            ) from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = (mark.line + 1, mark.column + 1) if mark else (None, None)
            raise SourceError(f"not YAML: {error.problem or error.context}", *place) from error
        except yaml.YAMLError as error:
            raise SourceError(f"not YAML: {error}") from error
        finally:
            parser.dispose()

    def _start(self, event: Any, documents: int) -> None:
        if documents > 1:
            raise _yaml_error("a body is one document, here another one starts", event)
        if event.version not in (None, (1, 2)) or event.tags:
            raise _yaml_error("only YAML 1.2 without %TAG is read", event)

    def _scalar(self, event: Any) -> None:
        if event.tag is not None:
            raise _yaml_error(f"tags are not read: {event.tag[:40]}", event)
        value: Any = event.value
        is_key = self._expects_key()
        if event.implicit[0]:  # plain
            value = self._resolve(event, is_key)
        elif "\0" in value:
            raise _yaml_error("a string contains NUL, which no step could store", event)
        if is_key:
            self._take_key(value, event)
        else:
            self._add(value, event)
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(value, 0, 1 + len(event.value))

    def _resolve(self, event: Any, is_key: bool) -> Any:
        if is_key and event.value == "<<":
            raise _yaml_error("merge keys (<<) are YAML 1.1 and not read", event)
        try:
            return _plain(event.value)
        except _RefusedError as error:
            raise _yaml_error(str(error), event) from error

    def _open(self, event: Any) -> None:
        if event.tag is not None:
            raise _yaml_error(f"tags are not read: {event.tag[:40]}", event)
        if self._expects_key():
            raise _yaml_error("a key is a string, here is a mapping or list", event)
        if len(self._frames) >= MAX_NESTING:
            raise _too_deep(_place(event))
        container: dict[str, Any] | list[Any] = {} if isinstance(event, MappingStartEvent) else []
        self._frames.append(_Frame(container, event.anchor, self._add(container, event)))
        if event.anchor is not None:
            self._anchors[event.anchor] = None

    def _close(self, event: Any) -> None:
        frame = self._frames.pop()
        if self._frames:
            around = self._frames[-1]
            around.height = max(around.height, frame.height + 1)
            around.weight += frame.weight
        if frame.anchor is not None:
            self._anchors[frame.anchor] = _Anchored(frame.container, frame.height, frame.weight)

    def _alias(self, event: Any) -> None:
        if event.anchor not in self._anchors:
            raise _yaml_error(f"the alias *{event.anchor[:40]} names no anchor", event)
        anchored = self._anchors[event.anchor]
        if anchored is None:
            raise _yaml_error(f"the alias *{event.anchor[:40]} contains itself", event)
        if len(self._frames) + anchored.height > MAX_NESTING:
            raise _too_deep(_place(event))
        self._expanded += anchored.weight
        if self._expanded > MAX_BODY_BYTES:
            raise _yaml_error("the aliases make the body larger than a body may be", event)
        if self._expects_key():
            self._take_key(anchored.value, event)
            return
        self._add(anchored.value, event)
        if self._frames:
            frame = self._frames[-1]
            frame.height = max(frame.height, anchored.height + 1)
            frame.weight += anchored.weight

    def _asked_for(self) -> _Place | None:
        if not self._frames:
            return self._root
        frame = self._frames[-1]
        if frame.place is None or not frame.place.below:
            return None
        return frame.place.below.get(frame.key if isinstance(frame.container, dict) else str(len(frame.container)))

    def _expects_key(self) -> bool:
        if not self._frames:
            return False
        frame = self._frames[-1]
        return frame.key is _NO_KEY and isinstance(frame.container, dict)

    def _take_key(self, key: Any, event: Any) -> None:
        frame = self._frames[-1]
        if not isinstance(key, str):
            raise _yaml_error(f"a key is a string: put {json.dumps(key)} in quotes", event)
        if key in frame.container:
            raise _yaml_error(f"the key {key[:80]!r} stands twice in one mapping", event)
        frame.key = key
        frame.weight += 1 + len(key)

    def _add(self, value: Any, event: Any) -> _Place | None:
        """Put the value into the open container and return its place, None unless that is asked for."""
        place = self._asked_for()
        if place is not None:
            place.position = _place(event)
            self._left -= 1
        if not self._frames:
            self._result = value
            return place
        frame = self._frames[-1]
        frame.weight += 1 + len(value) if isinstance(value, str) else 1
        if isinstance(frame.container, dict):
            frame.container[frame.key] = value
            frame.key = _NO_KEY
        else:
            frame.container.append(value)
        return place


def _place(event: Any) -> Position:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _yaml_error(message: str, event: Any) -> SourceError:
    return SourceError(message, *_place(event))
