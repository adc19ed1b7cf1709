"""Lanes to the peers: two of them each, bounded, and back again after whatever breaks them."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from kvorum import channels, limits
from kvorum.cli.processes import free_ports
from kvorum.errors import DataDirectoryLost, KvorumError, RemovedFromCluster
from kvorum.status import to_status
from kvorum_node import transport, wire
from kvorum_node.raft.messages import Heartbeat, Message
from kvorum_node.raft.types import GroupId, NodeId
from kvorum_node.services.kv import abort
from kvorum_node.storage.data_directory import Acquaintances, Identity
from kvorum_node.transport import Transport
from kvorumpb.v1 import raft_pb2
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.raft_messages import append, entries, heartbeat

# grpc.aio keeps one poller for the process: it does not outlive an event loop in good order.
pytestmark = pytest.mark.asyncio(loop_scope="session")

GROUP = GroupId(1)
N1, N2 = NodeId(1), NodeId(2)


class Peer:
    """n2, as a server that notes what it is told, and ends streams as the test says."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.hellos: list[raft_pb2.PeerHello] = []
        self.heard: list[Message] = []
        self.connections: dict[str, set[str]] = {}
        """By kind of message: the addresses that it came from."""
        self.streams = 0
        self.ends_with: grpc.StatusCode | None = None
        """How a stream ends that has brought a message; None lets it go on."""
        self.refuses_with: KvorumError | None = None
        """What it answers a hello with; None lets it be."""
        self.dismissals: list[KvorumError] = []
        """What the transport has understood to be the end of its node."""
        self.reading_appends = asyncio.Event()
        self.reading_appends.set()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
            ]
        )
        handler: grpc.RpcMethodHandler[raft_pb2.PeerMessage, raft_pb2.PeerStreamClosed]
        handler = grpc.stream_unary_rpc_method_handler(
            self._stream,
            request_deserializer=raft_pb2.PeerMessage.FromString,
            response_serializer=raft_pb2.PeerStreamClosed.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("kvorumpb.v1.Raft", {"Stream": handler}),)
        )
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    def rounds(self) -> list[int]:
        """The heartbeats, by their numbers."""
        return [one.read_round for one in self.heard if isinstance(one, Heartbeat)]

    async def _stream(
        self,
        messages: AsyncIterator[raft_pb2.PeerMessage],
        context: "grpc.aio.ServicerContext[raft_pb2.PeerMessage, raft_pb2.PeerStreamClosed]",
    ) -> raft_pb2.PeerStreamClosed:
        self.streams += 1
        try:
            async for message in messages:
                if message.HasField("hello"):
                    self.hellos.append(message.hello)
                if self.refuses_with is not None:
                    await abort(context, to_status(self.refuses_with))
                for one in message.messages:
                    decoded = wire.decode(one)
                    assert decoded is not None
                    kind = type(decoded).__name__
                    self.connections.setdefault(kind, set()).add(context.peer())
                    self.heard.append(decoded)
                    if not isinstance(decoded, Heartbeat):
                        await self.reading_appends.wait()
                if message.messages and self.ends_with is grpc.StatusCode.OK:
                    break
                if message.messages and self.ends_with is not None:
                    await context.abort(self.ends_with, "scripted")
        finally:
            self.streams -= 1
        return raft_pb2.PeerStreamClosed()


@asynccontextmanager
async def peer_and_transport() -> AsyncIterator[tuple[Peer, Transport, list[NodeId]]]:
    [port] = free_ports(1)
    peer, lost = Peer(port), list[NodeId]()
    lanes = Transport(
        Identity("test", N1, "d1"),
        Acquaintances({N2: "d2"}),
        unreachable=lost.append,
        dismissed=peer.dismissals.append,
    )
    lanes.follow({N1: "127.0.0.1:1", N2: peer.address})
    await peer.start()
    lanes.start()
    try:
        yield peer, lanes, lost
    finally:
        await lanes.stop()
        await peer.stop()


def beat(number: int) -> Heartbeat:
    return heartbeat(1, read_round=number, sender=N1, to=N2)


async def until_heard(lanes: Transport, peer: Peer, number: int) -> None:
    """Send a heartbeat until it has arrived."""

    def arrived() -> bool:
        if number not in peer.rounds():
            lanes.send(GROUP, [beat(number)])
        return number in peer.rounds()

    await eventually(arrived)


