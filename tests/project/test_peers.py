"""The clients and publishers of the benchmark's peers speak their protocols. No peer runs here."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from benchmarks import load
from benchmarks.peers.clients import EveryoneTally, PeerClient
from benchmarks.peers.dialects import Dialect, Mqtt, Nats, SocketIo, Stomp, mqtt_size
from benchmarks.peers.fan import CLIENTS
from benchmarks.peers.measure import COLUMNS, Measured, table
from benchmarks.peers.publisher import Counted, MqttOutlet, NatsOutlet, _emit
from benchmarks.peers.stage import Promises
from benchmarks.scene import RECEIVED, Flood, Latency, scene
from bridge.devservers import Servers
from bridge.devservers.directory import Run
from bridge.devservers.machine import RabbitFiles
from bridge.devservers.rabbit import HASH_PLUGIN, PrivateRabbit

STEPS = [1, 3, 100, 10_000]


def data(number: int) -> bytes:
    """The data of a push for user 5."""
    return load.data(number, 5, 1)


def fed(dialect: Dialect, stream: bytes, step: int) -> tuple[list[bytes], bytes]:
    """The pushes and the answers, if the stream comes in pieces."""
    pushes: list[bytes] = []
    answers = b""
    for at in range(0, len(stream), step):
        read = dialect.read(stream[at : at + step])
        pushes += read.pushes
        answers += read.answer
    return pushes, answers


def ready(dialect: Dialect) -> bool:
    """Whether it is, at this moment."""
    return dialect.ready


# --- dialects ---


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("acks", [False, True])
def test_a_stomp_client_subscribes_and_acks_what_it_reads(step: int, acks: bool) -> None:
    stomp = Stomp(5, login="me", passcode="secret", vhost="v", acks=acks)
    assert stomp.hello().startswith(b"CONNECT\n")
    mode = b"client-individual" if acks else b"auto"
    _, answers = fed(stomp, b"CONNECTED\nversion:1.2\n\n\0\n", step)
    assert answers == b"SUBSCRIBE\nid:0\ndestination:/queue/u000005\nack:%b\nreceipt:0\n\n\0" % mode
    assert not ready(stomp)
    message = b"MESSAGE\nsubscription:0\nack:T_0@@1\ncontent-length:200\n\n%b\0\n"
    stream = b"RECEIPT\nreceipt-id:0\n\n\0\n" + message % data(1) + message % data(2)
    pushes, answers = fed(stomp, stream, step)
    assert ready(stomp)
    assert pushes == [data(1), data(2)]
    assert answers == (b"ACK\nid:T_0@@1\n\n\0" * 2 if acks else b"")
    with pytest.raises(ConnectionError, match="denied"):
        stomp.read(b"ERROR\nmessage:denied\n\n\0")


def published(number: int, qos: int) -> bytes:
    """A PUBLISH packet of a server."""
    body = b"\0\x0cpush/u000005" + (number.to_bytes(2, "big") if qos else b"") + data(number)
    return bytes((0x30 | qos << 1,)) + mqtt_size(len(body)) + body


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("qos", [0, 1])
def test_an_mqtt_client_subscribes_and_acks_what_came_with_qos_1(step: int, qos: int) -> None:
    mqtt = Mqtt(5, username="me", password="secret", qos=qos)
    assert mqtt.hello()[9] & 2 == (0 if qos else 2), "the session is clean with QoS 0 only"
    _, answers = fed(mqtt, b"\x20\x02\0\0", step)
    assert answers == b"\x82\x11\0\1\0\x0cpush/u000005" + bytes((qos,))
    assert not ready(mqtt)
    pushes, answers = fed(mqtt, bytes((0x90, 3, 0, 1, qos)) + published(1, qos) + published(2, qos), step)
    assert ready(mqtt)
    assert pushes == [data(1), data(2)]
    assert answers == (b"\x40\x02\0\1\x40\x02\0\2" if qos else b"")
    with pytest.raises(ConnectionError, match="refused with 5"):
        mqtt.read(b"\x20\x02\0\5")


@pytest.mark.parametrize("step", STEPS)
def test_a_nats_client_makes_its_consumer_and_acks_what_it_reads(step: int) -> None:
    nats = Nats(5, username="me", password="secret", stream="PUSH")
    _, answers = fed(nats, b'INFO {"server_id":"x"}\r\n', step)
    assert b"PUB $JS.API.CONSUMER.DURABLE.CREATE.PUSH.u000005 _INBOX.u000005 " in answers
    assert not ready(nats)
    message = b"MSG push.u000005 2 $JS.ACK.PUSH.u000005.%d 200\r\n%b\r\n"
    stream = (
        b"MSG _INBOX.u000005 1 2\r\n{}\r\n" + message % (1, data(1)) + b"PING\r\n" + message % (2, data(2))
    )
    pushes, answers = fed(nats, stream, step)
    assert ready(nats)
    assert pushes == [data(1), data(2)]
    ack = b"PUB $JS.ACK.PUSH.u000005.%d 4\r\n+ACK\r\n"
    assert answers == ack % 1 + b"PONG\r\n" + ack % 2
    with pytest.raises(ConnectionError, match="no stream"):
        nats.read(b'MSG _INBOX.u000005 1 30\r\n{"error":{"text":"no stream"}}\r\n')


def test_a_socketio_client_connects_with_its_token_and_answers_pings() -> None:
    client = SocketIo(5, token="abc")
    assert client.read(b'0{"sid":"x"}').answer == b'40{"token": "abc"}'
    assert not ready(client)
    assert client.read(b'40{"sid":"y"}') == ([], b"")
    assert ready(client)
    assert client.read(b"2").answer == b"3"
    event = b"42" + json.dumps(["push", data(1).decode()], separators=(",", ":")).encode()
    assert client.read(event).pushes == [data(1)]
    with pytest.raises(ConnectionError):
        client.read(b'44{"message":"a valid token is needed"}')


def test_all_socketio_messages_have_one_size() -> None:
    one, other = _emit(0, 5, 1), _emit(99_999_999, 999_999, 10**19)
    assert len(one) == len(other)
    assert json.loads(one)["data"] == [data(0).decode()]


# --- a client with a dialect ---


class Written:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


@pytest.mark.parametrize("size", [5, 125, 126, 300])
async def test_what_a_dialect_says_goes_out_as_one_masked_frame(size: int) -> None:
    tally = EveryoneTally()
    tally.expect(2, 2)
    dialect = SocketIo(5, token="abc")
    client = PeerClient(5, dialect, tally, asyncio.get_running_loop().create_future())
    transport = Written()
    client.connection_made(cast(asyncio.Transport, transport))
    assert transport.data.startswith(b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n")
    transport.data = b""
    client._say(b"x" * size)
    head = 2 if size < 126 else 4
    length = transport.data[1] & 127 if size < 126 else int.from_bytes(transport.data[2:4], "big")
    assert (transport.data[0], transport.data[1] & 128, length) == (0x81, 128, size)
    assert transport.data[head:] == b"\0\0\0\0" + b"x" * size


def test_a_push_to_everyone_counts_once_for_each_client() -> None:
    tally = EveryoneTally()
    tally.expect(2, 4)
    loop = asyncio.new_event_loop()
    clients = [PeerClient(user, SocketIo(user, token=""), tally, loop.create_future()) for user in (0, 1)]
    for number in (0, 1, 1):
        for client in clients:
            tally.push(client, data(number), 9)
    loop.close()
    counts = tally.report(latencies=False)
    assert (counts["frames"], counts["distinct"], counts["duplicates"]) == (6, 4, 2)


# --- publishers ---


def confirmed(kind: type[Counted], stream: bytes, step: int) -> int:
    """How many confirms are in a stream that comes in pieces."""
    outlet = kind.__new__(kind)
    total, rest = 0, b""
    left, right = socket.socketpair()
    with left, right:
        outlet._socket = left
        for at in range(0, len(stream), step):
            count, rest = outlet._read(rest + stream[at : at + step])
            total += count
    assert rest == b""
    return total


@pytest.mark.parametrize("step", STEPS)
def test_confirms_are_counted_however_the_bytes_are_cut(step: int) -> None:
    assert confirmed(MqttOutlet, b"\x40\x02\0\1\x40\x02\0\2", step) == 2
    answer = b'MSG _INBOX.bench.1 1 25\r\n{"stream":"PUSH","seq":1}\r\n'
    assert confirmed(NatsOutlet, b"INFO {}\r\n" + answer + b"PING\r\n" + answer, step) == 2
    with pytest.raises(ConnectionError, match="PUBACK"):
        confirmed(MqttOutlet, b"\x30\x02\0\1", 10)


def test_messages_of_publishers_carry_the_data() -> None:
    assert MqttOutlet.message(1, 5).startswith(b"\x32\xd8\x01\0\x0cpush/u000005\0\2")
    assert NatsOutlet.message(1, 5).startswith(b"PUB push.u000005 _INBOX.bench.1 200\r\n")


# --- bridges among the peers ---


def test_a_bridge_is_measured_while_pushes_are_published_and_with_one_to_everyone(
    servers: Servers, tmp_path: Path
) -> None:
    with scene(servers, RECEIVED, directory=tmp_path, sessions=[20]) as on:
        flood = on.flood(300)
        assert flood.pushes == 300
        assert flood.frames_seconds <= flood.seconds
        assert on.outcomes("") == {"received": 300}
    with scene(servers, RECEIVED, directory=tmp_path, sessions=[20], clients=CLIENTS) as on:
        assert on.everyone().pushes == 20
        assert on.outcomes("") == {"received": 20}


def test_the_table_shows_medians_and_leaves_empty_what_is_not_promised() -> None:
    def one(name: str, rates: Sequence[float], promises: Promises) -> Measured:
        cpu = {
            "bridge": 0.5,
            "rabbitmq": 0.25,
            "clients": 9.0,
            "publisher": 9.0,
            "others": 9.0,
            "stolen": 9.0,
        }
        floods = [Flood(1000, 1000 / rate, 1000 / rate, 1.0, cpu) for rate in rates]
        return Measured(name, promises, floods, [Latency(10, 500.0, 1.0, 2.0, 3.0, cpu)])

    lines = list(
        table(
            [
                one("node, batched", (90, 100, 110), Promises(durable="yes", logged="a row per push")),
                one("other", (40, 50, 60), Promises()),
            ]
        )
    )[-4:]
    assert lines[0].count("|") == len(COLUMNS) + 1
    assert lines[2] == (
        "| node, batched | 100 | 90 .. 110 | 1.00 | 7500 | 1.0 | 2.0 | yes | a row per push |  |  |"
    )
    assert lines[3] == "| other | 50 | 40 .. 60 | 0.50 | 15000 | 1.0 | 2.0 |  |  |  |  |"


def test_a_private_rabbit_has_the_plugins_that_are_asked_for(tmp_path: Path) -> None:
    files = RabbitFiles(
        Path("/nowhere/rabbitmq_server-3.10.8/sbin"), Path("/nowhere/erl"), Path("/nowhere/epmd")
    )
    run = Run(tmp_path)
    run.take()
    try:
        for plugins, enabled in (({}, ""), ({"one": ["a = 1"], "two": []}, ",one,two")):
            rabbit = PrivateRabbit(files, run, False, plugins)
            rabbit._configure()
            assert (rabbit._home / "enabled_plugins").read_text() == f"[{HASH_PLUGIN}{enabled}].\n"
            assert ("a = 1\n" in (rabbit._home / "rabbitmq.conf").read_text()) == bool(plugins)
    finally:
        run.leave()
