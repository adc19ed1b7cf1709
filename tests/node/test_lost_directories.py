"""A member that comes back without its data directory: found out by whoever knew it before.

Real nodes, with real gRPC between them, and a scripted peer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from kvorum.channels import connect
from kvorum.errors import (
    DataDirectoryLost,
    KvorumError,
    RemovedFromCluster,
    StorageError,
)
from kvorum.status import from_rpc_error
from kvorum_node import wire
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.types import GroupId, Index, NodeId, Position, Term
from kvorum_node.snapshots import Header
from kvorum_node.storage.data_directory import Acquaintances
from kvorum_node.transport import SNAPSHOT_METHOD, STREAM_METHOD
from kvorumpb.v1 import raft_pb2
from tests.node.test_members import ended, followers, until_agreed
from tests.support.eventually import eventually
from tests.support.node_group import Member, NodeGroup
from tests.support.raft_messages import heartbeat

# grpc.aio keeps one poller for the process: it does not outlive an event loop in good order.
pytestmark = pytest.mark.asyncio(loop_scope="session")

N1, N2 = NodeId(1), NodeId(2)


def directory_of(member: Member) -> str:
    return member.node.storage.identity.directory_id


async def acquainted(group: NodeGroup) -> None:
    """Wait until all know one another's directories."""
    members = group.members.values()
    await eventually(
        lambda: all(
            one.node.storage.acquaintances.directory_of(other.id) == directory_of(other)
            for one in members
            for other in members
            if one is not other
        )
    )


@pytest.mark.parametrize("on_disk", [False, True])
async def test_what_only_a_lost_directory_and_a_dead_leader_had_is_not_voted_away(
    on_disk: bool, tmp_path: Path
) -> None:
    """Of three, the one that lacks the write and the one that has lost it are a majority."""
    async with NodeGroup(3, tmp_path if on_disk else None) as group:
        addresses = {one.id: one.address for one in group.members.values()}
        leader = await group.leader()
        [loser, absent] = await followers(group)
        await acquainted(group)
        await absent.stop()
        await leader.put(b"k", b"acknowledged")
        await loser.stop()
        await leader.stop()

        loser.lose_disk()
        await absent.start(None)
        await loser.start(addresses)  # as at its first start
        error = await ended(loser)
        assert isinstance(error, DataDirectoryLost)
        assert str(error).startswith(f"n{loser.id} was a member with another data directory")
        assert f"kvorum member remove n{loser.id}" in str(error)
        await loser.stop()

        await leader.start(None)
        await (await group.leader()).put(b"k2", b"and it goes on")
        await group.same(leader.id, absent.id)
        assert absent.get(b"k") == b"acknowledged"


async def test_a_living_leader_is_not_followed_and_the_place_goes_to_a_new_member() -> None:
    """Its heartbeats speak of entries that the old directory had."""
    async with NodeGroup(3) as group:
        addresses = {one.id: one.address for one in group.members.values()}
        leader = await group.leader()
        [loser, stays] = await followers(group)
        await acquainted(group)
        await leader.put(b"k", b"v")
        await loser.stop()
        loser.lose_disk()
        for _ in range(2):  # however often it is started
            await loser.start(addresses)
            assert isinstance(await ended(loser), DataDirectoryLost)
            assert loser.applied == 0
            await loser.stop()
        await leader.put(b"k", b"w")

        await until_agreed(lambda: leader.node.remove_member(loser.id))
        n4 = await group.make(4)
        assert await leader.node.add_member(n4.address, None, learner=False) == 4
        await n4.start(None)
        await eventually(lambda: 4 in leader.node.group.raft.configuration.voters)
        await group.same(leader.id, stays.id, 4)
        await loser.start(addresses)
        assert isinstance(await ended(loser), RemovedFromCluster)


async def test_a_first_member_that_starts_late_gets_in() -> None:
    async with NodeGroup(0) as group:
        members = [await group.make(number) for number in (1, 2, 3)]
        addresses = {one.id: one.address for one in members}
        for member in members[:2]:
            await member.start(addresses)
        await (await group.leader()).put(b"k", b"v")
        await members[2].start(addresses)
        await group.same()
        assert members[2].get(b"k") == b"v"


async def test_a_directory_that_comes_back_is_as_good_as_before(tmp_path: Path) -> None:
    """A volume that was not mounted, for instance, when the node was started without."""
    async with NodeGroup(3, tmp_path) as group:
        addresses = {one.id: one.address for one in group.members.values()}
        leader = await group.leader()
        [away, _] = await followers(group)
        await acquainted(group)
        await away.stop()
        mounted = tmp_path / f"n{away.id}"
        volume = mounted.rename(tmp_path / "volume")
        await away.start(addresses)
        assert isinstance(await ended(away), DataDirectoryLost)
        await away.stop()
        away.lose_disk()
        volume.rename(mounted)
        await away.start(addresses)
        await leader.put(b"k", b"v")
        await group.same()


# What a peer is told, and when it is listened to.


