"""Operating a cluster: the Cluster service of its nodes, for the command line and for tests.

A node is asked at its own address, and answers about itself, leader or not.
"""

from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self, TypeVar

import grpc.aio
from google.protobuf.message import Message

from kvorum.channels import connect
from kvorum.errors import Closed, KvorumError, NoNodeReachable, Unavailable
from kvorum.status import from_rpc_error
from kvorumpb.v1 import cluster_pb2

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

STATUS_TIMEOUT_SECONDS: Final = 2.0
TRANSFER_TIMEOUT_SECONDS: Final = 10.0
CONTENT_HASH_TIMEOUT_SECONDS: Final = 60.0
"""The whole state is read."""


class ClusterAdmin:
    """Asks nodes about themselves. The answers are documented in cluster.proto.

    Used as an async context manager, or closed with `close`. Every call raises
    `NoNodeReachable` if there is no node at the address, `DeadlineExceeded` after
    `timeout` seconds, and whatever else the node answers with.
    """

    def __init__(self, addresses: Iterable[str] = ()) -> None:
        self.addresses: Final = tuple(addresses)
        """host:port of the nodes, for the caller's convenience; others can be asked too."""
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closed = False

    async def status(
        self, address: str, *, timeout: float = STATUS_TIMEOUT_SECONDS
    ) -> cluster_pb2.GetStatusResponse:
        """Return the node's view: role, positions, members."""
        return await self._call(
            address,
            "GetStatus",
            cluster_pb2.GetStatusRequest(),
            cluster_pb2.GetStatusResponse,
            timeout=timeout,
        )

    async def content_hash(
        self, address: str, *, timeout: float = CONTENT_HASH_TIMEOUT_SECONDS
    ) -> cluster_pb2.GetContentHashResponse:
        """Hash all records of the node; equal at equal revision, if the nodes hold the same."""
        return await self._call(
            address,
            "GetContentHash",
            cluster_pb2.GetContentHashRequest(),
            cluster_pb2.GetContentHashResponse,
            timeout=timeout,
        )

    async def transfer_leadership(
        self, address: str, target: str = "", *, timeout: float = TRANSFER_TIMEOUT_SECONDS
    ) -> str:
        """Have the leader at `address` hand over to `target` ("n2"), and return who leads then.

        Without a target the leader chooses. Raises `NotLeader` if another node leads.
        """
        response = await self._call(
            address,
            "TransferLeadership",
            cluster_pb2.TransferLeadershipRequest(target=target),
            cluster_pb2.TransferLeadershipResponse,
            write=True,
            timeout=timeout,
        )
        return response.leader

    async def close(self) -> None:
        """Close the connections. Calls that are under way fail."""
        self._closed = True
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _call(
        self,
        address: str,
        method: str,
        request: RequestT,
        response_type: type[ResponseT],
        *,
        timeout: float,
        write: bool = False,
    ) -> ResponseT:
        if self._closed:
            raise Closed("the ClusterAdmin was closed")
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = connect(address)
        rpc: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT] = channel.unary_unary(
            f"/kvorumpb.v1.Cluster/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response_type.FromString,
        )
        try:
            return await rpc(request, timeout=timeout)
        except grpc.aio.AioRpcError as cause:
            raise _translate(cause, address, write=write) from cause


def _translate(cause: grpc.aio.AioRpcError, address: str, *, write: bool) -> KvorumError:
    error = from_rpc_error(cause, write=write)
    if type(error) is Unavailable:
        return NoNodeReachable(f"{address} does not answer: {error.message}", nodes=[address])
    return error
