"""The machine: where it stands in the log, and the one way it moves.

The law of `apply`: the records, the applied index, the revision and the log time
that a run of entries leads to are written in one batch of the engine. A crash
therefore leaves a state that some index has led to, and that index; the log is
applied again from there, and leads to where it led before. A run ends with the call,
or before that with an entry that has a Verification: the state at that very index is
what all nodes compare, so the engine has to have it before anything goes on. It also ends
when it has replaced so much that more of it would not fit the memory.

The state is in one of two spaces (storage/layout.py). A snapshot is staged in the
other one, and installing it is one batch: the spaces change places, and the one
that was left is emptied.
"""

from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final, NamedTuple, TypeAlias, assert_never

from kvorum import limits
from kvorum.errors import StorageError
from kvorum_node.machine import history, records
from kvorum_node.machine.clients import Clients
from kvorum_node.machine.commands import UnknownCommand, UnknownInstruction, decode_batch
from kvorum_node.machine.commit import Event
from kvorum_node.machine.content_hash import HASH_FORMAT, ContentHasher, RowHasher
from kvorum_node.machine.execution import Execution
from kvorum_node.machine.horizon import NEVER_MS, Horizon
from kvorum_node.machine.listing import Listing, View
from kvorum_node.machine.snapshot import SnapshotReader, Staging
from kvorum_node.machine.standing import Standing, load_staged
from kvorum_node.machine.tables import Tables
from kvorum_node.raft.types import Entry, EntryKind, GroupId, Index
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorum_node.storage.layout import ClockReading, ExpiryKind, Space
from kvorumpb.v1.command_pb2 import Record, Transaction, TransactionResult, Verdict
from kvorumpb.v1.kv_pb2 import ListRequest, ListResponse

Results: TypeAlias = list[list[TransactionResult]]
"""Of each entry, one result per command. (An alias, since Machine has a method `list`.)"""

_NEVER_ROW: Final = layout.expiry_key(NEVER_MS, ExpiryKind.RECORD, b"")


class Transition(NamedTuple):  # made for every write: a frozen dataclass takes thrice as long
    """What one revision has changed."""

    revision: int
    log_time_ms: int
    events: Sequence[Event]


