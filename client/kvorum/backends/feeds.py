"""What one watch is told, put together from the updates of a stream.

A revision that comes in parts is handed on whole: so whoever goes on elsewhere goes on
between two revisions.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from kvorum.errors import Closed, KvorumError
from kvorum.status import from_status
from kvorumpb.v1.watch_pb2 import (
    BeginWatch,
    Change,
    Changes,
    Progress,
    WatchRequest,
    WatchResponse,
    WatchUpdate,
)


class Assembly:
    """The updates of one watch on one stream."""

    def __init__(self) -> None:
        self._partial: Changes | None = None

    def hear(self, update: WatchUpdate) -> Changes | Progress | int | None:
        """What is known with this update: all of a revision, how far the watch has come, or
        the revision after which it has begun; None if it is only a part.

        Raises the error with which the watch has ended.
        """
        match update.WhichOneof("update"):
            case "begun":
                return update.begun.revision
            case "changes":
                return self._put_together(update.changes)
            case "progress":
                return update.progress
            case "ended":
                raise from_status(update.ended)
            case _:
                return None  # of a newer node; it does not matter to who does not know it

    def _put_together(self, changes: Changes) -> Changes | None:
        whole = self._partial
        if whole is None:
            whole = changes
        else:
            for change in changes.changes:
                if change.continued:
                    _append(whole.changes[-1], change)
                else:
                    whole.changes.append(change)
        self._partial = whole if changes.partial else None
        return None if changes.partial else whole


def _append(change: Change, rest: Change) -> None:
    if rest.HasField("record"):
        change.record.value += rest.record.value
    if rest.HasField("previous"):
        change.previous.value += rest.previous.value


class WatchStream(Protocol):
    """A stream of watches of the node in this process."""

    async def take(self, request: WatchRequest) -> None: ...

    async def next(self) -> WatchResponse | None: ...

    def close(self) -> None: ...


class EmbeddedFeed:
    """A watch of a store in this process."""

    def __init__(
        self,
        stream: WatchStream,
        begin: BeginWatch,
        forget: "Callable[[EmbeddedFeed], None]",
    ) -> None:
        """`forget` is told that it has ended."""
        self._stream = stream
        self._forget = forget
        self._request: BeginWatch | None = begin
        self._assembly = Assembly()
        self._begun: int | None = None
        self._heard: deque[Changes | Progress] = deque()
        self._failure: KvorumError | None = None

    async def begin(self) -> int:
        if self._request is not None:
            request, self._request = self._request, None
            await self._stream.take(WatchRequest(begin=request))
        while self._begun is None:
            await self._read()
        return self._begun

    async def next(self) -> Changes | Progress:
        while not self._heard:
            await self._read()
        return self._heard.popleft()

    async def close(self) -> None:
        self.end(Closed("the watch was closed"))

    def end(self, error: KvorumError) -> None:
        self._failure = self._failure or error
        self._stream.close()
        self._forget(self)

    async def _read(self) -> None:
        if self._failure is not None:
            raise self._failure
        response = await self._stream.next()
        if self._failure is not None:
            raise self._failure
        if response is None:
            raise Closed("the store was closed")
        for update in response.updates:
            try:
                heard = self._assembly.hear(update)
            except KvorumError as error:
                self.end(error)
                return  # what came before it is told first
            if isinstance(heard, int):
                self._begun = heard
            elif heard is not None:
                self._heard.append(heard)
