"""Sending a snapshot: what it holds, when it ends, what the core is told, and how the log waits."""

import asyncio
from collections.abc import AsyncIterator
from zlib import crc32

import pytest

from kvorum.errors import StorageError
from kvorum_node import snapshots
from kvorum_node.machine import SnapshotReader
from kvorum_node.raft.configuration import Configuration, Remove
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.types import Index, NodeId, Position, Term
from kvorum_node.snapshots import Chunk, Header, SnapshotFailed
from tests.support.commands import put
from tests.support.driven_node import DrivenNode
from tests.support.eventually import eventually
from tests.support.raft_messages import accepted, heartbeat, heartbeat_reply, rejected
from tests.support.scripted_disk import ScriptedDisk
from tests.support.snapshots import snapshot_of

N1, N2, N3 = NodeId(1), NodeId(2), NodeId(3)
MEMBERS = Configuration.of({node: f"host{node}:7100" for node in (N1, N2, N3)})


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "RETRY_SECONDS", 0.0)


class Follower:
    """n3, behind the log of n1, as far as the test lets a stream come."""

    def __init__(self) -> None:
        self.headers: list[Header] = []
        self.chunks: list[Chunk] = []
        self.reports: list[tuple[NodeId, Index | None]] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self.leaves = asyncio.Event()
        """A stream that was ended is gone."""
        self.leaves.set()
        self.seconds = 0.0
        """How long it takes for a chunk."""
        self.under_way = 0
        self.most_under_way = 0
        self.fails_with: Exception | None = None

    async def stream(self, peer: NodeId, about: Header, chunks: AsyncIterator[Chunk]) -> Index:
        assert peer == N3
        self.headers.append(about)
        self.chunks = []
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)
        try:
            async for chunk in chunks:
                await self.takes.wait()
                await asyncio.sleep(self.seconds)
                self.chunks.append(chunk)
                if self.fails_with is not None:
                    raise self.fails_with
        finally:
            await self.leaves.wait()
            self.under_way -= 1
        return about.last.index

    def watch(self, n1: DrivenNode) -> None:
        """Note what the core is told."""
        report = n1.raft.report_snapshot

        def noted(node: NodeId, index: Index | None) -> None:
            self.reports.append((node, index))
            report(node, index)

        n1.raft.report_snapshot = noted  # type: ignore[method-assign]  # a spy


def leading_node(follower: Follower, *, log_max_entries: int = 10) -> DrivenNode:
    n1 = DrivenNode(stream=follower.stream, log_max_entries=log_max_entries)
    follower.watch(n1)
    return n1


async def write(n1: DrivenNode, count: int) -> None:
    """Have n1, which leads, write, and n2 accept it."""
    for _ in range(count):
        last = n1.raft.log.last_index
        written = n1.submit(put(b"%05d" % last, bytes(100)))
        await eventually(lambda: n1.raft.log.last_index > last)  # noqa: B023 - awaited
        await n1.accept()
        await written


async def fall_behind(n1: DrivenNode, follower: Follower) -> None:
    """Have n1 cut from its log what n3 lacks, and begin to send it a snapshot.

    As a new leader takes n3 for alive, it waits for it at first.
    """
    await n1.lead()
    await write(n1, 45)
    await eventually(lambda: n1.group.log.first_index() > 1)
    sign_of_life(n1)
    await eventually(lambda: follower.headers)


def sign_of_life(n1: DrivenNode) -> None:
    """n3 answers a heartbeat, and a probe if there was one: it has nothing."""
    assert isinstance(n1.raft.role, Leader)
    probed = n1.raft.role.progress[N3].next - 1
    n1.hear(heartbeat_reply(n1.raft.term, sender=3))
    n1.hear(rejected(n1.raft.term, probed, "0@0", sender=3))


async def test_a_follower_behind_the_log_is_sent_the_state_and_the_core_is_told_once() -> None:
    n3 = Follower()
    async with leading_node(n3) as n1:
        await fall_behind(n1, n3)
        await eventually(lambda: n3.reports)
        for _ in range(3):
            n1.hear(heartbeat_reply(1, sender=3))
            await n1.settle()
        [about] = n3.headers
        assert (about.sender, about.recipient, about.term) == (N1, N3, 1)
        assert about.last == Position(n1.group.machine.applied, Term(1))
        assert about.configuration == MEMBERS
        assert n3.reports == [(N3, about.last.index)]
        data = b"".join(chunk.data for chunk in n3.chunks)
        assert data == snapshot_of(n1.group.machine)
        assert [chunk.last for chunk in n3.chunks[-2:]] == [False, True]
        assert n3.chunks[-1].checksum == crc32(data)


