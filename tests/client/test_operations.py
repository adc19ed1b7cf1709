"""What callers may give to operations: what is wrong is said before anything is sent."""

import copy
import json
import math
import pickle
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from kvorum import (
    KV,
    Atomic,
    IndexEntry,
    InvalidArgument,
    KvorumError,
    LimitExceeded,
    RateLimit,
    RateLimitResult,
    RateLimitState,
    Sum,
    limits,
)
from kvorum.backends import Feed
from kvorum.durations import encode_ttl, encode_window
from kvorum.ranges import contains, encode_range, prefix_end
from kvorumpb.v1.kv_pb2 import Call, Reply
from kvorumpb.v1.watch_pb2 import BeginWatch


class Unreachable:
    """A backend that is not to be asked."""

    async def call(self, call: Call, *, timeout_seconds: float) -> Reply:
        raise AssertionError(f"this was sent, with {timeout_seconds} s: {call}")

    def watch(self, begin: BeginWatch, *, timeout_seconds: float) -> Feed:
        raise AssertionError(f"this was begun, with {timeout_seconds} s: {begin}")

    async def close(self) -> None:
        pass


@pytest.fixture
def offline() -> KV:
    return KV(Unreachable(), target="nowhere", timeout=1, type="json")


WRONG_DURATIONS = [0, -1, 0.0009, -math.inf, math.nan, True, "5", [], timedelta(0), timedelta(-1)]
LONG_DURATIONS = [math.inf, 1e300, 101 * 366 * 86_400, timedelta.max]


def operations(kv: KV, ttl: Any) -> list[Callable[[], object]]:
    return [
        lambda: kv.put("a", 1, ttl=ttl),
        lambda: kv.put("a", 1, ttl=ttl, exists=False),
        lambda: kv.add("a", ttl=ttl),
        lambda: kv.touch("a", ttl),
        lambda: kv.atomic().put("a", 1, ttl=ttl),
        lambda: kv.atomic().add("a", ttl=ttl),
        lambda: kv.atomic().touch("a", ttl),
    ]


async def refused(operation: Callable[[], object], error: type[KvorumError]) -> KvorumError:
    """What an operation raises, whether it is awaited or not."""

    async def carry_out() -> None:
        outcome = operation()
        if isinstance(outcome, Awaitable):
            await outcome

    with pytest.raises(error) as raised:
        await carry_out()
    return raised.value


@pytest.mark.parametrize("ttl", WRONG_DURATIONS, ids=repr)
async def test_a_time_to_live_is_a_length_of_time(offline: KV, ttl: Any) -> None:
    for operation in operations(offline, ttl):
        assert "ttl is a number of seconds" in str(await refused(operation, InvalidArgument))
    window = await refused(lambda: offline.rate_limit(RateLimit("a", 1, ttl)), InvalidArgument)
    assert "window is a number of seconds" in str(window)


@pytest.mark.parametrize("ttl", LONG_DURATIONS, ids=repr)
async def test_a_time_to_live_is_bounded(offline: KV, ttl: Any) -> None:
    for operation in operations(offline, ttl):
        error = await refused(operation, LimitExceeded)
        assert error.metadata["limit"] == "MAX_TTL_MS"
        assert int(error.metadata["actual"]) > limits.MAX_TTL_MS
    error = await refused(lambda: offline.rate_limit(RateLimit("a", 1, ttl)), LimitExceeded)
    assert error.metadata["limit"] == "MAX_RATE_WINDOW_MS"


def test_durations_at_their_limits() -> None:
    assert encode_ttl(None) == 0
    assert encode_ttl(0.001) == 1
    assert encode_ttl(1.0004) == 1000
    assert encode_ttl(limits.MAX_TTL_MS / 1000) == limits.MAX_TTL_MS
    assert encode_ttl(timedelta(milliseconds=limits.MAX_TTL_MS)) == limits.MAX_TTL_MS
    assert encode_window(timedelta(minutes=1)) == 60_000
    assert encode_window(limits.MAX_RATE_WINDOW_MS / 1000) == limits.MAX_RATE_WINDOW_MS
    with pytest.raises(LimitExceeded):
        encode_ttl(timedelta(milliseconds=limits.MAX_TTL_MS + 1))
    with pytest.raises(LimitExceeded):
        encode_window(timedelta(milliseconds=limits.MAX_RATE_WINDOW_MS + 1))


