"""Asking a node about itself."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from kvorum import Closed, DeadlineExceeded, KvorumError, NoNodeReachable, NotLeader
from kvorum.admin import ClusterAdmin
from kvorum.status import DETAILS_KEY, to_status
from kvorumpb.v1 import cluster_pb2


class FakeCluster:
    """Answers every method of the Cluster service with what it is given."""

    def __init__(self) -> None:
        self.answer: Message | KvorumError | None = None
        self.requests: list[Message] = []
        self.address = ""

    async def serve(self, request: Message, context: Any) -> Message:
        self.requests.append(request)
        if isinstance(self.answer, KvorumError):
            details = ((DETAILS_KEY, to_status(self.answer).SerializeToString()),)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "x", trailing_metadata=details)
        if self.answer is None:
            await asyncio.Event().wait()
        assert isinstance(self.answer, Message)
        return self.answer


@pytest.fixture
async def node() -> AsyncIterator[FakeCluster]:
    fake = FakeCluster()
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        name: grpc.unary_unary_rpc_method_handler(
            fake.serve,
            request_deserializer=getattr(cluster_pb2, f"{name}Request").FromString,
            response_serializer=getattr(cluster_pb2, f"{name}Response").SerializeToString,
        )
        for name in ("GetStatus", "GetContentHash", "TransferLeadership")
    }
    handler = grpc.method_handlers_generic_handler("kvorumpb.v1.Cluster", handlers)
    server.add_generic_rpc_handlers((handler,))
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield fake
    await server.stop(None)


async def test_status(node: FakeCluster) -> None:
    node.answer = cluster_pb2.GetStatusResponse(name="n1", role=cluster_pb2.LEADER, term=7)
    async with ClusterAdmin([node.address]) as admin:
        assert await admin.status(node.address) == node.answer
        assert admin.addresses == (node.address,)


async def test_content_hash(node: FakeCluster) -> None:
    node.answer = cluster_pb2.GetContentHashResponse(revision=3, hash=b"x", record_count=2)
    async with ClusterAdmin() as admin:
        assert await admin.content_hash(node.address) == node.answer


async def test_transfer_leadership(node: FakeCluster) -> None:
    node.answer = cluster_pb2.TransferLeadershipResponse(leader="n2")
    async with ClusterAdmin() as admin:
        assert await admin.transfer_leadership(node.address, "n2") == "n2"
    assert node.requests == [cluster_pb2.TransferLeadershipRequest(target="n2")]


async def test_a_node_that_does_not_lead_says_so(node: FakeCluster) -> None:
    node.answer = NotLeader("n2 leads", leader="n2", address="h2:7100")
    async with ClusterAdmin() as admin:
        with pytest.raises(NotLeader) as caught:
            await admin.transfer_leadership(node.address)
    assert caught.value.metadata == {"leader": "n2", "address": "h2:7100"}


async def test_nobody_is_there() -> None:
    async with ClusterAdmin() as admin:
        with pytest.raises(NoNodeReachable, match=r"127\.0\.0\.1:1 does not answer") as caught:
            await admin.status("127.0.0.1:1")
    assert caught.value.nodes == ("127.0.0.1:1",)


async def test_a_node_that_does_not_answer(node: FakeCluster) -> None:
    async with ClusterAdmin() as admin:
        with pytest.raises(DeadlineExceeded):
            await admin.status(node.address, timeout=0.1)


async def test_a_closed_one_refuses(node: FakeCluster) -> None:
    admin = ClusterAdmin()
    await admin.close()
    with pytest.raises(Closed):
        await admin.status(node.address)
