"""Leaders are killed while clients count: what returned has counted, and nothing counted twice."""

import asyncio
from contextlib import AsyncExitStack

import pytest

import kvorum
from kvorum import KV
from kvorum.cli.local_cluster import LocalCluster
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.workload import agreed_content

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

CLIENTS = 3
TASKS = 8
KILLS = 4
PROGRESS = 150


class Counting:
    """Adds to counters for as long as it is entered; every call has to succeed."""

    def __init__(self, kv: KV, name: str) -> None:
        self.name = name
        self.added = 0
        self.sums: list[int] = []
        self.transactions = 0
        self.stopping = False
        self._kv = kv

    async def run(self) -> None:
        await asyncio.gather(*(self._add(number) for number in range(TASKS)))

    async def _add(self, number: int) -> None:
        while not self.stopping:
            if number % 2:
                self.sums.append(await self._kv.add("shared", 1))
            else:
                # Both or none, at one revision: created once, or the check would not hold.
                key = f"{self.name}:{number}:{self.transactions}"
                self.transactions += 1
                atomic = self._kv.atomic().check(key, exists=False)
                await atomic.put(key, 1).add(f"own:{self.name}", 2).commit()
                self.added += 2


async def progress(counting: list[Counting]) -> None:
    """Return once each client has counted on."""
    goals = [len(one.sums) + PROGRESS // CLIENTS for one in counting]
    async with asyncio.timeout(DEADLINE_SECONDS):
        while any(len(one.sums) < goal for one, goal in zip(counting, goals, strict=True)):  # noqa: ASYNC110 - of many tasks
            await asyncio.sleep(0.01)


async def test_totals_are_exact_however_often_leaders_are_killed(
    three_nodes: LocalCluster,
) -> None:
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(kvorum.open(three_nodes.target, timeout=60))
            for _ in range(CLIENTS)
        ]
        counting = [Counting(kv, f"c{number}") for number, kv in enumerate(stores)]
        async with asyncio.TaskGroup() as tasks:  # a call that fails, fails the test
            for one in counting:
                tasks.create_task(one.run())
            await progress(counting)
            for _ in range(KILLS):
                leader = await three_nodes.leader()
                three_nodes.kill(leader)
                await progress(counting)
                await three_nodes.restart(leader)
                await progress(counting)
            for one in counting:
                one.stopping = True
        kv = stores[0]
        shared = await kv.get("shared")
        assert shared is not None
        sums = sorted(value for one in counting for value in one.sums)
        assert sums == list(range(1, shared.value + 1))
        assert shared.version == shared.value
        for one in counting:
            own = await kv.get(f"own:{one.name}")
            assert own is not None
            assert own.value == one.added == 2 * own.version
            keys = [entry async for entry in kv.scan(f"{one.name}:")]
            assert len(keys) == one.transactions == own.version
            assert {entry.version for entry in keys} == {1}
    await agreed_content(three_nodes)
