"""A network of its own for a bridge, on which packets to or from the broker or Postgres get lost.

Two namespaces: the bridge is in one; in the other, its far side, proxies listen that go on to the servers. A link
(veth) for the broker and one for Postgres connect them. A cut is a wrong entry in the table of neighbours: frames go to
an address that nobody has, so they are lost without a word, in that direction alone, also those of open connections
(ip-neighbour(8)). Nothing is added to the network of this machine: sockets are made inside of the namespaces.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from enum import Flag, auto
from pathlib import Path
from typing import Final

from benchmarks.chaos.errors import NotPossible
from benchmarks.chaos.proxy import Proxy

TOOLS: Final = ("ip", "nsenter", "unshare")
LOST: Final = "02:00:00:00:00:ff"
"""A hardware address that nobody has."""
MADE_TIMEOUT: Final = 5.0
"""Seconds in which a process must be in a namespace of its own."""
_CLONE_NEWNET: Final = 0x40000000


class Way(Flag):
    """Which packets are lost."""

    OUT = auto()
    """Those that the bridge sends."""
    IN = auto()
    """Those that come to it."""
    BOTH = OUT | IN


class Namespace:
    """A network namespace, with its loopback up. It lives as long as the process that holds it."""

    def __init__(self) -> None:
        # It ends at the end of its standard input, so that it outlives nobody.
        self._holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
        self.path = Path(f"/proc/{self._holder.pid}/ns/net")
        deadline = time.monotonic() + MADE_TIMEOUT
        while not self._is_there():
            if time.monotonic() > deadline or self._holder.poll() is not None:
                self.close()
                raise NotPossible("no network namespace can be made")
            time.sleep(0.005)
        self.ip("link", "set", "lo", "up")

    def _is_there(self) -> bool:
        try:
            return self.path.readlink() != Path("/proc/self/ns/net").readlink()
        except OSError:
            return False

    @property
    def holder(self) -> int:
        """The process that holds it."""
        return self._holder.pid

    def command(self, *arguments: str) -> Sequence[str]:
        """This command, run inside; the process keeps its pid."""
        return ("nsenter", f"--net={self.path}", *arguments)

    def ip(self, *arguments: str) -> None:
        """Run `ip` inside. Raises NotPossible with what it says."""
        done = subprocess.run(self.command("ip", *arguments), capture_output=True, text=True)
        if done.returncode:
            raise NotPossible(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    def socket(self) -> socket.socket:
        """A TCP socket inside; it belongs to the namespace in which it was made (network_namespaces(7))."""
        made: list[socket.socket] = []

        def make() -> None:
            # The namespace is the thread's, and the thread ends here.
            with self.path.open("rb") as there:
                if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), _CLONE_NEWNET):
                    return
            made.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))

        thread = threading.Thread(target=make, name="makes a socket in a namespace")
        thread.start()
        thread.join()
        if not made:
            raise NotPossible("no socket can be made in another network namespace")
        made[0].setblocking(False)
        return made[0]

    def close(self) -> None:
        """End the process that holds it."""
        self._holder.communicate()


class Link:
    """A cable between the far side and the bridge."""

    def __init__(self, far: Namespace, near: Namespace, number: int, name: str) -> None:
        self.name = name
        self._ends = {Way.OUT: near, Way.IN: far}
        """Who sends what is lost in that way."""
        self._macs = {Way.OUT: f"02:00:00:00:{number:02x}:01", Way.IN: f"02:00:00:00:{number:02x}:02"}
        """The addresses of those who it is sent to."""
        # A range for tests of networks (RFC 2544, section 11.2.2).
        self._addresses = {Way.OUT: f"198.18.{number}.1", Way.IN: f"198.18.{number}.2"}
        far.ip(
            *("link", "add", "name", name, "address", self._macs[Way.OUT], "type", "veth"),
            *("peer", "name", name, "address", self._macs[Way.IN], "netns", str(near.holder)),
        )
        for way, owner in ((Way.OUT, far), (Way.IN, near)):
            owner.ip("addr", "add", f"{self._addresses[way]}/30", "dev", name)
            owner.ip("link", "set", name, "up")
        self.heal()

    @property
    def far(self) -> str:
        """The address of the far side."""
        return self._addresses[Way.OUT]

    def cut(self, ways: Way) -> None:
        """Lose from now on what goes these ways."""
        for way in (Way.OUT, Way.IN):
            self._point(way, LOST if way in ways else self._macs[way])

    def heal(self) -> None:
        """Lose nothing from now on."""
        self.cut(Way(0))

    def _point(self, way: Way, mac: str) -> None:
        neighbour = ("neigh", "replace", self._addresses[way], "lladdr", mac, "dev", self.name)
        self._ends[way].ip(*neighbour, "nud", "permanent")


class Network:
    """What one bridge sees: the broker and Postgres, each over a link of its own."""

    def __init__(self, near: Namespace, broker: tuple[Link, Proxy], postgres: tuple[Link, Proxy]) -> None:
        self.broker, amqp = broker
        self.postgres, database = postgres
        self.amqp = (self.broker.far, amqp.port)
        """Where the bridge finds the broker."""
        self.database = (self.postgres.far, database.port)
        """Where it finds Postgres."""
        self.within = near.command()
        """The command that runs another one where the bridge is."""
        self.socket = near.socket
        """Makes a TCP socket where the bridge is."""

    @asynccontextmanager
    async def door(self, port: int) -> AsyncIterator[None]:
        """Reach this port of the bridge's loopback under the same number of this machine's, whatever is cut."""
        here = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        # The port is reserved, by a socket that lets others listen.
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        here.bind(("127.0.0.1", port))
        async with Proxy("127.0.0.1", port, self.socket).listening(here):
            yield


@asynccontextmanager
async def network(broker: tuple[str, int], postgres: tuple[str, int]) -> AsyncIterator[Network]:
    """Two namespaces and what connects them, for the length of the block; the servers are at these addresses. Raises
    NotPossible."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        raise NotPossible(f"needs root, and {', '.join(missing or TOOLS)}")
    async with AsyncExitStack() as stack:
        far, near = (stack.enter_context(closing(Namespace())) for _ in range(2))
        found = []
        for number, (name, address) in enumerate((("broker", broker), ("postgres", postgres)), 1):
            link = Link(far, near, number, name)
            listening = far.socket()
            listening.bind((link.far, 0))
            found.append((link, await stack.enter_async_context(Proxy(*address).listening(listening))))
        yield Network(near, *found)
