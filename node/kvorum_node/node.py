"""A node: storage, groups and driver put together, with or without peers.

The server serves one over gRPC; `embedded.py` runs one in the process of its only
client. Both are the same node: the same log, the same state machine, the same
durability.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any

from kvorum import limits
from kvorum.errors import (
    KvorumError,
    MembershipChangeRefused,
    NoLeader,
    ShuttingDown,
    StateCorrupt,
    StorageError,
)
from kvorum_node.admission import Admission
from kvorum_node.backups import Backups
from kvorum_node.driver import LOG_MAX_ENTRIES, Driver
from kvorum_node.figures import Figures
from kvorum_node.group import Group
from kvorum_node.housekeeping import Housekeeper, compact
from kvorum_node.log_clock import LogClock
from kvorum_node.machine import Machine
from kvorum_node.members import data_directory_lost, removed_from_cluster
from kvorum_node.raft.configuration import AddLearner, AddVoter, Change, Configuration, Remove
from kvorum_node.raft.core import Raft
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.types import GroupId, HardState, NodeId, NotLeading, Settings, node_name
from kvorum_node.services.dispatch import Dispatcher
from kvorum_node.space import Bounds, Watchman, quota_exceeded
from kvorum_node.storage.data_directory import Storage
from kvorum_node.storage.engine import Batch
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.storage.recovery import reconcile
from kvorum_node.transport import Transport
from kvorum_node.verification import Verifier
from kvorum_node.watches import WatchHub
from kvorumpb.v1.cluster_pb2 import Alarm
from kvorumpb.v1.raft_pb2 import PeerNotice

DEFAULT_GROUP = GroupId(1)
"""The group of the namespace `default`."""

HEARTBEAT_TICKS = 2

CHANGE_TIMEOUT_SECONDS = 10.0
"""How long a change of members may take before the caller is told that it is in doubt."""

COMPACT_TIMEOUT_SECONDS = 10.0
"""The same of a compaction that was asked for."""

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
        verify_interval_seconds: float = 0.0,
        history_seconds: float = limits.DEFAULT_HISTORY_SECONDS,
        bounds: Bounds = Bounds(),  # noqa: B008 - it is frozen
        peer_port: int = 0,
    ) -> None:
        """Put a node together on an opened storage.

        Args:
            addresses: of the members that the cluster begins with. Counts in a new data
                directory only, which remembers the members ever after, as they change.
                None for a node that joins a cluster, and learns of the members there.
            log_max_bytes, log_max_entries: as for the Driver.
            verify_interval_seconds: how often the members compare what they hold; 0 is never.
            history_seconds: how long revisions can be read.
            bounds: of the space that the node takes.
            peer_port: where every member listens for its peers, if not at its address.

        Raises:
            StorageError: the log or the state cannot be believed.
        """
        self.storage = storage
        self.id = storage.identity.node_id
        self.cluster_id = storage.identity.cluster_id
        figures = self.figures = Figures()
        self._timing = timing
        self._verify_interval_seconds = verify_interval_seconds
        self._transport = Transport(
            storage.identity,
            storage.acquaintances,
            unreachable=self._unreachable,
            dismissed=self._dismissed,
            notice=self._notice,
            port=peer_port,
            figures=figures,
        )
        self.driver = Driver(
            storage,
            send=self._transport.send,
            stream=self._transport.send_snapshot,
            tick_seconds=timing.tick_seconds,
            log_max_bytes=log_max_bytes,
            log_max_entries=log_max_entries,
            figures=figures,
        )
        self.group = self._open_group(DEFAULT_GROUP, addresses)
        self.admission = Admission()
        self.dispatcher = Dispatcher(self.group, self.admission, figures)
        self.verifier = Verifier(self.group, condemned=self._condemned)
        self.watchman = Watchman(str(self), storage, bounds, changed=self._log_alarms)
        self._housekeeper = Housekeeper(
            self.group, history_seconds=history_seconds, flush=self.driver.flush_state
        )
        self._notices: dict[NodeId, PeerNotice] = {}
        self.watches = WatchHub(
            self.group.machine, vouches=self.hears_leader, fail=self.driver.fail, figures=figures
        )
        self.backups = Backups(self.group, storage, wall_ms=_wall_ms)
        self._listeners: set[Callable[[], None]] = set()
        self._running: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
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
        self._begin(self._housekeeper.run(), "housekeeping")
        if self.storage.path is not None:
            self._begin(self.watchman.run(), "space")
        if self._verify_interval_seconds:
            self._begin(
                self.verifier.verify_regularly(self._verify_interval_seconds), "verification"
            )

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Let it run beside everything else, until it ends or the node does; if it fails, so does
        the node."""

        def ended(task: asyncio.Task[None]) -> None:
            self._background.discard(task)
            error = None if task.cancelled() else task.exception()
            if isinstance(error, Exception):
                self.driver.fail(error)

        task = asyncio.create_task(work, name=f"{self} {name}")
        self._background.add(task)
        task.add_done_callback(ended)

    async def wait_failed(self) -> None:
        """Wait for the failure that ends the node, and raise it. Cancel it to stop waiting.

        Raises:
            StorageError: the disk cannot be trusted any more.
            StateCorrupt: the majority holds something else.
            RemovedFromCluster: the node is no member any more.
            DataDirectoryLost: the node was one with another data directory.
        """
        assert self._running is not None  # noqa: S101 - a node that was not started has no end
        await asyncio.shield(self._running)

    async def stop(self) -> None:
        """Settle what is open, flush, and close everything. Never raises for a failed disk."""
        await self.dispatcher.close()
        self.end_streams()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, self.verifier.close(), return_exceptions=True)
        self.driver.stop()
        if self._running is not None:
            failure = (await asyncio.gather(self._running, return_exceptions=True))[0]
            if failure is None:
                try:
                    self._housekeeper.store_clock()
                    await self.driver.flush_state()
                except StorageError as error:
                    logger.error("%s could not flush its state: %s", self, error)
        await self._transport.stop()
        self.driver.close()
        self.storage.close()
        self.watchman.close()

    def end_streams(self) -> None:
        """The node is shutting down: tell no watch and give no snapshot any more."""
        why = f"{self} is shutting down"
        self.watches.close(why)
        self.backups.close(ShuttingDown(why))

    async def wait_leader(self) -> NodeId:
        """Wait until some member is known to lead."""
        while True:
            leader = self.group.raft.leader
            if leader is not None:
                return leader
            await self._wait_leadership_change()

    async def transfer_leadership(
        self, target: NodeId | None, *, avoiding: Collection[NodeId] = ()
    ) -> NodeId:
        """Hand leadership over, to the living voter that is furthest ahead if none is named.

        Returns who leads then.

        Args:
            avoiding: none of these if none is named.

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
                progress.keys() & raft.configuration.voters - {*avoiding},
                key=lambda member: (progress[member].recently_active, progress[member].match),
                default=None,
            )
        if target is None:
            sound = " that is sound" if avoiding else ""
            raise ValueError(f"{self} is the only voter{sound}")
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
        return await self._change_members(
            lambda _: changes, force=force, timeout_seconds=timeout_seconds
        )

    async def compact(self, revision: int) -> int:
        """Forget history before the revision, and return the oldest that can be read then.

        Raises: as housekeeping.compact.
        """
        deadline = asyncio.get_running_loop().time() + COMPACT_TIMEOUT_SECONDS
        return await compact(self.group, revision, deadline=deadline)

    @property
    def alarms(self) -> list[Alarm]:
        """What is wrong with this node; if it leads, also with the members that it hears."""
        alarms = list(self.watchman.alarms)
        role = self.group.raft.role
        if isinstance(role, Leader):
            for member, progress in role.progress.items():
                if progress.is_alive and member in self._notices:
                    alarms.extend(self._notices[member].alarms)
        return alarms

    def heed(self, peer: NodeId, notice: PeerNotice) -> None:
        """A peer has said this of itself."""
        self._notices[peer] = notice
        self._transport.hear(peer, notice)
        if notice.log_time_ms:
            self.group.follow_clock(peer, notice.log_time_ms)

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
        added = NodeId(0)

        def add(configuration: Configuration) -> list[Change]:
            nonlocal added
            added = NodeId(configuration.last_id + 1) if node is None else node
            if added in configuration.members:  # to the core, this would be a voter's demotion
                raise MembershipChangeRefused(f"{node_name(added)} is a member already")
            return [AddLearner(added, address, join=not learner)]

        await self._change_members(add, force=force)
        return added

    async def promote_member(self, node: NodeId, *, force: bool = False) -> None:
        """Make a voter of a learner. Raises as change_members."""

        def promote(configuration: Configuration) -> list[Change]:
            if node not in configuration.members:
                raise MembershipChangeRefused(f"{node_name(node)} is no member")
            return [AddVoter(node)]

        await self._change_members(promote, force=force)

    async def remove_member(
        self, node: NodeId, *, force: bool = False, if_silent_at: str = ""
    ) -> None:
        """Let a node be a member no longer: it will stop by itself. Raises as change_members.

        Args:
            if_silent_at: as for Members.require_silence; empty in any case.
        """

        def remove(_: Configuration) -> list[Change]:
            if if_silent_at:
                self.group.members.require_silence(node, if_silent_at)
            return [Remove(node)]

        await self._change_members(remove, force=force)

    def admit(self, peer: NodeId, directory_id: str, *, knows_this_as: str) -> None:
        """Know a peer of the cluster by its data directory, durably, before it is listened to.

        Args:
            directory_id: of the peer.
            knows_this_as: by which directory the peer knows this node; empty if it does not.

        Raises:
            RemovedFromCluster: the peer was removed, and is not listened to.
            DataDirectoryLost: one of the two has another directory than the other knows it
                by. If that is this node, it ends.
            StorageError: the disk has failed, which ends this node.
        """
        if self.has_removed(peer):
            raise removed_from_cluster(peer)
        if knows_this_as not in ("", self.storage.identity.directory_id):
            lost = data_directory_lost(self.id)
            self.driver.fail(lost)
            raise lost
        known = self.storage.acquaintances.directory_of(peer)
        if known not in ("", directory_id):
            raise data_directory_lost(peer)
        if not known:
            try:
                self.storage.acquaintances.add(peer, directory_id)
            except StorageError as error:
                self.driver.fail(error)
                raise

    def has_removed(self, peer: NodeId) -> bool:
        """Whether the peer was a member, and is to be one no more."""
        return self.group.raft.committed_configuration.has_removed(peer)

    def meet(self, peer: NodeId, address: str) -> None:
        """A peer was admitted, and has said where it is to be answered."""
        self._transport.meet(peer, address)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call back when the leader, the term, the own role or the members change.

        Returns how to end it.
        """
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    async def _change_members(
        self,
        planned: Callable[[Configuration], Sequence[Change]],
        *,
        force: bool,
        timeout_seconds: float = CHANGE_TIMEOUT_SECONDS,
    ) -> Configuration:
        """As change_members; the changes are planned for the members of the very moment."""
        loop, group = asyncio.get_running_loop(), self.group
        deadline = loop.time() + timeout_seconds
        # A leader changes nothing before it has committed an entry of its own: like a read.
        await group.read(deadline=deadline)
        # One that was elected a moment ago has not heard yet from everybody who is alive.
        patience = min(deadline, loop.time() + self._timing.election_timeout_seconds)
        while True:
            try:
                changing = group.change_members(
                    planned(group.raft.configuration), force=force, deadline=deadline
                )
            except MembershipChangeRefused as refused:
                if group.raft.members_are_changing:  # a learner's promotion, perhaps: soon over
                    until = deadline
                elif refused.endangers_quorum:
                    until = patience
                else:
                    raise
                if loop.time() >= until:
                    raise
            else:
                return await changing
            await asyncio.sleep(self._timing.tick_seconds)

    def _condemned(self, why: StateCorrupt, corrupt: frozenset[NodeId]) -> None:
        """Serve nobody any more, and never again from this data directory."""
        logger.error("%s must stop: %s", self, why)
        self.dispatcher.drain()
        self.watches.close(str(why))
        self.backups.close(why)
        try:
            self.storage.condemn(str(why))
        except StorageError as error:
            logger.error("%s could not keep that its state is corrupt: %s", self, error)
        self._begin(self._retire(why, corrupt), "retirement")

    async def _retire(self, why: StateCorrupt, corrupt: frozenset[NodeId]) -> None:
        """End; a leader first hands over to a voter that is sound, so that nobody has to wait."""
        if isinstance(self.group.raft.role, Leader):
            try:
                await self.transfer_leadership(None, avoiding=corrupt)
            except (KvorumError, ValueError) as error:
                logger.warning("%s could not hand leadership over: %s", self, error)
        self.driver.fail(why)

    def _notice(self) -> PeerNotice:
        leads = isinstance(self.group.raft.role, Leader)
        return PeerNotice(
            alarms=self.watchman.alarms, log_time_ms=self.group.now_ms() if leads else 0
        )

    def _shortage(self) -> KvorumError | None:
        alarms = self.alarms
        return quota_exceeded(alarms[0]) if alarms else None

    def _log_alarms(self) -> None:
        if self.watchman.alarms:
            for alarm in self.watchman.alarms:
                logger.warning("%s: writes are refused until there is room", alarm.message)
        else:
            logger.info("%s has room again", self)

    def hears_leader(self) -> bool:
        """Whether there is a leader, and this node was in a position to notice if there were none.

        One whose disk hangs does not count time, and would take a leader for alive for ever.
        """
        raft = self.group.raft
        if raft.configuration.all_voters == {self.id}:
            return raft.leader == self.id  # nobody else could lead meanwhile
        silence = asyncio.get_running_loop().time() - self.group.ticked_at
        is_counting = silence < self._timing.election_timeout_seconds
        return is_counting and raft.leader is not None

    def _unreachable(self, node: NodeId) -> None:
        self.driver.unreachable(node)

    def _dismissed(self, why: KvorumError) -> None:
        self.driver.fail(why)

    def _follow_members(self) -> None:
        self._transport.follow(self.group.members.correspondents)
        self._transport.forget(self.has_removed)
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
            restarted=log.hard_state() != HardState(),
        )
        self.figures.committed_before = raft.log.committed
        self.figures.applied_before = machine.applied
        opened = self.driver.groups[group] = Group(
            group,
            raft,
            machine,
            log,
            clock=LogClock(
                wall_ms=_wall_ms,
                steady_ns=_steady_ns,
                boot=_boot(),
                stored=machine.clock,
                applied_ms=machine.log_time_ms,
            ),
            wake=self.driver.wake,
            tick_seconds=self._timing.tick_seconds,
            figures=self.figures,
        )
        opened.leadership_changed = self._tell_listeners
        opened.members_changed = self._follow_members
        opened.shortage = self._shortage
        return opened

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


def _boot() -> str:
    """Names the start of the machine, where it has a name; the steady clock counts from it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        # A container may have a steady clock of its own.
        return f"{boot} {Path('/proc/self/ns/time').readlink()}"
    except OSError:
        return ""


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _steady_ns() -> int:
    """Counts while the machine sleeps, too, where there is such a clock."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic_ns() if boot is None else time.clock_gettime_ns(boot)


def listing(members: Mapping[NodeId, str]) -> str:
    """Members as people write them: `n1=h1:7100, n2=h2:7100`."""
    return ", ".join(f"{node_name(node)}={members[node]}" for node in sorted(members)) or "none"
