"""The watches of one client on one stream: what they have to be told, a message at a time.

Rules: a message is filled when the client can take one, from all watches in turn, so that a
busy one does not hold up the others. What a client asks for is read only as far as it
takes the answers.
"""

import asyncio
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from google.rpc.status_pb2 import Status

from kvorum import limits
from kvorum.errors import InvalidArgument, KvorumError
from kvorum.status import to_status
from kvorum_node import validation
from kvorum_node.watches.watch import Watch
from kvorumpb.v1.watch_pb2 import BeginWatch, WatchRequest, WatchResponse, WatchUpdate

if TYPE_CHECKING:
    from kvorum_node.watches.hub import WatchHub

_MAX_NOTICES: Final = 1_000
"""So many answers may wait for the client before its next request is read."""


class WatchStream:
    """Opened by `WatchHub.open_stream`; ended by `close`, from either side."""

    def __init__(self, hub: "WatchHub") -> None:
        self._hub = hub
        self._watches: dict[int, Watch] = {}
        self._notices: deque[WatchUpdate] = deque()
        """What is said before any changes are told."""
        self._ready: OrderedDict[Watch, None] = OrderedDict()
        """Those that have something to be told, by turns."""
        self._due: OrderedDict[Watch, None] = OrderedDict()
        """Those that are to say how far they have come."""
        self._by_interval: dict[int, dict[Watch, None]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._silent_until = 0.0
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._is_closed = False

    async def take(self, request: WatchRequest) -> None:
        """Carry out what the client asks for; waits while it does not take the answers.

        Raises InvalidArgument if what it asks for makes no sense on this stream. What is
        wrong with a single watch ends that watch.
        """
        match request.WhichOneof("request"):
            case "begin":
                self._begin(request.begin)
            case "end":
                self._end_at_wish(request.end.watch_id)
            case _:
                raise InvalidArgument("the request has nothing that this version knows")
        if len(self._notices) >= _MAX_NOTICES:
            self._drained.clear()
        await self._drained.wait()

    async def next(self) -> WatchResponse | None:
        """The next message, once there is something to say; None if the stream is over."""
        loop = asyncio.get_running_loop()
        while True:
            if (wait := self._silent_until - loop.time()) > 0 and not self._is_closed:
                await asyncio.sleep(wait)
            response = self._fill()
            if response.updates:
                if not self._ready:  # who has more to say has collected enough
                    self._silent_until = self._hub.silent_until(self)
                return response
            if self._is_closed:
                return None
            if self._ready:
                await asyncio.sleep(0)  # a long way through one revision, with nothing to tell
            else:
                self._filled.clear()
                await self._filled.wait()

    def close(self, error: KvorumError | None = None) -> None:
        """End all watches, with the error if the client is to know. May be repeated."""
        status = None if error is None else to_status(error)
        for watch in tuple(self._watches.values()):
            self._forget(watch)
            if status is not None:
                self.notify(WatchUpdate(watch_id=watch.id, ended=status))
        self._hub.forget_stream(self)
        self._is_closed = True
        self._drained.set()
        self._filled.set()

    # What the hub and the watches say.

    def rouse(self, watch: Watch) -> None:
        """The watch has something to be told."""
        self._ready[watch] = None
        self._filled.set()

    def notify(self, update: WatchUpdate) -> None:
        """Say this before any changes."""
        self._notices.append(update)
        self._filled.set()

    def end(self, watch: Watch, status: Status) -> None:
        """The watch is over at once, whatever it has not been told."""
        self._forget(watch)
        self.notify(WatchUpdate(watch_id=watch.id, ended=status))

    # What the client asks.

    def _begin(self, begin: BeginWatch) -> None:
        if begin.watch_id in self._watches:
            # To end it would end the one that has the id.
            raise InvalidArgument(f"the watch {begin.watch_id} is on this stream already")
        if self._is_closed:
            return
        try:
            validation.validate_begin_watch(begin)
            watch = self._hub.begin(begin, self)
        except KvorumError as error:
            self.notify(WatchUpdate(watch_id=begin.watch_id, ended=to_status(error)))
            return
        self._watches[watch.id] = watch
        self._by_interval.setdefault(watch.interval_ms, {})[watch] = None
        if watch.interval_ms not in self._timers:
            self._keep_time(watch.interval_ms)

    def _end_at_wish(self, watch_id: int) -> None:
        watch = self._watches.get(watch_id)
        if watch is not None:  # it may have ended by itself meanwhile
            self.end(watch, Status())

    def _forget(self, watch: Watch) -> None:
        self._hub.remove(watch)
        self._watches.pop(watch.id, None)
        self._ready.pop(watch, None)
        self._due.pop(watch, None)
        same = self._by_interval.get(watch.interval_ms, {})
        same.pop(watch, None)
        if not same:
            self._by_interval.pop(watch.interval_ms, None)
            timer = self._timers.pop(watch.interval_ms, None)
            if timer is not None:
                timer.cancel()

    # Progress.

    def _keep_time(self, interval_ms: int) -> None:
        self._timers[interval_ms] = asyncio.get_running_loop().call_later(
            interval_ms / 1000, self._on_interval, interval_ms
        )

    def _on_interval(self, interval_ms: int) -> None:
        self._keep_time(interval_ms)
        if self._hub.vouches():
            self._due.update(self._by_interval[interval_ms])
            self._filled.set()

    # Messages.

    def _fill(self) -> WatchResponse:
        """What there is to say now, as far as it fits."""
        response = WatchResponse()
        while self._notices and len(response.updates) < limits.MAX_WATCH_UPDATES:
            response.updates.append(self._notices.popleft())
        if len(self._notices) < _MAX_NOTICES:
            self._drained.set()
        size = 0
        for _ in range(limits.MAX_WATCH_UPDATES):
            if not self._ready or size >= limits.MAX_WATCH_MESSAGE_BYTES:
                break
            watch, _ = self._ready.popitem(last=False)
            size += self._tell(watch, response)
        if self._due and not self._hub.vouches():
            self._due.clear()
        while self._due and len(response.updates) < 2 * limits.MAX_WATCH_UPDATES:
            watch, _ = self._due.popitem(last=False)
            progress = self._hub.progress(watch)
            if progress is not None:
                response.updates.append(WatchUpdate(watch_id=watch.id, progress=progress))
        return response

    def _tell(self, watch: Watch, response: WatchResponse) -> int:
        """Add what comes next of the watch; returns about how many bytes that was."""
        size, before = 0, len(response.updates)
        if watch.pending:
            try:
                size = self._hub.tell(watch, response)
            except KvorumError as error:
                del response.updates[before:]
                self._forget(watch)
                response.updates.append(WatchUpdate(watch_id=watch.id, ended=to_status(error)))
                return 0
            if watch.pending:
                self._ready[watch] = None
        if not watch.pending and watch.ended is not None:
            self._forget(watch)
            response.updates.append(WatchUpdate(watch_id=watch.id, ended=watch.ended))
        return size
