"""What an operator sets at the broker: what a user may do, limits, and a memory alarm.

All of it is asked of the shell that runs into the broker: each `rabbitmqctl` is a second or two of a processor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

from bridge.devservers import Servers


def topic_permissions(servers: Servers, vhost: str, exchange: str, write: str) -> None:
    """As `rabbitmqctl set_topic_permissions`, whose channels that are open go on with what they know."""
    name = urlsplit(vhost).path[1:]
    servers.rabbit.evaluate(
        f'rabbit_auth_backend_internal:set_topic_permissions(<<"bridge">>, <<"{name}">>, <<"{exchange}">>, '
        f'<<"{write}">>, <<".*">>, <<"test">>).'
    )


def permissions(servers: Servers, vhost: str, write: str) -> None:
    """As `rabbitmqctl set_permissions`, for the right to write."""
    name = urlsplit(vhost).path[1:]
    servers.rabbit.evaluate(
        f'rabbit_auth_backend_internal:set_permissions(<<"bridge">>, <<"{name}">>, <<".*">>, <<"{write}">>, '
        '<<".*">>, <<"test">>).'
    )


def delete_queue(servers: Servers, vhost: str, queue: str) -> None:
    """As `rabbitmqctl delete_queue`, which also deletes the queue of one connection alone."""
    place = urlsplit(vhost).path[1:]
    servers.rabbit.evaluate(
        f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{place}">>, queue, <<"{queue}">>)), '
        'rabbit_amqqueue:delete(Q, false, false, <<"operator">>).'
    )


def heard_queues(servers: Servers, vhost: str) -> list[str]:
    """The names of the queues of one connection alone that it consumes."""
    place = urlsplit(vhost).path[1:]
    names = servers.rabbit.evaluate(
        f'[element(4, amqqueue:get_name(Q)) || Q <- rabbit_amqqueue:list(<<"{place}">>), '
        "amqqueue:get_exclusive_owner(Q) =/= none, rabbit_amqqueue:consumers(Q) =/= []]."
    )
    return re.findall(r'<<"([^"]+)">>', names)


@contextmanager
def own_user(servers: Servers, vhost: str) -> Iterator[str]:
    """The URL of the vhost for a user of its own, who may do everything there, and on whom limits may be set."""
    address = urlsplit(vhost)
    place = address.path[1:]
    name = f"user_{place}"
    rights = ", ".join(['<<".*">>'] * 3)
    servers.rabbit.evaluate(f'rabbit_auth_backend_internal:add_user(<<"{name}">>, <<"x">>, <<"test">>).')
    servers.rabbit.evaluate(
        f'rabbit_auth_backend_internal:set_permissions(<<"{name}">>, <<"{place}">>, {rights}, <<"test">>).'
    )
    yield urlunsplit(address._replace(netloc=f"{name}:x@{address.hostname}:{address.port}"))
    servers.rabbit.evaluate(f'rabbit_auth_backend_internal:delete_user(<<"{name}">>, <<"test">>).')


def limit_vhost(servers: Servers, url: str, **limits: int) -> None:
    """As `rabbitmqctl set_vhost_limits`."""
    name = urlsplit(url).path[1:]
    servers.rabbit.evaluate(f'ok = rabbit_vhost_limit:parse_set(<<"{name}">>, {_text(limits)}, <<"test">>).')


def limit_user(servers: Servers, url: str, **limits: int) -> None:
    """As `rabbitmqctl set_user_limits`."""
    name = urlsplit(url).username
    servers.rabbit.evaluate(
        f'ok = rabbit_auth_backend_internal:set_user_limits(<<"{name}">>, {_text(limits)}, <<"test">>).'
    )


def _text(limits: dict[str, int]) -> str:
    """The limits as JSON, written as an Erlang binary."""
    text = json.dumps({name.replace("_", "-"): value for name, value in limits.items()})
    return f"<<{','.join(map(str, text.encode()))}>>"


def memory_alarm(on: bool) -> str:
    """What to evaluate on the broker so that it has too little memory, or enough again."""
    return f"vm_memory_monitor:set_vm_memory_high_watermark({'0.0000001' if on else '0.4'})."
