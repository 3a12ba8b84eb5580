"""The demo: it runs and agrees, it notices when log and clients disagree, and how it tells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bridge.cli import demo
from bridge.cli.demo_check import Line, Person, Sample, Seen, disagreements, requests_of, unfinished
from bridge.config import CommonSettings
from bridge.core.errors import SettingsError

ANN = Person("ann", "laptop", "bridge.v1.json")
BARE = Person("ann", "phone", None)
BEN = Person("ben", "laptop", "bridge.v1.json")


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A working directory without files, and the log as it was."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield tmp_path
    root.handlers[:] = handlers
    root.setLevel(level)


# --- the whole story -------------------------------------------------------------------------------------


def test_the_demo_tells_the_whole_story_and_agrees(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(CommonSettings(amqp_url=vhost, postgres_dsn=database)) == 0
    shown = capsys.readouterr().out
    assert "the broker has confirmed each" in shown
    for outcome in ("acked", "received", "written", "offline", "superseded", "rejected"):
        assert f" {outcome} " in shown
    for client in (
        "alice (laptop, bridge.v1.json)",
        "alice (phone, bare mode)",
        "bob (laptop",
        "carol (phone",
        "dave (phone",
    ):
        assert client in shown
    assert "The clients and the delivery log agree: 21 frames received, 25 rows." in shown


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        (
            "update delivery_log set outcome = 'received', reason = 'pong' where user_id = 'dave'",
            "dave (phone) did not receive it",
        ),
        ("delete from delivery_log where outcome = 'acked'", "has no end in the log"),
        (
            "update delivery_log set outcome = 'offline', reason = 'no_session' where user_id = 'bob'",
            "and the log says offline",
        ),
    ],
)
def test_the_demo_fails_where_the_log_lies(
    vhost: str, database: str, lie: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def tamper(dsn: str) -> None:
        with psycopg.connect(dsn) as conn:
            assert conn.execute(lie).rowcount > 0

    settings = CommonSettings(amqp_url=vhost, postgres_dsn=database)
    assert demo.main(settings, before_reading=tamper) == 1
    shown = capsys.readouterr().out
    assert "do NOT agree" in shown
    assert found in shown


def test_the_demo_takes_another_file(vhost: str, database: str, place: Path, capsys: Any) -> None:
    (place / "mine.jsonl").write_text('{"to": {"user": "bob"}, "data": "only this"}\n\n')
    settings = CommonSettings(amqp_url=vhost, postgres_dsn=database)
    assert demo.main(settings, requests=str(place / "mine.jsonl")) == 0
    assert "agree: 1 frames received, 1 rows." in capsys.readouterr().out


def test_a_file_without_requests_is_refused(place: Path) -> None:
    (place / "empty").write_text("\n \n")
    with pytest.raises(SettingsError, match="holds no push requests"):
        demo.read_messages(place / "empty", "x")


# --- what the check reads in a message -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (b'{"to": {"user": "ann"}, "data": 1}', [("m", {"ann"})]),
        (b'{"id": "own", "to": {"users": ["ann", "ben", 7]}}', [("own", {"ann", "ben"})]),
        (b'[{"to": {"all": true}}, {"id": "x"}, 5]', [("m/0", set()), ("x", set()), ("m/2", set())]),
        (b"[]", [("m", set())]),
        (b"no json", [("m", set())]),
        (b'{"to": 5}', [("m", set())]),
    ],
)
def test_requests_are_read_as_they_look(body: bytes, read: list[tuple[str, set[str]]]) -> None:
    assert [(r.id, set(r.users)) for r in requests_of(Sample("m", body))] == read


def row(push_id: str, user: str | None, outcome: str = "received", *, final: bool = True) -> Line:
    return Line(push_id, user, outcome, "", final, None, 1.0)


def test_a_request_has_ended_when_each_user_has_a_final_row_or_it_was_rejected() -> None:
    both = requests_of(Sample("m", b'{"to": {"users": ["ann", "ben"]}, "data": 1}'))
    assert unfinished(both, []) == ["m"]
    assert unfinished(both, [row("m", "ann")]) == ["m"]
    assert unfinished(both, [row("m", "ann"), row("m", "ben", "pending", final=False)]) == ["m"]
    assert unfinished(both, [row("m", "ann"), row("m", "ben")]) == []
    assert unfinished(both, [row("m", None, "rejected")]) == []


# --- what the check finds --------------------------------------------------------------------------------

MESSAGES = [
    Sample("1", b'{"to": {"user": "ann"}, "data": "one"}'),
    Sample("2", b'{"to": {"user": "ann"}, "data": "two"}'),
    Sample("3", b'{"to": {"user": "ben"}, "data": "one"}'),
    Sample("4", b'{"to": {"user": "cat"}, "data": "four"}'),
    Sample("5", b"wrong"),
]
LOG = [
    row("1", "ann", "acked"),
    row("2", "ann"),
    row("3", "ben", "written"),
    row("4", "cat", "offline"),
    row("5", None, "rejected"),
]
SEEN = [
    Seen(ANN, (("1", "one"), ("2", "two")), frozenset("1")),
    Seen(BARE, (("", "one"), ("", "two")), frozenset()),
    Seen(BEN, (("3", "one"),), frozenset()),
]


def seen_by(person: Person, *frames: tuple[str, Any]) -> list[Seen]:
    return [Seen(person, frames, s.acked) if s.person == person else s for s in SEEN]


def logged(change: Callable[[Line], Line | None]) -> list[Line]:
    return [changed for line in LOG if (changed := change(line)) is not None]


def test_the_same_story_is_agreed() -> None:
    assert disagreements(MESSAGES, SEEN, LOG) == []


@pytest.mark.parametrize(
    ("seen", "log", "found"),
    [
        (SEEN, logged(lambda r: None if r.push_id == "4" else r), "4 has no end in the log"),
        (SEEN, [*LOG, row("6", "ann", "offline")], "6 was never published"),
        (SEEN, [*LOG, LOG[1]], "2 has 2 rows for ann"),
        (
            seen_by(ANN, ("1", "one")),
            LOG,
            "the log says received of 2, and ann (laptop) did not receive it",
        ),
        (seen_by(BARE, ("", "one")), LOG, "the log says received of 2, and ann (phone) did not receive it"),
        (
            seen_by(BEN, ("3", "one"), ("3", "one")),
            LOG,
            "ben (laptop) received 3 2 times",
        ),
        (
            seen_by(BEN, ("3", "one"), ("1", "one")),
            LOG,
            "ben (laptop) received 1, and the log has no row of it for ben",
        ),
        (
            seen_by(BARE, ("", "one"), ("", "two"), ("", "odd")),
            LOG,
            "ann (phone) received 'odd', which nobody published, and the log has no row of it for ann",
        ),
        (
            seen_by(ANN, ("2", "two"), ("1", "one")),
            LOG,
            "ann (laptop) received pushes in another order than they were published",
        ),
        (
            SEEN,
            logged(lambda r: r._replace(outcome="offline") if r.push_id == "3" else r),
            "ben (laptop) received 3, and the log says offline",
        ),
        (
            SEEN,
            logged(lambda r: r._replace(outcome="acked") if r.push_id == "2" else r),
            "the log says acked of 2, and no client of ann acknowledged it",
        ),
        (
            SEEN,
            logged(lambda r: r._replace(outcome="written") if r.push_id == "4" else r),
            "the log says written of 4, and cat was not connected",
        ),
    ],
)
def test_each_way_to_disagree_is_found(seen: list[Seen], log: list[Line], found: str) -> None:
    assert found in disagreements(MESSAGES, seen, log)


def test_what_goes_to_everyone_may_come_after_what_was_published_later_and_keeps_its_own_order() -> None:
    crowd = [Sample(f"all{n}", b'{"to": {"all": true}, "data": %d}' % n) for n in (1, 2)]
    log = [*LOG, *(row(f"all{n}", user) for n in (1, 2) for user in ("ann", "ben"))]

    def seen(*ann: tuple[str, Any]) -> list[Seen]:
        others = (("3", "one"), ("all1", 1), ("all2", 2))
        bare = (("", "one"), ("", 1), ("", "two"), ("", 2))
        frames = {ANN: ann, BARE: bare, BEN: others}
        return [Seen(s.person, frames[s.person], s.acked) for s in SEEN]

    late = (("1", "one"), ("2", "two"), ("all1", 1), ("all2", 2))
    assert disagreements([*crowd, *MESSAGES], seen(*late), log) == []
    assert disagreements([*crowd, *MESSAGES], seen(late[0], late[1], late[3], late[2]), log) == [
        "ann (laptop) received pushes in another order than they were published"
    ]


def test_a_bare_client_is_not_credited_with_the_same_data_for_somebody_else() -> None:
    earlier = Sample("0", b'{"to": {"user": "ben"}, "data": "one"}')
    messages, log = [earlier, *MESSAGES], [row("0", "ben", "offline"), *LOG]
    assert disagreements(messages, SEEN, log) == []


@pytest.mark.parametrize("outcome", ["unknown", "dropped"])
def test_an_outcome_that_claims_nothing_agrees_with_either(outcome: str) -> None:
    log = logged(lambda r: r._replace(outcome=outcome) if r.push_id == "3" else r)
    assert disagreements(MESSAGES, SEEN, log) == []
    assert disagreements(MESSAGES, seen_by(BEN), log) == []
