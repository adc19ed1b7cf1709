"""Three real processes on this machine, with real files and real fsync."""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

import kvorum
from kvorum import KV
from kvorum.cli.cluster_file import NoClusterHere
from kvorum.cli.local_cluster import LocalCluster
from tests.support.node_processes import nodes_of


@pytest.fixture
def empty_cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A cluster that is not started; whatever a test starts is ended."""
    cluster = LocalCluster(tmp_path / "cluster")
    yield cluster
    with suppress(NoClusterHere):
        cluster.kill_all()
    assert nodes_of(tmp_path) == []


@pytest_asyncio.fixture(loop_scope="session")
async def three_nodes(empty_cluster: LocalCluster) -> LocalCluster:
    """n1, n2 and n3 as a user starts them."""
    await empty_cluster.up(nodes=3, base_port=0)
    return empty_cluster


@pytest_asyncio.fixture(loop_scope="session")
async def kv(three_nodes: LocalCluster) -> AsyncIterator[KV]:
    async with kvorum.open(three_nodes.target, timeout=15) as kv:
        yield kv
