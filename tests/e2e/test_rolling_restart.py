"""A rolling restart: each node once, the leader last, and no write fails meanwhile."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

import kvorum
from kvorum.cli import rolling_restart as module
from kvorum.cli.local_cluster import LocalCluster
from kvorum.cli.local_node import LocalNode, NodeReport
from kvorum.cli.processes import ProcessState
from kvorum.cli.rolling_restart import NotReady, rolling_restart
from kvorumpb.v1 import cluster_pb2
from tests.support.workload import Workload, assert_nothing_lost, running


@pytest.mark.cluster
@pytest.mark.parametrize("nodes", [3, 5])
async def test_no_write_fails_while_every_node_is_restarted(
    empty_cluster: LocalCluster, nodes: int
) -> None:
    cluster = empty_cluster
    await cluster.up(nodes=nodes, base_port=0)
    before = {node.name: node.process for node in cluster.nodes}
    leader = await cluster.leader()
    order: list[str] = []

    def report(name: str, is_ready: bool) -> None:
        assert len(running(cluster)) == nodes
        order.append(name)

    async with (
        kvorum.open(cluster.target, timeout=30) as kv,
        Workload(kv, writers=8) as workload,
    ):
        await rolling_restart(cluster, report)
        await workload.progress()
    assert workload.kinds_of_failure == {}
    assert order == [name for name in order[::2] for _ in range(2)]
    assert sorted(order[::2]) == sorted(before)
    assert order[-1] == leader
    after = {node.name: node.process for node in cluster.nodes}
    assert all(after[name] != process for name, process in before.items())
    async with kvorum.open(cluster.target) as kv:
        workload.kv = kv
        await assert_nothing_lost(cluster, workload)


@pytest.mark.cluster
async def test_a_node_of_its_own_is_restarted_too(empty_cluster: LocalCluster) -> None:
    await empty_cluster.up(nodes=1, base_port=0)
    before = empty_cluster.node("n1").process
    await rolling_restart(empty_cluster, lambda name, is_ready: None)
    assert empty_cluster.node("n1").process != before


@dataclass
class FakeCluster:
    """Nodes that are what a test says, and what was done to them."""

    reports: list[NodeReport]
    restarted: list[str] = field(default_factory=list)
    asked: int = 0
    leaders: dict[str, str] = field(default_factory=dict)
    """Who leads once that node was restarted."""
    cut_off: tuple[str, ...] = ()

    @property
    def nodes(self) -> list[LocalNode]:
        return [report.node for report in self.reports]

    async def status(self) -> list[NodeReport]:
        self.asked += 1
        return self.reports

    async def restart(self, name: str) -> None:
        self.restarted.append(name)
        if name in self.leaders:
            self.reports = reports_of(len(self.reports), self.leaders[name])


def reports_of(count: int, leader: str) -> list[NodeReport]:
    names = [f"n{number}" for number in range(1, count + 1)]
    return [
        NodeReport(
            LocalNode(name, "127.0.0.1:1", "127.0.0.1:2", Path(name), Path(name), None),
            ProcessState.RUNNING,
            cluster_pb2.GetStatusResponse(
                name=name,
                role=cluster_pb2.LEADER if name == leader else cluster_pb2.FOLLOWER,
                term=1,
                leader=leader,
                commit_index=7,
                applied_index=7,
            ),
        )
        for name in names
    ]


async def roll(cluster: FakeCluster) -> None:
    await rolling_restart(cast("LocalCluster", cluster), lambda name, is_ready: None)


async def test_the_leader_comes_last_whoever_it_is_by_then() -> None:
    cluster = FakeCluster(reports_of(3, "n1"))
    await roll(cluster)
    assert cluster.restarted == ["n2", "n3", "n1"]
    cluster = FakeCluster(reports_of(3, "n1"), leaders={"n2": "n3"})
    await roll(cluster)
    assert cluster.restarted == ["n2", "n1", "n3"]
    cluster = FakeCluster(reports_of(3, "n1"), leaders={"n3": "n2"})
    await roll(cluster)
    assert cluster.restarted == ["n2", "n3", "n1"]


@pytest.mark.parametrize(
    ("state", "command"),
    [(ProcessState.DEAD, "restart"), (ProcessState.PAUSED, "resume")],
)
async def test_nothing_is_restarted_while_another_node_is_down(
    state: ProcessState, command: str
) -> None:
    reports = reports_of(3, "n1")
    cluster = FakeCluster([*reports[:2], replace(reports[2], state=state, status=None)])
    with pytest.raises(NotReady, match=f"n3 is {state.value}.*`kvorum cluster {command} n3`"):
        await roll(cluster)
    assert cluster.restarted == []


async def test_nothing_is_restarted_while_a_node_is_cut_off() -> None:
    cluster = FakeCluster(reports_of(3, "n1"), cut_off=("n2",))
    with pytest.raises(NotReady, match="n2 is cut off"):
        await roll(cluster)
    assert cluster.restarted == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"applied_index": 6}, "n2 has applied 6 of 7 entries"),
        ({"leader": ""}, "n2 hears no leader"),
        ({"leader": "n3"}, "n2 follows n3, not n1"),
    ],
)
async def test_a_node_that_does_not_catch_up_is_named(
    change: dict[str, int | str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READY_SECONDS", 0.2)
    cluster = FakeCluster(reports_of(3, "n1"))
    status = cluster.reports[1].status
    assert status is not None
    for name, value in change.items():
        setattr(status, name, value)
    with pytest.raises(NotReady, match=message):
        await roll(cluster)
    assert cluster.restarted == []
    assert cluster.asked > 1


async def test_a_cluster_without_a_leader_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READY_SECONDS", 0.2)
    cluster = FakeCluster(reports_of(3, "nobody"))
    with pytest.raises(NotReady, match="no node leads"):
        await roll(cluster)
    assert cluster.restarted == []
