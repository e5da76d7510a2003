"""Requests that a stranger makes us send: they reach the internet and what the operator named, whatever they say."""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.fetch import open_session
from anabranch.services.steps.http.step import http
from anabranch.services.steps.reach import Reach, is_public
from anabranch.services.steps.sql.step import sql
from anabranch.shared.contracts.errors import RetryableError, TerminalError

SETTING = "ANABRANCH_HTTP_ALLOW"

NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "168.63.129.16",
    "169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1",
    "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255",
    "::", "::1", "::8.8.8.8", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1",
    "2001:0:7f00:1::", "2001:10::1", "2001:20::1", "2001:2::1", "2001:db8::1", "2002:7f00:1::1", "2002:a9fe:a9fe::",
    "2002:808:808::", "3fff::1", "4000::1", "5f00::1", "fc00::1", "fd00::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo",
    "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "193.0.0.1", "2606:4700::1111", "2a00:1450::1"]

# Ways to write 127.0.0.1 and its neighbours; {port} is that of a server that would answer.
SPELLINGS = [
    "http://127.0.0.1:{port}/", "http://127.1:{port}/", "http://127.0.1:{port}/", "http://2130706433:{port}/",
    "http://0x7f000001:{port}/", "http://0x7f.0.0.1:{port}/", "http://0x7f.1:{port}/", "http://017700000001:{port}/",
    "http://0177.0.0.1:{port}/", "http://0177.0.0.01:{port}/", "http://127.000.000.001:{port}/",
    "http://①②⑦.0.0.1:{port}/", "http://127。0。0。1:{port}/", "http://%31%32%37.0.0.1:{port}/",
    "http://localhost:{port}/", "http://LOCALHOST:{port}/", "http://localhost.:{port}/", "http://0:{port}/",
    "http://0.0.0.0:{port}/", "http://[::1]:{port}/", "http://[::]:{port}/", "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/", "http://[0:0:0:0:0:ffff:127.0.0.1]:{port}/", "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/", "http://[2002:7f00:1::]:{port}/", "http://[fe80::1%25lo]:{port}/",
    "http://127.0.0.2:{port}/", "http://8.8.8.8@127.0.0.1:{port}/", "http://8.8.8.8%40127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#@8.8.8.8/", "http://127.0.0.1:{port}?@8.8.8.8/", "http://8.8.8.8\\@127.0.0.1:{port}/",
    "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/latest/meta-data/", "http://10.0.0.1/",
    "http://100.100.100.200/latest/meta-data/", "http://192.168.1.1/", "http://224.0.0.1/", "http://255.255.255.255/",
]  # fmt: skip


class Names(AbstractResolver):
    """A DNS of our own: each name has a list of answers, one after the other, the last for ever."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        answers = self.answers[host.removesuffix(".test")]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            ResolveResult(
                hostname=host, host=address, port=port, proto=0, flags=0,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            )
            for address in addresses
        ]  # fmt: skip

    async def close(self) -> None:
        pass


class Site:
    """A server on this machine that notes what it is asked, and redirects to where `to` says."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.requests.append({"path": request.path_qs, "headers": request.headers.copy(), "body": await request.text()})
        headers = {"Connection": "close"}
        to = request.query.get("to", "/loop" if request.path == "/loop" else None)
        if to is not None:
            headers["Location"] = to
            return web.Response(status=int(request.query.get("status", 302)), headers=headers)
        return web.Response(text="inside", headers=headers)


@asynccontextmanager
async def a_site(host: str = "127.0.0.1") -> AsyncIterator[tuple[Site, int]]:
    site = Site()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", site.answer)
    async with TestServer(app, host=host) as server:
        assert server.port is not None
        yield site, server.port


async def asked(names: AbstractResolver | None = None, **given: Any) -> Any:
    """Call `http` with settings of the environment, as its service does."""
    async with open_session(names) as session:
        context = StepContext(
            run_id="r", step="s", attempt=1, tenant="t", deadline=0, clock=lambda: 0, log=structlog.get_logger(),
            resource=session,
        )  # fmt: skip
        async with asyncio.timeout(60):
            return await http.handler(http.input_model.model_validate(given), context)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_of_the_internet_are_refused(address: str) -> None:
    """Each range that is somebody's own is closed, and so is each way to write IPv4 in IPv6."""
    assert not is_public(ipaddress.ip_address(address))
    assert not Reach().admits(address, 80)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_admitted(address: str) -> None:
    """What borders on a closed range is open."""
    assert Reach().admits(address, 443)


