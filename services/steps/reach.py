"""What step services may connect to: the internet, and of all else only what the operator names.

A URL comes from a pipeline, and a redirect from whoever answers: neither may lead to what is behind our own wall. So
the check is on the address of each connection, after names were resolved and just before the socket is made: another
answer of DNS, a redirect or an odd spelling of an address changes nothing.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from anabranch.shared.contracts.errors import TerminalError

SETTING: Final = "ANABRANCH_HTTP_ALLOW"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Beside what Python knows as not global, whose table differs between its versions.
_CLOSED: Final[tuple[Network, ...]] = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16",
            "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
            "168.63.129.16/32",  # the metadata of Azure, on an address of the internet
            "2001::/23",  # protocols of the IETF: Teredo, ORCHID, benchmarks
            "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
        ),
    )
)  # fmt: skip
_UNICAST: Final = ipaddress.ip_network("2000::/3")  # all that IANA has given out; mapped, NAT64, local are elsewhere
_RULE: Final = re.compile(
    r"(?:\[(?P<v6>[^\]]*)\](?P<bits>/\d+)?|(?P<host>[^:\[\]]+)|(?P<bare>[^\[\]]+))(?::(?P<port>\d{1,5}))?"
)


class AddressRefused(TerminalError):
    """An address that step services may not connect to."""


def is_public(address: Address) -> bool:
    """Return whether an address is one of the internet, for everybody to reach."""
    if address.version == 6 and address not in _UNICAST:
        return False
    return address.is_global and not any(address in network for network in _CLOSED)


@dataclass(frozen=True, slots=True)
class _Rule:
    """A network or a name that is allowed, at one port or at all."""

    network: Network | None
    name: str
    port: int | None

    def is_of(self, address: Address, port: int) -> bool:
        return self.network is not None and address in self.network and self.port in (None, port)

    def names(self, host: str, port: int) -> bool:
        return self.network is None and self.name == host and self.port in (None, port)


class Reach:
    """What may be connected to: what is public, and the networks and names of a text like `10.0.0.0/8,api.local:80`.

    A name stands for whatever address it has. Raises `ValueError` for a text that is none.
    """

    def __init__(self, allow: str = "") -> None:
        self._rules = tuple(_rule(part.strip()) for part in allow.split(",") if part.strip())

    def admits(self, address: str, port: int) -> bool:
        """Return whether an address may be connected to."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:  # no address at all
            return False
        return is_public(parsed) or any(rule.is_of(parsed, port) for rule in self._rules)

    def names(self, host: str, port: int) -> bool:
        """Return whether a name may be connected to, whatever its address is."""
        bare = host.rstrip(".").lower()
        return any(rule.names(bare, port) for rule in self._rules)


def _rule(text: str) -> _Rule:
    match = _RULE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} in {SETTING} is no network, address or host, with or without a port")
    port = None if match["port"] is None else int(match["port"])
    where = match["host"] or match["bare"] or f"{match['v6']}{match['bits'] or ''}"
    if match["bare"]:  # IPv6 without brackets has no port
        where, port = text, None
    try:
        return _Rule(ipaddress.ip_network(where, strict=False), "", port)
    except ValueError:
        if match["host"] is None or "/" in where:
            raise ValueError(f"{text!r} in {SETTING} is no network") from None
        return _Rule(None, where.rstrip(".").lower(), port)


def refused(host: str, address: str, port: int) -> AddressRefused:
    """Return the error of a connection that must not be."""
    where = address if host == address else f"{host} ({address})"
    return AddressRefused(
        f"{where} port {port} is no address of the internet; step services connect to it only if {SETTING} names it"
    )


class _Vetted(str):
    """An address that the resolver let through, under the name that was asked for."""

    __slots__ = ()


class _Resolver(AbstractResolver):
    """Answers with the addresses that may be connected to."""

    def __init__(self, reach: Reach, inner: AbstractResolver) -> None:
        self._reach = reach
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if self._reach.names(host, port):
            may_be = found
        else:
            may_be = [each for each in found if self._reach.admits(each["host"], port)]
        if found and not may_be:
            raise refused(host, found[0]["host"], port)
        return [{**each, "host": _Vetted(each["host"])} for each in may_be]

    async def close(self) -> None:
        await self._inner.close()


def connector(reach: Reach, *, per_host: int, resolver: AbstractResolver | None = None) -> aiohttp.TCPConnector:
    """Return a connector that connects to nothing else. Names are resolved for each connection, and not remembered."""

    def open_socket(info: Sequence[Any]) -> socket.socket:
        family, kind, protocol, _, address = info
        if not isinstance(address[0], _Vetted) and not reach.admits(address[0], address[1]):
            raise refused(address[0], address[0], address[1])
        return socket.socket(family, kind, protocol)

    return aiohttp.TCPConnector(
        limit=0,
        limit_per_host=per_host,
        resolver=_Resolver(reach, resolver or aiohttp.ThreadedResolver()),
        use_dns_cache=False,
        socket_factory=open_socket,
    )
