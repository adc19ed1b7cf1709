"""Snapshots between real nodes over real gRPC: whoever is too far behind is brought up to date."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvorum import limits
from kvorum_node.node import Node
from kvorum_node.raft.types import Index, NodeId
from kvorum_node.snapshots import Chunk, Header
from tests.support.eventually import eventually
from tests.support.node_group import TIMING, Member, NodeGroup

# grpc.aio keeps one poller for the process: it does not outlive an event loop in good order.
pytestmark = pytest.mark.asyncio(loop_scope="session")
MAX_CHUNKS_IN_FLIGHT = 12
"""What gRPC and the sockets hold: about 4 MiB at either end, and some for the link between."""


@pytest.fixture(params=["memory", "rocksdb"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path if request.param == "rocksdb" else None


async def fall_behind(group: NodeGroup, number: int) -> Member:
    """Stop a follower, and write until the log of the others begins after it; returns the leader.

    The state is about four times as large as a log may be.
    """
    leader = await group.leader()
    if leader is group[number]:
        await leader.node.transfer_leadership(None)
        leader = await group.leader()
    await leader.put(b"known", b"before")
    await eventually(lambda: group[number].get(b"known"))
    applied = group[number].applied
    await group[number].stop()
    await leader.put(b"known", b"after")
    start = 0
    while start < 4000 or leader.first_index <= applied + 1:
        await leader.fill(200, first=start)
        start += 200
    return leader


@contextmanager
def writing(leader: Member) -> Iterator[list[int]]:
    """Write beside the test, until it leaves; what it gives grows with the writes."""
    revisions: list[int] = []

    async def write() -> None:
        while True:
            revisions.append(await leader.put(b"beside-%06d" % len(revisions), bytes(100)))

    task = asyncio.create_task(write())
    try:
        yield revisions
    finally:
        task.cancel()


class Held:
    """The chunks that a node is sent pass one at a time, when the test says so."""

    def __init__(self, node: Node) -> None:
        self.passed = 0
        self.free = asyncio.Event()
        self.may_pass = asyncio.Semaphore(0)
        self.seconds = 0.0
        receive = node.driver.snapshots.receive

        async def held(header: Header, chunks: AsyncIterator[Chunk]) -> Index:
            return await receive(header, self._hold(chunks))

        node.driver.snapshots.receive = held  # type: ignore[method-assign]  # the slow recipient

    def release(self) -> None:
        self.free.set()
        self.may_pass.release()

    async def _hold(self, chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
        async for chunk in chunks:
            if not self.free.is_set():
                await self.may_pass.acquire()
            await asyncio.sleep(self.seconds)
            self.passed += 1
            yield chunk


async def test_a_follower_behind_the_log_catches_up_while_writes_go_on(
    directory: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kvorum.node")
    async with NodeGroup(3, directory) as group:
        leader = await fall_behind(group, 3)
        with writing(leader) as revisions:
            await group[3].start(None)
            await eventually(lambda: group[3].first_index > 1)
            count = len(revisions)
            await eventually(lambda: len(revisions) > count + 10)
        await group.same()
        assert group[3].get(b"%08d" % 0) == bytes(1000)
        assert group[3].get(b"beside-%06d" % 0) == bytes(100)
    sent = [one for one in caplog.messages if one.startswith("sends n3 a snapshot at ")]
    assert len(sent) == 1


async def test_a_stream_that_breaks_leaves_the_old_state_and_the_next_one_succeeds(
    tmp_path: Path,
) -> None:
    async with NodeGroup(3, tmp_path) as group:
        leader = await fall_behind(group, 3)
        await group[3].start(None)
        held = Held(group[3].node)
        held.may_pass.release()
        held.may_pass.release()
        await eventually(lambda: held.passed == 2)
        await group[3].link.cut()
        await eventually(lambda: not group[3].node.driver.snapshots._receiving)
        await eventually(lambda: has_given_up(leader))
        assert group[3].get(b"known") == b"before"
        assert group[3].first_index == 1
        held.release()
        group[3].link.heal()
        await group.same()
        assert group[3].get(b"known") == b"after"


def has_given_up(leader: Member) -> bool:
    return leader.leads and all(
        one.kept_from is None for one in leader.node.driver.snapshots._sending.values()
    )


async def test_a_recipient_that_restarts_in_the_middle_begins_anew(tmp_path: Path) -> None:
    async with NodeGroup(3, tmp_path) as group:
        await fall_behind(group, 3)
        await group[3].start(None)
        held = Held(group[3].node)
        held.may_pass.release()
        held.may_pass.release()
        await eventually(lambda: held.passed == 2)
        await group[3].stop()
        await group[3].start(None)
        assert group[3].get(b"known") == b"before"
        await group.same()
        assert group[3].get(b"known") == b"after"


async def test_a_sender_that_loses_leadership_ends_its_stream_and_the_next_leader_sends() -> None:
    async with NodeGroup(3) as group:
        leader = await fall_behind(group, 3)
        await group[3].start(None)
        held = Held(group[3].node)
        held.may_pass.release()
        await eventually(lambda: held.passed == 1)
        other = next(one for one in (group[1], group[2]) if one is not leader)
        assert await leader.node.transfer_leadership(other.id) == other.id
        await eventually(lambda: not leader.node.driver.snapshots._sending)
        held.release()
        await eventually(lambda: group[3].first_index > 1)
        await group.same()
        assert group[3].node.group.raft.leader == other.id


async def test_a_record_of_the_largest_size_is_in_a_snapshot() -> None:
    async with NodeGroup(3) as group:
        leader = await group.leader()
        value = bytes(range(256)) * (limits.MAX_VALUE_BYTES // 256)
        await leader.put(b"large", value)
        await fall_behind(group, 3 if leader is not group[3] else 2)
        late = next(one for one in group.members.values() if not one.is_up)
        await late.start(None)
        await eventually(lambda: late.first_index > 1)
        await group.same()
        assert late.get(b"large") == value


async def test_a_slow_recipient_delays_no_heartbeat_and_holds_up_few_chunks() -> None:
    """A transfer that takes several election time-outs ends in the term in which it began."""
    async with NodeGroup(3) as group:
        leader = await fall_behind(group, 3)
        await leader.fill(60, 500_000, first=10_000)
        term = leader.node.group.raft.term
        taken = count_chunks(leader)
        await group[3].start(None)
        held = Held(group[3].node)
        held.seconds = 3 * TIMING.election_timeout_seconds / 30
        held.release()
        in_flight = [0]

        def look() -> bool:
            in_flight.append(len(taken) - held.passed)
            return group[3].first_index > 1

        await eventually(look)
        await group.same()
        assert held.passed > 30
        assert max(in_flight) <= MAX_CHUNKS_IN_FLIGHT
        assert leader.node.group.raft.term == term
        assert leader.leads


def count_chunks(leader: Member) -> list[int]:
    """Grows by one with each chunk that the leader's transport takes."""
    taken: list[int] = []
    snapshots = leader.node.driver.snapshots
    stream = snapshots._stream

    async def counted(peer: NodeId, header: Header, chunks: AsyncIterator[Chunk]) -> Index:
        async def counting() -> AsyncIterator[Chunk]:
            async for chunk in chunks:
                taken.append(len(chunk.data))
                yield chunk

        return await stream(peer, header, counting())

    snapshots._stream = counted
    return taken
