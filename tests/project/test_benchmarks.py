"""The benchmark counts right: nothing here looks at how fast anything is."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest

from benchmarks import flame, frozen, idle, kept, load, repeats, report, soak
from benchmarks import scene as scenery
from benchmarks.clients import Client, Tally
from benchmarks.ports import reserved_port
from benchmarks.processes import BenchmarkFailed, Child
from benchmarks.scene import NAIVE, RECEIVED, WRITTEN, Contestant, Drain, Latency, Openings, Scene, scene
from bridge.core.contract.frames import HEARTBEAT_EVERY
from bridge.devservers import Servers
from tests.support.clients import masked

CPU = {
    "bridge": 0.5,
    "rabbitmq": 0.2,
    "postgres": 0.1,
    "clients": 0.1,
    "publisher": 0.0,
    "others": 0,
    "stolen": 0,
}


# --- ports ---


async def test_a_reserved_port_is_nobody_elses_and_its_server_comes_back_to_it() -> None:
    port = reserved_port()
    for _ in range(2):
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b"", "it was reached, and closed first, so that its port lingers"
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    assert len({reserved_port() for _ in range(50)}) == 50


# --- the load ---


def test_a_request_carries_200_bytes_of_data_that_tell_number_user_and_time() -> None:
    body = json.loads(load.request("run1", 7, 42, 123456789, "written"))
    assert body == {
        "id": "run1-00000007",
        "to": {"user": load.user_id(42)},
        "confirm": "written",
        "data": load.data(7, 42, 123456789).decode(),
    }
    assert body["id"] == load.push_id("run1", 7)
    data = load.data(7, 42, 123456789)
    assert len(data) == load.DATA_BYTES
    assert int(data[: load.NUMBER_AT]) == 123456789
    assert int(data[load.NUMBER_AT : load.USER_AT]) == 7
    assert int(data[load.USER_AT : load.PADDING_AT]) == 42


def test_a_ttl_is_in_the_request_where_one_is_given() -> None:
    plain, kept = (json.loads(load.request("run1", 7, 42, 1, "written", ttl)) for ttl in (0, 3600))
    assert kept == plain | {"ttl": 3600}


def test_every_process_picks_the_same_users() -> None:
    chosen = load.addressees(3, 1000, 50)
    assert chosen == load.addressees(3, 1000, 50) != load.addressees(4, 1000, 50)
    assert set(chosen) == set(range(50))


# --- the clients ---


class Written:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.data = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.data += data

    def abort(self) -> None:
        self.aborted = True


async def connected(user: int, tally: Tally) -> tuple[Client, Written]:
    """A client whose handshake is done."""
    transport = Written()
    client = Client(user, "token", tally, asyncio.get_running_loop().create_future())
    client.connection_made(cast(asyncio.Transport, transport))
    answer = accepted(transport)
    transport.data = b""
    client.data_received(answer)
    await client.opened
    return client, transport


def accepted(transport: Written) -> bytes:
    """The answer to the request that was written, without a subprotocol."""
    found = re.search(rb"Sec-WebSocket-Key: (\S+)", transport.data)
    assert found is not None
    digest = hashlib.sha1(found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )


def frame(opcode: int, payload: bytes) -> bytes:
    """A server's frame (RFC 6455 5.2)."""
    size = bytes((len(payload),)) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2, "big")
    return bytes((0x80 | opcode,)) + size + payload


@pytest.mark.parametrize("step", [1, 3, 203, 10_000])
async def test_a_client_counts_frames_however_the_bytes_are_cut(step: int) -> None:
    tally = Tally()
    tally.expect(4, 3)
    client, transport = await connected(5, tally)
    stream = (
        frame(1, load.data(0, 5, 1)) + frame(9, b"ping") + frame(1, load.data(1, 5, 1)) + frame(9, b"")
        + frame(1, load.data(3, 5, 1))
    )  # fmt: skip
    for at in range(0, len(stream), step):
        client.data_received(stream[at : at + step])
    assert await tally.complete(0)
    counts = tally.report(latencies=False)
    assert (counts["frames"], counts["distinct"], counts["duplicates"], counts["strays"]) == (3, 3, 0, 0)
    assert transport.data == masked(10, b"ping") + masked(10, b"")
    assert client.pinged == 2


