"""The fields of a push request that may take long to read, a piece at a time: `to.users`, `to.except` and `meta`."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from bridge.core.contract import jsonparts
from bridge.core.contract.fields import Id, checked_id, is_id, kind, raised
from bridge.core.contract.jsontext import BAD_JSON, ArrayText, ObjectText, encode, shallow_value, shown
from bridge.core.contract.stepping import AT_ONCE, Steps
from bridge.core.errors import PROBLEMS_MAX, InvalidRequest, together
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import META_KEY_CHARS, META_KEYS_MAX, META_VALUE_CHARS, USERS_MAX

LISTS: Final = frozenset(("to.users", "to.except", "meta"))
"""Fields that may take long to read."""
_decode_ids = msgspec.json.Decoder(list[Id]).decode
_decode_meta = msgspec.json.Decoder(
    dict[
        Annotated[str, msgspec.Meta(max_length=META_KEY_CHARS)],
        Annotated[str, msgspec.Meta(max_length=META_VALUE_CHARS)],
    ]
).decode

_IDS_AT_ONCE = 1000
# Postgres' jsonb takes no U+0000.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class CommaText(NamedTuple):
    """A header that is a list: its items are between the commas."""

    text: str


class _Pause(enum.Enum):
    """Comes between the items of a list that takes long to read."""

    PAUSE = 0


_PAUSE: Final = _Pause.PAUSE


def read_lists(values: dict[str, object], path: Callable[[str], str]) -> Steps[None]:
    """Replace the values of `LISTS` by checked ones; raises InvalidRequest.

    They become tuples of ids without repetitions, and the JSON of `meta`. All of them are read, and as many wrong parts
    of each are named as a rejection has room for.
    """
    wrong: list[InvalidRequest] = []
    uncounted, stopped = 0, False
    for field in ("to.users", "to.except", "meta"):
        if field in values:
            read = _meta if field == "meta" else _ids
            try:
                values[field] = yield from read(values[field], path(field))
                if field == "to.users" and not values[field]:
                    raise InvalidRequest(
                        Reason.INVALID, path(field), "expected at least one, got an empty list"
                    )
            except InvalidRequest as error:
                wrong += error.each
                uncounted += error.uncounted
                stopped |= error.stopped
    if wrong:
        raise together(wrong, uncounted, stopped=stopped)


def compact_meta(text: bytes) -> bytes | None:
    """The JSON of `meta` in its shortest form, without needless spaces and escapes and without repeated keys.

    None where something may be wrong: then each member must be checked.
    """
    # Where a key occurs twice, the decoder checks all values, except for this character, and keeps the last.
    if len(text) > AT_ONCE or b"\\u0000" in text:
        return None
    try:
        meta = _decode_meta(text)
    except BAD_JSON:
        return None
    return encode(meta) if len(meta) <= META_KEYS_MAX else None


def _ids(value: object, path: str) -> Steps[tuple[str, ...]]:
    if not isinstance(value, (list, ArrayText, CommaText)):
        raise InvalidRequest(Reason.INVALID, path, f"expected a list of strings, got {kind(value)}")
    ids: dict[str, None] = {}
    wrong: list[InvalidRequest] = []
    index = uncounted = 0
    for item in _items(value):
        if item is _PAUSE:
            yield
            continue
        if isinstance(item, str) and is_id(item):
            ids[item] = None
        elif len(wrong) < PROBLEMS_MAX:
            wrong += raised(checked_id, item, f"{path}[{index}]")
        elif index < _IDS_AT_ONCE:
            uncounted += 1
        else:
            raise together(wrong, uncounted + 1, stopped=True)
        index += 1
        if index % _IDS_AT_ONCE == 0:
            yield
    if wrong:
        raise together(wrong, uncounted)
    if len(ids) > USERS_MAX:
        raise InvalidRequest(Reason.TOO_MANY, path, f"expected at most {USERS_MAX}, got {len(ids)}")
    return tuple(ids)


def _items(given: list[object] | ArrayText | CommaText) -> Iterator[object]:
    """The items of a list, with a `_PAUSE` now and then."""
    if isinstance(given, list):
        yield from given
    elif isinstance(given, CommaText):
        yield from _between_commas(given.text)
    elif jsonparts.is_small(given.text, b","):
        try:
            ids: list[object] = [*_decode_ids(given.text)]
        except BAD_JSON:
            yield _PAUSE
            yield from _values(given.text)
        else:
            yield _PAUSE
            yield from ids
    else:
        yield from _values(given.text)


def _values(array: bytes) -> Iterator[object]:
    for element in jsonparts.elements(array):
        yield _PAUSE if element is None else shallow_value(element)


def _between_commas(text: str) -> Iterator[str]:
    at = 0
    while (comma := text.find(",", at)) >= 0:
        yield text[at:comma].strip()
        at = comma + 1
    yield text[at:].strip()


def _meta(value: object, path: str) -> Steps[bytes]:
    """The JSON of an object of at most 16 short strings, without repeated keys; raises InvalidRequest."""
    if not isinstance(value, (dict, ObjectText)):
        raise InvalidRequest(Reason.INVALID, path, f"expected an object, got {kind(value)}")
    meta = compact_meta(value.text) if isinstance(value, ObjectText) else None
    if meta is not None:
        return meta
    kept: dict[str, str] = {}
    for members in _looks_at(value):
        wrong: dict[str, InvalidRequest] = {}
        names: set[str] = set()
        for member in members:
            if member is _PAUSE:
                yield
                continue
            key, text = member
            names.add(str(key))
            problem = _meta_problem(key, text)
            if problem:
                place = f"{path}.{shown(str(key))}"
                wrong.setdefault(place, InvalidRequest(Reason.INVALID, place, problem))
            elif isinstance(key, str) and isinstance(text, str):
                kept[key] = text
            if len(names) > META_KEYS_MAX:
                many = InvalidRequest(
                    Reason.INVALID, path, f"expected at most {META_KEYS_MAX} keys, got more"
                )
                raise together([many, *wrong.values()], stopped=bool(wrong))
        if wrong:
            raise together([*wrong.values()])
    return encode(kept)


def _meta_problem(key: object, text: object) -> str:
    """What is wrong with a member of `meta`; empty where nothing is."""
    if not isinstance(key, str) or len(key) > META_KEY_CHARS or _UNSTORABLE.search(key):
        return f"expected a key of at most {META_KEY_CHARS} characters, none of them U+0000"
    if not isinstance(text, str) or len(text) > META_VALUE_CHARS or _UNSTORABLE.search(text):
        got = f"{len(text)} characters" if isinstance(text, str) else kind(text)
        return f"expected a string of at most {META_VALUE_CHARS} characters, none of them U+0000, got {got}"
    return ""


def _looks_at(
    meta: dict[object, object] | ObjectText,
) -> Iterator[Iterable[tuple[object, object] | Literal[_Pause.PAUSE]]]:
    """The members of `meta`: first those of a small one as the decoder reads it, then all, also those that a later
    member with the same key replaces, with a `_PAUSE` now and then."""
    if isinstance(meta, dict):
        yield meta.items()
        return
    if len(meta.text) <= AT_ONCE:
        # This finds most mistakes.
        try:
            glance = [
                (key, shallow_value(bytes(text))) for key, text in jsonparts.decode_members(meta.text).items()
            ]
        except RecursionError:
            pass
        else:
            yield glance
    yield (
        _PAUSE if member is None else (member[0], shallow_value(member[1]))
        for member in jsonparts.members(meta.text)
    )
