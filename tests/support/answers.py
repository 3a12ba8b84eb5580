"""An Answers port that records what it was told."""

from __future__ import annotations

import json

from bridge.core.model.rows import Reply


class RecordingAnswers:
    """Fills the Answers port."""

    def __init__(self) -> None:
        self.given: list[tuple[Reply, dict[str, object]]] = []

    async def answer(self, reply: Reply, body: bytes) -> bool:
        self.given.append((reply, json.loads(body)))
        return True
