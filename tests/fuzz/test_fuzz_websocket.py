"""The WebSocket port of a whole bridge against whatever a peer may send, while its neighbour is served as ever."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from bridge.adapters.websocket import server as websocket
from bridge.adapters.websocket.connection import WRITE_HIGH
from bridge.adapters.websocket.limits import SocketLimits
from bridge.core.contract.client_frames import AckFrame, PublishFrame, parse_client
from tests.support.bridges import SECONDS, endings, final_rows, process, publish, request, rows, token
from tests.support.clients import Client, RawClient, client, masked, opening, raw_client
from tests.support.fuzzing import bridge, for_each, neighbour
from tests.support.queues import listening
from tests.support.schemas import validator
from tests.support.waiting import until
from tests.support.websocket_faults import FAULTS

ENVELOPE = ("bridge.v1.json",)
MESSAGES = 2_200
"""Client messages that are made up, each answered through the same session, `AT_ONCE` of them in one go."""
AT_ONCE = 10
STREAMS = 300
"""Streams of bytes that are made up, each on a connection of its own."""
FLOOD = 10_000
"""Frames of one flood."""
PUSHES = 50
"""Pushes to the neighbour while the floods are not read."""
HALF_OPEN = 3_000
MIB = 1 << 20


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a peer sends, nothing is worth a line in the log."""
    caplog.set_level(logging.WARNING)
    yield
    gc.collect()
    assert [r.getMessage() for r in caplog.get_records("call")] == []


# --- messages ---

CHARACTERS = st.characters(exclude_categories=["Cs"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(CHARACTERS, max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(CHARACTERS, max_size=8), inner, max_size=4)
    ),
    max_leaves=4,
)
TYPES = (
    "ack",
    "subscribe",
    "unsubscribe",
    "refresh",
    "publish",
    "welcome",
    "push",
    "bye",
    "ok",
    "error",
    "ACK",
    "",
)
FRAMES = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES) | JSON},
    optional={
        "id": st.text(CHARACTERS, max_size=140) | JSON,
        "ref": st.integers() | st.text(CHARACTERS, max_size=140) | JSON,
        "tenant": st.text(CHARACTERS, max_size=140) | JSON,
        "event": JSON,
        "topic": JSON,
        "token": JSON,
        "data": JSON,
    },
)
NAMES = st.text("ab.*#{}é\n", min_size=1, max_size=6) | st.text(CHARACTERS, max_size=140) | JSON
PUBLISHES = st.fixed_dictionaries(
    {"event": st.sampled_from(("chat.said", "room")) | NAMES}, optional={"topic": NAMES, "data": JSON}
).filter(lambda said: "NaN" not in json.dumps(said) and "Infinity" not in json.dumps(said))
ACKS = st.fixed_dictionaries(
    {"type": st.just("ack"), "id": st.text(CHARACTERS, min_size=1, max_size=130)},
    optional={
        "ref": st.none() | st.integers() | st.text(CHARACTERS, min_size=1, max_size=130),
        "tenant": st.none() | st.text(CHARACTERS, max_size=130),
    },
)
KNOWN: tuple[str | bytes, ...] = (
    '{"type":"ack","id":"nobody has it"}',
    '{"type":"ack","id":"nobody has it","tenant":"acme","ref":7}',
    "no frame",
)
"""One message of each kind that is answered in its own way; what is made up may have none of some kind."""


