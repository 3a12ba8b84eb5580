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


def broker_objects(servers: Servers, vhost: str) -> list[str]:
    """Every queue with its arguments, every exchange with its type, and every binding of the vhost."""
    at = f'<<"{urlsplit(vhost).path[1:]}">>'
    return [
        servers.rabbit.evaluate(f"lists:sort({listed}).")
        for listed in (
            f"[{{amqqueue:get_name(Q), amqqueue:get_arguments(Q)}} || Q <- rabbit_amqqueue:list({at})]",
            f"[{{element(2, E), element(3, E)}} || E <- rabbit_exchange:list({at})]",
            f"rabbit_binding:list({at})",
        )
    ]
