"""A model of the data model, too simple to be wrong: dicts are copied, lists are searched.

It answers what the machine answers, to every kind of command, and holds every revision
that the store ever had as a copy of its own. What is efficient in the machine is naive here:
expiry is a loop over all cells, an index is a search, history is all there ever was.

The limits are parameters, so that a test can meet them with few and small records.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from kvorum import limits
from kvorumpb.v1.command_pb2 import (
    AddOperation,
    Check,
    Command,
    DeleteOperation,
    DeleteRangeOperation,
    IndexEntry,
    KeyRange,
    ListOperation,
    Operation,
    OperationError,
    OperationResult,
    PutOperation,
    RateLimitOperation,
    Record,
    TouchOperation,
    Transaction,
    TransactionResult,
)
from tests.machine.rate_limit_model import Taken, has_room, taken

MIN, MAX = -(2**63), 2**63 - 1

PUT: Final = "put"
DELETE: Final = "delete"
EXPIRE: Final = "expire"

Entries = tuple[tuple[str, bytes, bool], ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """What a key holds."""

    value: bytes
    revision: int
    created_revision: int
    version: int
    expire_time_ms: int
    update_time_ms: int
    metadata: bytes
    entries: Entries

    def record(self, key: bytes, *, keys_only: bool = False) -> Record:
        return Record(
            key=key,
            value=b"" if keys_only else self.value,
            revision=self.revision,
            created_revision=self.created_revision,
            version=self.version,
            expire_time_ms=self.expire_time_ms,
            update_time_ms=self.update_time_ms,
            metadata=b"" if keys_only else self.metadata,
            index_entries=[
                IndexEntry(index=index, value=value, unique=unique)
                for index, value, unique in self.entries
            ],
        )


Cells = dict[bytes, Cell]


@dataclass(frozen=True, slots=True)
class Happened:
    """An event: of the keys that a revision has changed, one."""

    kind: str
    key: bytes
    cell: Cell | None
    previous: Cell | None


class Failed(Exception):
    def __init__(self, reason: OperationError.Reason.ValueType, value: int = 0) -> None:
        super().__init__(reason)
        self.error = OperationError(reason=reason, value=value)


class Violated(Failed):
    """The operation wants a place in a unique index that is another record's."""

    def __init__(self, entry: tuple[str, bytes, bool], owner: bytes) -> None:
        super().__init__(OperationError.UNIQUE_VIOLATION)
        index, value, unique = entry
        self.error.entry.CopyFrom(IndexEntry(index=index, value=value, unique=unique))
        self.error.owner = owner


@dataclass(frozen=True, slots=True)
class Limits:
    """What one command may do, as kvorum/limits.py has it if nothing else is said."""

    range_records: int = limits.MAX_RANGE_RECORDS
    unchanged_events: int = limits.MAX_UNCHANGED_EVENTS
    looks: int = limits.MAX_TRANSACTION_RECORDS
    look_bytes: int = limits.RANGE_LOOK_BYTES
    result_bytes: int = limits.MAX_RESULT_BYTES
    replaced_bytes: int = limits.MAX_REPLACED_BYTES
    entry_replaced_bytes: int = limits.MAX_ENTRY_REPLACED_BYTES
    sweep_bytes: int = limits.MAX_SWEEP_BYTES
    apart_bytes: int = 4 * limits.KIB
    """From which size on a value is stored by itself, and not moved with its record."""


@dataclass(slots=True)
class Window:
    """What a client has been answered: by sequence."""

    acknowledged: int = 0
    results: dict[int, TransactionResult] = field(default_factory=dict)


