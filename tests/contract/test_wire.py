"""Bytes to push requests and back: what is taken, what is rejected and why, and that nothing ever raises."""

from __future__ import annotations

import base64
import json
import math
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from bridge.core.contract import requests as decoding
from bridge.core.contract.client_frames import (
    AckFrame,
    BadFrame,
    ClientFrame,
    PublishFrame,
    RefreshFrame,
    SubscribeFrame,
    UnsubscribeFrame,
    parse_client,
)
from bridge.core.contract.control import (
    BadControl,
    control_error,
    control_reply,
    decode_control,
    decode_recall,
)
from bridge.core.contract.fields import uuid7
from bridge.core.contract.frames import (
    bare_frame,
    bye_frame,
    error_frame,
    ok_frame,
    push_frame,
    welcome_frame,
    withdraw_frame,
)
from bridge.core.contract.patterns import name_problem
from bridge.core.contract.receipts import receipt_body
from bridge.core.contract.requests import Limits, decode, request_body
from bridge.core.contract.requests.careful import careful
from bridge.core.contract.requests.rejecting import LastResort
from bridge.core.contract.requests.straight import straight
from bridge.core.contract.stepping import finish
from bridge.core.errors import InvalidRequest
from bridge.core.model.outcomes import ENDINGS, Outcome, Proof, Reason
from bridge.core.model.pushes import (
    BATCH_MAX,
    MESSAGE_BYTES_MAX,
    NO_USER,
    USERS_MAX,
    Encoding,
    PushRequest,
    Recall,
    Rejected,
    Timestamp,
    ToAll,
    ToSession,
    ToUser,
    ToUsers,
)
from bridge.core.model.revocations import Revocation
from bridge.core.model.rows import Row, RowKey
from bridge.core.model.sessions import CloseReason
from bridge.core.ports.broker import Arrival, Source
from tests.support.ports import arrival
from tests.support.random_requests import DICE, LIMITS, NOW, Dice


def dumps(value: object) -> bytes:
    """JSON as most producers write it: ASCII with escapes."""
    return json.dumps(value).encode()


def request(**changes: object) -> dict[str, object]:
    return {"id": "p1", "to": {"user": "u1"}, "data": {"n": 1}, **changes}


def read(message: Arrival, limits: Limits = LIMITS) -> PushRequest | Rejected:
    (only,) = decode(message, limits).requests
    return only


def taken(body: bytes, **properties: Any) -> PushRequest:
    only = read(arrival(body, **properties))
    assert isinstance(only, PushRequest), only
    return only


def rejected(body: bytes, **properties: Any) -> Rejected:
    only = read(arrival(body, **properties))
    assert isinstance(only, Rejected), only
    return only


def nested(depth: int, inner: str = "") -> str:
    return "[" * depth + inner + "]" * depth


# --- one request -----------------------------------------------------------------------------------------


def test_a_request_with_every_field_is_taken() -> None:
    only = taken(
        b'{"id":"p1","to":{"user":"u1","except":["s1","s2","s1"]},"event":"e.1","data": {"a": [1, 2]} ,'
        b'"ttl":3600,"confirm":"acked","ack_within":1.5,"deliver_at":1800000060.5,"collapse_key":"c 1",'
        b'"tenant":"shop","meta":{ "k": "v" }}'
    )
    assert only == PushRequest(
        id="p1",
        target=ToUser("u1"),
        data=b'{"a": [1, 2]}',
        event="e.1",
        confirm=Proof.ACKED,
        excluded=frozenset(("s1", "s2")),
        tenant="shop",
        meta=b'{"k":"v"}',
        ttl=3600.0,
        collapse_key="c 1",
        ack_within=1.5,
        deliver_at=1_800_000_060.5,
    )


def test_what_is_left_out_has_its_default() -> None:
    only = taken(b'{"to":{"user":"u1"},"data":null}')
    assert (only.event, only.confirm, only.tenant, only.meta) == ("message", Proof.RECEIVED, "", b"")
    assert only.data == b"null"
    assert (only.ttl, only.collapse_key, only.ack_within, only.deliver_at) == (0, "", 0, 0)


@pytest.mark.parametrize(
    ("to", "target"),
    [
        ({"user": "u1"}, ToUser("u1")),
        ({"users": ["u1", "u2", "u1"]}, ToUsers(("u1", "u2"))),
        ({"session": "s1"}, ToSession("s1")),
        ({"all": True}, ToAll()),
        ({"all": True, "except": []}, ToAll()),
    ],
)
def test_each_target_is_understood(to: object, target: object) -> None:
    assert taken(dumps(request(to=to))).target == target


@pytest.mark.parametrize("user", ["x", "x" * 128, "Grüße", "名前", "a b", "\u00a0", "\u200d", "🎉" * 128])
def test_an_id_is_any_128_characters_that_are_no_controls(user: str) -> None:
    for body in (dumps(request(to={"user": user})), msgspec.json.encode(request(to={"user": user}))):
        assert taken(body).target == ToUser(user)


