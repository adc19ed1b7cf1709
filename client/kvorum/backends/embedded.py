"""A store in this process: the same state machine as a node's, without the network.

Calls that are made while others are being carried out form the next batch, and
share its fsync. A list that counts takes long, and is a batch of its own beside the others.
No answer is ever lost on the way, so nothing is sent twice: writes need no origin, and no
client is registered, though the node would take both.
"""

import asyncio
from itertools import count, islice
from typing import TYPE_CHECKING, Final, Self

from kvorum import limits
from kvorum.backends.feeds import EmbeddedFeed
from kvorum.backends.pending import Deadlines, PendingCall
from kvorum.errors import Closed, OutcomeUnknown, Overloaded, StorageError
from kvorum.status import from_status
from kvorumpb.v1.kv_pb2 import Call, Reply
from kvorumpb.v1.watch_pb2 import BeginWatch

if TYPE_CHECKING:
    from pathlib import Path

    from kvorum_node.embedded import EmbeddedNode


RETRY_SECONDS: Final = 0.005


class EmbeddedBackend:
    """Feeds an embedded node, one batch at a time."""

    def __init__(self, node: "EmbeddedNode") -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._node = node
        self._ids = count(1)
        self._waiting: dict[int, PendingCall] = {}
        self._running: dict[int, PendingCall] = {}
        self._delayed: dict[int, PendingCall] = {}
        self._deadlines = Deadlines(loop, self._expire)
        self._wake = asyncio.Event()
        self._counts: set[asyncio.Task[None]] = set()
        self._closed = False
        self._feeds: set[EmbeddedFeed] = set()
        self._runner = loop.create_task(self._run(), name="kvorum embedded")

    @classmethod
    async def open(cls, directory: "Path | None") -> Self:
        """Open the directory, or a store in memory for None. Raises `StorageError`."""
        # Only here: a client of a cluster does without the node and RocksDB.
        try:
            from kvorum_node.embedded import EmbeddedNode  # noqa: PLC0415 - as said above

            node = await EmbeddedNode.open(directory)
        except ModuleNotFoundError as error:
            raise StorageError(
                f"a store in this process needs {error.name}: pip install 'kvorum[node]'"
            ) from error
        return cls(node)

    async def call(self, call: Call, *, timeout_seconds: float) -> Reply:
        if self._closed:
            raise Closed("the store is closed")
        pending = PendingCall(call, timeout_seconds, self._loop)
        self._deadlines.add(pending)
        pending.move(self._waiting, next(self._ids))
        self._wake.set()
        try:
            return await pending.future
        finally:
            self._deadlines.discard(pending)
            pending.move(None)

    def watch(self, begin: BeginWatch, *, timeout_seconds: float) -> EmbeddedFeed:
        if self._closed:
            raise Closed("the store is closed")
        feed = EmbeddedFeed(self._node.open_watches(), begin, self._feeds.discard)
        self._feeds.add(feed)
        return feed

    async def close(self) -> None:
        first = not self._closed
        self._closed = True
        for feed in tuple(self._feeds):
            feed.end(Closed("the store was closed"))
        self._wake.set()
        calls = (self._waiting, self._running, self._delayed)
        for pending in [one for some in calls for one in some.values()]:
            pending.fail(Closed("the store was closed", maybe_applied=pending.maybe_applied))
        # Not `await self._runner`: a cancelled close would cancel the batch under way with it.
        await asyncio.wait([self._runner])
        if first:
            self._deadlines.close()
            await self._node.close()
            if self._counts:  # the node has given them up
                await asyncio.wait(self._counts)

    async def _run(self) -> None:
        while not self._closed:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting and not self._closed:
                batch = self._take()
                if batch[0].call.list.count:
                    count = self._loop.create_task(self._run_batch(batch), name="kvorum count")
                    self._counts.add(count)
                    count.add_done_callback(self._counts.discard)
                else:
                    await self._run_batch(batch)

    def _take(self) -> list[PendingCall]:
        """The calls that wait, as far as they make a batch: at least one."""
        batch: list[PendingCall] = []
        size = 0
        for pending in islice(self._waiting.values(), limits.MAX_BATCH_CALLS):
            size += pending.call.ByteSize()
            if batch and (size > limits.MAX_BATCH_BYTES or pending.call.list.count):
                break
            batch.append(pending)
            if pending.call.list.count:
                break
        now = self._loop.time()
        for pending in batch:
            pending.move(self._running, pending.id)
            pending.start(now)
        return batch

    async def _run_batch(self, batch: list[PendingCall]) -> None:
        try:
            replies = await self._node.execute([pending.call for pending in batch])
        except Exception as error:  # noqa: BLE001 - whatever it is, no caller may wait for ever
            for pending in batch:
                kind = OutcomeUnknown if pending.maybe_applied else StorageError
                pending.move(None)
                pending.fail(kind(f"the store failed: {error}"), error)
            return
        for reply in replies:
            answered = self._running.get(reply.id)
            if answered is None:
                continue
            answered.move(None)
            if not reply.HasField("error"):
                answered.succeed(reply)
                continue
            refusal = from_status(reply.error, write=answered.is_write)
            if isinstance(refusal, Overloaded):
                self._repeat_later(answered)
            else:
                answered.fail(refusal)

    def _repeat_later(self, pending: PendingCall) -> None:
        """The node has too much to do at once: until time is out, this may have its turn."""
        pending.sent = False
        pending.move(self._delayed, next(self._ids))
        self._loop.call_later(RETRY_SECONDS, self._resume, pending)

    def _resume(self, pending: PendingCall) -> None:
        if pending.home is self._delayed:
            pending.move(self._waiting, next(self._ids))
            self._wake.set()

    def _expire(self, pending: PendingCall) -> None:
        pending.fail(pending.expired("the disk is too slow"))
