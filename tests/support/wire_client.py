"""A client with nothing but the protocol: no retries, no session of its own, one node."""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import grpc.aio
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from kvorum import limits
from kvorum.channels import connect
from kvorumpb.v1 import cluster_pb2, kv_pb2, watch_pb2

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING

SESSION_SECONDS = 60.0


class WireClient:
    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = connect(address)

    async def close(self) -> None:
        await self.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def kv(self, request: Message, *, seconds: float = 10.0) -> Any:
        """The unary call of the KV service that takes this request."""
        return await self._unary("KV", kv_pb2, request, seconds)

    async def cluster(self, request: Message, *, seconds: float = 10.0) -> Any:
        """The same for the Cluster service."""
        return await self._unary("Cluster", cluster_pb2, request, seconds)

    def session(self) -> Any:
        """A stream of SessionRequest and SessionResponse."""
        return self.channel.stream_stream(
            "/kvorumpb.v1.KV/Session",
            request_serializer=kv_pb2.SessionRequest.SerializeToString,
            response_deserializer=kv_pb2.SessionResponse.FromString,
        )(timeout=SESSION_SECONDS)

    def watch(self) -> Any:
        """A stream of WatchRequest and WatchResponse."""
        return self.channel.stream_stream(
            "/kvorumpb.v1.Watch/Watch",
            request_serializer=watch_pb2.WatchRequest.SerializeToString,
            response_deserializer=watch_pb2.WatchResponse.FromString,
        )(timeout=SESSION_SECONDS)

    async def health(self, service: str = "") -> int:
        """Waits for the server to be there."""
        check = self.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        answer = await check(HealthCheckRequest(service=service), timeout=10, wait_for_ready=True)
        return int(answer.status)

    def watch_health(self, service: str = "") -> Any:
        return self.channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )(HealthCheckRequest(service=service), timeout=SESSION_SECONDS)

    async def _unary(self, service: str, module: Any, request: Message, seconds: float) -> Any:
        method = type(request).__name__.removesuffix("Request")
        call = self.channel.unary_unary(
            f"/kvorumpb.v1.{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=getattr(module, f"{method}Response").FromString,
        )
        return await call(request, timeout=seconds)


async def rest_of(session: Any) -> AsyncIterator[kv_pb2.SessionResponse]:
    """All responses until the node ends the session."""
    while isinstance(response := await session.read(), kv_pb2.SessionResponse):
        yield response


async def replies_of(session: Any) -> AsyncIterator[kv_pb2.Reply]:
    """All replies until the node ends the session, in the order in which they are complete."""
    parts: dict[int, list[kv_pb2.ReplyPart]] = {}
    async for response in rest_of(session):
        for reply in response.replies:
            yield reply
        if response.HasField("part"):
            part = response.part
            together = parts.setdefault(part.id, [])
            together.append(part)
            data = b"".join(one.data for one in together)
            if len(data) == together[0].total_bytes:
                del parts[part.id]
                yield kv_pb2.Reply.FromString(data)


def in_parts(call: kv_pb2.Call, size_bytes: int = limits.MAX_PART_BYTES) -> list[kv_pb2.CallPart]:
    """A call as it travels if it is large."""
    data = call.SerializeToString()
    parts = [
        kv_pb2.CallPart(id=call.id, data=data[start : start + size_bytes])
        for start in range(0, len(data), size_bytes)
    ]
    parts[0].total_bytes = len(data)
    return parts


def details(error: grpc.aio.AioRpcError) -> tuple[ErrorInfo, RetryInfo | None]:
    """The rich error that came with a failure, and that agrees with the plain one."""
    [packed] = [
        value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"
    ]
    assert isinstance(packed, bytes)
    status = Status.FromString(packed)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    info, retry = ErrorInfo(), RetryInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    has_retry = any(detail.Unpack(retry) for detail in status.details)
    return info, retry if has_retry else None