@pytest.mark.parametrize(
    ("changes", "reason", "path"),
    [
        ({"to": {"user": 42}}, Reason.INVALID, "to.user"),
        ({"to": {"user": ""}}, Reason.INVALID, "to.user"),
        ({"to": {"user": "x" * 129}}, Reason.INVALID, "to.user"),
        ({"to": {"user": "a\nb"}}, Reason.INVALID, "to.user"),
        ({"to": {"user": "a\x00b"}}, Reason.INVALID, "to.user"),
        ({"to": {"user": "a\x7f"}}, Reason.INVALID, "to.user"),
        ({"to": {"user": "a\x85"}}, Reason.INVALID, "to.user"),
        ({"to": {"user": None}}, Reason.INVALID, "to.user"),
        ({"to": {"users": []}}, Reason.INVALID, "to.users"),
        ({"to": {"users": "u1"}}, Reason.INVALID, "to.users"),
        ({"to": {"users": ["u1", "u2", "u3", 4]}}, Reason.INVALID, "to.users[3]"),
        ({"to": {"users": ["u1", "\x01"]}}, Reason.INVALID, "to.users[1]"),
        ({"to": {"session": {}}}, Reason.INVALID, "to.session"),
        ({"to": {"session": "\x01"}}, Reason.INVALID, "to.session"),
        ({"to": {"all": False}}, Reason.INVALID, "to.all"),
        ({"to": {"all": 1}}, Reason.INVALID, "to.all"),
        ({"to": {"user": "u1", "all": True}}, Reason.INVALID, "to"),
        ({"to": {"user": "u1", "users": ["u2"]}}, Reason.INVALID, "to"),
        ({"to": {"session": "s1", "all": True}}, Reason.INVALID, "to"),
        ({"to": {"users": ["u1"], "session": "s1"}}, Reason.INVALID, "to"),
        ({"to": {}}, Reason.INVALID, "to"),
        ({"to": {"except": ["s1"]}}, Reason.INVALID, "to"),
        ({"to": "u1"}, Reason.INVALID, "to"),
        ({"to": {"user": "u1", "except": "s1"}}, Reason.INVALID, "to.except"),
        ({"to": {"user": "u1", "except": ["\x01"]}}, Reason.INVALID, "to.except[0]"),
        ({"to": {"user": "u1", "group": "g"}}, Reason.INVALID, "to.group"),
        ({"to": {"topic": "a..b"}}, Reason.INVALID, "to.topic"),
        ({"id": 7}, Reason.INVALID, "id"),
        ({"id": ""}, Reason.INVALID, "id"),
        ({"event": 7}, Reason.INVALID, "event"),
        ({"event": "a\tb"}, Reason.INVALID, "event"),
        ({"confirm": "seen"}, Reason.INVALID, "confirm"),
        ({"confirm": None}, Reason.INVALID, "confirm"),
        ({"tenant": []}, Reason.INVALID, "tenant"),
        ({"tenant": "\x01"}, Reason.INVALID, "tenant"),
        ({"meta": "m"}, Reason.INVALID, "meta"),
        ({"meta": {"k": 1}}, Reason.INVALID, "meta.k"),
        ({"meta": {"k": "v" * 257}}, Reason.INVALID, "meta.k"),
        ({"meta": {"k": "\x00"}}, Reason.INVALID, "meta.k"),
        ({"meta": {"k" * 65: "v"}}, Reason.INVALID, "meta." + "k" * 64 + "..."),
        ({"meta": {f"k{n}": "v" for n in range(17)}}, Reason.INVALID, "meta"),
        ({"ttl": -1}, Reason.INVALID, "ttl"),
        ({"ttl": "0"}, Reason.INVALID, "ttl"),
        ({"ttl": False}, Reason.INVALID, "ttl"),
        ({"ttl": None}, Reason.INVALID, "ttl"),
        ({"ttl": LIMITS.max_ttl + 0.5}, Reason.INVALID, "ttl"),
        ({"ttl": 10**30}, Reason.INVALID, "ttl"),
        ({"collapse_key": ""}, Reason.INVALID, "collapse_key"),
        ({"collapse_key": 7}, Reason.INVALID, "collapse_key"),
        ({"collapse_key": "a\nb"}, Reason.INVALID, "collapse_key"),
        ({"collapse_key": "x" * 129}, Reason.INVALID, "collapse_key"),
        ({"confirm": "acked", "ack_within": 0}, Reason.INVALID, "ack_within"),
        ({"confirm": "acked", "ack_within": -1}, Reason.INVALID, "ack_within"),
        ({"confirm": "acked", "ack_within": 3600.5}, Reason.INVALID, "ack_within"),
        ({"confirm": "acked", "ack_within": "1"}, Reason.INVALID, "ack_within"),
        ({"confirm": "acked", "ack_within": True}, Reason.INVALID, "ack_within"),
        ({"confirm": "received", "ack_within": 1}, Reason.INVALID, "ack_within"),
        ({"ack_within": 1}, Reason.INVALID, "ack_within"),
        ({"fallback": None}, Reason.INVALID, "fallback"),
        ({"fallback": "mail"}, Reason.INVALID, "fallback"),
        ({"fallback": {"after": 1}}, Reason.INVALID, "fallback.routing_key"),
        ({"fallback": {"routing_key": "k"}}, Reason.INVALID, "fallback.after"),
        ({"fallback": {"after": 0, "routing_key": "k"}}, Reason.INVALID, "fallback.after"),
        ({"fallback": {"after": -1, "routing_key": "k"}}, Reason.INVALID, "fallback.after"),
        ({"fallback": {"after": "1", "routing_key": "k"}}, Reason.INVALID, "fallback.after"),
        ({"fallback": {"after": True, "routing_key": "k"}}, Reason.INVALID, "fallback.after"),
        ({"fallback": {"after": 10**30, "routing_key": "k"}}, Reason.INVALID, "fallback.after"),
        (
            {"fallback": {"after": LIMITS.max_ttl + 0.5, "routing_key": "k"}},
            Reason.INVALID,
            "fallback.after",
        ),
        ({"fallback": {"after": 1, "routing_key": ""}}, Reason.INVALID, "fallback.routing_key"),
        ({"fallback": {"after": 1, "routing_key": 7}}, Reason.INVALID, "fallback.routing_key"),
        ({"fallback": {"after": 1, "routing_key": "a\nb"}}, Reason.INVALID, "fallback.routing_key"),
        ({"fallback": {"after": 1, "routing_key": "x" * 256}}, Reason.INVALID, "fallback.routing_key"),
        ({"fallback": {"after": 1, "routing_key": "é" * 128}}, Reason.INVALID, "fallback.routing_key"),
        ({"fallback": {"after": 1, "routing_key": "k", "x": 1}}, Reason.INVALID, "fallback.x"),
        ({"fallback.after": 1}, Reason.INVALID, "fallback.after"),
        ({"deliver_at": 0}, Reason.INVALID, "deliver_at"),
        ({"deliver_at": "1800000000"}, Reason.INVALID, "deliver_at"),
        ({"deliver_at": True}, Reason.INVALID, "deliver_at"),
        ({"deliver_at": NOW + LIMITS.max_ttl + 1}, Reason.INVALID, "deliver_at"),
        ({"deliver_at": NOW * 1000}, Reason.INVALID, "deliver_at"),
        ({"dta": 1}, Reason.INVALID, "dta"),
        ({"except": ["s1"]}, Reason.INVALID, "except"),
        ({"new\nline": 1}, Reason.INVALID, "'new\\nline'"),
        ({"data": "x" * 65535}, Reason.TOO_LARGE, "data"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, object], reason: Reason, path: str) -> None:
    wrong = request(**changes)
    body = dumps(wrong)
    only = rejected(body)
    assert (only.reason, only.detail.split(": ")[0]) == (reason, path)
    assert len(only.detail.split(": ", 1)[1]) > 10
    assert only.body == body
    assert only.detail.isprintable()
    if "id" not in changes:
        assert only.id == "p1"


@pytest.mark.parametrize("missing", ["to", "data"])
def test_what_is_required_is_named(missing: str) -> None:
    wrong = request()
    del wrong[missing]
    only = rejected(dumps(wrong))
    assert (only.reason, only.detail) == (Reason.INVALID, f"{missing}: this field is required")


def test_a_feature_that_is_not_there_yet_is_said_to_be_so() -> None:
    assert "expected words with dots between them" in rejected(dumps(request(to={"topic": "t*"}))).detail


@pytest.mark.parametrize(
    "to", [{"user": "u1"}, {"users": ["u1", "u2"]}, {"session": "s1"}, {"all": True, "except": ["s1"]}]
)
@pytest.mark.parametrize("ttl", [0, 0.5, 3600, LIMITS.max_ttl])
def test_a_push_to_anyone_may_be_kept_for_as_long_as_its_row(to: object, ttl: float) -> None:
    only = taken(dumps(request(to=to, ttl=ttl, collapse_key="c")))
    assert (only.ttl, only.collapse_key) == (ttl, "c")


def test_a_ttl_that_is_too_long_is_told_the_limit() -> None:
    only = read(arrival(dumps(request(ttl=86_400.5))), Limits(max_ttl=86_400.0))
    assert isinstance(only, Rejected)
    assert only.detail == "ttl: expected at most 86400 seconds (BRIDGE_RETENTION_DAYS), got more"


def test_where_nothing_is_kept_every_ttl_but_0_is_refused_and_told_why() -> None:
    nothing = Limits(max_ttl=0.0)
    assert isinstance(read(arrival(dumps(request(ttl=0, collapse_key="c"))), nothing), PushRequest)
    for message in (
        arrival(dumps(request(ttl=0.001))),
        arrival(b"1", headers={"x-push-user": "u1", "x-push-ttl": "60"}),
    ):
        only = read(message, nothing)
        assert isinstance(only, Rejected)
        assert only.reason is Reason.UNSUPPORTED
        assert "BRIDGE_DELIVERY_LOG" in only.detail


def test_a_batch_says_for_each_request_how_long_it_is_kept() -> None:
    body = dumps([request(id="a", ttl=60), request(id="b"), request(id="c", confirm="acked", ack_within=2)])
    requests = decode(arrival(body), LIMITS).requests
    assert [r.ttl for r in requests if isinstance(r, PushRequest)] == [60, 0, 0]
    assert [r.ack_within for r in requests if isinstance(r, PushRequest)] == [0, 0, 2]


def test_tenant_and_event_of_a_rejected_request_are_kept_where_they_are_usable() -> None:
    only = rejected(dumps(request(confirm="x", tenant="shop", event="e")))
    assert (only.id, only.tenant, only.event) == ("p1", "shop", "e")
    only = rejected(dumps(request(confirm="x", tenant=5, event="\n")))
    assert (only.tenant, only.event) == ("", "")


def test_wrong_values_are_never_shown() -> None:
    only = rejected(dumps(request(to={"user": ["s3cret"]}, confirm="s3cret")))
    assert "s3cret" not in only.detail


def test_data_may_be_as_large_as_the_limit() -> None:
    body = dumps(request(data="x" * 98))
    assert isinstance(read(arrival(body), Limits(100)), PushRequest)
    assert isinstance(read(arrival(body), Limits(99)), Rejected)


def test_of_a_key_that_occurs_twice_the_last_one_counts() -> None:
    only = taken(b'{"id":"p","to":{"user":"a","user":"b"},"data":1,"data":2}')
    assert (only.target, only.data) == (ToUser("b"), b"2")
    assert rejected(b'{"to":{"user":"u"},"data":1,"id":1,"id":"p2","ttl":-9}').id == "p2"


# --- meta ------------------------------------------------------------------------------------------------


def with_meta(meta: str) -> bytes:
    return b'{"id":"p1","to":{"user":"u1"},"data":1,"meta":%b}' % meta.encode()


@pytest.mark.parametrize(
    ("meta", "goes_on"),
    [
        ("{}", {}),
        (' {\n"k" :\t"v"} ', {"k": "v"}),
        (r'{"\u006b":"\u0076","\ud83c\udf89":"\n"}', {"k": "v", "🎉": "\n"}),
        ('{"a":"1","b":"2","a":"3"}', {"a": "3", "b": "2"}),
        (r'{"a":"1","\u0061":"2"}', {"a": "2"}),
        (r'{"a":"\\u0000"}', {"a": r"\u0000"}),
        ('{"a":"' + "é" * 256 + '"}', {"a": "é" * 256}),
        ('{"' + "🎉" * 64 + '":"x"}', {"🎉" * 64: "x"}),
        (
            "{" + ",".join(f'"k{n % 16}":"{n}"' for n in range(5000)) + "}",
            {f"k{n % 16}": str(4992 + n - (n > 7) * 16) for n in range(16)},
        ),
        ("{" + " " * 900_000 + '"a":"b"}', {"a": "b"}),
        ("{" + ",".join(['"a":"b"'] * 100_000) + "}", {"a": "b"}),
    ],
)
def test_meta_goes_on_compact_and_with_each_key_once(meta: str, goes_on: dict[str, str]) -> None:
    only = taken(with_meta(meta))
    assert json.loads(only.meta) == goes_on
    assert only.meta == msgspec.json.encode(json.loads(only.meta))


def test_what_goes_on_of_meta_is_small_however_it_was_written() -> None:
    meta = {chr(0x1F389 + n) * 64: "\x01" * 256 for n in range(16)}
    only = taken(with_meta(json.dumps(meta, indent=1000)))
    assert json.loads(only.meta) == meta
    assert len(only.meta) < 32 * 1024


@pytest.mark.parametrize(
    ("meta", "path"),
    [
        (r'{"a":"\u0000","a":"x"}', "meta.a"),
        (r'{"b":"x","a":"\u0000","c":"y","\u0061":"x"}', "meta.a"),
        (r'{"a\u0000":"x"}', r"meta.'a\x00'"),
        ('{"a":1,"a":"x"}', "meta.a"),
        ('{"a":{"b":[]},"a":"x"}', "meta.a"),
        ('{"a":null,"a":"x"}', "meta.a"),
        ('{"a":1e999,"a":"x"}', "meta.a"),
        ('{"a":"' + "v" * 257 + '","a":"x"}', "meta.a"),
        ('{"a":' + nested(300) + ',"a":"x"}', "meta.a"),
        ("{" + ",".join(['"a":"b"'] * 100_000) + r',"a":"\u0000","a":"b"}', "meta.a"),
        ("{" + ",".join(f'"k{n}":"v"' for n in range(50_000)) + "}", "meta"),
    ],
)
def test_no_value_of_a_key_in_meta_may_be_wrong_whichever_counts(meta: str, path: str) -> None:
    for body in (with_meta(meta), b"[%b]" % with_meta(meta)):
        (only,) = decode(arrival(body), LIMITS).requests
        assert isinstance(only, Rejected)
        assert (only.reason, only.id) == (Reason.INVALID, "p1")
        assert only.detail.removeprefix("[0].").split(": ")[0] == path


@pytest.mark.parametrize(
    ("meta", "path"),
    [
        ({"a": "\x00"}, "header x-push-meta.a"),
        ({"a\x00": "x"}, r"header x-push-meta.'a\x00'"),
        ({"a": "\ud800"}, "header x-push-meta.a"),
        ({"\udfff": "x"}, r"header x-push-meta.'\udfff'"),
        ({"a": b"x"}, "header x-push-meta.a"),
        ({"a": {"b": "x"}}, "header x-push-meta.a"),
        ({"a": "x" * 257}, "header x-push-meta.a"),
        ({"x" * 65: "x"}, "header x-push-meta." + "x" * 64 + "..."),
        ({f"k{n}": "x" for n in range(17)}, "header x-push-meta"),
        ([], "header x-push-meta"),
    ],
)
def test_what_postgres_could_not_keep_is_rejected_in_a_header_as_well(meta: object, path: str) -> None:
    only = rejected(b"1", headers={"x-push-user": "u1", "x-push-meta": meta})
    assert (only.reason, only.detail.split(": ")[0]) == (Reason.INVALID, path)


# --- JSON ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"NaN", "NaN and Infinity are not JSON"),
        (b'{"a":[1,Infinity]}', "NaN and Infinity are not JSON"),
        (b"-Infinity", "NaN and Infinity are not JSON"),
        (b"[1,]", "not JSON: trailing comma"),
        (b"01", "not JSON: invalid number"),
        (b"'a'", "not JSON: "),
        (b"", "expected JSON, got nothing"),
        (b'"\xff"', "not UTF-8 (byte 1)"),
        (b'"\xed\xa0\x80"', "not UTF-8 (byte 1)"),
        (b'"\xc0\x80"', "not UTF-8 (byte 1)"),
        (rb'"\ud800"', "a lone surrogate (\\ud800)"),
        (rb'"\udc00 and more text"', "a lone surrogate (\\udc00)"),
        (rb'{"\ud83d":1}', "a lone surrogate (\\ud83d)"),
        (rb'"\ud83d\ud83d\ude00"', "a lone surrogate (\\ud83d)"),
        ('"\\ud8é"'.encode(), "not JSON: invalid character in unicode escape"),
        (rb'"\\ud800\x"', "not JSON: invalid escape"),
        (b'"a\nb"', "not JSON: invalid character"),
    ],
)
def test_what_is_not_json_is_rejected_under_its_own_id(data: bytes, said: str) -> None:
    only = rejected(b'{"id":"p1","to":{"user":"u1"},"data":' + data + b"}")
    assert (only.id, only.reason) == ("p1", Reason.NOT_JSON)
    assert only.detail.startswith(f"data: {said}"), only.detail


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "expected JSON, got nothing"),
        (b"  ", "expected JSON, got nothing"),
        (b"hello", "not JSON"),
        (b'{"id":"p1"', "not JSON: it ends too early"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"\x00", "not JSON"),
        (b"[", "not JSON: it ends too early"),
        (b'[{"to":', "not JSON: it ends too early"),
        (b"[1]]", "not JSON"),
        (b"{}{}", "not JSON"),
        (b'{"to":{"user":"u1"},"data":1}x', "not JSON"),
    ],
)
def test_a_body_that_is_not_json_is_rejected(body: bytes, said: str) -> None:
    only = rejected(body)
    assert only.reason is Reason.NOT_JSON
    assert said in only.detail
    assert only.body == body


