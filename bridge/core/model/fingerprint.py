"""Tell a repeat of a push from another request with the same id: by a short checksum of what each asks for."""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Final

from bridge.core.model.outcomes import Proof
from bridge.core.model.pushes import Encoding, PushRequest, Rejected

_BITS: Final = 0x7FFF_FFFF  # positive in a signed column of four bytes; and zero becomes 1, never NOT_KNOWN
NOT_KNOWN: Final = 0
"""Stands for an unknown fingerprint: it differs from no other."""


def fingerprint_of(request: PushRequest | Rejected) -> int:
    """A checksum of 31 bits over event, data, confirm, ttl, collapse_key, devices, retain, fallback and deliver_at;
    NOT_KNOWN where the producer gave no id.

    The data counts byte for byte. `meta` does not count: some producers count their tries in it. Of a rejected request
    only the body counts. The checksum is CRC-32: one difference in two thousand million goes unseen, and costs no more
    than a warning.
    """
    if isinstance(request, Rejected):
        return zlib.crc32(request.body, 1) & _BITS or 1
    if request.generated_id:
        return NOT_KNOWN
    asked = _asked(request.event, request.encoding, request.confirm, request.ttl, request.collapse_key)
    if request.first_device:
        asked = zlib.crc32(b"first", asked)
    if request.retain:
        asked = zlib.crc32(b"retain", asked)
    if request.fallback is not None:
        text = f"{request.fallback.after}\0{request.fallback.routing_key}"
        asked = zlib.crc32(text.encode("utf-8", "surrogatepass"), asked)
    if request.deliver_at:
        asked = zlib.crc32(f"{request.deliver_at}\0".encode(), asked)
    return zlib.crc32(request.data, asked) & _BITS or 1


def differ(one: int, other: int) -> bool:
    """Whether two fingerprints are of different contents; False where one is not known."""
    return one != other and one != NOT_KNOWN and other != NOT_KNOWN


@lru_cache(1024)
def _asked(event: str, encoding: Encoding, confirm: Proof, ttl: float, collapse_key: str) -> int:
    """The checksum of everything but the data. Many pushes share it."""
    text = f"{event}\0{encoding.value}\0{confirm}\0{ttl}\0{collapse_key}\0"
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))
