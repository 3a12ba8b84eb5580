"""Public keys that check tokens: which are taken from a JWK Set, and which token each of them checks."""

from __future__ import annotations

import base64
import hmac
import json
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from bridge.adapters.jwks import keys_of_file
from bridge.adapters.keys import JWKS_BYTES_MAX, KEYS_MAX, KeySet, read_jwks
from bridge.adapters.tokens import TOKEN_REFUSALS, JwtVerifier
from bridge.core.errors import SettingsError, TokenRefused
from tests.support.keys import Pair, jwks, pair
from tests.support.ports import ManualClock

NOW = 1_800_000_000.0
SECRET = "correct horse battery staple and then some"
CLAIMS = {"sub": "u1", "exp": NOW + 60}
ALL = ("RS256", "ES256", "EdDSA")


def verifier(*pairs: Pair, secrets: tuple[str, ...] = ()) -> JwtVerifier:
    keys = KeySet(read_jwks(jwks(*(each.jwk() for each in pairs))).keys)
    return JwtVerifier(*secrets, clock=ManualClock(NOW), keys=lambda: keys)


def refused(by: JwtVerifier, token: str) -> str:
    with pytest.raises(TokenRefused) as caught:
        by.verify(token)
    assert caught.value.why in TOKEN_REFUSALS
    assert token not in str(caught.value)
    return caught.value.why


@pytest.mark.parametrize("algorithm", ALL)
def test_a_token_is_checked_with_the_key_that_its_kid_names(algorithm: str) -> None:
    mine, other = pair(algorithm, "k1"), pair(algorithm, "k2", which="other")
    by = verifier(other, mine)
    assert by.verify(mine.sign(CLAIMS)).user == "u1"
    assert refused(by, mine.sign(CLAIMS, kid="k2")) == "signature"
    assert refused(by, mine.sign(CLAIMS, kid="k3")) == "unknown_key"
    head, body, mark = mine.sign(CLAIMS).split(".")
    assert refused(by, f"{head}.{body}.{'A' * len(mark)}") == "signature"


@pytest.mark.parametrize("algorithm", ALL)
def test_a_token_without_kid_needs_the_only_key_of_its_algorithm(algorithm: str) -> None:
    nameless, named = pair(algorithm), pair(algorithm, "k1")
    token = nameless.sign(CLAIMS)
    assert "kid" not in jwt.get_unverified_header(token)
    others = [pair(each, each) for each in ALL if each != algorithm]
    assert verifier(named, *others).verify(token).user == "u1"
    assert verifier(nameless).verify(token).user == "u1"
    assert refused(verifier(named, pair(algorithm, "k2", which="other")), token) == "unknown_key"
    assert refused(verifier(*others), token) == "unknown_key"


def test_a_key_has_one_algorithm_whatever_the_token_says() -> None:
    rsa, curve = pair("RS256", "k1"), pair("ES256", "k2")
    by = verifier(rsa, curve)
    assert refused(by, curve.sign(CLAIMS, kid="k1")) == "algorithm"
    stronger = jwt.encode(dict(CLAIMS), rsa.private, algorithm="RS512", headers={"kid": "k1"})
    assert refused(by, stronger) == "algorithm"
    padded = jwt.encode(dict(CLAIMS), rsa.private, algorithm="PS256", headers={"kid": "k1"})
    assert refused(by, padded) == "algorithm"
    assert refused(by, jwt.encode(dict(CLAIMS), "", algorithm="none", headers={"kid": "k1"})) == "algorithm"


@pytest.mark.parametrize("secrets", [(), (SECRET,)])
def test_no_public_key_is_ever_taken_for_a_secret(secrets: tuple[str, ...]) -> None:
    key = pair("RS256", "k1")
    public = key.private.public_key()
    texts = [
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        json.dumps(key.jwk()).encode(),
        key.jwk()["n"].encode(),
        b"",
    ]
    for text in texts:
        parts = (json.dumps({"alg": "HS256", "kid": "k1"}).encode(), json.dumps(CLAIMS).encode())
        said = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
        mark = base64.urlsafe_b64encode(hmac.digest(text, said, "sha256")).rstrip(b"=")
        assert refused(verifier(key, secrets=secrets), (said + b"." + mark).decode()) in (
            "algorithm",
            "signature",
        )


