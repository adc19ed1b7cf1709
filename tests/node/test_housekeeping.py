"""The leader removes what has expired and forgets history by itself, and nodes keep their clock."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from kvorum.errors import FutureRevision, InvalidArgument, NotLeader, StorageError
from kvorum_node.housekeeping import COMPACTION_EVENTS, SWEEP_RECORDS, Housekeeper, compact
from kvorum_node.raft.messages import AppendEntries
from kvorum_node.raft.types import Index, NodeId
from kvorum_node.storage.data_directory import Identity, Storage
from kvorum_node.storage.engine import Family
from kvorum_node.storage.layout import ClockReading
from kvorumpb.v1.command_pb2 import CommandBatch, Operation, PutOperation
from tests.support.commands import put
from tests.support.driven_node import DrivenNode
from tests.support.eventually import eventually
from tests.support.raft_messages import append, entries, heartbeat

HOUR_MS = 3_600_000


async def no_flush() -> None:
    """The state is in memory."""


class Watched(Housekeeper):
    """Counts how often it has looked whether there is something to do."""

    looks = 0

    @property
    def _leads(self) -> bool:
        self.looks += 1
        return super()._leads

    async def look_again(self) -> None:
        """Return once it has looked at all that there was at the call."""
        enough = self.looks + 2
        await eventually(lambda: self.looks >= enough)


@asynccontextmanager
async def kept(
    node: DrivenNode,
    *,
    history_seconds: float = 3600,
    flush: Callable[[], Awaitable[None]] = no_flush,
) -> AsyncIterator[Watched]:
    housekeeper = Watched(node.group, history_seconds=history_seconds, flush=flush)
    running = asyncio.create_task(housekeeper.run())
    try:
        yield housekeeper
        assert not running.done()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def put_for(key: bytes, ttl_ms: int) -> Operation:
    return Operation(put=PutOperation(key=key, value=b"value", ttl_ms=ttl_ms))


def rows(node: DrivenNode, family: Family) -> int:
    return sum(1 for _ in node.storage.state.scan(family, b"", None))


def sweeps(node: DrivenNode) -> list[int]:
    """How much each sweep in the log was to remove."""
    log = node.group.log
    held = log.entries(log.first_index(), Index(log.last_index() + 1), 1 << 30)
    batches = [CommandBatch.FromString(one.data) for one in held]
    return [
        command.sweep.limit
        for batch in batches
        for command in batch.commands
        if command.HasField("sweep")
    ]


async def test_what_has_expired_is_removed_in_steps_and_then_nothing_is_written() -> None:
    async with DrivenNode(voters=1) as n1:
        count = 2 * SWEEP_RECORDS + 1
        await n1.submit(*(put_for(b"%d" % n, 100) for n in range(count)), put_for(b"later", 10**6))
        async with kept(n1) as housekeeper:
            n1.clock_ms += 100
            await eventually(lambda: rows(n1, Family.DATA) == 1)
            assert n1.group.machine.revision == count + 1 + 3
            last = n1.group.log.last_index()
            n1.clock_ms += 100
            await housekeeper.look_again()
            assert n1.group.log.last_index() == last
        assert sweeps(n1) == [SWEEP_RECORDS] * 3


async def test_only_the_leader_sweeps() -> None:
    async with DrivenNode() as n1:
        batch = CommandBatch(format=2, log_time_ms=1000)
        batch.commands.add().transaction.operations.append(put_for(b"k", 100))
        n1.hear(append(1, log=entries("1@1", data=batch.SerializeToString()), commit=1))
        await eventually(lambda: n1.group.machine.applied == 1)
        async with kept(n1) as housekeeper:
            n1.clock_ms += 1000
            await housekeeper.look_again()
            assert n1.group.log.last_index() == 1
            await n1.lead()
            await n1.said(AppendEntries, lambda one: any(entry.index == 3 for entry in one.entries))
            await n1.accept()
            await eventually(lambda: rows(n1, Family.DATA) == 0)


async def test_it_goes_on_when_leadership_comes_back() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        n1.submit(put_for(b"k", 100))
        await n1.settle()
        await n1.accept()
        async with kept(n1):
            n1.clock_ms += 100
            await n1.said(AppendEntries, lambda one: any(entry.index == 3 for entry in one.entries))
            n1.hear(append(2, "2@1", entries("3@2"), commit=3))
            await eventually(lambda: n1.group.machine.applied == 3)
            await n1.lead()
            await eventually(lambda: n1.raft.log.last_index == 5)
            await n1.accept()
            await eventually(lambda: rows(n1, Family.DATA) == 0)


async def test_history_older_than_its_time_is_forgotten_in_steps() -> None:
    async with DrivenNode(voters=1) as n1:
        old = COMPACTION_EVENTS + 10
        await n1.submit(*(put(b"k") for _ in range(old)))
        n1.clock_ms += HOUR_MS
        await n1.submit(put(b"new"), put(b"new"))
        machine = n1.group.machine
        async with kept(n1, history_seconds=3600):
            await eventually(lambda: machine.oldest_revision == old and machine.is_trimmed)
        assert rows(n1, Family.HISTORY) == rows(n1, Family.KEYS) == 2
        assert machine.get(b"k", revision=old) is not None


async def test_history_within_its_time_stays() -> None:
    async with DrivenNode(voters=1) as n1:
        await n1.submit(put(b"k"))
        n1.clock_ms += HOUR_MS - 1
        async with kept(n1, history_seconds=3600) as housekeeper:
            await housekeeper.look_again()
            assert n1.group.machine.oldest_revision == 0


async def test_compaction_on_request() -> None:
    async with DrivenNode(voters=1) as n1:
        await n1.submit(*(put(b"k") for _ in range(10)))
        deadline = n1.now + 60
        assert await compact(n1.group, 4, deadline=deadline) == 4
        assert await compact(n1.group, 4, deadline=deadline) == 4
        last = n1.group.log.last_index()
        assert await compact(n1.group, 2, deadline=deadline) == 4
        assert n1.group.log.last_index() == last, "there was nothing to do"
        assert await compact(n1.group, 10, deadline=deadline) == 10
        for revision in (0, -1):
            with pytest.raises(InvalidArgument, match="the first one is 1"):
                await compact(n1.group, revision, deadline=deadline)
        with pytest.raises(FutureRevision) as caught:
            await compact(n1.group, 11, deadline=deadline)
        assert caught.value.metadata["newest_revision"] == "10"


async def test_what_was_forgotten_on_request_is_removed_by_and_by() -> None:
    async with DrivenNode(voters=1) as n1:
        count = 2 * COMPACTION_EVENTS + 10
        await n1.submit(*(put(b"k") for _ in range(count)))
        await compact(n1.group, count, deadline=n1.now + 60)
        assert not n1.group.machine.is_trimmed
        async with kept(n1):
            await eventually(lambda: n1.group.machine.is_trimmed)
        assert rows(n1, Family.HISTORY) == 0


async def test_a_node_that_does_not_lead_does_not_compact() -> None:
    async with DrivenNode() as n1:
        n1.hear(heartbeat(1))
        await eventually(lambda: n1.raft.leader == 2)
        with pytest.raises(NotLeader):
            await compact(n1.group, 1, deadline=n1.now + 60)


# The clock.


async def test_the_clock_is_stored_and_flushed_once_it_is_news() -> None:
    flushes = 0

    async def flush() -> None:
        nonlocal flushes
        flushes += 1

    async with DrivenNode(voters=1) as n1:
        machine = n1.group.machine
        async with kept(n1, flush=flush) as housekeeper:
            await housekeeper.look_again()
            assert flushes == 0, "there is no log time yet"
        await n1.submit(put(b"k"))
        async with kept(n1, flush=flush) as housekeeper:
            await eventually(lambda: flushes == 1)
            assert machine.clock == ClockReading(n1.clock_ms, n1.clock_ms)
            n1.clock_ms += HOUR_MS
            assert not housekeeper.store_clock(), "both have moved on"
            n1.group.clock.follow(n1.clock_ms + 100, term=1)
            assert not housekeeper.store_clock(drift_ms=100)
            assert housekeeper.store_clock(), "at a stop, it is exact"
            n1.group.clock.follow(n1.clock_ms + 201, term=1)
            assert housekeeper.store_clock(drift_ms=100)
            assert machine.clock == ClockReading(n1.clock_ms + 201, n1.clock_ms)


async def test_over_a_restart_the_time_it_was_down_counts() -> None:
    storage = Storage.memory(Identity("test", NodeId(1)))
    async with DrivenNode(voters=1, storage=storage) as n1:
        n1.group.clock.follow(50_000, term=2)  # far from the wall clock
        await n1.submit(put_for(b"t", 10_000))
        Housekeeper(n1.group, history_seconds=3600, flush=no_flush).store_clock()
    async with DrivenNode(voters=1, storage=storage, clock_ms=10_999) as n1:
        await n1.read()
        assert n1.group.machine.get(b"t") is not None
    async with DrivenNode(voters=1, storage=storage, clock_ms=11_000) as n1:
        await n1.read()
        assert n1.group.machine.get(b"t") is None


async def test_a_disk_that_fails_ends_it() -> None:
    async def fail() -> None:
        raise StorageError("the test's disk is full")

    async with DrivenNode(voters=1) as n1:
        await n1.submit(put(b"k"))
        housekeeper = Housekeeper(n1.group, history_seconds=3600, flush=fail)
        with pytest.raises(StorageError, match="the test's disk is full"):
            await housekeeper.run()
