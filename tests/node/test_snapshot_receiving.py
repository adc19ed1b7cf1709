"""A snapshot that arrives: staged, synced, and taken by the core, or as if it had never come."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from zlib import crc32

import pytest

from kvorum.errors import OutcomeUnknown, StorageError
from kvorum_node import snapshots
from kvorum_node.machine import Machine
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.messages import AppendEntries, AppendEntriesReply
from kvorum_node.raft.types import Index, NodeId, Position, Term
from kvorum_node.snapshots import Chunk, Header, SnapshotFailed
from kvorum_node.storage.memory import MemoryEngine
from tests.support.commands import entry, put, transaction
from tests.support.driven_node import GROUP, DrivenNode, may_fail
from tests.support.eventually import eventually
from tests.support.raft_messages import append, heartbeat
from tests.support.scripted_disk import ScriptedDisk
from tests.support.snapshots import hash_of, snapshot_of

N1, N2, N3 = NodeId(1), NodeId(2), NodeId(3)
LAST = 50
MEMBERS = Configuration.of({node: f"host{node}:7100" for node in (N1, N2, N3)})


def source(last: int = LAST) -> Machine:
    """The state of another node, which has applied so many entries."""
    machine = Machine(MemoryEngine(), GROUP)
    machine.apply(
        [
            entry(index, transaction(put(b"%05d" % index, bytes(100))))
            for index in range(1, last + 1)
        ]
    )
    return machine


def header(*, last: int = LAST, term: int = 1, sender: int = 2) -> Header:
    return Header(
        group=GROUP,
        sender=NodeId(sender),
        recipient=N1,
        term=Term(term),
        last=Position(Index(last), Term(1)),
        configuration=MEMBERS,
    )


def chunks_of(machine: Machine, size: int = 1000) -> list[Chunk]:
    stream, chunks, checksum = snapshot_of(machine), [], 0
    for start in range(0, len(stream), size):
        data = stream[start : start + size]
        checksum = crc32(data, checksum)
        chunks.append(Chunk(data, checksum))
    return [*chunks, Chunk(b"", checksum, last=True)]


class Sender:
    """A leader's stream, as far as the test lets it come."""

    def __init__(
        self, n1: DrivenNode, chunks: Sequence[Chunk], about: Header | None = None
    ) -> None:
        self.taken = 0
        self._chunks = chunks
        self._more = asyncio.Event()
        self.receiving = asyncio.create_task(
            n1.driver.snapshots.receive(about or header(), self._stream())
        )
        may_fail(self.receiving)

    async def _stream(self) -> AsyncIterator[Chunk]:
        for chunk in self._chunks:
            self.taken += 1
            yield chunk
        await self._more.wait()

    def end(self) -> None:
        self._more.set()


async def receive(n1: DrivenNode, chunks: Sequence[Chunk], about: Header | None = None) -> Index:
    sender = Sender(n1, chunks, about)
    sender.end()
    return await sender.receiving


async def test_a_snapshot_becomes_the_state_and_the_log_goes_on_behind_it() -> None:
    async with DrivenNode() as n1:
        n1.hear(append(1, log="1@1"))
        await n1.said(AppendEntriesReply)
        assert await receive(n1, chunks_of(source())) == LAST
        assert hash_of(n1.group.machine) == hash_of(source())
        assert (n1.group.log.first_index(), n1.group.log.last_index()) == (LAST + 1, LAST)
        await n1.said(AppendEntriesReply, lambda one: one.index == LAST)
        n1.hear(append(1, f"{LAST}@1", f"{LAST + 1}@1", commit=LAST + 1))
        await eventually(lambda: n1.group.machine.applied == LAST + 1)


async def test_the_state_is_synced_then_the_log_then_the_state_changes_over() -> None:
    events: list[str] = []
    log, state = ScriptedDisk("log", events=events), ScriptedDisk("state", events=events)
    async with DrivenNode(log=log, state=state) as n1:
        await receive(n1, chunks_of(source()))
    last_sync = max(at for at, event in enumerate(events) if event == "state sync")
    assert events[last_sync:] == ["state sync", "log cut", "log sync", "state cut"]
    assert "state write" in events[:last_sync]


async def test_nothing_is_acknowledged_or_installed_before_the_log_is_on_the_disk() -> None:
    disk = ScriptedDisk()
    async with DrivenNode(log=disk) as n1:
        disk.hold()
        sender = Sender(n1, chunks_of(source()))
        await eventually(lambda: disk.syncs_begun == 1)
        await n1.settle()
        assert n1.group.machine.applied == 0
        assert not n1.has_said(AppendEntriesReply)
        assert not sender.receiving.done()
        disk.release()
        assert await sender.receiving == LAST
        assert n1.group.machine.applied == LAST


