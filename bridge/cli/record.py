"""Who runs this command, and the record of what it changes."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bridge.adapters.actions import OnRecord
from bridge.adapters.postgres.actions import PostgresActions
from bridge.config import CommonSettings


def actor() -> str:
    """The user of the operating system, as the record names it. The environment has no say in it."""
    try:
        import pwd
    except ImportError:  # not a POSIX system
        return f"cli:{getpass.getuser()}"
    number = os.getuid()
    try:
        return f"cli:{pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"cli:{number}"


@asynccontextmanager
async def on_record(settings: CommonSettings, *, rows: bool = True) -> AsyncIterator[OnRecord]:
    """The record for one command. `rows`: False for lines of the log alone."""
    node = socket.gethostname()
    if not rows:
        yield OnRecord(None, node)
        return
    actions = PostgresActions(settings.postgres_dsn, "command")
    try:
        yield OnRecord(actions, node)
    finally:
        await actions.close()
