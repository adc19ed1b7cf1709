"""Batches: at once or in bulk, with a result for each item, and a place to go on from."""

import asyncio
import gc
import itertools
import random
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import patch

import pytest

from kvorum import (
    KV,
    BatchInterrupted,
    Closed,
    Codec,
    DecodeError,
    IndexEntry,
    InvalidArgument,
    LimitExceeded,
    ResultTooLarge,
    UniqueViolation,
    limits,
)
from kvorum.patterns import BatchProgress, BatchResult, Put, batch_delete, batch_get, batch_put
from kvorum.patterns import batch as module
from tests.support.eventually import eventually
from tests.support.round_trips import RoundTrips


def numbered(count: int, first: int = 0) -> Iterator[tuple[str, int]]:
    for number in range(first, first + count):
        yield f"k{number:06}", number


class Heard:
    """What a batch has told."""

    def __init__(self) -> None:
        self.told: list[BatchProgress] = []

    async def __call__(self, progress: BatchProgress) -> None:
        self.told.append(progress)

    @property
    def positions(self) -> list[int]:
        return [result.position for one in self.told for result in one.results]


async def test_many_keys_are_read_at_one_revision_in_one_round_trip(
    kv: KV, round_trips: RoundTrips
) -> None:
    await kv.put("null", None)
    revision = await kv.put("b", 2)
    round_trips.reset()
    batch = await batch_get(kv, ["b", "absent", b"null", "b"])
    assert round_trips.count == 1
    assert batch.revision == revision
    assert list(batch.entries) == ["b", "absent", "null"]
    assert batch.missing == ("absent",)
    assert {key: entry.value for key, entry in batch.found.items()} == {"b": 2, "null": None}


async def test_no_transaction_is_seen_half(kv: KV) -> None:
    keys = [f"k{number}" for number in range(50)]

    async def write(value: int) -> None:
        await batch_put(kv, dict.fromkeys(keys, value), atomic=True)

    async def read() -> set[int]:
        return {entry.value for entry in (await batch_get(kv, keys)).found.values()}

    await write(0)
    writing = asyncio.gather(*(write(value) for value in range(1, 20)))
    assert {len(await read()) for _ in range(20)} == {1}
    await writing


async def test_reads_have_limits_that_are_told(kv: KV, round_trips: RoundTrips) -> None:
    with pytest.raises(LimitExceeded) as raised:
        await batch_get(kv, (f"{number}" for number in range(1025)))
    assert raised.value.metadata["limit"] == "MAX_TRANSACTION_OPERATIONS"
    with pytest.raises(InvalidArgument):
        await batch_get(kv, [])
    assert round_trips.count == 0
    assert len((await batch_get(kv, [f"{number}" for number in range(1024)])).missing) == 1024


async def test_what_is_too_much_to_read_at_once(memory: KV) -> None:
    for key in "ab":
        await memory.put(key, b"\0" * 20 * limits.MIB, type="bytes")
    with pytest.raises(ResultTooLarge):
        await batch_get(memory, "ab", type="bytes")
    with pytest.raises(DecodeError):
        await batch_get(memory, "a")


async def test_at_once_is_one_revision_or_nothing(kv: KV, round_trips: RoundTrips) -> None:
    await kv.get("warm up")
    round_trips.reset()
    result = await batch_put(kv, dict(numbered(1000)), atomic=True)
    assert round_trips.count == 1
    assert result == BatchResult(done=1000, changed=1000, revision=result.revision)
    entries = [entry async for entry in kv.scan("k")]
    assert [(entry.key, entry.value) for entry in entries] == list(numbered(1000))
    assert {entry.revision for entry in entries} == {result.revision}
    mail = (IndexEntry("mail", "a@b", unique=True),)
    with pytest.raises(UniqueViolation):
        await batch_put(kv, [Put(key, 1, index_entries=mail) for key in "xy"], atomic=True)
    assert (await batch_get(kv, "xy")).missing == ("x", "y")
    deleted = await batch_delete(kv, ["k000000", "absent", "k000001"], atomic=True)
    assert (deleted.done, deleted.changed) == (3, 2)


