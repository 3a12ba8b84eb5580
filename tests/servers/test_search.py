"""Search in the delivery log: pages, bounds, and what has no index."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from bridge.core.errors import StoreUnavailable
from bridge.operator import search as searching
from bridge.operator.search import FIELDS, FoundPush, place_of, search

BEGAN = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)


def log(dsn: str, *rows: tuple[str, str, str, int]) -> None:
    """Write rows: push, user, event, and the second in which it was taken."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        for push, user, event, second in rows:
            conn.execute(
                """
                insert into delivery_log (day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions,
                    attempts, published_at, taken_at, finished_at, node, boot, event, app_id, detail, traceparent)
                select day, '', %s, %s, 'offline', 'no_session', true, 2, 0, 0, %s, %s, %s, 'n', 'b', %s, '', '', ''
                from log_day
                """,
                (push, user, *[BEGAN + timedelta(seconds=second)] * 3, event),
            )


async def all_pages(dsn: str, field: str, text: str) -> AsyncIterator[list[FoundPush]]:
    """Page after page, until there is no more."""
    after = None
    while True:
        page = await search(dsn, field, text, after)
        yield list(page.pushes)
        if page.next is None:
            return
        after = place_of(page.next)


@pytest.mark.parametrize(
    ("field", "text"), [("push_id", "to-all"), ("event", "e"), ("any", "e"), ("any", "")]
)
async def test_pages_have_each_row_once_also_where_all_were_taken_at_the_same_moment(
    database: str, monkeypatch: pytest.MonkeyPatch, field: str, text: str
) -> None:
    monkeypatch.setattr(searching, "PAGE", 7)
    log(database, *(("to-all", f"u{n:02}", "e", 0) for n in range(30)))
    pages = [page async for page in all_pages(database, field, text)]
    users = [push.user for page in pages for push in page]
    assert [len(page) for page in pages] == [7, 7, 7, 7, 2]
    assert users == sorted((f"u{n:02}" for n in range(30)), reverse=True)


async def test_what_has_no_index_is_looked_for_a_stretch_at_a_time(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "ROWS_LOOKED_AT", 10)
    log(database, *((f"p{n:02}", "u", "rare" if n == 3 else "common", n) for n in range(25)))
    first = await search(database, "event", "rare")
    assert (first.pushes, first.looked_since) == ([], BEGAN + timedelta(seconds=15))
    assert first.next is not None
    second = await search(database, "event", "rare", place_of(first.next))
    assert (second.pushes, second.looked_since) == ([], BEGAN + timedelta(seconds=5))
    assert second.next is not None
    third = await search(database, "event", "rare", place_of(second.next))
    assert [push.push_id for push in third.pushes] == ["p03"]
    assert (third.next, third.looked_since) == (None, None)


async def test_what_has_an_index_is_found_however_many_are_newer(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "ROWS_LOOKED_AT", 3)
    log(database, *((f"p{n:02}", f"u{n:02}", "e", n) for n in range(10)))
    for field, text in (("push_id", "p00"), ("user", "u00"), ("any", "p00"), ("any", "u00")):
        found = await search(database, field, text)
        assert [push.push_id for push in found.pushes] == ["p00"], field


async def test_what_several_ways_find_is_told_once(database: str) -> None:
    log(database, ("same", "same", "same", 0))
    found = await search(database, "any", "same")
    assert [push.meaning for push in found.pushes] == [
        "the user had no session (or the session was not here)"
    ]


@pytest.mark.parametrize("field", FIELDS)
async def test_nothing_is_found_where_nothing_is(database: str, field: str) -> None:
    found = await search(database, field, "'; drop table delivery_log --")
    assert (found.pushes, found.next, found.looked_since) == ([], None, None)


async def test_a_database_that_is_away_is_told() -> None:
    with pytest.raises(StoreUnavailable):
        await search("postgresql://nobody@127.0.0.1:1/none", "any", "p1")
