"""Why an HTTP request got no answer, for people: never with the address, which such errors may quote."""

from __future__ import annotations

import aiohttp


def cause_of(error: Exception) -> str:
    """The cause, of an error of the HTTP client or of the system."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect: {error.os_error.strerror or type(error.os_error).__name__}"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
        return "the connection was closed before the answer"
    return type(error).__name__