@pytest.mark.parametrize(
    ("allow", "address", "port", "admitted"),
    [
        ("10.0.0.0/8", "10.2.3.4", 80, True),
        ("10.0.0.0/8", "11.0.0.0", 80, True), ("10.0.0.0/8", "127.0.0.1", 80, False),
        ("10.0.0.1:8080", "10.0.0.1", 8080, True), ("10.0.0.1:8080", "10.0.0.1", 80, False),
        ("[::1]:80", "::1", 80, True), ("[::1]:80", "::1", 81, False), ("::1", "::1", 81, True),
        ("fd00::/8", "fd00:ec2::254", 80, True), ("[fd00::/8]:443", "fd00::1", 443, True),
        ("127.0.0.1", "::ffff:127.0.0.1", 80, False), (" 10.0.0.1 , ,127.0.0.1", "127.0.0.1", 1, True),
        ("localhost", "127.0.0.1", 80, False),
    ],
)  # fmt: skip
def test_the_setting_names_networks_addresses_and_ports(allow: str, address: str, port: int, admitted: bool) -> None:
    """What is named is open at the port that is named, and nothing else is."""
    assert Reach(allow).admits(address, port) is admitted


@pytest.mark.parametrize("allow", ["http://x", "10.0.0.0/99", "[::1", "[x]", "a:b", "a:1:2x", "/8"])
def test_a_setting_that_is_none_is_refused_at_the_start(allow: str) -> None:
    """A slip must not open or close anything silently."""
    with pytest.raises(ValueError, match=SETTING):
        Reach(allow)


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_no_spelling_of_an_inner_address_is_connected_to(spelling: str) -> None:
    """However it is written, nothing arrives; what is an address fails for good, what is only a name has none."""
    async with a_site() as (site, port):
        with pytest.raises((TerminalError, RetryableError)) as failure:
            await asked(url=spelling.format(port=port))
    assert site.requests == []
    assert failure.value.error_type in ("AddressRefused", "HttpUrlInvalid", "HttpConnectionError")
    if failure.value.error_type == "AddressRefused":
        assert SETTING in str(failure.value)
    if failure.value.error_type == "HttpConnectionError":
        assert "not known" in str(failure.value)


async def test_a_name_that_leads_inside_is_refused() -> None:
    """A name of the internet may have any address."""
    async with a_site() as (site, port):
        for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254"):
            with pytest.raises(TerminalError) as failure:
                await asked(Names(evil=[[address]]), url=f"http://evil.test:{port}/")
            assert failure.value.error_type == "AddressRefused"
            assert address in str(failure.value)
    assert site.requests == []


