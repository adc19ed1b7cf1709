"""The store, for asyncio programs."""

# ruff: noqa: A001 - `type`, `min` and `max` are the words of the public API

import asyncio
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Literal, Self, overload

from kvorum import checks, limits, operations
from kvorum.arguments import check_limit, check_past_revision, check_timeout, select
from kvorum.atomic import Atomic
from kvorum.backends import Backend
from kvorum.codecs import (
    Key,
    ValueType,
    check_type,
    decode_entry,
    decode_page,
    encode_key,
    encode_value,
)
from kvorum.durations import Duration, encode_ttl, to_seconds
from kvorum.entry import Entry, IndexEntry, Page
from kvorum.model import RateLimit, RateLimitResult, Sum
from kvorum.optimistic import Loop
from kvorum.transaction import Attempts
from kvorumpb.v1 import command_pb2 as pb
from kvorumpb.v1.kv_pb2 import Call, Reply


class KV:
    """A store: ordered keys, each with a value and a revision. Made by `kvorum.open`.

    Reads and writes are linearizable. A write that has returned is on the disk
    (of a majority of the nodes, if the store is a cluster). It is applied once, even
    if the connection or the leader is lost on the way: it is sent again until it is
    answered, and the store knows it again.

    Every method takes `timeout` in seconds, all retries included, and raises

    - `InvalidArgument` or one of its kinds if the request is wrong: `LimitExceeded`;
    - `DeadlineExceeded` when time is out; `maybe_applied` says whether a write is in doubt;
    - `NoNodeReachable` when time is out, and no node has answered at all;
    - `OutcomeUnknown` if a cluster has forgotten this store before it answered a write, as
      it does when very many write; or if an embedded store has failed: it may or may not be
      applied;
    - `ResultForgotten` if a write was applied, but its answer was lost and too large to be
      kept (`limits.MAX_REMEMBERED_RESULT_BYTES`);
    - `Closed` if the store was closed.

    `type` says how a value is written or read: "json", "text" or "bytes"; without
    it, as `open` was told. A store belongs to the event loop it was opened in.
    """

    def __init__(self, backend: Backend, *, target: str, timeout: float, type: ValueType) -> None:
        self._backend = backend
        self._target = target
        self._timeout = timeout
        self._type = type
        self._closed = False

    async def put(
        self,
        key: Key,
        value: Any,
        *,
        ttl: Duration | None = None,
        metadata: bytes | None = None,
        index_entries: Iterable[IndexEntry] | None = None,
        revision: int | None = None,
        exists: bool | None = None,
        type: ValueType | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write a value, and return the revision at which it was written.

        It replaces all that the key had: without `ttl` (seconds, or a timedelta; at most a
        hundred years) it stays for ever. `metadata` of up to 4 KiB is read beside the
        value, and `index_entries` are what the record is found under; `UniqueViolation` if another
        one has a unique entry.

        With `revision` (0: absent) or `exists`, it writes only if the key is so now, in the
        same round trip, and raises `Conflict` otherwise.
        """
        if revision is not None or exists is not None:
            operation = operations.put(
                key,
                value,
                ttl=ttl,
                metadata=metadata,
                index_entries=index_entries,
                type=self._as(type),
            )
            condition = checks.check_key(key, revision=revision, exists=exists, type=self._as(type))
            return (await self._transact(operation, timeout, condition)).revision
        call = Call()
        request = call.put
        request.key = encode_key(key)
        request.value = encode_value(value, self._as(type), key)
        # Absent from most puts, and each of them costs something.
        if ttl is not None:
            request.ttl_ms = encode_ttl(ttl)
        if metadata is not None:
            request.metadata = operations.encode_metadata(metadata, key)
        if index_entries is not None:
            request.index_entries.extend(operations.encode_index_entries(index_entries, key))
        reply = await self._backend.call(call, timeout_seconds=self._seconds(timeout))
        return reply.put.revision

    @overload
    async def get(
        self,
        key: Key,
        *,
        revision: int | None = None,
        type: Literal["text"],
        timeout: float | None = None,
    ) -> Entry[str] | None: ...

    @overload
    async def get(
        self,
        key: Key,
        *,
        revision: int | None = None,
        type: Literal["bytes"],
        timeout: float | None = None,
    ) -> Entry[bytes] | None: ...

    @overload
    async def get(
        self,
        key: Key,
        *,
        revision: int | None = None,
        type: ValueType | None = None,
        timeout: float | None = None,
    ) -> Entry[Any] | None: ...

    async def get(
        self,
        key: Key,
        *,
        revision: int | None = None,
        type: ValueType | None = None,
        timeout: float | None = None,
    ) -> Entry[Any] | None:
        """Read an entry; None if the key is absent. `DecodeError` if it is of another type.

        With `revision`, as it was then: `Compacted` or `FutureRevision` if the store cannot
        say. An entry that had expired by then is there until it was removed for it.
        """
        type = self._as(type)
        call = Call()
        call.get.key = encode_key(key)
        call.get.revision = check_past_revision(revision)
        reply = await self._backend.call(call, timeout_seconds=self._seconds(timeout))
        if not reply.get.HasField("record"):
            return None
        return decode_entry(reply.get.record, type)

    async def delete(
        self, key: Key, *, revision: int | None = None, timeout: float | None = None
    ) -> bool:
        """Remove a key, and return whether it was there.

        With `revision`, only if the key is at it; `Conflict` otherwise, and if it is absent.
        """
        if revision is not None:
            condition = checks.check_key(key, revision=revision, type=self._type)
            await self._transact(operations.delete(key), timeout, condition)
            return revision != 0
        call = Call()
        call.delete.key = encode_key(key)
        reply = await self._backend.call(call, timeout_seconds=self._seconds(timeout))
        return reply.delete.deleted

    @overload
    async def get_and_delete(
        self, key: Key, *, type: Literal["text"], timeout: float | None = None
    ) -> Entry[str] | None: ...

    @overload
    async def get_and_delete(
        self, key: Key, *, type: Literal["bytes"], timeout: float | None = None
    ) -> Entry[bytes] | None: ...

    @overload
    async def get_and_delete(
        self, key: Key, *, type: ValueType | None = None, timeout: float | None = None
    ) -> Entry[Any] | None: ...

    async def get_and_delete(
        self, key: Key, *, type: ValueType | None = None, timeout: float | None = None
    ) -> Entry[Any] | None:
        """Remove a key, and return its entry as it was; None if the key is absent.

        Of many who ask, one gets it. `DecodeError` if it is of another type: it is gone then.
        """
        read_as = self._as(type)
        operation = operations.delete(key, return_previous=True)
        deleted = (await self._operate(operation, timeout)).delete
        return decode_entry(deleted.previous, read_as) if deleted.deleted else None

    async def delete_range(
        self,
        prefix: Key | None = None,
        *,
        start: Key | None = None,
        end: Key | None = None,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Remove the keys with a prefix, or from `start` to `end`; return how many there were.

        All of them at one revision, and `RangeTooLarge` if they are more than
        `limits.MAX_RANGE_RECORDS`. With a `limit`, the first so many of them at most: there
        may be more if that many were removed. An empty prefix is refused, as it is every
        key; `start=""` says so too, and is meant.
        """
        operation = operations.delete_range(prefix, start, end, limit)
        return (await self._operate(operation, timeout)).delete_range.deleted

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
        keys_only: Literal[True],
        count: bool = False,
        revision: int | None = None,
        snapshot: bool = False,
        type: ValueType | None = None,
        timeout: float | None = None,
    ) -> Page[None]: ...

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
        keys_only: Literal[False] = False,
        count: bool = False,
        revision: int | None = None,
        snapshot: bool = False,
        type: Literal["text"],
        timeout: float | None = None,
    ) -> Page[str]: ...

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
        keys_only: Literal[False] = False,
        count: bool = False,
        revision: int | None = None,
        snapshot: bool = False,
        type: Literal["bytes"],
        timeout: float | None = None,
    ) -> Page[bytes]: ...

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
        """
        type = self._as(type)
        call = Call()
        request = call.list
        select(request, prefix, start=start, end=end, index=index, value=value)
        request.page_size = check_limit(limit)
        request.page_token = cursor or ""
        request.reverse, request.keys_only, request.count = reverse, keys_only, count
        request.revision = check_past_revision(revision)
        request.snapshot = snapshot
        reply = await self._backend.call(call, timeout_seconds=self._seconds(timeout))
        return decode_page(reply.list, type, keys_only=keys_only)

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
        keys_only: Literal[True],
        revision: int | None = None,
        snapshot: bool = False,
        type: ValueType | None = None,
    ) -> AsyncIterator[Entry[None]]: ...

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
        keys_only: Literal[False] = False,
        revision: int | None = None,
        snapshot: bool = False,
        type: Literal["text"],
    ) -> AsyncIterator[Entry[str]]: ...

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
        keys_only: Literal[False] = False,
        revision: int | None = None,
        snapshot: bool = False,
        type: Literal["bytes"],
    ) -> AsyncIterator[Entry[bytes]]: ...

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

    async def add(
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
        """Add to an integer, and return the sum; an absent key counts as 0.

        The value is a JSON number, from -2**63 to 2**63 - 1. Raises `NotAnInteger`,
        `IntegerOverflow`, or `OutOfBounds` if the sum would leave `min` to `max`, and then
        nothing was written. With `saturate` it stops at the bounds instead, those of the
        integer too: `applied` of the sum says how much was added. `ttl` counts if this
        creates the key. Otherwise its expiry stays, as do metadata and indexes.
        """
        operation = operations.add(key, amount, min=min, max=max, saturate=saturate, ttl=ttl)
        added = (await self._operate(operation, timeout)).add
        return Sum(added.value, added.applied)

    async def touch(self, key: Key, ttl: Duration, *, timeout: float | None = None) -> bool:
        """Let a key live so long from now, and return whether it is there.

        It is no write of the value: revision and version stay, and nobody is told.
        """
        return (await self._operate(operations.touch(key, ttl), timeout)).touch.touched

    async def persist(self, key: Key, *, timeout: float | None = None) -> bool:
        """Let a key stay for ever, and return whether it is there."""
        return (await self._operate(operations.persist(key), timeout)).touch.touched

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
        return to_seconds(expire_time_ms - page.log_time_ms) if expire_time_ms else None

    async def rate_limit(self, *rules: RateLimit, timeout: float | None = None) -> RateLimitResult:
        """Take from all limits, if all have room, and from none otherwise.

        The result is true if they had. It is decided by log time, in one round trip; a
        refusal writes nothing.
        """
        result = await self._operate(operations.rate_limit(rules), timeout)
        return operations.read_rate_limit(result.rate_limit)

    def atomic(self) -> Atomic:
        """Begin checks and operations that `commit` carries out together, or not at all."""
        return Atomic(self._commit, self._type)

    def transaction(
        self,
        *,
        attempts: int = limits.DEFAULT_TRANSACTION_ATTEMPTS,
        timeout: float | None = None,
    ) -> Attempts:
        """Begin reads and writes that are carried out together, or not at all.

            async for attempt in kv.transaction():
                async with attempt as txn:
                    entry = await txn.get("a")
                    txn.put("a", entry.value + 1)

        Reads are of one revision, writes are kept until the body is done. They are then
        committed, unless something that was read has changed: then the body runs again,
        after a pause. Raises `Conflict` after so many `attempts`, or when the `timeout`, of
        all of them together, leaves no time for another. What the body raises ends it, and
        nothing is written; so do `break` and `return`, with a RuntimeWarning. To return what
        was found, give the body to `run`:

            value = await kv.transaction().run(body)    # async def body(txn): ...
        """
        seconds = self._seconds(timeout)
        return Attempts(Loop(self._carry, attempts=attempts, timeout_seconds=seconds), self._type)

    async def close(self) -> None:
        """Release the store. Calls under way fail with `Closed`. May be repeated."""
        self._closed = True
        await self._backend.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{self.__class__.__name__} {self._target} {'closed' if self._closed else 'open'}>"

    async def _operate(self, operation: pb.Operation, timeout: float | None) -> pb.OperationResult:
        """Carry out one operation without conditions."""
        return (await self._transact(operation, timeout)).results[0]

    async def _transact(
        self, operation: pb.Operation, timeout: float | None, *conditions: pb.Check
    ) -> pb.TransactionResult:
        transaction = pb.Transaction(checks=conditions, operations=[operation])
        result = await self._commit(transaction, timeout)
        if not result.succeeded:
            raise checks.conflict(conditions[result.failed_check], result.failed_check)
        return result

    async def _commit(
        self, transaction: pb.Transaction, timeout: float | None
    ) -> pb.TransactionResult:
        call = Call()
        call.txn.transaction.CopyFrom(transaction)
        reply = await self._backend.call(call, timeout_seconds=self._seconds(timeout))
        return reply.txn.result

    async def _carry(self, call: Call, seconds: float) -> Reply:
        return await self._backend.call(call, timeout_seconds=seconds)

    def _as(self, type: ValueType | None) -> ValueType:
        return self._type if type is None else check_type(type)

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else check_timeout(timeout)


def _retrieve(task: "asyncio.Task[Page[Any]]") -> None:
    """The scan may have been given up: then nobody asks how its last page has failed."""
    if not task.cancelled():
        task.exception()
