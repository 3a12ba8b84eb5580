"""Structured logs: text on a terminal, JSON lines otherwise, and a last line of defence against secrets.

Log ids and counts, never tokens or payloads. If a token slips through, `bridge.core.redaction` removes it. It can't
recognise payloads, so libraries that log what they carry are kept quiet at any level.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, TextIO

from pythonjsonlogger.json import JsonFormatter

from bridge.core.redaction import redact

QUIET: Final = (
    "websockets",
    "aiohttp",
    "asyncio",
    "psycopg",
    "pamqp",
)
"""Libraries that log frames, queries or request lines at DEBUG or INFO: they log from WARNING on."""

SILENT: Final = ("aiormq", "aio_pika")
"""Libraries whose errors all reach the ErrorHandler with their cause: their own lines would repeat it."""

_SECRET_KEY: Final = re.compile(r"(?:^|[_-])(?:token|password|secret|authorization)$", re.IGNORECASE)

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
}


class TextFormatter(logging.Formatter):
    """`12:04:31.250 info    bridge: message  key=value`, one line for each record that has no traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record for people. Control characters in what others sent can't forge a line."""
        clock = f"{time.strftime('%H:%M:%S', time.localtime(record.created))}.{int(record.msecs):03d}"
        line = f"{clock} {record.levelname.lower():<7} {record.name}: {record.getMessage()}"
        facts = [f"{k}={v!r}" if isinstance(v, str) else f"{k}={v}" for k, v in _facts(record).items()]
        line = _CONTROLS.sub(lambda m: repr(m.group())[1:-1], "  ".join([line, *facts]))
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        if record.stack_info:
            line += "\n" + self.formatStack(record.stack_info)
        return redact(line)


class JsonLineFormatter(JsonFormatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, the fields of `extra`, exception."""

    def __init__(self) -> None:
        super().__init__(
            ["message"],
            rename_fields={"exc_info": "exception", "stack_info": "stack"},
            json_ensure_ascii=False,
        )

    def add_fields(
        self,
        log_data: dict[str, object],
        record: logging.LogRecord,
        message_dict: dict[str, object],
    ) -> None:
        """Put the fields first that every line has."""
        moment = datetime.fromtimestamp(record.created, UTC)
        log_data["time"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        log_data["level"] = record.levelname.lower()
        log_data["logger"] = record.name
        super().add_fields(log_data, record, message_dict)

    def process_log_record(self, log_data: dict[str, object]) -> dict[str, object]:
        """Redact each value before it is encoded: afterwards quotes are escaped and secrets harder to find."""
        return {key: _clean(key, value) for key, value in super().process_log_record(log_data).items()}


class _Named(logging.Filter):
    """Gives each record the node whose it is, where several processes write to one place."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def filter(self, record: logging.LogRecord) -> bool:
        """Keeps every record."""
        if not hasattr(record, "node"):
            record.node = self._node
        return True


def setup(
    level: str = "info", style: str = "auto", stream: TextIO | None = None, *, node: str = ""
) -> logging.Handler:
    """Send every log record of the process to `stream` (default: standard error) in this style.

    `level` and `style` are values of the settings `log_level` and `log_format`. `node`: what every line is to name.
    A second call replaces the handler of the first and leaves other handlers alone. Returns the handler.
    """
    out = sys.stderr if stream is None else stream
    text = style == "text" or (style == "auto" and out.isatty())
    handler = _OurHandler(out)
    handler.setFormatter(TextFormatter() if text else JsonLineFormatter())
    if node:
        handler.addFilter(_Named(node))
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _OurHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.captureWarnings(True)
    return handler


class _OurHandler(logging.StreamHandler[TextIO]):
    """A class of its own, so that `setup` finds the handler that it made before."""


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {
        key: _clean(key, value)
        for key, value in vars(record).items()
        if key not in _STANDARD and not key.startswith("_")
    }


def _clean(key: str, value: object) -> object:
    """The value without secrets, in types that JSON has."""
    if _SECRET_KEY.search(key):
        return "***" if value else value
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(k): _clean(str(k), v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(key, v) for v in value]
    return redact(str(value))