@pytest.mark.parametrize("body", [b"5", b'"x"', b"null", b"true", b"1e999"])
def test_json_that_is_no_object_is_rejected(body: bytes) -> None:
    assert rejected(body).reason is Reason.INVALID


def test_the_id_is_found_in_a_body_that_was_cut() -> None:
    assert rejected(b'{"id":"p1","tenant":"shop","to":{"us').id == "p1"
    assert rejected(b'{"id":"p1","tenant":"shop","to":{"us').tenant == "shop"


@pytest.mark.parametrize(
    "data", [b"1e999", b"-0", b"123456789012345678901234567890", rb'"\u0000"', b'"\x7f"']
)
def test_json_that_is_merely_unusual_goes_through_as_it_is(data: bytes) -> None:
    assert taken(b'{"to":{"user":"u1"},"data":' + data + b"}").data == data


@pytest.mark.parametrize(
    "brackets",
    [nested(128), nested(128, '"]]["'), nested(128, '"\\"[["'), '["\\\\",' * 127 + "{}" + "]" * 127],
)
def test_data_may_nest_128_levels(brackets: str) -> None:
    assert taken(f'{{"to":{{"user":"u1"}},"data":{brackets}}}'.encode()).data == brackets.encode()


@pytest.mark.parametrize(
    "brackets",
    [
        nested(129),
        nested(900),
        nested(1100),
        nested(30_000),
        '{"a":' * 129 + "1" + "}" * 129,
        '["]]]","\\"]",' * 129 + "1" + "]" * 129,
    ],
)
def test_deeper_data_is_rejected_under_its_own_id(brackets: str) -> None:
    only = rejected(f'{{"to":{{"user":"u1"}},"data":{brackets},"id":"p1"}}'.encode())
    assert (only.id, only.reason) == ("p1", Reason.INVALID)
    assert only.detail == "data: nested deeper than 128 levels"


def test_wide_data_is_not_deep() -> None:
    assert taken(dumps(request(data=[{"a": [n]} for n in range(1000)]))).id == "p1"


# --- ids -------------------------------------------------------------------------------------------------


def test_the_id_falls_back_to_the_message_id_and_then_to_a_uuid7() -> None:
    body = b'{"to":{"user":"u1"},"data":1}'
    assert taken(dumps(request()), message_id="m1").id == "p1"
    only = taken(body, message_id="m1")
    assert (only.id, only.generated_id) == ("m1", False)
    assert taken(body, message_id="m1", headers={"x-push-id": "h1"}).id == "h1"
    only = taken(body)
    made = uuid.UUID(only.id)
    assert only.generated_id
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == NOW * 1000


def test_made_ids_differ() -> None:
    assert len({uuid7(NOW) for _ in range(1000)}) == 1000


def test_a_message_id_that_is_no_id_is_named_where_it_is_needed() -> None:
    assert taken(dumps(request()), message_id="x" * 200).id == "p1"
    only = rejected(b'{"to":{"user":"u1"},"data":1}', message_id="x" * 200)
    assert only.detail.startswith("property message_id: ")
    assert only.id.startswith("sha256-")