class Machine:
    """The records of one group. Called from one thread."""

    def __init__(self, engine: Engine, group: GroupId) -> None:
        """Stands where the engine was left. Raises StorageError if that cannot be read."""
        self._engine = engine
        held = engine.get(Family.META, layout.space_key(group))
        self._space = Space(group, 0) if held is None else layout.decode_space(group, held)
        self._standing = Standing.load(engine, self._space)
        self._horizon = Horizon()
        self._clients = Clients.load(self._tables().clients)
        self._staging: Staging | None = None
        self.swept = 0
        """Records that were removed because they had expired, since this machine was made."""
        self.observer: Callable[[Sequence[Transition]], None] | None = None
        """Told of all revisions of a run of entries, once they are in the engine; and with
        none, that a snapshot has been installed: then revisions were skipped."""
        self.on_verification: Callable[[ContentHasher], None] | None = None
        """Given what is to be hashed, pinned at the index of a Verification."""
        self.on_verdict: Callable[[Verdict], None] | None = None
        """Told of a Verdict, once the entry that has it is in the engine."""

    @property
    def applied(self) -> Index:
        """The index of the last entry applied; 0 before the first."""
        return self._standing.applied

    @property
    def revision(self) -> int:
        """The revision of the last transaction that wrote; 0 before the first."""
        return self._standing.revision

    @property
    def log_time_ms(self) -> int:
        """The latest time stamped on an entry, in milliseconds since the Unix epoch."""
        return self._standing.log_time_ms

    @property
    def oldest_revision(self) -> int:
        """The oldest revision that can be read; 0 before the first compaction."""
        return self._standing.oldest_revision

    @property
    def client_count(self) -> int:
        """How many clients are registered."""
        return len(self._clients)

    @property
    def is_trimmed(self) -> bool:
        """Whether all history before the oldest revision has been removed."""
        return self._standing.trimmed_revision >= self._standing.oldest_revision

    def apply(self, entries: Sequence[Entry], *, wanted: Container[Index] | None = None) -> Results:
        """Carry out committed entries, which go on where the last call ended.

        Returns one list per entry, with one result per command of it; that of another
        kind of entry is empty, and so is that of an entry that is not `wanted` (all
        are, if None): what nobody waits for must not be held in memory. How much is
        written at once is the caller's choice of entries.

        Raises UnknownCommand at an entry that this version does not understand,
        and StorageError if the engine fails: then nothing of the run that it belongs to
        has happened, here or in the engine, and the node must stop. (A call is mostly one
        run; what was in those before has happened.)
        """
        results: Results = []
        while len(results) < len(entries):
            self._apply_run(entries, results, wanted)
        return results

    def _apply_run(
        self, entries: Sequence[Entry], results: Results, wanted: Container[Index] | None
    ) -> None:
        """Carry out what has no results yet, through the next verification, in one write."""
        run = _Run(Execution(self._tables(), self._standing, self._clients))
        applied = self._standing.applied
        for entry in islice(entries, len(results), None):
            if entry.index != applied + 1:
                raise AssertionError(f"entry {entry} does not go on from applied index {applied}")
            applied = entry.index
            match entry.kind:
                case EntryKind.COMMANDS:
                    outcomes = run.carry_out(entry)
                    if wanted is None or entry.index in wanted:
                        results.append(list(outcomes))
                    else:
                        deque(outcomes, maxlen=0)  # carried out, and forgotten one by one
                        results.append([])
                    run.execution.end_entry(entry.index)
                case EntryKind.NOOP | EntryKind.CONFIGURATION:
                    results.append([])
                case unexpected:
                    assert_never(unexpected)
            if run.hash_format is not None or run.replaces_much:
                break
        self._write(run.execution, applied)
        self._tell(run)

    def _write(self, execution: Execution, applied: Index) -> None:
        batch = Batch()
        execution.save(batch)
        standing = execution.standing(applied)
        standing.save(batch, self._space, self._standing)
        self._engine.write(batch)
        self._standing = standing
        self.swept += execution.swept

    def _tell(self, run: "_Run") -> None:
        """Say what a run that is in the engine has brought."""
        if self.observer is not None and run.transitions:
            self.observer(run.transitions)
        if self.on_verification is not None and run.hash_format == HASH_FORMAT:
            self.on_verification(self.content_hash())
        if self.on_verdict is not None:
            for verdict in run.verdicts:
                self.on_verdict(verdict)

    def get(self, key: bytes, *, revision: int = 0) -> Record | None:
        """The record of the key, with its key filled in; None if there is none.

        Args:
            revision: as it was then; 0 is as it is now, by log time.

        Raises Compacted or FutureRevision if the store cannot say.
        """
        record: Record | None
        if revision:
            self.require_readable(revision)
            record = history.record_at(self._tables(), key, revision)
        else:
            stored = self._engine.get(Family.DATA, layout.data_key(self._space, key))
            record = None if stored is None else records.read(key, stored)
            if record is not None and 0 < record.expire_time_ms <= self.log_time_ms:
                return None
        if record is not None and record.value_apart:
            records.complete(record, key, self._tables().values)
        return record

    def read(self, transaction: Transaction) -> TransactionResult:
        """What a transaction that writes nothing returns, by the state as it is now.

        In either branch it has no operations but gets and lists.
        """
        execution = Execution(self._tables(), self._standing, self._clients)
        return execution.transact(transaction)

    def read_history(self) -> history.History:
        """The events that are kept, for the moment: whatever happens next ends its use."""
        return history.History(self._tables())

    def require_readable(self, revision: int) -> None:
        """Raises Compacted or FutureRevision if the store cannot be read as it was then."""
        history.require_readable(revision, self.oldest_revision, self.revision)

    def list(self, request: ListRequest) -> ListResponse:
        """A page of records; the request must have passed validate_list. Raises as begin_list."""
        response = ListResponse()
        listing = self.begin_list(request, response)
        while not listing.step():
            pass
        return response

    def begin_list(self, request: ListRequest, response: ListResponse) -> Listing:
        """Begin to fill the response, whatever is applied or installed meanwhile.

        Costs what the page costs, however many records there are before and after it;
        and a look at each record that has expired on the way, and at all if they are to
        be counted. Raises InvalidCursor if the page token is not one of this list, and
        Compacted or FutureRevision if the revision cannot be read.
        """
        return Listing(request, response, self._space.group, self._look)

    # Time. Costs nothing where nothing expires.

    @property
    def clock(self) -> ClockReading | None:
        """What `store_clock` was given last."""
        held = self._engine.get(Family.META, layout.clock_key(self._space.group))
        return None if held is None else layout.decode_clock(held)

    def store_clock(self, reading: ClockReading) -> None:
        """Keep what the clocks of this node say, beside the state; a crash may take it back."""
        batch = Batch()
        key = layout.clock_key(self._space.group)
        batch.put(Family.META, key, layout.encode_clock(reading))
        self._engine.write(batch)

    def next_expiry_ms(self) -> int:
        """When the first thing that is stored expires, or has; NEVER_MS if nothing does."""
        horizon = self._horizon
        if horizon.first_row < _NEVER_ROW:
            horizon.first_row = next(self._tables().expiry.rows(), _NEVER_ROW)
        return layout.split_expiry_key(horizon.first_row)[0]

    def has_expiring(self, now_ms: int) -> bool:
        """Whether a record that is there by log time has expired when log time is `now_ms`."""
        horizon = self._horizon
        start_ms = max(horizon.first_record_ms, self.log_time_ms + 1)
        if now_ms < start_ms:
            return False
        for expires_at, kind, _ in map(
            layout.split_expiry_key, self._tables().expiry.rows(start_ms)
        ):
            if kind is ExpiryKind.RECORD or expires_at > now_ms:
                horizon.first_record_ms = expires_at
                return expires_at <= now_ms
        horizon.first_record_ms = NEVER_MS
        return False

    def revision_at(self, log_time_ms: int) -> int:
        """The newest revision that was there at the time, of those whose events are kept.

        The oldest that can be read if none of them was. Looks at few events.
        """
        history = self._tables().history
        low, high = self.oldest_revision, self.revision
        while low < high:
            middle = (low + high + 1) // 2
            found = next(history.scan(layout.history_key(middle)), None)
            if found is None or layout.decode_event(found[1])[1] > log_time_ms:
                high = middle - 1
            else:
                low = middle
        return low

    def content_hash(self) -> ContentHasher:
        """Begin to hash the whole state as it is now, whatever is applied meanwhile."""
        return ContentHasher(
            self._engine, self._space, self._standing.applied, self._standing.revision
        )

    # Snapshots.

    def read_snapshot(self, hasher: RowHasher | None = None) -> SnapshotReader:
        """Begin to read the state as it is now, whatever is applied or installed meanwhile.

        The hasher, if there is one, takes in what is read: its content hash, at the end.
        """
        return SnapshotReader(self._engine, self._space, self._standing.applied, hasher)

    def stage_snapshot(self) -> Staging:
        """Begin to receive a state, in place of what was staged before and of that staging.

        Not while a staged state may still be installed: between the InstallSnapshot that
        tells the core of it and the end of the Ready that answers.
        """
        self.discard_staged()
        self._staging = Staging(self._engine, self._space.other)
        return self._staging

    @property
    def staged(self) -> Index | None:
        """What the state that was staged as a whole has applied; None if there is none."""
        return load_staged(self._engine, self._space.group)

    def discard_staged(self) -> None:
        """Empty the other space, and end the staging that is under way."""
        if self._staging is not None:
            self._staging.abandon()
            self._staging = None
        batch = Batch()
        if self.staged is not None:
            batch.delete(Family.META, layout.staged_key(self._space.group))
        start, end = self._space.other.range
        for family in layout.STATE_FAMILIES:
            # A range delete costs every read of the family a little: none without need.
            if next(self._engine.scan(family, start, end), None) is not None:
                batch.delete_range(family, start, end)
        if not batch.is_empty:
            self._engine.write(batch)

    def install(self, applied: Index) -> None:
        """Let the staged state, which has applied so much, be the state.

        A crash may take this back as long as the engine is not synced, but not the
        staged state, if it was synced: `recovery.reconcile` does it again then.

        Raises:
            StorageError: no such state is staged, or it cannot be read; or the engine
                failed. Nothing has changed.
        """
        if applied <= self._standing.applied:
            raise AssertionError(f"the state at {applied} for that at {self._standing.applied}")
        if self.staged != applied:
            raise StorageError(
                f"the state at {applied} cannot be installed: what is staged is that at"
                f" {self.staged}. The disk has lost it; replace this node"
            )
        old, new = self._space, self._space.other
        standing = Standing.load(self._engine, new)
        batch = Batch()
        batch.put(Family.META, layout.space_key(new.group), layout.encode_space(new))
        batch.delete(Family.META, layout.staged_key(new.group))
        for family in layout.STATE_FAMILIES:
            batch.delete_range(family, *old.range)
        self._engine.write(batch)
        self._space, self._standing, self._staging = new, standing, None
        self._horizon = Horizon()
        self._clients = Clients.load(self._tables().clients)
        if self.observer is not None:
            self.observer(())

    def skip_revisions(self, count: int) -> None:
        """Go on with a revision so much higher, and forget history: it is the oldest that can be
        read. What is removed of it on the disk, housekeeping removes.

        For a state that another history goes on from. The one that it was taken from has
        given the next numbers, too, to changes that are not in this one.
        """
        revision = self._standing.revision + count
        standing = replace(self._standing, revision=revision, oldest_revision=revision)
        batch = Batch()
        standing.save(batch, self._space, self._standing)
        self._engine.write(batch)
        self._standing = standing

    def _tables(self) -> Tables:
        return Tables(self._engine, self._space, self._horizon)

    def _look(self) -> View:
        standing = self._standing
        return View(
            self._tables(), standing.revision, standing.log_time_ms, standing.oldest_revision
        )


class _Run:
    """Entries under way to the engine, and what is to be told once they are there."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.transitions: list[Transition] = []
        self.verdicts: list[Verdict] = []
        self.hash_format: int | None = None
        """Of the last verification."""

    @property
    def replaces_much(self) -> bool:
        return self.execution.replaced_bytes > limits.MAX_REPLACED_BYTES

    def carry_out(self, entry: Entry) -> Iterator[TransactionResult]:
        """Run the commands of an entry one by one. Raises UnknownCommand."""
        execution = self.execution
        batch = decode_batch(entry)
        execution.begin_entry(batch.log_time_ms)
        for position, command in enumerate(batch.commands):
            try:
                result = execution.run(command)
            except UnknownInstruction as error:
                raise UnknownCommand(
                    f"command {position} of entry {entry} has {error}, which this version does not"
                    " know. The node stops; run the version that the other nodes run"
                ) from error
            yield result
            if execution.events:
                self.transitions.append(
                    Transition(execution.revision, execution.log_time_ms, execution.events)
                )
            elif command.HasField("verification"):
                self.hash_format = command.verification.format
            elif command.HasField("verdict"):
                self.verdicts.append(command.verdict)
