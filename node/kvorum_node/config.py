"""What a node is told: one frozen value, checked as a whole before anything starts.

How a node finds its cluster is said once, for its first start: either `cluster`, the
same on every node that the cluster begins with, or `join`, for a node that was made a
member later. From then on the data directory knows it, and follows the changes of
members; both settings may stay or go.
"""

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kvorum import limits
from kvorum_node.raft.types import NodeId
from kvorum_node.space import MIN_FREE_BYTES
from kvorum_node.storage.budget import Budget

_NAME: Final = r"n[1-9][0-9]{0,8}"


class NodeConfig(BaseModel):
    """The configuration of one node. Flags, environment and file all end here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    """Of this node, an n and a number. Belongs to the data directory for ever. Empty: it is the
    one that the data directory has; a new one gets it from the cluster that it joins."""

    data_dir: Path
    """Where the node keeps everything. Never shared, never copied to another node."""

    listen: str
    """host:port to serve clients and peers on."""

    admin_listen: str = ""
    """host:port for plain HTTP: /livez, /readyz, /metrics. Empty: none. It shows no data; who
    reaches it can see how the node fares."""

    peer_port: int = Field(default=0, ge=0, le=65_535)
    """Where every member listens for its peers alone, on the host of its address; the same on all
    of them. So a firewall can keep others away from what only members say. 0: on `listen`, too."""

    advertise: str = ""
    """host:port under which others reach this node; if empty, its entry in `cluster`, or
    `listen`. What counts is the address with which it was made a member."""

    cluster: Mapping[str, str] = Field(default_factory=dict[str, str])
    """The members with which the cluster begins, by name, with their addresses."""

    join: tuple[str, ...] = ()
    """host:port of some members of a cluster that has made this node a member."""

    cluster_name: str = Field(default="kvorum", min_length=1)
    """Tells clusters apart that would have the same addresses: part of the cluster's id."""

    fsync: bool = True
    """Off: a crash of the machine loses acknowledged writes, and may undo a vote. For tests."""

    tick_ms: int = Field(default=50, ge=1, le=10_000)
    """The unit of the node's time."""

    election_timeout_ms: int = Field(default=1000, ge=10, le=600_000)
    """A leader that is silent for so long is replaced. Smaller: shorter stalls, but elections
    where the network or the disk is merely slow."""

    log_max_bytes: int = Field(default=256 << 20, ge=1 << 16)
    """Beyond it the older half of the Raft log is dropped; a follower that needs it is sent the
    whole state instead. Up to four times as much while one is catching up. Larger: more disk,
    and longer outages that cost only what was written meanwhile."""

    log_max_entries: int = Field(default=1_000_000, ge=1 << 10)
    """The same by count: each entry costs about 8 bytes of memory."""

    history_seconds: float = Field(default=limits.DEFAULT_HISTORY_SECONDS, ge=1, le=10**9)
    """How long revisions can be read and watched from. Longer: more disk, by what is written
    meanwhile. The setting of the leader counts: give all nodes the same."""

    quota_bytes: int = Field(default=0, ge=0)
    """What log and state may take together, 0 for no limit. Beyond it, writes are refused until
    deletes and compaction have made room."""

    min_free_bytes: int = Field(default=MIN_FREE_BYTES, ge=0)
    """What is to be left in the file system of the data directory; the same happens below it.
    Smaller: a disk that is filled quickly may stop the node before it notices. 0: it will."""

    memory_bytes: int = Field(default=0, ge=0)
    """What the process may take, as a container's limit: RocksDB's caches and write buffers are
    sized from it (storage/budget.py). 0: they have their usual size, that of 1 GiB. Too large: the
    system kills the node; smaller: more reads go to the disk."""

    verify_interval_seconds: float = Field(default=86_400.0, ge=0, le=366 * 86_400.0)
    """How often the leader has all members compare what they hold; 0 is never. Each of them reads
    its whole state then, for at most a quarter of its time."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        if name:
            parse_name(name)
        return name

    @field_validator("admin_listen")
    @classmethod
    def _is_listening_address(cls, address: str) -> str:
        return check_address(address) if address else address

    @field_validator("listen")
    @classmethod
    def _is_address(cls, address: str) -> str:
        return check_address(address)

    @field_validator("advertise")
    @classmethod
    def _is_address_or_empty(cls, address: str) -> str:
        return check_member_address(address) if address else address

    @field_validator("cluster")
    @classmethod
    def _are_members(cls, cluster: Mapping[str, str]) -> Mapping[str, str]:
        for name, address in cluster.items():
            parse_name(name)
            check_member_address(address)
        if len(set(cluster.values())) != len(cluster):
            raise ValueError("two members have the same address")
        return cluster

    @field_validator("join")
    @classmethod
    def _are_addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_address, addresses))

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.cluster and self.join:
            raise ValueError(
                "cluster and join exclude each other: cluster is for the nodes that a cluster"
                " begins with, join for one that was added to it"
            )
        if self.cluster and not self.name:
            raise ValueError("name is missing: cluster has to say which of its members this is")
        if self.cluster and self.name not in self.cluster:
            raise ValueError(f"{self.name} is not among the members: {', '.join(self.cluster)}")
        if self.cluster and self.advertise and self.advertise != self.cluster[self.name]:
            raise ValueError(
                f"advertise is {self.advertise}, but the cluster knows {self.name} as"
                f" {self.cluster[self.name]}"
            )
        if self.join and not self.address:
            raise ValueError(
                f"listen is {self.listen}, which means every address of this machine: to join,"
                " the setting advertise has to say at which of them the others reach the node"
            )
        if len(set(self._ports)) < len(self._ports):
            raise ValueError(
                f"listen ({self.listen}), admin_listen ({self.admin_listen or 'none'}) and"
                f" peer_port ({self.peer_port or 'none'}) need ports of their own"
            )
        if self.election_timeout_ms < 6 * self.tick_ms:
            raise ValueError(
                f"election_timeout_ms ({self.election_timeout_ms}) must be at least 6 tick_ms"
                f" ({self.tick_ms}): a heartbeat takes 2 ticks, and one may be lost"
            )
        if 0 < self.quota_bytes < 2 * self.log_max_bytes:
            raise ValueError(
                f"quota_bytes ({self.quota_bytes}) must be at least twice log_max_bytes"
                f" ({self.log_max_bytes}), or 0: the log alone would reach it"
            )
        Budget.of(self.memory_bytes)
        return self

    @property
    def _ports(self) -> list[str]:
        """Which it binds, each of them once."""
        addresses = (self.listen, self.admin_listen, f":{self.peer_port or ''}")
        return [port for port in (one.rpartition(":")[2] for one in addresses) if port]

    @property
    def node_id(self) -> NodeId:
        return parse_name(self.name)

    @property
    def addresses(self) -> dict[NodeId, str]:
        return {parse_name(name): address for name, address in self.cluster.items()}

    @property
    def address(self) -> str:
        """Where others are to reach this node; empty if the settings do not say."""
        listen = "" if _is_everywhere(self.listen) else self.listen
        return self.advertise or self.cluster.get(self.name) or listen

    @property
    def cluster_id(self) -> str:
        """Of a cluster that begins with `cluster`: the same on each of those nodes, another
        one in every other cluster. It never changes, whatever becomes of the members."""
        members = ",".join(f"n{node}={self.addresses[node]}" for node in sorted(self.addresses))
        text = f"{self.cluster_name}/{members}".encode()
        return hashlib.blake2b(text, digest_size=8, person=b"kvorum-cluster").hexdigest()


def parse_name(name: str) -> NodeId:
    """The id of the node that is written so: 1 for `n1`."""
    if re.fullmatch(_NAME, name) is None:
        raise ValueError(f"{name!r} is no node name: it is an n and a number, such as n1")
    return NodeId(int(name[1:]))


def check_address(address: str) -> str:
    """The address itself, if it is a host and a port."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})", address)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(f"{address!r} is no address: it is host:port, such as 127.0.0.1:7101")
    return address


def check_member_address(address: str) -> str:
    """The address itself, if it is a host and a port at which others could reach a node."""
    if _is_everywhere(check_address(address)):
        raise ValueError(
            f"{address!r} is an address to listen on, at which nobody else can reach the node:"
            " give the name or the address of its machine"
        )
    return address


def _is_everywhere(address: str) -> bool:
    """Whether it stands for all addresses of a machine, as 0.0.0.0:7100 and [::]:7100 do."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