async def test_the_state_that_is_sent_is_that_of_one_index_whatever_is_applied_meanwhile() -> None:
    n3 = Follower()
    n3.takes.clear()
    async with leading_node(n3) as n1:
        await fall_behind(n1, n3)
        before = snapshot_of(n1.group.machine)
        await write(n1, 5)
        n3.takes.set()
        await eventually(lambda: n3.reports)
        assert b"".join(chunk.data for chunk in n3.chunks) == before
        assert n3.headers[0].last.index == n1.group.machine.applied - 5


async def test_a_failure_is_reported_after_a_pause_and_the_next_stream_begins_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pause = asyncio.Event()
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def controlled(seconds: float) -> None:
        if seconds == 7.0:
            pauses.append(seconds)
            await pause.wait()
        else:
            await sleep(seconds)

    monkeypatch.setattr(snapshots, "RETRY_SECONDS", 7.0)
    monkeypatch.setattr("kvorum_node.snapshots.asyncio.sleep", controlled)
    n3 = Follower()
    n3.fails_with = SnapshotFailed("broken")
    async with leading_node(n3) as n1:
        await fall_behind(n1, n3)
        await eventually(lambda: pauses)
        sign_of_life(n1)
        await n1.settle()
        assert (n3.reports, len(n3.headers)) == ([], 1)
        pause.set()
        await eventually(lambda: n3.reports)
        assert n3.reports == [(N3, None)]
        n3.fails_with = None
        sign_of_life(n1)
        await eventually(lambda: len(n3.reports) == 2)
        assert n3.reports[1] == (N3, n3.headers[1].last.index)
        assert n3.most_under_way == 1
    assert any("could not send n3 the snapshot at 46@1: broken" in one for one in caplog.messages)


async def test_a_follower_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "STALLED_SECONDS", 0.05)
    n3 = Follower()
    n3.takes.clear()
    async with leading_node(n3) as n1:
        await fall_behind(n1, n3)
        await eventually(lambda: n3.reports)
        assert n3.reports == [(N3, None)]
        assert n3.under_way == 0


async def test_a_follower_that_is_slow_and_goes_on_is_not_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots, "STALLED_SECONDS", 2.0)
    chunk = SnapshotReader.chunk
    monkeypatch.setattr(SnapshotReader, "chunk", lambda self: chunk(self, 200))
    n3 = Follower()
    n3.seconds = 0.1
    async with leading_node(n3) as n1:
        await fall_behind(n1, n3)
        await eventually(lambda: n3.reports)
        assert n3.reports == [(N3, n3.headers[0].last.index)]
        assert len(n3.chunks) * n3.seconds > 2 * snapshots.STALLED_SECONDS


async def test_a_lost_leadership_ends_the_stream_and_the_next_one_waits_for_its_end() -> None:
    n3 = Follower()
    n3.takes.clear()
    async with leading_node(n3) as n1:
        await fall_behind(n1, n3)
        n3.leaves.clear()
        n1.hear(heartbeat(2))
        await eventually(lambda: not n1.leads)
        await n1.lead()
        sign_of_life(n1)
        await n1.settle()
        assert len(n3.headers) == 1
        n3.leaves.set()
        n3.takes.set()
        await eventually(lambda: n3.reports)
        # What became of the first one nobody wants to know.
        assert n3.reports == [(N3, n3.headers[1].last.index)]
        assert n3.headers[1].term == 3
        assert n3.most_under_way == 1


