"""Starts the servers together, and stops them together."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.devservers.directory import Run
from bridge.devservers.docker import ComposePostgres, ComposeRabbit, Project
from bridge.devservers.machine import ComposeFile, Machine, PostgresFiles, RabbitFiles, choose
from bridge.devservers.postgres import PrivatePostgres, fallback_base
from bridge.devservers.rabbit import PrivateRabbit
from bridge.devservers.servers import HOST, Addresses, Broker, Database, Servers, ServersUnavailable


@contextmanager
def private_servers(
    root: Path,
    *,
    say: Callable[[str], None],
    reuse: bool = True,
    usual_ports: bool = True,
    machine: Machine | None = None,
    plugins: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Servers]:
    """Both servers, private, for the length of the block.

    `root` holds everything that they write, and belongs to one process at a time (otherwise ServersInUse). If
    `reuse` is false, what an earlier run left there is thrown away. A port that was used before is used again if it
    is free; with `usual_ports`, 5672 and 5432 come next. `say` gets a line for each slow step, also from other
    threads. `plugins` are those of RabbitMQ to enable, each with its lines of rabbitmq.conf; a broker in docker has
    none.
    """
    with _started(
        root, ("rabbitmq", "postgres"), say, reuse, usual_ports, machine or Machine(), plugins or {}
    ) as running:
        rabbit, postgres = running.rabbit, running.postgres
        assert rabbit is not None
        assert postgres is not None
        yield Servers(rabbit.url, postgres.dsn, rabbit, postgres)


@contextmanager
def find_or_start(
    root: Path,
    *,
    amqp_url: str | None,
    postgres_dsn: str | None,
    say: Callable[[str], None],
    machine: Machine | None = None,
) -> Iterator[Addresses]:
    """The addresses that are given, and a private server for each one that is None."""
    wanted = [name for name, given in (("rabbitmq", amqp_url), ("postgres", postgres_dsn)) if given is None]
    if not wanted:
        assert amqp_url is not None
        assert postgres_dsn is not None
        yield Addresses(amqp_url, postgres_dsn)
        return
    with _started(root, wanted, say, True, True, machine or Machine(), {}) as running:
        url = amqp_url if running.rabbit is None else running.rabbit.url
        dsn = postgres_dsn if running.postgres is None else running.postgres.dsn
        assert url is not None
        assert dsn is not None
        yield Addresses(url, dsn)


@dataclass(frozen=True)
class _Up:
    """What `_started` has started."""

    rabbit: Broker | None
    postgres: Database | None


@contextmanager
def _started(
    root: Path,
    wanted: Sequence[str],
    say: Callable[[str], None],
    reuse: bool,
    usual_ports: bool,
    machine: Machine,
    plugins: Mapping[str, Sequence[str]],
) -> Iterator[_Up]:
    if not Path("/proc/self/stat").exists() or not hasattr(os, "pidfd_open"):
        raise ServersUnavailable("private servers need Linux 5.3 or later with /proc")
    run = Run(root)
    with ExitStack() as stack:
        stack.callback(run.leave)
        run.take()
        ways = choose(machine, wanted, run.root / "install.log", say)
        base = run.root
        if not reuse:
            forget(base)
        compose = next((way for way in (ways.rabbitmq, ways.postgres) if isinstance(way, ComposeFile)), None)
        project = None
        if compose is not None:
            project = Project(compose, run, usual_ports)
            stack.callback(project.down)
        rabbit: PrivateRabbit | ComposeRabbit | None = None
        if isinstance(ways.rabbitmq, RabbitFiles):
            rabbit = PrivateRabbit(ways.rabbitmq, run, usual_ports, plugins)
        elif plugins:
            raise ServersUnavailable("plugins need a RabbitMQ on this machine, not in docker")
        elif project is not None and ways.rabbitmq is not None:
            rabbit = ComposeRabbit(project)
        postgres: PrivatePostgres | ComposePostgres | None = None
        if isinstance(ways.postgres, PostgresFiles):
            postgres = PrivatePostgres(ways.postgres, run, usual_ports)
        elif project is not None and ways.postgres is not None:
            postgres = ComposePostgres(project)
        stack.enter_context(_together([server for server in (rabbit, postgres) if server is not None], say))
        yield _Up(rabbit, postgres)


def forget(base: Path) -> None:
    """Remove the data of the servers below `base`; none of them may be running."""
    for place in (base, fallback_base(base)):
        for home in (*place.glob("rabbitmq*"), *place.glob("postgres*")):
            if home.is_dir() and not home.is_symlink():
                shutil.rmtree(home)


@contextmanager
def _together(servers: Sequence[Any], say: Callable[[str], None]) -> Iterator[None]:
    """Start all at once, stop all at once. An interrupt during the start stops those that have started."""

    def start(server: Any) -> None:
        began = time.monotonic()
        say(f"starting {server.title} on {HOST}:{server.port}")
        server.start()
        say(f"{server.title} is up after {time.monotonic() - began:.1f} s")

    def close(server: Any) -> None:
        server.close()

    with ThreadPoolExecutor(max(1, len(servers)), "devservers") as starters:
        try:
            jobs = [starters.submit(start, server) for server in servers]
            for job in jobs:
                job.result()
            yield
        finally:
            with ThreadPoolExecutor(max(1, len(servers)), "devservers") as stoppers:
                for done in [stoppers.submit(close, server) for server in servers]:
                    done.result()
