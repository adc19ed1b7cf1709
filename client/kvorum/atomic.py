"""Checks and operations that happen together, at one revision, or not at all."""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Self

from kvorum import limits
from kvorum.arguments import check_amount, check_revision
from kvorum.codecs import (
    Key,
    ValueType,
    check_type,
    decode_entry,
    decode_key,
    encode_key,
    encode_value,
)
from kvorum.errors import Conflict, InvalidArgument, KvorumError, LimitExceeded
from kvorumpb.v1.command_pb2 import (
    AddOperation,
    Check,
    DeleteOperation,
    GetOperation,
    Operation,
    OperationResult,
    PutOperation,
    Transaction,
    TransactionResult,
)


@dataclass(frozen=True, slots=True)
class AtomicResult:
    """What a commit did."""

    revision: int
    """At which it wrote; if it wrote nothing, at which it was evaluated."""

    results: tuple[Any, ...]
    """For each operation, in order, what the store's method of that name returns:
    put the revision, get the entry or None, delete whether it was there, add the sum."""


class Atomic:
    """Checks and operations for one `commit`. Made by `KV.atomic`; calls can be chained.

    await kv.atomic().check("a", revision=3).put("a", 1).add("n", 5).commit()
    """

    def __init__(
        self,
        carry_out: Callable[[Transaction, float | None], Awaitable[TransactionResult]],
        default_type: ValueType,
    ) -> None:
        self._carry_out = carry_out
        self._default_type = default_type
        self._transaction = Transaction()
        self._types: list[ValueType] = []
        """For each operation, as what a value is read."""
        self._committed = False

    def check(self, key: Key, *, revision: int | None = None, exists: bool | None = None) -> Self:
        """Commit only if the key has this `revision` (0: it is absent), or only if it `exists`.

        All checks see the state before the first operation.
        """
        if (revision is None) == (exists is None):
            raise InvalidArgument(f"the check of {key!r} takes either revision or exists")
        check = Check(key=encode_key(key))
        if revision is not None:
            check.revision = check_revision(revision)
        else:
            check.exists = bool(exists)
        self._transaction.checks.append(check)
        return self

    def put(self, key: Key, value: Any, *, type: ValueType | None = None) -> Self:
        """Write a value."""
        written_as = self._default_type if type is None else check_type(type)
        data = encode_value(value, written_as, key)
        return self._append(Operation(put=PutOperation(key=encode_key(key), value=data)))

    def get(self, key: Key, *, type: ValueType | None = None) -> Self:
        """Read an entry, as it is after the operations before this one."""
        return self._append(Operation(get=GetOperation(key=encode_key(key))), type)

    def delete(self, key: Key) -> Self:
        """Remove a key, if it is there."""
        return self._append(Operation(delete=DeleteOperation(key=encode_key(key))))

    def add(self, key: Key, amount: int = 1) -> Self:
        """Add to an integer; if that fails, so does the whole commit."""
        operation = AddOperation(key=encode_key(key), amount=check_amount(amount))
        return self._append(Operation(add=operation))

    async def commit(self, *, timeout: float | None = None) -> AtomicResult:
        """Carry it out, once. Raises `Conflict` if a check does not hold; else like `KV.put`.

        A failed operation raises `OperationFailed`, and nothing was written.
        """
        return self._read(await self._carry_out(self._take(), timeout))

    def _append(self, operation: Operation, type: ValueType | None = None) -> Self:
        self._transaction.operations.append(operation)
        self._types.append(self._default_type if type is None else check_type(type))
        return self

    def _take(self) -> Transaction:
        """Hand over what was built, once."""
        if self._committed:
            raise InvalidArgument("this was committed already: begin a new one with atomic()")
        transaction = self._transaction
        for limit, maximum, actual in (
            (
                "MAX_TRANSACTION_OPERATIONS",
                limits.MAX_TRANSACTION_OPERATIONS,
                len(transaction.checks) + len(transaction.operations),
            ),
            ("MAX_TRANSACTION_BYTES", limits.MAX_TRANSACTION_BYTES, transaction.ByteSize()),
        ):
            if actual > maximum:
                raise LimitExceeded(
                    f"the transaction is at {actual} of {maximum} allowed ({limit}): split it",
                    limit=limit,
                    maximum=maximum,
                    actual=actual,
                )
        self._committed = True
        return transaction

    def _read(self, result: TransactionResult) -> AtomicResult:
        if not result.succeeded:
            key = decode_key(self._transaction.checks[result.failed_check].key)
            raise Conflict(
                f"the check of {key!r} did not hold; nothing was written",
                check=result.failed_check,
                key=key,
            )
        values = (
            _read_operation(operation, result.revision, read_as)
            for operation, read_as in zip(result.results, self._types, strict=True)
        )
        return AtomicResult(result.revision, tuple(values))


class SyncAtomic:
    """`Atomic` for threads. Made by `SyncKV.atomic`."""

    def __init__(
        self, inner: Atomic, run: Callable[[Coroutine[Any, Any, AtomicResult]], AtomicResult]
    ) -> None:
        self._inner = inner
        self._run = run

    def check(self, key: Key, *, revision: int | None = None, exists: bool | None = None) -> Self:
        """Like `Atomic.check`."""
        self._inner.check(key, revision=revision, exists=exists)
        return self

    def put(self, key: Key, value: Any, *, type: ValueType | None = None) -> Self:
        """Like `Atomic.put`."""
        self._inner.put(key, value, type=type)
        return self

    def get(self, key: Key, *, type: ValueType | None = None) -> Self:
        """Like `Atomic.get`."""
        self._inner.get(key, type=type)
        return self

    def delete(self, key: Key) -> Self:
        """Like `Atomic.delete`."""
        self._inner.delete(key)
        return self

    def add(self, key: Key, amount: int = 1) -> Self:
        """Like `Atomic.add`."""
        self._inner.add(key, amount)
        return self

    def commit(self, *, timeout: float | None = None) -> AtomicResult:
        """Like `Atomic.commit`."""
        return self._run(self._inner.commit(timeout=timeout))


def _read_operation(result: OperationResult, revision: int, type: ValueType) -> Any:
    match result.WhichOneof("result"):
        case "get":
            return decode_entry(result.get.record, type) if result.get.HasField("record") else None
        case "put":
            return revision
        case "delete":
            return result.delete.deleted
        case "add":
            return result.add.value
        case other:
            raise KvorumError(f"the node gave a result that this client does not know: {other}")
