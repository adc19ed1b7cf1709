"""A scripted node that also serves watches, as the test says.

    async with WatchingNode("n1") as n1:
        n1.watch_script = lambda begin: [begun(5)]     what a watch is told at once
        n1.tell(changes(6, put=b"a"))                  on every watch
        n1.break_watches()

What was begun is in `begins`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import grpc
import grpc.aio

from kvorum.errors import KvorumError
from kvorum.status import to_status
from kvorumpb.v1.command_pb2 import Record
from kvorumpb.v1.watch_pb2 import (
    BeginWatch,
    Change,
    Changes,
    Progress,
    WatchBegun,
    WatchRequest,
    WatchResponse,
    WatchUpdate,
)
from tests.support.fake_server import FakeNode

WatchScript = Callable[[BeginWatch], "Sequence[WatchUpdate | KvorumError]"]
Context = grpc.aio.ServicerContext[WatchRequest, WatchResponse]


def begun(revision: int) -> WatchUpdate:
    return WatchUpdate(begun=WatchBegun(revision=revision))


def progress(revision: int) -> WatchUpdate:
    return WatchUpdate(progress=Progress(revision=revision))


def changes(revision: int, *keys: bytes, partial: bool = False, value: bytes = b"1") -> WatchUpdate:
    """A put of each key at the revision."""
    told = Changes(revision=revision, log_time_ms=1000 * revision, partial=partial)
    for key in keys:
        record = Record(key=key, value=value, revision=revision)
        told.changes.append(Change(kind=Change.PUT, key=key, record=record))
    return WatchUpdate(changes=told)


def as_asked(begin: BeginWatch) -> list[WatchUpdate | KvorumError]:
    """Begin after the revision that was asked for."""
    return [begun(begin.after_revision)]


class WatchingNode(FakeNode):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.watch_script: WatchScript = as_asked
        self.begins: list[BeginWatch] = []
        self._queues: dict[asyncio.Queue[WatchResponse | None], int] = {}
        """Of each stream, what it is to say, and the id of its watch."""

    @property
    def open_watches(self) -> int:
        return len(self._queues)

    def tell(self, *updates: WatchUpdate | KvorumError) -> None:
        """Say this on all streams, in one message."""
        for queue, watch_id in self._queues.items():
            queue.put_nowait(_response(watch_id, updates))

    def break_watches(self) -> None:
        for queue in self._queues:
            queue.put_nowait(None)

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        handler: grpc.RpcMethodHandler[WatchRequest, WatchResponse]
        handler = grpc.stream_stream_rpc_method_handler(
            self._watch,
            request_deserializer=WatchRequest.FromString,
            response_serializer=WatchResponse.SerializeToString,
        )
        watches = grpc.method_handlers_generic_handler("kvorumpb.v1.Watch", {"Watch": handler})
        return (*super().handlers(), watches)

    async def _watch(self, requests: AsyncIterator[WatchRequest], context: Context) -> None:
        request = await anext(requests)
        self.begins.append(request.begin)
        queue: asyncio.Queue[WatchResponse | None] = asyncio.Queue()
        self._queues[queue] = request.begin.watch_id
        updates = self.watch_script(request.begin)
        if updates:
            queue.put_nowait(_response(request.begin.watch_id, updates))
        try:
            while (response := await queue.get()) is not None:
                await context.write(response)
        finally:
            del self._queues[queue]
        await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted to break")


def _response(watch_id: int, updates: Sequence[WatchUpdate | KvorumError]) -> WatchResponse:
    response = WatchResponse()
    for update in updates:
        if isinstance(update, KvorumError):
            response.updates.add(watch_id=watch_id, ended=to_status(update))
        else:
            update.watch_id = watch_id
            response.updates.append(update)
    return response
