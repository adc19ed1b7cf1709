"""The model of kvorum for the checker: everything is a transaction, and revisions tell the order.

`put`, `get`, `delete` and `add` are transactions of one operation. What makes histories of
kvorum quick to check is what the store tells beyond the bare minimum:

- a write that was acknowledged says its revision, and revisions rise in the order in which
  writes take effect, across all keys: `revisions_out_of_order` checks that against time,
  and the model lets no write follow one of a higher revision;
- a read says at which revision its record was written and created, and how often it was
  written since (its version): a write that was applied twice shows.

- each write takes one revision: one that was not told takes a revision that was told to nobody.

Rule for histories: a value is written at most once, so that whoever reads it names the write.
Then a write of unknown outcome that somebody has read did take effect, at a revision that is
known, and before that read returned; and those that nobody has read are as good as equal.
"""

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, assert_never

from tests.support.linearizability import UNKNOWN, Model, Operation, Unknown

Value = str | int


@dataclass(frozen=True, slots=True)
class Check:
    """Holds if the key has this revision (0: it is absent), or if it exists."""

    key: str
    revision: int | None = None
    exists: bool | None = None

    def __str__(self) -> str:
        if self.revision is not None:
            return f"if {self.key}@{self.revision}"
        return f"if {self.key} {'exists' if self.exists else 'is absent'}"


@dataclass(frozen=True, slots=True)
class Get:
    key: str

    def __str__(self) -> str:
        return f"get {self.key}"


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: Value

    def __str__(self) -> str:
        return f"put {self.key} {self.value}"


@dataclass(frozen=True, slots=True)
class Delete:
    key: str

    def __str__(self) -> str:
        return f"delete {self.key}"


@dataclass(frozen=True, slots=True)
class Add:
    key: str
    amount: int

    def __str__(self) -> str:
        return f"add {self.key} {self.amount}"


Step = Get | Put | Delete | Add


@dataclass(frozen=True, slots=True)
class Transaction:
    """Checks and operations: all or nothing. No key is both written and touched otherwise."""

    operations: tuple[Step, ...]
    checks: tuple[Check, ...] = ()

    def __str__(self) -> str:
        return ", ".join(map(str, (*self.checks, *self.operations)))


class Seen(NamedTuple):
    """A record as it was read."""

    value: Value
    revision: int
    created_revision: int
    version: int

    def __str__(self) -> str:
        return f"{self.value}@{self.revision} v{self.version}"


Result = Seen | bool | int | None
"""Of a get the record or None, of a delete whether the key was there, of an add the sum."""


@dataclass(frozen=True, slots=True)
class Committed:
    revision: int | None
    """At which it wrote, or was evaluated if it wrote nothing; None if the client was not told."""
    results: tuple[Result, ...] | None = None
    """One per operation; None if they are not known."""

    def __str__(self) -> str:
        at = "" if self.revision is None else f"@{self.revision} "
        return f"{at}{'done' if self.results is None else ', '.join(map(str, self.results))}"


@dataclass(frozen=True, slots=True)
class Refused:
    check: int
    """The first one that did not hold."""

    def __str__(self) -> str:
        return f"check {self.check} does not hold"


Response = Committed | Refused
KvorumOperation = Operation[Transaction, Response]

UNSEEN: Final = "(a value that nobody has read)"


class Cell(NamedTuple):
    """What a key holds. A revision is None until somebody is told of it."""

    value: Value
    revision: int | None
    created_revision: int | None
    version: int
    above: int
    """The store had reached this revision before the record was written."""


class Store(NamedTuple):
    revision: int
    """The highest one that was told so far, or must have been reached."""
    cells: tuple[tuple[str, Cell], ...]

    def __str__(self) -> str:
        cells = (
            f"{key}={cell.value}@{'?' if cell.revision is None else cell.revision} v{cell.version}"
            for key, cell in self.cells
        )
        return f"revision {self.revision}: {', '.join(cells) or 'nothing'}"


class _ImpossibleError(Exception):
    """The response is not one that the store could give in this state."""


class Revisions:
    """Those that a history tells: which are taken, and by writes to which keys."""

    def __init__(self, history: Iterable[KvorumOperation] = ()) -> None:
        self._of_key: dict[str, list[int]] = {}
        taken = set()
        for operation in history:
            for key, revision in _told_writes(operation):
                taken.add(revision)
                self._of_key.setdefault(key, []).append(revision)
        for revisions in self._of_key.values():
            revisions.sort()
        self._free_after: dict[int, int] = {}
        for revision in sorted(taken, reverse=True):
            self._free_after[revision] = self._free_after.get(revision + 1, revision + 1)

    def free_after(self, revision: int) -> int:
        """The first one above it that was told to nobody."""
        return self._free_after.get(revision + 1, revision + 1)

    def next_write(self, key: str, revision: int) -> float:
        """The first one above it that a write to the key is known to have."""
        revisions = self._of_key.get(key, [])
        position = bisect.bisect_right(revisions, revision)
        return revisions[position] if position < len(revisions) else math.inf


