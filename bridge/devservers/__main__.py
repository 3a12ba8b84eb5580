"""`python -m bridge.devservers`, for the Makefile and for the guard of a run."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bridge.devservers.directory import Run, guard
from bridge.devservers.machine import NEEDED, Machine, ensure
from bridge.devservers.postgres import fallback_base
from bridge.devservers.servers import ServersUnavailable
from bridge.devservers.starting import forget, private_servers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 when done, 1 when that was not possible, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m bridge.devservers")
    commands = parser.add_subparsers(dest="command", required=True)
    hold = commands.add_parser("hold", help="run both servers until SIGINT or SIGTERM")
    hold.add_argument("root", type=Path)
    hold.add_argument("--any-ports", action="store_true", help="leave 5672 and 5432 to others")
    have = commands.add_parser("ensure", help="install these if the machine does not have them")
    have.add_argument("names", nargs="+", choices=sorted(NEEDED))
    forget = commands.add_parser("forget", help="remove a directory with all data of its servers")
    forget.add_argument("root", type=Path)
    watch = commands.add_parser("guard", help="used by this module itself")
    watch.add_argument("root", type=Path)
    watch.add_argument("owner", type=int)
    chosen = parser.parse_args(arguments)
    try:
        match chosen.command:
            case "hold":
                _hold(chosen.root, not chosen.any_ports)
            case "ensure":
                with tempfile.TemporaryDirectory() as logs:
                    ensure(Machine(), chosen.names, Path(logs) / "install.log", _print)
            case "forget":
                _forget_all(chosen.root)
            case _:
                guard(chosen.root, chosen.owner)
    except ServersUnavailable as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _hold(root: Path, usual_ports: bool) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with private_servers(root, say=_print, usual_ports=usual_ports) as servers, suppress(KeyboardInterrupt):
        print(servers.amqp_url, servers.postgres_dsn, sep="\n", flush=True)
        while True:
            time.sleep(1)


def _forget_all(top: Path) -> None:
    """Remove `top` and what the runs below it keep elsewhere. Raises ServersInUse while one of them is running."""
    for lock in list(top.absolute().glob("**/lock")):
        run = Run(lock.parent)
        run.take()
        try:
            forget(run.root)
            shutil.rmtree(fallback_base(run.root), ignore_errors=True)
        finally:
            run.leave()
    shutil.rmtree(top, ignore_errors=True)


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
