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

A stream of events (`/sse`) has neither subprotocols nor a first message.

Beside a connect hook, `Authorization` and the cookie may as well be the business system's: they are shared. The query
and the subprotocol are the bridge's own, and only their token counts where there is one. `frame` is off.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from bridge.core.model.sessions import SSE_PATH, Handshake, Refusal

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

OWN: Final = ("query", "subprotocol")
"""Those that nobody but the bridge reads."""

_AS_BASE64URL = str.maketrans("+/", "-_")


def usual_carriers(*, hook: bool) -> tuple[str, ...]:
    """Those that are on unless the settings say otherwise, beside a connect hook or without one."""
    return tuple(carrier for carrier in USUAL_CARRIERS if not (hook and carrier == "frame"))


class Shown(NamedTuple):
    """The tokens of a handshake where there is a connect hook."""

    own: str | Refusal | None
    """The one that is meant for the bridge, or why the handshake is refused for it."""
    shared: tuple[str | Refusal, ...] = ()
    """Without one, those that may be somebody else's, in the order in which they are tried. A refusal stands where one
    can't be tried."""


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
        found = self._one_of(given)
        if found is None:
            found = self._in_cookie(request)
        if found is not None:
            return found
        empty = any(carrier in self._allowed for carrier in given)
        later = "frame" in self._allowed and request.path != SSE_PATH
        return None if later and not empty else self._none(request)

    def shown(self, request: Handshake) -> Shown:
        """The tokens, where a connect hook is asked about a handshake without one of ours."""
        given = _given(request)
        own = self._one_of({carrier: given[carrier] for carrier in OWN if carrier in given})
        if own is not None:
            return Shown(own)
        shared = given.get("authorization", []) if "authorization" in self._allowed else []
        return Shown(None, tuple(token for token in (*shared, self._in_cookie(request)) if token))

    def _one_of(self, given: Mapping[str, Sequence[str]]) -> str | Refusal | None:
        """The token that these carriers have, if they have no more than one."""
        for carrier, tokens in given.items():
            if carrier not in self._allowed and any(tokens):
                text = f"A token came {CARRIERS[carrier]}, which BRIDGE_TOKEN_FROM does not allow here."
                return Refusal(401, "carrier", text)
        return _only(token for tokens in given.values() for token in tokens)

    def _in_cookie(self, request: Handshake) -> str | Refusal | None:
        if "cookie" not in self._allowed:
            return None
        found = _only(_cookies(request.cookie or "", self._cookie))
        if found is not None and (request.origin is None or request.origin not in self._origins):
            text = "A token in a cookie needs an Origin that BRIDGE_ORIGINS lists."
            return Refusal(403, "origin", text)
        return found

    def _none(self, request: Handshake) -> Refusal:
        ways_in = [carrier for carrier in CARRIERS if carrier in self._allowed]
        if request.path == SSE_PATH:
            ways_in = [carrier for carrier in ways_in if carrier not in ("subprotocol", "frame")]
        if not ways_in:
            return Refusal(
                401, "missing", "No token can come with a request for events: see BRIDGE_TOKEN_FROM."
            )
        *others, last = [CARRIERS[carrier] for carrier in ways_in]
        ways = f"{', '.join(others)}, or {last}" if others else last
        begin = "The header Authorization has no Bearer token. " if request.authorization is not None else ""
        return Refusal(401, "missing", f"{begin}A token is required: {ways}.")


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


def _only(tokens: Iterable[str]) -> str | Refusal | None:
    """The token that there is, or the refusal of several. The same in two spellings of base64 is one."""
    found = list({_canonical(token): token for token in tokens if token}.values())
    if len(found) > 1:
        return Refusal(401, "many", "More than one token was given, and they differ.")
    return found[0] if found else None


def _canonical(token: str) -> str:
    return ".".join(part.rstrip("=") for part in token.translate(_AS_BASE64URL).split("."))
