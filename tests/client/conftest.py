"""Three scripted nodes, and a store that talks to them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

import kvorum
from kvorum import KV
from kvorum.backends.cluster import ClusterBackend
from tests.support.fake_server import FakeNode

Nodes = tuple[FakeNode, FakeNode, FakeNode]


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
