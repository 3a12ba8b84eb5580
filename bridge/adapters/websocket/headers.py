"""Header values of an opening request as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from websockets.datastructures import Headers


def text_of(value: str) -> str:
    """What a client sent as text. The library reads each byte as a character of latin-1; together they may be UTF-8."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


def chosen(headers: Headers, names: Sequence[str]) -> Mapping[str, str]:
    """Those that have been sent. Several lines are joined, those of cookies in their own way (RFC 6265 5.4)."""
    return {
        name: text_of(("; " if name == "cookie" else ", ").join(lines))
        for name in names
        if (lines := headers.get_all(name))
    }
