"""A node whose every word is scripted: what the client's tests talk to.

    async with FakeNode("n1") as n1:
        n1.lead(term=3)                    answers every call as a store would
        n1.script = lambda call: None      never answers
        n1.script = not_leader(n2)         refuses every call
        n1.break_streams()                 ends all streams, without an answer

What arrived is in `messages` and `calls`; a call in parts is a call once it is whole.
Registrations of clients are no part of the script: they are in `registrations`, and succeed
where the node says that it leads (`on_register`).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from kvorum import limits
from kvorum.errors import KvorumError, NotLeader
from kvorum.status import to_status
from kvorumpb.v1.command_pb2 import OperationResult, TransactionResult
from kvorumpb.v1.kv_pb2 import Call, CallPart, Leadership, Reply, SessionRequest, SessionResponse

Script = Callable[[Call], Reply | KvorumError | None]
"""What a node answers: a reply, an error, or nothing at all."""


def succeed(call: Call) -> Reply:
    """Answer as a leader does, with the call's id as the revision of what it wrote."""
    reply = Reply()
    match call.WhichOneof("request"):
        case "get":
            reply.get.revision = call.id
            record = reply.get.record
            record.key = call.get.key
            record.value = b'"value of %s"' % call.get.key
            record.revision = record.created_revision = record.version = 1
        case "list":
            reply.list.revision = call.id
        case "put":
            reply.put.revision = call.id
        case "delete":
            reply.delete.deleted = True
        case "register_client":
            reply.register_client.SetInParent()
        case "txn":
            results = [OperationResult() for _ in call.txn.transaction.operations]
            for operation, result in zip(call.txn.transaction.operations, results, strict=True):
                if operation.HasField("get"):
                    result.get.SetInParent()
                elif operation.HasField("add"):
                    result.add.value = operation.add.amount
                elif operation.HasField("put"):
                    result.put.SetInParent()
                else:
                    result.delete.deleted = True
            reply.txn.result.CopyFrom(
                TransactionResult(succeeded=True, revision=call.id, results=results)
            )
    return reply


def not_leader(leader: "FakeNode | None" = None, *, address: str = "") -> Script:
    """Refuse every call, naming another node if there is one."""
    metadata = {"leader": leader.name, "address": address or leader.address} if leader else {}

    def script(call: Call) -> NotLeader:
        return NotLeader("this node does not lead", **metadata)

    return script


