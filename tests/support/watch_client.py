"""Watching a hub in the test's own process: what a stream says, put together."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from google.rpc.error_details_pb2 import ErrorInfo

from kvorum_node.watches import WatchHub, WatchStream
from kvorum_node.watches.watch import State, Watch
from kvorumpb.v1.watch_pb2 import (
    BeginWatch,
    Change,
    Changes,
    EndWatch,
    WatchRequest,
    WatchResponse,
    WatchUpdate,
)
from tests.support.eventually import DEADLINE_SECONDS, eventually


@dataclass
class Heard:
    """What one watch was told."""

    begun: int | None = None
    revisions: list[Changes] = field(default_factory=list)
    """Whole ones."""
    partial: list[Changes] = field(default_factory=list)
    """Parts of the one under way."""
    progress: list[int] = field(default_factory=list)
    ended: str | None = None
    """The reason; OK if at the client's wish."""

    def hear(self, update: WatchUpdate) -> None:
        assert self.ended is None, f"an update after the end: {update}"
        match update.WhichOneof("update"):
            case "begun":
                assert self.begun is None
                self.begun = update.begun.revision
            case "changes":
                self._hear_changes(update.changes)
            case "progress":
                assert not self.partial
                assert update.progress.revision >= self.told
                self.progress.append(update.progress.revision)
            case "ended":
                info = ErrorInfo()
                known = any(detail.Unpack(info) for detail in update.ended.details)
                self.ended = info.reason if known else "OK"
            case None:
                raise AssertionError("an empty update")

    @property
    def told(self) -> int:
        """The last revision that it knows to be complete."""
        last = self.revisions[-1].revision if self.revisions else 0
        return max([last, *self.progress, self.begun or 0])

    def _hear_changes(self, changes: Changes) -> None:
        assert self.begun is not None, "changes before it has begun"
        assert changes.revision > self.told, "a revision twice, or out of order"
        if self.partial:
            assert changes.revision == self.partial[-1].revision, "a revision was split"
        self.partial.append(changes)
        if changes.partial:
            return
        whole = Changes(revision=changes.revision, log_time_ms=changes.log_time_ms)
        for part in self.partial:
            for change in part.changes:
                if change.continued:
                    assert change.key == whole.changes[-1].key
                    if change.HasField("record"):
                        whole.changes[-1].record.value += change.record.value
                    if change.HasField("previous"):
                        whole.changes[-1].previous.value += change.previous.value
                else:
                    whole.changes.append(change)
        assert whole.changes, "a revision of which nothing is wanted"
        self.revisions.append(whole)
        self.partial = []


class Client:
    """One stream to a hub, read when the test says so."""

    def __init__(self, hub: WatchHub) -> None:
        self.stream: WatchStream = hub.open_stream()
        self.heard: dict[int, Heard] = defaultdict(Heard)
        self.responses: list[WatchResponse] = []
        self.keep_responses = False

    async def begin(self, watch_id: int = 1, /, **fields: Any) -> None:
        begin = BeginWatch(watch_id=watch_id, **fields)
        await self.stream.take(WatchRequest(begin=begin))

    async def end(self, watch_id: int = 1) -> None:
        await self.stream.take(WatchRequest(end=EndWatch(watch_id=watch_id)))

    async def read(self) -> WatchResponse | None:
        """The next message; None if the stream is over."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            response = await self.stream.next()
        if response is not None:
            if self.keep_responses:
                self.responses.append(response)
            for update in response.updates:
                self.heard[update.watch_id].hear(update)
        return response

    async def read_until(self, revision: int, watch_id: int = 1) -> Heard:
        """Read until the watch has been told of the revision, or has ended."""
        heard = self.heard[watch_id]
        while heard.told < revision and heard.ended is None:
            assert await self.read() is not None, "the stream has ended"
        return heard

    async def read_all(self) -> None:
        """Read until all watches were told of all that there is, or have ended."""
        for watch in tuple(self.stream._watches.values()):
            await self._read_all_of(watch)

    async def _read_all_of(self, watch: Watch) -> None:
        while self.heard[watch.id].ended is None:
            await eventually(lambda: watch.pending or watch.state is State.LIVE)
            if not watch.pending:
                return
            await self.read()


def shown(changes: Changes) -> list[tuple[str, bytes, bytes | None, bytes | None]]:
    """Kind, key, value and value before."""
    return [
        (
            Change.Kind.Name(one.kind),
            one.key,
            one.record.value if one.HasField("record") else None,
            one.previous.value if one.HasField("previous") else None,
        )
        for one in changes.changes
    ]
