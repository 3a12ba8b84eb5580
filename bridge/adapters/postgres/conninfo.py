"""The connection string of every connection to Postgres, and what its server must be."""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import conninfo

from bridge.core.errors import DatabaseUnsuitable

OLDEST, NEWEST = 14, 18
"""The oldest and the newest major version of Postgres that the bridge supports: the oldest since partitions can be
detached concurrently (PostgreSQL 14's documentation, ALTER TABLE)."""
_MAJOR: Final = 10_000
"""What libpq multiplies a major version with (PQserverVersion)."""


def conninfo_of(dsn: str, application_name: str, **defaults: int) -> str:
    """The connection string for a DSN; `defaults` fill in what the DSN leaves out.

    The encoding is always UTF8. Otherwise `PGCLIENTENCODING=LATIN1` would make every user whose name is not Latin an
    error. As a startup parameter it wins over the settings of role and database.
    """
    given = conninfo.conninfo_to_dict(dsn)
    missing = {name: value for name, value in defaults.items() if name not in given}
    return conninfo.make_conninfo(dsn, application_name=application_name, client_encoding="UTF8", **missing)


def check_server(conn: psycopg.Connection | psycopg.AsyncConnection) -> None:
    """Raise DatabaseUnsuitable where the server is too old, or unless both sides use UTF8: ids may be any text, and are
    compared bytewise."""
    major = conn.info.server_version // _MAJOR
    if 0 < major < OLDEST:
        raise DatabaseUnsuitable(f"Postgres {major} is too old: {OLDEST} is the first that can be used")
    server = conn.info.parameter_status("server_encoding")
    if server != "UTF8":
        raise DatabaseUnsuitable(
            f"the database {conn.info.dbname} has the encoding {server}, but the bridge needs UTF8: create it with"
            " `create database NAME encoding 'UTF8' locale 'C.UTF-8' template template0`"
        )
    client = conn.info.parameter_status("client_encoding")
    if client != "UTF8":
        raise DatabaseUnsuitable(f"the connection has the encoding {client} though UTF8 was asked for")
