"""The contracts in schemas/ and the code say the same, in both directions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, note, settings
from jsonschema import Draft202012Validator

from bridge.core.contract import fields
from bridge.core.contract import requests as decoding
from bridge.core.contract.auth import token_of
from bridge.core.contract.client_frames import (
    AckFrame,
    PublishFrame,
    RefreshFrame,
    SubscribeFrame,
    UnsubscribeFrame,
    parse_client,
)
from bridge.core.contract.control import control_error, control_reply, decode_control, revoke_reply
from bridge.core.contract.frames import (
    HEARTBEAT,
    REFRESH,
    bye_frame,
    error_frame,
    ok_frame,
    ping_frame,
    push_frame,
    welcome_frame,
    withdraw_frame,
)
from bridge.core.contract.receipts import receipt_body
from bridge.core.contract.requests import decode
from bridge.core.contract.requests import headers as of_headers
from bridge.core.contract.requests.cloud_event import FIELD_OF_ATTRIBUTE
from bridge.core.contract.routing_keys import KEY_BYTES_MAX
from bridge.core.model.outcomes import CONFIRM, ENDINGS, Outcome, Proof, Reason
from bridge.core.model.pushes import (
    BATCH_MAX,
    ID_MAX,
    META_KEY_CHARS,
    META_KEYS_MAX,
    META_VALUE_CHARS,
    NO_USER,
    USERS_MAX,
    Encoding,
    PushRequest,
    Recall,
    Rejected,
    ToUser,
)
from bridge.core.model.revocations import Revocation, RevocationAnswer
from bridge.core.model.rows import Row, RowKey
from bridge.core.model.sessions import CloseReason
from bridge.core.talking.publishing import ENDS
from tests.support.ports import arrival
from tests.support.random_requests import DICE, LIMITS, NOW, Dice
from tests.support.schemas import EVENT, FOLDER, HEADERS, RECEIPT, REQUEST, SCHEMAS, validator

ASYNCAPI: dict[str, Any] = json.loads((FOLDER / "asyncapi.json").read_text(encoding="utf-8"))


def check(schema: Draft202012Validator, value: object) -> None:
    problems = [f"{error.json_path}: {error.message}" for error in schema.iter_errors(value)]
    assert not problems


def sample(schema: str, index: int = 0) -> Any:
    return SCHEMAS[schema]["examples"][index]


# --- the schemas by themselves ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_schema_is_one_and_its_examples_fit(name: str) -> None:
    schema = SCHEMAS[name]
    Draft202012Validator.check_schema(schema)
    assert schema["title"]
    assert schema["description"]
    assert schema["examples"]
    for example in schema["examples"]:
        check(validator(name), example)


# --- push requests ---------------------------------------------------------------------------------------


def decoded(body: bytes, **properties: Any) -> list[PushRequest | Rejected]:
    return list(decode(arrival(body, **properties), LIMITS).requests)


def encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("example", sample("push-request.json", slice(None)))  # type: ignore[arg-type]
def test_each_example_of_a_request_is_taken(example: object) -> None:
    (only,) = decoded(encoded(example))
    assert isinstance(only, PushRequest), only


@pytest.mark.parametrize("example", sample("push-batch.json", slice(None)))  # type: ignore[arg-type]
def test_each_example_of_a_batch_is_taken(example: list[object]) -> None:
    requests = decoded(encoded(example))
    assert len(requests) == len(example)
    assert all(isinstance(r, PushRequest) for r in requests)


@pytest.mark.parametrize("example", sample("push-headers.json", slice(None)))  # type: ignore[arg-type]
def test_each_example_of_headers_is_taken(example: dict[str, Any]) -> None:
    (only,) = decoded(b"data", headers=example)
    assert isinstance(only, PushRequest), only


def beyond_a_schema(value: object) -> bool:
    """What the code rejects and JSON Schema has no words for, in what `Dice` makes:

    numbers and text that no JSON in UTF-8 holds (NaN, infinities, lone surrogates), and a ttl, a deliver_at, or the
    time of a fallback, over what BRIDGE_RETENTION_DAYS allows. Not made here, but beyond a schema as well: data over
    BRIDGE_MAX_DATA_BYTES,
    nested over 128 levels, messages over 1 MiB, 10,000 users over a whole batch, and, the other way round,
    more than 10,000 entries of `users` or `except` of which some repeat.
    """
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return True
    if not isinstance(value, dict):
        return False
    fallback = value.get("fallback")
    after = fallback.get("after") if isinstance(fallback, dict) else None
    return (
        is_over(value.get("ttl"), LIMITS.max_ttl)
        or is_over(after, LIMITS.max_ttl)
        or is_over(value.get("deliver_at"), NOW + LIMITS.max_ttl)
    )


def is_over(value: object, most: float) -> bool:
    """Whether this is a number, or a string that stands for one, and more than `most`."""
    if isinstance(value, str):
        return bool(re.fullmatch("[0-9]+([.][0-9]+)?", value)) and float(value) > most
    return isinstance(value, (int, float)) and value > most


@settings(max_examples=2000, deadline=None, database=None)
@given(DICE)
def test_a_request_is_taken_if_and_only_if_the_schema_says_so(dice: Dice) -> None:
    value = dice.request()
    note(repr(value))
    (only,) = decoded(encoded(value))
    expected = REQUEST.is_valid(value) and not beyond_a_schema(value)
    assert isinstance(only, PushRequest) == expected, only


IGNORED = (
    *("x-push-reason", "x-push-detail", "x-push-buried-at", "x-push-replayed-at", "x-push-replay-of"),
    "x-push-released",
)
"""Headers that the bridge itself adds, and that say nothing to it."""


@settings(max_examples=1000, deadline=None, database=None)
@given(DICE)
def test_headers_are_taken_if_and_only_if_the_schema_says_so(dice: Dice) -> None:
    headers: dict[str, Any] = {"x-push-user": "u1", **dice.headers(), **dice.headers()}
    for name, value in list(headers.items()):
        # JSON has no bytes, and the schema leaves it to the code what stands between commas.
        if (
            isinstance(value, (bytes, list))
            or name in ("x-push-users", "x-push-except", "x-push-meta")
            or value is None
        ):
            del headers[name]
    note(repr(headers))
    (only,) = decoded(b"data", headers=headers)
    if "x-push-user" not in headers and not decoding.is_payload_only(headers):
        return
    valid = HEADERS.is_valid(headers) and not any(
        (isinstance(value, str) and not is_utf8(value))
        or value != value
        # To JSON Schema 2.0 is an integer, to AMQP it is a float.
        or (name == "x-push-published-ms" and isinstance(value, float))
        or (
            name == "x-push-published-ms"
            and isinstance(value, str)
            and value.isdecimal()
            and 0 < int(value) < 978307200000
        )
        # The schema has words for the range of a number, not for that of a string.
        or (name == "x-push-ttl" and is_over(value, LIMITS.max_ttl))
        or (name == "x-push-published-ms" and value in ("60", "007"))
        or (name == "x-push-fallback-after" and (value == "0" or is_over(value, LIMITS.max_ttl)))
        or (name == "x-push-fallback-key" and isinstance(value, str) and len(value.encode()) > 255)
        or (name == "x-push-deliver-at" and isinstance(value, float))
        or (name == "x-push-deliver-at" and (value in ("0", "0.0") or is_over(value, NOW + LIMITS.max_ttl)))
        or (name == "x-push-ack-within" and (value == "0" or is_over(value, fields.ACK_WITHIN_MAX)))
        for name, value in headers.items()
        if name.startswith("x-push-") and name not in IGNORED
    )
    assert isinstance(only, PushRequest) == valid, only


@pytest.mark.parametrize("example", sample("push-cloudevent.json", slice(None)))  # type: ignore[arg-type]
def test_each_example_of_an_event_is_taken(example: dict[str, Any]) -> None:
    (only,) = decoded(encoded(example), content_type="application/cloudevents+json")
    assert isinstance(only, PushRequest), only


@settings(max_examples=1000, deadline=None, database=None)
@given(DICE)
def test_an_event_is_taken_if_and_only_if_the_schema_says_so(dice: Dice) -> None:
    event = dice.event()
    # The schema leaves it to the code what stands between commas.
    for name in ("pushusers", "pushexcept"):
        if isinstance(event.get(name), str):
            del event[name]
    note(repr(event))
    (only,) = decoded(encoded(event), content_type="application/cloudevents+json")
    # Nor has it words for the range of a number in a string.
    beyond = (
        beyond_a_schema(event)
        or is_over(event.get("pushttl"), LIMITS.max_ttl)
        or is_over(event.get("pushackwithin"), fields.ACK_WITHIN_MAX)
        or is_over(event.get("pushfallbackafter"), LIMITS.max_ttl)
        or is_over(event.get("pushdeliverat"), NOW + LIMITS.max_ttl)
        or "0" in (event.get("pushackwithin"), event.get("pushfallbackafter"), event.get("pushdeliverat"))
    )
    assert isinstance(only, PushRequest) == (EVENT.is_valid(event) and not beyond), only


def test_the_attributes_of_an_event_are_those_of_the_schema() -> None:
    schema = SCHEMAS["push-cloudevent.json"]
    ours = {name for name in schema["properties"] if name.startswith("push")}
    assert ours == set(FIELD_OF_ATTRIBUTE) == set(schema["propertyNames"]["then"]["enum"])


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def test_the_fields_of_a_request_are_those_of_the_schema() -> None:
    assert set(SCHEMAS["push-request.json"]["properties"]) == fields.FIELDS
    fallback = SCHEMAS["push-request.json"]["properties"]["fallback"]
    assert set(fallback["properties"]) == set(fallback["required"]) == fields.FALLBACK_FIELDS
    to = SCHEMAS["push-request.json"]["properties"]["to"]
    assert set(to["properties"]) == fields.TO_FIELDS
    assert [alternative["required"] for alternative in to["oneOf"]] == [[name] for name in fields.TARGETS]


def test_the_headers_are_those_of_the_schema() -> None:
    known = set(of_headers.FIELD_OF) | of_headers.BOTH_MODES
    assert set(SCHEMAS["push-headers.json"]["properties"]) == known
    assert set(SCHEMAS["push-headers.json"]["propertyNames"]["then"]["enum"]) == known


def test_the_limits_are_those_of_the_schemas() -> None:
    properties = SCHEMAS["push-request.json"]["properties"]
    assert SCHEMAS["id.json"]["maxLength"] == ID_MAX
    assert properties["to"]["properties"]["users"]["maxItems"] == USERS_MAX
    assert SCHEMAS["push-batch.json"]["maxItems"] == BATCH_MAX
    assert properties["meta"]["maxProperties"] == META_KEYS_MAX
    assert properties["meta"]["propertyNames"]["maxLength"] == META_KEY_CHARS
    assert properties["meta"]["additionalProperties"]["maxLength"] == META_VALUE_CHARS
    for schema, name in (("push-request.json", "ack_within"), ("push-headers.json", "x-push-ack-within")):
        number = SCHEMAS[schema]["properties"][name]
        number = number.get("anyOf", [number])[0]
        assert (number["exclusiveMinimum"], number["maximum"]) == (0, fields.ACK_WITHIN_MAX)


def test_the_proofs_to_ask_for_are_those_of_the_schemas() -> None:
    for schema, name in (("push-request.json", "confirm"), ("push-headers.json", "x-push-confirm")):
        confirm = SCHEMAS[schema]["properties"][name]
        assert confirm["enum"] == list(CONFIRM)
        assert CONFIRM[confirm["default"]] is PushRequest("p", ToUser("u"), b"1").confirm


# --- receipts and dead letters ---------------------------------------------------------------------------


def test_outcomes_and_reasons_are_those_of_the_schema() -> None:
    schema = SCHEMAS["receipt.json"]
    assert schema["properties"]["outcome"]["enum"] == [o.value for o in Outcome]
    assert schema["properties"]["reason"]["enum"] == [r.value for r in Reason]
    lines = {
        (case["properties"]["outcome"]["const"], reason, case["properties"]["final"]["const"])
        for case in schema["oneOf"]
        for reason in case["properties"]["reason"]["enum"]
    }
    assert lines == {(e.outcome.value, e.reason.value, e.final) for e in ENDINGS}


def row(outcome: Outcome, reason: Reason, **changes: Any) -> Row:
    plain = Row(RowKey("", "p1", NO_USER), outcome, reason, "n1", "b1", NOW, NOW)
    return msgspec.structs.replace(plain, **changes)


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda e: f"{e.outcome}-{e.reason}")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "key": RowKey("shop", "p1", "u1"),
            "event": "e",
            "topic": "room.7",
            "detail": "why",
            "confirm": Proof.ACKED,
            "written_at": NOW + 0.1,
            "proven_at": NOW + 0.2,
            "finished_at": NOW + 0.000001,
            "sessions": 2,
            "attempts": 3,
        },
    ],
)
def test_every_receipt_that_we_write_fits_its_schema(ending: Any, changes: dict[str, Any]) -> None:
    receipt = json.loads(receipt_body(row(ending.outcome, ending.reason, **changes)))
    check(RECEIPT, receipt)
    assert set(receipt) | {"topic", "detail", "repeat"} == set(SCHEMAS["receipt.json"]["properties"])
    differs = json.loads(receipt_body(row(ending.outcome, ending.reason, **changes), differs=True))
    check(RECEIPT, differs)
    assert differs == receipt | {"repeat": "differs"}


def test_a_receipt_that_contradicts_itself_does_not_fit() -> None:
    receipt = {**sample("receipt.json"), "reason": "no_session"}
    assert not RECEIPT.is_valid(receipt)


def test_the_reasons_of_dead_letters_are_those_that_bury() -> None:
    buried = {e.reason.value for e in ENDINGS if e.outcome is Outcome.REJECTED}
    buried.add(Reason.QUEUE_EXPIRATION.value)
    assert set(SCHEMAS["dead-letter-headers.json"]["properties"]["x-push-reason"]["enum"]) == buried


def test_a_dead_letter_of_a_request_may_be_published_again() -> None:
    body = encoded(sample("push-request.json"))
    (only,) = decoded(body, headers=sample("dead-letter-headers.json"))
    assert isinstance(only, PushRequest)
    assert only.id == sample("dead-letter-headers.json")["x-push-id"]


# --- frames ----------------------------------------------------------------------------------------------

PUBLISH_CODES = sorted({code for _, code, _ in ENDS.values()} | {"forbidden", "busy"})
OURS: dict[str, list[Callable[[], Any]]] = {
    "welcome": [
        lambda: welcome_frame("s1", "u1", complete=True),
        lambda: welcome_frame("s1", "u1", complete=False),
        lambda: welcome_frame("s1", "u1", True, "b1.s1.secret"),
    ],
    "push": [
        lambda: push_frame(PushRequest("p1", ToUser("u1"), b'{"a":1}')),
        lambda: push_frame(PushRequest("p1", ToUser("u1"), b"text", encoding=Encoding.TEXT)),
        lambda: push_frame(PushRequest("p1", ToUser("u1"), b"\xff", encoding=Encoding.BYTES)),
    ],
    "heartbeat": [lambda: HEARTBEAT],
    "ping": [lambda: ping_frame(b"\x00\xff12")],
    "withdraw": [lambda: withdraw_frame('p"1')],
    "error": [
        lambda: error_frame("forbidden", "not here", 7),
        lambda: error_frame("bad_frame", "not a frame"),
        lambda: error_frame("refused", "The token was refused: expired."),
        *(lambda code=code: error_frame(code, "not published") for code in PUBLISH_CODES),
    ],
    "ok": [lambda: ok_frame("r"), ok_frame],
    "bye": [
        lambda reason=reason: bye_frame(reason, reason.retry_after)  # type: ignore[misc]
        for reason in CloseReason
        if reason.code != 1006
    ],
}


@pytest.mark.parametrize("kind", OURS)
def test_every_frame_that_we_write_fits_its_schema(kind: str) -> None:
    for make in OURS[kind]:
        check(validator(f"frame-{kind}.json"), json.loads(make().payload))


def test_there_is_a_schema_for_each_frame_and_no_other() -> None:
    there = {
        name.removeprefix("frame-").removesuffix(".json") for name in SCHEMAS if name.startswith("frame-")
    }
    assert there == {*OURS, "ack", "auth", "refresh", "publish", "subscribe", "unsubscribe"}


def test_the_token_of_an_auth_frame_is_read_if_and_only_if_the_schema_says_so() -> None:
    (example,) = sample("frame-auth.json", slice(None))  # type: ignore[arg-type]
    wrong = [
        {"type": "auth"},
        {"token": "a"},
        {"type": "auth", "token": 7},
        {"type": "ack", "token": "a"},
        [],
        "auth",
    ]
    for frame in (example, {**example, "more": [1]}, *wrong):
        assert (token_of(encoded(frame)) is not None) == validator("frame-auth.json").is_valid(frame)
    assert token_of(encoded(example).decode()) == example["token"]
    for text in ("", "{", "[" * 100_000, b"\xff"):
        assert token_of(text) is None


def test_every_ack_of_the_schema_is_understood() -> None:
    for example in sample("frame-ack.json", slice(None)):  # type: ignore[arg-type]
        tenant = (example["tenant"] or "") if "tenant" in example else None
        ack = AckFrame(example["id"], tenant, example.get("ref"))
        assert parse_client(encoded(example)) == ack


@settings(max_examples=500, deadline=None, database=None)
@given(DICE)
def test_a_frame_is_an_ack_if_and_only_if_the_schema_says_so(dice: Dice) -> None:
    frame = {"type": dice.pick(("ack", "ack", "ack", "push", 1)), "id": dice.pick((dice.junk(), "p1", "p1"))}
    for name in ("tenant", "ref"):
        if dice.pick((True, False)):
            frame[name] = dice.pick((dice.junk(), "t1", None, 2**53 - 1, -(2**53)))
    note(repr(frame))
    understood = isinstance(parse_client(encoded(frame)), AckFrame)
    expected = validator("frame-ack.json").is_valid(frame) and not beyond_a_schema(frame)
    assert understood == expected


def test_a_topic_is_read_if_and_only_if_the_schema_says_so() -> None:
    names = [
        "t",
        "a.b",
        "a..b",
        ".a",
        "a.",
        "*",
        "a.#",
        "a{b",
        "x" * 128,
        "x" * 129,
        "",
        "a\n",
        "ü.ß",
        7,
        None,
    ]
    for word, kind in (("subscribe", SubscribeFrame), ("unsubscribe", UnsubscribeFrame)):
        for name in names:
            frame = {"type": word, "topic": name}
            valid = validator(f"frame-{word}.json").is_valid(frame)
            assert isinstance(parse_client(encoded(frame)), kind) == valid, name


def test_every_publish_frame_of_the_schema_is_understood() -> None:
    for example in sample("frame-publish.json", slice(None)):  # type: ignore[arg-type]
        frame = parse_client(encoded(example))
        assert isinstance(frame, PublishFrame)
        assert (frame.event, frame.topic, frame.ref) == (
            example["event"],
            example.get("topic"),
            example.get("ref"),
        )
        assert json.loads(frame.data) == example.get("data")


@settings(max_examples=1000, deadline=None, database=None)
@given(DICE)
def test_a_frame_is_a_publish_if_and_only_if_the_schema_says_so(dice: Dice) -> None:
    names = ("chat.said", "a", "a..b", ".a", "a.", "a.*", "#", "{user}", "a\n", "ü.ä", "x" * 128, "x" * 129)
    frame: dict[str, Any] = {"type": "publish", "data": dice.junk()}
    for name in ("event", "topic", "ref"):
        if dice.pick((True, True, False)):
            frame[name] = dice.pick((dice.junk(), None, 2**53 - 1, *names))
    note(repr(frame))
    understood = isinstance(parse_client(encoded(frame)), PublishFrame)
    # The event is a routing key, and a schema does not count bytes.
    short = len(str(frame.get("event")).encode("utf-8", "surrogatepass")) <= KEY_BYTES_MAX
    expected = validator("frame-publish.json").is_valid(frame) and not beyond_a_schema(frame) and short
    assert understood == expected


def test_a_refresh_of_a_client_fits_its_schema_and_so_does_that_of_the_bridge() -> None:
    asks, brings = sample("frame-refresh.json", slice(None))  # type: ignore[arg-type]
    assert json.loads(REFRESH.payload) == asks
    assert parse_client(encoded(brings)) == RefreshFrame(brings["token"], brings["ref"])


def test_close_codes_are_those_of_the_schema() -> None:
    schema = SCHEMAS["frame-bye.json"]
    # 1006 is what a peer makes of a connection that broke; it is never sent (RFC 6455 7.4.1).
    sent = [reason for reason in CloseReason if reason.code != 1006]
    assert schema["properties"]["code"]["enum"] == list(dict.fromkeys(reason.code for reason in sent))
    assert schema["properties"]["reason"]["enum"] == [reason.word for reason in sent]
    pairs = [(c["properties"]["code"]["const"], c["properties"]["reason"]["const"]) for c in schema["oneOf"]]
    assert pairs == [(reason.code, reason.word) for reason in sent]


# --- control ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", sample("control-recall.json", slice(None)))  # type: ignore[arg-type]
def test_each_example_of_a_recall_is_understood(example: dict[str, str]) -> None:
    assert decode_control(encoded(example)) == Recall(**{k: v for k, v in example.items() if k != "type"})


@pytest.mark.parametrize("example", sample("control-revoke.json", slice(None)))  # type: ignore[arg-type]
def test_each_example_of_a_revocation_is_understood(example: dict[str, Any]) -> None:
    asked = {"token_id" if name == "jti" else name: value for name, value in example.items()}
    assert decode_control(encoded(example)) == Revocation(**{k: v for k, v in asked.items() if k != "type"})


@settings(max_examples=1000, deadline=None, database=None)
@given(DICE)
def test_a_control_message_is_understood_if_and_only_if_the_schema_says_so(dice: Dice) -> None:
    message = dice.control()
    note(repr(message))
    understood = decode_control(encoded(message))
    within = not beyond_a_schema(message)
    assert isinstance(understood, Recall) == (validator("control-recall.json").is_valid(message) and within)
    assert isinstance(understood, Revocation) == (
        validator("control-revoke.json").is_valid(message) and within
    )


@pytest.mark.parametrize(
    "reply",
    [
        control_reply("recall", "n1", 2, 0.25, 1),
        control_reply("recall", "n1", 0, 0, 0),
        control_error("n1", "type: expected a string, got null"),
        revoke_reply("n1", RevocationAnswer(2, ("n1",), ("n2",)), 41.5),
        revoke_reply("n1", RevocationAnswer(0, (), ()), 0.0),
    ],
)
def test_every_reply_to_a_control_message_fits_its_schema(reply: bytes) -> None:
    check(validator("control-reply.json"), json.loads(reply))


# --- AsyncAPI --------------------------------------------------------------------------------------------


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolve(reference: str) -> Any:
    target, _, pointer = reference.partition("#")
    if target:
        assert (FOLDER / target).is_file(), reference
        return SCHEMAS[Path(target).name]
    found: Any = ASYNCAPI
    for step in pointer.strip("/").split("/"):
        assert step in found, reference
        found = found[step]
    return found


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    for reference in references(ASYNCAPI):
        resolve(reference)


def test_every_schema_is_part_of_the_asyncapi_document() -> None:
    used = {Path(r).name for r in references(ASYNCAPI) if not r.startswith("#")}
    assert used == SCHEMAS.keys() - {"id.json", "topic.json"}


def test_the_asyncapi_document_has_the_shape_of_version_3() -> None:
    assert ASYNCAPI["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(ASYNCAPI["info"])
    assert set(ASYNCAPI) <= {
        "asyncapi",
        "id",
        "info",
        "servers",
        "defaultContentType",
        "channels",
        "operations",
        "components",
    }
    for server in ASYNCAPI["servers"].values():
        assert {"host", "protocol"} <= set(server)
    for name, channel in ASYNCAPI["channels"].items():
        assert "address" in channel
        parameters = set(channel.get("parameters", ()))
        assert parameters == {
            p for p in ("outcome", "event", "type", "routingKey") if f"{{{p}}}" in (channel["address"] or "")
        }
        assert channel["messages"]
        for message in channel["messages"].values():
            assert "payload" in resolve(message["$ref"]), name
    for operation in ASYNCAPI["operations"].values():
        assert operation["action"] in ("send", "receive")
        channel = operation["channel"]["$ref"]
        for message in operation["messages"]:
            # A message of an operation is one of its channel's (AsyncAPI 3.0, Operation Object).
            assert message["$ref"].startswith(f"{channel}/messages/")
        if "reply" in operation:
            reply = operation["reply"]
            assert resolve(reply["channel"]["$ref"])["address"] is None
            assert reply["address"]["location"].startswith("$message.")


def test_the_asyncapi_document_names_what_outsiders_rely_on() -> None:
    channels = ASYNCAPI["channels"]
    assert channels["push"]["bindings"]["amqp"]["exchange"]["name"] == "push"
    assert channels["outcomes"]["bindings"]["amqp"]["exchange"]["name"] == "push.outcomes"
    assert channels["dead"]["bindings"]["amqp"]["queue"]["name"] == "push.dead"
    control = channels["control"]["bindings"]["amqp"]["exchange"]
    assert (control["name"], control["type"]) == ("push.control", "fanout")
    assert channels["ws"]["address"] == "/ws"
    assert channels["ws"]["bindings"]["ws"]["query"]["properties"]["last"]["maxLength"] == ID_MAX
    assert channels["outcomes"]["parameters"]["outcome"]["enum"] == [o.value for o in Outcome]
    frames = {name for name in SCHEMAS if name.startswith("frame-")}
    assert {f"frame-{name}.json" for name in channels["ws"]["messages"]} == frames
