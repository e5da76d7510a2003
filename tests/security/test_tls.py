"""Part 9: the gateway's own TLS, on the loop of the tests and on the one that services run on."""

import asyncio
import errno
import functools
import inspect
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography.hazmat.primitives import serialization
from structlog.stdlib import get_logger

from anabranch.client.api import AnabranchClient
from anabranch.client.model import GatewayUntrustedError
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.shared.runtime.errors import UnusableSettings
from anabranch.shared.runtime.tls import ServerCertificate
from tests.security.certificates import Certificates
from tests.security.wire import WITHIN_S, Wire, a_post, a_wire
from tests.unit.gateway.fakes import Bench, a_gateway

DEFINITION = {"name": "p", "steps": {"a": {"uses": "simulate"}}}


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the loop of the other tests and on the one of services, which has TLS of its own."""

    @functools.wraps(test)
    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(**arguments))

    signature = inspect.signature(test)
    new_loop = inspect.Parameter("new_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = signature.replace(parameters=[new_loop, *signature.parameters.values()])  # type: ignore[attr-defined]
    loops = [asyncio.new_event_loop, uvloop.new_event_loop]
    return pytest.mark.parametrize("new_loop", loops, ids=["asyncio", "uvloop"])(run)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates.made(tmp_path)


class Served:
    """A gateway with a certificate whose files may be replaced."""

    def __init__(self, gateway: Bench, certificates: Certificates, certificate: ServerCertificate) -> None:
        self.gateway = gateway
        self.certificates = certificates
        self.certificate = certificate
        self._wires: list[Wire] = []

    @property
    def url(self) -> str:
        return f"https://{self.gateway.client.host}:{self.gateway.client.port}"

    async def wire(self, context: ssl.SSLContext | None = None) -> Wire:
        async with asyncio.timeout(WITHIN_S):
            place = self.gateway.client.host, self.gateway.client.port
            wire = Wire(*await asyncio.open_connection(*place, ssl=context or self.trusting()))
        self._wires.append(wire)
        return wire

    def hang_up(self) -> None:
        for wire in self._wires:
            wire.close()

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.certificates.ca)

    async def failed(self, count: int) -> None:
        """Wait until so many handshakes have failed."""
        async with asyncio.timeout(WITHIN_S):
            while self.gateway.count("tls_handshakes_failed_total") < count:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def served(certificates: Certificates, **settings: Any) -> AsyncIterator[Served]:
    made: list[ServerCertificate] = []

    def certificate(metrics: GatewayMetrics) -> ServerCertificate:
        folder = certificates.folder
        made.append(
            ServerCertificate(
                str(folder / "server.crt"),
                str(folder / "server.key"),
                log=get_logger(),
                replaced=metrics.certificate_replaced,
            )
        )
        return made[0]

    async with a_gateway(certificate=certificate, **settings) as gateway:
        here = Served(gateway, certificates, made[0])
        try:
            yield here
        finally:
            here.hang_up()


def shown(wire: Wire) -> Any:
    """Return the serial number of the certificate that a connection was shown."""
    return wire.writer.get_extra_info("peercert")["serialNumber"]


async def is_answered(wire: Wire) -> bool:
    await wire.send(a_post())
    return (await wire.answer()).status == 202


@on_both_loops
async def test_the_client_submits_over_tls(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an authority of one's own; a gateway of another's is not talked to, nor one by a file that is not there."""
    async with served(certificates) as here:
        monkeypatch.setenv("ANABRANCH_SSL_CAFILE", certificates.ca)
        async with AnabranchClient(here.url) as client:
            assert (await client.submit(DEFINITION)).id
        async with AnabranchClient(here.url, cafile=certificates.stranger) as client:
            with pytest.raises(GatewayUntrustedError, match="ANABRANCH_SSL_CAFILE"):
                await client.submit(DEFINITION)
        with pytest.raises(GatewayUntrustedError, match="ANABRANCH_SSL_CAFILE: /nowhere"):
            await AnabranchClient(here.url, cafile="/nowhere").__aenter__()
    assert len(here.gateway.log.records) == 1


