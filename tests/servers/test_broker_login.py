"""How every part logs in to the broker, and what it says when the broker does not let it in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import pytest
from yarl import URL

from bridge.adapters.amqp.connection import channel, opened
from bridge.adapters.amqp.login import vhost_of
from bridge.adapters.amqp.producer import Producer
from bridge.core.errors import BrokerUnavailable
from bridge.devservers import Servers
from bridge.operator import queues

PASSWORD = "p@ss %2F/wörd"


def at(servers: Servers, user: str, vhost: str) -> str:
    """An AMQP URL with these raw parts."""
    return f"amqp://{user}@127.0.0.1:{servers.rabbit.port}/{vhost}"


@contextmanager
def user(servers: Servers, name: str, password: str, vhost: str, rights: str = ".*") -> Iterator[None]:
    """A broker user with these rights on a vhost (configure, write and read alike)."""
    rabbit = servers.rabbit
    bits = f'<<"{name}">>'
    secret = f"<<{','.join(map(str, password.encode()))}>>"
    rabbit.evaluate(f'rabbit_auth_backend_internal:add_user({bits}, {secret}, <<"test">>).')
    if rights:
        rabbit.evaluate(
            f'rabbit_auth_backend_internal:set_permissions({bits}, <<"{vhost}">>, <<"{rights}">>,'
            f' <<"{rights}">>, <<"{rights}">>, <<"test">>).'
        )
    try:
        yield
    finally:
        rabbit.evaluate(f'rabbit_auth_backend_internal:delete_user({bits}, <<"test">>).')


async def cause(url: str) -> str:
    """Why a connection does not come about, or a channel."""
    with pytest.raises(BrokerUnavailable) as failed:
        async with opened(url, "test", lambda events: None, lambda why: None) as (connection, _):
            await channel(connection, confirms=False)
    return failed.value.cause


@pytest.mark.parametrize(
    ("path", "vhost"),
    [
        ("", "/"),
        ("/", "/"),
        ("/%2F", "/"),
        ("/a", "a"),
        ("/a%2Fb", "a/b"),
        ("/a%2fb", "a/b"),
        ("/a%252Fb", "a%2Fb"),
        ("/a%252fb", "a%2fb"),
        ("/50%25", "50%"),
        ("/%D0%B6", "ж"),
    ],
)
def test_a_vhost_is_decoded_once(path: str, vhost: str) -> None:
    assert vhost_of(URL(f"amqp://h{path}")) == vhost


@pytest.mark.parametrize("name", ["a/b", "a%2Fb", "a%2fb", "50%", "ж ж"])
async def test_every_part_reaches_a_vhost_of_any_name(servers: Servers, name: str) -> None:
    servers.rabbit.create_vhost(name)
    try:
        base = servers.rabbit.url.rsplit("/", 1)[0]
        url = f"{base}/{quote(name, safe='')}"
        async with Producer.connect(url):
            pass
        assert await queues.queue_depths(url) is not None
    finally:
        servers.rabbit.delete_vhost(name)


async def test_a_password_is_sent_as_it_is(servers: Servers) -> None:
    with user(servers, "exact", PASSWORD, "/"):
        url = at(servers, f"exact:{quote(PASSWORD, safe='')}", "")
        async with Producer.connect(url):
            pass


async def test_an_empty_password_does_not_log_in_as_guests(servers: Servers) -> None:
    with user(servers, "nobody", "guest", "/"):
        for credentials in ("nobody:", "nobody"):
            said = await cause(at(servers, credentials, ""))
            assert said.startswith("ACCESS_REFUSED - Login was refused"), said
            assert said.endswith("(403)")


async def test_the_brokers_own_words_are_told(servers: Servers) -> None:
    with user(servers, "known", "right", "/", rights=""):
        assert await cause(at(servers, "known:right", "nowhere")) == (
            "NOT_ALLOWED - vhost nowhere not found (530)"
        )
        assert await cause(at(servers, "known:right", "")) == (
            "NOT_ALLOWED - access to vhost '/' refused for user 'known' (530)"
        )
        assert "ACCESS_REFUSED - Login was refused" in await cause(at(servers, "known:wrong", ""))