def test_a_rejected_request_without_a_usable_id_gets_the_message_id_or_a_hash() -> None:
    body = dumps(request(id=7))
    assert rejected(body, message_id="m1").id == "m1"
    assert re.fullmatch("sha256-[0-9a-f]{64}", rejected(body).id)


def test_headers_that_no_encoder_takes_count_in_the_hash_as_well() -> None:
    one, other = (rejected(b"no json", headers={"x": 1, "y": f"\udc80{n}"}) for n in (1, 2))
    assert one.id != other.id
    assert one.id == rejected(b"no json", headers={"y": "\udc801", "x": 1}).id


def test_the_hash_is_the_same_when_the_message_comes_again() -> None:
    first = arrival(b"no json", headers={"a": 1, "b": [b"x"]}, expiration="60000", correlation_id="c")
    again = msgspec.structs.replace(
        first,
        source=Source.FALLEN,
        arrived_at=NOW + 60,
        properties=msgspec.structs.replace(
            first.properties,
            expiration="",
            redelivered=True,
            delivery_count=3,
            headers={
                "b": [b"x"],
                "x-death": [{"count": 1}],
                "x-first-death-reason": "expired",
                "x-last-death-queue": "q",
                "x-delivery-count": 3,
                "x-acquired-count": 4,
                "a": 1,
            },
        ),
    )
    assert read(first).id == read(again).id


@pytest.mark.parametrize(
    "other",
    [
        arrival(b"no json!"),
        arrival(b"no json", message_id="\n"),
        arrival(b"no json", correlation_id="c"),
        arrival(b"no json", headers={"a": 1}),
        arrival(b"no json", timestamp=1.0),
    ],
)
def test_the_hash_tells_messages_apart(other: Arrival) -> None:
    assert read(arrival(b"no json")).id != read(other).id


# --- batches ---------------------------------------------------------------------------------------------


def test_a_batch_is_read_in_order() -> None:
    body = dumps([request(id=f"p{n}", data=n) for n in range(BATCH_MAX)])
    requests = decode(arrival(b" \n" + body), LIMITS).requests
    assert [r.id for r in requests] == [f"p{n}" for n in range(BATCH_MAX)]
    assert all(isinstance(r, PushRequest) for r in requests)


@pytest.mark.parametrize(
    ("wrong", "reason", "detail"),
    [
        (b'{"to":{"user":5},"data":1}', Reason.INVALID, "[1].to.user: expected a string"),
        (b'{"to":{"user":"u"},"data":NaN}', Reason.NOT_JSON, "[1].data: NaN"),
        (rb'{"to":{"user":"u"},"data":"\ud800"}', Reason.NOT_JSON, "[1].data: a lone surrogate"),
        (b'{"to":{"user":"u"},"data":"\xff"}', Reason.NOT_JSON, "[1].data: not UTF-8"),
        (b'{"to":{"user":"u"},"data":' + nested(2000).encode() + b"}", Reason.INVALID, "[1].data: nested"),
        (b'{"to":{"user":"u"},"data":"' + b"x" * 65535 + b'"}', Reason.TOO_LARGE, "[1].data: expected at"),
        (b"5", Reason.INVALID, "[1]: expected an object, got a number"),
        (b"[]", Reason.INVALID, "[1]: expected an object, got a list"),
        (nested(500).encode(), Reason.INVALID, "[1]: "),
    ],
)
def test_a_wrong_element_harms_no_neighbour(wrong: bytes, reason: Reason, detail: str) -> None:
    before, after = dumps(request(id="a")), dumps(request(id="b"))
    requests = decode(arrival(b"[%b, %b ,%b]" % (before, wrong, after)), LIMITS).requests
    first, second, third = requests
    assert isinstance(first, PushRequest)
    assert isinstance(third, PushRequest)
    assert (first.id, third.id) == ("a", "b")
    assert isinstance(second, Rejected)
    assert second.reason is reason
    assert second.detail.startswith(detail), second.detail
    assert second.body == wrong
    assert second.id.startswith("sha256-")


@pytest.mark.parametrize("wrong", [b"[[{}", b"{]", b'"', b""])
def test_brackets_that_do_not_pair_leave_no_elements_to_tell_apart(wrong: bytes) -> None:
    only = rejected(b"[%b,%b,%b]" % (dumps(request()), wrong, dumps(request(id="p2"))))
    assert only.reason is Reason.NOT_JSON


def test_elements_without_an_id_get_the_message_id_and_their_place() -> None:
    body = dumps([request(), {"to": {"user": "u"}, "data": 1}, {"to": 5}])
    requests = decode(arrival(body, message_id="m"), LIMITS).requests
    assert [r.id for r in requests] == ["p1", "m/1", "m/2"]
    assert [isinstance(r, PushRequest) and r.generated_id for r in requests] == [False, False, False]
    requests = decode(arrival(body, message_id="m" * 127), LIMITS).requests
    assert isinstance(requests[1], Rejected)
    assert "property message_id" in requests[1].detail


def test_equal_wrong_elements_have_ids_of_their_own() -> None:
    ids = [r.id for r in decode(arrival(b"[5,5]"), LIMITS).requests]
    assert len(set(ids)) == 2


def test_an_empty_batch_is_one_rejected_request() -> None:
    for body in (b"[]", b" [ ] "):
        assert rejected(body).reason is Reason.INVALID


def test_a_batch_that_is_too_long_is_rejected_as_a_whole() -> None:
    only = rejected(dumps([request()] * (BATCH_MAX + 1)), message_id="m")
    assert (only.reason, only.id) == (Reason.TOO_MANY, "m")
    assert "1001" in only.detail


def users(count: int, prefix: str = "u") -> dict[str, list[str]]:
    return {"users": [f"{prefix}{n}" for n in range(count)]}


def test_a_message_names_at_most_10_000_users() -> None:
    assert taken(dumps(request(to=users(USERS_MAX)))).target == ToUsers(tuple(users(USERS_MAX)["users"]))
    doubled = {"users": users(USERS_MAX)["users"] + ["u1", "u2"]}
    assert isinstance(taken(dumps(request(to=doubled))).target, ToUsers)
    only = rejected(dumps(request(to=users(USERS_MAX + 1))))
    assert (only.reason, only.id) == (Reason.TOO_MANY, "p1")


@pytest.mark.parametrize(
    "requests",
    [
        [request(to=users(USERS_MAX)), request(id="p2")],
        [request(to=users(USERS_MAX + 1)), request(id="p2")],
        [request(), request(to=users(USERS_MAX - 1)), request(to={"all": True})],
    ],
)
def test_a_batch_that_names_too_many_users_is_rejected_as_a_whole(requests: list[object]) -> None:
    assert rejected(dumps(requests)).reason is Reason.TOO_MANY


def test_a_message_that_came_cut_is_one_rejected_request() -> None:
    body = dumps(request(data="x" * 5000))[:4096]
    cut = msgspec.structs.replace(arrival(body), body_size=10_000_000)
    only = read(cut)
    assert isinstance(only, Rejected)
    assert (only.reason, only.id, only.body) == (Reason.TOO_LARGE, "p1", body)
    assert "10000000 bytes" in only.detail
    assert rejected(b"[" + b" " * MESSAGE_BYTES_MAX).reason is Reason.TOO_LARGE


# --- payload-only mode -----------------------------------------------------------------------------------


def test_headers_say_all_that_a_body_can() -> None:
    only = taken(
        b'{"any": "json"}',
        message_id="m",
        headers={
            "x-push-id": "h",
            "x-push-users": "u1, u2,u1",
            "x-push-except": ["s1"],
            "x-push-event": "e",
            "x-push-confirm": "acked",
            "x-push-tenant": "shop",
            "x-push-ttl": 60,
            "x-push-collapse-key": "c",
            "x-push-ack-within": 0.5,
            "x-push-deliver-at": Timestamp(1_800_000_060),
            "x-push-meta": {"k": "v"},
            "traceparent": "x",
        },
    )
    assert only == PushRequest(
        id="h",
        target=ToUsers(("u1", "u2")),
        data=b'{"any": "json"}',
        event="e",
        confirm=Proof.ACKED,
        excluded=frozenset(("s1",)),
        tenant="shop",
        meta=b'{"k":"v"}',
        ttl=60.0,
        collapse_key="c",
        ack_within=0.5,
        deliver_at=1_800_000_060.0,
    )
    assert taken(b"1", headers={"x-push-session": "s1"}).target == ToSession("s1")
    for everyone in (True, "true", "True", "TRUE", 1, "1"):
        assert taken(b"1", headers={"x-push-all": everyone}).target == ToAll()
    for nobody in (False, "false", "False", "FALSE", 0, "0"):
        assert taken(b"1", headers={"x-push-all": nobody, "x-push-user": "u1"}).target == ToUser("u1")
    for said, meant in (("60", 60.0), ("0.25", 0.25), ("007", 7.0), (60, 60.0)):
        only = taken(
            b"1",
            headers={
                "x-push-user": "u1",
                "x-push-ttl": said,
                "x-push-confirm": "acked",
                "x-push-ack-within": said,
            },
        )
        assert (only.ttl, only.ack_within) == (meant, meant)


