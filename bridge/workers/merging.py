"""One answer out of those of all workers: pages of metrics, states, readiness. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

SESSIONS_SHOWN: Final = 100
"""Sessions listed in the state of all, as in that of one."""
DOWN: Final = "down"
"""The cause of a worker that does not answer."""

_NAME: Final = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]*")


class About(NamedTuple):
    """A worker as its supervisor knows it."""

    number: int
    node: str
    pid: int | None
    """None while none runs."""
    restarts: int


# --- metrics ---------------------------------------------------------------------------------------------


def merged_metrics(pages: Mapping[int, bytes], workers: Sequence[About]) -> bytes:
    """All pages as one: each sample has the label `worker`, each family is told once.

    The pages are in Prometheus' text format 0.0.4, with the samples of a family below its HELP and TYPE.
    """
    families: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
    for number, page in pages.items():
        for name, head, sample in _lines(page):
            heads, samples = families.setdefault(name, ([], []))
            if sample:
                samples.append(_labelled(sample, number))
            elif not any(known.startswith(head[:7]) for known in heads):
                heads.append(head)
    made = [line for heads, samples in families.values() if samples for line in (*heads, *samples)]
    own = CollectorRegistry()
    own.register(_Families(supervisor_families(workers)))
    return b"".join(line + b"\n" for line in made) + generate_latest(own)


def _lines(page: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(family, its `# HELP` or `# TYPE` line, a sample), of the last two one is empty."""
    family = b""
    for line in page.split(b"\n"):
        if line.startswith((b"# HELP ", b"# TYPE ")):
            family = line[7:].partition(b" ")[0]
            yield family, line, b""
        elif line and not line.startswith(b"#"):
            yield family, b"", line


def _labelled(sample: bytes, number: int) -> bytes:
    """The sample with the label, which goes first."""
    found = _NAME.match(sample)
    end = found.end() if found else 0
    rest = sample[end:]
    if not rest.startswith(b"{"):
        return b'%b{worker="%d"}%b' % (sample[:end], number, rest)
    comma = b"" if rest[1:].lstrip().startswith(b"}") else b","
    return b'%b{worker="%d"%b%b' % (sample[:end], number, comma, rest[1:])


def supervisor_families(workers: Sequence[About]) -> Sequence[Metric]:
    """What only the supervisor knows."""
    up = GaugeMetricFamily("bridge_worker_up", "1 while the process of this worker runs.", labels=("worker",))
    restarts = CounterMetricFamily(
        "bridge_worker_restarts",
        "How often this worker was started again after it had ended by itself.",
        labels=("worker",),
    )
    for worker in workers:
        up.add_metric((str(worker.number),), float(worker.pid is not None))
        restarts.add_metric((str(worker.number),), float(worker.restarts))
    return up, restarts


class _Families(Collector):
    """Families as a registry that can be rendered."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        return self._families


# --- readiness and state ---------------------------------------------------------------------------------


def merged_readiness(answers: Mapping[int, Mapping[str, Any]], workers: Sequence[About]) -> dict[str, Any]:
    """Ready if one is. The causes are those of all, where none is ready, and those of each."""
    each: list[dict[str, Any]] = []
    for worker in workers:
        said = answers.get(worker.number)
        causes = [DOWN] if said is None else list(said["causes"])
        each.append(
            {"worker": worker.number, "ready": said is not None and bool(said["ready"]), "causes": causes}
        )
    ready = any(one["ready"] for one in each)
    causes = [] if ready else list(dict.fromkeys(cause for one in each for cause in one["causes"]))
    return {"ready": ready, "causes": causes, "workers": each}


def merged_status(
    answers: Mapping[int, Mapping[str, Any]], workers: Sequence[About], own: Mapping[str, Any]
) -> dict[str, Any]:
    """The state of all, in the words of the state of one, and that of each. `answers` has at least one.

    Gauges are sums, of yes and no as well: `ready` counts the workers that are. `own`: what is the supervisor's.
    """
    first = next(iter(answers.values()))
    gauges: dict[str, float] = {}
    for said in answers.values():
        for name, value in said["gauges"].items():
            gauges[name] = gauges.get(name, 0) + value
    readiness = merged_readiness(answers, workers)
    sessions = [session for said in answers.values() for session in said["sessions"]]
    return {
        **first,
        "ready": readiness["ready"],
        "causes": readiness["causes"],
        "role": _role([said["role"] for said in answers.values()]),
        "gauges": gauges,
        "sessions": sessions[:SESSIONS_SHOWN],
        **own,
        "workers": [
            {
                "worker": worker.number,
                "node": worker.node,
                "pid": worker.pid,
                "restarts": worker.restarts,
                "status": answers.get(worker.number),
            }
            for worker in workers
        ],
    }


def merged_history(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The samples of all, added up by their moment; `answers` has at least one. All see the same queue."""
    samples: dict[float, dict[str, Any]] = {}
    for said in answers:
        for sample in said["samples"]:
            known = samples.get(sample["at"])
            samples[sample["at"]] = sample if known is None else _sum(known, sample)
    return {**answers[0], "samples": [samples[at] for at in sorted(samples)]}


def _sum(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    def by_name(member: str) -> dict[str, float]:
        names = {**one[member], **other[member]}
        return {name: one[member].get(name, 0) + other[member].get(name, 0) for name in names}

    def by_size(member: str) -> list[int]:
        return [a + b for a, b in zip(one[member], other[member], strict=True)]

    queues = [sample["queue"] for sample in (one, other) if sample["queue"] is not None]
    return {
        "at": one["at"],
        "seconds": max(one["seconds"], other["seconds"]),
        "outcomes": by_name("outcomes"),
        "end_to_end": by_size("end_to_end"),
        "queued": by_size("queued"),
        "commits": by_size("commits"),
        "gauges": by_name("gauges"),
        "queue": max(queues, default=None),
    }


def _role(roles: Sequence[str | None]) -> str | None:
    """That of the worker that has most to do with taking."""
    return next((role for role in ("active", "unknown", "standby") if role in roles), None)
