"""The evidence of a run, from each side separately: what was published, shown, recorded and sent back.

None of it comes from the bridge: publishers know what the broker confirmed, clients what they read and sent,
the database holds the rows, the broker the receipts and dead letters. The checker compares them.
"""

from __future__ import annotations

import enum
import math
import time
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final, NamedTuple

LASTS = 3600.0
"""Seconds of ttl, longer than any run."""


class Fate(enum.Enum):
    """How a request must end."""

    PUSHED = "pushed"
    """As a push: a row for each of its users."""
    REJECTED = "rejected"
    """As one rejected row, and a dead letter."""


TOPIC: Final = "news.some"


def subscribes(user: str) -> bool:
    """Whether the token of this user names the topic: that of about every other one does."""
    return zlib.crc32(user.encode()) % 2 == 0


class To(enum.Enum):
    """What a request is addressed to."""

    USERS = "users"
    SESSION = "session"
    ALL = "all"
    TOPIC = "topic"


@dataclass(slots=True)
class Request:
    """A request that a publisher made, and how often it was published and confirmed."""

    mark: str
    """Unique; in the data of a push, in `meta` and in the body of a rejected one."""
    push_id: str
    """Empty if it has none that the bridge could use: then its row is found by the mark."""
    tenant: str = ""
    to: To = To.USERS
    users: frozenset[str] = frozenset()
    """Who may be shown it; empty for `ALL`, when everyone may, and `TOPIC`: see `subscribes`."""
    session: str = ""
    fate: Fate = Fate.PUSHED
    copies: int = 0
    """How often it was published, confirmed or not."""
    confirmed: int = 0
    """How often the broker confirmed it."""
    replies: set[str] = field(default_factory=set)
    """Correlation ids of confirmed copies that asked for a receipt."""
    excused: str = ""
    """Why the broker may have lost it, such as a deleted queue; empty if it must not be lost."""
    confirm: str = "received"
    ttl: float = 0.0
    """Seconds that it is kept."""
    collapse_key: str = ""
    retained: bool = False
    """It is the last value of a topic: whoever subscribes later gets it."""
    scheduled: bool = False
    """It has a `deliver_at`: it is taken some time after it was published."""
    first_device: bool = False
    """The first ack takes it back from the user's other sessions."""
    expiration: bool = False
    """Whether it has an expiration, after which the broker gives it up."""
    first_published: float = math.inf
    """Monotonic seconds at which it was first handed to the broker's connection."""
    first_confirmed: float = math.inf
    """Monotonic seconds at which the broker first confirmed it."""
    with_a_crowd: bool = False
    """Its message has a push to everyone or to a topic in it, and has its order among such messages."""
    queue_key: str = ""
    """The routing key where there are partitions, which keep an order for each key; else empty."""

    @property
    def lasts(self) -> bool:
        """Whether it is kept for longer than any run."""
        return self.ttl >= LASTS

    def publishing(self) -> None:
        """A copy is published now."""
        self.copies += 1
        self.first_published = min(self.first_published, time.monotonic())

    def confirmed_now(self) -> None:
        """The broker has confirmed a copy."""
        self.confirmed += 1
        self.first_confirmed = min(self.first_confirmed, time.monotonic())

    def before(self, other: Request) -> bool:
        """Whether this was certainly in the same queue when the other was first published."""
        return self.queue_key == other.queue_key and self.first_confirmed < other.first_published


@dataclass(slots=True)
class Recall:
    """A recall that was published: of one push by its id, or of a user's pushes by their collapse key."""

    tenant: str
    push_id: str = ""
    user: str = ""
    collapse_key: str = ""
    stored_for: str = ""
    """A user for whom the push was announced as stored before this was published: it can't come too early."""
    confirmed: bool = False
    replied: float = math.inf
    """Monotonic seconds of the last answer."""

    def names(self, request: Request, user: str | None) -> bool:
        """Whether it may have ended this push, which was taken before the recall was carried out."""
        if request.tenant != self.tenant or request.first_published > self.replied:
            return False
        if self.push_id:
            return request.push_id == self.push_id
        return self.user == user and self.collapse_key == request.collapse_key


class RowKey(NamedTuple):
    """The key of a row; None if it has no user."""

    tenant: str
    push_id: str
    user: str | None


class Row(NamedTuple):
    """A row of the delivery log as it is at rest."""

    key: RowKey
    outcome: str
    reason: str
    final: bool
    owed: bool
    marks: frozenset[str] = frozenset()
    """The mark in its `meta`, or in the body that a rejected row keeps."""
    detail: str = ""
    node: str = ""
    attempts: int = 0
    lapsed: bool = False
    """Whether it is kept, and its ttl is over."""
    fell_back: bool = False
    """Whether it says that its fallback was published."""
    overdue: bool = False
    """Whether its fallback has been due for some time."""
    early: bool = False
    """Whether its fallback was published though the push was proven before that was due."""
    position: int = 0
    """Its place among the kept pushes of its user; 0 if it is not kept."""


