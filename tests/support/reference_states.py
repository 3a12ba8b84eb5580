"""Renders docs/reference/states.md: `python -m tests.support.reference_states` writes it, a test compares."""

from __future__ import annotations

import enum
import inspect
from pathlib import Path

from bridge.core.inflight.transitions import STEPS, Event, State
from bridge.core.sessions.states import SESSION_TRANSITIONS, SessionEvent, SessionState

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "states.md"


def _meanings(kind: type[enum.Enum]) -> dict[str, str]:
    """The docstring below each member, in one line."""
    found: dict[str, str] = {}
    member = ""
    for line in inspect.getsource(kind).split('"""', 2)[2].splitlines():
        text = line.strip()
        if " = " in text and text.split(" = ")[0].isidentifier():
            member = text.split(" = ")[0]
        elif member and text:
            found[member] = f"{found.get(member, '')} {text}".replace('"""', "").strip()
    return found


def _words(kind: type[enum.Enum]) -> list[str]:
    meanings = _meanings(kind)
    return [f"| `{one.name.lower()}` | {meanings.get(one.name, '')} |" for one in kind]


def _cell(state: State, event: Event) -> str:
    step = STEPS.get((state, event))
    if step is None:
        return "–"
    if step.outcome is None or step.reason is None:
        return f"`{step.to.name.lower()}`"
    decided = f"**{step.outcome.value}** / {step.reason.value}"
    return decided if step.to is State.ENDED else f"`{step.to.name.lower()}`, or {decided}"


def states_page() -> str:
    """The whole page as it must be."""
    lines = [
        "# States",
        "",
        "<!-- Written by `python -m tests.support.reference_states` from the tables that the program executes. -->",
        "",
        "An event that a table has no line for is a defect: it raises, and changes nothing.",
        "",
        "## A push to one user",
        "",
        "From `bridge/core/inflight/transitions.py`, executed by `bridge/core/inflight/flight.py`.",
        "",
        "| state | meaning |",
        "|---|---|",
        *_words(State),
        "",
        "| event | meaning |",
        "|---|---|",
        *_words(Event),
        "",
        "A cell is the next state, or the **outcome** / reason by which the push ends. A proof ends it when no",
        "better one was asked for. A failure ends it when no other session may still prove it; a push with a ttl",
        "that is not over is kept instead. `–`: the event can't happen in that state.",
        "",
        "| event | " + " | ".join(f"in `{state.name.lower()}`" for state in State) + " |",
        "|---|" + "---|" * len(State),
        *(
            f"| `{event.name.lower()}` | " + " | ".join(_cell(state, event) for state in State) + " |"
            for event in Event
        ),
        "",
        "## A session",
        "",
        "From `bridge/core/sessions/states.py`, executed by `bridge/core/sessions/session.py`.",
        "",
        "| state | meaning |",
        "|---|---|",
        *_words(SessionState),
        "",
        "| event | " + " | ".join(f"in `{state.value}`" for state in SessionState) + " |",
        "|---|" + "---|" * len(SessionState),
    ]
    for event in SessionEvent:
        nexts = [SESSION_TRANSITIONS.get((state, event)) for state in SessionState]
        lines.append(
            f"| `{event.value}` | " + " | ".join("–" if n is None else f"`{n.value}`" for n in nexts) + " |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(states_page())
