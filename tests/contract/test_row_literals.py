"""The array literals for Postgres: what a batch has in common is written once, and every value is at its place."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.adapters.postgres.rows import (
    booleans,
    in_lock_order,
    mostly_alike,
    numbers,
    record_params,
    texts,
    times,
)
from bridge.core.model.outcomes import Outcome, Proof, Reason
from bridge.core.model.rows import Row, RowKey, columns_of
from tests.support.rows import row

few = st.sampled_from


@given(st.lists(few(["", "a", 'b"', "NULL", "\\"]), min_size=1, max_size=5))
def test_a_column_in_which_all_rows_have_the_same_is_written_like_any_other(values: list[str]) -> None:
    assert mostly_alike(values, texts) == texts(values)
    sizes = [len(value) for value in values]
    assert mostly_alike(sizes, numbers) == numbers(sizes)
    empty = [not value for value in values]
    assert mostly_alike(empty, booleans) == booleans(empty)


@given(st.lists(few([None, 1.0, 1.5, 2.0000001, -3.25]), min_size=1, max_size=8))
def test_each_time_is_at_its_place_in_whole_microseconds(values: list[float | None]) -> None:
    written = ["NULL" if value is None else f"{round(value * 1e6)}e-6" for value in values]
    assert times(values) == f"{{{','.join(written)}}}"


def test_what_is_no_time_is_left_to_the_database() -> None:
    assert times([1.0, math.nan, math.inf, 1.0]) == "{1000000e-6,nan,inf,1000000e-6}"


@given(st.permutations([(t, p, u) for t in "ab" for p in "ab" for u in "ab"]))
def test_rows_are_locked_in_the_order_of_the_primary_key(keys: list[tuple[str, str, str]]) -> None:
    rows = [msgspec.structs.replace(row(), key=RowKey(*key)) for key in keys]
    locked = [rows[place].key for place in in_lock_order(rows)]
    assert locked == sorted(locked, key=lambda key: (key.push_id, key.user, key.tenant))
    assert len(set(locked)) == len(keys)


def _some(number: int) -> Row:
    return msgspec.structs.replace(
        row(),
        key=RowKey("", f"p{number}", f"u{number}"),
        outcome=(Outcome.WRITTEN, Outcome.PENDING)[number % 2],
        reason=(Reason.HANDED_OVER, Reason.AWAITING_PROOF)[number % 2],
        confirm=(Proof.WRITTEN, Proof.ACKED)[number % 2],
        published_at=float(number),
        sessions=number,
        event=f"e{number}",
        detail=f"d{number}" if number == 3 else "",
        fingerprint=number,
        data_bytes=number or None,
    )


@pytest.mark.parametrize("numbers_of_rows", [[1], [2, 2], [1, 3], [0, 1, 2, 3]])
def test_the_literals_of_a_batch_are_those_of_its_rows_one_after_the_other(
    numbers_of_rows: list[int],
) -> None:
    rows = [_some(number) for number in numbers_of_rows]
    alone = [record_params([one]) for one in rows]
    for column, together in enumerate(record_params(rows)):
        each = ["NULL" if params[column] is None else str(params[column])[1:-1] for params in alone]
        if together is None:
            assert set(each) == {"NULL"}
        else:
            # Some columns say nothing with an empty text, where another row says something.
            assert together.replace('""', "NULL") == "{" + ",".join(each).replace('""', "NULL") + "}"


def test_columns_have_the_values_of_all_rows() -> None:
    columns = columns_of([_some(1), _some(2)])
    assert columns.event == ("e1", "e2")
    assert columns.key == (("", "p1", "u1"), ("", "p2", "u2"))
