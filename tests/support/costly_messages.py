"""Messages that cost as much to read as we know how to make them: each as large as a message may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

from bridge.core.model.pushes import BATCH_MAX, MESSAGE_BYTES_MAX

HEADERS_BYTES = 128 * 1024
"""About what fits into the headers of a message: its properties are one frame of the broker."""


class Costly(NamedTuple):
    """A message, and what is special about it; the body is made when it is needed."""

    name: str
    body: Callable[[], bytes]
    properties: Mapping[str, Any] = {}


def filled(unit: bytes, size: int, head: bytes = b"", tail: bytes = b"", between: bytes = b",") -> bytes:
    """As often this unit as fits into so many bytes."""
    count = (size - len(head) - len(tail)) // (len(unit) + len(between))
    return head + between.join([unit] * count) + tail


def nested(depth: int, size: int) -> bytes:
    """A list of values that nest so deep, one after the other."""
    return filled(b"[" * depth + b"]" * depth, size, b"[", b"]")


def counted(form: str, size: int, head: bytes, tail: bytes) -> bytes:
    """As `filled`, where each unit is another one."""
    units = [form % n for n in range(size // (len(form % 0) + 1))]
    text = ",".join(units).encode()[: size - len(head) - len(tail)]
    return head + text[: text.rfind(b",")] + tail


VALUES: Mapping[str, Callable[[int], bytes]] = {
    "empty lists": lambda n: filled(b"[]", n, b"[", b"]"),
    "empty objects": lambda n: filled(b"{}", n, b"[", b"]"),
    "digits": lambda n: filled(b"1", n, b"[", b"]"),
    "literals": lambda n: filled(b"null", n, b"[", b"]"),
    "empty strings": lambda n: filled(b'""', n, b"[", b"]"),
    "short strings": lambda n: counted('"%x"', n, b"[", b"]"),
    "equal strings": lambda n: filled(b'"u"', n, b"[", b"]"),
    "long strings": lambda n: counted('"' + "u" * 120 + '%06x"', n, b"[", b"]"),
    "non-ASCII strings": lambda n: filled('"éé"'.encode(), n, b"[", b"]"),
    "escaped strings": lambda n: filled(rb'"\n"', n, b"[", b"]"),
    "spaces between": lambda n: filled(b"1 ", n, b"[", b"]", b" , "),
    "floats": lambda n: filled(b"1e9", n, b"[", b"]"),
    "long floats": lambda n: filled(b"1.2345678901234567890123e-300", n, b"[", b"]"),
    "members without a name": lambda n: filled(b'"":1', n, b"{", b"}"),
    "members": lambda n: counted('"%x":1', n, b"{", b"}"),
    "members with escaped names": lambda n: counted('"\\u00e9%x":""', n, b"{", b"}"),
    "ids again and again": lambda n: filled(b'"id":"p1"', n, b"{", b"}"),
    "objects": lambda n: filled(b'{"":[{}]}', n, b"[", b"]"),
    "128 levels": lambda n: nested(127, n),
    "129 levels": lambda n: nested(128, n),
    "400 levels": lambda n: nested(400, n),
    "900 levels": lambda n: nested(900, n),
    "2 levels": lambda n: nested(2, n),
    "129 levels, all names": lambda n: filled(b'{"":' * 129 + b"1" + b"}" * 129, n, b"[", b"]"),
    "as deep as it is long": lambda n: b"[" * (n // 2) + b"]" * (n // 2),
    "deep on and on": lambda n: b"[" * 100 + filled(b"[]", n - 200) + b"]" * 100,
    "a string": lambda n: b'"' + b"a" * (n - 2) + b'"',
    "a string of escapes": lambda n: b'"' + rb"\n" * ((n - 2) // 2) + b'"',
    "a string of escaped quotes": lambda n: b'"' + rb"\"" * ((n - 2) // 2) + b'"',
    "a string of backslashes": lambda n: b'"' + rb"\\" * ((n - 2) // 2) + b'"',
    "a string of escaped letters": lambda n: b'"' + rb"\u0061" * ((n - 2) // 6) + b'"',
    "a string of surrogates": lambda n: b'"' + rb"\ud83d\ude00" * ((n - 2) // 12) + b'"',
    "a string of zeros": lambda n: b'"' + rb"\u0000" * ((n - 2) // 6) + b'"',
    "a string of 2-byte characters": lambda n: b'"' + "é".encode() * ((n - 2) // 2) + b'"',
    "a string of 4-byte characters": lambda n: b'"' + "🎉".encode() * ((n - 2) // 4) + b'"',
    "a string of brackets": lambda n: b'"' + b"[{" * ((n - 2) // 2) + b'"',
    "a number": lambda n: b"1" * n,
    "a fraction": lambda n: b"0." + b"1" * (n - 2),
    "a negative number": lambda n: b"-" + b"9" * (n - 1),
    "spaces": lambda n: b" " * (n - 1) + b"1",
    "lines": lambda n: b"\n" * (n - 2) + b"[]",
}
"""JSON values of about so many bytes."""

REQUEST = b'{"id":"p1","to":{"user":"u1"},"data":1'

PLACES: Mapping[str, Callable[[bytes], bytes]] = {
    "as the body": lambda v: v,
    "as data": lambda v: b'{"id":"p1","to":{"user":"u1"},"data":%b}' % v,
    "as data beside a wrong field": lambda v: REQUEST[:-1] + b'%b,"wrong":1}' % v,
    "as data beside a wrong value": lambda v: REQUEST[:-1] + b'%b,"confirm":"seen"}' % v,
    "as data beside no target": lambda v: b'{"data":%b}' % v,
    "as data beside a wrong name in `to`": lambda v: b'{"to":{"usr":1},"data":%b}' % v,
    "as data twice": lambda v: REQUEST + b',"data":%b}' % v,
    "as `to`": lambda v: b'{"to":%b,"data":1}' % v,
    "as users": lambda v: b'{"to":{"users":%b},"data":1}' % v,
    "as users beside except": lambda v: b'{"to":{"except":["s"],"users":%b},"data":1}' % v,
    "as users, the last one wrong": lambda v: b'{"to":{"users":%b,5]},"data":1}' % v[:-1],
    "as users beside a wrong value": lambda v: b'{"to":{"users":%b},"data":1,"event":5}' % v,
    "as users of a `to` that does not count": lambda v: b'{"to":{"users":%b},"to":{"user":"u"},"data":1}' % v,
    "as user": lambda v: b'{"to":{"user":%b},"data":1}' % v,
    "as except": lambda v: b'{"to":{"user":"u","except":%b},"data":1}' % v,
    "as all": lambda v: b'{"to":{"all":%b},"data":1}' % v,
    "as what `to` does not know": lambda v: b'{"to":{"user":"u","x":%b},"data":1}' % v,
    "as id": lambda v: b'{"to":{"user":"u"},"data":1,"id":%b}' % v,
    "as tenant beside a wrong field": lambda v: b'{"to":{"user":"u"},"data":1,"tenant":%b,"x":1}' % v,
    "as confirm": lambda v: b'{"to":{"user":"u"},"data":1,"confirm":%b}' % v,
    "as ttl": lambda v: b'{"to":{"user":"u"},"data":1,"ttl":%b}' % v,
    "as ack_within": lambda v: b'{"to":{"user":"u"},"data":1,"ack_within":%b}' % v,
    "as meta": lambda v: REQUEST + b',"meta":%b}' % v,
    "as a value of meta": lambda v: REQUEST + b',"meta":{"k":%b}}' % v,
    "as a value of meta that does not count": lambda v: REQUEST + b',"meta":{"k":%b,"k":"v"}}' % v,
    "as a wrong field": lambda v: REQUEST + b',"wrong":%b}' % v,
    "as a wrong field, first": lambda v: b'{"wrong":%b,' % v + REQUEST[1:] + b"}",
    "as a name": lambda v: REQUEST + b",%b:1}" % v,
    "as members": lambda v: REQUEST + b",%b}" % v[1:-1],
    "as members, then a wrong field": lambda v: REQUEST + b',%b,"wrong":1}' % v[1:-1],
    "as the elements of a batch": lambda v: b"[%b]" % v[1:-1],
    "as the only element of a batch": lambda v: b"[%b]" % v,
    "as the last element of a batch": lambda v: b"[%b}," % REQUEST * 10 + b"%b]" % v,
    "as data of the last element of a batch": lambda v: b"[%b},%b%b}]" % (REQUEST, REQUEST[:-1], v),
    "as data of the last element of a batch, which is wrong": lambda v: (
        b'[%b},%b%b,"wrong":1}]' % (REQUEST, REQUEST[:-1], v)
    ),
}
"""Where a value may stand."""

DAMAGES: Mapping[str, Callable[[bytes], bytes]] = {
    "": lambda b: b,
    ", cut": lambda b: b[:-1],
    ", cut in the middle": lambda b: b[: len(b) // 2],
    ", without JSON at its end": lambda b: b[:-1] + b",NaN" + b[-1:],
    ", with a lone surrogate at its end": lambda b: b[:-1] + rb',"\ud800"' + b[-1:],
    ", without UTF-8 at its end": lambda b: b[:-1] + b',"\xff"' + b[-1:],
    ", with one bracket too many": lambda b: b + b"]",
    ", with a quote too many": lambda b: b[:-1] + b'"' + b[-1:],
    ", behind a byte order mark": lambda b: b"\xef\xbb\xbf" + b,
}

ROOM = MESSAGE_BYTES_MAX - 1024


@cache
def large(what: str) -> bytes:
    """This value, as large as it may be in a message."""
    return VALUES[what](ROOM)


def changed(body: Callable[[], bytes], change: Callable[[bytes], bytes]) -> bytes:
    """This body, put somewhere or damaged."""
    return change(body())


def requests() -> Iterator[Costly]:
    """Every value in every place."""
    for what in VALUES:
        for where, place in PLACES.items():
            yield Costly(f"{what} {where}", partial(changed, partial(large, what), place))


def damaged() -> Iterator[Costly]:
    """The same, damaged in every way."""
    for whole in requests():
        for how, damage in DAMAGES.items():
            if how:
                yield Costly(whole.name + how, partial(changed, whole.body, damage))


def batches() -> Iterator[Costly]:
    """As many elements as there may be, each as large as it may be then."""
    size = MESSAGE_BYTES_MAX // BATCH_MAX - 4

    def batch(value: Callable[[int], bytes], place: Callable[[bytes], bytes], last: bytes) -> bytes:
        element = place(value(size - len(place(b"[]"))))
        return b"[%b]" % b",".join([element] * (BATCH_MAX - 1) + [last or element])

    for what, value in VALUES.items():
        for where, place in PLACES.items():
            for how, last in (("", b""), (", the last one broken", b'{"id":"p1","to":NaN}')):
                yield Costly(f"1,000 times {what} {where}{how}", partial(batch, value, place, last))
    for many in (BATCH_MAX, BATCH_MAX + 1, 10 * BATCH_MAX):
        for element in (
            *(b"5", b"{}", b"[]", b'""', b'{"to":1}', b'{"id":7}'),
            *(REQUEST + b"}", REQUEST + b',"x":1}'),
        ):
            yield Costly(
                f"{many} times {element.decode()}",
                partial(filled, element, many * (len(element) + 1) + 2, b"[", b"]"),
            )


def with_headers() -> Iterator[Costly]:
    """Data with headers, and anything with many or large headers."""
    size = HEADERS_BYTES
    tables: dict[str, dict[str, object]] = {
        "many headers": {f"{n:x}": None for n in range(size // 5)},
        "many headers with numbers": {f"{n:x}": n / 7 for n in range(size // 13)},
        "many headers for us": {f"x-push-{n:x}": None for n in range(size // 14)},
        "many headers of brokers": {f"x-opt-{n:x}": None for n in range(size // 13)},
        "a list of nothing": {"x": [None] * size},
        "a list of floats": {"x": [n / 7 for n in range(size // 5)]},
        "a list of texts": {"x": ["é"] * (size // 7)},
        "a text": {"x": "é" * (size // 2)},
        "bytes": {"x": b"\xff" * size},
        "an int that is no AMQP": {"x": 10**400, **{f"{n:x}": n / 7 for n in range(size // 13)}},
        "users with commas": {"x-push-users": ",".join("u" * (size // 2))},
        "users with commas, the last one wrong": {"x-push-users": ",".join("u" * (size // 2)) + ","},
        "users with commas, all other": {"x-push-users": ",".join(f"{n:x}" for n in range(size // 6))},
        "users with spaces": {"x-push-users": " " * size + "u"},
        "a list of users": {"x-push-users": [f"{n:x}" for n in range(size // 10)]},
        "a list of equal users": {"x-push-users": ["u"] * (size // 6)},
        "a list of users, the last one wrong": {"x-push-users": [*["u"] * (size // 6), 5]},
        "a long list to except": {"x-push-user": "u", "x-push-except": ["u"] * (size // 6)},
        "a long user": {"x-push-user": "é" * (size // 2)},
        "a long ttl": {"x-push-user": "u", "x-push-ttl": "1" * size},
        "a long time": {"x-push-user": "u", "x-push-published-ms": "1" * size},
        "a long id": {"x-push-user": "u", "x-push-id": "\u2028" * (size // 3)},
        "a long trace": {"traceparent": "0" * size},
        "a large meta": {"x-push-user": "u", "x-push-meta": {f"{n:x}": "v" for n in range(size // 9)}},
        "a meta with a long value": {"x-push-user": "u", "x-push-meta": {"k": "é" * (size // 2)}},
        "a good user": {"x-push-user": "u"},
        "a good user and a wrong id": {"x-push-user": "u", "x-push-id": 5},
    }
    bodies = {
        "1,000 wrong elements": b"[%b]" % b",".join([b"5"] * BATCH_MAX),
        "no JSON": b"\xff",
        "a request": REQUEST + b"}",
    }
    for what, headers in tables.items():
        for beside, body in bodies.items():
            yield Costly(f"{what} beside {beside}", partial(bytes, body), {"headers": headers})
    for what in VALUES:
        for how, damage in DAMAGES.items():
            for kind in ("", "application/json", "text/plain", "image/png"):
                yield Costly(
                    f"{what}{how}, sent as {kind or 'nothing'}",
                    partial(changed, partial(large, what), damage),
                    {"headers": {"x-push-user": "u"}, "content_type": kind},
                )
        yield Costly(f"{what}, said to be zipped", partial(large, what), {"content_encoding": "gzip"})
