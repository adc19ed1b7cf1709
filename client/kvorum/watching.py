"""Watching keys: changes as they happen, each once, in order, none left out.

Times are those of the store (log time), aware and in UTC, as in entry.py.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeVar, cast

from kvorum.backends import Feed
from kvorum.codecs import BYTES, Codec, decode_entry, decode_key
from kvorum.entry import Entry, instant
from kvorumpb.v1 import watch_pb2
from kvorumpb.v1.command_pb2 import Record

T = TypeVar("T")

ChangeKind = Literal["put", "delete", "expire"]

_KINDS: Final[dict[int, ChangeKind]] = {
    watch_pb2.Change.PUT: "put",
    watch_pb2.Change.DELETE: "delete",
    watch_pb2.Change.EXPIRE: "expire",
}


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What has happened to a key."""

    kind: ChangeKind
    """"expire": its time to live was over."""

    key: str

    entry: Entry[T] | None
    """What was put; None if the key is gone. Its value is None with `keys_only`. If the key was
    touched since, `expires_at` may be that of then: a touch is no change of its own."""

    previous: Entry[T] | None
    """What was there before, if that was asked for and there was anything."""

    revision: int

    at: datetime
    """When, by the store's log time."""


@dataclass(frozen=True, slots=True)
class Changes(Generic[T]):
    """What one revision has changed: all that a transaction did to the keys that are watched."""

    revision: int

    at: datetime
    """When, by the store's log time."""

    changes: tuple[Change[T], ...]

    def __iter__(self) -> Iterator[Change[T]]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)


class Watch(Generic[T]):
    """Changes of some keys. Made by `KV.watch`.

        async with kv.watch("user:") as watch:
            async for change in watch: ...

    Goes on by itself when a node fails: nothing is left out, and nothing comes twice. How
    long that takes, it waits; give `asyncio.timeout` if you cannot. Raises

    - `Compacted` if the store does not remember the next changes any more: the caller was
      too slow, or asked for too much. Read what there is, and watch from there;
    - `FutureRevision` if the store has not come to `since`;
    - `DecodeError` for a change whose value is not of the type: the next one follows;
    - `Closed` if the watch or the store was closed.

    One task at a time may wait for the next change. A watch holds a connection: close it, or
    use `async with`; closing the store closes it too.
    """

    def __init__(
        self, feed: Feed, *, codec: Codec[Any], keys_only: bool = False, since: int | None = None
    ) -> None:
        self._feed = feed
        self._codec = codec
        self._keys_only = keys_only
        self._revision = since
        self._coming: deque[watch_pb2.Change] = deque()
        """Of one revision, the changes that the caller has not had."""
        self._coming_from = watch_pb2.Changes()

    @property
    def revision(self) -> int | None:
        """How far it has come: give it to `since` to go on from there.

        The last revision of which the caller has had all changes, or of which is known that
        it has none. None if it has not begun, and was not told where.
        """
        return self._revision

    async def begin(self) -> int:
        """Begin, and return the revision after which no change is missed.

        A watch begins by itself with the first change that is waited for, or with
        `async with`. Raises `NoNodeReachable` or `DeadlineExceeded` if it cannot begin.
        """
        revision = await self._feed.begin()
        if self._revision is None:
            self._revision = revision
        return revision

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change[T]:
        if not self._coming:
            await self._await_changes()
        change = self._coming.popleft()
        if not self._coming:
            self._revision = self._coming_from.revision
        return self._decode(change)

    def revisions(self, *, progress: bool = False) -> AsyncIterator[Changes[T]]:
        """The same, with all changes of a revision together.

        With `progress`, also without any: nothing more has changed through the revision. The
        store says so each 5 seconds, as long as the node that tells is in touch with its leader.
        """
        return _Revisions(partial(self._next_changes, progress))

    async def close(self) -> None:
        """End the watch. May be repeated."""
        await self._feed.close()

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _next_changes(self, progress: bool) -> Changes[T]:
        if not self._coming:
            mark = await self._await_changes(or_progress=progress)
            if mark is not None:
                return Changes(revision=mark.revision, at=instant(mark.log_time_ms), changes=())
        coming = tuple(self._coming)
        self._coming.clear()
        self._revision = self._coming_from.revision
        return Changes(
            revision=self._coming_from.revision,
            at=instant(self._coming_from.log_time_ms),
            changes=tuple(map(self._decode, coming)),
        )

    async def _await_changes(self, *, or_progress: bool = False) -> watch_pb2.Progress | None:
        """Wait until something has changed, or until the word that nothing has; returns that."""
        await self.begin()
        while not self._coming:
            heard = await self._feed.next()
            if not isinstance(heard, watch_pb2.Progress):
                self._coming_from = heard
                self._coming.extend(heard.changes)
                continue
            self._revision = max(heard.revision, self._revision or 0)
            if or_progress:
                return heard
        return None

    def _decode(self, change: watch_pb2.Change) -> Change[T]:
        coming_from = self._coming_from
        return Change(
            kind=_KINDS[change.kind],
            key=decode_key(change.key),
            entry=self._entry(change.record) if change.HasField("record") else None,
            previous=self._entry(change.previous) if change.HasField("previous") else None,
            revision=coming_from.revision,
            at=instant(coming_from.log_time_ms),
        )

    def _entry(self, record: Record) -> Entry[T]:
        if self._keys_only:
            return replace(decode_entry(record, BYTES), value=cast("T", None))
        return decode_entry(record, self._codec)


class _Revisions(Generic[T]):
    """An iterator, and no generator: a caller that was cancelled may go on with it."""

    def __init__(self, wait: Callable[[], Coroutine[Any, Any, Changes[T]]]) -> None:
        self._wait = wait

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Changes[T]:
        return await self._wait()


class SyncWatch(Generic[T]):
    """`Watch` for threads. Made by `SyncKV.watch`; one thread at a time may wait."""

    def __init__(self, watch: Watch[T], call: Callable[[Coroutine[Any, Any, Any]], Any], /) -> None:
        self._watch = watch
        self._call = call

    @property
    def revision(self) -> int | None:
        """Like `Watch.revision`."""
        return self._watch.revision

    def begin(self) -> int:
        """Like `Watch.begin`."""
        return cast("int", self._call(self._watch.begin()))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change[T]:
        return cast("Change[T]", self._call(self._watch.__anext__()))

    def revisions(self, *, progress: bool = False) -> Iterator[Changes[T]]:
        """Like `Watch.revisions`."""
        revisions = cast("_Revisions[T]", self._watch.revisions(progress=progress))
        while True:
            yield self._call(revisions.__anext__())

    def close(self) -> None:
        """Like `Watch.close`."""
        self._call(self._watch.close())

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
