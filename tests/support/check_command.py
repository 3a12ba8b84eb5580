"""Runs `bridge check`, and reads what it has found."""

from __future__ import annotations

from urllib.parse import urlsplit

from bridge.adapters.amqp.check import findings
from bridge.adapters.amqp.topology import DeclareMode
from bridge.adapters.finding import Finding
from bridge.cli import main
from bridge.devservers import Servers
from tests.support.bridges import SECRET


def run_check(vhost: str, database: str, *words: str) -> int:
    """Run `bridge check` on this broker and database; returns its exit code."""
    base = ("check", "--jwt-secret", SECRET, "--amqp-url", vhost, "--postgres-dsn", database)
    return main([*base, "--ws-port", "0", "--ops-port", "0", *words])


async def broker_findings(vhost: str, mode: DeclareMode = DeclareMode.ACTIVE) -> list[Finding]:
    """What the check of the broker finds that is not ok."""
    return [f for f in await findings(vhost, mode, "here") if f.level != "ok"]


def broker_objects(servers: Servers, vhost: str) -> set[str]:
    """Every queue and exchange of the vhost, and every binding."""
    at = ("-p", urlsplit(vhost).path[1:])
    listed = [
        servers.rabbit.ctl("list_queues", *at, "name", "arguments"),
        servers.rabbit.ctl("list_exchanges", *at, "name", "type"),
        servers.rabbit.ctl("list_bindings", *at),
    ]
    return {line for text in listed for line in text.splitlines()}
