"""Tokens made by chance, right and wrong ones, and who may come in with one: a second opinion on the verifier.

Everything here is made of the number of a case, so that a case that fails can be made again by itself.
"""

from __future__ import annotations

import base64
import hmac
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from tests.support.random_requests import VALUES

SECRET: Final = "correct horse battery staple, and then some"
NOW: Final = 1_800_000_000.0
LEEWAY: Final = 10.0
USERS: Final = ("u1", "u2", "ü" * 128, "😀", "a b", 'a"b', "0", "-7", 42, -1, 2**64)
HEADER: Final = {"alg": "HS256", "typ": "JWT"}
ALGORITHMS: Final = (
    *("none", "None", "nOnE", "NONE", "", "HS384", "HS512", "hs256", "RS256", "ES256", "EdDSA", "HS256 "),
    *(None, 1, True, ["HS256"], {"HS256": 1}, "\x00", "HS256\x00", "x" * 5_000),
)
ODD_HEADERS: Final[Sequence[dict[str, Any]]] = (
    {"crit": ["exp"]},
    {"crit": []},
    {"b64": False},
    {"b64": False, "crit": ["b64"]},
    {"kid": "any"},
    {"kid": 7},
    {"kid": None},
    {"kid": "../../etc/passwd"},
    {"jwk": {"kty": "oct", "k": "AAAA"}},
    {"jku": "http://127.0.0.1/"},
    {"x5u": "http://127.0.0.1/"},
    {"typ": None},
    {"cty": "JWT"},
    {"zip": "DEF"},
)
RAW_CLAIMS: Final = (
    *(b"", b"{", b"[]", b"null", b'"u1"', b"7", b"\xff", b"\xef\xbb\xbf{}", b"[" * 5_000, b'{"a":' * 2_000),
    b'{"sub":"u1","exp":1800000060,"sub":"u2"}',
    b'{"sub":"u1","exp":1800000060,"exp":1}',
    b'{"sub":"u1","exp":NaN}',
    b'{"sub":"u1","exp":Infinity}',
    b'{"sub":"u1","exp":-Infinity}',
    b'{"sub":"u1","exp":1e999}',
    b'{"sub":"u1","exp":' + b"9" * 4_000 + b"}",
    b'{"sub":"u1","exp":' + b"9" * 5_000 + b"}",
    b'{"sub":' + b"9" * 5_000 + b',"exp":1800000060}',
    b'{"sub":"\\ud800","exp":1800000060}',
    b'{"sub":"\xff","exp":1800000060}',
    b'{"sub":"u1","exp":1800000060,"jti":"\\udfff"}',
    b'{"sub":"u1","exp":1800000060} ',
    b'{"sub":"u1","exp":1800000060}x',
    '{"sub":"u1","exp":1800000060}'.encode("utf-16"),
    '{"sub":"u1","exp":1800000060}'.encode("utf-32"),
)
CHARACTERS: Final = "abcXYZ019-_+/=.. \t\"'%\\\x00\x7f\xff\u2028😀\ud800"


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: object, claims: object, secret: str = SECRET) -> str:
    """A token by hand, whatever it says; claims that are bytes stand as they are."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    text = f"{_part(json.dumps(header).encode())}.{_part(payload)}"
    return f"{text}.{_part(hmac.digest(secret.encode(), text.encode(), 'sha256'))}"


def good_claims(chance: random.Random) -> dict[str, Any]:
    """Claims that open a session."""
    said: dict[str, Any] = {chance.choice(("sub", "sub", "uid")): chance.choice(USERS)}
    said["exp"] = NOW + chance.choice((1, 60.5, 3_600, 86_400))
    for name, values in (("iat", (NOW - 5, NOW, NOW + 9)), ("nbf", (0, NOW)), ("jti", ("t1", "", "x" * 128))):
        if chance.random() < 0.3:
            said[name] = chance.choice(values)
    return said


def good(chance: random.Random) -> str:
    """A token that opens a session."""
    return signed(HEADER, good_claims(chance))


def _wrong_key(chance: random.Random) -> str:
    return signed(HEADER, good_claims(chance), chance.choice(("", "x", SECRET[:-1], SECRET + " ", "null")))


def _other_algorithm(chance: random.Random) -> str:
    token = signed({**HEADER, "alg": chance.choice(ALGORITHMS)}, good_claims(chance))
    return token if chance.random() < 0.5 else token[: token.rindex(".") + 1]


def _wrong_time(chance: random.Random) -> str:
    said = good_claims(chance)
    name = chance.choice(("exp", "exp", "nbf", "iat"))
    said[name] = NOW + chance.choice((-1e9, -11, -LEEWAY, -9, 11, 1e7, 4e7, 1e9, 8e9, 1e12, 1e300))
    return signed(HEADER, said)


def _wrong_type(chance: random.Random) -> str:
    said = good_claims(chance)
    for _ in range(chance.choice((1, 1, 2))):
        name = chance.choice(("sub", "uid", "exp", "nbf", "iat", "jti", "iss", "aud"))
        said[name] = chance.choice((*VALUES, "x" * 1_024, "x" * 1_025))
        if chance.random() < 0.2:
            del said[name]
    return signed(HEADER, said)


def _odd_header(chance: random.Random) -> str:
    odd = chance.choice(ODD_HEADERS)
    header = chance.choice(({**HEADER, **odd}, {**HEADER, **odd}, [HEADER], "HS256", None, 7, {}))
    return signed(header, good_claims(chance))


def _raw_claims(chance: random.Random) -> str:
    return signed(HEADER, chance.choice(RAW_CLAIMS))


def _home_made(chance: random.Random) -> str:
    """In standard base64: signed as it stands, or rewritten afterwards."""
    said = {**good_claims(chance), "k": "?>~" * chance.randrange(4)}
    if chance.random() < 0.5:
        padded = (part + "=" * (-len(part) % 4) for part in signed(HEADER, said).split("."))
        return ".".join(padded).replace("-", "+").replace("_", "/")
    text = ".".join(base64.b64encode(json.dumps(part).encode()).decode() for part in (HEADER, said))
    return f"{text}.{base64.b64encode(hmac.digest(SECRET.encode(), text.encode(), 'sha256')).decode()}"


def _mutated(chance: random.Random) -> str:
    token = chance.choice((good, good, _home_made, _other_algorithm))(chance)
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.choice((chance.randrange(len(token) + 1), len(token), token.rfind(".") + 1))
        more = "".join(chance.choices(CHARACTERS, k=chance.choice((0, 1, 1, 2))))
        token = token[:at] + more + token[at + chance.choice((0, 1, 1, 4)) :]
    return token


def _spliced(chance: random.Random) -> str:
    """The parts of two good tokens."""
    pairs = zip(good(chance).split("."), good(chance).split("."), strict=True)
    return ".".join(chance.choice(pair) for pair in pairs)


def _garbage(chance: random.Random) -> str:
    size = chance.choice((0, 1, 3, 40, 40, 400, 9_000))
    text = "".join(chance.choices(CHARACTERS, k=min(size, 40)))
    return text * (size // 40) if size > 40 else text


MAKERS: Final[Sequence[Callable[[random.Random], str]]] = (
    *(_wrong_key, _other_algorithm, _wrong_time, _wrong_type, _odd_header, _raw_claims, _home_made),
    *(_mutated, _mutated, _mutated, _spliced, _garbage),
)


def any_token(chance: random.Random) -> str:
    """Mostly one that opens nothing."""
    return chance.choice(MAKERS)(chance)


# --- who may come in -------------------------------------------------------------------------------------


def canonical(token: str) -> str:
    """A token in base64url without padding."""
    return ".".join(part.rstrip("=") for part in token.translate(str.maketrans("+/", "-_")).split("."))


def claims_of(token: str) -> dict[str, Any] | None:
    """What a token says that we have signed, in either spelling of base64; None of any other."""
    if not re.fullmatch(r"(?:[A-Za-z0-9_+/-]+=*\.){2}[A-Za-z0-9_+/-]+=*", token):
        return None
    usual = canonical(token)
    try:
        header, said, mark = (
            base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in usual.split(".")
        )
        head, claims = json.loads(header), json.loads(said)
    except (ValueError, RecursionError):
        return None
    if not isinstance(head, dict) or head.get("alg") != "HS256" or not isinstance(claims, dict):
        return None
    if "crit" in head or head.get("b64") is False or not isinstance(head.get("kid", ""), str):
        return None
    ours = (
        hmac.digest(SECRET.encode(), text.rpartition(".")[0].encode(), "sha256") for text in (token, usual)
    )
    return claims if any(hmac.compare_digest(mark, each) for each in ours) else None


def user_of(token: str) -> str | None:
    """Whom this token lets in, at `NOW`."""
    said = claims_of(token)
    if said is None or not _is_time(said.get("exp")) or said["exp"] <= NOW - LEEWAY:
        return None
    for name in ("iat", "nbf"):
        if said.get(name) is not None and not (_is_time(said[name]) and said[name] <= NOW + LEEWAY):
            return None
    token_id = said.get("jti")
    if token_id is not None:
        fits = isinstance(token_id, str) and _is_text(token_id) and "\0" not in token_id
        if not fits or len(token_id) > 1_024:
            return None
    user = said.get("uid") if said.get("sub") is None else said["sub"]
    if isinstance(user, bool) or not isinstance(user, str | int):
        return None
    try:
        user = str(user)
    except ValueError:  # an integer of thousands of digits
        return None
    fits = 0 < len(user) <= 128 and _is_text(user) and not re.search("[\x00-\x1f\x7f-\x9f]", user)
    return user if fits else None


def _is_time(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value <= 9_999_999_999 and not math.isnan(value) and value != -math.inf


def _is_text(value: str) -> bool:
    return not re.search("[\ud800-\udfff]", value)
