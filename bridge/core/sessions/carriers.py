"""Find the token in an opening handshake: the ways in which it may come, each of which may be switched off.

| carrier         | where the token is                                     | by default |
|-----------------|--------------------------------------------------------|------------|
| `authorization` | header `Authorization: Bearer <token>`                 | on         |
| `subprotocol`   | a subprotocol `bridge.token.<token>`, beside a real one| on         |
| `query`         | `?token=<token>`                                       | on         |
| `frame`         | the first message, `{"type":"auth","token":"<token>"}` | on         |
| `cookie`        | a cookie with the name that the settings give          | off        |

A browser sends a cookie to us whichever page asks it to. So it counts only with an Origin that the settings list, and
only where no other carrier has a token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from bridge.core.model.sessions import Handshake, Refusal

TOKEN_ENTRY: Final = "bridge.token."
"""The start of a subprotocol entry that carries the token: browsers can set no other header. It is never echoed."""
# Worded so that the log's redaction does not mistake them for a token.
CARRIERS: Final[Mapping[str, str]] = {
    "authorization": "in the header Authorization with the scheme Bearer",
    "subprotocol": "as a subprotocol (bridge.token. and the JWT)",
    "query": "in the query as `token`",
    "frame": "in the first message",
    "cookie": "in a cookie",
}
"""The carriers, and where each has the token, for people."""
USUAL_CARRIERS: Final = ("authorization", "subprotocol", "query", "frame")
"""Those that are on unless the settings say otherwise."""

_AS_BASE64URL = str.maketrans("+/", "-_")


class Carriers:
    """The ways that are allowed."""

    def __init__(self, allowed: Collection[str], cookie: str, origins: Collection[str]) -> None:
        """`cookie`: its name. `origins`: those that may use it."""
        self._allowed = frozenset(allowed)
        self._cookie = cookie
        self._origins = frozenset(origins)

    def token(self, request: Handshake) -> str | Refusal | None:
        """The token, the refusal of a handshake without one, or None where it is to come as the first message."""
        given = _given(request)
        for carrier, tokens in given.items():
            if carrier not in self._allowed and any(tokens):
                text = f"A token came {CARRIERS[carrier]}, which BRIDGE_TOKEN_FROM does not allow here.\n"
                return Refusal(401, "carrier", text)
        found = _different([token for tokens in given.values() for token in tokens])
        if not found and "cookie" in self._allowed:
            found = _different(_cookies(request.cookie or "", self._cookie))
            if found and (request.origin is None or request.origin not in self._origins):
                text = "A token in a cookie needs an Origin that BRIDGE_ORIGINS lists.\n"
                return Refusal(403, "origin", text)
        if len(found) > 1:
            return Refusal(401, "many", "More than one token was given, and they differ.\n")
        if found:
            return found.pop()
        empty = any(carrier in self._allowed for carrier in given)
        return None if "frame" in self._allowed and not empty else self._none(request)

    def _none(self, request: Handshake) -> Refusal:
        *others, last = [where for carrier, where in CARRIERS.items() if carrier in self._allowed]
        ways = f"{', '.join(others)}, or {last}" if others else last
        begin = "The header Authorization has no Bearer token. " if request.authorization is not None else ""
        return Refusal(401, "missing", f"{begin}A token is required: {ways}.\n")


def _given(request: Handshake) -> dict[str, list[str]]:
    """What each carrier of the handshake itself has, by carrier. One that is there without a token has an empty one."""
    given: dict[str, list[str]] = {}
    if "token" in request.query:
        # A raw `+` in a query becomes a space, and no token has a space.
        given["query"] = [token.strip("\t\r\n").replace(" ", "+") for token in request.query["token"]]
    if request.authorization is not None:
        scheme, *credentials = request.authorization.split(None, 1)[:2] or [""]
        bearer = scheme.lower() == "bearer"
        given["authorization"] = [token.strip() for token in credentials] if bearer else [""]
    entries = [entry for entry in request.subprotocols if entry.startswith(TOKEN_ENTRY)]
    if entries:
        given["subprotocol"] = [entry[len(TOKEN_ENTRY) :] for entry in entries]
    return given


def _cookies(header: str, name: str) -> list[str]:
    """The values of the cookies with this name (RFC 6265 4.2.1)."""
    pairs = [pair.partition("=") for pair in header.split(";")]
    return [value.strip().strip('"') for key, _, value in pairs if key.strip() == name]


def _different(tokens: Iterable[str]) -> set[str]:
    """The different ones. The same token in two spellings of base64 counts once."""
    return set({_canonical(token): token for token in tokens if token}.values())


def _canonical(token: str) -> str:
    return ".".join(part.rstrip("=") for part in token.translate(_AS_BASE64URL).split("."))
