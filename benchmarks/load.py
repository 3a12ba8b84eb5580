"""The pushes of a measurement: their users, their bytes, and how a client reads them.

The data of push number n is a JSON string of 200 characters:

    <when it was made, 20 digits> <n, 8 digits> <user, 6 digits> xxx...

so that a client knows of every frame how old it is, whether it came twice, and whether it is
for this user. The clock is `time.monotonic_ns`, which all processes of one machine share.
"""

from __future__ import annotations

import random
from typing import Final

DATA_BYTES: Final = 200
NUMBER_AT: Final = 21
USER_AT: Final = 30
PADDING_AT: Final = 37
_PADDING: Final = b"x" * (DATA_BYTES - PADDING_AT)


def addressees(seed: int, count: int, users: int) -> list[int]:
    """The user of each push, picked at random; the same in every process with the same seed."""
    return random.Random(seed).choices(range(users), k=count)


def user_id(user: int) -> str:
    """The user's id."""
    return f"u{user:06d}"


def push_id(run: str, number: int) -> str:
    """The push's id; `run` has the same length in all runs, so that all bodies have one size."""
    return f"{run}-{number:08d}"


def data(number: int, user: int, made_at: int) -> bytes:
    """The data of a push, without the quotes."""
    return b"%020d %08d %06d " % (made_at, number, user) + _PADDING


def request(run: str, number: int, user: int, made_at: int, confirm: str, ttl: int = 0) -> bytes:
    """The push request v1; `ttl` in seconds, 0 leaves it out."""
    return b'{"id":"%s-%08d","to":{"user":"u%06d"},"confirm":"%s",%b"data":"%s"}' % (
        run.encode(),
        number,
        user,
        confirm.encode(),
        b'"ttl":%d,' % ttl if ttl else b"",
        data(number, user, made_at),
    )


def request_to_all(run: str, number: int, made_at: int, confirm: str) -> bytes:
    """A push request to everyone."""
    return b'{"id":"%s-%08d","to":{"all":true},"confirm":"%s","data":"%s"}' % (
        run.encode(),
        number,
        confirm.encode(),
        data(number, 0, made_at),
    )
