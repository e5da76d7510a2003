"""What is fuzzed of a request before its body is read."""

import gzip
import zlib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

from hypothesis import strategies as st

from anabranch.shared.contracts.limits import MIB
from tests.fuzz.caller import FOLLOWING, Caller, check_answer
from tests.fuzz.guard import MeteredLoop, bounded, close
from tests.fuzz.target import Target
from tests.security.wire import BODY
from tests.unit.gateway.fakes import Bench, a_gateway


def _repeated(*units: bytes) -> st.SearchStrategy[bytes]:
    lengths = st.sampled_from((2, 17, 256, 300, 1024, 8_000, 8_180, 8_200, 20_000, 70_000))
    return st.builds(lambda unit, length: (unit * length)[:length], st.sampled_from(units), lengths)


_JUNK = st.one_of(
    st.binary(max_size=24).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b"")),
    st.sampled_from(
        (
            b"", b" ", b"\t", b",", b";", b"=", b"\x00", b"\xff\xfe", b"\xed\xa0\x80", "é".encode(), b"a\r\n b",
            b"a\x0bb", b'"', b'"\\', b"%00", b"%ff", b"*", b"null", b"-1", b"9" * 400, b"1e999", b"NaN", b"a, b",
            b"a;q=", b"a;q=1e999", b"${{ secrets.X }}", b"../..", b"\x7f", b"\x1b[2J", b"__proto__",
        )
    ),
    _repeated(b"x", b",", b"a,", b" ", b";q=0,", b"\xc3\xa9", b"\xff", b"[", b"%"),
)  # fmt: skip


def _some(*known: bytes) -> st.SearchStrategy[bytes]:
    """Draw a value that is right or nearly so, pieces of several, or junk."""
    right = st.sampled_from(known)
    pieces = st.lists(st.one_of(right, right, _JUNK), min_size=2, max_size=4)
    joined = st.builds(lambda parts, by: by.join(parts), pieces, st.sampled_from((b",", b", ", b";", b" ", b"")))
    cut = st.builds(lambda value, at: value[: at % (len(value) + 1)], right, st.integers(0, 200))
    return st.one_of(right, right, cut, joined, _JUNK)


_ADDRESSES = (
    b"192.0.2.1", b"192.0.2.1:80", b"10.0.0.1", b"127.0.0.1", b"[2001:db8::1]:443", b"2001:db8::1", b"fe80::1%eth0",
    b"::ffff:192.0.2.1", b"[::", b"]", b"1.2.3", b"0x7f.1", b"999.1.1.1", b"unknown", b"::1%" + b"z" * 300,
    b"\xd9\xa1.\xd9\xa2.3.4", b"1.2.3.4/8", b"::ffff:0:0/96",
)  # fmt: skip
_ORIGINS = (
    b"https://a.example", b"null", b"http://x", b"http://[", b"http://[::1]:x", b"http://[::1", b"https://a.example:",
    b"https://u:p@x", b"//x", b"x", b"http://x:99999999", b"http://\xe2\x84\x80.example", b"http://\xef\xbc\x8fx",
    b"http://[v1.x]", b"https://\xff", b"HTTPS://A.EXAMPLE",
)  # fmt: skip
_TRACES = (
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-00",
    b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-else",
    "00-0af7651916cd43dd8448eb211c80319٣-b7ad6b7169203331-01".encode(),
)
_HEADERS: Final[Mapping[bytes, st.SearchStrategy[bytes]]] = {
    b"X-Forwarded-For": _some(*_ADDRESSES),
    b"Forwarded": _some(b"for=192.0.2.1", b'for="[2001:db8::1]:4711";proto=http', b"for=_hidden;by="),
    b"X-Forwarded-Proto": _some(b"https", b"http"),
    b"X-Forwarded-Host": _some(b"a.example"),
    b"Idempotency-Key": _some(b"k", b"8e03978e-40d5-43e8-bc93-6894a57f9324", b'"quoted"', "ü".encode(), b"x" * 255),
    b"X-Request-ID": _some(b"abc-1", b"a" * 128, b"a" * 129, b"a b", "ü".encode()),
    b"traceparent": _some(*_TRACES),
    b"tracestate": _some(b"a=1,b=2"),
    b"Content-Type": _some(
        b"application/json",
        b"application/yaml",
        b"text/yaml; charset=utf-8",
        b"application/json; charset=utf-16",
        b"application/json; charset=",
        b'application/json; charset="',
        b"text/plain",
        b"multipart/form-data",
        b"application/json;;;",
        b"application/json; a*=utf-8''%ff",
        b"application/json; charset*0=u; charset*1=tf-8",
        b"application/json; charset*=utf-8'en'%e2%82%ac",
    ),
    b"Content-Encoding": _some(b"gzip", b"x-gzip", b"deflate", b"identity", b"br", b"zstd", b"gzip, gzip"),
    b"Origin": _some(*_ORIGINS),
    b"Sec-Fetch-Site": _some(b"same-origin", b"cross-site", b"same-site", b"none"),
    b"Access-Control-Request-Method": _some(b"POST", b"DELETE"),
    b"Access-Control-Request-Headers": _some(b"Idempotency-Key, X-API-Key"),
    b"Prefer": _some(b"wait=1", b"respond-async, wait=10", b"return=minimal"),
    b"Accept": _some(b"application/json", b"*/*;q=0.1", b"text/html"),
    b"Accept-Encoding": _some(b"gzip", b"gzip;q=0", b"x-gzip ; q = 1.0", b"br, *;q=0.5", b"identity"),
    b"Authorization": _some(b"Bearer x.y.z", b"Basic dTpw", b"Bearer", b"Digest username=\xff"),
    b"X-API-Key": _some(b"anb_0123456789abcdef_" + b"0" * 64),
    b"Cookie": _some(b"a=b; c=d", b"a=", b'a="\\', b"=; =; ="),
    b"Host": _some(b"x", b"x:80", b"[::1]:8080", b"[", b"x:y", b"a b", b"http://x", b"x@y", "ü.example".encode()),
    b"Expect": _some(b"100-continue", b"200-ok"),
    b"Connection": _some(b"close", b"keep-alive", b"upgrade", b"close, keep-alive"),
    b"Upgrade": _some(b"websocket", b"h2c"),
    b"Range": _some(b"bytes=0-1", b"bytes=-", b"bytes=9-0,1-"),
    b"If-None-Match": _some(b"*", b'W/"x"'),
    b"If-Modified-Since": _some(b"Thu, 26 Nov 2026 07:00:00 GMT", b"Thu, 99 Foo 0000 99:99:99 GMT"),
    b"Date": _some(b"Thu, 26 Nov 2026 07:00:00 GMT"),
    b"X-Odd": _JUNK,
}
_FRAMING: Final[Mapping[bytes, st.SearchStrategy[bytes]]] = {
    b"Content-Length": _some(b"0", b"5", b"+5", b"-1", b"5, 5", b"0x5", b"5_0", b"\xd9\xa5", b"9" * 30, b" 5"),
    b"Transfer-Encoding": _some(
        b"chunked", b"identity", b"chunked, chunked", b"xchunked", b"gzip, chunked", b"\x0bchunked"
    ),
}  # fmt: skip
_ODD_NAMES = st.one_of(
    st.sampled_from((b"", b" ", b"a b", b"a\x00b", "ü".encode(), b"content-type ", b"X_Y", b":", b"x" * 9_000)),
    st.binary(max_size=8),
)


