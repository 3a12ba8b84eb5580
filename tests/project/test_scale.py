"""What benchmarks/scale simulates of a stop is what the bridge does, and its arithmetic is right."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from benchmarks.processes import BenchmarkFailed
from benchmarks.scale.__main__ import main
from benchmarks.scale.capacity import SLOWEST, Wanted, found, lines
from benchmarks.scale.costs import LETTER
from benchmarks.scale.measured import fitted, solution
from benchmarks.scale.simulation import (
    Delays,
    Push,
    Simulation,
    drain,
    names,
    partition_of,
    random_pushes,
    takers,
)
from bridge.core.cluster.sharing import plan_of
from bridge.core.sessions.departures import waits
from tests.support.house import house

QUICK = Delays(look_up=0.002, letter=0.002, write=0.003, pong=0.05)


@pytest.mark.parametrize(
    ("sessions", "rate", "timeout"), [(30, 10.0, 10.0), (30, 10.0, 2.0), (7, 500.0, 10.0), (40, 25.0, 1.0)]
)
async def test_as_many_sessions_are_closed_in_turn_as_a_node_closes_that_stops(
    sessions: int, rate: float, timeout: float
) -> None:
    async with house(drain_rate=rate) as h:
        for n in range(sessions):
            await h.live(f"u{n}")
        h.gate.shut("draining", "")
        h.advance(5)
        model = drain(sessions, rate, timeout)
        h.core.moving.everybody(patient=True)
        h.advance(timeout)
        # One look more or less: the simulation looks for the first time in the moment of the stop.
        assert abs(h.core.moving.closed - model.in_turn) <= math.ceil(rate * 0.1)
        in_turn = h.core.moving.closed
        assert len(list(h.core.moving.the_rest())) == sessions - in_turn
        assert model.in_turn + model.at_once == sessions
        assert model.last_back == pytest.approx(max(waits_of(model.at_once, rate)) + model.seconds, rel=0.2)


def waits_of(sessions: int, rate: float) -> list[float]:
    return [0.0, *waits(sessions, rate)]


def test_every_partition_has_a_taker_and_none_has_two_more_than_another() -> None:
    for nodes, partitions in ((1, 1), (3, 4), (4, 4), (16, 64), (100, 16)):
        found = takers(plan_of(partitions, names(nodes)), names(nodes))
        assert len(found) == partitions
        shares = Counter(found)
        assert max(shares.values()) - min(shares.get(n, 0) for n in range(nodes)) <= 1


def test_users_are_spread_evenly_over_partitions() -> None:
    counts = Counter(partition_of(user, 16) for user in range(16_000))
    assert all(800 < count < 1_200 for count in counts.values())


@pytest.mark.parametrize(("nodes", "partitions"), [(1, 1), (2, 1), (5, 3), (5, 16)])
def test_every_push_ends_once_whoever_has_its_user(nodes: int, partitions: int) -> None:
    pushes = list(
        random_pushes(nodes=nodes, partitions=partitions, users=1_000, devices=3, rate=5_000, seconds=0.2)
    )
    found = Simulation(nodes, QUICK).run(pushes)
    assert found.rows == sum(one.taken for one in found.work.values()) == len(pushes) == 1_000
    assert found.frames == sum(one.frames for one in found.work.values()) == 3_000
    assert found.statements == sum(one.statements for one in found.work.values())
    assert 2 * found.letters == sum(one.letters for one in found.work.values())
    assert 2 * found.forwards == sum(one.forwards for one in found.work.values())
    assert found.asked == (1_000 if nodes > 1 else 0)
    assert found.forwards == sum(len(set(push.holders) - {push.taker}) for push in pushes)
    assert found.items == 3 * found.forwards
    assert found.letters <= found.items
    assert found.statements <= found.rows


def test_more_takers_make_smaller_letters() -> None:
    def letter(partitions: int) -> float:
        many = random_pushes(nodes=8, partitions=partitions, users=1_000, devices=1, rate=20_000, seconds=0.2)
        found = Simulation(8, QUICK).run(many)
        return found.items / found.letters

    assert letter(1) > 1.5 * letter(4) > 1.5 * 1.2 * letter(8)


def test_a_push_whose_user_has_a_session_where_it_is_taken_asks_and_is_forwarded_to_nobody() -> None:
    found = Simulation(2, QUICK).run([Push(0, 0.0, 1, [1])])
    assert (found.asked, found.forwards, found.letters, found.frames, found.rows) == (1, 0, 0, 1, 1)


WANTED = Wanted(
    sessions=2_000,
    devices=1,
    rate=1_000,
    nodes=4,
    partitions=4,
    busy=0.7,
    pong=0.05,
    life=3_600,
    drain_rate=500,
    drain_timeout=60,
)


def test_nodes_that_have_too_little_cpu_send_larger_letters_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scale.capacity.SIMULATED", 4_000)
    easy, hard = found(WANTED), found(WANTED._replace(rate=12_000))
    assert (easy.wait, easy.enough) == (LETTER, True)
    assert LETTER < hard.wait <= SLOWEST
    assert hard.counted.items / hard.counted.letters > 2 * easy.counted.items / easy.counted.letters
    impossible = found(WANTED._replace(rate=20_000, partitions=1))
    assert not impossible.enough
    assert max(impossible.node_cores) > 0.7
    assert "too little CPU" in dict(lines(impossible))["wait for a letter"]


def test_a_table_has_a_column_for_each_number_of_nodes_and_partitions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["--sessions", "1000", "--rate", "1000", "--nodes", "1", "2", "--partitions", "1", "2"]
    assert main(asked) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.count("partitions") == 4
    assert {row.count("|") for row in rows} == {6}
    for wrong in (["--nodes", "0"], ["--rate", "-1"], ["--devices", "x"]):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
        assert wrong[0] in capsys.readouterr().err


def test_what_costs_are_made_of_is_found_and_nothing_costs_less_than_nothing() -> None:
    counts = [[1.0, 0.0, 0.2], [1.0, 1.0, 0.2], [1.0, 1.0, 0.9], [1.0, 0.5, 0.1]]
    costs = [sum(a * b for a, b in zip(row, (50.0, 30.0, 200.0), strict=True)) for row in counts]
    assert fitted(counts, costs) == pytest.approx([50.0, 30.0, 200.0])
    less = [sum(a * b for a, b in zip(row, (50.0, -30.0, 200.0), strict=True)) for row in counts]
    assert min(fitted(counts, less)) == 0.0


def test_equations_are_solved_and_such_without_one_solution_are_refused() -> None:
    assert solution([[0.0, 2.0], [4.0, 1.0]], [4.0, 6.0]) == [1.0, 2.0]
    with pytest.raises(BenchmarkFailed):
        solution([[1.0, 1.0], [1.0, 1.0]], [1.0, 1.0])