async def test_beyond_the_limit_nothing_is_sent(kv: KV, round_trips: RoundTrips) -> None:
    taken = 0

    def endless() -> Iterator[tuple[str, int]]:
        nonlocal taken
        while True:
            yield f"{taken}", taken
            taken += 1

    with pytest.raises(LimitExceeded) as raised:
        await batch_put(kv, endless(), atomic=True)
    assert raised.value.metadata == {
        "limit": "MAX_TRANSACTION_OPERATIONS",
        "maximum": "1024",
        "actual": "1025",
    }
    with pytest.raises(LimitExceeded):
        await batch_delete(kv, (key for key, _ in numbered(1025)), atomic=True)
    large = b"\0" * 20 * limits.MIB
    with pytest.raises(LimitExceeded) as raised:
        await batch_put(kv, [("a", large), ("b", large)], atomic=True, type="bytes")
    assert raised.value.metadata["limit"] == "MAX_TRANSACTION_BYTES"
    wrong: list[Any] = [[("a", 1), ("a", 2)], [("a", float("nan"))], ["ab"], [("", 1)]]
    for items in wrong:
        with pytest.raises(InvalidArgument):
            await batch_put(kv, items, atomic=True)
    assert round_trips.count == 0
    assert (await batch_put(kv, {}, atomic=True)).done == 0


async def test_in_bulk_all_are_written_in_few_round_trips(kv: KV, round_trips: RoundTrips) -> None:
    heard = Heard()
    result = await batch_put(kv, numbered(5000), on_progress=heard)
    assert result == BatchResult(done=5000, changed=5000, revision=result.revision)
    assert heard.positions == list(range(5000))
    assert heard.told[-1].done == 5000
    assert all(one.results[-1].position + 1 == one.done for one in heard.told)
    assert round_trips.count <= 5000 // module.CHUNK_ITEMS + 3
    assert [entry.value async for entry in kv.scan("k")] == list(range(5000))
    round_trips.reset()
    deleted = await batch_delete(kv, (key for key, _ in numbered(5100)), on_progress=heard)
    assert (deleted.done, deleted.changed, deleted.failed) == (5100, 5000, 0)
    assert round_trips.count <= 5100 // module.CHUNK_ITEMS + 3
    assert (await kv.list("k")).entries == ()


async def test_items_may_have_all_that_a_put_has(kv: KV) -> None:
    index = (IndexEntry("city", "Bonn"),)
    items: list[Put | tuple[str, int]] = [
        Put("a", 1, ttl=50),
        Put("b", 2, metadata=b"m", index_entries=index),
        ("c", 3),
    ]
    await batch_put(kv, items, ttl=500)
    found = (await batch_get(kv, "abc")).found
    lives = [entry.expires_at and entry.expires_at - entry.updated_at for entry in found.values()]
    assert [life.total_seconds() for life in lives if life] == [50, 500, 500]
    assert (found["b"].metadata, found["b"].index_entries) == (b"m", index)
    await batch_put(kv, {"t": "text"}, type="text")
    assert (await batch_get(kv, ["t"], type="bytes")).found["t"].value == b"text"


async def test_an_item_that_cannot_be_written_fails_alone(kv: KV) -> None:
    await kv.put("owner", 1, index_entries=[IndexEntry("mail", "17", unique=True)])
    heard = Heard()

    def items() -> Iterator[Any]:
        for number in range(1000):
            match number:
                case 100:
                    yield "nan", float("nan")
                case 200:
                    yield "", 1
                case 300:
                    yield 5
                case 400:
                    yield Put("metadata", 1, metadata=b"\0" * 5000)
                case _:
                    mail = IndexEntry("mail", f"{number}", unique=True)
                    yield Put(f"user:{number}", number, index_entries=(mail,))

    result = await batch_put(kv, items(), on_progress=heard)
    assert (result.done, result.changed, result.failed) == (1000, 995, 5)
    failures = {one.position: (one.key, type(one.error)) for one in result.failures}
    assert failures == {
        17: ("user:17", UniqueViolation),
        100: ("nan", InvalidArgument),
        200: ("", InvalidArgument),
        300: ("", InvalidArgument),
        400: ("metadata", LimitExceeded),
    }
    assert heard.positions == list(range(1000))
    told = [one for each in heard.told for one in each.results if not one.changed]
    assert told == result.failures
    assert heard.told[-1].failed == 5
    assert len([entry async for entry in kv.scan("user:")]) == 995


async def test_not_all_failures_are_kept(memory: KV) -> None:
    result = await batch_put(memory, ((f"k{at}", {at}) for at in range(3000)))
    assert (result.failed, len(result.failures)) == (3000, module.MAX_KEPT_FAILURES)


