"""The nodes of a local cluster, one by one: their things, their ports, what they say.

Rule of this file: nothing here starts, signals or changes anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvorum.admin import ClusterAdmin
from kvorum.cli import processes
from kvorum.cli.cluster_file import LocalClusterError, ProcessIdentity
from kvorum.cli.processes import ProcessState
from kvorum.errors import KvorumError
from kvorumpb.v1 import cluster_pb2

DEFAULT_NODES: Final = 3
DEFAULT_BASE_PORT: Final = 7101
HOST: Final = "127.0.0.1"

ANSWER_SECONDS: Final = 2.0
"""How long a node may take to say something about itself."""

IDENTITY_FILE: Final = "kvorum.json"
"""What every data directory holds from the first start on."""


class UnknownNode(LocalClusterError):
    """The cluster has no node of that name."""


class PortTaken(LocalClusterError):
    """Another process listens where a node is to listen."""


class NodeFailed(LocalClusterError):
    """A node process ended, or did not answer in time."""


class NodeRemoved(NodeFailed):
    """A node process ended because the node is no member of the cluster any more."""


class DataLost(LocalClusterError):
    """A node that has run before has lost its data directory, and must not come back."""


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A node of the cluster and where its things are."""

    name: str
    address: str
    admin: str
    """host:port of its probes and metrics, over HTTP."""
    data_dir: Path
    log_file: Path
    process: ProcessIdentity | None

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def admin_port(self) -> int:
        return int(self.admin.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node is doing: seen from outside, and as it says itself."""

    node: LocalNode
    state: ProcessState
    status: cluster_pb2.GetStatusResponse | None = None
    """None if it is not running, or does not answer."""
    problem: str = ""
    """Why a running node gave no status."""

    @property
    def pid(self) -> int | None:
        process = self.node.process
        return None if process is None or self.state is ProcessState.DEAD else process.pid

    @property
    def leads(self) -> bool:
        return self.status is not None and self.status.role == cluster_pb2.LEADER


async def ask(admin: ClusterAdmin, node: LocalNode) -> NodeReport:
    """Never raises for a node: the report says what is wrong."""
    state = processes.state(node.process)
    if state is not ProcessState.RUNNING:
        return NodeReport(node, state)
    try:
        status = await admin.status(node.address, timeout=ANSWER_SECONDS)
    except KvorumError as error:
        return NodeReport(node, state, problem=str(error))
    return NodeReport(node, state, status)


def leader_of(reports: Sequence[NodeReport]) -> str | None:
    """The leader of the highest term: a deposed one that was cut off may not know it yet."""
    leading = [(r.status.term, r.node.name) for r in reports if r.status is not None and r.leads]
    return max(leading)[1] if leading else None


def describe_trouble(reports: Sequence[NodeReport], *, seconds: float) -> str:
    """Why a cluster that was started takes no writes."""
    views = "; ".join(
        f"{r.node.name} {r.state.value}" + (f", {r.problem}" if r.problem else "") for r in reports
    )
    return f"the cluster is not usable after {seconds:.0f} s: {views}"


def refuse_lost(names: Sequence[str]) -> None:
    """Raise DataLost if there are any."""
    if names:
        raise DataLost(
            f"the data directory of {', '.join(names)} is lost, and with it what the node had"
            " promised to the others: it must not come back. Replace it: `kvorum cluster add`, then"
            f" `kvorum cluster remove {names[0]}`"
        )


def refuse_taken_ports(nodes: Sequence[LocalNode]) -> None:
    """Raise PortTaken if a node could not listen."""
    for node in nodes:
        if not processes.is_port_free(HOST, node.port):
            holder = processes.port_holder(node.port) or "another process"
            raise PortTaken(
                f"port {node.port}, where {node.name} is to listen, is taken by {holder};"
                " end that process, or choose other ports with --base-port"
            )


def choose_ports(nodes: int | None, base_port: int | None) -> Sequence[int]:
    """For the nodes of a new cluster; `base_port` 0 takes any that are free."""
    count = DEFAULT_NODES if nodes is None else nodes
    if base_port == 0:
        return processes.free_ports(count)
    first = DEFAULT_BASE_PORT if base_port is None else base_port
    return range(first, first + count)


def choose_admin_addresses(ports: Sequence[int], known: Sequence[LocalNode] = ()) -> list[str]:
    """For nodes on these ports: any that are free, and not of one that is known and may be down."""
    taken = {*ports, *(node.port for node in known), *(node.admin_port for node in known)}
    return [f"{HOST}:{port}" for port in processes.free_ports(len(ports), besides=taken)]


def choose_port(known: Sequence[LocalNode]) -> int:
    """For one more node: the next one if it is free, else any."""
    following = max(node.port for node in known) + 1
    if following < processes.FREE_PORTS.stop and processes.is_port_free(HOST, following):
        return following
    [port] = processes.free_ports(1)
    return port
