"""The hub: hears what the machine has applied, and notes it at the watches that want it.

Rules: `observe` is a part of applying entries, so it only notes numbers. Nothing here waits,
but for the walk through history, which lets the event loop go on after each slice
(catching_up.py). Whatever is read is read between two calls of the machine, on its thread.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from kvorum import limits
from kvorum.errors import (
    FutureRevision,
    KvorumError,
    NoLeader,
    Overloaded,
    ShuttingDown,
    StorageError,
)
from kvorum.status import to_status
from kvorum_node.figures import Figures
from kvorum_node.machine import Machine, Transition
from kvorum_node.watches.cache import Cache
from kvorum_node.watches.catching_up import CatchingUp
from kvorum_node.watches.selection import Index
from kvorum_node.watches.stream import WatchStream
from kvorum_node.watches.telling import compacted, tell
from kvorum_node.watches.watch import Budget, State, Watch
from kvorumpb.v1.watch_pb2 import BeginWatch, Progress, WatchBegun, WatchResponse, WatchUpdate

PATIENCE_SECONDS: Final = 1.0
"""How long a watch waits for a revision that this node has not reached: the leader may be ahead."""

_SPEAKING_SECONDS: Final = 0.1
_MIN_PAUSE_SECONDS: Final = 0.0015
_MAX_PAUSE_SECONDS: Final = 0.048
"""Twice the shortest, doubled some times: so all pauses can end at the same beats."""
_TIMER_SECONDS: Final = 0.001
"""How much too early a timer may fire."""


class WatchHub:
    """All watches of one group on one node."""

    def __init__(
        self,
        machine: Machine,
        *,
        vouches: Callable[[], bool],
        fail: Callable[[Exception], None],
        max_watches: int = limits.MAX_WATCHES,
        patience_seconds: float = PATIENCE_SECONDS,
        figures: Figures | None = None,
    ) -> None:
        """Observes the machine from now on.

        Args:
            vouches: whether this node knows itself in touch with a living leader, so that
                it may say that nothing has changed.
            fail: told of an error after which the node must stop.
        """
        self._machine = machine
        self.vouches: Final = vouches
        self._fail = fail
        self._max_watches = max_watches
        self._patience_seconds = patience_seconds
        self._figures = figures or Figures()
        self._revision = machine.revision
        """The last one that is noted at the watches that are live."""
        self._live: Index[Watch] = Index()
        self._watches: dict[Watch, None] = {}
        self._early: dict[Watch, asyncio.TimerHandle] = {}
        self._streams: dict[WatchStream, None] = {}
        self._speaking: OrderedDict[WatchStream, float] = OrderedDict()
        """Those that have said something lately, and when; the latest is the last."""
        self._budget = Budget()
        self._cache = Cache()
        self._catching_up = CatchingUp(machine, settle=self._caught_up, fail=fail)
        self._closed: KvorumError | None = None
        machine.observer = self.observe

    # What the machine says.

    def observe(self, transitions: Sequence[Transition]) -> None:
        """The machine has come to the last of these; or skipped revisions, if there are none."""
        before, self._revision = self._revision, self._machine.revision
        if not self._watches:
            return
        if not transitions:
            self._skip(before)
        full: dict[Watch, int] = {}
        for transition in transitions:
            if self._note(transition, full):
                self._cache.add(transition)
        self._figures.watches_behind += len(full)
        for watch, scanned in full.items():
            self._live.discard(watch.selection, watch)
            watch.state, watch.scanned = State.FULL, scanned
        if self._early:
            self._admit_early()

    def _note(self, transition: Transition, full: dict[Watch, int]) -> bool:
        """Note the revision at the live watches that want it; true if there are any."""
        revision, noted = transition.revision, False
        for event in transition.events:
            kind = event.kind
            for group in self._live.groups(event.key):
                for watch in group:
                    if not watch.kinds[kind]:
                        continue
                    if watch.note(revision):
                        noted = True
                    else:
                        full.setdefault(watch, revision - 1)
        return noted

    def _skip(self, before: int) -> None:
        """A snapshot has brought revisions that nobody was told of: history has them."""
        for watch in tuple(self._watches):
            if watch.state is State.LIVE:
                self._live.discard(watch.selection, watch)
                watch.scanned = before
                self._catching_up.add(watch)

    # What the streams ask.

    def open_stream(self) -> WatchStream:
        """A place for the watches of one client. Raises ShuttingDown."""
        if self._closed is not None:
            raise self._closed
        stream = WatchStream(self)
        self._streams[stream] = None
        return stream

    def forget_stream(self, stream: WatchStream) -> None:
        self._streams.pop(stream, None)
        self._speaking.pop(stream, None)

    def begin(self, begin: BeginWatch, stream: WatchStream) -> Watch:
        """Begin a watch, whose request has been validated.

        Raises Compacted, NoLeader, Overloaded.
        """
        if not self.vouches():
            raise NoLeader("this node hears no leader, and may be behind: watch at another one")
        if len(self._watches) >= self._max_watches:
            raise Overloaded(
                f"this node has {len(self._watches):,} watches, as many as it may: another one"
                " may have room",
                limit="MAX_WATCHES",
                maximum=self._max_watches,
            )
        newest = self._revision
        after = begin.after_revision if begin.HasField("after_revision") else newest
        if after < self._machine.oldest_revision:
            raise compacted(after, self._machine.oldest_revision)
        watch = Watch(begin, stream, scanned=after, budget=self._budget)
        self._watches[watch] = None
        if after > newest:
            watch.state = State.EARLY
            self._early[watch] = asyncio.get_running_loop().call_later(
                self._patience_seconds, self._refuse_early, watch
            )
        else:
            self._admit(watch)
        return watch

    def remove(self, watch: Watch) -> None:
        """The watch is over."""
        self._watches.pop(watch, None)
        watch.forget()
        self._live.discard(watch.selection, watch)
        self._catching_up.discard(watch)
        timer = self._early.pop(watch, None)
        if timer is not None:
            timer.cancel()
        if not self._watches:
            self._cache.clear()

    def tell(self, watch: Watch, response: WatchResponse) -> int:
        """Add the next part of what the watch is to be told. Requires that something is noted.

        Returns about how many bytes that was.

        Raises:
            Compacted: it is not known any more.
            StorageError: the disk has failed, and the node ends.
        """
        pending = len(watch.pending)
        try:
            size = tell(watch, self._machine, self._cache, response)
        except StorageError as error:
            self._fail(error)
            raise
        self._figures.changes_told += pending - len(watch.pending)
        if watch.state is State.FULL and watch.has_room and watch.ended is None:
            self._catching_up.add(watch)
        return size

    def progress(self, watch: Watch) -> Progress | None:
        """How far the watch has come; None if there is more to be told, or it has not begun."""
        if watch.pending or watch.state is State.EARLY:
            return None
        revision = self._revision if watch.state is State.LIVE else watch.scanned
        return Progress(revision=revision, log_time_ms=self._machine.log_time_ms)

    def close(self, why: str) -> None:
        """End all watches with ShuttingDown, and begin none any more."""
        if self._closed is not None:
            return
        self._closed = ShuttingDown(why)
        self._catching_up.close()
        for stream in tuple(self._streams):
            stream.close(self._closed)

    def silent_until(self, stream: WatchStream) -> float:
        """When the stream, which is about to speak, may speak again, in the time of the loop.

        A message costs as much as ten changes in it. So the more streams speak, the longer
        each of them collects: together they send about as many messages, whatever happens.
        Pauses end at common beats, as messages that leave together cost all sides half as much.
        """
        now, speaking = asyncio.get_running_loop().time(), self._speaking
        speaking[stream] = now
        speaking.move_to_end(stream)
        while speaking[next(iter(speaking))] < now - _SPEAKING_SECONDS:
            speaking.popitem(last=False)
        pause = _MIN_PAUSE_SECONDS
        while pause < min(len(speaking) * _MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS):
            pause *= 2
        return ((now + _TIMER_SECONDS) // pause + 1) * pause

    @property
    def count(self) -> int:
        """How many watches there are."""
        return len(self._watches)

    @property
    def stream_count(self) -> int:
        """How many streams there are: one or more a client."""
        return len(self._streams)

    @property
    def behind_count(self) -> int:
        """How many watches are led through history now."""
        return len(self._catching_up)

    # Where a watch stands.

    def _admit(self, watch: Watch) -> None:
        """The node has the revision at which it begins."""
        begun = WatchBegun(revision=watch.scanned)
        watch.owner.notify(WatchUpdate(watch_id=watch.id, begun=begun))
        if watch.scanned == self._revision:
            self._settle(watch)
        else:
            self._catching_up.add(watch)

    def _caught_up(self, watch: Watch) -> None:
        self._figures.watches_caught_up += 1
        self._settle(watch)

    def _settle(self, watch: Watch) -> None:
        """All through the newest revision is noted at the watch: from here on it is live."""
        watch.state = State.LIVE
        self._live.add(watch.selection, watch)

    def _admit_early(self) -> None:
        for watch in [one for one in self._early if one.scanned <= self._revision]:
            self._early.pop(watch).cancel()
            oldest = self._machine.oldest_revision
            if watch.scanned < oldest:  # a snapshot has brought so much more
                watch.owner.end(watch, to_status(compacted(watch.scanned, oldest)))
            else:
                self._admit(watch)

    def _refuse_early(self, watch: Watch) -> None:
        del self._early[watch]
        error = FutureRevision(
            f"revision {watch.scanned} is not there yet; the newest here is {self._revision}",
            revision=watch.scanned,
            newest_revision=self._revision,
        )
        watch.owner.end(watch, to_status(error))