async def test_each_lane_opens_with_a_hello() -> None:
    async with peer_and_transport() as (peer, _, _):
        await eventually(lambda: len(peer.hellos) == 2)
        for hello in peer.hellos:
            assert (hello.cluster_id, hello.sender, hello.recipient) == ("test", N1, N2)
            assert (hello.directory_id, hello.recipient_directory_id) == ("d1", "d2")


async def test_peers_may_listen_for_each_other_on_a_port_of_its_own() -> None:
    [port] = free_ports(1)
    peer = Peer(port)
    identity = Identity("test", N1, "d1")
    lanes = Transport(
        identity, Acquaintances(), unreachable=lambda _: None, dismissed=lambda _: None, port=port
    )
    lanes.follow({N1: "127.0.0.1:1", N2: "127.0.0.1:2"})
    await peer.start()
    lanes.start()
    try:
        await until_heard(lanes, peer, 1)
        assert {hello.address for hello in peer.hellos} == {"127.0.0.1:1"}  # for clients, too
    finally:
        await lanes.stop()
        await peer.stop()


async def test_entries_have_a_connection_of_their_own_and_delay_nothing_else() -> None:
    async with peer_and_transport() as (peer, lanes, _):
        await until_heard(lanes, peer, 1)
        peer.reading_appends.clear()
        large = entries("1@1", data=bytes(20 << 20))
        await eventually(lambda: len(peer.hellos) == 2)
        for _ in range(3):  # more than the peer takes while it does not read
            lanes.send(GROUP, [append(1, log=large, sender=N1, to=N2)])
        await eventually(lambda: "AppendEntries" in peer.connections)
        for number in range(2, 50):
            lanes.send(GROUP, [beat(number)])
        await eventually(lambda: 49 in peer.rounds())
        assert len([one for one in peer.heard if not isinstance(one, Heartbeat)]) == 1
        assert peer.connections["AppendEntries"].isdisjoint(peer.connections["Heartbeat"])
        peer.reading_appends.set()
        await eventually(lambda: len(peer.heard) - len(peer.rounds()) == 3)


async def test_messages_of_a_lane_arrive_in_order() -> None:
    async with peer_and_transport() as (peer, lanes, _):
        await until_heard(lanes, peer, 0)
        del peer.heard[:]
        for number in range(1, 500):
            lanes.send(GROUP, [beat(number)])
            if number % 7 == 0:
                await asyncio.sleep(0)
        await eventually(lambda: len(peer.rounds()) >= 499)
        assert [number for number in peer.rounds() if number] == list(range(1, 500))


