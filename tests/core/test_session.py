"""One session's queue and its barrier of pings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridge.core.errors import IllegalTransition
from bridge.core.inflight.flight import Flight
from bridge.core.model.outcomes import Proof, Reason
from bridge.core.ports.sockets import Frame
from bridge.core.sessions.places import how_many_before, place_for
from bridge.core.sessions.session import UNPROVEN_MAX
from bridge.core.sessions.states import SessionState
from tests.support.house import flight, session

FRAME = Frame(b"x" * 10)


def test_frames_of_one_flush_go_out_in_one_write_with_one_ping_behind_them() -> None:
    s, socket = session()
    flights = [flight(f"p{i}") for i in range(5)]
    for f in flights:
        assert s.offer(FRAME, f)
    assert s.flush(1.0) == flights
    assert (socket.writes, len(socket.frames), len(socket.pings)) == (1, 5, 1)


def test_a_pong_proves_what_was_sent_before_its_ping_and_nothing_after() -> None:
    s, socket = session()
    first, second = flight("a"), flight("b")
    s.offer(FRAME, first)
    s.flush(1.0)
    s.offer(FRAME, second)
    s.flush(1.1)
    assert len(socket.pings) == 1, "one ping is outstanding at a time"
    assert s.pong(socket.pings[0], 1.2) == [first]
    assert len(socket.pings) == 2, "what went out meanwhile is covered by the next ping"
    assert s.pong(socket.pings[1], 1.3) == [second]


def test_a_pong_that_answers_no_ping_of_ours_proves_nothing() -> None:
    s, socket = session()
    s.offer(FRAME, flight())
    s.flush(1.0)
    assert s.pong(b"????", 1.1) == []
    assert s.pong(b"", 1.1) == []
    assert s.unproven == 1
    s.pong(socket.pings[0], 1.2)
    assert s.pong(socket.pings[0], 1.3) == []


def test_a_push_that_asks_for_written_costs_no_ping() -> None:
    s, socket = session()
    s.offer(FRAME, flight(confirm=Proof.WRITTEN))
    s.flush(1.0)
    assert (len(socket.frames), socket.pings, s.unproven) == (1, [], 0)


def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    s, socket = session(frames=3)
    socket.stuffed = True
    assert [s.offer(FRAME, flight(f"p{i}")) for i in range(4)] == [True, True, True, False]
    assert s.queued == 3


def test_bytes_count_with_what_the_transport_buffers() -> None:
    s, socket = session(total_bytes=100)
    socket.stuffed = True
    socket.buffered_bytes = 75
    assert s.offer(FRAME, flight("a"))
    assert s.offer(FRAME, flight("b"))
    assert not s.offer(FRAME, flight("c"))


def test_a_frame_larger_than_the_bound_passes_when_nothing_waits() -> None:
    s, _ = session(total_bytes=5)
    assert s.offer(FRAME, flight())


def test_what_the_socket_does_not_take_stays_and_goes_out_when_it_does() -> None:
    s, socket = session()
    socket.stuffed = True
    f = flight()
    s.offer(FRAME, f)
    assert s.flush(1.0) == []
    assert s.stalled_since == 1.0
    socket.stuffed = False
    assert s.flush(2.0) == [f]
    assert s.stalled_since is None


def test_a_push_that_ended_undelivered_is_not_sent_any_more() -> None:
    s, socket = session()
    socket.stuffed = True
    gone, kept = flight("gone"), flight("kept")
    s.offer(FRAME, gone)
    s.offer(FRAME, kept)
    gone.lost(1.0, handed=False, why=Reason.SLOW_CONSUMER)
    socket.stuffed = False
    assert s.flush(2.0) == [kept]
    assert len(socket.frames) == 1
    assert s.queued_bytes == 0


def test_what_a_closing_socket_refuses_is_given_back_as_never_handed_over() -> None:
    s, socket = session()
    f = flight()
    s.offer(FRAME, f)
    socket.write = lambda frames, ping: False  # type: ignore[method-assign]
    assert s.flush(1.0) == []
    assert s.close() == ([f], [])


def test_closing_tells_apart_what_was_handed_over_and_what_was_not() -> None:
    s, socket = session()
    handed, acked_one, waiting = flight("a"), flight("b", confirm=Proof.ACKED), flight("c")
    s.offer(FRAME, handed)
    s.offer(FRAME, acked_one)
    s.flush(1.0)
    socket.stuffed = True
    s.offer(FRAME, waiting)
    queued, unproven = s.close()
    assert (queued, unproven) == ([waiting], [handed, acked_one])
    assert s.close() == ([], [])


def test_a_push_received_but_not_acked_is_still_owed_when_the_session_closes() -> None:
    s, socket = session()
    f = flight("a", confirm=Proof.ACKED)
    s.offer(FRAME, f)
    s.flush(1.0)
    assert s.pong(socket.pings[0], 1.1) == [f]
    assert s.close() == ([], [f])


def test_an_ack_finds_its_push_once_and_only_by_its_own_id() -> None:
    s, _ = session()
    f = flight("a", confirm=Proof.ACKED)
    s.offer(FRAME, f)
    s.flush(1.0)
    assert s.ack("other") is None
    assert s.ack("a") is f
    assert s.ack("a") is None


def test_too_much_unproven_waits_in_the_queue_until_a_pong() -> None:
    s, socket = session(frames=UNPROVEN_MAX + 10, total_bytes=1 << 30)
    for i in range(UNPROVEN_MAX + 5):
        s.offer(FRAME, flight(f"p{i}"))
        s.flush(1.0)
    assert (s.unproven, s.queued) == (UNPROVEN_MAX, 5)
    s.pong(socket.pings[0], 2.0)
    s.flush(2.0)
    assert s.queued == 0


def test_a_peer_that_owes_a_pong_for_too_long_is_suspect_until_it_answers() -> None:
    s, socket = session()
    s.offer(FRAME, flight())
    s.flush(1.0)
    assert not s.owes_pong(1.9, 1.0)
    assert s.owes_pong(2.1, 1.0)
    s.pong(socket.pings[0], 2.2)
    assert not s.owes_pong(9.0, 1.0)


def test_a_closed_session_cannot_drain() -> None:
    s, _ = session()
    s.drain()
    assert s.state is SessionState.DRAINING
    s.close()
    with pytest.raises(IllegalTransition):
        s.drain()


class Looked(list[tuple[Frame, Flight | None]]):
    """Counts what is looked at."""

    looks = 0

    def __getitem__(self, at):  # type: ignore[no-untyped-def]
        self.looks += 1
        return super().__getitem__(at)

    def __iter__(self) -> Iterator[tuple[Frame, Flight | None]]:
        for one in super().__iter__():
            self.looks += 1
            yield one


def held(*positions: int | None) -> Looked:
    """Pushes at these positions; None: a frame that is not a push."""
    made = Looked()
    for position in positions:
        push = None
        if position is not None:
            push = flight(f"p{position}")
            push.position = position
        made.append((Frame(b"x"), push))
    return made


@pytest.mark.parametrize(
    ("position", "place", "before"),
    [(1, 0, 0), (2, 2, 0), (3, 2, 1), (5, 5, 3), (6, 5, 4), (9, 7, 6)],
)
def test_a_push_has_its_place_among_those_that_are_held(position: int, place: int, before: int) -> None:
    line = held(2, None, 4, 5, None, 7, None)
    assert (place_for(position, line), how_many_before(position, line)) == (place, before)


def test_no_push_costs_a_look_at_all_that_are_held() -> None:
    line = held(*range(1_000))
    assert (place_for(1_000, line), how_many_before(2, line)) == (1_000, 2)
    assert line.looks <= 10
