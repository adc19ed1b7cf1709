"""Watches over real nodes that are killed and restarted: no gap, nothing twice, nothing split."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import pytest

import kvorum
from kvorum import KV, Changes, Watch
from kvorum.cli.local_cluster import LocalCluster
from kvorum.errors import KvorumError
from tests.support.workload import followers

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

WAIT_SECONDS = 60.0


class Writing:
    """Pairs of keys, each pair in a transaction of its own, for as long as it is entered."""

    def __init__(self, kv: KV) -> None:
        self.written: dict[int, int] = {}
        """By revision, the number that both keys were given."""
        self.in_doubt: set[int] = set()
        self._kv = kv
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._number = 0

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._write()) for _ in range(8)]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def progress(self, count: int = 100) -> None:
        goal = len(self.written) + count
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.written) < goal:  # noqa: ASYNC110 - of several writers
                await asyncio.sleep(0.01)

    async def _write(self) -> None:
        while not self._stopping:
            self._number += 1
            number = self._number
            pair = self._kv.atomic().put("pair:a", number).put("pair:b", number)
            try:
                result = await pair.commit()
            except KvorumError:
                self.in_doubt.add(number)
            else:
                self.written[result.revision] = number


class Watching:
    """What watches hear, each in a task of its own."""

    def __init__(self, kv: KV, count: int, since: int) -> None:
        self.heard: list[list[Changes[int]]] = [[] for _ in range(count)]
        self._watches = [kv.watch("pair:", since=since) for _ in range(count)]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for watch, heard in zip(self._watches, self.heard, strict=True):
            await watch.begin()
            self._tasks.append(asyncio.create_task(self._watch(watch, heard)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for watch in self._watches:
            await watch.close()

    async def reach(self, revision: int) -> None:
        """Wait until all have come to the revision."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not all(heard and heard[-1].revision >= revision for heard in self.heard):
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.01)

    async def _watch(self, watch: Watch[int], heard: list[Changes[int]]) -> None:
        async for changes in watch.revisions():
            heard.append(changes)  # noqa: PERF401 - others look at it meanwhile


def assert_all_was_heard(writing: Writing, heard: list[Changes[int]]) -> None:
    revisions = [changes.revision for changes in heard]
    assert revisions == sorted(set(revisions)), "a revision twice, or out of order"
    assert set(writing.written) - set(revisions) == set(), "a revision is missing"
    for changes in heard:
        assert [change.key for change in changes] == ["pair:a", "pair:b"], "a revision is split"
        [number] = {change.entry.value for change in changes if change.entry is not None}
        assert number == writing.written.get(changes.revision, number)
        assert number in writing.in_doubt or changes.revision in writing.written
    # All writes are to the same two keys: each revision follows from the one before.
    assert revisions == [*range(revisions[0], revisions[-1] + 1)]


async def kill_the_leader(cluster: LocalCluster, writing: Writing) -> None:
    for _ in range(2):
        leader = await cluster.leader()
        cluster.kill(leader)
        await writing.progress()
        await cluster.restart(leader)
        await writing.progress()


async def kill_the_followers(cluster: LocalCluster, writing: Writing) -> None:
    for follower in await followers(cluster):
        cluster.kill(follower.name)
        await writing.progress()
        await cluster.restart(follower.name)
        await writing.progress()


async def restart_each(cluster: LocalCluster, writing: Writing) -> None:
    for node in cluster.nodes:
        await cluster.restart(node.name)
        await writing.progress()


@pytest.mark.parametrize("harm", [kill_the_leader, kill_the_followers, restart_each])
async def test_watches_survive(
    three_nodes: LocalCluster,
    kv: KV,
    harm: Callable[[LocalCluster, Writing], Awaitable[None]],
) -> None:
    since = await kv.put("before", 1)
    async with kvorum.open(three_nodes.target, timeout=30) as other:
        async with Watching(other, 6, since) as watching:
            async with Writing(kv) as writing:
                await writing.progress()
                await harm(three_nodes, writing)
            last = max(writing.written)
            await watching.reach(last)
        for heard in watching.heard:
            assert_all_was_heard(writing, heard)
        # Who comes later reads the same from history.
        async with Watching(other, 1, since) as late:
            await late.reach(last)
    shortest = min(map(len, (*watching.heard, *late.heard)))
    assert late.heard[0][:shortest] == watching.heard[0][:shortest]
