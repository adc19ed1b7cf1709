"""Transactions for programs: `async for` and `for`, and the functions to `run`.

    async for attempt in kv.transaction():
        async with attempt as txn:
            entry = await txn.get("a")
            txn.put("a", entry.value + 1)

How they are carried out is in optimistic.py.
"""

import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, Unpack, overload

from kvorum import operations
from kvorum.arguments import RangeOptions, check_cursor, check_limit
from kvorum.codecs import Codec, Key, Typed, ValueType, codec_of, decode_entry, encode_key
from kvorum.durations import Duration
from kvorum.entry import Entry, IndexEntry, Page
from kvorum.errors import InvalidArgument
from kvorum.optimistic import Attempt, Loop, has_expired
from kvorum.ranges import encode_range
from kvorumpb.v1.command_pb2 import Operation, Record

T = TypeVar("T")


class Transaction:
    """One attempt of a transaction. Made by `KV.transaction`; for one `async with`.

    Its reads see the store at one revision, that of the first of them, and what it has
    written itself. A key costs one round trip, the first time. Writes cost none before
    the commit.
    """

    def __init__(self, attempt: Attempt, default_codec: Codec[Any]) -> None:
        self._attempt = attempt
        self._default_codec = default_codec

    @property
    def revision(self) -> int | None:
        """At which it wrote, once the loop has ended; None before, and if it wrote nothing."""
        return self._attempt.revision

    @overload
    async def get(self, key: Key, *, type: Literal["text"]) -> Entry[str] | None: ...

    @overload
    async def get(self, key: Key, *, type: Literal["bytes"]) -> Entry[bytes] | None: ...

    @overload
    async def get(self, key: Key, *, type: Typed[T]) -> Entry[T] | None: ...

    @overload
    async def get(self, key: Key, *, type: ValueType | None = None) -> Entry[Any] | None: ...

    async def get(self, key: Key, *, type: ValueType | None = None) -> Entry[Any] | None:
        """Read an entry, like `KV.get`; the commit then needs the key to be as it was read.

        An entry that this transaction has put has the revision 0, as it has none yet. A key
        that it adds to cannot be read afterwards: only the store knows the sum.
        """
        name, codec = encode_key(key), self._as(type)
        written = self._attempt.written(name)
        if written is None:
            record = await self._attempt.read(name)
        elif written.HasField("add"):
            raise InvalidArgument(f"{key!r} is added to: read it before that")
        else:
            record = _record_of(written)
        return None if record is None else decode_entry(record, codec)

    @overload
    async def list(
        self, prefix: Key = "", *, type: Literal["text"], **options: Unpack[RangeOptions]
    ) -> Page[str]: ...

    @overload
    async def list(
        self, prefix: Key = "", *, type: Literal["bytes"], **options: Unpack[RangeOptions]
    ) -> Page[bytes]: ...

    @overload
    async def list(
        self, prefix: Key = "", *, type: Typed[T], **options: Unpack[RangeOptions]
    ) -> Page[T]: ...

    @overload
    async def list(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        limit: int = 100,
        cursor: str | None = None,
        type: ValueType | None = None,
    ) -> Page[Any]: ...

    async def list(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        limit: int = 100,
        cursor: str | None = None,
        type: ValueType | None = None,
    ) -> Page[Any]:
        """Read a page, like `KV.list`; the commit then needs that nothing in it has changed.

        Nothing new may have come into it either: from the start of the range to the last key
        of the page, or to the end if it is complete. List before you write: a range in
        which this transaction has written is refused.
        """
        selected, codec = encode_range(prefix, start, end), self._as(type)
        page = await self._attempt.list(selected, check_limit(limit), check_cursor(cursor))
        return Page(
            entries=tuple(
                decode_entry(record, codec)
                for record in page.records
                if not has_expired(record, page.log_time_ms)
            ),
            cursor=page.next_page_token or None,
            complete=not page.next_page_token,
            revision=page.revision,
        )

    def put(
        self,
        key: Key,
        value: Any,
        *,
        ttl: Duration | None = None,
        metadata: bytes | None = None,
        index_entries: Iterable[IndexEntry] | None = None,
        keep_ttl: bool = False,
        type: ValueType | None = None,
    ) -> None:
        """Write a value at the commit, like `KV.put`, in place of an earlier write of the key."""
        operation = operations.put(
            key,
            value,
            ttl=ttl,
            metadata=metadata,
            index_entries=index_entries,
            keep_ttl=keep_ttl,
            codec=self._as(type),
        )
        self._attempt.write(operation.put.key, operation)

    def delete(self, key: Key) -> None:
        """Remove a key at the commit, if it is there, in place of an earlier write of it."""
        operation = operations.delete(key)
        self._attempt.write(operation.delete.key, operation)

    def add(
        self,
        key: Key,
        amount: int = 1,
        *,
        min: int | None = None,
        max: int | None = None,
        saturate: bool = False,
        ttl: Duration | None = None,
    ) -> None:
        """Add to an integer at the commit, like `KV.add`; it is no read, and conflicts with nobody.

        Unless it was read, too. Not of a key that this transaction has written.
        """
        operation = operations.add(key, amount, min=min, max=max, saturate=saturate, ttl=ttl)
        if self._attempt.written(operation.add.key) is not None:
            raise InvalidArgument(f"{key!r} is written already: put the sum instead")
        self._attempt.write(operation.add.key, operation)

    async def __aenter__(self) -> Self:
        self._attempt.enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return self._attempt.leave(error)

    def _as(self, type: ValueType | None) -> Codec[Any]:
        return self._default_codec if type is None else codec_of(type)