def _of(table: Mapping[bytes, st.SearchStrategy[bytes]]) -> st.SearchStrategy[tuple[bytes, bytes]]:
    return st.sampled_from(sorted(table)).flatmap(lambda name: st.tuples(st.just(name), table[name]))


_SOME_HEADERS = st.one_of(
    st.lists(_of(_HEADERS), max_size=4),
    st.lists(_of(_HEADERS), min_size=1, max_size=12),
    st.lists(st.one_of(_of(_HEADERS), _of(_HEADERS), _of(_FRAMING)), min_size=1, max_size=4),
    st.lists(st.one_of(_of(_HEADERS), st.tuples(_ODD_NAMES, _JUNK)), min_size=1, max_size=4),
    st.builds(lambda one, count: [one] * count, _of(_HEADERS), st.sampled_from((2, 3, 60, 200))),
)
_RUN: Final = b"/v1/runs/0199c0de-0000-7000-8000-000000000000"
_PATHS = st.one_of(
    st.sampled_from(
        (
            b"/v1/runs", b"/v1/runs", b"/v1/runs:batch", b"/v1/pipelines:validate", b"/v1/step-types", _RUN,
            _RUN + b"/cancel", b"/healthz", b"/metrics", b"/docs", b"/openapi.json", b"/nowhere",
        )
    ),
    st.builds(
        lambda path, query: path + b"?" + query,
        st.sampled_from((b"/v1/runs", _RUN, b"/v1/step-types")),
        _some(
            b"wait=0s", b"wait=0", b"wait=", b"wait=-1s", b"wait=0&wait=0", b"wait=9" + b"9" * 30, b"a=b", b"%ff", b"&",
            b"wait=%00",
        ),
    ),
    st.sampled_from(
        (
            b"*", b"x", b"//x/y", b"http://x/v1/step-types", b"http://[", b"http://[::1/v1/runs", b"/%", b"/%ff%fe",
            b"/v1/runs/%2e%2e", b"/v1/runs/../runs", b"/docs/%2e%2e%2f", b"/docs/..%5c", b"/v1/runs/%00", "/ü".encode(),
            b"/\xff", b"/v1/runs/" + b"a" * 7_000, b"/v1/runs/" + b"%41" * 2_600, b"/" * 8_000, b"/#x", b"x:99999",
        )
    ),
    st.binary(min_size=1, max_size=16).map(lambda raw: b"/" + raw),
)  # fmt: skip
_METHODS = st.sampled_from(
    (b"POST", b"POST", b"POST", b"GET", b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"PUT", b"CONNECT", b"TRACE", b"get",
     b"PRI", b"G\x00T", b"X" * 300)
)  # fmt: skip
_VERSIONS = st.sampled_from((b"1.1",) * 12 + (b"1.0", b"1.2", b"2.0", b"0.9", b"1.", b"x", b"1.1 "))
_GZIPPED: Final = gzip.compress(BODY)
_BODIES: Final[Mapping[str, bytes]] = {
    "none": b"",
    "plain": BODY,
    "gzip": _GZIPPED,
    "two members": _GZIPPED + gzip.compress(b" "),
    "many members": gzip.compress(b"") * 70,
    "cut": _GZIPPED[:-5],
    "spoilt": _GZIPPED[:20] + b"\xff\xff" + _GZIPPED[22:],
    "more behind": _GZIPPED + b"junk",
    "zlib": zlib.compress(BODY),
    "raw deflate": zlib.compress(BODY, wbits=-15),
    "bomb": gzip.compress(b" " * (32 * MIB)),
    "deflate bomb": zlib.compress(b"[" * (8 * MIB)),
    "bomb in a bomb": gzip.compress(gzip.compress(b" " * (32 * MIB))),
}


