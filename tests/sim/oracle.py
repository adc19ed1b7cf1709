"""What clients may see: a model of the store, fed by the committed log, judges every answer.

Every change has its own revision, and every answer says at which revision it was given.
So the order in which things took effect is known, and linearizability is cheap to check:

    value       the answer is what the model says at that revision
    real time   the revision is not below any that was acknowledged before the call began,
                and above all of them if the call has changed something
    once        what was acknowledged is in the log, once; what was refused is not

The model is its own implementation of transactions, on Python's dicts: it shares nothing
with the state machine but the protocol.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from kvorum import limits
from kvorum_node.raft.types import Entry, EntryKind
from kvorumpb.v1.command_pb2 import (
    Check,
    CommandBatch,
    Operation,
    OperationError,
    OperationResult,
    Record,
    Transaction,
    TransactionResult,
)

Report = Callable[[str], None]
Outcome = tuple[str, object]
"""Of one operation: what it was, and what it returns."""


@dataclass(frozen=True, slots=True)
class Value:
    data: bytes
    revision: int
    created: int
    version: int


@dataclass(slots=True)
class Expected:
    """What a transaction returns, and what it changes."""

    succeeded: bool
    failed_check: int | None
    error: int | None
    outcomes: list[Outcome]
    writes: dict[bytes, Value | None]


class _Failure(Exception):
    def __init__(self, reason: int) -> None:
        super().__init__(reason)
        self.reason = reason


class Oracle:
    def __init__(self, report: Report) -> None:
        self._report = report
        self.revision = 0
        self.acknowledged = 0
        """The highest revision of which any client has heard."""
        self._commands: dict[int, bytes] = {}  # by revision
        self._versions: dict[bytes, tuple[list[int], list[Value | None]]] = {}
        self._once: set[bytes] = set()
        self._refused: set[bytes] = set()

    # What was committed.

    def applies(self, entry: Entry) -> None:
        if entry.kind is EntryKind.COMMANDS:
            for command in CommandBatch.FromString(entry.data).commands:
                self._apply(entry, command.transaction)

    def _apply(self, entry: Entry, transaction: Transaction) -> None:
        expected = self.evaluate(transaction, self.revision)
        data = transaction.SerializeToString()
        if is_unique(transaction):
            if data in self._once:
                self._report(f"once: {entry} holds for the second time {_text(transaction)}")
            if data in self._refused:
                self._report(f"once: {entry} holds what was refused: {_text(transaction)}")
            self._once.add(data)
        if expected.writes:
            self.revision += 1
            self._commands[self.revision] = data
            for key, value in expected.writes.items():
                revisions, values = self._versions.setdefault(key, ([0], [None]))
                revisions.append(self.revision)
                values.append(value)

    # What clients were told.

    def floor(self) -> int:
        """To be kept from the beginning of a call to its end."""
        return self.acknowledged

    def refused(self, transaction: Transaction) -> None:
        """A client was told that this was not applied, and never will be."""
        if is_unique(transaction):
            data = transaction.SerializeToString()
            self._refused.add(data)
            if data in self._once:
                self._report(f"once: applied, but refused: {_text(transaction)}")

    def written(
        self, transaction: Transaction, revision: int, floor: int, told: Expected | None
    ) -> None:
        """A client was told the outcome of a transaction; of a put, only the revision.

        It is the one that made the revision, or one that found nothing to change there.
        """
        if revision > self.revision:
            self._report(f"real time: revision {revision} of {_text(transaction)} is not committed")
            return
        possible: list[tuple[Expected, bool]] = []
        if self._commands.get(revision) == transaction.SerializeToString():
            possible.append((self.evaluate(transaction, revision - 1), revision > floor))
        unchanging = self.evaluate(transaction, revision)
        if not unchanging.writes:
            possible.append((unchanging, revision >= floor))
        if not possible:
            self._report(
                f"acknowledged write is lost: {_text(transaction)} is not revision {revision}"
            )
            return
        fitting = [
            in_time
            for expected, in_time in possible
            if told is None or _answer(told) == _answer(expected)
        ]
        if not fitting:
            self._report(
                f"value: {_text(transaction)} at {revision} gave {told and _answer(told)},"
                f" not {' or '.join(str(_answer(expected)) for expected, _ in possible)}"
            )
            return
        self._heard(revision, floor, in_time=any(fitting))

    def read(self, key: bytes, value: Value | None, revision: int, floor: int) -> None:
        """A client was told what the key held at the revision."""
        self._heard(revision, floor, in_time=revision >= floor)
        expected = self.at(key, revision)
        if revision <= self.revision and value != expected:
            self._report(f"value: {key!r} at {revision} was {value}, not {expected}")

    def listed(self, found: dict[bytes, Value], revision: int, floor: int) -> None:
        """A client was told all that the store held at the revision."""
        self._heard(revision, floor, in_time=revision >= floor)
        expected = self.content(revision)
        if revision <= self.revision and found != expected:
            self._report(f"value: at {revision} the list was {found}, not {expected}")

    def content(self, revision: int) -> dict[bytes, Value]:
        """All there was at the revision, in key order."""
        held = ((key, self.at(key, revision)) for key in sorted(self._versions))
        return {key: value for key, value in held if value is not None}

    def _heard(self, revision: int, floor: int, *, in_time: bool) -> None:
        if not in_time:
            self._report(
                f"real time: an answer is of revision {revision}, and {floor} had been"
                " acknowledged before the call"
            )
        if revision > self.revision:
            self._report(f"real time: an answer is of revision {revision}, which is not committed")
        self.acknowledged = max(self.acknowledged, revision)

    # The model.

    def at(self, key: bytes, revision: int) -> Value | None:
        known = self._versions.get(key)
        return None if known is None else known[1][bisect_right(known[0], revision) - 1]

    def evaluate(self, transaction: Transaction, revision: int) -> Expected:
        """What the transaction does when it comes right after the revision."""
        failed = next(
            (n for n, check in enumerate(transaction.checks) if not self._holds(check, revision)),
            None,
        )
        branch = transaction.operations if failed is None else transaction.otherwise
        expected = Expected(failed is None, failed, None, [], {})
        try:
            for operation in branch:
                expected.outcomes.append(self._operate(operation, revision, expected.writes))
        except _Failure as failure:
            return Expected(False, failed, failure.reason, [], {})
        return expected

    def _holds(self, check: Check, revision: int) -> bool:
        value = self.at(check.key, revision)
        if check.WhichOneof("condition") == "exists":
            return check.exists == (value is not None)
        return check.revision == (0 if value is None else value.revision)

    def _operate(
        self, operation: Operation, revision: int, writes: dict[bytes, Value | None]
    ) -> Outcome:
        kind = operation.WhichOneof("operation") or ""
        key = getattr(operation, kind).key
        now = writes[key] if key in writes else self.at(key, revision)
        match kind:
            case "put":
                writes[key] = _next(now, operation.put.value, revision + 1)
                return kind, None
            case "get":
                return kind, now
            case "delete":
                if now is not None:
                    writes[key] = None
                return kind, now is not None
            case _:
                try:
                    total = operation.add.amount + (0 if now is None else int(now.data))
                except ValueError:
                    raise _Failure(OperationError.NOT_AN_INTEGER) from None
                if not limits.MIN_INTEGER <= total <= limits.MAX_INTEGER:
                    raise _Failure(OperationError.INTEGER_OVERFLOW)
                writes[key] = _next(now, b"%d" % total, revision + 1)
                return kind, total


def told(result: TransactionResult) -> Expected:
    """A node's answer, in the words of the model."""
    return Expected(
        result.succeeded,
        result.failed_check if result.HasField("failed_check") else None,
        result.error.reason if result.HasField("error") else None,
        [_outcome(one) for one in result.results],
        {},
    )


def is_unique(transaction: Transaction) -> bool:
    """Whether no other transaction is like it: every value that clients put is unique."""
    return any(one.HasField("put") for one in transaction.operations)


def value_of(record: Record) -> Value:
    return Value(record.value, record.revision, record.created_revision, record.version)


def _outcome(result: OperationResult) -> Outcome:
    match result.WhichOneof("result"):
        case "get":
            return "get", value_of(result.get.record) if result.get.HasField("record") else None
        case "delete":
            return "delete", result.delete.deleted
        case "add":
            return "add", result.add.value
        case _:
            return "put", None


def _next(now: Value | None, data: bytes, revision: int) -> Value:
    if now is None:
        return Value(data, revision, revision, 1)
    return Value(data, revision, now.created, now.version + 1)


def _answer(expected: Expected) -> tuple[object, ...]:
    if expected.error is not None:
        return ("error", expected.error)
    return (expected.succeeded, expected.failed_check, *expected.outcomes)


def _text(transaction: Transaction) -> str:
    return " ".join(str(transaction).split())
