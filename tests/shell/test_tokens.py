"""Which tokens open a session, and the word for why the others don't."""

from __future__ import annotations

import base64
import hmac
import json
import traceback

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.adapters.tokens import LEEWAY, TOKEN_REFUSALS, JwtVerifier, make_token
from bridge.core.errors import SettingsError, TokenRefused
from bridge.core.model.sessions import Claims
from bridge.core.ports.plugins import TokenVerifier
from tests.support.ports import ManualClock

SECRET = "correct horse battery staple, and then some"
NOW = 1_800_000_000.0


def verifier(**options: object) -> JwtVerifier:
    return JwtVerifier(SECRET, clock=ManualClock(NOW), **options)  # type: ignore[arg-type]


def signed(claims: dict[str, object], secret: str = SECRET, algorithm: str = "HS256") -> str:
    return jwt.encode({"exp": NOW + 60, **claims}, secret, algorithm=algorithm)


def refused(token: str, by: JwtVerifier | None = None) -> str:
    with pytest.raises(TokenRefused) as caught:
        (by or verifier()).verify(token)
    assert caught.value.why in TOKEN_REFUSALS
    return caught.value.why


def raw(claims: bytes) -> str:
    """A well-signed token around bytes that no JSON library would write."""
    signing = jwt.PyJWS()
    return signing.encode(claims, SECRET, algorithm="HS256")


def test_a_good_token_says_who_until_when_its_id_and_since_when() -> None:
    port: TokenVerifier = verifier()
    said = port.verify(signed({"sub": "u1", "jti": "t1", "iat": NOW - 5}))
    assert said == Claims(user="u1", expires_at=NOW + 60, token_id="t1", issued_at=NOW - 5)


def test_a_good_token_says_what_its_user_may_do() -> None:
    may = {"topics": ["news"], "subscribe": ["room.*"], "publish": ["chat.#", "user.{user}"]}
    said = verifier().verify(signed({"sub": "u1", **may}))
    assert (said.topics, said.subscribe, said.publish) == (("news",), ("room.*",), ("chat.#", "user.{user}"))


@pytest.mark.parametrize(
    ("may", "detail"),
    [
        ({"topics": "news"}, "topics: expected a list of strings, got a string"),
        ({"subscribe": ["a.#.b"]}, "subscribe[0]: expected a pattern of at most 128 characters"),
        ({"publish": {"a": 1}}, "publish: expected a list of strings, got an object"),
        ({"publish": ["a"] * 101}, "publish: expected at most 100 entries, got 101"),
    ],
)
def test_a_token_whose_claims_make_no_sense_is_refused_with_what_was_expected(
    may: dict[str, object], detail: str
) -> None:
    with pytest.raises(TokenRefused) as caught:
        verifier().verify(signed({"sub": "u1", **may}))
    assert caught.value.why == "claims"
    assert caught.value.detail.startswith(detail)


def test_sub_wins_over_uid() -> None:
    assert verifier().verify(signed({"sub": "a", "uid": "b"})).user == "a"


NUMBERS = [(42, "42"), ("u7", "u7"), (0, "0"), (-1, "-1"), (2**64, "18446744073709551616")]


@pytest.mark.parametrize(("uid", "user"), NUMBERS)
def test_uid_names_the_user_where_sub_is_missing_and_may_be_an_integer(uid: object, user: str) -> None:
    assert verifier().verify(signed({"uid": uid})).user == user


@pytest.mark.parametrize(("sub", "user"), NUMBERS)
def test_an_integer_sub_is_the_user_of_that_number(sub: object, user: str) -> None:
    token = raw(json.dumps({"exp": NOW + 60, "sub": sub, "uid": "other"}).encode())
    assert verifier().verify(token).user == user


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"sub": ""},
        {"sub": "", "uid": "u1"},
        {"sub": "x" * 129},
        {"sub": "a\x00b"},
        {"sub": "a\x85b"},
        {"uid": "a\nb"},
        {"uid": True},
        {"uid": 1.5},
        {"uid": ["u1"]},
        {"sub": True},
        {"sub": 1.5},
        {"sub": 1.0},
        {"sub": 10**128},
        {"sub": {"id": 1}},
        {"sub": False, "uid": "u1"},
        {"uid": None},
    ],
)
def test_a_token_without_a_usable_user_is_refused(claims: dict[str, object]) -> None:
    assert refused(raw(json.dumps({"exp": NOW + 60, **claims}).encode())) == "no_user"


