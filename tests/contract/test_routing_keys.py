"""The routing key that a publisher of ours chooses for a request."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from bridge.core.contract.routing_keys import KEY_BYTES_MAX, NOBODYS, key_of, key_of_request


@pytest.mark.parametrize(
    ("body", "headers", "key"),
    [
        ({"to": {"user": "u1"}, "data": 1}, {}, b"user.u1"),
        ([{"to": {"user": "u1"}}, {"to": {"user": "u1"}}], {}, b"user.u1"),
        ([{"to": {"user": "u1"}}, {"to": {"user": "u2"}}], {}, NOBODYS),
        ([{"to": {"user": "u1"}}, {"to": {"all": True}}], {}, NOBODYS),
        ({"to": {"users": ["u1"]}}, {}, NOBODYS),
        ({"to": {"user": ["u1"]}}, {}, NOBODYS),
        ({"to": {"user": None}}, {}, NOBODYS),
        ({"to": 5}, {}, NOBODYS),
        ({"to": {"user": ""}}, {}, NOBODYS),
        ([], {}, NOBODYS),
        (5, {}, NOBODYS),
        ({"any": "data"}, {"x-push-user": "u9"}, b"user.u9"),
    ],
)
def test_a_request_for_one_user_has_the_key_of_that_user(
    body: object, headers: Mapping[str, object], key: bytes
) -> None:
    assert key_of_request(json.dumps(body).encode(), headers) == key


def test_what_is_no_json_is_nobodys_and_a_long_name_is_cut() -> None:
    assert key_of_request(b"\xff{", {}) == NOBODYS
    assert len(key_of("ü" * 200)) == KEY_BYTES_MAX
