"""What a canary counts, on a page of its own for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from bridge.adapters.metrics import SECONDS
from bridge.core.errors import SettingsError


class CanaryFigures:
    """Counts tries by their results, and times them."""

    def __init__(self, results: Sequence[str]) -> None:
        """`results`: all there are; each is on the page from the start, at 0."""
        self.registry = CollectorRegistry()
        self._pushes = Counter(
            "bridge_canary_pushes", "Pushes of the canary.", ["result"], registry=self.registry
        )
        for result in results:
            self._pushes.labels(result)
        self._shown = Histogram(
            "bridge_canary_shown_seconds",
            "From a push of the canary to its session.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._proven = Histogram(
            "bridge_canary_proven_seconds",
            "From a push of the canary to its final receipt.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._last = Gauge(
            "bridge_canary_last_success_timestamp_seconds",
            "When a push was last shown and proven; until then, when the canary began.",
            registry=self.registry,
        )
        self._last.set_to_current_time()

    def add(self, result: str, *, good: bool, shown: float | None, proven: float | None) -> None:
        """Count one; `shown` and `proven` in seconds since it was published, None where it was not."""
        self._pushes.labels(result).inc()
        if shown is not None:
            self._shown.observe(shown)
        if proven is not None:
            self._proven.observe(proven)
        if good:
            self._last.set_to_current_time()

    @contextmanager
    def served(self, host: str, port: int) -> Iterator[None]:
        """Serve the page for the length of the block. Raises SettingsError where the port can't be had."""
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise SettingsError(
                "--metrics", f"{host}:{port} can't be listened on: {error.strerror}"
            ) from error
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
