"""What records are found under: as stored, no two values look alike, and all are in order."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum import InvalidArgument, keys
from kvorum.patterns import Index, Unique
from kvorum.patterns.indexes import IndexValue, Schema, encode

TEXTS = st.text(max_size=6)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
TIMES = st.datetimes(timezones=st.just(UTC))
PARTS = st.one_of(TEXTS, INTEGERS, TIMES)
VALUES = st.one_of(PARTS, st.lists(PARTS, min_size=1, max_size=3).map(tuple))


def stored(value: object) -> bytes:
    return encode(value, "any").encode()


@given(VALUES, VALUES)
def test_no_two_values_look_alike(one: IndexValue, other: IndexValue) -> None:
    def parts(value: IndexValue) -> object:
        return (value,) if isinstance(value, int | datetime) else value

    same = stored(one) == stored(other)
    if isinstance(one, str) == isinstance(other, str):
        assert same == (parts(one) == parts(other))
    else:  # text that begins with NUL is stored like a tuple of it alone
        text, rest = (one, other) if isinstance(one, str) else (other, one)
        assert isinstance(text, str)
        assert not same or (text.startswith("\0") and rest == (text,))


@given(
    st.one_of(*(st.tuples(kind, kind) for kind in (INTEGERS, TIMES, st.tuples(TEXTS, INTEGERS))))
)
def test_values_of_one_type_sort_as_in_the_program(pair: tuple[Any, Any]) -> None:
    one, other = pair
    assert (stored(one) < stored(other)) == (one < other)


@given(TEXTS, TEXTS)
def test_text_sorts_as_text(one: str, other: str) -> None:
    if one.startswith("\0") == other.startswith("\0"):
        assert (stored(one) < stored(other)) == (one < other)


def test_text_is_stored_so_that_it_can_be_read() -> None:
    assert encode("alice@example.org: 100%", "email") == "alice@example.org: 100%"
    assert encode(41, "age") == "\0" + keys.ordered(41)


@given(st.lists(st.tuples(TEXTS, INTEGERS), max_size=8), TEXTS)
def test_a_prefix_of_a_tuple_is_of_whole_values(tuples: list[tuple[str, int]], first: str) -> None:
    schema = Schema("a", {"i": Index(("x", "y"))})
    selected = schema.selection("i", prefix=(first,))
    found = [
        one
        for one in tuples
        if selected["start"].encode() <= stored(one) < selected["end"].encode()
    ]
    assert found == [one for one in tuples if one[0] == first]


@pytest.mark.parametrize(
    "value",
    [None, True, 1.5, b"x", 2**63, datetime(2026, 1, 1), (), ("a", None), ("a", ("b",))],  # noqa: DTZ001 - it is refused
)
def test_what_is_no_index_value_is_refused_and_not_shown(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="the index 'age' has text") as raised:
        encode(value, "age")
    assert str(2**63) not in str(raised.value)


@dataclass
class Person:
    name: str
    city: str | None = None


def places(index: Index, value: object) -> list[IndexValue]:
    return [place.value for place in Schema("a", {"i": index}).places(value)]


def test_what_a_record_is_found_under() -> None:
    for value in ({"name": "ann", "city": None}, Person("ann")):
        assert places(Index("name"), value) == ["ann"]
        assert places(Index("city"), value) == []
        assert places(Index(("city", "name")), value) == []
    both = {"name": "ann", "city": "Rome"}
    assert places(Index(("city", "name")), both) == [("Rome", "ann")]
    assert places(Index(lambda one: len(one["name"])), both) == [3]
    assert places(Index(lambda one: ["a", "b", "a"]), both) == ["a", "b"]
    assert places(Index(lambda one: ("a", "b")), both) == [("a", "b")]
    assert places(Index("tags"), {"tags": ["x", "y"]}) == ["x", "y"]
    assert places(Index("tags"), {}) == []


def test_an_object_without_the_field_is_a_mistake() -> None:
    for value in (Person("ann"), "text", None, 5):
        with pytest.raises(InvalidArgument, match="by the field 'mail'"):
            places(Unique("mail"), value)


@pytest.mark.parametrize("by", ["", (), ("a", ""), 5, None])
def test_an_index_is_by_something(by: Any) -> None:
    with pytest.raises(InvalidArgument):
        Schema("a", {"i": Index(by)})


@pytest.mark.parametrize("name", ["", "a:b", "50%", "collection"])
def test_a_collection_has_a_name_of_its_own(name: str) -> None:
    with pytest.raises(InvalidArgument, match="collection"):
        Schema(name, {})


def test_an_index_is_named_and_defined() -> None:
    wrong: Any = "email"
    with pytest.raises(InvalidArgument, match="an index cannot be named"):
        Schema("a", {"e:mail": Unique("email")})
    with pytest.raises(InvalidArgument, match="not an Index or a Unique"):
        Schema("a", {"email": wrong})
