"""Seeded chance, and requests made with it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from bridge.core.contract.requests import Limits
from bridge.core.contract.requests import headers as of_headers

LIMITS = Limits()
NOW = 1_800_000_000.0
VALUES: Sequence[Any] = (
    *(None, True, False, 0, -1, 1, 2**53, 2**64, 10**30, 0.5, 1e300, math.nan, math.inf, -math.inf),
    *("", "x", "u1", "0", "true", "\x00", "\x1f", "\ud800", "é", "🎉", "x" * 129, "x" * 300),
    *(
        [],
        {},
        [[]],
        [{}],
        ["u1"],
        ["u1", "u1"],
        ["u1", 1],
        [""],
        {"k": "v"},
        {"k": 1},
        {"": ""},
        {"user": "u1"},
    ),
)
IDS = ("u1", "u2", "", "x" * 128, "x" * 129, "a\nb", "é", "🎉", "\x7f", "\x85", "\u2028", "\ud800", "\udc00x")
GOOD_IDS = ("u1", "u2", "p-1", "é", "🎉", "x" * 128, "\u2028", "a b")
WORDS = (
    *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"\xff", b"\x00", b" ", b"NaN", b"-", b"1", b"null"),
    *(b'"id"', b'"to"', b'"user"', b'"data"', b'"p1"', rb'"\ud800"', rb"\u0000", b"[" * 2000, b"]" * 2000),
    *(b'{"to":{"user":"u1"},"data":1}', b'{"id":"p1",', b"\xef\xbb\xbf", "é".encode(), b"\xed\xa0\x80"),
)

_FLAGS = (True, False, 1, 0, "true", "False", "1", "yes")
_ATTRIBUTES: Mapping[str, Sequence[Any]] = {
    **dict.fromkeys(
        ("pushid", "pushevent", "pushtenant", "pushcollapsekey", "pushsession", "pushtopic"), GOOD_IDS
    ),
    **dict.fromkeys(("pushall", "pushretain"), _FLAGS),
    "pushusers": ("u1,u2", "u1", ",", ["u1"]),
    "pushexcept": ("s1, s2", "s1", ["s1"], []),
    "pushconfirm": ("written", "received", "acked", "acked"),
    "pushttl": (0, 60, 0.5, "60", "0.5", LIMITS.max_ttl, -1, "-1", LIMITS.max_ttl + 1),
    "pushackwithin": (1, 0.5, "30", 3600, 0, "0", 3601),
    "pushdevices": ("first", "all", "last"),
    "pushfallbackafter": (1, "60", 0, "0"),
    "pushfallbackkey": ("mail", "a.b", "x" * 256, ""),
    "pushdeliverat": (NOW, NOW + 60, 1, str(int(NOW)), 0.5, 0, NOW * 1000),
    "subject": ("42", "x" * 300, "\x00", 7),
    "time": ("2026-11-29T12:00:00Z", None),
    "datacontenttype": ("application/json", "text/plain", 7),
    "pushmeta": ({"k": "v"},),
    "pushusr": ("u1",),
    "trace": ("own",),
}
"""Attributes of CloudEvents, with values that are right more often than not."""


class Dice:
    """Choices read from bytes that hypothesis makes and shrinks: ten times as quick as its own strategies.

    Low numbers are the simple choices, so that what is left of a failure is simple.
    """

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def roll(self, sides: int) -> int:
        return next(self._data, 0) % sides

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[self.roll(len(choices))]

    def junk(self) -> Any:
        kind = self.roll(8)
        if kind == 6:
            return [self.junk() for _ in range(self.roll(3))]
        if kind == 7:
            return {self.pick(IDS): self.junk() for _ in range(self.roll(3))}
        return self.pick(VALUES)

    def id(self) -> Any:
        kind = self.roll(12)
        return self.pick(IDS) if kind == 10 else self.junk() if kind == 11 else self.pick(GOOD_IDS)

    def ids(self) -> Any:
        return [self.id() for _ in range(self.roll(4))] if self.roll(8) < 7 else self.junk()

    def target(self) -> Any:
        kind = self.roll(16)
        if kind == 15:
            return self.junk()
        to: dict[str, Any] = {}
        if kind < 5 or kind == 14:
            to["user"] = self.id()
        elif kind < 9:
            to["users"] = self.ids()
        elif kind < 11:
            to["session"] = self.id()
        elif kind < 13:
            to["all"] = self.pick((True, True, True, True, False, 1))
        if kind >= 13:
            to[self.pick(("topic", "x", "user", "users", "session", "all"))] = self.id()
        if self.roll(4) == 3:
            to["except"] = self.ids()
        return to

    def request(self) -> dict[str, Any]:
        """A request that is right in most points, and every third time in all of them."""
        made: dict[str, Any] = {"to": self.target(), "data": self.junk() if self.roll(2) else 1}
        for field in ("id", "event", "tenant"):
            if self.roll(3) == 2:
                made[field] = self.id()
        for field, right, wrong in (
            ("confirm", ("written", "received", "acked"), ("seen", None, "")),
            (
                "meta",
                ({}, {"k": "v"}, {"é" * 64: "x" * 256}),
                ({"k": "\x00"}, {"k" * 65: ""}, {"k": None}, []),
            ),
            ("ttl", (0, -0.0, 60, 0.5, LIMITS.max_ttl), (-1, True, "0", math.inf, 2592001)),
            (
                "deliver_at",
                (1, 0.5, NOW, NOW + 60, NOW + LIMITS.max_ttl),
                (0, -1, True, "1", math.inf, NOW + LIMITS.max_ttl + 10, NOW * 1000),
            ),
        ):
            kind = self.roll(16)
            if kind > 10:
                made[field] = self.pick(right if kind < 14 else wrong if kind == 14 else VALUES)
        if self.roll(6) == 5:
            made["collapse_key"] = self.id()
        if self.roll(6) == 5:
            made["ack_within"] = self.pick((1, 0.5, 3600, 3600, 0, -1, 3600.5, True, "1", math.inf))
            made["confirm"] = self.pick(("acked", "acked", "received"))
        if self.roll(6) == 5:
            made["devices"] = self.pick(("first", "all", "first", "last", "", None, True))
            made["confirm"] = self.pick(("acked", "acked", "received"))
        if self.roll(6) == 5:
            made["retain"] = self.pick((True, False, True, 1, "true", None))
        if self.roll(6) == 5:
            made["fallback"] = self.fallback()
        if self.roll(16) == 15:
            made[self.pick(("x", "", "\n", "user"))] = self.junk()
        if self.roll(24) == 23:
            del made[self.pick(("data", "to"))]
        return made

    def fallback(self) -> Any:
        if self.roll(8) == 7:
            return self.junk()
        made: dict[str, Any] = {
            "after": self.pick((1, 0.5, 60, LIMITS.max_ttl, 0, -1, "1", True, math.inf, LIMITS.max_ttl + 1)),
            "routing_key": self.pick(("mail", "a.b", "é", "x" * 255, "x" * 256, "", "a\n", 7, None)),
        }
        if self.roll(8) == 7:
            made[self.pick(("x", "after ", "routing_key"))] = self.junk()
        if self.roll(8) == 7:
            del made[self.pick(("after", "routing_key"))]
        return made

    def event(self) -> dict[str, Any]:
        """A structured CloudEvent that is right in most points."""
        made: dict[str, Any] = {"specversion": "1.0", "id": "A-1", "source": "/shop", "type": "order.paid"}
        for name in made:
            kind = self.roll(24)
            if kind > 21:
                made[name] = self.pick(IDS) if kind == 22 else self.junk()
        if self.roll(3):
            made["data"] = self.junk()
        elif self.roll(2):
            made["data_base64"] = self.pick(("AAE=", "AA==", "", "AAAA", "A", "?", None, 7))
        target = self.pick(("pushuser", "pushuser", "pushuser", "pushsession", "pushtopic", "pushall"))
        made[target] = True if target == "pushall" else self.id()
        for _ in range(max(0, self.roll(8) - 3)):
            name = self.pick(tuple(_ATTRIBUTES))
            made[name] = self.pick(_ATTRIBUTES[name]) if self.roll(4) else self.pick(VALUES)
            if name in ("pushackwithin", "pushdevices") and self.roll(4):
                made["pushconfirm"] = "acked"
        if self.roll(16) == 15:
            del made[self.pick(tuple(made))]
        return made

    def control(self) -> dict[str, Any]:
        """A control message that is right in most points."""
        forms = (("push_id",), ("user", "collapse_key"), ("user", "collapse_key", "push_id"), ("user",), ())
        if self.roll(3) == 2:
            return self._revocation()
        made: dict[str, Any] = {"type": "recall"}
        for field in self.pick((forms[0], forms[1], forms[0], forms[1], *forms)):
            made[field] = self.id()
        if self.roll(3) == 2:
            made["tenant"] = self.id()
        if self.roll(12) == 11:
            made["type"] = self.pick(("revoke", "Recall", "", None, {}))
        if self.roll(12) == 11:
            made[self.pick(("x", "", "\n", "id", "users", "\ud800"))] = self.junk()
        return made

    def _revocation(self) -> dict[str, Any]:
        forms = (("user", "before"), ("jti",), ("session",), ("user",), ("jti", "session"), ())
        made: dict[str, Any] = {"type": "revoke"}
        for field in self.pick((*forms[:3], *forms[:3], *forms)):
            made[field] = self.id()
        if "before" in made:
            made["before"] = self.pick((1, 1_790_000_000, 1.5, 0, -1, 1e13, "1", True, None))
        if self.roll(12) == 11:
            made[self.pick(("x", "tenant", "type"))] = self.junk()
        return made

    def damaged(self) -> bytes:
        """The JSON of a request or a batch, damaged."""
        value = self.request() if self.roll(3) else [self.request() for _ in range(self.roll(4))]
        text = json.dumps(value, ensure_ascii=bool(self.roll(2)))
        return self.damage(text.encode("utf-8", "surrogatepass"))

    def damage(self, text: bytes) -> bytes:
        """This text, changed in a few places and perhaps cut."""
        body = bytearray(text)
        for _ in range(self.roll(4)):
            at = self.roll(256) % len(body)
            body[at : at + self.roll(2)] = self.pick(WORDS) if self.roll(2) else bytes((self.roll(256),))
        return bytes(body[: self.roll(256)] if not self.roll(4) else body)

    def words(self) -> bytes:
        return b"".join(self.pick(WORDS) for _ in range(self.roll(12)))

    def header(self) -> Any:
        odd = (
            b"u1",
            [b"u1"],
            "u1,u2",
            ",",
            "1799999999000",
            "60",
            "0.5",
            "acked",
            10**400,
            {"a": {"b": [None]}},
        )
        return self.pick((IDS, odd, VALUES)[self.roll(3)])

    def headers(self) -> dict[str, Any]:
        names = (*of_headers.FIELD_OF, *of_headers.BOTH_MODES, "x-push-", "traceparent", "x-death", "\n", "é")
        return {self.pick(names): self.header() for _ in range(max(0, self.roll(8) - 4))}

    def properties(self) -> dict[str, Any]:
        made: dict[str, Any] = {}
        types = (
            *("application/json", "text/plain", "text/x; charset=latin1", "image/png", ";", "+json", "\n"),
            *("application/cloudevents+json", "application/cloudevents-batch+json"),
        )
        for name, choices in (
            ("message_id", IDS),
            ("correlation_id", IDS),
            ("reply_to", IDS),
            ("content_type", types),
            ("content_encoding", ("utf-8", "gzip", "\n")),
            ("timestamp", (1.0, -1.0, 0.0, NOW * 1000, 1e300, math.nan, math.inf)),
        ):
            if self.roll(8) == 7:
                made[name] = self.pick(choices)
        return {**made, "headers": self.headers()}


DICE = st.binary(min_size=64, max_size=64).map(Dice)
