"""Holds the WebSocket port of a group: found free, kept for the workers, and never listened on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bridge.core.errors import SettingsError


@contextmanager
def held_port(host: str, port: int) -> Iterator[int]:
    """Bind the port (0: any free one) at every address of the host, for sockets of this user that share it.

    Raises SettingsError if somebody has it. SO_REUSEPORT alone would let two groups have one port, and nobody would
    notice. So the port is bound without it first, which fails where anybody listens, or holds it as this does.
    """
    with ExitStack() as stack:
        try:
            for family, kind, protocol, _, address in _addresses(host):
                sock = stack.enter_context(socket.socket(family, kind, protocol))
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # Connections of a bridge that has just stopped do not count.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((address[0], port, *address[2:]))
                port = int(sock.getsockname()[1])
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                # From now on nobody else gets it, also while no worker listens.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError as error:
            problem = f"cannot listen on {host}:{port}: {error.strerror}"
            raise SettingsError("BRIDGE_WS_PORT", problem) from error
        yield port


def _addresses(host: str) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    """Those that asyncio listens on."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(found))
