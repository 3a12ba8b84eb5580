"""Who may ask the ops port, and for what: the credentials of a file or a directory, kept up to date.

A file has a line for each credential, `name scopes secret`. In a directory each file is named after its credential, and
its lines are `scopes secret`. Scopes are separated by commas. Empty lines and those that begin with `#` say nothing. A
name may have several lines, so that its secret can be changed without a gap.

| scope | allows |
|---|---|
| `read` | every GET, without the data of pushes |
| `push` | to publish pushes, and to learn what became of these |
| `admin` | to recall, revoke, replay and purge, to see data, and all that `read` and `push` allow |

The files are read again at the first request after `LOOK_EVERY` seconds, and at one with an unknown secret, but then
at most once in `AGAIN_AFTER` seconds. If they can't be used then, the credentials that were read before stay.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import hmac
import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Self

from bridge.core import redaction
from bridge.core.errors import SettingsError
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler

LOOK_EVERY: Final = 10.0
"""Seconds after which a credential that was taken out of the files is refused."""
AGAIN_AFTER: Final = 1.0
"""Seconds between two reads that unknown secrets can cause."""
SECRET_BYTES: Final = 32
"""The shortest secret."""
SECRET_VARIETY: Final = 8
"""Different characters that a secret must have: random ones have more, `aaaa...` and `change-me...` have not."""
CREDENTIALS_MAX: Final = 1000
"""Credentials, since each request is compared with all of them."""
FILE_BYTES: Final = 1 << 20
"""The most that a file may have."""

TOKEN_NAME: Final = "ops"
"""The name of whoever has BRIDGE_OPS_TOKEN."""
LOCAL_NAME: Final = "local"
"""The name of whoever asks a port that has no credentials."""

_NAME: Final = re.compile(r"[a-z0-9-]{1,64}")
_SECRET: Final = re.compile(r"[!-~]{1,1024}")
_SETTING: Final = "BRIDGE_OPS_CREDENTIALS"

log = logging.getLogger("bridge.ops")


class Scope(enum.StrEnum):
    """What a credential allows; see the module's table."""

    READ = "read"
    PUSH = "push"
    ADMIN = "admin"