@dataclass(slots=True)
class Model:
    """The store after some commands. `run` carries out the next one."""

    bounds: Limits
    cells: Cells = field(default_factory=dict)
    revision: int = 0
    log_time_ms: int = 0
    oldest_revision: int = 0
    past: dict[int, Cells] = field(default_factory=lambda: {0: {}})
    """By revision, all cells as they were then."""
    events: dict[int, list[Happened]] = field(default_factory=dict)
    limits: dict[bytes, Taken] = field(default_factory=dict)
    windows: dict[int, Window] = field(default_factory=dict)
    replaced_bytes: int = 0
    """By the entry under way."""

    def begin_entry(self, log_time_ms: int) -> None:
        self.log_time_ms = max(self.log_time_ms, log_time_ms)
        self.replaced_bytes = 0

    def run(self, command: Command) -> TransactionResult:
        if not command.client_id:
            return self._run(command)
        if command.WhichOneof("command") == "register_client":
            self.windows.setdefault(command.client_id, Window())
            return self._nothing()
        window = self.windows.get(command.client_id)
        if window is None:
            return self._nothing(OperationError.CLIENT_FORGOTTEN)
        if command.sequence <= window.acknowledged:
            return self._nothing(OperationError.RESULT_FORGOTTEN)
        if command.sequence not in window.results:
            result = self._run(command)
            if result.error.reason == OperationError.ENTRY_TOO_LARGE:
                return result  # to be tried again
            window.results[command.sequence] = result
            window.acknowledged = max(window.acknowledged, command.acknowledged)
        result = window.results[command.sequence]
        for sequence in [one for one in window.results if one <= window.acknowledged]:
            del window.results[sequence]
        return result

    def live(self, cells: Cells | None = None) -> Cells:
        """The cells that have not expired."""
        cells = self.cells if cells is None else cells
        return {
            key: cell
            for key, cell in sorted(cells.items())
            if not 0 < cell.expire_time_ms <= self.log_time_ms
        }

    def due(self) -> list[tuple[int, bool, bytes]]:
        """What has expired and is still there, the longest first: when, a rate limit?, its key."""
        records = [(cell.expire_time_ms, False, key) for key, cell in self.cells.items()]
        states = [(state.expire_time_ms, True, key) for key, state in self.limits.items()]
        return sorted(one for one in records + states if 0 < one[0] <= self.log_time_ms)

    def stored_bytes(self, key: bytes) -> int:
        """What history has to take over if the key is written."""
        cell = self.cells.get(key)
        if cell is None:
            return 0
        record = cell.record(b"")
        if len(cell.value) >= self.bounds.apart_bytes:
            record.value, record.value_apart = b"", True
        return record.ByteSize()

    def index(self) -> set[tuple[str, bytes, bytes]]:
        return {
            (index, value, key)
            for key, cell in self.cells.items()
            for index, value, _ in cell.entries
        }

    def _run(self, command: Command) -> TransactionResult:
        match command.WhichOneof("command"):
            case "transaction":
                return self._transact(command.transaction)
            case "sweep":
                self._sweep(command.sweep.limit)
                return self._nothing()
            case "compaction":
                self.oldest_revision = max(
                    self.oldest_revision, min(command.compaction.revision, self.revision)
                )
                return self._nothing()
            case _:
                return self._nothing()

    def _sweep(self, limit: int) -> None:
        removed: dict[bytes, int] = {}
        for _, is_limit, key in self.due()[:limit]:
            if sum(removed.values()) >= self.bounds.sweep_bytes:
                break
            if is_limit:
                del self.limits[key]
            else:
                removed[key] = self.stored_bytes(key)
        self.replaced_bytes += sum(removed.values())
        kept = {key: cell for key, cell in self.cells.items() if key not in removed}
        self._commit(kept, removed)

    def _nothing(self, reason: OperationError.Reason.ValueType | None = None) -> TransactionResult:
        result = TransactionResult(
            succeeded=reason is None, revision=self.revision, log_time_ms=self.log_time_ms
        )
        if reason is not None:
            result.error.reason = reason
        return result

    def _transact(self, transaction: Transaction) -> TransactionResult:
        run = _Run(self)
        failed: int | None = None
        try:
            for position, check in enumerate(transaction.checks):
                if not run.holds(check):
                    failed = position
                    break
            branch = transaction.operations if failed is None else transaction.otherwise
            results = []
            for run.position, operation in enumerate(branch):
                results.append(run.operate(operation))
            run.fit_the_entry()
            run.expire_owners()
        except Failed as failure:
            failure.error.operation = run.position
            return TransactionResult(
                revision=self.revision,
                failed_check=failed,
                log_time_ms=self.log_time_ms,
                error=failure.error,
            )
        self.replaced_bytes += run.replaced_bytes
        self._commit(run.cells, run.wrote)
        self.limits = run.limits
        return TransactionResult(
            succeeded=failed is None,
            revision=self.revision,
            failed_check=failed,
            results=results,
            log_time_ms=self.log_time_ms,
        )

    def _commit(self, cells: Cells, changed: Iterable[bytes]) -> None:
        """Let these be the cells, at a new revision if there is an event."""
        events = []
        for key in changed:
            before, after = self.cells.get(key), cells.get(key)
            if before is after:
                continue
            if before is not None and after is not None and before.revision == after.revision:
                continue  # touched
            expired = before is not None and 0 < before.expire_time_ms <= self.log_time_ms
            if expired:
                events.append(Happened(EXPIRE, key, None, before))
            if after is not None:
                events.append(Happened(PUT, key, after, None if expired else before))
            elif before is not None and not expired:
                events.append(Happened(DELETE, key, None, before))
        self.cells = dict(cells)
        if events:
            self.revision += 1
            self.events[self.revision] = events
            self.past[self.revision] = dict(cells)