async def test_a_snapshot_that_is_not_needed_is_answered_before_a_chunk_is_taken() -> None:
    async with DrivenNode() as n1:
        n1.hear(append(1, log="1@1 2@1 3@1", commit=3))
        await eventually(lambda: n1.group.machine.applied == 3)
        sender = Sender(n1, chunks_of(source(3)), header(last=3))
        assert await sender.receiving == 3
        assert sender.taken == 0


def without_the_end(chunks: list[Chunk]) -> list[Chunk]:
    return chunks[:-1]


def without_a_chunk(chunks: list[Chunk]) -> list[Chunk]:
    return chunks[:2] + chunks[3:]


def with_a_flipped_bit(chunks: list[Chunk]) -> list[Chunk]:
    damaged = bytes([chunks[2].data[0] ^ 1]) + chunks[2].data[1:]
    return [*chunks[:2], Chunk(damaged, chunks[2].checksum), *chunks[3:]]


def of_another_state(chunks: list[Chunk]) -> list[Chunk]:
    return chunks_of(source(LAST - 1))


@pytest.mark.parametrize(
    "damage", [without_the_end, without_a_chunk, with_a_flipped_bit, of_another_state]
)
async def test_a_snapshot_that_is_not_whole_leaves_the_old_state_and_the_next_one_counts(
    damage: Callable[[list[Chunk]], list[Chunk]],
) -> None:
    async with DrivenNode() as n1:
        n1.hear(append(1, log="1@1", commit=1))
        await eventually(lambda: n1.group.machine.applied == 1)
        before, size = hash_of(n1.group.machine), n1.storage.state.size_bytes()
        with pytest.raises(SnapshotFailed):
            await receive(n1, damage(chunks_of(source())))
        assert hash_of(n1.group.machine) == before
        assert n1.storage.state.size_bytes() == size
        assert n1.group.log.first_index() == 1
        await receive(n1, chunks_of(source()))
        assert hash_of(n1.group.machine) == hash_of(source())


async def test_what_is_staged_is_synced_every_32_mib_and_read_no_further_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots, "MAX_UNSYNCED_BYTES", 1500)
    state = ScriptedDisk("state")
    async with DrivenNode(state=state) as n1:
        state.hold()
        sender = Sender(n1, chunks_of(source()))
        await eventually(lambda: state.syncs_begun == 1)
        await n1.settle()
        assert sender.taken <= 3
        state.release()
        assert await sender.receiving == LAST
        assert state.syncs_done >= 3


async def test_an_older_leaders_snapshot_is_refused() -> None:
    async with DrivenNode() as n1:
        n1.hear(heartbeat(4, sender=3))
        await eventually(lambda: n1.raft.term == 4)
        with pytest.raises(SnapshotFailed, match="n2 led in term 1, and it is term 4 now"):
            await receive(n1, chunks_of(source()))


async def test_a_term_that_begins_during_the_transfer_makes_the_snapshot_useless() -> None:
    async with DrivenNode() as n1:
        chunks = chunks_of(source())
        arrived = asyncio.Event()

        async def stream() -> AsyncIterator[Chunk]:
            for chunk in chunks[:-1]:
                yield chunk
            n1.hear(heartbeat(4, sender=3))
            await eventually(lambda: n1.raft.term == 4)
            arrived.set()
            yield chunks[-1]

        with pytest.raises(SnapshotFailed, match="too late: it is term 4 now"):
            await n1.driver.snapshots.receive(header(), stream())
        assert arrived.is_set()
        assert n1.group.machine.applied == 0
        assert n1.group.machine.staged is None


@pytest.mark.parametrize(("term", "sender"), [(1, 2), (2, 2), (2, 3)])
async def test_a_newer_stream_takes_the_place_of_an_older_one(term: int, sender: int) -> None:
    async with DrivenNode() as n1:
        chunks = chunks_of(source())
        first = Sender(n1, chunks[:3])
        await eventually(lambda: first.taken == 3)
        assert await receive(n1, chunks, header(term=term, sender=sender)) == LAST
        with pytest.raises(SnapshotFailed, match="gave way to a newer one"):
            await first.receiving
        assert hash_of(n1.group.machine) == hash_of(source())


