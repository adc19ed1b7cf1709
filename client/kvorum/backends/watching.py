"""Watches of a cluster: a stream of its own for each, to any node that serves.

    choose a node ──> begin after the last whole revision ──> hand on what it tells
         ^                                                            │
         └── the stream broke, the node stops, is behind, or silent ──┘

Rules:

- A stream is read as far as its caller takes what came: one message is read ahead.
- Watches have channels of their own: large changes do not delay calls.
- A node that says nothing for SILENT_INTERVALS progress intervals has lost its leader, or
  is lost itself. The time in which the caller takes nothing does not count.
- A watch that is to begin now begins at the revision that the leader names: what was
  acknowledged before is not told, whichever node it is on.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import grpc
import grpc.aio

from kvorum import limits
from kvorum.backends.feeds import Assembly
from kvorum.channels import Channels
from kvorum.errors import (
    Closed,
    FutureRevision,
    KvorumError,
    NoNodeReachable,
    Unavailable,
)
from kvorum.status import from_rpc_error
from kvorumpb.v1.kv_pb2 import Call, Reply
from kvorumpb.v1.watch_pb2 import BeginWatch, Changes, Progress, WatchRequest, WatchResponse

SILENT_INTERVALS: Final = 3
BEGIN_SECONDS: Final = 3.0
"""How long a node may take to begin a watch: to connect, and to come to its revision."""
MIN_PAUSE_SECONDS: Final = 0.02
MAX_PAUSE_SECONDS: Final = 1.0
"""Between two attempts, when all nodes have been tried."""

_METHOD: Final = "/kvorumpb.v1.Watch/Watch"
_NOT_WORTH_A_RETRY: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
_NO_KEY: Final = b"\0"
"""Some key has to be read to learn the revision."""

logger = logging.getLogger("kvorum.client")


class ClusterWatches:
    """The watches of one store, and the channels that they share."""

    def __init__(
        self,
        addresses: Callable[[], Iterable[str]],
        call: "Callable[..., Awaitable[Reply]]",
    ) -> None:
        """`addresses` are of all nodes that are known; `call` is how a call is made."""
        self.addresses: Final = addresses
        self._call = call
        self.channels: Final = Channels()
        self._feeds: set[ClusterFeed] = set()
        self._closed = False

    def open(self, begin: BeginWatch, timeout_seconds: float) -> "ClusterFeed":
        if self._closed:
            raise Closed("the store is closed")
        feed = ClusterFeed(self, begin, timeout_seconds)
        self._feeds.add(feed)
        return feed

    def forget(self, feed: "ClusterFeed") -> None:
        self._feeds.discard(feed)

    async def newest_revision(self, timeout_seconds: float) -> int:
        """That of the store now, by the word of its leader."""
        call = Call()
        call.get.key = _NO_KEY
        reply = await self._call(call, timeout_seconds=timeout_seconds)
        return reply.get.revision

    def choose(self, tried: set[str]) -> str:
        """A node to watch at; each one is tried before one is tried again."""
        addresses = list(self.addresses())
        untried = [address for address in addresses if address not in tried]
        if not untried:
            tried.clear()
        return random.choice(untried or addresses)  # noqa: S311 - nothing depends on its secrecy

    async def close(self) -> None:
        self._closed = True
        for feed in tuple(self._feeds):
            await feed.end(Closed("the store was closed"))
        await self.channels.close()


class ClusterFeed:
    """One watch, wherever it is served."""

    def __init__(self, watches: ClusterWatches, begin: BeginWatch, timeout_seconds: float) -> None:
        self._watches = watches
        self._request = begin
        self._timeout_seconds = timeout_seconds
        interval_ms = begin.progress_interval_ms or limits.DEFAULT_PROGRESS_INTERVAL_MS
        self._patience_seconds = SILENT_INTERVALS * interval_ms / 1000
        self._position = begin.after_revision if begin.HasField("after_revision") else None
        """The last revision of which everything was heard."""
        self._is_certain = False
        """The store has come to the position, by the word of some node."""
        self._begun: int | None = None
        self._tried: set[str] = set()
        self._attempts = 0
        """Since a node has begun it last."""
        self._heard: deque[Changes | Progress] = deque()
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._last_failure: KvorumError | None = None
        self._failure: KvorumError | None = None
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> int:
        if self._begun is not None:
            return self._begun
        if self._failure is not None:
            raise self._failure
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="kvorum watch")
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._wait_begun()
        except TimeoutError:
            error = self._not_begun()
        await self.end(error)
        raise error

    async def next(self) -> Changes | Progress:
        while not self._heard:
            await self._wait_change()
        heard = self._heard.popleft()
        if not self._heard:
            self._taken.set()
        return heard

    async def close(self) -> None:
        await self.end(Closed("the watch was closed"))

    async def end(self, error: KvorumError) -> None:
        """Let whoever waits, and whoever asks later, have the error."""
        self._fail(error)
        self._heard.clear()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _wait_begun(self) -> int:
        while self._begun is None:
            await self._wait_change()
        return self._begun

    def _not_begun(self) -> NoNodeReachable:
        asked = tuple(self._watches.addresses())
        because = "" if self._last_failure is None else f" ({self._last_failure})"
        error = NoNodeReachable(
            f"no node has begun the watch within {self._timeout_seconds:g} s: asked"
            f" {', '.join(asked)}{because}",
            nodes=asked,
        )
        error.__cause__ = self._last_failure
        return error

    async def _wait_change(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._changed.clear()
        await self._changed.wait()

    def _fail(self, error: KvorumError) -> None:
        self._failure = self._failure or error
        self._watches.forget(self)
        self._changed.set()

    async def _run(self) -> None:
        try:
            if self._position is None:
                self._position = await self._watches.newest_revision(self._timeout_seconds)
                self._is_certain = True
            while True:
                address = self._watches.choose(self._tried)
                self._last_failure = await self._follow(address, self._position)
                logger.debug("a watch leaves %s (%s)", address, self._last_failure)
                self._tried.add(address)
                await self._pause()
        except KvorumError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, no caller may wait for ever
            failure = KvorumError(f"the watch failed: {error}")
            failure.__cause__ = error
            self._fail(failure)

    async def _pause(self) -> None:
        """The first attempts follow each other quickly: another node is probably well."""
        doublings = min(self._attempts, 10)
        pause = min(MIN_PAUSE_SECONDS * 2**doublings, MAX_PAUSE_SECONDS)
        self._attempts += 1
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads clients

    async def _follow(self, address: str, position: int) -> KvorumError:
        """Hand on what the node tells, for as long as it does; returns why it does no more.

        Raises the error that is for the caller.
        """
        request = BeginWatch()
        request.CopyFrom(self._request)
        request.after_revision = position
        stream = self._watches.channels.to(address).stream_stream(
            _METHOD,
            request_serializer=WatchRequest.SerializeToString,
            response_deserializer=WatchResponse.FromString,
        )()
        assembly, patience = Assembly(), BEGIN_SECONDS
        try:
            async with asyncio.timeout(BEGIN_SECONDS):
                await stream.write(WatchRequest(begin=request))
            while True:
                async with asyncio.timeout(patience):
                    response = await stream.read()
                if not isinstance(response, WatchResponse):
                    return Unavailable(f"{address} ended the stream")
                self._hear(response, assembly)
                patience = self._patience_seconds
                if self._heard:
                    self._taken.clear()
                    await self._taken.wait()
        except TimeoutError:
            return Unavailable(f"{address} was silent for {patience:g} s")
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            if error.code() in _NOT_WORTH_A_RETRY:
                raise failure from error
            return failure
        except asyncio.InvalidStateError:
            return Unavailable(f"{address} ended the stream before the watch began")
        except KvorumError as error:
            await self._judge(error)
            return error
        finally:
            stream.cancel()
            del stream  # an error that is kept has this frame in its traceback (channels.py)

    def _hear(self, response: WatchResponse, assembly: Assembly) -> None:
        for update in response.updates:
            heard = assembly.hear(update)
            if heard is None:
                continue
            if isinstance(heard, int):
                self._tried.clear()
                self._attempts = 0
                if self._begun is None:
                    self._begun = heard
            else:
                self._position = heard.revision
                self._heard.append(heard)
            self._is_certain = True
            self._changed.set()

    async def _judge(self, error: KvorumError) -> None:
        """Raise the error that a watch has ended with, unless another node may do better."""
        match error:
            case FutureRevision() if not self._is_certain:
                newest = await self._watches.newest_revision(self._timeout_seconds)
                if self._request.after_revision > newest:
                    raise error
                self._is_certain = True
            case FutureRevision():
                pass  # the node is behind
            case KvorumError(retryable=False):
                raise error
