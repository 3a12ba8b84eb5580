"""The hub's registers: who is here, whose turn it is, whose token is over."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from bridge.core.contract.frames import HEARTBEAT_EVERY
from bridge.core.delivery.targets import resolver_of, sessions_of, why_nobody
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import PushRequest, Target, ToAll, ToSession, ToUser, ToUsers
from bridge.core.model.sessions import Claims, Mode
from bridge.core.sessions.hub import HEARTBEAT_LOOK, PING_EVERY, PLACES_A_SECOND, Hub, WheelTurn
from bridge.core.sessions.session import Session
from tests.support.house import session


def request(target: Target, excluded: tuple[str, ...] = ()) -> PushRequest:
    return PushRequest(id="p1", target=target, data=b"1", excluded=frozenset(excluded))


def addresses(hub: Hub, asked: PushRequest) -> list[tuple[str, list[str], Reason | None]]:
    """Each user, the ids of the sessions that it is for, and why there are none."""
    resolver = resolver_of(asked)
    found = []
    for user in resolver.users(hub, asked):
        ids = [s.id for s in sessions_of(hub, asked, resolver, user)]
        found.append((user, ids, None if ids else why_nobody(hub, asked, resolver, user)))
    return found


def hub_with(*names: tuple[str, str]) -> tuple[Hub, dict[str, Session]]:
    hub = Hub()
    made = {}
    for user, session_id in names:
        s, _ = session(user, session_id=session_id)
        hub.register(s, 0.0)
        made[session_id] = s
    return hub, made


def test_a_user_has_every_session_it_opened_and_none_that_closed() -> None:
    hub, s = hub_with(("u1", "a"), ("u1", "b"), ("u2", "c"))
    assert [x.id for x in hub.of_user("u1")] == ["a", "b"]
    hub.unregister(s["a"])
    hub.unregister(s["a"])
    assert [x.id for x in hub.of_user("u1")] == ["b"]
    hub.unregister(s["b"])
    assert (len(hub), hub.users, hub.of_user("u1")) == (1, 1, ())


def test_each_target_reaches_exactly_its_sessions() -> None:
    hub, s = hub_with(("u1", "a"), ("u1", "b"), ("u2", "c"))

    def reached(target: Target, *excluded: str) -> list[tuple[str, list[str], Reason | None]]:
        return addresses(hub, request(target, excluded))

    assert reached(ToUser("u1")) == [("u1", ["a", "b"], None)]
    assert reached(ToUser("u1"), "a") == [("u1", ["b"], None)]
    assert reached(ToUser("u1"), "a", "b") == [("u1", [], Reason.EXCLUDED)]
    assert reached(ToUser("u9")) == [("u9", [], Reason.NO_SESSION)]
    assert reached(ToUsers(("u2", "u9"))) == [("u2", ["c"], None), ("u9", [], Reason.NO_SESSION)]
    assert reached(ToSession("c")) == [("u2", ["c"], None)]
    assert reached(ToSession("c"), "c") == [("u2", [], Reason.EXCLUDED)]
    assert reached(ToSession("z")) == [("", [], Reason.NO_SESSION)]
    assert reached(ToAll()) == [("u1", ["a", "b"], None), ("u2", ["c"], None)]
    s["c"].drain()
    assert reached(ToUser("u2")) == [("u2", [], Reason.NO_SESSION)]


def test_everyone_is_nobody_when_nobody_is_here() -> None:
    assert addresses(Hub(), request(ToAll())) == [("", [], Reason.NOBODY)]


def opened_at_once(hub: Hub, count: int, now: float) -> list[Session]:
    made = [session(f"u{i}", session_id=f"s{i}", mode=Mode.ENVELOPE)[0] for i in range(count)]
    for s in made:
        hub.register(s, now)
        s.spoken_at = now
    return made


def turns(hub: Hub, since: float, seconds: int) -> Iterator[WheelTurn]:
    """What ticks ten times a second bring for so long, each of them a little late."""
    for n in range(1, seconds * PLACES_A_SECOND + 1):
        yield from hub.turns(since + (n + 0.3 * (n % 3)) / PLACES_A_SECOND)


def test_every_session_has_its_turn_on_the_wheel_once_in_a_round() -> None:
    hub = Hub()
    for i in range(100):
        s, _ = session(f"u{i}", session_id=f"s{i}")
        hub.register(s, 100.0 + i * 0.37)
    list(hub.turns(200.0))
    seen = [s.id for turn in turns(hub, 200.0, PING_EVERY) for s in turn.to_ping]
    assert sorted(seen) == sorted(f"s{i}" for i in range(100))


def test_sessions_that_open_at_once_have_their_turns_apart() -> None:
    hub = Hub()
    opened_at_once(hub, 10_000, 200.0)
    list(hub.turns(200.0))
    for turn in turns(hub, 200.0, 3 * PING_EVERY):
        assert len(turn.to_ping) <= 100, "two rounds of fifty places"
        for s in turn.quiet:
            s.spoken_at = turn.at
        assert len(turn.quiet) <= 200


def test_who_hears_nothing_gets_its_heartbeats_with_its_pings_and_as_many_again_between_them() -> None:
    hub = Hub()
    heard = {s.id: [200.04] for s in opened_at_once(hub, 500, 200.04)}
    list(hub.turns(200.04))
    for turn in turns(hub, 200.0, 5 * PING_EVERY):
        assert set(turn.to_ping) <= set(turn.quiet)
        for s in turn.quiet:
            s.spoken_at = turn.at
            heard[s.id].append(turn.at)
    for times in heard.values():
        assert 10 <= len(times) <= 11
        assert HEARTBEAT_LOOK < times[1] - times[0] <= HEARTBEAT_EVERY
        assert [b - a for a, b in pairwise(times[1:])] == pytest.approx([HEARTBEAT_EVERY] * (len(times) - 2))


def test_nobody_hears_a_heartbeat_before_its_welcome() -> None:
    hub = Hub()
    welcomed, waiting = opened_at_once(hub, 2, 200.0)
    waiting.spoken_at = None
    list(hub.turns(200.0))
    assert {s for turn in turns(hub, 200.0, 15) for s in turn.quiet} == {welcomed}


def test_a_late_turn_of_the_wheel_misses_nobody_and_is_caught_up_with_in_portions() -> None:
    hub = Hub()
    opened_at_once(hub, 2_000, 200.0)
    list(hub.turns(200.0))
    late = 200.0 + 3 * PING_EVERY
    seen: list[str] = []
    for _ in range(PING_EVERY):
        found = [s.id for turn in hub.turns(late) for s in turn.to_ping]
        assert len(found) <= 200
        seen += found
    assert sorted(seen) == sorted(f"s{i}" for i in range(2_000))
    assert list(hub.turns(late)) == []


def test_sessions_are_given_out_once_when_their_token_is_over() -> None:
    hub = Hub()
    for name, expires in (("a", 50.0), ("b", 40.0), ("c", 60.0)):
        made, _ = session(name, session_id=name, expires_at=expires)
        hub.register(made, 0.0)
    soon, gone = hub.expiring(55.0)
    assert ([s.id for s in soon], [s.id for s in gone]) == ([], ["b", "a"])
    for old in gone:
        hub.unregister(old)
    assert hub.expiring(55.0) == ([], [])


def test_a_client_is_asked_once_for_each_token_a_minute_or_a_tenth_of_its_life_before_its_end() -> None:
    hub = Hub()
    hour, minute = (session("u1", session_id=name, mode=Mode.ENVELOPE)[0] for name in ("hour", "minute"))
    hour.claims = Claims("u1", 4600.0, "t1", 1000.0)
    minute.claims = Claims("u1", 1060.0, "t2", 1000.0)
    for made in (hour, minute):
        hub.register(made, 0.0)
    assert hub.expiring(1053.9) == ([], [])
    assert hub.expiring(1054.1) == ([minute], [])
    assert hub.expiring(1055.0) == ([], [])
    minute.claims = Claims("u1", 1120.0, "t3", 1060.0)
    hub.refreshed(minute)
    assert hub.expiring(1061.0) == ([], []), "the end of the old token is nobody's end"
    assert hub.expiring(1114.1) == ([minute], [])
    assert hub.expiring(1121.0) == ([], [minute])
    hub.unregister(minute)
    assert hub.expiring(4539.0) == ([], [])
    assert hub.expiring(4541.0) == ([hour], [])
    assert hub.expiring(5000.0) == ([], [hour])


def test_in_bare_mode_nobody_is_asked_and_who_comes_late_is_asked_at_once() -> None:
    hub = Hub()
    bare, _ = session("u1", session_id="bare", mode=Mode.BARE)
    late, _ = session("u1", session_id="late", mode=Mode.ENVELOPE)
    bare.claims = late.claims = Claims("u1", 4600.0, "t1", 1000.0)
    hub.register(bare, 0.0)
    hub.register(late, 0.0)
    assert hub.expiring(4590.0) == ([late], [])
    late.claims = Claims("u1", 9000.0, "t2", 4590.0)
    hub.refreshed(late)
    assert hub.expiring(4600.0) == ([], [bare])


def test_the_ends_of_tokens_of_sessions_that_left_are_not_kept_for_weeks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bridge.core.sessions.hub.EXPIRIES_SPARED", 10)
    hub, s = hub_with(("u1", "stays"))
    for n in range(100):
        gone, _ = session("u2", session_id=f"gone{n}")
        hub.register(gone, 0.0)
        hub.unregister(gone)
    assert len(hub._expiries) < 20
    assert hub.expiring(s["stays"].claims.expires_at) == ([], [s["stays"]])
