"""Addresses that are counted: through proxies that are trusted, IPv6 by network."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from aiohttp import web

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

_NOBODY: Final = "local"  # a UNIX socket has no address
_IPV6_PREFIX: Final = 64  # what a provider gives to one customer: all of it is one client


def networks_of(text: str) -> tuple[Network, ...]:
    """Return the networks of a list with commas, `10.0.0.0/8, ::1`. Raises `ValueError`."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


class Addresses:
    """Finds the address a request comes from, through the proxies that are trusted."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)

    def client(self, request: web.Request) -> str:
        """Return the client's address as it is counted.

        `X-Forwarded-For` is read from the right: each trusted hop vouches for the one before it. What is left of the
        first hop that nobody vouches for, the client may have written itself.
        """
        peer = request.remote or ""
        if not self._trusted:
            return _counted(peer)
        address = _address(peer)
        for hop in _hops(request.headers.getall("X-Forwarded-For", ())):
            if address is None or not self._vouches(address):
                break
            before = _address(hop)
            if before is None:
                break
            address = before
        return _shown(address)

    def is_proxy(self, peer: str) -> bool:
        """Return whether many clients may come from this address."""
        address = _address(peer)
        return address is not None and self._vouches(address)

    def _vouches(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _hops(values: Iterable[str]) -> Iterable[str]:
    return reversed(",".join(values).split(","))


@lru_cache(maxsize=4096)
def _counted(peer: str) -> str:
    return _shown(_address(peer))


def counted_address(peer: str) -> str:
    """Return a peer's address as it is counted: IPv4 whole, IPv6 by /64."""
    return _counted(peer)


def _shown(address: Address | None) -> str:
    if address is None:
        return _NOBODY
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, _IPV6_PREFIX), strict=False))
    return str(address)


def _address(text: str) -> Address | None:
    """Return an address, of `1.2.3.4:567` and `[::1]:80` without the port; None for what is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a listener on this host."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
