"""What a scrape of the bridge has, and what an expression of Prometheus asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.support.reference_metrics import PAGE

ALWAYS = frozenset(("job", "instance", "worker"))
"""Labels that Prometheus or a supervisor adds to each sample."""
PROCESS = (
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_max_fds",
)
"""Of the client library, on every page."""
_SERIES = re.compile(r"\b((?:bridge|process|python)_\w+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPED = re.compile(r"\bby \(([^)]*)\)")


def known() -> dict[str, set[str]]:
    """Each series that there may be, with its own labels. The page is held equal to the code by a test."""
    found: dict[str, set[str]] = {name: set() for name in PROCESS}
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE)
    for name, kind, labels in rows:
        own = set(re.findall(r"`(\w+)`", labels))
        if kind == "histogram":
            found |= {f"{name}_bucket": {*own, "le"}, f"{name}_sum": own, f"{name}_count": own}
        else:
            found[name] = own
    assert len(found) > 60
    return found


def mistakes(expression: str) -> Iterator[str]:
    """Series and labels of an expression that there are not."""
    series = known()
    used: set[str] = set()
    for name, selector in _SERIES.findall(expression):
        if name not in series:
            yield f"there is no series {name}"
            continue
        used |= series[name]
        yield from (
            f"{name} has no label {label}"
            for label in _LABEL.findall(re.sub(r'"[^"]*"', '""', selector))
            if label not in series[name] | ALWAYS
        )
    for labels in _GROUPED.findall(expression):
        yield from (
            f"nothing there has the label {label}"
            for label in re.findall(r"\w+", labels)
            if label not in used | ALWAYS
        )
