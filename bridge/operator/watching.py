"""Which outcomes somebody watches: the filter of GET /v1/outcomes, of the console's live view, and of `bridge tail`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from bridge.core.contract.fields import is_id
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.parties import PARTIES, Party
from bridge.core.model.pushes import ID_MAX
from bridge.core.model.rows import Row

KEY_BYTES_MAX: Final = 255
"""Of a routing key (AMQP 0-9-1 4.2.5.3); the bridge cuts longer ones."""
_REASONS: Final[Mapping[str, Reason]] = {reason.value: reason for reason in Reason}
_WORDS: Final[Mapping[str, Sequence[str]]] = {
    "outcome": [outcome.value for outcome in Outcome],
    "reason": [*_REASONS],
    "party": [party.value for party in Party],
}
"""The fields that have one of a few words."""


class WrongFilter(ValueError):
    """`field` can't have this value; `expected` says what it may have, for people."""

    def __init__(self, field: str, expected: str) -> None:
        self.field = field
        self.expected = expected
        super().__init__(f"{field}: {expected} expected.")


class Told(NamedTuple):
    """What an outcome says of itself, as far as it can be filtered by; empty for what it does not say."""

    user: str
    push_id: str
    event: str
    topic: str
    tenant: str
    outcome: str
    reason: str


class Filter(NamedTuple):
    """What an outcome must say; None: anything. All that is given must fit."""

    user: str | None = None
    push_id: str | None = None
    event: str | None = None
    """A pattern: words with dots between them, of which `*` is any one word, and `#` any number of words, also none."""
    topic: str | None = None
    """A pattern likewise. An outcome of what went to no topic fits none."""
    tenant: str | None = None
    outcome: str | None = None
    reason: str | None = None
    party: str | None = None
    """Who could have made it end better (`bridge.core.model.parties`)."""

    def fits(self, told: Told) -> bool:
        """Whether this outcome is wanted."""
        return (
            (self.user is None or told.user == self.user)
            and (self.push_id is None or told.push_id == self.push_id)
            and (self.tenant is None or told.tenant == self.tenant)
            and (self.outcome is None or told.outcome == self.outcome)
            and (self.reason is None or told.reason == self.reason)
            and (self.party is None or party_of(told.reason) == self.party)
            and (self.event is None or like(self.event, told.event))
            and (self.topic is None or (bool(told.topic) and like(self.topic, told.topic)))
        )

    @property
    def binding_key(self) -> str:
        """Which of the routing keys `<outcome>.<event>` may be of wanted outcomes."""
        key = f"{self.outcome or '*'}.{'#' if self.event is None else self.event}"
        # A key of this length may be the beginning of a longer one.
        return key if len(key.encode()) < KEY_BYTES_MAX else f"{self.outcome or '*'}.#"


EVERYTHING: Final = Filter()


def filter_of(given: Mapping[str, str | None]) -> Filter:
    """The filter with these fields; raises WrongFilter for a value that no outcome can have."""
    for field, value in given.items():
        if value is None:
            continue
        if field in _WORDS:
            if value not in _WORDS[field]:
                raise WrongFilter(field, f"one of {', '.join(_WORDS[field])}")
        elif not is_id(value):
            raise WrongFilter(field, f"1 to {ID_MAX} characters without controls")
    return Filter(**given)


def told_by_row(row: Row) -> Told:
    """What a row of the log says."""
    tenant, push_id, user = row.key
    return Told(user, push_id, row.event, row.topic, tenant, row.outcome, row.reason)


def told_by_receipt(receipt: Mapping[str, Any]) -> Told:
    """What a receipt says. Those of version 0.2.0 name no topic."""
    names = ("user_id", *Told._fields[1:])
    return Told._make(receipt.get(name) or "" for name in names)


def party_of(reason: str) -> str | None:
    """The responsible party, if there is one. A newer bridge may give a reason that this one does not know."""
    known = _REASONS.get(reason)
    party = None if known is None else PARTIES[known]
    return None if party is None else party.value


def like(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern, as a topic exchange of AMQP compares them. It takes time of the product of both at
    most."""
    wanted, words = pattern.split("."), name.split(".")
    at = k = 0
    back: tuple[int, int] | None = None
    while k < len(words):
        if at < len(wanted) and wanted[at] == "#":
            # It takes no word at first, and one more each time when what follows does not fit.
            back = (at, k)
            at += 1
        elif at < len(wanted) and wanted[at] in ("*", words[k]):
            at += 1
            k += 1
        elif back is not None:
            back = (back[0], back[1] + 1)
            at, k = back[0] + 1, back[1]
        else:
            return False
    return all(word == "#" for word in wanted[at:])
