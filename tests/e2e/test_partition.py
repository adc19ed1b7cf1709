"""Nodes of the local cluster, cut off from one another by the kernel, and healed again."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvorum
from kvorum.admin import ClusterAdmin
from kvorum.cli import partition
from kvorum.cli.cluster_file import LocalClusterError, NoClusterHere
from kvorum.cli.local_cluster import LocalCluster
from kvorum.cli.partition import CannotPartition, Partition
from kvorum.cli.rolling_restart import NotReady, rolling_restart
from kvorumpb.v1 import cluster_pb2
from tests.support.command_line import kvorum as command
from tests.support.node_processes import nodes_of
from tests.support.workload import agreed_content, until

FAST = ("--fsync", "off")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A cluster that is not started; whatever a test starts or cuts is ended and healed."""
    cluster = LocalCluster(tmp_path / "cluster")
    yield cluster
    Partition(cluster.directory).heal()
    with contextlib.suppress(NoClusterHere):
        cluster.kill_all()
    assert nodes_of(tmp_path) == []


@pytest.fixture
async def running(cluster: LocalCluster) -> LocalCluster:
    try:
        Partition(cluster.directory).refuse_unless_possible()
    except CannotPartition as error:
        pytest.skip(str(error))
    await cluster.up(base_port=0, flags=FAST)
    return cluster


def left_in_the_kernel(cluster: LocalCluster) -> list[str]:
    """The tables and control groups of the cluster."""
    name = Partition(cluster.directory)._id
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    mount = partition._mount()
    assert mount is not None
    groups = [str(path) for path in mount.rglob(f"{name}*")]
    return [line for line in tables.stdout.splitlines() if name in line] + groups


def are_seated(cluster: LocalCluster) -> bool:
    """Whether each node's process is in a control group of the partition."""
    groups = [
        Path(f"/proc/{node.process.pid}/cgroup").read_text() if node.process else ""
        for node in cluster.nodes
    ]
    return all(Partition(cluster.directory)._id in group for group in groups)


async def status_of(cluster: LocalCluster, name: str) -> cluster_pb2.GetStatusResponse:
    async with ClusterAdmin() as admin:
        return await admin.status(cluster.node(name).address)


async def elects_another_than(cluster: LocalCluster, old: str) -> None:
    async def is_so() -> bool:
        try:
            return await cluster.leader() != old
        except LocalClusterError:
            return False

    await until(is_so)


@pytest.mark.cluster
async def test_a_leader_that_is_cut_off_is_replaced_and_comes_back(running: LocalCluster) -> None:
    old = await running.leader()
    others = [node.name for node in running.nodes if node.name != old]
    assert running.partition([old]) == others
    assert running.cut_off == [old]
    await elects_another_than(running, old)
    async with kvorum.open(running.target) as kv:
        await kv.put("k", "written by the majority")
        # A client reaches the node that is cut off: over a new connection, too.
        own = f"kvorum://{running.node(old).address}"
        before = (await status_of(running, old)).last_index
        async with kvorum.open(own, timeout=20) as alone:
            assert await alone.get("k", consistency="stale") is None
        assert running.heal() == [old]

        async def has_caught_up() -> bool:
            return (await status_of(running, old)).applied_index > before

        await until(has_caught_up)
        entry = await kv.get("k")
        assert entry is not None
    assert (await agreed_content(running)).record_count == 1
    assert left_in_the_kernel(running) == []
    assert running.heal() == []


@pytest.mark.cluster
async def test_a_node_that_is_restarted_stays_cut_off(running: LocalCluster) -> None:
    """And its new connections are, which are not among those that were there at the cut."""
    victim = next(report.node.name for report in await running.status() if not report.leads)
    running.partition([victim])
    await running.restart(victim)
    leader = await running.leader()
    await running.restart(next(n.name for n in running.nodes if n.name not in (victim, leader)))
    assert are_seated(running)
    async with kvorum.open(running.target) as kv:
        await kv.put("k", 1)
        assert (await status_of(running, victim)).leader == ""
        with pytest.raises(NotReady, match=f"{victim} is cut off: `kvorum cluster heal` first"):
            await rolling_restart(running, lambda name, is_ready: None)
        running.heal()
        await agreed_content(running)


@pytest.mark.cluster
async def test_two_of_five_are_cut_off_and_the_majority_goes_on(cluster: LocalCluster) -> None:
    try:
        Partition(cluster.directory).refuse_unless_possible()
    except CannotPartition as error:
        pytest.skip(str(error))
    await cluster.up(nodes=5, base_port=0, flags=FAST)
    old = await cluster.leader()
    companion = next(node.name for node in cluster.nodes if node.name != old)
    cluster.partition([old, companion])
    assert cluster.cut_off == sorted([old, companion])
    await elects_another_than(cluster, old)
    async with kvorum.open(cluster.target) as kv:
        await kv.put("k", 1)

        async def minority_hears_no_leader() -> bool:
            return [(await status_of(cluster, one)).leader for one in (old, companion)] == ["", ""]

        await until(minority_hears_no_leader)
        # Another cut takes the place of the first.
        cluster.partition([companion])
        assert cluster.cut_off == [companion]
        cluster.heal()
        await agreed_content(cluster)


