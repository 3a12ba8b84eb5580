"""Renders docs/reference/outcomes.md from the code: `python -m tests.reference` writes it, a test compares."""

from __future__ import annotations

from pathlib import Path

from bridge.model import ENDINGS, CloseReason

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "outcomes.md"


def outcomes_page() -> str:
    """The whole page as it must be."""
    endings = [
        f"| `{e.outcome}` | `{e.reason}` | {'yes' if e.final else 'no'} | {e.meaning} |" for e in ENDINGS
    ]
    codes = [
        f"| {c.code} | `{c.word}` | {'yes' if c.reconnect else 'no'} | {c.retry_after:g} |"
        for c in CloseReason
        if c.code != 1006
    ]
    return "\n".join(
        [
            "# Outcomes, reasons, close codes",
            "",
            "<!-- Written by `python -m tests.reference` from bridge/model.py. -->",
            "",
            "## How a push ends",
            "",
            "One row per push and user. A final row never changes its outcome or reason again; proof that comes",
            "later fills `proven_at` where it was empty.",
            "",
            "| outcome | reason | final | meaning |",
            "|---|---|---|---|",
            *endings,
            "",
            "## How a session is closed",
            "",
            "In `bridge.v1.json` a `bye` frame with the same code, the word, and `retry_after` in seconds comes",
            "first. A client that may come back should wait that long, and add some chance to it.",
            "",
            "| code | word | come back with the same token | wait at least (s) |",
            "|---|---|---|---|",
            *codes,
            "",
            "A peer that answered no ping for too long is cut off without a close frame: it sees 1006. Frames that",
            "break RFC 6455 are answered with its own codes (1002, 1007, 1009).",
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(outcomes_page())
