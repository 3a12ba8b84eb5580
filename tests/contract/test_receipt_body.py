"""The JSON of a receipt says what the row says, whatever texts and times the row has."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.contract.receipts import receipt_bodies, receipt_body
from bridge.core.model.outcomes import ENDINGS
from bridge.core.model.pushes import NO_USER
from bridge.core.model.rows import RowKey, columns_of
from tests.support.rows import row

texts = st.text(max_size=20)
times = st.none() | st.floats(1e9, 4e9)


@given(
    texts.filter(bool),
    texts,
    texts,
    texts,
    texts,
    texts,
    texts,
    st.tuples(times, times, times),
    st.sampled_from(ENDINGS),
)
def test_a_receipt_has_every_field_of_the_row(
    push_id: str,
    user: str,
    tenant: str,
    event: str,
    topic: str,
    node: str,
    detail: str,
    at: tuple[float | None, float | None, float | None],
    ending: tuple[object, ...],
) -> None:
    made = msgspec.structs.replace(
        row(),
        key=RowKey(tenant, push_id, user),
        event=event,
        topic=topic,
        node=node,
        detail=detail,
        outcome=ending[0],
        reason=ending[1],
        written_at=at[0],
        proven_at=at[1],
        finished_at=at[2],
    )
    said = json.loads(receipt_body(made, differs=True))
    assert said == {
        "push_id": push_id,
        "user_id": None if user == NO_USER else user,
        "outcome": ending[0],
        "reason": ending[1],
        "final": ending[2],
        "event": event or None,
        "tenant": tenant or None,
        "published_at": stamp(made.published_at),
        "taken_at": stamp(made.taken_at),
        "written_at": stamp(at[0]),
        "proven_at": stamp(at[1]),
        "finished_at": stamp(at[2]),
        "sessions": made.sessions,
        "attempts": made.attempts,
        "node": node,
        **({"topic": topic} if topic else {}),
        **({"detail": detail} if detail else {}),
        "repeat": "differs",
    }
    assert "repeat" not in json.loads(receipt_body(made))


few = st.sampled_from(["", "a", 'b"', "\n", "\u2028"])


@given(
    st.lists(st.tuples(few, few, few, few, st.sampled_from([None, 1e9, 2e9 + 0.5])), min_size=1, max_size=5)
)
def test_the_receipts_of_a_batch_are_those_of_each_row(
    given: list[tuple[str, str, str, str, float | None]],
) -> None:
    rows = [
        msgspec.structs.replace(
            row(), key=RowKey(tenant, push_id, user), detail=detail, written_at=at, finished_at=at
        )
        for tenant, push_id, user, detail, at in given
    ]
    assert receipt_bodies(columns_of(rows)) == [receipt_body(one) for one in rows]
    assert [json.loads(body)["push_id"] for body in receipt_bodies(columns_of(rows))] == [
        one.key.push_id for one in rows
    ]


def stamp(seconds: float | None) -> str | None:
    """RFC 3339 to the microsecond, rounded as the row's literal is."""
    if seconds is None:
        return None
    micros = round(seconds * 1_000_000)
    assert abs(Fraction(micros, 1_000_000) - Fraction(seconds)) < Fraction(1, 1_000_000)
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    return at.isoformat().replace("+00:00", "Z")
