"""What is done beside serving: removing what has expired, forgetting history, keeping the clock.

The leader proposes the first two, as commands of a bounded size, one at a time. What they
remove is decided where they are applied, by log time: one of a leader that does not lead any
more can do no harm. After each comes a pause of several times what it took to apply, so that a
million records which expire at once leave the rest of the node to its clients.

Every node stores its clock, for its next start (log_clock.py).
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from kvorum.errors import InvalidArgument, KvorumError, StorageError
from kvorum_node.group import Group
from kvorum_node.raft.leader import Leader
from kvorumpb.v1.command_pb2 import Command, CommandBatch, Compaction, Sweep

SWEEP_RECORDS: Final = 100
"""Removed by one command, which takes a few milliseconds to apply."""
COMPACTION_EVENTS: Final = 300

PERIOD_SECONDS: Final = 0.1
"""How often to look whether there is something to do."""
PAUSES: Final = 8.0
"""A pause is so many times as long as the work before it took: a ninth of the time is work, of
each node, and they may share a machine."""
LATE_PAUSES: Final = 2.0
"""Where more comes than that can remove: a third."""
LATE_MS: Final = 600_000
"""So long overdue, what has expired is late. History is, once more of it is due."""
MIN_PAUSE_SECONDS: Final = 0.005

HISTORY_SHARE: Final = 20
"""History is forgotten when so much of its length could be: the 20th part."""
MIN_COMPACTION_SECONDS: Final = 1.0
MAX_COMPACTION_SECONDS: Final = 60.0

CLOCK_SECONDS: Final = 5.0
"""How often to look whether the stored clock is still right."""
CLOCK_DRIFT_MS: Final = 250
"""It is stored anew when it is off by more: each time costs a flush of the state."""

COMMAND_SECONDS: Final = 10.0
"""How long a command may take to be committed before it is given up."""


class Housekeeper:
    """Keeps one group. `run` ends when it is cancelled."""

    def __init__(
        self, group: Group, *, history_seconds: float, flush: Callable[[], Awaitable[None]]
    ) -> None:
        """Make one that does nothing yet.

        Args:
            history_seconds: how long revisions can be read.
            flush: puts the state on the disk.
        """
        self._group = group
        self._history_ms = round(history_seconds * 1000)
        self._flush = flush
        self._compaction_seconds = min(
            max(history_seconds / HISTORY_SHARE, MIN_COMPACTION_SECONDS), MAX_COMPACTION_SECONDS
        )
        self._next_compaction = 0.0
        self._next_clock = 0.0
        self._swept_last = False
        self._stored = group.machine.clock

    async def run(self) -> None:
        """Look, work, pause, for ever.

        Raises StorageError: the disk has failed.
        """
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                worked = self._leads and await self._work(began)
            except StorageError:
                raise
            except KvorumError:  # leadership is lost, or many writes wait: later, or another node
                worked = False
            pause = self._pause() if worked else PERIOD_SECONDS
            if began >= self._next_clock:
                if self._stored is not None:  # the first time counts most
                    self._next_clock = began + CLOCK_SECONDS
                await self._keep_clock()
            await asyncio.sleep(pause)

    def store_clock(self, *, drift_ms: int = 0) -> bool:
        """Store what the clock says, if the stored one is off by more than drift_ms.

        A flush of the state makes it durable.
        """
        reading, stored = self._group.clock.reading(), self._stored
        if reading is None:
            return False
        if stored is not None and reading.differs_ms(stored) <= drift_ms:
            return False
        self._group.machine.store_clock(reading)
        self._stored = reading
        return True

    @property
    def _leads(self) -> bool:
        role = self._group.raft.role
        return isinstance(role, Leader) and role.established

    async def _work(self, now: float) -> bool:
        """Have one command carried out, if there is something to do: one kind, then the other."""
        command = self._compaction(now) if self._swept_last else None
        command = command or self._sweep() or self._compaction(now)
        self._swept_last = command is not None and command.HasField("sweep")
        if command is None:
            return False
        deadline = asyncio.get_running_loop().time() + COMMAND_SECONDS
        await _submit(self._group, command, deadline)
        return True

    def _sweep(self) -> Command | None:
        if self._group.machine.next_expiry_ms() > self._group.now_ms():
            return None
        return Command(sweep=Sweep(limit=SWEEP_RECORDS))

    def _compaction(self, now: float) -> Command | None:
        machine = self._group.machine
        if not machine.is_trimmed:
            return _compaction(0)
        if now < self._next_compaction:
            return None
        self._next_compaction = now + self._compaction_seconds
        revision = machine.revision_at(self._group.now_ms() - self._history_ms)
        return _compaction(revision) if revision > machine.oldest_revision else None

    def _pause(self) -> float:
        """How long to leave the node to others, after the work that was just applied."""
        group, now = self._group, asyncio.get_running_loop().time()
        is_late = group.now_ms() - group.machine.next_expiry_ms() > LATE_MS or (
            now >= self._next_compaction and not group.machine.is_trimmed
        )
        pauses = LATE_PAUSES if is_late else PAUSES
        return max(pauses * group.apply_seconds, MIN_PAUSE_SECONDS)

    async def _keep_clock(self) -> None:
        if self.store_clock(drift_ms=CLOCK_DRIFT_MS):
            await self._flush()


async def compact(group: Group, revision: int, *, deadline: float) -> int:
    """Let the revision be the oldest that can be read, unless older ones are gone already.

    What is kept for older ones is removed later, by the Housekeeper of the leader.
    Returns the oldest revision that can be read.

    Raises:
        InvalidArgument, FutureRevision: there is no such revision.
        NotLeader, NoLeader, Overloaded, ShuttingDown: nothing has happened.
        DeadlineExceeded, OutcomeUnknown: it may happen yet.
    """
    if revision < 1:
        raise InvalidArgument(f"revision {revision} cannot be kept: the first one is 1")
    await group.read(deadline=deadline)
    machine = group.machine
    if revision > machine.oldest_revision:
        machine.require_readable(revision)
        await _submit(group, _compaction(revision), deadline)
    return machine.oldest_revision


def _compaction(revision: int) -> Command:
    return Command(compaction=Compaction(revision=revision, limit=COMPACTION_EVENTS))


async def _submit(group: Group, command: Command, deadline: float) -> None:
    data = CommandBatch(commands=[command]).SerializeToString()
    await group.submit(data, 1, deadline=deadline)