@pytest.mark.cluster
async def test_down_heals_whatever_became_of_who_has_cut(running: LocalCluster) -> None:
    running.partition(["n1"])
    assert len(left_in_the_kernel(running)) == 4  # a table, and a group for each node
    await LocalCluster(running.directory).down(wipe=True)
    assert left_in_the_kernel(running) == []


@pytest.mark.cluster
async def test_a_cut_that_was_not_finished_is_healed(
    running: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once by itself, and once by another, after a SIGKILL in the middle of it."""
    nft = partition._nft

    def fail(ruleset: str) -> None:
        if "dport" in ruleset:
            raise KeyboardInterrupt
        nft(ruleset)

    monkeypatch.setattr(partition, "_nft", fail)
    with pytest.raises(KeyboardInterrupt):
        running.partition(["n1"])
    assert left_in_the_kernel(running) == []
    monkeypatch.setattr(Partition, "heal", lambda self: False)
    with pytest.raises(KeyboardInterrupt):
        running.partition(["n1"])
    monkeypatch.undo()
    assert left_in_the_kernel(running) != []
    assert LocalCluster(running.directory).heal() == ["n1"]
    assert left_in_the_kernel(running) == []


def run(*arguments: str) -> str:
    line = [sys.executable, "-m", "kvorum.cli", "cluster", *arguments]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


@pytest.mark.cluster
async def test_the_commands_say_what_they_did(
    running: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVORUM_CLUSTER_DIR", str(running.directory))
    assert run("heal") == "no node was cut off\n"
    assert run("partition", "n1") == (
        "cut n1 off from n2 and n3; end it with `kvorum cluster heal`\n"
    )
    assert " cut off " in run("status")
    assert '"cut_off": true' in run("status", "--json")
    assert run("heal") == "healed: n1 can reach the others again\n"
    assert " cut off " not in run("status")
    refused = command("cluster", "partition", "n1", "n2", "n3")
    assert (refused.status, refused.err) == (
        1,
        "error: a partition has two sides: name some nodes, but not all\n",
    )


@pytest.mark.cluster
async def test_other_traffic_passes(running: LocalCluster) -> None:
    """Between a node that is cut off and anybody else: only the members' ports are closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        running.partition(["n1"])
        for port in (running.node("n1").port, running.node("n2").port, server.getsockname()[1]):
            socket.create_connection(("127.0.0.1", port), timeout=20).close()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("linux", "nodes can be cut off on Linux only; `kvorum cluster pause` freezes one"),
        ("root", "only root may cut nodes off: run it with sudo"),
        ("nft", "to cut nodes off takes `nft`: install nftables"),
        ("cgroup2", "to cut nodes off takes control groups, and no cgroup2 is mounted"),
    ],
)
def test_what_is_missing_is_said(
    missing: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin" if missing == "linux" else "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000 if missing == "root" else 0)
    monkeypatch.setattr(shutil, "which", lambda name: None if missing == "nft" else name)
    if missing == "cgroup2":
        (tmp_path / "mounts").write_text("tmpfs /tmp tmpfs rw 0 0\n")
        monkeypatch.setattr(partition, "MOUNTS", tmp_path / "mounts")
    with pytest.raises(CannotPartition) as raised:
        Partition(tmp_path).cut((), ())
    assert str(raised.value) == message


@pytest.mark.cluster
async def test_a_filter_that_does_not_see_control_groups_is_no_partition(
    running: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in some containers: rules are taken there, and match nothing."""
    monkeypatch.setattr(partition, "PROBE", "pass")
    monkeypatch.setenv("KVORUM_CLUSTER_DIR", str(running.directory))
    ran = command("cluster", "partition", "n1")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == "error: the packet filter of this system does not see control groups\n"
    assert left_in_the_kernel(running) == []


@pytest.mark.cluster
async def test_a_user_cannot_start_or_heal_what_root_has_cut_off(
    running: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.partition(["n1"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("KVORUM_CLUSTER_DIR", str(running.directory))
    for arguments, what in (
        (["restart", "n1"], "start a node that is cut off"),
        (["heal"], "end a partition"),
        (["down"], "end a partition"),
    ):
        ran = await asyncio.to_thread(command, "cluster", *arguments)
        assert (ran.status, ran.err) == (1, f"error: only root may {what}: run it with sudo\n")
    assert len(nodes_of(running.directory)) == 2  # n1 was stopped, and nothing else
    monkeypatch.undo()
    await running.up()
