"""Which names a pattern permits, and which claims are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.core.contract.patterns import (
    CLAIMED_MAX,
    Claimed,
    claimed,
    name_problem,
    pattern_problem,
    permits,
)
from bridge.core.errors import InvalidClaim

WORD = st.text("abc-:@é ", min_size=1, max_size=3)
NAME = st.lists(WORD, min_size=1, max_size=4).map(".".join)
USER = st.one_of(
    NAME, st.text("ab.*#{}", min_size=1, max_size=6), st.sampled_from(["{user}", "*", "#", "a.#"])
)
PATTERN = st.builds(
    lambda words, rest: ".".join([*words, *rest]),
    st.lists(st.one_of(WORD, st.sampled_from(["*", "{user}"])), min_size=1, max_size=4),
    st.sampled_from([[], ["#"]]),
)


@pytest.mark.parametrize(
    ("pattern", "name", "yes"),
    [
        ("room.7", "room.7", True),
        ("room.7", "room.8", False),
        ("room.7", "room.7.typing", False),
        ("room.*", "room.7", True),
        ("room.*", "room", False),
        ("room.*", "room.7.typing", False),
        ("*", "room", True),
        ("*.typing", "room.typing", True),
        ("#", "room", True),
        ("#", "room.7.typing", True),
        ("room.#", "room", True),
        ("room.#", "room.7.typing", True),
        ("room.#", "rooms.7", False),
        ("room.*.#", "room", False),
        ("room.*.#", "room.7", True),
        ("user.{user}", "user.ann", True),
        ("user.{user}", "user.bob", False),
        ("user.{user}", "user.{user}", False),
        ("{user}.#", "ann.notes.1", True),
    ],
)
def test_a_pattern_permits(pattern: str, name: str, yes: bool) -> None:
    assert not pattern_problem(pattern)
    assert permits([pattern], name, "ann") is yes
    assert permits(["other", pattern], name, "ann") is yes


def test_no_patterns_permit_nothing() -> None:
    assert not permits((), "room", "ann")


@pytest.mark.parametrize("user", ["*", "#", "a.b", "a.#", "*.b", "{user}", ".", "a.", "..", "{user}.#"])
@pytest.mark.parametrize("pattern", ["{user}", "{user}.#", "{user}.*", "x.{user}", "x.{user}.y.#"])
@given(name=NAME)
@example(name="a.b")
@example(name="x.a.b")
@example(name="a.b.c")
def test_a_user_id_that_is_no_word_is_given_nothing_by_user(user: str, pattern: str, name: str) -> None:
    assert not permits([pattern], name, user)


@given(PATTERN, NAME, USER, USER)
def test_what_user_permits_to_one_user_it_permits_to_no_other(
    pattern: str, name: str, one: str, other: str
) -> None:
    if one != other and "{user}" in pattern.split("."):
        assert not (permits([pattern], name, one) and permits([pattern], name, other))


@given(PATTERN, NAME, USER)
@example("#", "a", "a")
@example("a.#", "a", "a")
def test_permits_as_the_same_regular_expression_does(pattern: str, name: str, user: str) -> None:
    parts: list[str] = []
    for word in pattern.split("."):
        if word == "#":
            parts.append(r"(\.[^.]+)*" if parts else r"[^.]+(\.[^.]+)*")
            continue
        if word == "*":
            one = "[^.]+"
        else:
            one = re.escape(user if word == "{user}" else word)
            if word == "{user}" and "." in user:
                one = "(?!)"
        parts.append((r"\." if parts else "") + one)
    assert permits([pattern], name, user) == bool(re.fullmatch("".join(parts), name, re.DOTALL))


@given(st.one_of(NAME, st.text("ab.*#{}\x00", max_size=8)))
def test_a_name_is_a_pattern_that_permits_itself(text: str) -> None:
    if not name_problem(text):
        assert not pattern_problem(text)
        assert permits([text], text, "anybody")


@given(PATTERN)
def test_every_pattern_of_these_words_is_taken(pattern: str) -> None:
    assert not pattern_problem(pattern)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (7, "a number"),
        (None, "null"),
        (["a"], "a list"),
        ("", "0 characters"),
        ("x" * 129, "129 characters"),
        ("a\nb", "a control character"),
        ("a..b", "an empty word"),
        (".a", "an empty word"),
        ("a.", "an empty word"),
        ("a*", "a word with *, #, { or } in it"),
        ("room-#", "a word with *, #, { or } in it"),
        ("{uid}", "a word with *, #, { or } in it"),
        ("x{user}", "a word with *, #, { or } in it"),
    ],
)
def test_what_is_neither_a_name_nor_a_pattern_is_told_with_what_was_expected(value: object, got: str) -> None:
    for problem in (name_problem(value), pattern_problem(value)):
        assert problem.startswith("expected a ")
        assert problem.endswith(f"words with dots between them, got {got}")


@pytest.mark.parametrize("value", ["*", "#", "{user}", "room.*", "room.#"])
def test_a_name_has_no_wildcards(value: str) -> None:
    assert not pattern_problem(value)
    assert name_problem(value)


@pytest.mark.parametrize("value", ["#.a", "a.#.b", "#.#"])
def test_the_rest_is_at_the_end(value: str) -> None:
    assert pattern_problem(value).endswith("# only as the last one, got # before the end")


def test_claims_are_read_and_what_is_missing_is_empty() -> None:
    assert claimed({}) == Claimed()
    assert claimed({"topics": None, "other": 1}) == Claimed()
    assert claimed({"topics": ["a", "a", "b.c"], "subscribe": ["a.*"], "publish": []}) == Claimed(
        ("a", "b.c"), ("a.*",), ()
    )
    most = [f"t{n}" for n in range(CLAIMED_MAX)]
    assert claimed({"publish": most}).publish == tuple(most)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"topics": "a"}, "topics: expected a list of strings, got a string"),
        ({"subscribe": {"a": 1}}, "subscribe: expected a list of strings, got an object"),
        ({"publish": True}, "publish: expected a list of strings, got true"),
        ({"publish": ["a"] * 101}, "publish: expected at most 100 entries, got 101"),
        (
            {"topics": ["a", "room.*"]},
            "topics[1]: expected a name of at most 128 characters: words with dots between them,"
            " got a word with *, #, { or } in it",
        ),
        (
            {"publish": ["a", 7]},
            "publish[1]: expected a pattern of at most 128 characters: words with dots between them, got a number",
        ),
    ],
)
def test_a_claim_that_can_not_be_used_is_named(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidClaim) as caught:
        claimed(said)
    assert str(caught.value) == problem