@st.composite
def messages(draw: st.DrawFn) -> str | bytes:
    """What a client may put into a message: frames right and wrong, JSON broken, nested, or none at all."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=200))
    if kind == 1:
        return draw(st.text(CHARACTERS, max_size=200))
    if kind == 9:
        return json.dumps(draw(ACKS))
    if kind == 2:
        depth = draw(st.integers(1, 30_000))
        return draw(st.sampled_from(("[", '{"a":', '{"type":"ack","id":['))) * min(depth, 1_500) + "]" * depth
    text = json.dumps(draw(FRAMES if kind < 8 else JSON), ensure_ascii=draw(st.booleans()))
    if kind in (3, 8):
        at, gone = draw(st.integers(0, len(text))), draw(st.integers(0, 3))
        text = text[:at] + draw(st.text(CHARACTERS, max_size=3)) + text[at + gone :]
    return text.encode() if draw(st.booleans()) else text


async def test_each_message_is_an_ack_or_gets_one_answer_that_says_why(vhost: str, database: str) -> None:
    seen = {"ack": 0, "ack with a ref": 0, "no frame": 0}
    schema = validator("frame-error.json")

    async with bridge(vhost, database) as b, neighbour(b.ws_port, vhost):
        async with client(b.ws_port, token("u1"), subprotocols=ENVELOPE) as c:
            assert (await c.read_json())["type"] == "welcome"

            async def check(made: list[str | bytes]) -> None:
                said = (*KNOWN, *made)
                for mark, message in enumerate(said):
                    await c.send(message)
                    await c.send_json({"type": "a type that will never be", "ref": f"mark-{mark}"})
                for mark, message in enumerate(said):
                    answers = []
                    while (answer := await c.read_json()).get("ref") != f"mark-{mark}":
                        answers.append(answer)
                    frame = parse_client(message)
                    if isinstance(frame, AckFrame) and frame.ref is None:
                        assert answers == []
                        seen["ack"] += 1
                        continue
                    [refusal] = answers
                    assert schema.is_valid(refusal), refusal
                    assert refusal["message"]
                    if isinstance(frame, AckFrame):
                        # Nothing was pushed to this session, so no ack can count.
                        assert (refusal["code"], refusal["ref"]) == ("not_awaited", frame.ref)
                        seen["ack with a ref"] += 1
                    else:
                        seen["no frame"] += 1

            await for_each(
                st.lists(messages(), min_size=AT_ONCE, max_size=AT_ONCE), MESSAGES // AT_ONCE, check
            )
    assert min(seen.values()) >= MESSAGES // AT_ONCE, seen


async def test_each_publish_is_answered_once_and_what_arrives_is_what_was_said(
    vhost: str, database: str
) -> None:
    """Whatever is in the frame: `ok` if it is a publish that is heard, else an error that says why."""
    seen = {"ok": 0, "nobody_listens": 0, "bad_frame": 0}
    user = token("u1", publish=["#"])
    async with (
        bridge(vhost, database) as b,
        neighbour(b.ws_port, vhost),
        client(b.ws_port, user, subprotocols=ENVELOPE) as c,
        listening(vhost, "push.inbound", key="chat.#") as heard,
    ):
        assert (await c.read_json())["type"] == "welcome"
        while (await _answer(c, {"event": "room"}, "first"))["code"] == "unavailable":
            await asyncio.sleep(0.05)

        async def check(made: list[dict[str, Any]]) -> None:
            for ref, said in enumerate(made):
                frame = {"type": "publish", **said, "ref": ref}
                right = isinstance(parse_client(json.dumps(frame)), PublishFrame)
                answer = await _answer(c, said, ref)
                end = answer.get("code", "ok")
                seen[end] += 1
                assert (end != "bad_frame") == right, said
                if end == "ok":
                    message = await heard.get()
                    assert message["routing_key"] == said["event"]
                    assert json.dumps(json.loads(str(message["body"], "utf-8"))) == json.dumps(  # type: ignore[call-overload]
                        said.get("data")
                    )
                    headers = message["headers"]
                    assert isinstance(headers, dict)
                    assert (headers["user"], headers["ref"], headers.get("topic")) == (
                        "u1",
                        ref,
                        said.get("topic"),
                    )

        await for_each(st.lists(PUBLISHES, min_size=AT_ONCE, max_size=AT_ONCE), MESSAGES // AT_ONCE, check)
        assert heard.empty()
    assert min(seen.values()) >= MESSAGES // AT_ONCE, seen


async def _answer(c: Client, said: dict[str, Any], ref: object) -> Any:
    """The only answer to a publish frame."""
    await c.send(json.dumps({"type": "publish", **said, "ref": ref}))
    answer = await c.read_json()
    assert answer["ref"] == ref
    return answer


async def test_what_a_client_of_bare_mode_says_means_nothing(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b, neighbour(b.ws_port, vhost):
        async with client(b.ws_port, token("u1")) as c:
            await publish(vhost, request("u1", "p1", confirm="acked"))
            assert await c.read_json() == {"n": "p1"}
            for message in ("", "ack", '{"type":"ack","id":"p1"}', b"\xff", "[" * 60_000):
                await c.send(message)
            await publish(vhost, request("u1", "p2"))
            assert await c.read_json() == {"n": "p2"}, "and no answer before it"
            assert all(row["outcome"] != "acked" for row in await rows(database))


# --- acks ---


async def settled(c: Client) -> None:
    """All that this client has sent so far was handled."""
    await c.send_json({"type": "a type that will never be", "ref": "settled"})
    while (await c.read_json()).get("ref") != "settled":
        pass


async def refused(c: Client, push_id: str) -> str:
    """The code of the error that answers this client's ack of this push."""
    await c.send_json({"type": "ack", "id": push_id, "ref": f"ack of {push_id}"[:100]})
    answer = await c.read_json()
    assert (answer["type"], answer["ref"]) == ("error", f"ack of {push_id}"[:100]), answer
    return str(answer["code"])


