"""Streams to the peers: messages leave here, and arrive in services/peers.py.

Each peer has two *lanes*, each with a connection of its own: one for log entries
and one for everything else, so that no entry, however large, delays a heartbeat.
A lane holds a bounded number of messages: what does not fit is dropped and
reported, and Raft sends it again when it makes sense. Nothing here blocks the
driver. A snapshot travels on a connection of its own, too.

Peers come and go: there are lanes to the members, and to whoever has introduced
itself as a peer (`meet`). A node that joins, or has been away, is written to by
members of which its own log does not know yet; without an answer it would never
come to know them.
"""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial

import grpc
import grpc.aio

from kvorum import limits
from kvorum.channels import FAILING_SECONDS, connect
from kvorum.errors import DataDirectoryLost, KvorumError, RemovedFromCluster
from kvorum.status import from_rpc_error
from kvorum_node import wire
from kvorum_node.figures import Figures, Peer
from kvorum_node.raft.messages import AppendEntries, Heartbeat, HeartbeatReply, Message
from kvorum_node.raft.types import GroupId, Index, NodeId, node_name
from kvorum_node.round_trips import RoundTrips
from kvorum_node.snapshots import Chunk, Header, SnapshotFailed
from kvorum_node.storage.data_directory import Acquaintances, Identity
from kvorumpb.v1 import raft_pb2

STREAM_METHOD = "/kvorumpb.v1.Raft/Stream"
SNAPSHOT_METHOD = "/kvorumpb.v1.Raft/InstallSnapshot"

_MAX_LANE_MESSAGES = 1024
_RECONNECT_SECONDS = 0.1
_REFUSED_SECONDS = 5.0
_MOST_PATIENCE_SECONDS = 4 * FAILING_SECONDS
"""With a peer that is away. To close a channel is to look at every task: not often."""
_FAREWELL_SECONDS = 1.0
"""How long a stop waits until what is queued has left: a leader may have asked for its successor's
election."""

logger = logging.getLogger("kvorum.node")


