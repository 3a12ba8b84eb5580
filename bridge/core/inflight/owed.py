"""What the flight of a push has that is to be published elsewhere if nobody proves it."""

from __future__ import annotations

from typing import NamedTuple

from bridge.core.model.pushes import Encoding


class Owed(NamedTuple):
    """The fallback of a flight. Its data is in `Kept`, or in `Flight.payload` for a push without a ttl."""

    due: float
    """Wall-clock seconds."""
    routing_key: str
    encoding: Encoding
    """What the data is."""