class Credential(NamedTuple):
    """A name and what it allows."""

    name: str
    scopes: frozenset[Scope]
    digest: bytes
    """SHA-256 of its secret."""

    @classmethod
    def of(cls, name: str, scopes: frozenset[Scope], secret: str) -> Self:
        """One with this secret."""
        return cls(name, scopes, hashlib.sha256(secret.encode()).digest())

    def allows(self, scope: Scope) -> bool:
        """Whether it has this scope, or `admin`, which has all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def __str__(self) -> str:
        return f"{self.name} ({','.join(sorted(self.scopes))})"


class Entry(NamedTuple):
    """A line of a file that was understood. It has the secret, so it is never shown."""

    name: str
    scopes: frozenset[Scope]
    secret: str
    where: str
    """Its file and line, for people."""

    def credential(self) -> Credential:
        """It without its secret."""
        return Credential.of(self.name, self.scopes, self.secret)


# --- The files -------------------------------------------------------------------------------------------


def read_entries(path: str) -> Sequence[Entry]:
    """The credentials of a file or of a directory.

    Raises ValueError with a sentence that names file and line, and quotes nothing of them. From now on the secrets are
    removed from all texts, also those of a file that can't be used.
    """
    if re.search(r"[\x00-\x20]", path):
        # A secrets directory may give the content of a file in place of its path.
        raise ValueError("the path of a file or of a directory expected, without spaces")
    found: list[Entry] = []
    try:
        for name, file in _files(path):
            with open(file, "rb") as opened:
                text = opened.read(FILE_BYTES + 1)
            found += _entries(name, file, text)
    except OSError as error:
        raise ValueError(f"{error.filename or path} can't be read: {error.strerror}") from None
    if not found:
        raise ValueError(f"{path} has no credential: {_line_of(None)} expected")
    if len(found) > CREDENTIALS_MAX:
        raise ValueError(f"{path} has {len(found)} credentials, at most {CREDENTIALS_MAX} expected")
    places: dict[str, str] = {}
    for entry in found:
        other = places.setdefault(entry.secret, entry.where)
        if other != entry.where:
            raise ValueError(f"{entry.where}: the secret of {other} again: a secret of its own expected")
    return found


def _files(path: str) -> Iterator[tuple[str | None, str]]:
    """Each file, and the name that its credentials have by it."""
    if not os.path.isdir(path):
        yield None, path
        return
    # Kubernetes keeps what it links to in directories whose names begin with a dot.
    for name in sorted(name for name in os.listdir(path) if not name.startswith(".")):
        yield name, os.path.join(path, name)


def _line_of(name: str | None) -> str:
    return "`name scopes secret`" if name is None else "`scopes secret`"


def _entries(name: str | None, file: str, text: bytes) -> list[Entry]:
    if len(text) > FILE_BYTES:
        raise ValueError(f"{file}: at most {FILE_BYTES} bytes expected")
    try:
        lines = text.decode().splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file}: UTF-8 text expected") from None
    split = [(number, line.split()) for number, line in enumerate(lines, 1)]
    split = [(number, words) for number, words in split if words and not words[0].startswith("#")]
    # Whatever else is wrong, and in whichever place it stands: a long word may be a secret.
    redaction.learn(word for _, words in split for word in words if len(word) >= SECRET_BYTES)
    return [_entry(name, f"{file} line {number}", words) for number, words in split]


def _entry(name: str | None, where: str, words: Sequence[str]) -> Entry:
    if len(words) != (3 if name is None else 2):
        raise ValueError(f"{where}: {_line_of(name)} expected, and this has {len(words)} words")
    named = words[0] if name is None else name
    if not _NAME.fullmatch(named):
        raise ValueError(f"{where}: a name of 1 to 64 characters of a-z, 0-9 and '-' expected")
    if named in (TOKEN_NAME, LOCAL_NAME):
        raise ValueError(f"{where}: another name expected: {named} has a meaning already")
    listed, secret = words[-2:]
    try:
        scopes = frozenset(Scope(word) for word in listed.split(","))
    except ValueError:
        raise ValueError(f"{where}: scopes out of {','.join(Scope)} expected") from None
    if not _SECRET.fullmatch(secret) or len(secret) < SECRET_BYTES:
        raise ValueError(f"{where}: a secret of {SECRET_BYTES} to 1024 ASCII characters expected")
    if len(set(secret)) < SECRET_VARIETY:
        raise ValueError(
            f"{where}: a secret that is hard to guess expected: this one has fewer than {SECRET_VARIETY} different"
            " characters; `openssl rand -base64 48` makes a good one"
        )
    return Entry(named, scopes, secret, where)


# --- Asking ----------------------------------------------------------------------------------------------


class Credentials:
    """Those of BRIDGE_OPS_TOKEN and of BRIDGE_OPS_CREDENTIALS together."""

    def __init__(self, path: str, token: str, *, clock: Clock, errors: ErrorHandler) -> None:
        """Either may be empty. Reads the files at once, and raises SettingsError if they can't be used."""
        self._path = path
        self._clock = clock
        self._errors = errors
        self._of_token = (Credential.of(TOKEN_NAME, frozenset(Scope), token),) if token else ()
        self._of_files: tuple[Credential, ...] = _read(path) if path else ()
        self._read_at = clock.monotonic()
        self._one_reads = asyncio.Lock()
        self._problem = ""

    def __bool__(self) -> bool:
        """Whether a credential is asked for."""
        return bool(self._path or self._of_token)

    async def find(self, secret: bytes) -> Credential | None:
        """The credential with this secret; None if there is none now."""
        await self._look_again(LOOK_EVERY)
        found = self._with(secret)
        if found is None:
            await self._look_again(AGAIN_AFTER)
            found = self._with(secret)
        return found

    async def is_good(self, credential: Credential) -> bool:
        """Whether this credential, which was found before, still counts."""
        await self._look_again(LOOK_EVERY)
        return credential in (*self._of_token, *self._of_files)

    def _with(self, secret: bytes) -> Credential | None:
        digest = hashlib.sha256(secret).digest()
        found = None
        # All are compared, whichever fits: the time tells nothing.
        for credential in (*self._of_token, *self._of_files):
            if hmac.compare_digest(credential.digest, digest):
                found = credential
        return found

    async def _look_again(self, after: float) -> None:
        if not self._path or self._clock.monotonic() - self._read_at < after:
            return
        async with self._one_reads:
            # Somebody else may have read them while this waited.
            if self._clock.monotonic() - self._read_at < after:
                return
            self._read_at = self._clock.monotonic()
            try:
                read = await asyncio.to_thread(_read, self._path)
            except SettingsError as error:
                if error.problem != self._problem:
                    self._problem = error.problem
                    self._errors.handle(error, "ops.credentials", {"credentials kept": len(self._of_files)})
                return
            self._problem = ""
            if read != self._of_files:
                self._of_files = read
                log.info("credentials of the ops port are now: %s", ", ".join(map(str, read)))


def _read(path: str) -> tuple[Credential, ...]:
    try:
        return tuple(entry.credential() for entry in read_entries(path))
    except ValueError as error:
        raise SettingsError(_SETTING, str(error)) from None
