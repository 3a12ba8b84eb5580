"""Keys from a file and an address: when they are read again, who waits for it, and what is kept when it fails."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web

from bridge.adapters import jwks as module
from bridge.adapters.jwks import (
    AGAIN_AFTER,
    REFRESH_BOUNDS,
    REFRESH_EVERY,
    Fetched,
    KeyedVerifier,
    KeyRing,
    fetch,
)
from bridge.adapters.keys import JWKS_BYTES_MAX
from bridge.adapters.tokens import JwtVerifier
from bridge.cli import check
from bridge.core.errors import KeysUnavailable, SettingsError, TokenRefused
from bridge.core.model.sessions import Claims
from bridge.core.ports.plugins import TokenVerifier
from tests.support.keys import Pair, jwks, pair
from tests.support.ports import ManualClock, RecordingErrors
from tests.support.waiting import until

NOW = 1_800_000_000.0
CLAIMS = {"sub": "u1", "exp": NOW + 86_400}
URL = "https://id.example/keys"
OLD, NEW = pair("EdDSA", "old"), pair("EdDSA", "new", which="new")


class Provider:
    """An address: what it answers, how often it was asked, and a gate that it waits for."""

    def __init__(self, *pairs: Pair) -> None:
        self.text = jwks(*(each.jwk() for each in pairs))
        self.max_age: float | None = None
        self.down = False
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self, url: str) -> Fetched:
        assert url == URL
        self.asked += 1
        await self.gate.wait()
        if self.down:
            raise KeysUnavailable("cannot connect: it is down")
        return Fetched(self.text, self.max_age)

    def publish(self, *pairs: Pair) -> None:
        self.text = jwks(*(each.jwk() for each in pairs))


class Keyed:
    """A ring of keys that runs, and the verifier that uses it."""

    def __init__(self, provider: Provider, clock: ManualClock, file: str, url: str) -> None:
        self.provider = provider
        self.clock = clock
        self.errors = RecordingErrors()
        self.ring = KeyRing(file, url, clock=clock, errors=self.errors, fetch=provider.fetch)
        inner = JwtVerifier(clock=clock, keys=self.ring.keys)
        self.verifier: TokenVerifier = KeyedVerifier(inner, self.ring)

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.settle()

    def refused(self, token: str) -> str:
        with pytest.raises(TokenRefused) as caught:
            self.verifier.verify(token)
        return caught.value.why

    def later(self, token: str) -> asyncio.Task[Claims]:
        waits = self.verifier.verify(token)
        assert not isinstance(waits, Claims)

        async def wait(for_: Awaitable[Claims]) -> Claims:
            return await for_

        return asyncio.create_task(wait(waits))


@asynccontextmanager
async def keyed(*pairs: Pair, file: str = "", url: str = URL, down: bool = False) -> AsyncIterator[Keyed]:
    provider = Provider(*pairs)
    provider.down = down
    made = Keyed(provider, ManualClock(NOW), file, url)
    running = asyncio.create_task(made.ring.run())
    await made.settle()
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert running.cancelled()


async def test_the_address_is_asked_at_the_start_and_its_keys_are_used_without_waiting() -> None:
    async with keyed(OLD) as made:
        said = made.verifier.verify(OLD.sign(CLAIMS))
        assert isinstance(said, Claims)
        assert (said.user, said.expires_at) == ("u1", NOW + 86_400)
        assert (made.provider.asked, made.ring.age, made.ring.missing) == (1, 0.0, "")


async def test_before_the_address_has_answered_no_token_is_accepted_or_refused() -> None:
    async with keyed(OLD, down=True) as made:
        assert made.ring.missing.startswith("no keys yet")
        with pytest.raises(KeysUnavailable):
            made.verifier.verify(OLD.sign(CLAIMS))
        for wait in (1, 2, 4, 8, 16, 30, 30):
            asked = made.provider.asked
            await made.advance(wait - 0.5)
            assert made.provider.asked == asked
            await made.advance(0.5)
            assert made.provider.asked == asked + 1
        made.provider.down = False
        await made.advance(AGAIN_AFTER)
        assert made.ring.missing == ""
        assert isinstance(made.verifier.verify(OLD.sign(CLAIMS)), Claims)
        assert made.ring.fetches == {"ok": 1, "failed": 8}
        assert {where for _, where in made.errors.seen} == {"keys.fetch"}


async def test_it_is_asked_again_after_ten_minutes_or_as_long_as_it_says_within_bounds() -> None:
    shortest, longest = REFRESH_BOUNDS
    for said, wait in ((None, REFRESH_EVERY), (300.0, 300.0), (0.0, shortest), (1e9, longest)):
        async with keyed() as made:
            made.provider.publish(OLD)
            made.provider.max_age = said
            await made.advance(1)  # the first answer had no key
            asked = made.provider.asked
            await made.advance(wait - 1)
            assert made.provider.asked == asked
            made.provider.publish(NEW)
            await made.advance(1)
            assert made.provider.asked == asked + 1
            assert isinstance(made.verifier.verify(NEW.sign(CLAIMS)), Claims)
            assert made.refused(OLD.sign(CLAIMS)) == "unknown_key", "a key that is published no more"


async def test_an_unknown_kid_waits_for_a_read_that_is_due_and_is_refused_else() -> None:
    async with keyed(OLD) as made:
        made.provider.publish(OLD, NEW)
        assert made.refused(NEW.sign(CLAIMS)) == "unknown_key", "it was just read"
        await made.advance(AGAIN_AFTER)
        assert made.provider.asked == 1
        made.provider.gate.clear()
        waiting = [made.later(NEW.sign(CLAIMS)) for _ in range(3)]
        await made.settle()
        assert made.provider.asked == 2, "all wait for one read"
        assert isinstance(made.verifier.verify(OLD.sign(CLAIMS)), Claims), "who has a known key does not wait"
        late = made.later(NEW.sign(CLAIMS))
        late.cancel()
        made.provider.gate.set()
        assert [claims.user for claims in await asyncio.gather(*waiting)] == ["u1"] * 3
        for _ in range(50):
            assert made.refused(NEW.sign(CLAIMS, kid="never")) == "unknown_key"
        await made.settle()
        assert made.provider.asked == 2, "strangers can't make it ask more often"


async def test_whoever_waits_may_go_and_a_decision_may_be_dropped() -> None:
    async with keyed(OLD) as made:
        made.provider.publish(OLD, NEW)
        await made.advance(AGAIN_AFTER)
        made.provider.gate.clear()
        gone, stays = made.later(NEW.sign(CLAIMS)), made.later(NEW.sign(CLAIMS))
        made.verifier.verify(NEW.sign(CLAIMS))  # dropped: nothing complains
        await made.settle()
        gone.cancel()
        await made.settle()
        made.provider.gate.set()
        assert (await stays).user == "u1"


async def test_who_waits_for_a_read_that_fails_is_refused_and_the_keys_are_kept() -> None:
    async with keyed(OLD) as made:
        await made.advance(AGAIN_AFTER)
        made.provider.down = True
        waiting = made.later(NEW.sign(CLAIMS))
        with pytest.raises(TokenRefused, match="unknown_key"):
            await waiting
        assert isinstance(made.verifier.verify(OLD.sign(CLAIMS)), Claims)
        await made.advance(3600)
        assert isinstance(made.verifier.verify(OLD.sign(CLAIMS)), Claims), "kept while it is down"
        assert made.ring.age == 3600 + AGAIN_AFTER
        assert made.ring.missing == ""


@pytest.mark.parametrize("text", [b"", b"<html>", b'{"keys": []}', jwks({"kty": "oct", "k": "c2VjcmV0"})])
async def test_an_answer_without_a_usable_key_is_a_failure(text: bytes) -> None:
    async with keyed(OLD) as made:
        made.provider.text = text
        await made.advance(REFRESH_EVERY)
        assert made.ring.fetches == {"ok": 1, "failed": 1}
        assert isinstance(made.verifier.verify(OLD.sign(CLAIMS)), Claims)
        assert "c2VjcmV0" not in str(made.errors.seen)


async def test_unusable_keys_of_the_address_are_ignored_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with keyed(OLD) as made:
        made.provider.text = jwks(OLD.jwk(), NEW.private_jwk(), NEW.jwk(use="enc", kid="enc"))
        with caplog.at_level(logging.WARNING):
            await made.advance(REFRESH_EVERY)
            await made.advance(REFRESH_EVERY)
        assert len(caplog.records) == 2
        assert "key 1 (kid 'new'): it is a private key" in caplog.text
        assert NEW.private_jwk()["d"] not in caplog.text
        assert made.ring.fetches["ok"] == 3
        assert made.refused(NEW.sign(CLAIMS)) == "unknown_key"


async def test_a_file_is_read_again_when_a_kid_is_unknown_and_a_bad_one_changes_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(jwks(OLD.jwk()))
    async with keyed(file=str(path), url="") as made:
        assert isinstance(made.verifier.verify(OLD.sign(CLAIMS)), Claims)
        path.write_bytes(jwks(OLD.jwk(), NEW.jwk()))
        assert made.refused(NEW.sign(CLAIMS)) == "unknown_key"
        await made.advance(AGAIN_AFTER)
        assert (await made.later(NEW.sign(CLAIMS))).user == "u1"
        path.write_bytes(jwks(NEW.private_jwk()))
        await made.advance(REFRESH_EVERY)
        await until(lambda: made.errors.seen)
        assert isinstance(made.errors.seen[0][0], SettingsError)
        assert isinstance(made.verifier.verify(OLD.sign(CLAIMS)), Claims)
        assert made.provider.asked == 0


async def test_the_key_of_the_file_wins_over_that_of_the_address(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(jwks(OLD.jwk()))
    theirs = pair("EdDSA", "old", which="theirs")
    async with keyed(theirs, NEW, file=str(path)) as made:
        await until(lambda: not made.ring.missing)
        assert isinstance(made.verifier.verify(OLD.sign(CLAIMS)), Claims)
        assert isinstance(made.verifier.verify(NEW.sign(CLAIMS)), Claims)
        assert made.refused(theirs.sign(CLAIMS)) == "signature"


async def test_a_file_works_while_the_address_has_not_answered(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(jwks(OLD.jwk()))
    async with keyed(file=str(path), down=True) as made:
        await until(lambda: made.ring.fetches["failed"])
        assert isinstance(made.verifier.verify(OLD.sign(CLAIMS)), Claims)
        with pytest.raises(KeysUnavailable):
            made.verifier.verify(NEW.sign(CLAIMS))


# --- the fetch itself, on a real server -----------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/keys", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/keys?secret=opaque"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("said", "max_age"),
    [
        ("", None),
        ("public, max-age=300", 300.0),
        ("MAX-AGE=5", 5.0),
        ("s-maxage=9", None),
        ("no-store", 0.0),
        ("max-age=x", None),
    ],
)
async def test_an_answer_says_how_long_it_is_good(said: str, max_age: float | None) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=b"{}", headers={"Cache-Control": said})

    async with serving(handler) as url:
        assert await fetch(url) == Fetched(b"{}", max_age)


async def test_what_is_no_plain_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FETCH_SECONDS", 0.3)
    followed = []

    async def elsewhere(request: web.Request) -> web.Response:
        followed.append(request)
        return web.Response(status=302, headers={"Location": str(request.url)})

    async def failing(request: web.Request) -> web.Response:
        return web.Response(status=500)

    async def endless(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        with suppress(ConnectionError):
            for _ in range(10_000):
                await answer.write(b" " * 65536)
        return answer

    async def large(request: web.Request) -> web.Response:
        return web.Response(body=b" " * (JWKS_BYTES_MAX + 1))

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(20)
        return web.Response()

    for handler, cause in (
        (elsewhere, "answered with 302"),
        (failing, "answered with 500"),
        (endless, "more than"),
        (large, "more than"),
        (slow, "no answer within"),
    ):
        assert inspect.iscoroutinefunction(handler)
        async with serving(handler) as url:
            with pytest.raises(KeysUnavailable, match=cause) as caught:
                await fetch(url)
            assert "opaque" not in str(caught.value)
    assert len(followed) == 1, "no redirect is followed"


async def test_bridge_check_says_which_keys_the_address_has() -> None:
    body = jwks(OLD.jwk(), NEW.private_jwk())

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body)

    async with serving(handler) as url:
        said = await check._keys(url)
        assert [(each.level, each.words.partition(": ")[2]) for each in said] == [
            (
                "warn",
                "ignored: key 1 (kid 'new'): it is a private key: only its public half is needed, and it should be"
                " nowhere else",
            ),
            ("ok", "EdDSA old"),
        ]
        body = b"{}"
        (none,) = await check._keys(url)
        assert none.level == "warn"
        body = jwks()
        assert "no key that can be used" in (await check._keys(url))[0].words
    (down,) = await check._keys(url)
    assert "cannot connect" in down.words
    assert "opaque" not in down.words


async def test_nobody_at_the_address_is_told_without_the_address() -> None:
    for url, cause in (
        ("http://127.0.0.1:1/?secret=opaque", "cannot connect"),
        ("https://127.0.0.1:1/?secret=opaque", "cannot connect"),
        ("http://127.0.0.1:99999/?secret=opaque", "could not be read"),
    ):
        with pytest.raises(KeysUnavailable, match=cause) as caught:
            await fetch(url)
        assert "opaque" not in str(caught.value)
