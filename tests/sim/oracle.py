"""What clients may see: a model of the store, fed by the committed log, judges every answer.

The model is that of tests/machine: it shares nothing with the state machine but the protocol.
Every change has its own revision, every entry has a log time, and every answer says of which
it is. So the order in which things took effect is known, and linearizability is cheap to
check:

    value       the answer is what the model says at that revision and log time: what had
                expired by then is not there, and everything else is
    real time   neither is below any that was acknowledged before the call began, and the
                revision is above all of them if the call has changed something
    once        what was acknowledged took effect, and once: whatever was sent again, the
                answer is that of the first time. What was refused did not take effect; nor
                is a client forgotten that was told that it is known
    model       every node is, at each index, at the revision and log time of the model
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from kvorum import limits
from kvorum.errors import Compacted, FutureRevision
from kvorum_node.raft.types import Entry, EntryKind, Index, NodeId, node_name
from kvorumpb.v1.command_pb2 import (
    Command,
    CommandBatch,
    KeyRange,
    OperationError,
    Record,
    Transaction,
    TransactionResult,
)
from kvorumpb.v1.kv_pb2 import GetRequest, GetResponse, ListRequest, ListResponse
from tests.machine.model import Cell, Cells, Limits, Model, within, without_numbers
from tests.sim.calls import APART_BYTES

Report = Callable[[str], None]
Identity = bytes | tuple[int, int]
"""Of a write: its client and sequence, or else all that it says."""
Fits = Callable[[TransactionResult], bool]


class Floor(NamedTuple):
    """What had been acknowledged when a call began."""

    revision: int = 0
    log_time_ms: int = 0


class Standing(NamedTuple):
    """Where the store is after an entry."""

    revision: int
    log_time_ms: int
    oldest_revision: int


@dataclass(frozen=True, slots=True)
class Ran:
    """A write that took effect."""

    result: TransactionResult
    changed: bool
    """It has made its revision."""


class Oracle:
    def __init__(self, report: Report) -> None:
        self.report = report
        self.model = Model(Limits(apart_bytes=APART_BYTES))
        self.acknowledged = 0
        """The highest revision of which any client has heard."""
        self._heard_time_ms = 0
        self._standings = [Standing(0, 0, 0)]
        """By index."""
        self._oldest: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        """By revision and log time, which revisions were then the oldest."""
        self._states: defaultdict[int, list[tuple[int, Cells]]] = defaultdict(list)
        """By revision, the log times at which entries have left it, and all cells of then."""
        self._expiries: defaultdict[tuple[bytes, int], set[int]] = defaultdict(set)
        """By key and revision, when a record was to expire: what `touch` changes."""
        self._ran: defaultdict[Identity, list[Ran]] = defaultdict(list)
        self._refused: set[Identity] = set()
        self._known: set[int] = set()
        """Clients that were told so."""
        self._states[0].append((0, self.model.cells))
        self._oldest[0, 0].add(0)

    @property
    def revision(self) -> int:
        return self.model.revision

    # What was committed.

    def applies(self, entry: Entry) -> int | None:
        """The next entry is committed. Returns the log time that is stamped on it."""
        stamp: int | None = None
        if entry.kind is EntryKind.COMMANDS:
            batch = CommandBatch.FromString(entry.data)
            stamp = batch.log_time_ms
            self.model.begin_entry(stamp)
            for command in batch.commands:
                self._apply(entry, command)
                self._note_expiries()
            self._states[self.model.revision].append((self.model.log_time_ms, self.model.cells))
        model = self.model
        self._standings.append(Standing(model.revision, model.log_time_ms, model.oldest_revision))
        self._oldest[model.revision, model.log_time_ms].add(model.oldest_revision)
        return stamp

    def _apply(self, entry: Entry, command: Command) -> None:
        model = self.model
        before = model.revision
        result = model.run(command)
        if not command.HasField("transaction"):
            return
        if command.client_id:
            identity: Identity = (command.client_id, command.sequence)
            forgotten = result.error.reason in _FORGOTTEN
            if forgotten or identity in self._ran:
                return  # refused for ever, or run before: the model has made sure
        else:
            identity = command.transaction.SerializeToString()
            if identity in self._ran and is_unique(command.transaction):
                self.report(f"once: {entry} holds for the second time {_text(command)}")
        if identity in self._refused:
            self.report(f"once: {entry} holds what was refused: {_text(command)}")
        self._ran[identity].append(Ran(result, model.revision > before))

    def _note_expiries(self) -> None:
        for key, cell in self.model.cells.items():
            self._expiries[key, cell.revision].add(cell.expire_time_ms)

    def holds(self, node: NodeId, applied: Index, standing: Standing) -> None:
        """A node has applied so much, and says where it stands."""
        expected = self._standings[applied] if applied < len(self._standings) else None
        if standing != expected:
            self.report(
                f"model: {node_name(node)} has applied {applied} and is at {standing}, not at"
                f" {expected}"
            )

    # What clients were told.

    def floor(self) -> Floor:
        """To be kept from the beginning of a call to its end."""
        return Floor(self.acknowledged, self._heard_time_ms)

    def refused(self, identity: Identity, transaction: Transaction) -> None:
        """A client was told that this was not applied, and never will be."""
        if isinstance(identity, tuple) or is_unique(transaction):
            self._refused.add(identity)
            if identity in self._ran:
                self.report(f"once: applied, but refused: {_text(transaction)}")

    def registered(self, client_id: int) -> None:
        """A client was told that it is known."""
        self._known.add(client_id)
        if client_id not in self.model.windows:
            self.report(f"once: the client {client_id:x} was told that it is known, and is not")

    def forgotten(self, identity: Identity, acknowledged: int, reason: str) -> None:
        """A client was refused for ever; it had acknowledged so much before."""
        client, sequence = identity if isinstance(identity, tuple) else (0, 0)
        if reason == "CLIENT_FORGOTTEN":
            if client in self._known:
                self.report(f"once: the client {client:x} was forgotten")
        elif sequence > acknowledged:
            self.report(
                f"once: what {client:x} was answered to {sequence} was forgotten, and only those"
                f" through {acknowledged} were acknowledged"
            )

    def written(
        self, identity: Identity, transaction: Transaction, floor: Floor, fits: Fits
    ) -> None:
        """A client was told the outcome of a write; `fits` says whether it may be this one."""
        known = self._ran.get(identity)
        if known is None:
            self.report(f"acknowledged write is lost: {_text(transaction)} is not in the log")
            return
        fitting = [ran for ran in known if fits(ran.result)]
        if not fitting:
            self.report(
                f"value: {_text(transaction)} was answered with something else than"
                f" {' or '.join(_text(ran.result) for ran in known)}"
            )
            return
        in_time = [ran for ran in fitting if _is_after(ran, floor)]
        best = (in_time or fitting)[0].result
        self._heard(best.revision, best.log_time_ms, floor, in_time=bool(in_time))

    def read(self, request: GetRequest, response: GetResponse, floor: Floor | None) -> None:
        """A client was told what a key held; without a floor, it has asked for no more than that
        it did once."""
        record = response.record if response.HasField("record") else None
        key, at = request.key, response.revision
        if not self._in_time(at, response.log_time_ms, floor, is_past=request.revision > 0):
            return
        if request.revision:
            cell = self.model.past[at].get(key)
            if at != request.revision or not self._is(key, cell, record):
                self.report(f"value: {key!r} at {at} was {_text(record)}, not {cell}")
            return
        candidates = self._at(at, response.log_time_ms)
        if not any(
            _same(key, cells.get(key), record, response.log_time_ms) for cells in candidates
        ):
            self.report(
                f"value: {key!r} at {at} and {response.log_time_ms} was {_text(record)}, not"
                f" {[cells.get(key) for cells in candidates]}"
            )

    def looked(self, transaction: Transaction, result: TransactionResult, floor: Floor) -> None:
        """A client was told the outcome of a transaction that only reads."""
        at, time_ms = result.revision, result.log_time_ms
        if not self._in_time(at, time_ms, floor, is_past=False):
            return
        command = Command(transaction=transaction)
        expected = [
            self._as_of(at, time_ms, oldest, cells).run(command)
            for cells in self._at(at, time_ms)
            for oldest in self._oldest[at, time_ms]
        ]
        if not any(same_result(one, result) for one in expected):
            self.report(
                f"value: {_text(transaction)} at {at} and {time_ms} was answered with"
                f" {_text(result)}, not with {' or '.join(map(_text, expected))}"
            )

    def _as_of(self, revision: int, log_time_ms: int, oldest: int, cells: Cells) -> Model:
        """The model as it was when it was there, as far as a read depends on it."""
        events = {at: some for at, some in self.model.events.items() if at <= revision}
        return replace(
            self.model,
            cells=cells,
            revision=revision,
            log_time_ms=log_time_ms,
            oldest_revision=oldest,
            events=events,
        )

    def listed(
        self,
        request: ListRequest,
        response: ListResponse,
        floor: Floor | None,
        after: tuple[bytes, bytes] | None,
    ) -> None:
        """A client was told a page: what comes after the place of the last page."""
        at, time_ms = response.revision, response.log_time_ms
        is_past = request.revision > 0 or (request.snapshot and after is not None)
        if not self._in_time(at, time_ms, floor, is_past=is_past):
            return
        if request.revision:
            states = [self.model.past[at]]
            time_ms = 0
        else:
            # What is touched while a list is under way may be there or not.
            states = [cells for known_ms, cells in self._states[at] if known_ms >= time_ms]
        if not any(self._is_page(request, response, cells, time_ms, after) for cells in states):
            self.report(
                f"value: the list {_text(request)} after {after} at {at} and {time_ms} was"
                f" {_text(response)}, not of {states}"
            )

    def _is_page(
        self,
        request: ListRequest,
        response: ListResponse,
        cells: Cells,
        time_ms: int,
        after: tuple[bytes, bytes] | None,
    ) -> bool:
        there = [
            place
            for place in _places(request, cells)
            if not 0 < cells[place[1]].expire_time_ms <= time_ms
        ]
        if request.count and response.count != len(there):
            return False
        if after is not None:
            there = [one for one in there if (one < after if request.reverse else one > after)]
        count = request.page_size or limits.DEFAULT_PAGE_RECORDS
        if bool(response.next_page_token) != (len(there) > count):
            return False
        there = there[:count]
        if request.HasField("index") and list(response.index_values) != [one for one, _ in there]:
            return False
        return len(there) == len(response.records) and all(
            key == record.key and self._is(key, cells[key], record, keys_only=request.keys_only)
            for (_, key), record in zip(there, response.records, strict=True)
        )

    def unreadable(self, revision: int, error: Compacted | FutureRevision, floor: Floor) -> None:
        """A client was told that it cannot read at the revision any more, or not yet."""
        if isinstance(error, Compacted):
            oldest = error.oldest_revision
            if not revision < oldest <= self.model.oldest_revision:
                self.report(f"compaction: {revision} is gone, it was said: before {oldest}")
        elif revision <= floor.revision:
            self.report(f"real time: revision {revision} is not there, and was acknowledged")

    # The model.

    def content(self) -> Cells:
        """All that is stored, in key order; some of it may have expired."""
        return dict(sorted(self.model.cells.items()))

    def was_to_expire(self, key: bytes, revision: int, expire_time_ms: int) -> bool:
        """Whether the record of that revision was to expire then, at some time."""
        return expire_time_ms in self._expiries[key, revision]

    def is_live(self, cell: Cell) -> bool:
        return not 0 < cell.expire_time_ms <= self.model.log_time_ms

    def _at(self, revision: int, log_time_ms: int) -> list[Cells]:
        return [cells for known_ms, cells in self._states[revision] if known_ms == log_time_ms]

    def _is(
        self, key: bytes, cell: Cell | None, record: Record | None, *, keys_only: bool = False
    ) -> bool:
        """Whether the record is what the cell says, with the expiry of any time."""
        if cell is None or record is None:
            return cell is None and record is None
        expected = cell.record(key, keys_only=keys_only)
        expected.expire_time_ms = record.expire_time_ms
        return record == expected and self.was_to_expire(key, cell.revision, record.expire_time_ms)

    def _in_time(
        self, revision: int, log_time_ms: int, floor: Floor | None, *, is_past: bool
    ) -> bool:
        """False if there is nothing to compare with."""
        if floor is None:
            if revision > self.model.revision:
                self.report(f"real time: an answer is of revision {revision}, not committed")
                return False
            return True
        later = is_past or revision >= floor.revision
        self._heard(
            self.acknowledged if is_past else revision,
            self._heard_time_ms if is_past else log_time_ms,
            floor,
            in_time=later and (is_past or log_time_ms >= floor.log_time_ms),
        )
        return revision <= self.model.revision

    def _heard(self, revision: int, log_time_ms: int, floor: Floor, *, in_time: bool) -> None:
        if not in_time:
            self.report(
                f"real time: an answer is of revision {revision} at {log_time_ms}, and {floor} had"
                " been acknowledged before the call"
            )
        if revision > self.model.revision:
            self.report(f"real time: an answer is of revision {revision}, which is not committed")
        self.acknowledged = max(self.acknowledged, revision)
        self._heard_time_ms = max(self._heard_time_ms, log_time_ms)


_FORGOTTEN = (OperationError.CLIENT_FORGOTTEN, OperationError.RESULT_FORGOTTEN)


def is_unique(transaction: Transaction) -> bool:
    """Whether no other transaction is like it: every value that clients put is unique."""
    return any(one.HasField("put") for one in transaction.operations)


def only_reads(transaction: Transaction) -> bool:
    """Whether it costs no entry in the log, whichever branch runs."""
    return all(
        operation.WhichOneof("operation") in ("get", "list")
        for branch in (transaction.operations, transaction.otherwise)
        for operation in branch
    )


def same_result(one: TransactionResult, other: TransactionResult) -> bool:
    """Whether they are the same, as far as the model can know."""
    if one == other:
        return True
    if not any(result.HasField("rate_limit") for result in one.results):
        return False
    copies = []
    for result in (one, other):
        copy = TransactionResult()
        copy.CopyFrom(result)
        del copy.results[:]
        copy.results.extend(without_numbers(result.results))
        copies.append(copy)
    return copies[0] == copies[1]


def _is_after(ran: Ran, floor: Floor) -> bool:
    result = ran.result
    least = floor.revision + 1 if ran.changed else floor.revision
    return result.revision >= least and result.log_time_ms >= floor.log_time_ms


def _same(key: bytes, cell: Cell | None, record: Record | None, log_time_ms: int) -> bool:
    if cell is None or 0 < cell.expire_time_ms <= log_time_ms:
        return record is None
    return record is not None and record == cell.record(key)


def _places(request: ListRequest, cells: Cells) -> list[tuple[bytes, bytes]]:
    """Where the records of a selection are, in its order: a value of the index, and the key."""
    if request.HasField("index"):
        selected = request.index
        values = selected.range  # all of them, if it does not say which
        has_value = selected.value.__eq__ if selected.HasField("value") else within(values)
        places: Iterable[tuple[bytes, bytes]] = (
            (value, key)
            for key, cell in cells.items()
            for index, value, _ in cell.entries
            if index == selected.index and has_value(value) and value.startswith(selected.prefix)
        )
    else:
        chosen = request.range if request.HasField("range") else KeyRange(start=request.prefix)
        inside = within(chosen)
        places = ((b"", key) for key in cells if inside(key) and key.startswith(request.prefix))
    return sorted(places, reverse=request.reverse)


def _text(message: object) -> str:
    return " ".join(str(message).split())
