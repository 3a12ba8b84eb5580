"""The errors of the bridge. Each carries facts, and its message is derived from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

PROBLEMS_MAX: Final = 8
"""How many wrong fields of a request are named."""
PROBLEMS_CHARS: Final = 480
"""Characters of their sentences together, unless the first alone has more."""


class BridgeError(Exception):
    """The root of every error that the bridge raises on purpose."""


class SettingsError(BridgeError):
    """A setting is missing, malformed or unsafe; the start is refused.

    `setting` is the name as the user writes it (`BRIDGE_JWT_SECRET`), `problem` says what was expected.
    """

    def __init__(self, setting: str, problem: str) -> None:
        self.setting = setting
        self.problem = problem
        super().__init__(f"{setting}: {problem}")


class IllegalTransition(BridgeError):
    """An event that the state table does not list; nothing was changed."""

    def __init__(self, machine: str, state: str, event: str) -> None:
        self.machine = machine
        self.state = state
        self.event = event
        super().__init__(f"{machine}: {event} is not possible in state {state}")


class InvalidRequest(BridgeError):
    """A push request, or one element of a batch, that is rejected.

    `reason` is the value of a `bridge.core.model.outcomes.Reason` that belongs to `rejected`; `path` names the wrong
    field (`to.users[3]`, `header x-push-user`, empty for the whole body); `problem` says what was expected.
    `others` are further wrong fields, and `uncounted` is how many more there are. Where `stopped`, there are at least
    so many: the check ended there.
    """

    def __init__(
        self,
        reason: str,
        path: str,
        problem: str,
        others: Sequence[InvalidRequest] = (),
        uncounted: int = 0,
        stopped: bool = False,
    ) -> None:
        self.reason = reason
        self.path = path
        self.problem = problem
        self.others = others
        self.uncounted = uncounted
        self.stopped = stopped

    def __str__(self) -> str:
        return self.detail

    @property
    def each(self) -> tuple[InvalidRequest, ...]:
        """One error for each wrong field."""
        alone = InvalidRequest(self.reason, self.path, self.problem) if self.others else self
        return (alone, *self.others)

    @property
    def detail(self) -> str:
        """The sentences for people, as the `detail` column and the `push.dead` header show them.

        At most `PROBLEMS_MAX` of them, and none that would make the whole longer than `PROBLEMS_CHARS` characters.
        """
        said = f"{self.path}: {self.problem}" if self.path else self.problem
        left = self.uncounted
        for count, other in enumerate(self.others, 1):
            more = f"; {other.detail}"
            if count < PROBLEMS_MAX and len(said) + len(more) <= PROBLEMS_CHARS:
                said += more
            else:
                left += 1
        if self.stopped:
            return f"{said}; and at least {left} more" if left else f"{said}; and more"
        return f"{said}; and {left} more" if left else said


def together(
    problems: Sequence[InvalidRequest], uncounted: int = 0, *, stopped: bool = False
) -> InvalidRequest:
    """Make one error of several, each about one field. Its reason is that of the first; see `InvalidRequest`."""
    first = problems[0]
    if len(problems) == 1 and not uncounted and not stopped:
        return first
    return InvalidRequest(first.reason, first.path, first.problem, problems[1:], uncounted, stopped)


class InvalidClaim(BridgeError):
    """A claim of a token, or a field of the connect hook's answer, that can't be used.

    `path` names it (`publish[3]`), `problem` says what was expected. Neither quotes what came.
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}")


class ControlRefused(BridgeError):
    """A message on `push.control` that was not carried out. `problem` names the wrong field and what was expected."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"a control message was not carried out: {problem}")


class StoreUnavailable(BridgeError):
    """The database can't answer now. The root of all errors that say so.

    Raised itself where the database did not answer, or its answer was lost: then the write may or may not have
    happened. Every write of the Store port is safe to run again, so the caller retries.
    """

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(f"the database is unavailable: {cause}")


class StoreRefused(StoreUnavailable):
    """The database answered and refused the connection: a wrong password, a missing right, too many connections."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        BridgeError.__init__(self, f"the database refused the connection: {cause}")


