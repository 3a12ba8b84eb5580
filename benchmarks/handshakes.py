"""What a handshake takes, from the first packet to the welcome: `python -m benchmarks.handshakes`.

Measured in turn on another commit and on this tree: a storm of 2,000 arrivals, arrivals one by one, and pushes at a
steady rate beside storms. With `--by`, instead, this tree alone: clients whose token is signed with a secret, with a
private key (RS256, of a JWK Set), and those whom a connect hook lets in. Each figure is a median of all turns. Exit
codes: 0 measured, 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from benchmarks.clients import TOKEN_SECONDS
from benchmarks.guard import ROOT, CannotMeasure, resolve, unpack
from benchmarks.processes import (
    BenchmarkFailed,
    Child,
    cpu_seconds,
    raise_file_limit,
    running,
    wait_until,
)
from benchmarks.scene import RECEIVED, Scene, scene
from bridge.devservers import Servers, private_servers

DIRECTORY: Final = ROOT / ".dev" / "bench" / "handshakes"
STORM: Final = 2_000
AT_ONCE: Final = 500
ONE_BY_ONE: Final = 200
SIGNED: Final = 100
"""Tokens that are signed with a private key; clients come with them in turn."""
RATE: Final = 500.0
"""Pushes a second beside storms."""
SECONDS: Final = 4.0
WITHIN: Final = 120.0
REST: Final = 0.1
"""The share of a core up to which a bridge is at rest."""
LOOK_EVERY: Final = 0.3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.handshakes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--against", metavar="COMMIT", default="HEAD^", help="the other one [HEAD^]")
    parser.add_argument("--turns", type=int, default=5, help="of each [5]")
    parser.add_argument("--by", action="store_true", help="this tree only, by how its clients come in")
    chosen = parser.parse_args(arguments)
    raise_file_limit()
    try:
        with (
            tempfile.TemporaryDirectory() as logs,
            private_servers(DIRECTORY / "servers", say=lambda line: None, reuse=False) as servers,
            ExitStack() as stack,
        ):
            house = House(servers, Path(logs), stack)
            if chosen.by:
                print(table(measure(house.by_carrier(), chosen.turns, ALONE)))
            else:
                other = unpack(resolve(chosen.against), DIRECTORY / "other")
                doors = {"other commit": house.door("other", other), "this tree": house.door("this", ROOT)}
                print(table(measure(doors, chosen.turns, (*ALONE, QUIET, BESIDE))))
    except (CannotMeasure, BenchmarkFailed) as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 2
    return 0


class Door(NamedTuple):
    """A bridge, and the process whose clients arrive there."""

    scene: Scene
    arrivals: Child
    tokens: Sequence[str] = ()

    def begin(self, count: int, at_once: int) -> None:
        """Let so many clients arrive."""
        self.scene.arrive(self.arrivals, count=count, at_once=at_once, tokens=self.tokens)

    def end(self) -> Mapping[str, Any]:
        """Wait until all are welcomed and gone."""
        told = self.arrivals.answer(WITHIN, needs=self.scene.bridge)
        if told["refused"]:
            raise BenchmarkFailed(
                f"{self.scene.contestant.name}: {told['refused']} arrivals were not welcomed"
            )
        return told

    def storm(self, count: int, at_once: int) -> Mapping[str, Any]:
        """Both."""
        self.begin(count, at_once)
        return self.end()


class House(NamedTuple):
    """Where doors are made."""

    servers: Servers
    logs: Path
    stack: ExitStack

    def door(
        self, name: str, tree: Path, tokens: Sequence[str] = (), settings: Mapping[str, str] | None = None
    ) -> Door:
        """A bridge of this tree, with 200 sessions."""
        here = self.logs / name
        here.mkdir()
        # By its module, so that the path decides which bridge this is.
        command = (sys.executable, "-m", "bridge.cli", "serve")
        environment = {"PYTHONPATH": str(tree), **(settings or {})}
        one = RECEIVED._replace(name=name, command=command, environment=environment)
        made = self.stack.enter_context(scene(self.servers, one, directory=here, sessions=[200]))
        return Door(made, self._clients(f"arrivals {name}"), tokens)

    def by_carrier(self) -> dict[str, Door]:
        """A bridge for each way in which clients come."""
        key = rsa.generate_private_key(65537, 2048)
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
        keys = self.logs / "keys.json"
        keys.write_text(json.dumps({"keys": [{**public, "kid": "k1", "alg": "RS256", "use": "sig"}]}))
        ends = int(time.time()) + TOKEN_SECONDS
        signed = [
            jwt.encode({"sub": f"r{n}", "exp": ends}, key, algorithm="RS256", headers={"kid": "k1"})
            for n in range(SIGNED)
        ]
        port = self._clients("business system").ask("vouch")["port"]
        hook = {"BRIDGE_CONNECT_URL": f"http://127.0.0.1:{port}/", "BRIDGE_CONNECT_AT_ONCE": str(AT_ONCE)}
        return {
            "a secret": self.door("secret", ROOT),
            "a key": self.door("key", ROOT, signed, {"BRIDGE_JWT_KEYS": str(keys)}),
            "the hook": self.door("hook", ROOT, [""], hook),
        }

    def _clients(self, name: str) -> Child:
        command = (sys.executable, "-m", "benchmarks.arrivals")
        return self.stack.enter_context(running(name, command, directory=self.logs, environment={}))


def measure(
    doors: Mapping[str, Door], turns: int, figures: Sequence[Figure]
) -> dict[Figure, dict[str, list[float]]]:
    """These figures of all turns, by door."""
    found: dict[Figure, dict[str, list[float]]] = {figure: {name: [] for name in doors} for figure in figures}
    for turn in range(turns + 1):
        for name in sorted(doors, reverse=bool(turn % 2)):
            for figure in figures:
                # The sessions of the figure before end after their clients have gone.
                _rest(doors[name].scene.bridge.pid)
                value = figure.measure(doors[name])
                if turn:  # the first is a warm-up
                    found[figure][name].append(value)
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return found


def _rest(pid: int) -> None:
    """Wait until this process does next to nothing."""
    before = cpu_seconds(pid)

    def at_rest() -> bool:
        nonlocal before
        last, before = before, cpu_seconds(pid)
        return before - last <= REST * LOOK_EVERY

    time.sleep(LOOK_EVERY)
    wait_until(at_rest, seconds=WITHIN, every=LOOK_EVERY, what="the bridge is at rest")


def _beside(door: Door) -> float:
    """The p99 of pushes while clients arrive."""
    door.begin(STORM, AT_ONCE)
    p99 = door.scene.latency(int(RATE * SECONDS), RATE).p99
    door.end()
    return p99


class Figure(NamedTuple):
    """What is measured, and how."""

    name: str
    measure: Callable[[Door], float]


ALONE: Final = (
    Figure(
        f"a storm of {STORM:,}, {AT_ONCE} at once: handshakes a second",
        lambda door: STORM / float(door.storm(STORM, AT_ONCE)["seconds"]),
    ),
    Figure(
        "one by one: ms until the welcome, median",
        lambda door: float(median(door.storm(ONE_BY_ONE, 1)["each"])),
    ),
)
QUIET: Final = Figure(
    f"p99 of pushes at {RATE:.0f}/s, ms", lambda door: door.scene.latency(int(RATE * SECONDS), RATE).p99
)
BESIDE: Final = Figure("the same beside a storm", _beside)


def table(found: Mapping[Figure, Mapping[str, Sequence[float]]]) -> str:
    """The medians, as docs/performance.md shows them; each with its ratio to the first."""
    names = list(next(iter(found.values())))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for figure, by_door in found.items():
        medians = [median(by_door[name]) for name in names]
        cells = [f"{medians[0]:,.1f}", *(f"{one:,.1f} ({one / medians[0]:.2f})" for one in medians[1:])]
        lines.append(f"| {figure.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
