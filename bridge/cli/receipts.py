"""A receipt as a line for people."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any


def receipt_line(receipt: Mapping[str, Any]) -> str:
    """A receipt for people: user, outcome, reason, how long it took, what for, and the detail."""
    user = receipt.get("user_id") or "-"
    words = [f"{user:<16} {receipt['outcome']:<10} {receipt['reason']:<16} {_took(receipt):>9}"]
    words += [str(receipt[name]) for name in ("event", "push_id", "detail") if receipt.get(name)]
    return "  ".join(words)


def _took(receipt: Mapping[str, Any]) -> str:
    end = receipt.get("proven_at") or receipt.get("finished_at")
    start = receipt.get("taken_at")
    if not end or not start:
        return ""
    seconds = (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
