"""Ports for the processes that a run starts."""

from __future__ import annotations

import atexit
import socket

_held: list[socket.socket] = []


def reserved_port() -> int:
    """A port of loopback that is ours until this process ends.

    It stays bound here, without listening: the kernel does not give it out again, and no outgoing connection gets it
    as its own, while a server that sets SO_REUSEADDR, as asyncio's do, may listen on it again and again
    (socket(7)).
    """
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    # Set only after binding: with this option set before, the kernel gives out a port that others share.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _held.append(held)
    return int(held.getsockname()[1])


@atexit.register
def _let_go() -> None:
    for held in _held:
        held.close()
