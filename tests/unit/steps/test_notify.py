"""Webhooks and e-mails, against real servers."""

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiosmtpd.controller import Controller
from pydantic import ValidationError

from anabranch.deploy.local.ports import free_port
from anabranch.services.steps.notify.step import notify
from anabranch.shared.contracts.errors import RetryableError, TerminalError
from tests.unit.steps.test_step_types import call

EMAIL = {"to": "a@example.org", "subject": "größer", "text": "hello\n.\nend"}


@asynccontextmanager
async def a_receiver(status: int = 200, **headers: str) -> AsyncIterator[tuple[str, list[tuple[Any, bytes]]]]:
    got: list[tuple[Any, bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        got.append((request.headers.copy(), await request.read()))
        return web.Response(status=status, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/hook")), got


class _Mailbox:
    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.got: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.got.append(envelope)
        return self.answer


@contextmanager
def a_mail_server(monkeypatch: pytest.MonkeyPatch, answer: str = "250 OK") -> Iterator[list[Any]]:
    mailbox = _Mailbox(answer)
    controller = Controller(mailbox, hostname="127.0.0.1", port=free_port())
    controller.start()
    try:
        monkeypatch.setenv("ANABRANCH_SMTP_HOST", "127.0.0.1")
        monkeypatch.setenv("ANABRANCH_SMTP_PORT", str(controller.port))
        monkeypatch.setenv("ANABRANCH_SMTP_SECURITY", "none")
        yield mailbox.got
    finally:
        controller.stop()


@pytest.mark.parametrize(
    ("given", "key"), [("k3y", b"k3y"), ("whsec_" + base64.b64encode(b"\0\1").decode(), b"\0\1"), (None, b"")]
)
async def test_a_webhook_is_signed_as_its_receiver_checks_it(given: str | None, key: bytes) -> None:
    """The signature is over id, time and the very bytes of the body."""
    async with a_receiver() as (url, got):
        assert await call(notify, webhook=url, json={"a": "é"}, signature=given) == {"told": "webhook", "status": 200}
    headers, body = got[0]
    assert headers["Content-Type"] == "application/json"
    assert headers["webhook-id"] == "r/s"
    if given is None:
        assert "webhook-signature" not in headers
        return
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


@pytest.mark.parametrize(("status", "error"), [(503, RetryableError), (429, RetryableError), (404, TerminalError)])
async def test_a_webhook_that_refuses_is_tried_again_or_not(status: int, error: type[Exception]) -> None:
    """As `http` does."""
    async with a_receiver(status) as (url, _):
        with pytest.raises(error):
            await call(notify, webhook=url, json={})


async def test_a_webhook_that_leads_elsewhere_is_not_followed() -> None:
    """What was signed for one place is not sent to another."""
    async with a_receiver() as (other, got), a_receiver(307, Location=other) as (url, _):
        with pytest.raises(TerminalError):
            await call(notify, webhook=url, json={}, signature="k3y")
    assert got == []


async def test_a_webhook_stays_within_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """A webhook is a URL of a stranger's, too."""
    monkeypatch.setenv("ANABRANCH_HTTP_ALLOW", "")
    async with a_receiver() as (url, got):
        with pytest.raises(TerminalError) as failure:
            await call(notify, webhook=url, json={})
    assert (failure.value.error_type, got) == ("AddressRefused", [])


async def test_an_email_arrives_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subject, text and HTML, to everybody, under an id that is the same for each attempt."""
    from email import message_from_bytes, policy

    with a_mail_server(monkeypatch) as got:
        for attempt in (1, 2):
            email = {**EMAIL, "to": ["a@example.org", "b@example.org"], "html": "<b>hello</b>"}
            assert (await call(notify, attempt=attempt, email=email))["told"] == "email"
    messages = [message_from_bytes(one.content, policy=policy.default) for one in got]
    assert got[0].rcpt_tos == ["a@example.org", "b@example.org"]
    assert messages[0]["Subject"] == "größer"
    assert messages[0]["Message-ID"] == messages[1]["Message-ID"]
    assert messages[0].get_body(("plain",)).get_content().splitlines() == ["hello", ".", "end"]  # type: ignore[union-attr]
    assert messages[0].get_body(("html",)).get_content().strip() == "<b>hello</b>"  # type: ignore[union-attr]


@pytest.mark.parametrize(("answer", "error"), [("554 no", TerminalError), ("451 later", RetryableError)])
async def test_an_email_that_is_refused_is_tried_again_or_not(
    answer: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """5xx is for good, 4xx is not."""
    with a_mail_server(monkeypatch, answer), pytest.raises(error):
        await call(notify, email=EMAIL)


async def test_an_email_without_a_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the setting; a server that is away may come back."""
    with pytest.raises(TerminalError, match="ANABRANCH_SMTP_HOST"):
        await call(notify, email=EMAIL)
    monkeypatch.setenv("ANABRANCH_SMTP_HOST", "127.0.0.1")
    monkeypatch.setenv("ANABRANCH_SMTP_PORT", "1")
    with pytest.raises(RetryableError):
        await call(notify, email=EMAIL)


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "a\r\nBcc: x@y.z"},
        {"subject": "a\nb"},
        {"subject": "\0"},
        {"to": "a@b.c\r\nBcc: x@y.z"},
        {"to": "a@b.c, x@y.z"},
        {"to": "a@b.c>\nRCPT TO:<x@y.z"},
        {"to": "<a@b.c>"},
        {"to": "a b@c"},
        {"to": ""},
        {"to": []},
        {"to": ["a@b.c"] * 51},
        {"to": "a@b.c\n"},
        {"cc": "x@y.z"},
        {"subject": "x" * 257},
    ],
)
async def test_an_email_takes_no_headers_from_its_fields(change: dict[str, Any]) -> None:
    """Neither a line break nor a second address gets in."""
    with pytest.raises(ValidationError):
        await call(notify, email={**EMAIL, **change})
