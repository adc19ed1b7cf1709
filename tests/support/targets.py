"""The three kinds of store, for suites that are to hold on each of them.

A conftest.py takes the fixtures over by importing them. The cluster (three processes, real
sockets, real disks) is started once for all tests; each test finds its store empty.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import kvorum
from kvorum import KV, SyncKV, limits
from kvorum.cli.cluster_file import NoClusterHere
from kvorum.cli.local_cluster import LocalCluster
from tests.support.node_processes import nodes_of

FLAGS = ("--fsync", "off")

TARGETS = ("memory", "directory", pytest.param("cluster", marks=pytest.mark.cluster))


@pytest.fixture(scope="session")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes, which a test leaves alive."""
    directory = tmp_path_factory.mktemp("three-targets")
    local = LocalCluster(directory / "cluster")
    try:
        asyncio.run(local.up(nodes=3, base_port=0, flags=FLAGS))
        yield local
    finally:
        with suppress(NoClusterHere):
            local.kill_all()
        assert nodes_of(directory) == []


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "memory":
            return "memory:"
        case "directory":
            return str(tmp_path / "data")
        case _:
            cluster: LocalCluster = request.getfixturevalue("local_cluster")
            return cluster.target


@pytest.fixture
async def kv(target: str) -> AsyncIterator[KV]:
    async with kvorum.open(target, timeout=30) as kv:
        while await kv.delete_range(start="", limit=limits.MAX_RANGE_RECORDS):
            pass
        yield kv


@pytest.fixture
def sync_kv(target: str) -> Iterator[SyncKV]:
    with kvorum.open_sync(target, timeout=30) as kv:
        while kv.delete_range(start="", limit=limits.MAX_RANGE_RECORDS):
            pass
        yield kv
