"""A process that publishes with confirms, faster than any bridge takes: one socket, and frames made in bulk.

It reads commands as JSON lines from stdin, answers each with one line, and ends with its stdin. All bodies
of a run have one size, so only the body itself is new in a message; the handshake is pamqp's.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol
from urllib.parse import unquote, urlsplit

from pamqp import commands, frame, header
from pamqp.constants import FRAME_END_CHAR

from benchmarks import load

EXCHANGE: Final = "push"
CHUNK: Final = 500
"""Messages made for one write."""
WINDOW: Final = 5_000
"""Messages that may wait for a confirm."""
TIMEOUT: Final = 30.0
"""Seconds that the broker may leave us without an answer."""


class Broker:
    """One connection and one channel in confirm mode."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 5672), TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._sent = self._confirmed = 0
        self._unconfirmed: set[int] = set()
        self._socket.sendall(b"AMQP\x00\x00\x09\x01")
        self._expect(commands.Connection.Start)
        login = f"\0{unquote(parts.username or 'guest')}\0{unquote(parts.password or 'guest')}"
        self._send(0, commands.Connection.StartOk({}, "PLAIN", login))
        tune = self._expect(commands.Connection.Tune)
        # No heartbeats: this connection lives for seconds and is silent between two runs.
        self._send(0, commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0))
        self._send(0, commands.Connection.Open(unquote(parts.path.removeprefix("/")) or "/"))
        self._expect(commands.Connection.OpenOk)
        self._send(1, commands.Channel.Open())
        self._expect(commands.Channel.OpenOk)
        self._send(1, commands.Confirm.Select())
        self._expect(commands.Confirm.SelectOk)

    @property
    def on_their_way(self) -> int:
        """Messages sent and not confirmed."""
        return len(self._unconfirmed)

    def publish(self, messages: list[bytes]) -> None:
        """Write whole messages, as `Template.message` makes them."""
        self._unconfirmed.update(range(self._sent + 1, self._sent + len(messages) + 1))
        self._sent += len(messages)
        self._socket.sendall(b"".join(messages))

    def take_confirms(self, *, wait: bool) -> None:
        """Read the confirms that have come; with `wait` at least one read of the socket."""
        while wait or select.select([self._socket], [], [], 0)[0]:
            wait = False
            for method in self._read():
                if not isinstance(method, commands.Basic.Ack):
                    raise ConnectionError(f"the broker did not confirm: {method.name}")
                tag = int(method.delivery_tag or 0)
                if method.multiple:
                    self._unconfirmed.difference_update(range(self._confirmed + 1, tag + 1))
                    self._confirmed = tag
                else:
                    self._unconfirmed.discard(tag)

    def close(self) -> None:
        """Close the connection; everything is confirmed."""
        self._socket.close()

    def _send(self, channel: int, method: Any) -> None:
        self._socket.sendall(frame.marshal(method, channel))

    def _expect(self, kind: type[Any]) -> Any:
        method = self._read()[0]
        if not isinstance(method, kind):
            raise ConnectionError(f"{kind.__name__} expected, not {method}")
        return method

    def _read(self) -> list[Any]:
        """The methods that one read brought, at least one."""
        methods: list[Any] = []
        while not methods:
            more = self._socket.recv(1 << 20)
            if not more:
                raise ConnectionError("the broker closed the connection")
            data, at = self._received + more, 0
            while len(data) - at >= 7:
                size = struct.unpack_from(">I", data, at + 3)[0] + 8
                if len(data) - at < size:
                    break
                _, _, method = frame.unmarshal(data[at : at + size])
                methods.append(method)
                at += size
            self._received = data[at:]
        return methods


class Outlet(Protocol):
    """A connection to a broker that confirms what it takes."""

    @property
    def on_their_way(self) -> int:
        """Messages sent and not confirmed."""

    def publish(self, messages: list[bytes]) -> None:
        """Write whole messages."""

    def take_confirms(self, *, wait: bool) -> None:
        """Read the confirms that have come; with `wait` at least one read of the socket."""

    def close(self) -> None:
        """Close the connection; everything is confirmed."""


