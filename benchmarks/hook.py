"""`python -m benchmarks.hook`: what a connect hook that hangs costs those who need it not.

One bridge, 1,000 sessions that came with tokens, and 500 pushes a second for some seconds: without anybody else, and
while 500 clients without a token try to get in, in turn. Their business system accepts every request and answers none.
They come within a second, and each comes again one to two seconds after its 503, as the answer asks. Prints the 99th
percentiles and their ratio.

Exit codes: 0 measured; 1 a measurement failed, or its counts did not agree; 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import uvloop

from benchmarks.clients import Commands, Crowd, Tally, serve
from benchmarks.processes import BenchmarkFailed, Child, raise_file_limit, running
from benchmarks.scene import RECEIVED, Latency, Scene, scene
from bridge.devservers import ServersUnavailable, private_servers

DIRECTORY: Final = Path(".dev") / "bench"
RATE: Final = 500.0
STRANGERS: Final = 500
COMES_AGAIN: Final = (1.0, 2.0)
"""Seconds until a client that got a 503 comes again: its Retry-After, and a second at random."""
REQUEST: Final = (
    b"GET /ws HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class Strangers:
    """Clients without a token, and the business system that would have to know them."""

    def __init__(self) -> None:
        self._statuses: Counter[str] = Counter()
        self._knocking: list[asyncio.Task[None]] = []

    async def hang(self) -> dict[str, Any]:
        """Accept requests from now on, and answer none; returns the port."""
        server = await asyncio.start_server(self._never, "127.0.0.1", 0)
        return {"port": server.sockets[0].getsockname()[1]}

    @staticmethod
    async def _never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        writer.close()

    async def knock(self, *, port: int) -> dict[str, Any]:
        """So many try to get in, from now on."""
        self._knocking = [asyncio.create_task(self._knock(port), name="stranger") for _ in range(STRANGERS)]
        return {}

    async def _knock(self, port: int) -> None:
        await asyncio.sleep(random.random())
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST)
            self._statuses[(await reader.read())[9:12].decode()] += 1
            writer.close()
            await asyncio.sleep(random.uniform(*COMES_AGAIN))

    async def leave(self) -> dict[str, Any]:
        """All of them give up; returns the answers that they got, by status."""
        for task in self._knocking:
            task.cancel()
        await asyncio.gather(*self._knocking, return_exceptions=True)
        said, self._statuses = dict(self._statuses), Counter()
        return said


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hook", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="of each kind [5]")
    parser.add_argument("--seconds", type=float, default=6.0, metavar="S", help="that one takes [6]")
    chosen = parser.parse_args(arguments)
    raise_file_limit()
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    command = (sys.executable, "-m", "benchmarks.hook", "strangers")
    try:
        with (
            private_servers(DIRECTORY / "servers", say=print, usual_ports=False) as servers,
            running("strangers", command, directory=DIRECTORY, environment={}) as strangers,
        ):
            url = f"http://127.0.0.1:{strangers.ask('hang')['port']}/"
            bridge = RECEIVED._replace(environment={"BRIDGE_CONNECT_URL": url})
            with scene(servers, bridge, directory=DIRECTORY, sessions=[1000]) as on:
                on.drain(1000)
                measure(on, strangers, chosen.turns, chosen.seconds)
    except (BenchmarkFailed, ServersUnavailable) as failed:
        print(f"bench: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def measure(on: Scene, strangers: Child, turns: int, seconds: float) -> None:
    """Measure in turn, and print what came of it."""
    alone: list[Latency] = []
    beside: list[Latency] = []
    for turn in range(turns):
        for crowded in ((False, True), (True, False))[turn % 2]:
            if crowded:
                strangers.ask("knock", port=on.port)
            (beside if crowded else alone).append(on.latency(round(seconds * RATE), RATE))
            if crowded:
                said = strangers.ask("leave")
                if set(said) != {"503"}:
                    raise BenchmarkFailed(f"clients without a token got {said}")
                print(f"turn {turn + 1}: {said['503']} answers of 503 to {STRANGERS} clients")
    for title, found in (("without strangers", alone), ("beside 500 strangers", beside)):
        each = " ".join(f"{one.p99:.1f}" for one in found)
        p50, p99 = median(one.p50 for one in found), median(one.p99 for one in found)
        used = median(one.cpu["others"] for one in found)
        print(f"{title}: p50 {p50:.1f} ms, p99 {p99:.1f} ms ({each}); others used {used:.2f} cores")
    ratio = median(b.p99 for b in beside) / median(a.p99 for a in alone)
    within = median(b.p99 / a.p99 for a, b in zip(alone, beside, strict=True))
    print(f"p99 beside strangers / without: {ratio:.2f}; the median of the turns' own ratios: {within:.2f}")


def _serve_strangers() -> None:
    strangers = Strangers()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        more: Commands = {"hang": strangers.hang, "knock": strangers.knock, "leave": strangers.leave}
        runner.run(serve(Crowd(Tally()), more))


if __name__ == "__main__":
    if sys.argv[1:] == ["strangers"]:
        _serve_strangers()
    else:
        sys.exit(main())
