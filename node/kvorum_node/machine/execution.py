"""Commands run one after the other, each atomic, on tables over the engine.

Rules: a command sees what the ones before it have written, then the engine's. A
transaction whose operation fails leaves no trace. What one entry replaces and removes is
bounded, since the history takes all of it over at once. Nothing reaches the engine until the
machine saves the tables, so that whatever happens on the way, the engine has seen nothing.

The way of a transaction: checks.py, then operations.py on the records as they are for it
alone (working.py), then commit.py. All its records carry its one revision, and every
write of a record counts in its version. Deleting a key and writing it again creates it
anew. (Validation refuses two writes to one key in a branch, as only the last could ever
be seen; should they be in the log, they have the meaning they would have one after the
other.)

A transaction that carries a client and a sequence runs once: clients.py.
"""

from typing import Final, assert_never

from kvorum import limits
from kvorum_node.machine import records
from kvorum_node.machine.checks import holds
from kvorum_node.machine.clients import Clients
from kvorum_node.machine.commands import UnknownInstruction
from kvorum_node.machine.commit import Event, UniqueViolation, commit
from kvorum_node.machine.operations import operate
from kvorum_node.machine.standing import Standing
from kvorum_node.machine.tables import Tables
from kvorum_node.machine.working import OperationFailed, Working
from kvorum_node.raft.types import Index
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch
from kvorum_node.storage.layout import ExpiryKind
from kvorumpb.v1.command_pb2 import (
    Command,
    Compaction,
    OperationError,
    Sweep,
    Transaction,
    TransactionResult,
)

_ENTRY_TOO_LARGE: Final = OperationError(
    reason=OperationError.ENTRY_TOO_LARGE,
    message="what was written together with this replaces or removes as much as may be at once;"
    " nothing was written: try again",
)