async def test_an_ack_counts_for_nobody_but_the_session_that_got_the_push(vhost: str, database: str) -> None:
    acked = {"data": 1, "confirm": "acked"}
    async with bridge(vhost, database) as b, neighbour(b.ws_port, vhost):
        async with (
            client(b.ws_port, token("mallory"), subprotocols=ENVELOPE) as mallory,
            client(b.ws_port, token("alice"), subprotocols=ENVELOPE) as laptop,
            client(b.ws_port, token("alice"), subprotocols=ENVELOPE) as phone,
        ):
            await mallory.read_json()
            laptop_id = (await laptop.read_json())["session"]
            await phone.read_json()
            await publish(
                vhost,
                {"id": "hers", "to": {"user": "alice"}, **acked, "ack_within": 30},
                {"id": "hers, unacked", "to": {"user": "alice"}, **acked, "ack_within": 2},
                {"id": "both", "to": {"users": ["alice", "mallory"]}, **acked, "ack_within": 30},
                {"id": "one screen", "to": {"session": laptop_id}, **acked, "ack_within": 2},
            )
            ids = ["hers", "hers, unacked", "both", "one screen"]
            assert [(await laptop.read_json())["id"] for _ in ids] == ids
            assert [(await phone.read_json())["id"] for _ in ids[:3]] == ids[:3]
            assert (await mallory.read_json())["id"] == "both"
            for push_id in (*ids, *ids, "never published", "x" * 128, "x" * 129, "well-"):
                await mallory.send_json({"type": "ack", "id": push_id})
            await phone.send_json({"type": "ack", "id": "one screen"})
            await settled(mallory)
            await settled(phone)
            # Nor is it told that it counts.
            foreign = ("hers", "hers, unacked", "one screen", "never published", "x" * 128, "well-")
            assert [await refused(mallory, push_id) for push_id in foreign] == ["not_awaited"] * len(foreign)
            assert await refused(phone, "one screen") == "not_awaited"
            for push_id in ("hers", "both"):
                await phone.send_json({"type": "ack", "id": push_id})
            found = [row for row in await final_rows(database, 5) if not row["push_id"].startswith("well-")]
            assert endings(found) == {
                ("both", "mallory"): ("acked", "ack_frame"),
                ("hers", "alice"): ("acked", "ack_frame"),
                ("both", "alice"): ("acked", "ack_frame"),
                ("hers, unacked", "alice"): ("received", "not_acked"),
                ("one screen", "alice"): ("received", "not_acked"),
            }
            # What has ended does not change, whoever says what.
            for c in (mallory, laptop, phone):
                for push_id in ids:
                    await c.send_json({"type": "ack", "id": push_id})
                await settled(c)
            await publish(vhost, request("alice", "after"))
            later = await final_rows(database, 6)
            assert {k: v for k, v in endings(later).items() if k in endings(found)} == endings(found)


# --- floods ---

FLOODS = {
    "acks of unknown ids": masked(0x1, b'{"type":"ack","id":"nobody knows it"}'),
    "garbage": masked(0x1, b"garbage"),
    "binary": masked(0x2, bytes(100)),
    "unknown types": masked(0x1, b'{"type":"nonsense","ref":1}'),
    "pings": masked(0x9, bytes(125)),
    "pongs": masked(0xA, b"not asked for"),
    "empty fragments": masked(0x0, b"", fin=False),
}


