"""One of the first members comes back without its data directory: it ends, and nothing is lost."""

import shutil

import pytest

from kvorum import KV
from kvorum.admin import ClusterAdmin
from kvorum.cli.local_cluster import LocalCluster
from kvorum.cli.local_node import LocalNode
from kvorum_node.server import NOT_TO_BE_RESTARTED
from kvorumpb.v1 import cluster_pb2
from tests.support import shell
from tests.support.workload import Workload, assert_nothing_lost, followers, until

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]


def first_start(cluster: LocalCluster, node: LocalNode) -> list[str]:
    """As it was started when the cluster began: such settings stay in scripts and manifests."""
    members = ",".join(f"{one.name}={one.address}" for one in cluster.nodes)
    return [
        *("node", node.name, "--data-dir", str(node.data_dir)),
        *("--listen", node.address, "--cluster", members),
    ]


async def assert_it_ends(cluster: LocalCluster, node: LocalNode) -> None:
    ran = await shell.run(*first_start(cluster, node))
    assert ran.returncode == NOT_TO_BE_RESTARTED, ran.stderr
    [last] = ran.stderr.splitlines()[-1:]
    assert f"{node.name} stops: {node.name} was a member with another data directory" in last
    assert f"`kvorum member remove {node.name}`" in last
    assert "Traceback" not in ran.stderr


async def test_it_ends_beside_a_living_cluster_which_goes_on(
    three_nodes: LocalCluster, kv: KV
) -> None:
    victim = (await followers(three_nodes))[0]
    async with Workload(kv) as work:
        three_nodes.kill(victim.name)
        shutil.rmtree(victim.data_dir)
        for _ in range(2):  # the second time with what the first one has left
            await assert_it_ends(three_nodes, victim)
        await work.progress()
        assert await three_nodes.add(lambda member, lag: None) == "n4"
        assert await three_nodes.remove(victim.name)
        await work.progress()
    assert work.kinds_of_failure == {}
    assert [node.name for node in three_nodes.nodes if node == victim] == []
    await assert_nothing_lost(three_nodes, work)


async def test_with_the_one_that_lacks_the_writes_it_does_not_make_a_majority(
    three_nodes: LocalCluster, kv: KV
) -> None:
    victim, absent = await followers(three_nodes)
    leader = three_nodes.node(await three_nodes.leader())
    three_nodes.kill(absent.name)
    async with Workload(kv) as work:
        await work.progress()
    three_nodes.kill(victim.name)
    three_nodes.kill(leader.name)
    shutil.rmtree(victim.data_dir)
    await three_nodes.restart(absent.name)
    await assert_it_ends(three_nodes, victim)
    async with ClusterAdmin() as admin:
        assert (await admin.status(absent.address)).role != cluster_pb2.LEADER

    await three_nodes.restart(leader.name)
    await kv.put("k", "it goes on")
    await assert_nothing_lost(three_nodes, work)


async def test_a_leader_is_not_removed_while_the_others_alone_are_no_majority(
    three_nodes: LocalCluster, kv: KV
) -> None:
    """It hands over, and the next leader has never heard from the one that is dead."""
    dead = (await followers(three_nodes))[0]
    leader = await three_nodes.leader()
    three_nodes.kill(dead.name)

    async def view() -> cluster_pb2.GetStatusResponse:
        async with ClusterAdmin(node.address for node in three_nodes.nodes) as admin:
            return await admin.status(await admin.find_leader())

    async def is_noticed() -> bool:
        return any(not one.active for one in (await view()).members if one.name == dead.name)

    await until(is_noticed)
    ran = await shell.run("member", "remove", leader, "--target", three_nodes.target)
    assert ran.returncode == 1
    assert f"{dead.name} cannot be reached now" in ran.stderr
    assert await kv.add("k") == 1
    assert [one.kind for one in (await view()).members] == [cluster_pb2.Member.VOTER] * 3
