"""Writers that never use a key twice, what they were told, and whether the nodes hold it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

from kvorum import KV
from kvorum.admin import ClusterAdmin
from kvorum.cli.local_cluster import LocalCluster, LocalNode
from kvorum.cli.processes import ProcessState
from kvorum.errors import KvorumError
from kvorumpb.v1 import cluster_pb2
from tests.support.eventually import DEADLINE_SECONDS


class Workload:
    """Writes for as long as it is entered.

    A write that fails is counted and not made again: its key is never used again.
    """

    def __init__(
        self, kv: KV, *, writers: int = 32, padding_bytes: int = 200, first: int = 1
    ) -> None:
        self.kv = kv
        self.acknowledged: dict[str, Any] = {}
        """What was written, noted when `put` had returned."""
        self.failures: list[tuple[str, KvorumError]] = []
        self.longest_stall_seconds = 0.0
        self._writers = writers
        self._padding = "x" * padding_bytes
        self._number = first - 1
        self._last_answer = 0.0
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._last_answer = asyncio.get_running_loop().time()
        self._tasks = [asyncio.create_task(self._write()) for _ in range(self._writers)]
        await self.progress()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        await asyncio.gather(*self._tasks)
        # A figure, to be seen with `pytest -s`: a busy machine must not turn it into a failure.
        print(
            f"\n{len(self.acknowledged)} writes, {len(self.failures)} in doubt or failed,"
            f" longest stall {self.longest_stall_seconds:.3f} s"
        )

    def stop(self) -> None:
        """Begin no further write."""
        self._stopping = True

    def merge(self, other: Self) -> None:
        """Take over what another one knows."""
        self.acknowledged |= other.acknowledged
        self.failures += other.failures

    @property
    def kinds_of_failure(self) -> dict[str, int]:
        kinds = [type(error).__name__ for _, error in self.failures]
        return {kind: kinds.count(kind) for kind in kinds}

    async def progress(self, count: int = 200) -> None:
        """Return once so many more writes have been acknowledged."""
        goal = len(self.acknowledged) + count
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(self.acknowledged) < goal:  # noqa: ASYNC110 - of many writers
                await asyncio.sleep(0.005)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            self._number += 1
            key, value = f"work:{self._number:08}", {"number": self._number, "": self._padding}
            try:
                await self.kv.put(key, value)
            except KvorumError as error:
                self.failures.append((key, error))
                continue
            now = loop.time()
            self.longest_stall_seconds = max(self.longest_stall_seconds, now - self._last_answer)
            self._last_answer = now
            self.acknowledged[key] = value


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await condition():  # noqa: ASYNC110 - it asks other processes
            await asyncio.sleep(0.02)


def running(cluster: LocalCluster) -> Sequence[LocalNode]:
    return [node for node in cluster.nodes if cluster.state(node.name) is ProcessState.RUNNING]


async def followers(cluster: LocalCluster) -> list[LocalNode]:
    leader = await cluster.leader()
    return [node for node in cluster.nodes if node.name != leader]


async def agreed_content(cluster: LocalCluster) -> cluster_pb2.GetContentHashResponse:
    """What all running nodes hold, once they have applied the same; fails if they differ then."""
    return await agreed([node.address for node in running(cluster)])


async def agreed(addresses: Sequence[str]) -> cluster_pb2.GetContentHashResponse:
    """The same of the nodes at these addresses."""
    contents: list[cluster_pb2.GetContentHashResponse] = []
    async with ClusterAdmin() as admin:

        async def is_applied() -> bool:
            try:
                statuses = [await admin.status(address) for address in addresses]
            except KvorumError:
                return False
            last = max(status.last_index for status in statuses)
            has_leader = any(status.role == cluster_pb2.LEADER for status in statuses)
            return has_leader and all(status.applied_index == last for status in statuses)

        async def is_hashed() -> bool:
            """At one index: the leader may have something to put into the log at any time."""
            contents[:] = [await admin.content_hash(address) for address in addresses]
            return len({content.applied_index for content in contents}) == 1

        await until(is_applied)
        await until(is_hashed)
    first = contents[0]
    for address, content in zip(addresses, contents, strict=True):
        assert (content.revision, content.hash) == (first.revision, first.hash), (
            f"{address} holds other data: {contents}"
        )
    return first


async def assert_nothing_lost(cluster: LocalCluster, workload: Workload) -> None:
    """Every running node holds the same, and it holds everything that was acknowledged."""
    await assert_kept([node.address for node in running(cluster)], workload)


async def assert_kept(addresses: Sequence[str], workload: Workload) -> None:
    """The same of the nodes at these addresses."""
    content = await agreed(addresses)
    found = {entry.key: entry.value async for entry in workload.kv.scan("work:")}
    missing = {key for key, value in workload.acknowledged.items() if found.get(key) != value}
    assert not missing, f"{len(missing)} acknowledged writes are gone: {sorted(missing)[:5]}"
    strangers = found.keys() - workload.acknowledged.keys()
    assert strangers <= {key for key, _ in workload.failures}
    assert content.record_count >= len(found)
