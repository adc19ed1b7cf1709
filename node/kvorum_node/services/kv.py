"""The KV service: unary methods, and the session stream that carries many calls a message.

Rules: every call goes through the dispatcher; a unary call that arrives at
another node than the leader is passed on, once; nothing is decided here.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from kvorum import limits
from kvorum.channels import connect
from kvorum.errors import NotLeader
from kvorum.status import DETAILS_KEY, from_rpc_error, from_status, to_status
from kvorum_node.node import Node
from kvorum_node.raft.types import node_name
from kvorumpb.v1 import kv_pb2

SERVICE = "kvorumpb.v1.KV"

_FORWARDED = "kvorum-forwarded"

Context = grpc.aio.ServicerContext[Any, Any]

logger = logging.getLogger("kvorum.node")


@dataclass(frozen=True, slots=True)
class _Unary:
    """A unary method: its name, its messages, and the field of Call and Reply that carries them."""

    name: str
    field: str
    request: type[Message]
    response: type[Message]
    writes: bool = True


_UNARY = (
    _Unary("Get", "get", kv_pb2.GetRequest, kv_pb2.GetResponse, writes=False),
    _Unary("List", "list", kv_pb2.ListRequest, kv_pb2.ListResponse, writes=False),
    _Unary("Put", "put", kv_pb2.PutRequest, kv_pb2.PutResponse),
    _Unary("Delete", "delete", kv_pb2.DeleteRequest, kv_pb2.DeleteResponse),
    _Unary("Txn", "txn", kv_pb2.TxnRequest, kv_pb2.TxnResponse),
    _Unary(
        "RegisterClient",
        "register_client",
        kv_pb2.RegisterClientRequest,
        kv_pb2.RegisterClientResponse,
    ),
)


class KvService:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._channels: dict[str, grpc.aio.Channel] = {}

    def handler(self) -> grpc.GenericRpcHandler:
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            method.name: grpc.unary_unary_rpc_method_handler(
                self._unary(method),
                request_deserializer=method.request.FromString,
                response_serializer=method.response.SerializeToString,
            )
            for method in _UNARY
        }
        methods["Session"] = grpc.stream_stream_rpc_method_handler(
            self._session,
            request_deserializer=kv_pb2.SessionRequest.FromString,
            response_serializer=kv_pb2.SessionResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _unary(self, method: _Unary) -> Callable[[Message, Context], Awaitable[Message]]:
        async def serve(request: Message, context: Context) -> Message:
            call = kv_pb2.Call(timeout_ms=_remaining_ms(context))
            getattr(call, method.field).CopyFrom(request)
            reply = (await self._node.dispatcher.execute([call]))[0]
            if not reply.HasField("error"):
                answer: Message = getattr(reply, method.field)
                return answer
            error = from_status(reply.error)
            address = error.metadata.get("address")
            if isinstance(error, NotLeader) and address and not _was_forwarded(context):
                return await self._forward(method, request, address, context)
            await abort(context, reply.error)

        return serve

    async def _forward(
        self, method: _Unary, request: Message, address: str, context: Context
    ) -> Message:
        """Pass the call on to the leader, and its answer or its error back."""
        if address not in self._channels:
            self._channels[address] = connect(address)
        stub = self._channels[address].unary_unary(
            f"/{SERVICE}/{method.name}",
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            return await stub(
                request,
                timeout=_remaining_ms(context) / 1000,
                metadata=((_FORWARDED, str(self._node)),),
            )
        except grpc.aio.AioRpcError as error:
            # A connection that broke says UNAVAILABLE, which of us means: not applied.
            await abort(context, to_status(from_rpc_error(error, write=method.writes)))

    async def _session(
        self, requests: AsyncIterator[kv_pb2.SessionRequest], context: Context
    ) -> None:
        session = _Session(self._node, context)
        forget = self._node.listen(session.announce)
        session.announce()
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(session.write())
                async for request in requests:
                    await session.take(request.calls)
                await session.finish()
                await writer
        except* grpc.aio.InternalError:
            # gRPC's word for a stream that is dead: the client has dropped it, which is no news.
            logger.debug("%s lost a session while it was answering", self._node)
        finally:
            forget()


class _Session:
    """One session stream: what is under way on it, and what waits to be written to it.

    A call is under way until its reply has been written: a client that does not
    read its replies is not read from either.
    """

    def __init__(self, node: Node, context: Context) -> None:
        self._node = node
        self._context = context
        self._under_way = 0
        self._replies: deque[Iterator[kv_pb2.Reply]] = deque()
        self._leadership: kv_pb2.Leadership | None = None
        self._ending = False
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    def announce(self) -> None:
        """Tell the client who leads, and where the members are."""
        raft = self._node.group.raft
        addresses = raft.configuration.addresses
        self._leadership = kv_pb2.Leadership(term=raft.term, members=addresses.values())
        address = None if raft.leader is None else addresses.get(raft.leader)
        if raft.leader is not None and address is not None:
            self._leadership.leader = node_name(raft.leader)
            self._leadership.address = address
        self._filled.set()

    async def take(self, calls: Iterable[kv_pb2.Call]) -> None:
        """Start calls; waits while more are under way than a session may have."""
        calls = tuple(calls)
        self._under_way += len(calls)
        self._node.dispatcher.dispatch(calls, self._emit)
        if self._under_way >= limits.MAX_SESSION_CALLS:
            self._drained.clear()
            await self._drained.wait()

    async def finish(self) -> None:
        """Wait until every call is answered, and let `write` return after the last answer."""
        if self._under_way:
            self._drained.clear()
            while self._under_way:
                await self._drained.wait()
                self._drained.clear()
        self._ending = True
        self._filled.set()

    async def write(self) -> None:
        """Send whatever there is to say, as soon as the stream takes it."""
        while not (self._ending and not self._replies and self._leadership is None):
            if not self._replies and self._leadership is None:
                self._filled.clear()
                await self._filled.wait()
                continue
            response = self._next_response()
            await self._context.write(response)
            self._under_way -= len(response.replies)
            if self._under_way < limits.MAX_SESSION_CALLS // 2:
                self._drained.set()

    def _emit(self, replies: Iterable[kv_pb2.Reply]) -> None:
        self._replies.append(iter(replies))
        self._filled.set()

    def _next_response(self) -> kv_pb2.SessionResponse:
        """All that waits, until it has reached limits.MAX_BATCH_BYTES."""
        response = kv_pb2.SessionResponse(leadership=self._leadership)
        self._leadership = None
        size = 0
        while self._replies and size < limits.MAX_BATCH_BYTES:
            reply = next(self._replies[0], None)
            if reply is None:
                self._replies.popleft()
                continue
            size += reply.ByteSize()
            response.replies.append(reply)
        return response


async def abort(context: Context, status: Status) -> NoReturn:
    """End a unary call with the error, details included."""
    await context.abort(
        _CODES[status.code],
        status.message,
        trailing_metadata=((DETAILS_KEY, status.SerializeToString()),),
    )


_CODES = {code.value[0]: code for code in grpc.StatusCode}


def _remaining_ms(context: Context) -> int:
    """The time that the caller still gives the call; the longest a node works on one if unset."""
    remaining = cast("float | None", context.time_remaining())  # None without a deadline
    if remaining is None:
        return limits.MAX_CALL_TIMEOUT_MS
    return max(1, min(int(remaining * 1000), limits.MAX_CALL_TIMEOUT_MS))


def _was_forwarded(context: Context) -> bool:
    return any(key == _FORWARDED for key, _ in context.invocation_metadata() or ())