class Peer:
    """n2, as far as n1 can tell."""

    def __init__(self, n1: Member) -> None:
        self._address = n1.address

    @staticmethod
    def _hello(ids: Mapping[str, str]) -> raft_pb2.PeerHello:
        return raft_pb2.PeerHello(
            cluster_id="test",
            sender=2,
            recipient=1,
            address="127.0.0.1:1",
            directory_id=ids["directory_id"],
            recipient_directory_id=ids.get("recipient_directory_id", ""),
        )

    async def wants_to_lead(self, term: int, **hello: str) -> KvorumError | None:
        """What n1 has against it."""
        message = raft_pb2.PeerMessage(
            hello=self._hello(hello),
            messages=[wire.encode(GroupId(1), heartbeat(term, sender=2, to=1))],
        )
        return await self._call(STREAM_METHOD, raft_pb2.PeerStreamClosed, message)

    async def sends_snapshot(self, **hello: str) -> KvorumError | None:
        header = Header(GroupId(1), N2, N1, Term(99), Position(Index(9), Term(9)), Configuration())
        message = wire.encode_header(header, self._hello(hello))
        return await self._call(SNAPSHOT_METHOD, raft_pb2.InstallSnapshotResponse, message)

    async def _call(self, method: str, response: Any, message: Any) -> KvorumError | None:
        async with connect(self._address) as channel:
            call = channel.stream_unary(
                method,
                request_serializer=type(message).SerializeToString,
                response_deserializer=response.FromString,
            )
            try:
                await call(iter([message]), timeout=10, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                return from_rpc_error(error)
            return None


async def test_a_peer_is_known_by_the_directory_with_which_it_came_first() -> None:
    async with NodeGroup(1) as group:
        n1, n2 = group[1], Peer(group[1])
        await group.leader()
        assert await n2.wants_to_lead(50, directory_id="d2") is None
        await eventually(lambda: n1.node.group.raft.term >= 50)
        assert n1.node.storage.acquaintances.directory_of(N2) == "d2"
        for error in (
            await n2.wants_to_lead(1000, directory_id="another"),
            await n2.sends_snapshot(directory_id="another"),
        ):
            assert isinstance(error, DataDirectoryLost)
            assert error.metadata["node"] == "n2"
        own = directory_of(n1)
        assert await n2.wants_to_lead(60, directory_id="d2", recipient_directory_id=own) is None
        await eventually(lambda: n1.node.group.raft.term >= 60)
        assert n1.node.group.raft.term < 1000  # it was not listened to


@pytest.mark.parametrize("with_a_snapshot", [False, True])
async def test_a_node_that_a_peer_knew_with_another_directory_ends_unheard(
    with_a_snapshot: bool,
) -> None:
    async with NodeGroup(1) as group:
        await group.leader()
        n2 = Peer(group[1])
        hello = {"directory_id": "d2", "recipient_directory_id": "the-one-before"}
        if with_a_snapshot:
            refusal = await n2.sends_snapshot(**hello)
        else:
            refusal = await n2.wants_to_lead(1000, **hello)
        error = await ended(group[1])
        for one in (error, refusal):
            assert isinstance(one, DataDirectoryLost)
            assert one.metadata["node"] == "n1"
        assert group[1].node.group.raft.term < 1000
        assert group[1].node.storage.acquaintances.directory_of(N2) == ""


async def test_a_peer_that_cannot_be_remembered_is_not_listened_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = StorageError("cannot write kvorum.json: No space left on device")

    def save(self: Acquaintances, peer: NodeId, directory_id: str) -> None:
        raise full

    monkeypatch.setattr(Acquaintances, "add", save)
    async with NodeGroup(1) as group:
        await group.leader()
        refusal = await Peer(group[1]).wants_to_lead(1000, directory_id="d2")
        assert isinstance(refusal, StorageError)
        assert await ended(group[1]) is full
        assert group[1].node.group.raft.term < 1000


async def test_a_peer_that_is_passed_over_is_written_to_no_more() -> None:
    """It was removed while n1 was away, perhaps, which has never seen it as a member."""
    async with NodeGroup(1) as group:
        leader = await group.leader()
        await Peer(leader).wants_to_lead(0, directory_id="d2")
        lanes = leader.node._transport._lanes
        assert {node for node, _ in lanes} == {N2}
        await leader.node.add_member("127.0.0.1:2", NodeId(3), learner=True)
        await eventually(lambda: {node for node, _ in lanes} == {NodeId(3)})


# What only a newer version understands.


async def test_what_cannot_be_read_ends_the_stream_and_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with NodeGroup(2) as group:
        leader = await group.leader()
        [follower] = await followers(group)
        await leader.put(b"k")
        await group.same()
        encode = wire.encode

        def newer(group_id: GroupId, message: Any, *, into: raft_pb2.RaftMessage) -> None:
            encode(group_id, message, into=into)
            for entry in into.append_entries.entries:
                entry.kind = raft_pb2.LogEntry.Kind.ValueType(9)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(wire, "encode", newer)
            index = leader.node.group.raft.log.last_index + 1
            write = leader.node.group.submit(b"", 0, deadline=1e12)
            await eventually(lambda: "refuses this node" in caplog.text)
            assert follower.node.group.raft.log.last_index < index
        lines = [one for one in caplog.messages if "of the unknown kind 9" in one]
        assert [f"n{follower.id} cannot take what n{leader.id} sends" in one for one in lines] == [
            True
        ] * len(lines)
        assert len(lines) == 2, lines  # here, and at the other end
        assert "A newer version of kvorum has written it" in lines[0]
        assert "Traceback" not in caplog.text
        write.cancel()
