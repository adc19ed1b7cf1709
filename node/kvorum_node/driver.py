"""The driver: the one loop that carries out what the Raft cores ask for.

`carry_out` is the law of `Ready` in one place, and the only place in kvorum where
durability is decided. One turn of the loop serves all groups of the node: one
write to the log engine and one fsync cover everything that is pending, and what
arrives meanwhile makes up the next turn (group commit).

A disk that fails ends the loop: a node that cannot know what it has written must
not go on, because after a failed fsync the next one may succeed and mean nothing.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from kvorum_node.group import Group
from kvorum_node.raft.core import Ready
from kvorum_node.raft.messages import Message
from kvorum_node.raft.types import GroupId, Index, NodeId
from kvorum_node.storage.data_directory import Storage
from kvorum_node.storage.engine import Batch

Send = Callable[[GroupId, Iterable[Message]], None]


class Driver:
    """Owns the groups' turns. `run` ends by `stop`, or with the error that made it impossible."""

    def __init__(
        self, storage: Storage, *, send: Send, tick_seconds: float, log_max_bytes: int
    ) -> None:
        self.groups: dict[GroupId, Group] = {}
        self._storage = storage
        self._send = send
        self._tick_seconds = tick_seconds
        self._log_max_bytes = log_max_bytes
        self._wake = asyncio.Event()
        self._inbox: list[tuple[GroupId, Message]] = []
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

    def unreachable(self, node: NodeId) -> None:
        """Messages to a peer were lost."""
        self._lost.add(node)
        self._wake.set()

    async def run(self) -> None:
        """Serve until stopped.

        Raises:
            StorageError: the disk has failed, or the log holds what this version cannot apply.
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
                    for group in self.groups.values():
                        group.tick(loop.time())
                await self._turn()
                self._cut_logs()
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
        """Put everything that is applied on the disk: a restart then replays nothing."""
        await asyncio.get_running_loop().run_in_executor(self._state_disk, self._storage.state.sync)

    def _on_timer(self) -> None:
        self._tick_due = True
        self._wake.set()

    async def _turn(self) -> None:
        inbox, self._inbox = self._inbox, []
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
        if work:
            await self._carry_out(work)
        for group in self.groups.values():
            group.observe()

    async def _carry_out(self, work: Mapping[Group, Ready]) -> None:
        """Obey the law of Ready (raft/core.py), for all groups together."""
        synced = None
        if any(ready.must_sync for ready in work.values()):
            batch = Batch()
            for group, ready in work.items():
                group.save(batch, ready)
            self._storage.log.write(batch)
            synced = asyncio.get_running_loop().run_in_executor(
                self._log_disk, self._storage.log.sync
            )
        for group, ready in work.items():  # these promise nothing: the disk may still be at work
            self._send(group.id, ready.messages)
        if synced is not None:
            await synced
        for group, ready in work.items():
            self._send(group.id, ready.promises)
            group.apply(ready)
            group.raft.advance(ready)

    def _cut_logs(self) -> None:
        """Keep the logs within their bound, beside the traffic: a flush takes a while."""
        if self._cutting is not None:
            if not self._cutting.done():
                return
            self._cutting.result()
            self._cutting = None
        for group in self.groups.values():
            if group.log.log_bytes() > self._log_max_bytes:
                self._cutting = asyncio.create_task(self._cut_log(group))
                return

    async def _cut_log(self, group: Group) -> None:
        """Drop the older half of a log, once the state has it.

        The newer half stays, although the state has that too: what is dropped can not
        be sent to a follower any more.
        """
        through = min(group.machine.applied, group.log.index_at_bytes(self._log_max_bytes // 2))
        if through < group.log.first_index():
            return
        await self.flush_state()
        batch = Batch()
        group.log.cut(batch, Index(through))
        self._storage.log.write(batch)
        group.logger.info("has cut the log through %d", through)
