"""Simulated watchers: each follows keys from node to node, and what it hears is judged.

Watcher    the client: it begins at some node, goes on at another one when it hears
           nothing or feels like it, and says after which revision
_Stream    one life of its watch: a WatchStream of the node's hub, whose messages cross
           the network one at a time, as fast as the watcher takes them
Heard      what must hold of all that is heard: every change of the watched keys once, in
           order, whole revisions, as the model has them; or COMPACTED, if it is
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Final

from google.rpc.status_pb2 import Status

from kvorum.errors import Compacted, FutureRevision, KvorumError
from kvorum.status import from_status, to_status
from kvorum_node.raft.types import NodeId, node_name
from kvorumpb.v1.command_pb2 import KeyRange, Record
from kvorumpb.v1.watch_pb2 import (
    BeginWatch,
    Change,
    Changes,
    WatchRequest,
    WatchResponse,
    WatchUpdate,
)
from tests.machine.model import EXPIRE, PUT, Cell, Happened, Model, within
from tests.sim.host import Host, Process
from tests.sim.network import Network
from tests.sim.oracle import Oracle
from tests.sim.scheduler import Scheduler

PATIENCE_TICKS: Final = 40
"""How long a watcher hears nothing before it goes elsewhere; a node speaks every 100 ms."""
WATCH: Final = 7
"""The id of every watch: each is alone on its stream."""


class Heard:
    """What one watcher has been told, over all nodes."""

    def __init__(self, who: str, begin: BeginWatch, oracle: Oracle) -> None:
        self.through: int | None = None
        """All changes through this revision are told; None before it has begun."""
        self._who = who
        self._begin = begin
        self._oracle = oracle
        self._parts: list[Change] = []
        self._revision = 0

    def begins(self, after: int | None, revision: int) -> None:
        if after is not None and revision != after:
            self._report(f"begins after {revision}, and was to begin after {after}")
        self.through = revision
        self.breaks()

    def breaks(self) -> None:
        """The stream is over: what was told of a part of a revision is told again."""
        self._parts, self._revision = [], 0

    def changes(self, told: Changes) -> None:
        if self._parts and told.revision != self._revision:
            self._report(f"revision {self._revision} ends in the middle, with {told.revision}")
            return
        self._revision = told.revision
        for change in told.changes:
            if not change.continued:
                self._parts.append(change)
            elif self._parts:
                _append(self._parts[-1], change)
            else:
                self._report(f"is told of {told.revision} by the end of a change alone")
                return
        if not told.partial:
            changes, self._parts = self._parts, []
            self._is_whole(told, changes)

    def progress(self, revision: int) -> None:
        if self.through is None or revision < self.through or self._parts:
            self._report(f"is told of progress to {revision}, and was at {self.through}")
            return
        self._is_complete_before(revision + 1)
        self.through = revision

    def ends_compacted(self, oldest: int) -> None:
        if self.through is not None and not self.through < oldest <= self._model.oldest_revision:
            self._report(
                f"was at {self.through} and is told that {oldest} is the oldest revision; it is"
                f" {self._model.oldest_revision}"
            )

    @property
    def _model(self) -> Model:
        return self._oracle.model

    def _is_whole(self, told: Changes, changes: list[Change]) -> None:
        revision = told.revision
        if self.through is None or not self.through < revision <= self._model.revision:
            self._report(f"is told of {revision} after {self.through}")
            return
        self._is_complete_before(revision)
        self.through = revision
        expected = self._wanted(revision)
        if len(expected) != len(changes) or not all(map(self._fits, expected, _sorted(changes))):
            self._report(f"is told of {revision} as {_sorted(changes)}, not {expected}")

    def _is_complete_before(self, revision: int) -> None:
        assert self.through is not None
        for between in range(self.through + 1, min(revision, self._model.revision + 1)):
            if missed := self._wanted(between):
                self._report(f"is told of {revision} and has missed {missed} at {between}")
                return

    def _wanted(self, revision: int) -> list[Happened]:
        begin = self._begin
        is_watched = _selected(begin)
        left_out = {
            kind
            for kind, out in zip(
                (PUT, "delete", EXPIRE),
                (begin.no_puts, begin.no_deletes, begin.no_expiries),
                strict=True,
            )
            if out
        }
        events = [
            event
            for event in self._model.events[revision]
            if event.kind not in left_out and is_watched(event.key)
        ]
        return sorted(events, key=lambda event: (event.key, event.kind != EXPIRE))

    def _fits(self, event: Happened, change: Change) -> bool:
        kind = Change.Kind.Value(event.kind.upper())
        previous = event.previous if self._begin.previous else None
        return (
            (change.kind, change.key) == (kind, event.key)
            and self._is(event.key, event.cell, change.record, there=change.HasField("record"))
            and self._is(event.key, previous, change.previous, there=change.HasField("previous"))
        )

    def _is(self, key: bytes, cell: Cell | None, told: Record, *, there: bool) -> bool:
        if cell is None or not there:
            return cell is None and not there
        expected = cell.record(key, keys_only=self._begin.keys_only)
        expected.expire_time_ms = told.expire_time_ms
        return told == expected and self._oracle.was_to_expire(
            key, cell.revision, told.expire_time_ms
        )

    def _report(self, what: str) -> None:
        self._oracle.report(f"watch: {self._who} {what}")


class Watcher:
    def __init__(
        self,
        number: int,
        *,
        scheduler: Scheduler,
        network: Network,
        hosts: dict[NodeId, Host],
        oracle: Oracle,
        random: Random,
        tick_us: int,
        note: Callable[..., None],
    ) -> None:
        self.number = number
        self.counts: Counter[str] = Counter()
        self.begin = draw(random)
        self.heard = Heard(f"w{number}", self.begin, oracle)
        self.scheduler = scheduler
        self.network = network
        self.random = random
        self.note = note
        self.tick_us = tick_us
        self._hosts = hosts
        self._stream: _Stream | None = None
        self._after: int | None = 0 if random.random() < 0.5 else None
        self._heard_us = 0
        self._restlessness = random.choice((0.0, 0.02, 0.1))
        self._slowness_us = random.choice((0, 0, tick_us, 10 * tick_us))
        scheduler.after(random.randint(0, 30 * tick_us), self._connect)

    @property
    def link(self) -> int:
        """Its end on the network: below those of the clients."""
        return -100 - self.number

    def hurry(self) -> None:
        """Be slow and restless no more."""
        self._restlessness, self._slowness_us = 0.0, 0

    def hears(self, stream: "_Stream", response: WatchResponse) -> bool:
        """Returns whether it still listens to that."""
        if stream is not self._stream:
            return False
        self._heard_us = self.scheduler.now_us
        for update in response.updates:
            if not self._take(stream, update):
                return False
        if self.random.random() < self._restlessness:
            self.counts["moved"] += 1
            self._leave()
            return False
        return True

    def rest_us(self) -> int:
        return self.random.randint(0, self._slowness_us) if self._slowness_us else 0

    def _connect(self) -> None:
        if not self._hosts:
            self.scheduler.after(self.tick_us, self._connect)
            return
        host = self._hosts[self.random.choice(sorted(self._hosts))]
        request = BeginWatch()
        request.CopyFrom(self.begin)
        after = self._after if self.heard.through is None else self.heard.through
        if after is not None:
            request.after_revision = after
        self._after = after
        self.note("watcher", self.number, "begins at", node_name(host.node), "after", after)
        self.counts["begun"] += 1
        self._stream = _Stream(self, host, request)
        self._stream.open()
        self._heard_us = self.scheduler.now_us
        self.scheduler.after(PATIENCE_TICKS * self.tick_us, self._look, self._stream)

    def _look(self, stream: "_Stream") -> None:
        if stream is not self._stream:
            return
        until_us = self._heard_us + PATIENCE_TICKS * self.tick_us
        if self.scheduler.now_us < until_us:
            self.scheduler.after(until_us - self.scheduler.now_us, self._look, stream)
            return
        self.counts["heard nothing"] += 1
        self._leave()

    def _leave(self) -> None:
        stream, self._stream = self._stream, None
        self.heard.breaks()
        if stream is not None:
            stream.hang_up()
        self.scheduler.after(self.random.randint(0, 5 * self.tick_us), self._connect)

    def _take(self, stream: "_Stream", update: WatchUpdate) -> bool:
        self.note("watcher", self.number, "hears", update.WhichOneof("update"))
        match update.WhichOneof("update"):
            case "begun":
                self.heard.begins(self._after, update.begun.revision)
            case "changes":
                self.counts["changes"] += 1
                self.counts["parts"] += update.changes.partial
                self.heard.changes(update.changes)
            case "progress":
                self.counts["progress"] += 1
                self.heard.progress(update.progress.revision)
            case _:
                self._ends(update.ended)
                return False
        return True

    def _ends(self, status: Status) -> None:
        error = from_status(status)
        self.counts[type(error).__name__] += 1
        if isinstance(error, Compacted):
            self.heard.ends_compacted(error.oldest_revision)
            self.heard.through = None
            self._after = error.oldest_revision if self.random.random() < 0.7 else None
        elif isinstance(error, FutureRevision) and self.heard.through is None:
            self._after = None
        self._leave()


class _Stream:
    def __init__(self, watcher: Watcher, host: Host, request: BeginWatch) -> None:
        self._watcher = watcher
        self._host = host
        self._request = request
        self._process: Process | None = None
        self._serving: asyncio.Task[None] | None = None
        self._taken: asyncio.Future[None] | None = None

    def open(self) -> None:
        there = (self._watcher.link, self._host.node)
        self._watcher.network.send(there, self._request, self._accept, once=True)

    def hang_up(self) -> None:
        """The node notices that after a while."""
        delay_us = self._watcher.random.randint(0, self._watcher.network.late_us)
        self._watcher.scheduler.after(delay_us, self._end)

    def _accept(self, request: BeginWatch) -> None:
        process = self._process = self._host.process
        if process is not None:
            process.call(self._begin, process, request)

    def _begin(self, process: Process, request: BeginWatch) -> None:
        self._serving = process.loop.create_task(self._serve(process, request), name="watch")

    async def _serve(self, process: Process, request: BeginWatch) -> None:
        """As WatchService: a message is filled when the last one was taken."""
        try:
            stream = process.watches.open_stream()
        except KvorumError as error:
            ended = WatchUpdate(watch_id=WATCH, ended=to_status(error))
            await self._write(process, WatchResponse(updates=[ended]))
            return
        try:
            await stream.take(WatchRequest(begin=request))
            while (response := await stream.next()) is not None:
                await self._write(process, response)
        finally:
            stream.close()

    async def _write(self, process: Process, response: WatchResponse) -> None:
        self._taken = asyncio.get_running_loop().create_future()
        back = (self._host.node, self._watcher.link)
        if not process.dead:
            self._watcher.network.send(back, response, self._arrive, once=True)
        await self._taken

    def _arrive(self, response: WatchResponse) -> None:
        if self._watcher.hears(self, response):
            self._watcher.scheduler.after(self._watcher.rest_us(), self._wake)

    def _wake(self) -> None:
        if self._process is not None:
            self._process.call(self._was_taken)

    def _was_taken(self) -> None:
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)

    def _end(self) -> None:
        process, serving = self._process, self._serving
        if process is not None and serving is not None and not serving.done():
            process.call(serving.cancel)


def draw(random: Random) -> BeginWatch:
    """What a watcher is to be told of."""
    begin = BeginWatch(
        watch_id=WATCH,
        previous=random.random() < 0.6,
        keys_only=random.random() < 0.2,
        progress_interval_ms=100,
    )
    match random.randrange(5):
        case 0:
            begin.key = random.choice((b"a", b"x"))
        case 1:
            begin.prefix = random.choice((b"x", b""))
        case 2:
            begin.range.CopyFrom(KeyRange(start=b"b", end=random.choice((b"", b"y"))))
        case _:
            pass
    if random.random() < 0.3:
        left_out = random.choice(("no_puts", "no_deletes", "no_expiries"))
        setattr(begin, left_out, True)
    return begin


def _selected(begin: BeginWatch) -> Callable[[bytes], bool]:
    match begin.WhichOneof("selection"):
        case "key":
            return begin.key.__eq__
        case "prefix":
            return lambda key: key.startswith(begin.prefix)
        case "range":
            return within(begin.range)
        case _:
            return lambda key: True


def _sorted(changes: list[Change]) -> list[Change]:
    """By key, and an expiry before what was put in its place: no other order is promised."""
    return sorted(changes, key=lambda change: (change.key, change.kind != Change.EXPIRE))


def _append(change: Change, part: Change) -> None:
    if part.HasField("record"):
        change.record.value += part.record.value
    if part.HasField("previous"):
        change.previous.value += part.previous.value
