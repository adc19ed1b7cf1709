"""Flights: whom they belong to, and what ends them."""

import asyncio

import pytest

from kvorum import KV, Conflict
from kvorum.patterns.cache_records import Plan, Records
from kvorum.patterns.single_flight import Flight, Flights


async def test_what_is_given_up_before_its_breakable_part_does_not_do_it() -> None:
    asked, answered, done = asyncio.Event(), asyncio.Event(), []

    async def part() -> None:
        done.append("part")

    async def work(flight: Flight[None]) -> None:
        asked.set()
        await answered.wait()  # as for the store: it is not broken off
        await flight.breakable(part())

    sharing = asyncio.create_task(Flights[None]().share("a", work))
    await asked.wait()
    sharing.cancel()
    await asyncio.sleep(0)
    answered.set()
    await asyncio.wait([sharing])
    assert sharing.cancelled()
    assert done == []


async def test_a_flight_that_is_kept_goes_on_without_those_who_joined() -> None:
    flights, go, done = Flights[int](), asyncio.Event(), asyncio.Event()

    async def part() -> int:
        await go.wait()
        done.set()
        return 1

    async def work(flight: Flight[int]) -> int:
        return await flight.breakable(part())

    flights.keep("a", work)
    joined = asyncio.create_task(flights.share("a", work))
    await asyncio.sleep(0)
    joined.cancel()
    await asyncio.wait([joined])
    assert joined.cancelled()
    assert flights.is_under_way("a")
    go.set()
    await done.wait()
    await flights.close()


async def test_a_lease_is_not_taken_by_who_has_seen_what_is_gone(memory: KV) -> None:
    """Between the look and the lease another one may have computed: it is not done again."""
    records = Records[int](memory, "pages", max_ttl_ms=60_000, lease_ms=60_000, type=None)
    plan = Plan("a", (), ttl_ms=60_000, stale_ms=0)
    seen = await records.look("a", (), None)
    await records.set(plan, 1, None)
    with pytest.raises(Conflict, match="cache:pages:e:a"):
        await records.acquire(plan, seen, None)
