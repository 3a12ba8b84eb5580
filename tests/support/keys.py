"""Key pairs for tests: the public half as a JWK, and tokens that the private half has signed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_MADE: dict[str, Private] = {}


class Pair:
    """A key pair with an algorithm and a kid."""

    def __init__(self, algorithm: str, kid: str | None, private: Private) -> None:
        self.algorithm = algorithm
        self.kid = kid
        self.private = private

    def jwk(self, **more: object) -> dict[str, Any]:
        """The public half. A member that is None is left out."""
        return self._jwk(self.private.public_key(), more)

    def private_jwk(self) -> dict[str, Any]:
        """Both halves."""
        return self._jwk(self.private, {})

    def _jwk(self, key: Any, more: Mapping[str, object]) -> dict[str, Any]:
        maker: Any = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}[self.algorithm]
        made = {**maker.to_jwk(key, as_dict=True), "kid": self.kid, "alg": self.algorithm, "use": "sig"}
        made.pop("key_ops", None)
        return {name: value for name, value in {**made, **more}.items() if value is not None}

    def sign(self, claims: Mapping[str, object], **header: object) -> str:
        """A token; without a kid where the pair has none."""
        named = {"kid": self.kid} if self.kid is not None else {}
        return jwt.encode(
            dict(claims), self.private, algorithm=self.algorithm, headers={**named, **header} or None
        )


def pair(algorithm: str, kid: str | None = None, *, bits: int = 2048, which: str = "") -> Pair:
    """A pair; made once for each (algorithm, bits, which), since RSA keys take a while."""
    name = f"{algorithm} {bits} {which}"
    if name not in _MADE:
        if algorithm == "RS256":
            _MADE[name] = rsa.generate_private_key(65537, bits)
        elif algorithm == "ES256":
            _MADE[name] = ec.generate_private_key(ec.SECP256R1())
        else:
            _MADE[name] = ed25519.Ed25519PrivateKey.generate()
    return Pair(algorithm, kid, _MADE[name])


def jwks(*keys: Mapping[str, object]) -> bytes:
    """A JWK Set."""
    return json.dumps({"keys": list(keys)}).encode()