class Kvorum(Model[Transaction, Response, Store]):
    """An ordered set of records, written by transactions at rising revisions."""

    def __init__(self, revisions: Revisions | None = None) -> None:
        self._revisions = revisions or Revisions()

    @property
    def initial(self) -> Store:
        return Store(0, ())

    def keys(self, request: Transaction) -> Iterable[str]:
        return dict.fromkeys(step.key for step in (*request.checks, *request.operations))

    def changes(self, request: Transaction) -> bool:
        return not all(isinstance(step, Get) for step in request.operations)

    def step(
        self, state: Store, request: Transaction, response: Response | Unknown
    ) -> Iterable[Store]:
        execution = _Execution(state, self._revisions)
        try:
            match response:
                case Unknown():
                    execution.commit(request, Committed(revision=None))
                case Committed():
                    execution.commit(request, response)
                case Refused(position):
                    execution.check(request.checks[:position])
                    execution.refuse(request.checks[position])
                case _:
                    assert_never(response)
        except _ImpossibleError:
            return ()
        return (execution.state(),)

    def is_too_late(self, state: Store, request: Transaction, response: Response) -> bool:
        """The store is beyond the revision, or the record was replaced."""
        if not isinstance(response, Committed):
            return False
        if response.revision is not None and response.revision < state.revision:
            return True
        cells = dict(state.cells)
        for key, seen in _reads(request, response):
            cell = cells.get(key)
            if self._revisions.next_write(key, seen.revision) <= state.revision or (
                cell is not None and cell.above >= seen.revision
            ):
                return True
        return False

    def prepare(
        self, history: Sequence[KvorumOperation]
    ) -> tuple["Kvorum", Sequence[KvorumOperation]]:
        """Name the unknown writes that were read, and make those equal that were not."""
        writers = Counter(
            (step.key, step.value)
            for operation in history
            for step in operation.request.operations
            if isinstance(step, Put)
        )
        sightings = _sightings(history)
        settled = [
            _settle(op, sightings, writers) if op.response is UNKNOWN else op for op in history
        ]
        return Kvorum(Revisions(settled)), settled


class _Execution:
    """One transaction on one state. What it learns about revisions on the way, it keeps."""

    def __init__(self, state: Store, revisions: Revisions) -> None:
        self._revisions = revisions
        self._revision = state.revision
        self._cells = dict(state.cells)

    def state(self) -> Store:
        return Store(self._revision, tuple(sorted(self._cells.items())))

    def check(self, checks: Iterable[Check]) -> None:
        """All of them held."""
        for check in checks:
            if self._holds(check) is False:
                raise _ImpossibleError
            cell = self._cells.get(check.key)
            if cell is not None and check.revision is not None:
                self._cells[check.key] = cell._replace(revision=check.revision)

    def refuse(self, check: Check) -> None:
        """It did not hold."""
        if self._holds(check) is True:
            raise _ImpossibleError

    def commit(self, request: Transaction, response: Committed) -> None:
        self.check(request.checks)
        reached = self._revision
        results = response.results or (None,) * len(request.operations)
        wrote = False
        for operation, result in zip(request.operations, results, strict=True):
            if isinstance(operation, Get):
                if response.results is not None:
                    self._read(operation.key, result)
                continue
            got = self._write(operation, response.revision)
            if response.results is not None and got != result:
                raise _ImpossibleError
            wrote = wrote or got is not False
        revision = response.revision
        if revision is None and wrote:
            revision = self._revisions.free_after(reached)
        if revision is not None:
            # What writes takes a revision of its own, and no write that comes earlier is missing.
            lowest = max(self._revision, reached + wrote)
            following = min(
                self._revisions.next_write(step.key, reached) for step in request.operations
            )
            if not lowest <= revision < following + wrote:
                raise _ImpossibleError
            self._revision = revision

    def _holds(self, check: Check) -> bool | None:
        """None if that depends on a revision of which nobody was told."""
        cell = self._cells.get(check.key)
        if check.revision is None:
            return (cell is not None) == check.exists
        if cell is None:
            return check.revision == 0
        if cell.revision is None:
            return None if check.revision > cell.above else False
        return cell.revision == check.revision

    def _read(self, key: str, result: Result) -> None:
        cell = self._cells.get(key)
        if cell is None or not isinstance(result, Seen):
            if cell is not None or result is not None:
                raise _ImpossibleError
            return
        if (
            (cell.value, cell.version) != (result.value, result.version)
            or cell.revision not in (None, result.revision)
            or cell.created_revision not in (None, result.created_revision)
            or result.revision <= cell.above
        ):
            raise _ImpossibleError
        self._cells[key] = cell._replace(
            revision=result.revision, created_revision=result.created_revision
        )
        self._revision = max(self._revision, result.revision)

    def _write(self, operation: Put | Delete | Add, revision: int | None) -> Result:
        key = operation.key
        cell = self._cells.get(key)
        match operation:
            case Delete():
                return self._cells.pop(key, None) is not None
            case Put(value=value):
                result = None
            case Add(amount=amount):
                before = 0 if cell is None else cell.value
                if not isinstance(before, int):
                    raise _ImpossibleError
                result = value = before + amount
            case _:
                assert_never(operation)
        self._cells[key] = Cell(
            value,
            revision,
            revision if cell is None else cell.created_revision,
            1 if cell is None else cell.version + 1,
            self._revision,
        )
        return result