async def test_a_turn_that_comes_when_another_one_leads_is_not_used() -> None:
    """A header of the other one's term would make a leader of n1 in the eyes of n3."""
    n3, disk = Follower(), ScriptedDisk()
    n3.takes.clear()
    async with DrivenNode(stream=n3.stream, log=disk, log_max_entries=10) as n1:
        await fall_behind(n1, n3)
        n3.leaves.clear()
        n1.hear(heartbeat(2))
        await eventually(lambda: not n1.leads)
        await n1.lead()
        sign_of_life(n1)
        await eventually(lambda: n1.driver.snapshots._sending[n1.group.id, N3].term == 3)
        disk.hold()
        n1.hear(heartbeat(9))
        await eventually(lambda: n1.raft.term == 9)
        # The turn of the driver is not over: nobody has ended what waits for the first stream.
        n3.takes.set()
        n3.leaves.set()
        await eventually(lambda: n3.under_way == 0)
        await n1.settle()
        assert [about.term for about in n3.headers] == [1]
        disk.release()
        await eventually(lambda: not n1.driver.snapshots._sending)
        assert [about.term for about in n3.headers] == [1]


async def test_what_a_former_leader_was_asked_for_is_not_reported() -> None:
    n3 = Follower()
    n3.takes.clear()
    async with leading_node(n3) as n1:
        await fall_behind(n1, n3)
        n1.hear(heartbeat(2))
        await eventually(lambda: n3.under_way == 0)
        await n1.settle()
        assert (n3.reports, n1.driver.snapshots._sending) == ([], {})


async def test_a_removed_follower_is_sent_nothing_more() -> None:
    n3 = Follower()
    n3.takes.clear()
    async with leading_node(n3) as n1:
        await fall_behind(n1, n3)
        change = n1.group.change_members([Remove(N3)], force=True, deadline=n1.now + 60)
        await eventually(lambda: n1.raft.log.last_index == 47)
        await n1.accept()
        await eventually(lambda: n1.raft.log.last_index == 48)
        await n1.accept()
        assert (await change).members == {N1, N2}
        await eventually(lambda: n3.under_way == 0)


async def test_a_state_that_cannot_be_read_ends_the_leader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = StorageError("cannot read: Input/output error")

    def chunk(self: object) -> bytes:
        raise broken

    monkeypatch.setattr("kvorum_node.machine.snapshot.SnapshotReader.chunk", chunk)
    n3 = Follower()
    async with leading_node(n3) as n1:
        await fall_behind(n1, n3)
        assert await n1.ended() is broken


# The log, meanwhile.


async def test_the_log_waits_for_the_snapshot_that_is_being_sent() -> None:
    n3 = Follower()
    n3.takes.clear()
    async with leading_node(n3) as n1:
        await fall_behind(n1, n3)
        sent = n3.headers[0].last.index
        await write(n1, 2 * 10)
        assert n1.group.log.first_index() <= sent + 1
        n3.takes.set()
        await eventually(lambda: n3.reports)
        n1.hear(accepted(1, sent, sender=3))
        n1.hear(accepted(1, n1.raft.log.last_index, sender=3))
        await eventually(lambda: n1.group.log.first_index() > sent + 1)
        assert len(n3.headers) == 1


async def test_the_log_does_not_wait_for_ever() -> None:
    n3 = Follower()
    n3.takes.clear()
    async with leading_node(n3) as n1:
        await fall_behind(n1, n3)
        sent = n3.headers[0].last.index
        await write(n1, 5 * 10)
        await eventually(lambda: n1.group.log.first_index() > sent + 1)


async def test_the_log_waits_for_a_follower_that_goes_on_from_its_snapshot() -> None:
    """Between the end of the stream and the follower's first word, and while it catches up."""
    n3 = Follower()
    async with leading_node(n3) as n1:
        await fall_behind(n1, n3)
        sent = n3.headers[0].last.index
        await eventually(lambda: n3.reports)
        await write(n1, 15)
        assert n1.group.log.first_index() <= sent + 1
        n1.hear(accepted(1, sent, sender=3))
        await write(n1, 5)
        assert n1.group.log.first_index() <= sent + 1
        assert len(n3.headers) == 1


async def test_a_log_that_waits_is_cut_seldom_and_much(caplog: pytest.LogCaptureFixture) -> None:
    """Each cut costs a flush of the state: not one for each entry that n3 gets on."""
    caplog.set_level("INFO", "kvorum.node")
    n3 = Follower()
    async with leading_node(n3) as n1:
        await n1.lead()
        for _ in range(40):
            await write(n1, 1)
            n1.hear(accepted(1, max(1, n1.raft.log.last_index - 12), sender=3))
            await n1.settle()
    assert 2 <= len([one for one in caplog.messages if "has cut the log" in one]) <= 8
