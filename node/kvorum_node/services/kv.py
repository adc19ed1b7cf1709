"""The KV service: unary methods, and the session stream (session.py) of many calls a message.

Rules: every call goes through the dispatcher; a unary call that arrives at
another node than the leader is passed on, once, as the bytes that it came in.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status

from kvorum import limits
from kvorum.channels import Channels
from kvorum.errors import InvalidArgument, NotLeader, Overloaded
from kvorum.status import DETAILS_KEY, from_rpc_error, from_status, to_status
from kvorum_node.admission import RETRY_DELAY_MS
from kvorum_node.node import Node
from kvorum_node.services.arrival import Arrivals
from kvorum_node.services.dispatch import only_reads
from kvorum_node.services.session import Session
from kvorumpb.v1 import kv_pb2
from kvorumpb.v1.kv_pb2 import Reply

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
        self._arrivals = Arrivals(node.admission.arrivals)
        self._channels = Channels()

    def handler(self) -> grpc.GenericRpcHandler:
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            method.name: grpc.stream_unary_rpc_method_handler(
                self._unary(method),
                request_deserializer=None,
                response_serializer=method.response.SerializeToString,
            )
            for method in _UNARY
        }
        methods["Session"] = grpc.stream_stream_rpc_method_handler(
            self._session,
            request_deserializer=None,
            response_serializer=kv_pb2.SessionResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def close(self) -> None:
        await self._channels.close()

    def _unary(
        self, method: _Unary
    ) -> Callable[[AsyncIterator[bytes], Context], Awaitable[Message]]:
        async def serve(requests: AsyncIterator[bytes], context: Context) -> Message:
            del requests  # read from the context: arrival.py
            data = b""
            try:
                data = await self._arrivals.receive(context)
                with self._counted(len(data)):
                    reply, may_be_refused = await self._execute(method, data, context)
                    if not reply.HasField("error"):
                        answer: Message = getattr(reply, method.field)
                        return self._answer(answer, context, may_be_refused=may_be_refused)
                    error = from_status(reply.error)
                    address = error.metadata.get("address")
                    if isinstance(error, NotLeader) and address and not _was_forwarded(context):
                        return await self._forward(method, data, address, context)
                    status = reply.error
            except (Overloaded, InvalidArgument) as refusal:
                status = to_status(refusal, retry_delay_ms=RETRY_DELAY_MS)
            # What ends a call by an error lives until the next garbage collection, with its frames.
            del data
            await abort(context, status)

        return serve

    @contextmanager
    def _counted(self, size_bytes: int) -> Iterator[None]:
        """Have room for what comes of a large request. Raises Overloaded."""
        if size_bytes <= limits.MAX_BATCH_BYTES:
            yield
            return
        reservation = self._node.admission.calls.reserve(size_bytes)
        try:
            yield
        finally:
            reservation.release()

    async def _execute(self, method: _Unary, data: bytes, context: Context) -> tuple[Reply, bool]:
        """The reply, and whether the call only reads: a write cannot be refused any more."""
        call = kv_pb2.Call(timeout_ms=_remaining_ms(context))
        request: Message = getattr(call, method.field)
        request.SetInParent()
        try:
            request.MergeFromString(data)
        except DecodeError:
            malformed = InvalidArgument(f"the request is no {method.request.__name__}")
            return Reply(error=to_status(malformed)), True
        calls, reads = [call], only_reads(call)
        del call, request  # or else a large value would stay in memory until it is answered
        serving = self._node.dispatcher.execute(calls)
        del calls
        return (await serving)[0], reads

    def _answer(self, answer: Message, context: Context, *, may_be_refused: bool) -> Message:
        """The answer, counted until it is sent if it is large. Raises Overloaded."""
        size = answer.ByteSize()
        if size > limits.MAX_BATCH_BYTES:
            replies = self._node.admission.replies
            reservation = replies.reserve(size) if may_be_refused else replies.take(size)

            def on_sent(ctx: Context) -> None:
                del ctx
                reservation.release()

            context.add_done_callback(on_sent)  # type: ignore[arg-type]  # stubs: a class, no type
        return answer

    async def _forward(
        self, method: _Unary, data: bytes, address: str, context: Context
    ) -> Message:
        """Pass the call on to the leader, and its answer or its error back."""
        stub: grpc.aio.UnaryUnaryMultiCallable[bytes, Message]
        stub = self._channels.to(address).unary_unary(
            f"/{SERVICE}/{method.name}",
            request_serializer=None,
            response_deserializer=method.response.FromString,
        )
        try:
            return await stub(
                data,
                timeout=_remaining_ms(context) / 1000,
                metadata=((_FORWARDED, str(self._node)),),
            )
        except grpc.aio.AioRpcError as error:
            # A connection that broke says UNAVAILABLE, which of us means: not applied.
            await abort(context, to_status(from_rpc_error(error, write=method.writes)))

    async def _session(self, messages: AsyncIterator[bytes], context: Context) -> None:
        session = Session(self._node, context)
        forget = self._node.listen(session.announce)
        session.announce()
        malformed = False
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(session.write())
                async for message in messages:
                    try:
                        await session.take(message)
                    except DecodeError:
                        malformed = True
                        break  # what came before is answered as ever
                await session.finish()
                await writer
        except* grpc.aio.InternalError:
            # gRPC's word for a stream that is dead: the client has dropped it, which is no news.
            logger.debug("%s lost a session while it was answering", self._node)
        finally:
            forget()
            session.close()
        if malformed:
            await abort(context, to_status(InvalidArgument("the message is no SessionRequest")))


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
