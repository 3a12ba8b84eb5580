"""What an operator sets at the broker: what a user may do, and a memory alarm."""

from __future__ import annotations

from urllib.parse import urlsplit

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


def memory_alarm(on: bool) -> str:
    """What to evaluate on the broker so that it has too little memory, or enough again."""
    return f"vm_memory_monitor:set_vm_memory_high_watermark({'0.0000001' if on else '0.4'})."
