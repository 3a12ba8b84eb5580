"""What holds in both forms of the core: `make test` runs this on the interpreted one, `make compiled` on the other."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from bridge.core.backoff import BackOff
from bridge.core.errors import IllegalTransition
from bridge.core.inflight import transitions
from bridge.ops.core_form import core_form
from deploy.wheel.compiling import MANIFEST

ROOT = Path(__file__).parent.parent.parent


class BrokenClock:
    def time(self) -> float:
        raise AssertionError

    def monotonic(self) -> float:
        raise AssertionError

    def boottime(self) -> float:
        raise AssertionError

    async def sleep(self, seconds: float) -> None:
        raise OSError("no clock")


def frames(error: BaseException) -> list[tuple[str, str]]:
    """The frames of the core in a traceback: the file, and the text of the line that it names."""
    found = []
    for frame in traceback.extract_tb(error.__traceback__):
        _, inside, path = frame.filename.rpartition("bridge/core/")
        if inside and frame.lineno is not None:
            text = (ROOT / inside / path).read_text().splitlines()[frame.lineno - 1]
            found.append((inside + path, text.strip()))
    return found


async def test_a_traceback_names_the_lines_of_a_coroutine() -> None:
    with pytest.raises(OSError, match="no clock") as caught:
        await BackOff(BrokenClock(), 1.0).wait()
    assert frames(caught.value) == [("bridge/core/backoff.py", "await self._clock.sleep(self.delay())")]


def test_a_traceback_names_the_line_that_raised() -> None:
    with pytest.raises(IllegalTransition) as caught:
        transitions.step(transitions.State.ENDED, transitions.Event.DECIDED)
    [(file, text)] = frames(caught.value)
    assert file == "bridge/core/inflight/transitions.py"
    assert text.startswith("raise IllegalTransition(")


def test_the_form_of_the_core_is_the_one_that_was_built() -> None:
    assert core_form() == ("compiled" if (ROOT / MANIFEST).exists() else "interpreted")
