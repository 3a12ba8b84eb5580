"""argparse as the command uses it: help that keeps its line breaks, hints, kinds of values, flags of settings."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple, NoReturn

from bridge.core.redaction import redact

DONE, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: done; it found or caused a failure; usage or settings; broker or database unreachable; interrupted."""

AGE_MAX: Final = timedelta(days=400)
"""Counts of hours are kept so long."""
DEST_PREFIX: Final = "setting."
"""Sets the flags of settings apart from a command's own options."""


class Parser(argparse.ArgumentParser):
    """argparse with help that keeps its line breaks, and without abbreviations."""

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


def no_options(parser: Parser) -> None:
    """For a command without options of its own."""


class Command(NamedTuple):
    """A command: its words, its help, and what runs it."""

    name: str
    """One word, or two for a command of a group: `dead list`."""
    description: str
    run: Callable[[argparse.Namespace], int]
    """Returns the exit code. It imports what it needs, so that no command pays for another's libraries."""
    settings: Sequence[str] | None
    """The settings that it has flags for; None: all of them."""
    epilog: str
    """A remark, then examples behind an empty line."""
    add_options: Callable[[Parser], None] = no_options

    @property
    def group(self) -> str:
        """Its first word."""
        return self.name.split()[0]


def add_setting_flags(parser: Parser, fields: Sequence[str] | None) -> None:
    """Give the parser a flag for each of these settings (None: for every one), in groups."""
    from bridge.config import GROUPS, Settings, default_text, expected_value, flag_name

    for title, names in GROUPS.items():
        shown = [name for name in names if fields is None or name in fields]
        if not shown:
            continue
        group = parser.add_argument_group(title[0].lower() + title[1:])
        for name in shown:
            info = Settings.model_fields[name]
            words = (info.description or "").replace("`", "").rstrip(".")
            kwargs: dict[str, Any] = {"dest": DEST_PREFIX + name, "default": argparse.SUPPRESS}
            if info.annotation is bool:
                kwargs["action"] = argparse.BooleanOptionalAction
            else:
                kwargs["metavar"] = _metavar(expected_value(name, info))
            default = default_text(name).replace("`", "")
            words += f" [{default}]" if default else ""
            group.add_argument(flag_name(name), help=words.replace("%", "%%"), **kwargs)


def _metavar(wanted: str) -> str:
    if wanted.startswith("one of "):
        return "|".join(wanted.removeprefix("one of ").split(", "))
    return "N" if wanted else "X"


# --- Kinds of values -------------------------------------------------------------------------------------


def seconds(text: str) -> float:
    """Seconds, with or without a fraction."""
    return _number(text, 0, 1e9, "seconds expected")


def moment(text: str) -> float:
    """Unix seconds, or `+S`: so many seconds from now."""
    if text.startswith("+"):
        return round(time.time() + seconds(text[1:]), 3)
    return _number(text, 1, 1e11, "unix seconds expected, or +S for so many seconds from now")


def age(text: str) -> timedelta:
    """How long ago: a number and min, h, d or w."""
    found = re.fullmatch(r"(\d{1,6})(min|h|d|w)", text)
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"an age such as 90min, 24h, 7d or 4w expected, not {text!r}")
    units = {
        "min": timedelta(minutes=1),
        "h": timedelta(hours=1),
        "d": timedelta(days=1),
        "w": timedelta(weeks=1),
    }
    length = int(found[1]) * units[found[2]]
    if length > AGE_MAX:
        raise argparse.ArgumentTypeError(f"at most {AGE_MAX.days} days are counted, not {text!r}")
    return length


def rate(text: str) -> float:
    """How many a second."""
    return _number(text, 0.1, 1e6, "a number from 0.1 to 1000000 expected")


def _number(text: str, least: float, most: float, expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{expected}, not {text!r}")
    return number


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a whole number from 1 expected, not {text!r}")
    return int(text)


def address(text: str) -> tuple[str, int]:
    """A port, of loopback, or `HOST:PORT`."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"a port, or HOST:PORT expected, not {text!r}")
    return host.strip("[]") or "127.0.0.1", int(port)


def name(text: str) -> str:
    """The name of a topic, for argparse."""
    from bridge.core.contract.patterns import name_problem

    return _without(name_problem(text), text)


def pattern(text: str) -> str:
    """A pattern of names, for argparse."""
    from bridge.core.contract.patterns import pattern_problem

    return _without(pattern_problem(text), text)


def filtered(field: str) -> Callable[[str], str]:
    """A value that an outcome may have in this field of `bridge.operator.watching.Filter`, for argparse."""

    def checked(text: str) -> str:
        from bridge.operator.watching import WrongFilter, filter_of

        try:
            filter_of({field: text})
        except WrongFilter as error:
            raise argparse.ArgumentTypeError(f"{error.expected} expected, not {text!r}") from None
        return text

    return checked


def _without(problem: str, text: str) -> str:
    if problem:
        raise argparse.ArgumentTypeError(problem)
    return text
