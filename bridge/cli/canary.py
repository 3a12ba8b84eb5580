"""`bridge canary`: a push a second through everything, to a session of its own."""

from __future__ import annotations

import json
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Final

from bridge.config import CommonSettings, TokenSettings
from bridge.core.errors import SettingsError
from bridge.operator.canary import APP, Canary, Result, Try

TOKEN_SECONDS: Final = 3600.0
"""Seconds for which a token of its own is valid."""
RENEW: Final = 3000.0
"""Seconds after which it opens its session anew: before the token ends it in the middle of a push."""
SUMMARY: Final = 60.0
"""Seconds between two summaries."""


async def canary(
    settings: CommonSettings,
    *,
    url: str,
    token_file: str | None,
    every: float,
    timeout: float,  # noqa: ASYNC109 - it is for each push
    count: int | None,
    metrics: tuple[str, int] | None,
    as_json: bool,
) -> int:
    """Push until cancelled, or `count` times. Prints each failure, and a summary each minute and at the end; as JSON, a
    line for each push. Returns 1 where a push has failed. `metrics`: host and port of a page for Prometheus."""
    from bridge.adapters.canary_figures import CanaryFigures
    from bridge.publisher import Publisher

    token = _token(settings, token_file)
    token()  # what is wrong with it is said at once
    summary = Summary()
    async with AsyncExitStack() as stack:
        if not as_json:
            # Also where it is interrupted.
            stack.callback(lambda: print(summary.take(), flush=True))
        publisher = await stack.enter_async_context(
            Publisher(settings.amqp_url, app_id=APP, retry_for=timeout, name="bridge canary")
        )
        figures = CanaryFigures([result.value for result in Result])
        if metrics is not None:
            stack.enter_context(figures.served(*metrics))
        bird = Canary(publisher, url, token, timeout, RENEW)
        async with aclosing(bird.tries(every)) as tries:
            async for one in tries:
                summary.add(one)
                good = one.result is Result.OK
                figures.add(one.result.value, good=good, shown=one.shown, proven=one.proven)
                if as_json:
                    print(json.dumps(one._asdict()), flush=True)
                elif not good:
                    print(f"{time.strftime('%H:%M:%S')}  {one.push_id}  {one.result}: {one.why}", flush=True)
                if summary.total == count:
                    break
                if not as_json and summary.due:
                    print(summary.take(), flush=True)
    return 1 if summary.failed else 0


class Summary:
    """What became of the tries since the last line, and whether any has failed."""

    def __init__(self) -> None:
        self.total = 0
        self.failed = 0
        self._since = time.monotonic()
        self._results: Counter[Result] = Counter()
        self._proven: list[float] = []

    def add(self, one: Try) -> None:
        """Count one."""
        self.total += 1
        self.failed += one.result is not Result.OK
        self._results[one.result] += 1
        if one.result is Result.OK and one.proven is not None:
            self._proven.append(one.proven)

    @property
    def due(self) -> bool:
        """Whether it is time for a line."""
        return time.monotonic() - self._since >= SUMMARY

    def take(self) -> str:
        """The line; the next one counts from now."""
        tried, good = self._results.total(), self._results[Result.OK]
        line = f"{time.strftime('%H:%M:%S')}  {good} of {tried} pushes shown and proven"
        if self._proven:
            median, most = statistics.median(self._proven), max(self._proven)
            line += f"; published to receipt: median {1000 * median:.1f} ms, at most {1000 * most:.1f} ms"
        self._since, self._results, self._proven = time.monotonic(), Counter(), []
        return line


def _token(settings: CommonSettings, token_file: str | None) -> Callable[[], str]:
    if token_file is not None:

        def read() -> str:
            try:
                return Path(token_file).read_text(encoding="ascii").strip()
            except (OSError, ValueError) as error:
                raise SettingsError("--token-file", f"{token_file} can't be read: {error}") from error

        return read
    # Without a secret, or with one that `dev` has made, nothing could be opened.
    if not isinstance(settings, TokenSettings) or "jwt_secret" not in settings.model_fields_set:
        raise SettingsError(
            "BRIDGE_JWT_SECRET",
            "needed: the secret of the bridge, for a token; or give one with --token-file",
        )
    from bridge.cli.tokens import token_for

    user = f"canary-{uuid.uuid4().hex[:12]}"
    return lambda: token_for(settings, user, TOKEN_SECONDS)
