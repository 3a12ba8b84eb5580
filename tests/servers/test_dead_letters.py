"""Dead letters: looking takes nothing away, a replay loses nothing, a purge takes what was named."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import pytest

from bridge.adapters.amqp import encoding, frames
from bridge.adapters.amqp.outbox import Message
from bridge.adapters.amqp.producer import NotTaken, Producer
from bridge.adapters.amqp.publish import rfc3339
from bridge.adapters.amqp.topology import DEAD, FALLEN, PUSH, REQUESTS
from bridge.cli import dead as command
from bridge.cli import main
from bridge.config import CommonSettings
from bridge.core.errors import BrokerUnavailable, SettingsError
from bridge.operator.dead_letters import Letter, Pile, held, mark_of, marked, outgoing
from tests.support.amqp import declare, outbox
from tests.support.bridges import bridge, endings, final_rows, publish, request, rows, token
from tests.support.clients import client
from tests.support.queues import channel, drained, raw_deliveries, ready_messages

NOW = 1_800_000_000.0


def at(url: str) -> CommonSettings:
    return CommonSettings(amqp_url=url, _env_file=None)


async def bury(
    url: str,
    *letters: tuple[str, str],
    body: bytes = b'{"data":1}',
    headers: Mapping[str, object] | None = None,
) -> None:
    """Put letters (id, reason) into push.dead, as the bridge does."""
    await declare(url)
    async with outbox(url) as box:
        messages = []
        for push_id, reason in letters:
            ours = {
                "x-push-id": push_id,
                "x-push-reason": reason,
                "x-push-detail": "why",
                "x-push-buried-at": rfc3339((datetime.now(UTC) - timedelta(hours=2)).timestamp()),
            }
            table, _ = encoding.table({**ours, **(headers or {})})
            properties = encoding.properties(headers=table, app_id="billing", content_type="application/json")
            messages.append(Message(DEAD, reason.encode(), properties, body))
        assert not await box.publish(messages, 10)


async def first(url: str) -> Letter:
    """The oldest letter of push.dead."""
    async with held(url, 1) as pile:
        return await anext(pile.letters())


async def listed(
    url: str, capsys: pytest.CaptureFixture[str], *, reasons: Sequence[str] = (), limit: int = 1000
) -> list[dict[str, Any]]:
    """What `bridge dead list --json` prints."""
    capsys.readouterr()
    assert await command.dead_list(at(url), reasons, limit=limit, as_json=True) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def replay(url: str, *ids: str, reasons: Sequence[str] = (), **more: bool) -> int:
    asked = {"new_ids": False, "dry_run": False, "unrecorded": True, **more}
    return await command.dead_replay(at(url), ids, reasons, limit=1000, **asked)


def ids(letters: Sequence[dict[str, Any]]) -> list[str]:
    return [letter["id"] for letter in letters]


# --- looking ---------------------------------------------------------------------------------------------


async def test_a_line_says_id_reason_age_size_owner_and_detail(
    vhost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await bury(vhost, ("p1", "invalid"), body=b'{"tenant":"shop","data":1}')
    target = {"x-push-tenant": "bank", "x-push-user": "u1"}
    await bury(vhost, ("p2", "poison"), ("p3", "poison"), headers=target)
    assert await command.dead_list(at(vhost), (), limit=10, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["id", "reason", "age", "bytes", "tenant/app", "detail"]
    assert lines[1].split() == ["p1", "invalid", "2", "h", "26", "shop/billing", "why"]
    assert lines[2].split() == ["p2", "poison", "2", "h", "10", "bank/billing", "why"]
    assert lines[-1] == "3 dead letters: 1 invalid, 2 poison"
    assert ids(await listed(vhost, capsys, reasons=["poison"])) == ["p2", "p3"]


async def test_looking_takes_nothing_away_and_keeps_the_order(
    vhost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"p{i:03}" for i in range(300)]
    await bury(vhost, *((name, "invalid") for name in names))
    for _ in range(3):
        assert ids(await listed(vhost, capsys)) == names
    assert await ready_messages(vhost, DEAD) == 300


@pytest.mark.parametrize("fails", [False, True])
async def test_when_a_look_is_over_its_letters_are_there_for_the_next(vhost: str, fails: bool) -> None:
    await bury(vhost, *((f"p{i:03}", "invalid") for i in range(300)))
    async with channel(vhost) as open_channel:
        for _ in range(30):
            with suppress(ArithmeticError):
                async with held(vhost, 1000) as pile:
                    assert len([letter async for letter in pile.letters()]) == 300
                    if fails:
                        raise ArithmeticError("what its caller made of it")
            declared = await open_channel.declare_queue(DEAD, passive=True)
            assert declared.declaration_result.message_count == 300


async def test_a_look_at_a_part_says_so_and_loses_nothing(
    vhost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"p{i}" for i in range(10)]
    await bury(vhost, *((name, "invalid") for name in names))
    assert await command.dead_list(at(vhost), (), limit=3, as_json=False) == 0
    told = capsys.readouterr()
    assert "3 of 10 letters were looked at" in told.err
    assert told.out.splitlines()[-1] == "3 dead letters: 3 invalid"
    assert sorted(ids(await listed(vhost, capsys))) == names


async def test_an_empty_queue_and_a_missing_one_are_told_apart(
    vhost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exception, match=r"there is no queue push\.dead: has a bridge ever run"):
        await command.dead_list(at(vhost), (), limit=10, as_json=False)
    await declare(vhost)
    assert await command.dead_list(at(vhost), (), limit=10, as_json=False) == 0
    assert capsys.readouterr().out == "no dead letters\n"


async def test_show_prints_properties_headers_and_the_body_and_sends_no_control_characters(
    vhost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await bury(vhost, ("p1", "not_json"), body=b"not \x1b[31mjson\xff\nsecond", headers={"own": ["a\x1b", 1]})
    assert await command.dead_show(at(vhost), "p1", limit=10, as_json=False) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    lines = [line.split(maxsplit=1) for line in shown.splitlines()]
    assert ["reason", "not_json"] in lines
    assert ["app_id", "billing"] in lines
    assert ["header", 'own: ["a\\u001b", 1]'] in lines
    assert ["body", "21 bytes"] in lines
    assert shown.endswith("    not \\x1b[31mjson\\xff\n    second\n")
    assert await command.dead_show(at(vhost), "p1", limit=10, as_json=True) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["encoding"] == "base64"
    assert whole["properties"]["app_id"] == "billing"
    assert await command.dead_show(at(vhost), "p2", limit=10, as_json=False) == 1
    assert "no letter p2 in push.dead" in capsys.readouterr().err


# --- publishing again ------------------------------------------------------------------------------------


async def test_a_letter_that_would_be_taken_now_is_delivered_and_leaves_the_queue(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"id": "big", "to": {"user": "u1"}, "data": "x" * 5000}
    async with bridge(vhost, database, max_data_bytes=1000):
        await publish(vhost, body, timestamp=int(NOW) - 10_000_000)
        await final_rows(database, 1)
        await until_there(vhost, DEAD, 1)
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1")) as c:
        assert await replay(vhost, "big") == 0
        assert capsys.readouterr().out.splitlines()[0] == "replayed: big"
        assert await c.read() == "x" * 5000
        found = await final_rows(database, 2)
    assert endings(found) == {
        ("big", None): ("rejected", "too_large"),
        ("big", "u1"): ("received", "pong"),
    }
    assert await ready_messages(vhost, DEAD) == 0


async def test_a_letter_that_is_still_wrong_comes_back_marked_and_makes_no_second_row(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"id": "bad", "to": {"user": 7}, "data": 1}
    elements = [wrong, {"to": {}, "data": 2}, {"data": 3}]
    async with bridge(vhost, database):
        await publish(vhost, elements, push_id="m1")
        before = await final_rows(database, 3)
        await until_there(vhost, DEAD, 3)
        assert all(letter["replayed_at"] is None for letter in await listed(vhost, capsys))
        assert await replay(vhost, reasons=["invalid"]) == 0
        assert "3 replayed, 0 kept" in capsys.readouterr().out
        await until_there(vhost, DEAD, 3)
        again = await listed(vhost, capsys)
        assert sorted(ids(again)) == ["bad", "m1/1", "m1/2"]
        assert all(letter["replayed_at"] for letter in again)
        assert endings(await rows(database)) == endings(before)


async def test_a_letter_whose_user_has_a_final_row_is_replayed_as_a_new_push_or_not_at_all(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(vhost, database):
        pass
    async with Producer.connect(vhost) as producer:
        old = json.dumps(request("u1", "late")).encode()
        await producer.publish(old, expiration=0.05, timestamp=int(NOW) - 10_000_000)
    await until_there(vhost, FALLEN, 1)
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1")) as c:
        await final_rows(database, 1)
        await until_there(vhost, DEAD, 1)
        assert await replay(vhost, "late") == 1
        assert "kept: late: its users have final rows" in capsys.readouterr().out
        assert await ready_messages(vhost, DEAD) == 1
        assert await replay(vhost, "late", new_ids=True) == 0
        new_id = (
            f"late/again-{mark_of(Letter(1, old, {'x-push-id': 'late'}, content_type='application/json'))}"
        )
        assert f"replayed: late as {new_id}" in capsys.readouterr().out
        assert json.loads(await c.read()) == {"n": "late"}
        assert endings(await final_rows(database, 2)) == {
            ("late", "u1"): ("expired", "queue_expiration"),
            (new_id, "u1"): ("received", "pong"),
        }
    assert await ready_messages(vhost, DEAD) == 0


@pytest.mark.parametrize("new_ids", [False, True])
async def test_a_crash_between_confirm_and_ack_repeats_the_message_and_not_the_push(
    vhost: str,
    database: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    new_ids: bool,
) -> None:
    body = json.dumps(request("u1", "p1")).encode()
    await bury(vhost, ("p1", "unsupported"), body=body)
    name = outgoing(await first(vhost), NOW, new_id=new_ids).push_id
    assert name.startswith("p1/again-" if new_ids else "p1")

    async def crash(self: Pile, letters: Sequence[Letter]) -> None:
        raise BrokerUnavailable("cut")

    async with bridge(vhost, database) as b, client(b.ws_port, token("u1")) as c:
        with monkeypatch.context() as patched:
            patched.setattr(Pile, "discard", crash)
            with pytest.raises(BrokerUnavailable, match="cut"):
                await replay(vhost, "p1", new_ids=new_ids)
        await until_there(vhost, DEAD, 1)
        assert await replay(vhost, "p1", new_ids=new_ids) == 0
        await publish(vhost, request("u1", "after"))
        assert [json.loads(m)["n"] for m in await c.read_many(2)] == ["p1", "after"]
        assert set(endings(await final_rows(database, 2))) == {(name, "u1"), ("after", "u1")}
    assert await ready_messages(vhost, DEAD) == 0


async def test_what_no_queue_takes_stays_where_it_is(vhost: str, capsys: pytest.CaptureFixture[str]) -> None:
    await bury(vhost, ("p1", "invalid"), ("p2", "invalid"))
    async with channel(vhost) as open_channel:
        await open_channel.queue_delete(REQUESTS)
    with pytest.raises(NotTaken):
        await replay(vhost)
    assert sorted(ids(await listed(vhost, capsys))) == ["p1", "p2"]


async def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    vhost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await bury(vhost, ("p1", "invalid"), ("p2", "poison"))
    assert await replay(vhost, dry_run=True) == 1
    out = capsys.readouterr().out
    assert "would be replayed: p1\n" in out
    assert "kept: p2: its users have final rows" in out
    assert ids(await listed(vhost, capsys)) == ["p1", "p2"]
    assert await ready_messages(vhost, REQUESTS) == 0


async def test_what_cannot_be_what_it_was_is_kept(vhost: str, capsys: pytest.CaptureFixture[str]) -> None:
    await bury(vhost, ("cut", "too_large"), body=b"x" * frames.CUT_BYTES)
    async with outbox(vhost) as box:
        await box.publish([Message(DEAD, b"x", encoding.properties(message_id="foreign"), b"{}")], 10)
    assert await replay(vhost, new_ids=True) == 1
    out = capsys.readouterr().out
    assert "kept: cut: only the beginning of its body was kept" in out
    assert "kept: foreign: the bridge did not put it there" in out
    assert await replay(vhost, "nobody") == 1
    assert "no letter nobody among the 2 that were looked at" in capsys.readouterr().err
    assert await ready_messages(vhost, DEAD) == 2


async def test_a_replay_keeps_the_message_but_for_times_and_what_the_broker_added(vhost: str) -> None:
    broker = {
        "x-death": [{"count": 1}],
        "x-first-death-reason": "expired",
        "x-delivery-count": 3,
        "CC": ["a"],
    }
    await bury(
        vhost,
        ("p1", "unsupported"),
        body=b'{"id":"the data, not a request"}',
        headers={
            "own": "kept",
            **broker,
            "x-push-user": "u1",
            "x-push-published-ms": 1,
            "x-push-event": "e",
        },
    )
    new_id = marked("p1", mark_of(await first(vhost)))
    await replay(vhost, new_ids=True)
    [message] = await drained(vhost, REQUESTS)
    assert isinstance(message.headers.pop("x-push-replayed-at"), str)
    message.headers.pop("x-delivery-count", None)
    assert message.headers == {"own": "kept", "x-push-id": new_id, "x-push-user": "u1", "x-push-event": "e"}
    assert message.body == b'{"id":"the data, not a request"}'
    assert (message.app_id, message.content_type, message.exchange) == ("billing", "application/json", PUSH)
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT


async def test_a_letter_that_no_queue_takes_stays_however_long_its_id_is(
    vhost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "😀" * 128
    await bury(vhost, (name, "invalid"), (name, "invalid"))
    async with channel(vhost) as open_channel:
        await open_channel.queue_delete(REQUESTS)
    for new_ids in (False, True):
        with pytest.raises(NotTaken):
            await replay(vhost, new_ids=new_ids)
    assert ids(await listed(vhost, capsys)) == [name, name]
    await declare(vhost)
    assert await replay(vhost) == 0
    assert [message.headers["x-push-id"] for message in await drained(vhost, REQUESTS)] == [name, name]


async def test_a_letter_whose_properties_are_no_text_is_read_shown_and_replayed_as_it_is(
    vhost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await declare(vhost)
    table, _ = encoding.table({"x-push-id": "p1", "x-push-reason": "invalid", "own~~": 1})
    properties = encoding.properties(headers=table, message_id="m~~", correlation_id="c~~", reply_to="r~~")
    async with outbox(vhost) as box:
        assert not await box.publish([Message(DEAD, b"x", properties.replace(b"~~", b"\xff\xfe"), b"{}")], 10)
    assert ids(await listed(vhost, capsys)) == ["p1"]
    assert await command.dead_show(at(vhost), "p1", limit=10, as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["properties"] == {
        "message_id": "m\\xff\\xfe",
        "correlation_id": "c\\xff\\xfe",
        "reply_to": "r\\xff\\xfe",
    }
    assert shown["headers"]["own\\xff\\xfe"] == 1
    assert await command.dead_show(at(vhost), "p1", limit=10, as_json=False) == 0
    assert "c\\xff\\xfe" in capsys.readouterr().out
    assert await replay(vhost) == 0
    async with raw_deliveries(vhost, REQUESTS) as seen, asyncio.timeout(10):
        again = (await seen.get()).properties
    assert (again.correlation_id, again.reply_to) == ("c\udcff\udcfe", "r\udcff\udcfe")
    assert again.headers["own\udcff\udcfe"] == 1


async def test_letters_of_one_id_are_as_many_pushes_as_they_are_letters(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shops = [json.dumps(request("u1", "p1", tenant=tenant)).encode() for tenant in ("a", "b")]
    other = json.dumps({"id": "p1", "to": {"user": "u1"}, "data": "the second try"}).encode()
    theirs = json.dumps({"id": "p1~1", "to": {"user": "u1"}, "data": "a publisher's own"}).encode()
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1")) as c:
        async with Producer.connect(vhost) as producer:
            await producer.publish(theirs)
        assert await c.read() == "a publisher's own"
        # The last is the same message once more, buried twice by a crash.
        for body in (*shops, other, other):
            await bury(vhost, ("p1", "poison"), body=body)
        assert await replay(vhost, new_ids=True) == 0
        assert capsys.readouterr().out.count("replayed: p1 as p1/again-") == 4
        await final_rows(database, 4)
        await publish(vhost, request("u1", "after"))
        read = await c.read_many(4)
    assert read == ['{"n": "p1"}', '{"n": "p1"}', "the second try", '{"n": "after"}']
    found = await rows(database)
    assert sorted(row["tenant"] for row in found) == ["", "", "", "a", "b"]
    assert len({row["push_id"] for row in found}) == 5


def letter(
    push_id: str = "p1", body: bytes = b"{}", headers: Mapping[str, object] | None = None, kind: str = ""
) -> Letter:
    ours = {"x-push-id": push_id, "x-push-reason": "poison", "x-push-buried-at": "2026-01-01T00:00:00Z"}
    return Letter(1, body, {**ours, **(headers or {})}, content_type=kind or "application/json")


def test_the_mark_of_a_letter_is_what_it_says_and_not_what_was_added_to_it() -> None:
    known = mark_of(letter())
    # Published by an earlier version of this program: a replay must find the push that it made then.
    assert known == "7c50237f9d3e"
    added = {"x-push-reason": "given_up", "x-push-detail": "d", "x-push-buried-at": "later", "x-death": [1]}
    assert mark_of(letter(headers=added)) == known
    other_time = {"traceparent": "00-1", "x-push-published-ms": 5, "x-delivery-count": 2}
    assert mark_of(letter(headers=other_time)) == known
    others = [
        letter("p2"),
        letter(body=b"[]"),
        letter(headers={"x-push-tenant": "shop"}),
        letter(headers={"x-push-user": "u1"}),
        letter(headers={"x-push-user": "u2"}),
        letter(kind="text/plain"),
    ]
    assert len({known, *map(mark_of, others)}) == 1 + len(others)


@pytest.mark.parametrize("push_id", ["p1", "p1~1", "/again-0123456789ab", "x" * 109, "x" * 110, "😀" * 128])
def test_replays_of_replays_have_ids_that_are_new_and_do_not_grow(push_id: str) -> None:
    have, seen, lengths = push_id, {push_id}, set()
    for _ in range(20):
        have = outgoing(letter(have), NOW, new_id=True).push_id
        assert have not in seen
        seen.add(have)
        lengths.add(len(have))
    (length,) = lengths
    assert length <= 128
    if len(push_id) < 110:
        assert have[:-19] == push_id


def test_long_ids_that_begin_alike_stay_different() -> None:
    one, two = marked("x" * 127 + "1", "0" * 12), marked("x" * 127 + "2", "0" * 12)
    assert one != two
    assert max(len(one), len(two)) <= 128


def test_new_ids_reach_every_request_of_a_batch_and_leave_the_rest_alone() -> None:
    body = b'[{"id":"a","data":1e400,"to":{"user":"u"}},{"data":2},{"id":7},{"id":"\xff"}]'
    batch = letter("a", body)
    made = outgoing(batch, NOW, new_id=True)
    new_id = marked("a", mark_of(batch)).encode()
    assert made.push_id.encode() == new_id
    assert made.body == (
        b'[{"id":"%s","data":1e400,"to":{"user":"u"}},{"data":2},{"id":7},{"id":"\xff"}]' % new_id
    )
    broken = outgoing(letter("a", b'{"id":"a"'), NOW, new_id=True)
    assert broken.body == b'{"id":"a"'


# --- throwing away ---------------------------------------------------------------------------------------


async def test_a_purge_wants_a_yes_and_takes_only_what_was_named(
    vhost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await bury(vhost, ("p1", "invalid"), ("p2", "poison"), ("p3", "invalid"), ("p4", "poison"))
    with pytest.raises(SettingsError, match="nothing deleted; add --yes to delete 2 of 4 letters"):
        await command.dead_purge(at(vhost), (), ["poison"], limit=1000, yes=False)
    assert await command.dead_purge(at(vhost), (), ["poison"], limit=1000, yes=True, unrecorded=True) == 0
    assert capsys.readouterr().out == "2 deleted, 2 kept\n"
    assert ids(await listed(vhost, capsys)) == ["p1", "p3"]
    assert await command.dead_purge(at(vhost), ["p9"], (), limit=1000, yes=True, unrecorded=True) == 1
    assert await command.dead_purge(at(vhost), (), (), limit=1000, yes=True, unrecorded=True) == 0
    assert await ready_messages(vhost, DEAD) == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["dead"], "the following arguments are required: list|show|replay|purge"),
        (["dead", "replay"], "one of the arguments --id --reason --all is required"),
        (["dead", "purge", "--all", "--id", "x"], "not allowed with argument --all"),
        (["dead", "show"], "the following arguments are required: ID"),
    ],
)
def test_which_letters_are_meant_must_be_said(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as usage:
        main(words)
    assert usage.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_commands_find_their_broker_by_the_settings(
    vhost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dead", "list", "--amqp-url", vhost]) == 1
    assert "bridge: there is no queue push.dead" in capsys.readouterr().err
    assert main(["dead", "list", "--amqp-url", "amqp://me:s3cr3t@127.0.0.1:1/"]) == 3
    assert "s3cr3t" not in capsys.readouterr().err


async def until_there(url: str, queue: str, count: int) -> None:
    """Wait until the queue shows so many messages."""
    async with asyncio.timeout(10):
        while await ready_messages(url, queue) < count:
            await asyncio.sleep(0.02)
