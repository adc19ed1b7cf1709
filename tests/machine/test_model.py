"""The machine against the model (model.py), by whatever hypothesis can think of.

Every kind of command, with clients that repeat themselves, on both engines; now and then
the machine is made anew on what its disk holds, or, after a crash, applies the log again
from where that stands, as a node does. After each entry everything is compared: results,
events, records, every readable revision, and the tables of indexes and expiry.

    make model      20,000 runs (KVORUM_MODEL_EXAMPLES)
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from kvorum import limits
from kvorum_node.machine import Machine
from kvorum_node.machine.machine import Transition
from kvorum_node.raft.types import Entry, EntryKind, Index, Term
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Family
from kvorum_node.storage.layout import EventKind, ExpiryKind
from kvorumpb.v1.command_pb2 import (
    AddOperation,
    Check,
    Command,
    CommandBatch,
    Compaction,
    DeleteOperation,
    DeleteRangeOperation,
    GetOperation,
    IndexEntry,
    KeyRange,
    ListOperation,
    Operation,
    OperationError,
    PutOperation,
    RateLimit,
    RateLimitOperation,
    Record,
    RegisterClient,
    Sweep,
    TouchOperation,
    Transaction,
    TransactionResult,
)
from tests.machine import model
from tests.machine.conftest import GROUP, Disk, MemoryDisk, RocksDisk
from tests.machine.model import Model

EXAMPLES: Final = int(os.environ.get("KVORUM_MODEL_EXAMPLES", "150"))

KINDS: Final = {
    EventKind.PUT: model.PUT,
    EventKind.PUT_AFTER_EXPIRE: model.PUT,
    EventKind.DELETE: model.DELETE,
    EventKind.EXPIRE: model.EXPIRE,
}

# Few of everything, so that it meets often.
KEYS: Final = (b"a", b"a\x00", b"a\x00\xff", b"a\x00\x01", b"b", b"\xff", b"\xff\xff")
keys = st.sampled_from(KEYS)
MIN_APART: Final = 25
"""More than an integer has digits."""
LARGE: Final = b"l" * MIN_APART
values = st.sampled_from((b"", b"0", b"-7", b"9223372036854775807", b"text", b"+1", LARGE))
ttls = st.sampled_from((0, 0, 1, 5, 20))
revisions = st.integers(0, 30)
ranges = st.builds(
    KeyRange,
    start=st.sampled_from((b"", b"a", b"a\x00", b"b")),
    end=st.sampled_from((b"", b"b", b"\xff")),
)
index_entries = st.lists(
    st.builds(
        IndexEntry,
        index=st.sampled_from(("i", "i\0")),
        value=st.sampled_from((b"", b"x", b"x\x00\x01", b"\x00")),
        unique=st.booleans(),
    ),
    max_size=2,
    unique_by=lambda entry: (entry.index, entry.value),
)
# A record is 64 to 140 bytes of a result, and 10 to 70 as it is stored.
LIMITS: Final = model.Limits(
    range_records=3,
    unchanged_events=6,
    looks=8,
    look_bytes=MIN_APART,
    result_bytes=500,
    replaced_bytes=130,
    entry_replaced_bytes=150,
    sweep_bytes=40,
    apart_bytes=MIN_APART,
)
amounts = st.sampled_from((0, 1, -1, 5, 2**62, -(2**63)))
bounds = st.sampled_from((None, None, -2, 0, 3))
limit = st.builds(
    RateLimit,
    key=keys,
    algorithm=st.sampled_from(
        (RateLimit.SLIDING_LOG, RateLimit.SLIDING_COUNTER, RateLimit.GCRA),
    ),
    limit=st.just(3),
    window_ms=st.just(10),
    cost=st.integers(0, 3),
    reset=st.sampled_from((False, False, False, True)),
)
operations = st.one_of(
    st.builds(lambda **put: Operation(put=PutOperation(**put)), key=keys, value=values),
    st.builds(
        lambda **put: Operation(put=PutOperation(**put)),
        key=keys,
        value=values,
        ttl_ms=ttls,
        metadata=st.sampled_from((b"", b"m")),
        index_entries=index_entries,
        return_previous=st.booleans(),
        keep_ttl=st.booleans(),
    ),
    st.builds(lambda key: Operation(get=GetOperation(key=key)), keys),
    st.builds(
        lambda **delete: Operation(delete=DeleteOperation(**delete)),
        key=keys,
        return_previous=st.booleans(),
    ),
    st.builds(
        lambda **add: Operation(add=AddOperation(**add)),
        key=keys,
        amount=amounts,
        min=bounds,
        max=bounds,
        saturate=st.booleans(),
        ttl_ms=ttls,
    ),
    st.builds(
        lambda **request: Operation(list=ListOperation(**request)),
        range=ranges,
        limit=st.integers(0, 3),
        reverse=st.booleans(),
        keys_only=st.booleans(),
    ),
    st.builds(
        lambda **request: Operation(delete_range=DeleteRangeOperation(**request)),
        range=ranges,
        limit=st.integers(0, 3),
    ),
    st.builds(lambda **touch: Operation(touch=TouchOperation(**touch)), key=keys, ttl_ms=ttls),
    st.builds(
        lambda some: Operation(rate_limit=RateLimitOperation(limits=some)),
        st.lists(limit, min_size=1, max_size=2, unique_by=lambda one: one.key),
    ),
)
places = st.one_of(
    st.builds(lambda key: {"key": key}, keys), st.builds(lambda some: {"range": some}, ranges)
)
conditions = st.one_of(
    st.builds(lambda number: {"revision": number}, revisions),
    st.builds(lambda yes: {"exists": yes}, st.booleans()),
    st.builds(lambda number: {"version": number}, st.integers(0, 2)),
    st.builds(lambda value: {"value": value}, values),
    st.builds(lambda number: {"unchanged_since": number}, revisions),
)
checks = st.builds(lambda place, condition: Check(**place, **condition), places, conditions)
transactions = st.builds(
    Transaction,
    checks=st.lists(checks, max_size=2),
    operations=st.lists(operations, min_size=1, max_size=4),
    otherwise=st.lists(operations, max_size=2),
)
# All keys at once: otherwise few runs would ever meet a limit, or another record's place.
floods = st.builds(
    lambda written, ttl_ms, some: Transaction(
        operations=[
            Operation(
                put=PutOperation(
                    key=key,
                    value=value,
                    ttl_ms=ttl_ms,
                    index_entries=[IndexEntry(index="i", value=b"x", unique=key == b"b")],
                )
            )
            for key, value in zip(KEYS, written, strict=True)
        ][:some]
    ),
    st.lists(values, min_size=len(KEYS), max_size=len(KEYS)),
    ttls,
    st.integers(1, len(KEYS)),
)
plain = st.builds(lambda one: Command(transaction=one), transactions)
kinds = st.one_of(
    st.builds(lambda one: Command(transaction=one), floods),
    *[plain] * 4,  # these are to be most of them
    st.builds(
        lambda client, sequence, behind, one: Command(
            client_id=client,
            sequence=sequence,
            acknowledged=max(0, sequence - 1 - behind),
            transaction=one,
        ),
        st.integers(1, 3),
        st.integers(1, 6),
        st.integers(0, 3),
        st.one_of(transactions, floods),
    ),
    st.builds(
        lambda client: Command(client_id=client, register_client=RegisterClient()),
        st.integers(1, 3),
    ),
    st.builds(lambda count: Command(sweep=Sweep(limit=count)), st.integers(1, 3)),
    st.builds(
        lambda revision, count: Command(compaction=Compaction(revision=revision, limit=count)),
        revisions,
        st.integers(1, 4),
    ),
)


@st.composite
def commands(draw: st.DrawFn) -> Command:
    """Any of them. (hypothesis now and then wants to print a strategy: this one has a name.)"""
    command: Command = draw(kinds)
    return command


class Comparison(RuleBasedStateMachine):
    """One run: a log, the machine that applies it, and the model."""

    def make_disk(self) -> Disk:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.disk = self.make_disk()
        self.model = Model(LIMITS)
        self.log: list[Entry] = []
        self.answers: list[list[TransactionResult]] = []
        self.events: list[tuple[int, list[model.Happened]]] = []
        self.machine = self._open()
        self.apply(
            [Command(client_id=client, register_client=RegisterClient()) for client in (1, 2)], 1
        )

    def _open(self) -> Machine:
        machine = Machine(self.disk.engine, GROUP)
        machine.observer = self._observe
        return machine

    def _observe(self, transitions: Sequence[Transition]) -> None:
        for transition in transitions:
            expected = self.model.events[transition.revision]
            assert [(KINDS[event.kind], event.key) for event in transition.events] == [
                (event.kind, event.key) for event in expected
            ]
            for event, same in zip(transition.events, expected, strict=True):
                for stored, cell in ((event.record, same.cell), (event.previous, same.previous)):
                    assert (stored is None) == (cell is None)
                    if stored is not None and cell is not None:
                        record, whole = Record.FromString(stored), cell.record(b"")
                        if record.value_apart:
                            assert len(whole.value) >= MIN_APART
                            whole.value, whole.value_apart = b"", True
                        assert record == whole

    @rule(
        some=st.lists(commands(), min_size=1, max_size=5),
        passed_ms=st.sampled_from((0, 0, 1, 4, 30, -50)),
    )
    def apply(self, some: list[Command], passed_ms: int) -> None:
        """One entry, at a time that may seem to run backwards."""
        time = max(0, self.model.log_time_ms + passed_ms) or 1
        batch = CommandBatch(format=2, log_time_ms=time, commands=some)
        index = Index(len(self.log) + 1)
        self.log.append(Entry(index, Term(1), EntryKind.COMMANDS, batch.SerializeToString()))
        self.model.begin_entry(time)
        expected = [self.model.run(command) for command in some]
        [results] = self.machine.apply([self.log[-1]])
        for result, wanted in zip(results, expected, strict=True):
            _compare(result, wanted)
        self.answers.append([_copied(result) for result in results])

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """A client sends again what it has sent before."""
        if not self.log:
            return
        entry = data.draw(st.sampled_from(self.log))
        self.apply(list(CommandBatch.FromString(entry.data).commands), 0)

    @rule(cleanly=st.booleans())
    def end(self, cleanly: bool) -> None:
        """The node ends, and is started again."""
        if cleanly:
            self.disk.restart()
        else:
            self.disk.crash()
        self.machine = self._open()
        start = self.machine.applied
        assert start == len(self.log) or not cleanly
        observer, self.machine.observer = self.machine.observer, None
        again = self.machine.apply(self.log[start:])
        self.machine.observer = observer
        assert again == self.answers[start:]

    @invariant()
    def agrees(self) -> None:
        machine, model_ = self.machine, self.model
        assert (machine.revision, machine.log_time_ms) == (model_.revision, model_.log_time_ms)
        assert machine.oldest_revision == model_.oldest_revision
        live = model_.live()
        for key in KEYS:
            assert machine.get(key) == (live[key].record(key) if key in live else None)
        for revision in range(max(1, model_.oldest_revision), model_.revision + 1):
            past = model_.past[revision]
            for key in KEYS:
                record = machine.get(key, revision=revision)
                assert (record is None) == (key not in past)
                if record is not None:  # a touch is no revision, and changes the past as well
                    assert (record.value, record.revision) == (past[key].value, past[key].revision)
        self._tables_agree()
        self._limits_agree()

    def _limits_agree(self) -> None:
        kept = {key: layout.decode_limit(value)[0] for key, value in self._rows(Family.LIMIT)}
        assert kept == {key: one.expire_time_ms for key, one in self.model.limits.items()}
        expiries = [layout.split_expiry_key(key) for key, _ in self._rows(Family.EXPIRY)]
        due = [(time, key) for time, kind, key in expiries if kind is ExpiryKind.LIMIT]
        assert due == sorted((time, key) for key, time in kept.items())

    def _tables_agree(self) -> None:
        cells = self.model.cells
        assert {key for key, _ in self._rows(Family.DATA)} == cells.keys()
        expiries = [layout.split_expiry_key(key) for key, _ in self._rows(Family.EXPIRY)]
        assert [(time, key) for time, kind, key in expiries if kind is ExpiryKind.RECORD] == sorted(
            (cell.expire_time_ms, key) for key, cell in cells.items() if cell.expire_time_ms
        )
        rows = self._rows(Family.INDEX)
        entries = {
            (index, *layout.split_index_key(key, index))
            for key, _ in rows
            for index in ("i", "i\0")
            if key.startswith(layout.index_prefix(index))
        }
        assert entries == self.model.index()
        assert {(key, owner) for key, owner in rows if key.startswith(b"u")} == {
            (layout.unique_key(index, value), key)
            for key, cell in cells.items()
            for index, value, unique in cell.entries
            if unique
        }

        self._large_values_are_those_of_records()

    def _large_values_are_those_of_records(self) -> None:
        """Of the newest records, and of those that history still has."""
        apart = set()
        for key, stored in self._rows(Family.DATA):
            record = Record.FromString(stored)
            if record.value_apart:
                apart.add(layout.version_key(key, record.revision))
        for row, stored in self._rows(Family.KEYS):
            record = Record.FromString(stored)
            if record.value_apart:
                apart.add(layout.version_key(layout.split_version_key(row)[0], record.revision))
        assert {key for key, _ in self._rows(Family.VALUE)} == apart

    def _rows(self, family: Family) -> list[tuple[bytes, bytes]]:
        space = layout.Space(GROUP, 0)
        return [
            (layout.without_prefix(key), value)
            for key, value in self.disk.engine.scan(family, *space.range)
        ]

    def teardown(self) -> None:
        self.disk.close()


class OnMemory(Comparison):
    def make_disk(self) -> Disk:
        return MemoryDisk()


class OnRocks(Comparison):
    def make_disk(self) -> Disk:
        self.directory = Path(tempfile.mkdtemp(prefix="kvorum-model-"))
        return RocksDisk(self.directory)

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.directory)


@pytest.mark.timeout(0)  # as long as the examples take that were asked for
@pytest.mark.parametrize(("kind", "share"), [(OnMemory, 1.0), (OnRocks, 0.2)])
def test_the_machine_agrees_with_the_model(
    kind: type[Comparison], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, maximum in (
        ("MAX_RANGE_RECORDS", LIMITS.range_records),
        ("MAX_UNCHANGED_EVENTS", LIMITS.unchanged_events),
        ("MAX_TRANSACTION_RECORDS", LIMITS.looks),
        ("RANGE_LOOK_BYTES", LIMITS.look_bytes),
        ("MAX_RESULT_BYTES", LIMITS.result_bytes),
        ("MAX_REPLACED_BYTES", LIMITS.replaced_bytes),
        ("MAX_ENTRY_REPLACED_BYTES", LIMITS.entry_replaced_bytes),
        ("MAX_SWEEP_BYTES", LIMITS.sweep_bytes),
    ):
        monkeypatch.setattr(limits, name, maximum)
    monkeypatch.setattr(layout, "MIN_APART_BYTES", LIMITS.apart_bytes)
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=max(1, int(EXAMPLES * share)),
            stateful_step_count=20,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def _copied(result: TransactionResult) -> TransactionResult:
    copy = TransactionResult()
    copy.CopyFrom(result)
    return copy


def _compare(result: TransactionResult, expected: TransactionResult) -> None:
    """What the machine has answered is what the model says, messages for people left out."""
    answer = _copied(result)
    error = answer.error
    assert bool(error.message) == result.HasField("error")
    if error.reason in (OperationError.CLIENT_FORGOTTEN, OperationError.RESULT_FORGOTTEN):
        assert error.reason == expected.error.reason
        return
    if answer.HasField("error"):
        error.message = ""
    del answer.results[:]
    wanted = _copied(expected)
    del wanted.results[:]
    assert answer == wanted
    assert model.without_numbers(result.results) == model.without_numbers(expected.results)
