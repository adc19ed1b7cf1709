"""Transactions run one after the other, on an overlay over the engine.

Rules: a read sees the writes of the operations before it, of the transactions
before it, and then the engine's. Writes stay in the overlay until the machine
takes them, so that whatever happens on the way, the engine has seen nothing. A
transaction whose operation fails leaves no trace.

What the records of one transaction look like: all carry its one revision, and
every write of a record counts in its version. Deleting a key and writing it
again creates it anew. (Validation refuses two writes to one key in a branch, as
only the last could ever be seen; should they be in the log, they have the
meaning they would have one after the other.)
"""

from collections.abc import Iterable
from typing import Final, assert_never

from kvorum import limits
from kvorum_node.machine import records
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorumpb.v1.command_pb2 import (
    AddOperation,
    AddResult,
    Check,
    DeleteResult,
    GetResult,
    Operation,
    OperationError,
    OperationResult,
    PutResult,
    Record,
    Transaction,
    TransactionResult,
)

# Results that are always the same are made once; a message copies what it is given.
_PUT: Final = OperationResult(put=PutResult())
_DELETED: Final = OperationResult(delete=DeleteResult(deleted=True))
_NOT_DELETED: Final = OperationResult(delete=DeleteResult(deleted=False))
_ABSENT: Final = OperationResult(get=GetResult())

_LONGEST_INTEGER: Final = len(str(limits.MIN_INTEGER))


class _OperationFailed(Exception):
    """Undoes the transaction under way."""

    def __init__(self, reason: OperationError.Reason.ValueType, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Execution:
    """What committed transactions do to the records of one group, before the engine knows."""

    __slots__ = ("_done", "_engine", "_prefix", "_result_bytes", "_writes", "revision")

    def __init__(self, engine: Engine, prefix: bytes, revision: int) -> None:
        """`prefix` begins every storage key of the state; `revision` is where it stands."""
        self.revision = revision
        self._engine = engine
        self._prefix = prefix
        # By key, None for a deleted one: what is certain, and what the transaction
        # under way has written so far.
        self._done: dict[bytes, Record | None] = {}
        self._writes: dict[bytes, Record | None] = {}
        self._result_bytes = 0

    def run(self, transaction: Transaction) -> TransactionResult:
        """Carry out one transaction, which must hold nothing that commands.py would refuse."""
        checks = transaction.checks
        failed_check = self._first_failed(checks) if checks else None
        branch = transaction.operations if failed_check is None else transaction.otherwise
        self._result_bytes = 0
        results = []
        try:
            for operation in branch:
                results.append(self._operate(operation))  # noqa: PERF401 - read below
        except _OperationFailed as failure:
            self._writes = {}
            return TransactionResult(
                revision=self.revision,
                failed_check=failed_check,
                error=OperationError(
                    reason=failure.reason, operation=len(results), message=failure.message
                ),
            )
        if self._writes:
            self.revision += 1
            self._done.update(self._writes)
            self._writes = {}
        return TransactionResult(
            succeeded=failed_check is None,
            revision=self.revision,
            failed_check=failed_check,
            results=results,
        )

    def save(self, batch: Batch) -> None:
        """Put what all transactions have written into the batch, each key once."""
        for key, record in self._done.items():
            if record is None:
                batch.delete(Family.DATA, self._prefix + key)
            else:
                batch.put(Family.DATA, self._prefix + key, record.SerializeToString())

    def _first_failed(self, checks: Iterable[Check]) -> int | None:
        for position, check in enumerate(checks):
            if not self._holds(check):
                return position
        return None

    def _holds(self, check: Check) -> bool:
        record = self._read(check.key)
        match check.WhichOneof("condition"):
            case "revision":
                return check.revision == (0 if record is None else record.revision)
            case "exists":
                return check.exists == (record is not None)
            case None:
                raise AssertionError("a check without a condition passed the decoder")
            case unexpected:
                assert_never(unexpected)

    def _operate(self, operation: Operation) -> OperationResult:
        match operation.WhichOneof("operation"):
            case "put":
                put = operation.put
                key = put.key
                self._write(key, put.value, self._read(key))
                return _PUT
            case "get":
                return self._get(operation.get.key)
            case "delete":
                key = operation.delete.key
                if self._read(key) is None:
                    return _NOT_DELETED
                self._writes[key] = None
                return _DELETED
            case "add":
                return self._add(operation.add)
            case None:
                raise AssertionError("an operation of no kind passed the decoder")
            case unexpected:
                assert_never(unexpected)

    def _get(self, key: bytes) -> OperationResult:
        record = self._read(key)
        if record is None:
            return _ABSENT
        self._result_bytes += len(key) + len(record.value)
        if self._result_bytes > limits.MAX_RESULT_BYTES:
            raise _OperationFailed(
                OperationError.RESULT_TOO_LARGE,
                f"the gets of the transaction found {self._result_bytes} bytes; at most"
                f" {limits.MAX_RESULT_BYTES} are returned: read large values with get",
            )
        result = OperationResult(get=GetResult(record=record))
        result.get.record.key = key
        return result

    def _add(self, add: AddOperation) -> OperationResult:
        record = self._read(add.key)
        value = add.amount if record is None else _integer(record.value) + add.amount
        if not limits.MIN_INTEGER <= value <= limits.MAX_INTEGER:
            raise _OperationFailed(
                OperationError.INTEGER_OVERFLOW,
                f"adding {add.amount} would give {value}, beyond the range of int64",
            )
        self._write(add.key, str(value).encode(), record)
        return OperationResult(add=AddResult(value=value))

    def _read(self, key: bytes) -> Record | None:
        if key in self._writes:
            return self._writes[key]
        if key in self._done:
            return self._done[key]
        stored = self._engine.get(Family.DATA, self._prefix + key)
        if stored is None:
            return None
        record = Record()
        records.load(record, key, stored)
        return record

    def _write(self, key: bytes, value: bytes, current: Record | None) -> None:
        revision = self.revision + 1
        self._writes[key] = Record(
            value=value,
            revision=revision,
            created_revision=revision if current is None else current.created_revision,
            version=1 if current is None else current.version + 1,
        )


def _integer(value: bytes) -> int:
    """The int64 whose one and only decimal text is `value`: no plus, no padding, no -0."""
    if len(value) <= _LONGEST_INTEGER:
        try:
            number = int(value)
        except ValueError:
            pass
        else:
            in_range = limits.MIN_INTEGER <= number <= limits.MAX_INTEGER
            if in_range and str(number).encode() == value:
                return number
    raise _OperationFailed(
        OperationError.NOT_AN_INTEGER,
        "the value is not an integer: add needs the decimal text of an int64, such as -7",
    )