class Transport:
    def __init__(
        self,
        identity: Identity,
        acquaintances: Acquaintances,
        *,
        unreachable: Callable[[NodeId], None],
        dismissed: Callable[[KvorumError], None],
        notice: Callable[[], raft_pb2.PeerNotice] = raft_pb2.PeerNotice,
        port: int = 0,
        figures: Figures | None = None,
    ) -> None:
        """Make a transport without peers.

        Args:
            unreachable: called when messages to a peer were lost.
            dismissed: called when a peer says why this node must end: RemovedFromCluster,
                or its own DataDirectoryLost.
            notice: what this node says of itself, with heartbeats and the replies to them.
            port: where each peer listens for its peers, on the host of its address; 0: there.
        """
        self._identity = identity
        self._node = identity.node_id
        self._acquaintances = acquaintances
        self._unreachable = unreachable
        self._dismissed = dismissed
        self._notice = notice
        self._port = port
        self._figures = figures or Figures()
        self._round_trips: defaultdict[NodeId, RoundTrips] = defaultdict(RoundTrips)
        self._members: Mapping[NodeId, str] = {}
        self._met: dict[NodeId, str] = {}
        self._lanes: dict[tuple[NodeId, bool], _Lane] = {}
        self._running = False
        self._farewells: set[asyncio.Task[None]] = set()

    def follow(self, members: Mapping[NodeId, str]) -> None:
        """These are the members now. May be called before `start`."""
        self._met = {
            node: address
            for node, address in self._met.items()
            if node not in members and node not in self._members
        }
        self._members = dict(members)
        self._adjust_lanes()

    def forget(self, has_removed: Callable[[NodeId], bool]) -> None:
        """Write no more to those who have introduced themselves, and were removed since."""
        self._met = {node: self._met[node] for node in self._met if not has_removed(node)}
        self._adjust_lanes()

    def meet(self, peer: NodeId, address: str) -> None:
        """A peer of the same cluster has introduced itself: answers have a way from now on."""
        if address and peer != self._node and peer not in self._members:
            self._met[peer] = address
            self._adjust_lanes()

    def send(self, group: GroupId, messages: Iterable[Message]) -> None:
        """Pass messages on; they may be lost."""
        for message in messages:
            lane = self._lanes.get((message.recipient, isinstance(message, AppendEntries)))
            if lane is not None:
                lane.put(group, message)

    def hear(self, peer: NodeId, notice: raft_pb2.PeerNotice) -> None:
        """A notice of a peer has come, perhaps an answer to one of this node."""
        took = self._round_trips[peer].hear(notice)
        if took is not None:
            self._figures.peers[peer].round_trip.observe(took)

    async def send_snapshot(
        self, peer: NodeId, header: Header, chunks: AsyncIterator[Chunk]
    ) -> Index:
        """Carry a snapshot to a peer: a snapshots.Stream."""
        address = self._addresses.get(peer)
        if address is None:
            raise SnapshotFailed(f"{node_name(peer)} is no member any more")
        async with connect(self._reached_at(address)) as channel:
            call = channel.stream_unary(
                SNAPSHOT_METHOD,
                request_serializer=partial(_serialize, self._figures.peers[peer]),
                response_deserializer=raft_pb2.InstallSnapshotResponse.FromString,
            )()
            try:
                try:
                    await call.write(wire.encode_header(header, self._hello(peer)))
                    async for chunk in chunks:
                        await call.write(wire.encode_chunk(chunk))
                    await call.done_writing()
                except asyncio.InvalidStateError:
                    pass  # the peer has answered before the end: it has no need, or no use for it
                return Index((await call).index)
            except grpc.aio.AioRpcError as error:
                raise SnapshotFailed(error.details() or error.code().name) from error
            finally:
                call.cancel()

    def start(self) -> None:
        self._running = True
        for lane in self._lanes.values():
            lane.start()

    async def stop(self) -> None:
        """Let what is queued leave, if it can within a moment, and close everything."""
        self._running = False
        self._members, self._met = {}, {}
        self._adjust_lanes()
        await asyncio.gather(*self._farewells)

    @property
    def _addresses(self) -> dict[NodeId, str]:
        return {**self._met, **self._members}

    def _reached_at(self, address: str) -> str:
        """Where the peer with the address listens for its peers."""
        return f"{address.rpartition(':')[0]}:{self._port}" if self._port else address

    def _hello(self, peer: NodeId) -> raft_pb2.PeerHello:
        return raft_pb2.PeerHello(
            cluster_id=self._identity.cluster_id,
            sender=self._node,
            recipient=peer,
            address=self._members.get(self._node, ""),
            directory_id=self._identity.directory_id,
            recipient_directory_id=self._acquaintances.directory_of(peer),
        )

    def _refused(self, peer: NodeId, address: str, refusal: grpc.aio.AioRpcError) -> None:
        """A peer wants nothing from this node."""
        error = from_rpc_error(refusal)
        match error:
            case RemovedFromCluster():
                self._dismissed(error)
            case DataDirectoryLost() if error.metadata.get("node") == node_name(self._node):
                self._dismissed(error)
            case _:
                logger.error("%s at %s refuses this node: %s", node_name(peer), address, error)

    def _adjust_lanes(self) -> None:
        """Have two lanes to each peer, and none to anybody else."""
        wanted = {
            (peer, entries): self._reached_at(address)
            for peer, address in self._addresses.items()
            for entries in (False, True)
            if peer != self._node
        }
        for key, lane in tuple(self._lanes.items()):
            if wanted.get(key) != lane.address:
                del self._lanes[key]
                farewell = asyncio.create_task(lane.stop()) if lane.is_running else None
                if farewell is not None:
                    self._farewells.add(farewell)
                    farewell.add_done_callback(self._farewells.discard)
        for key, address in wanted.items():
            if key not in self._lanes:
                peer, _ = key
                self._lanes[key] = lane = _Lane(
                    peer,
                    address,
                    self._hello,
                    self._notice,
                    figures=self._figures.peers[peer],
                    round_trips=self._round_trips[peer],
                    unreachable=self._unreachable,
                    refused=self._refused,
                )
                if self._running:
                    lane.start()