async def test_what_came_twice_or_late_or_was_meant_for_others_is_told_apart() -> None:
    tally = Tally()
    tally.expect(3, 3)
    client, _ = await connected(5, tally)
    for number, user in ((1, 5), (1, 5), (0, 5), (2, 6)):
        client.data_received(frame(1, load.data(number, user, 1)))
    client.data_received(frame(1, b"not ours"))
    counts = tally.report(latencies=True)
    assert (counts["distinct"], counts["duplicates"], counts["disordered"], counts["strays"]) == (2, 1, 1, 2)
    assert len(counts["latencies"]) == 2
    assert not await tally.complete(0)


async def test_a_client_to_whom_nothing_is_sent_is_complete_at_once() -> None:
    tally = Tally()
    tally.expect(3, 0)
    assert await tally.complete(0)


async def test_a_refused_handshake_fails_the_client() -> None:
    transport = Written()
    client = Client(1, "token", Tally(), asyncio.get_running_loop().create_future())
    client.connection_made(cast(asyncio.Transport, transport))
    client.data_received(b"HTTP/1.1 401 Unauthorized\r\n\r\n")
    with pytest.raises(ConnectionError, match="401"):
        await client.opened
    assert transport.aborted


# --- whole measurements, small ---


@pytest.mark.parametrize("contestant", [NAIVE, WRITTEN, RECEIVED], ids=lambda c: c.name)
def test_published_rows_and_frames_are_equal_in_number(
    servers: Servers, tmp_path: Path, contestant: Contestant
) -> None:
    with scene(servers, contestant, directory=tmp_path, sessions=[15, 5]) as on:
        drain = on.drain(300)
        assert drain.pushes == 300
        assert drain.frames_seconds <= drain.seconds
        assert rows(on) == 300
        latency = on.latency(50, 200.0)
        assert latency.p50 <= latency.p99 <= latency.most
        assert rows(on) == 350


def test_frozen_clients_get_their_frames_later_and_every_push_has_a_row(
    servers: Servers, tmp_path: Path
) -> None:
    quick = RECEIVED._replace(environment={"BRIDGE_CONFIRM_TIMEOUT": "0.5"})
    with scene(servers, quick, directory=tmp_path, sessions=[18, 2]) as on:
        free = on.drain(400, only=on.crowds[:1])
        held = on.drain(400, frozen=on.crowds[1:])
        assert rows(on) == 800
        assert 300 < free.pushes < 400
        assert 300 < held.pushes < 400


def test_users_who_are_away_get_their_pushes_once_when_they_are_back(
    servers: Servers, tmp_path: Path
) -> None:
    with scene(servers, RECEIVED, directory=tmp_path, sessions=[16, 4]) as on:
        taken: list[dict[str, int]] = []
        opened = on._open

        def look_and_open(crowd: Child) -> None:
            taken.extend((on.outcomes(""), on.outcomes("", final=False)))
            opened(crowd)

        on._open = look_and_open  # type: ignore[method-assign]
        drain = on.drain(400, ttl=3600, away=on.crowds[1:])
        assert drain.pushes == 400
        final, waiting = taken
        assert final.keys() == {"received"}
        assert waiting.keys() == {"stored"}
        assert 40 < waiting["stored"] < 140
        assert on.outcomes("") == {"received": 400}
        assert on.drain(100).pushes == 100, "they are all there again"


def test_pushes_for_users_who_are_away_fail_the_measurement_where_their_rows_are_not_stored(
    servers: Servers, tmp_path: Path
) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        scene(servers, RECEIVED, directory=tmp_path, sessions=[8, 2]) as on,
    ):
        on.drain(100)
        patch.setattr(scenery, "END_TIMEOUT", 1.0)
        with pytest.raises(BenchmarkFailed, match="100 rows are final, 20 stored"):
            on._await_the_end("", 120, kept=20)
        with pytest.raises(BenchmarkFailed, match="stored"):
            on.drain(100, away=on.crowds[1:])


