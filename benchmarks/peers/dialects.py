"""What clients of the peers say inside of their WebSockets: protocols without I/O.

A dialect belongs to one client. It gets the messages of its WebSocket, and answers with the data of the pushes in them
and with the bytes to send. It does what the peer's own library for browsers does, and no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from benchmarks.load import user_id

TEXT, BINARY = 1, 2


class Read(NamedTuple):
    """What a message brought."""

    pushes: list[bytes]
    answer: bytes = b""


class Dialect(Protocol):
    """One client's side of a protocol; `ready` once the server has confirmed that pushes will come."""

    path: str
    subprotocol: str
    opcode: int
    ready: bool

    def hello(self) -> bytes:
        """The first message; if empty, the server speaks first."""

    def read(self, message: bytes) -> Read:
        """One message of the WebSocket."""


class Stomp:
    """STOMP 1.2: a durable queue for each user. With `acks` each message is acked when it was read."""

    path = "/ws"
    subprotocol = "v12.stomp"
    opcode = TEXT

    def __init__(self, user: int, *, login: str, passcode: str, vhost: str, acks: bool) -> None:
        self.ready = False
        self._login = f"login:{login}\npasscode:{passcode}\nhost:{vhost}"
        self._queue = f"/queue/{user_id(user)}"
        self._acks = acks
        self._rest = b""

    def hello(self) -> bytes:
        return f"CONNECT\naccept-version:1.2\nheart-beat:0,0\n{self._login}\n\n\0".encode()

    def read(self, message: bytes) -> Read:
        data = self._rest + message if self._rest else message
        pushes, answers = [], []
        at = 0
        while (end := data.find(b"\0", at)) >= 0:
            # The data of a push holds no zeros, so the first one ends the frame.
            head, _, body = data[at:end].lstrip(b"\n").partition(b"\n\n")
            at = end + 1
            if head.startswith(b"MESSAGE\n"):
                pushes.append(body)
                if self._acks:
                    name = head.partition(b"\nack:")[2].partition(b"\n")[0]
                    answers.append(b"ACK\nid:%b\n\n\0" % name)
            elif head.startswith(b"CONNECTED\n"):
                mode = "client-individual" if self._acks else "auto"
                subscribe = f"SUBSCRIBE\nid:0\ndestination:{self._queue}\nack:{mode}\nreceipt:0\n\n\0"
                answers.append(subscribe.encode())
            elif head.startswith(b"RECEIPT\n"):
                self.ready = True
            elif head:
                raise ConnectionError(f"STOMP: {head!r} {body!r}")
        self._rest = data[at:]
        return Read(pushes, b"".join(answers))


class Mqtt:
    """MQTT 3.1.1 (OASIS). With QoS 1 the session stays when the client leaves, and each message is acked."""

    path = "/ws"
    subprotocol = "mqtt"
    opcode = BINARY

    def __init__(self, user: int, *, username: str, password: str, qos: int) -> None:
        self.ready = False
        self._name = user_id(user).encode()
        self._username, self._password = username.encode(), password.encode()
        self._qos = qos
        self._rest = b""

    def hello(self) -> bytes:
        return mqtt_connect(self._name, self._username, self._password, clean=self._qos == 0)

    def read(self, message: bytes) -> Read:
        data = self._rest + message if self._rest else message
        pushes, answers = [], []
        at, end = 0, len(data)
        while (start := mqtt_body(data, at)) is not None:
            body, size = start
            if body + size > end:
                break
            first = data[at]
            kind = first >> 4
            at = body + size
            if kind == 3:
                topic = body + 2 + (data[body] << 8 | data[body + 1])
                if first & 6:
                    answers.append(b"\x40\x02" + data[topic : topic + 2])
                    topic += 2
                pushes.append(data[topic:at])
            elif kind == 2:
                if data[body + 1]:
                    raise ConnectionError(f"MQTT: connection refused with {data[body + 1]}")
                topic_filter = b"push/" + self._name
                size = 2 + 2 + len(topic_filter) + 1
                answers.append(
                    bytes((0x82, size, 0, 1, 0, len(topic_filter))) + topic_filter + bytes((self._qos,))
                )
            elif kind == 9:
                if data[body + 2] != self._qos:
                    raise ConnectionError(f"MQTT: subscribed with {data[body + 2]}")
                self.ready = True
            else:
                raise ConnectionError(f"MQTT: packet of kind {kind}")
        self._rest = data[at:]
        return Read(pushes, b"".join(answers))