class _Lane:
    """Messages of one kind to one peer, in order, on one stream."""

    def __init__(
        self,
        peer: NodeId,
        address: str,
        hello: Callable[[NodeId], raft_pb2.PeerHello],
        notice: Callable[[], raft_pb2.PeerNotice],
        *,
        figures: Peer,
        round_trips: RoundTrips,
        unreachable: Callable[[NodeId], None],
        refused: Callable[[NodeId, str, grpc.aio.AioRpcError], None],
    ) -> None:
        self.address = address
        self._peer = peer
        self._hello = hello
        self._notice = notice
        self._figures = figures
        self._round_trips = round_trips
        self._unreachable = unreachable
        self._refused = refused
        self._queue: deque[tuple[GroupId, Message]] = deque()
        self._filled = asyncio.Event()
        self._connected = False
        self._ending = False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        return self._task is not None

    def put(self, group: GroupId, message: Message) -> None:
        if not self._connected or len(self._queue) >= _MAX_LANE_MESSAGES:
            self._figures.sent_failures += 1
            self._unreachable(self._peer)
            return
        self._queue.append((group, message))
        self._filled.set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the stream, after what is queued if the peer takes it at once."""
        assert self._task is not None  # noqa: S101 - a lane that was not started has no stream
        self._ending = True
        self._filled.set()
        if self._connected:
            await asyncio.wait([self._task], timeout=_FAREWELL_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Keep a stream open until the lane is stopped."""
        patience = FAILING_SECONDS
        while not self._ending:
            refused = False
            async with connect(self.address) as channel:
                try:
                    await self._pump(channel, patience)
                except TimeoutError:
                    pass  # a new channel asks for the name anew (channels.py)
                except grpc.aio.AioRpcError as error:
                    refused = error.code() is grpc.StatusCode.FAILED_PRECONDITION
                    if refused:
                        self._refused(self._peer, self.address, error)
            patience = (
                FAILING_SECONDS if self._connected else min(2 * patience, _MOST_PATIENCE_SECONDS)
            )
            self._connected = False
            self._queue.clear()
            if not self._ending:
                self._unreachable(self._peer)
                await asyncio.sleep(_REFUSED_SECONDS if refused else _RECONNECT_SECONDS)

    async def _pump(self, channel: grpc.aio.Channel, patience: float) -> None:
        """Send until the stream breaks, or the lane ends.

        Returns, or raises AioRpcError; TimeoutError if nobody takes the stream.
        """
        call = channel.stream_unary(
            STREAM_METHOD,
            request_serializer=partial(_serialize, self._figures),
            response_deserializer=raft_pb2.PeerStreamClosed.FromString,
        )(wait_for_ready=True)
        # A stream that ends while there is nothing to send is noticed, too: or else the first
        # message to a peer that came back, a request for its vote perhaps, would be lost.
        call.add_done_callback(lambda _: self._filled.set())
        try:
            async with asyncio.timeout(patience):
                await call.write(raft_pb2.PeerMessage(hello=self._hello(self._peer)))
            self._connected = True
            while self._queue or not self._ending:
                if not self._queue:
                    self._filled.clear()
                    await self._filled.wait()
                    if self._ending:
                        continue
                await call.write(self._next_message())
            await call.done_writing()
            await call
        except asyncio.InvalidStateError:
            await call  # the peer ended the stream: let its status speak
        finally:
            call.cancel()

    def _next_message(self) -> raft_pb2.PeerMessage:
        """Everything that waits, up to limits.MAX_BATCH_BYTES or one larger message."""
        message = raft_pb2.PeerMessage()
        size, beats = 0, False
        while self._queue and size < limits.MAX_BATCH_BYTES:
            group, content = self._queue.popleft()
            wire.encode(group, content, into=message.messages.add())
            match content:
                case AppendEntries(entries=entries):
                    size += sum(len(entry.data) for entry in entries)
                case Heartbeat() | HeartbeatReply():
                    beats = True
        if beats:
            message.notice.CopyFrom(self._notice())
            self._round_trips.stamp(message.notice)
        return message


def _serialize(figures: Peer, message: raft_pb2.PeerMessage | raft_pb2.SnapshotMessage) -> bytes:
    data = message.SerializeToString()
    figures.sent_bytes += len(data)
    return data
