"""TLS: what a client trusts, and a server's certificate that is replaced while it is served."""

import asyncio
import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from anabranch.shared.contracts.urls import redacted
from anabranch.shared.runtime.errors import UnusableSettings


def trust(cafile: str, variable: str) -> ssl.SSLContext:
    """Return a client's context that trusts the file's authorities, the system's unless there is one; TLS >= 1.2."""
    try:
        context = ssl.create_default_context(cafile=cafile or None)
    except (OSError, ValueError) as error:
        raise UnusableSettings(f"{variable}: {cafile} has no certificates that can be read ({short(error)})") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def load_pair(context: ssl.SSLContext, certificate: str, key: str, variables: str) -> None:
    """Load a certificate and its key, which may be in one file; `UnusableSettings` names the variables to change."""
    try:
        context.load_cert_chain(certificate, key or None, password="")  # without one OpenSSL would ask the terminal
    except (OSError, ValueError) as error:
        words = f"{variables}: {certificate} and {key or 'its key'} are no pair to use"
        raise UnusableSettings(f"{words} ({short(error)})") from error


def short(error: BaseException) -> str:
    """Return what went wrong in one line; neither aiohttp nor OpenSSL says a secret there."""
    words = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
    return redacted(" ".join(words.split()))


class ServerCertificate:
    """A certificate and its key, from files that somebody renews; who connects now is shown the last pair that works.

    The contents are looked at, not the time of change: Kubernetes swaps a symbolic link, others copy. A pair is loaded
    beside the old one, so that half of it is never served.
    """

    def __init__(
        self, certificate: str, key: str, *, log: FilteringBoundLogger, replaced: Callable[[bool], None]
    ) -> None:
        self._certificate, self._key = certificate, key
        self._log = log
        self._replaced = replaced
        self._seen = self._contents()
        self.context = self._loaded()

    async def watch(self, every_s: float) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(self.look)  # a file may be far away

    def look(self) -> None:
        """Take the pair in the files if it is another one and works, else keep the old one and say why."""
        contents = self._contents()
        if contents == self._seen:
            return
        why, context = "", self.context
        try:
            context = self._loaded()
        except UnusableSettings as error:
            why = str(error)
        if self._contents() != contents:
            return  # being replaced: the next look sees both
        self._seen = contents
        self.context = context
        self._replaced(not why)
        if why:
            self._log.error("the new certificate cannot be used, the old one is kept", why=why)
        else:
            self._log.info("the certificate was replaced", certificate=self._certificate)

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["http/1.1"])
        load_pair(context, self._certificate, self._key, "ANABRANCH_TLS_CERTIFICATE, ANABRANCH_TLS_KEY")
        return context

    def _contents(self) -> tuple[str, ...]:
        return tuple(_content(file) for file in (self._certificate, self._key) if file)


def _content(file: str) -> str:
    """Return what tells a file's content from another, or why there is none."""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        return short(error)
