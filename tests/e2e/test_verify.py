"""A disk alters what a node holds: `kvorum verify` finds it, and the node is replaced."""

import asyncio
import json
import os
import signal
import subprocess

import pytest

from kvorum import KV
from kvorum.admin import ClusterAdmin
from kvorum.cli.local_cluster import LocalCluster
from kvorum.cli.local_node import LocalNode
from kvorum.cli.processes import ProcessState
from kvorum.errors import KvorumError
from kvorum_node.raft.types import GroupId
from kvorum_node.server import NOT_TO_BE_RESTARTED
from kvorum_node.storage.engine import Batch, Family
from kvorum_node.storage.layout import Space, data_key
from kvorum_node.storage.rocks import RocksEngine, Role
from kvorumpb.v1 import cluster_pb2
from kvorumpb.v1.command_pb2 import Record
from tests.support import shell
from tests.support.workload import Workload, assert_nothing_lost, followers, until

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

KEY = "altered"


async def stop(cluster: LocalCluster, node: LocalNode) -> None:
    """With SIGTERM, so that its state is on its disk."""
    assert node.process is not None
    os.kill(node.process.pid, signal.SIGTERM)

    async def is_dead() -> bool:
        return cluster.state(node.name) is ProcessState.DEAD

    await until(is_dead)


def alter_a_bit(node: LocalNode) -> None:
    """Of a record, in the state of a node that is stopped."""
    engine = RocksEngine.open(node.data_dir / "state", Role.STATE, create=False)
    try:
        key = data_key(Space(GroupId(1), 0), KEY.encode())
        stored = engine.get(Family.DATA, key)
        assert stored is not None
        record = Record.FromString(stored)
        record.value = bytes([record.value[0], record.value[1] ^ 1]) + record.value[2:]
        batch = Batch()
        batch.put(Family.DATA, key, record.SerializeToString())
        engine.write(batch)
        engine.sync()
    finally:
        engine.close()


def start(node: LocalNode) -> "subprocess.Popen[str]":
    """As a process of which the test learns how it ends."""
    return shell.start(
        ["node", node.name, "--data-dir", str(node.data_dir), "--listen", node.address]
    )


async def end_of(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """The exit status, and what was said on stderr."""
    _, said = await asyncio.to_thread(process.communicate, timeout=shell.END_SECONDS)
    return process.returncode, said


async def until_it_follows(node: LocalNode) -> None:
    async with ClusterAdmin() as admin:

        async def follows() -> bool:
            try:
                return (await admin.status(node.address)).leader != ""
            except KvorumError:
                return False

        await until(follows)


async def let_lead(cluster: LocalCluster, name: str) -> None:
    async with ClusterAdmin(node.address for node in cluster.nodes) as admin:

        async def leads() -> bool:
            try:
                return await admin.transfer_leadership(await admin.find_leader(), name) == name
            except KvorumError:
                return False  # it is not up to date yet, or was too slow

        await until(leads)


def assert_says_why(node: LocalNode, status: int, said: str) -> None:
    assert status == NOT_TO_BE_RESTARTED, said
    [last] = said.splitlines()[-1:]
    assert f"{node.name} stops: the state of {node.name} differs from what the majority" in last
    assert "`kvorum member add HOST:PORT`" in last
    assert f"`kvorum member remove {node.name}`" in last
    assert "Traceback" not in said


async def assert_does_not_come_back(node: LocalNode) -> None:
    for _ in range(2):
        assert_says_why(node, *await end_of(start(node)))


async def verify(cluster: LocalCluster) -> tuple[int, dict[str, str]]:
    """What the command says of each member, and its exit status."""
    ran = await shell.run("verify", "--json", "--target", cluster.target)
    assert ran.stdout, ran.stderr
    return ran.returncode, json.loads(ran.stdout)["members"]


async def replace(cluster: LocalCluster, node: LocalNode) -> None:
    """As the message says."""
    assert await cluster.add(lambda member, lag: None) == "n4"
    await cluster.remove(node.name)
    status, members = await verify(cluster)
    assert status == 0
    assert members == {one.name: "same" for one in cluster.nodes}


async def test_a_follower_that_holds_something_else_stops_and_is_replaced(
    three_nodes: LocalCluster, kv: KV
) -> None:
    await kv.put(KEY, "as it was written")
    victim = (await followers(three_nodes))[0]
    async with Workload(kv, writers=4) as work:
        await stop(three_nodes, victim)
        alter_a_bit(victim)
        process = start(victim)
        try:
            await until_it_follows(victim)
            status, members = await verify(three_nodes)
            assert_says_why(victim, *await end_of(process))
        finally:
            process.kill()
        assert status == 1
        others = [node.name for node in three_nodes.nodes if node != victim]
        assert members == {victim.name: "corrupt", **dict.fromkeys(others, "same")}
        await work.progress()
        await assert_does_not_come_back(victim)
        await replace(three_nodes, victim)
        await work.progress()
    assert work.kinds_of_failure == {}
    entry = await kv.get(KEY)
    assert entry is not None
    assert entry.value == "as it was written"
    await assert_nothing_lost(three_nodes, work)


async def test_a_leader_that_holds_something_else_stops_and_is_replaced(
    three_nodes: LocalCluster, kv: KV
) -> None:
    await kv.put(KEY, "as it was written")
    victim = (await followers(three_nodes))[0]
    await stop(three_nodes, victim)
    alter_a_bit(victim)
    process = start(victim)
    try:
        await until_it_follows(victim)
        await let_lead(three_nodes, victim.name)
        async with Workload(kv, writers=4) as work:
            ran = await shell.run("verify", "--target", three_nodes.target)
            assert_says_why(victim, *await end_of(process))
            await work.progress()
    finally:
        process.kill()
    assert ran.returncode == 1
    assert f"{victim.name}   corrupt" in ran.stdout
    assert f"error: {victim.name} holds something else than the majority, and stops" in ran.stderr
    # What was on its way to the leader that has stopped may be in doubt, no more.
    assert set(work.kinds_of_failure) <= {"OutcomeUnknown"}
    await assert_does_not_come_back(victim)
    await replace(three_nodes, victim)
    entry = await kv.get(KEY)
    assert entry is not None
    assert entry.value == "as it was written"
    await assert_nothing_lost(three_nodes, work)


async def test_sound_nodes_hold_the_same_under_load(three_nodes: LocalCluster, kv: KV) -> None:
    async with Workload(kv) as work:
        for _ in range(3):
            assert await verify(three_nodes) == (0, {"n1": "same", "n2": "same", "n3": "same"})
            await work.progress(20)
        table = await shell.output("verify", "--target", three_nodes.target)
        assert "records, hash" in table.splitlines()[-1]
    assert work.kinds_of_failure == {}
    await assert_nothing_lost(three_nodes, work)


async def test_the_nodes_verify_themselves_now_and_then(empty_cluster: LocalCluster) -> None:
    await empty_cluster.up(nodes=3, base_port=0, flags=["--verify-interval-seconds", "0.2"])
    log_files = [node.log_file for node in empty_cluster.nodes]

    async def is_verified() -> bool:
        return any("n1, n2, n3 held the same at" in file.read_text() for file in log_files)

    await until(is_verified)
    async with ClusterAdmin(node.address for node in empty_cluster.nodes) as admin:
        survey = await admin.survey()
    assert {one.role for one in survey.answers.values()} == {
        cluster_pb2.LEADER,
        cluster_pb2.FOLLOWER,
    }
