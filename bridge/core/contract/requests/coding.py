"""Check that a body is not compressed and has no other character set than UTF-8."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bridge.core.contract import jsontext
from bridge.core.errors import InvalidRequest
from bridge.core.model.outcomes import Reason

_CHANGES_NOTHING = frozenset(
    ("", "identity", "none", "binary", "8bit", "7bit", "utf-8", "utf8", "us-ascii", "ascii")
)
"""Content encodings without effect: RFC 9110 8.4, RFC 2045 6 (kombu says `binary` for bytes), subsets of UTF-8."""
_COMPRESSIONS = frozenset(
    [
        "gzip",
        "x-gzip",
        "deflate",
        "zlib",
        "compress",
        "x-compress",
        "br",
        "brotli",
        "zstd",
        "zstandard",
        "bzip2",
        "x-bzip2",
        "bz2",
        "x-bz2",
        "lzma",
        "x-lzma",
        "xz",
        "lz4",
        "snappy",
        "zip",
    ]
)
_BETWEEN = re.compile(r"[\s,;:+/]+")


def check_coding(content_encoding: str, headers: Mapping[str, object]) -> None:
    """Raise InvalidRequest where the body would have to be unpacked or converted first."""
    said = content_encoding.strip().lower()
    if said not in _CHANGES_NOTHING:
        # `gzip:UTF-8`, as Spring writes it, or `gzip, br` as in HTTP.
        for word in _BETWEEN.split(said):
            if word in _COMPRESSIONS:
                raise _compressed("property content_encoding", content_encoding)
        raise InvalidRequest(
            Reason.UNSUPPORTED,
            "property content_encoding",
            f"expected none, identity, binary or utf-8, got {jsontext.shown(content_encoding)}",
        )
    # kombu names its compression in this header, and leaves the content encoding as it was before.
    packed = headers.get("compression")
    if isinstance(packed, str) and not _COMPRESSIONS.isdisjoint(_BETWEEN.split(packed.strip().lower())):
        raise _compressed("header compression", packed)


def _compressed(path: str, said: str) -> InvalidRequest:
    return InvalidRequest(
        Reason.UNSUPPORTED,
        path,
        f"the body is compressed ({jsontext.shown(said)}) and the bridge does not decompress: publish it uncompressed",
    )
