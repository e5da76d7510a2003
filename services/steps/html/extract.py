"""Extraction by CSS selectors, on the Lexbor parser. Blocking, at worst slow: runs in a process to be killed."""

import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import orjson
from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

from anabranch.shared.contracts.limits import MAX_HTML_NESTING, MAX_STEP_OUTPUT_BYTES
from anabranch.shared.runtime.killable_child import Refused

# The attribute behind the last @: `a[href]@href`. An @ within brackets is part of the selector.
_SELECTION: Final = re.compile(r"(?P<css>.*?)(?:@(?P<attribute>[A-Za-z_:][-\w:.]*))?", re.DOTALL)
_URL_ATTRIBUTES: Final = frozenset({"href", "src", "action", "cite", "data", "formaction", "poster"})
_PIECE_NESTING: Final = 4 * MAX_HTML_NESTING  # cut out of a script or a comment, it may look deeper than it is
_PIECE_CHARS: Final = 64 * 1024  # of nothing but tags, it is parsed in less than a second


def answer(given: dict[str, Any]) -> bytes:
    """Return what was asked for as JSON: by name, the texts or attributes of what matches."""
    base_url = given["base_url"]
    _check_base(base_url)
    document = _parsed(given["html"])
    room, lists = MAX_STEP_OUTPUT_BYTES, []
    for name, how in given["select"].items():
        found = []
        for value in _selected(document, name, how, base_url):
            found.append(orjson.dumps(value))
            room -= len(found[-1]) + 1
            if room < 0:
                raise Refused(
                    f"what is selected is larger than a step may output ({MAX_STEP_OUTPUT_BYTES} bytes)",
                    "PayloadTooLarge",
                )
        lists.append(b"%b:[%b]" % (orjson.dumps(name), b",".join(found)))
    return b"{%b}" % b",".join(lists)


def _parsed(text: str) -> LexborHTMLParser:
    """Parse a document that is not too deep. Parsing takes the square of the depth: a large one is tried in pieces."""
    if len(text) > _PIECE_CHARS:
        for start in range(0, len(text), _PIECE_CHARS):
            _shallow(text[start : start + _PIECE_CHARS], _PIECE_NESTING)
    return _shallow(text, MAX_HTML_NESTING)


def _shallow(text: str, limit: int) -> LexborHTMLParser:
    document = LexborHTMLParser(text)
    if text.count("<") > limit and any(depth > limit for depth in _depths(document.root)):
        raise Refused(f"the document nests elements more than {MAX_HTML_NESTING} levels deep", "HtmlTooDeep")
    return document


def _depths(root: LexborNode | None) -> Iterator[int]:
    """Yield the depth of every node."""
    node, depth = root, 1
    while node is not None:
        yield depth
        if (child := node.child) is not None:
            node, depth = child, depth + 1
            continue
        while node is not None and node.next is None:
            node, depth = node.parent, depth - 1
        node = node and node.next


def _selected(document: LexborHTMLParser, name: str, how: str, base_url: str | None) -> Iterator[str]:
    match = _SELECTION.fullmatch(how)
    css, attribute = (match["css"], match["attribute"]) if match else (how, None)
    try:
        nodes = document.css(css)
    except (SelectolaxError, ValueError, RuntimeError) as error:
        raise Refused(f"select.{name}: {css!r} is not a CSS selector: {error}", "SelectorInvalid") from error
    for node in nodes:
        if attribute is None:
            yield " ".join(node.text().split())
        elif (value := _value(node, attribute)) is not None:
            yield _resolved(value, attribute, base_url)


def _value(node: LexborNode, attribute: str) -> str | None:
    attributes = node.attributes
    if attribute not in attributes:
        return None
    return attributes[attribute] or ""  # an attribute without a value is there


def _check_base(base_url: str | None) -> None:
    try:
        urlsplit(base_url or "")
    except ValueError as error:
        raise Refused(f"base_url is not a URL: {error}", "BaseUrlInvalid") from error


def _resolved(value: str, attribute: str, base_url: str | None) -> str:
    if base_url is None or attribute not in _URL_ATTRIBUTES:
        return value
    try:
        return urljoin(base_url, value)
    except ValueError:  # no URL: it is what the document says
        return value