class Execution:
    """What committed commands do to the state of one group, before the engine knows."""

    def __init__(self, tables: Tables, standing: Standing, clients: Clients) -> None:
        """`standing` is where the state has come; `clients` know what it has answered."""
        self.revision = standing.revision
        self.log_time_ms = standing.log_time_ms
        self.oldest_revision = standing.oldest_revision
        self.trimmed_revision = standing.trimmed_revision
        self.events: list[Event] = []
        """Of the last command."""
        self.replaced_bytes = 0
        """What the commands have written over or removed: all of it is in the tables, again."""
        self.swept = 0
        """Records that were removed because they had expired."""
        self._replaced_before = 0
        """By the entries before the one under way."""
        self._tables = tables
        self._clients = clients
        self._working = Working(tables)

    def begin_entry(self, log_time_ms: int) -> None:
        """The next commands are of an entry with this log time, which never runs backwards."""
        self.log_time_ms = max(self.log_time_ms, log_time_ms)
        self._replaced_before = self.replaced_bytes

    def end_entry(self, index: Index) -> None:
        self._clients.save(self._tables.clients, index)

    def run(self, command: Command) -> TransactionResult:
        """Carry out one command. Raises UnknownInstruction: then all that was run is in doubt."""
        self.events = []
        match command.WhichOneof("command"):
            case "transaction" if command.client_id:
                return self._transact_once(command)
            case "transaction":
                return self.transact(command.transaction)
            case "register_client":
                if command.client_id:
                    self._clients.register(command.client_id)
                return self._nothing_written()
            case "sweep":
                return self._sweep(command.sweep)
            case "compaction":
                return self._compact(command.compaction)
            case "verification" | "verdict":
                return self._nothing_written()  # the machine looks at those itself
            case None:
                raise UnknownInstruction("a command of no kind")
            case unexpected:
                assert_never(unexpected)

    def standing(self, applied: Index) -> Standing:
        return Standing(
            applied=applied,
            revision=self.revision,
            log_time_ms=self.log_time_ms,
            oldest_revision=self.oldest_revision,
            trimmed_revision=self.trimmed_revision,
        )

    def save(self, batch: Batch) -> None:
        self._tables.save(batch)

    def _transact_once(self, command: Command) -> TransactionResult:
        """Carry it out, or give the result that it has had, or say why neither can be."""
        clients, client_id, sequence = self._clients, command.client_id, command.sequence
        recalled = clients.recall(client_id, sequence)
        if recalled is None:
            result = self.transact(command.transaction)
            too_large = result.HasField("error") and (
                result.error.reason == OperationError.ENTRY_TOO_LARGE
            )
            if not too_large:
                clients.remember(client_id, sequence, command.acknowledged, result)
            return result
        if isinstance(recalled, OperationError):
            return self._failed(recalled, None)
        return recalled

    def transact(self, transaction: Transaction) -> TransactionResult:
        """Carry out one transaction."""
        working = self._working
        working.begin(self.revision + 1, self.log_time_ms)
        result = TransactionResult()
        failed_check: int | None = None
        try:
            if transaction.checks:
                failed_check = self._first_failed(transaction)
            branch = transaction.operations if failed_check is None else transaction.otherwise
            results = result.results
            # A slice, since the end of an iteration over few costs more than they do.
            for position, operation in enumerate(branch[:]):
                working.position = position
                results.append(operate(operation, working))
            if self._has_no_room_for(working.replaced_bytes):
                return self._failed(_ENTRY_TOO_LARGE, failed_check)
            self.events = commit(working)
        except UniqueViolation as failure:
            return self._failed(failure.error, failed_check)
        except OperationFailed as failure:
            failure.error.operation = working.position
            return self._failed(failure.error, failed_check)
        self.replaced_bytes += working.replaced_bytes
        if self.events:
            self.revision += 1
        # One by one: as arguments they cost thrice as much, and this is made for every write.
        if failed_check is None:
            result.succeeded = True
        else:
            result.failed_check = failed_check
        result.revision = self.revision
        result.log_time_ms = self.log_time_ms
        return result

    def _has_no_room_for(self, replaced_bytes: int) -> bool:
        """Whether so much more would be too much for one entry, of which it is not the first."""
        before = self.replaced_bytes - self._replaced_before
        return before > 0 and before + replaced_bytes > limits.MAX_ENTRY_REPLACED_BYTES

    def _first_failed(self, transaction: Transaction) -> int | None:
        for position, check in enumerate(transaction.checks):
            if not holds(check, self._working, self.oldest_revision):
                return position
        return None

    def _sweep(self, sweep: Sweep) -> TransactionResult:
        """Remove what has expired, the longest expired first."""
        working = self._working
        working.begin(self.revision + 1, self.log_time_ms)
        expiry, size = self._tables.expiry, 0
        most = min(sweep.limit, limits.MAX_SWEEP_RECORDS)
        first_left = layout.expiry_bound(self.log_time_ms + 1)
        for count, row in enumerate(expiry.rows(end_ms=self.log_time_ms + 1)):
            if count == most or size >= limits.MAX_SWEEP_BYTES:
                first_left = row
                break
            _, kind, key = layout.split_expiry_key(row)
            match kind:
                case ExpiryKind.RECORD:
                    data, _ = working.stored(key)
                    size += len(data)
                    working.remove(key)
                case ExpiryKind.LIMIT:
                    working.limits[key] = None
                case unexpected:
                    assert_never(unexpected)
        expiry.horizon.first_row = first_left
        self.events = commit(working)
        self.replaced_bytes += working.replaced_bytes
        self.swept += len(self.events)
        if self.events:
            self.revision += 1
        return self._nothing_written()

    def _compact(self, compaction: Compaction) -> TransactionResult:
        """Forget what is before the revision at once, and remove a part of it."""
        self.oldest_revision = max(self.oldest_revision, min(compaction.revision, self.revision))
        tables, trimmed = self._tables, self.oldest_revision
        most = min(compaction.limit, limits.MAX_COMPACTION_EVENTS)
        forgotten = tables.history.scan(
            layout.history_key(self.trimmed_revision + 1),
            layout.history_key(self.oldest_revision + 1),
        )
        for count, (stored, event) in enumerate(forgotten):
            revision = layout.history_revision(stored)
            if count == most:
                trimmed = revision - 1
                break
            _, _, key = layout.decode_event(event)
            tables.history.delete(stored)
            row = layout.version_key(key, revision)
            if before := tables.keys.get(row):
                records.forget(before, key, tables.values)
            tables.keys.delete(row)
        self.trimmed_revision = max(self.trimmed_revision, trimmed)
        return self._nothing_written()

    def _nothing_written(self) -> TransactionResult:
        return TransactionResult(
            succeeded=True, revision=self.revision, log_time_ms=self.log_time_ms
        )

    def _failed(self, error: OperationError, failed_check: int | None) -> TransactionResult:
        return TransactionResult(
            revision=self.revision,
            failed_check=failed_check,
            error=error,
            log_time_ms=self.log_time_ms,
        )