class Requests(Target):
    """Requests as bytes, every header that is looked at and some that are not: an answer of ours, and the next one."""

    name = "requests"
    cases = st.tuples(
        st.one_of(
            st.tuples(st.just(b"POST"), st.just(b"/v1/runs"), st.just(b"1.1")), st.tuples(_METHODS, _PATHS, _VERSIONS)
        ),
        _SOME_HEADERS,
        st.sampled_from(("plain",) * len(_BODIES) + tuple(_BODIES)),
        st.sampled_from(("listed", "any", "none")),
    )

    def open(self) -> None:
        self._loop = MeteredLoop(is_virtual=False)
        self._caller = Caller(self._loop)
        self._opened = AsyncExitStack()
        self._gateways: dict[str, Bench] = self._loop.run_until_complete(self._open())

    async def _open(self) -> dict[str, Bench]:
        found: dict[str, Bench] = {}
        for name, origins in (("listed", "https://a.example"), ("any", "*"), ("none", "")):
            told = {"cors_origins": origins, "trusted_proxies": "127.0.0.0/8, 10.0.0.0/8", "request_log": 1}
            many = {"rate_limit": 10**9, "read_rate_limit": 10**9}
            found[name] = await self._opened.enter_async_context(a_gateway(**told, **many))
        return found

    def close(self) -> None:
        self._loop.run_until_complete(self._opened.aclose())
        close(self._loop)

    def check(self, case: Any) -> None:
        line, headers, body, origins = case
        self._loop.meter.begin_anew()
        with bounded("a turn of the gateway's loop") as meter:
            self._loop.run_until_complete(self._send(self._gateways[origins], line, headers, _BODIES[body]))
            meter.held_s = self._loop.meter.held_s

    async def _send(
        self, gateway: Bench, line: tuple[bytes, bytes, bytes], headers: list[tuple[bytes, bytes]], body: bytes
    ) -> None:
        head, is_plain = _head(line, headers, len(body))
        is_head = line[0] == b"HEAD"
        then = FOLLOWING if is_plain else b""
        found = await self._caller.answers(gateway.client.server, head + body, is_head=is_head, then=then)
        versions = frozenset({505} if line[2] != b"1.1" else ())
        for number, answer in enumerate(found):
            check_answer(answer, head, versions, is_head=is_head and number == 0)
        assert found or not is_plain, f"no answer to {head!r}"
        if is_plain and found[0].headers.get("connection", "").lower() != "close":
            assert [each.status for each in found[1:]] == [200], f"{found[0].status}, and then nothing, to {head!r}"


def _head(line: tuple[bytes, bytes, bytes], headers: list[tuple[bytes, bytes]], length: int) -> tuple[bytes, bool]:
    """Return a head, and whether nothing in it may be taken for the end of a line, the head or the body."""
    names = {name.lower() for name, _ in headers}
    lines = [b"%b %b HTTP/%b" % line]
    lines += [] if b"host" in names else [b"Host: x"]
    lines += [] if b"content-type" in names else [b"Content-Type: application/json"]
    lines += [b"%b: %b" % header for header in headers]
    is_framed = not names & _FRAMING_NAMES
    lines += [b"Content-Length: %d" % length] if is_framed else []
    is_plain = is_framed and not any(b"\r" in each or b"\n" in each for each in lines)
    return b"\r\n".join([*lines, b"", b""]), is_plain


_FRAMING_NAMES: Final = frozenset(name.lower() for name in _FRAMING)
