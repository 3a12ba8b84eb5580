"""Renders docs/reference/settings.md and cli.md: `python -m tests.support.reference_settings` writes them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from bridge.cli.parsers import OVERVIEW, build_parser
from bridge.config import GROUPS, Settings, default_text, env_name, expected_value, flag_name

REFERENCE = Path(__file__).parent.parent.parent / "docs" / "reference"
MARK = "<!-- Written by `python -m tests.support.reference_settings` from {}. -->"


def settings_page() -> str:
    """docs/reference/settings.md as it must be."""
    lines = [
        "# Settings",
        "",
        MARK.format("bridge/config/settings.py"),
        "",
        "A value is looked for in this order:",
        "",
        "1. a flag of the same name: `BRIDGE_WS_PORT` is `--ws-port`, `BRIDGE_DEV` is `--dev` or `--no-dev`",
        "2. the environment",
        "3. the file `.env` in the working directory",
        "4. the file `.dev/env` there, which `bridge dev` keeps while it runs, so that other commands find it",
        "5. a file of the variable's name, in any case, in the secrets directory: `BRIDGE_SECRETS_DIR`, or",
        "   `/run/secrets` where that exists",
        "6. the default",
        "",
        "Lists are comma-separated. An empty variable counts as not set. A wrong value refuses the start with",
        "exit code 2; all wrong ones are told at once, each with what was expected. `bridge check` looks at them",
        "without starting anything, and points out variables that are nearly right. Passwords and tokens are",
        "shown nowhere: not in errors, not in logs.",
    ]
    for title, names in GROUPS.items():
        lines += ["", f"## {title}", "", "| variable | default | value | meaning |", "|---|---|---|---|"]
        for name in names:
            info = Settings.model_fields[name]
            default = default_text(name)
            shown = default if default == "the host name" else f"`{default}`" if default else ""
            wanted = (
                expected_value(name, info)
                .replace("a whole number", "whole number")
                .replace("a number", "number")
            )
            cells = (f"`{env_name(name)}`", shown, wanted, info.description or "")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def cli_page() -> str:
    """docs/reference/cli.md as it must be."""
    lines = [
        "# The command `bridge`",
        "",
        MARK.format("bridge/cli/parsers"),
        "",
        "```text",
        OVERVIEW.rstrip(),
        "```",
        "",
        "| exit code | meaning |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | it found or caused a failure |",
        "| 2 | usage or settings |",
        "| 3 | broker or database unreachable |",
        "| 130 | interrupted |",
    ]
    for name, parser in build_parser()[1].items():
        if parser.epilog is None:
            continue
        lines += ["", f"## bridge {name}", "", parser.description or ""]
        remark, _, examples = (
            parser.epilog.rpartition("\n\n") if "\n\n" in parser.epilog else ("", "", parser.epilog)
        )
        if not examples.startswith("  "):
            remark, examples = examples, ""
        lines += ["", remark] if remark else []
        lines += (
            ["", "```console", *(f"$ {line.strip()}" for line in examples.splitlines()), "```"]
            if examples
            else []
        )
        lines += _options(parser)
        lines += ["", _settings_of(name)]
    return "\n".join([*lines, ""])


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    rows = [
        f"| `{_shape(action)}` | {(action.help or '').replace('*', chr(92) + '*')} |"
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    if rows:
        yield from ("", "| option | meaning |", "|---|---|", *rows)


def _shape(action: argparse.Action) -> str:
    words = [*action.option_strings]
    if action.nargs != 0:
        choices: Sequence[str] = tuple(action.choices or ())
        words.append("\\|".join(choices) if choices else str(action.metavar or action.dest.upper()))
    return " ".join(words)


def _settings_of(name: str) -> str:
    with_flags = build_parser(name.split()[0])[1][name]
    flags = {option for action in with_flags._actions for option in action.option_strings}
    taken = [field for names in GROUPS.values() for field in names if flag_name(field) in flags]
    if len(taken) == len(Settings.model_fields):
        return "Settings: [all of them](settings.md)."
    return "Settings: " + ", ".join(f"[`{flag_name(field)}`](settings.md)" for field in taken) + "."


if __name__ == "__main__":
    (REFERENCE / "settings.md").write_text(settings_page())
    (REFERENCE / "cli.md").write_text(cli_page())
