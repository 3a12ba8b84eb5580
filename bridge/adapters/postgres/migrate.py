"""Migrations: numbered SQL files of the package, each applied once, in order, in its own transaction."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import resources
from typing import LiteralString, NamedTuple

import psycopg

from bridge.adapters.postgres.conninfo import check_server, conninfo_of
from bridge.adapters.postgres.errors import translated
from bridge.core.errors import BridgeError, DatabaseUnsuitable
from bridge.core.redaction import redact

MIGRATION_LOCK = int.from_bytes(b"bridge\0\3", "big")
"""Advisory lock (one per database): two upgrades at once run one after the other."""

_HISTORY = """\
create table if not exists schema_version (
    version    integer     primary key,
    name       text        not null,
    checksum   text        not null,
    applied_at timestamptz not null default now()
);
comment on table schema_version is 'The migrations that this database has seen; written by bridge db upgrade.';
comment on column schema_version.version is 'The number that the file''s name begins with.';
comment on column schema_version.name is 'The file''s name.';
comment on column schema_version.checksum is 'SHA-256 of the file as it was applied.';
comment on column schema_version.applied_at is 'When it was applied.';
"""


class Migration(NamedTuple):
    """One SQL file of the package."""

    version: int
    name: str
    sql: LiteralString

    @property
    def checksum(self) -> str:
        """SHA-256 of its text, in hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


class MigrationStatus(NamedTuple):
    """One line of `bridge db status`."""

    version: int
    name: str
    applied_at: datetime | None
    """None: missing."""
    known: bool = True
    """False: a newer program has applied it, and this program does not have its file."""


class MigrationChanged(BridgeError):
    """The file of an applied migration has changed since, so nobody knows whether schema and program agree."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name} was changed after it was applied to this database: restore the file")


class MigrationFailed(BridgeError):
    """The database refused a migration, which was rolled back. `name` is its file."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(f"{name} failed and was rolled back: {problem}")


def _read() -> tuple[Migration, ...]:
    found = []
    for file in resources.files("bridge.adapters.postgres").joinpath("sql").iterdir():
        # schema.sql has no number: it shows what these make, and is not applied.
        numbered = re.fullmatch(r"(\d{4})_\w+\.sql", file.name)
        if numbered:
            found.append(Migration(int(numbered[1]), file.name, file.read_text(encoding="utf-8")))
    return tuple(sorted(found))


MIGRATIONS = _read()
WANTED_VERSION = MIGRATIONS[-1].version
"""The version that this program needs; the database may be newer during a rolling upgrade."""


def ahead(version: int) -> str:
    """The sentence about a schema that is newer than this program. The bridge uses it: bridges are upgraded one by one,
    and each version of the schema also serves the program of the version before."""
    return (
        f"the schema is at version {version}, newer than the {WANTED_VERSION} of this program: it is used as it is "
        "while bridges are upgraded one by one; upgrade this one as well"
    )


def upgrade(dsn: str, migrations: tuple[Migration, ...] = MIGRATIONS) -> list[str]:
    """Apply what is missing and return the names of what was applied. Safe to run at any time, also twice at once.

    Raises MigrationChanged, with nothing applied, if an applied file differs; MigrationFailed, with the earlier ones
    kept, if the database refuses one; StoreUnavailable if it can't be reached.
    """
    applied = []
    # A lock of the transaction, not of the session, which a pooler may give to somebody else.
    with connected(dsn) as holder, _transaction(holder), connected(dsn) as conn:
        holder.execute("select pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        with _transaction(conn):
            history = _history(conn)
        _check(history, migrations)
        for migration in migrations:
            if migration.version in history:
                continue
            try:
                with _transaction(conn):
                    conn.execute(_HISTORY)
                    conn.execute(migration.sql)
                    conn.execute(
                        "insert into schema_version (version, name, checksum) values (%s, %s, %s)",
                        (migration.version, migration.name, migration.checksum),
                    )
            except psycopg.OperationalError:
                raise
            except psycopg.Error as error:
                raise MigrationFailed(migration.name, str(error).strip()) from error
            applied.append(migration.name)
    return applied


def status(dsn: str, migrations: tuple[Migration, ...] = MIGRATIONS) -> list[MigrationStatus]:
    """Every migration of this program and when it was applied, then those that a newer program has applied.

    Raises the same as `upgrade`; changes nothing."""
    with connected(dsn) as conn, _transaction(conn):
        history = _history(conn)
        _check(history, migrations)
        newest = migrations[-1].version
        unknown = sorted(version for version in history if version > newest)
        names = dict(conn.execute("select version, name from schema_version").fetchall()) if unknown else {}
    ours = [
        MigrationStatus(m.version, m.name, history[m.version][1] if m.version in history else None)
        for m in migrations
    ]
    return ours + [MigrationStatus(v, str(names[v]), history[v][1], known=False) for v in unknown]


def pending_sql(dsn: str | None, migrations: tuple[Migration, ...] = MIGRATIONS) -> str:
    """The SQL that `upgrade` would run, for somebody else to run with psql; None: for an empty database."""
    history: dict[int, tuple[str, datetime]] = {}
    if dsn is not None:
        with connected(dsn) as conn, _transaction(conn):
            history = _history(conn)
            _check(history, migrations)
    parts = []
    for m in migrations:
        if m.version not in history:
            parts.append(
                f"-- {m.name}\nbegin;\n{_HISTORY}\n{m.sql}\n"
                "insert into schema_version (version, name, checksum)\n"
                f"values ({m.version}, '{m.name}', '{m.checksum}');\ncommit;\n"
            )
    return "\n".join(parts)


def current_version(conn: psycopg.Connection) -> int:
    """The newest migration that this database has seen; 0 for an empty database."""
    return max(_history(conn), default=0)


@contextmanager
def _transaction(conn: psycopg.Connection) -> Iterator[None]:
    with conn.transaction():
        conn.execute("set local search_path to public; set local datestyle to iso")
        yield


def _history(conn: psycopg.Connection) -> dict[int, tuple[str, datetime]]:
    """Checksum and time of each applied version."""
    # Asked first, since an error would end the transaction.
    if conn.execute("select to_regclass('schema_version')").fetchone() == (None,):
        return {}
    rows = conn.execute("select version, checksum, applied_at from schema_version").fetchall()
    return {version: (checksum, applied_at) for version, checksum, applied_at in rows}


def _check(history: dict[int, tuple[str, datetime]], migrations: tuple[Migration, ...]) -> None:
    for migration in migrations:
        if migration.version in history and history[migration.version][0] != migration.checksum:
            raise MigrationChanged(migration.name)


@contextmanager
def connected(dsn: str) -> Iterator[psycopg.Connection]:
    """A connection on which nothing outlives its transaction, since a pooler may lend the server's side to others.

    Raises StoreUnavailable and DatabaseUnsuitable, also for what psycopg raises in the block.
    """
    try:
        with psycopg.connect(
            conninfo_of(dsn, "bridge db", connect_timeout=5), autocommit=True, prepare_threshold=None
        ) as conn:
            check_server(conn)
            yield conn
    except (psycopg.OperationalError, psycopg.DataError, UnicodeError) as error:
        raise translated(error) from error
    except psycopg.Error as error:
        if error.sqlstate is None:
            raise translated(error) from error
        # Mostly a right that the role lacks, or another program's schema in the same place.
        problem = redact(error.diag.message_primary or str(error).strip().partition("\n")[0])
        raise DatabaseUnsuitable(f"the database refused: {problem} ({error.sqlstate})") from error
