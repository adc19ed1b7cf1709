"""`kvorum cluster rolling-restart`: every node once, and the cluster serves meanwhile.

Rule of this file: no node is stopped unless every other one is up and has caught up, so
that the cluster never lacks more than the one that is restarted.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from kvorum.cli.cluster_file import LocalClusterError
from kvorum.cli.local_cluster import LocalCluster, NodeReport
from kvorum.cli.local_node import leader_of
from kvorum.cli.processes import POLL_SECONDS, ProcessState

READY_SECONDS: Final = 120.0
"""How long nodes may take to catch up, if need be with a snapshot."""


class NotReady(LocalClusterError):
    """A node is down, or does not catch up: another one must not be restarted now."""


async def rolling_restart(cluster: LocalCluster, report: Callable[[str, bool], None]) -> None:
    """Restart one node after the other, the leader last, each when all are ready.

    So leadership moves once, and by being handed over.

    Args:
        report: is told the name of each node twice: False when it is stopped, True when
            all are ready again.

    Raises:
        NotReady: and the nodes that come next were left alone.
        NodeFailed, NodeRemoved, DataLost: as LocalCluster.restart.
    """
    left = [node.name for node in cluster.nodes]
    leader = await wait_until_ready(cluster)
    while left:
        name = next((one for one in left if one != leader), leader)
        report(name, False)
        await cluster.restart(name)
        left.remove(name)
        leader = await wait_until_ready(cluster)
        report(name, True)


async def wait_until_ready(cluster: LocalCluster) -> str:
    """Return the leader's name, once every node follows it, and has applied what it had
    committed at first.

    Raises:
        NotReady: at once if a node is down or cut off, later if one does not catch up.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + READY_SECONDS
    goal: int | None = None
    lagging: list[NodeReport] = []
    if cluster.cut_off:
        raise NotReady(f"{', '.join(cluster.cut_off)} is cut off: `kvorum cluster heal` first")
    while True:
        reports = await cluster.status()
        _refuse_down(reports)
        leader = leader_of(reports)
        if leader is not None and goal is None:
            goal = next(_committed(one) for one in reports if one.node.name == leader)
        if leader is not None and goal is not None:
            lagging = [one for one in reports if not _is_ready(one, leader, goal)]
            if not lagging:
                return leader
        if loop.time() >= deadline:
            raise NotReady(_describe(leader, goal, lagging))
        await asyncio.sleep(POLL_SECONDS)


def _refuse_down(reports: Sequence[NodeReport]) -> None:
    for one in reports:
        if one.state is not ProcessState.RUNNING:
            verb = "resume" if one.state is ProcessState.PAUSED else "restart"
            name = one.node.name
            raise NotReady(
                f"{name} is {one.state.value}, and without another one the cluster could stand"
                f" still: `kvorum cluster {verb} {name}` first"
            )


def _is_ready(report: NodeReport, leader: str, goal: int) -> bool:
    status = report.status
    return status is not None and status.leader == leader and status.applied_index >= goal


def _describe(leader: str | None, goal: int | None, lagging: Sequence[NodeReport]) -> str:
    if leader is None:
        return f"no node leads after {READY_SECONDS:.0f} s"
    views = "; ".join(f"{one.node.name} {_lack(one, leader, goal)}" for one in lagging)
    return f"not every node has caught up after {READY_SECONDS:.0f} s: {views}"


def _lack(report: NodeReport, leader: str, goal: int | None) -> str:
    status = report.status
    if status is None:
        return f"does not answer: {report.problem}"
    if not status.leader:
        return "hears no leader"
    if status.leader != leader:
        return f"follows {status.leader}, not {leader}"
    return f"has applied {status.applied_index} of {goal} entries"


def _committed(report: NodeReport) -> int:
    return 0 if report.status is None else report.status.commit_index
