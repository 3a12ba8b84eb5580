"""A process that publishes in a peer's own way, with confirms where the peer has them; see benchmarks/publisher.py."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

from benchmarks import load
from benchmarks.peers.dialects import (
    mqtt_body,
    mqtt_connect,
    mqtt_size,
    nats_check,
    nats_connect,
)
from benchmarks.publisher import TIMEOUT, Broker, Maker, Outlet, Template, all_at_once, serve, steadily

INBOX: Final = "_INBOX.bench"


class Counted:
    """A connection whose server confirms each message with one packet; they are only counted."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self._sent = self._confirmed = 0

    @property
    def on_their_way(self) -> int:
        """Messages sent and not confirmed."""
        return self._sent - self._confirmed

    def publish(self, messages: list[bytes]) -> None:
        """Write whole messages."""
        self._sent += len(messages)
        self._socket.sendall(b"".join(messages))

    def take_confirms(self, *, wait: bool) -> None:
        """Read the confirms that have come."""
        while wait or select.select([self._socket], [], [], 0)[0]:
            wait = False
            more = self._socket.recv(1 << 20)
            if not more:
                raise ConnectionError("the server closed the connection")
            confirms, self._rest = self._read(self._rest + more)
            self._confirmed += confirms

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _read(self, data: bytes) -> tuple[int, bytes]:
        """The number of confirms, and the bytes of an unfinished packet."""
        raise NotImplementedError


class MqttOutlet(Counted):
    """MQTT 3.1.1 with QoS 1."""

    def __init__(self, port: int, username: str, password: str) -> None:
        super().__init__(port)
        self._socket.sendall(mqtt_connect(b"publisher", username.encode(), password.encode(), clean=True))
        if self._socket.recv(4) != b"\x20\x02\0\0":
            raise ConnectionError("MQTT: the connection is refused")

    @staticmethod
    def message(number: int, user: int) -> bytes:
        """A PUBLISH packet with QoS 1."""
        topic = b"push/" + load.user_id(user).encode()
        body = b"".join(
            (
                len(topic).to_bytes(2, "big"),
                topic,
                (number % 65_535 + 1).to_bytes(2, "big"),
                load.data(number, user, time.monotonic_ns()),
            )
        )
        return b"\x32" + mqtt_size(len(body)) + body

    def _read(self, data: bytes) -> tuple[int, bytes]:
        confirms = at = 0
        while (start := mqtt_body(data, at)) is not None and sum(start) <= len(data):
            if data[at] != 0x40:
                raise ConnectionError(f"MQTT: packet {data[at]:#x} instead of a PUBACK")
            confirms += 1
            at = sum(start)
        return confirms, data[at:]


class NatsOutlet(Counted):
    """NATS: each message asks JetStream for an answer, which says that it is stored."""

    def __init__(self, port: int, username: str, password: str) -> None:
        super().__init__(port)
        self._socket.sendall(nats_connect(username, password) + f"SUB {INBOX}.* 1\r\n".encode())

    @staticmethod
    def message(number: int, user: int) -> bytes:
        """A PUB with a reply subject."""
        data = load.data(number, user, time.monotonic_ns())
        head = f"PUB push.{load.user_id(user)} {INBOX}.{number} {len(data)}\r\n"
        return b"".join((head.encode(), data, b"\r\n"))

    @staticmethod
    def stream(name: str) -> bytes:
        """Asks JetStream to keep all pushes in a file."""
        wanted = {"name": name, "subjects": ["push.>"], "storage": "file", "retention": "limits"}
        body = json.dumps(wanted)
        return f"PUB $JS.API.STREAM.CREATE.{name} {INBOX}.0 {len(body)}\r\n{body}\r\n".encode()

    def _read(self, data: bytes) -> tuple[int, bytes]:
        confirms = at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            line = data[at:end]
            if line.startswith(b"MSG "):
                body = end + 2
                size = int(line.split()[-1])
                if len(data) < body + size + 2:
                    break
                nats_check(data[body : body + size])
                confirms += 1
                at = body + size + 2
                continue
            at = end + 2
            if line == b"PING":
                self._socket.sendall(b"PONG\r\n")
            elif line.startswith(b"-ERR"):
                raise ConnectionError(f"NATS: {line!r}")
        return confirms, data[at:]


def _plain(number: int, user: int, now: int) -> bytes:
    return load.data(number, user, now)


def _emit(number: int, user: int, now: int) -> bytes:
    """What a write-only AsyncAioPikaManager publishes for `emit('push', data, room=user)`."""
    data = load.data(number, user, now).decode()
    message = {
        "method": "emit",
        "event": "push",
        "data": [data],
        "binary": False,
        "namespace": "/",
        "room": load.user_id(user),
        "skip_sid": None,
        "callback": None,
        "host_id": "0" * 32,
    }
    return json.dumps(message).encode()


def opened(way: str, address: Mapping[str, Any]) -> tuple[Outlet, Maker]:
    """A new connection, and what makes messages for it."""
    match way:
        case "queues":
            return Broker(**address), Template(_plain, exchange="", key=load.user_id).message
        case "topics":
            return Broker(**address), Template(
                _plain, exchange="amq.topic", key=lambda user: f"push.{load.user_id(user)}"
            ).message
        case "socketio":
            return Broker(**address), Template(_emit, exchange="socketio", key=lambda user: "*").message
        case "mqtt":
            return MqttOutlet(**address), MqttOutlet.message
        case "nats":
            return NatsOutlet(**address), NatsOutlet.message
    raise ValueError(way)


def burst(*, way: str, address: Mapping[str, Any], seed: int, count: int, users: int) -> dict[str, Any]:
    """Publish all at once and wait for all confirms."""
    return all_at_once(*opened(way, address), load.addressees(seed, count, users))


def steady(
    *, way: str, address: Mapping[str, Any], seed: int, count: int, users: int, rate: float
) -> dict[str, Any]:
    """Publish at a steady rate."""
    return steadily(*opened(way, address), load.addressees(seed, count, users), rate)


if __name__ == "__main__":
    serve({"burst": burst, "steady": steady})
