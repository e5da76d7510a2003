"""Odd documents and selectors: each has a definite end, and none disturbs the neighbour that is asked beside it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import structlog
from pydantic import ValidationError

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.html.step import Extracted, Extraction, html, open_processes
from anabranch.shared.contracts.errors import TerminalError
from anabranch.shared.contracts.limits import MAX_HTML_NESTING, MAX_SELECTOR_CHARS, MAX_SELECTORS

HANG_S = 240.0  # generous: the machine may be busy

Ask = Callable[..., "asyncio.Task[Extracted]"]

P = {"p": "p"}
COSTLY = "CpuExceeded or an answer"  # how much it takes is the machine's affair, that it ends is ours

ZOO: dict[str, tuple[str, dict[str, str], Any]] = {
    "nothing": ("", P, {"p": []}),
    "no selection": ("<p>x", {}, {}),
    "no HTML": ("\0\x1b<<<>>&#0;&#xD800;&nosuch;", P, {"p": []}),
    "NULs": ("<p>a\0b</p>", {"n": "p@id"}, {"n": []}),
    "a declared charset": ('<meta charset="hex"><p>é', P, {"p": ["é"]}),
    "as deep as browsers go": ("<div>" * (MAX_HTML_NESTING - 4) + "<p>x", P, {"p": ["x"]}),
    "20,000 divs": ("<div>" * 20_000 + "<p>x", P, "HtmlTooDeep"),
    "60,000 divs": ("<div>" * 60_000 + "<p>x", P, "HtmlTooDeep"),
    "200,000 divs": ("<div>" * 200_000, P, "HtmlTooDeep"),
    "deep at the end": ("<p>x</p>" * 60_000 + "<div>" * 100_000, P, "HtmlTooDeep"),
    "deep by little and little": (("<div>" * 400 + "<p>x</p>" * 8_000) * 12, P, "HtmlTooDeep"),
    "spans": ("<span>" * 100_000, P, "HtmlTooDeep"),
    "tables": ("<table><tr><td>" * 20_000, P, "HtmlTooDeep"),
    "lists": ("<ul><li>" * 50_000, P, "HtmlTooDeep"),
    "drawings": ("<svg>" + "<g>" * 100_000, P, "HtmlTooDeep"),
    "end tags in attributes": ('<div a="</div>">' * 30_000, P, "HtmlTooDeep"),
    "paragraphs that nobody closes": ("<p>x" * 20_000, {"p": "p:first-child"}, {"p": ["x"]}),
    "misnested tags": ("<a><b>" * 200 + "</a>x" * 200, {"n": "nosuch"}, {"n": []}),
    "templates": ("<template>" * 50_000, P, COSTLY),
    "100,000 attributes": ("<p " + " ".join(f"a{n}" for n in range(100_000)) + ">", P, COSTLY),
    "an attribute of 900 KB": (f"<p id='{'x' * 900_000}'>", {"n": "p@class"}, {"n": []}),
    "a tag that nobody closes": ("<p " + "x" * 900_000, P, {"p": []}),
    "a comment that nobody closes": ("<!--" + "<div>" * 100_000, P, "HtmlTooDeep"),
    "more than an output": ("<p>" + "x" * 700_000, {"a": "p", "b": "p"}, "PayloadTooLarge"),
    "the same again and again": ("<div>" * 400 + "x" * 100_000, {"d": "div"}, "PayloadTooLarge"),
    "all of everything": ("<i>x</i>" * 100_000, {str(n): "*" for n in range(MAX_SELECTORS)}, "PayloadTooLarge"),
    "a costly selector": ("<i>x</i>" * 50_000, {"n": "i:has(~ i:has(~ b))"}, COSTLY),
    "counting children": ("<i>x</i>" * 100_000, {"n": "i:nth-last-child(7n+3):nth-of-type(50000)"}, COSTLY),
    "ancestors of ancestors": ("<div>" * 400 + "<i>", {"n": "div " * 200 + "b"}, COSTLY),
    "no selector": ("<p>", {"p": "p["}, "SelectorInvalid"),
    "an empty selector": ("<p>", {"p": ""}, "SelectorInvalid"),
    "selectors in selectors": ("<p>", {"p": ":not(" * 160 + "p" + ")" * 160}, COSTLY),
}

Odd = dict[str, Any]
BASES: dict[str, tuple[Odd, Any]] = {
    "a bad base": ({"base_url": "http://[::1"}, "BaseUrlInvalid"),
    "a bad link": ({"base_url": "http://h/", "html": "<a href='http://[x'>"}, {"a": ["http://[x"]}),
    "an odd base": ({"base_url": "::::"}, {"a": ["b"]}),
}


@asynccontextmanager
async def a_service() -> AsyncIterator[Ask]:
    """Provide the call of `html` with what all attempts share, as a worker has it."""
    async with open_processes() as processes:
        context = StepContext(
            run_id="r", step="s", attempt=1, tenant="t", deadline=0, clock=lambda: 0, log=structlog.get_logger(),
            resource=processes,
        )  # fmt: skip

        def ask(**given: Any) -> "asyncio.Task[Extracted]":
            return asyncio.create_task(html.handler(Extraction.model_validate(given), context))

        async with asyncio.timeout(HANG_S):
            yield ask


def assert_ended(name: str, task: "asyncio.Task[Extracted]", outcome: Any) -> None:
    error = task.exception()
    if error is not None:
        assert isinstance(error, TerminalError), (name, error)
        assert error.error_type in (outcome, "CpuExceeded" if outcome == COSTLY else outcome), (name, error)
    else:
        orjson.dumps(task.result().root)
        assert outcome in (COSTLY, task.result().root), (name, str(task.result())[:200])


@pytest.mark.parametrize(("costly", "cpu_s"), [(False, 60), (True, 1)], ids=["definite", "costly"])
async def test_html_reads_or_refuses_any_document(monkeypatch: pytest.MonkeyPatch, costly: bool, cpu_s: int) -> None:
    """Each document and selector has its outcome, on a slow machine too, beside a neighbour."""
    monkeypatch.setenv("ANABRANCH_HTML_CPU_S", str(cpu_s))
    async with a_service() as ask:
        for name, (text, select, outcome) in ZOO.items():
            if (outcome == COSTLY) != costly:
                continue
            asked = ask(html=text, select=select)
            assert (await ask(html="<p>x", select=P)).root == {"p": ["x"]}
            await asyncio.wait([asked])
            assert_ended(name, asked, outcome)
        for name, (given, outcome) in BASES.items():
            asked = ask(**({"html": "<a href=b>", "select": {"a": "a@href"}} | given))
            await asyncio.wait([asked])
            assert_ended(name, asked, outcome)


async def test_html_that_takes_long_is_killed_with_its_attempt() -> None:
    """A cancelled attempt ends in the middle of a costly document, and the next one is answered."""
    async with a_service() as ask:
        asked = ask(html="<template>" * 100_000 + "<p " + " ".join(f"a{n}" for n in range(40_000)), select=P)
        assert (await ask(html="<p>x", select=P)).root == {"p": ["x"]}
        asked.cancel()
        await asyncio.wait([asked])
        assert (await ask(html="<p>x", select=P)).root == {"p": ["x"]}


def test_html_selectors_are_bounded() -> None:
    """More selectors, or longer ones, than a step may have are no input of it."""
    for select in ({str(n): "p" for n in range(MAX_SELECTORS + 1)}, {"p": "p" * (MAX_SELECTOR_CHARS + 1)}):
        with pytest.raises(ValidationError):
            Extraction.model_validate({"html": "", "select": select})
