"""The store, for asyncio programs."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from kvorum import checks, limits, operations
from kvorum.atomic import Atomic
from kvorum.codecs import (
    Key,
    Typed,
    ValueType,
    decode_entry,
    encode_key,
    encode_value,
)
from kvorum.durations import Duration, encode_ttl
from kvorum.entry import Entry, IndexEntry
from kvorum.model import RateLimit, RateLimitResult, Sum
from kvorum.optimistic import Loop
from kvorum.reading import Reader
from kvorum.transaction import Attempts
from kvorumpb.v1 import command_pb2 as pb
from kvorumpb.v1.kv_pb2 import Call, Reply

T = TypeVar("T")


class KV(Reader):
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

    `type` says how a value is written or read: "json", "text", "bytes", "msgpack", a
    pydantic or msgspec model, or a `Codec`; without it, as `open` was told. A store belongs
    to the event loop it was opened in.
    """

    async def put(
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
        """Write a value, and return the revision at which it was written.

        A model needs no `type`: it is written as its JSON, wherever JSON is.

        It replaces all that the key had: without `ttl` (seconds, or a timedelta; at most a
        hundred years) it stays for ever. With `keep_ttl`, the expiry of what is replaced
        stays as it is, and `ttl` counts if this creates the key. `metadata` of up to 4 KiB is
        read beside the value, and `index_entries` are what the record is found under;
        `UniqueViolation` if another one has a unique entry.

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
                keep_ttl=keep_ttl,
                codec=self._as(type),
            )
            condition = checks.check_key(
                key, revision=revision, exists=exists, codec=self._as(type)
            )
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
        if keep_ttl:
            request.keep_ttl = True
        reply = await self._backend.call(call, timeout_seconds=self._seconds(timeout))
        return reply.put.revision

    async def delete(
        self, key: Key, *, revision: int | None = None, timeout: float | None = None
    ) -> bool:
        """Remove a key, and return whether it was there.

        With `revision`, only if the key is at it; `Conflict` otherwise, and if it is absent.
        """
        if revision is not None:
            condition = checks.check_key(key, revision=revision, codec=self._codec)
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
        self, key: Key, *, type: Typed[T], timeout: float | None = None
    ) -> Entry[T] | None: ...

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
        codec = self._as(type)
        operation = operations.delete(key, return_previous=True)
        deleted = (await self._operate(operation, timeout)).delete
        return decode_entry(deleted.previous, codec) if deleted.deleted else None

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
        `limits.MAX_RANGE_RECORDS`, or come to more than `limits.MAX_REPLACED_BYTES`. With a
        `limit`, the first so many of them, or as many as one transaction may remove: call it
        until it returns 0 to remove all. An empty prefix is refused, as it is every
        key; `start=""` says so too, and is meant.
        """
        operation = operations.delete_range(prefix, start, end, limit)
        return (await self._operate(operation, timeout)).delete_range.deleted

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

    async def rate_limit(self, *rules: RateLimit, timeout: float | None = None) -> RateLimitResult:
        """Take from all limits, if all have room, and from none otherwise.

        The result is true if they had. It is decided by log time, in one round trip; a
        refusal writes nothing.
        """
        result = await self._operate(operations.rate_limit(rules), timeout)
        return operations.read_rate_limit(result.rate_limit)

    def atomic(self) -> Atomic:
        """Begin checks and operations that `commit` carries out together, or not at all."""
        return Atomic(self._commit, self._codec)

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
        return Attempts(Loop(self._carry, attempts=attempts, timeout_seconds=seconds), self._codec)

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
        call = Call()
        # Straight into the call: a value may be large, and each step would copy it.
        call.txn.transaction.operations.append(operation)
        call.txn.transaction.checks.extend(conditions)
        result = (await self._carry(call, self._seconds(timeout))).txn.result
        if not result.succeeded:
            raise checks.conflict(conditions[result.failed_check], result.failed_check)
        return result

    async def _commit(
        self, transaction: pb.Transaction, timeout: float | None
    ) -> pb.TransactionResult:
        call = Call()
        call.txn.transaction.CopyFrom(transaction)
        return (await self._carry(call, self._seconds(timeout))).txn.result

    async def _carry(self, call: Call, seconds: float) -> Reply:
        return await self._backend.call(call, timeout_seconds=seconds)
