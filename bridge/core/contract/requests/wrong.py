"""All that is wrong with one request, gathered for one rejection."""

from __future__ import annotations

from collections.abc import Callable

from bridge.core.contract import fields, jsontext, lists
from bridge.core.contract.stepping import Steps
from bridge.core.errors import PROBLEMS_MAX, InvalidRequest, together
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import Encoding, PushRequest


class Wrong:
    """What is wrong so far; true where anything is.

    Of fields that the contract does not have only some are kept; the rest is counted.
    """

    def __init__(self) -> None:
        self._problems: list[InvalidRequest] = []
        self._uncounted = 0
        self._stopped = False

    def __bool__(self) -> bool:
        return bool(self._problems)

    def add(self, problem: InvalidRequest) -> None:
        """One more is wrong."""
        self._problems.append(problem)

    def no_such(self, path: Callable[[str], str], name: str, problem: str = "no such field") -> None:
        """The contract has no field of this name."""
        if len(self._problems) < PROBLEMS_MAX:
            self.add(InvalidRequest(Reason.INVALID, path(jsontext.shown(name)), problem))
        else:
            self._uncounted += 1

    def more(self, uncounted: int = 0, *, stopped: bool = True) -> None:
        """So many more are wrong; where `stopped`, at least so many."""
        self._uncounted += uncounted
        self._stopped |= stopped

    def built(
        self,
        values: dict[str, object],
        path: Callable[[str], str],
        data: bytes,
        encoding: Encoding,
        fallback_id: str,
        published_at: float,
        max_ttl: float,
        knows_target: bool = True,
    ) -> Steps[PushRequest]:
        """The request of these values, see `fields.build`; raises InvalidRequest with all that is wrong.

        Where not `knows_target`, it is known already what is wrong with `to` as a whole.
        """
        if not lists.LISTS.isdisjoint(values):
            try:
                yield from lists.read_lists(values, path)
            except InvalidRequest as error:
                self._problems += error.each
                self.more(error.uncounted, stopped=error.stopped)
        for problem in fields.problems(values, path, fallback_id, published_at, max_ttl):
            if knows_target or problem.path != path("to"):
                self.add(problem)
        if not self:
            return fields.build(values, path, data, encoding, fallback_id, published_at, max_ttl)
        raise together(self._problems, self._uncounted, stopped=self._stopped)