def _sightings(history: Iterable[KvorumOperation]) -> dict[tuple[str, Value], tuple[int, float]]:
    """For each value that was read under a key: its revision, and when the first read returned."""
    found: dict[tuple[str, Value], tuple[int, float]] = {}
    for operation in history:
        for key, seen in _reads(operation.request, operation.response):
            _, first = found.get((key, seen.value), (0, operation.returned))
            found[key, seen.value] = (seen.revision, min(first, operation.returned))
    return found


def _reads(request: Transaction, response: Response | Unknown) -> Iterable[tuple[str, Seen]]:
    if isinstance(response, Committed) and response.results is not None:
        for step, result in zip(request.operations, response.results, strict=True):
            if isinstance(result, Seen):
                yield step.key, result


def _told_writes(operation: KvorumOperation) -> Iterable[tuple[str, int]]:
    """Which keys it has certainly written, at a revision that was told."""
    response = operation.response
    if not isinstance(response, Committed) or response.revision is None:
        return
    steps = operation.request.operations
    for step, result in zip(steps, response.results or (None,) * len(steps), strict=True):
        if isinstance(step, Put | Add) or (isinstance(step, Delete) and result is True):
            yield step.key, response.revision


def _settle(
    operation: KvorumOperation,
    sightings: dict[tuple[str, Value], tuple[int, float]],
    writers: Counter[tuple[str, Value]],
) -> KvorumOperation:
    steps: list[Step] = []
    for step in operation.request.operations:
        if isinstance(step, Put) and writers[step.key, step.value] == 1:
            sighting = sightings.get((step.key, step.value))
            if sighting is not None:
                revision, seen_at = sighting
                # A value that was read before it was written stays for the search to refuse.
                returned = max(seen_at, operation.invoked)
                return replace(operation, response=Committed(revision), returned=returned)
            steps.append(replace(step, value=UNSEEN))
        else:
            steps.append(step)
    return replace(operation, request=replace(operation.request, operations=tuple(steps)))


def revisions_out_of_order(history: Iterable[KvorumOperation]) -> str:
    """Whether revisions contradict time, across all keys; "" if they do not.

    Once an operation has returned that knew of a revision, every write that is invoked
    later has a higher one, and no two writes have the same.
    """
    told = [op for op in history if isinstance(op.response, Committed)]
    by_return = iter(sorted(told, key=lambda operation: operation.returned))
    returned = next(by_return, None)
    reached, witness = 0, ""
    writers: dict[int, KvorumOperation] = {}
    for operation in sorted(told, key=lambda operation: operation.invoked):
        while returned is not None and returned.returned < operation.invoked:
            if (evidence := _evidence(returned)) > reached:
                reached, witness = evidence, str(returned)
            returned = next(by_return, None)
        assert isinstance(operation.response, Committed)
        revision = operation.response.revision
        if revision is None:
            continue
        writes = any(_told_writes(operation))
        if revision < reached + writes:
            return f"revision {reached} was reached already:\n    {witness}\n    {operation}"
        if writes and (other := writers.setdefault(revision, operation)) is not operation:
            return f"revision {revision} was given twice:\n    {other}\n    {operation}"
    return ""


def _evidence(operation: KvorumOperation) -> int:
    """The revision that the store had reached when the operation returned, at least."""
    assert isinstance(operation.response, Committed)
    seen = (record.revision for _, record in _reads(operation.request, operation.response))
    return max(operation.response.revision or 0, *seen, 0)
