"""A rejection names every wrong field of a request, within bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridge import wire
from bridge.errors import PROBLEMS_CHARS, PROBLEMS_MAX
from bridge.model import Reason, Rejected
from tests.core import arrival
from tests.test_wire import LIMITS


def detail(body: object, **properties: Any) -> str:
    (only,) = wire.decode(arrival(json.dumps(body).encode(), **properties), LIMITS).requests
    assert isinstance(only, Rejected)
    return only.detail


def paths(said: str) -> list[str]:
    return [part.split(": ")[0] for part in said.split("; ")]


def test_all_wrong_fields_are_named_at_once() -> None:
    wrong = {"id": 7, "to": {"except": 5}, "evnt": "e", "confirm": "seen", "ttl": -1, "meta": {"k": 1}}
    said = detail(wrong)
    assert paths(said) == ["evnt", "data", "to.except", "meta.k", "to", "id", "confirm", "ttl"]


def test_up_to_eight_are_named() -> None:
    wrong = {"to": {"all": 1}, "a": 1, "b": 1, "c": 1, "confirm": 7, "ttl": -1, "ack_within": 0}
    assert paths(detail(wrong)) == ["a", "b", "c", "data", "to.all", "confirm", "ttl", "ack_within"]


def test_one_mistake_is_named_once() -> None:
    assert detail({"to": {"usr": "u1"}, "data": 1}) == "to.usr: no such field"
    assert paths(detail({"data": 1})) == ["to"]
    assert paths(detail({"to": "u1", "data": 1})) == ["to"]
    assert paths(detail({"user": "u1", "data": 1})) == ["user", "to"]


@pytest.mark.parametrize("count", [9, 500])
def test_what_is_over_the_bound_is_counted(count: int) -> None:
    said = detail({"to": {"user": "u1"}, "data": 1, **{f"f{n}": 1 for n in range(count)}})
    assert said.endswith(f"; and {count - PROBLEMS_MAX} more")
    assert said.count("no such field") == PROBLEMS_MAX


def test_long_names_do_not_make_a_long_rejection() -> None:
    said = detail({"to": {"user": "u1"}, "data": 1, **{f"{n}{'x' * 500}": 1 for n in range(8)}})
    assert len(said) < PROBLEMS_CHARS + 20
    assert said.endswith(" more")


def test_all_wrong_headers_are_named_at_once() -> None:
    headers = {"x-push-usr": "u", "x-push-user": 7, "x-push-ttl": "soon", "x-push-confirm": "seen"}
    assert paths(detail(1, headers=headers)) == [
        "header x-push-usr",
        "header x-push-user",
        "header x-push-confirm",
        "header x-push-ttl",
    ]


def test_the_first_one_gives_the_reason() -> None:
    body = json.dumps({"to": {"topic": "t"}, "data": 1, "event": 7}).encode()
    (only,) = wire.decode(arrival(body), LIMITS).requests
    assert isinstance(only, Rejected)
    assert only.reason is Reason.UNSUPPORTED
    assert paths(only.detail) == ["to.topic", "event"]
