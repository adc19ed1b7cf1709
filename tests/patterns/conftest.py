"""Every pattern on each kind of store; what it costs is counted in round trips."""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

import kvorum
from kvorum import KV
from kvorum.cli.cluster_file import NoClusterHere
from kvorum.cli.local_cluster import LocalCluster
from tests.support import targets
from tests.support.node_processes import nodes_of
from tests.support.round_trips import RoundTrips, counting

kv = targets.kv
sync_kv = targets.sync_kv
target = targets.target


@pytest.fixture
def round_trips(kv: KV) -> Iterator[RoundTrips]:
    """Those of `kv`."""
    with counting(kv) as trips:
        yield trips


@pytest.fixture
async def memory() -> AsyncIterator[KV]:
    """For what does not depend on the kind of store."""
    async with kvorum.open("memory:") as kv:
        yield kv


@pytest_asyncio.fixture(loop_scope="session")
async def mortal_cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Three nodes of which a test may kill any."""
    cluster = LocalCluster(tmp_path / "cluster")
    await cluster.up(nodes=3, base_port=0, flags=targets.FLAGS)
    yield cluster
    with suppress(NoClusterHere):
        cluster.kill_all()
    assert nodes_of(tmp_path) == []
