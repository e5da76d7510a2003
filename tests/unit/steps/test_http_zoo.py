"""Odd servers: whatever one answers, a request has a definite end, and the neighbour asked beside it does not wait."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import structlog

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.fetch import open_session
from anabranch.services.steps.http.step import Request, http
from anabranch.shared.contracts.errors import RetryableError, TerminalError
from anabranch.shared.contracts.limits import MAX_NESTING, MAX_STEP_OUTPUT_BYTES, MAX_WAIT_S
from anabranch.shared.contracts.nesting import is_too_deep

HANG_S = 120.0  # generous: the machine may be busy
TIMEOUT = "TIMEOUT"  # of servers that never end

Outcome = str | Callable[[dict[str, Any]], bool]


def answer(body: bytes = b"ok", *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """Return a whole response, as it goes over the wire."""
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {size}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def chunked(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


def typed(kind: str, body: bytes) -> bytes:
    return answer(body, f"Content-Type: {kind}")


def text_is(expected: str) -> Outcome:
    return lambda output: bool(output["body"] == expected and output["json"] is None)


def json_is(expected: Any) -> Outcome:
    return lambda output: bool(orjson.dumps(output["json"]) == orjson.dumps(expected))


def header_is(name: str, expected: str) -> Outcome:
    return lambda output: bool(output["headers"].get(name) == expected)


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def unpacked(levels: int) -> Any:
    return orjson.loads(nested(levels))


TEXTS = {
    ("text/plain", b"ok"): "ok",
    ("", b"ok"): "ok",
    ("nonsense", b"ok"): "ok",
    ("text/plain; charset=", b"ok"): "ok",
    ("text/plain; charset=\xe9", b"ok"): "ok",
    ('text/plain; charset="utf-8"', "é".encode()): "é",
    ("text/plain; charset=utf-8", b"\xff\xfe\xff"): "\ufffd",  # a byte order mark wins, an odd byte is marked
    ("text/plain; charset=utf-8", b"a\xffb\xed\xa0\x80"): "a\ufffdb\ufffd\ufffd\ufffd",
    ("text/plain", b"\xef\xbb\xbfok"): "ok",
    ("text/plain; charset=latin-1", b"\xe9"): "é",
    ("text/plain; charset=windows-1252", b"\x80"): "€",
    ("text/plain; charset=utf-16", "é".encode("utf-16")): "é",
    ("text/plain; charset=utf-16le", b"\x00\xd8"): "\ufffd",
    ("text/plain; charset=Shift_JIS", "日本".encode("shift_jis")): "日本",
    ("text/plain; charset=EUC-JP", "日本".encode("euc_jp")): "日本",
    ("text/plain; charset=gb18030", "中".encode("gb18030")): "中",
    ("text/plain; charset=big5", "中".encode("big5")): "中",
    ("text/plain; charset=euc-kr", "한".encode("euc_kr")): "한",
    ("text/plain; charset=koi8-r", "ж".encode("koi8-r")): "ж",
    ("text/plain", b"\0\x1b[2J"): "\0\x1b[2J",
} | {
    (f"text/plain; charset={charset}", rb"\x41+AEE-61"): r"\x41+AEE-61"
    for charset in (
        "hex", "rot13", "idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf-7", "base64", "zlib", "bz2",
        "uu", "quopri", "undefined", "mbcs", "oem", "palmos", "../../etc/passwd", "utf_8_sig" * 100, "no-such",
    )
}  # fmt: skip

JSON = "application/json"
ANSWERS: dict[str, tuple[bytes, Outcome]] = {
    f"{kind!r:.60} {body!r:.30}": (typed(kind, body), text_is(text)) for (kind, body), text in TEXTS.items()
} | {
    "no header at all": (b"HTTP/1.1 200 OK\r\n\r\nok", text_is("ok")),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nok", text_is("ok")),
    "no reason": (answer(status="200"), text_is("ok")),
    "nothing": (answer(b""), text_is("")),
    "204": (answer(b"", status="204 No Content"), text_is("")),
    "304": (answer(b"", status="304 Not Modified"), text_is("")),
    "206": (answer(status="206 Partial Content"), text_is("ok")),
    "100 first": (b"HTTP/1.1 100 Continue\r\n\r\n" + answer(), text_is("ok")),
    "103 first": (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + answer(), text_is("ok")),
    "101": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "HttpStatusError"),
    "a redirect without Location": (answer(status="302 Found"), text_is("ok")),
    # JSON
    "JSON": (typed(JSON, b'{"a": 1}'), json_is({"a": 1})),
    "JSON of another name": (typed("application/problem+json", b"[]"), json_is([])),
    "JSON in UTF-16": (typed(f"{JSON}; charset=utf-16", '"é"'.encode("utf-16")), json_is("é")),
    "JSON with a mark": (typed(JSON, b"\xef\xbb\xbf1"), json_is(1)),
    "JSON that is none": (typed(JSON, b"<html>"), text_is("<html>")),
    "NaN": (typed(JSON, b"NaN"), text_is("NaN")),
    "infinity": (typed(JSON, b"1e999"), text_is("1e999")),
    "one name twice": (typed(JSON, b'{"a": 1, "a": 2}'), json_is({"a": 2})),
    "a lone surrogate": (typed(JSON, rb'"\ud800"'), text_is(r'"\ud800"')),
    "a large integer": (typed(JSON, b"[18446744073709551615]"), json_is([1.8446744073709552e19])),
    "a huge integer": (typed(JSON, b"[-99999999999999999999999]"), json_is([-1e23])),
    "an integer without end": (typed(JSON, b"9" * 5000), text_is("9" * 5000)),
    "as deep as may be": (typed(JSON, nested(MAX_NESTING - 1)), json_is(unpacked(MAX_NESTING - 1))),
    "too deep": (typed(JSON, nested(MAX_NESTING)), text_is(nested(MAX_NESTING).decode())),
    "far too deep": (typed(JSON, nested(100_000)), text_is(nested(100_000).decode())),
    # encodings
    "gzip": (answer(gzip.compress(b"ok"), "Content-Encoding: gzip"), text_is("ok")),
    "deflate": (answer(zlib.compress(b"ok"), "Content-Encoding: deflate"), text_is("ok")),
    "raw deflate": (answer(zlib.compress(b"ok")[2:-4], "Content-Encoding: deflate"), text_is("ok")),
    "broken gzip": (answer(b"not gzip", "Content-Encoding: gzip"), "HttpConnectionError"),
    "an encoding unknown": (answer(b"ok", "Content-Encoding: foo"), text_is("ok")),
    "a bomb": (answer(gzip.compress(bytes(300_000_000), 1), "Content-Encoding: gzip"), "PayloadTooLarge"),
    "chunks": (chunked(b"ok"), text_is("ok")),
    "broken chunks": (chunked(b"ok").replace(b"2\r\n", b"zz\r\n"), "HttpConnectionError"),
    "chunks cut off": (chunked(b"ok")[:-5], "HttpConnectionError"),
    # sizes
    "a wrong length": (answer(b"ok", length=10), "HttpConnectionError"),
    "a length that is none": (answer().replace(b"Length: 2", b"Length: x"), "HttpConnectionError"),
    "two lengths": (answer(b"ok", "Content-Length: 1"), "HttpConnectionError"),
    "too large": (answer(b"x" * (MAX_STEP_OUTPUT_BYTES + 1)), "PayloadTooLarge"),
    "too large when escaped": (answer(bytes(300_000)), "PayloadTooLarge"),
    "too large as text and value": (typed(JSON, b'"' + b"x" * 600_000 + b'"'), "PayloadTooLarge"),
    "large": (answer(b"x" * 900_000), lambda output: output["size"] == 900_000),
    # headers
    "a header twice": (answer(b"", "X-A: 1", "x-a: 2"), header_is("x-a", "1, 2")),
    "a header in Latin-1": (answer(b"", "X-A: caf\xe9"), header_is("x-a", r"caf\udce9")),
    "a flood of headers": (answer(b"", *(f"X-{n}: 1" for n in range(10_000))), "HttpConnectionError"),
    "a header too long": (answer(b"", "X-A: " + "x" * 100_000), "HttpConnectionError"),
    "a header that is none": (answer(b"", "no colon"), "HttpConnectionError"),
    "a header with a NUL": (answer(b"", "X-A: \0"), "HttpConnectionError"),
    # what is no answer
    "garbage": (b"\xff\0garbage\r\n\r\n", "HttpConnectionError"),
    "nothing at all": (b"", "HttpConnectionError"),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-", "HttpConnectionError"),
    "a status of four digits": (answer(status="2000 OK"), "HttpConnectionError"),
    # refusals
    "a refusal in broken gzip": (answer(b"xx", "Content-Encoding: gzip", status="404 X"), "HttpStatusError"),
    "a refusal in hex": (answer(b"xx", "Content-Type: text/plain; charset=hex", status="404 X"), "HttpStatusError"),
    "a refusal cut off": (answer(b"", status="503 X", length=9), "HttpStatusError"),
}  # fmt: skip
for code in (*range(400, 600, 7), 600, 999):
    ANSWERS[f"status {code}"] = (answer(b"no", status=f"{code} X"), "HttpStatusError")

REDIRECTS: dict[str, tuple[str, str | None]] = {
    "relative": ("ok", None),
    "absolute without a scheme": ("//{host}/ok", None),
    "with a space": ("/a b", "HttpStatusError"),
    "loop": ("/redirect/loop", "HttpRedirectInvalid"),
    "file": ("file:///etc/passwd", "HttpRedirectInvalid"),
    "gopher": ("gopher://{host}/", "HttpRedirectInvalid"),
    "data": ("data:text/plain,ok", "HttpRedirectInvalid"),
    "javascript": ("javascript:alert(1)", "HttpRedirectInvalid"),
    "no host": ("http://", "HttpRedirectInvalid"),
    "an odd port": ("http://{host}9999999/", "HttpRedirectInvalid"),
    "an open bracket": ("http://[::1/", "HttpRedirectInvalid"),
    "empty": ("", None),
    "nowhere": ("http://127.0.0.1:1/", "HttpConnectionError"),
}

ENDLESS: dict[str, tuple[bytes, bytes, Outcome]] = {
    "no head": (b"", b"", TIMEOUT),
    "a head that drips": (b"HTTP/1.1 200 OK\r\n", b"", TIMEOUT),
    "headers without end": (b"HTTP/1.1 200 OK\r\n", b"X-A: 1\r\n" * 1000, "HttpConnectionError"),
    "informational answers without end": (b"", b"HTTP/1.1 102 Processing\r\n\r\n", TIMEOUT),
    "no body": (answer(b"", length=9), b"", TIMEOUT),
    "a body that drips": (answer(b"", length=10**9), b"x", TIMEOUT),
    "a body without end": (answer(b"", length=10**15), b"x" * 65536, "PayloadTooLarge"),
    "a refusal without a body": (answer(b"", status="404 X", length=9), b"", "HttpStatusError"),
    "a refusal without end": (answer(b"", status="500 X", length=10**15), b"x" * 65536, "HttpStatusError"),
}


async def drip(writer: asyncio.StreamWriter, first: bytes, more: bytes) -> None:
    """Write without an end."""
    writer.write(first)
    while True:
        writer.write(more)
        await writer.drain()
        await asyncio.sleep(0 if len(more) > 1000 else 0.01)


def answered(path: str, head: bytes) -> bytes:
    """Return a redirect, or what a well-behaved server answers."""
    if not path.startswith("/redirect/"):
        return answer(status="200 OK" if path == "/ok" else "404 X")
    place = REDIRECTS[path.removeprefix("/redirect/").replace("%20", " ")][0]
    host = head.split(b"Host: ")[1].split(b"\r\n")[0].decode()
    place = "/ok" if place == "ok" else place.replace("{host}", host)
    return answer(b"ok", f"Location: {place}", status="302 Found")


@asynccontextmanager
async def a_zoo() -> AsyncIterator[tuple[str, Callable[..., "asyncio.Task[dict[str, Any]]"]]]:
    """Provide the address of a server of every animal, and the call of `http` as a worker makes it."""
    names = {f"/{number}": name for number, name in enumerate(ANSWERS)}
    endless = {f"/endless/{number}": name for number, name in enumerate(ENDLESS)}
    clients: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split()[1].decode()
            if path in endless:
                await drip(writer, *ENDLESS[endless[path]][:2])
            writer.write(ANSWERS[names[path]][0] if path in names else answered(path, head))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has seen enough
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with open_session() as session:
        context = StepContext(
            run_id="r", step="s", attempt=1, tenant="t", deadline=0, clock=lambda: 0, log=structlog.get_logger(),
            resource=session,
        )  # fmt: skip

        async def call(path: str, **given: Any) -> dict[str, Any]:
            url = path if "://" in path else f"http://{host}:{port}{path}"
            output = await http.handler(Request.model_validate({"url": url, **given}), context)
            written = output.model_dump_json(by_alias=True)
            assert len(written.encode()) <= MAX_STEP_OUTPUT_BYTES
            value: dict[str, Any] = output.model_dump(mode="json", by_alias=True)
            assert not is_too_deep(value)
            orjson.dumps(value)
            return value

        try:
            async with asyncio.timeout(HANG_S):
                yield f"{host}:{port}", lambda path, **given: asyncio.create_task(call(path, **given))
        finally:
            server.close()
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


def assert_ended(name: str, task: "asyncio.Task[dict[str, Any]]", outcome: Outcome) -> None:
    """Assert that a request ended as it should, and that its error can be written."""
    error = task.exception()
    if callable(outcome):
        assert error is None, (name, error)
        assert outcome(task.result()), (name, str(task.result())[:300])
        return
    assert isinstance(error, TerminalError | RetryableError), (name, error)
    assert error.error_type == outcome, (name, error)
    orjson.dumps([str(error), error.details])
    assert len(str(error)) < 1000, name
    retried = outcome == "HttpConnectionError" or (error.details or {}).get("status", 0) >= 500
    assert isinstance(error, RetryableError) is retried or (error.details or {}).get("status") in (408, 425, 429), name


async def test_http_reads_or_refuses_any_answer() -> None:
    """Each answer of the zoo has its definite outcome, beside a neighbour."""
    async with a_zoo() as (_, call):
        for number, (name, (_, outcome)) in enumerate(ANSWERS.items()):
            asked = call(f"/{number}")
            assert (await call("/ok"))["body"] == "ok"
            await asyncio.wait([asked])
            assert_ended(name, asked, outcome)


async def test_http_digest_of_any_answer_has_no_body() -> None:
    """With `digest` a bomb is counted and no more, and a charset means nothing."""
    async with a_zoo() as (_, call):
        bomb = call(f"/{list(ANSWERS).index('a bomb')}", body="digest")
        assert (await call("/ok"))["body"] == "ok"
        assert ((await bomb)["size"], (await bomb)["body"]) == (300_000_000, None)


async def test_http_follows_redirects_or_says_what_is_wrong_with_them() -> None:
    """A redirect to what is no http URL, or without end, is not tried again."""
    async with a_zoo() as (_, call):
        for name, (_, error_type) in REDIRECTS.items():
            asked = call(f"/redirect/{name}")
            await asyncio.wait([asked])
            assert_ended(name, asked, error_type or text_is("ok"))


async def test_http_without_an_end_has_one() -> None:
    """What never ends is cut at a limit or at the time that the request has, beside a neighbour."""
    async with a_zoo() as (_, call):
        for number, (name, (_, _, outcome)) in enumerate(ENDLESS.items()):
            asked = call(f"/endless/{number}", timeout="300ms" if outcome == TIMEOUT else "60s")
            assert (await call("/ok"))["body"] == "ok"
            await asyncio.wait([asked])
            if outcome == TIMEOUT:
                assert isinstance(asked.exception(), RetryableError), name
                assert asked.exception().error_type == "HttpTimeout", name  # type: ignore[union-attr]
            else:
                assert_ended(name, asked, outcome)


@pytest.mark.parametrize(
    "given",
    [
        {"url": "http://"}, {"url": "http:///x"}, {"url": "http://[::1"}, {"url": "http://h:99999/"},
        {"url": "http://h:x/"}, {"url": "http://a b/"}, {"url": "http://" + "x" * 300 + "/"},
        {"url": "http://..:80/"}, {"url": "http://h\r\nx: y/"}, {"url": "http://\0/"},
        {"url": "http://127.0.0.1:1/", "headers": {"X": "a\r\nY: b"}},
        {"url": "http://127.0.0.1:1/", "headers": {"X\r\nY": "b"}},
        {"url": "http://127.0.0.1:1/", "headers": {"X": "\0"}},
        {"url": "http://127.0.0.1:1/", "headers": {"": "b"}},
        {"url": "http://127.0.0.1:1/", "headers": {"X": "\ud800"}},
        {"url": "http://127.0.0.1:1/", "content": "\ud800"},
        {"url": "http://127.0.0.1:1/", "json": "\ud800"},
    ],
    ids=repr,
)  # fmt: skip
async def test_http_that_cannot_be_sent_is_not_tried_again(given: dict[str, Any]) -> None:
    """Each odd request fails for good, in words that can be written."""
    async with a_zoo() as (_, call):
        asked = call(given.pop("url"), **given)
        await asyncio.wait([asked])
    error = asked.exception()
    assert isinstance(error, TerminalError), error
    assert error.error_type in ("HttpUrlInvalid", "HttpRequestInvalid")
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("value", "after_s"),
    [("7", 7), (" 7 ", 7), ("9" * 400, None), ("9999999999", MAX_WAIT_S), ("-1", None), ("²", None), ("", None),
     ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_WAIT_S), ("Fri, 31 Dec 99999 23:59:59 GMT", None), ("x" * 8000, None),
     ("Thu, 01 Jan 1970 00:00:00 -0000", None), ("Thu, 01 Jan 1970 00:00:00 +9999", None)],
)  # fmt: skip
async def test_http_reads_any_retry_after(value: str, after_s: float | None) -> None:
    """A delay is bounded by what anything may wait, and what is none asks for none."""
    ANSWERS["retry"] = (answer(b"", f"Retry-After: {value}".encode().decode("latin-1"), status="503 X"), "")
    async with a_zoo() as (_, call):
        asked = call(f"/{list(ANSWERS).index('retry')}")
        await asyncio.wait([asked])
    del ANSWERS["retry"]
    error = asked.exception()
    assert isinstance(error, RetryableError)
    assert error.after_s == after_s


async def test_http_errors_name_no_credentials() -> None:
    """Neither the password nor the query of a URL stands in an error."""
    async with a_zoo() as (host, call):
        for url in (f"http://bob:s3cret@{host}/404?token=s3cret", "http://bob:s3cret@127.0.0.1:1/?token=s3cret"):
            asked = call(url)
            await asyncio.wait([asked])
            assert "s3cret" not in str(asked.exception())
            assert "127.0.0.1" in str(asked.exception())
