"""The reconnect storm that is measured: what it counts, and when."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import jwt

from benchmarks import load
from benchmarks.clients import Client
from benchmarks.listening import listening
from benchmarks.roaming import Person
from benchmarks.storm import Storm, table
from benchmarks.storming import Door, Doors, Storming, Timed

SECOND = 1_000_000_000
SECRET = "a secret for tests only: 0123456789"


class User:
    """A client, as the tally sees it."""

    device = 0
    newest = -1

    def __init__(self, user: int) -> None:
        self.user = user


def test_of_each_push_it_is_noted_when_it_was_made_and_repeats_are_not() -> None:
    tally = Timed()
    tally.expect(10, 10, users=2)
    user = cast(Client, User(1))
    for number, made in ((0, 100), (1, 200), (0, 100)):
        tally.push(user, load.data(number, 1, made), 1_000)
    assert tally.made.tolist() == [100, 200]
    assert tally.latencies.tolist() == [900, 800]
    assert tally.duplicates == 1


def test_pushes_are_told_by_the_time_at_which_they_were_made() -> None:
    storm = Storm(10 * SECOND, [12 * SECOND, 14 * SECOND])
    ages = {9: 1, 10: 2, 13: 3, 14: 4, 20: 5}
    delivered = [(at * SECOND, ms * 1_000_000) for at, ms in ages.items() for _ in range(2)]
    head, cores, _, _, _, *rows = table(storm, delivered, {"bridge": 0.5}).splitlines()
    assert head.startswith("2 users were in after 4.0 s: 0 handshakes a second, at most 1 in one;")
    assert cores == "Cores: bridge 0.50"
    assert [row.split("|")[2].strip() for row in rows] == ["2", "4", "4"]
    assert [row.split("|")[5].strip() for row in rows] == ["1", "3", "5"]


def test_clients_go_to_every_door() -> None:
    doors = Doors([Door("a", 1), Door("b", 2)])
    assert {doors.choose().node for _ in range(50)} == {"a", "b"}


async def test_all_are_in_when_each_was_welcomed_once() -> None:
    storming = Storming(Timed())
    await storming.prepare(first=5, count=2, secret=SECRET)
    people: list[Person] = cast(Any, storming)._people
    assert [person.user for person in people] == ["u5", "u6"]
    all_in: asyncio.Event = cast(Any, storming)._all_in
    for person in (people[0], people[0]):
        person.came({"type": "welcome"})
    assert not all_in.is_set()
    people[1].came({"type": "welcome"})
    assert all_in.is_set()
    assert await storming.here() == {"here": 0, "failed": 0, "again": 1}


async def test_a_try_that_is_turned_away_is_counted_and_made_again() -> None:
    answers = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answers
        answers += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")

    async with listening(refuse) as port:
        person = Person(1, lambda person: None, SECRET)
        staying = asyncio.create_task(person.stay(Doors([Door("a", port)]), asyncio.Semaphore(1)))
        async with asyncio.timeout(10):
            while answers < 2:
                await asyncio.sleep(0.01)
        staying.cancel()
        await asyncio.gather(staying, return_exceptions=True)
    assert person.failed >= 1
    assert person.at is None


def test_people_have_tokens_of_the_secret_that_they_are_given() -> None:
    person = Person(1, lambda person: None, SECRET)
    assert jwt.decode(person.token, SECRET, algorithms=["HS256"])["sub"] == "u1"
