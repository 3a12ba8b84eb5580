"""The pushes of other nodes that sessions here have, found by key, and by what a recall names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from bridge.core.contract.letters import Forwarded, Word
from bridge.core.inflight.offered import Offered
from bridge.core.model.outcomes import Proof, Reason
from bridge.core.model.pushes import PushKey, Recall
from bridge.core.model.rows import RowKey
from bridge.core.ports.clock import Clock

GUESTS_MAX: Final = 100_000
"""Pushes of others that are remembered for a recall or a repeat; over it the oldest are forgotten."""


class Guest(Offered):
    """A push that another node owns. It reports what its sessions report, each proof once."""

    __slots__ = (
        "_best",
        "_clock",
        "_open",
        "_prover",
        "_report",
        "_unprovable",
        "_withdrawn",
        "collapse_key",
        "expires_at",
    )

    def __init__(
        self, key: RowKey, forwarded: Forwarded, clock: Clock, report: Callable[[Word, str, str, bool], None]
    ) -> None:
        self.key = key
        self.confirm = Proof(forwarded.confirm)
        self.collapse_key = forwarded.collapse_key
        self.position = forwarded.position
        self.expires_at = forwarded.expires_at
        self._clock = clock
        self._report = report
        self._best = Proof.NONE
        self._prover = ""
        self._open = 0
        self._unprovable = False
        """Only sessions have handed it over whose clients have never proven anything."""
        self._withdrawn = False

    @property
    def withdrawn(self) -> bool:
        """See `Offered`."""
        if self.expires_at is not None and self._clock.time() >= self.expires_at:
            return True
        return self._withdrawn

    @property
    def kept_elsewhere(self) -> bool:
        """See `Offered`."""
        return self.expires_at is not None and self._best < self.confirm and not self.withdrawn

    def withdraw(self) -> bool:
        """A recall names it. Returns whether one had before."""
        before, self._withdrawn = self._withdrawn, True
        return before

    def rebound(self, report: Callable[[Word, str, str, bool], None]) -> None:
        """It has another owner, who is told what was proven by now."""
        self._report = report
        if self._best is not Proof.NONE:
            report(Word(self._best - 1), "", self._prover, self._unprovable)

    def addressed(self, sessions: int) -> None:
        """It was offered to this many more sessions."""
        self._open += sessions

    def handed(self, now: float, by: str, *, unprovable: bool = False) -> None:
        """See `Offered`."""
        if self._best is Proof.NONE:
            self._unprovable = unprovable
        elif self._unprovable and not unprovable and self._best is Proof.WRITTEN:
            self._unprovable = False
            self._report(Word.HANDED, "", by, False)
            return
        self._proven(Proof.WRITTEN, Word.HANDED, by)

    def received(self, now: float, by: str) -> None:
        """See `Offered`."""
        self._proven(Proof.RECEIVED, Word.RECEIVED, by)

    def acked(self, now: float, by: str) -> None:
        """See `Offered`."""
        self._proven(Proof.ACKED, Word.ACKED, by)

    def _proven(self, proof: Proof, word: Word, by: str) -> None:
        if proof > self._best:
            self._best = proof
            self._prover = by
            self._report(word, "", by, self._unprovable)

    def lost(self, now: float, *, handed: bool, why: Reason | None = None) -> None:
        """See `Offered`."""
        self._open -= 1
        if self._open == 0 and self._best < self.confirm:
            if self._best > Proof.WRITTEN:
                # Said again: what was said before may come after this one, which is the last word.
                self._report(Word(self._best - 1), "", self._prover, self._unprovable)
            word = Word.UNSENT if self._best is Proof.NONE else Word.LOST
            unsent = "" if why is None or word is Word.LOST else why.value
            self._report(word, unsent, "", why is Reason.NO_PROOF_POSSIBLE)


class Guests:
    """At most one for each key. All that is here is found in the order in which it came."""

    def __init__(self, most: int = GUESTS_MAX) -> None:
        self._most = most
        self._of_key: dict[RowKey, Guest] = {}
        # Nearly every push has one user here: no dictionary is made for those.
        self._of_push: dict[PushKey, Guest | dict[RowKey, Guest]] = {}
        self._of_place: dict[tuple[str, str, str], dict[RowKey, Guest]] = {}
        """By tenant, user and collapse key, of those that have one."""

    def __len__(self) -> int:
        return len(self._of_key)

    def get(self, key: RowKey) -> Guest | None:
        """The push of this key, if it is here."""
        return self._of_key.get(key)

    def add(self, guest: Guest) -> None:
        """Add one whose key is not here. Over the bound the oldest is forgotten."""
        key = guest.key
        self._of_key[key] = guest
        push = PushKey(key.tenant, key.push_id)
        first = self._of_push.setdefault(push, guest)
        if isinstance(first, dict):
            first[key] = guest
        elif first is not guest:
            self._of_push[push] = {first.key: first, key: guest}
        if guest.collapse_key:
            self._of_place.setdefault((key.tenant, key.user, guest.collapse_key), {})[key] = guest
        if len(self._of_key) > self._most:
            self.remove(next(iter(self._of_key.values())))

    def remove(self, guest: Guest) -> None:
        """Forget it; idempotent."""
        key = guest.key
        if self._of_key.get(key) is not guest:
            return
        del self._of_key[key]
        push = PushKey(key.tenant, key.push_id)
        of_push = self._of_push[push]
        if isinstance(of_push, dict):
            del of_push[key]
        if not isinstance(of_push, dict) or not of_push:
            del self._of_push[push]
        if guest.collapse_key:
            place = (key.tenant, key.user, guest.collapse_key)
            of_place = self._of_place[place]
            del of_place[key]
            if not of_place:
                del self._of_place[place]

    def named(self, recall: Recall) -> Sequence[Guest]:
        """Those that a recall names."""
        if not recall.push_id:
            place = (recall.tenant, recall.user, recall.collapse_key)
            return list(self._of_place.get(place, {}).values())
        found = self._of_push.get(PushKey(recall.tenant, recall.push_id))
        if found is None:
            return ()
        return list(found.values()) if isinstance(found, dict) else (found,)