class Revoked(NamedTuple):
    """A client's token was revoked."""

    connection: int
    """The number of its last connection that was begun with this token before."""
    answered: float
    """Monotonic seconds of the answer, which says that its session is closed."""


class Session(NamedTuple):
    """A session of a client, as that saw it."""

    since: float
    """Monotonic seconds of the welcome."""
    until: float
    """Monotonic seconds at which the connection was lost."""
    port: int = 0
    """Of the node that had it."""


class Mute(NamedTuple):
    """A node was stopped, or could not say that it lives."""

    port: int
    since: float
    until: float


@dataclass
class Tab:
    """The evidence of one client that reads and stays until the end."""

    user: str
    reads: list[tuple[int, str, float]] = field(default_factory=list)
    """(number of the connection, mark, monotonic seconds) of each push it read, in order."""
    acks: bool = False
    """Whether it acknowledges each push."""
    resumes: bool = False
    """Whether it resumes after the last push seen whenever it reconnects."""
    since: float = math.inf
    """Monotonic seconds of the first push it could name."""
    cut: int = 0
    """How often it was told that the replay is not complete."""
    revoked: list[Revoked] = field(default_factory=list)
    open: list[Session] = field(default_factory=list)
    """The sessions that it had."""


@dataclass(slots=True)
class Showing:
    """How one push was shown to one user, over all of the user's clients."""

    times: Counter[int] = field(default_factory=Counter)
    """Client to how often it read the push."""
    sessions: set[str] = field(default_factory=set)
    """Sessions that read it, if the client knew its session."""
    ponged: bool = False
    """Whether a pong was written after it was read."""
    acked: bool = False
    """Whether an ack frame for it was written."""


class Depth(NamedTuple):
    """Messages in a queue."""

    ready: int
    unacked: int


class Receipt(NamedTuple):
    """The content of a receipt, without its key."""

    outcome: str
    reason: str
    final: bool


@dataclass
class Evidence:
    """All of it."""

    requests: dict[str, Request] = field(default_factory=dict)
    """By mark."""
    rows: list[Row] = field(default_factory=list)
    shown: dict[tuple[str, str], Showing] = field(default_factory=dict)
    """(user, mark) to what the user's clients saw."""
    announced: dict[RowKey, Counter[Receipt]] = field(default_factory=lambda: defaultdict(Counter))
    """What came on `push.outcomes`."""
    fallbacks: dict[RowKey, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """What came on `push.fallback`: how often, by message id."""
    replied: dict[str, Counter[tuple[RowKey, Receipt]]] = field(default_factory=lambda: defaultdict(Counter))
    """Correlation id to what came to the reply queue."""
    stored: dict[RowKey, float] = field(default_factory=dict)
    """Monotonic seconds at which we heard that it is stored, the first time."""
    ended: dict[RowKey, float] = field(default_factory=dict)
    """Monotonic seconds at which we heard of its end, the first time."""
    recalls: dict[str, Recall] = field(default_factory=dict)
    """By correlation id."""
    dead: Counter[str] = field(default_factory=Counter)
    """Marks in the bodies in `push.dead`; messages that the broker gave up are there as they were, batches whole."""
    queues: dict[str, Depth] = field(default_factory=dict)
    tabs: list[Tab] = field(default_factory=list)
    shaken: list[float] = field(default_factory=list)
    """Monotonic seconds at which the broker may have taken messages back, to deliver them in another order:
    the bridge began or ended, or a connection to the broker was lost."""
    ordered: bool = True
    """Whether order and resumes are checked: only if all sessions are at one bridge."""
    reopened: bool = True
    """Whether order is checked after the first connection of a client as well."""
    complete: bool = False
    """Whether resumes are checked where order is not."""
    found: bool = False
    """Whether it is checked that nobody is taken for absent whose session was open all the time."""
    mute: list[Mute] = field(default_factory=list)
    """Nodes that may have been taken for dead, with the sessions that they had, in the order of time."""
    deadly: set[str] = field(default_factory=set)
    """Marks of requests that kill the bridge whenever it handles them."""
    given_back: bool = False
    """Whether another consumer returned messages as often as the broker allows."""
    mailbox: int = 0
    """Pushes that a mailbox holds; 0 means more than a run publishes."""
    troubles: list[str] = field(default_factory=list)
    """Other failures: a bridge that ended by itself, a drain that failed."""