async def test_touch_needs_a_time_to_live(offline: KV) -> None:
    touch: Any = offline.touch
    assert "persist" in str(await refused(lambda: touch("a", None), InvalidArgument))


@pytest.mark.parametrize("key", ["", b"", 5, None, "\ud800"], ids=repr)
async def test_a_key_is_a_key_everywhere(offline: KV, key: Any) -> None:
    for operation in (
        lambda: offline.put(key, 1),
        lambda: offline.put(key, 1, exists=False),
        lambda: offline.delete(key),
        lambda: offline.delete(key, revision=1),
        lambda: offline.get_and_delete(key),
        lambda: offline.add(key),
        lambda: offline.touch(key, 1),
        lambda: offline.persist(key),
        lambda: offline.ttl(key),
        lambda: offline.rate_limit(RateLimit(key, 1, 1)),
        lambda: offline.atomic().check(key, exists=True),
        lambda: offline.atomic().put(key, 1),
        lambda: offline.atomic().get(key),
        lambda: offline.atomic().delete(key),
        lambda: offline.atomic().get_and_delete(key),
        lambda: offline.atomic().add(key),
        lambda: offline.atomic().touch(key, 1),
        lambda: offline.atomic().persist(key),
        lambda: offline.atomic().rate_limit(RateLimit(key, 1, 1)),
    ):
        await refused(operation, InvalidArgument)


async def test_what_goes_with_a_value(offline: KV) -> None:
    anything: Any
    for anything in ("text", 5, bytearray(b"x"), []):
        for put in (offline.put, offline.atomic().put):
            error = await refused(partial(put, "a", 1, metadata=anything), InvalidArgument)
            assert "metadata of 'a'" in str(error)
    error = await refused(
        lambda: offline.put("a", 1, metadata=bytes(limits.MAX_METADATA_BYTES + 1)), LimitExceeded
    )
    assert error.metadata["limit"] == "MAX_METADATA_BYTES"
    assert error.metadata["actual"] == str(limits.MAX_METADATA_BYTES + 1)


@pytest.mark.parametrize(
    ("index_entries", "limit"),
    [
        ([("email", "a@b")], None),
        (["email"], None),
        ([IndexEntry("", "v")], None),
        ([IndexEntry(5, "v")], None),  # type: ignore[arg-type]  # what is tested
        ([IndexEntry("i", 5)], None),  # type: ignore[arg-type]  # what is tested
        ([IndexEntry("\ud800", "v")], None),
        ([IndexEntry("i", "v"), IndexEntry("i", b"v", unique=True)], None),
        ([IndexEntry("i" * (limits.MAX_INDEX_NAME_BYTES + 1), "v")], "MAX_INDEX_NAME_BYTES"),
        ([IndexEntry("i", bytes(limits.MAX_INDEX_VALUE_BYTES + 1))], "MAX_INDEX_VALUE_BYTES"),
        ([IndexEntry("i", str(n)) for n in range(limits.MAX_INDEX_ENTRIES + 1)], None),
    ],
)
async def test_index_entries(offline: KV, index_entries: Any, limit: str | None) -> None:
    for operation in (
        lambda: offline.put("a", 1, index_entries=index_entries),
        lambda: offline.put("a", 1, index_entries=index_entries, exists=True),
        lambda: offline.atomic().put("a", 1, index_entries=index_entries),
    ):
        error = await refused(operation, LimitExceeded if limit else InvalidArgument)
        assert error.metadata.get("limit", "MAX_INDEX_ENTRIES") == (limit or "MAX_INDEX_ENTRIES")