@pytest.mark.parametrize(
    ("headers", "reason", "path"),
    [
        ({"x-push-user": 42}, Reason.INVALID, "header x-push-user"),
        ({"x-push-user": b"u1"}, Reason.INVALID, "header x-push-user"),
        ({"x-push-user": ""}, Reason.INVALID, "header x-push-user"),
        ({"x-push-user": Timestamp(1)}, Reason.INVALID, "header x-push-user"),
        ({"x-push-user": "u", "x-push-ttl": Timestamp(60)}, Reason.INVALID, "header x-push-ttl"),
        (
            {"x-push-event": "e", "x-push-user": None},
            Reason.INVALID,
            "headers x-push-user, -users, -session, -topic, -all",
        ),
        ({"x-push-users": 7}, Reason.INVALID, "header x-push-users"),
        ({"x-push-users": "u1,,u2"}, Reason.INVALID, "header x-push-users[1]"),
        ({"x-push-users": ["u1", 2]}, Reason.INVALID, "header x-push-users[1]"),
        ({"x-push-all": "yes"}, Reason.INVALID, "header x-push-all"),
        ({"x-push-all": 2}, Reason.INVALID, "header x-push-all"),
        ({"x-push-all": Timestamp(1)}, Reason.INVALID, "header x-push-all"),
        ({"x-push-all": False}, Reason.INVALID, "headers x-push-user, -users, -session, -topic, -all"),
        ({"x-push-user": "u", "x-push-id": 5}, Reason.INVALID, "header x-push-id"),
        ({"x-push-user": "u", "x-push-event": ["e"]}, Reason.INVALID, "header x-push-event"),
        ({"x-push-user": "u", "x-push-confirm": 1}, Reason.INVALID, "header x-push-confirm"),
        ({"x-push-user": "u", "x-push-tenant": True}, Reason.INVALID, "header x-push-tenant"),
        ({"x-push-user": "u", "x-push-meta": "m"}, Reason.INVALID, "header x-push-meta"),
        ({"x-push-user": "u", "x-push-meta": {"k": 1}}, Reason.INVALID, "header x-push-meta.k"),
        ({"x-push-user": "u", "x-push-ttl": "soon"}, Reason.INVALID, "header x-push-ttl"),
        ({"x-push-user": "u", "x-push-ttl": math.nan}, Reason.INVALID, "header x-push-ttl"),
        ({"x-push-user": "u", "x-push-ttl": math.inf}, Reason.INVALID, "header x-push-ttl"),
        ({"x-push-user": "u", "x-push-ttl": "inf"}, Reason.INVALID, "header x-push-ttl"),
        ({"x-push-user": "u", "x-push-ttl": "-1"}, Reason.INVALID, "header x-push-ttl"),
        ({"x-push-user": "u", "x-push-ttl": "1e3"}, Reason.INVALID, "header x-push-ttl"),
        ({"x-push-user": "u", "x-push-ttl": "1."}, Reason.INVALID, "header x-push-ttl"),
        ({"x-push-user": "u", "x-push-ttl": "\u0661"}, Reason.INVALID, "header x-push-ttl"),
        ({"x-push-user": "u", "x-push-ttl": "9" * 400}, Reason.INVALID, "header x-push-ttl"),
        ({"x-push-user": "u", "x-push-ttl": 10**400}, Reason.INVALID, "header x-push-ttl"),
        ({"x-push-user": "u", "x-push-ttl": True}, Reason.INVALID, "header x-push-ttl"),
        ({"x-push-user": "u", "x-push-published-ms": "now"}, Reason.INVALID, "header x-push-published-ms"),
        ({"x-push-published-ms": 1_700_000_000}, Reason.INVALID, "header x-push-published-ms"),
        ({"x-push-published-ms": "1700000000"}, Reason.INVALID, "header x-push-published-ms"),
        ({"x-push-published-ms": 1.5e12}, Reason.INVALID, "header x-push-published-ms"),
        ({"x-push-published-ms": math.inf}, Reason.INVALID, "header x-push-published-ms"),
        ({"x-push-topic": ".t"}, Reason.INVALID, "header x-push-topic"),
        ({"x-push-user": "u", "x-push-collapse-key": 7}, Reason.INVALID, "header x-push-collapse-key"),
        ({"x-push-user": "u", "x-push-collapse-key": ""}, Reason.INVALID, "header x-push-collapse-key"),
        ({"x-push-user": "u", "x-push-ack-within": 5}, Reason.INVALID, "header x-push-ack-within"),
        (
            {"x-push-user": "u", "x-push-confirm": "acked", "x-push-ack-within": math.nan},
            Reason.INVALID,
            "header x-push-ack-within",
        ),
        (
            {"x-push-user": "u", "x-push-confirm": "acked", "x-push-ack-within": "0"},
            Reason.INVALID,
            "header x-push-ack-within",
        ),
        ({"x-push-ttl": 60}, Reason.INVALID, "headers x-push-user, -users, -session, -topic, -all"),
        ({"x-push-user": "u", "x-push-fallback": "q"}, Reason.INVALID, "header x-push-fallback"),
        (
            {"x-push-user": "u", "x-push-fallback-after": 60},
            Reason.INVALID,
            "header x-push-fallback-key",
        ),
        (
            {"x-push-user": "u", "x-push-fallback-key": "k"},
            Reason.INVALID,
            "header x-push-fallback-after",
        ),
        (
            {"x-push-user": "u", "x-push-fallback-key": "k", "x-push-fallback-after": "0"},
            Reason.INVALID,
            "header x-push-fallback-after",
        ),
        ({"x-push-usr": "u"}, Reason.INVALID, "header x-push-usr"),
        ({"x-push-event": "e"}, Reason.INVALID, "headers x-push-user, -users, -session, -topic, -all"),
        (
            {"x-push-user": "u", "x-push-all": True},
            Reason.INVALID,
            "headers x-push-user, -users, -session, -topic, -all",
        ),
    ],
)
def test_a_wrong_header_is_named(headers: dict[str, object], reason: Reason, path: str) -> None:
    only = rejected(b"1", headers=headers, message_id="m")
    assert (only.reason, only.detail.split(": ")[0], only.id) == (reason, path, "m")


@pytest.mark.parametrize(
    ("body", "content_type", "encoding"),
    [
        (b" [1] ", "application/json", Encoding.JSON),
        (b'{"a":1}', "application/vnd.shop+json; charset=UTF-8", Encoding.JSON),
        (b"123", "text/plain", Encoding.TEXT),
        ("Grüße".encode(), 'text/html; charset="utf-8"', Encoding.TEXT),
        (b"", "text/plain", Encoding.TEXT),
        (b"[1]", "application/octet-stream", Encoding.BYTES),
        (b"\x89PNG", "image/png", Encoding.BYTES),
        (b"123", "", Encoding.JSON),
        (b"hello", "", Encoding.TEXT),
        (b'{"a":', "", Encoding.TEXT),
        (b"", "", Encoding.TEXT),
        (b"\xff\xfe", "", Encoding.BYTES),
    ],
)
def test_the_content_type_tells_what_the_data_is(body: bytes, content_type: str, encoding: Encoding) -> None:
    only = taken(body, content_type=content_type, headers={"x-push-user": "u1"})
    assert (only.encoding, only.data) == (encoding, body.strip() if encoding is Encoding.JSON else body)


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"hello", "application/json", Reason.NOT_JSON),
        (b"", "application/json", Reason.NOT_JSON),
        (rb'"\ud800"', "application/json", Reason.NOT_JSON),
        (nested(129).encode() + b" " * 300, "application/json", Reason.INVALID),
        (b"\xff", "text/plain", Reason.INVALID),
        (b"x", "text/plain; charset=latin1", Reason.UNSUPPORTED),
        (b"x" * 65537, "text/plain", Reason.TOO_LARGE),
        (b"\xff" * 65537, "image/png", Reason.TOO_LARGE),
    ],
)
def test_data_that_is_not_what_it_says_is_rejected(body: bytes, content_type: str, reason: Reason) -> None:
    only = rejected(body, content_type=content_type, headers={"x-push-user": "u1", "x-push-tenant": "t"})
    assert (only.reason, only.tenant) == (reason, "t")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-push-published-ms": 978_307_200_000},
        {"x-push-user": None, "x-push-id": None, "x-push-published-ms": None, "x-push-nonsense": None},
        {"x-push-reason": "invalid", "x-push-detail": "to: wrong", "x-push-id": "p1"},
        {"X-Push-User": "u2"},
        {"x-pushed": 1, "anything": object},
    ],
)
def test_these_headers_leave_the_body_a_request(headers: dict[str, object]) -> None:
    assert taken(dumps(request()), headers=headers).target == ToUser("u1")


