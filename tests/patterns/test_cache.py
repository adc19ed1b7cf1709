"""The cache with tags: what is served, what is never stored, who computes, and what it costs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

import kvorum
from kvorum import KV, Closed, DecodeError, InvalidArgument, LimitExceeded, limits
from kvorum.patterns import Cache, CacheStatistics
from tests.support.eventually import eventually
from tests.support.round_trips import RoundTrips, counting

SHORT_SECONDS = 0.3
"""A time to live that a test waits for the end of."""


class Source:
    """Where values come from: it counts, and each computation waits until it is let go."""

    def __init__(self, *, open: bool = True) -> None:
        self.computations = 0
        self.cancelled = 0
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        if open:
            self.go.set()

    async def compute(self) -> int:
        self.computations += 1
        number = self.computations
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return number


@pytest.fixture
async def other(kv: KV, target: str) -> AsyncIterator[KV]:
    """The same store as another program has it open, if it can be."""
    if not target.startswith("kvorum:"):
        yield kv
        return
    async with kvorum.open(target, timeout=30) as other:
        yield other


async def keys_of(kv: KV, prefix: str = "cache:") -> list[str]:
    return [entry.key async for entry in kv.scan(prefix)]


async def eventually_true(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 - it asks the store
            await asyncio.sleep(0.01)


# What is kept


async def test_values_come_and_go(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300)
    assert await pages.get("a") is None
    assert await pages.get("a", "none") == "none"
    assert await pages.set("a", {"page": 1}) is True
    assert await pages.get("a") == {"page": 1}
    assert await pages.delete("a") is True
    assert await pages.delete("a") is False
    assert await pages.get("a") is None
    await pages.set("null", None)
    assert await pages.get("null", "none") is None
    assert pages.statistics == CacheStatistics(hits=2, misses=3)


async def test_what_was_computed_is_kept_for_its_time(kv: KV) -> None:
    pages, source = Cache(kv, "pages", ttl=300), Source()
    assert await pages.get_or_compute("a", source.compute, ttl=SHORT_SECONDS) == 1
    assert await pages.get_or_compute("b", source.compute) == 2
    assert await pages.get_or_compute("b", source.compute) == 2
    assert 299 < (await kv.ttl("cache:pages:e:b") or 0) <= 300

    async def is_gone() -> bool:
        return await pages.get("a") is None

    await eventually_true(is_gone)
    assert await pages.get_or_compute("a", source.compute) == 3


async def test_keys_and_tags_from_outside_stay_in_their_place(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300)
    await pages.set("a:b%", 1, tags=["x:y"])
    await pages.invalidate("x:y", "x:y")
    assert await keys_of(kv) == ["cache:pages:e:a%3Ab%25", "cache:pages:t:x%3Ay"]
    assert await pages.get("a:b%") is None
    await Cache(kv, "other", ttl=300).set("a:b%", 2)
    assert await pages.get("a:b%") is None


async def test_values_of_each_type(kv: KV) -> None:
    texts = Cache(kv, "texts", ttl=5, type="text")
    await texts.set("a", "ü")
    assert await texts.get("a") == "ü"
    raw = Cache(kv, "raw", ttl=timedelta(seconds=5), type="bytes")
    await raw.set("a", b"\xff", tags=["t"])
    assert await raw.get("a") == b"\xff"
    await raw.invalidate("t")
    assert await raw.get("a") is None
    with pytest.raises(DecodeError, match="cache:texts:e:a"):
        await Cache(kv, "texts", ttl=5).get("a")


async def test_what_is_wrong_is_refused_before_anything_is_computed(kv: KV) -> None:
    source = Source()
    for name in ("", "a:b"):
        with pytest.raises(InvalidArgument, match="a cache"):
            Cache(kv, name, ttl=5)
    with pytest.raises(LimitExceeded, match="max_ttl of 5 s") as raised:
        Cache(kv, "pages", ttl=6, max_ttl=5, lease=1)
    assert raised.value.metadata == {"limit": "max_ttl", "maximum": "5000", "actual": "6000"}
    with pytest.raises(LimitExceeded, match="lease: 30 s"):
        Cache(kv, "pages", ttl=5, max_ttl=5)
    pages = Cache(kv, "pages", ttl=5, max_ttl=10, lease=10)
    get = pages.get_or_compute
    with pytest.raises(LimitExceeded, match="'a': 11 s"):
        await get("a", source.compute, stale_while_revalidate=6)
    with pytest.raises(InvalidArgument, match="stale_while_revalidate is a number"):
        await get("a", source.compute, stale_while_revalidate=-1)
    with pytest.raises(InvalidArgument, match="ttl is a number"):
        await pages.set("a", 1, ttl=0)
    with pytest.raises(InvalidArgument, match="tags are several"):
        await get("a", source.compute, tags="user")
    with pytest.raises(InvalidArgument, match="part of a key"):
        await get("a", source.compute, tags=[""])
    with pytest.raises(InvalidArgument, match="part of a key"):
        await get("", source.compute)
    with pytest.raises(LimitExceeded, match="the tags of 'a' take") as raised:
        await get("a", source.compute, tags=[f"tag-{number:04}" for number in range(200)])
    assert raised.value.metadata["limit"] == "MAX_METADATA_BYTES"
    with pytest.raises(LimitExceeded, match="key"):
        await get("k" * limits.MAX_KEY_BYTES, source.compute)
    with pytest.raises(InvalidArgument, match="at least one tag"):
        await pages.invalidate()
    assert source.computations == 0
    assert await keys_of(kv) == []


async def test_as_many_tags_as_there_is_room_for(kv: KV) -> None:
    pages, source = Cache(kv, "pages", ttl=300), Source()
    tags = [f"{number:04}" for number in range(140)]
    await pages.get_or_compute("a", source.compute, tags=tags)
    assert await pages.get("a") == 1
    await pages.invalidate(tags[77])
    assert await pages.get("a") is None


# Tags


async def test_an_invalidated_tag_takes_all_its_entries(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300)
    for name, tags in {"a": ["t1"], "b": ["t1", "t2"], "c": ["t2"], "d": []}.items():
        assert await pages.set(name, name, tags=tags)
    await pages.invalidate("t1")
    assert [await pages.get(name) for name in "abcd"] == [None, None, "c", "d"]
    assert await pages.set("a", "anew", tags=["t1"])
    assert await pages.get("a") == "anew"
    await pages.invalidate("t2", "t1")
    assert [await pages.get(name) for name in "abcd"] == [None, None, None, "d"]


async def test_another_program_sees_an_invalidation_at_once(kv: KV, other: KV) -> None:
    here, there = Cache(kv, "pages", ttl=300), Cache(other, "pages", ttl=300)
    for round_ in range(20):
        await here.set("a", round_, tags=["t"])
        assert await there.get("a") == round_
        await here.invalidate("t")
        assert await there.get("a") is None


async def test_tags_of_an_entry_may_change(kv: KV, other: KV) -> None:
    here, there = Cache(kv, "pages", ttl=300), Cache(other, "pages", ttl=300)
    await here.set("a", 1, tags=["old"])
    assert await there.get("a") == 1
    await here.set("a", 2, tags=["new"])
    await here.invalidate("old")
    assert await there.get("a") == 2
    await here.invalidate("new")
    assert await there.get("a") is None


async def test_an_invalidation_is_part_of_other_writes(kv: KV, round_trips: RoundTrips) -> None:
    pages = Cache(kv, "pages", ttl=300)
    await pages.set("a", 1, tags=["user:1"])
    round_trips.reset()
    atomic = kv.atomic().put("user:1", "renamed")
    pages.invalidate_in(atomic, "user:1")
    done = await atomic.commit()
    assert round_trips.count == 1
    tag = await kv.get("cache:pages:t:user%3A1")
    assert tag is not None
    assert tag.revision == done.revision
    assert await pages.get("a") is None
    await pages.set("a", 2, tags=["user:1"])
    refused = kv.atomic().check("user:1", exists=False)
    pages.invalidate_in(refused, "user:1")
    with pytest.raises(kvorum.Conflict):
        await refused.commit()
    assert await pages.get("a") == 2
    async for attempt in kv.transaction():
        async with attempt as txn:
            await txn.get("user:1")
            pages.invalidate_in(txn, "user:1")
    assert await pages.get("a") is None


async def test_what_is_under_a_tag_outlives_the_record_of_the_tag(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300, max_ttl=301, lease=5)
    await pages.invalidate("t")
    await pages.set("a", 1, tags=["t"])
    await kv.touch("cache:pages:t:t", 0.001)

    async def is_gone() -> bool:
        return await kv.get("cache:pages:t:t") is None

    await eventually_true(is_gone)
    assert await pages.get("a") == 1
    await pages.invalidate("t")
    assert await pages.get("a") is None


async def test_a_tag_of_100_000_keys_is_invalidated_by_one_small_write() -> None:
    async with kvorum.open("memory:") as kv:
        pages = Cache(kv, "pages", ttl=3600)
        await pages.set("0", 0, tags=["site"])
        like = await kv.get("cache:pages:e:0")
        assert like is not None
        for first in range(1, 100_000, 1_000):  # what `set` writes, many at a time
            atomic = kv.atomic()
            for n in range(first, min(first + 1_000, 100_000)):
                atomic.put(f"cache:pages:e:{n}", n, ttl=3600, metadata=like.metadata)
            await atomic.commit()
        sample = ("0", "777", "99999")
        assert [await pages.get(key) for key in sample] == [0, 777, 99_999]
        revision = await kv.put("mark", 1)
        with counting(kv) as trips:
            await pages.invalidate("site")
            assert trips.requests == ["txn"]
        async with kv.watch(since=revision) as watch:
            await kv.put("mark", 2)
            assert [(await anext(watch)).key for _ in range(2)] == ["cache:pages:t:site", "mark"]
        assert (await kv.list("cache:pages:e:", limit=1, count=True)).count == 100_000
        assert [await pages.get(key) for key in sample] == [None] * 3


async def test_entries_are_invalidated_in_one_round_trip(kv: KV, round_trips: RoundTrips) -> None:
    pages = Cache(kv, "pages", ttl=3600)
    await asyncio.gather(*(pages.set(str(n), n, tags=["site"]) for n in range(300)))
    revision = await kv.put("mark", 1)
    round_trips.reset()
    await pages.invalidate("site")
    assert round_trips.requests == ["txn"]
    assert await kv.put("mark", 2) == revision + 2
    found = await asyncio.gather(*(pages.get(str(n)) for n in range(300)))
    assert found == [None] * 300


# What it costs


async def test_round_trips(kv: KV, other: KV) -> None:
    source = Source()
    pages = Cache(kv, "pages", ttl=300)
    with counting(kv) as trips:
        await pages.get_or_compute("a", source.compute, tags=["t1", "t2"])
        assert trips.count == 3  # looked, leased, stored
        trips.reset()
        await pages.get_or_compute("a", source.compute, tags=["t1", "t2"])
        assert trips.count == 1
        trips.reset()
        await pages.get("a")
        assert trips.count == 1
        trips.reset()
        await pages.set("b", 1)
        assert trips.count == 1
        await pages.set("b", 1, tags=["t1"])
        assert trips.count == 3
        trips.reset()
        await pages.delete("b")
        await pages.invalidate("t1", "t2")
        assert trips.count == 2
    await pages.set("a", 5, tags=["t1"])
    fresh = Cache(other, "pages", ttl=300)
    with counting(other) as trips:
        assert await fresh.get("a") == 5
        assert trips.count == 2  # it learns which tags there are
        trips.reset()
        assert await fresh.get("a") == 5
        assert trips.count == 1


async def test_a_hit_writes_nothing(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300)
    await pages.set("a", 1, tags=["t"])
    before = await kv.put("mark", 1)
    for _ in range(10):
        await pages.get("a")
    assert await kv.put("mark", 2) == before + 1


# Values from before an invalidation


async def test_a_slow_computation_does_not_bring_back_what_was_invalidated(
    kv: KV, other: KV
) -> None:
    truth = {"name": "old"}
    pages, source = Cache(kv, "pages", ttl=300), Source(open=False)

    async def read_slowly() -> str:
        name = truth["name"]
        await source.compute()
        return name

    async def usual_form() -> None:
        """Compute, then put: what is invalidated meanwhile stays as it was."""
        await kv.put("usual:user", await read_slowly(), ttl=300)

    slow = asyncio.create_task(pages.get_or_compute("user", read_slowly, tags=["user:1"]))
    await source.begun.wait()
    usual = asyncio.create_task(usual_form())
    await eventually(lambda: source.computations == 2)
    truth["name"] = "new"
    await Cache(other, "pages", ttl=300).invalidate("user:1")
    await kv.delete("usual:user")
    source.go.set()
    assert await slow == "old"  # it was asked for before the invalidation
    await usual
    control = await kv.get("usual:user")
    assert control is not None
    assert control.value == "old"  # for as long as it lives
    assert await pages.get("user") is None
    assert await pages.get_or_compute("user", read_slowly, tags=["user:1"]) == "new"
    assert pages.statistics.refused == 1


@pytest.mark.parametrize("change", ["set", "delete"])
async def test_nor_what_was_replaced_or_deleted(kv: KV, other: KV, change: str) -> None:
    pages, source = Cache(kv, "pages", ttl=300), Source(open=False)
    slow = asyncio.create_task(pages.get_or_compute("a", source.compute))
    await source.begun.wait()
    there = Cache(other, "pages", ttl=300)
    await (there.set("a", 100) if change == "set" else there.delete("a"))
    source.go.set()
    assert await slow == 1
    assert await pages.get("a") == (100 if change == "set" else None)
    assert pages.statistics.refused == 1


async def test_who_asks_after_an_invalidation_is_not_given_what_was_computed_before_it(
    kv: KV,
) -> None:
    pages, source = Cache(kv, "pages", ttl=300), Source(open=False)
    first = asyncio.create_task(pages.get_or_compute("a", source.compute, tags=["t"]))
    await source.begun.wait()
    await pages.invalidate("t")
    late = [
        asyncio.create_task(pages.get_or_compute("a", source.compute, tags=["t"])) for _ in range(5)
    ]
    await eventually(lambda: pages.statistics.waits == 5)
    source.go.set()
    assert await first == 1
    assert await asyncio.gather(*late) == [2] * 5
    assert pages.statistics.computations == 2


async def test_those_who_wait_are_served_however_often_it_is_invalidated(kv: KV) -> None:
    """Nothing can be stored; yet who asked before a computation began may have its value."""
    pages = Cache(kv, "pages", ttl=300)
    computations = 0

    async def compute() -> int:
        nonlocal computations
        computations += 1
        await pages.invalidate("t")
        return computations

    await asyncio.gather(*(pages.get_or_compute("a", compute, tags=["t"]) for _ in range(50)))
    assert computations <= 2
    assert pages.statistics.refused == computations


async def test_set_stores_nothing_if_its_tag_is_invalidated_meanwhile(
    kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = Cache(kv, "pages", ttl=300)
    await pages.set("a", 1, tags=["other"])
    atomic = kv.atomic

    def after_its_read() -> Any:
        building = atomic()
        commit = building.commit

        async def committing(**arguments: Any) -> Any:
            result = await commit(**arguments)
            monkeypatch.setattr(kv, "atomic", atomic)
            await pages.invalidate("t")
            return result

        monkeypatch.setattr(building, "commit", committing)
        return building

    monkeypatch.setattr(kv, "atomic", after_its_read)
    assert await pages.set("a", 2, tags=["t"]) is False
    assert await pages.get("a") is None
    assert pages.statistics.refused == 1


# One computation at a time


async def test_a_stampede_computes_once(kv: KV, target: str) -> None:
    computations = 0

    async def compute() -> dict[str, str]:
        nonlocal computations
        computations += 1
        await asyncio.sleep(0.05)  # it takes a while; nothing is asserted on how long
        return {"page": "home"}

    stores = [kv]
    if target.startswith("kvorum:"):
        stores += [await kvorum.open(target, timeout=30) for _ in range(3)]
    caches = [Cache(store, "pages", ttl=300) for store in stores for _ in range(4 // len(stores))]
    found = await asyncio.gather(
        *(cache.get_or_compute("home", compute, tags=["t"]) for _ in range(50) for cache in caches)
    )
    assert found == [{"page": "home"}] * 200
    assert computations == sum(cache.statistics.computations for cache in caches) == 1
    for store in stores[1:]:
        await store.close()
    assert await keys_of(kv, "cache:pages:l:") == []


async def test_an_error_goes_to_all_who_wait_and_is_not_kept(kv: KV) -> None:
    pages, source = Cache(kv, "pages", ttl=300), Source(open=False)

    async def fail() -> int:
        await source.compute()
        raise LookupError("no such page")

    asked = [asyncio.create_task(pages.get_or_compute("a", fail)) for _ in range(5)]
    await eventually(lambda: pages.statistics.misses == 5)
    source.go.set()
    failures = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(failure) for failure in failures] == [LookupError] * 5
    assert source.computations == 1
    assert await keys_of(kv) == []
    assert await pages.get_or_compute("a", source.compute) == 2


async def test_a_value_that_cannot_be_stored_is_an_error(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300)

    async def compute() -> object:
        return object()

    with pytest.raises(InvalidArgument, match="cache:pages:e:a"):
        await pages.get_or_compute("a", compute)
    assert await keys_of(kv) == []


async def test_cancelling_one_leaves_it_to_the_others(kv: KV) -> None:
    pages, source = Cache(kv, "pages", ttl=300), Source(open=False)
    asked = [asyncio.create_task(pages.get_or_compute("a", source.compute)) for _ in range(5)]
    await eventually(lambda: pages.statistics.misses == 5)
    await source.begun.wait()
    for one in asked[:4]:
        one.cancel()
    await asyncio.wait(asked[:4])
    source.go.set()
    assert await asked[4] == 1
    assert source.cancelled == 0


async def test_cancelling_the_last_one_ends_it_and_gives_the_lease_back(kv: KV) -> None:
    pages, source = Cache(kv, "pages", ttl=300), Source(open=False)
    asked = [asyncio.create_task(pages.get_or_compute("a", source.compute)) for _ in range(3)]
    await eventually(lambda: pages.statistics.misses == 3)
    await source.begun.wait()
    for one in asked:
        one.cancel()
    await asyncio.wait(asked)
    assert all(one.cancelled() for one in asked)
    assert source.cancelled == 1
    assert await keys_of(kv) == []


async def test_a_lease_is_given_back_wherever_the_caller_is_cancelled(kv: KV) -> None:
    """At each turn of the event loop, until a call comes to its end before it is cancelled."""
    for turns in range(10_000):
        pages, source = Cache(kv, "pages", ttl=300), Source()
        asking = asyncio.create_task(pages.get_or_compute("a", source.compute))
        for _ in range(turns):
            await asyncio.sleep(0)
            if asking.done():
                break
        is_over = asking.done()
        asking.cancel()
        await asyncio.wait([asking])
        assert await keys_of(kv, "cache:pages:l:") == []
        await pages.delete("a")
        if is_over or turns > 300:
            break


async def test_who_comes_while_a_cancelled_computation_ends_computes_anew(kv: KV) -> None:
    pages, source = Cache(kv, "pages", ttl=300), Source(open=False)
    first = asyncio.create_task(pages.get_or_compute("a", source.compute))
    await source.begun.wait()
    first.cancel()
    await asyncio.sleep(0)
    source.go.set()
    assert await pages.get_or_compute("a", source.compute) == 2


async def test_another_program_waits_and_is_woken(kv: KV, other: KV) -> None:
    here, there = Cache(kv, "pages", ttl=300), Cache(other, "pages", ttl=300)
    source = Source(open=False)
    first = asyncio.create_task(here.get_or_compute("a", source.compute))
    await source.begun.wait()
    with counting(other) as trips:
        waiting = [asyncio.create_task(there.get_or_compute("a", source.compute)) for _ in range(3)]
        await eventually(lambda: there.statistics.waits == 3)
        source.go.set()
        assert await asyncio.gather(*waiting) == [1] * 3
        if other is not kv:
            assert trips.count == 6  # each has looked twice; one watch was enough for all
    assert await first == 1
    assert source.computations == 1


async def test_a_computation_that_failed_elsewhere_is_taken_over(kv: KV, other: KV) -> None:
    here, there = Cache(kv, "pages", ttl=300), Cache(other, "pages", ttl=300)
    source = Source(open=False)
    first = asyncio.create_task(here.get_or_compute("a", source.compute))
    await source.begun.wait()
    waiting = asyncio.create_task(there.get_or_compute("a", source.compute))
    await eventually(lambda: there.statistics.waits == 1)
    first.cancel()
    source.go.set()
    assert await waiting == 2


async def test_a_lease_that_was_left_comes_to_its_end(kv: KV) -> None:
    """As of a program that crashed while it computed."""
    pages, source = Cache(kv, "pages", ttl=300), Source()
    await kv.put("cache:pages:l:a", None, ttl=SHORT_SECONDS)
    assert await pages.get_or_compute("a", source.compute) == 1
    assert pages.statistics.waits == 1


async def test_who_has_lost_the_lease_does_not_overwrite_what_came_after(kv: KV, other: KV) -> None:
    here = Cache(kv, "pages", ttl=300, lease=SHORT_SECONDS)
    there = Cache(other, "pages", ttl=300)
    slow, quick = Source(open=False), Source()
    quick.computations = 100
    first = asyncio.create_task(here.get_or_compute("a", slow.compute))
    await slow.begun.wait()
    assert await there.get_or_compute("a", quick.compute) == 101
    slow.go.set()
    assert await first == 1
    assert await there.get("a") == 101
    assert here.statistics.refused == 1


# Stale while revalidate


async def test_a_stale_value_is_served_while_one_computes(kv: KV) -> None:
    source = Source()
    async with Cache(kv, "pages", ttl=SHORT_SECONDS) as pages:

        async def get() -> Any:
            return await pages.get_or_compute(
                "a", source.compute, tags=["t"], stale_while_revalidate=3600
            )

        assert await get() == 1

        async def is_over() -> bool:
            return await pages.get("a") is None  # it is given by `get` no more

        await eventually_true(is_over)
        source.go.clear()
        source.begun.clear()
        assert await asyncio.gather(*(get() for _ in range(20))) == [1] * 20
        await source.begun.wait()
        assert await get() == 1
        assert (pages.statistics.stale, source.computations) == (21, 2)
        source.go.set()

        async def is_new() -> object:
            return await get() >= 2

        await eventually_true(is_new)


async def test_an_invalidated_value_is_never_served_stale(kv: KV) -> None:
    source = Source()
    async with Cache(kv, "pages", ttl=SHORT_SECONDS) as pages:

        async def get() -> Any:
            return await pages.get_or_compute(
                "a", source.compute, tags=["t"], stale_while_revalidate=3600
            )

        assert await get() == 1

        async def is_over() -> bool:
            return await pages.get("a") is None

        await eventually_true(is_over)
        source.go.clear()
        source.begun.clear()
        assert await get() == 1
        await source.begun.wait()
        await pages.invalidate("t")
        late = asyncio.create_task(get())
        await eventually(lambda: pages.statistics.waits == 1)
        source.go.set()
        assert await late == 3


async def test_a_stale_value_is_computed_by_who_does_not_take_it(kv: KV) -> None:
    source = Source()
    pages = Cache(kv, "pages", ttl=SHORT_SECONDS)
    await pages.get_or_compute("a", source.compute, stale_while_revalidate=3600)

    async def is_over() -> bool:
        return await pages.get("a") is None

    await eventually_true(is_over)
    assert await pages.get_or_compute("a", source.compute, ttl=300) == 2
    assert await pages.get("a") == 2


async def test_freshness_ends_by_the_time_of_the_store_when_nothing_is_written(kv: KV) -> None:
    """Log time stands still between two entries of the log; the record of freshness does not."""
    source = Source()
    pages = Cache(kv, "pages", ttl=SHORT_SECONDS)
    await pages.get_or_compute("a", source.compute, stale_while_revalidate=3600)
    before = await kv.put("mark", 1)

    async def is_over() -> bool:
        return await pages.get("a") is None

    await eventually_true(is_over)
    assert await kv.get("cache:pages:e:a") is not None
    assert (await kv.list()).revision - before <= 1  # the sweep, if it came


async def test_a_refresh_that_fails_is_told_to_the_loop(kv: KV) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    pages, source = Cache(kv, "pages", ttl=SHORT_SECONDS), Source()

    async def fail() -> int:
        raise LookupError("the source is away")

    async def get(fn: Callable[[], Awaitable[int]]) -> Any:
        return await pages.get_or_compute("a", fn, stale_while_revalidate=3600)

    assert await get(source.compute) == 1

    async def is_over() -> bool:
        return await pages.get("a") is None

    await eventually_true(is_over)
    assert await get(fail) == 1
    await eventually(lambda: told)
    assert isinstance(told[0]["exception"], LookupError)
    assert "'a'" in told[0]["message"]
    assert pages.statistics.failed_refreshes == 1
    assert await get(source.compute) == 1  # it is still there, and is tried again
    await eventually(lambda: source.computations == 2)
    await pages.close()


async def test_closing_ends_what_is_computed(kv: KV) -> None:
    source = Source()
    pages = Cache(kv, "pages", ttl=SHORT_SECONDS)

    async def get() -> Any:
        return await pages.get_or_compute("a", source.compute, stale_while_revalidate=3600)

    assert await get() == 1

    async def is_over() -> bool:
        return await pages.get("a") is None

    await eventually_true(is_over)
    source.go.clear()
    source.begun.clear()
    assert await get() == 1
    await source.begun.wait()
    waiting = asyncio.create_task(pages.get_or_compute("b", source.compute))
    await eventually(lambda: source.computations == 3)
    await pages.close()
    assert source.cancelled == 2
    with pytest.raises(Closed):
        await waiting
    with pytest.raises(Closed):
        await pages.get_or_compute("b", source.compute)
    assert await keys_of(kv, "cache:pages:l:") == []
    await pages.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in others if "single_flight" in repr(task)]


# The decorator, and what is shown


async def test_decorated_functions(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300)
    asked: list[int] = []

    @pages.cached(key=lambda user, **_: f"home:{user}", tags=lambda user, **_: [f"user:{user}"])
    async def home(user: int, *, greeting: str = "hello") -> str:
        """Say hello."""
        asked.append(user)
        return f"{greeting} {user}"

    @pages.cached(key="all", tags=["user:1"], ttl=5)
    async def everyone() -> list[int]:
        asked.append(0)
        return [1, 2]

    assert home.__doc__ == "Say hello."
    assert [await home(1), await home(1), await home(2, greeting="hi")] == [
        "hello 1",
        "hello 1",
        "hi 2",
    ]
    assert [await everyone(), await everyone()] == [[1, 2]] * 2
    assert asked == [1, 2, 0]
    await pages.invalidate("user:1")
    assert [await home(1), await home(2), await everyone()] == ["hello 1", "hi 2", [1, 2]]
    assert asked == [1, 2, 0, 1, 0]


async def test_nothing_of_a_value_is_shown(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300, type="bytes")
    await pages.set("a", b"secret")
    assert repr(pages) == "<Cache 'pages'>"
    with pytest.raises(DecodeError) as raised:
        await Cache(kv, "pages", ttl=300).get("a")
    assert "secret" not in str(raised.value)
