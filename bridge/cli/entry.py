"""Where the `bridge` command begins and ends: it finds the command, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import traceback
from collections.abc import Sequence

from bridge.cli.parser import DONE, FAILED, INTERRUPTED, UNREACHABLE, USAGE, Parser
from bridge.cli.parsers import OVERVIEW, build_parser
from bridge.core.errors import (
    BridgeError,
    BrokerUnavailable,
    DatabaseUnsuitable,
    SchemaBehind,
    SettingsError,
    StoreUnavailable,
)
from bridge.core.redaction import redact
from bridge.workers.errors import WorkerRefused


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
    except BridgeError as error:
        for line in redact(str(error)).splitlines() or [""]:
            print(f"bridge: {line}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough (`bridge tail | head`). The interpreter must not flush into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception:
        # A bug: everything is shown, except secrets that an error text may quote.
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        return FAILED


def exit_code(error: BridgeError) -> int:
    """What the program exits with after this error."""
    match error:
        case WorkerRefused():
            return error.code
        case SettingsError():
            return USAGE
        case DatabaseUnsuitable() | SchemaBehind():
            # The database was reached; waiting for it would not help.
            return FAILED
        case BrokerUnavailable() | StoreUnavailable():
            return UNREACHABLE
        case _:
            return FAILED


def _parse(words: Sequence[str]) -> argparse.Namespace:
    top, parsers = build_parser(words[0])
    commands = [name for name in parsers if " " not in name]
    if not words[0].startswith("-") and words[0] not in commands:
        top.error(f"there is no command {words[0]}{_hint(words[0], commands)}")
    args, unknown = top.parse_known_args(words)
    if unknown:
        parser: Parser = args.parser
        # Not its value, which may be a secret.
        word = unknown[0].partition("=")[0]
        if not word.startswith("-"):
            parser.error("there is a word too many; a value with a space in it needs quotes")
        options = re.findall(r"--[a-z-]+", parser.format_help())
        parser.error(f"there is no option {word}{_hint(word, options)}")
    return args


def _hint(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
