"""The public keys that check tokens, kept up to date: read from a file and fetched from an address.

Both are read at the start, again after a while, and when a token has a `kid` that no key has, but then at most every
`AGAIN_AFTER` seconds, so that strangers can't make us ask more often. All of it happens in one task, `KeyRing.run`.
What can't be read leaves the keys that were read before as they are.

| the answer of the address                                     | what happens                              |
|---------------------------------------------------------------|-------------------------------------------|
| 200 with a JWK Set that has a usable key                      | its keys replace those from there before  |
| any other status (a redirect too), more than `JWKS_BYTES_MAX`,| an error is reported, the keys before are |
| no JWK Set, no usable key, nothing within `FETCH_SECONDS`     | kept, and it is tried again soon          |

A key of the address that can't be used is ignored with a warning, since providers publish keys for other purposes, too.
A file with such a key is refused, since somebody can correct it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, Final, NamedTuple

import aiohttp

from bridge.adapters.http_causes import cause_of
from bridge.adapters.keys import JWKS_BYTES_MAX, KeySet, VerifyingKey, read_jwks
from bridge.adapters.tokens import JwtVerifier
from bridge.core.backoff import BackOff
from bridge.core.errors import KeysUnavailable, SettingsError, TokenRefused
from bridge.core.model.sessions import Claims
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler

AGAIN_AFTER: Final = 30.0
"""Seconds between two reads that tokens with an unknown `kid` can cause."""
REFRESH_EVERY: Final = 600.0
"""Seconds between two reads, where the address does not say how long its answer is good."""
REFRESH_BOUNDS: Final = (60.0, 3600.0)
"""What the address may say about it (`Cache-Control: max-age`, RFC 9111 5.2.2.1), in seconds."""
FETCH_SECONDS: Final = 5.0
"""How long the address has for its whole answer. It is below the time that a handshake has."""
FIRST_RETRY: Final = 1.0
"""Seconds until the first retry while nothing was fetched yet; each later one comes after twice as long."""

_MAX_AGE: Final = re.compile(r"(?:^|[\s,])max-age=\"?(\d{1,9})(?!\d)", re.IGNORECASE)

log = logging.getLogger("bridge.keys")


class Fetched(NamedTuple):
    """What an address has answered."""

    text: bytes
    max_age: float | None = None
    """Seconds for which it is good, if the address says so."""


Fetch = Callable[[str], Awaitable[Fetched]]


async def fetch(url: str) -> Fetched:
    """GET it without following redirects; raises KeysUnavailable with the cause, which does not hold the address."""
    timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
    # Compressed answers are not asked for: a small one can become a very large text.
    headers = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as http,
            http.get(url, allow_redirects=False, headers=headers) as answer,
        ):
            if answer.status != 200:
                raise KeysUnavailable(f"the address answered with {answer.status}")
            text = bytearray()
            async for part in answer.content.iter_any():
                text += part
                if len(text) > JWKS_BYTES_MAX:
                    raise KeysUnavailable(f"the answer has more than {JWKS_BYTES_MAX} bytes")
            return Fetched(bytes(text), _max_age(answer.headers.get("Cache-Control", "")))
    except TimeoutError:
        raise KeysUnavailable(f"no answer within {FETCH_SECONDS:g} s") from None
    except (aiohttp.ClientError, ValueError, OSError) as error:
        raise KeysUnavailable(cause_of(error)) from None


def _max_age(said: str) -> float | None:
    if re.search(r"\bno-(?:store|cache)\b", said, re.IGNORECASE):
        return 0.0
    found = _MAX_AGE.search(said)
    return float(found[1]) if found else None


def keys_of_file(path: str) -> Sequence[VerifyingKey]:
    """The keys of a file; raises SettingsError where it can't be read, or holds a key that can't be used."""
    try:
        with open(path, "rb") as file:
            keys, problems = read_jwks(file.read(JWKS_BYTES_MAX + 1))
    except OSError as error:
        raise SettingsError("BRIDGE_JWT_KEYS", f"the file can't be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError("BRIDGE_JWT_KEYS", f"the file can't be used: {error}") from None
    if problems:
        raise SettingsError("BRIDGE_JWT_KEYS", f"the file can't be used: {'; '.join(problems)}")
    return keys


class KeyRing:
    """The keys of a file and of an address together. Those of the file win where both have a `kid`."""

    def __init__(
        self, file: str, url: str, *, clock: Clock, errors: ErrorHandler, fetch: Fetch = fetch
    ) -> None:
        """Either may be empty. Reads the file at once, and raises SettingsError where that can't be used."""
        self._file = file
        self._url = url
        self._clock = clock
        self._errors = errors
        self._fetch = fetch
        self._of_file: Sequence[VerifyingKey] = keys_of_file(file) if file else ()
        self._of_url: Sequence[VerifyingKey] = ()
        self._all = KeySet(self._of_file)
        self._ignored: Sequence[str] = ()
        self._read_at: float | None = clock.monotonic() if file else None
        """When a read began last."""
        self._wanted = asyncio.Event()
        self._done: asyncio.Future[None] | None = None
        """Resolved at the end of the read that is wanted or under way; None where there is none."""
        self._back_off = BackOff(clock, FIRST_RETRY, AGAIN_AFTER)
        self.fetches = {"ok": 0, "failed": 0}
        """How often the address was asked, by result."""
        self._fetched_at: float | None = None

    @property
    def age(self) -> float | None:
        """Seconds since the address last answered with keys; None if it never did."""
        return None if self._fetched_at is None else self._clock.monotonic() - self._fetched_at

    @property
    def missing(self) -> str:
        """Why there are no keys yet, for people; empty once the address has answered, or where there is none."""
        return "no keys yet from the address BRIDGE_JWT_JWKS_URL" if self._url and self.age is None else ""

    def keys(self) -> KeySet:
        """The keys as they are now."""
        return self._all

    # --- reading again ---

    def want(self) -> asyncio.Future[None] | None:
        """Somebody needs a key that is not here. Returns what is resolved when a read is done; None: not due yet."""
        if self._done is None:
            now = self._clock.monotonic()
            if self._read_at is not None and now - self._read_at < AGAIN_AFTER:
                return None
            self._done = asyncio.get_running_loop().create_future()
            self._wanted.set()
        return self._done

    async def run(self) -> None:
        """Read all of it again and again, until it is cancelled."""
        wait = 0.0 if self._url else REFRESH_EVERY
        try:
            while True:
                await self._pause(wait)
                wait = await self._read()
        finally:
            self._tell()

    async def _pause(self, seconds: float) -> None:
        """Return after this time, or as soon as a read is wanted."""
        if seconds > 0 and not self._wanted.is_set():
            either = [
                asyncio.create_task(self._clock.sleep(seconds), name="keys: time"),
                asyncio.create_task(self._wanted.wait(), name="keys: wanted"),
            ]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in either:
                    each.cancel()
        self._wanted.clear()

    async def _read(self) -> float:
        """Read file and address; returns the seconds until the next time."""
        self._read_at = self._clock.monotonic()
        if self._done is None:
            self._done = asyncio.get_running_loop().create_future()
        wait = REFRESH_EVERY
        try:
            if self._file:
                await self._read_file()
            if self._url:
                wait = await self._read_url()
        finally:
            self._all = KeySet([*self._of_file, *self._of_url])
            self._tell()
        return wait

    def _tell(self) -> None:
        if self._done is not None:
            if not self._done.done():
                self._done.set_result(None)
            self._done = None

    async def _read_file(self) -> None:
        try:
            self._of_file = await asyncio.to_thread(keys_of_file, self._file)
        except SettingsError as error:
            self._errors.handle(error, "keys.file", {"keys kept": len(self._of_file)})

    async def _read_url(self) -> float:
        try:
            answer = await self._fetch(self._url)
            try:
                keys, problems = read_jwks(answer.text)
            except ValueError as error:
                raise KeysUnavailable(f"the answer can't be used: {error}") from None
            self._warn(problems)
            if not keys:
                raise KeysUnavailable("the answer has no key that can be used")
        except KeysUnavailable as error:
            self.fetches["failed"] += 1
            self._errors.handle(error, "keys.fetch", {"keys kept": len(self._of_url)})
            return self._back_off.delay() if self._fetched_at is None else AGAIN_AFTER
        self.fetches["ok"] += 1
        self._of_url = keys
        self._fetched_at = self._clock.monotonic()
        if answer.max_age is None:
            return REFRESH_EVERY
        shortest, longest = REFRESH_BOUNDS
        return min(max(answer.max_age, shortest), longest)

    def _warn(self, problems: Sequence[str]) -> None:
        """Log what is ignored, once until it changes."""
        if problems != self._ignored:
            self._ignored = problems
            for problem in problems:
                log.warning("ignored of the address BRIDGE_JWT_JWKS_URL: %s", problem)


class KeyedVerifier:
    """Fills the TokenVerifier port with secrets and a ring of keys. Only a token whose key is unknown ever waits."""

    def __init__(self, verifier: JwtVerifier, ring: KeyRing) -> None:
        self._verifier = verifier
        self._ring = ring

    def verify(self, token: str) -> Claims | Awaitable[Claims]:
        """See the port. A token with an unknown key waits for the read that is due or under way, and for no other."""
        try:
            return self._verifier.verify(token)
        except TokenRefused as refused:
            if refused.why != "unknown_key":
                raise
            if self._ring.missing:
                raise KeysUnavailable(self._ring.missing) from None
            done = self._ring.want()
            if done is None:
                raise
            return _Later(self._verifier, done, token)


class _Later:
    """What a token says once a read is done."""

    __slots__ = ("_done", "_token", "_verifier")

    def __init__(self, verifier: JwtVerifier, done: asyncio.Future[None], token: str) -> None:
        self._verifier = verifier
        self._done = done
        self._token = token

    def __await__(self) -> Generator[Any, None, Claims]:
        # Others wait for the same read: whoever is cancelled must not end it.
        yield from asyncio.shield(self._done).__await__()
        return self._verifier.verify(self._token)
