"""From the parsed command line to settings, log and loop: what the commands have in common before they begin."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from bridge.cli.parser import DEST_PREFIX

if TYPE_CHECKING:
    from bridge.config import CommonSettings

S = TypeVar("S", bound="CommonSettings")


def flags(args: Namespace) -> dict[str, object]:
    """The settings that the command line gives, by field."""
    return {k.removeprefix(DEST_PREFIX): v for k, v in vars(args).items() if k.startswith(DEST_PREFIX)}


def load(kind: type[S], args: Namespace) -> S:
    """Settings from the command line and all other places; raises SettingsError."""
    return kind.load(flags(args))


def quiet_logs(args: Namespace, settings: CommonSettings) -> None:
    """Log only warnings, unless a level was asked for: the command prints its own story."""
    from bridge.adapters import logs
    from bridge.adapters.actions import LOGGER

    asked = f"{DEST_PREFIX}log_level" in vars(args) or "log_level" in settings.model_fields_set
    logs.setup(settings.log_level if asked else "warning", settings.log_format)
    # Whoever changes something by hand leaves a line, whatever else is quiet.
    logging.getLogger(LOGGER).setLevel(logging.INFO)


def run_quietly(args: Namespace, story: Callable[[CommonSettings], Coroutine[Any, Any, int]]) -> int:
    """Run a command that takes the common settings and prints its own story."""
    from bridge.cli.loop import run_loop
    from bridge.config import CommonSettings

    settings = load(CommonSettings, args)
    quiet_logs(args, settings)
    return run_loop(story(settings), uvloop=False)
