"""Streams to the peers: messages leave here, and arrive in services/peers.py.

Each peer has two *lanes*, each with a connection of its own: one for log entries
and one for everything else, so that no entry, however large, delays a heartbeat.
A lane holds a bounded number of messages: what does not fit is dropped and
reported, and Raft sends it again when it makes sense. Nothing here blocks the
driver.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import grpc
import grpc.aio

from kvorum import limits
from kvorum.channels import connect
from kvorum_node import wire
from kvorum_node.raft.messages import AppendEntries, Message
from kvorum_node.raft.types import GroupId, NodeId, node_name
from kvorumpb.v1 import raft_pb2

STREAM_METHOD = "/kvorumpb.v1.Raft/Stream"

_MAX_LANE_MESSAGES = 1024
_RECONNECT_SECONDS = 0.1
_REFUSED_SECONDS = 5.0

logger = logging.getLogger("kvorum.node")


class Transport:
    def __init__(
        self,
        node: NodeId,
        cluster_id: str,
        addresses: Mapping[NodeId, str],
        *,
        unreachable: Callable[[NodeId], None],
    ) -> None:
        self._lanes: dict[tuple[NodeId, bool], _Lane] = {}
        for peer, address in addresses.items():
            if peer != node:
                hello = raft_pb2.PeerHello(cluster_id=cluster_id, sender=node, recipient=peer)
                for entries in (False, True):
                    self._lanes[peer, entries] = _Lane(peer, address, hello, unreachable)
        self._tasks: list[asyncio.Task[None]] = []

    def send(self, group: GroupId, messages: Iterable[Message]) -> None:
        """Pass messages on; they may be lost."""
        for message in messages:
            lane = self._lanes.get((message.recipient, isinstance(message, AppendEntries)))
            if lane is not None:
                lane.put(group, message)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(lane.run()) for lane in self._lanes.values()]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()


class _Lane:
    """Messages of one kind to one peer, in order, on one stream."""

    def __init__(
        self,
        peer: NodeId,
        address: str,
        hello: raft_pb2.PeerHello,
        unreachable: Callable[[NodeId], None],
    ) -> None:
        self._peer = peer
        self._address = address
        self._hello = hello
        self._unreachable = unreachable
        self._queue: deque[tuple[GroupId, Message]] = deque()
        self._filled = asyncio.Event()
        self._connected = False

    def put(self, group: GroupId, message: Message) -> None:
        if not self._connected or len(self._queue) >= _MAX_LANE_MESSAGES:
            self._unreachable(self._peer)
            return
        self._queue.append((group, message))
        self._filled.set()

    async def run(self) -> None:
        """Keep a stream open for as long as the node runs."""
        while True:
            refused = False
            async with connect(self._address) as channel:
                try:
                    await self._pump(channel)
                except grpc.aio.AioRpcError as error:
                    refused = error.code() is grpc.StatusCode.FAILED_PRECONDITION
                    if refused:
                        logger.error(
                            "%s at %s refuses this node: %s",
                            node_name(self._peer),
                            self._address,
                            error.details(),
                        )
            self._connected = False
            self._queue.clear()
            self._unreachable(self._peer)
            await asyncio.sleep(_REFUSED_SECONDS if refused else _RECONNECT_SECONDS)

    async def _pump(self, channel: grpc.aio.Channel) -> None:
        """Send until the stream breaks. Returns, or raises AioRpcError."""
        call = channel.stream_unary(
            STREAM_METHOD,
            request_serializer=raft_pb2.PeerMessage.SerializeToString,
            response_deserializer=raft_pb2.PeerStreamClosed.FromString,
        )(wait_for_ready=True)
        # A stream that ends while there is nothing to send is noticed, too: or else the first
        # message to a peer that came back, a request for its vote perhaps, would be lost.
        call.add_done_callback(lambda _: self._filled.set())
        try:
            await call.write(raft_pb2.PeerMessage(hello=self._hello))
            self._connected = True
            while True:
                if not self._queue:
                    self._filled.clear()
                    await self._filled.wait()
                await call.write(self._next_message())
        except asyncio.InvalidStateError:
            await call  # the peer ended the stream: let its status speak
        finally:
            call.cancel()

    def _next_message(self) -> raft_pb2.PeerMessage:
        """Everything that waits, up to limits.MAX_BATCH_BYTES or one larger message."""
        message = raft_pb2.PeerMessage()
        size = 0
        while self._queue and size < limits.MAX_BATCH_BYTES:
            group, content = self._queue.popleft()
            message.messages.append(wire.encode(group, content))
            if isinstance(content, AppendEntries):
                size += sum(len(entry.data) for entry in content.entries)
        return message
