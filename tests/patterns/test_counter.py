"""Counters: exact sums, bounds, and what they cost."""

import asyncio
import copy
import pickle
from datetime import timedelta
from typing import Any

import pytest

import kvorum
from kvorum import KV, Conflict, IntegerOverflow, InvalidArgument, NotAnInteger, OutOfBounds, limits
from kvorum.patterns import Count, Counter, ShardedCounter
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.round_trips import RoundTrips


async def test_additions_are_summed_up(kv: KV, round_trips: RoundTrips) -> None:
    views = Counter(kv, "views")
    assert await views.get() == 0
    round_trips.reset()
    assert [await views.add(), await views.add(5), await views.add(-2)] == [1, 6, 4]
    assert await views.get() == 4
    assert round_trips.count == 4


async def test_concurrent_additions_are_each_told_their_own_sum(kv: KV) -> None:
    views = Counter(kv, "views")
    sums = await asyncio.gather(*(views.add() for _ in range(500)))
    assert sorted(sums) == list(range(1, 501))
    assert await views.get() == 500


async def test_bounds_are_kept_or_stopped_at(kv: KV) -> None:
    stock = Counter(kv, "stock")
    await stock.reset(5)
    with pytest.raises(OutOfBounds) as raised:
        await stock.add(-6, min=0)
    assert raised.value.value == 5
    assert await stock.add(-5, min=0) == 0
    filled = await stock.add(50, max=20, saturate=True)
    assert (filled, filled.applied) == (20, 20)
    assert await stock.get() == 20


async def test_it_is_an_int64(kv: KV) -> None:
    counter = Counter(kv, "large")
    await counter.reset(limits.MAX_INTEGER)
    with pytest.raises(IntegerOverflow):
        await counter.add()
    assert await counter.get() == limits.MAX_INTEGER
    with pytest.raises(InvalidArgument):
        await counter.reset(limits.MAX_INTEGER + 1)
    with pytest.raises(InvalidArgument):
        await counter.add(limits.MAX_INTEGER + 1)


async def test_a_reset_returns_what_it_was_in_one_round_trip(
    kv: KV, round_trips: RoundTrips
) -> None:
    counter = Counter(kv, "c")
    assert await counter.reset(7) == 0
    round_trips.reset()
    assert await counter.reset() == 7
    assert round_trips.count == 1
    assert await counter.get() == 0


async def test_nothing_is_lost_between_additions_and_resets(kv: KV) -> None:
    counter = Counter(kv, "c")

    async def reset() -> int:
        return await counter.reset()

    async def add() -> int:
        await counter.add()
        return 0

    collected = await asyncio.gather(*(add() if at % 5 else reset() for at in range(200)))
    assert sum(collected) + await counter.get() == 160


async def test_it_says_when_it_was_last_changed(kv: KV) -> None:
    counter = Counter(kv, "c")
    assert (await counter.get()).updated_at is None
    await counter.add()
    first = (await counter.get()).updated_at
    await asyncio.sleep(0.01)
    await counter.add()
    second = (await counter.get()).updated_at
    assert first is not None
    assert second is not None
    assert second > first
    entry = await kv.get(counter.key)
    assert entry is not None
    assert entry.updated_at == second
    assert (await counter.reset()).updated_at == second


async def test_a_count_is_copied_with_its_time(kv: KV) -> None:
    await Counter(kv, "c").add()
    count = await Counter(kv, "c").get()
    for other in (copy.deepcopy(count), pickle.loads(pickle.dumps(count))):
        assert (type(other), other, other.updated_at) == (Count, count, count.updated_at)


async def test_it_adds_within_an_atomic_and_a_transaction(kv: KV) -> None:
    orders, stock = Counter(kv, "orders"), Counter(kv, "stock")
    await stock.reset(1)
    for number in range(2):
        atomic = kv.atomic().put(f"order:{number}", {})
        orders.add_to(atomic)
        stock.add_to(atomic, -1, min=0)
        if number == 0:
            assert (await atomic.commit()).results[1:] == (1, 0)
        else:
            with pytest.raises(OutOfBounds):
                await atomic.commit()
    assert (await orders.get(), await stock.get()) == (1, 0)
    assert await kv.get("order:1") is None
    async for attempt in kv.transaction():
        async with attempt as txn:
            assert await txn.get("order:0") is not None
            orders.add_to(txn, 10)
    assert await orders.get() == 11


async def test_a_failed_check_adds_nothing(kv: KV) -> None:
    counter = Counter(kv, "c")
    atomic = kv.atomic().check("a", exists=True)
    counter.add_to(atomic)
    with pytest.raises(Conflict):
        await atomic.commit()
    assert await counter.get() == 0


