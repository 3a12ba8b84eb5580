"""Public keys that check tokens, read from a JWK Set (RFC 7517 section 5).

Each key has exactly one algorithm: its `alg`, which must be the one of its kind, or without `alg` that one.

| kty, crv        | algorithm |
|-----------------|-----------|
| `RSA`           | `RS256`   |
| `EC`, `P-256`   | `ES256`   |
| `OKP`, `Ed25519`| `EdDSA`   |

Any other key is unusable: a secret (`oct`), a private key, one that is not for checking signatures (`use`, `key_ops`),
an RSA key that is too short or too long. What is wrong with a key is said by its place and its `kid`, never by its
content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from bridge.core.errors import TokenRefused

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

KEY_ALGORITHMS: Final[Mapping[tuple[str, str], str]] = {
    ("RSA", ""): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
"""The algorithm of a key, by its `kty` and `crv`."""
SIGNED_BY_KEYS: Final = frozenset(KEY_ALGORITHMS.values())
JWKS_BYTES_MAX: Final = 64 * 1024
"""Bytes of a JWK Set, several times what large identity providers publish."""
KEYS_MAX: Final = 100
"""Keys of one JWK Set. More are ignored."""
RSA_BITS: Final = (2048, 8192)
"""The shortest (RFC 7518 3.3) and the longest RSA key: checking a signature takes ever longer with longer ones."""
KID_CHARS_MAX: Final = 256
"""Characters of a `kid`."""
_PRIVATE: Final = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")
"""Members of private and symmetric keys (RFC 7518 6.2.2, 6.3.2, 6.4.1)."""


_MAKERS: Final[Mapping[str, Callable[[dict[str, Any]], object]]] = {
    "RS256": RSAAlgorithm.from_jwk,
    "ES256": ECAlgorithm.from_jwk,
    "EdDSA": OKPAlgorithm.from_jwk,
}


class VerifyingKey(NamedTuple):
    """One usable key."""

    kid: str | None
    algorithm: str
    public: PublicKey


class JwkSet(NamedTuple):
    """What a JWK Set holds: usable keys, and a sentence for each other one."""

    keys: Sequence[VerifyingKey]
    problems: Sequence[str]


class KeySet:
    """Keys to choose from."""

    def __init__(self, keys: Sequence[VerifyingKey] = ()) -> None:
        """Of several with one `kid`, the first is used."""
        self.keys = tuple(keys)
        self._by_kid = {key.kid: key for key in reversed(self.keys) if key.kid is not None}

    def chosen(self, kid: str | None, algorithm: str) -> VerifyingKey:
        """The key for a token with this header: by its `kid`, or without one the only key of its algorithm.

        Raises TokenRefused: `unknown_key`, or `algorithm` where the key has another one.
        """
        if kid is not None:
            key = self._by_kid.get(kid)
            if key is None:
                raise TokenRefused("unknown_key", "no key has its kid")
            if key.algorithm != algorithm:
                raise TokenRefused("algorithm", f"the key with its kid is for {key.algorithm}")
            return key
        fitting = [key for key in self.keys if key.algorithm == algorithm]
        if len(fitting) == 1:
            return fitting[0]
        many = f"it has no kid, and there are {len(fitting)} keys for {algorithm}" if fitting else ""
        raise TokenRefused("unknown_key", many or f"there is no key for {algorithm}")


def read_jwks(text: bytes) -> JwkSet:
    """Read a JWK Set; raises ValueError where it is none, with what is wrong for people."""
    if len(text) > JWKS_BYTES_MAX:
        raise ValueError(f"it has more than {JWKS_BYTES_MAX} bytes")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    listed = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(listed, list):
        raise ValueError('it is not a JWK Set: an object with a list named "keys" is expected (RFC 7517 5)')
    keys: list[VerifyingKey] = []
    problems: list[str] = []
    for place, jwk in enumerate(listed[:KEYS_MAX]):
        try:
            key = _key(jwk)
            if key.kid is not None and any(key.kid == other.kid for other in keys):
                raise ValueError("another key before it has the same kid")
        except ValueError as error:
            problems.append(f"{_name(place, jwk)}: {error}")
        else:
            keys.append(key)
    if len(listed) > KEYS_MAX:
        problems.append(f"there are more than {KEYS_MAX} keys")
    return JwkSet(keys, problems)


def _name(place: int, jwk: object) -> str:
    """A key by its place and its kid, for people."""
    kid = jwk.get("kid") if isinstance(jwk, dict) else None
    shown = f" (kid {kid[:64]!r})" if isinstance(kid, str) else ""
    return f"key {place}{shown}"


def _key(jwk: object) -> VerifyingKey:
    """A usable key, or ValueError with what is wrong with it."""
    if not isinstance(jwk, dict):
        raise ValueError("it is not an object")
    kid = jwk.get("kid")
    if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= KID_CHARS_MAX):
        raise ValueError(f"its kid is not a string of 1 to {KID_CHARS_MAX} characters")
    kty, crv = jwk.get("kty"), jwk.get("crv", "")
    if kty == "oct":
        raise ValueError("it is a secret (oct): secrets belong in BRIDGE_JWT_SECRET")
    if any(name in jwk for name in _PRIVATE):
        raise ValueError("it is a private key: only its public half is needed, and it should be nowhere else")
    algorithm = KEY_ALGORITHMS.get((kty, crv)) if isinstance(kty, str) and isinstance(crv, str) else None
    if algorithm is None:
        raise ValueError("its kty and crv are not RSA, EC with P-256, or OKP with Ed25519")
    if jwk.get("alg", algorithm) != algorithm:
        raise ValueError(f"its alg is not {algorithm}, the one that is used with such a key")
    if jwk.get("use", "sig") != "sig":
        raise ValueError("its use is not sig")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise ValueError("its key_ops do not hold verify")
    return VerifyingKey(kid, algorithm, _public(algorithm, jwk))


def _public(algorithm: str, jwk: Mapping[str, Any]) -> PublicKey:
    try:
        public = _MAKERS[algorithm](dict(jwk))
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm):
        # Not chained: such errors may quote the key.
        raise ValueError("its numbers are not those of such a key") from None
    if not isinstance(public, RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey):
        raise ValueError("it is not a public key")
    if isinstance(public, RSAPublicKey):
        shortest, longest = RSA_BITS
        if not shortest <= public.key_size <= longest:
            raise ValueError(
                f"it has {public.key_size} bits, and {shortest} to {longest} are expected of an RSA key"
            )
    return public
