"""The commands that look into what happened, and mend it: why, who, replay, dead, forget, report, audit."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from bridge.cli.loading import run_quietly
from bridge.cli.parser import Command, Parser, age, count, rate, seconds


def _why(args: Namespace) -> int:
    from bridge.cli.why import why

    return run_quietly(args, lambda s: why(s, args.push, args.user, args.tenant, as_json=args.json))


def _why_options(parser: Parser) -> None:
    parser.add_argument("push", metavar="PUSH", help="its id")
    parser.add_argument("user", metavar="USER", nargs="?", help="only for this user")
    parser.add_argument("--tenant", metavar="ID", help="only of this tenant; each may use the same id")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, one a line")


def _who(args: Namespace) -> int:
    from bridge.cli.who import who

    return run_quietly(args, lambda s: who(s, args.user, as_json=args.json))


def _who_options(parser: Parser) -> None:
    parser.add_argument("user", metavar="USER", help="as tokens and push requests name them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _nodes(args: Namespace) -> int:
    from bridge.cli.nodes import show_nodes

    return run_quietly(args, lambda s: show_nodes(s, as_json=args.json))


def _nodes_options(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON array")


def _replay(args: Namespace) -> int:
    from bridge.cli.replay import replay

    return run_quietly(
        args,
        lambda settings: replay(
            settings, args.where, mark=args.mark, rate=args.rate, ttl=args.ttl, dry_run=args.dry_run
        ),
    )


def _replay_options(parser: Parser) -> None:
    parser.add_argument(
        "--where", action="append", required=True, metavar="KEY=VALUE", help="which pushes; may be repeated"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only count what matches and what can be replayed"
    )
    parser.add_argument("--rate", type=rate, default=100.0, metavar="N", help="pushes a second at most [100]")
    parser.add_argument("--ttl", type=seconds, metavar="S", help="seconds to keep them [as before]")
    parser.add_argument(
        "--mark", default="1", metavar="NAME", help="a new one replays the same pushes once more [1]"
    )


def _dead_list(args: Namespace) -> int:
    from bridge.cli.dead import dead_list

    return run_quietly(args, lambda s: dead_list(s, args.reason or (), limit=args.limit, as_json=args.json))


def _dead_list_options(parser: Parser) -> None:
    parser.add_argument(
        "--reason", action="append", metavar="R", help="only letters with this reason; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    _add_limit(parser)


def _dead_show(args: Namespace) -> int:
    from bridge.cli.dead import dead_show

    return run_quietly(args, lambda s: dead_show(s, args.id, limit=args.limit, as_json=args.json))


def _dead_show_options(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="its push id")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_limit(parser)


def _dead_replay(args: Namespace) -> int:
    from bridge.cli.dead import dead_replay

    return run_quietly(
        args,
        lambda settings: dead_replay(
            settings,
            args.id or (),
            args.reason or (),
            limit=args.limit,
            new_ids=args.new_ids,
            dry_run=args.dry_run,
            unrecorded=args.unrecorded,
        ),
    )


def _dead_replay_options(parser: Parser) -> None:
    _add_choice(parser)
    parser.add_argument(
        "--new-ids",
        action="store_true",
        help="as new pushes (p1/again-...), for letters whose users have final rows already",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what it would do")
    _add_unrecorded(parser)
    _add_limit(parser)


def _dead_purge(args: Namespace) -> int:
    from bridge.cli.dead import dead_purge

    return run_quietly(
        args,
        lambda settings: dead_purge(
            settings,
            args.id or (),
            args.reason or (),
            limit=args.limit,
            yes=args.yes,
            unrecorded=args.unrecorded,
        ),
    )


def _dead_purge_options(parser: Parser) -> None:
    _add_choice(parser)
    parser.add_argument("--yes", action="store_true", help="delete them; without it they are only counted")
    _add_unrecorded(parser)
    _add_limit(parser)


def _add_unrecorded(parser: Parser) -> None:
    parser.add_argument(
        "--unrecorded",
        action="store_true",
        help="also where the database can't take the row that says who did it",
    )


def _add_choice(parser: Parser) -> None:
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--id", action="append", metavar="ID", help="the letter of this push; may be repeated"
    )
    choice.add_argument(
        "--reason", action="append", metavar="R", help="all letters with this reason; may be repeated"
    )
    choice.add_argument("--all", action="store_true", help="all letters")


def _add_limit(parser: Parser) -> None:
    parser.add_argument(
        "--limit", type=count, default=1000, metavar="N", help="letters to look at, oldest first [1000]"
    )


def _forget(args: Namespace) -> int:
    from bridge.cli.forget import forget

    return run_quietly(
        args,
        lambda settings: forget(
            settings,
            args.user,
            name=getattr(args, "as"),
            disconnect=args.disconnect,
            dead=args.dead,
            keep_revocations=args.keep_revocations,
            yes=args.yes,
        ),
    )


def _forget_options(parser: Parser) -> None:
    parser.add_argument("user", metavar="USER", help="as tokens and push requests name them")
    parser.add_argument("--yes", action="store_true", help="do it; without it everything is only counted")
    parser.add_argument(
        "--disconnect",
        action="store_true",
        help="revoke all their tokens first, which closes their open sessions",
    )
    parser.add_argument("--dead", action="store_true", help="delete the dead letters that name them, too")
    parser.add_argument(
        "--keep-revocations",
        action="store_true",
        help="leave the id in revocations, so that tokens that never opened a session stay revoked",
    )
    parser.add_argument("--as", metavar="NAME", help="the name that an earlier run gave, to continue it")


def _audit(args: Namespace) -> int:
    from bridge.cli.audit import audit

    return run_quietly(args, lambda settings: audit(settings, args.hours))


def _audit_options(parser: Parser) -> None:
    parser.add_argument("--hours", type=count, default=24, metavar="N", help="hours to count [24]")


def _report(args: Namespace) -> int:
    from bridge.cli.report import Form, report

    form: Form = "csv" if args.csv else "json" if args.json else "html" if args.html else "text"
    return run_quietly(args, lambda settings: report(settings, args.since, args.by, form))


def _report_options(parser: Parser) -> None:
    parser.add_argument(
        "--since", type=age, default=age("7d"), metavar="AGE", help="how far back: 90min, 24h, 7d, 4w [7d]"
    )
    parser.add_argument(
        "--by", choices=("event", "tenant", "app"), default="event", help="what to tell apart [event]"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print CSV: a line for each hour or day, and name")
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--html", action="store_true", help="print a page with charts, which loads nothing")


_LOG_AND_BROKER: Final = ("postgres_dsn", "amqp_url")
_BROKER: Final = ("amqp_url",)

COMMANDS: Final = (
    Command(
        "why",
        "Tell what became of a push, step by step, and why.",
        _why,
        _LOG_AND_BROKER,
        "Exits 1 when the delivery log has no row of the push, and says what that may mean.\n\n"
        "  bridge why order-7-shipped\n  bridge why order-7-shipped u42",
        _why_options,
    ),
    Command(
        "who",
        "Tell whether a user is online, where, and what became of their last pushes.",
        _who,
        ("postgres_dsn",),
        "Exits 1 when neither the ledger of sessions nor the delivery log has anything of the user.\n\n"
        "  bridge who u42",
        _who_options,
    ),
    Command(
        "nodes",
        "List the bridges that run with this database, their sessions and what they take.",
        _nodes,
        ("postgres_dsn",),
        "Exits 1 when none of them lives.\n\n  bridge nodes",
        _nodes_options,
    ),
    Command(
        "replay",
        "Publish logged pushes again, to the same users.",
        _replay,
        _LOG_AND_BROKER,
        "Each push gets the id ID/replay-MARK and is sent once for each mark: after a stop, the same command goes on.\n"
        "Keys: push, user, event, outcome, reason, tenant, and since and until for when it was taken\n"
        "(2026-11-22T18:30, or an age such as 2h). All keys must fit; a repeated key fits with any of its values.\n"
        "Exits 1 when nothing matches, or when a match can't be replayed: only the data of pushes with a ttl is kept."
        "\n\n"
        "  bridge replay --where user=u42 --where since=2h --dry-run\n"
        "  bridge replay --where outcome=unknown --where outcome=dropped --where event=order.paid --rate 20",
        _replay_options,
    ),
    Command(
        "dead list",
        "Print a line for each dead letter, oldest first.",
        _dead_list,
        _BROKER,
        "It removes nothing. While it looks, nobody else sees the letters.\n\n"
        "  bridge dead list --reason poison",
        _dead_list_options,
    ),
    Command(
        "dead show",
        "Print a dead letter: properties, headers, body.",
        _dead_show,
        _BROKER,
        "Exits 1 when there is none.\n\n  bridge dead show order-7-shipped",
        _dead_show_options,
    ),
    Command(
        "dead replay",
        "Publish dead letters again.",
        _dead_replay,
        _LOG_AND_BROKER,
        "A letter leaves push.dead when the broker has confirmed its replay. Exits 1 when one was kept.\n"
        "Who did it is kept in table ops_action.\n\n"
        "  bridge dead replay --reason unsupported --dry-run\n"
        "  bridge dead replay --id order-7-shipped\n"
        "  bridge dead replay --reason poison --new-ids",
        _dead_replay_options,
    ),
    Command(
        "dead purge",
        "Delete dead letters.",
        _dead_purge,
        _LOG_AND_BROKER,
        "The rows in the delivery log stay. Who did it is kept in table ops_action.\n\n"
        "  bridge dead purge --reason not_json --yes",
        _dead_purge_options,
    ),
    Command(
        "forget",
        "Erase what was pushed to a user, and rename them wherever they are named.",
        _forget,
        _LOG_AND_BROKER,
        "Outcomes and counts stay. It prints each place with a count. It may be stopped and run again (--as).\n"
        "Exits 1 when something is left that another run could change, and when the user has open sessions.\n"
        "docs/privacy.md says what it can't reach. Who did it is kept in table ops_action, without the id.\n\n"
        "  bridge forget u42\n  bridge forget u42 --disconnect --dead --yes",
        _forget_options,
    ),
    Command(
        "report",
        "Tell how many pushes were delivered, how fast, and why others were not.",
        _report,
        ("postgres_dsn",),
        "It reads the counts of hours (docs/analytics.md), which a running bridge makes once a minute. At most\n"
        "three days are told by the hour, more by the day, both in UTC. Exits 1 when no push is counted then.\n\n"
        "  bridge report --since 24h\n  bridge report --by tenant --html > report.html",
        _report_options,
    ),
    Command(
        "audit",
        "Check that the delivery log adds up.",
        _audit,
        _LOG_AND_BROKER,
        "Exits 1 when something does not.\n\n  bridge audit --hours 3",
        _audit_options,
    ),
)
