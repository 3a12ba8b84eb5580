"""Where a client is: through proxies, whatever it writes into its headers."""

from __future__ import annotations

from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any, cast

import pytest
from websockets.datastructures import Headers
from websockets.http11 import Request

from bridge.adapters.websocket.devices import HOPS_MAX, device_of

PROXIES = tuple(map(ip_network, ("10.0.0.0/8", "2001:db8:1::/48")))


class Peer:
    """As a transport, with the address of its other end."""

    def __init__(self, address: object) -> None:
        self.address = address

    def get_extra_info(self, name: str) -> object:
        return self.address


def address(peer: object, *forwarded: str, proxies: Any = PROXIES) -> str:
    headers = Headers([("X-Forwarded-For", value) for value in forwarded])
    return device_of(Request("/ws", headers), cast(Any, Peer(peer)), proxies).address


@pytest.mark.parametrize(
    ("peer", "forwarded", "seen"),
    [
        ("203.0.113.9", ("198.51.100.1",), "203.0.113.9"),  # no proxy of ours: anybody may write that header
        ("10.0.0.1", (), "10.0.0.1"),
        ("10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("6.6.6.6, 198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("6.6.6.6", "198.51.100.1, 10.0.0.2"), "198.51.100.1"),
        ("10.0.0.1", ("198.51.100.1:4711",), "198.51.100.1"),
        ("10.0.0.1", ("[2001:db8:2::7]:4711",), "2001:db8:2::7"),
        ("10.0.0.1", ("2001:db8:2::7",), "2001:db8:2::7"),
        ("2001:db8:1::5", ("198.51.100.1",), "198.51.100.1"),
        ("::ffff:10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("198.51.100.1, unknown",), "10.0.0.1"),  # nothing is known of what comes before
        ("10.0.0.1", ("", ","), "10.0.0.1"),
        ("10.0.0.1", ("10.0.0.3, 10.0.0.2",), "10.0.0.3"),
        ("fe80::1%eth0", (), "fe80::1"),
    ],
)
def test_the_first_address_that_no_trusted_proxy_has(
    peer: str, forwarded: tuple[str, ...], seen: str
) -> None:
    assert address((peer, 4711), *forwarded) == seen


def test_only_so_many_hops_are_looked_through() -> None:
    assert address(("10.0.0.1", 1), "198.51.100.1" + ", 10.0.0.2" * (HOPS_MAX - 1)) == "198.51.100.1"
    assert address(("10.0.0.1", 1), "198.51.100.1, 10.0.0.3" + ", 10.0.0.2" * (HOPS_MAX - 1)) == "10.0.0.3"
    assert (
        address(("10.0.0.1", 1), "198.51.100.1, 10.0.0.4, 10.0.0.3" + ", 10.0.0.2" * HOPS_MAX) == "10.0.0.2"
    )


def test_without_proxies_the_header_is_not_read_and_a_socket_without_address_has_none() -> None:
    assert address(("10.0.0.1", 1), "198.51.100.1", proxies=()) == "10.0.0.1"
    assert address("", "198.51.100.1") == ""
    assert address(None) == ""


def test_a_user_agent_is_cut_and_printable() -> None:
    # As the library reads bytes beyond ASCII.
    sent = ("a\tbü\x85".encode() + b"x" * 1000).decode("latin-1")
    request = SimpleNamespace(headers=SimpleNamespace(get_all=lambda name: [sent]))
    agent = device_of(cast(Request, request), cast(Any, Peer(None)), ()).agent
    assert agent == ("a?bü?" + "x" * 1000)[:400]
