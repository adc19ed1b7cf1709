"""The Raft service: takes in what the peers' transports send.

Whoever introduces itself as a node of the same cluster is listened to, a member or
not: a node that joins knows nobody yet, and one that was away does not know who has
joined. A node that was removed is not, and its open streams end when it is. Nor is one
that has come back with another data directory (`Node.admit`): what it says rests on
nothing.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from kvorum.errors import KvorumError
from kvorum.status import to_status
from kvorum_node import wire
from kvorum_node.members import removed_from_cluster
from kvorum_node.node import Node
from kvorum_node.raft.types import GroupId, NodeId, node_name
from kvorum_node.services.kv import abort
from kvorum_node.snapshots import Chunk, SnapshotFailed
from kvorumpb.v1 import raft_pb2

SERVICE = "kvorumpb.v1.Raft"

Context = grpc.aio.ServicerContext[Any, Any]
MessageT = TypeVar("MessageT", bound=Message)
Sized = tuple[MessageT, int]
"""A message, and how many bytes it came in."""

logger = logging.getLogger("kvorum.node")


class RaftService:
    def __init__(self, node: Node) -> None:
        self._node = node

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Stream": grpc.stream_unary_rpc_method_handler(
                    self._stream,
                    request_deserializer=_with_size(raft_pb2.PeerMessage),
                    response_serializer=raft_pb2.PeerStreamClosed.SerializeToString,
                ),
                "InstallSnapshot": grpc.stream_unary_rpc_method_handler(
                    self._install_snapshot,
                    request_deserializer=_with_size(raft_pb2.SnapshotMessage),
                    response_serializer=raft_pb2.InstallSnapshotResponse.SerializeToString,
                ),
            },
        )

    async def _stream(
        self, messages: AsyncIterator[Sized[raft_pb2.PeerMessage]], context: Context
    ) -> raft_pb2.PeerStreamClosed:
        first = await anext(aiter(messages), None)
        if first is None:
            return raft_pb2.PeerStreamClosed()
        hello = first[0].hello
        await self._welcome(hello, context)
        sender = NodeId(hello.sender)
        self._node.meet(sender, hello.address)
        removed = asyncio.Event()

        def look_for_sender() -> None:
            if self._node.has_removed(sender):
                removed.set()

        forget = self._node.listen(look_for_sender)
        taking = asyncio.create_task(self._take_all(sender, first, messages))
        waiting = asyncio.create_task(removed.wait())
        try:
            await asyncio.wait((taking, waiting), return_when=asyncio.FIRST_COMPLETED)
            if removed.is_set():
                await abort(context, to_status(removed_from_cluster(sender)))
            taking.result()
        except wire.NotUnderstood as problem:
            await self._end_unread(sender, problem, context)
        finally:
            forget()
            taking.cancel()
            waiting.cancel()
            await asyncio.gather(taking, waiting, return_exceptions=True)
        return raft_pb2.PeerStreamClosed()

    async def _take_all(
        self,
        sender: NodeId,
        first: Sized[raft_pb2.PeerMessage],
        others: AsyncIterator[Sized[raft_pb2.PeerMessage]],
    ) -> None:
        self._take(sender, *first)
        async for message, size_bytes in others:
            self._take(sender, message, size_bytes)

    def _take(self, sender: NodeId, message: raft_pb2.PeerMessage, size_bytes: int) -> None:
        self._node.figures.peers[sender].received_bytes += size_bytes
        if message.HasField("notice"):
            self._node.heed(sender, message.notice)
        for one in message.messages:
            decoded = wire.decode(one)
            if decoded is not None and decoded.recipient == self._node.id:
                self._node.driver.receive(GroupId(one.group), decoded)

    async def _install_snapshot(
        self, messages: AsyncIterator[Sized[raft_pb2.SnapshotMessage]], context: Context
    ) -> raft_pb2.InstallSnapshotResponse:
        first, _ = await anext(aiter(messages), (raft_pb2.SnapshotMessage(), 0))
        await self._welcome(first.header.hello, context)
        try:
            header = wire.decode_header(first.header)
        except wire.NotUnderstood as problem:
            await self._end_unread(NodeId(first.header.hello.sender), problem, context)
        chunks = self._chunks(header.sender, messages)
        try:
            index = await self._node.driver.snapshots.receive(header, chunks)
        except SnapshotFailed as failure:
            await context.abort(grpc.StatusCode.ABORTED, str(failure))
        return raft_pb2.InstallSnapshotResponse(index=index)

    async def _chunks(
        self, sender: NodeId, messages: AsyncIterator[Sized[raft_pb2.SnapshotMessage]]
    ) -> AsyncIterator[Chunk]:
        async for message, size_bytes in messages:
            self._node.figures.peers[sender].received_bytes += size_bytes
            yield wire.decode_chunk(message.chunk)

    async def _welcome(self, hello: raft_pb2.PeerHello, context: Context) -> None:
        """End the call if the peer may not speak here."""
        refusal: str | None = None
        if hello.cluster_id != self._node.cluster_id:
            refusal = (
                f"{self._node} is of the cluster {self._node.cluster_id!r},"
                f" the caller of {hello.cluster_id!r}"
            )
        elif hello.recipient != self._node.id:
            refusal = f"this is {self._node}, the caller wants {node_name(NodeId(hello.recipient))}"
        elif not hello.directory_id:
            refusal = f"{node_name(NodeId(hello.sender))} does not name its data directory"
        if refusal is not None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal)
        try:
            self._node.admit(
                NodeId(hello.sender),
                hello.directory_id,
                knows_this_as=hello.recipient_directory_id,
            )
        except KvorumError as error:
            await abort(context, to_status(error))

    async def _end_unread(
        self, sender: NodeId, problem: wire.NotUnderstood, context: Context
    ) -> NoReturn:
        """End a call of which nothing more can be taken: the sender will try again, slowly."""
        name = node_name(sender)
        logger.error(
            "%s cannot take what %s sends: %s. A newer version of kvorum has written it; run that"
            " one here, too",
            self._node,
            name,
            problem,
        )
        await context.abort(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"{self._node} cannot take what {name} sends: {problem}",
        )


def _with_size(kind: type[MessageT]) -> Callable[[bytes], Sized[MessageT]]:
    return lambda data: (kind.FromString(data), len(data))
