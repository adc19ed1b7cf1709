"""Watches that are behind, led through the history.

One walk serves all that are behind: it looks at each event once, and asks the index who
wants it. A slice begins where one of them stands, and takes along all that stand further
ahead. Slices begin in turn with the one that is furthest behind and with the one that is
least so: who has missed a moment does not wait for who begins at the beginning.
"""

import asyncio
from collections.abc import Callable

from kvorum import limits
from kvorum.status import to_status
from kvorum_node.machine import Machine
from kvorum_node.watches.selection import Index
from kvorum_node.watches.telling import compacted
from kvorum_node.watches.watch import State, Watch


class CatchingUp:
    def __init__(
        self,
        machine: Machine,
        *,
        settle: Callable[[Watch], None],
        fail: Callable[[Exception], None],
    ) -> None:
        """`settle` is told of a watch that has caught up, `fail` of a disk that has failed."""
        self._machine = machine
        self._settle = settle
        self._fail = fail
        self._behind: dict[Watch, None] = {}
        self._index: Index[Watch] = Index()
        self._walking: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._behind)

    def add(self, watch: Watch) -> None:
        """Lead the watch on from what it has `scanned`."""
        watch.state = State.BEHIND
        self._behind[watch] = None
        self._index.add(watch.selection, watch)
        if self._walking is None and not self._closed:
            self._walking = asyncio.create_task(self._walk(), name="kvorum watches catch up")

    def discard(self, watch: Watch) -> None:
        if watch in self._behind:
            del self._behind[watch]
            self._index.discard(watch.selection, watch)

    def close(self) -> None:
        self._closed = True
        if self._walking is not None:
            self._walking.cancel()

    async def _walk(self) -> None:
        last_first = True
        try:
            while self._behind:
                pick = min if last_first else max
                self._step(pick(watch.scanned for watch in self._behind))
                last_first = not last_first
                await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - whatever it is, no watch may wait for ever
            self._fail(error)
        finally:
            self._walking = None

    def _step(self, start: int) -> None:
        """Lead all that stand at `start` or further ahead through one slice after it."""
        oldest = self._machine.oldest_revision
        if start < oldest:
            self._end_compacted(oldest)
            return
        full: dict[Watch, int] = {}
        through = self._scan(start, full)
        newest = self._machine.revision
        for watch in tuple(self._behind):
            if watch in full:
                self.discard(watch)
                watch.state, watch.scanned = State.FULL, full[watch]
            elif watch.scanned >= start:
                watch.scanned = max(watch.scanned, through)
                if watch.scanned == newest:
                    self.discard(watch)
                    self._settle(watch)

    def _scan(self, start: int, full: dict[Watch, int]) -> int:
        """Note the events of a slice after `start`; returns through which revision it went."""
        last = start
        for count, event in enumerate(self._machine.read_history().events(start + 1)):
            if event.revision != last:
                if count >= limits.MAX_WATCH_SCAN_EVENTS:
                    return last
                last = event.revision
            for group in self._index.groups(event.key):
                for watch in group:
                    if (
                        start <= watch.scanned < last
                        and watch.kinds[event.kind]
                        and not watch.note(last)
                    ):
                        full.setdefault(watch, last - 1)
        return self._machine.revision

    def _end_compacted(self, oldest: int) -> None:
        for watch in [one for one in self._behind if one.scanned < oldest]:
            self.discard(watch)
            watch.state = State.FULL
            watch.ended = to_status(compacted(watch.scanned, oldest))
            watch.owner.rouse(watch)
