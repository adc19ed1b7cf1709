"""A node: storage, groups and driver put together, with or without peers.

The server serves one over gRPC; `embedded.py` runs one in the process of its only
client. Both are the same node: the same log, the same state machine, the same
durability.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import SystemRandom

from kvorum.errors import DataDirectoryMismatch, NoLeader, StorageError
from kvorum_node.driver import Driver
from kvorum_node.group import Group
from kvorum_node.machine import Machine
from kvorum_node.raft.core import Raft
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.types import (
    Configuration,
    GroupId,
    NodeId,
    NotLeading,
    Settings,
    node_name,
)
from kvorum_node.services.dispatch import Dispatcher
from kvorum_node.storage.data_directory import Storage
from kvorum_node.storage.engine import Batch
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.transport import Transport
from kvorumpb.v1.command_pb2 import GroupConfiguration

DEFAULT_GROUP = GroupId(1)
"""The group of the namespace `default`."""

HEARTBEAT_TICKS = 2

logger = logging.getLogger("kvorum.node")


@dataclass(frozen=True, slots=True)
class Timing:
    tick_seconds: float = 0.05
    election_timeout_seconds: float = 1.0

    @property
    def election_ticks(self) -> int:
        return max(3 * HEARTBEAT_TICKS, round(self.election_timeout_seconds / self.tick_seconds))


class Node:
    """One node. `start`, then `stop`; `failed` resolves if it has to end by itself."""

    def __init__(
        self,
        storage: Storage,
        addresses: Mapping[NodeId, str],
        *,
        timing: Timing,
        log_max_bytes: int,
    ) -> None:
        """Put a node together on an opened storage.

        Args:
            addresses: of all members. Kept in the data directory at the first start, and
                compared with it ever after.

        Raises:
            DataDirectoryMismatch: the data directory belongs to other members.
            StorageError: the log or the state cannot be believed.
        """
        self.storage = storage
        self.id = storage.identity.node_id
        self.cluster_id = storage.identity.cluster_id
        self._timing = timing
        self._transport = Transport(
            self.id,
            self.cluster_id,
            addresses,
            unreachable=self._unreachable,
        )
        self.driver = Driver(
            storage,
            send=self._transport.send,
            tick_seconds=timing.tick_seconds,
            log_max_bytes=log_max_bytes,
        )
        self.group = self._open_group(DEFAULT_GROUP, addresses)
        self.driver.groups[DEFAULT_GROUP] = self.group
        self.group.leadership_changed = self._tell_leadership
        self.dispatcher = Dispatcher(self.group)
        self._listeners: set[Callable[[], None]] = set()
        self._running: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return node_name(self.id)

    def start(self) -> None:
        """Take part. Requires a running event loop."""
        if len(self.group.raft.configuration.voters) == 1:
            # Nobody else can lead, so there is nothing to wait for.
            self.group.raft.campaign()
        self._transport.start()
        self._running = asyncio.create_task(self.driver.run(), name=f"{self} driver")

    async def wait_failed(self) -> None:
        """Wait for the failure that ends the node, and raise it. Cancel it to stop waiting."""
        assert self._running is not None  # noqa: S101 - a node that was not started has no end
        await asyncio.shield(self._running)

    async def stop(self) -> None:
        """Settle what is open, flush, and close everything. Never raises for a failed disk."""
        self.dispatcher.drain()
        self.driver.stop()
        if self._running is not None:
            failure = (await asyncio.gather(self._running, return_exceptions=True))[0]
            if failure is None:
                try:
                    await self.driver.flush_state()
                except StorageError as error:
                    logger.error("%s could not flush its state: %s", self, error)
        await self._transport.stop()
        self.driver.close()
        self.storage.close()

    async def wait_leader(self) -> NodeId:
        """Wait until some member is known to lead."""
        while True:
            leader = self.group.raft.leader
            if leader is not None:
                return leader
            await self._wait_leadership_change()

    async def transfer_leadership(self, target: NodeId | None) -> NodeId:
        """Hand leadership over, to the living voter that is furthest ahead if none is named.

        Returns who leads then.

        Raises:
            NotLeader, NoLeader: this node does not lead.
            ValueError: the target is no other voter.
            NoLeader: it was given up after an election time-out; this node may still lead.
        """
        raft = self.group.raft
        if not isinstance(raft.role, Leader):
            raise self.group.not_leader()
        if target is None:
            # A dead member may have just as much of the log, and would never take over.
            progress = raft.role.progress
            target = max(
                progress,
                key=lambda member: (progress[member].active, progress[member].match),
                default=None,
            )
        if target is None:
            raise ValueError(f"{self} is the only voter")
        term = raft.term
        try:
            raft.transfer_leadership(target)
        except NotLeading:
            raise NoLeader("leadership is being handed over already") from None
        self.driver.wake()
        try:
            async with asyncio.timeout(2 * self._timing.election_timeout_seconds):
                while raft.leader in (None, self.id) or raft.term == term:
                    await self._wait_leadership_change()
        except TimeoutError:
            raise NoLeader(f"{node_name(target)} did not take over in time") from None
        return await self.wait_leader()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call back when the leader, the term or the own role changes; returns how to end it."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def _unreachable(self, node: NodeId) -> None:
        self.driver.unreachable(node)

    def _tell_leadership(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    async def _wait_leadership_change(self) -> None:
        changed = asyncio.Event()
        forget = self.listen(changed.set)
        try:
            await changed.wait()
        finally:
            forget()

    def _open_group(self, group: GroupId, addresses: Mapping[NodeId, str]) -> Group:
        log = RaftLogStore(self.storage.log, group)
        known = log.configuration()
        if known is None:
            known = _configuration(addresses).SerializeToString(deterministic=True)
            batch = Batch()
            log.bootstrap(batch, known)
            self.storage.log.write(batch)
            self.storage.log.sync()
        members = {
            NodeId(one.id): one.address for one in GroupConfiguration.FromString(known).voters
        }
        if members != dict(addresses):
            raise DataDirectoryMismatch(
                f"the data directory of {self} belongs to the members {_listing(members)},"
                f" not to {_listing(addresses)}"
            )
        machine = Machine(self.storage.state, group)
        if machine.applied > log.last_index():
            raise StorageError(
                f"the state of {self} has applied {machine.applied}, but its log ends at"
                f" {log.last_index()}: the log was lost. Replace the node; do not start it again"
            )
        if machine.applied < log.first_index() - 1:
            raise StorageError(
                f"the state of {self} has only applied {machine.applied}, but its log begins with"
                f" {log.first_index()}: the state was lost. Replace the node"
            )
        raft = Raft(
            self.id,
            Configuration(frozenset(members)),
            log,
            hard_state=log.hard_state(),
            applied=machine.applied,
            randint=SystemRandom().randint,
            settings=Settings(
                election_ticks=self._timing.election_ticks, heartbeat_ticks=HEARTBEAT_TICKS
            ),
        )
        return Group(
            group,
            raft,
            machine,
            log,
            addresses=members,
            clock_ms=lambda: time.time_ns() // 1_000_000,
            wake=self.driver.wake,
        )


def _configuration(addresses: Mapping[NodeId, str]) -> GroupConfiguration:
    return GroupConfiguration(
        voters=[
            GroupConfiguration.Member(id=node, address=address)
            for node, address in sorted(addresses.items())
        ]
    )


def _listing(members: Mapping[NodeId, str]) -> str:
    return ", ".join(f"{node_name(node)}={members[node]}" for node in sorted(members))
