"""Structured CloudEvents as push requests: what is pushed to whom, under which id, and what is rejected and why."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.contract.requests import Limits, decode, decode_in_steps
from bridge.core.contract.scheduling import body_of, packed, release_of
from bridge.core.contract.stepping import finish
from bridge.core.model.outcomes import Proof, Reason
from bridge.core.model.pushes import (
    Encoding,
    Properties,
    PushRequest,
    Rejected,
    ToAll,
    ToTopic,
    ToUser,
    ToUsers,
)
from bridge.core.model.scheduled import Scheduled
from bridge.core.ports.broker import Arrival
from tests.support.ports import arrival

LIMITS = Limits(max_ttl=86_400.0)
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "type": "order.created",
    "source": "/shop/orders",
    "id": "A-1",
    "time": "2026-11-29T12:00:00Z",
    "subject": "42",
    "datacontenttype": "application/json",
    "data": {"n": [1, "ü"]},
    "pushuser": "u42",
}


def made(event: object, content_type: str = "application/cloudevents+json", **more: Any) -> Arrival:
    body = event if isinstance(event, bytes) else json.dumps(event, ensure_ascii=False).encode()
    return arrival(body, content_type=content_type, **more)


def read(event: object, **more: Any) -> PushRequest | Rejected:
    one = made(event, **more)
    decoded = decode(one, LIMITS)
    assert decoded == finish(decode_in_steps(one, LIMITS))
    [request] = decoded.requests
    return request


def taken(event: object, **more: Any) -> PushRequest:
    request = read(event, **more)
    assert isinstance(request, PushRequest), request
    return request


def rejected(event: object, **more: Any) -> Rejected:
    request = read(event, **more)
    assert isinstance(request, Rejected), request
    return request


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in EVENT.items() if name not in names}


def test_an_event_is_a_push_of_its_data_to_the_user_of_its_extension_attribute() -> None:
    request = taken(EVENT)
    assert request.target == ToUser("u42")
    assert (request.id, request.event) == ("/shop/orders#A-1", "order.created")
    assert (request.data, request.encoding) == ('{"n": [1, "ü"]}'.encode(), Encoding.JSON)
    assert request.confirm is Proof.RECEIVED
    assert json.loads(request.meta) == {
        "ce-source": "/shop/orders",
        "ce-id": "A-1",
        "ce-type": "order.created",
        "ce-subject": "42",
        "ce-time": "2026-11-29T12:00:00Z",
    }


def test_every_header_of_payload_only_mode_is_an_attribute_too_and_the_header_counts_first() -> None:
    request = taken(
        {
            **without("pushuser"),
            "pushusers": "u1,u2",
            "pushexcept": "s1",
            "pushconfirm": "acked",
            "pushackwithin": 5,
            "pushtenant": "shop",
            "pushttl": "60",
            "pushcollapsekey": "k",
            "pushdevices": "first",
            "pushfallbackafter": 9,
            "pushfallbackkey": "mail",
            "pushevent": "order",
            "pushid": "mine",
            "pushdeliverat": 1_800_000_060,
            "pushall": False,
            "pushtopic": None,
        }
    )
    assert request.target == ToUsers(("u1", "u2"))
    assert (request.id, request.event, request.tenant) == ("mine", "order", "shop")
    assert (request.confirm, request.ack_within, request.ttl) == (Proof.ACKED, 5.0, 60.0)
    assert (request.collapse_key, request.first_device, request.deliver_at) == ("k", True, 1_800_000_060.0)
    assert request.fallback is not None
    assert (request.fallback.after, request.fallback.routing_key) == (9.0, "mail")
    assert request.excluded == {"s1"}
    topic = taken({**without("pushuser"), "pushtopic": "t", "pushretain": True})
    assert (topic.target, topic.retain) == (ToTopic("t"), True)
    assert taken({**without("pushuser"), "pushall": True}).target == ToAll()
    by_header = taken(
        {**EVENT, "pushttl": 5},
        headers={"x-push-user": "u7", "x-push-ttl": "7", "x-push-id": "h", "x-push-meta": {"a": "b"}},
        message_id="m",
    )
    assert (by_header.target, by_header.ttl, by_header.id) == (ToUser("u7"), 7.0, "h")
    assert by_header.meta == b'{"a":"b"}'


def test_ids_of_two_sources_are_two_pushes_and_long_ones_are_hashed() -> None:
    assert taken({**EVENT, "source": "/other"}).id == "/other#A-1"
    long = {**EVENT, "source": "urn:" + "x" * 400}
    request = taken(long)
    digest = hashlib.sha256(f"404:urn:{'x' * 400}#A-1".encode()).hexdigest()
    assert request.id == f"sha256-{digest}"
    assert "ce-source" not in json.loads(request.meta)
    assert rejected({**long, "pushttl": -1}).id == request.id, "a rejected one has the same id"


def test_no_two_events_have_one_id() -> None:
    pairs = [("a#", "b"), ("a", "#b"), ("/a#b", "c"), ("/a", "b#c"), ("a", "b"), ("3:a", "b")]
    ids = [taken({**EVENT, "source": source, "id": own}).id for source, own in pairs]
    assert len(set(ids)) == len(pairs)


def test_data_may_be_bytes_anything_or_nothing() -> None:
    encoded = base64.b64encode(b"\0\xff").decode()
    request = taken({**without("data"), "data_base64": encoded})
    assert (request.data, request.encoding) == (b"\0\xff", Encoding.BYTES)
    assert taken({**EVENT, "data": None, "data_base64": encoded}).data == b"\0\xff"
    assert taken({**EVENT, "data_base64": None}).encoding is Encoding.JSON
    assert taken(without("data")).data == b"null"
    assert taken({**EVENT, "datacontenttype": "text/plain", "data": "hi"}).data == b'"hi"'


@pytest.mark.parametrize(
    ("event", "detail"),
    [
        (without("pushuser"), "attributes pushuser, pushusers, pushsession, pushtopic, pushall: expected one of"),
        ({**EVENT, "pushtopic": "t"}, "got user and topic"),
        ({**EVENT, "pushuser": 7}, "pushuser: expected a string"),
        ({**EVENT, "pushttl": "soon"}, "pushttl: expected seconds"),
        ({**EVENT, "pushfallbackkey": "mail"}, "pushfallbackafter: "),
        (json.dumps(EVENT).replace('"u42"', '"u", "pushttl": 1e400').encode(), "got no finite number"),
        ({**EVENT, "pushuser": ["u1"]}, "without control characters, got a list"),
        ({**EVENT, "pushusr": "u"}, "pushusr: no such extension attribute"),
        (without("id"), "id: an event needs this attribute"),
        ({**EVENT, "source": ""}, "source: an event needs this attribute"),
        ({**EVENT, "type": 1}, "type: expected a string, got a number"),
        ({**EVENT, "type": "x" * 200}, "type: expected a string of 1 to 128 characters"),
        ({**EVENT, "specversion": "0.3"}, "specversion: expected 1.0"),
        ({**EVENT, "data_base64": "AA=="}, "data_base64: expected only one"),
        ({**without("data"), "data_base64": "?"}, "data_base64: expected a string of base64"),
        ([EVENT], "expected an event, which is an object, got a list"),
        (b'{"id":', "not JSON: it ends too early"),
        ({**EVENT, **{f"a{n}": "," for n in range(70_000)}}, "expected at most 1000 attributes"),
        (json.dumps({**EVENT, "data": 0}).replace('"data": 0', '"data": ' + "[" * 200 + "]" * 200).encode(), "data: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_attribute(event: object, detail: str) -> None:
    request = rejected(event)
    assert request.reason in (Reason.INVALID, Reason.UNSUPPORTED, Reason.NOT_JSON)
    assert detail in request.detail, request.detail


def test_batches_other_formats_and_other_charsets_are_refused_by_name() -> None:
    for content_type, words in (
        ("application/cloudevents-batch+json", "publish a message for each"),
        ("application/cloudevents+avro", "only the JSON format"),
        ("application/cloudevents", "only the JSON format"),
        ("application/cloudevents+json; charset=latin1", "charset utf-8"),
    ):
        request = rejected(EVENT, content_type=content_type)
        assert (request.reason, request.detail.partition(":")[0]) == (
            Reason.UNSUPPORTED,
            "property content_type",
        )
        assert words in request.detail
    assert taken(EVENT, content_type="Application/CloudEvents+JSON; charset=UTF-8").target == ToUser("u42")


def test_too_much_data_and_too_long_an_attribute_are_refused() -> None:
    assert rejected({**EVENT, "data": "x" * 1_000_000}).reason is Reason.TOO_LARGE
    many = rejected({**without("pushuser"), "pushusers": ",".join(f"u{n}" for n in range(20_000))})
    assert "pushusers: expected at most 65536 bytes: say it in the header" in many.detail


def test_a_scheduled_event_is_the_same_push_at_its_time() -> None:
    one = made({**EVENT, "pushdeliverat": 1_800_000_060})
    [request] = decode(one, LIMITS).requests
    assert isinstance(request, PushRequest)
    entry = Scheduled(
        "e1", "", request.id, "u42", "", 1, request.deliver_at, 1_800_000_000.0, one.key,
        body_of(one, request), packed(one, request, 1_800_000_000.0),
    )  # fmt: skip
    released = release_of(entry)
    again = msgspec.structs.replace(one, body=released.body, properties=released.properties)
    assert isinstance(released.properties, Properties)
    [later] = decode(again, LIMITS).requests
    assert later == request


_ATTRIBUTES = st.sampled_from(
    (
        "specversion",
        "id",
        "source",
        "type",
        "time",
        "data",
        "data_base64",
        "pushuser",
        "pushall",
        "pushttl",
        "pushx",
    )
)
_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.none(), max_size=2),
)  # fmt: skip


@given(st.dictionaries(_ATTRIBUTES, _VALUES), st.booleans())
def test_any_event_is_taken_or_rejected_and_alike_each_time(event: dict[str, object], whole: bool) -> None:
    body = json.dumps({**EVENT, **event}).encode()
    one = made(body if whole else body[: len(body) // 2])
    first, second = (decode(one, LIMITS).requests for _ in range(2))
    assert first == second
    [request] = first
    assert request.id
