"""Runs the faults one after the other on private servers, and prints the table.

    python -m benchmarks.chaos [--seed N] [--fault NAME ...] [--short] [--list]

Exit codes: 0 every promise held, 1 one was broken or a run failed, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import platform
import re
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import compiled
from benchmarks.chaos import (
    faults_access,
    faults_broker,
    faults_clients,
    faults_database,
    faults_kept,
    faults_large,
    faults_mixed,
    faults_network,
    faults_nodes,
    faults_partitions,
    faults_process,
    faults_time,
)
from benchmarks.chaos.checker import Broken, Violation
from benchmarks.chaos.errors import NotPossible
from benchmarks.chaos.fault import FAULTS, Fault
from benchmarks.chaos.stage import FULL, SHORT, Outcome, Scale, play
from benchmarks.chaos.stories import Told, tell
from bridge.devservers import Servers, ServersInUse, ServersUnavailable, private_servers

MODULES: Final = (
    faults_process,
    faults_broker,
    faults_database,
    faults_clients,
    faults_kept,
    faults_large,
    faults_access,
    faults_time,
    faults_mixed,
    faults_nodes,
    faults_network,
    faults_partitions,
)
"""Importing them adds their faults to the list, in the order of the table."""
DEV: Final = Path(__file__).resolve().parent.parent.parent / ".dev"
RUN_TIMEOUT: Final = 900.0
"""Seconds after which a run has failed in any case."""
STORIES, STORIES_SHORT = 5000, 300
"""Generated stories of the core that are run before the faults."""
SHORT_AT_ONCE: Final = 4
"""Faults of the short run that are made at the same time: they wait more than they work."""
VIOLATIONS_SHOWN: Final = 5
"""Violations of each kind that are printed with all evidence."""
MORE_SHOWN: Final = 20


@dataclass
class Line:
    """One line of the table."""

    fault: Fault
    outcome: Outcome | None = None
    not_run: str = ""
    """Why this machine could not make it."""
    failed: str = ""
    """The error that ended the run."""
    seconds: float = 0.0

    @property
    def bad(self) -> bool:
        """Whether a promise was broken, or the run did not finish."""
        if self.outcome is None:
            return bool(self.failed)
        return bool(self.outcome.verdict.violations) or not self.outcome.times


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description="Injects faults and checks the promises."
    )
    parser.add_argument("--seed", type=int, default=1, help="reproduces the decisions of a run (default 1)")
    parser.add_argument(
        "--fault", nargs="+", default=[], metavar="NAME", help="only those whose name contains this"
    )
    parser.add_argument("--short", action="store_true", help="a minute: few clients, no server is stopped")
    parser.add_argument("--list", action="store_true", help="print the faults and exit")
    parser.add_argument("--compiled", action="store_true", help=compiled.ABOUT)
    chosen = parser.parse_args(arguments)
    if chosen.compiled:
        compiled.run_compiled("benchmarks.chaos", arguments)
    known = sorted(FAULTS.values(), key=lambda f: [m.__name__ for m in MODULES].index(f.act.__module__))
    faults = [f for f in known if f.short or not chosen.short]
    if chosen.fault:
        faults = [f for f in known if any(word.lower() in f.name.lower() for word in chosen.fault)]
        if not faults:
            parser.error(f"no fault is called {' or '.join(chosen.fault)}; --list names them")
    if chosen.list:
        for fault in faults:
            print(f"{fault.name:46} {fault.about.splitlines()[0]}")
        return 0
    raise_file_limit()
    # They warn of lost connections, which happen here all the time.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    for library in ("aiormq", "aio_pika"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    told = None if chosen.fault else tell(STORIES_SHORT if chosen.short else STORIES, chosen.seed)
    if told is not None:
        _say(told.line)
    try:
        with _servers() as (servers, root):
            scale, at_once = (SHORT, SHORT_AT_ONCE) if chosen.short else (FULL, 1)
            began = time.monotonic()
            lines = asyncio.run(run(servers, faults, chosen.seed, scale, root / "logs", _say, at_once))
            seconds = time.monotonic() - began
    except KeyboardInterrupt:
        return 130
    except ServersUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\n{table(lines)}\n\n{footer(lines, f'{_kind(chosen)}, seed {chosen.seed}', seconds, told)}")
    broken = any(line.bad for line in lines) or (told is not None and bool(told.story))
    return 1 if broken else 0


async def run(
    servers: Servers,
    faults: Sequence[Fault],
    seed: int,
    scale: Scale,
    logs: Path,
    say: Callable[[str], None],
    at_once: int = 1,
) -> list[Line]:
    """Make each fault once, in a vhost and a database of its own; errors of a run are not raised.

    `at_once`: how many may run at the same time; only faults that leave the servers alone can.
    """
    lines = [Line(fault) for fault in faults]
    room = asyncio.Semaphore(at_once)

    async def one(line: Line) -> None:
        async with room:
            await _run_one(servers, line, seed, scale, logs, say)

    await asyncio.gather(*[one(line) for line in lines])
    return lines


async def _run_one(
    servers: Servers, line: Line, seed: int, scale: Scale, logs: Path, say: Callable[[str], None]
) -> None:
    fault = line.fault
    began = time.monotonic()
    name = re.sub(r"\W+", "_", fault.name)[:50]
    where = logs / name
    where.mkdir(parents=True, exist_ok=True)
    try:
        async with asyncio.timeout(RUN_TIMEOUT):
            line.outcome = await play(
                servers,
                f"chaos_{os.getpid()}_{name}"[:60],
                fault.act,
                seed=f"{seed} {fault.name}",
                scale=scale,
                logs=where,
                proxied=fault.proxied,
                networked=fault.networked,
                settings=fault.settings,
            )
    except NotPossible as why:
        line.not_run = str(why)
    except Exception as error:
        line.failed = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    line.seconds = time.monotonic() - began
    say(_progress(line))
    if line.outcome is not None:
        for what, seconds in line.outcome.proven.items():
            say(_measured(what, seconds))
        for story in _stories(line.outcome.verdict.violations):
            say(story)
        if line.bad:
            say(f"  the logs of the bridge are in {where}")


def _progress(line: Line) -> str:
    if line.not_run:
        end = f"not run: {line.not_run}"
    elif line.failed:
        end = f"FAILED: {line.failed}"
    elif line.outcome is not None and line.outcome.verdict.violations:
        end = f"BROKEN: {len(line.outcome.verdict.violations)} times"
    elif line.outcome is not None and not line.outcome.times:
        end = "NOT MADE: the event that it waits for did not happen"
    else:
        end = "held"
    ends = line.outcome.verdict.outcomes.most_common() if line.outcome is not None else ()
    told = ", ".join(f"{count} {ending}" for ending, count in ends)
    return f"{line.fault.name}: {end} ({line.seconds:.0f} s) {told}".rstrip()


def _measured(what: str, seconds: Sequence[float]) -> str:
    middle = statistics.median(seconds)
    return f"  {what}: {min(seconds):.2f} to {max(seconds):.2f} s, median {middle:.2f}, {len(seconds)} times"


def _stories(violations: Sequence[Violation]) -> Iterator[str]:
    """The first of each kind in full, and how many more there are."""
    for kind in Broken:
        of_kind = [v for v in violations if v.kind is kind]
        for violation in of_kind[:VIOLATIONS_SHOWN]:
            yield _story(violation)
        if len(of_kind) > VIOLATIONS_SHOWN:
            ids = ", ".join(v.what for v in of_kind[VIOLATIONS_SHOWN:][:MORE_SHOWN])
            yield f"  {kind.value}: {len(of_kind) - VIOLATIONS_SHOWN} more, among them: {ids}"


def _story(violation: Violation) -> str:
    return "\n".join([f"  {violation.kind.value}: {violation.what}", *(f"    {f}" for f in violation.facts)])


HEADS: Final = (
    "fault",
    "runs",
    "published",
    "final rows",
    "lost",
    "false proofs",
    "wrong user",
    "duplicates on the wire",
    "first push, s",
    "at rest, s",
)


def table(lines: Sequence[Line]) -> str:
    """As Markdown."""
    rows = [HEADS, *(_cells(line) for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    made = [
        "| "
        + " | ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = (
        "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    )
    return "\n".join([made[0], rule, *made[1:]])


def _cells(line: Line) -> tuple[str, ...]:
    blank = ("",) * (len(HEADS) - 2)
    if line.not_run:
        return (line.fault.name, "not run", *blank)
    if line.outcome is None:
        return (line.fault.name, "failed", *blank)
    outcome, verdict = line.outcome, line.outcome.verdict
    return (
        line.fault.name,
        str(outcome.times) if outcome.times else "not made",
        str(verdict.published),
        str(verdict.final_rows),
        str(verdict.lost),
        str(verdict.false),
        str(verdict.wrong),
        str(verdict.wire_duplicates),
        "never" if outcome.first_push is None else f"{outcome.first_push:.1f}",
        "" if outcome.rest is None else f"{outcome.rest:.1f}",
    )


def _kind(chosen: argparse.Namespace) -> str:
    return "some faults" if chosen.fault else "short run" if chosen.short else "full run"


def footer(lines: Sequence[Line], what: str, seconds: float, told: Told | None = None) -> str:
    """The machine, the totals, and whether every promise held."""
    bad = sum(line.bad for line in lines) + bool(told and told.story)
    held = (
        "every promise held in every fault that was made"
        if any(line.not_run for line in lines)
        else "every promise held"
    )
    done = [line.outcome for line in lines if line.outcome is not None]
    totals = (
        f"{sum(o.times for o in done)} faults, {sum(o.verdict.published for o in done)} requests confirmed, "
        f"{sum(o.verdict.final_rows for o in done)} final rows"
    )
    again = f"{sum(o.verdict.receipt_duplicates for o in done)} receipts were announced more than once"
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    end = f"{bad} runs broke a promise, failed, or made nothing" if bad else held
    stories = f"{told.line.splitlines()[0]}\n" if told is not None else ""
    reasons = "".join(f"\nnot run: {line.fault.name}: {line.not_run}" for line in lines if line.not_run)
    return f"{what}, {seconds / 60:.0f} minutes, {machine}\n{stories}{totals}; {again}{reasons}\n{end}"


def raise_file_limit() -> None:
    """Thousands of sockets."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(line: str) -> None:
    print(line, flush=True)


class _servers(AbstractContextManager["tuple[Servers, Path]"]):
    """Private servers in .dev, one set for each run at a time: they are stopped, killed and filled up."""

    def __enter__(self) -> tuple[Servers, Path]:
        number = 1
        while True:
            root = DEV / f"chaos-{number}"
            self._held = private_servers(root, say=_say, usual_ports=False)
            try:
                return self._held.__enter__(), root
            except ServersInUse:
                number += 1

    def __exit__(self, *error: object) -> None:
        self._held.__exit__(*error)  # type: ignore[arg-type]
