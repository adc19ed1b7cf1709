"""Keys: built, escaped, parsed, and in the order of what they were made of."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum import InvalidArgument, keys

INTEGERS = st.integers(-(2**63), 2**63 - 1)
TIMES = st.datetimes(timezones=st.just(UTC))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def test_a_key_is_made_of_parts() -> None:
    moment = datetime(2026, 11, 25, 19, 30, 1, 5, tzinfo=timezone(timedelta(hours=1)))
    assert keys.build("user", "123", "profile") == "user:123:profile"
    assert keys.build("event", 42, moment) == "event:b42:20261125T183001.000005Z"
    assert keys.prefix("user") == "user:"
    assert keys.parse(keys.build("user", keys.escape("a:b%"))) == ("user", "a:b%")


@pytest.mark.parametrize("part", ["", "a:b", "a\0b", "50%", "%3a", 2**63, -(2**63) - 1, True, 1.5])
def test_a_part_that_would_be_read_otherwise_is_refused(part: keys.Part) -> None:
    with pytest.raises(InvalidArgument):
        keys.build("user", part)


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="with a zone"):
        keys.build("event", datetime(2026, 1, 1))  # noqa: DTZ001 - it is refused


def test_no_parts_are_no_key() -> None:
    with pytest.raises(InvalidArgument):
        keys.build()
    with pytest.raises(InvalidArgument):
        keys.parse("a::b")
    with pytest.raises(InvalidArgument):
        keys.ordered()


@pytest.mark.parametrize("name", ["", "a:b", "a\0", "%", None, 3])
def test_a_name_is_plain(name: str) -> None:
    with pytest.raises(InvalidArgument, match="a counter"):
        keys.check_name(name, "a counter")


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_escaped_parts_come_back(parts: list[str]) -> None:
    assert keys.parse(keys.build(*map(keys.escape, parts))) == tuple(parts)


@given(INTEGERS, INTEGERS)
def test_integers_sort_as_they_are(one: int, other: int) -> None:
    assert (keys.integer(one) < keys.integer(other)) == (one < other)
    assert keys.parse_integer(keys.integer(one)) == one


@pytest.mark.parametrize("text", ["", "a", "b7", "7", "a07", "aa", "a٣", "s9999999999999999999"])
def test_other_text_is_no_integer(text: str) -> None:
    with pytest.raises(InvalidArgument):
        keys.parse_integer(text)


@given(TIMES, TIMES)
def test_times_sort_as_they_are(one: datetime, other: datetime) -> None:
    assert (keys.time(one) < keys.time(other)) == (one < other)
    assert keys.parse_time(keys.time(one)) == one


@pytest.mark.parametrize("text", ["", "20261125T183001Z", "20261125T183001.5Z", "x"])
def test_other_text_is_no_time(text: str) -> None:
    with pytest.raises(InvalidArgument):
        keys.parse_time(text)


@given(st.tuples(TEXTS, INTEGERS, TIMES), st.tuples(TEXTS, INTEGERS, TIMES))
def test_tuples_sort_as_they_are(
    one: tuple[str, int, datetime], other: tuple[str, int, datetime]
) -> None:
    encoded = keys.ordered(*one).encode(), keys.ordered(*other).encode()
    assert (encoded[0] < encoded[1]) == (one < other)


@pytest.mark.parametrize(
    "moment",
    [
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
    ],
)
def test_a_time_that_utc_does_not_have_is_refused(moment: datetime) -> None:
    with pytest.raises(InvalidArgument, match="in UTC"):
        keys.time(moment)


def test_an_integer_of_very_many_digits_is_none() -> None:
    with pytest.raises(InvalidArgument, match="no integer"):
        keys.parse_integer("a" + "9" * 5_000)


@pytest.mark.parametrize("work", [keys.escape, keys.integer, keys.time])
def test_what_is_given_by_mistake_is_not_shown(work: Callable[[Any], str]) -> None:
    """It may be a record."""
    with pytest.raises(InvalidArgument, match="not dict") as raised:
        work({"password": "secret"})
    assert "secret" not in str(raised.value)