@pytest.mark.parametrize("content_encoding", ["gzip", "deflate", "utf-16", "ISO-8859-1", "base64"])
def test_an_encoded_body_is_unsupported(content_encoding: str) -> None:
    for headers in ({}, {"x-push-user": "u1"}):
        only = rejected(dumps(request()), content_encoding=content_encoding, headers=headers)
        assert only.reason is Reason.UNSUPPORTED
        assert only.detail.startswith("property content_encoding: ")


@pytest.mark.parametrize(
    "properties",
    [
        *(
            {"content_encoding": name}
            for name in ("gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "bzip2", "gzip:UTF-8", "gzip, br")
        ),
        {"content_encoding": "binary", "headers": {"compression": "application/x-gzip"}},
        {"content_encoding": "utf-8", "headers": {"compression": "bzip2", "x-push-user": "u1"}},
    ],
)
def test_a_compressed_body_is_rejected_by_the_name_of_its_compression(properties: dict[str, Any]) -> None:
    only = rejected(b"\x1f\x8b\x08\x00", **properties)
    assert only.reason is Reason.UNSUPPORTED
    name = properties.get("headers", {}).get("compression") or properties["content_encoding"]
    assert only.detail.endswith(
        f"the body is compressed ({name}) and the bridge does not decompress: publish it uncompressed"
    )


@pytest.mark.parametrize(
    "content_encoding",
    ["", "utf-8", "UTF-8", "identity", "binary", "8bit", "7bit", "us-ascii", "US-ASCII", "Binary"],
)
def test_an_encoding_that_changes_nothing_is_fine(content_encoding: str) -> None:
    assert taken(dumps(request()), content_encoding=content_encoding).id == "p1"


def test_the_connections_user_and_app_set_no_tenant() -> None:
    assert taken(dumps(request()), user_id="guest", app_id="shop").tenant == ""


# --- times and traces ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "timestamp", "published_at"),
    [
        (1_799_999_999_250, 1_799_999_990.0, 1_799_999_999.25),
        ("1799999999250", None, 1_799_999_999.25),
        (None, 1_799_999_990.0, 1_799_999_990.0),
        (None, None, NOW),
        (0, 1_799_999_990.0, 1_799_999_990.0),
        (-5, None, NOW),
        (10**400, None, NOW),
        (int(NOW * 1000) + 30_000, None, NOW + 30),
        (int(NOW * 1000) + 90_000, None, NOW),
        (None, NOW * 1000, NOW),
        (None, -1.0, NOW),
        (None, math.nan, NOW),
    ],
)
def test_published_at_is_the_best_time_that_makes_sense(
    header: object, timestamp: float | None, published_at: float
) -> None:
    headers = {} if header is None else {"x-push-published-ms": header}
    decoded = decode(arrival(dumps(request()), headers=headers, timestamp=timestamp), LIMITS)
    assert isinstance(decoded.requests[0], PushRequest)
    assert decoded.published_at == published_at


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        (TRACE, TRACE),
        (TRACE.upper(), ""),
        ("ff" + TRACE[2:], ""),
        ("00-" + "0" * 32 + TRACE[35:], ""),
        (TRACE + "\n", ""),
        (7, ""),
    ],
)
def test_only_a_well_formed_traceparent_is_kept(given_: object, kept: str) -> None:
    for body in (dumps(request()), b"not json"):
        assert decode(arrival(body, headers={"traceparent": given_}), LIMITS).traceparent == kept


# --- the two passes --------------------------------------------------------------------------------------


SETTINGS = settings(max_examples=2500, database=None)
"""Four properties of `decode` with 2,500 examples each: bodies, headers and AMQP properties."""


@SETTINGS
@given(DICE)
def test_the_straight_pass_takes_exactly_what_the_careful_pass_takes(dice: Dice) -> None:
    body = json.dumps(dice.request(), ensure_ascii=bool(dice.roll(2))).encode("utf-8", "surrogatepass")
    note(repr(body))
    check_anything(body, dice.properties())
    slow = finish(careful(body, None, "m1", LIMITS, NOW, LastResort(arrival(body))))
    assert straight(body, "m1", LIMITS, NOW) == (slow if isinstance(slow, PushRequest) else None)


# --- whatever comes --------------------------------------------------------------------------------------


REFUSALS = {e.reason for e in ENDINGS if e.outcome is Outcome.REJECTED}


def check_anything(body: bytes, properties: Mapping[str, Any], missing: int = 0) -> None:
    message = arrival(body, **properties)
    message = msgspec.structs.replace(message, body_size=len(body) + missing)
    decoded = decode(message, LIMITS)
    again = decode(msgspec.structs.replace(message, arrived_at=NOW + 1), LIMITS)
    assert len(decoded.requests) >= 1
    assert len(decoded.requests) == len(again.requests)
    assert 0 < decoded.published_at <= NOW + decoding.CLOCK_SKEW_MAX
    for one, same in zip(decoded.requests, again.requests, strict=True):
        assert 1 <= len(one.id) <= 128
        assert not re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", one.id + one.tenant + one.event)
        if isinstance(one, Rejected):
            assert one == same
            assert one.reason in REFUSALS
            assert one.detail
            assert one.detail.isprintable()
        else:
            for frame in (push_frame(one), bare_frame(one)):
                if not frame.binary:
                    frame.payload.decode()
            json.loads(push_frame(one).payload)


@SETTINGS
@given(DICE)
def test_a_damaged_request_is_never_an_exception(dice: Dice) -> None:
    body, properties, missing = dice.damaged(), dice.properties(), dice.pick((0, 0, 0, 1))
    note(f"{body!r}, {properties!r}, {missing}")
    check_anything(body, properties, missing)


@SETTINGS
@given(DICE, st.binary(max_size=20))
def test_any_bytes_are_never_an_exception(dice: Dice, noise: bytes) -> None:
    body, properties = dice.words() + noise, dice.properties()
    note(f"{body!r}, {properties!r}")
    check_anything(body, properties)


@SETTINGS
@given(DICE)
def test_any_headers_are_never_an_exception(dice: Dice) -> None:
    properties = dice.properties()
    properties["headers"] = {"x-push-user": "u1", **properties["headers"], **dice.headers()}
    body = dice.words() if dice.roll(2) else dice.damaged()
    note(f"{body!r}, {properties!r}")
    check_anything(body, properties)


@settings(SETTINGS, max_examples=1000)
@given(DICE)
def test_any_event_is_never_an_exception(dice: Dice) -> None:
    properties = {**dice.properties(), "content_type": "application/cloudevents+json"}
    body = dice.damage(
        json.dumps(dice.event(), ensure_ascii=bool(dice.roll(2))).encode("utf-8", "surrogatepass")
    )
    note(f"{body!r}, {properties!r}")
    check_anything(body, properties)


@pytest.mark.parametrize(
    "body", [b"[,]", b"{]", b'{"a":1]}', b"[{}}]", b'["]', b"[]]", b"}", b"{[}]", b'{"a"}']
)
def test_brackets_that_do_not_pair_are_never_an_exception(body: bytes) -> None:
    check_anything(body, {})


def test_how_far_ahead_a_push_may_be_scheduled_counts_from_its_publication() -> None:
    asked = {"x-push-user": "u1", "x-push-deliver-at": str(NOW + LIMITS.max_ttl)}
    assert taken(b"1", headers=asked).deliver_at == NOW + LIMITS.max_ttl
    early = {**asked, "x-push-published-ms": int(NOW - 1) * 1000}
    assert rejected(b"1", headers=early).reason == Reason.INVALID
    late = dumps(request(deliver_at=NOW * 1000))
    assert "these look like milliseconds" in rejected(late).detail
    unkept = decode(arrival(dumps(request(deliver_at=NOW))), LIMITS._replace(max_ttl=0.0)).requests[0]
    assert isinstance(unkept, Rejected)
    assert (unkept.reason, unkept.detail[:11]) == (Reason.UNSUPPORTED, "deliver_at:")
    assert rejected(b"1", headers={"x-push-user": "u1", "x-push-deliver-at": 1.8e9}).reason == Reason.INVALID


# --- building a body -------------------------------------------------------------------------------------


def test_a_body_that_we_build_is_taken() -> None:
    body = request_body(
        msgspec.Raw(b'{"as": "it is"}'),
        users=("u1", "u2"),
        excluded=("s1",),
        push_id="p1",
        event="e",
        confirm="acked",
        tenant="t",
        meta={"k": "v"},
        ttl=60,
        collapse_key="c",
        ack_within=0.5,
        deliver_at=1_800_000_060,
    )
    assert taken(body) == PushRequest(
        id="p1",
        target=ToUsers(("u1", "u2")),
        data=b'{"as": "it is"}',
        event="e",
        confirm=Proof.ACKED,
        excluded=frozenset(("s1",)),
        tenant="t",
        meta=b'{"k":"v"}',
        ttl=60.0,
        collapse_key="c",
        ack_within=0.5,
        deliver_at=1_800_000_060,
    )
    assert taken(request_body(None, everyone=True)).target == ToAll()


