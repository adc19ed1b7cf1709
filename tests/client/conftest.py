"""Three scripted nodes, and a store that talks to them; and a store of each kind.

What a program sees does not depend on the target. A test that says so gets an empty `store`
(for threads: `blocking`), and runs in memory, in a directory, and in a cluster, the revisions of
which go on from those of the tests before.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

import kvorum
from kvorum import KV
from kvorum.admin import ClusterAdmin
from kvorum.backends.cluster import ClusterBackend
from kvorum.backends.embedded import EmbeddedBackend
from kvorum.cli.data import cluster_addresses
from kvorumpb.v1.command_pb2 import CommandBatch
from tests.support import targets
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.fake_server import FakeNode

Nodes = tuple[FakeNode, FakeNode, FakeNode]
Compact = Callable[[int], Awaitable[None]]

target = targets.target
store = targets.kv
blocking = targets.sync_kv


@pytest.fixture
async def compact(target: str, store: KV) -> Compact:
    """Have history before a revision forgotten. For a store in this process there is no command."""

    async def compact_at(revision: int) -> None:
        if isinstance(store._backend, EmbeddedBackend):
            batch = CommandBatch()
            batch.commands.add().compaction.revision = revision
            deadline = asyncio.get_running_loop().time() + DEADLINE_SECONDS
            group = store._backend._node._node.group
            await group.submit(batch.SerializeToString(), 1, deadline=deadline)
        else:
            async with ClusterAdmin(cluster_addresses(target)) as admin:
                assert await admin.compact(revision) == revision

    return compact_at


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    """n1 leads term 1, and the others know it."""
    async with FakeNode("n1") as n1, FakeNode("n2") as n2, FakeNode("n3") as n3:
        for node in (n1, n2, n3):
            node.follow(n1, term=1)
        yield n1, n2, n3


@pytest.fixture
async def kv(nodes: Nodes) -> AsyncIterator[KV]:
    """Closed by the fixture; no task of its own may be left then."""
    before = asyncio.all_tasks()
    store = await kvorum.open(target_of(*nodes))
    yield store
    await store.close()
    left = {task for task in asyncio.all_tasks() - before if task.get_name().startswith("kvorum")}
    assert left == set()


def target_of(*nodes: FakeNode) -> str:
    return f"kvorum://{','.join(node.address for node in nodes)}"


def backend_of(kv: KV) -> ClusterBackend:
    backend = kv._backend
    assert isinstance(backend, ClusterBackend)
    return backend


async def revision_of(kv: KV) -> int:
    """The newest: where a shared cluster has come to."""
    return (await kv.list(limit=1)).revision