def mqtt_connect(name: bytes, username: bytes, password: bytes, *, clean: bool) -> bytes:
    """A CONNECT packet without keep-alive."""
    flags = 0xC0 | (clean << 1)
    parts = b"".join(len(part).to_bytes(2, "big") + part for part in (name, username, password))
    body = b"\0\4MQTT\4" + bytes((flags, 0, 0)) + parts
    return b"\x10" + mqtt_size(len(body)) + body


def mqtt_size(size: int) -> bytes:
    """A remaining length (MQTT 3.1.1, 2.2.3); sizes up to 16,383."""
    return bytes((size,)) if size < 128 else bytes((size & 127 | 128, size >> 7))


def mqtt_body(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the packet's body begins and its size; None if not enough came."""
    if len(data) - at < 2:
        return None
    size = data[at + 1]
    if size < 128:
        return at + 2, size
    if len(data) - at < 3:
        return None
    if data[at + 2] > 127:
        raise ConnectionError("MQTT: a packet of more than 16 kB")
    return at + 3, (size & 127) | data[at + 2] << 7


class Nats:
    """NATS JetStream: a durable consumer for each user, and each message is acked."""

    path = "/"
    subprotocol = ""
    opcode = BINARY

    def __init__(self, user: int, *, username: str, password: str, stream: str) -> None:
        self.ready = False
        self._name = user_id(user)
        self._stream = stream
        self._login = nats_connect(username, password)
        self._rest = b""

    def hello(self) -> bytes:
        return b""

    def read(self, message: bytes) -> Read:
        data = self._rest + message if self._rest else message
        pushes, answers = [], []
        at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            line = data[at:end]
            if line.startswith(b"MSG "):
                fields = line.split()
                size = int(fields[-1])
                body = end + 2
                if len(data) < body + size + 2:
                    break
                payload = data[body : body + size]
                at = body + size + 2
                if fields[2] == b"2":
                    pushes.append(payload)
                    answers.append(b"PUB %b 4\r\n+ACK\r\n" % fields[3])
                else:
                    nats_check(payload)
                    self.ready = True
                continue
            at = end + 2
            if line.startswith(b"INFO "):
                answers.append(self._login + self._subscribe())
            elif line == b"PING":
                answers.append(b"PONG\r\n")
            elif line.startswith(b"-ERR"):
                raise ConnectionError(f"NATS: {line!r}")
        self._rest = data[at:]
        return Read(pushes, b"".join(answers))

    def _subscribe(self) -> bytes:
        name, stream = self._name, self._stream
        consumer = {
            "stream_name": stream,
            "config": {
                "durable_name": name,
                "deliver_subject": f"deliver.{name}",
                "filter_subject": f"push.{name}",
                "deliver_policy": "all",
                "ack_policy": "explicit",
            },
        }
        body = json.dumps(consumer)
        return (
            f"SUB _INBOX.{name} 1\r\nSUB deliver.{name} 2\r\n"
            f"PUB $JS.API.CONSUMER.DURABLE.CREATE.{stream}.{name} _INBOX.{name} {len(body)}\r\n{body}\r\n"
        ).encode()


def nats_connect(username: str, password: str) -> bytes:
    """The CONNECT line."""
    options = {"verbose": False, "pedantic": False, "user": username, "pass": password, "lang": "bench"}
    return f"CONNECT {json.dumps(options)}\r\n".encode()


def nats_check(reply: bytes) -> None:
    """Raise if JetStream refused."""
    if b'"error"' in reply:
        raise ConnectionError(f"NATS: {reply!r}")


class SocketIo:
    """Socket.IO 5 on Engine.IO 4; the token is checked when the client connects to the namespace."""

    path = "/socket.io/?EIO=4&transport=websocket"
    subprotocol = ""
    opcode = TEXT

    def __init__(self, user: int, *, token: str) -> None:
        self.ready = False
        self._token = token

    def hello(self) -> bytes:
        return b""

    def read(self, message: bytes) -> Read:
        if message.startswith(b'42["push","'):
            return Read([message[11:-2]])
        if message == b"2":
            return Read([], b"3")
        if message.startswith(b"0"):
            return Read([], b"40" + json.dumps({"token": self._token}).encode())
        if not message.startswith(b"40"):
            raise ConnectionError(f"Socket.IO: {message!r}")
        self.ready = True
        return Read([])


class Nchan:
    """A WebSocket of nchan: a message is the data of a push."""

    path = "/sub"
    subprotocol = ""
    opcode = TEXT

    def __init__(self, user: int) -> None:
        self.ready = True

    def hello(self) -> bytes:
        return b""

    def read(self, message: bytes) -> Read:
        return Read([message])


DIALECTS: Mapping[str, Any] = {
    "stomp": Stomp,
    "mqtt": Mqtt,
    "nats": Nats,
    "socketio": SocketIo,
    "nchan": Nchan,
}
