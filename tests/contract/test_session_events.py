"""What is told of sessions is what schemas/session-event.json says."""

from __future__ import annotations

import json

import pytest

from bridge.core.contract.session_events import session_event, session_event_word
from bridge.core.model.ledger import NO_DEVICE, Closed, Device, Opened
from tests.support.schemas import validator

OPENED = Opened("s1", "u1", "n1", 1.000001, "bridge.bare", NO_DEVICE, "t1", None, 4e9)


@pytest.mark.parametrize(
    "event",
    [
        OPENED,
        OPENED._replace(device=Device("2001:db8::1", 'an "agent"'), mode="bridge.v1.json"),
        Closed("s1", "u1", "n1", 1.0, 2.5, 4403, "revoked"),
        Closed("s1", "u1", "n1", 1.0, 2.5, None, "node_died"),
    ],
)
def test_every_event_fits_the_schema(event: Opened | Closed) -> None:
    said = json.loads(session_event(event))
    validator("session-event.json").validate(said)
    assert said["type"] == session_event_word(event)


def test_what_is_not_known_is_null_and_times_are_exact() -> None:
    said = json.loads(session_event(OPENED))
    assert (said["address"], said["user_agent"]) == (None, None)
    assert said["opened_at"] == "1970-01-01T00:00:01.000001Z"
