"""A disk that fills up: its node stops and says why, the others go on, and it comes back."""

import contextlib
import errno
import os
import resource
import subprocess
from pathlib import Path

import pytest

import kvorum
from kvorum import KV
from kvorum.admin import ClusterAdmin
from kvorum.cli import processes
from kvorum.cli.local_cluster import LocalCluster
from kvorum.limits import KIB, MIB
from tests.support.eventually import eventually
from tests.support.file_systems import small_file_system
from tests.support.workload import Workload, assert_nothing_lost, followers

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

FILE_BYTES = 1 * MIB


def fill(filler: Path) -> None:
    """Leave nothing of the file system for others."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(64 * KIB)):
            pass


def free(filler: Path) -> None:
    filler.unlink()


def process_of(cluster: LocalCluster, name: str) -> "subprocess.Popen[bytes]":
    process = cluster.node(name).process
    assert process is not None
    return next(child for child in processes._children if child.pid == process.pid)


async def stopped_by_itself(cluster: LocalCluster, name: str) -> None:
    """Wait until the node has ended, with a status and a last line that say that it failed."""
    process = process_of(cluster, name)
    await eventually(lambda: process.poll() is not None)
    assert process.returncode == 1
    assert f"{name} stops: cannot " in cluster.log_tail(name)[-1]


async def test_the_leaders_disk_is_full(empty_cluster: LocalCluster) -> None:
    data_dir = empty_cluster.directory / "n1"
    with small_file_system(data_dir):
        # The alarm that comes first is told to stay away: it has tests of its own.
        await empty_cluster.up(nodes=3, base_port=0, flags=["--min-free-bytes", "0"])
        try:
            await _fill_and_free(empty_cluster, data_dir / "filler")
        finally:
            empty_cluster.kill_all()  # before its files go


async def _fill_and_free(cluster: LocalCluster, filler: Path) -> None:
    async with kvorum.open(cluster.target, timeout=15) as kv, ClusterAdmin() as admin:
        leader = await cluster.leader()
        if leader != "n1":
            await admin.transfer_leadership(cluster.node(leader).address, "n1")
        async with Workload(kv, writers=8, padding_bytes=10_000) as work:
            fill(filler)
            await stopped_by_itself(cluster, "n1")
            assert "No space left on device" in cluster.log_tail("n1")[-1]
            await work.progress()
            assert await cluster.leader() in ("n2", "n3")
            free(filler)
            await cluster.restart("n1")
            await work.progress()
        assert work.kinds_of_failure == {}
        await assert_nothing_lost(cluster, work)


async def test_a_followers_file_cannot_grow(three_nodes: LocalCluster, kv: KV) -> None:
    follower = (await followers(three_nodes))[0].name
    pid = process_of(three_nodes, follower).pid
    async with Workload(kv, padding_bytes=1000) as work:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
        await stopped_by_itself(three_nodes, follower)
        assert os.strerror(errno.EFBIG) in three_nodes.log_tail(follower)[-1]
        await work.progress()
        await three_nodes.restart(follower)
        await work.progress()
    assert work.kinds_of_failure == {}
    await assert_nothing_lost(three_nodes, work)
