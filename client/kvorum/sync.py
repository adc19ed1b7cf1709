"""The store, for threads: every call of `KV`, without await.

One event loop runs in one thread of its own, and carries out the calls of all
threads, so that they share one connection and its batches.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

from kvorum import limits
from kvorum.arguments import Consistency, GetOptions, ListOptions, ScanOptions, WatchOptions
from kvorum.atomic import SyncAtomic
from kvorum.codecs import Codec, Key, Typed, ValueType
from kvorum.durations import Duration
from kvorum.entry import Entry, IndexEntry, Page
from kvorum.kv import KV
from kvorum.loop_thread import LoopThread
from kvorum.model import RateLimit, RateLimitResult, Sum
from kvorum.transaction import SyncAttempts
from kvorum.watching import SyncWatch

T = TypeVar("T")


class SyncKV:
    """A store for threads. Made by `kvorum.open_sync`; any thread may use it.

    Every method does what the method of `KV` with its name does, and raises the same errors.
    """

    def __init__(self, kv: KV, thread: LoopThread) -> None:
        self._kv = kv
        self._thread = thread
        self._closing = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, opening: Awaitable[KV]) -> Self:
        """Open a store in a loop of its own."""

        async def open_there() -> KV:
            return await opening

        thread = LoopThread()
        try:
            return cls(thread.call(open_there()), thread)
        except BaseException:
            thread.stop()
            raise

    @property
    def value_type(self) -> Codec[Any]:
        """Like `KV.value_type`."""
        return self._kv.value_type

    def put(
        self,
        key: Key,
        value: Any,
        *,
        ttl: Duration | None = None,
        metadata: bytes | None = None,
        index_entries: Iterable[IndexEntry] | None = None,
        keep_ttl: bool = False,
        revision: int | None = None,
        exists: bool | None = None,
        type: ValueType | None = None,
        timeout: float | None = None,
    ) -> int:
        """Like `KV.put`."""
        return self._thread.call(
            self._kv.put(
                key,
                value,
                ttl=ttl,
                metadata=metadata,
                index_entries=index_entries,
                keep_ttl=keep_ttl,
                revision=revision,
                exists=exists,
                type=type,
                timeout=timeout,
            )
        )

    @overload
    def get(
        self, key: Key, *, type: Literal["text"], **options: Unpack[GetOptions]
    ) -> Entry[str] | None: ...

    @overload
    def get(
        self, key: Key, *, type: Literal["bytes"], **options: Unpack[GetOptions]
    ) -> Entry[bytes] | None: ...

    @overload
    def get(
        self, key: Key, *, type: Typed[T], **options: Unpack[GetOptions]
    ) -> Entry[T] | None: ...

    @overload
    def get(
        self,
        key: Key,
        *,
        revision: int | None = None,
        type: ValueType | None = None,
        consistency: Consistency = "linearizable",
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> Entry[Any] | None: ...

    def get(
        self,
        key: Key,
        *,
        revision: int | None = None,
        type: ValueType | None = None,
        consistency: Consistency = "linearizable",
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> Entry[Any] | None:
        """Like `KV.get`."""
        reading = self._kv.get(
            key,
            revision=revision,
            type=type,
            consistency=consistency,
            max_staleness=max_staleness,
            timeout=timeout,
        )
        return self._thread.call(reading)

    def delete(
        self, key: Key, *, revision: int | None = None, timeout: float | None = None
    ) -> bool:
        """Like `KV.delete`."""
        return self._thread.call(self._kv.delete(key, revision=revision, timeout=timeout))

    @overload
    def get_and_delete(
        self, key: Key, *, type: Literal["text"], timeout: float | None = None
    ) -> Entry[str] | None: ...

    @overload
    def get_and_delete(
        self, key: Key, *, type: Literal["bytes"], timeout: float | None = None
    ) -> Entry[bytes] | None: ...

    @overload
    def get_and_delete(
        self, key: Key, *, type: Typed[T], timeout: float | None = None
    ) -> Entry[T] | None: ...

    @overload
    def get_and_delete(
        self, key: Key, *, type: ValueType | None = None, timeout: float | None = None
    ) -> Entry[Any] | None: ...

    def get_and_delete(
        self, key: Key, *, type: ValueType | None = None, timeout: float | None = None
    ) -> Entry[Any] | None:
        """Like `KV.get_and_delete`."""
        return self._thread.call(self._kv.get_and_delete(key, type=type, timeout=timeout))

    def delete_range(
        self,
        prefix: Key | None = None,
        *,
        start: Key | None = None,
        end: Key | None = None,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Like `KV.delete_range`."""
        return self._thread.call(
            self._kv.delete_range(prefix, start=start, end=end, limit=limit, timeout=timeout)
        )

    @overload
    def list(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[True],
        type: ValueType | None = None,
        **options: Unpack[ListOptions],
    ) -> Page[None]: ...

    @overload
    def list(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[False] = False,
        type: Literal["text"],
        **options: Unpack[ListOptions],
    ) -> Page[str]: ...

    @overload
    def list(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[False] = False,
        type: Literal["bytes"],
        **options: Unpack[ListOptions],
    ) -> Page[bytes]: ...

    @overload
    def list(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[False] = False,
        type: Typed[T],
        **options: Unpack[ListOptions],
    ) -> Page[T]: ...

    @overload
    def list(
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

    def list(
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
        """Like `KV.list`."""
        return self._thread.call(
            self._kv.list(
                prefix,
                start=start,
                end=end,
                index=index,
                value=value,
                limit=limit,
                cursor=cursor,
                reverse=reverse,
                keys_only=keys_only,
                count=count,
                revision=revision,
                snapshot=snapshot,
                type=type,
                consistency=consistency,
                max_staleness=max_staleness,
                timeout=timeout,
            )
        )

    @overload
    def scan(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[True],
        type: ValueType | None = None,
        **options: Unpack[ScanOptions],
    ) -> Iterator[Entry[None]]: ...

    @overload
    def scan(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[False] = False,
        type: Literal["text"],
        **options: Unpack[ScanOptions],
    ) -> Iterator[Entry[str]]: ...

    @overload
    def scan(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[False] = False,
        type: Literal["bytes"],
        **options: Unpack[ScanOptions],
    ) -> Iterator[Entry[bytes]]: ...

    @overload
    def scan(
        self,
        prefix: Key = "",
        *,
        keys_only: Literal[False] = False,
        type: Typed[T],
        **options: Unpack[ScanOptions],
    ) -> Iterator[Entry[T]]: ...

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
    ) -> Iterator[Entry[Any]]: ...

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
    ) -> Iterator[Entry[Any]]:
        """Like `KV.scan`."""

        def read(cursor: str | None) -> Future[Page[Any]]:
            return self._thread.submit(
                self._kv.list(
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
            )

        following = read(None)
        try:
            while True:
                page = following.result()
                if page.complete:
                    break
                following = read(page.cursor)
                yield from page.entries
        finally:
            following.cancel()
        yield from page.entries

    @overload
    def watch(
        self, prefix: Key = "", *, type: Literal["text"], **options: Unpack[WatchOptions]
    ) -> SyncWatch[str]: ...

    @overload
    def watch(
        self, prefix: Key = "", *, type: Literal["bytes"], **options: Unpack[WatchOptions]
    ) -> SyncWatch[bytes]: ...

    @overload
    def watch(
        self, prefix: Key = "", *, type: Typed[T], **options: Unpack[WatchOptions]
    ) -> SyncWatch[T]: ...

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
    ) -> SyncWatch[Any]: ...

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
    ) -> SyncWatch[Any]:
        """Like `KV.watch`."""
        watch = self._kv.watch(
            prefix,
            key=key,
            start=start,
            end=end,
            since=since,
            previous=previous,
            puts=puts,
            deletes=deletes,
            expiries=expiries,
            keys_only=keys_only,
            type=type,
        )
        return SyncWatch(watch, self._thread.call)

    def add(
        self,
        key: Key,
        amount: int = 1,
        *,
        min: int | None = None,
        max: int | None = None,
        saturate: bool = False,
        ttl: Duration | None = None,
        timeout: float | None = None,
    ) -> Sum:
        """Like `KV.add`."""
        return self._thread.call(
            self._kv.add(key, amount, min=min, max=max, saturate=saturate, ttl=ttl, timeout=timeout)
        )

    def touch(self, key: Key, ttl: Duration, *, timeout: float | None = None) -> bool:
        """Like `KV.touch`."""
        return self._thread.call(self._kv.touch(key, ttl, timeout=timeout))

    def persist(self, key: Key, *, timeout: float | None = None) -> bool:
        """Like `KV.persist`."""
        return self._thread.call(self._kv.persist(key, timeout=timeout))

    def ttl(self, key: Key, *, timeout: float | None = None) -> float | None:
        """Like `KV.ttl`."""
        return self._thread.call(self._kv.ttl(key, timeout=timeout))

    def rate_limit(self, *rules: RateLimit, timeout: float | None = None) -> RateLimitResult:
        """Like `KV.rate_limit`."""
        return self._thread.call(self._kv.rate_limit(*rules, timeout=timeout))

    def atomic(self) -> SyncAtomic:
        """Like `KV.atomic`."""
        return SyncAtomic(self._kv.atomic(), self._thread.call)

    def transaction(
        self, *, attempts: int = limits.DEFAULT_TRANSACTION_ATTEMPTS, timeout: float | None = None
    ) -> SyncAttempts:
        """Like `KV.transaction`: `for`, `with`, and functions without await."""
        inner = self._kv.transaction(attempts=attempts, timeout=timeout)
        return SyncAttempts(inner, self._thread.call)

    def run(self, work: Callable[[KV], Awaitable[T]]) -> T:
        """Run an async function with the `KV` that is behind this, and return what it returns.

        It runs in the store's own event loop, beside the calls of all threads: it must not block.
        """
        return self._thread.call(_working(work, self._kv))

    def submit(self, work: Callable[[KV], Awaitable[T]]) -> Future[T]:
        """Like `run`, without waiting: the future has what it returns, and cancels it."""
        return self._thread.submit(_working(work, self._kv))

    def close(self) -> None:
        """Release the store and end its thread. Calls under way fail with `Closed`."""
        if not self._thread.is_here:
            return
        with self._closing:
            if not self._closed:
                self._thread.call(self._kv.close())
                self._closed = True
                self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._kv).replace("KV", "SyncKV", 1)


async def _working(work: Callable[[KV], Awaitable[T]], kv: KV) -> T:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine that runs has one
    task.add_done_callback(_hear)
    return await work(kv)


def _hear(task: asyncio.Task[Any]) -> None:
    """Take note of the error: who has cancelled the future asks for none, and none is logged."""
    if not task.cancelled():
        task.exception()
