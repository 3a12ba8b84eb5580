"""What the program sends to Postgres, and what it gets: kept in a file, so that the next version's schema is tried with
what this version's program sends. `python -m tests.support.earlier_statements` writes it, at a release.

Only statements that are constants of their modules, which are nearly all that `bridge serve` sends.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psycopg
from psycopg import pq

import bridge.adapters.postgres
from bridge.adapters.postgres import migrate
from bridge.devservers import private_servers

FILE: Final = Path(__file__).with_name("earlier_statements.json")
_PLACEHOLDER: Final = re.compile(r"%(?:\((\w+)\))?s|%%")
_STATEMENT: Final = re.compile(r"\s*(?:select|insert|update|delete|with|\()\s", re.IGNORECASE)


class Statement(NamedTuple):
    """A statement, and the types of its parameters and of its columns as Postgres tells them."""

    sql: str
    parameters: list[str]
    columns: list[str]


def current() -> Iterator[tuple[str, str]]:
    """The statements of today's program, by module and name."""
    package = bridge.adapters.postgres
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        for name, value in sorted(vars(module).items()):
            if isinstance(value, str) and name.strip("_").isupper() and _STATEMENT.match(value):
                yield f"{found.name}.{name}", value


def described(conn: psycopg.Connection, sql: str) -> Statement:
    """How Postgres understands it. Raises psycopg.Error where it does not."""
    names: list[str] = []

    def numbered(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        if found[1] is None or found[1] not in names:
            names.append(found[1] or "")
            return f"${len(names)}"
        return f"${names.index(found[1]) + 1}"

    answer = conn.pgconn.prepare(b"", _PLACEHOLDER.sub(numbered, sql).encode())
    if answer.status != pq.ExecStatus.COMMAND_OK:
        raise psycopg.ProgrammingError(answer.get_error_message())
    about = conn.pgconn.describe_prepared(b"")
    parameters = [_type(conn, about.param_type(n)) for n in range(about.nparams)]
    columns = [
        f"{(about.fname(n) or b'').decode()} {_type(conn, about.ftype(n))}" for n in range(about.nfields)
    ]
    return Statement(sql, parameters, columns)


def _type(conn: psycopg.Connection, oid: int) -> str:
    found = conn.execute("select format_type(%s, null)", (oid,)).fetchone()
    assert found is not None
    return str(found[0])


def read() -> tuple[int, dict[str, Statement]]:
    """The schema's version that those statements were written for, and the statements."""
    kept = json.loads(FILE.read_text())
    return kept["schema"], {name: Statement(**each) for name, each in kept["statements"].items()}


def main() -> None:
    """Write the file."""
    root = Path(__file__).parents[2] / ".dev" / "statements"
    with private_servers(root, say=print, usual_ports=False) as servers:
        migrate.upgrade(servers.postgres_dsn)
        with psycopg.connect(servers.postgres_dsn, autocommit=True) as conn:
            statements = {name: described(conn, sql)._asdict() for name, sql in current()}
    kept = {"schema": migrate.WANTED_VERSION, "statements": statements}
    FILE.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
