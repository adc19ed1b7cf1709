"""A store at its quota refuses writes, says so, and goes on by itself when there is room."""

import asyncio
from random import Random

import pytest

import kvorum
from kvorum import KV, QuotaExceeded
from kvorum.admin import ClusterAdmin
from kvorum.cli.local_cluster import LocalCluster
from kvorum.limits import MIB

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

QUOTA_BYTES = 64 * MIB
ENOUGH = 1000
"""Writes of half a MiB, which no such quota lets through."""
ROOM_SECONDS = 120.0
"""Until files were rewritten on all nodes."""


async def write_until_refused(kv: KV) -> tuple[int, QuotaExceeded]:
    """How many records were written, and the error that ended it."""
    random = Random(1)
    for number in range(ENOUGH):
        try:  # a value of its own each: nothing is gained by compression
            await kv.put(f"k{number}", random.randbytes(MIB // 2), type="bytes")
        except QuotaExceeded as error:
            return number, error
    raise AssertionError("nothing was refused")


async def until_there_is_room(admin: ClusterAdmin) -> None:
    async with asyncio.timeout(ROOM_SECONDS):
        while (await admin.status(await admin.find_leader())).alarms:  # noqa: ASYNC110 - of nodes
            await asyncio.sleep(0.2)


async def test_writes_stop_at_the_quota_and_go_on_when_there_is_room(
    empty_cluster: LocalCluster,
) -> None:
    flags = ["--quota-bytes", str(QUOTA_BYTES), "--log-max-bytes", str(2 * MIB)]
    await empty_cluster.up(nodes=3, base_port=0, flags=flags)
    addresses = [node.address for node in empty_cluster.nodes]
    async with (
        kvorum.open(empty_cluster.target, timeout=30) as kv,
        ClusterAdmin(addresses) as admin,
    ):
        count, error = await write_until_refused(kv)
        assert error.metadata["node"] in ("n1", "n2", "n3")
        assert error.metadata["limit"] == "quota_bytes"
        assert "its quota is 67,108,864" in str(error)
        leader = await admin.find_leader()
        status = await admin.status(leader)
        assert status.quota_bytes == QUOTA_BYTES
        assert error.metadata["node"] in {alarm.node for alarm in status.alarms}

        assert (await kv.get("k0", type="bytes")) is not None
        assert len((await kv.list("k", limit=5, type="bytes")).entries) == 5
        await asyncio.gather(*(kv.delete(f"k{number}") for number in range(count)))
        revision = (await admin.status(await admin.find_leader())).revision
        assert await admin.compact(revision) == revision

        await until_there_is_room(admin)
        await kv.put("k", "there is room")
