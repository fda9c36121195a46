"""Where webhooks may be sent: to public addresses, and to networks that the operator allows.

A name is looked up once for each delivery, all its addresses are checked, and the connection goes to one that was
checked: what the name means a moment later (DNS rebinding) does not matter.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import NamedTuple
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
NOT_PUBLIC = [
    ipaddress.ip_network(text)
    for text in ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4",
                 "::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "5f00::/16", "fec0::/10")
]  # fmt: skip
"""Beyond what Python's `is_global` knows in all versions."""
_NAT64 = IPv6Network("64:ff9b::/96")
_HOST = re.compile(r"(?=.{1,253}$)([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_-]{1,63}")


class Refused(ValueError):
    """An address that nothing is sent to; says why."""


class Target(NamedTuple):
    """A URL, taken apart."""

    https: bool
    host: str
    port: int
    path: str
    """With its query."""


def networks(text: str) -> list[Network]:
    """Networks with commas between. Raises ValueError."""
    return [ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip()]


def target(url: str) -> Target:
    """Raises Refused where the URL is none that two programs would read alike."""
    if not url.isascii() or re.search(r"[\x00-\x20\x7f\\^`{|}<>\"]", url):
        raise Refused("the URL has characters that must be percent-encoded, or a name that must be in punycode")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Refused("the URL cannot be read") from None
    if parts.scheme not in ("https", "http"):
        raise Refused("the URL must begin with https:// or http://")
    if "@" in parts.netloc:
        raise Refused("the URL must hold no user or password")
    if parts.fragment or url.endswith("#"):
        raise Refused("the URL must have no fragment (`#…`)")
    host = (parts.hostname or "").removesuffix(".")
    literal = parts.netloc.startswith("[")
    if literal:
        try:
            IPv6Address(host)
        except ValueError:
            raise Refused("the URL's host is no IPv6 address") from None
        if "%" in host:
            raise Refused("the URL's host must have no zone (`%…`)")
    elif not _HOST.fullmatch(host):
        raise Refused("the URL's host is no name and no address")
    if port == 0:
        raise Refused("the URL's port must be 1 to 65535")
    path = parts.path or "/"
    https = parts.scheme == "https"
    return Target(https, host, port or (443 if https else 80), f"{path}?{parts.query}" if parts.query else path)


def resolved(to: Target, allowed: Sequence[Network]) -> list[str]:
    """The addresses of the host, all of them checked. Raises Refused, and OSError where it has none."""
    found = socket.getaddrinfo(to.host, to.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    if not addresses:
        raise OSError("the name has no address")
    for text in addresses:
        check(to, text, allowed)
    return addresses


def check(to: Target, text: str, allowed: Sequence[Network]) -> None:
    """Raises Refused unless a connection to that address may be made."""
    if "%" in text:
        raise Refused("the host's address belongs to one link")
    address = ipaddress.ip_address(text)
    meant = _meant(address)
    if any(each in network for network in allowed for each in {address, *meant}):
        return
    if not all(_is_public(each) for each in (address, *meant)):
        raise Refused("the host's address is not public: the operator allows networks in ESPALIER_WEBHOOK_ALLOW")
    if not to.https:
        raise Refused("a public address is sent to over https only")


def _meant(address: Address) -> list[Address]:
    """IPv4 addresses that an IPv6 one stands for."""
    if isinstance(address, IPv4Address):
        return []
    found: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return _is_public(address.ipv4_mapped)
    unusual = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not unusual and not any(address in network for network in NOT_PUBLIC)
