"""The publisher for code that does not use asyncio: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, Self, TypeVar, Unpack

from bridge.core.errors import BrokerUnavailable
from bridge.publisher.publisher import Options, Publisher
from bridge.publisher.sent import Receipt, Sent

T = TypeVar("T")


class BlockingSent:
    """A request that the broker has confirmed, see `Sent`."""

    def __init__(self, sent: Sent, publisher: BlockingPublisher) -> None:
        self._sent = sent
        self._publisher = publisher

    @property
    def id(self) -> str:
        """Its idempotency key."""
        return self._sent.id

    @property
    def receipts(self) -> Mapping[str, Receipt]:
        """See `Sent.receipts`."""
        return dict(self._sent.receipts)

    def outcome(self, timeout: float, *, final: bool = False) -> Receipt:
        """See `Sent.outcome`."""
        return self._publisher._call(self._sent.outcome(timeout, final=final))

    def outcomes(self, timeout: float, *, final: bool = False) -> Mapping[str, Receipt]:
        """See `Sent.outcomes`."""
        return self._publisher._call(self._sent.outcomes(timeout, final=final))


class BlockingPublisher:
    """As `Publisher`, as an ordinary context manager. Any thread may call it. A process that forks makes its own after
    the fork."""

    def __init__(
        self, url: str, *, app_id: str = "", retry_for: float = 60.0, name: str = "publisher"
    ) -> None:
        """See `Publisher`."""
        self._publisher = Publisher(url, app_id=app_id, retry_for=retry_for, name=name)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._lock = threading.Lock()
        self._open = False

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def __enter__(self) -> Self:
        self._thread.start()
        self._wait(self._publisher.__aenter__())
        self._open = True
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._open = False
        try:
            self._wait(self._publisher.__aexit__(*error))
        finally:
            # Who waits for an outcome in another thread is told, and not left waiting.
            self._wait(_end_others())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def send(
        self, data: object, *, id: str | None = None, receipts: bool = False, **options: Unpack[Options]
    ) -> BlockingSent:
        """See `Publisher.send`."""
        return BlockingSent(self._call(self._publisher.send(data, id=id, receipts=receipts, **options)), self)

    def send_all(self, requests: Iterable[Mapping[str, Any]]) -> Sequence[BlockingSent]:
        """Send many at once, each as the arguments of `send` by name (`data`, `user`, ...); returns once all are
        confirmed. An error is raised after the others have ended."""
        return [BlockingSent(sent, self) for sent in self._call(self._publisher.send_all(requests))]

    def _call(self, story: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if not self._open:
                story.close()
                raise RuntimeError("the publisher is not open: use it in `with`")
            ended = asyncio.run_coroutine_threadsafe(story, self._loop)
        try:
            return ended.result()
        except CancelledError:
            raise BrokerUnavailable("the publisher was closed") from None

    def _wait(self, story: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(story, self._loop).result()


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
