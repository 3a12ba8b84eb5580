"""The words of the command line: a file for each group of commands, and here all of them in one parser.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bridge import __version__
from bridge.cli.parser import Command, Parser, add_setting_flags
from bridge.cli.parsers import investigating, publishing, running

OVERVIEW: Final = """\
usage: bridge <command> [options]

Push requests from RabbitMQ to a person's WebSockets, with proof.

see it
  demo        the whole story in under a minute, checked against the delivery log
  dev         private servers, the bridge and a demo page, on this machine

run it
  db          upgrade, status, sql, grant: the schema of the delivery log
  check       check that serve would work, one line for each of its parts
  serve       run the bridge
  drain       stop a node, and see its sessions move to others

use it
  token       make a token that opens a session
  push        publish a push request and print what became of it
  tail        print outcomes as they happen
  revoke      log a user, a token or a session out, on all nodes

look into it
  why         what became of a push, step by step, and why
  who         whether a user is online, where, and their last pushes
  nodes       which bridges run with this database, and what they do
  replay      publish logged pushes again, chosen by user, event, outcome, time
  dead        list, show, replay, purge: the messages that need a person
  forget      erase what was pushed to a user, and rename them wherever they are named
  report      how many pushes were delivered, how fast, and why others were not
  audit       check that the delivery log adds up
  canary      a push a second through everything, shown, proven and timed

bridge <command> --help says more. Settings come from BRIDGE_* in the environment, a .env file,
secret files or flags. Exit codes: 0 done, 1 it found or caused a failure, 2 usage or settings,
3 broker or database unreachable, 130 interrupted.
"""

COMMANDS: Final[tuple[Command, ...]] = (*running.COMMANDS, *publishing.COMMANDS, *investigating.COMMANDS)
_GROUPS: Final = {
    "db": "The schema of the delivery log in Postgres.",
    "dead": "The messages in push.dead, for people.",
}
"""Words that take a second word."""


class _TopParser(Parser):
    def format_help(self) -> str:
        return OVERVIEW


def build_parser(named: str = "") -> tuple[Parser, Mapping[str, Parser]]:
    """The parser of all commands, and that of each command or group by its name.

    Only the command that is `named` gets the flags of its settings: reading those takes longer than most
    commands run.
    """
    top = _TopParser(prog="bridge")
    top.add_argument("--version", action="version", version=f"bridge {__version__}")
    words: dict[str, Any] = {
        "": top.add_subparsers(dest="command", metavar="<command>", required=True, parser_class=Parser)
    }
    parsers: dict[str, Parser] = {}
    for command in COMMANDS:
        group, _, word = command.name.rpartition(" ")
        if group not in words:
            parsers[group] = words[""].add_parser(group, description=_GROUPS[group])
            second = [c.name.split()[1] for c in COMMANDS if c.group == group]
            words[group] = parsers[group].add_subparsers(
                dest="word", metavar="|".join(second), required=True, parser_class=Parser
            )
        parser: Parser = words[group].add_parser(word, description=command.description, epilog=command.epilog)
        parser.set_defaults(run=command.run, parser=parser)
        if named == command.group:
            add_setting_flags(parser, command.settings)
        command.add_options(parser)
        parsers[command.name] = parser
    return top, parsers
