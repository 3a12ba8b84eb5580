"""Opening requests made by chance, right and wrong ones, and who may come in with each."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from tests.support.random_tokens import NOW, any_token, canonical, claims_of, good, user_of

APP: Final = "https://app.example"
COOKIE: Final = "jar"
REVOKED: Final = "t1"
"""The id of tokens that are revoked; some of those that are good otherwise have it."""
TOKEN_SECONDS: Final = 400 * 86_400.0
METHODS: Final = ("POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "get", "", "G\x00T", "x" * 300)
VERSIONS: Final = ("HTTP/1.0", "HTTP/2", "HTTP/1.1 ", "HTTP/0.9", "", "HTP/1.1", "http/1.1")
PATHS: Final = (
    *(
        "/livez",
        "/readyz",
        "/",
        "/ws/",
        "/WS",
        "//ws",
        "/%77s",
        "*",
        "",
        "/ws#x",
        "http://host/ws",
        "ws://[::1]/ws",
    ),
    *("ftp://host/ws", "http:///ws", "/../ws", "/metrics", "/" + "x" * 300, "/readyz?x=1"),
)
QUERIES: Final = (
    *(
        "&&&",
        "=",
        "%",
        "%zz",
        "%ff%fe",
        "a=1&a=2",
        "token",
        "last=p1",
        "last=%00",
        "last=" + "x" * 3_000,
        "?",
    ),
    *("&".join(f"f{n}=1" for n in range(count)) for count in (63, 65, 400)),
    *(";token=x", "+=+", "%74oken=", "__proto__=1", "token[]=x", "last=%ED%A0%80"),
)
ODD_LINES: Final[Sequence[bytes]] = (
    *(
        b"",
        b" ",
        b":",
        b": x",
        b"X",
        b"X : y",
        b"X\x00: y",
        b"X: \x00",
        b"X: \xff\xfe",
        b" folded: y",
        b"\tX: y",
    ),
    *(b"X: y\r", b"\xc3\xbc: y", b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: -1"),
    *(b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Connection: close", b"Upgrade: h2c"),
    *(b"Sec-WebSocket-Key: AAAA", b"Sec-WebSocket-Key: \xff", b"Sec-WebSocket-Version: 13, 8"),
    *(b"Sec-WebSocket-Extensions: permessage-deflate", b"Sec-WebSocket-Extensions: ;;", b"Host: \xff"),
    *(b"Sec-WebSocket-Protocol: a b", b"Sec-WebSocket-Protocol:", b"Sec-WebSocket-Protocol: \xff"),
    *(b"Origin: https://evil.example", b"Origin: \xff", b"Origin: null", b"Authorization: Basic dTpw"),
    *(
        b"Authorization:",
        b"Authorization: Bearer",
        b"Authorization: \xff",
        b"Cookie: jar",
        b"Cookie: =;;jar=\xff",
    ),
    *(
        b"User-Agent: " + b"x" * 3_000,
        b"X-Forwarded-For: 1.2.3.4",
        b"X-Forwarded-For: \xff",
        b"X: " + b"y" * 21_000,
    ),
)
USUAL: Final = (
    b"Host: test",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)
SWAPPED: Final[Sequence[tuple[int, bytes]]] = (
    *(
        (1, line)
        for line in (
            b"",
            b"Connection: close",
            b"Connection: \xff",
            b"Connection: upgrade, x",
            b"Connection:,",
        )
    ),
    *(
        (2, line)
        for line in (b"", b"Upgrade: h2c", b"Upgrade: \xff", b"Upgrade: websocket, websocket", b"Upgrade: x/")
    ),
    *(
        (3, b"Sec-WebSocket-Version:" + value)
        for value in (b"", b" 12", b" 013", b" \xff", b" 13\x0b", b"1" * 5_000)
    ),
    *(
        (4, b"Sec-WebSocket-Key:" + value)
        for value in (b"", b" AAAA", b" =", b" \xff\xfe", b" \xc3\xbc", b" " + b"A" * 24)
    ),
    *((0, line) for line in (b"", b"Host: \xff", b"Host: test\r\nHost: other")),
)


class Asking(NamedTuple):
    """A request."""

    sent: bytes
    tokens: Sequence[str]
    """All that it was made from."""
    user: str | None
    """Whom it lets in, where `exact`."""
    exact: bool
    """Whether that is known. Else a token in its bytes may let somebody in."""
    must: bool
    """The user must come in."""
    hangs_up: bool
    """Its end may be missing: the client says that nothing more comes."""

    @property
    def may(self) -> set[str]:
        """The users one of whom may come in."""
        found = [self.user] if self.exact else map(lets_in, tokens_in(self.sent))
        return {user for user in found if user is not None}


class Carried(NamedTuple):
    """The tokens of a request, by carrier."""

    query: Sequence[str] = ()
    authorization: Sequence[str] = ()
    subprotocol: Sequence[str] = ()
    cookie: Sequence[str] = ()


def lets_in(token: str) -> str | None:
    """Whom a token lets in where `REVOKED` is revoked, and tokens may be good for `TOKEN_SECONDS`."""
    user, said = user_of(token), claims_of(token)
    if user is None or said is None or said.get("jti") == REVOKED:
        return None
    issued = said.get("iat")
    return user if said["exp"] <= min(NOW if issued is None else issued, NOW) + TOKEN_SECONDS else None


def tokens_in(sent: bytes) -> list[str]:
    """All that looks like a token in a request. Those that we sign begin with the same letters."""
    return [
        found[0].decode()
        for text in (sent, unquote_to_bytes(sent), unquote_to_bytes(sent).replace(b" ", b"+"))
        for begin in re.finditer(b"eyJ", text)
        if (found := _TOKEN.match(text, begin.start()))
    ]


_TOKEN: Final = re.compile(rb"[\w+/=-]+\.[\w+/=-]+\.[\w+/=-]+", re.ASCII)


def _one_of(tokens: Sequence[str]) -> str | None:
    """The token of these, if there is one and no other."""
    found = {canonical(token): token for token in tokens if token}
    return next(iter(found.values())) if len(found) == 1 else None


def admitted(carried: Carried, origin: str | None) -> str | None:
    """Whom the tokens of a handshake let in that is right in all else."""
    if origin not in (None, APP):
        return None
    # A space in a query was a `+`.
    queried = (token.strip("\t\r\n").replace(" ", "+") for token in carried.query)
    own = (*queried, *carried.authorization, *carried.subprotocol)
    if not any(own) and origin != APP:
        return None
    token = _one_of(own if any(own) else carried.cookie)
    return None if token is None else lets_in(token)


def _is_plain(token: str, more: str) -> bool:
    """Whether a header can carry it, and it means itself there."""
    return re.fullmatch(rf"[A-Za-z0-9._{more}-]*", token) is not None


def _carried(chance: random.Random, tokens: Sequence[str]) -> Carried:
    """One token in one carrier, or in several, or several."""
    places: dict[str, list[str]] = {}
    for token in tokens:
        for _ in range(chance.choice((1, 1, 1, 2))):
            places.setdefault(chance.choice(Carried._fields), []).append(token)
    return Carried(**places)


def _tokens(chance: random.Random) -> list[str]:
    first = good(chance) if chance.random() < 0.5 else any_token(chance)
    count = chance.choice((1, 1, 1, 1, 1, 2, 0))
    return [first, any_token(chance)][:count]


def _as_header(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def opening(chance: random.Random) -> Asking:
    """A request with the tokens that it carries, and perhaps one thing that is wrong with it."""
    tokens = _tokens(chance)
    carried = _carried(chance, tokens)
    origin = chance.choice((None, None, APP, APP, "https://evil.example"))
    fields = [f"token={quote(token, errors='replace')}" for token in carried.query]
    odd = False
    if chance.random() < 0.2:
        fields.append(chance.choice(QUERIES))
        odd = True
    spoken = chance.choice(
        (["bridge.v1.json"], ["bridge.bare"], ["x", "bridge.bare"], ["bridge.v2.json"], [])
    )
    protocols = [*spoken, *(f"bridge.token.{token}" for token in carried.subprotocol)]
    chance.shuffle(protocols)
    lines = list(USUAL)
    lines += [b"Authorization: Bearer " + _as_header(token) for token in carried.authorization]
    if protocols:
        lines.append(b"Sec-WebSocket-Protocol: " + b", ".join(map(_as_header, protocols)))
    if carried.cookie:
        lines.append(
            b"Cookie: a=1; " + b"; ".join(COOKIE.encode() + b"=" + _as_header(t) for t in carried.cookie)
        )
    if origin is not None:
        lines.append(f"Origin: {origin}".encode())
    exact = (
        not odd
        and len(carried.authorization) < 2
        and all(_is_plain(token, "+/=") for token in (*carried.authorization, *carried.cookie))
        and all(_is_plain(token, "+") for token in carried.subprotocol)
    )
    known = not protocols or not {"bridge.v1.json", "bridge.bare"}.isdisjoint(spoken)
    user = admitted(carried, origin) if known else None
    must = exact and user is not None
    request, method, version = f"/ws{'?' if fields else ''}{'&'.join(fields)}", "GET", "HTTP/1.1"
    wrong = chance.randrange(10)
    if wrong == 0:
        method, must = chance.choice(METHODS), False
    elif wrong == 1:
        version, must = chance.choice(VERSIONS), False
    elif wrong == 2:
        request, must = chance.choice(PATHS) + request[3:], False
    elif wrong == 3:
        at, line = chance.choice(SWAPPED)
        lines[at] = line
        must = False
    elif wrong == 4:
        for _ in range(chance.choice((1, 1, 2, 150))):
            lines.insert(chance.randrange(len(lines) + 1), chance.choice(ODD_LINES))
        must = exact = False
    elif wrong == 5:
        line = chance.choice(lines)
        lines += [line] * chance.choice((1, 2, 130))
        must = False
    first = f"{method} {request} {version}".encode()
    whole = exact and wrong > 5
    sent = b"\r\n".join([first, *lines]) + b"\r\n\r\n"
    long = max(map(len, (first, *lines))) > 20_000 or len(sent) > 40_000
    return Asking(sent, tokens, user, exact, must and not long, hangs_up=not whole)


def changed(chance: random.Random) -> Asking:
    """The same with bytes cut out, put in and doubled."""
    made = opening(chance)
    sent = made.sent
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(sent) + 1)
        more = chance.choice(
            (b"", b"\r\n", b"\xff", b"\x00", b" ", b"\n", sent[at : at + 40], chance.randbytes(8))
        )
        sent = sent[:at] + more + sent[at + chance.choice((0, 1, 1, 30)) :]
    return Asking(sent, made.tokens, None, exact=False, must=False, hangs_up=True)


def noise(chance: random.Random) -> Asking:
    """No request at all."""
    begin = chance.choice(
        (
            b"",
            b"GET ",
            b"GET /ws HTTP/1.1\r\n",
            b"\x16\x03\x01",
            b"\x81\x80\0\0\0\0",
            b"PRI * HTTP/2.0\r\n\r\n",
        )
    )
    sent = begin + chance.randbytes(chance.choice((1, 10, 100, 1_000))) + chance.choice((b"", b"\r\n\r\n"))
    return Asking(sent, (), None, exact=True, must=False, hangs_up=True)


def streaming(chance: random.Random) -> Asking:
    """A request for a stream of events, which is wrong as one for a WebSocket may be."""
    made = chance.choice((opening, opening, changed))(chance)
    sent = made.sent.replace(b" /ws", b" /sse", 1)
    if chance.random() < 0.3:
        line = chance.choice(
            (
                b"Last-Event-ID: p1",
                b"Last-Event-ID: \xff\x80",
                b"Last-Event-ID:",
                b"Sec-Fetch-Site: same-origin",
                b"Sec-Fetch-Site: same-origin\r\nHost: app.example",
            )
        )
        sent = sent.replace(b"\r\n", b"\r\n" + line + b"\r\n", 1)
    return Asking(sent, made.tokens, None, exact=False, must=False, hangs_up=True)


def saying(chance: random.Random) -> Asking:
    """A request with which a client of a stream says something, though no key is right."""
    method = chance.choice(("POST", "POST", "POST", "OPTIONS", "HEAD", "GET", "get"))
    path = chance.choice(("/v1/ack", "/v1/ack", "/v1/ack", "/sse", "/v1/ack/", "/v1"))
    fields = [
        chance.choice(
            (
                "pong=00ff",
                "pong=0",
                "pong=",
                "pong=%ff",
                "id=p1",
                "id=%00",
                "id=",
                "tenant=t",
                "x=1",
                *QUERIES,
            )
        )
        for _ in range(chance.randrange(4))
    ]
    key = chance.choice(("b1.s1.x", "..", ".", "", "b1", "b1.s1", "\xff", "b1.s1." + "x" * 3_000, "\u0130"))
    lines = [b"Host: test"]
    for _ in range(chance.choice((0, 1, 1, 1, 2))):
        scheme = chance.choice((b"Bearer ", b"bearer  ", b"Bearer", b"Basic "))
        lines.append(b"Authorization: " + scheme + key.encode(errors="surrogatepass"))
    lines.append(
        chance.choice((b"Content-Length: 0", b"Content-Length: 1", b"Origin: " + APP.encode(), b"X: y"))
    )
    sent = b"\r\n".join([f"{method} {path}?{'&'.join(fields)} HTTP/1.1".encode(), *lines]) + b"\r\n\r\n"
    return Asking(sent, (), None, exact=True, must=False, hangs_up=chance.random() < 0.5)


def asking(chance: random.Random) -> Asking:
    """Any request."""
    return chance.choices((opening, changed, noise, streaming, saying), (56, 21, 5, 12, 6))[0](chance)
