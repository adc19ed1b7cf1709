"""Recording what clients of a store saw, for the checker, and keeping it in files.

    recorder = Recorder(kv, client="c1")
    await recorder.put("k", "c1-1")          # as KV.put, and noted
    check(operations(recorder.records), Kvorum())

A call that raises is noted like one that returns, and its error is not passed on: its
outcome is FAILED if it certainly had no effect, and UNKNOWN if it may have one.
"""

import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from kvorum import KV
from kvorum.atomic import AtomicResult
from kvorum.entry import Entry
from kvorum.errors import Conflict, KvorumError
from tests.support.linearizability import UNKNOWN, Operation, Unknown
from tests.support.linearizability_kvorum import (
    Add,
    Check,
    Committed,
    Delete,
    Get,
    KvorumOperation,
    Put,
    Refused,
    Response,
    Result,
    Seen,
    Step,
    Transaction,
    Value,
)


class CallOutcome(Enum):
    RETURNED = "returned"
    UNKNOWN = "unknown"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Record:
    """One call and what came of it."""

    operation: KvorumOperation
    outcome: CallOutcome
    error: str = ""
    """The name of the error, and what it says."""


def operations(records: Iterable[Record]) -> list[KvorumOperation]:
    """What the checker takes: a call without effect constrains nothing."""
    return [record.operation for record in records if record.outcome is not CallOutcome.FAILED]


class Recorder:
    """Calls a store, one call at a time, and notes each."""

    def __init__(
        self,
        kv: KV,
        *,
        client: str,
        clock: Callable[[], float] = time.monotonic,
        note: Callable[[Record], None] | None = None,
    ) -> None:
        """`clock` is the same for all clients of a history; `note` is told of each record."""
        self.records: list[Record] = []
        self._kv = kv
        self._client = client
        self._clock = clock
        self._note = note

    async def get(self, key: str) -> Record:
        async def call() -> Response:
            return Committed(None, (_seen(await self._kv.get(key)),))

        return await self._record(Transaction((Get(key),)), call())

    async def put(self, key: str, value: Value) -> Record:
        async def call() -> Response:
            return Committed(await self._kv.put(key, value), (None,))

        return await self._record(Transaction((Put(key, value),)), call())

    async def delete(self, key: str) -> Record:
        async def call() -> Response:
            return Committed(None, (await self._kv.delete(key),))

        return await self._record(Transaction((Delete(key),)), call())

    async def add(self, key: str, amount: int) -> Record:
        async def call() -> Response:
            return Committed(None, (await self._kv.add(key, amount),))

        return await self._record(Transaction((Add(key, amount),)), call())

    async def transact(self, *operations: Step, checks: Iterable[Check] = ()) -> Record:
        request = Transaction(operations, tuple(checks))

        async def call() -> Response:
            atomic = self._kv.atomic()
            for check in request.checks:
                atomic.check(check.key, revision=check.revision, exists=check.exists)
            for operation in operations:
                match operation:
                    case Get(key):
                        atomic.get(key)
                    case Put(key, value):
                        atomic.put(key, value)
                    case Delete(key):
                        atomic.delete(key)
                    case Add(key, amount):
                        atomic.add(key, amount)
            try:
                result = await atomic.commit()
            except Conflict as conflict:
                return Refused(conflict.check)
            return Committed(result.revision, tuple(_results(operations, result)))

        return await self._record(request, call())

    async def _record(self, request: Transaction, call: Awaitable[Response]) -> Record:
        invoked = self._clock()
        response: Response | Unknown = UNKNOWN
        outcome, error = CallOutcome.UNKNOWN, "Cancelled"
        try:
            response = await call
            outcome, error = CallOutcome.RETURNED, ""
        except KvorumError as failure:
            error = f"{type(failure).__name__}: {failure}"
            if not failure.maybe_applied:
                outcome = CallOutcome.FAILED
        finally:  # a call that is cancelled is noted, too: it may have been sent
            operation: KvorumOperation = Operation(
                self._client, request, response, invoked, self._clock()
            )
            record = Record(operation, outcome, error)
            self.records.append(record)
            if self._note is not None:
                self._note(record)
        return record


def _seen(entry: Entry[Any] | None) -> Seen | None:
    if entry is None:
        return None
    return Seen(entry.value, entry.revision, entry.created_revision, entry.version)


def _results(operations: Iterable[Step], result: AtomicResult) -> Iterator[Result]:
    for operation, value in zip(operations, result.results, strict=True):
        match operation:
            case Get():
                yield _seen(value)
            case Put():
                yield None
            case Delete() | Add():
                yield value


# Files: one record per line.

_KINDS: dict[str, type[Step]] = {kind.__name__: kind for kind in (Get, Put, Delete, Add)}


def to_line(record: Record) -> str:
    operation = record.operation
    response: dict[str, Any] | None
    match operation.response:
        case Committed(revision, results):
            response = {"revision": revision, "results": results}
        case Refused(check):
            response = {"refused": check}
        case Unknown():
            response = None
    return json.dumps(
        {
            "client": operation.client,
            "invoked": operation.invoked,
            "returned": operation.returned,
            "checks": [asdict(check) for check in operation.request.checks],
            "operations": [
                {"kind": type(step).__name__, **asdict(step)}
                for step in operation.request.operations
            ],
            "outcome": record.outcome.value,
            "response": response,
            "error": record.error,
        }
    )


def from_line(line: str) -> Record:
    content = json.loads(line)
    steps = tuple(_KINDS[step.pop("kind")](**step) for step in content["operations"])
    checks = tuple(Check(**check) for check in content["checks"])
    response: Response | Unknown
    match content["response"]:
        case None:
            response = UNKNOWN
        case {"refused": int(check)}:
            response = Refused(check)
        case {"revision": revision, "results": results}:
            response = Committed(revision, None if results is None else _read_results(results))
        case unexpected:
            raise ValueError(f"a history has no response such as {unexpected}")
    operation: KvorumOperation = Operation(
        content["client"],
        Transaction(steps, checks),
        response,
        content["invoked"],
        content["returned"],
    )
    return Record(operation, CallOutcome(content["outcome"]), content["error"])


def _read_results(results: Iterable[Any]) -> tuple[Result, ...]:
    return tuple(Seen(*result) if isinstance(result, list) else result for result in results)


def save(records: Iterable[Record], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(to_line(record) + "\n" for record in records)


def load(path: Path) -> list[Record]:
    """Read a file; a last line that was cut off while it was written is not a record."""
    text = path.read_text("utf-8")
    return [from_line(line) for line in text[: text.rfind("\n") + 1].splitlines()]
