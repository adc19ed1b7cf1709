"""A node: storage, groups and driver put together, with or without peers.

The server serves one over gRPC; `embedded.py` runs one in the process of its only
client. Both are the same node: the same log, the same state machine, the same
durability.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import SystemRandom

from kvorum.errors import MembershipChangeRefused, NoLeader, StorageError
from kvorum_node.driver import LOG_MAX_ENTRIES, Driver
from kvorum_node.group import Group
from kvorum_node.machine import Machine
from kvorum_node.members import removed_from_cluster
from kvorum_node.raft.configuration import AddLearner, AddVoter, Change, Configuration, Remove
from kvorum_node.raft.core import Raft
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.types import GroupId, HardState, NodeId, NotLeading, Settings, node_name
from kvorum_node.services.dispatch import Dispatcher
from kvorum_node.storage.data_directory import Storage
from kvorum_node.storage.engine import Batch
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.storage.recovery import reconcile
from kvorum_node.transport import Transport

DEFAULT_GROUP = GroupId(1)
"""The group of the namespace `default`."""

HEARTBEAT_TICKS = 2

CHANGE_TIMEOUT_SECONDS = 10.0
"""How long a change of members may take before the caller is told that it is in doubt."""

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
        addresses: Mapping[NodeId, str] | None,
        *,
        timing: Timing,
        log_max_bytes: int,
        log_max_entries: int = LOG_MAX_ENTRIES,
    ) -> None:
        """Put a node together on an opened storage.

        Args:
            addresses: of the members that the cluster begins with. Counts in a new data
                directory only, which remembers the members ever after, as they change.
                None for a node that joins a cluster, and learns of the members there.
            log_max_bytes, log_max_entries: as for the Driver.

        Raises:
            StorageError: the log or the state cannot be believed.
        """
        self.storage = storage
        self.id = storage.identity.node_id
        self.cluster_id = storage.identity.cluster_id
        self._timing = timing
        self._transport = Transport(
            self.id,
            self.cluster_id,
            unreachable=self._unreachable,
            removed=self._removed,
        )
        self.driver = Driver(
            storage,
            send=self._transport.send,
            stream=self._transport.send_snapshot,
            tick_seconds=timing.tick_seconds,
            log_max_bytes=log_max_bytes,
            log_max_entries=log_max_entries,
        )
        self.group = self._open_group(DEFAULT_GROUP, addresses)
        self.driver.groups[DEFAULT_GROUP] = self.group
        self.group.leadership_changed = self._tell_listeners
        self.group.members_changed = self._follow_members
        self.dispatcher = Dispatcher(self.group)
        self._listeners: set[Callable[[], None]] = set()
        self._running: asyncio.Task[None] | None = None
        self._transport.follow(self.group.members.correspondents)

    def __str__(self) -> str:
        return node_name(self.id)

    def start(self) -> None:
        """Take part. Requires a running event loop."""
        if self.group.raft.configuration.all_voters == {self.id}:
            # Nobody else can lead, so there is nothing to wait for.
            self.group.raft.campaign()
        self._transport.start()
        self._running = asyncio.create_task(self.driver.run(), name=f"{self} driver")

    async def wait_failed(self) -> None:
        """Wait for the failure that ends the node, and raise it. Cancel it to stop waiting.

        Raises:
            StorageError: the disk cannot be trusted any more.
            RemovedFromCluster: the node is no member any more.
        """
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
                progress.keys() & raft.configuration.voters,
                key=lambda member: (progress[member].recently_active, progress[member].match),
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

    async def change_members(
        self,
        changes: Sequence[Change],
        *,
        force: bool = False,
        timeout_seconds: float = CHANGE_TIMEOUT_SECONDS,
    ) -> Configuration:
        """Change the members in one step of the group; returns once that is complete.

        Raises:
            MembershipChangeRefused: they cannot be changed so, or not now.
            NotLeader, NoLeader, ShuttingDown: nothing was changed.
            DeadlineExceeded, OutcomeUnknown: it may be complete later.
        """
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        # A leader changes nothing before it has committed an entry of its own: like a read.
        await self.group.read(deadline=deadline)
        return await self.group.change_members(changes, force=force, deadline=deadline)

    async def add_member(
        self, address: str, node: NodeId | None, *, learner: bool, force: bool = False
    ) -> NodeId:
        """Add a node as a learner; the leader makes a voter of it later, unless told not to.

        Args:
            address: host:port at which the members will find it.
            node: its id, which was never used before; the next one if None.
            learner: it is to stay one.

        Raises:
            As change_members.
        """
        configuration = self.group.raft.configuration
        if node is None:
            node = NodeId(configuration.last_id + 1)
        elif node in configuration.members:  # to the core, this would be a voter's demotion
            raise MembershipChangeRefused(f"{node_name(node)} is a member already")
        await self.change_members([AddLearner(node, address, join=not learner)], force=force)
        return node

    async def promote_member(self, node: NodeId, *, force: bool = False) -> None:
        """Make a voter of a learner. Raises as change_members."""
        if node not in self.group.raft.configuration.members:
            raise MembershipChangeRefused(f"{node_name(node)} is no member")
        await self.change_members([AddVoter(node)], force=force)

    async def remove_member(self, node: NodeId, *, force: bool = False) -> None:
        """Let a node be a member no longer: it will stop by itself. Raises as change_members."""
        await self.change_members([Remove(node)], force=force)

    def meet(self, peer: NodeId, address: str) -> None:
        """A node of the cluster has introduced itself."""
        self._transport.meet(peer, address)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call back when the leader, the term, the own role or the members change.

        Returns how to end it.
        """
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def _unreachable(self, node: NodeId) -> None:
        self.driver.unreachable(node)

    def _removed(self) -> None:
        self.driver.fail(removed_from_cluster(self.id))

    def _follow_members(self) -> None:
        self._transport.follow(self.group.members.correspondents)
        self._tell_listeners()

    def _tell_listeners(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    async def _wait_leadership_change(self) -> None:
        changed = asyncio.Event()
        forget = self.listen(changed.set)
        try:
            await changed.wait()
        finally:
            forget()

    def _open_group(self, group: GroupId, addresses: Mapping[NodeId, str] | None) -> Group:
        log = RaftLogStore(self.storage.log, group)
        if addresses is not None:
            self._begin_with(log, addresses)
        machine = Machine(self.storage.state, group)
        reconcile(log, machine)
        raft = Raft(
            self.id,
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
            clock_ms=lambda: time.time_ns() // 1_000_000,
            wake=self.driver.wake,
        )

    def _begin_with(self, log: RaftLogStore, addresses: Mapping[NodeId, str]) -> None:
        """Give a new log its members; one that has some keeps them."""
        _, known = log.configurations()[-1]
        # A node that joins and has voted already is not new, either.
        if log.is_new() and log.hard_state() == HardState():
            batch = Batch()
            log.bootstrap(batch, Configuration.of(addresses))
            self.storage.log.write(batch)
            self.storage.log.sync()
        elif known.addresses != addresses:
            logger.warning(
                "%s was told of the members %s, and goes by those that its log knows: %s",
                self,
                listing(addresses),
                listing(known.addresses),
            )


def listing(members: Mapping[NodeId, str]) -> str:
    """Members as people write them: `n1=h1:7100, n2=h2:7100`."""
    return ", ".join(f"{node_name(node)}={members[node]}" for node in sorted(members)) or "none"
