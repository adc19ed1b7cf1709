"""50 clients count while leaders are killed: the total is exact, unlike in the usual form."""

import asyncio
from contextlib import AsyncExitStack

import pytest

import kvorum
from kvorum import KV
from kvorum.cli.local_cluster import LocalCluster
from kvorum.patterns import Counter, ShardedCounter

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

CLIENTS = 50
INCREMENTS = 1_000
TASKS = 10
"""Of one client, which count at the same time."""
HELD_BACK = 90
"""From this one on, a task counts once all leaders were killed that are to be."""
KILLS = 2


class Counting:
    """One client, with a store of its own."""

    def __init__(self, kv: KV, all_killed: asyncio.Event) -> None:
        self.sums: list[int] = []
        self._all_killed = all_killed
        self._views = Counter(kv, "views")
        self._sharded = ShardedCounter(kv, "views")

    async def run(self) -> None:
        await asyncio.gather(*(self._count() for _ in range(TASKS)))

    async def _count(self) -> None:
        for number in range(INCREMENTS // TASKS):
            if number == HELD_BACK:
                await self._all_killed.wait()
            self.sums.append(await self._views.add())
            if number % 10 == 0:
                await self._sharded.add(10)


async def progress(clients: list[Counting], share: float) -> None:
    """Return once this share of all increments has been acknowledged."""
    async with asyncio.timeout(60):
        while sum(len(one.sums) for one in clients) < CLIENTS * INCREMENTS * share:  # noqa: ASYNC110 - of many tasks
            await asyncio.sleep(0.01)


async def test_the_total_is_exact_however_often_leaders_are_killed(
    mortal_cluster: LocalCluster,
) -> None:
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(kvorum.open(mortal_cluster.target, timeout=60))
            for _ in range(CLIENTS)
        ]
        all_killed = asyncio.Event()
        clients = [Counting(kv, all_killed) for kv in stores]
        async with asyncio.TaskGroup() as tasks:  # a call that fails, fails the test
            for one in clients:
                tasks.create_task(one.run())
            for kill in range(1, KILLS + 1):
                await progress(clients, kill / (KILLS + 1))
                leader = await mortal_cluster.leader()
                mortal_cluster.kill(leader)
                await mortal_cluster.restart(leader)
            all_killed.set()
        total = CLIENTS * INCREMENTS
        assert sorted(value for one in clients for value in one.sums) == list(range(1, total + 1))
        assert await Counter(stores[0], "views").get() == total
        assert await ShardedCounter(stores[1], "views").get() == total
        entry = await stores[2].get("counter:views")
        assert entry is not None
        assert entry.version == total


async def test_the_usual_form_loses_increments(mortal_cluster: LocalCluster) -> None:
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(kvorum.open(mortal_cluster.target)) for _ in range(5)
        ]
        have_read = asyncio.Barrier(len(stores))

        async def add_one(kv: KV) -> None:
            entry = await kv.get("usual")
            await have_read.wait()
            await kv.put("usual", (0 if entry is None else entry.value) + 1)

        await asyncio.gather(*map(add_one, stores))
        entry = await stores[0].get("usual")
        assert entry is not None
        assert entry.value == 1, "five have counted, and four were lost"
        counter = Counter(stores[0], "usual")

        async def add_one_to_ours(kv: KV) -> None:
            await Counter(kv, "usual").get()
            await have_read.wait()
            await Counter(kv, "usual").add()

        await asyncio.gather(*map(add_one_to_ours, stores))
        assert await counter.get() == 5
