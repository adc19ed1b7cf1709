"""What a cache computes: by whom, how often, and what is never stored or served."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import kvorum
from kvorum import KV, Closed, InvalidArgument
from kvorum.patterns import Cache
from kvorum.patterns.cache_records import Records
from tests.support import caches
from tests.support.caches import SHORT_SECONDS, Source, eventually_true, keys_of
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.round_trips import counting

other = caches.other


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


async def test_invalidations_before_a_computation_begins_do_not_keep_it_from_beginning(
    kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a tag that is invalidated more often than a round trip takes."""
    pages, source = Cache(kv, "pages", ttl=300), Source()
    acquire = Records.acquire

    async def late(self: Records[Any], *given: Any) -> Any:
        await pages.invalidate("t")
        return await acquire(self, *given)

    monkeypatch.setattr(Records, "acquire", late)
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await pages.get_or_compute("a", source.compute, tags=["t"]) == 1
    assert await pages.get("a") == 1  # it is from after the last invalidation
    assert source.computations == 1


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