def test_a_user_that_no_utf8_can_carry_is_refused() -> None:
    assert refused(raw(b'{"exp": 1800000060, "sub": "\\ud800"}')) == "no_user"


def test_a_user_of_128_characters_of_any_script_is_taken() -> None:
    user = "ü" * 127 + "😀"
    assert verifier().verify(signed({"sub": user})).user == user


def test_exp_is_required_and_checked_by_the_injected_clock() -> None:
    assert refused(jwt.encode({"sub": "u1"}, SECRET)) == "no_expiry"
    clock = ManualClock(NOW)
    by = JwtVerifier(SECRET, clock=clock)
    token = signed({"sub": "u1"})
    by.verify(token)
    clock.advance(60 + LEEWAY - 0.5)
    by.verify(token)
    clock.advance(0.5)
    assert refused(token, by) == "expired"


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_a_token_from_the_future_is_refused_beyond_the_leeway(claim: str) -> None:
    verifier().verify(signed({"sub": "u1", claim: NOW + LEEWAY}))
    assert refused(signed({"sub": "u1", claim: NOW + LEEWAY + 1})) == "not_yet"


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", [b'"1800000060"', b"true", b"[1]", b"NaN", b"Infinity", b"1" * 400])
def test_a_time_that_is_no_number_of_seconds_is_malformed(claim: str, value: bytes) -> None:
    exp = b"" if claim == "exp" else b'"exp": 1800000060, '
    assert refused(raw(b'{"sub": "u1", %s"%s": %s}' % (exp, claim.encode(), value))) == "malformed"


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", ["1800000060000", "1.8e12", "10000000000", "1800000060000000"])
def test_a_time_in_milliseconds_is_malformed_and_said_to_look_like_it(claim: str, value: str) -> None:
    said = ", ".join(
        ['"sub": "u1"', f'"{claim}": {value}', *(['"exp": 1800000060'] if claim != "exp" else [])]
    )
    with pytest.raises(TokenRefused) as caught:
        verifier().verify(raw(f"{{{said}}}".encode()))
    assert caught.value.why == "malformed"
    assert caught.value.detail.startswith(f"{claim} ")
    assert "milliseconds" in caught.value.detail


def test_a_time_may_have_a_fraction_and_be_far_away() -> None:
    assert verifier().verify(raw(b'{"sub": "u1", "exp": 1800000060.25}')).expires_at == NOW + 60.25
    assert verifier().verify(raw(b'{"sub": "u1", "exp": 9999999999}')).expires_at == 9_999_999_999


def home_made(claims: dict[str, object]) -> str:
    """A token in standard base64 with padding, signed as it stands: what a few lines of any language make."""

    def part(value: bytes) -> str:
        return base64.b64encode(value).decode()

    head = part(b'{"alg":"HS256","typ":"JWT"}') + "." + part(json.dumps(claims).encode())
    return head + "." + part(hmac.digest(SECRET.encode(), head.encode(), "sha256"))


def test_a_token_in_standard_base64_is_read_whichever_spelling_was_signed() -> None:
    seen = set()
    for n in range(40):
        # JSON of ASCII never has + or / in base64 unless its characters are picked for it.
        claims: dict[str, object] = {"sub": f"u{n}", "exp": NOW + 60, "k": "?>~" * (n % 3) + "~" * n}
        own = home_made(claims)
        assert verifier().verify(own).user == f"u{n}"
        head, body, mark = signed({"sub": f"u{n}", "k": "?>~" * (n % 3) + "~" * n}).split(".")
        rewritten = ".".join(
            part.replace("-", "+").replace("_", "/") + "=" * (-len(part) % 4) for part in (head, body, mark)
        )
        assert verifier().verify(rewritten).user == f"u{n}"
        seen |= {c for c in own + rewritten if c in "+/="}
    assert seen == set("+/=")
    changed = home_made({"sub": "u1", "exp": NOW + 60})
    assert refused("A" + changed[1:]) in ("malformed", "signature", "algorithm")