class FakeNode:
    """A gRPC server on a free loopback port. Until `follow` or `lead`, it knows of no leader."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = ""
        self.script: Script = succeed
        self.on_register: Script = self._register
        self.registrations: list[Call] = []
        self.messages: list[SessionRequest] = []
        self.calls: list[Call] = []
        self.refuse_part: Callable[[CallPart], KvorumError | None] = lambda part: None
        """What a node answers to a part before the call is whole, if anything."""
        self.sessions_opened = 0
        self.half_closed = 0
        self.reading = asyncio.Event()
        """Cleared: the node reads no further message."""
        self.reading.set()
        self.greeting = True
        """False: a new stream hears nothing, not even who leads."""
        self._leadership = Leadership()
        self._streams: set[_Stream] = set()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen; after a `stop` on the same port again."""
        options = (
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
        )
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers(self.handlers())
        port = server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await server.start()
        self._server = server

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """The services of the node."""
        handler: grpc.RpcMethodHandler[SessionRequest, SessionResponse]
        handler = grpc.stream_stream_rpc_method_handler(
            self._session,
            request_deserializer=SessionRequest.FromString,
            response_serializer=SessionResponse.SerializeToString,
        )
        return (grpc.method_handlers_generic_handler("kvorumpb.v1.KV", {"Session": handler}),)

    async def stop(self) -> None:
        """Go down at once, like a killed process: streams break, connections are refused."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    def lead(self, *, term: int, address: str = "", members: Sequence["FakeNode"] = ()) -> None:
        """Say, on every stream, that this node leads."""
        self.follow(self, term=term, address=address, members=members)

    def follow(
        self,
        leader: "FakeNode | None",
        *,
        term: int,
        address: str = "",
        members: Sequence["FakeNode"] = (),
    ) -> None:
        """Say, on every stream, who leads."""
        self._leadership = Leadership(term=term, members=[node.address for node in members])
        if leader is not None:
            self._leadership.leader = leader.name
            self._leadership.address = address or leader.address
        for stream in self._streams:
            stream.say(SessionResponse(leadership=self._leadership))

    def answer(self, call: Call, script: Script = succeed) -> None:
        """Answer a call that the script left open, on every stream there is."""
        for stream in self._streams:
            stream.answer(call, script)

    def say(self, response: SessionResponse) -> None:
        """Say whatever it is, on every stream there is."""
        for stream in self._streams:
            stream.say(response)

    def break_streams(self) -> None:
        for stream in self._streams:
            stream.broken.set()

    async def _session(
        self,
        requests: AsyncIterator[SessionRequest],
        context: grpc.aio.ServicerContext[SessionRequest, SessionResponse],
    ) -> None:
        stream = _Stream(context)
        self._streams.add(stream)
        self.sessions_opened += 1
        if self.greeting:
            stream.say(SessionResponse(leadership=self._leadership))
        work = [
            asyncio.create_task(self._read(requests, stream)),
            asyncio.create_task(stream.write()),
            asyncio.create_task(stream.broken.wait()),
        ]
        try:
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._streams.discard(stream)
            for task in work:
                task.cancel()
            await asyncio.wait(work)
        if stream.broken.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted to break")

    async def _read(self, requests: AsyncIterator[SessionRequest], stream: "_Stream") -> None:
        await self.reading.wait()
        async for message in requests:
            kept = SessionRequest()
            kept.CopyFrom(message)
            del kept.calls[:]
            kept.calls.extend(one for one in message.calls if not one.HasField("register_client"))
            if kept.calls or kept.HasField("part"):
                self.messages.append(kept)
            if message.HasField("part") and (error := self.refuse_part(message.part)):
                refusal = Reply(id=message.part.id, error=to_status(error, retry_delay_ms=20))
                stream.say(SessionResponse(replies=[refusal]))
                continue
            for call in (*message.calls, *stream.assemble(message)):
                if call.HasField("register_client"):
                    self.registrations.append(call)
                    stream.answer(call, self.on_register)
                else:
                    self.calls.append(call)
                    stream.answer(call, self.script)
            await self.reading.wait()
        self.half_closed += 1
        # What is under way may still be answered.
        await stream.broken.wait()

    def _register(self, call: Call) -> Reply | KvorumError:
        if self._leadership.leader == self.name:
            return succeed(call)
        return NotLeader("this node does not lead")


class _Stream:
    def __init__(self, context: grpc.aio.ServicerContext[SessionRequest, SessionResponse]) -> None:
        self.broken = asyncio.Event()
        self._context = context
        self._outgoing: asyncio.Queue[SessionResponse] = asyncio.Queue()
        self._parts: dict[int, list[CallPart]] = {}

    def say(self, response: SessionResponse) -> None:
        self._outgoing.put_nowait(response)

    def answer(self, call: Call, script: Script) -> None:
        reply = script(call)
        if isinstance(reply, KvorumError):
            reply = Reply(error=to_status(reply, retry_delay_ms=20))
        if reply is not None:
            reply.id = call.id
            self.say(SessionResponse(replies=[reply]))

    def assemble(self, message: SessionRequest) -> list[Call]:
        """The call that is whole with the part in the message, if there is one."""
        if not message.HasField("part"):
            return []
        part = message.part
        if part.abandoned or not (part.total_bytes or part.id in self._parts):
            self._parts.pop(part.id, None)
            return []
        parts = self._parts.setdefault(part.id, [])
        parts.append(part)
        data = b"".join(one.data for one in parts)
        if len(data) != parts[0].total_bytes:
            return []
        del self._parts[part.id]
        return [Call.FromString(data)]

    async def write(self) -> None:
        while True:
            await self._context.write(await self._outgoing.get())
