"""The one place that translates errors of Postgres and of the network. No translated error quotes a secret."""

from __future__ import annotations

import psycopg

from bridge.core.errors import (
    BridgeError,
    DatabaseUnsuitable,
    RowsRefused,
    StatementFailed,
    StoreRefused,
    StoreUnavailable,
)
from bridge.core.redaction import redact

_OF_ROW = ("22", "23", "54")
"""Classes of SQLSTATE that mean that the data itself is refused."""
_OF_SERVER = (
    # Connection, prepared statement, login, database, resources, shutdown, disk, configuration.
    *("08", "26", "28", "3D", "53", "57P", "58", "F0"),
    # Read only, or the transaction is gone; a race that was lost several times; in use; snapshot too old.
    *("25", "40", "55006", "72"),
    # Not in the schema: it is another than the one that the connection knew.
    *("3F", "42P01", "42P05", "42883", "42703"),
)
"""SQLSTATEs, by their beginning, that say nothing about the statement.
https://www.postgresql.org/docs/15/errcodes-appendix.html"""

_NOT_PASSED_ON = "unsupported startup parameter"
"""What PgBouncer says of a parameter that it does not pass on. Waiting does not help."""

_ABOUT_TLS = {
    "certificate verify failed": "sslrootcert in the DSN must name the file with the certificate of its authority",
    "does not match host name": "the DSN must name the host as the server's certificate does",
    "root certificate file": "sslrootcert in the DSN names this file",
    "requires a valid client certificate": "name one in the DSN, as sslcert and sslkey",
    "certificate authentication failed": "the common name of the certificate in sslcert must be the name of the role",
    "alert unknown ca": "ssl_ca_file of the server must have the authority that signed the certificate in sslcert",
}
"""What libpq and Postgres say when TLS fails, and what to do. https://www.postgresql.org/docs/15/libpq-ssl.html"""


def translated(error: Exception) -> BridgeError:
    """What an error of psycopg or of the network means to the core.

    | SQLSTATE, error | becomes |
    |---|---|
    | 22 (data), 23 (integrity), 54 (too large or too deep), text that is not UTF-8 or has a NUL | RowsRefused |
    | `_OF_SERVER`, or none: no connection, or a cut one | StoreUnavailable |
    | the server answers a connection with FATAL | StoreRefused |
    | a pooler does not pass on a startup parameter | DatabaseUnsuitable |
    | all else: a time limit, a trigger, a right that is missing, an internal error | StatementFailed |

    A writer does not rely on one answer: after StatementFailed, and after several StoreUnavailable, it tries whether
    any row can be written (`bridge.core.settlement.persistence`). So an error in the wrong line costs some tries, but
    no row.

    A schema that is too old is found when a connection is set up. If a table or function is missing (42P01, 42883) on
    an older connection, the call runs again on a new one, and so finds it.
    """
    if isinstance(error, UnicodeError):
        return RowsRefused("22021", f"text that is not UTF-8: {getattr(error, 'reason', error)}")
    if not isinstance(error, psycopg.Error):
        return StoreUnavailable(_first_line(error))
    text = sentence(error)
    sqlstate = error.sqlstate
    if sqlstate is None and isinstance(error, psycopg.DataError):
        sqlstate = "22021"
    if sqlstate is None:
        if isinstance(error, psycopg.NotSupportedError):
            return StatementFailed(text)
        # For a refused connection libpq gives no SQLSTATE, only what the server said.
        _, fatal, said = text.partition("FATAL:")
        if _NOT_PASSED_ON in said:
            return DatabaseUnsuitable(
                "a pooler in between refuses what the DSN or PGOPTIONS gives as options:"
                f" {said.strip()}; take it out and set it for the role (`alter role NAME set ...`),"
                " or let the pooler ignore it (ignore_startup_parameters of PgBouncer)"
            )
        return StoreRefused(said.strip()) if fatal else StoreUnavailable(text)
    if sqlstate[:2] in _OF_ROW and not (sqlstate == "23514" and error.diag.constraint_name is None):
        return RowsRefused(sqlstate, text)
    # 23514 without a constraint is not the fault of the row: Postgres says it of a missing partition.
    of_server = sqlstate == "23514" or sqlstate.startswith(_OF_SERVER)
    return (StoreUnavailable if of_server else StatementFailed)(f"{text} ({sqlstate})")


def sentence(error: psycopg.Error) -> str:
    """What the server or the library said, on one line and without secrets; what to do where that is about TLS."""
    text = redact(error.diag.message_primary or _first_line(error))
    return next((f"{text}; {advice}" for said, advice in _ABOUT_TLS.items() if said in text), text)


def _first_line(error: Exception) -> str:
    return redact(str(error).strip().partition("\n")[0] or type(error).__name__)
