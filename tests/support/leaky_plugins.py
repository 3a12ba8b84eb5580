"""Plug-ins that tell everything they know, as those of others may: hooks that fail, and an error handler."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping

from bridge.core.model.rows import Row
from bridge.core.ports.plugins import SessionInfo


class Hooks:
    """Fails with the environment in its error, and with another error behind it."""

    def on_open(self, session: SessionInfo) -> None:
        try:
            raise OSError(2, f"no such place: {os.environ['BRIDGE_POSTGRES_DSN']}")
        except OSError as error:
            raise RuntimeError(f"connecting to {os.environ['BRIDGE_AMQP_URL']} failed") from error

    def on_outcome(self, row: Row) -> None:
        raise LookupError(os.environ["BRIDGE_JWT_SECRET"], os.environ["BRIDGE_OPS_TOKEN"])


class Errors:
    """Prints all that it is given."""

    def handle(self, error: BaseException, where: str, facts: Mapping[str, object]) -> None:
        print("REPORTED", where, dict(facts), repr(error), *traceback.format_exception(error), flush=True)