async def test_items_of_one_key_are_written_in_their_order(kv: KV) -> None:
    items = [(f"k{number % 7}" if number % 3 else f"x{number}", number) for number in range(3000)]
    chance, carry = random.Random(7), kv._backend.call

    async def overtaking(call: Any, *, timeout_seconds: float) -> Any:
        """As calls do that are sent again."""
        await asyncio.sleep(chance.choice((0, 0, 0.005)))
        return await carry(call, timeout_seconds=timeout_seconds)

    with patch.object(kv._backend, "call", overtaking):
        result = await batch_put(kv, items, in_flight=16)
    assert result.changed == 3000
    expected = dict(items)
    for key in (f"k{number}" for number in range(7)):
        entry = await kv.get(key)
        assert entry is not None
        assert entry.value == expected[key]
        assert entry.version == sum(1 for one, _ in items if one == key)


async def test_large_values_make_small_chunks(kv: KV) -> None:
    sizes, carry = [], kv._backend.call

    async def measuring(call: Any, *, timeout_seconds: float) -> Any:
        sizes.append((call.ByteSize(), len(call.txn.transaction.operations)))
        return await carry(call, timeout_seconds=timeout_seconds)

    value = b"\0" * 200_000
    with patch.object(kv._backend, "call", measuring):
        result = await batch_put(kv, ((f"k{at}", value) for at in range(40)), type="bytes")
        await batch_put(kv, [("a", value * 60), ("b", value)], type="bytes")
    assert result.changed == 40
    assert sorted({count for _, count in sizes}) == [1, 2]
    assert all(size < limits.MAX_BATCH_BYTES for size, count in sizes if count > 1)
    assert len((await batch_get(kv, "ab", type="bytes")).found["a"].value) == 12_000_000


async def test_no_more_is_taken_than_what_is_under_way(memory: KV) -> None:
    taken, heard = 0, Heard()
    ahead = []

    async def items() -> AsyncIterator[tuple[str, int]]:
        nonlocal taken
        for key, value in numbered(20_000):
            taken += 1
            ahead.append(taken - (heard.told[-1].done if heard.told else 0))
            yield key, value

    result = await batch_put(memory, items(), in_flight=2, on_progress=heard)
    assert result.done == taken == 20_000
    assert max(ahead) <= 4 * module.CHUNK_ITEMS


async def test_a_silent_source_holds_nothing_back(kv: KV) -> None:
    """What was given is written, though the chunk is not full, and told."""
    go_on, heard = asyncio.Event(), Heard()

    async def items() -> AsyncIterator[tuple[str, int]]:
        for item in numbered(100):
            yield item
        await go_on.wait()
        yield "last", 1

    writing = asyncio.create_task(batch_put(kv, items(), on_progress=heard))
    await eventually(lambda: heard.told and heard.told[-1].done == 100)
    assert len([entry async for entry in kv.scan("k")]) == 100
    go_on.set()
    assert (await writing).done == 101


async def test_what_came_before_an_error_of_the_source_is_written(kv: KV) -> None:
    def items() -> Iterator[tuple[str, int]]:
        yield from numbered(700)
        raise ZeroDivisionError("line 701")

    heard = Heard()
    with pytest.raises(ZeroDivisionError, match="line 701"):
        await batch_put(kv, items(), on_progress=heard)
    assert heard.told[-1].done == 700
    assert len([entry async for entry in kv.scan("k")]) == 700


async def test_a_batch_that_ended_early_goes_on_where_it_was(kv: KV) -> None:
    heard, calls = Heard(), 0
    carry = kv._backend.call

    async def failing(call: Any, *, timeout_seconds: float) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise Closed("somebody has pulled the plug")
        return await carry(call, timeout_seconds=timeout_seconds)

    with patch.object(kv._backend, "call", failing), pytest.raises(BatchInterrupted) as raised:
        await batch_put(kv, numbered(10_000), in_flight=3, on_progress=heard)
    interrupted = raised.value
    assert isinstance(interrupted.__cause__, Closed)
    assert interrupted.maybe_applied
    assert 0 < interrupted.done < 10_000
    assert heard.told[-1].done == interrupted.done
    written = {entry.key async for entry in kv.scan("k", keys_only=True)}
    assert written >= {key for key, _ in numbered(interrupted.done)}
    rest = Heard()
    result = await batch_put(
        kv, numbered(10_000), skip=interrupted.done, on_progress=rest, in_flight=3
    )
    assert result.done == 10_000
    assert result.changed == 10_000 - interrupted.done
    assert rest.positions == list(range(interrupted.done, 10_000))
    assert [entry.value async for entry in kv.scan("k")] == list(range(10_000))