def test_keys_in_the_header_of_a_token_are_never_used() -> None:
    mine, theirs = pair("ES256", "k1"), pair("ES256", "k1", which="theirs")
    by = verifier(mine)
    for header in (
        {"jwk": theirs.jwk()},
        {"jku": "https://evil.example/keys"},
        {"x5u": "https://evil.example/cert"},
        {"x5c": ["MIIB"]},
    ):
        assert refused(by, theirs.sign(CLAIMS, **header)) == "signature"
        assert by.verify(mine.sign(CLAIMS, **header)).user == "u1"


def test_secrets_and_keys_work_beside_each_other() -> None:
    key = pair("EdDSA", "k1")
    by = verifier(key, secrets=(SECRET,))
    assert by.verify(key.sign(CLAIMS)).user == "u1"
    assert by.verify(jwt.encode(dict(CLAIMS), SECRET, headers={"kid": "any"})).user == "u1"


def test_each_of_several_secrets_verifies_and_no_other() -> None:
    old, new, other = (f"{word} correct horse battery staple 1234" for word in ("old", "new", "other"))
    by = JwtVerifier(new, old, clock=ManualClock(NOW))
    for secret in (old, new):
        assert by.verify(jwt.encode(dict(CLAIMS), secret)).user == "u1"
    assert refused(by, jwt.encode(dict(CLAIMS), other)) == "signature"
    head, body, mark = jwt.encode(dict(CLAIMS), old).split(".")
    standard = f"{head}.{body}.{mark.replace('-', '+').replace('_', '/')}="
    assert by.verify(standard).user == "u1"


def test_a_token_of_a_key_may_be_in_standard_base64_too() -> None:
    key = pair("EdDSA", "k1")
    head, body, mark = key.sign({**CLAIMS, "k": "?>~"}).split(".")
    rewritten = ".".join(
        part.replace("-", "+").replace("_", "/") + "=" * (-len(part) % 4) for part in (head, body, mark)
    )
    assert verifier(key).verify(rewritten).user == "u1"


RSA, CURVE, EDWARDS = pair("RS256", "k1"), pair("ES256", "k2"), pair("EdDSA", "k3")


def test_the_algorithm_of_a_key_is_its_alg_or_that_of_its_kind() -> None:
    given = [each.jwk(alg=None, use=None) for each in (RSA, CURVE, EDWARDS)]
    found = read_jwks(jwks(*given, CURVE.jwk(kid="k4", key_ops=["verify", "sign"])))
    assert found.problems == []
    assert [key.algorithm for key in found.keys] == ["RS256", "ES256", "EdDSA", "ES256"]
    assert [key.kid for key in found.keys] == ["k1", "k2", "k3", "k4"]


def wide_curve() -> dict[str, object]:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return {**ECAlgorithm.to_jwk(key, as_dict=True), "kid": "k9"}


