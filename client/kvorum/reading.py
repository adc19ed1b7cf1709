"""The part of a store that reads: get, list, scan, ttl and watch."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal, TypeVar, Unpack, overload

from kvorum import limits
from kvorum.arguments import (
    Consistency,
    GetOptions,
    ListOptions,
    ScanOptions,
    WatchOptions,
    check_cursor,
    check_limit,
    check_past_revision,
    check_revision,
    check_timeout,
    require,
    select,
    select_watched,
)
from kvorum.backends import Backend
from kvorum.codecs import (
    Codec,
    Key,
    Typed,
    ValueType,
    codec_of,
    decode_entry,
    decode_page,
    encode_key,
)
from kvorum.durations import to_seconds
from kvorum.entry import Entry, Page
from kvorum.watching import Watch
from kvorumpb.v1.kv_pb2 import Call
from kvorumpb.v1.watch_pb2 import BeginWatch

T = TypeVar("T")


class Reader:
    """A store as far as it is read; `KV` is the whole of it."""

    def __init__(self, backend: Backend, *, target: str, timeout: float, type: ValueType) -> None:
        self._backend = backend
        self._target = target
        self._timeout = timeout
        self._codec = codec_of(type)
        self._closed = False

    @property
    def value_type(self) -> Codec[Any]:
        """How values are written and read where a call does not say it: as `open` was told."""
        return self._codec

    @overload
    async def get(
        self, key: Key, *, type: Literal["text"], **options: Unpack[GetOptions]
    ) -> Entry[str] | None: ...

    @overload
    async def get(
        self, key: Key, *, type: Literal["bytes"], **options: Unpack[GetOptions]
    ) -> Entry[bytes] | None: ...

    @overload
    async def get(
        self, key: Key, *, type: Typed[T], **options: Unpack[GetOptions]
    ) -> Entry[T] | None: ...

    @overload
    async def get(
        self,
        key: Key,
        *,
        revision: int | None = None,
        type: ValueType | None = None,
        consistency: Consistency = "linearizable",
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> Entry[Any] | None: ...

    async def get(
        self,
        key: Key,
        *,
        revision: int | None = None,
        type: ValueType | None = None,
        consistency: Consistency = "linearizable",
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> Entry[Any] | None:
        """Read an entry; None if the key is absent. `DecodeError` if it is of another type.

        With `revision`, as it was then: `Compacted` or `FutureRevision` if the store cannot
        say. An entry that had expired by then is there until it was removed for it.

        `consistency` says what the answer may leave out:

        - "linearizable": nothing that was acknowledged before the call;
        - "lease": the same, as long as no clock of a node runs a tenth faster than another's.
          It spares the leader a question to the others;
        - "stale": whatever has not reached the node that answers, which may be any. With
          `max_staleness`, in seconds, a node answers that is at most so far behind the
          leader; a follower looks some tenths of a second older than it is. `TooStale`
          if there is none until time is out.
        """
        codec = self._as(type)
        call = Call()
        call.get.key = encode_key(key)
        call.get.revision = check_past_revision(revision)
        require(call.get, consistency, max_staleness)
        reply = await self._backend.call(call, timeout_seconds=self._seconds(timeout))
        if not reply.get.HasField("record"):
            return None
        return decode_entry(reply.get.record, codec)

    @overload
    async def list(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[True],
        type: ValueType | None = None,
        **options: Unpack[ListOptions],
    ) -> Page[None]: ...

    @overload
    async def list(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[False] = False,
        type: Literal["text"],
        **options: Unpack[ListOptions],
    ) -> Page[str]: ...

    @overload
    async def list(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[False] = False,
        type: Literal["bytes"],
        **options: Unpack[ListOptions],
    ) -> Page[bytes]: ...

    @overload
    async def list(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[False] = False,
        type: Typed[T],
        **options: Unpack[ListOptions],
    ) -> Page[T]: ...

    @overload
    async def list(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        index: str | None = None,
        value: Key | None = None,
        limit: int = 100,
        cursor: str | None = None,
        reverse: bool = False,
        keys_only: bool = False,
        count: bool = False,
        revision: int | None = None,
        snapshot: bool = False,
        type: ValueType | None = None,
        consistency: Consistency = "linearizable",
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> Page[Any]: ...

    async def list(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        index: str | None = None,
        value: Key | None = None,
        limit: int = 100,
        cursor: str | None = None,
        reverse: bool = False,
        keys_only: bool = False,
        count: bool = False,
        revision: int | None = None,
        snapshot: bool = False,
        type: ValueType | None = None,
        consistency: Consistency = "linearizable",
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> Page[Any]:
        """Read up to `limit` entries, in the order of their keys' bytes.

        Lists the keys that begin with `prefix`, or else those from `start`
        (included) to `end` (excluded). With `index`, these are values of that index,
        and the entries come in the order of their values: with exactly this `value`, with
        those of the prefix or the range, or with any.

        `cursor` is that of the page before; it is bound to the selection, to `reverse`
        and to `snapshot`, and `InvalidCursor` with others. A page also ends at
        `limits.MAX_PAGE_BYTES`, so that it may be shorter than `limit` and not the
        last: only `complete` tells. Each page reads the newest state: a key that
        stays is neither skipped nor repeated. Not so with `snapshot`: all pages read what
        the first one did, and raise `Compacted` once the store does not know it any more.

        Args:
            reverse: from the last to the first.
            keys_only: leave out values and metadata.
            count: count all entries that are selected, too. The store looks at each of
                them, for few lists at a time, and with more is `Overloaded`.
            revision: as the store was then. `Compacted` or `FutureRevision` if it cannot
                say. Not with an index, nor is `snapshot`: an index has no past.
            consistency: as for `get`, for each page by itself.
            max_staleness: the same.
        """
        codec = self._as(type)
        call = Call()
        request = call.list
        select(request, prefix, start=start, end=end, index=index, value=value)
        request.page_size = check_limit(limit)
        request.page_token = check_cursor(cursor)
        request.reverse, request.keys_only, request.count = reverse, keys_only, count
        request.revision = check_past_revision(revision)
        request.snapshot = snapshot
        require(request, consistency, max_staleness)
        reply = await self._backend.call(call, timeout_seconds=self._seconds(timeout))
        return decode_page(reply.list, codec, keys_only=keys_only)

    @overload
    def scan(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[True],
        type: ValueType | None = None,
        **options: Unpack[ScanOptions],
    ) -> AsyncIterator[Entry[None]]: ...

    @overload
    def scan(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[False] = False,
        type: Literal["text"],
        **options: Unpack[ScanOptions],
    ) -> AsyncIterator[Entry[str]]: ...

    @overload
    def scan(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[False] = False,
        type: Literal["bytes"],
        **options: Unpack[ScanOptions],
    ) -> AsyncIterator[Entry[bytes]]: ...

    @overload
    def scan(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[False] = False,
        type: Typed[T],
        **options: Unpack[ScanOptions],
    ) -> AsyncIterator[Entry[T]]: ...

    @overload
    def scan(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        index: str | None = None,
        value: Key | None = None,
        page_size: int = limits.DEFAULT_PAGE_RECORDS,
        reverse: bool = False,
        keys_only: bool = False,
        revision: int | None = None,
        snapshot: bool = False,
        type: ValueType | None = None,
        consistency: Consistency = "linearizable",
        max_staleness: float | None = None,
    ) -> AsyncIterator[Entry[Any]]: ...

    async def scan(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        index: str | None = None,
        value: Key | None = None,
        page_size: int = limits.DEFAULT_PAGE_RECORDS,
        reverse: bool = False,
        keys_only: bool = False,
        revision: int | None = None,
        snapshot: bool = False,
        type: ValueType | None = None,
        consistency: Consistency = "linearizable",
        max_staleness: float | None = None,
    ) -> AsyncIterator[Entry[Any]]:
        """Iterate over all entries that `list` would return, page by page.

        The next page is asked for when the first entry of a page is taken, and none beside
        it: who stops taking entries stops the reading.
        """

        async def read(cursor: str | None) -> Page[Any]:
            return await self.list(
                prefix,
                start=start,
                end=end,
                index=index,
                value=value,
                limit=page_size,
                cursor=cursor,
                reverse=reverse,
                keys_only=keys_only,
                revision=revision,
                snapshot=snapshot,
                type=type,
                consistency=consistency,
                max_staleness=max_staleness,
            )

        page = await read(None)
        while not page.complete:
            following = asyncio.create_task(read(page.cursor), name="kvorum scan")
            following.add_done_callback(_retrieve)
            try:
                for entry in page.entries:
                    yield entry
                page = await following
            finally:
                following.cancel()
        for entry in page.entries:
            yield entry

    async def ttl(self, key: Key, *, timeout: float | None = None) -> float | None:
        """Return how many seconds the key has left: None if it stays, 0.0 if it is absent.

        By log time, at the moment of the read; the value does not travel.
        """
        call = Call()
        request = call.list
        request.range.start = encode_key(key)
        request.range.end = request.range.start + b"\0"
        request.page_size = 1
        request.keys_only = True
        page = (await self._backend.call(call, timeout_seconds=self._seconds(timeout))).list
        if not page.records:
            return 0.0
        expire_time_ms = page.records[0].expire_time_ms
        return to_seconds(max(expire_time_ms - page.now_ms, 0)) if expire_time_ms else None

    @overload
    def watch(
        self, prefix: Key = "", *, type: Literal["text"], **options: Unpack[WatchOptions]
    ) -> Watch[str]: ...

    @overload
    def watch(
        self, prefix: Key = "", *, type: Literal["bytes"], **options: Unpack[WatchOptions]
    ) -> Watch[bytes]: ...

    @overload
    def watch(
        self, prefix: Key = "", *, type: Typed[T], **options: Unpack[WatchOptions]
    ) -> Watch[T]: ...

    @overload
    def watch(
        self,
        prefix: Key = "",
        *,
        key: Key | None = None,
        start: Key | None = None,
        end: Key | None = None,
        since: int | None = None,
        previous: bool = False,
        puts: bool = True,
        deletes: bool = True,
        expiries: bool = True,
        keys_only: bool = False,
        type: ValueType | None = None,
    ) -> Watch[Any]: ...

    def watch(
        self,
        prefix: Key = "",
        *,
        key: Key | None = None,
        start: Key | None = None,
        end: Key | None = None,
        since: int | None = None,
        previous: bool = False,
        puts: bool = True,
        deletes: bool = True,
        expiries: bool = True,
        keys_only: bool = False,
        type: ValueType | None = None,
    ) -> Watch[Any]:
        """Watch the keys that begin with `prefix`, or else one key, or those of a range.

            async with kv.watch("user:") as watch:
                async for change in watch: ...

        Tells of every change after the revision `since`, or after the one that the store
        has when the watch begins: in order, each once, whatever becomes of nodes and
        connections. `previous`: have what was there before, too. `puts`, `deletes` and
        `expiries`: of what to tell. `keys_only`: without values.
        """
        begin = BeginWatch(
            watch_id=1,
            after_revision=None if since is None else check_revision(since),
            previous=previous,
            no_puts=not puts,
            no_deletes=not deletes,
            no_expiries=not expiries,
            keys_only=keys_only,
        )
        select_watched(begin, prefix, key, start, end)
        codec = self._as(type)
        feed = self._backend.watch(begin, timeout_seconds=self._timeout)
        return Watch(feed, codec=codec, keys_only=keys_only, since=since)

    def _as(self, type: ValueType | None) -> Codec[Any]:
        return self._codec if type is None else codec_of(type)

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else check_timeout(timeout)


def _retrieve(task: "asyncio.Task[Page[Any]]") -> None:
    """The scan may have been given up: then nobody asks how its last page has failed."""
    if not task.cancelled():
        task.exception()