def test_a_body_that_would_be_rejected_is_not_built() -> None:
    with pytest.raises(InvalidRequest, match=r"to\.user: "):
        request_body(1, user="")
    with pytest.raises(InvalidRequest, match="to: expected one of"):
        request_body(1)
    with pytest.raises(InvalidRequest, match="data: not JSON"):
        request_body(msgspec.Raw(b"{oops}"), user="u1")
    with pytest.raises(InvalidRequest, match="cannot be said in JSON"):
        request_body(object(), user="u1")
    with pytest.raises(InvalidRequest, match="at most 10 bytes"):
        request_body("x" * 20, user="u1", limits=Limits(10))
    with pytest.raises(InvalidRequest, match="ack_within: expected only beside confirm acked"):
        request_body(1, user="u1", ack_within=5)


# --- frames ----------------------------------------------------------------------------------------------


def push(data: bytes, encoding: Encoding = Encoding.JSON) -> PushRequest:
    return PushRequest(id='p"1', target=ToUser("u1"), data=data, event="é", encoding=encoding)


def test_json_data_goes_into_the_envelope_byte_for_byte() -> None:
    frame = push_frame(push(b'{"a": 1.0, "a": "\\u00e9"}'))
    assert (
        frame.payload == '{"type":"push","id":"p\\"1","event":"é","data":{"a": 1.0, "a": "\\u00e9"}}'.encode()
    )
    assert not frame.binary


def test_text_and_bytes_go_into_the_envelope_as_strings() -> None:
    assert json.loads(push_frame(push(b'say "hi"\n', Encoding.TEXT)).payload)["data"] == 'say "hi"\n'
    frame = json.loads(push_frame(push(b"\x00\xff", Encoding.BYTES)).payload)
    assert (base64.b64decode(frame["data"]), frame["encoding"]) == (b"\x00\xff", "base64")


@pytest.mark.parametrize(
    ("data", "encoding", "payload", "binary"),
    [
        (b'"Gr\\u00fc\\u00dfe \\ud83c\\udf89"', Encoding.JSON, "Grüße 🎉".encode(), False),
        (b'""', Encoding.JSON, b"", False),
        (b'{"a": 1}', Encoding.JSON, b'{"a": 1}', False),
        (b'"quoted"', Encoding.TEXT, b'"quoted"', False),
        (b"\x00\xff", Encoding.BYTES, b"\x00\xff", True),
    ],
)
def test_a_bare_frame_is_just_the_data(data: bytes, encoding: Encoding, payload: bytes, binary: bool) -> None:
    frame = bare_frame(push(data, encoding))
    assert (frame.payload, frame.binary) == (payload, binary)


def test_the_other_frames_say_what_they_are() -> None:
    assert json.loads(welcome_frame("s1", "u1", True).payload) == {
        "type": "welcome",
        "heartbeat": 10,
        "session": "s1",
        "user": "u1",
        "complete": True,
    }
    assert json.loads(error_frame("bad_frame", "no", 7).payload) == {
        "type": "error",
        "code": "bad_frame",
        "message": "no",
        "ref": 7,
    }
    assert json.loads(withdraw_frame('p"1').payload) == {"type": "withdraw", "id": 'p"1'}
    assert json.loads(ok_frame("r").payload) == {"type": "ok", "ref": "r"}
    assert json.loads(ok_frame().payload) == {"type": "ok"}
    assert json.loads(bye_frame(CloseReason.RESTART, 2.5).payload) == {
        "type": "bye",
        "code": 1012,
        "reason": "restart",
        "retry_after": 2.5,
    }


@pytest.mark.parametrize(
    ("data", "frame"),
    [
        ('{"type":"ack","id":"p1"}', AckFrame("p1")),
        (b'{"type":"ack","id":"p1"}', AckFrame("p1")),
        ('{"id":"p1","more":[1],"type":"ack"}', AckFrame("p1")),
        (
            '{"type":"publish","event":"chat.said","data": {"a" : 1},"topic":"room.7","ref":"r1","x":0}',
            PublishFrame("chat.said", b'{"a" : 1}', "room.7", "r1"),
        ),
        ('{"type":"publish","event":"typing","topic":null}', PublishFrame("typing", b"null", None, None)),
        (
            '{"type":"publish","data":1,"ref":"r1"}',
            BadFrame("event: this field is required", "r1"),
        ),
        (
            '{"type":"publish","event":"a.*"}',
            BadFrame(
                "event: expected a name of at most 128 characters: words with dots between them,"
                " got a word with *, #, { or } in it",
                None,
            ),
        ),
        (
            json.dumps({"type": "publish", "event": "ü" * 128}),
            BadFrame("event: expected at most 255 bytes in UTF-8, got more", None),
        ),
        (
            '{"type":"publish","event":"a","topic":["b"]}',
            BadFrame(
                "topic: expected a name of at most 128 characters: words with dots between them, got a list",
                None,
            ),
        ),
        ('{"type":"subscribe","topic":"t","ref":7}', SubscribeFrame("t", 7)),
        ('{"type":"unsubscribe","topic":"a.b"}', UnsubscribeFrame("a.b", None)),
        (
            '{"type":"subscribe","topic":"a.*","ref":7}',
            BadFrame(
                "topic: expected a name of at most 128 characters: words with dots between them,"
                " got a word with *, #, { or } in it",
                7,
            ),
        ),
        (
            '{"type":"ack","id":5,"ref":"r"}',
            BadFrame("id: expected the id of a push, got a number", "r"),
        ),
        ('{"id":"p1"}', BadFrame("type: this field is required", None)),
        ('{"type":null}', BadFrame("type: expected a string, got null", None)),
        ('{"type":"refresh","token":" a.b.c ","ref":7}', RefreshFrame("a.b.c", 7)),
        ('{"type":"refresh"}', BadFrame("token: this field is required", None)),
        ('{"type":"ack"}', BadFrame("id: this field is required", None)),
        (
            '{"type":"ack","id":"\\n"}',
            BadFrame("id: expected the id of a push, got a control character", None),
        ),
        (
            '{"type":"ack","id":"p1","tenant":5}',
            BadFrame("tenant: expected that of the push, got a number", None),
        ),
        (
            '{"type":"ack","id":5,"id":"p1","ref":1}',
            BadFrame("expected each field once, got one twice", 1),
        ),
        (
            '{"type":"ack","id":"p1","tenant":5,"tenant":"t"}',
            BadFrame("expected each field once, got one twice", None),
        ),
        ('{"type":"ack","id":""}', BadFrame("id: expected the id of a push, got 0 characters", None)),
        ('{"type":"withdraw","ref":1}', BadFrame("type: withdraw is not known", 1)),
        ('{"type":7}', BadFrame("type: expected a string, got a number", None)),
        ('{"type":"refresh","ref":true}', BadFrame("ref: expected an id or an integer, got true", None)),
        ("[]", BadFrame("expected an object, got a list", None)),
        ("hello", BadFrame("expected a JSON object in UTF-8", None)),
        (b"\xff", BadFrame("expected a JSON object in UTF-8", None)),
        ("\ud800", BadFrame("expected a JSON object in UTF-8", None)),
        # Deeper than any interpreter decodes: CPython 3.13 gets to 10,000.
        ("[" * 16_000, BadFrame("nested too deep", None)),
    ],
)
def test_a_clients_message_is_an_ack_or_answered_with_what_is_wrong(
    data: str | bytes, frame: ClientFrame
) -> None:
    assert parse_client(data) == frame


@settings(SETTINGS, max_examples=1000)
@given(DICE, st.booleans())
def test_any_message_of_a_client_is_answered(dice: Dice, as_text: bool) -> None:
    names = ("type", "id", "event", "topic", "data", "ref")
    words = ("ack", "publish", "subscribe", "unsubscribe", "x")
    frame_of: dict[str, Any] = {name: dice.pick((dice.junk(), *words)) for name in names}
    raw = dice.words() if dice.roll(2) else json.dumps(frame_of).encode()
    data: str | bytes = raw.decode("utf-8", "surrogateescape") if as_text else raw
    note(repr(data))
    frame = parse_client(data)
    if isinstance(frame, AckFrame):
        assert frame.id
    elif isinstance(frame, RefreshFrame):
        assert isinstance(frame.token, str)
    elif isinstance(frame, PublishFrame):
        assert not name_problem(frame.event)
        assert frame.topic is None or not name_problem(frame.topic)
        json.loads(frame.data)
    elif isinstance(frame, SubscribeFrame | UnsubscribeFrame):
        assert name_problem(frame.topic) == ""
    else:
        json.loads(error_frame("bad_frame", frame.problem, frame.ref).payload)


