"""Nodes die, hand over and come back under load: nothing acknowledged is lost, writes go on."""

import pytest

import kvorum
from kvorum import KV
from kvorum.admin import ClusterAdmin
from kvorum.cli.local_cluster import LocalCluster
from tests.support.workload import Workload, agreed_content, assert_nothing_lost, followers, until

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]


async def test_the_leader_is_killed_under_load(three_nodes: LocalCluster, kv: KV) -> None:
    async with Workload(kv) as work:
        for _ in range(2):
            leader = await three_nodes.leader()
            three_nodes.kill(leader)
            await work.progress()
            await three_nodes.restart(leader)
            await work.progress()
    # What was on its way to the dead leader was sent to the next one.
    assert work.kinds_of_failure == {}
    await assert_nothing_lost(three_nodes, work)


async def test_a_follower_is_killed_under_load_and_nobody_notices(
    three_nodes: LocalCluster, kv: KV
) -> None:
    leader = await three_nodes.leader()
    async with Workload(kv) as work:
        for victim in await followers(three_nodes):
            three_nodes.kill(victim.name)
            await work.progress()
            await three_nodes.restart(victim.name)
            await work.progress()
    assert work.failures == []
    assert await three_nodes.leader() == leader
    await assert_nothing_lost(three_nodes, work)


async def test_all_three_are_killed_at_once(three_nodes: LocalCluster) -> None:
    async with kvorum.open(three_nodes.target, timeout=3) as kv:
        async with Workload(kv) as work:
            three_nodes.kill_all()
            work.stop()
        # Nobody is there to be asked again, and time runs out.
        assert set(work.kinds_of_failure) <= {"DeadlineExceeded", "NoNodeReachable"}
        assert sorted(await three_nodes.up()) == ["n1", "n2", "n3"]
        async with Workload(kv, first=1_000_000) as more:
            pass
        work.merge(more)
        await assert_nothing_lost(three_nodes, work)


async def test_leadership_moves_under_load_without_a_failed_write(
    three_nodes: LocalCluster, kv: KV
) -> None:
    async with Workload(kv) as work, ClusterAdmin() as admin:
        for _ in range(4):
            leader = await three_nodes.leader()
            await admin.transfer_leadership(three_nodes.node(leader).address)
            await work.progress()
            assert await three_nodes.leader() != leader
    assert work.kinds_of_failure == {}
    await assert_nothing_lost(three_nodes, work)


async def test_a_named_node_takes_over(three_nodes: LocalCluster) -> None:
    async with ClusterAdmin() as admin:
        for name in ("n1", "n2", "n3"):
            leader = await three_nodes.leader()
            if name == leader:
                continue
            address = three_nodes.node(leader).address
            assert await admin.transfer_leadership(address, name) == name
            assert await three_nodes.leader() == name


async def test_every_node_is_restarted_under_load_without_a_failed_write(
    three_nodes: LocalCluster, kv: KV
) -> None:
    """As an upgrade does it: SIGTERM, start, the next one, with the leader last and first."""
    async with Workload(kv) as work:
        others = [node.name for node in await followers(three_nodes)]
        for name in (await three_nodes.leader(), *others):
            await three_nodes.restart(name)
            await work.progress()
        await three_nodes.restart(await three_nodes.leader())
        await work.progress()
    assert work.kinds_of_failure == {}
    await assert_nothing_lost(three_nodes, work)


async def test_a_leader_that_stops_hands_over_to_a_living_follower(
    three_nodes: LocalCluster, kv: KV
) -> None:
    """Even if a dead one has just as much of the log, and comes first."""
    dead = min(node.name for node in await followers(three_nodes))
    leader = await three_nodes.leader()
    await kv.put("k", 1)
    await agreed_content(three_nodes)
    three_nodes.kill(dead)
    async with ClusterAdmin() as admin:

        async def is_given_up() -> bool:
            status = await admin.status(three_nodes.node(leader).address)
            return not next(member.active for member in status.members if member.name == dead)

        await until(is_given_up)
    await three_nodes.restart(leader)
    [successor] = {node.name for node in three_nodes.nodes} - {dead, leader}
    log = "\n".join(three_nodes.log_tail(leader, 1000))
    assert f"has handed leadership to {successor}" in log
    assert await kv.add("k") == 2
