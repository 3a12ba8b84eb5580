"""When letters leave: a single push waits for no confirm, and where many are under way others go together."""

from __future__ import annotations

import asyncio

from bridge.core.cluster.post import ITEMS, UNDER_WAY
from bridge.core.contract.letters import Forwarded, decode_letter
from bridge.core.ports.nodes import Sent
from tests.core.test_nodes import LIMITS, held, ids, online, ticks
from tests.support.house import to
from tests.support.town import Town, town
from tests.support.waiting import turns, until


def pushes(made: Town) -> list[int]:
    """How many pushes each letter had that had any."""
    counts = [
        sum(isinstance(item, Forwarded) for item in decode_letter(letter.body).items)
        for letter in made.letters
    ]
    return [count for count in counts if count]


def users_of(made: Town) -> list[list[str]]:
    """The users of the pushes in each letter with any."""
    letters = [decode_letter(letter.body).items for letter in made.letters]
    users = [
        [user for item in some if isinstance(item, Forwarded) for user in item.users] for some in letters
    ]
    return [some for some in users if some]


async def test_a_push_waits_for_the_confirm_of_another_only_where_many_are_under_way() -> None:
    more = 20
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        await a.push(to("u1", "p0"))
        await until(lambda: ids(peer) == ["p0"])
        peer.answer()
        await a.settled(1)
        made.letters.clear()
        gate = asyncio.Event()
        made.before = held(gate, "send")
        for n in range(UNDER_WAY + more):
            await a.push(to("u1", f"p{n + 1}"))
            await ticks(a, seconds=0.0)
        assert a.core.cluster.post.waiting == more
        assert a.core.cluster.post.busy
        gate.set()
        await until(lambda: len(ids(peer)) == 1 + UNDER_WAY + more)
        assert pushes(made) == [1] * UNDER_WAY + [more]
        assert ids(peer) == [f"p{n}" for n in range(1 + UNDER_WAY + more)]
        assert not a.core.cluster.post.busy


async def test_what_was_lost_with_a_queue_is_sent_again_with_its_data_once() -> None:
    users = [f"u{n}" for n in range(7)]
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peers = [await online(b, user) for user in users]
        made.fate = lambda letter: Sent.DELIVERED  # into a queue that goes with its connection
        await a.push({"id": "p1", "to": {"users": users}, "data": 1, "ttl": 60})
        await a.push({"id": "p2", "to": {"users": users}, "data": 1, "ttl": 60})
        await until(lambda: sum(pushes(made)) == 2)
        made.fate = lambda letter: None
        made.letters.clear()
        await made.moves("b")
        await a.push(to("u0", "p3"))
        await until(lambda: ids(peers[0]) == ["p1", "p2", "p3"])
        items = [item for letter in made.letters for item in decode_letter(letter.body).items]
        sent = [(item.push_id, list(item.users)) for item in items if isinstance(item, Forwarded)]
        assert sent == [("p1", users), ("p2", users), ("p3", ["u0"])]
        assert [ids(peer) for peer in peers[1:]] == [["p1", "p2"]] * 6


async def test_what_is_sent_again_to_many_is_in_letters_of_few_and_what_is_unread_is_looked_up_once() -> None:
    users = [f"u{n}" for n in range(2 * ITEMS + 1)]
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peers = [await online(b, "u0"), *(b.connect(user) for user in users[1:])]
        await until(lambda: all(peer.client.session.replay is None for peer in peers))
        made.fate = lambda letter: Sent.DELIVERED if letter.queue.startswith("push.node.a.") else None
        await a.push({"id": "p1", "to": {"users": users}, "data": 1})
        await until(lambda: all(ids(peer) == ["p1"] for peer in peers))
        for peer in peers:
            peer.answer()
        await turns()
        made.fate = lambda letter: None
        made.letters.clear()
        looked_up = b.core.from_nodes._hosting._unread
        await made.moves("b")
        a.core.every_second()
        await until(lambda: sum(map(len, users_of(made))) == len(users))
        assert [len(some) for some in users_of(made)] == [ITEMS, ITEMS, 1]
        assert set(looked_up) == {"boot-a"}, "it is there for the next letter"
        await made.moves("a")
        b.core.every_second()
        assert not looked_up
        await a.settled(1)
        assert all(ids(peer) == ["p1"] for peer in peers), "and none is shown again"