UNUSABLE: list[tuple[object, str]] = [
    ({"kty": "oct", "k": "c2VjcmV0", "kid": "k9"}, "it is a secret (oct)"),
    (RSA.private_jwk(), "it is a private key"),
    (CURVE.private_jwk(), "it is a private key"),
    (EDWARDS.private_jwk(), "it is a private key"),
    (RSA.jwk(use="enc"), "its use is not sig"),
    (RSA.jwk(use=7), "its use is not sig"),
    (RSA.jwk(key_ops=["encrypt"]), "its key_ops do not hold verify"),
    (RSA.jwk(key_ops="verify"), "its key_ops do not hold verify"),
    (RSA.jwk(alg="RS512"), "its alg is not RS256"),
    (RSA.jwk(alg="HS256"), "its alg is not RS256"),
    (RSA.jwk(alg="none"), "its alg is not RS256"),
    (CURVE.jwk(alg="EdDSA"), "its alg is not ES256"),
    (pair("RS256", "k1", bits=1024).jwk(), "it has 1024 bits"),
    (wide_curve(), "its kty and crv are not"),
    ({"kty": "OKP", "crv": "Ed448", "x": "AA", "kid": "k9"}, "its kty and crv are not"),
    ({"kty": ["RSA"], "kid": "k9"}, "its kty and crv are not"),
    (RSA.jwk(n=None), "its numbers are not"),
    (RSA.jwk(n="!"), "its numbers are not"),
    (RSA.jwk(e="AA"), "its numbers are not"),
    (RSA.jwk(n=7), "its numbers are not"),
    (CURVE.jwk(x="AA"), "its numbers are not"),
    (CURVE.jwk(x=CURVE.jwk()["y"], y=CURVE.jwk()["x"]), "its numbers are not"),
    (EDWARDS.jwk(x="AA"), "its numbers are not"),
    (RSA.jwk(kid=7), "its kid is not a string"),
    (RSA.jwk(kid=""), "its kid is not a string"),
    (7, "it is not an object"),
]


@pytest.mark.parametrize(("jwk", "problem"), UNUSABLE)
def test_an_unusable_key_is_named_by_place_and_kid_and_not_shown(jwk: object, problem: str) -> None:
    found = read_jwks(json.dumps({"keys": [EDWARDS.jwk(kid="good"), jwk]}).encode())
    assert [key.kid for key in found.keys] == ["good"]
    (said,) = found.problems
    kid = jwk.get("kid") if isinstance(jwk, dict) else None
    assert said.startswith(f"key 1 (kid {kid!r}): " if isinstance(kid, str) else "key 1: ")
    assert problem in said
    if isinstance(jwk, dict):
        assert not any(
            str(jwk[name]) in said for name in ("n", "x", "k", "d") if len(str(jwk.get(name, ""))) > 4
        )


def test_two_keys_with_one_kid_are_one_too_many() -> None:
    found = read_jwks(jwks(RSA.jwk(), EDWARDS.jwk(kid="k1")))
    assert [key.algorithm for key in found.keys] == ["RS256"]
    assert found.problems == ["key 1 (kid 'k1'): another key before it has the same kid"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "it is not JSON"),
        (b"<html>", "it is not JSON"),
        (b"\xff", "it is not JSON"),
        (b"[" * 60_000, "it is not JSON"),
        (b"[]", "it is not a JWK Set"),
        (b'{"keys": {}}', "it is not a JWK Set"),
        (json.dumps(RSA.jwk()).encode(), "it is not a JWK Set"),
        (b" " * (JWKS_BYTES_MAX + 1), f"it has more than {JWKS_BYTES_MAX} bytes"),
    ],
)
def test_what_is_no_set_of_keys_is_told_so(text: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_jwks(text)


def test_a_set_has_so_many_keys_at_most() -> None:
    found = read_jwks(jwks(*(EDWARDS.jwk(kid=f"k{n}") for n in range(KEYS_MAX + 1))))
    assert len(found.keys) == KEYS_MAX
    assert found.problems == [f"there are more than {KEYS_MAX} keys"]


def test_a_file_with_an_unusable_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(jwks(RSA.jwk()))
    assert [key.kid for key in keys_of_file(str(path))] == ["k1"]
    path.write_bytes(jwks(RSA.jwk(), CURVE.private_jwk()))
    with pytest.raises(SettingsError) as caught:
        keys_of_file(str(path))
    assert caught.value.setting == "BRIDGE_JWT_KEYS"
    assert "key 1 (kid 'k2'): it is a private key" in str(caught.value)
    path.write_bytes(b"-----BEGIN PUBLIC KEY-----")
    with pytest.raises(SettingsError, match="it is not JSON"):
        keys_of_file(str(path))
    with pytest.raises(SettingsError, match="can't be read: No such file"):
        keys_of_file(str(tmp_path / "none"))
