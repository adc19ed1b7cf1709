"""The store, for asyncio programs."""

# ruff: noqa: A001 - `type` and `timeout` are the words of the public API

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Literal, Self, overload

from kvorum import limits
from kvorum.arguments import (
    check_amount,
    check_limit,
    check_past_revision,
    check_timeout,
    select,
)
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
from kvorum.entry import Entry, Page
from kvorumpb.v1.command_pb2 import Transaction, TransactionResult
from kvorumpb.v1.kv_pb2 import Call


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
        type: ValueType | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write a value, and return the revision at which it was written."""
        call = Call()
        request = call.put
        request.key = encode_key(key)
        request.value = encode_value(value, self._as(type), key)
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

    async def delete(self, key: Key, *, timeout: float | None = None) -> bool:
        """Remove a key, and return whether it was there."""
        call = Call()
        call.delete.key = encode_key(key)
        reply = await self._backend.call(call, timeout_seconds=self._seconds(timeout))
        return reply.delete.deleted

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

    async def add(self, key: Key, amount: int = 1, *, timeout: float | None = None) -> int:
        """Add to an integer, and return the sum; an absent key counts as 0.

        The value is a JSON number, from -2**63 to 2**63 - 1. Raises `NotAnInteger` or
        `IntegerOverflow`, and then nothing was written.
        """
        call = Call()
        operation = call.txn.transaction.operations.add().add
        operation.key = encode_key(key)
        operation.amount = check_amount(amount)
        reply = await self._backend.call(call, timeout_seconds=self._seconds(timeout))
        return reply.txn.result.results[0].add.value

    def atomic(self) -> Atomic:
        """Begin checks and operations that `commit` carries out together, or not at all."""
        return Atomic(self._commit, self._type)

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

    async def _commit(self, transaction: Transaction, timeout: float | None) -> TransactionResult:
        call = Call()
        call.txn.transaction.CopyFrom(transaction)
        reply = await self._backend.call(call, timeout_seconds=self._seconds(timeout))
        return reply.txn.result

    def _as(self, type: ValueType | None) -> ValueType:
        return self._type if type is None else check_type(type)

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else check_timeout(timeout)


def _retrieve(task: "asyncio.Task[Page[Any]]") -> None:
    """The scan may have been given up: then nobody asks how its last page has failed."""
    if not task.cancelled():
        task.exception()
