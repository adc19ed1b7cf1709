"""Snapshots that a node gives to be kept: pinned, in order, bounded, and ended with the node."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc.aio
import pytest

from kvorum import backups as client
from kvorum import limits
from kvorum.admin import ClusterAdmin
from kvorum.errors import (
    DeadlineExceeded,
    KvorumError,
    NoLeader,
    Overloaded,
    ShuttingDown,
    StateCorrupt,
    StorageError,
)
from kvorum_node import services
from kvorum_node.backups import Backups
from kvorum_node.machine import Machine
from kvorum_node.node import DEFAULT_GROUP
from kvorum_node.raft.log import Compacted
from kvorum_node.raft.types import Index
from kvorum_node.snapshot_check import verify
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Family
from kvorum_node.storage.memory import MemoryEngine
from kvorum_node.verification import state_corrupt
from kvorumpb.v1.cluster_pb2 import SaveSnapshotRequest, SaveSnapshotResponse
from tests.support.eventually import eventually
from tests.support.node_group import Member, NodeGroup
from tests.support.snapshot_files import opened
from tests.support.snapshots import hash_of

MORE = 500
"""Records of 10 kB: more than gRPC takes in when nobody reads."""


@pytest.fixture
async def group() -> AsyncIterator[NodeGroup]:
    async with NodeGroup(3) as group:
        leader = await group.leader()
        await leader.fill(100)
        await group.same()
        yield group


@pytest.fixture
async def leader(group: NodeGroup) -> Member:
    return await group.leader()


def save(member: Member) -> Any:
    return aclosing(member.node.backups.save())


async def taken(member: Member) -> tuple[client.Saved, bytes]:
    """What the node says of its snapshot, and the file."""
    sink = io.BytesIO()
    saved = await client.write(member.node.backups.save(), sink, lambda *_: None)
    return saved, sink.getvalue()


def under_way(member: Member) -> int:
    return member.node.backups._under_way


async def test_every_node_gives_what_it_has_applied(group: NodeGroup) -> None:
    for member in group.members.values():
        saved, data = await taken(member)
        machine = member.node.group.machine
        held = hash_of(machine)
        assert saved.header.node == str(member.node)
        assert saved.header.cluster_id == "test"
        assert saved.header.index == machine.applied
        assert saved.header.term == member.node.group.raft.term
        assert saved.header.revision == machine.revision == 100
        assert saved.header.log_time_ms == machine.log_time_ms
        assert saved.trailer.content_hash == held.digest
        assert saved.trailer.record_count == held.record_count == 100
        assert saved.file_bytes == len(data)
        verify(opened(data), lambda _: None)


async def test_it_is_of_the_moment_at_which_it_began(leader: Member) -> None:
    machine = leader.node.group.machine
    held = hash_of(machine)
    async with save(leader) as parts:
        header = (await anext(parts)).header
        await leader.fill(100)  # writes the same keys again
        trailer = [part async for part in parts][-1].trailer
    assert header.index == held.applied < machine.applied
    assert trailer.content_hash == held.digest != hash_of(machine).digest


async def test_without_a_quorum_it_is_given_all_the_same(group: NodeGroup, leader: Member) -> None:
    for member in group.members.values():
        if member is not leader:
            await member.stop()
    await eventually(lambda: not leader.leads)
    saved, _ = await taken(leader)
    assert saved.header.revision == 100


async def test_the_loop_is_free_between_two_chunks(leader: Member) -> None:
    await leader.fill(MORE, 10_000)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    try:
        saved, _ = await taken(leader)
    finally:
        task.cancel()
    assert saved.trailer.content_bytes > 4 * limits.MIB
    assert turns > 4


async def test_few_are_given_at_a_time(leader: Member) -> None:
    async with ClusterAdmin() as admin, save(leader) as first, save(leader) as second:
        for parts in (first, second):
            await anext(parts)
        assert under_way(leader) == limits.MAX_SNAPSHOTS_BEING_SAVED == 2
        async with aclosing(admin.snapshot(leader.address)) as third:
            with pytest.raises(Overloaded, match="gives 2 snapshots already") as raised:
                await anext(third)
        assert raised.value.metadata == {"limit": "MAX_SNAPSHOTS_BEING_SAVED", "maximum": "2"}
        await first.aclose()
        assert under_way(leader) == 1
        await taken(leader)
    assert under_way(leader) == 0


async def test_it_is_given_up_when_the_caller_goes(leader: Member) -> None:
    await leader.fill(MORE, 10_000)
    async with ClusterAdmin() as admin:
        async with aclosing(admin.snapshot(leader.address)) as parts:
            assert (await anext(parts)).header.revision == 100 + MORE
            assert under_way(leader) == 1
        await eventually(lambda: under_way(leader) == 0)


async def test_nothing_is_read_that_the_caller_does_not_take(
    leader: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leader.fill(6 * MORE, 10_000)
    sent = 0
    give = Backups.save

    async def counted(self: Backups) -> AsyncIterator[SaveSnapshotResponse]:
        nonlocal sent
        async with aclosing(give(self)) as parts:
            async for part in parts:
                sent += len(part.chunk)
                yield part

    monkeypatch.setattr(Backups, "save", counted)
    monkeypatch.setattr(services.cluster, "STALLED_SECONDS", 1.0)
    direct = f"127.0.0.1:{leader._port}"  # a link would take in some of it, too
    async with ClusterAdmin() as admin, aclosing(admin.snapshot(direct)) as parts:
        await anext(parts)
        await eventually(lambda: under_way(leader) == 0)  # it was given up
        with pytest.raises(DeadlineExceeded, match="no part was taken for 1 s"):
            await read(parts)
    print(f"{sent} bytes were sent")
    assert sent < 16 * limits.MIB  # of twice as much: what sockets and gRPC take in


async def read(parts: AsyncIterator[SaveSnapshotResponse]) -> None:
    """To its end."""
    async for _ in parts:
        pass


async def test_it_ends_with_the_node(leader: Member) -> None:
    async with save(leader) as parts:
        await anext(parts)
        leader.node.end_streams()
        with pytest.raises(ShuttingDown, match="is shutting down"):
            await anext(parts)
    with pytest.raises(ShuttingDown):
        await taken(leader)
    assert under_way(leader) == 0


async def test_a_node_that_is_corrupt_gives_none(leader: Member) -> None:
    why = state_corrupt(leader.id, Index(1))
    async with save(leader) as parts:
        await anext(parts)
        leader.node._condemned(why, frozenset({leader.id}))
        with pytest.raises(StateCorrupt):
            await anext(parts)
    async with ClusterAdmin() as admin, aclosing(admin.snapshot(leader.address)) as parts:
        with pytest.raises(StateCorrupt, match="differs from what the majority held"):
            await anext(parts)


async def test_a_state_that_cannot_be_read_is_not_given(leader: Member) -> None:
    machine = leader.node.group.machine
    batch = Batch()
    batch.put(Family.DATA, layout.data_key(machine._space, b"broken"), b"\xff\xff")
    leader.node.storage.state.write(batch)
    with pytest.raises(StorageError):
        await taken(leader)
    assert under_way(leader) == 0


async def test_a_node_that_has_heard_nothing_has_none(group: NodeGroup) -> None:
    member = group.members[1]
    backups = member.node.backups
    member.node.group.machine = Machine(MemoryEngine(), DEFAULT_GROUP)
    with pytest.raises(NoLeader, match="n1 has heard nothing of its cluster yet"):
        await anext(backups.save())


async def test_while_another_state_is_taken_over_there_is_none(
    leader: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log begins after the snapshot already, and the state is still the one before."""
    log = leader.node.group.raft.log
    monkeypatch.setattr(type(log), "term", lambda *_: (_ for _ in ()).throw(Compacted()))
    with pytest.raises(Overloaded, match="takes over the state of its leader"):
        await taken(leader)


async def test_a_namespace_that_is_none_is_refused(leader: Member) -> None:
    async with grpc.aio.insecure_channel(leader.address) as channel:
        call: Any = channel.unary_stream(
            "/kvorumpb.v1.Cluster/SaveSnapshot",
            request_serializer=SaveSnapshotRequest.SerializeToString,
            response_deserializer=SaveSnapshotResponse.FromString,
        )(SaveSnapshotRequest(namespace="other"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await read(call)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_stream_that_breaks_is_an_error_and_no_end(leader: Member) -> None:
    await leader.fill(2 * MORE, 10_000)
    async with ClusterAdmin() as admin, aclosing(admin.snapshot(leader.address)) as parts:
        await anext(parts)
        await leader.link.cut()
        with pytest.raises(KvorumError) as raised:
            await read(parts)
    assert raised.value.retryable
