"""The one place where errors of Postgres and of the way there become ours. None of them quotes a secret."""

from __future__ import annotations

import psycopg
from psycopg import errors as pg

from bridge.errors import BridgeError, RowsRefused, StatementFailed, StoreRefused, StoreUnavailable
from bridge.redaction import redact


def translated(error: Exception) -> BridgeError:
    """What an error of psycopg or of the network means to the core.

    | SQLSTATE, error | becomes |
    |---|---|
    | class 22 (data), class 23 (integrity), text that is no UTF-8 or holds a NUL | RowsRefused |
    | 57014 (a statement's time is over), 55P03 (so is that for a lock, after some tries) | StatementFailed |
    | the server answers a connection with FATAL | StoreRefused |
    | no connection or a cut one; 40xxx after some tries; 53xxx, other 57xxx, 25006, all else | StoreUnavailable |

    A schema that is too old is found where a connection is set up. An undefined table or function (42P01,
    42883) on a connection that knew the schema makes the call run again on a new one, and so finds it.
    """
    if isinstance(error, UnicodeEncodeError):
        return RowsRefused("22021", f"text that is no UTF-8: {error.reason}")
    if isinstance(error, (psycopg.DataError, psycopg.IntegrityError)):
        sqlstate = error.sqlstate or "22021"
        text = _sentence(error)
        if sqlstate == "23514" and error.diag.constraint_name is None:
            # Not the row's fault: Postgres says so of a partition that is not there.
            return StoreUnavailable(text)
        return RowsRefused(sqlstate, text)
    if isinstance(error, psycopg.Error) and error.sqlstate:
        kind = (
            StatementFailed
            if isinstance(error, (pg.QueryCanceled, pg.LockNotAvailable))
            else StoreUnavailable
        )
        return kind(f"{_sentence(error)} ({error.sqlstate})")
    # libpq gives no SQLSTATE of a connection that was refused, only what the server said.
    _, fatal, said = _first_line(error).partition("FATAL:")
    return StoreRefused(said.strip()) if fatal else StoreUnavailable(_first_line(error))


def _sentence(error: psycopg.Error) -> str:
    return redact(error.diag.message_primary or _first_line(error))


def _first_line(error: Exception) -> str:
    return redact(str(error).strip().partition("\n")[0] or type(error).__name__)