def memory(pid: int) -> int:
    """Bytes of a process that are in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


async def flooder(port: int, stack: AsyncExitStack) -> RawClient:
    peer = await stack.enter_async_context(raw_client(port))
    peer.send(opening(f"/ws?token={token('flooder')}", "Sec-WebSocket-Protocol: bridge.v1.json"))
    assert (await peer.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return peer


def flood(port: int, frame: bytes, enough: threading.Event | None) -> None:
    """Send FLOOD frames as quickly as the bridge takes them, and read its answers to the last; or none of them,
    and stay until it is `enough`.

    In a thread with a blocking socket, so that the clock of the neighbour in the event loop is not stopped.
    """
    in_a_message = frame[0] & 0x0F == 0
    sent = b"".join(
        (
            masked(0x1, b"", fin=False) if in_a_message else b"",
            frame * FLOOD,
            masked(0x0, b"") if in_a_message else b"",
            masked(0x1, b'{"type":"a type that will never be","ref":"the end"}'),
        )
    )
    with socket.create_connection(("127.0.0.1", port), SECONDS) as peer:
        peer.sendall(opening(f"/ws?token={token('flooder')}", "Sec-WebSocket-Protocol: bridge.v1.json"))
        assert peer.recv(1_000).startswith(b"HTTP/1.1 101 ")
        if enough is not None:
            peer.setblocking(False)
            with suppress(BlockingIOError):  # the rest finds no room: the bridge reads it at its rate
                peer.sendall(sent)
            enough.wait(SECONDS)
            return
        with ThreadPoolExecutor(1) as sender:
            sending = sender.submit(peer.sendall, sent)
            tail = b""
            while b"the end" not in tail:
                more = peer.recv(65_536)
                assert more, "it was closed"
                tail = tail[-10:] + more
            sending.result()


@pytest.mark.parametrize("reads", [True, False], ids=["and reads its answers", "and reads nothing"])
async def test_in_a_flood_the_neighbour_is_served_and_the_memory_stays_what_it_was(
    reads: bool, vhost: str, database: str
) -> None:
    async with process(vhost, database) as b, neighbour(b.ws_port, vhost) as other:
        for _ in range(20):
            await other.is_well()
        at_first = peak = memory(b.pid)
        served = 0
        enough = None if reads else threading.Event()
        # All kinds at the same time: seven peers.
        floods = asyncio.gather(
            *(asyncio.to_thread(flood, b.ws_port, frame, enough) for frame in FLOODS.values())
        )
        while not floods.done():
            await other.is_well()
            served += 1
            peak = max(peak, memory(b.pid))
            if enough is not None and served >= PUSHES:
                enough.set()
        await floods
        assert peak - at_first < 16 * MIB
        assert b.alive


async def test_answers_that_are_not_read_take_no_memory(vhost: str, database: str) -> None:
    unhurried = {"frames_per_second": 1e6, "frames_per_minute": 6e7}
    kind = "x" * 1_000  # so that answers are more than the kernel takes
    frame = masked(0x1, json.dumps({"type": kind, "ref": "y" * 128}).encode())
    async with (
        bridge(vhost, database, **unhurried) as b,
        neighbour(b.ws_port, vhost) as other,
        AsyncExitStack() as stack,
    ):
        deaf = await flooder(b.ws_port, stack)
        [session] = b._node.core.hub.of_user("flooder")
        while session.socket.writable:
            deaf.send(frame * 100)
            await asyncio.wait_for(deaf.writer.drain(), SECONDS)
        for _ in range(20):
            deaf.send(frame * 100)
            await asyncio.wait_for(deaf.writer.drain(), SECONDS)
            await other.is_well()
        assert WRITE_HIGH < session.socket.buffered < WRITE_HIGH + 1_000


# --- frames that break the protocol ---


async def test_a_frame_that_breaks_the_protocol_closes_with_code_and_reason(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as b, neighbour(b.ws_port, vhost) as other:
        for name, (sent, code) in FAULTS.items():
            async with AsyncExitStack() as stack:
                peer = await flooder(b.ws_port, stack)
                peer.send(sent + masked(0x1, b'{"type":"ack","id":"afterwards"}'))
                last = server_frames(await peer.read_all())[-1]
                assert (last[0], last[1][:2]) == (0x8, struct.pack("!H", code)), name
                assert last[1][2:], f"{name}: no reason"
            await other.is_well()
        await until(lambda: b._ws.connections == 1)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """One frame, mostly right."""
    odd = draw(st.integers(0, 14))
    opcode = draw(st.sampled_from((0x0, 0x1, 0x1, 0x2, 0x9, 0xA)))
    payload = draw(
        st.binary(max_size=130)
        | st.just(b'{"type":"ack","id":"p"}')
        | st.just(b"x" * 40_000)
        | st.just("ü".encode())
    )
    fin = draw(st.booleans()) if opcode < 0x8 else True
    if opcode >= 0x8 and odd != 0:
        payload = payload[:125]
    if odd == 1:
        opcode, payload = 0x8, draw(st.binary(max_size=8) | st.sampled_from((b"", b"\x03\xe8bye")))
    if odd == 2:
        fin = False
    frame = masked(opcode, payload, fin=fin)
    if odd == 3:
        frame = bytes((frame[0] ^ draw(st.sampled_from((0x10, 0x20, 0x40, 0x70, 0x03, 0x07))),)) + frame[1:]
    if odd == 4:
        frame = frame[:1] + bytes((frame[1] & 0x7F,)) + frame[2:]
    if odd == 5:
        frame = frame[:1] + b"\xff" + draw(st.binary(min_size=8, max_size=8)) + frame[2:]
    if odd == 6:
        frame = frame[: draw(st.integers(0, len(frame)))]
    return frame


STREAM = st.lists(frames(), max_size=8).map(b"".join) | st.binary(max_size=300)

ONE_FOR_EACH_CODE = {
    0: b"",
    1002: masked(0x8, b"\x03"),
    1005: masked(0x8, b""),
    1007: masked(0x1, b"\xff"),
    1009: masked(0x1, b"x" * (SocketLimits().message_bytes + 1)),
}
"""What is made up may leave some code out."""


def verdict(stream: bytes) -> set[int]:
    """How RFC 6455 has a stream of client frames answered: the codes of a close frame; none where nothing is wrong.

    More than one where a message is not UTF-8 and something else follows: what comes in one read is looked
    at for its frames first. 1005 stands for a close frame without a code.
    """
    codes: set[int] = set()
    message: bytearray | None = None
    text = False
    while len(stream) >= 2:
        first, second = stream[:2]
        fin, opcode = bool(first & 0x80), first & 0x0F
        if opcode not in (0x0, 0x1, 0x2, 0x8, 0x9, 0xA) or not second & 0x80:
            return codes | {1002}
        wide = {126: 2, 127: 8}.get(second & 0x7F, 0)
        if len(stream) < 2 + wide:
            return codes
        size = int.from_bytes(stream[2 : 2 + wide], "big") if wide else second & 0x7F
        if size + len(message or b"") > SocketLimits().message_bytes:
            return codes | {1009}
        at = 2 + wide + 4
        if len(stream) < at + size:
            return codes
        mask = stream[2 + wide : at]
        payload = (
            bytes(byte ^ mask[i % 4] for i, byte in enumerate(stream[at : at + size]))
            if any(mask)
            else stream[at : at + size]
        )
        stream = stream[at + size :]
        if first & 0x70 or (opcode >= 0x8 and (not fin or size > 125)):
            return codes | {1002}
        if opcode == 0x8:
            return codes | {closing(payload, message is not None)}
        if opcode >= 0x8:
            continue
        if (opcode == 0x0) != (message is not None):
            return codes | {1002}
        if message is None:
            message, text = bytearray(), opcode == 0x1
        message += payload
        if fin:
            if text and not is_utf8(bytes(message)):
                codes.add(1007)
            message = None
    return codes


def closing(payload: bytes, in_a_message: bool) -> int:
    if not payload:
        return 1002 if in_a_message else 1005
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1:
        return 1002
    if not is_utf8(payload[2:]):
        return 1007
    right = code in (*range(1000, 1004), *range(1007, 1015)) or 3000 <= code < 5000
    return code if right and not in_a_message else 1002


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def server_frames(stream: bytes) -> list[tuple[int, bytes]]:
    """Opcode and payload of each frame of the bridge; fails where one is not whole, or follows a close."""
    found: list[tuple[int, bytes]] = []
    while stream:
        assert not found or found[-1][0] != 0x8, "a frame after the close"
        first, second = stream[:2]
        assert first & 0x70 == 0
        assert first & 0x80
        assert second < 128, "masked"
        wide = {126: 2, 127: 8}.get(second, 0)
        size = int.from_bytes(stream[2 : 2 + wide], "big") if wide else second
        assert len(stream) >= 2 + wide + size, "cut off"
        found.append((first & 0x0F, stream[2 + wide : 2 + wide + size]))
        stream = stream[2 + wide + size :]
    return found


async def test_any_stream_of_bytes_gets_the_close_code_of_the_protocol(vhost: str, database: str) -> None:
    answered: dict[int, int] = {}

    async with bridge(vhost, database) as b, neighbour(b.ws_port, vhost) as other:

        async def check(stream: bytes) -> None:
            async with AsyncExitStack() as stack:
                peer = await flooder(b.ws_port, stack)
                peer.send(stream)
                peer.writer.write_eof()
                said = server_frames(await peer.read_all())
            closes = [payload for opcode, payload in said if opcode == 0x8]
            code = int.from_bytes(closes[0][:2] or b"\x03\xed", "big") if closes else 0
            assert code in (verdict(stream) or {0}), said
            answered[code] = answered.get(code, 0) + 1
            if sum(answered.values()) % 50 == 0:
                await other.is_well()

        for stream in ONE_FOR_EACH_CODE.values():
            await check(stream)
        assert answered == dict.fromkeys(ONE_FOR_EACH_CODE, 1)
        await for_each(STREAM, STREAMS, check)
        await until(lambda: b._ws.connections == 1)


# --- before there is a session ---


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """An opening request with pieces cut out, put in, and doubled."""
    data = opening(f"/ws?token={token('u1')}", "Sec-WebSocket-Protocol: bridge.v1.json")
    data = data.replace(b"/ws", draw(st.sampled_from((b"/ws", b"/ws", b"/livez", b"/nothing"))), 1)
    for _ in range(draw(st.integers(0, 2))):
        at, gone = draw(st.integers(0, len(data))), draw(st.integers(0, 30))
        more = draw(st.one_of(st.binary(max_size=8), st.just(data[at : at + 40]), st.just(b"\r\n")))
        data = data[:at] + more + data[at + gone :]
    return data


ONE_FOR_EACH_STATUS = {
    101: opening(f"/ws?token={token('u1')}", "Sec-WebSocket-Protocol: bridge.v1.json"),
    200: opening("/livez"),
    400: b"no request\r\n\r\n",
    401: opening("/ws?token="),
    404: opening("/nothing"),
}
"""What is made up may leave some status out."""


async def test_whatever_comes_before_a_session_gets_a_status(vhost: str, database: str) -> None:
    answered: dict[int, int] = {}

    async with bridge(vhost, database) as b, neighbour(b.ws_port, vhost) as other:

        async def check(sent: bytes) -> None:
            async with raw_client(b.ws_port) as peer:
                peer.send(sent)
                peer.writer.write_eof()
                answer = await peer.read_all()
            head, _, text = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 ")
            status = int(head.split(b" ", 2)[1])
            assert status in (101, 200) or (400 <= status < 500 and text), answer
            answered[status] = answered.get(status, 0) + 1
            if sum(answered.values()) % 50 == 0:
                await other.is_well()

        for sent in ONE_FOR_EACH_STATUS.values():
            await check(sent)
        assert answered == dict.fromkeys(ONE_FOR_EACH_STATUS, 1)
        await for_each(requests() | requests() | st.binary(max_size=200), STREAMS, check)
        await until(lambda: b._ws.connections == 1)


async def test_thousands_that_never_finish_asking_keep_nobody_out_and_are_sent_away(
    vhost: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    monkeypatch.setattr(websocket, "UNANSWERED_MAX", HALF_OPEN // 2)
    try:
        async with (
            bridge(vhost, database, handshake_timeout=6.0) as b,
            neighbour(b.ws_port, vhost) as other,
        ):
            half_open = await asyncio.to_thread(half_opened, b.ws_port)
            await other.is_well()
            async with client(b.ws_port, token("newcomer"), subprotocols=ENVELOPE) as newcomer:
                assert (await newcomer.read_json())["type"] == "welcome"
            await until(lambda: b._ws.handshakes_in_progress == 0, SECONDS)
            answers = [peer.recv(1_000).split(b" ", 2)[1] for peer in half_open]
            for peer in half_open:
                peer.close()
            await until(lambda: b._ws.connections == 1)
            # Those that were too many at once, and those that were too slow.
            assert set(answers) == {b"503", b"408"}
            assert answers.index(b"408") > 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def half_opened(port: int) -> list[socket.socket]:
    """Connections that say nearly all of an opening request."""
    peers = []
    for _ in range(HALF_OPEN):
        peers.append(socket.create_connection(("127.0.0.1", port), SECONDS))
        peers[-1].sendall(opening()[:-2])
    return peers
