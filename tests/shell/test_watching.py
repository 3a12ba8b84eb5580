"""The filter of outcomes: one for the stream of the ops port, the console and `bridge tail`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.adapters.amqp.announcing import outcome_key
from bridge.cli.parsers import build_parser
from bridge.core.contract.receipts import receipt_body
from bridge.core.model.outcomes import ENDINGS, Outcome, Reason
from bridge.core.model.rows import RowKey
from bridge.operator.watching import (
    EVERYTHING,
    Filter,
    WrongFilter,
    filter_of,
    like,
    told_by_receipt,
    told_by_row,
)
from tests.support.rows import row

CONSOLE = Path(__file__).parent.parent.parent / "bridge" / "web" / "console"
ROW = msgspec.structs.replace(
    row(),
    key=RowKey("shop", "p1", "u1"),
    event="order.paid",
    topic="room.7",
    outcome=Outcome.OFFLINE,
    reason=Reason.NO_SESSION,
)
FITTING = {
    "user": "u1",
    "push_id": "p1",
    "event": "order.*",
    "topic": "#.7",
    "tenant": "shop",
    "outcome": "offline",
    "reason": "no_session",
    "party": "peer",
}
OTHERS = {
    "user": "u2",
    "push_id": "p2",
    "event": "order",
    "topic": "room",
    "tenant": "bank",
    "outcome": "dropped",
    "reason": "nobody",
    "party": "bridge",
}

names = st.lists(st.sampled_from(["a", "b", "ab", "", "*", "#"]), min_size=1, max_size=7).map(".".join)


def test_each_field_chooses_and_all_that_are_given_must_fit() -> None:
    told = told_by_row(ROW)
    assert set(FITTING) == set(OTHERS) == set(Filter._fields)
    assert EVERYTHING.fits(told)
    assert filter_of(FITTING).fits(told)
    for field in Filter._fields:
        assert filter_of({field: FITTING[field]}).fits(told), field
        assert not filter_of({field: OTHERS[field]}).fits(told), field
        assert not filter_of({**FITTING, field: OTHERS[field]}).fits(told), field


@given(
    st.sampled_from(ENDINGS),
    st.tuples(st.text(max_size=5), st.text(min_size=1, max_size=5), st.text(max_size=5)),
    st.tuples(st.text(max_size=5), st.text(max_size=5)),
)
def test_a_receipt_says_what_its_row_says(
    ending: tuple[Outcome, Reason, bool, str], key: tuple[str, str, str], said: tuple[str, str]
) -> None:
    made = msgspec.structs.replace(
        ROW, outcome=ending[0], reason=ending[1], key=RowKey(*key), event=said[0], topic=said[1]
    )
    assert told_by_receipt(json.loads(receipt_body(made))) == told_by_row(made)


def test_what_went_to_no_topic_fits_no_topic() -> None:
    told = told_by_row(msgspec.structs.replace(ROW, topic=""))
    assert not Filter(topic="#").fits(told)
    assert not Filter(topic="*").fits(told)
    assert Filter(event="#").fits(told_by_row(msgspec.structs.replace(ROW, event="")))


def test_a_reason_of_a_newer_bridge_has_no_party_that_is_known_here() -> None:
    told = told_by_row(ROW)._replace(reason="struck_by_lightning")
    assert EVERYTHING.fits(told)
    assert not Filter(party="peer").fits(told)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("order.paid", "order.paid", True),
        ("order.paid", "order.paid.now", False),
        ("order.*", "order.paid", True),
        ("order.*", "order", False),
        ("order.*", "order.paid.now", False),
        ("order.#", "order", True),
        ("order.#", "order.paid.now", True),
        ("#.now", "order.paid.now", True),
        ("#.paid.#.now", "order.paid.now", True),
        ("*.#.*", "order", False),
        ("#", "", True),
        ("order*", "orders", False),
    ],
)
def test_a_pattern_fits_as_one_of_a_topic_exchange(pattern: str, name: str, fits: bool) -> None:
    assert like(pattern, name) is fits


@given(names, names)
def test_patterns_fit_as_their_definition_says(pattern: str, name: str) -> None:
    assert like(pattern, name) is defined(pattern.split("."), name.split("."))


def defined(pattern: list[str], words: list[str]) -> bool:
    """Whether the words fit, from the definition."""
    if not pattern:
        return not words
    first, *rest = pattern
    if first == "#":
        return any(defined(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and first in ("*", words[0]) and defined(rest, words[1:])


def test_a_long_pattern_takes_no_long_time() -> None:
    assert not like(".".join(["#", "a"] * 64), ".".join(["a"] * 63 + ["b"] * 65))


@given(st.sampled_from(Outcome), st.booleans(), st.text("ab.é", min_size=1, max_size=256))
def test_what_is_wanted_is_bound(outcome: Outcome, named: bool, event: str) -> None:
    wanted = Filter(outcome=outcome.value if named else None, event=event)
    key = outcome_key(outcome, event).decode(errors="replace")
    assert len(wanted.binding_key.encode()) <= 255
    assert like(wanted.binding_key, key)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("outcome", "lost"),
        ("reason", ""),
        ("party", "cat"),
        ("user", ""),
        ("event", "a\nb"),
        ("tenant", "x" * 999),
    ],
)
def test_what_no_outcome_can_have_is_an_error(field: str, value: str) -> None:
    with pytest.raises(WrongFilter, match=f"^{field}: .* expected[.]$"):
        filter_of({field: value})


def test_the_command_and_the_console_have_an_option_for_each_field() -> None:
    words = [word for field in Filter._fields for word in (f"--{field.replace('_', '-')}", FITTING[field])]
    given = build_parser()[0].parse_args(["tail", *words])
    assert {field: getattr(given, field) for field in Filter._fields} == FITTING
    live = (CONSOLE / "live.js").read_text()
    (fields,) = re.findall(r"^  const by = \{(.*?)\};$", live, re.MULTILINE | re.DOTALL)
    assert re.findall(r"(\w+): (?:text|pattern|choice)\(", fields) == list(Filter._fields)


def test_the_command_says_what_an_option_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser()[0].parse_args(["tail", "--party", "cat"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert re.search(r"argument --party: one of publisher, bridge, .* expected, not 'cat'", said)
