"""Recognize messages of other programs that are no push requests, to say in a rejection what to send instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Raw

from bridge.core.contract import jsonparts
from bridge.core.contract.stepping import Steps
from bridge.core.ports.broker import Arrival

_JAVA: Final = b"\xac\xed\x00\x05"
"""How a stream of the Java Object Serialization begins: its magic number, and version 5."""
_PICKLE: Final = "application/x-python-serialize"
"""The content type that kombu gives to pickled objects."""
_MASSTRANSIT: Final = "application/vnd.masstransit"
_NEST: Final = frozenset(("pattern", "data"))
_CELERY_1: Final = frozenset(("task", "args", "kwargs"))
_EVENT: Final = frozenset(("specversion", "type", "source"))
_BINARY_EVENT: Final = ("ce-specversion", "cloudEvents:specversion", "cloudEvents_specversion")
"""The headers of a CloudEvent in binary mode: as SDKs for RabbitMQ write them, and as the AMQP binding does (3.1)."""


def stranger(arrival: Arrival) -> Steps[str]:
    """A sentence on what a rejected message looks like, and what to do; empty where it may be a push request."""
    properties, body = arrival.properties, arrival.body
    headers = properties.headers
    if body[: len(_JAVA)] == _JAVA:
        return "this looks like a serialized Java object: publish JSON (Spring: Jackson2JsonMessageConverter)"
    if properties.content_type == _PICKLE:
        return "this looks like a pickled Python object: publish JSON (kombu: serializer='json')"
    members = yield from jsonparts.last_members(body)
    if "to" in members:
        return ""
    return _by_headers(headers, properties.content_type) or _by_members(members, headers)


def _by_headers(headers: Mapping[str, object], content_type: str) -> str:
    if "task" in headers and "root_id" in headers:
        return "this looks like a Celery task: publish the push request itself, with kombu's Producer"
    if content_type[: len(_MASSTRANSIT)].lower() == _MASSTRANSIT:
        return (
            "this looks like an envelope of MassTransit: publish the push request with UseRawJsonSerializer"
        )
    if any(name in headers for name in _BINARY_EVENT):
        return "this looks like a CloudEvent in binary mode: name the target in a header, such as x-push-user"
    return ""


def _by_members(members: Mapping[str, bytes | Raw], headers: Mapping[str, object]) -> str:
    if members.keys() >= _NEST:
        return (
            "this looks like a message of NestJS: publish the push request without `pattern`,"
            " by a serializer of your own"
        )
    if members.keys() >= _CELERY_1:
        return "this looks like a Celery task: publish the push request itself, with kombu's Producer"
    if members.keys() >= _EVENT:
        return "this looks like a CloudEvent: give it the content type application/cloudevents+json"
    if "__TypeId__" in headers and members:
        return (
            "this looks like an object of Spring: publish a push request whose `data` it is,"
            " or name the target in a header, such as x-push-user"
        )
    return ""