@pytest.mark.parametrize(
    ("token", "hint"),
    [
        ("Bearer a.b.c", "spaces"),
        ('"a.b.c"', "quotes"),
        ("<html>", "three parts"),
        ("a.b.c.d", "three parts"),
        ("a.b.c\x00", "characters"),
    ],
)
def test_what_is_no_token_is_told_what_it_looks_like(token: str, hint: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        verifier().verify(token)
    assert hint in caught.value.detail


def test_a_token_id_that_is_no_string_is_malformed_not_ignored() -> None:
    assert refused(raw(b'{"exp": 1800000060, "sub": "u1", "jti": 7}')) == "malformed"


def test_another_secret_or_a_changed_claim_breaks_the_signature() -> None:
    assert refused(signed({"sub": "u1"}, secret="x" * 40)) == "signature"
    head, _, mark = signed({"sub": "u1"}).split(".")
    body = base64.urlsafe_b64encode(json.dumps({"sub": "admin", "exp": NOW + 60}).encode()).rstrip(b"=")
    assert refused(f"{head}.{body.decode()}.{mark}") == "signature"


def test_only_the_algorithms_of_the_settings_are_taken_and_none_never() -> None:
    long = SECRET * 2
    wide = JwtVerifier(long, clock=ManualClock(NOW), algorithms=("HS256", "HS512"))
    wide.verify(signed({"sub": "u1"}, long, "HS512"))
    assert refused(signed({"sub": "u1"}, long, "HS384"), wide) == "algorithm"
    assert refused(jwt.encode({"sub": "u1", "exp": NOW + 60}, "", algorithm="none")) == "algorithm"


def test_issuer_and_audience_are_checked_where_the_settings_name_them() -> None:
    by = verifier(issuer="https://id.example", audience="bridge")
    right: dict[str, object] = {"sub": "u1", "iss": "https://id.example", "aud": "bridge"}
    by.verify(signed(right))
    by.verify(signed({**right, "aud": ["other", "bridge"]}))
    assert refused(signed({**right, "iss": "https://evil.example"}), by) == "issuer"
    assert refused(signed({"sub": "u1", "aud": "bridge"}), by) == "issuer"
    assert refused(signed({**right, "aud": "bridge2"}), by) == "audience"
    assert refused(signed({"sub": "u1", "iss": "https://id.example"}), by) == "audience"
    verifier().verify(signed({**right, "aud": "whoever"}))


@pytest.mark.parametrize("token", ["x", "a.b", "a.b.c", "..", "é.é.é", "\ud800", "a" * 10_000, "ey.ey.ey "])
def test_what_is_no_token_is_malformed(token: str) -> None:
    assert refused(token) == "malformed"


def with_header(header: object, payload: bytes = b'{"sub": "u1", "exp": 1800000060}') -> str:
    """A token that is signed as it should be, around any header and payload."""
    parts = (json.dumps(header).encode(), payload)
    said = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = base64.urlsafe_b64encode(hmac.digest(SECRET.encode(), said, "sha256")).rstrip(b"=")
    return (said + b"." + signature).decode()


@pytest.mark.parametrize(
    ("token", "detail"),
    [
        (with_header({"alg": "HS256", "crit": ["exp"]}), "crit: extensions that must be understood"),
        (with_header({"alg": "HS256", "crit": []}), "crit: extensions that must be understood"),
        (with_header({"alg": "HS256", "crit": ["b64"], "b64": False}), "b64: a payload that is not"),
        (with_header({"alg": "HS256", "b64": False}), "b64: a payload that is not"),
        (with_header({"alg": "HS256", "kid": 7}), "kid in its header is not a string"),
        (with_header({"alg": "HS256", "kid": None}), "kid in its header is not a string"),
        (with_header(["HS256"]), "its header is not a JSON object"),
        (with_header({"alg": "HS256"}, b"7"), "its claims are not a JSON object"),
        (with_header({"alg": "HS256"}, b"{"), "its claims are not a JSON object"),
        ("a.b.c.d.e", "it is encrypted"),
        ("a.b", "this one has 2"),
    ],
)
def test_a_malformed_token_is_told_what_is_wrong_with_it_and_not_quoted(token: str, detail: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        verifier().verify(token)
    assert caught.value.why == "malformed"
    assert detail in caught.value.detail
    assert token not in str(caught.value)


def test_a_home_made_token_with_nothing_odd_in_its_header_is_taken() -> None:
    header = {"alg": "HS256", "typ": "JWT", "kid": "7", "x5t": "any"}
    assert verifier().verify(with_header(header)).user == "u1"


def test_no_token_is_missing() -> None:
    assert refused("") == "missing"


@pytest.mark.parametrize("claims", [b"[]", b'"u1"', b"{", b"\xff", b"[" * 100_000])
def test_a_signed_body_that_is_no_object_is_malformed(claims: bytes) -> None:
    assert refused(raw(claims)) == "malformed"


@settings(max_examples=300)
@given(
    st.one_of(st.text(max_size=60), st.from_regex(r"[\w-]{0,40}\.[\w-]{0,40}\.[\w-]{0,40}", fullmatch=True))
)
def test_any_text_is_refused_with_a_known_word(token: str) -> None:
    assert refused(token) in TOKEN_REFUSALS


@settings(max_examples=300)
@given(
    st.dictionaries(
        st.sampled_from(["sub", "uid", "exp", "nbf", "iat", "iss", "aud", "jti"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        ),
    )
)
def test_any_signed_claims_are_taken_or_refused_with_a_known_word(claims: dict[str, object]) -> None:
    by = verifier(issuer="i", audience="a")
    why = user = ""
    try:
        user = by.verify(raw(json.dumps(claims).encode())).user
    except TokenRefused as refusal:
        why = refusal.why
    assert why in TOKEN_REFUSALS or 1 <= len(user) <= 128


@pytest.mark.parametrize(
    ("secret", "algorithms", "setting"),
    [
        ("", ("HS256",), "BRIDGE_JWT_SECRET"),
        ("x" * 31, ("HS256",), "BRIDGE_JWT_SECRET"),
        ("x" * 47, ("HS256", "HS384"), "BRIDGE_JWT_SECRET"),
        ("x" * 63, ("HS512",), "BRIDGE_JWT_SECRET"),
        ('{"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"}', ("HS256",), "BRIDGE_JWT_SECRET"),
        ("x" * 64, (), "BRIDGE_JWT_ALGORITHMS"),
        ("x" * 64, ("none",), "BRIDGE_JWT_ALGORITHMS"),
        ("x" * 64, ("HS256", "RS256"), "BRIDGE_JWT_ALGORITHMS"),
    ],
)
def test_an_unsafe_secret_or_algorithm_refuses_the_start(
    secret: str, algorithms: tuple[str, ...], setting: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        JwtVerifier(secret, clock=ManualClock(NOW), algorithms=algorithms)
    assert caught.value.setting == setting
    assert secret == "" or secret not in str(caught.value)


def test_the_bytes_of_a_secret_count_not_its_characters() -> None:
    JwtVerifier("ü" * 16, clock=ManualClock(NOW))


def test_in_development_a_short_secret_is_taken_an_empty_one_never() -> None:
    by = JwtVerifier("short", clock=ManualClock(NOW), dev=True)
    assert by.verify(make_token("short", "u1", 60, now=NOW)).user == "u1"
    with pytest.raises(SettingsError):
        JwtVerifier("", clock=ManualClock(NOW), dev=True)


def test_a_made_token_is_good_for_its_ttl_and_has_an_id_of_its_own() -> None:
    first = make_token(SECRET, "u1", 30, now=NOW)
    said = verifier().verify(first)
    assert (said.user, said.expires_at, said.issued_at) == ("u1", NOW + 30, NOW)
    assert said.token_id
    assert said.token_id != verifier().verify(make_token(SECRET, "u1", 30, now=NOW)).token_id


def test_claims_of_the_caller_win_and_none_leaves_one_out() -> None:
    token = make_token(SECRET, "u1", 30, now=NOW, sub=None, uid=7, jti="mine", aud="a")
    said = verifier(audience="a").verify(token)
    assert (said.user, said.token_id) == ("7", "mine")


def test_a_refusal_shows_neither_the_token_nor_the_secret() -> None:
    token = signed({"sub": "somebody"}, secret="x" * 40)
    with pytest.raises(TokenRefused) as caught:
        verifier().verify(token)
    shown = "".join(traceback.format_exception(caught.value))
    assert not any(private in shown for private in (token, SECRET, "somebody"))