@on_both_loops
async def test_connections_over_tls_are_answered_whenever_they_ask(certificates: Certificates) -> None:
    """Many at once, each with a request that comes right behind the handshake, and another one later."""
    async with served(certificates) as here:

        async def ask() -> bool:
            wire = await here.wire()
            answered = await is_answered(wire) and await is_answered(wire)
            wire.close()
            return answered

        assert all(await asyncio.gather(*(ask() for _ in range(50))))
        assert here.gateway.count("tls_handshakes_failed_total") == 0


@on_both_loops
async def test_a_new_certificate_is_shown_to_who_connects_next(certificates: Certificates) -> None:
    """Without a restart; connections that are open go on. Files that have not changed change nothing."""
    async with served(certificates) as here:
        old = await here.wire()
        assert await is_answered(old)
        here.certificate.look()
        certificates.issue("server")
        here.certificate.look()
        new = await here.wire()
        assert shown(new) != shown(old)
        assert await is_answered(new)
        assert await is_answered(old)
        assert here.gateway.count("tls_certificates_total", works="yes") == 1
        assert here.gateway.count("tls_certificates_total", works="no") == 0
        old.close()
        new.close()


@on_both_loops
async def test_the_files_are_looked_at_by_themselves(certificates: Certificates) -> None:
    """As Kubernetes replaces them: a symbolic link comes to point elsewhere."""
    links, folders = certificates.folder, [certificates.folder / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        certificates.issue("server")
        for name in ("server.crt", "server.key"):
            (links / name).rename(folder / name)
    data = links / "data"
    data.symlink_to(folders[0])
    for name in ("server.crt", "server.key"):
        (links / name).symlink_to(Path("data") / name)
    async with served(certificates) as here:
        first = await here.wire()
        watching = asyncio.create_task(here.certificate.watch(0.01))
        (links / "next").symlink_to(folders[1])
        (links / "next").rename(data)
        async with asyncio.timeout(WITHIN_S):
            while not here.gateway.count("tls_certificates_total", works="yes"):
                await asyncio.sleep(0.01)
        watching.cancel()
        second = await here.wire()
        assert shown(second) != shown(first)
        first.close()
        second.close()


def _without(file: Path) -> None:
    file.unlink()


def _half(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def _of_another(file: Path) -> None:
    Certificates.made(file.parent / "another")
    (file.parent / "another" / file.name).rename(file)


def _locked(file: Path) -> None:
    key = file.with_suffix(".key")
    plain = serialization.load_pem_private_key(key.read_bytes(), password=None)
    lock = serialization.BestAvailableEncryption(b"s3cret")
    key.write_bytes(plain.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))


@on_both_loops
@pytest.mark.parametrize("name", ["server.crt", "server.key"])
@pytest.mark.parametrize("damage", [_without, _half, _of_another, _locked])
async def test_a_pair_that_cannot_be_used_is_not(
    certificates: Certificates, name: str, damage: Callable[[Path], None]
) -> None:
    """The old one is kept, which is said and counted once, until there is one that works."""
    async with served(certificates) as here:
        old = await here.wire()
        damage(certificates.folder / name)
        here.certificate.look()
        here.certificate.look()
        assert here.gateway.count("tls_certificates_total", works="no") == 1
        kept = await here.wire()
        assert shown(kept) == shown(old)
        assert await is_answered(kept)
        certificates.issue("server")
        here.certificate.look()
        assert shown(await here.wire()) != shown(old)
        assert here.gateway.count("tls_certificates_total", works="yes") == 1


def test_a_gateway_does_not_start_with_a_pair_that_cannot_be_used(certificates: Certificates) -> None:
    """Nor with a key alone, which somebody believes to be used."""
    for file in (str(certificates.folder / "nowhere"), certificates.ca):
        with pytest.raises(UnusableSettings, match="ANABRANCH_TLS_CERTIFICATE"):
            ServerCertificate(file, "", log=get_logger(), replaced=lambda _: None)
    with pytest.raises(ValueError, match="ANABRANCH_TLS_KEY"):
        GatewaySettings(tls_key="/nowhere")


@on_both_loops
async def test_old_versions_of_tls_are_refused(certificates: Certificates) -> None:
    """From 1.2 on it is spoken, also with the key in the certificate's file."""
    async with served(certificates) as here:
        assert here.certificate.context.minimum_version == ssl.TLSVersion.TLSv1_2
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = here.trusting()
            context.minimum_version = context.maximum_version = version
            wire = await here.wire(context)
            assert await is_answered(wire)
            wire.close()
    one_file = str(certificates.folder / "server.pem")
    assert ServerCertificate(one_file, "", log=get_logger(), replaced=lambda _: None).context


@on_both_loops
@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
async def test_a_handshake_that_does_not_end_is_dropped(certificates: Certificates, begun: bytes) -> None:
    """In the time of a head."""
    async with served(certificates, head_timeout_s=0.2) as here:
        slow = await a_wire(here.gateway)
        await slow.send(begun)
        await slow.ended()
        await here.failed(1)
        slow.close()


@on_both_loops
async def test_handshakes_that_do_not_end_harm_nobody(certificates: Certificates, caplog: Any) -> None:
    """Others are served, and the gateway ends without waiting for them."""
    async with served(certificates, head_timeout_s=3600) as here:
        slow = [await a_wire(here.gateway) for _ in range(20)]
        wire = await here.wire()
        assert await is_answered(wire)
        wire.close()
    for one in slow:
        await one.ended()
        one.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@on_both_loops
@pytest.mark.parametrize("limit", ["max_connections", "max_connections_of_client"])
async def test_handshakes_are_bounded(certificates: Certificates, limit: str) -> None:
    """As connections are: one too many is dropped, and there is room again when one has gone."""
    async with served(certificates, **{"head_timeout_s": 3600, limit: 2}) as here:
        slow = [await a_wire(here.gateway) for _ in range(2)]
        third = await a_wire(here.gateway)
        await third.ended()
        third.close()
        await here.failed(1)
        slow[0].close()
        await here.failed(2)
        wire = await here.wire()
        assert await is_answered(wire)
        wire.close()
        slow[1].close()


@on_both_loops
async def test_without_descriptors_a_connection_is_ended(
    certificates: Certificates, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one too many, as those over the limit are; nothing is left open, and nothing is logged of it."""

    def no_more(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async with served(certificates, head_timeout_s=3600) as here:
        with monkeypatch.context() as patched:
            patched.setattr(os, "dup", no_more)
            turned_away = await a_wire(here.gateway)
            await turned_away.ended()
            turned_away.close()
            await here.failed(1)
        wire = await here.wire()
        assert await is_answered(wire)
        wire.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@on_both_loops
@pytest.mark.parametrize("limit", ["max_connections", "max_connections_of_client"])
async def test_connections_within_tls_are_bounded(certificates: Certificates, limit: str) -> None:
    """The next one is told so."""
    async with served(certificates, **{limit: 1}) as here:
        first = await here.wire()
        assert await is_answered(first)
        second = await here.wire()
        await second.send(a_post())
        assert (await second.answer()).status == 503
        first.close()
        second.close()


@on_both_loops
@pytest.mark.parametrize("said", [a_post(), b"\x00" * 2000, b"\x16\x03\x01\x00\x05hello"])
async def test_what_is_no_tls_is_hung_up_on(certificates: Certificates, caplog: Any, said: bytes) -> None:
    """Nothing of it is done or answered in plain, nothing is logged as our error, and others are served."""
    async with served(certificates) as here:
        plain = await a_wire(here.gateway)
        await plain.send(said)
        assert b"HTTP" not in await plain.ended()
        await here.failed(1)
        assert here.gateway.log.records == []
        wire = await here.wire()
        assert await is_answered(wire)
        wire.close()
        plain.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@on_both_loops
async def test_who_hangs_up_at_once_is_forgotten(certificates: Certificates, caplog: Any) -> None:
    """As the probes of load balancers do."""
    async with served(certificates) as here:
        for _ in range(20):
            (await a_wire(here.gateway)).close()
        await here.failed(20)
        wire = await here.wire()
        assert await is_answered(wire)
        wire.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
