"""The `bridge` command: its words, its help, its exit codes. What the words do is in commands, dev and demo.

Exit codes: 0 done; 1 it found or caused a failure; 2 usage or settings; 3 broker or database unreachable;
130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO, TypeVar

from bridge import __version__
from bridge.core.errors import (
    BridgeError,
    BrokerUnavailable,
    DatabaseUnsuitable,
    SchemaBehind,
    SettingsError,
    StoreUnavailable,
)
from bridge.core.redaction import redact

if TYPE_CHECKING:
    from bridge.config import CommonSettings

DONE, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

S = TypeVar("S", bound="CommonSettings")

OVERVIEW: Final = """\
usage: bridge <command> [options]

Push requests from RabbitMQ to a person's WebSockets, with proof.

see it
  demo        the whole story in under a minute, checked against the delivery log
  dev         private servers, the bridge and a demo page, on this machine

run it
  db          upgrade, status, sql, grant: the schema of the delivery log
  check       would serve do its work? A line for each of its parts
  serve       run the bridge

use it
  token       make a token that opens a session
  push        publish a push request and print what became of it
  tail        print the ends of pushes as they happen

look into it
  why         what became of a push, step by step, and why
  replay      publish logged pushes again, chosen by user, event, outcome, time
  dead        list, show, replay, purge: the messages that people must look at
  audit       does the delivery log add up

