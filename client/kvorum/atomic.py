"""Checks and operations that happen together, at one revision, or not at all."""

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from kvorum import checks, operations
from kvorum.codecs import Codec, Key, ValueType, codec_of, decode_key
from kvorum.durations import Duration
from kvorum.entry import IndexEntry, instant
from kvorum.errors import InvalidArgument
from kvorum.model import RateLimit
from kvorum.ranges import encode_range
from kvorumpb.v1.command_pb2 import Operation, Transaction, TransactionResult


@dataclass(frozen=True, slots=True)
class AtomicResult:
    """What a commit did."""

    revision: int
    """At which it wrote; if it wrote nothing, at which it was evaluated."""

    at: datetime
    """When, by the store's log time: what it gave a `ttl` expires so long after this."""

    results: tuple[Any, ...]
    """For each operation that ran, in order, what the store's method of that name returns. A
    list has no cursor: go on after its last key."""

    succeeded: bool = True
    """True if every check held; False if the operations after `otherwise` ran instead."""

    failed_check: int | None = None
    """The position of the first check that did not hold, from 0."""


class Atomic:
    """Checks and operations for one `commit`. Made by `KV.atomic`; calls can be chained.

    await kv.atomic().check("a", revision=3).put("a", 1).add("n", 5).commit()

    An operation sees what the ones before it have done. One branch may write each key
    once. A failed operation undoes the whole.
    """

    def __init__(
        self,
        carry_out: Callable[[Transaction, float | None], Awaitable[TransactionResult]],
        default_codec: Codec[Any],
    ) -> None:
        self._carry_out = carry_out
        self._default_codec = default_codec
        self._transaction = Transaction()
        self._branch = self._transaction.operations
        self._codecs: list[Codec[Any]] = []
        """For each operation of the branch that is being built, as what a value is read."""
        self._codecs_before_otherwise: list[Codec[Any]] | None = None
        self._written: set[bytes] = set()
        self._limited: set[bytes] = set()
        self._committed = False

    def check(
        self,
        key: Key,
        *,
        revision: int | None = None,
        exists: bool | None = None,
        version: int | None = None,
        value: Any = ...,
        unchanged_since: int | None = None,
        type: ValueType | None = None,
    ) -> Self:
        """Commit only if the key has this `revision` (0: it is absent), or only if it `exists`.

        Or only if it has this `version` (0: it is absent), or exactly the bytes of this
        `value`, or if it was `unchanged_since` a revision: neither written, nor deleted,
        nor expired. The last does not hold either if the store cannot tell any more.
        Takes one condition; check twice to have two. All checks see the state before
        the first operation.
        """
        return self._append_check(
            checks.check_key(
                key,
                revision=revision,
                exists=exists,
                version=version,
                value=value,
                unchanged_since=unchanged_since,
                codec=self._as(type),
            )
        )

    def check_range(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        revision: int | None = None,
        exists: bool | None = None,
        version: int | None = None,
        value: Any = ...,
        unchanged_since: int | None = None,
        type: ValueType | None = None,
    ) -> Self:
        """Like `check`, of all keys with a prefix or in a range.

        `exists` says whether there is any. `unchanged_since` is of the range as a
        whole: no key has come, gone or changed. The others hold if they hold for every
        record, of which there may be `limits.MAX_RANGE_RECORDS`.
        """
        return self._append_check(
            checks.check_range(
                encode_range(prefix, start, end),
                revision=revision,
                exists=exists,
                version=version,
                value=value,
                unchanged_since=unchanged_since,
                codec=self._as(type),
            )
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
    ) -> Self:
        """Write a value, like `KV.put`."""
        return self._append(
            operations.put(
                key,
                value,
                ttl=ttl,
                metadata=metadata,
                index_entries=index_entries,
                keep_ttl=keep_ttl,
                codec=self._as(type),
            )
        )

    def get(self, key: Key, *, type: ValueType | None = None) -> Self:
        """Read an entry, as it is after the operations before this one."""
        return self._append(operations.get(key), type)

    def list(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        limit: int = 100,
        reverse: bool = False,
        keys_only: bool = False,
        type: ValueType | None = None,
    ) -> Self:
        """Read up to `limit` entries, as they are after the operations before this one.

        In the order of the keys, or against it, with values or without.
        """
        return self._append(
            operations.list_range(
                prefix, start, end, limit=limit, reverse=reverse, keys_only=keys_only
            ),
            type,
        )

    def delete(self, key: Key) -> Self:
        """Remove a key, if it is there."""
        return self._append(operations.delete(key))

    def get_and_delete(self, key: Key, *, type: ValueType | None = None) -> Self:
        """Remove a key, and read what it had."""
        return self._append(operations.delete(key, return_previous=True), type)

    def delete_range(
        self,
        prefix: Key | None = None,
        *,
        start: Key | None = None,
        end: Key | None = None,
        limit: int | None = None,
    ) -> Self:
        """Remove keys, like `KV.delete_range`."""
        return self._append(operations.delete_range(prefix, start, end, limit))

    def add(
        self,
        key: Key,
        amount: int = 1,
        *,
        min: int | None = None,
        max: int | None = None,
        saturate: bool = False,
        ttl: Duration | None = None,
    ) -> Self:
        """Add to an integer, like `KV.add`."""
        return self._append(
            operations.add(key, amount, min=min, max=max, saturate=saturate, ttl=ttl)
        )

    def touch(self, key: Key, ttl: Duration) -> Self:
        """Let a key live so long from now, if it is there."""
        return self._append(operations.touch(key, ttl))

    def persist(self, key: Key) -> Self:
        """Let a key stay for ever, if it is there."""
        return self._append(operations.persist(key))

    def rate_limit(self, *rules: RateLimit) -> Self:
        """Take from all limits or from none, like `KV.rate_limit`: a refusal undoes nothing."""
        return self._append(operations.rate_limit(rules))

    def otherwise(self) -> Self:
        """What follows runs instead, if a check does not hold; `commit` then raises no Conflict.

        May be followed by nothing.
        """
        if self._codecs_before_otherwise is not None:
            raise InvalidArgument("otherwise was said already")
        self._codecs_before_otherwise, self._codecs = self._codecs, []
        self._branch = self._transaction.otherwise
        self._written, self._limited = set(), set()
        return self

    async def commit(self, *, timeout: float | None = None) -> AtomicResult:
        """Carry it out, once. Raises `Conflict` if a check does not hold; else like `KV.put`.

        A failed operation raises `OperationFailed`, and nothing was written.
        """
        return self._read(await self._carry_out(self._take(), timeout))

    def _append_check(self, check: Any) -> Self:
        if self._codecs_before_otherwise is not None:
            raise InvalidArgument("a check stands before otherwise: it decides between the two")
        self._transaction.checks.append(check)
        return self

    def _append(self, operation: Operation, type: ValueType | None = None) -> Self:
        codec = self._as(type)
        key = operations.written_key(operation)
        if key is not None:
            self._once(self._written, [key], "written")
        self._once(self._limited, operations.limited_keys(operation), "a rate limit")
        self._branch.append(operation)
        self._codecs.append(codec)
        return self

    def _once(self, seen: set[bytes], keys: Iterable[bytes], what: str) -> None:
        for key in keys:
            if key in seen:
                raise InvalidArgument(
                    f"{decode_key(key)!r} is {what} twice here: keep the last write of each key"
                )
            seen.add(key)

    def _take(self) -> Transaction:
        """Hand over what was built, once."""
        if self._committed:
            raise InvalidArgument("this was committed already: begin a new one with atomic()")
        if not self._transaction.ByteSize():
            raise InvalidArgument("there is nothing to commit: add an operation or a check")
        operations.check_size(self._transaction)
        self._committed = True
        return self._transaction

    def _read(self, result: TransactionResult) -> AtomicResult:
        built = self._transaction
        first, second = self._codecs_before_otherwise, self._codecs
        if result.succeeded:
            branch, codecs = built.operations, second if first is None else first
        elif first is None:
            raise checks.conflict(built.checks[result.failed_check], result.failed_check)
        else:
            branch, codecs = built.otherwise, second
        return AtomicResult(
            revision=result.revision,
            at=instant(result.log_time_ms),
            results=tuple(
                operations.read_result(operation, outcome, result.revision, codec)
                for operation, outcome, codec in zip(branch, result.results, codecs, strict=True)
            ),
            succeeded=result.succeeded,
            failed_check=None if result.succeeded else result.failed_check,
        )

    def _as(self, type: ValueType | None) -> Codec[Any]:
        return self._default_codec if type is None else codec_of(type)