async def test_a_time_to_live_begins_with_the_first_addition(kv: KV) -> None:
    counter = Counter(kv, "today", ttl=timedelta(seconds=100))
    await counter.add()
    await kv.touch(counter.key, 50)
    await counter.add()
    ttl = await kv.ttl(counter.key)
    assert ttl is not None
    assert 0 < ttl <= 50
    await counter.reset()
    ttl = await kv.ttl(counter.key)
    assert ttl is not None
    assert 50 < ttl <= 100
    short = Counter(kv, "short", ttl=0.02)
    await short.add(5)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await short.get():  # noqa: ASYNC110 - log time sets no event
            await asyncio.sleep(0.005)
    assert await short.add() == 1


async def test_what_is_counted_has_a_key_of_its_own(kv: KV) -> None:
    page = Counter(kv, "views", of="https://a.example/%")
    assert page.key == "counter:views:https%3A//a.example/%25"
    await page.add()
    await Counter(kv, "views").add(5)
    assert (await page.get(), await Counter(kv, "views").get()) == (1, 5)


async def test_what_is_no_integer_is_told(kv: KV) -> None:
    counter = Counter(kv, "c")
    await kv.put(counter.key, "secret")
    with pytest.raises(NotAnInteger):
        await counter.add()
    with pytest.raises(NotAnInteger) as raised:
        await counter.get()
    assert "secret" not in str(raised.value)


async def test_it_is_a_json_number_whatever_the_store_writes() -> None:
    async with kvorum.open("memory:", type="bytes") as kv:
        counter = Counter(kv, "c")
        await counter.reset(3)
        assert await counter.add() == 4
        assert await counter.get() == 4
        sharded = ShardedCounter(kv, "s")
        await sharded.add(2)
        assert (await sharded.reset(5), await sharded.get()) == (2, 5)


@pytest.mark.parametrize("name", ["", "a:b", "a%b", "a\0b"])
def test_a_name_is_checked(memory: KV, name: str) -> None:
    for kind in (Counter, ShardedCounter):
        with pytest.raises(InvalidArgument):
            kind(memory, name)


def test_what_cannot_be_is_refused_at_once(memory: KV) -> None:
    for ttl in (0, -1, float("nan")):
        with pytest.raises(InvalidArgument):
            Counter(memory, "c", ttl=ttl)
    with pytest.raises(InvalidArgument):
        Counter(memory, "c", of="")
    for shards in (0, 1001, True):
        with pytest.raises(InvalidArgument):
            ShardedCounter(memory, "c", shards=shards)


async def test_what_is_no_amount_is_not_written(kv: KV) -> None:
    """True would be stored as a JSON `true`, to which nothing can be added."""
    counter, sharded = Counter(kv, "c"), ShardedCounter(kv, "s")
    amounts: list[Any] = [True, 1.5, float("nan"), "1", None, 2**63]
    for amount in amounts:
        for call in (counter.add, counter.reset, sharded.add, sharded.reset):
            with pytest.raises(InvalidArgument):
                await call(amount)
    assert (await kv.list()).entries == ()


async def test_shards_are_summed_up_at_one_revision(kv: KV, round_trips: RoundTrips) -> None:
    sharded = ShardedCounter(kv, "s", shards=4)
    assert await sharded.get() == 0
    await asyncio.gather(*(sharded.add(at) for at in range(100)))
    round_trips.reset()
    total = await sharded.get()
    assert round_trips.requests == ["list"]
    assert total == sum(range(100))
    assert total.updated_at is not None
    entries = (await kv.list(sharded.prefix)).entries
    assert len(entries) == 4
    assert total.updated_at == max(entry.updated_at for entry in entries)


async def test_fewer_shards_than_before_lose_nothing(kv: KV) -> None:
    wide, narrow = ShardedCounter(kv, "s", shards=50), ShardedCounter(kv, "s", shards=1)
    await asyncio.gather(*(wide.add() for _ in range(200)))
    assert await narrow.get() == 200


async def test_shards_are_reset_together(kv: KV, round_trips: RoundTrips) -> None:
    sharded, other = ShardedCounter(kv, "s", shards=4), ShardedCounter(kv, "s2", shards=4)
    await asyncio.gather(*(one.add() for one in (sharded, other) for _ in range(20)))
    round_trips.reset()
    assert await sharded.reset(3) == 20
    assert round_trips.count == 1
    assert (await sharded.get(), await other.get()) == (3, 20)


async def test_a_sharded_count_is_part_of_transactions_that_read_it(kv: KV) -> None:
    sharded = ShardedCounter(kv, "s", shards=4)
    atomic = kv.atomic().put("a", 1)
    sharded.add_to(atomic, 2)
    await atomic.commit()
    async for attempt in kv.transaction():
        async with attempt as txn:
            await txn.get("a")
            sharded.add_to(txn, 3)
    assert await sharded.get() == 5
