"""Two of three disks are gone for good: the third becomes a cluster, and grows again."""

import json
import shutil

import pytest

import kvorum
from kvorum.admin import ClusterAdmin
from kvorum.cli.local_cluster import LocalCluster, LocalNode
from kvorumpb.v1 import cluster_pb2
from tests.support import shell
from tests.support.workload import Workload, assert_nothing_lost, followers

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]


async def test_a_survivor_becomes_a_cluster_with_its_data_and_grows_again(
    three_nodes: LocalCluster,
) -> None:
    async with kvorum.open(three_nodes.target, timeout=15) as kv:
        async with Workload(kv) as work:
            pass
        await assert_nothing_lost(three_nodes, work)
    lost, zombie = await followers(three_nodes)
    survivor = three_nodes.node(await three_nodes.leader())
    directory = ("--data-dir", str(survivor.data_dir))

    running = await shell.run("recover", *directory)
    assert running.returncode == 1
    assert "is open in the process with pid" in running.stderr

    three_nodes.kill_all()
    shutil.rmtree(lost.data_dir)
    before = json.loads(await shell.output("recover", *directory, "--json"))
    assert before["name"] == survivor.name
    assert [member["kind"] for member in before["members"]] == ["voter"] * 3
    shown = await shell.run("recover", *directory)
    assert f"{before['last_index']}@{before['last_term']}" in shown.stdout
    assert "The highest term, and among equals the highest index" in shown.stderr

    refused = await shell.run("recover", *directory, "--force-new-cluster")  # stdin is no answer
    assert refused.returncode == 1
    assert "are lost" in refused.stderr
    assert json.loads(await shell.output("recover", *directory, "--json")) == before

    made = await shell.output("recover", *directory, "--force-new-cluster", "--yes")
    [start] = [line.split() for line in made.splitlines() if line.startswith("  kvorum node")]
    assert start == ["kvorum", *start_again(survivor)]

    # One of the old cluster lives after all, and knows where the survivor is.
    await three_nodes.restart(survivor.name)
    await three_nodes.restart(zombie.name)
    async with kvorum.open(f"kvorum://{survivor.address}", timeout=15) as kv:
        await kv.put("after", 1)
        assert await three_nodes.leader() == survivor.name
        three_nodes.kill(zombie.name)
        for gone in (lost, zombie):
            assert await three_nodes.remove(gone.name)
        for _ in range(2):
            await three_nodes.add(lambda member, lag: None)
        assert [node.name for node in three_nodes.nodes] == [survivor.name, "n4", "n5"]
        more = Workload(kv, first=1_000_000)
        async with more:
            three_nodes.kill(survivor.name)
            await more.progress()
        await three_nodes.restart(survivor.name)
        more.merge(work)
        await assert_nothing_lost(three_nodes, more)
        assert await kv.get("after") is not None
    async with ClusterAdmin([survivor.address]) as admin:
        status = await admin.status(survivor.address)
    assert status.cluster_id != before["cluster_id"]
    assert [member.kind for member in status.members] == [cluster_pb2.Member.VOTER] * 3


def start_again(node: LocalNode) -> list[str]:
    return ["node", node.name, "--data-dir", str(node.data_dir), "--listen", node.address]