class StatementFailed(StoreUnavailable):
    """The database works, but this statement failed: it took too long, or waited too long for a lock.

    It may fail again. A caller that can ask for less does so; one that can't sets the row aside. A caller that does
    neither may treat it as an outage.
    """

    def __init__(self, cause: str) -> None:
        self.cause = cause
        BridgeError.__init__(self, f"a statement failed: {cause}")


class RowsRefused(StatementFailed):
    """The database refused the data itself (SQLSTATE class 22, 23 or 54): nothing of the batch was written.

    Running the same batch again gives the same answer; the caller divides it to find the row at fault. For a caller
    that only reads, it is a failed statement (an id may have characters that the database's encoding lacks).
    """

    def __init__(self, sqlstate: str, problem: str) -> None:
        self.sqlstate = sqlstate
        self.problem = problem
        self.cause = f"the data was refused: {problem} ({sqlstate})"
        BridgeError.__init__(self, f"the database refused the rows ({sqlstate}): {problem}")


class LogTakesNoRows(StoreUnavailable):
    """The database works, but the delivery log takes no row at all: a trigger refuses or drops each one, a disk is
    full, a lock is held. It is an outage like any other, whatever the SQLSTATE."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        BridgeError.__init__(self, f"the delivery log takes no rows: {cause}")


class DatabaseUnsuitable(StoreUnavailable):
    """The database answers, but the bridge can't work with it; waiting does not help.

    A start is refused with this message. A running bridge treats it as an outage: somebody may be restoring the right
    database.
    """

    def __init__(self, cause: str) -> None:
        self.cause = cause
        BridgeError.__init__(self, cause)


class SchemaBehind(StoreUnavailable):
    """The database's schema is older than this program's. `bridge db upgrade` fixes it, also while the bridge runs."""

    def __init__(self, have: int, want: int) -> None:
        self.have = have
        self.want = want
        self.cause = f"the schema is at version {have}, this program needs {want}: run `bridge db upgrade`"
        BridgeError.__init__(self, self.cause)


class BrokerUnavailable(BridgeError):
    """The broker cannot be reached, or the connection to it was lost."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(f"the broker is unavailable: {cause}")


class BrokerRefused(BrokerUnavailable):
    """The broker answered and refused: a wrong password, a missing vhost or queue, missing permissions."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        BridgeError.__init__(self, f"the broker refused: {cause}")


class NodeNameTaken(BridgeError):
    """Another live bridge process has this node's name."""

    def __init__(self, node: str) -> None:
        self.node = node
        super().__init__(f"another bridge named {node!r} is alive: give this one its own BRIDGE_NODE")


class TokenRefused(BridgeError):
    """A token that opens no session; `why` is one of a few fixed words for the 401 answer and the metrics.

    `detail`: what is wrong, for people; a fixed sentence that quotes nothing of the token.
    """

    def __init__(self, why: str, detail: str = "") -> None:
        self.why = why
        self.detail = detail
        super().__init__(f"token refused: {why}" + (f": {detail}" if detail else ""))


class KeysUnavailable(BridgeError):
    """The keys that check tokens can't be read now: no token that needs them can be accepted or refused."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(f"the keys for tokens could not be read: {cause}")


class ConnectHookFailed(BridgeError):
    """The connect hook (BRIDGE_CONNECT_URL) did not say whether a client may come in.

    `cause` holds nothing of the address, the question or the answer. With `down` it may be the same for everybody: no
    answer came, or one that says that it can't answer now.
    """

    def __init__(self, cause: str, *, down: bool = False) -> None:
        self.cause = cause
        self.down = down
        super().__init__(f"the connect hook failed: {cause}")
