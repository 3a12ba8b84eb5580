"""Renders pages of docs/reference/ from the code and from a database; tests compare them.

`python -m tests.support.reference` writes outcomes.md; with a DSN (a database with the current schema, such as the one
of `make run`, see `.dev/env`) it writes tables.md as well.
"""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg

from bridge.core.model.outcomes import ENDINGS
from bridge.core.model.parties import PARTIES
from bridge.core.model.sessions import CloseReason

REFERENCE = Path(__file__).parent.parent.parent / "docs" / "reference"
OUTCOMES = REFERENCE / "outcomes.md"
TABLES = REFERENCE / "tables.md"

PUBLIC = (
    *(
        "delivery",
        "delivery_hourly",
        "delivery_daily",
        "funnel",
        "push_summary",
        "unreached_users",
        "top_reasons",
    ),
    *("user_timeline", "who_is_online", "session_history", "ending"),
)
INTERNAL = (
    *("delivery_log", "push_content", "log_day", "tally", "node", "past_boot"),
    *(
        "revocation",
        "revocation_mark",
        "revocation_reader",
        "session",
        "subscription",
        "retained",
        "ops_action",
        "scheduled",
        "changed_hour",
        "counted_hour",
        "hour_count",
        "delivery_count",
        "counting",
        "schema_version",
    ),
)


def outcomes_page() -> str:
    """The whole page as it must be."""
    endings = [
        f"| `{e.outcome}` | `{e.reason}` | {'yes' if e.final else 'no'} | {PARTIES[e.reason] or ''} | {e.meaning} |"
        for e in ENDINGS
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
            "<!-- Written by `python -m tests.support.reference` from bridge/core/model/. -->",
            "",
            "## How a push ends",
            "",
            "One row per push and user. A final row never changes its outcome or reason again; proof that comes",
            "later fills `proven_at` where it was empty.",
            "",
            "The party is who could have made it end better; none where the proof that was asked for has come, or",
            "where nothing has gone wrong so far. `publisher`: the request was wrong, was taken back or replaced, or",
            "excluded the user's sessions. `bridge`: a node, or the way between two nodes. `peer`: the user was not",
            "there, or their client did not read, answer or acknowledge. `network`: the connection to the client.",
            "`policy`: a limit of time, room or access that somebody has set did what it is there for.",
            "",
            "| outcome | reason | final | party | meaning |",
            "|---|---|---|---|---|",
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
            "A peer that answered no ping for too long is cut off without a close frame: it sees 1006. Frames",
            "that break RFC 6455 are answered with its own codes (1002, 1007, 1009).",
            "",
        ]
    )


def tables_page(dsn: str) -> str:
    """The whole page as it must be, from the comments in a database."""
    lines = [
        "# Tables and views",
        "",
        "<!-- Written by `python -m tests.support.reference DSN` from the comments in the database. -->",
        "",
        "Analysts read the views of the first part, best with a login that has the role `bridge_reader`. What is",
        "in the second part is the bridge's own and may change; it is described for operators.",
        "",
    ]
    with psycopg.connect(dsn, autocommit=True) as connection:
        for part, names in (("For people", PUBLIC), ("The bridge's own", INTERNAL)):
            lines += [f"## {part}", ""]
            for name in names:
                lines += _table(connection, name)
    return "\n".join(lines)


def _table(connection: psycopg.Connection, name: str) -> list[str]:
    about = connection.execute("select obj_description(%s::regclass)", (name,)).fetchone()
    columns = connection.execute(
        """
        select a.attname, format_type(a.atttypid, a.atttypmod), col_description(a.attrelid, a.attnum)
        from pg_attribute a
        where a.attrelid = %s::regclass and a.attnum > 0 and not a.attisdropped
        order by a.attnum
        """,
        (name,),
    ).fetchall()
    assert about is not None
    assert all(comment for _, _, comment in columns), f"a column of {name} has no comment"
    rows = [f"| `{column}` | {kind} | {_cell(comment)} |" for column, kind, comment in columns]
    return [f"### {name}", "", str(about[0]), "", "| column | type | meaning |", "|---|---|---|", *rows, ""]


def _cell(comment: str) -> str:
    # The list of all reasons has a page of its own.
    first = comment.partition("\n")[0]
    if first != comment:
        return "Why it ended so: see [outcomes](outcomes.md)."
    return first.replace("|", "\\|")


if __name__ == "__main__":
    OUTCOMES.write_text(outcomes_page())
    for argument in sys.argv[1:]:
        TABLES.write_text(tables_page(argument))
