"""The pushes of a measurement: their users, their bytes, and how a client reads them.

The data of push number n is a JSON string of 200 characters:

    <when it was made, 20 digits> <n, 8 digits> <user, 6 digits> xxx...

so that a client knows of every frame how old it is, whether it came twice, and whether it is
for this user. The clock is `time.monotonic_ns`, which all processes of one machine share.
"""

from __future__ import annotations

import random
from functools import cache, lru_cache
from typing import Final, NamedTuple

DATA_BYTES: Final = 200
NUMBER_AT: Final = 21
USER_AT: Final = 30
PADDING_AT: Final = 37


class Shape(NamedTuple):
    """What the requests of a drain look like."""

    data_bytes: int = DATA_BYTES
    """Characters of the data, without the quotes."""
    each: int = 1
    """Users whom a request names: the one that is chosen, and those with the next numbers."""


ORDINARY: Final = Shape()


def addressees(seed: int, count: int, users: int) -> list[int]:
    """The user of each push, picked at random; the same in every process with the same seed."""
    return random.Random(seed).choices(range(users), k=count)


def user_id(user: int) -> str:
    """The user's id."""
    return f"u{user:06d}"


def push_id(run: str, number: int) -> str:
    """The push's id; `run` has the same length in all runs, so that all bodies have one size."""
    return f"{run}-{number:08d}"


def data(number: int, user: int, made_at: int, size: int = DATA_BYTES) -> bytes:
    """The data of a push, without the quotes."""
    return b"%020d %08d %06d " % (made_at, number, user) + _padding(size)


@lru_cache
def _padding(size: int) -> bytes:
    return b"x" * (size - PADDING_AT)


def request(
    run: str,
    number: int,
    user: int,
    made_at: int,
    confirm: str,
    ttl: int = 0,
    shape: Shape = ORDINARY,
    users: int = 0,
    tenant: str = "",
) -> bytes:
    """The push request v1; `ttl` in seconds, 0 leaves it out. `users` is how many there are, if it names several. The
    event of a tenant's push has its name."""
    return b'{"id":"%s-%08d","to":{%b},"confirm":"%s",%b%b"data":"%s"}' % (
        run.encode(),
        number,
        b'"user":"u%06d"' % user if shape.each == 1 else _several(user, shape.each, users),
        confirm.encode(),
        b'"ttl":%d,' % ttl if ttl else b"",
        b'"tenant":"%b","event":"%b",' % (tenant.encode(), tenant.encode()) if tenant else b"",
        data(number, user, made_at, shape.data_bytes),
    )


@cache
def _several(first: int, each: int, users: int) -> bytes:
    return b'"users":[%b]' % b",".join(b'"u%06d"' % ((first + n) % users) for n in range(each))


def request_to_all(run: str, number: int, made_at: int, confirm: str, topic: str = "") -> bytes:
    """A push request to everyone, or to a topic."""
    return b'{"id":"%s-%08d","to":{%s},"confirm":"%s","data":"%s"}' % (
        run.encode(),
        number,
        b'"topic":"%s"' % topic.encode() if topic else b'"all":true',
        confirm.encode(),
        data(number, 0, made_at),
    )
