"""What a fault is, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.chaos.stage import Act


@dataclass(frozen=True)
class Fault:
    """A fault, and how to make it."""

    name: str
    about: str
    act: Act
    proxied: Sequence[str] = ()
    """Which of the bridge's connections go through a proxy: `amqp`, `postgres`."""
    networked: bool = False
    """Whether each bridge is on a network of its own."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Settings of the bridge that differ from the defaults."""
    short: bool = False
    """Part of the short run: no server is stopped, and it takes a few seconds."""


FAULTS: dict[str, Fault] = {}


def fault(
    name: str,
    *,
    proxied: Sequence[str] = (),
    networked: bool = False,
    settings: Mapping[str, object] | None = None,
    short: bool = False,
) -> Callable[[Act], Act]:
    """Add a function to the list; its docstring says what it does."""

    def enter(act: Act) -> Act:
        assert name not in FAULTS, name
        FAULTS[name] = Fault(
            name, (act.__doc__ or "").strip(), act, proxied, networked, settings or {}, short
        )
        return act

    return enter
