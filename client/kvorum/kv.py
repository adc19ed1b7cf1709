"""The store, for asyncio programs."""

# ruff: noqa: A001 - `type` and `timeout` are the words of the public API

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Literal, Self, overload

from kvorum import limits
from kvorum.arguments import check_amount, check_limit, check_timeout, select
from kvorum.atomic import Atomic
from kvorum.backends import Backend
from kvorum.codecs import Key, ValueType, check_type, decode_entry, encode_key, encode_value
from kvorum.entry import Entry, Page
from kvorumpb.v1.command_pb2 import Transaction, TransactionResult
from kvorumpb.v1.kv_pb2 import Call


class KV:
    """A store: ordered keys, each with a value and a revision. Made by `kvorum.open`.

    Reads and writes are linearizable. A write that has returned is on the disk
    (of a majority of the nodes, if the store is a cluster).

    Every method takes `timeout` in seconds, all retries included, and raises

    - `InvalidArgument` or one of its kinds if the request is wrong: `LimitExceeded`;
    - `DeadlineExceeded` when time is out; `maybe_applied` says whether a write is in doubt;
    - `NoNodeReachable` when time is out, and no node has answered at all;
    - `OutcomeUnknown` if the connection was lost after a write was sent: it may or may not
      be applied;
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
        self, key: Key, *, type: Literal["text"], timeout: float | None = None
    ) -> Entry[str] | None: ...

    @overload
    async def get(
        self, key: Key, *, type: Literal["bytes"], timeout: float | None = None
    ) -> Entry[bytes] | None: ...

    @overload
    async def get(
        self, key: Key, *, type: ValueType | None = None, timeout: float | None = None
    ) -> Entry[Any] | None: ...

    async def get(
        self, key: Key, *, type: ValueType | None = None, timeout: float | None = None
    ) -> Entry[Any] | None:
        """Read an entry; None if the key is absent. `DecodeError` if it is of another type."""
        type = self._as(type)
        call = Call()
        call.get.key = encode_key(key)
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
        limit: int = 100,
        cursor: str | None = None,
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
        limit: int = 100,
        cursor: str | None = None,
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
        limit: int = 100,
        cursor: str | None = None,
        type: ValueType | None = None,
        timeout: float | None = None,
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
        timeout: float | None = None,
    ) -> Page[Any]:
        """Read up to `limit` entries, in the order of their keys' bytes.

        Lists the keys that begin with `prefix`, or else those from `start`
        (included) to `end` (excluded). `cursor` is that of the page before; it is
        bound to the selection, and `InvalidCursor` with another one. A page also
        ends at `limits.MAX_PAGE_BYTES`, so that it may be shorter than `limit` and
        not the last: only `complete` tells. Each page reads the newest state: a
        key that stays is neither skipped nor repeated.
        """
        type = self._as(type)
        call = Call()
        request = call.list
        select(request, prefix, start, end)
        request.page_size = check_limit(limit)
        request.page_token = cursor or ""
        reply = await self._backend.call(call, timeout_seconds=self._seconds(timeout))
        page = reply.list
        return Page(
            entries=tuple(decode_entry(record, type) for record in page.records),
            cursor=page.next_page_token or None,
            complete=not page.next_page_token,
            revision=page.revision,
        )

    @overload
    def scan(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        page_size: int = limits.DEFAULT_PAGE_RECORDS,
        type: Literal["text"],
    ) -> AsyncIterator[Entry[str]]: ...

    @overload
    def scan(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        page_size: int = limits.DEFAULT_PAGE_RECORDS,
        type: Literal["bytes"],
    ) -> AsyncIterator[Entry[bytes]]: ...

    @overload
    def scan(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        page_size: int = limits.DEFAULT_PAGE_RECORDS,
        type: ValueType | None = None,
    ) -> AsyncIterator[Entry[Any]]: ...

    async def scan(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        page_size: int = limits.DEFAULT_PAGE_RECORDS,
        type: ValueType | None = None,
    ) -> AsyncIterator[Entry[Any]]:
        """Iterate over all entries that `list` would return, page by page."""
        cursor = None
        while True:
            page = await self.list(
                prefix, start=start, end=end, limit=page_size, cursor=cursor, type=type
            )
            for entry in page.entries:
                yield entry
            if page.complete:
                return
            cursor = page.cursor

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
