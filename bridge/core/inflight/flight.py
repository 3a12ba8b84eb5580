"""The state of one push to one user, and the rules by which it ends. The rules are the table in `transitions`.

A flight is made when a push is taken, or when a stored push is sent again. It is removed once its row can answer for
it. Its owner is `InFlight`, which is told what each event has done. Nothing here does I/O.
"""

from __future__ import annotations

import datetime
import enum
from typing import Final, Protocol

from bridge.core.inflight.held import HeldMessage
from bridge.core.inflight.kept import Kept
from bridge.core.inflight.offered import Offered
from bridge.core.inflight.owed import Owed
from bridge.core.inflight.transitions import Event, State, step
from bridge.core.model.fingerprint import NOT_KNOWN, differ
from bridge.core.model.outcomes import DELIVERED, Outcome, Proof, Reason
from bridge.core.model.rows import Reply, RowKey

_NO_PROOF: Final = Proof.NONE
_WRITTEN: Final = Proof.WRITTEN
_MAY_IMPROVE: Final = frozenset((Reason.NOT_ACKED, Reason.NO_PROOF_POSSIBLE))
_WITHDRAWN: Final = frozenset((Outcome.EXPIRED, Outcome.SUPERSEDED, Outcome.RECALLED))
_NO_FALLBACK: Final = frozenset((Outcome.SUPERSEDED, Outcome.RECALLED, Outcome.REJECTED))


class Effect(enum.Enum):
    """What an event did to a flight."""

    NOTHING = 0
    ENDED = 1
    """It decided the outcome: the final row must be written."""
    LATE = 2
    """It is better proof than the flight ended with: only `late_at` and `proven_at` may still be filled."""
    KEPT = 3
    """No proof came for now, and the ttl is not over: the row becomes `stored` and waits for the user."""
    SHOWN = 4
    """It is received, and its ack is awaited. Its row must say so now: who publishes its fallback looks there."""
    LACKED = 5
    """A process that it was forwarded to lacks it: what is forwarded there later must not overtake it."""


class Owner(Protocol):
    """The owner of a flight; it acts on what each event has done to it."""

    def carry_on(self, flight: Flight, effect: Effect, now: float) -> None:
        """An event at `now` (wall-clock seconds) has had this effect, which is not NOTHING."""
        ...


