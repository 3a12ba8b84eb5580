"""The commands that use a running bridge: token, push, tail, revoke, canary."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from bridge.cli.loading import load, run_quietly
from bridge.cli.parser import Command, Parser, address, count, filtered, moment, name, pattern, seconds


def _token(args: Namespace) -> int:
    from bridge.cli import tokens
    from bridge.config import TokenSettings

    may = {"topics": args.topic, "subscribe": args.subscribe, "publish": args.publish}
    return tokens.token(load(TokenSettings, args), args.user, args.ttl, may)


def _token_options(parser: Parser) -> None:
    parser.add_argument("user", metavar="USER", help="the user whose pushes it gets")
    parser.add_argument(
        "--ttl", type=seconds, default=3600.0, metavar="S", help="seconds that it is valid [3600]"
    )
    parser.add_argument(
        "--topic", action="append", type=name, metavar="NAME", help="a topic that it has; may be repeated"
    )
    for claim, what in (("subscribe", "topics that it may subscribe to"), ("publish", "what it may publish")):
        parser.add_argument(
            f"--{claim}",
            action="append",
            type=pattern,
            metavar="PATTERN",
            help=f"a pattern of {what}, such as chat.*; may be repeated",
        )


def _push(args: Namespace) -> int:
    from bridge.cli.push import push, push_body

    return run_quietly(args, lambda settings: push(settings, push_body(args), args.wait, as_json=args.json))


def _push_options(push: Parser) -> None:
    push.add_argument(
        "request",
        nargs="?",
        metavar="REQUEST",
        help="a whole push request, or a batch, as JSON; - reads stdin",
    )
    request = push.add_argument_group("the request in parts")
    request.add_argument("--user", action="append", metavar="ID", help="to this user; may be repeated")
    request.add_argument("--session", metavar="ID", help="to this session")
    request.add_argument("--topic", metavar="NAME", help="to everyone who is subscribed to this topic")
    request.add_argument("--all", action="store_true", help="to everyone who is connected")
    request.add_argument(
        "--except", action="append", metavar="ID", dest="excluded", help="but not to this session"
    )
    request.add_argument("--data", metavar="JSON", help="any JSON value; - reads it from stdin")
    request.add_argument("--text", help="a string, without the quotes of JSON")
    request.add_argument("--event", help="the name that the client dispatches on [message]")
    request.add_argument(
        "--confirm", choices=("written", "received", "acked"), help="the proof to wait for [received]"
    )
    request.add_argument("--ttl", type=seconds, metavar="S", help="seconds to keep it for an absent user [0]")
    request.add_argument(
        "--ack-within", type=seconds, metavar="S", help="seconds to wait for the ack, with --confirm acked"
    )
    request.add_argument(
        "--devices",
        metavar="all|first",
        help="first: the first ack takes it back from the user's other sessions",
    )
    request.add_argument(
        "--retain", action="store_true", help="with --topic: who subscribes later gets it first"
    )
    request.add_argument(
        "--fallback-after",
        type=seconds,
        metavar="S",
        help="seconds after which it is published to push.fallback if nobody has proven it",
    )
    request.add_argument("--fallback-key", metavar="KEY", help="the routing key there")
    request.add_argument("--collapse-key", metavar="KEY", help="replace older pushes with this key")
    request.add_argument(
        "--deliver-at",
        type=moment,
        metavar="T",
        help="deliver it then: unix seconds, or +S, so many seconds from now",
    )
    request.add_argument("--id", help="the idempotency key [a new one]")
    request.add_argument("--tenant", help="for analysts")
    request.add_argument("--meta", action="append", metavar="KEY=VALUE", help="for analysts; may be repeated")
    push.add_argument(
        "--wait",
        type=seconds,
        default=5.0,
        metavar="S",
        help="seconds to wait for the outcomes; 0: don't [5]",
    )
    push.add_argument("--json", action="store_true", help="print the receipts as JSON, one a line")


def _tail(args: Namespace) -> int:
    from bridge.cli.tail import tail
    from bridge.operator.watching import Filter, filter_of

    wanted = filter_of({field: getattr(args, field) for field in Filter._fields})
    return run_quietly(args, lambda settings: tail(settings, wanted, count=args.count, as_json=args.json))


def _tail_options(parser: Parser) -> None:
    for field, metavar, told in (
        ("user", "ID", "only of this user"),
        ("push-id", "ID", "only of this push"),
        ("event", "X", "only these events; * is one word, # any number of words"),
        ("topic", "X", "only what was published to these topics; * and # as in events"),
        ("tenant", "ID", "only of this tenant"),
        ("outcome", "X", "only this outcome: received, unknown, ..."),
        ("reason", "X", "only with this reason: no_session, ttl, ..."),
        (
            "party",
            "X",
            "only those that this party could have made end better: publisher, bridge, peer, network, policy",
        ),
    ):
        parser.add_argument(f"--{field}", type=filtered(field.replace("-", "_")), metavar=metavar, help=told)
    parser.add_argument("--count", type=count, metavar="N", help="stop after N outcomes")
    parser.add_argument("--json", action="store_true", help="print the receipts as JSON, one a line")


def _revoke(args: Namespace) -> int:
    from bridge.cli.revoke import revocation_of, revoke

    revocation = revocation_of(args.user, args.before, args.jti, args.session)
    return run_quietly(args, lambda settings: revoke(settings, revocation, as_json=args.json))


def _revoke_options(parser: Parser) -> None:
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--user", metavar="ID", help="all tokens of this user that were issued until now")
    choice.add_argument("--jti", metavar="ID", help="the token with this id")
    choice.add_argument("--session", metavar="ID", help="this session, and the token that opened it")
    parser.add_argument(
        "--before", type=float, metavar="S", help="only those issued before this time, in unix seconds [now]"
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def _canary(args: Namespace) -> int:
    from bridge.cli.canary import canary
    from bridge.cli.dev import sigterm_interrupts
    from bridge.cli.loading import quiet_logs
    from bridge.cli.loop import run_loop
    from bridge.config import CommonSettings, TokenSettings

    settings = load(TokenSettings if args.token_file is None else CommonSettings, args)
    quiet_logs(args, settings)
    story = canary(
        settings,
        url=args.url,
        token_file=args.token_file,
        every=args.every,
        timeout=args.timeout,
        count=args.count,
        metrics=args.metrics,
        as_json=args.json,
    )
    with sigterm_interrupts():
        return run_loop(story, uvloop=False)


def _canary_options(parser: Parser) -> None:
    parser.add_argument(
        "--url",
        metavar="WS",
        default="ws://127.0.0.1:8181/ws",
        help="where it connects, as a browser does [ws://127.0.0.1:8181/ws]",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="a token for a user of its own, read at each connect [one made with BRIDGE_JWT_SECRET]",
    )
    parser.add_argument("--every", type=seconds, default=1.0, metavar="S", help="seconds between pushes [1]")
    parser.add_argument(
        "--timeout", type=seconds, default=10.0, metavar="S", help="seconds after which one has failed [10]"
    )
    parser.add_argument("--count", type=count, metavar="N", help="stop after N pushes")
    parser.add_argument(
        "--metrics", type=address, metavar="[HOST:]PORT", help="serve its own /metrics for Prometheus there"
    )
    parser.add_argument("--json", action="store_true", help="print each push as JSON, one a line")


COMMANDS: Final = (
    Command(
        "token",
        "Print a token that opens a session of USER.",
        _token,
        ("jwt_secret", "jwt_algorithms", "jwt_issuer", "jwt_audience", "dev"),
        '  bridge token u42 --ttl 600\n  python -m websockets "ws://127.0.0.1:8181/ws?token=$(bridge token u42)"',
        _token_options,
    ),
    Command(
        "push",
        "Publish a push request, and print what became of it.",
        _push,
        ("amqp_url",),
        "Exits 0 when every push ended as acked, received or written, or is kept (stored); 1 otherwise.\n\n"
        "  bridge push --user u42 --data '{\"hi\": 1}'\n"
        "  bridge push --user u42 --user u43 --event order.paid --text 'thank you' --confirm acked\n"
        "  bridge push --user u42 --event balance --data 17 --ttl 86400 --collapse-key balance\n"
        "  bridge push --topic room.7 --text 'hello, all of you'\n"
        '  bridge push \'{"to": {"user": "u42"}, "data": 1}\'\n'
        "  cat request.json | bridge push -",
        _push_options,
    ),
    Command(
        "tail",
        "Print outcomes as they happen, until Ctrl-C.",
        _tail,
        ("amqp_url",),
        "What is given must all fit. GET /v1/outcomes of the ops port has the same filters, and so has the console.\n\n"
        "  bridge tail --outcome unknown --event 'order.*'\n  bridge tail --tenant shop --party bridge",
        _tail_options,
    ),
    Command(
        "revoke",
        "Close sessions on all nodes, and refuse their tokens from now on.",
        _revoke,
        ("postgres_dsn",),
        "Exits 1 when a live node has not confirmed it within two seconds.\n\n"
        "  bridge revoke --user u42\n  bridge revoke --jti 4f1c",
        _revoke_options,
    ),
    Command(
        "canary",
        "Push to a session of its own, each second, and say what fails, until Ctrl-C.",
        _canary,
        ("amqp_url", "jwt_secret", "jwt_algorithms", "jwt_issuer", "jwt_audience"),
        "Exits 1 if any push failed. A push is good when its session was shown it and its receipt says acked. Its\n"
        "rows have the event bridge.canary.\n\n"
        "  bridge canary --url wss://push.example.org/ws --metrics 9183\n"
        "  bridge canary --count 5",
        _canary_options,
    ),
)