class Attempts:
    """The attempts of a transaction. Made by `KV.transaction`, for one `async for` or `run`."""

    def __init__(self, loop: Loop, default_codec: Codec[Any]) -> None:
        self._loop = loop
        self._default_codec = default_codec

    async def run(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run a function with a `Transaction`, until it could be committed.

        Returns what it has returned. It may run several times, and should do nothing that
        cannot be repeated.
        """
        results: list[T] = []
        async for attempt in self:
            async with attempt as txn:
                results = [await work(txn)]
        if not results:
            raise InvalidArgument("these attempts are over: begin new ones with transaction()")
        return results[0]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Transaction:
        attempt = await self._loop.advance()
        if attempt is None:
            raise StopAsyncIteration
        return Transaction(attempt, self._default_codec)

    def __del__(self) -> None:
        if self._loop.is_forgotten:
            warnings.warn(
                "a transaction was left by return or break, and is not committed: let its body "
                "come to its end, or give it to run()",
                RuntimeWarning,
                stacklevel=2,
            )


class Run(Protocol):
    """Runs a coroutine to its end, from another thread."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T: ...


class SyncTransaction:
    """`Transaction` for threads: for one `with`. Made by `SyncKV.transaction`."""

    def __init__(self, inner: Transaction, run: Run) -> None:
        self._inner = inner
        self._run = run

    @property
    def revision(self) -> int | None:
        """Like `Transaction.revision`."""
        return self._inner.revision

    @overload
    def get(self, key: Key, *, type: Literal["text"]) -> Entry[str] | None: ...

    @overload
    def get(self, key: Key, *, type: Literal["bytes"]) -> Entry[bytes] | None: ...

    @overload
    def get(self, key: Key, *, type: Typed[T]) -> Entry[T] | None: ...

    @overload
    def get(self, key: Key, *, type: ValueType | None = None) -> Entry[Any] | None: ...

    def get(self, key: Key, *, type: ValueType | None = None) -> Entry[Any] | None:
        """Like `Transaction.get`."""
        return self._run(self._inner.get(key, type=type))

    @overload
    def list(
        self, prefix: Key = "", *, type: Literal["text"], **options: Unpack[RangeOptions]
    ) -> Page[str]: ...

    @overload
    def list(
        self, prefix: Key = "", *, type: Literal["bytes"], **options: Unpack[RangeOptions]
    ) -> Page[bytes]: ...

    @overload
    def list(
        self, prefix: Key = "", *, type: Typed[T], **options: Unpack[RangeOptions]
    ) -> Page[T]: ...

    @overload
    def list(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        limit: int = 100,
        cursor: str | None = None,
        type: ValueType | None = None,
    ) -> Page[Any]: ...

    def list(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        limit: int = 100,
        cursor: str | None = None,
        type: ValueType | None = None,
    ) -> Page[Any]:
        """Like `Transaction.list`."""
        return self._run(
            self._inner.list(prefix, start=start, end=end, limit=limit, cursor=cursor, type=type)
        )

    def put(
        self,
        key: Key,
        value: Any,
        *,
        ttl: Duration | None = None,
        metadata: bytes | None = None,
        index_entries: Iterable[IndexEntry] | None = None,
        keep_ttl: bool = False,
        type: ValueType | None = None,
    ) -> None:
        """Like `Transaction.put`."""
        self._inner.put(
            key,
            value,
            ttl=ttl,
            metadata=metadata,
            index_entries=index_entries,
            keep_ttl=keep_ttl,
            type=type,
        )

    def delete(self, key: Key) -> None:
        """Like `Transaction.delete`."""
        self._inner.delete(key)

    def add(
        self,
        key: Key,
        amount: int = 1,
        *,
        min: int | None = None,
        max: int | None = None,
        saturate: bool = False,
        ttl: Duration | None = None,
    ) -> None:
        """Like `Transaction.add`."""
        self._inner.add(key, amount, min=min, max=max, saturate=saturate, ttl=ttl)

    def __enter__(self) -> Self:
        self._run(self._inner.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return self._run(self._inner.__aexit__(kind, error, traceback))


class SyncAttempts:
    """`Attempts` for threads: for one `for` or `run`. Made by `SyncKV.transaction`."""

    def __init__(self, inner: Attempts, run: Run) -> None:
        self._inner = inner
        self._run = run

    def run(self, work: Callable[[SyncTransaction], T]) -> T:
        """Like `Attempts.run`."""
        results: list[T] = []
        for attempt in self:
            with attempt as txn:
                results = [work(txn)]
        if not results:
            raise InvalidArgument("these attempts are over: begin new ones with transaction()")
        return results[0]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> SyncTransaction:
        try:
            return SyncTransaction(self._run(self._inner.__anext__()), self._run)
        except StopAsyncIteration:
            raise StopIteration from None


def _record_of(written: Operation) -> Record | None:
    """What a get finds where this transaction has written."""
    if written.HasField("delete"):
        return None
    put = written.put
    return Record(
        key=put.key, value=put.value, metadata=put.metadata, index_entries=put.index_entries
    )