def test_what_is_parked_reaches_sessions_that_open_and_what_expires_ends(
    servers: Servers, tmp_path: Path
) -> None:
    parked = kept.measure_parked(
        servers,
        directory=tmp_path,
        sessions=10,
        backlog=200,
        repetitions=2,
        warm_up=10,
        rows=2_000,
        openings=3,
    )
    assert parked.rows == 2_000
    assert len(parked.without) == len(parked.beside) == len(parked.expired) == 2
    times = parked.openings
    assert len(times.from_connect) == len(times.from_answer) == 3
    assert all(0 < a < c for a, c in zip(times.from_answer, times.from_connect, strict=True))


def test_parked_rows_lie_in_the_partitions_of_several_days(database: str) -> None:
    kept.park(database, 1_000)
    with psycopg.connect(database) as conn:
        rows = conn.execute(
            "select log_day.day - l.day, count(*), count(distinct l.user_id), count(distinct l.position)"
            " from delivery_log l, log_day where l.day >= kept_since group by 1 order by 1"
        ).fetchall()
        assert rows == [(ago, 200, 50, 200) for ago in range(kept.DAYS)]
        found = conn.execute(
            "select (m.log).push_id, (m.log).payload from mailbox_rows(array[%s], array[0::bigint],"
            " array[9223372036854775807], array[null::bigint], array[200], array[1000000::bigint]) m",
            (load.user_id(kept.PARKED_USERS + 7),),
        ).fetchall()
    numbers = range(7, 1_000, 1_000 // kept.EACH)
    assert found == [
        (load.push_id(kept.PARKED, n), b'"%s"' % load.data(n, kept.PARKED_USERS + 7, 0)) for n in numbers
    ]


def test_a_kept_push_that_does_not_come_fails_the_measurement(servers: Servers, tmp_path: Path) -> None:
    with scene(servers, RECEIVED, directory=tmp_path, sessions=[0]) as on:
        kept.park(on.dsn, 1_000)
        with psycopg.connect(on.dsn, autocommit=True) as conn:
            conn.execute(
                "update delivery_log set expires_at = 'infinity', position = 1"
                " where user_id = %s and payload like %s",
                (load.user_id(kept.PARKED_USERS), b"%0000000000 00000950 %"),
            )
        with pytest.raises(BenchmarkFailed, match="'disordered': 1"):
            on.open_kept(
                on.crowds[0], run=kept.PARKED, first=kept.PARKED_USERS, count=1, each=kept.EACH, total=1_000
            )


def test_a_push_that_reached_nobody_fails_the_measurement(servers: Servers, tmp_path: Path) -> None:
    with scene(servers, NAIVE, directory=tmp_path, sessions=[8, 2]) as on:
        on.crowds[1].ask("leave")
        with pytest.raises(BenchmarkFailed, match="offline"):
            on.drain(100, only=on.crowds[:1])


def test_a_bridge_that_dies_fails_the_measurement(servers: Servers, tmp_path: Path) -> None:
    with scene(servers, NAIVE, directory=tmp_path, sessions=[5]) as on:
        on.bridge.stop()
        on.crowds[0].ask("expect", seed=1, total=10, users=5)
        on.crowds[0].tell("complete", seconds=100.0)
        with pytest.raises(BenchmarkFailed, match="bridge ended with 0"):
            on.crowds[0].answer(100.0, needs=on.bridge)


def test_idle_sessions_have_a_size_and_take_cpu_for_their_pings_and_heartbeats_in_however_many_processes(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "shares", lambda sessions, most: [120, 80])
    measured = idle.measure(
        servers,
        directory=tmp_path,
        sessions=200,
        windows=2,
        seconds=HEARTBEAT_EVERY,
        contestants=[idle.BARE, idle.ENVELOPE],
    )
    assert [one.name for one in measured] == ["bridge.bare", "bridge.v1.json"]
    for one in measured:
        assert (one.sessions, one.processes) == (200, 2)
        assert one.fewest_pings >= 1
        assert one.each_bytes > 0
        assert one.cpu > 0
        assert len(one.windows) == 2
        assert one.without.pings == one.without.frames == 0
        assert 190 <= sum(w.pings for w in one.windows) <= 210, "one in 20 seconds"
    bare, envelope = measured
    assert [w.frames for w in bare.windows] == [0, 0]
    assert all(190 <= w.frames <= 210 for w in envelope.windows), "one in ten seconds"


def test_sessions_that_miss_their_heartbeats_fail_the_measurement() -> None:
    idle.verify(idle_sessions(1.0, pings=200, frames=400), heartbeats=True)
    for pings, frames, heartbeats in ((99, 400, True), (200, 299, True), (200, 1, False)):
        with pytest.raises(BenchmarkFailed):
            idle.verify(idle_sessions(1.0, pings=pings, frames=frames), heartbeats=heartbeats)


def test_sessions_beyond_the_open_files_of_a_process_are_spread_over_several() -> None:
    assert idle.shares(10_000, 19_000) == [10_000]
    assert idle.shares(50_000, 19_000) == [16_667, 16_667, 16_666]
    assert idle.shares(38_000, 19_000) == [19_000, 19_000]


# --- the soak ---


def test_sessions_come_and_go_while_pushes_flow(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "ROUNDS_LEAST", 10)
    measured = soak.measure(servers, directory=tmp_path, sessions=2_000, pushes=2_500, say=print)
    assert measured.samples[-1][1:3] == (2_000, 2_500)
    assert len(measured.samples) == 10
    assert sum(measured.rows.values()) == 2_500
    assert {"written", "received", "stored"} <= set(measured.rows)
    assert measured.frames >= measured.rows["written"]
    assert measured.lost == 0


def test_memory_that_grows_after_the_warm_up_fails_the_soak() -> None:
    soak.verify(soaked(0.04))
    soak.verify(soaked(-0.5))
    with pytest.raises(BenchmarkFailed, match=r"grew by 6\.0%: 5% are allowed"):
        soak.verify(soaked(0.06))
    with pytest.raises(BenchmarkFailed, match="closed 1 sessions"):
        soak.verify(soaked(0.0)._replace(lost=1))


async def test_a_bridge_that_does_not_choose_the_subprotocol_fails_the_client() -> None:
    transport = Written()
    client = Client(1, "token", Tally(), asyncio.get_running_loop().create_future(), "bridge.v1.json")
    client.connection_made(cast(asyncio.Transport, transport))
    assert b"Sec-WebSocket-Protocol: bridge.v1.json\r\n\r\n" in transport.data
    client.data_received(accepted(transport))
    with pytest.raises(ConnectionError, match="subprotocol"):
        await client.opened


def test_an_interrupted_measurement_leaves_nothing_behind(servers: Servers, tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupted() -> None:
        with scene(servers, NAIVE, directory=tmp_path, sessions=[2, 1]) as on:
            pids.extend(child.pid for child in (on.bridge, *on.crowds))
            on.crowds[1].freeze()
            on.bridge.freeze()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(pids) == 3
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    with psycopg.connect(servers.postgres_dsn) as conn:
        left = conn.execute(
            "select count(*) from pg_database where starts_with(datname, %s)", (f"bench_{os.getpid()}_",)
        ).fetchone()
    assert left == (0,)
    assert f"bench_{os.getpid()}_" not in servers.rabbit.evaluate("rabbit_vhost:list_names()")


def rows(on: Scene) -> int:
    """Rows in the log, whatever they say."""
    return sum(on.outcomes("").values())


# --- the report ---


def drain(rate: float) -> Drain:
    """A drain at that rate."""
    return Drain(1000, 1000 / rate, 0.1, 0.1, CPU, 0)


def idle_sessions(cpu: float, *, pings: int, frames: int) -> idle.Idle:
    """A hundred, in windows of 40 s that took so many seconds of CPU, about."""
    windows = [idle.Window(40.0, used, pings, frames) for used in (cpu - 0.2, cpu, 3 * cpu)]
    name = "bridge.v1.json" if frames else "bridge.bare"
    return idle.Idle(name, 100, 8192.0 + frames, idle.Window(40.0, 0.4, 0, 0), windows)


def soaked(growth: float) -> soak.Soak:
    """A soak in which memory grew by so much between warm-up and end."""
    sizes = [50, *[100] * 10, *[100 * (1 + growth)] * 9]
    samples = [soak.Sample(n, n, n, round(size * 2**20)) for n, size in enumerate(sizes)]
    return soak.Soak(20, 200, 10.0, 5.0, 300, 0, {"received": 150, "stored": 50}, samples)


def results(more: Sequence[Drain] = ()) -> report.Results:
    """Two contestants, three repetitions."""
    latency = Latency(100, 500.0, 1.0, 2.0, 3.0, CPU)
    made = report.Results({}, {"cores": 2, "cpu": "some"}, loop_ms=[10.0, 11.0])
    made.drains = {"naive": [drain(r) for r in (90, 100, 300)], "bridge": [drain(r) for r in (400, 500, 600)]}
    made.drains["bridge"] += more
    made.latencies = {"naive": [latency], "bridge": [latency]}
    made.frozen = frozen.Frozen(100, 5, [drain(100), drain(200)], [drain(120), drain(150)])
    made.away = kept.Away(100, 20, [drain(500)], [drain(400), drain(300)], [drain(280), drain(280)])
    made.parked = kept.Parked(
        1_000_000, Openings(20, [10.0, 51.0, 12.0], [2.0, 3.0, 4.0]), [drain(400)], [drain(300)], [990.0]
    )
    made.places = {"bridge": [flame.Place("run (a.py)", 1.0, 0.25)]}
    made.soak = soaked(0.06)
    made.idle = [idle_sessions(0.8, pings=200, frames=0), idle_sessions(1.2, pings=200, frames=400)]
    return made


def test_the_report_compares_with_the_node_bridge_within_each_repetition() -> None:
    made = results()
    made.drains["node, batched"] = [drain(r) for r in (800, 500, 1000)]
    made.latencies["node, batched"] = made.latencies["bridge"]
    text = "\n".join(report.table(made))
    assert re.search(r"times node, batched +0\.20 +0\.60 +1\.00\n", text)


def test_the_report_shows_medians_and_their_ratio() -> None:
    text = "\n".join(report.table(results()))
    assert re.search(r"pushes/s, end to end +100 +500\n", text)
    assert re.search(r"lowest \.\. highest +90 \.\. 300 +400 \.\. 600\n", text)
    assert re.search(r"times naive +1\.0 +5\.0\n", text)
    assert re.search(r"100 idle sessions +bridge\.bare +bridge\.v1\.json\n", text)
    assert re.search(r"memory of each, KiB +8\.0 +8\.4\n +times bridge\.bare +1\.00 +1\.05\n", text)
    assert re.search(
        r"CPU, % of a core +2\.00 +3\.00\n +lowest \.\. highest +1\.50 \.\. 6\.00 +2\.50 \.\. 9\.00\n", text
    )
    assert re.search(r"times bridge\.bare +1\.00 +1\.50\n +without any session +1\.00 +1\.00\n", text)
    assert re.search(r"ms a session and hour +360\.0 +720\.0\n", text)
    assert re.search(r"pings to each +2\.0 +2\.0\n +heartbeats to each +0\.0 +4\.0\n", text)
    assert "ratio 0.90" in text
    assert re.search(r"kept pushes, 100 users +none absent, no ttl +none absent, ttl +20 absent, ttl\n", text)
    assert re.search(r"pushes/s, end to end +500 +350 +280\n", text)
    assert "with 20 of 100 users absent / none absent, both with a ttl: 0.80 (target: at least 0.75)" in text
    assert re.search(r"1,000,000 parked rows +without them +beside them\n", text)
    assert "1,000 others expiring in a second / without: 0.75" in text
    assert re.search(r"rows that expire in a second +0 +990\n", text)
    assert (
        "20 pushes kept for its user: ms until the first is there (3 users; target: under 50: MISSED)" in text
    )
    assert re.search(r"from the first packet +median 12\.0, highest 51\.0\n", text)
    assert "20 sessions opened and closed, 200 pushes, in 10 s (50% of a core for the bridge)" in text
    assert "MiB: 100.0 after the warm-up, 106.0 at the end (lowest 50.0, highest 106.0)" in text
    assert "growth: +6.0% (target: at most 5%: MISSED)" in text
    assert "25.0% 100.0%  run (a.py)" in text
    assert "NOTE" not in text


def test_the_report_warns_of_a_machine_that_others_keep_busy() -> None:
    busy = drain(500)._replace(cpu=CPU | {"others": 1.2})
    made = results([busy])
    made.loop_ms = [10.0, 20.0]
    made.away = kept.Away(10, 2, [drain(1)], [drain(1)], [drain(1)._replace(disordered=3)])
    made.parked = None
    notes = [line for line in report.table(made) if line.startswith("NOTE")]
    assert "1.2 cores were kept busy by other programs" in notes[0]
    assert "10 to 20 ms" in notes[1]
    assert "kept, some absent brought 3 frames after a later one" in notes[2]


def test_the_json_has_every_repetition(tmp_path: Path) -> None:
    made: dict[str, Any] = json.loads(report.write_json(results(), tmp_path).read_text())
    assert [round(d["rate"]) for d in made["drains"]["bridge"]] == [400, 500, 600]
    assert made["median_rate"] == {"naive": pytest.approx(100), "bridge": pytest.approx(500)}
    assert made["frozen"]["ratio"] == pytest.approx(0.9)
    assert made["away"]["ratio"] == pytest.approx(0.8)
    assert [round(d["rate"]) for d in made["away"]["there"]] == [400, 300]
    assert [one["cpu"] for one in made["idle"]] == pytest.approx([0.02, 0.03])
    assert [w["cpu"] for w in made["idle"][1]["windows"]] == pytest.approx([1.0, 1.2, 3.6])
    assert made["soak"]["growth"] == pytest.approx(0.06)
    assert made["parked"]["ratio"] == pytest.approx(0.75)
    assert made["parked"]["openings"]["from_connect"] == [10.0, 51.0, 12.0]
    assert made["places"]["bridge"] == [{"name": "run (a.py)", "share": 1.0, "own": 0.25}]


# --- the profile ---


def test_the_widest_places_are_those_most_often_on_top() -> None:
    stacks = flame.parse(
        ["main (a.py:1);work (a.py:2) 6", "main (a.py:1);work (a.py:9) 1", "main (a.py:3) 3"]
    )
    assert stacks == {("main (a.py)", "work (a.py)"): 7, ("main (a.py)",): 3}
    assert flame.widest(stacks) == [
        flame.Place("work (a.py)", 0.7, 0.7),
        flame.Place("main (a.py)", 1.0, 0.3),
    ]


def test_the_flame_graph_is_as_wide_as_the_samples() -> None:
    drawn = flame.svg({("main", "<work>"): 3, ("main",): 1}, "bridge")
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([0-9.]+)"', drawn)]
    assert widths == pytest.approx([flame.WIDTH, flame.WIDTH * 0.75], abs=1)
    assert "&lt;work&gt;: 3 samples, 75.0%" in drawn


def test_known_ids_are_read_in_and_all_of_them_are_looked_up_where_memory_is_little(
    servers: Servers, tmp_path: Path
) -> None:
    made = repeats.measure_repeats(
        servers, directory=tmp_path, sessions=20, backlog=200, repetitions=1, warm_up=50, rows=(0, 60_000)
    )
    empty, some, little = made.logs
    assert [len(log.drains) for log in made.logs] == [1, 1, 1]
    assert empty.looked_up[0] < 0.1
    assert some.looked_up[0] < 0.1
    assert little.looked_up[0] > 0.03, "one in ten, with four bits for each"
    assert all(log.read_in[0] > 0 for log in made.logs)
