"""The Raft service: takes in what the peers' transports send.

Whoever introduces itself as a node of the same cluster is listened to, a member or
not: a node that joins knows nobody yet, and one that was away does not know who has
joined. Only a node that was removed is not, and its open streams end when it is.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from kvorum.status import to_status
from kvorum_node import wire
from kvorum_node.members import removed_from_cluster
from kvorum_node.node import Node
from kvorum_node.raft.types import GroupId, NodeId, node_name
from kvorum_node.services.kv import abort
from kvorum_node.snapshots import SnapshotFailed
from kvorumpb.v1 import raft_pb2

SERVICE = "kvorumpb.v1.Raft"

Context = grpc.aio.ServicerContext[Any, Any]


class RaftService:
    def __init__(self, node: Node) -> None:
        self._node = node

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Stream": grpc.stream_unary_rpc_method_handler(
                    self._stream,
                    request_deserializer=raft_pb2.PeerMessage.FromString,
                    response_serializer=raft_pb2.PeerStreamClosed.SerializeToString,
                ),
                "InstallSnapshot": grpc.stream_unary_rpc_method_handler(
                    self._install_snapshot,
                    request_deserializer=raft_pb2.SnapshotMessage.FromString,
                    response_serializer=raft_pb2.InstallSnapshotResponse.SerializeToString,
                ),
            },
        )

    async def _stream(
        self, messages: AsyncIterator[raft_pb2.PeerMessage], context: Context
    ) -> raft_pb2.PeerStreamClosed:
        first = await anext(aiter(messages), None)
        if first is None:
            return raft_pb2.PeerStreamClosed()
        await self._welcome(first.hello, context)
        sender = NodeId(first.hello.sender)
        self._node.meet(sender, first.hello.address)
        removed = asyncio.Event()

        def look_for_sender() -> None:
            if self._was_removed(sender):
                removed.set()

        forget = self._node.listen(look_for_sender)
        self._take(first)
        taking = asyncio.create_task(self._take_all(messages))
        waiting = asyncio.create_task(removed.wait())
        try:
            await asyncio.wait((taking, waiting), return_when=asyncio.FIRST_COMPLETED)
            if removed.is_set():
                await abort(context, to_status(removed_from_cluster(sender)))
            taking.result()
        finally:
            forget()
            taking.cancel()
            waiting.cancel()
            await asyncio.gather(taking, waiting, return_exceptions=True)
        return raft_pb2.PeerStreamClosed()

    async def _take_all(self, messages: AsyncIterator[raft_pb2.PeerMessage]) -> None:
        async for message in messages:
            self._take(message)

    def _take(self, message: raft_pb2.PeerMessage) -> None:
        for one in message.messages:
            decoded = wire.decode(one)
            if decoded is not None and decoded.recipient == self._node.id:
                self._node.driver.receive(GroupId(one.group), decoded)

    async def _install_snapshot(
        self, messages: AsyncIterator[raft_pb2.SnapshotMessage], context: Context
    ) -> raft_pb2.InstallSnapshotResponse:
        first = await anext(aiter(messages), raft_pb2.SnapshotMessage())
        await self._welcome(first.header.hello, context)
        try:
            header = wire.decode_header(first.header)
        except DecodeError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no configuration: {error}")
        chunks = (wire.decode_chunk(message.chunk) async for message in messages)
        try:
            index = await self._node.driver.snapshots.receive(header, chunks)
        except SnapshotFailed as failure:
            await context.abort(grpc.StatusCode.ABORTED, str(failure))
        return raft_pb2.InstallSnapshotResponse(index=index)

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
        if refusal is not None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal)
        if self._was_removed(NodeId(hello.sender)):
            await abort(context, to_status(removed_from_cluster(NodeId(hello.sender))))

    def _was_removed(self, node: NodeId) -> bool:
        return self._node.group.raft.committed_configuration.has_removed(node)
