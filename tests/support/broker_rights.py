"""What a user may do at the broker, as an operator sets it."""

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
