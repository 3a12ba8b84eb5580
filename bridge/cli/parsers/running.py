"""The commands that start or stop something, and what it stands on: serve, drain, dev, demo, check, db."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from bridge.cli.loading import flags, load, quiet_logs, run_quietly
from bridge.cli.parser import Command, Parser, seconds
from bridge.core.errors import SettingsError


def _serve(args: Namespace) -> int:
    from bridge.cli.loop import run_loop
    from bridge.cli.serve import serve
    from bridge.config import Settings

    settings = load(Settings, args)
    # A supervisor does next to nothing; and its processes are asyncio's.
    return run_loop(serve(settings, flags(args)), uvloop=settings.uvloop and settings.workers == 1)


def _drain(args: Namespace) -> int:
    from bridge.cli.drain import drain

    return run_quietly(args, lambda s: drain(s, args.node, wait=args.wait))


def _drain_options(parser: Parser) -> None:
    parser.add_argument("node", metavar="NODE", nargs="?", help="its BRIDGE_NODE [the one that is alive]")
    parser.add_argument("--wait", type=seconds, default=120.0, metavar="S", help="seconds for its end [120]")


def _dev(args: Namespace) -> int:
    from bridge.cli import dev

    return dev.main(flags(args), user=args.user)


def _dev_options(parser: Parser) -> None:
    parser.add_argument("--user", default="u42", metavar="ID", help="the user that the token is for [u42]")


def _demo(args: Namespace) -> int:
    from bridge.cli import demo
    from bridge.config import ENV_FILE, CommonSettings

    # `.dev/env` names the servers of a running `bridge dev`, which would take the demo's messages first.
    settings = CommonSettings.load({**flags(args), "_env_file": ENV_FILE})
    quiet_logs(args, settings)
    return demo.main(settings, requests=args.requests)


def _demo_options(parser: Parser) -> None:
    parser.add_argument("--requests", metavar="FILE", help="push requests to publish instead of the samples")


def _check(args: Namespace) -> int:
    from bridge.cli import check
    from bridge.cli.loop import run_loop
    from bridge.config import Settings

    try:
        settings = load(Settings, args)
    except SettingsError as error:
        return check.settings_are_wrong(error)
    quiet_logs(args, settings)
    return run_loop(check.check(settings), uvloop=settings.uvloop)


def _db_upgrade(args: Namespace) -> int:
    from bridge.cli import db
    from bridge.config import CommonSettings

    return db.db_upgrade(load(CommonSettings, args))


def _db_status(args: Namespace) -> int:
    from bridge.cli import db
    from bridge.config import CommonSettings

    return db.db_status(load(CommonSettings, args))


def _db_sql(args: Namespace) -> int:
    from bridge.cli import db
    from bridge.config import CommonSettings

    return db.db_sql(load(CommonSettings, args), everything=args.all)


def _db_sql_options(parser: Parser) -> None:
    parser.add_argument("--all", action="store_true", help="of all migrations, for an empty database")


def _db_grant(args: Namespace) -> int:
    from bridge.cli import db
    from bridge.config import CommonSettings

    return db.db_grant(load(CommonSettings, args), args.role)


def _db_grant_options(parser: Parser) -> None:
    parser.add_argument("role", metavar="ROLE", help="the role of BRIDGE_POSTGRES_DSN of `bridge serve`")


_DSN: Final = ("postgres_dsn",)

COMMANDS: Final = (
    Command(
        "serve",
        "Run the bridge until SIGTERM or Ctrl-C.",
        _serve,
        None,
        "SIGTERM or Ctrl-C drains: what was taken is settled, what is left goes back to the queue, exit code 0.\n"
        "A second one ends the drain at once, exit code 143 or 130; a third kills.\n\n"
        "  bridge serve --ws-port 9000 --log-format json",
    ),
    Command(
        "drain",
        "Stop a node as SIGTERM does, from anywhere, and show its sessions move to other nodes.",
        _drain,
        ("postgres_dsn", "log_level"),
        "Exits 0 when the node has ended and no push was lost by it; 1 when not, or when it is unknown, dead, or\n"
        "stops already; 2 when several nodes are alive and none is named. Lost is a push to a user whose session it\n"
        "closed, that ended as unknown (connection_lost, node_died, node_silent), dropped (node_unreachable) or\n"
        "offline (left_before_send). Pushes without a ttl for a user between two nodes (offline, no_session) are\n"
        "counted by themselves. What has a ttl is kept.\n"
        "After Ctrl-C the node goes on stopping. Whatever supervises it may start it again.\n\n"
        "  bridge drain node-2",
        _drain_options,
    ),
    Command(
        "dev",
        "Start private servers, upgrade the schema, serve here, and say how to try it.",
        _dev,
        None,
        "The servers' data and the secret for tokens stay under .dev/ for the next time.\n\n  bridge dev",
        _dev_options,
    ),
    Command(
        "demo",
        "Start the stack, push sample requests to several users, and check the delivery log.",
        _demo,
        ("amqp_url", "postgres_dsn", "log_level"),
        "Exits 0 only when what the clients received and the delivery log agree.\n\n  bridge demo",
        _demo_options,
    ),
    Command(
        "check",
        "Check everything that `bridge serve` needs, one line each.",
        _check,
        None,
        "Exits 0 when `bridge serve` would get ready, or stand by; 1 when not; 2 when a setting is wrong, a port is\n"
        "in use or a plug-in is unusable; 3 when broker or database can't be reached. It leaves nothing behind. A\n"
        "line that fails says how to fix it.\n\n"
        "  bridge check --declare passive",
    ),
    Command(
        "db upgrade",
        "Apply the migrations that are missing.",
        _db_upgrade,
        _DSN,
        "Safe to run at any time, also twice at once.",
    ),
    Command(
        "db status",
        "Print every migration and when it was applied.",
        _db_status,
        _DSN,
        "Exits 1 when a migration is missing.",
    ),
    Command(
        "db sql",
        "Print the SQL of the missing migrations; apply nothing.",
        _db_sql,
        _DSN,
        "For a database whose owner applies migrations by hand.\n\n  bridge db sql | psql bridge",
        _db_sql_options,
    ),
    Command(
        "db grant",
        "Let a role that does not own the schema run the bridge. To be run by the owner.",
        _db_grant,
        _DSN,
        "Prints the statements that it ran. Run it again after each upgrade.\n\n  bridge db grant app",
        _db_grant_options,
    ),
)
