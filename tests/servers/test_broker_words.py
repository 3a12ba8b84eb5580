"""Logging in to the broker: a refusal in its own words, an empty password, vhosts with odd names, few lines."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from urllib.parse import urlsplit

import aio_pika
import aiormq
import pytest

from bridge.adapters.amqp import connection as amqp_connection
from bridge.adapters.amqp.producer import Producer, outcomes
from bridge.adapters.amqp.topology import DeclareMode, TopologyError, ensure
from bridge.app import build as app
from bridge.core.errors import BrokerRefused, BrokerUnavailable
from bridge.devservers import Servers
from bridge.operator import dead_letters
from bridge.operator.queues import queue_depths
from tests.support import bridges

PASSWORD = "p w/%"
WRITTEN = "p%20w%2F%25"
LOGIN = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN"


class Users:
    """Users of the broker, gone at the end."""

    def __init__(self, servers: Servers, vhost: str) -> None:
        self._broker = servers.rabbit
        self._made: list[str] = []
        parts = urlsplit(vhost)
        self.place = f"{parts.hostname}:{parts.port}"
        self.vhost = parts.path[1:]

    def add(self, password: str = PASSWORD, rights: tuple[str, str, str] | None = (".*", ".*", ".*")) -> str:
        """The name of a new one, with rights to configure, write, read in the vhost; None: it may not come in."""
        name = f"user_{secrets.token_hex(4)}"
        self._broker.evaluate(
            f'rabbit_auth_backend_internal:add_user(<<"{name}">>, <<"{password}">>, <<"bridge">>)'
        )
        self._made.append(name)
        if rights is not None:
            expressions = ", ".join(f'<<"{right}">>' for right in rights)
            self._broker.evaluate(
                f'rabbit_auth_backend_internal:set_permissions(<<"{name}">>, <<"{self.vhost}">>, {expressions},'
                ' <<"bridge">>)'
            )
        return name

    def remove(self) -> None:
        """Remove them all."""
        for name in self._made:
            self._broker.evaluate(f'rabbit_auth_backend_internal:delete_user(<<"{name}">>, <<"bridge">>)')


@pytest.fixture
def users(servers: Servers, vhost: str) -> Iterator[Users]:
    made = Users(servers, vhost)
    yield made
    made.remove()


async def declare(url: str) -> None:
    """The whole topology."""
    async with amqp_connection.opened(url, "test", lambda events: None, lambda cause: None) as (
        connection,
        _,
    ):
        await ensure(connection, DeclareMode.ACTIVE)


async def refusal(url: str) -> BrokerUnavailable:
    """What connecting and declaring raises."""
    with pytest.raises(BrokerUnavailable) as caught:
        await declare(url)
    return caught.value


async def first_letter(url: str) -> None:
    """Take a letter from push.dead."""
    async with dead_letters.held(url, 1) as pile:
        await anext(aiter(pile.letters()))


async def test_a_missing_vhost_is_told_in_the_brokers_words(users: Users) -> None:
    error = await refusal(f"amqp://{users.add()}:{WRITTEN}@{users.place}/nope")
    assert isinstance(error, BrokerRefused)
    assert str(error) == "the broker refused: NOT_ALLOWED - vhost nope not found (530)"


async def test_a_vhost_that_is_closed_to_the_user_is_told_in_the_brokers_words(users: Users) -> None:
    name = users.add(rights=None)
    error = await refusal(f"amqp://{name}:{WRITTEN}@{users.place}/{users.vhost}")
    expected = f"NOT_ALLOWED - access to vhost '{users.vhost}' refused for user '{name}' (530)"
    assert (type(error), error.cause) == (BrokerRefused, expected)


async def test_a_wrong_password_is_told_in_the_brokers_words(users: Users) -> None:
    error = await refusal(f"amqp://{users.add()}:wrong@{users.place}/{users.vhost}")
    assert isinstance(error, BrokerRefused)
    assert error.cause.startswith(LOGIN)
    assert error.cause.endswith("(403)")


async def test_an_empty_password_is_sent_as_an_empty_one(users: Users) -> None:
    # The library alone sends guest's, and is let in.
    name = users.add("guest")
    url = f"amqp://{name}:@{users.place}/{users.vhost}"
    lax = await aiormq.connect(url)
    await lax.close()
    for written in (url, f"amqp://{name}@{users.place}/{users.vhost}"):
        assert (await refusal(written)).cause.startswith(LOGIN)
    await declare(f"amqp://{name}:guest@{users.place}/{users.vhost}")


@pytest.mark.parametrize(
    ("rights", "what"),
    [
        (("^$", ".*", ".*"), "queue push.fallen: ACCESS_REFUSED - access to queue 'push.fallen'"),
        ((".*", "^$", ".*"), "queue push.requests: ACCESS_REFUSED - access to queue 'push.fallen'"),
        ((".*", ".*", "^$"), "queue push.requests: ACCESS_REFUSED - access to queue 'push.requests'"),
    ],
)
async def test_a_bridge_without_rights_says_which_in_the_brokers_words(
    rights: tuple[str, str, str], what: str, users: Users, database: str
) -> None:
    url = f"amqp://{users.add(rights=rights)}:{WRITTEN}@{users.place}/{users.vhost}"
    error = await refusal(url)
    assert isinstance(error, TopologyError)
    async with app.running(bridges.settings(url, database)) as running:
        async with asyncio.timeout(bridges.SECONDS):
            while not any("ACCESS_REFUSED" in cause for cause in running.gate.causes):
                await asyncio.sleep(0.02)
        (cause,) = [c for c in running.gate.causes if c.startswith("broker: ")]
    assert cause.removeprefix("broker: ") == error.cause
    assert "ACCESS_REFUSED - " in cause
    assert cause.endswith("(403)")
    assert "is unavailable" not in str(error)
    assert "Expected" not in cause
    assert what.partition(":")[0] in cause


async def test_publishing_and_reading_without_rights_are_told_in_the_brokers_words(
    vhost: str, users: Users
) -> None:
    await declare(vhost)
    reader = f"amqp://{users.add(rights=('.*', '^$', '.*'))}:{WRITTEN}@{users.place}/{users.vhost}"
    writer = f"amqp://{users.add(rights=('.*', '.*', '^$'))}:{WRITTEN}@{users.place}/{users.vhost}"
    with pytest.raises(
        BrokerRefused, match=r"ACCESS_REFUSED - (write )?access to exchange 'push' .* \(403\)$"
    ):
        async with Producer.connect(reader) as producer:
            await producer.publish(b"{}")
    async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
        await channel.default_exchange.publish(aio_pika.Message(b"{}"), "push.dead")
    with pytest.raises(
        BrokerRefused, match=r"ACCESS_REFUSED - (read )?access to queue 'push.dead' .* \(403\)$"
    ):
        await first_letter(writer)
    with pytest.raises(BrokerRefused, match=r"ACCESS_REFUSED - .* \(403\)$"):
        await anext(aiter(outcomes(writer)))


async def test_vhosts_with_a_slash_and_with_a_percent_sign_are_two(
    servers: Servers, vhost: str, database: str
) -> None:
    base = vhost.rpartition("/")[0]
    slash = f"test_{secrets.token_hex(4)}/b"
    percent = slash.replace("/", "%2F")
    servers.rabbit.create_vhost(slash)
    servers.rabbit.create_vhost(percent)
    try:
        urls = {slash: f"{base}/{percent}", percent: f"{base}/{percent.replace('%', '%25')}"}
        for name, url in urls.items():
            # Taken by a bridge of this vhost, and answered through it: every part reaches it.
            async with bridges.bridge(url, database, node=f"n{len(name)}"):
                async with Producer.connect(url) as producer:
                    (receipt,) = await producer.request(
                        b'{"id": "%s", "to": {"user": "u"}, "data": 1}' % name.encode(), bridges.SECONDS
                    )
                assert (receipt["push_id"], receipt["outcome"]) == (name, "offline")
            queues = f'[element(4, element(2, Q)) || Q <- rabbit_amqqueue:list(<<"{name}">>)]'
            there = servers.rabbit.evaluate(queues)
            assert "push.requests" in there
            assert [depth.there for depth in await queue_depths(url)] == [True] * 4
    finally:
        for name in (slash, percent):
            servers.rabbit.delete_vhost(name)