async def test_a_connection_that_nobody_takes_up_is_begun_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or else gRPC would look for a name that was not known, once in two minutes."""
    monkeypatch.setattr(transport, "FAILING_SECONDS", 0.05)
    made: list[str] = []

    def connect(address: str) -> grpc.aio.Channel:
        made.append(address)
        return channels.connect(address)

    monkeypatch.setattr(transport, "connect", connect)
    [port] = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        lanes = Transport(
            Identity("test", N1, "d1"),
            Acquaintances(),
            unreachable=lambda _: None,
            dismissed=lambda _: None,
        )
        lanes.follow({N1: "127.0.0.1:1", N2: f"127.0.0.1:{port}"})
        lanes.start()
        try:
            await eventually(lambda: len(made) >= 3 * 2)
        finally:
            await lanes.stop()


async def test_what_cannot_be_sent_is_reported_and_not_kept() -> None:
    async with peer_and_transport() as (peer, lanes, lost):
        lanes.send(GROUP, [beat(1)])  # not connected yet
        assert lost == [N2]
        await until_heard(lanes, peer, 2)
        del lost[:]
        bound = transport._MAX_LANE_MESSAGES
        lanes.send(GROUP, [beat(number) for number in range(3, 3 + bound + 5)])
        assert lost == [N2] * 5
        await eventually(lambda: peer.rounds()[-1] == 2 + bound)


async def test_a_peer_that_does_not_read_costs_a_bounded_queue() -> None:
    async with peer_and_transport() as (peer, lanes, lost):
        await until_heard(lanes, peer, 1)
        await eventually(lambda: len(peer.hellos) == 2)
        peer.reading_appends.clear()
        del lost[:]
        one = append(1, log=entries("1@1", data=bytes(100_000)), sender=N1, to=N2)
        for _ in range(3 * transport._MAX_LANE_MESSAGES):
            lanes.send(GROUP, [one])
            await asyncio.sleep(0)
        assert len(lanes._lanes[N2, True]._queue) == transport._MAX_LANE_MESSAGES
        assert lost
        peer.reading_appends.set()


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.OK,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
)
async def test_a_stream_that_was_ended_is_opened_again(code: grpc.StatusCode) -> None:
    async with peer_and_transport() as (peer, lanes, lost):
        await until_heard(lanes, peer, 1)
        del lost[:]
        for number in range(2, 5):
            peer.ends_with = code
            await until_heard(lanes, peer, number)
            peer.ends_with = None
            await until_heard(lanes, peer, 100 + number)
        assert set(lost) == {N2}
        assert all(hello.cluster_id == "test" for hello in peer.hellos)


async def test_a_peer_that_went_away_is_found_again() -> None:
    async with peer_and_transport() as (peer, lanes, lost):
        await until_heard(lanes, peer, 1)
        for number in range(2, 4):
            await peer.stop()
            del lost[:]

            def is_noticed() -> bool:
                lanes.send(GROUP, [beat(0)])
                return bool(lost)

            await eventually(is_noticed)
            await peer.start()
            await until_heard(lanes, peer, number)


async def test_a_stream_that_breaks_while_nothing_is_sent_is_noticed() -> None:
    """Or else the first word to a peer that came back would be lost, such as a request to vote."""
    async with peer_and_transport() as (peer, lanes, lost):
        await until_heard(lanes, peer, 1)
        for number in range(2, 5):
            await eventually(lambda: all(lane._connected for lane in lanes._lanes.values()))
            del lost[:]
            await peer.stop()
            await eventually(lambda: len(lost) >= 2)
            await peer.start()
            await eventually(lambda: all(lane._connected for lane in lanes._lanes.values()))
            lanes.send(GROUP, [beat(number)])
            await eventually(lambda: number in peer.rounds())  # noqa: B023 - awaited


async def test_a_peer_that_refuses_this_node_is_logged_and_not_pressed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def short_sleep(seconds: float) -> None:
        if seconds:
            waits.append(seconds)
        await sleep(min(seconds, 0.01))

    monkeypatch.setattr("kvorum_node.transport.asyncio.sleep", short_sleep)
    async with peer_and_transport() as (peer, lanes, _):
        peer.ends_with = grpc.StatusCode.FAILED_PRECONDITION
        await until_heard(lanes, peer, 1)

        def is_refused() -> bool:
            lanes.send(GROUP, [beat(2)])
            return transport._REFUSED_SECONDS in waits

        await eventually(is_refused)
    [line, *_] = [record.getMessage() for record in caplog.records]
    assert line == f"n2 at {peer.address} refuses this node: scripted"


async def test_nothing_is_left_when_it_stops() -> None:
    before = asyncio.all_tasks()
    async with peer_and_transport() as (peer, lanes, _):
        await until_heard(lanes, peer, 1)
        await lanes.stop()
        await eventually(lambda: peer.streams == 0)
        lanes.send(GROUP, [beat(2)])  # which is no error
    await eventually(lambda: asyncio.all_tasks() <= before)


async def test_messages_to_itself_or_to_strangers_go_nowhere() -> None:
    async with peer_and_transport() as (peer, lanes, lost):
        await until_heard(lanes, peer, 1)
        lanes.send(GROUP, [heartbeat(1, sender=N1, to=N1), heartbeat(1, sender=N1, to=9)])
        await until_heard(lanes, peer, 2)
        assert peer.rounds().count(0) == 0
        assert NodeId(9) not in lost


# Peers come and go.


async def test_a_member_that_comes_is_written_to_and_one_that_goes_is_not() -> None:
    async with peer_and_transport() as (peer, lanes, lost):
        await until_heard(lanes, peer, 1)
        lanes.follow({N1: "127.0.0.1:1"})
        await eventually(lambda: peer.streams == 0)
        del lost[:]
        lanes.send(GROUP, [beat(2)])
        assert lost == []
        lanes.follow({N1: "127.0.0.1:1", N2: peer.address})
        await until_heard(lanes, peer, 3)
        assert 2 not in peer.rounds()


async def test_a_member_whose_address_changes_is_written_to_there() -> None:
    async with peer_and_transport() as (peer, lanes, _):
        await until_heard(lanes, peer, 1)
        [port] = free_ports(1)
        moved = Peer(port)
        await moved.start()
        try:
            lanes.follow({N1: "127.0.0.1:1", N2: moved.address})
            await until_heard(lanes, moved, 2)
            await eventually(lambda: peer.streams == 0)
        finally:
            lanes.follow({})
            await moved.stop()


async def test_lanes_that_stay_are_not_disturbed_when_others_come_and_go() -> None:
    async with peer_and_transport() as (peer, lanes, lost):
        await until_heard(lanes, peer, 1)
        await eventually(lambda: len(peer.hellos) == 2)
        del lost[:]
        members = {N1: "127.0.0.1:1", N2: peer.address}
        lanes.follow({**members, NodeId(3): "127.0.0.1:1"})
        lanes.follow(members)
        lanes.send(GROUP, [beat(2)])
        await eventually(lambda: 2 in peer.rounds())
        assert (len(peer.hellos), N2 in lost) == (2, False)


async def test_whoever_has_introduced_itself_is_answered_until_it_leaves_the_members() -> None:
    async with peer_and_transport() as (peer, lanes, _):
        lanes.follow({})
        await eventually(lambda: not lanes._lanes)
        lanes.meet(N2, peer.address)
        await until_heard(lanes, peer, 1)
        lanes.follow({NodeId(3): "127.0.0.1:1"})  # n2 is still on its way into the members
        await until_heard(lanes, peer, 2)
        lanes.follow({N2: peer.address})
        await until_heard(lanes, peer, 3)
        lanes.follow({})
        await eventually(lambda: peer.streams == 0)
        assert not lanes._lanes


async def test_whoever_was_removed_before_it_was_known_as_a_member_is_written_to_no_more() -> None:
    async with peer_and_transport() as (peer, lanes, _):
        lanes.follow({})
        lanes.meet(N2, peer.address)
        lanes.meet(NodeId(3), "127.0.0.1:1")
        await until_heard(lanes, peer, 1)
        lanes.forget(lambda node: node == N2)
        await eventually(lambda: peer.streams == 0)
        assert {node for node, _ in lanes._lanes} == {NodeId(3)}


async def test_a_hello_says_where_to_answer() -> None:
    async with peer_and_transport() as (peer, _, _):
        await eventually(lambda: len(peer.hellos) == 2)
        assert {hello.address for hello in peer.hellos} == {"127.0.0.1:1"}


async def test_what_is_queued_at_the_end_still_leaves() -> None:
    """A leader that stops has asked its successor to stand a moment before."""
    async with peer_and_transport() as (peer, lanes, _):
        await until_heard(lanes, peer, 1)
        await eventually(lambda: len(peer.hellos) == 2)
        large = entries("1@1", data=bytes(limits.MAX_BATCH_BYTES))  # a message each
        lanes.send(GROUP, [append(1, log=large, sender=N1, to=N2) for _ in range(5)])
        await lanes.stop()
        assert len([one for one in peer.heard if not isinstance(one, Heartbeat)]) == 5


async def test_a_peer_that_takes_nothing_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "_FAREWELL_SECONDS", 0.05)
    async with peer_and_transport() as (peer, lanes, _):
        await until_heard(lanes, peer, 1)
        await eventually(lambda: len(peer.hellos) == 2)
        peer.reading_appends.clear()
        large = entries("1@1", data=bytes(20 << 20))
        for _ in range(3):
            lanes.send(GROUP, [append(1, log=large, sender=N1, to=N2)])
        async with asyncio.timeout(DEADLINE_SECONDS):
            await lanes.stop()
        peer.reading_appends.set()


@pytest.mark.parametrize(
    ("why", "is_the_end"),
    [
        (RemovedFromCluster("scripted"), True),
        (DataDirectoryLost("scripted", node="n1"), True),
        (DataDirectoryLost("scripted", node="n2"), False),  # the peer itself has to end
    ],
)
async def test_a_node_that_must_end_is_told_so(
    why: KvorumError, is_the_end: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with peer_and_transport() as (peer, _, _):
        peer.refuses_with = why
        await peer.stop()
        await peer.start()
        if is_the_end:
            await eventually(lambda: peer.dismissals)
            assert {(type(one), str(one)) for one in peer.dismissals} == {(type(why), "scripted")}
        else:
            await eventually(lambda: "refuses this node: scripted" in caplog.text)
            assert peer.dismissals == []
