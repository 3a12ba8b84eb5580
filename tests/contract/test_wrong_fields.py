"""A rejection names every wrong field of a request, within bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridge.core.contract.requests import Limits, decode
from bridge.core.errors import PROBLEMS_CHARS, PROBLEMS_MAX
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import Rejected
from tests.support.ports import arrival
from tests.support.random_requests import LIMITS


def detail(body: object, **properties: Any) -> str:
    (only,) = decode(arrival(json.dumps(body).encode(), **properties), LIMITS).requests
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


@pytest.mark.parametrize(
    "name", ["X-Push-User", "X-PUSH-USER", "x_push_user", "x-push_user", "xPushUser", "x-push-User"]
)
@pytest.mark.parametrize("body", [1, "text", {"total": 7}, [{"total": 7}]])
def test_a_header_in_another_spelling_is_named_with_the_one_that_was_meant(name: str, body: object) -> None:
    said = detail(body, headers={name: "u1"})
    assert said.startswith(
        f"header {name}: no such header: write x-push-user so, in lower case and with hyphens"
    )
    assert len(said) < 300


def test_a_header_in_another_spelling_is_not_passed_over_beside_others() -> None:
    said = detail(1, headers={"x-push-user": "u1", "X-Push-Ttl": 60, "X_Push_Id": "p1"})
    assert said == (
        "header X-Push-Ttl: no such header: write x-push-ttl so, in lower case and with hyphens; "
        "header X_Push_Id: no such header: write x-push-id so, in lower case and with hyphens"
    )


def test_foreign_headers_are_nobodys_other_spelling() -> None:
    headers = {"X-Request-Id": "r", "x-pushed-user": "u", "X-Pushuser-Name": "u", "x": 1, "X" * 5000: 1}
    assert "no such header" not in detail(1, headers=headers)
    (only,) = decode(
        arrival(b'{"to":{"user":"u1"},"data":1}', headers={"X-Push-User": "u2", **headers}), LIMITS
    ).requests
    assert not isinstance(only, Rejected)


def test_the_first_one_gives_the_reason() -> None:
    body = json.dumps({"to": {"user": "u"}, "fallback": {}, "data": 1, "event": 7}).encode()
    (only,) = decode(arrival(body), LIMITS).requests
    assert isinstance(only, Rejected)
    assert only.reason is Reason.INVALID
    assert paths(only.detail) == ["event", "fallback.after", "fallback.routing_key"]


@pytest.mark.parametrize("count", [20_000, 60_000])
@pytest.mark.parametrize("where", ["", "to."])
def test_of_very_many_unknown_fields_eight_are_named_and_it_is_said_that_there_are_more(
    count: int, where: str
) -> None:
    many = {f"f{n}": 1 for n in range(count)}
    body = {"to": {"user": "u1"}, "data": 1}
    said = detail({**body, **many} if not where else {**body, "to": {"user": "u1", **many}})
    assert paths(said) == [*(f"{where}f{n}" for n in range(8)), "and more"]


def test_a_few_unknown_fields_among_very_much_else_are_all_named() -> None:
    many = ",".join(["7"] * 200_000)
    text = f'{{"to":{{"user":"u1"}},"data":[{many}],"evnt":1,"usr":2}}'
    (only,) = decode(arrival(text.encode()), Limits(max_data_bytes=1_000_000)).requests
    assert isinstance(only, Rejected)
    assert paths(only.detail) == ["evnt", "usr"]


def named_and_more(said: str, prefix: str) -> tuple[int, str]:
    """How many sentences begin so, which are all, and the words for what is left out."""
    *sentences, last = said.split("; ")
    if not last.startswith("and "):
        sentences, last = [*sentences, last], ""
    assert all(sentence.startswith(prefix) for sentence in sentences), said
    return len(sentences), last


@pytest.mark.parametrize("field", ["users", "except"])
@pytest.mark.parametrize("count", [2, 8, 9, 500])
def test_each_wrong_item_of_a_list_is_named_or_counted(field: str, count: int) -> None:
    items = ["good", *([7] * count), "good"]
    to = {"users": items} if field == "users" else {"user": "u1", "except": items}
    named, more = named_and_more(detail({"to": to, "data": 1}), f"to.{field}[")
    assert named >= min(count, 4)
    assert more == (f"and {count - named} more" if named < count else "")


def test_of_very_many_wrong_items_some_are_named_and_it_is_said_that_there_are_more() -> None:
    said = detail({"to": {"users": ["good", *([7] * 10_000)]}, "data": 1, "ttl": -1})
    named, more = named_and_more(said, "to.users[")
    assert named >= 4
    # Those that were looked at, the one behind them, and ttl.
    assert more == f"and at least {1000 - named + 1} more"
    said = detail(1, headers={"x-push-users": ",".join(["u"] + [""] * 10_000)})
    named, more = named_and_more(said, "header x-push-users[")
    assert more == f"and at least {1000 - named} more"


def test_each_wrong_member_of_meta_is_named_within_the_bounds() -> None:
    wrong: dict[str, Any] = {"a": 1, "b": None, "c": "x" * 3000, "k" * 200: "v", "good": "v"}
    said = detail({"to": {"user": "u1"}, "data": 1, "meta": wrong})
    assert [path[:6] for path in paths(said)] == ["meta.a", "meta.b", "meta.c", "meta.k"]
    said = detail({"to": {"user": "u1"}, "data": 1, "meta": {f"k{n}": 1 for n in range(5000)}})
    assert said.startswith("meta: expected at most 16 keys, got more; meta.k0: ")
    assert " more" in said[-20:]


def test_a_key_of_meta_that_occurs_twice_counts_once() -> None:
    pairs = ",".join([*(f'"k{n}":"v"' for n in range(16)), '"k0":1'])
    text = f'{{"to":{{"user":"u1"}},"data":1,"meta":{{{pairs}}}}}'
    (only,) = decode(arrival(text.encode()), LIMITS).requests
    assert isinstance(only, Rejected)
    assert paths(only.detail) == ["meta.k0"]


def test_more_than_is_named_is_told_in_a_batch_too() -> None:
    request = {"to": {"users": [7] * 2000}, "data": 1}
    (only,) = decode(arrival(json.dumps([request]).encode()), LIMITS).requests
    assert isinstance(only, Rejected)
    named, more = named_and_more(only.detail, "[0].to.users[")
    assert more == f"and at least {1001 - named} more"
