"""JSON Web Tokens (RFC 7519) signed with a shared secret or a private key: who may open a session, and until when.

| why              | the token                                                                        |
|------------------|----------------------------------------------------------------------------------|
| `missing`        | is empty                                                                         |
| `malformed`      | is not a JWT, or has a header that asks for more than this program knows (`crit`,|
|                  | `b64`), or a claim has the wrong type, or a time is in milliseconds              |
| `algorithm`      | names an algorithm that the settings do not allow (`none` among them)            |
| `unknown_key`    | has a `kid` that no key has, or none and several keys could be meant             |
| `signature`      | was not signed with one of our secrets or with that key, or was changed since    |
| `no_expiry`      | has no `exp`                                                                     |
| `expired`        | `exp` is past                                                                    |
| `not_yet`        | `nbf` or `iat` is in the future                                                  |
| `issuer`         | `iss` is not the one that the settings name                                      |
| `audience`       | `aud` does not hold the one that the settings name                               |
| `no_user`        | has neither `sub` nor `uid`, or the one it has is not a user id                  |
| `claims`         | has `topics`, `subscribe` or `publish`, and it is not a list of what it may hold |

The signature is checked first, so claims are only read if somebody with the secret wrote them. No token is logged.

HS256, HS384 and HS512 are checked with the secrets, one after the other. The others are checked with one public key,
which the `kid` chooses, and only with that key's own algorithm (`bridge.adapters.keys`). So no token can have a public
key taken for a secret, or choose a weaker algorithm for a key (RFC 8725 3.1).

Hand-written code often makes tokens in standard base64, with `+`, `/` and `=` for padding, where RFC 7515 requires
base64url. Both are read. The signature may be over the text that came or, if somebody has rewritten a valid token,
over its base64url form.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import jwt
from jwt.types import Options
from jwt.warnings import InsecureKeyLengthWarning

from bridge.adapters.keys import SIGNED_BY_KEYS, KeySet, PublicKey
from bridge.core.contract.control import TOKEN_ID_MAX
from bridge.core.contract.patterns import Claimed, claimed
from bridge.core.errors import InvalidClaim, SettingsError, TokenRefused
from bridge.core.model.pushes import ID_MAX
from bridge.core.model.sessions import Claims
from bridge.core.ports.clock import Clock

LEEWAY: Final = 10.0
"""Seconds by which the token maker's clock may differ from ours. It counts only when a token is accepted: a session
ends at `exp` itself."""

MOMENT_MAX: Final = 9_999_999_999.0
"""Seconds since 1970, in the year 2286. A larger number is in milliseconds, of 1970 or later."""

KEY_BYTES: Final[Mapping[str, int]] = {"HS256": 32, "HS384": 48, "HS512": 64}
"""The algorithms that use a shared secret, and the bytes that it needs for each (RFC 7518 3.2)."""

TOKEN_REFUSALS: Final = (
    "missing",
    "malformed",
    "algorithm",
    "unknown_key",
    "signature",
    "no_expiry",
    "expired",
    "not_yet",
    "issuer",
    "audience",
    "no_user",
    "claims",
)
"""Why a token is refused, in metrics and logs."""

_TOKEN_ID = re.compile(rf"[^\x00\ud800-\udfff]{{0,{TOKEN_ID_MAX}}}")

# No C0, DEL, C1, and no lone surrogates: JSON escapes may contain those, but UTF-8 can't encode them.
_USER = re.compile(rf"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{{1,{ID_MAX}}}")

# Three parts in base64url (RFC 7515 2) or in standard base64 (RFC 4648 4), padded or not.
_TOKEN = re.compile(r"[A-Za-z0-9_+/-]+=*\.[A-Za-z0-9_+/-]+=*\.[A-Za-z0-9_+/-]*=*")
_STANDARD = re.compile(r"[+/=]")
_AS_BASE64URL = str.maketrans("+/", "-_")

# Claims are checked here, against the injected clock: the library would use the machine's.
_SIGNATURE_ONLY: Final[Options] = {
    "verify_signature": True,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}


class _Check(NamedTuple):
    """What one signature is checked with."""

    key: bytes | PublicKey
    algorithms: Sequence[str]


class JwtVerifier:
    """Fills the TokenVerifier port, without waiting for anything.

    Raises SettingsError for a secret that is shorter than its algorithms need. With `dev` a short one is accepted,
    but never an empty one. An empty `issuer` or `audience` is not checked.
    """

    def __init__(
        self,
        *secrets: str,
        clock: Clock,
        algorithms: Sequence[str] = ("HS256",),
        keys: Callable[[], KeySet] | None = None,
        issuer: str = "",
        audience: str = "",
        leeway: float = LEEWAY,
        dev: bool = False,
    ) -> None:
        """`secrets`: each verifies. `keys`: asked for each token that is signed with a private key. Without it secrets
        are required."""
        unknown = [a for a in algorithms if a not in KEY_BYTES]
        if unknown or not algorithms:
            raise SettingsError(
                "BRIDGE_JWT_ALGORITHMS",
                f"one or more of {', '.join(KEY_BYTES)} expected" + "".join(f", not {a!r}" for a in unknown),
            )
        need = max(KEY_BYTES[a] for a in algorithms)
        if not secrets and keys is None:
            raise SettingsError("BRIDGE_JWT_SECRET", f"a secret of at least {need} bytes is required")
        self._algorithms = list(algorithms)
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._leeway = leeway
        self._clock = clock
        for secret in secrets:
            self._examine(secret.encode(), need, dev=dev)
        self._short = any(len(secret.encode()) < need for secret in secrets)
        self._secrets = tuple(_Check(secret.encode(), self._algorithms) for secret in secrets)

    def _examine(self, secret: bytes, need: int, *, dev: bool) -> None:
        if not secret:
            raise SettingsError("BRIDGE_JWT_SECRET", f"a secret of at least {need} bytes is required")
        if len(secret) < need and not dev:
            raise SettingsError(
                "BRIDGE_JWT_SECRET",
                f"{max(self._algorithms, key=lambda a: KEY_BYTES[a])} needs a secret of at least {need} bytes, "
                f"this one has {len(secret)}",
            )
        try:
            # This also refuses keys that are not secrets: a public key in PEM form, a JWK.
            jwt.get_algorithm_by_name(self._algorithms[0]).prepare_key(secret)
        except jwt.InvalidKeyError as error:
            raise SettingsError("BRIDGE_JWT_SECRET", str(error)) from error

    def verify(self, token: str) -> Claims:
        """Return the claims of the token; raises TokenRefused with a `why` from the module's table."""
        if not token:
            raise TokenRefused("missing")
        said = self._signed(token)
        now = self._clock.time()
        expires_at = _moment(said, "exp")
        if expires_at is None:
            raise TokenRefused("no_expiry")
        if expires_at <= now - self._leeway:
            raise TokenRefused("expired")
        issued_at = _moment(said, "iat")
        for start in (_moment(said, "nbf"), issued_at):
            if start is not None and start > now + self._leeway:
                raise TokenRefused("not_yet")
        if self._issuer and said.get("iss") != self._issuer:
            raise TokenRefused("issuer")
        if self._audience:
            audience = said.get("aud")
            if audience != self._audience and not (isinstance(audience, list) and self._audience in audience):
                raise TokenRefused("audience")
        token_id = said.get("jti")
        if token_id is not None and not (isinstance(token_id, str) and _TOKEN_ID.fullmatch(token_id)):
            # Not ignored: a token without a usable id could not be revoked by its id.
            raise TokenRefused(
                "malformed", f"jti is not a string of at most {TOKEN_ID_MAX} characters, none of them U+0000"
            )
        user, may = _user(said), _claimed(said)
        return Claims(
            user=user,
            expires_at=expires_at,
            token_id=token_id or _made_id(token),
            issued_at=issued_at,
            topics=may.topics,
            subscribe=may.subscribe,
            publish=may.publish,
        )

    def _signed(self, token: str) -> Mapping[str, Any]:
        if not _TOKEN.fullmatch(token):
            raise TokenRefused("malformed", _no_jwt(token))
        if not _STANDARD.search(token):
            return self._read(token, self._checks(token))
        as_base64url = ".".join(part.rstrip("=") for part in token.translate(_AS_BASE64URL).split("."))
        checks = self._checks(as_base64url)
        try:
            return self._read(as_base64url, checks)
        except TokenRefused as refused:
            if refused.why != "signature":
                raise
        return self._signed_as_it_stands(token, as_base64url, checks)

    def _checks(self, token: str) -> Sequence[_Check]:
        """What may have signed this token: each secret, or one key."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise TokenRefused("malformed", _unreadable(token)) from error
        algorithm = header.get("alg")
        if self._secrets and algorithm in self._algorithms:
            return self._secrets
        if self._keys is None or not isinstance(algorithm, str) or algorithm not in SIGNED_BY_KEYS:
            raise TokenRefused("algorithm")
        key = self._keys().chosen(header.get("kid"), algorithm)
        return (_Check(key.public, [key.algorithm]),)

    @staticmethod
    def _signed_as_it_stands(token: str, as_base64url: str, checks: Sequence[_Check]) -> Mapping[str, Any]:
        """The claims of a token that is signed in standard base64, which the library does not read."""
        try:
            name = str(jwt.get_unverified_header(as_base64url).get("alg"))
            signed, _, _ = token.rpartition(".")
            signature = jwt.utils.base64url_decode(as_base64url.rpartition(".")[2])
            algorithm = jwt.get_algorithm_by_name(name)
            if not any(
                algorithm.verify(signed.encode(), algorithm.prepare_key(check.key), signature)
                for check in checks
                if name in check.algorithms
            ):
                raise TokenRefused("signature")
            said: Mapping[str, Any] = jwt.decode(as_base64url, options={"verify_signature": False})
        except jwt.PyJWTError as error:
            raise TokenRefused("malformed", _unreadable(as_base64url)) from error
        return said

    def _read(self, token: str, checks: Sequence[_Check]) -> Mapping[str, Any]:
        try:
            if not self._short:
                return _decode(token, checks)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InsecureKeyLengthWarning)
                return _decode(token, checks)
        except jwt.InvalidAlgorithmError as error:
            raise TokenRefused("algorithm") from error
        except jwt.InvalidSignatureError as error:
            raise TokenRefused("signature") from error
        except jwt.PyJWTError as error:
            raise TokenRefused("malformed", _unreadable(token)) from error


def _decode(token: str, checks: Sequence[_Check]) -> Mapping[str, Any]:
    """The claims, by the first key that fits; raises what the library says of the last one."""
    *others, last = checks
    for check in others:
        try:
            return _decode_by(token, check)
        except jwt.InvalidSignatureError:
            pass
    return _decode_by(token, last)


def _decode_by(token: str, check: _Check) -> Mapping[str, Any]:
    said: Mapping[str, Any] = jwt.decode(
        token, check.key, algorithms=check.algorithms, options=_SIGNATURE_ONLY
    )
    return said


def _made_id(token: str) -> str:
    """An id for a token without `jti`, so that its session can be revoked with it. It is made of the claims only, since
    the text and the signature of the same token can be written in several ways."""
    claims = jwt.utils.base64url_decode(token.translate(_AS_BASE64URL).split(".")[1].rstrip("="))
    return f"sha256:{hashlib.sha256(claims).hexdigest()[:32]}"


def make_token(
    secret: str,
    user: str,
    ttl: float,
    *,
    algorithm: str = "HS256",
    now: float | None = None,
    **claims: object,
) -> str:
    """Sign a token for `user` that is good for `ttl` seconds from `now` (default: the machine's clock).

    For the command line, development and tests. `claims` are added and replace those that are made here; one that is
    None is left out.
    """
    issued = int(time.time() if now is None else now)
    said: dict[str, object] = {"sub": user, "iat": issued, "exp": issued + ttl, "jti": uuid.uuid4().hex}
    said.update(claims)
    said = {name: value for name, value in said.items() if value is not None}
    with warnings.catch_warnings():
        # The verifier decides whether a short secret is accepted.
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)
        return jwt.encode(said, secret.encode(), algorithm=algorithm)


def _no_jwt(token: str) -> str:
    """Why a text is not a JWT, for people."""
    if " " in token:
        return "it contains spaces"
    if token[0] in "\"'":
        return "it is in quotes"
    parts = token.count(".") + 1
    if parts == 5:
        return "it is encrypted (JWE, RFC 7516), and only signed tokens are read"
    if parts != 3:
        return f"a JWT has three parts with dots between them, this one has {parts}"
    if token.endswith("."):
        return "it has no signature"
    if ".." in token:
        return "its payload is missing"
    return "it contains characters that no JWT has"


def _unreadable(token: str) -> str:
    """Why a text in the form of a JWT can't be read, for people; quotes nothing of it."""
    header = _object(token.partition(".")[0])
    if header is None:
        return "its header is not a JSON object in base64url"
    if header.get("b64", True) is not True:
        return "its header has b64: a payload that is not in base64url (RFC 7797) is not supported"
    if "crit" in header:
        return "its header has crit: extensions that must be understood (RFC 7515 4.1.11), and none is known here"
    if not isinstance(header.get("kid", ""), str):
        return "kid in its header is not a string (RFC 7515 4.1.4)"
    if _object(token.split(".")[1]) is None:
        return "its claims are not a JSON object in base64url"
    return "it is not a JWT"


def _object(part: str) -> Mapping[str, Any] | None:
    """The JSON object in a part of a token; None if it can't be read."""
    try:
        found = json.loads(jwt.utils.base64url_decode(part))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _moment(said: Mapping[str, Any], claim: str) -> float | None:
    """A NumericDate (RFC 7519 section 2): a JSON number of seconds; None if the claim is missing."""
    value = said.get(claim)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenRefused("malformed", f"{claim} is not a number of seconds")
    try:
        moment = float(value)
    except OverflowError as error:
        raise TokenRefused("malformed", f"{claim} is out of range") from error
    if not math.isfinite(moment):
        raise TokenRefused("malformed", f"{claim} is out of range")
    if moment > MOMENT_MAX:
        raise TokenRefused(
            "malformed", f"{claim} is after the year 2286: it looks like milliseconds, and must be seconds"
        )
    return moment


def _user(said: Mapping[str, Any]) -> str:
    claim = "uid" if said.get("sub") is None else "sub"
    user = said.get(claim)
    if user is None:
        raise TokenRefused("no_user", "it has neither sub nor uid")
    if isinstance(user, int) and not isinstance(user, bool):
        # RFC 7519 4.1.2 requires a string. Many backends put a number there.
        user = str(user)
    if not isinstance(user, str) or not _USER.fullmatch(user):
        raise TokenRefused(
            "no_user", f"{claim} must be a string of 1 to {ID_MAX} characters without controls, or an integer"
        )
    return user


def _claimed(said: Mapping[str, Any]) -> Claimed:
    try:
        return claimed(said)
    except InvalidClaim as error:
        raise TokenRefused("claims", str(error)) from error