class Flight(Offered):
    """One push to one user, over all sessions of the user that it was offered to.

    Each event returns what it did, and tells the owner. It raises IllegalTransition, and changes nothing, where the
    state does not allow the event.
    """

    __slots__ = (
        "ack_within",
        "app_id",
        "attempts",
        "batch",
        "came_back",
        "collapse_key",
        "data_bytes",
        "day",
        "detail",
        "differing",
        "event",
        "fallback",
        "fingerprint",
        "finished_at",
        "first_device",
        "holder",
        "holders",
        "kept",
        "messages",
        "meta",
        "open",
        "outcome",
        "owes",
        "owner",
        "parked",
        "payload",
        "proof",
        "proven_at",
        "prover",
        "published_at",
        "reason",
        "sessions",
        "silent",
        "state",
        "taken_at",
        "taken_mono",
        "topic",
        "traceparent",
        "unprovable",
        "unsendable",
        "written_at",
    )

    def __init__(
        self,
        key: RowKey,
        message: HeldMessage,
        owner: Owner,
        *,
        event: str = "",
        meta: bytes = b"",
        confirm: Proof = Proof.RECEIVED,
        taken_mono: float = 0.0,
        ack_within: float = 0.0,
        position: int = 0,
        collapse_key: str = "",
        fingerprint: int = NOT_KNOWN,
    ) -> None:
        self.key = key
        self.owner = owner
        self.event = event
        self.meta = meta
        self.confirm = confirm
        self.app_id = message.properties.app_id
        self.traceparent = message.traceparent
        self.published_at = message.published_at
        self.taken_at = message.taken_at
        self.taken_mono = taken_mono  # monotonic seconds, for the deadlines
        self.position = position  # its place among all pushes that this node has taken; see `Row.position`
        self.collapse_key = collapse_key
        self.batch: tuple[str, int | None] = ("", None)  # the id of its batch, and its place there
        self.data_bytes: int | None = None  # None where its row has it already, and of a rejected request
        self.topic = self.detail = ""  # its topic, where it was published to one; what its row says to people
        self.first_device = self.came_back = False  # its first ack is the end; a holder was not reached
        self.fallback: Owed | None = None  # what is published if nobody proves it
        self.ack_within = ack_within  # seconds to wait for its proof; 0: as long as for every other push
        self.kept: Kept | None = None  # None for a push with ttl 0
        self.day: datetime.date | None = None  # of its row, or one before it, once there is a row
        self.payload: bytes | None = None  # the body of a rejected request, the data for a fallback
        self.messages = [message]
        """The messages that wait for this flight's row; empty once it is parked."""
        self.fingerprint = fingerprint
        self.differing: dict[HeldMessage, int] | None = None
        """The fingerprints of messages that joined with other content; None while no message has."""
        self.owes = 0  # how many replies its row owed when it was last written
        self.state = State.TAKEN
        self.proof = _NO_PROOF
        """The best proof, late proof included."""
        self.sessions = self.open = self.silent = self.attempts = 0
        """Sessions that it was offered to, and those that may still prove it: all at another node count as one. Nodes
        that it was forwarded to and that have not answered yet. How often a session has handed it over."""
        self.prover = self.holder = ""  # the session that gave the best proof; its node, empty: this one
        self.holders: tuple[str, ...] = ()  # boots of the processes that it was forwarded to
        self.unsendable: Reason | None = None
        """What was wrong with the queue of a session that never handed this push to its socket."""
        self.unprovable = False  # all sessions that handed it over are streams whose client proves nothing
        self.parked = False  # a row of it is committed; its messages need not wait for the final one
        self.outcome: Outcome | None = None
        self.reason: Reason | None = None
        self.written_at: float | None = None
        self.proven_at: float | None = None
        self.finished_at: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the outcome is decided; it never changes after that."""
        return self.outcome is not None

    @property
    def cared_for(self) -> bool:
        """Whether nobody needs its fallback: it is received, or written where no more was asked for; or its
        publisher has replaced it or taken it back."""
        return self.proof >= min(self.confirm, Proof.RECEIVED) or self.outcome in _NO_FALLBACK

    @property
    def withdrawn(self) -> bool:
        """See `Offered`."""
        outcome = self.outcome
        return outcome is not None and (
            (self.proof is _NO_PROOF and outcome not in DELIVERED)
            or outcome in _WITHDRAWN
            or (self.first_device and outcome is Outcome.ACKED)
        )

    @property
    def alone(self) -> bool:
        """Whether nothing but its first row can bring its outcome event: no message waits, which would come again."""
        return not self.messages and not self.parked

    # --- what sessions report ---

    def addressed(self, sessions: int) -> None:
        """It was offered to this many more sessions."""
        step(self.state, Event.ADDRESSED)
        self.sessions += sessions
        self.open += sessions

    def looked_for(self) -> None:
        """It is asked which other nodes have sessions of its user: until `found` it does not fail."""
        self.open += 1

    def found(self, now: float) -> Effect:
        """It was forwarded to all of those; or it fails now, if nobody can prove it."""
        return self.lost(now, handed=False)

    def forwarded(self, boot: str) -> None:
        """It was forwarded to another process, which has sessions of its user."""
        self.addressed(1)
        self.silent += 1
        self.holders = (*self.holders, boot)

    def answered(self) -> None:
        """One of those nodes has said for the first time what became of it, or never got it."""
        self.silent -= 1

    def unreached(self, boot: str, now: float) -> Effect:
        """It did not get to this process, or is with no session there any more."""
        self.came_back = True
        self.holders = tuple(holder for holder in self.holders if holder != boot)
        return self._tell(Effect.LACKED, now)

    def not_there(self) -> None:
        """That node has no session of its user any more. Its holders are asked for again: nothing is decided yet."""
        self.sessions -= 1
        self.open -= 1

    def excluded(self, now: float) -> Effect:
        """All sessions that the user has at that node are named in `except`."""
        if self.sessions > 1 or self.ended:
            return self.lost(now, handed=False)
        self.not_there()
        return self.undeliverable(Outcome.OFFLINE, Reason.EXCLUDED, now)

    def handed(self, now: float, by: str, at: str = "", *, unprovable: bool = False) -> Effect:
        """See `Offered`. `at`: the node of that session; empty: it is this one."""
        line = step(self.state, Event.HANDED)
        self.attempts += 1
        if unprovable is not self.unprovable:
            self.unprovable = unprovable and self.proof is _NO_PROOF
        if self.proof is _NO_PROOF:
            self.proof = _WRITTEN
            self.written_at = now
            self.prover = by
            self.holder = at
        if line.outcome is not None and line.reason is not None and self.confirm <= _WRITTEN:
            return self._tell(self._end(line.outcome, line.reason, now), now)
        self.state = line.to
        return Effect.NOTHING

    def received(self, now: float, by: str, at: str = "") -> Effect:
        """See `Offered`, and `handed`."""
        return self._proven(Event.RECEIVED, Proof.RECEIVED, now, by, at)

    def acked(self, now: float, by: str, at: str = "") -> Effect:
        """See `Offered`, and `handed`."""
        return self._proven(Event.ACKED, Proof.ACKED, now, by, at)

    def _proven(self, event: Event, proof: Proof, now: float, by: str, at: str) -> Effect:
        line = step(self.state, event)
        if self.outcome is not None:
            claims = self.outcome in DELIVERED and self.reason not in _MAY_IMPROVE
            if claims or proof <= self.proof:
                return Effect.NOTHING
            self.proof = proof
            return self._tell(Effect.LATE, now)
        if proof > self.proof:
            self.proof = proof
            self.proven_at = now
            self.prover = by
            self.holder = at
        if line.outcome is not None and line.reason is not None and proof >= self.confirm:
            return self._tell(self._end(line.outcome, line.reason, now), now)
        shown = line.to is not self.state and self.kept is not None and self.kept.from_log
        self.state = line.to
        return self._tell(Effect.SHOWN, now) if shown else Effect.NOTHING

    def lost(self, now: float, *, handed: bool, why: Reason | None = None) -> Effect:
        """See `Offered`."""
        # Without a ttl, a connection that ends early says more than that its client can't prove.
        waits = why is not Reason.NO_PROOF_POSSIBLE and self.kept is None
        line = step(self.state, Event.LOST if waits or not self._hopeless else Event.UNPROVABLE)
        self.open -= 1
        if why is not None and not handed:
            self.unsendable = why
        if line.outcome is None or line.reason is None or self.open > 0:
            return Effect.NOTHING
        if self.unsendable is not None and self.state is State.TAKEN:
            return self._tell(self._fail(Outcome.DROPPED, self.unsendable, now), now)
        return self._tell(self._fail(line.outcome, line.reason, now), now)

    # --- what time, the router, people and the log say ---

    def timed_out(self, now: float) -> Effect:
        """The time for a proof is over: the best proof so far decides."""
        return self._tell(self.looked_at(now), now)

    def looked_at(self, now: float) -> Effect:
        """Like `timed_out`, for a push that may be resent to the sessions that have it. The owner is not told: it
        calls this, and decides what is written."""
        line = step(self.state, Event.UNPROVABLE if self._hopeless else Event.TIMED_OUT)
        if line.outcome is None or line.reason is None:
            return Effect.NOTHING
        if self.state is State.TAKEN:
            if self.sessions == 0:
                return self._fail(Outcome.OFFLINE, Reason.NO_SESSION, now)
            if self.silent:
                return self._fail(Outcome.UNKNOWN, Reason.NODE_SILENT, now)
        return self._fail(line.outcome, line.reason, now)

    def undeliverable(self, outcome: Outcome, reason: Reason, now: float) -> Effect:
        """No session takes it now: with ttl 0 that is its outcome, otherwise it is kept."""
        step(self.state, Event.UNDELIVERABLE)
        return self._tell(self._fail(outcome, reason, now), now)

    def superseded(self, now: float) -> Effect:
        """A newer push with its collapse key was taken: if it was not handed over yet, it never will be."""
        line = step(self.state, Event.SUPERSEDED)
        if line.outcome is not None and line.reason is not None and self.attempts == 0 and not self.silent:
            return self._tell(self._end(line.outcome, line.reason, now), now)
        if self.kept is not None:
            self.kept.collapsed = True
        return Effect.NOTHING

    def recalled(self, now: float) -> Effect:
        """A recall names it."""
        line = step(self.state, Event.RECALLED)
        if line.outcome is None or line.reason is None:
            return Effect.NOTHING
        return self._tell(self._end(line.outcome, line.reason, now), now)

    def decided(self, outcome: Outcome, reason: Reason, now: float) -> Effect:
        """Its outcome is known without sending it."""
        step(self.state, Event.DECIDED)
        return self._tell(self._end(outcome, reason, now), now)

    def born_ended(self, outcome: Outcome, reason: Reason, now: float) -> None:
        """Like `decided`, before `InFlight.add`: the owner sees the outcome there."""
        step(self.state, Event.DECIDED)
        self._end(outcome, reason, now)

    def logged(self, outcome: Outcome, reason: Reason, now: float) -> None:
        """The log already has a final row for it with this outcome: nothing needs to be written."""
        if step(self.state, Event.LOGGED).to is not self.state:
            self._end(outcome, reason, now)

    # --- the rules that the table does not have ---

    @property
    def _hopeless(self) -> bool:
        """Sessions have it, and none of them can prove it."""
        return self.unprovable and self.state is State.WRITTEN

    def _fail(self, outcome: Outcome, reason: Reason, now: float) -> Effect:
        """The proof that was asked for has not come: with ttl 0 that is the outcome, otherwise the push is kept."""
        kept = self.kept
        if kept is None:
            return self._end(outcome, reason, now)
        if kept.collapsed:
            return self._end(Outcome.SUPERSEDED, Reason.COLLAPSED, now)
        if now >= kept.expires_at:
            if self.proof >= Proof.RECEIVED:
                return self._end(Outcome.RECEIVED, Reason.NOT_ACKED, now)
            return self._end(Outcome.EXPIRED, Reason.TTL, now)
        kept.reason = reason
        return Effect.KEPT

    def _end(self, outcome: Outcome, reason: Reason, now: float) -> Effect:
        self.state = State.ENDED
        self.outcome = outcome
        self.reason = reason
        self.finished_at = now
        return Effect.ENDED

    def _tell(self, effect: Effect, now: float) -> Effect:
        if effect is not Effect.NOTHING:
            self.owner.carry_on(self, effect, now)
        return effect

    # --- the messages that wait for it ---

    def joined(self, message: HeldMessage, fingerprint: int) -> bool:
        """A repeat came while this push is in flight. Returns whether its content differs."""
        self.messages.append(message)
        if not differ(fingerprint, self.fingerprint):
            return False
        if self.differing is None:
            self.differing = {}
        self.differing[message] = fingerprint
        return True

    def fingerprint_of(self, message: HeldMessage) -> int:
        """The fingerprint of what this message asked for; a message that joined may have another than the flight."""
        return self.fingerprint if self.differing is None else self.differing.get(message, self.fingerprint)

    def replies_to(self, message: HeldMessage, fingerprint: int | None = None) -> tuple[Reply, ...]:
        """The replies to this message. `fingerprint`: of the content in the row; None: the flight's own."""
        if self.differing is None and (fingerprint is None or fingerprint == self.fingerprint):
            return message.replies
        row = self.fingerprint if fingerprint is None else fingerprint
        return message.replies_where(differ(self.fingerprint_of(message), row))