class SyncAtomic:
    """`Atomic` for threads. Made by `SyncKV.atomic`."""

    def __init__(
        self, inner: Atomic, run: Callable[[Coroutine[Any, Any, AtomicResult]], AtomicResult]
    ) -> None:
        self._inner = inner
        self._run = run

    def check(
        self,
        key: Key,
        *,
        revision: int | None = None,
        exists: bool | None = None,
        version: int | None = None,
        value: Any = ...,
        unchanged_since: int | None = None,
        type: ValueType | None = None,
    ) -> Self:
        """Like `Atomic.check`."""
        self._inner.check(
            key,
            revision=revision,
            exists=exists,
            version=version,
            value=value,
            unchanged_since=unchanged_since,
            type=type,
        )
        return self

    def check_range(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        revision: int | None = None,
        exists: bool | None = None,
        version: int | None = None,
        value: Any = ...,
        unchanged_since: int | None = None,
        type: ValueType | None = None,
    ) -> Self:
        """Like `Atomic.check_range`."""
        self._inner.check_range(
            prefix,
            start=start,
            end=end,
            revision=revision,
            exists=exists,
            version=version,
            value=value,
            unchanged_since=unchanged_since,
            type=type,
        )
        return self

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
    ) -> Self:
        """Like `Atomic.put`."""
        self._inner.put(
            key,
            value,
            ttl=ttl,
            metadata=metadata,
            index_entries=index_entries,
            keep_ttl=keep_ttl,
            type=type,
        )
        return self

    def get(self, key: Key, *, type: ValueType | None = None) -> Self:
        """Like `Atomic.get`."""
        self._inner.get(key, type=type)
        return self

    def list(
        self,
        prefix: Key = "",
        *,
        start: Key | None = None,
        end: Key | None = None,
        limit: int = 100,
        reverse: bool = False,
        keys_only: bool = False,
        type: ValueType | None = None,
    ) -> Self:
        """Like `Atomic.list`."""
        self._inner.list(
            prefix,
            start=start,
            end=end,
            limit=limit,
            reverse=reverse,
            keys_only=keys_only,
            type=type,
        )
        return self

    def delete(self, key: Key) -> Self:
        """Like `Atomic.delete`."""
        self._inner.delete(key)
        return self

    def get_and_delete(self, key: Key, *, type: ValueType | None = None) -> Self:
        """Like `Atomic.get_and_delete`."""
        self._inner.get_and_delete(key, type=type)
        return self

    def delete_range(
        self,
        prefix: Key | None = None,
        *,
        start: Key | None = None,
        end: Key | None = None,
        limit: int | None = None,
    ) -> Self:
        """Like `Atomic.delete_range`."""
        self._inner.delete_range(prefix, start=start, end=end, limit=limit)
        return self

    def add(
        self,
        key: Key,
        amount: int = 1,
        *,
        min: int | None = None,
        max: int | None = None,
        saturate: bool = False,
        ttl: Duration | None = None,
    ) -> Self:
        """Like `Atomic.add`."""
        self._inner.add(key, amount, min=min, max=max, saturate=saturate, ttl=ttl)
        return self

    def touch(self, key: Key, ttl: Duration) -> Self:
        """Like `Atomic.touch`."""
        self._inner.touch(key, ttl)
        return self

    def persist(self, key: Key) -> Self:
        """Like `Atomic.persist`."""
        self._inner.persist(key)
        return self

    def rate_limit(self, *rules: RateLimit) -> Self:
        """Like `Atomic.rate_limit`."""
        self._inner.rate_limit(*rules)
        return self

    def otherwise(self) -> Self:
        """Like `Atomic.otherwise`."""
        self._inner.otherwise()
        return self

    def commit(self, *, timeout: float | None = None) -> AtomicResult:
        """Like `Atomic.commit`."""
        return self._run(self._inner.commit(timeout=timeout))