bridge <command> --help says more. Settings come from BRIDGE_* in the environment, a .env file,
secret files or flags. Exit codes: 0 done, 1 it found or caused a failure, 2 usage or settings,
3 broker or database unreachable, 130 interrupted.
"""

EPILOGS: Final = {
    "serve": "SIGTERM and Ctrl-C drain: what was taken is settled, what is left goes back to the queue, exit code 0.\n"
    "The second one ends the drain at once, exit code 143 or 130; the third kills.\n\n"
    "  bridge serve --ws-port 9000 --log-format json",
    "dev": "Servers, data and the secret of the tokens stay under .dev/ for the next time.\n\n  bridge dev",
    "demo": "Exits 0 only when what the clients received and the delivery log agree.\n\n  bridge demo",
    "check": "Exits 0 when `bridge serve` would get ready, or stand by; 1 when not; 2 when a setting is wrong, a port\n"
    "in use, or a plug-in unusable; 3 when broker or database can't be reached. It leaves nothing behind, and a\n"
    "line that fails names what mends it.\n\n"
    "  bridge check --declare passive",
    "token": '  bridge token u42 --ttl 600\n  python -m websockets "ws://127.0.0.1:8181/ws?token=$(bridge token u42)"',
    "push": "Exits 0 when every push ended as acked, received or written, or is kept (stored); 1 otherwise.\n\n"
    "  bridge push --user u42 --data '{\"hi\": 1}'\n"
    "  bridge push --user u42 --user u43 --event order.paid --text 'thank you' --confirm acked\n"
    "  bridge push --user u42 --event balance --data 17 --ttl 86400 --collapse-key balance\n"
    '  bridge push \'{"to": {"user": "u42"}, "data": 1}\'\n'
    "  cat request.json | bridge push -",
    "tail": "  bridge tail\n  bridge tail --outcome unknown --event 'order.*'",
    "why": "Exits 1 when the delivery log does not know the push, and says what that may mean.\n\n"
    "  bridge why order-7-shipped\n  bridge why order-7-shipped u42",
    "replay": "A push becomes ID/replay-MARK, once for each mark: run it again and it goes on where it stopped.\n"
    "Keys: push, user, event, outcome, reason, tenant, since, until (of the taking: 2026-11-22T18:30, or 2h ago).\n"
    "All keys must fit; of one key that is repeated, any value. Exits 1 when nothing matches, or something that\n"
    "matches can't be replayed: only the data of pushes with a ttl is kept.\n\n"
    "  bridge replay --where user=u42 --where since=2h --dry-run\n"
    "  bridge replay --where outcome=unknown --where outcome=dropped --where event=order.paid --rate 20",
    "dead list": "Takes nothing away; while it looks, nobody else sees the letters.\n\n"
    "  bridge dead list --reason poison",
    "dead show": "Exits 1 when it is not there.\n\n  bridge dead show order-7-shipped",
    "dead replay": "A letter leaves push.dead when the broker has confirmed its replay. Exits 1 when one was kept.\n\n"
    "  bridge dead replay --reason unsupported --dry-run\n"
    "  bridge dead replay --id order-7-shipped\n"
    "  bridge dead replay --reason poison --new-ids",
    "dead purge": "The rows in the delivery log stay.\n\n  bridge dead purge --reason not_json --yes",
    "audit": "Exits 1 when something is there that should not be.\n\n  bridge audit --hours 3",
    "db upgrade": "Safe to run at any time, also twice at once.",
    "db status": "Exits 1 when something is still to be applied.",
    "db sql": "For a database whose owner wants to run it.\n\n  bridge db sql | psql bridge",
    "db grant": "Prints what it has run. Once more after each upgrade.\n\n  bridge db grant app",
}


class Parser(argparse.ArgumentParser):
    """argparse with a hint where a word is nearly right, and help that keeps its line breaks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is; exit with 2."""
        print(f"{self.prog}: {redact(message)}", file=sys.stderr)
        print(f"`{self.prog} --help` says more.", file=sys.stderr)
        raise SystemExit(USAGE)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, max_help_position=30, **kwargs)


class _TopParser(Parser):
    def format_help(self) -> str:
        return OVERVIEW


def build_parser(named: str = "") -> tuple[Parser, Mapping[str, Parser]]:
    """The words that the command understands: the parser of all, and that of each command.

    Only the command that is `named` gets the flags of its settings: reading those takes longer than most
    commands run.
    """
    top = _TopParser(prog="bridge")
    top.add_argument("--version", action="version", version=f"bridge {__version__}")
    commands = top.add_subparsers(dest="command", metavar="<command>", required=True, parser_class=Parser)
    parsers: dict[str, Parser] = {}

    def command(
        name: str,
        description: str,
        run: Callable[[argparse.Namespace], int],
        fields: Sequence[str] | None,
        words: Any = commands,
    ) -> Parser:
        parser: Parser = words.add_parser(name.split()[-1], description=description, epilog=EPILOGS.get(name))
        parser.set_defaults(run=run, parser=parser)
        if named == name.split()[0]:
            _add_setting_flags(parser, fields)
        parsers[name] = parser
        return parser

    command("serve", "Run the bridge until SIGTERM or Ctrl-C.", _serve, None)

    dev = command(
        "dev", "Start private servers, upgrade the schema, serve here, and say how to try it.", _dev, None
    )
    dev.add_argument("--user", default="u42", metavar="ID", help="the user that the token is for [u42]")

    demo = command(
        "demo",
        "Start the stack, push sample requests to several users, and check the delivery log.",
        _demo,
        ("amqp_url", "postgres_dsn", "log_level"),
    )
    demo.add_argument("--requests", metavar="FILE", help="push requests to publish instead of the samples")

    command("check", "Look at everything that `bridge serve` needs, one line each.", _check, None)

    db = commands.add_parser("db", description="The schema of the delivery log in Postgres.")
    parsers["db"] = db
    words = db.add_subparsers(
        dest="word", metavar="upgrade|status|sql|grant", required=True, parser_class=Parser
    )
    dsn = ("postgres_dsn",)
    command("db upgrade", "Apply the migrations that are missing.", _db_upgrade, dsn, words)
    command("db status", "Print every migration and when it was applied.", _db_status, dsn, words)
    sql = command("db sql", "Print the SQL of the missing migrations; apply nothing.", _db_sql, dsn, words)
    sql.add_argument("--all", action="store_true", help="of all migrations, for an empty database")
    grant = command(
        "db grant",
        "Let a role run the bridge that does not own the schema; as its owner.",
        _db_grant,
        dsn,
        words,
    )
    grant.add_argument("role", metavar="ROLE", help="the role of BRIDGE_POSTGRES_DSN of `bridge serve`")

    token = command(
        "token",
        "Print a token that opens a session of USER.",
        _token,
        ("jwt_secret", "jwt_algorithms", "jwt_issuer", "jwt_audience", "dev"),
    )
    token.add_argument("user", metavar="USER", help="the user whose pushes it gets")
    token.add_argument(
        "--ttl", type=_seconds, default=3600.0, metavar="S", help="seconds it is good for [3600]"
    )

    _add_push_options(
        command("push", "Publish a push request, and print what became of it.", _push, ("amqp_url",))
    )

    tail = command("tail", "Print the ends of pushes as they happen, until Ctrl-C.", _tail, ("amqp_url",))
    tail.add_argument("--outcome", default="*", metavar="X", help="only this outcome: received, unknown, ...")
    tail.add_argument(
        "--event", default="#", metavar="X", help="only these events; * is one word, # any number of words"
    )
    tail.add_argument("--count", type=_count, metavar="N", help="stop after so many")
    tail.add_argument("--json", action="store_true", help="the receipts as they are, one JSON object a line")

    log_and_broker = ("postgres_dsn", "amqp_url")
    why = command("why", "Tell what became of a push, step by step, and why.", _why, log_and_broker)
    why.add_argument("push", metavar="PUSH", help="its id")
    why.add_argument("user", metavar="USER", nargs="?", help="only for this user")
    why.add_argument("--tenant", metavar="ID", help="only of this tenant; an id may occur once in each")
    why.add_argument("--json", action="store_true", help="the rows, one JSON object a line")

    replay = command("replay", "Publish logged pushes again, to the same users.", _replay, log_and_broker)
    replay.add_argument(
        "--where", action="append", required=True, metavar="KEY=VALUE", help="which; may be repeated"
    )
    replay.add_argument("--dry-run", action="store_true", help="only count what matches, and what can be")
    replay.add_argument(
        "--rate", type=_rate, default=100.0, metavar="N", help="pushes a second at most [100]"
    )
    replay.add_argument("--ttl", type=_seconds, metavar="S", help="seconds to keep them [as before]")
    replay.add_argument("--mark", default="1", metavar="NAME", help="to send again what was replayed [1]")

    dead = commands.add_parser("dead", description="The messages in push.dead, for people.")
    parsers["dead"] = dead
    words = dead.add_subparsers(
        dest="word", metavar="list|show|replay|purge", required=True, parser_class=Parser
    )
    _add_dead_options(command, words)

    audit = command("audit", "Look whether the delivery log adds up.", _audit, log_and_broker)
    audit.add_argument("--hours", type=_count, default=24, metavar="N", help="hours to count [24]")
    return top, parsers


def _add_dead_options(command: Callable[..., Parser], words: Any) -> None:
    broker = ("amqp_url",)
    listed = command(
        "dead list", "Print a line for each dead letter, oldest first.", _dead_list, broker, words
    )
    listed.add_argument("--reason", action="append", metavar="R", help="only these; may be repeated")
    listed.add_argument("--json", action="store_true", help="one JSON object a line")
    shown = command("dead show", "Print a dead letter: properties, headers, body.", _dead_show, broker, words)
    shown.add_argument("id", metavar="ID", help="its push id")
    shown.add_argument("--json", action="store_true", help="one JSON object")
    replayed = command("dead replay", "Publish dead letters again.", _dead_replay, broker, words)
    _add_choice(replayed)
    replayed.add_argument(
        "--new-ids",
        action="store_true",
        help="as new pushes (p1/again-...), for those whose users have final rows already",
    )
    replayed.add_argument("--dry-run", action="store_true", help="say what it would do, and do nothing")
    purged = command("dead purge", "Delete dead letters.", _dead_purge, broker, words)
    _add_choice(purged)
    purged.add_argument("--yes", action="store_true", help="do it; without it they are only counted")
    for parser in (listed, shown, replayed, purged):
        parser.add_argument(
            "--limit", type=_count, default=1000, metavar="N", help="letters to look at, oldest first [1000]"
        )


def _add_choice(parser: Parser) -> None:
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--id", action="append", metavar="ID", help="this one; may be repeated")
    choice.add_argument("--reason", action="append", metavar="R", help="all of this reason; may be repeated")
    choice.add_argument("--all", action="store_true", help="all")


def _add_push_options(push: Parser) -> None:
    push.add_argument(
        "request",
        nargs="?",
        metavar="REQUEST",
        help="a whole push request, or a batch, as JSON; - reads stdin",
    )
    request = push.add_argument_group("the request, by parts")
    request.add_argument("--user", action="append", metavar="ID", help="to this user; may be repeated")
    request.add_argument("--session", metavar="ID", help="to this session")
    request.add_argument("--all", action="store_true", help="to everyone who is connected")
    request.add_argument(
        "--except", action="append", metavar="ID", dest="excluded", help="but not to this session"
    )
    request.add_argument("--data", metavar="JSON", help="any JSON value; - reads it from stdin")
    request.add_argument("--text", help="a string, without the quotes that JSON wants")
    request.add_argument("--event", help="the name that the client dispatches on [message]")
    request.add_argument(
        "--confirm", choices=("written", "received", "acked"), help="the proof wanted [received]"
    )
    request.add_argument(
        "--ttl", type=_seconds, metavar="S", help="seconds to keep it for a user who is away [0]"
    )
    request.add_argument(
        "--ack-within", type=_seconds, metavar="S", help="seconds to wait for the ack, with --confirm acked"
    )
    request.add_argument("--collapse-key", metavar="KEY", help="replace older pushes with this key")
    request.add_argument("--id", help="the idempotency key [a new one]")
    request.add_argument("--tenant", help="for analysts")
    request.add_argument("--meta", action="append", metavar="KEY=VALUE", help="for analysts; may be repeated")
    push.add_argument(
        "--wait",
        type=_seconds,
        default=5.0,
        metavar="S",
        help="seconds to wait for the outcomes; 0: don't [5]",
    )
    push.add_argument(
        "--json", action="store_true", help="print the receipts as they are, one JSON object a line"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; raises SystemExit only for --help, --version and usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        print(OVERVIEW, end="")
        return USAGE
    try:
        args = _parse(words)
        code = args.run(args)
        sys.stdout.flush()
        return int(code)
    except SettingsError as error:
        _complain(str(error))
        return USAGE
    except (DatabaseUnsuitable, SchemaBehind) as error:
        _complain(str(error))
        return FAILED
    except (BrokerUnavailable, StoreUnavailable) as error:
        _complain(str(error))
        return UNREACHABLE
    except BridgeError as error:
        _complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever reads has seen enough (`bridge tail | head`); the interpreter must not flush into the void.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception:
        # A defect: all of it is shown, but for what an error text may quote.
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        return FAILED


def _parse(words: Sequence[str]) -> argparse.Namespace:
    top, parsers = build_parser(words[0])
    commands = [name for name in parsers if " " not in name]
    if not words[0].startswith("-") and words[0] not in commands:
        near = difflib.get_close_matches(words[0], commands, n=1)
        top.error(f"there is no command {words[0]}" + (f" (did you mean {near[0]}?)" if near else ""))
    args, unknown = top.parse_known_args(words)
    if unknown:
        parser: Parser = args.parser
        options = re.findall(r"--[a-z-]+", parser.format_help())
        # Not its value, which may be a secret.
        word = unknown[0].partition("=")[0]
        if not word.startswith("-"):
            parser.error("there is a word too many; a value with a space in it wants quotes")
        near = difflib.get_close_matches(word, options, n=1)
        parser.error(f"what is {word}?" + (f" (did you mean {near[0]}?)" if near else ""))
    return args


def _add_setting_flags(parser: Parser, fields: Sequence[str] | None) -> None:
    """Give the parser a flag for each of these settings (None: for every one), in groups."""
    from bridge.config import GROUPS, Settings, default_text, expected, flag_name

    for title, names in GROUPS.items():
        shown = [name for name in names if fields is None or name in fields]
        if not shown:
            continue
        group = parser.add_argument_group(title[0].lower() + title[1:])
        for name in shown:
            info = Settings.model_fields[name]
            words = (info.description or "").replace("`", "").rstrip(".")
            kwargs: dict[str, Any] = {"dest": f"setting.{name}", "default": argparse.SUPPRESS}
            if info.annotation is bool:
                kwargs["action"] = argparse.BooleanOptionalAction
            else:
                kwargs["metavar"] = _metavar(expected(name, info))
            default = default_text(name).replace("`", "")
            words += f" [{default}]" if default else ""
            group.add_argument(flag_name(name), help=words.replace("%", "%%"), **kwargs)


def _metavar(wanted: str) -> str:
    if wanted.startswith("one of "):
        return "|".join(wanted.removeprefix("one of ").split(", "))
    return "N" if wanted else "X"


def _load(kind: type[S], args: argparse.Namespace) -> S:
    return kind.load(_flags(args))


def _flags(args: argparse.Namespace) -> dict[str, object]:
    return {k.removeprefix("setting."): v for k, v in vars(args).items() if k.startswith("setting.")}


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e9:
        raise argparse.ArgumentTypeError(f"seconds expected, not {text!r}")
    return seconds


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.1 <= rate <= 1e6:
        raise argparse.ArgumentTypeError(f"a number from 0.1 to 1000000 expected, not {text!r}")
    return rate


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a whole number from 1 expected, not {text!r}")
    return int(text)


def _complain(message: str, stream: TextIO | None = None) -> None:
    for line in redact(message).splitlines() or [""]:
        print(f"bridge: {line}", file=stream or sys.stderr)


# --- What each command loads and calls: imports are made here, so that none pays for another's -------------


def _quiet_logs(args: argparse.Namespace, settings: CommonSettings) -> None:
    """For commands that print their own story: only warnings, unless a level was asked for."""
    from bridge.adapters import logs

    asked = "setting.log_level" in vars(args) or "log_level" in settings.model_fields_set
    logs.setup(settings.log_level if asked else "warning", settings.log_format)


def _serve(args: argparse.Namespace) -> int:
    from bridge.cli import commands
    from bridge.config import Settings

    settings = _load(Settings, args)
    return commands.run_loop(commands.serve(settings), uvloop=settings.uvloop)


def _dev(args: argparse.Namespace) -> int:
    from bridge.cli import dev

    return dev.main(_flags(args), user=args.user)


def _demo(args: argparse.Namespace) -> int:
    from bridge.cli import demo
    from bridge.config import ENV_FILE, CommonSettings

    # What `.dev/env` says belongs to a running `bridge dev`, which would take the messages first.
    settings = CommonSettings.load({**_flags(args), "_env_file": ENV_FILE})
    _quiet_logs(args, settings)
    return demo.main(settings, requests=args.requests)


def _check(args: argparse.Namespace) -> int:
    from bridge.cli import checking, commands
    from bridge.config import Settings

    try:
        settings = _load(Settings, args)
    except SettingsError as error:
        return checking.settings_are_wrong(error)
    _quiet_logs(args, settings)
    return commands.run_loop(checking.check(settings), uvloop=settings.uvloop)


def _db_upgrade(args: argparse.Namespace) -> int:
    from bridge.cli import commands
    from bridge.config import CommonSettings

    return commands.db_upgrade(_load(CommonSettings, args))


def _db_status(args: argparse.Namespace) -> int:
    from bridge.cli import commands
    from bridge.config import CommonSettings

    return commands.db_status(_load(CommonSettings, args))


def _db_sql(args: argparse.Namespace) -> int:
    from bridge.cli import commands
    from bridge.config import CommonSettings

    return commands.db_sql(_load(CommonSettings, args), everything=args.all)


def _db_grant(args: argparse.Namespace) -> int:
    from bridge.cli import commands
    from bridge.config import CommonSettings

    return commands.db_grant(_load(CommonSettings, args), args.role)


def _token(args: argparse.Namespace) -> int:
    from bridge.cli import commands
    from bridge.config import TokenSettings

    return commands.token(_load(TokenSettings, args), args.user, args.ttl)


def _push(args: argparse.Namespace) -> int:
    from bridge.cli import commands
    from bridge.config import CommonSettings

    settings = _load(CommonSettings, args)
    _quiet_logs(args, settings)
    body = commands.push_body(args)
    return commands.run_loop(commands.push(settings, body, args.wait, as_json=args.json), uvloop=False)


def _tail(args: argparse.Namespace) -> int:
    from bridge.cli import commands
    from bridge.config import CommonSettings

    settings = _load(CommonSettings, args)
    _quiet_logs(args, settings)
    key = f"{args.outcome}.{args.event}"
    return commands.run_loop(commands.tail(settings, key, count=args.count, as_json=args.json), uvloop=False)


def _why(args: argparse.Namespace) -> int:
    from bridge.cli import commands, operating
    from bridge.config import CommonSettings

    settings = _load(CommonSettings, args)
    _quiet_logs(args, settings)
    told = operating.why(settings, args.push, args.user, args.tenant, as_json=args.json)
    return commands.run_loop(told, uvloop=False)


def _replay(args: argparse.Namespace) -> int:
    from bridge.cli import commands, operating
    from bridge.config import CommonSettings

    settings = _load(CommonSettings, args)
    _quiet_logs(args, settings)
    replayed = operating.replay(
        settings, args.where, mark=args.mark, rate=args.rate, ttl=args.ttl, dry_run=args.dry_run
    )
    return commands.run_loop(replayed, uvloop=False)


def _dead_list(args: argparse.Namespace) -> int:
    from bridge.cli import commands, operating
    from bridge.config import CommonSettings

    settings = _load(CommonSettings, args)
    _quiet_logs(args, settings)
    listed = operating.dead_list(settings, args.reason or (), limit=args.limit, as_json=args.json)
    return commands.run_loop(listed, uvloop=False)


def _dead_show(args: argparse.Namespace) -> int:
    from bridge.cli import commands, operating
    from bridge.config import CommonSettings

    settings = _load(CommonSettings, args)
    _quiet_logs(args, settings)
    shown = operating.dead_show(settings, args.id, limit=args.limit, as_json=args.json)
    return commands.run_loop(shown, uvloop=False)


def _dead_replay(args: argparse.Namespace) -> int:
    from bridge.cli import commands, operating
    from bridge.config import CommonSettings

    settings = _load(CommonSettings, args)
    _quiet_logs(args, settings)
    replayed = operating.dead_replay(
        settings,
        args.id or (),
        args.reason or (),
        limit=args.limit,
        new_ids=args.new_ids,
        dry_run=args.dry_run,
    )
    return commands.run_loop(replayed, uvloop=False)


def _dead_purge(args: argparse.Namespace) -> int:
    from bridge.cli import commands, operating
    from bridge.config import CommonSettings

    settings = _load(CommonSettings, args)
    _quiet_logs(args, settings)
    purged = operating.dead_purge(settings, args.id or (), args.reason or (), limit=args.limit, yes=args.yes)
    return commands.run_loop(purged, uvloop=False)


def _audit(args: argparse.Namespace) -> int:
    from bridge.cli import commands, operating
    from bridge.config import CommonSettings

    settings = _load(CommonSettings, args)
    _quiet_logs(args, settings)
    return commands.run_loop(operating.audit(settings, args.hours), uvloop=False)
