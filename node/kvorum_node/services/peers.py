"""The Raft service: takes in what the peers' transports send."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from kvorum_node import wire
from kvorum_node.node import Node
from kvorum_node.raft.types import GroupId, NodeId, node_name
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
                )
            },
        )

    async def _stream(
        self, messages: AsyncIterator[raft_pb2.PeerMessage], context: Context
    ) -> raft_pb2.PeerStreamClosed:
        welcome = False
        async for message in messages:
            if not welcome:
                refusal = self._refusal(message.hello)
                if refusal is not None:
                    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal)
                welcome = True
            for one in message.messages:
                decoded = wire.decode(one)
                if decoded is not None and decoded.recipient == self._node.id:
                    self._node.driver.receive(GroupId(one.group), decoded)
        return raft_pb2.PeerStreamClosed()

    def _refusal(self, hello: raft_pb2.PeerHello) -> str | None:
        """Why the peer may not speak here, or None."""
        if hello.cluster_id != self._node.cluster_id:
            return (
                f"{self._node} is of the cluster {self._node.cluster_id!r},"
                f" the caller of {hello.cluster_id!r}"
            )
        if hello.recipient != self._node.id:
            return f"this is {self._node}, the caller wants {node_name(NodeId(hello.recipient))}"
        if hello.sender not in self._node.group.addresses:
            return f"{node_name(NodeId(hello.sender))} is no member of the cluster"
        return None