class Template:
    """What all messages of a run have in common. `body` makes one of number, user and time; all have one size."""

    def __init__(
        self,
        body: Callable[[int, int, int], bytes],
        *,
        exchange: str = EXCHANGE,
        key: Callable[[int], str] = lambda user: f"user.{load.user_id(user)}",
    ) -> None:
        self._body = body
        self._exchange = exchange
        self._key = key
        self._methods: dict[int, bytes] = {}
        size = len(body(0, 0, 0))
        content = header.ContentHeader(
            body_size=size,
            properties=commands.Basic.Properties(content_type="application/json", delivery_mode=2),
        )
        self._middle = frame.marshal(content, 1) + struct.pack(">BHI", 3, 1, size)

    def message(self, number: int, user: int) -> bytes:
        """The frames of one message, made now."""
        method = self._methods.get(user)
        if method is None:
            publish = commands.Basic.Publish(exchange=self._exchange, routing_key=self._key(user))
            method = self._methods[user] = frame.marshal(publish, 1)
        body = self._body(number, user, time.monotonic_ns())
        return b"".join((method, self._middle, body, FRAME_END_CHAR))


Maker = Callable[[int, int], bytes]
"""Makes the message with this number for this user, ready to be written."""


def all_at_once(outlet: Outlet, make: Maker, chosen: Sequence[int]) -> dict[str, Any]:
    """Publish a message for each of these users, and wait for all confirms."""
    began = time.monotonic()
    for at in range(0, len(chosen), CHUNK):
        outlet.publish([make(at + n, user) for n, user in enumerate(chosen[at : at + CHUNK])])
        outlet.take_confirms(wait=False)
        while outlet.on_their_way > WINDOW:
            outlet.take_confirms(wait=True)
    while outlet.on_their_way:
        outlet.take_confirms(wait=True)
    outlet.close()
    return {"confirmed": len(chosen), "seconds": time.monotonic() - began}


def steadily(outlet: Outlet, make: Maker, chosen: Sequence[int], rate: float) -> dict[str, Any]:
    """Publish one message every 1/rate seconds, each written as soon as it is made. `began`: when the first was."""
    began = time.monotonic()
    late = 0.0
    for number, user in enumerate(chosen):
        due = began + number / rate
        ahead = due - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        late = max(late, time.monotonic() - due)
        outlet.publish([make(number, user)])
        outlet.take_confirms(wait=False)
    seconds = time.monotonic() - began
    while outlet.on_their_way:
        outlet.take_confirms(wait=True)
    outlet.close()
    return {"confirmed": len(chosen), "seconds": seconds, "latest": late, "began": began}


def requests(
    run: str,
    confirm: str,
    ttl: int = 0,
    shape: load.Shape = load.ORDINARY,
    users: int = 0,
    tenant: str = "",
) -> Template:
    """Push requests v1 for the bridge."""
    return Template(
        lambda number, user, now: load.request(run, number, user, now, confirm, ttl, shape, users, tenant)
    )


def backlog(
    *,
    url: str,
    run: str,
    confirm: str,
    seed: int,
    count: int,
    users: int,
    ttl: int = 0,
    shape: Sequence[int] = load.ORDINARY,
    tenant: str = "",
) -> dict[str, Any]:
    """Publish all at once and wait for all confirms."""
    chosen = load.addressees(seed, count, users)
    return all_at_once(
        Broker(url), requests(run, confirm, ttl, load.Shape(*shape), users, tenant).message, chosen
    )


def steady(
    *, url: str, run: str, confirm: str, seed: int, count: int, users: int, rate: float
) -> dict[str, Any]:
    """Publish at a steady rate."""
    chosen = load.addressees(seed, count, users)
    return steadily(Broker(url), requests(run, confirm).message, chosen, rate)


def everyone(*, url: str, run: str, confirm: str, topic: str = "", count: int = 1) -> dict[str, Any]:
    """Publish so many pushes to everyone, or to a topic."""
    template = Template(lambda number, _, now: load.request_to_all(run, number, now, confirm, topic))
    return all_at_once(Broker(url), template.message, [0] * count)


def serve(known: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Do what each line of stdin says until there are no more."""
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(known[command.pop("do")](**command)), flush=True)


if __name__ == "__main__":
    serve({"backlog": backlog, "steady": steady, "everyone": everyone})