async def test_an_error_of_the_callback_is_raised_as_it_is(kv: KV) -> None:
    async def fail(progress: BatchProgress) -> None:
        raise ZeroDivisionError(f"{progress.done}")

    with pytest.raises(ZeroDivisionError):
        await batch_put(kv, numbered(5000), on_progress=fail)


async def test_a_batch_can_be_cancelled(kv: KV) -> None:
    heard = Heard()

    async def endless() -> AsyncIterator[tuple[str, int]]:
        for item in numbered(10**9):
            yield item

    writing = asyncio.create_task(batch_put(kv, endless(), on_progress=heard))
    await eventually(lambda: heard.told)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    done = heard.told[-1].done
    await asyncio.sleep(0)
    assert heard.told[-1].done == done


async def test_what_cannot_be_is_refused_at_once(memory: KV) -> None:
    options: list[dict[str, Any]] = [
        {"in_flight": 0},
        {"in_flight": 65},
        {"skip": -1},
        {"type": "xml"},
    ]
    for wrong in options:
        with pytest.raises(InvalidArgument):
            await batch_put(memory, numbered(5), **wrong)
    with pytest.raises(InvalidArgument, match="to skip"):
        await batch_put(memory, numbered(5), skip=6)
    assert (await batch_put(memory, numbered(5), skip=5)).done == 5
    assert (await memory.list()).entries == ()


async def test_endless_keys_are_refused_when_they_are_too_many(memory: KV) -> None:
    with pytest.raises(LimitExceeded):
        await batch_get(memory, (f"k{number}" for number in itertools.count()))


@pytest.mark.parametrize(
    "wrong",
    [
        Put("k", 1, index_entries=("email",)),  # type: ignore[arg-type]  # it is wrong
        Put("k", 1, index_entries=5),  # type: ignore[arg-type]  # it is wrong
        Put("k", 1, metadata=5),  # type: ignore[arg-type]  # it is wrong
    ],
)
async def test_an_item_that_is_wrong_beside_its_value_fails_alone(memory: KV, wrong: Put) -> None:
    result = await batch_put(memory, [("a", 1), wrong, ("b", 2)])
    assert (result.changed, [failed.key for failed in result.failures]) == (2, ["k"])
    assert isinstance(result.failures[0].error, InvalidArgument)


@pytest.mark.parametrize("in_flight", ["8", 2.5, None, True, 65])
async def test_how_many_are_under_way_is_a_number(memory: KV, in_flight: Any) -> None:
    with pytest.raises(InvalidArgument, match="in_flight"):
        await batch_put(memory, [("a", 1)], in_flight=in_flight)


class Value:
    """Something that tells whether it is still held."""

    data: bytes


async def test_failures_do_not_hold_the_values(memory: KV) -> None:
    """A thousand of them may be kept, and each of its values may have 25 MiB."""
    unfit, taken = Value(), Value()
    taken.data = b"x"
    held = [weakref.ref(unfit), weakref.ref(taken)]
    codec: Codec[Any] = Codec("values", lambda value: value.data, bytes)
    unique = IndexEntry("name", "one", unique=True)
    await memory.put("owner", 1, index_entries=[unique])
    result = await batch_put(
        memory, [Put("a", unfit), Put("b", taken, index_entries=(unique,))], type=codec
    )
    assert [failed.key for failed in result.failures] == ["a", "b"]
    del unfit, taken
    gc.collect()
    assert [one() for one in held] == [None, None]


async def test_nothing_is_sent_after_a_cancellation(memory: KV) -> None:
    """Not even if the last chunk under way is answered in the same turn of the event loop."""
    loop, errors = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    told = asyncio.Event()

    async def cancel(progress: BatchProgress) -> None:
        batch.cancel()
        told.set()

    async def items() -> AsyncIterator[tuple[str, int]]:
        yield "first", 1
        yield "second", 2
        await asyncio.Event().wait()

    batch = asyncio.create_task(batch_put(memory, items(), on_progress=cancel))
    await told.wait()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert errors == []
    assert await memory.get("second") is None
