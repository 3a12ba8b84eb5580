"""Each schema works by itself: one file, no other file and no network, as a stranger's validator loads it."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from bridge.core.contract.control import control_reply
from bridge.core.contract.frames import push_frame, welcome_frame
from bridge.core.contract.receipts import receipt_body
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import PushRequest, ToUser
from bridge.core.model.rows import Row, RowKey
from tests.support import bundled_schemas


def alone(name: str) -> Draft202012Validator:
    """A validator of this file and nothing else, with checks of formats."""
    schema = bundled_schemas.read(name)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


@pytest.mark.parametrize("name", bundled_schemas.names())
def test_each_schema_is_whole(name: str) -> None:
    """Where this fails, run `python -m tests.support.bundled_schemas`."""
    assert (bundled_schemas.FOLDER / name).read_text(encoding="utf-8") == bundled_schemas.text(
        bundled_schemas.whole(name)
    )


@pytest.mark.parametrize("name", bundled_schemas.names())
def test_each_schema_has_an_id_and_refers_to_nothing_outside(name: str) -> None:
    schema = bundled_schemas.read(name)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"{bundled_schemas.BASE}{name}"
    references = re.findall(r'"\$ref": "([^"]*)"', json.dumps(schema))
    assert {reference.removeprefix("#/$defs/") for reference in references} <= set(schema.get("$defs", ()))
    # Validators that know no formats refuse a schema that has one.
    assert '"format"' not in json.dumps(schema)


@pytest.mark.parametrize("name", bundled_schemas.names())
def test_the_examples_of_each_schema_fit_it(name: str) -> None:
    validator = alone(name)
    for example in bundled_schemas.read(name)["examples"]:
        validator.validate(example)


ROW = Row(RowKey("", "p1", "u1"), Outcome.RECEIVED, Reason.PONG, "n1", "b1", 1.8e9, 1.8e9, finished_at=1.8e9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("push-request.json", {"id": "p1", "to": {"user": "u1"}, "data": None, "ttl": 60}),
        ("push-batch.json", [{"to": {"users": ["a", "b"], "except": ["s"]}, "data": [1]}]),
        ("push-headers.json", {"x-push-all": "True", "x-push-ttl": "0.5"}),
        (
            "push-cloudevent.json",
            {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "pushall": True},
        ),
        ("receipt.json", json.loads(receipt_body(ROW))),
        ("frame-push.json", json.loads(push_frame(PushRequest("p1", ToUser("u1"), b'{"a":1}')).payload)),
        ("frame-welcome.json", json.loads(welcome_frame("s1", "u1", complete=True).payload)),
        ("control-recall.json", {"type": "recall", "push_id": "p1"}),
        ("control-reply.json", json.loads(control_reply("recall", "n1", 2, 0.25, 1))),
    ],
)
def test_what_is_sent_fits(name: str, value: Any) -> None:
    alone(name).validate(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("push-request.json", {"to": {"user": ""}, "data": 1}),
        ("push-request.json", {"to": {"user": "a\u0000"}, "data": 1}),
        ("push-request.json", {"to": {"user": "a", "all": True}, "data": 1}),
        ("push-batch.json", [{"to": {"user": 7}, "data": 1}]),
        ("push-batch.json", []),
        ("push-headers.json", {"x-push-usr": "u"}),
        ("push-cloudevent.json", {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}),
        ("push-headers.json", {"x-push-user": "u", "x-push-published-ms": 1_700_000_000}),
        (
            "receipt.json",
            json.loads(receipt_body(msgspec.structs.replace(ROW, outcome=Outcome.OFFLINE))),
        ),
        ("frame-push.json", {"type": "push", "id": "", "event": "e", "data": 1}),
        ("frame-ack.json", {"type": "ack", "id": 7}),
        ("control-recall.json", {"type": "recall"}),
    ],
)
def test_what_is_wrong_does_not_fit(name: str, value: Any) -> None:
    assert not alone(name).is_valid(value)
