"""The driver: the one loop that carries out what the Raft cores ask for.

`carry_out` is the law of `Ready` in one place, and the only place in kvorum where
durability is decided. One turn of the loop serves all groups of the node: one
write to the log engine and one fsync cover everything that is pending, and what
arrives meanwhile makes up the next turn (group commit).

A disk that fails ends the loop: a node that cannot know what it has written must
not go on, because after a failed fsync the next one may succeed and mean nothing.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from kvorum_node.figures import Figures, timed
from kvorum_node.group import Group
from kvorum_node.members import removed_from_cluster
from kvorum_node.raft.core import Ready
from kvorum_node.raft.messages import Message
from kvorum_node.raft.types import GroupId, Index, NodeId
from kvorum_node.snapshots import Snapshots, Stream
from kvorum_node.storage.data_directory import Storage
from kvorum_node.storage.engine import Batch

LOG_MAX_ENTRIES = 1_000_000
"""Small entries cost memory by their number, about 8 bytes each."""

_PATIENCE = 4
"""So many times its bound a log may grow for a follower that still needs its beginning."""

Send = Callable[[GroupId, Iterable[Message]], None]


class Driver:
    """Owns the groups' turns. `run` ends by `stop`, or with the error that made it impossible."""

    def __init__(
        self,
        storage: Storage,
        *,
        send: Send,
        stream: Stream,
        tick_seconds: float,
        log_max_bytes: int,
        log_max_entries: int = LOG_MAX_ENTRIES,
        figures: Figures | None = None,
    ) -> None:
        """Make a driver without groups.

        Args:
            send: passes messages to peers, or loses them.
            stream: carries a snapshot to a peer.
            log_max_bytes, log_max_entries: beyond either, the older half of a log is dropped.
        """
        self.groups: dict[GroupId, Group] = {}
        self._figures = figures or Figures()
        self.snapshots = Snapshots(self, stream, self._figures)
        self._storage = storage
        self._send = send
        self._tick_seconds = tick_seconds
        self._log_max_bytes = log_max_bytes
        self._log_max_entries = log_max_entries
        self._wake = asyncio.Event()
        self._inbox: list[tuple[GroupId, Message]] = []
        self._delivered: list[asyncio.Future[bool]] = []
        self._failure: Exception | None = None
        self._lost: set[NodeId] = set()
        self._tick_due = True
        self._cutting: asyncio.Task[None] | None = None
        self._stopping = False
        # One thread each: the two engines sync independently, each of them one at a time.
        self._log_disk = ThreadPoolExecutor(1, thread_name_prefix="kvorum-log-disk")
        self._state_disk = ThreadPoolExecutor(1, thread_name_prefix="kvorum-state-disk")

    def wake(self) -> None:
        """Something has happened that a core or a group must be asked about."""
        self._wake.set()

    def receive(self, group: GroupId, message: Message) -> None:
        """A message from a peer has arrived."""
        self._inbox.append((group, message))
        self._wake.set()

    def deliver(self, group: GroupId, message: Message) -> asyncio.Future[bool]:
        """As `receive`; true once the turn that takes it in is over, false if none will be."""
        delivered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._delivered.append(delivered)
        self.receive(group, message)
        return delivered

    def unreachable(self, node: NodeId) -> None:
        """Messages to a peer were lost."""
        self._lost.add(node)
        self._wake.set()

    def fail(self, error: Exception) -> None:
        """Let `run` raise the error after the turn under way; the first one counts."""
        self._failure = self._failure or error
        self._wake.set()

    async def run(self) -> None:
        """Serve until stopped.

        Raises:
            StorageError: the disk has failed, or the log holds what this version cannot apply.
            RemovedFromCluster: a group goes on without this node.
        """
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None
        why_ended = "it was told to"
        try:
            while not self._stopping:
                self._wake.clear()
                if self._tick_due:
                    # Time that was lost (a suspended process) is lost: ticks do not pile up.
                    self._tick_due = False
                    timer = loop.call_later(self._tick_seconds, self._on_timer)
                    self._keep_time()
                    for group in self.groups.values():
                        group.tick(loop.time())
                await self._turn()
                self._cut_logs()
                self._check_failure()
                if not any(group.raft.has_ready() for group in self.groups.values()):
                    await self._wake.wait()
                # Let in what has arrived: it shares the next turn.
                await asyncio.sleep(0)
        except Exception as error:
            why_ended = str(error)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            # From here on nobody would be answered.
            for group in self.groups.values():
                group.close(why_ended)
            _settle(self._delivered, carried_out=False)
            await self.snapshots.close()
            if self._cutting is not None:
                await self._cutting

    def stop(self) -> None:
        """Let `run` return after the turn under way."""
        self._stopping = True
        self._wake.set()

    def close(self) -> None:
        """Let the disk threads end. Requires that `run` has ended, or was never called."""
        self._log_disk.shutdown()
        self._state_disk.shutdown()

    async def flush_state(self) -> None:
        """Put everything that is applied or staged on the disk: a restart then replays nothing."""
        await asyncio.get_running_loop().run_in_executor(self._state_disk, self._storage.state.sync)

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _on_timer(self) -> None:
        self._tick_due = True
        self._wake.set()

    def _keep_time(self) -> None:
        """Tell the cores what the clock shows: it counts what the ticks have missed."""
        clock = int(asyncio.get_running_loop().time() / self._tick_seconds)
        for group in self.groups.values():
            group.raft.keep_time(clock)

    async def _turn(self) -> None:
        self.snapshots.report()
        self._keep_time()
        inbox, self._inbox = self._inbox, []
        delivered, self._delivered = self._delivered, []
        for group_id, message in inbox:
            if group_id in self.groups:
                self.groups[group_id].raft.step(message)
        lost, self._lost = self._lost, set()
        for group in self.groups.values():
            for node in lost:
                group.raft.report_unreachable(node)
            group.stage()
        work = {
            group: group.raft.ready() for group in self.groups.values() if group.raft.has_ready()
        }
        try:
            if work:
                await self._carry_out(work)
        except BaseException:
            _settle(delivered, carried_out=False)
            raise
        _settle(delivered, carried_out=True)
        for group in self.groups.values():
            group.observe()
            self.snapshots.observe(group)
            if group.members.without_this_node:
                self.fail(removed_from_cluster(group.raft.node))

    async def _carry_out(self, work: Mapping[Group, Ready]) -> None:
        """Obey the law of Ready (raft/core.py), for all groups together."""
        synced = None
        if any(ready.must_sync for ready in work.values()):
            batch = Batch()
            for group, ready in work.items():
                group.save(batch, ready)
            self._storage.log.write(batch)
            synced = asyncio.get_running_loop().run_in_executor(
                self._log_disk, timed, self._storage.log.sync
            )
        for group, ready in work.items():  # these promise nothing: the disk may still be at work
            self._send(group.id, ready.messages)
        if synced is not None:
            self._figures.sync.observe(await self._wait_for_the_disk(synced, work.keys()))
            entries = sum(len(ready.entries) for ready in work.values())
            if entries:  # or else it was for a term or a vote
                self._figures.entries_per_sync.observe(entries)
        for group, ready in work.items():
            group.install(ready)  # the log begins behind the old state now: nothing goes before
            self._send(group.id, ready.promises)
            group.apply(ready)
            group.raft.advance(ready)
            for node in ready.snapshots_to:
                self.snapshots.send(group, node)

    async def _wait_for_the_disk(
        self, synced: asyncio.Future[float], groups: Collection[Group]
    ) -> float:
        """Wait for the fsync, and return the seconds that it took.

        Followers hear meanwhile that their leader lives, for a while.
        A large value, or a busy disk, must not cost an election; but a leader whose disk
        hangs is of no use, and is to be replaced. Ticks go on with the next turn.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + max(
            group.raft.settings.election_ticks * self._tick_seconds for group in groups
        )
        timer: asyncio.TimerHandle | None = None

        def show_life() -> None:
            nonlocal timer
            if synced.done():  # and it may have failed: such a node says nothing any more
                return
            for group in groups:
                self._send(group.id, group.raft.signs_of_life())
            wait_for_next()

        def wait_for_next() -> None:
            nonlocal timer
            heartbeat_ticks = min(group.raft.settings.heartbeat_ticks for group in groups)
            when = loop.time() + heartbeat_ticks * self._tick_seconds
            timer = loop.call_at(when, show_life) if when < end else None

        wait_for_next()
        try:
            return await synced
        finally:
            if timer is not None:
                timer.cancel()

    def _cut_logs(self) -> None:
        """Keep the logs within their bounds, beside the traffic: a flush takes a while."""
        if self._cutting is not None:
            if not self._cutting.done():
                return
            self._cutting.result()
            self._cutting = None
        for group in self.groups.values():
            through = self._cut_through(group)
            if through is not None:
                self._cutting = asyncio.create_task(self._cut_log(group, through))
                return

    def _cut_through(self, group: Group) -> Index | None:
        """What a log beyond a bound is to be rid of, so that its newer half is left.

        The newer half stays, although the state has that too: what is dropped can not
        be sent to a follower any more, who would need the whole state then. For the
        same reason a log waits for followers that are catching up: one that has just
        been sent a snapshot would need another one at once, and so on for ever. But a
        follower that is too slow must not fill the disk: there is a second bound.
        """
        log = group.log
        size = log.log_bytes(), log.last_index() + 1 - log.first_index()
        bounds = self._log_max_bytes, self._log_max_entries
        if not any(have > bound for have, bound in zip(size, bounds, strict=True)):
            return None
        wanted = through = max(
            log.index_at_bytes(size[0] - bounds[0] // 2) if size[0] > bounds[0] else Index(0),
            Index(log.last_index() - bounds[1] // 2) if size[1] > bounds[1] else Index(0),
        )
        through = min(through, group.machine.applied)
        if not any(have > _PATIENCE * bound for have, bound in zip(size, bounds, strict=True)):
            through = min(through, self.snapshots.kept_from(group), group.needed_after())
        # Each cut costs a flush of the state: few that drop much, instead of many that drop little.
        worthwhile = (through + 1 - log.first_index()) * 2 >= wanted + 1 - log.first_index()
        return through if worthwhile else None

    async def _cut_log(self, group: Group, through: Index) -> None:
        """Drop the older part of a log, once the state has it."""
        await self.flush_state()
        if through < group.log.first_index():
            return  # a snapshot has replaced the log meanwhile
        batch = Batch()
        group.log.cut(batch, through)
        self._storage.log.write(batch)
        group.logger.info("has cut the log through %d", through)


def _settle(delivered: Iterable[asyncio.Future[bool]], *, carried_out: bool) -> None:
    for one in delivered:
        one.set_result(carried_out)
