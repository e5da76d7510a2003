"""Extraction by CSS selectors, on the Lexbor parser."""

import re
from typing import Final
from urllib.parse import urljoin

from pydantic import BaseModel, ConfigDict, Field, RootModel
from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.step_type import step_type
from anabranch.shared.contracts.errors import TerminalError

# The attribute behind the last @: `a[href]@href`. An @ within brackets is part of the selector.
_SELECTION: Final = re.compile(r"(?P<css>.*?)(?:@(?P<attribute>[A-Za-z_:][-\w:.]*))?", re.DOTALL)
_URL_ATTRIBUTES: Final = frozenset({"href", "src", "action", "cite", "data", "formaction", "poster"})


class Extraction(BaseModel):
    """What to take out of which document."""

    model_config = ConfigDict(extra="forbid")

    html: str
    select: dict[str, str] = Field(description="`css` for the text of what matches, `css@attribute` for an attribute.")
    base_url: str | None = Field(None, description="What relative links are resolved against.")


class Extracted(RootModel[dict[str, list[str]]]):
    """By the names of `select`, in the order of the document."""


@step_type("html", description="Extract texts and attributes from HTML with CSS selectors.")
async def html(given: Extraction, context: StepContext) -> Extracted:
    """Take out what was asked for."""
    document = LexborHTMLParser(given.html)
    return Extracted({name: _selected(document, name, how, given.base_url) for name, how in given.select.items()})


def _selected(document: LexborHTMLParser, name: str, how: str, base_url: str | None) -> list[str]:
    match = _SELECTION.fullmatch(how)
    css, attribute = (match["css"], match["attribute"]) if match else (how, None)
    try:
        nodes = document.css(css)
    except (SelectolaxError, ValueError, RuntimeError) as error:
        raise TerminalError(
            f"select.{name}: {css!r} is not a CSS selector: {error}", error_type="SelectorInvalid"
        ) from error
    if attribute is None:
        return [" ".join(node.text().split()) for node in nodes]
    return [_resolved(value, attribute, base_url) for node in nodes if (value := _value(node, attribute)) is not None]


def _value(node: LexborNode, attribute: str) -> str | None:
    if attribute not in node.attributes:
        return None
    return node.attributes[attribute] or ""  # an attribute without a value is there


def _resolved(value: str, attribute: str, base_url: str | None) -> str:
    return value if base_url is None or attribute not in _URL_ATTRIBUTES else urljoin(base_url, value)
