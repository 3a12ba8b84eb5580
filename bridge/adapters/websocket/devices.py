"""Where a client is: its address, through the proxies that are trusted, and what it calls itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from websockets.http11 import Request

from bridge.adapters.websocket.headers import text_of
from bridge.core.model.ledger import DEVICE_CHARS, Device

HOPS_MAX: Final = 20
"""Proxies in a row that are looked through; the address before them counts as the client's."""
_WITH_PORT: Final = re.compile(r"\[([^\]]*)\](?::\d+)?|([^:]*):\d+")


def device_of(
    request: Request, peer: asyncio.BaseTransport, proxies: Sequence[IPv4Network | IPv6Network]
) -> Device:
    """The address of a client and its User-Agent.

    The header X-Forwarded-For is read from its end, as each proxy adds who called it: the first address that is not of
    a trusted proxy is the client's. What comes before it, anybody may have written. At most `HOPS_MAX` are read.
    """
    at = peer.get_extra_info("peername")
    address = _address(str(at[0])) if isinstance(at, tuple) and at else None
    if address is not None and proxies:
        hops = ",".join(request.headers.get_all("X-Forwarded-For")).split(",")[-HOPS_MAX:]
        while hops and _is_one_of(address, proxies):
            before = _address(hops.pop())
            if before is None:
                break
            address = before
    agents = text_of(" ".join(request.headers.get_all("User-Agent")))[:DEVICE_CHARS]
    agent = "".join(char if char.isprintable() else "?" for char in agents)
    return Device("" if address is None else str(address), agent)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address as proxies write it: a port may follow; None where it is none."""
    text = text.strip()
    found = _WITH_PORT.fullmatch(text)
    if found is not None:
        text = found[1] or found[2] or ""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # What comes by IPv4 to a socket of both kinds.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _is_one_of(address: IPv4Address | IPv6Address, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for network in networks)