class _Run:
    """A transaction under way."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.cells = dict(model.cells)
        self.limits = dict(model.limits)
        self.position = 0
        self.wrote: dict[bytes, int] = {}
        """By key, the operation that has last written it, or first touched it."""
        self.replaced_bytes = 0
        self.result_bytes = 0
        self.looks = 0

    def look(self, count: int = 1) -> bool:
        """Whether so many more may be looked at."""
        self.looks += count
        return self.looks <= self.model.bounds.looks

    # Checks.

    def holds(self, check: Check) -> bool:
        condition = check.WhichOneof("condition")
        has_range = check.HasField("range")
        inside = within(check.range) if has_range else check.key.__eq__
        if condition == "unchanged_since":
            return self._unchanged(check, inside)
        if not has_range:
            return self._holds(check, self.model.live().get(check.key))
        cells = [cell for key, cell in self.model.live().items() if inside(key)]
        if condition == "exists":
            return bool(cells) == check.exists
        for count, cell in enumerate(cells):
            if count == self.model.bounds.range_records or not self.look():
                raise Failed(OperationError.RANGE_TOO_LARGE)
            if not self._holds(check, cell):
                return False
        return True

    def _holds(self, check: Check, cell: Cell | None) -> bool:
        match check.WhichOneof("condition"):
            case "revision":
                return check.revision == (cell.revision if cell else 0)
            case "version":
                return check.version == (cell.version if cell else 0)
            case "exists":
                return check.exists == (cell is not None)
            case _:
                if cell is None:
                    return False
                if not self.look(len(cell.value) // self.model.bounds.look_bytes):
                    raise Failed(OperationError.RANGE_TOO_LARGE)
                return cell.value == check.value

    def _unchanged(self, check: Check, inside: Callable[[bytes], bool]) -> bool:
        """Also no if it takes too long to say."""
        model, since = self.model, check.unchanged_since
        if since < model.oldest_revision:
            return False
        changed = [
            event.key
            for revision in range(since + 1, model.revision + 1)
            for event in model.events[revision]
        ]
        for count, key in enumerate(changed):
            if count == model.bounds.unchanged_events or not self.look() or inside(key):
                return False
        due = model.due()
        if not check.HasField("range"):
            return not any(inside(key) for _, is_limit, key in due if not is_limit)
        for _, is_limit, key in due[: model.bounds.unchanged_events]:
            if not self.look() or (inside(key) and not is_limit):
                return False
        if len(due) <= model.bounds.unchanged_events:
            return True
        live = model.live()  # by the times it takes too long, but the keys may be few
        for count, key in enumerate(sorted(filter(inside, model.cells))):
            if count == model.bounds.range_records or not self.look() or key not in live:
                return False
        return True

    # Operations.

    def operate(self, operation: Operation) -> OperationResult:
        live = self.model.live(self.cells)
        result = OperationResult()
        match operation.WhichOneof("operation"):
            case "get":
                result.get.SetInParent()
                if cell := live.get(operation.get.key):
                    result.get.record.CopyFrom(self._found(operation.get.key, cell))
            case "put":
                self._put(operation.put, live.get(operation.put.key), result)
            case "delete":
                self._delete(operation.delete, live, result)
            case "add":
                self._add(operation.add, live.get(operation.add.key), result)
            case "list":
                self._list(operation.list, live, result)
            case "delete_range":
                self._delete_range(operation.delete_range, live, result)
            case "touch":
                self._touch(operation.touch, live, result)
            case _:
                self._rate_limit(operation.rate_limit, result)
        return result

    def fit_the_entry(self) -> None:
        """What is too much beside what the entry has replaced before is to be tried again."""
        before = self.model.replaced_bytes
        if before and before + self.replaced_bytes > self.model.bounds.entry_replaced_bytes:
            self.position = 0
            raise Failed(OperationError.ENTRY_TOO_LARGE)

    def expire_owners(self) -> None:
        """No two have one value of a unique index; who has expired gives way."""
        live = self.model.live(self.cells)
        before: list[bytes] = []
        for key, position in tuple(self.wrote.items()):
            cell = self.cells.get(key)
            for entry in cell.entries if cell else ():
                for owner, held in tuple(self.cells.items()):
                    if owner == key or not entry[2] or entry not in held.entries:
                        continue
                    if owner not in live:
                        self._change(owner, None)
                    elif owner in before or owner not in self.wrote:
                        self.position = position
                        raise Violated(entry, owner)
            before.append(key)

    def _found(self, key: bytes, cell: Cell, *, keys_only: bool = False) -> Record:
        record = cell.record(key, keys_only=keys_only)
        self.result_bytes += 64 + len(key) + len(record.value) + len(record.metadata)
        self.result_bytes += sum(16 + len(name) + len(value) for name, value, _ in cell.entries)
        if self.result_bytes > self.model.bounds.result_bytes:
            raise Failed(OperationError.RESULT_TOO_LARGE)
        return record

    def _change(self, key: bytes, cell: Cell | None) -> None:
        if key not in self.wrote:
            self.replaced_bytes += self.model.stored_bytes(key)
            if self.replaced_bytes > self.model.bounds.replaced_bytes:
                raise Failed(OperationError.RANGE_TOO_LARGE)
        self.wrote.setdefault(key, self.position)
        if cell is not None:
            self.cells[key] = cell
        else:
            self.cells.pop(key, None)

    def _after(self, ttl_ms: int) -> int:
        return self.model.log_time_ms + ttl_ms if ttl_ms else 0

    def _write(self, key: bytes, current: Cell | None, cell: Cell) -> None:
        new = self.model.revision + 1
        written = replace(
            cell,
            revision=new,
            created_revision=current.created_revision if current else new,
            version=current.version + 1 if current else 1,
            update_time_ms=self.model.log_time_ms,
        )
        self._change(key, written)
        self.wrote[key] = self.position

    def _put(self, put: PutOperation, current: Cell | None, result: OperationResult) -> None:
        result.put.SetInParent()
        if put.return_previous and current is not None:
            result.put.previous.CopyFrom(self._found(put.key, current))
        entries = tuple((one.index, one.value, one.unique) for one in put.index_entries)
        ttl = self._after(put.ttl_ms)
        if put.keep_ttl and current is not None:
            ttl = current.expire_time_ms
        self._write(put.key, current, Cell(put.value, 0, 0, 0, ttl, 0, put.metadata, entries))

    def _delete(self, delete: DeleteOperation, live: Cells, result: OperationResult) -> None:
        cell = live.get(delete.key)
        result.delete.deleted = cell is not None
        if cell is not None:
            if delete.return_previous:
                result.delete.previous.CopyFrom(self._found(delete.key, cell))
            self._change(delete.key, None)

    def _touch(self, touch: TouchOperation, live: Cells, result: OperationResult) -> None:
        cell = live.get(touch.key)
        result.touch.touched = cell is not None
        expire_time_ms = self._after(touch.ttl_ms)
        if cell is not None and cell.expire_time_ms != expire_time_ms:
            self._change(touch.key, replace(cell, expire_time_ms=expire_time_ms))

    def _add(self, add: AddOperation, current: Cell | None, result: OperationResult) -> None:
        if current is not None and not _is_integer(current.value):
            raise Failed(OperationError.NOT_AN_INTEGER)
        before = int(current.value) if current else 0
        wanted = before + add.amount
        low = add.min if add.HasField("min") else MIN
        high = add.max if add.HasField("max") else MAX
        value = wanted
        if wanted > high and wanted > before:
            value = max(high, before)
        if wanted < low and wanted < before:
            value = min(low, before)
        if value != wanted and not add.saturate:
            if MIN <= wanted <= MAX:
                raise Failed(OperationError.OUT_OF_BOUNDS, before)
            raise Failed(OperationError.INTEGER_OVERFLOW)
        result.add.value, result.add.applied = value, value - before
        if add.amount and value == before:
            return
        text = b"%d" % value
        if current:
            self._write(add.key, current, replace(current, value=text))
        else:
            self._write(add.key, None, Cell(text, 0, 0, 0, self._after(add.ttl_ms), 0, b"", ()))

    def _list(self, request: ListOperation, live: Cells, result: OperationResult) -> None:
        inside = within(request.range)
        keys = sorted((key for key in live if inside(key)), reverse=request.reverse)
        count = request.limit or 1000
        result.list.more = len(keys) > count
        for key in keys[:count]:
            if not self.look():
                raise Failed(OperationError.RANGE_TOO_LARGE)
            result.list.records.append(self._found(key, live[key], keys_only=request.keys_only))

    def _delete_range(
        self, request: DeleteRangeOperation, live: Cells, result: OperationResult
    ) -> None:
        inside = within(request.range)
        keys = [key for key in live if inside(key)]
        count = request.limit or self.model.bounds.range_records
        deleted = 0
        for key in keys[:count]:
            replaced = 0 if key in self.wrote else self.model.stored_bytes(key)
            if self.replaced_bytes + replaced > self.model.bounds.replaced_bytes:
                break
            if not self.look(1 + len(live[key].entries)):
                break
            self._change(key, None)
            deleted += 1
        more = deleted < len(keys)
        if more and not request.limit:
            raise Failed(OperationError.RANGE_TOO_LARGE)
        result.delete_range.deleted, result.delete_range.more = deleted, more

    def _rate_limit(self, request: RateLimitOperation, result: OperationResult) -> None:
        if not self.look(0):  # what is kept of such small limits costs nothing to look at
            raise Failed(OperationError.RANGE_TOO_LARGE)
        now = self.model.log_time_ms
        held = {}
        for limit in request.limits:
            state = None if limit.reset else self.limits.get(limit.key)
            # What another algorithm has counted, and what counts no more, is not counted.
            counts = state and state.algorithm == limit.algorithm and state.expire_time_ms > now
            held[limit.key] = state.times if state and counts else ()
        allowed = all(has_room(limit, held[limit.key], now) for limit in request.limits)
        result.rate_limit.allowed = allowed
        for limit in request.limits:
            result.rate_limit.states.add(allowed=has_room(limit, held[limit.key], now))
            state = self.limits.get(limit.key)
            # What counts for nothing any more is left to the sweep.
            forgets = limit.reset and state is not None and state.expire_time_ms > now
            if allowed and (limit.cost or forgets):
                self.limits.pop(limit.key, None)
                if limit.cost:
                    times = (*held[limit.key], *[now] * limit.cost)
                    self.limits[limit.key] = taken(limit, times)


def within(selected: KeyRange) -> Callable[[bytes], bool]:
    return lambda key: selected.start <= key and (not selected.end or key < selected.end)


def without_numbers(results: Iterable[OperationResult]) -> list[OperationResult]:
    """Results that lack what the model does not know of rate limits: only what was allowed."""
    copies = []
    for result in results:
        copy = OperationResult()
        copy.CopyFrom(result)
        for state in copy.rate_limit.states if result.HasField("rate_limit") else ():
            for name in ("remaining", "retry_after_ms", "reset_after_ms"):
                state.ClearField(name)
        copies.append(copy)
    return copies


def _is_integer(value: bytes) -> bool:
    try:
        number = int(value)
    except ValueError:
        return False
    return MIN <= number <= MAX and b"%d" % number == value