async def test_conditions(offline: KV) -> None:
    anything: Any
    await refused(lambda: offline.put("a", 1, revision=1, exists=True), InvalidArgument)
    for anything in (-1, True, 1.5, "1", 2**63):
        for operation in (
            partial(offline.put, "a", 1, revision=anything),
            partial(offline.delete, "a", revision=anything),
            partial(offline.atomic().check, "a", revision=anything),
            partial(offline.atomic().check, "a", version=anything),
            partial(offline.atomic().check, "a", unchanged_since=anything),
            partial(offline.atomic().check_range, "a", version=anything),
        ):
            assert "an int from 0" in str(await refused(operation, InvalidArgument))
    for anything in (0, 1, "yes"):
        await refused(partial(offline.put, "a", 1, exists=anything), InvalidArgument)
    for built in (
        lambda: offline.atomic().check("a"),
        lambda: offline.atomic().check("a", exists=True, version=1),
        lambda: offline.atomic().check("a", value=None, revision=0),
        lambda: offline.atomic().check_range("a"),
        lambda: offline.atomic().check_range("a", exists=True, revision=1),
    ):
        assert "takes one of" in str(await refused(built, InvalidArgument))
    await refused(lambda: offline.atomic().check("a", value={1, 2}), InvalidArgument)
    await refused(lambda: offline.atomic().check("a", value=1, type="text"), InvalidArgument)


async def test_ranges(offline: KV) -> None:
    for use in (
        offline.delete_range,
        offline.atomic().delete_range,
        lambda *a, **k: offline.atomic().list(*a, **k),
        lambda *a, **k: offline.atomic().check_range(*a, **k, exists=True),
    ):
        take: Any = use
        await refused(partial(take, "a", start="a"), InvalidArgument)
        await refused(partial(take, start="b", end="a"), InvalidArgument)
        await refused(partial(take, start="a", end="a"), InvalidArgument)
        await refused(partial(take, 5), InvalidArgument)
        long = "a" * (limits.MAX_KEY_BYTES + 1)
        await refused(partial(take, long), LimitExceeded)
        await refused(partial(take, start=long), LimitExceeded)


async def test_a_forgotten_prefix_deletes_nothing(offline: KV) -> None:
    for take in (offline.delete_range, offline.atomic().delete_range):
        for operation in (take, partial(take, ""), partial(take, b"")):
            assert "every key" in str(await refused(operation, InvalidArgument))
        anything: Any
        for anything in (0, -1, True, 1.5):
            await refused(partial(take, "a", limit=anything), InvalidArgument)
        error = await refused(partial(take, "a", limit=limits.MAX_RANGE_RECORDS + 1), LimitExceeded)
        assert error.metadata["limit"] == "MAX_RANGE_RECORDS"


@pytest.mark.parametrize(
    "arguments",
    [
        {"amount": 2**63},
        {"amount": -(2**63) - 1},
        {"amount": 1.5},
        {"amount": "1"},
        {"min": 2**63},
        {"max": -(2**63) - 1},
        {"max": 1.5},
        {"min": 2, "max": 1},
    ],
    ids=repr,
)
async def test_what_add_takes(offline: KV, arguments: dict[str, Any]) -> None:
    await refused(lambda: offline.add("n", **arguments), InvalidArgument)
    await refused(lambda: offline.atomic().add("n", **arguments), InvalidArgument)


@pytest.mark.parametrize(
    ("rules", "limit"),
    [
        ([], None),
        (["a"], None),
        ([RateLimit("a", 0, 1)], None),
        ([RateLimit("a", -1, 1)], None),
        ([RateLimit("a", True, 1)], None),
        ([RateLimit("a", 1, 1, "token_bucket")], None),  # type: ignore[arg-type]  # what is tested
        ([RateLimit("a", 1, 1, cost=-1)], None),
        ([RateLimit("a", 1, 1, cost=2)], None),
        ([RateLimit("a", 5, 1, burst=2)], None),
        ([RateLimit("a", 5, 1, "gcra", burst=6)], None),
        ([RateLimit("a", 5, 1, "gcra", burst=0)], None),
        ([RateLimit("a", 5, 1, "gcra", burst=2, cost=3)], None),
        ([RateLimit("a", 1, 1), RateLimit(b"a", 2, 2)], None),
        ([RateLimit("a", limits.MAX_SLIDING_LOG_LIMIT + 1, 1)], "MAX_SLIDING_LOG_LIMIT"),
        ([RateLimit("a", limits.MAX_RATE_LIMIT + 1, 1, "gcra")], "MAX_RATE_LIMIT"),
        ([RateLimit(f"{n}", 1, 1) for n in range(limits.MAX_RATE_LIMITS + 1)], "MAX_RATE_LIMITS"),
    ],
)
async def test_what_a_rate_limit_is(offline: KV, rules: Any, limit: str | None) -> None:
    for operation in (
        lambda: offline.rate_limit(*rules),
        lambda: offline.atomic().rate_limit(*rules),
    ):
        error = await refused(operation, LimitExceeded if limit else InvalidArgument)
        assert error.metadata.get("limit") == limit