async def test_another_senders_stream_does_not_take_the_place_in_the_same_term() -> None:
    async with DrivenNode() as n1:
        chunks = chunks_of(source())
        first = Sender(n1, chunks[:3])
        await eventually(lambda: first.taken == 3)
        with pytest.raises(SnapshotFailed, match="n1 is receiving one from n2"):
            await receive(n1, chunks, header(sender=3))
        first.receiving.cancel()
        await asyncio.wait([first.receiving])
        assert await receive(n1, chunks, header(sender=3)) == LAST


async def test_what_the_core_may_take_is_left_alone_when_the_sender_goes_away() -> None:
    """The next stream would empty the space that the log is about to rely on."""
    disk = ScriptedDisk()
    async with DrivenNode(log=disk) as n1:
        disk.hold()
        first = Sender(n1, chunks_of(source()))
        await eventually(lambda: disk.syncs_begun == 1)
        first.receiving.cancel()
        second = Sender(n1, chunks_of(source(LAST + 5)), header(last=LAST + 5))
        await n1.settle()
        assert second.taken == 0
        disk.release()
        second.end()
        assert await second.receiving == LAST + 5
        assert hash_of(n1.group.machine) == hash_of(source(LAST + 5))
        assert first.receiving.cancelled()


async def test_what_the_core_had_no_use_for_goes_although_the_sender_went_away() -> None:
    """It may be large, and nobody comes to take its place."""
    log, state = ScriptedDisk("log"), ScriptedDisk("state")
    async with DrivenNode(log=log, state=state) as n1:
        state.hold()
        sender = Sender(n1, chunks_of(source()))
        await eventually(lambda: state.syncs_begun == 1)
        log.hold()
        n1.hear(heartbeat(2, sender=3))  # from now on the leader of term 1 is none
        await eventually(lambda: log.syncs_begun == 1)
        state.release()
        await eventually(lambda: n1.driver.snapshots._installing)
        assert n1.group.machine.staged == LAST
        sender.receiving.cancel()
        await asyncio.wait([sender.receiving])
        log.release()
        await eventually(lambda: n1.group.machine.staged is None)
        assert n1.group.machine.applied == 0


async def test_a_disk_that_cannot_discard_what_was_staged_ends_the_node() -> None:
    log, state = ScriptedDisk("log"), ScriptedDisk("state")
    broken = StorageError("cannot write: Input/output error")
    async with DrivenNode(log=log, state=state) as n1:
        state.hold()
        sender = Sender(n1, chunks_of(source()))
        await eventually(lambda: state.syncs_begun == 1)
        n1.hear(heartbeat(2, sender=3))
        await eventually(lambda: n1.raft.term == 2)
        state.fail_writes = broken
        state.release()
        assert await n1.ended() is broken
        state.fail_writes = None
        await asyncio.wait([sender.receiving])


async def test_a_disk_that_cannot_stage_ends_the_node() -> None:
    full = StorageError("cannot write: No space left on device")
    state = ScriptedDisk("state")
    async with DrivenNode(state=state) as n1:
        state.fail_writes = full
        with pytest.raises(SnapshotFailed, match="No space left"):
            await receive(n1, chunks_of(source()))
        assert await n1.ended() is full


async def test_a_log_that_cannot_take_it_ends_the_node_and_the_sender_is_not_told_otherwise() -> (
    None
):
    broken = StorageError("cannot sync: Input/output error")
    disk = ScriptedDisk()
    async with DrivenNode(log=disk) as n1:
        disk.fail_syncs = broken
        with pytest.raises(SnapshotFailed, match="the node has stopped"):
            await receive(n1, chunks_of(source()))
        assert await n1.ended() is broken
        assert not n1.has_said(AppendEntriesReply)


async def test_a_node_that_stops_ends_what_it_receives() -> None:
    async with DrivenNode() as n1:
        sender = Sender(n1, chunks_of(source())[:3])
        await eventually(lambda: sender.taken == 3)
        n1.driver.stop()
        assert await n1.ended() is None
        await asyncio.wait([sender.receiving])
        assert n1.group.machine.applied == 0


async def test_writes_of_a_former_leader_that_a_snapshot_covers_are_in_doubt() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        write = n1.submit(put(b"k"))
        await n1.said(AppendEntries, lambda one: bool(one.entries) and one.entries[-1].index == 2)
        n1.hear(heartbeat(2))
        await eventually(lambda: not n1.leads)
        await receive(n1, chunks_of(source()), header(term=2))
        with pytest.raises(OutcomeUnknown, match="state of another node"):
            await write