# --- receipts --------------------------------------------------------------------------------------------


def test_a_receipt_tells_what_the_row_tells() -> None:
    row = Row(
        RowKey("shop", "p1", "u1"),
        Outcome.RECEIVED,
        Reason.PONG,
        "n1",
        "b1",
        published_at=NOW + 0.125,
        taken_at=NOW + 0.25,
        event="e",
        written_at=NOW + 0.5,
        proven_at=NOW + 1,
        finished_at=NOW + 1,
        sessions=2,
        attempts=3,
    )
    receipt = json.loads(receipt_body(row))
    assert {name: receipt[name] for name in ("push_id", "user_id", "tenant", "event", "node")} == {
        "push_id": "p1",
        "user_id": "u1",
        "tenant": "shop",
        "event": "e",
        "node": "n1",
    }
    assert (receipt["outcome"], receipt["reason"], receipt["final"]) == ("received", "pong", True)
    assert (receipt["sessions"], receipt["attempts"]) == (2, 3)
    assert receipt["published_at"] == "2027-01-15T08:00:00.125000Z"
    assert datetime.fromisoformat(receipt["proven_at"]) == datetime.fromtimestamp(NOW + 1, UTC)
    assert "detail" not in receipt


def test_a_receipt_says_null_for_what_is_not_known() -> None:
    row = Row(
        RowKey("", "p1", NO_USER), Outcome.REJECTED, Reason.INVALID, "n1", "b1", NOW, NOW, detail="to: wrong"
    )
    receipt = json.loads(receipt_body(row))
    assert [receipt[n] for n in ("user_id", "tenant", "event", "written_at", "proven_at")] == [None] * 5
    assert receipt["detail"] == "to: wrong"


# --- control ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "recall"),
    [
        (b'{"type":"recall","push_id":"p1"}', Recall(push_id="p1")),
        (b'{"tenant":"shop","push_id":"p1","type":"recall"}', Recall("shop", "p1")),
        (b' {"type":"recall","user":"u1","collapse_key":"c"} ', Recall(user="u1", collapse_key="c")),
        (
            b'{"type":"recall","user":"u1","collapse_key":"c","tenant":"t"}',
            Recall("t", user="u1", collapse_key="c"),
        ),
    ],
)
def test_a_recall_names_a_push_or_a_users_collapse_key(body: bytes, recall: Recall) -> None:
    assert decode_control(body) == recall


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "expected JSON, got nothing"),
        (b"hello", "not JSON: "),
        (b"\xff", "not UTF-8 (byte 0)"),
        (b'{"type":"recall","push_id":"\\ud800"}', "a lone surrogate"),
        (b"[" * 16_000, "nested deeper than 128 levels"),
        (b"1e999", "a number is out of range"),
        (b"[]", "expected an object, got a list"),
        (b"{}", "type: expected a string, got null"),
        (b'{"type":7,"push_id":"p1"}', "type: expected a string, got a number"),
        (b'{"type":"revoke","user":"u1"}', "expected user and before, or jti, or session, got user"),
        (b'{"type":"revoke"}', "expected user and before, or jti, or session, got none"),
        (b'{"type":"revoke","jti":"t1","tenant":"a"}', "tenant: no such field"),
        (b'{"type":"revoke","jti":7}', "jti: expected a string, got a number"),
        (
            b'{"type":"revoke","jti":""}',
            "jti: expected 1 to 1024 characters, none of them U+0000 or a lone surrogate",
        ),
        (b'{"type":"revoke","user":"u1","before":"1"}', "before: expected unix seconds, got a string"),
        (b'{"type":"revoke","user":"u1","before":0}', "before: expected unix seconds: it must be above 0"),
        (
            b'{"type":"revoke","user":"u1","before":1790000000000}',
            "before: expected unix seconds: it looks like milliseconds",
        ),
        (b'{"type":"unsend","push_id":"p1"}', "type: unsend is not known, expected recall"),
        (b'{"type":"recall"}', "expected push_id, or user and collapse_key, got none"),
        (b'{"type":"recall","user":"u1"}', "expected push_id, or user and collapse_key, got user"),
        (
            b'{"type":"recall","push_id":"p1","user":"u1","collapse_key":"c"}',
            "expected push_id, or user and collapse_key, got push_id and user and collapse_key",
        ),
        (b'{"type":"recall","push_id":"p1","user":"u1"}', "expected push_id, or user and collapse_key, got"),
        (b'{"type":"recall","push_id":"p1","reason":"x"}', "reason: no such field"),
        (b'{"type":"recall","push_id":"p1","a\\nb":"x"}', "'a\\nb': no such field"),
        (b'{"type":"recall","push_id":""}', "push_id: expected a string of 1 to 128 characters"),
        (b'{"type":"recall","push_id":null}', "push_id: expected a string"),
        (b'{"type":"recall","push_id":"p1","tenant":""}', "tenant: expected a string"),
        (b'{"type":"recall","push_id":"p1","push_id":"p2"}', "push_id: given twice"),
        (b'{"type":"recall","push_id":"p1","push_id":"p1"}', "push_id: given twice"),
        (rb'{"type":"recall","push_id":"p1","push\u005fid":"p2"}', "push_id: given twice"),
        (b'{"type":"recall","type":"recall","push_id":"p1"}', "type: given twice"),
        (b'{"type":"recall","tenant":"a","push_id":"p1","tenant":"b"}', "tenant: given twice"),
        (b'{"type":"recall","x":1,"push_id":"p1","x":2}', "x: given twice"),
        (b'{"type":"recall","user":"u","collapse_key":"c","user":"u"}', "user: given twice"),
        (b'{"type":"recall","push_id":1e999}', "push_id: expected a string of 1 to 128 characters"),
        (
            b'{"type":"recall","push_id":{"push_id":"p1"}}',
            "push_id: expected a string of 1 to 128 characters",
        ),
        (b'{"type":"recall","push_id":"p1"}{}', "not JSON: "),
        (
            b'{"type":"recall","push_id":"p1"}' + b" " * 16384,
            "the message has 16416 bytes, 16384 are allowed",
        ),
        (b'{"type":"recall","user":"u1","collapse_key":["c"]}', "collapse_key: expected a string"),
    ],
)
def test_a_control_message_that_is_wrong_is_told_why(body: bytes, problem: str) -> None:
    told = decode_control(body)
    assert isinstance(told, BadControl), told
    assert told.problem.startswith(problem), told.problem
    assert json.loads(control_error("n1", told.problem))["problem"] == told.problem


def test_a_control_message_of_which_only_the_beginning_came_is_too_large() -> None:
    body = b'{"type":"recall","push_id":"p1"}'
    told = decode_control(body, 10_000_000)
    assert told == BadControl("the message has 10000000 bytes, 16384 are allowed")
    assert decode_control(body, len(body)) == Recall(push_id="p1")


def test_the_longest_names_fit_into_a_control_message_however_they_are_written() -> None:
    recall = dict.fromkeys(("user", "collapse_key", "tenant"), "🎉" * 128)
    assert decode_control(dumps({"type": "recall", **recall})) == Recall(**recall)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"push_id":"p1"}', Recall(push_id="p1")),
        (b' {"user":"u1","collapse_key":"c","tenant":"t"}', Recall("t", user="u1", collapse_key="c")),
        (b'{"push_id":"p1","push_id":"p1"}', BadControl("push_id: given twice")),
        (b'{"type":"recall","push_id":"p1"}', BadControl("type: no such field")),
        (b"[]", BadControl("expected an object, got a list")),
    ],
)
def test_where_only_recalls_come_the_type_is_left_out(body: bytes, told: Recall | BadControl) -> None:
    assert decode_recall(body) == told


@settings(SETTINGS, max_examples=1000)
@given(DICE, st.binary(max_size=20))
def test_any_control_message_is_answered(dice: Dice, noise: bytes) -> None:
    body = dice.words() + noise if dice.roll(2) else dice.damage(dumps(dice.control()))
    note(repr(body))
    told = decode_control(body)
    if isinstance(told, Recall):
        assert bool(told.push_id) != bool(told.user and told.collapse_key)
    elif isinstance(told, Revocation):
        assert [bool(told.user), bool(told.token_id), bool(told.session)].count(True) == 1
    else:
        assert told.problem.isprintable()
        assert told.problem


def test_a_reply_to_a_control_message_says_what_came_of_it() -> None:
    assert json.loads(control_reply("recall", "n1", 2, 1.5, 3)) == {
        "type": "recall",
        "node": "n1",
        "sessions": 2,
        "took_ms": 1.5,
        "ended": 3,
    }
    assert json.loads(control_error("n1", "no")) == {"type": "error", "node": "n1", "problem": "no"}