# What is built


def written_twice(atomic: Atomic) -> list[Callable[[], Atomic]]:
    return [
        lambda: atomic.put("a", 2),
        lambda: atomic.delete(b"a"),
        lambda: atomic.get_and_delete("a"),
        lambda: atomic.add("a"),
        lambda: atomic.touch("a", 1),
        lambda: atomic.persist("a"),
    ]


async def test_a_key_is_written_once(offline: KV) -> None:
    built = offline.atomic().put("a", 1)
    for operation in written_twice(built):
        assert "'a' is written twice" in str(await refused(operation, InvalidArgument))
    built.get("a").get("a").list("a").rate_limit(RateLimit("a", 1, 1))
    again = lambda: built.rate_limit(RateLimit("b", 1, 1), RateLimit("a", 1, 1))  # noqa: E731 - short
    assert "rate limit twice" in str(await refused(again, InvalidArgument))
    built.otherwise().put("a", 1).rate_limit(RateLimit("a", 1, 1))
    for operation in written_twice(built):
        await refused(operation, InvalidArgument)


async def test_the_two_branches(offline: KV) -> None:
    built = offline.atomic().check("a", exists=True).otherwise()
    await refused(built.otherwise, InvalidArgument)
    await refused(lambda: built.check("a", exists=True), InvalidArgument)
    await refused(lambda: built.check_range("a", exists=True), InvalidArgument)


async def test_too_much_for_one_commit(offline: KV) -> None:
    await refused(offline.atomic().commit, InvalidArgument)
    built = offline.atomic()
    for number in range(limits.MAX_TRANSACTION_OPERATIONS - 1):
        built.put(f"k{number}", 0)
    built.otherwise().get("a").get("b")
    error = await refused(built.commit, LimitExceeded)
    assert error.metadata["limit"] == "MAX_TRANSACTION_OPERATIONS"
    large = offline.atomic()
    for number in range(2):
        large.put(f"k{number}", bytes(20 * limits.MIB), type="bytes")
    error = await refused(large.commit, LimitExceeded)
    assert error.metadata["limit"] == "MAX_TRANSACTION_BYTES"


# What comes back


def test_a_sum_is_an_int_that_knows_more() -> None:
    total = Sum(7, applied=3)
    assert (total, total + 1, f"{total}", repr(total), json.dumps([total])) == (
        7,
        8,
        "7",
        "7",
        "[7]",
    )
    for same in (copy.copy(total), copy.deepcopy(total), pickle.loads(pickle.dumps(total))):
        assert (same, same.applied) == (7, 3)


def test_a_decision_is_as_true_as_it_says() -> None:
    has_room = RateLimitState(allowed=True, remaining=3, retry_after=0.0, reset_after=9.0)
    has_none = RateLimitState(allowed=False, remaining=0, retry_after=2.5, reset_after=4.0)
    refused = RateLimitResult(allowed=False, states=(has_room, has_none))
    assert not refused
    assert (refused.remaining, refused.retry_after, refused.reset_after) == (0, 2.5, 9.0)
    assert list(refused) == [has_room, has_none]
    assert RateLimitResult(allowed=True, states=(has_room,))


def test_the_end_of_a_prefix() -> None:
    assert prefix_end(b"") == b""
    assert prefix_end(b"a") == b"b"
    assert prefix_end(b"a\xff\xff") == b"b"
    assert prefix_end(b"\xff\xff") == b""
    selected = encode_range(b"\xfe\xff", None, None)
    assert contains(selected, b"\xfe\xff\xff")
    assert not contains(selected, b"\xff")
    assert not contains(selected, b"\xfe")
    assert contains(encode_range("", None, None), b"\xff")
