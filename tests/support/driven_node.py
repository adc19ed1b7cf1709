"""One member under its real driver; the test is the network, the other members, and the clock.

    async with DrivenNode() as n1:           n1 of n1, n2, n3
        await n1.lead()                      with the vote of n2
        write = n1.submit(put(b"k", b"v"))
        await n1.said(AppendEntries)         what n1 has sent so far is in `sent`
        n1.hear(accepted(1, 2))              a message of n2 arrives
        await write

Time stands still until `tick`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

from kvorum_node.driver import LOG_MAX_ENTRIES, Driver
from kvorum_node.group import Group
from kvorum_node.log_clock import LogClock
from kvorum_node.machine import Machine
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.core import Raft
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.messages import Message, RequestVote
from kvorum_node.raft.types import GroupId, Index, NodeId, Settings
from kvorum_node.snapshots import Chunk, Header, SnapshotFailed, Stream
from kvorum_node.storage.data_directory import Identity, Storage
from kvorum_node.storage.engine import Batch, Engine
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.waiters import Read, Write
from kvorumpb.v1.command_pb2 import Command, CommandBatch, Operation, Transaction
from tests.support.eventually import eventually
from tests.support.raft_messages import accepted, vote
from tests.support.scripted_disk import ScriptedDisk

GROUP = GroupId(1)
NEVER_SECONDS = 3600.0

MessageT = TypeVar("MessageT", bound=Message)


async def no_way(peer: NodeId, header: Header, chunks: AsyncIterator[Chunk]) -> Index:
    """A stream that breaks at once."""
    raise SnapshotFailed(f"the test gives no way to n{peer}")


class DrivenNode:
    """n1, on memory engines unless told."""

    def __init__(
        self,
        *,
        voters: int = 3,
        log: Engine | None = None,
        state: Engine | None = None,
        storage: Storage | None = None,
        settings: Settings | None = None,
        tick_seconds: float = NEVER_SECONDS,
        log_max_bytes: int = 1 << 30,
        log_max_entries: int = LOG_MAX_ENTRIES,
        stream: Stream | None = None,
        clock_ms: int = 1_000,
    ) -> None:
        storage = storage or Storage.memory(Identity("test", NodeId(1)))
        self.storage = replace(storage, log=log or storage.log, state=state or storage.state)
        self.sent: list[Message] = []
        self.clock_ms = clock_ms
        self.ticks = 0
        self.driver = Driver(
            self.storage,
            send=lambda _, messages: self.sent.extend(messages),
            stream=stream or no_way,
            tick_seconds=tick_seconds,
            log_max_bytes=log_max_bytes,
            log_max_entries=log_max_entries,
        )
        members = [NodeId(number) for number in range(1, voters + 1)]
        self.group = self.add_group(GROUP, members, settings)
        self._count_ticks()
        self._running: asyncio.Task[None] | None = None

    def add_group(
        self, group: GroupId, members: list[NodeId], settings: Settings | None = None
    ) -> Group:
        log = RaftLogStore(self.storage.log, group)
        if log.is_new() and members:
            batch = Batch()
            log.bootstrap(
                batch, Configuration.of({member: f"host{member}:7100" for member in members})
            )
            disk = self.storage.log  # no test counts this write
            (disk.engine if isinstance(disk, ScriptedDisk) else disk).write(batch)
        machine = Machine(self.storage.state, group)
        raft = Raft(
            NodeId(1),
            log,
            hard_state=log.hard_state(),
            applied=machine.applied,
            randint=lambda _, high: high,
            settings=settings,
        )
        added = self.driver.groups[group] = Group(
            group,
            raft,
            machine,
            log,
            clock=LogClock(
                wall_ms=lambda: self.clock_ms,
                steady_ns=lambda: self.clock_ms * 1_000_000,
                stored=machine.clock,
                applied_ms=machine.log_time_ms,
            ),
            wake=self.driver.wake,
        )
        return added

    async def __aenter__(self) -> Self:
        if len(self.raft.configuration.voters) == 1:
            self.raft.campaign()
        self._running = asyncio.create_task(self.driver.run())
        await eventually(lambda: not self.driver._tick_due)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.driver.stop()
        await self.ended()
        self.driver.close()

    async def ended(self) -> BaseException | None:
        """Wait until the driver's loop has ended, and return what ended it."""
        assert self._running is not None
        return (await asyncio.gather(self._running, return_exceptions=True))[0]

    def _count_ticks(self) -> None:
        tick = self.group.tick

        def counted(now: float) -> None:
            self.ticks += 1
            tick(now)

        self.group.tick = counted  # type: ignore[method-assign]  # a spy

    @property
    def raft(self) -> Raft:
        return self.group.raft

    @property
    def leads(self) -> bool:
        return isinstance(self.raft.role, Leader)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    # The clients.

    def submit(
        self, *operations: Operation, deadline: float | None = None, group: Group | None = None
    ) -> Write:
        """Each operation as a transaction of its own, all of them as one submission.

        A test need not ask how it ended.
        """
        commands = CommandBatch(
            commands=[Command(transaction=Transaction(operations=[one])) for one in operations]
        )
        write = (group or self.group).submit(
            commands.SerializeToString(),
            len(operations),
            deadline=self.now + NEVER_SECONDS if deadline is None else deadline,
        )
        may_fail(write)
        return write

    def read(self, *, deadline: float | None = None) -> Read:
        return self.group.read(deadline=self.now + NEVER_SECONDS if deadline is None else deadline)

    # The clock and the network.

    async def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.driver._on_timer()
            await eventually(lambda: not self.driver._tick_due)
        await self.settle()

    async def settle(self) -> None:
        """Let the driver do all that it can do by now."""
        for _ in range(20):
            await asyncio.sleep(0)

    def hear(self, *messages: Message) -> None:
        for message in messages:
            self.driver.receive(GROUP, message)

    async def said(
        self, kind: type[MessageT], where: Callable[[MessageT], bool] = lambda _: True
    ) -> MessageT:
        """The first message of the kind that was sent, once there is one."""
        await eventually(lambda: self.has_said(kind, where))
        return next(one for one in self.sent if isinstance(one, kind) and where(one))

    def has_said(
        self, kind: type[MessageT], where: Callable[[MessageT], bool] = lambda _: True
    ) -> bool:
        return any(isinstance(one, kind) and where(one) for one in self.sent)

    async def lead(self) -> None:
        """Become the leader by the vote of n2, and have an entry of the term committed."""
        term = self.raft.term + 1
        self.raft.campaign()
        self.driver.wake()
        await self.said(RequestVote, lambda one: one.pre and one.term == term)
        self.hear(vote(term, pre=True))
        await self.said(RequestVote, lambda one: not one.pre and one.term == term)
        self.hear(vote(term))
        await eventually(lambda: self.leads)
        await self.accept()

    async def accept(self, index: int | None = None) -> None:
        """Have n2 accept the log through the index, all of it unless told."""
        through = self.raft.log.last_index if index is None else index
        self.hear(accepted(self.raft.term, through))
        await eventually(lambda: self.group.machine.applied >= through)


def may_fail(future: asyncio.Future[Any]) -> None:
    """Nobody need ask how it ended, and asyncio does not complain."""
    future.add_done_callback(lambda one: one.cancelled() or one.exception())