async def test_a_name_that_changes_its_address_is_looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that was allowed is no leave for the next one (DNS rebinding), also for one that is asked again."""
    async with a_site("127.0.0.1") as (_, port):
        monkeypatch.setenv(SETTING, f"127.0.0.1:{port}")
        names = Names(evil=[["127.0.0.1"], ["127.0.0.2"]])
        assert (await asked(names, url=f"http://evil.test:{port}/")).status == 200
        with pytest.raises(TerminalError) as failure:
            await asked(names, url=f"http://evil.test:{port}/")
        assert failure.value.error_type == "AddressRefused"
        names = Names(evil=[["127.0.0.1"], ["127.0.0.2"]])  # the second is asked for by the redirect
        with pytest.raises(TerminalError) as failure:
            await asked(names, url=f"http://evil.test:{port}/?to=http://evil.test:{port}/")
        assert failure.value.error_type == "AddressRefused"


async def test_of_several_addresses_only_those_of_the_internet_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An inner address among others is left out."""
    async with a_site() as (site, port):
        monkeypatch.setenv(SETTING, f"127.0.0.1:{port}")
        assert (await asked(Names(mixed=[["10.0.0.1", "127.0.0.1"]]), url=f"http://mixed.test:{port}/")).status == 200
        assert len(site.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_looked_at_like_requests(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever answers cannot lead us inside, by no way to write it."""
    async with a_site() as (outside, port), a_site("127.0.0.2") as (inside, inner):
        monkeypatch.setenv(SETTING, f"127.0.0.1:{port}")
        for to in (
            f"http://127.0.0.2:{inner}/", f"//127.0.0.2:{inner}/", f"http://[::ffff:127.0.0.2]:{inner}/",
            f"http://0x7f000002:{inner}/", f"http://2130706434:{inner}/", "http://169.254.169.254/",
        ):  # fmt: skip
            with pytest.raises(TerminalError):
                await asked(url=f"http://127.0.0.1:{port}/", query={"to": to, "status": status})
        assert len(outside.requests) == 6
    assert inside.requests == []


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1:6379/_x", "unix:///var/run/docker.sock",
           "http+unix://%2Fvar%2Frun%2Fdocker.sock/", "data:text/plain,x", "javascript:1"],
)  # fmt: skip
async def test_only_http_is_spoken(to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a URL nor a redirect of another scheme is followed."""
    with pytest.raises(ValueError, match="url"):
        await asked(url=to)
    async with a_site() as (_, port):
        monkeypatch.setenv(SETTING, "127.0.0.1")
        with pytest.raises(TerminalError) as failure:
            await asked(url=f"http://127.0.0.1:{port}/", query={"to": to})
    assert failure.value.error_type == "HttpRedirectInvalid"


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect for us, and looks at no address."""
    async with a_site() as (site, port):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        monkeypatch.setenv(SETTING, f"127.0.0.1:{port}")
        with pytest.raises(TerminalError):
            await asked(url="http://10.0.0.1/")
    assert site.requests == []


async def test_redirects_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that leads on and on is left after a few times."""
    async with a_site() as (site, port):
        monkeypatch.setenv(SETTING, "127.0.0.1")
        with pytest.raises(TerminalError, match="without end"):
            await asked(url=f"http://127.0.0.1:{port}/loop")
    assert len(site.requests) == 10


CREDENTIALS = {
    "Authorization": "Bearer s3cret", "Cookie": "s=s3cret", "Proxy-Authorization": "Basic s3cret",
    "X-API-Key": "s3cret",
    "X-Anabranch-Signature": "s3cret", "webhook-signature": "s3cret", "X-Whatever": "s3cret",
}  # fmt: skip


@pytest.mark.parametrize("back", [False, True])
async def test_credentials_stay_with_the_origin_they_are_for(back: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another port is another origin; one that was left is not trusted with them again."""
    async with a_site() as (own, port), a_site() as (other, foreign):
        monkeypatch.setenv(SETTING, "127.0.0.1")
        to = f"http://127.0.0.1:{foreign}/b" + (f"?to=http://127.0.0.1:{port}/c" if back else "")
        await asked(url=f"http://127.0.0.1:{port}/", query={"to": to}, headers=CREDENTIALS)
        await asked(url=f"http://bob:s3cret@127.0.0.1:{port}/", query={"to": to})
    assert "s3cret" in str(own.requests[0]["headers"])
    assert "Authorization" in own.requests[1 + back]["headers"]
    for request in [*own.requests[1:2][:back], *own.requests[3:], *other.requests]:
        assert "s3cret" not in str(request), request
        assert "Authorization" not in request["headers"]
    assert len(own.requests) == 2 + 2 * back


async def test_credentials_go_with_a_redirect_within_their_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect to another path of the same server is what its owner wants."""
    async with a_site() as (own, port):
        monkeypatch.setenv(SETTING, "127.0.0.1")
        await asked(url=f"http://127.0.0.1:{port}/", query={"to": "/there"}, headers=CREDENTIALS)
    assert all(own.requests[1]["headers"][name] == value for name, value in CREDENTIALS.items())


async def test_a_body_is_not_sent_on_to_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """307 and 308 ask for the body again: another host does not get it."""
    async with a_site() as (_, port), a_site("127.0.0.2") as (other, foreign):
        monkeypatch.setenv(SETTING, "127.0.0.0/8")
        to = {"to": f"http://127.0.0.2:{foreign}/", "status": 307}
        with pytest.raises(TerminalError, match="was not meant"):
            await asked(url=f"http://127.0.0.1:{port}/", method="POST", json={"a": "s3cret"}, query=to)
        assert other.requests == []
        await asked(url=f"http://127.0.0.1:{port}/", query=to)
        assert len(other.requests) == 1


async def test_sql_fetches_its_sources_within_the_same_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A source that leads inside is not loaded."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    async with a_site() as (site, port):
        assert sql.lifespan is not None
        async with sql.lifespan() as tools:
            context = StepContext(
                run_id="r", step="s", attempt=1, tenant="t", deadline=0, clock=lambda: 0, log=structlog.get_logger(),
                resource=tools,
            )  # fmt: skip
            source = {"url": f"http://127.0.0.1:{port}/a.csv"}
            given = sql.input_model.model_validate({"query": "SELECT 1", "sources": {"a": source}})
            with pytest.raises(TerminalError) as failure:
                await sql.handler(given, context)
    assert failure.value.error_type == "AddressRefused"
    assert site.requests == []


def test_the_local_stack_lets_its_steps_reach_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What runs on the same machine is meant to be called, unless the setting says otherwise."""
    from anabranch.deploy.local.stack import LocalStack

    monkeypatch.delenv(SETTING, raising=False)
    stack = LocalStack(tmp_path, bootstrap="127.0.0.1:1", redis_url="redis://127.0.0.1:1")
    assert Reach(stack._common_env()[SETTING]).admits("127.0.0.1", 80)
    assert not Reach(stack._common_env()[SETTING]).admits("169.254.169.254", 80)
    monkeypatch.setenv(SETTING, "")
    assert stack._common_env()[SETTING] == ""
