"""Expiry in the state machine: by log time alone, in bounded sweeps, and never what was renewed."""

import pytest

from kvorum import limits
from kvorum_node.machine import FORMAT, Machine
from kvorum_node.machine.commit import Event
from kvorum_node.machine.horizon import NEVER_MS
from kvorum_node.raft.types import Entry, EntryKind, GroupId, Index, Term
from kvorum_node.storage.engine import Engine, Family
from kvorum_node.storage.layout import EventKind
from kvorumpb.v1.command_pb2 import (
    Command,
    CommandBatch,
    Compaction,
    Operation,
    PutOperation,
    Sweep,
    TouchOperation,
    Transaction,
    TransactionResult,
)
from tests.support.commands import delete, get, put, run_one


def put_for(key: bytes, ttl_ms: int, value: bytes = b"value") -> Operation:
    return Operation(put=PutOperation(key=key, value=value, ttl_ms=ttl_ms))


def touch(key: bytes, ttl_ms: int) -> Operation:
    return Operation(touch=TouchOperation(key=key, ttl_ms=ttl_ms))


def at(
    machine: Machine, log_time_ms: int, *what: Operation | Sweep | Compaction
) -> list[TransactionResult]:
    """Apply one entry of this time, each operation in a transaction of its own."""
    commands = []
    for one in what:
        match one:
            case Sweep():
                commands.append(Command(sweep=one))
            case Compaction():
                commands.append(Command(compaction=one))
            case _:
                commands.append(Command(transaction=Transaction(operations=[one])))
    batch = CommandBatch(format=FORMAT, log_time_ms=log_time_ms, commands=commands)
    data = batch.SerializeToString()
    entry = Entry(Index(machine.applied + 1), Term(1), EntryKind.COMMANDS, data)
    [results] = machine.apply([entry])
    return results


def rows(engine: Engine, family: Family) -> int:
    return sum(1 for _ in engine.scan(family, b"", None))


def events_of(machine: Machine) -> list[Event]:
    seen: list[Event] = []
    machine.observer = lambda transitions: seen.extend(
        event for one in transitions for event in one.events
    )
    return seen


def test_a_record_is_there_until_its_time_and_absent_from_then_on(machine: Machine) -> None:
    at(machine, 1000, put_for(b"k", 50))
    at(machine, 1049)
    assert machine.get(b"k") is not None
    at(machine, 1050)
    assert machine.get(b"k") is None
    assert not at(machine, 1050, get(b"k"))[0].results[0].get.HasField("record")


def test_log_time_does_not_run_backwards(machine: Machine) -> None:
    at(machine, 1000, put_for(b"k", 50))
    at(machine, 2000)
    [result] = at(machine, 500, get(b"k"))
    assert not result.results[0].get.HasField("record")
    assert (machine.log_time_ms, result.log_time_ms) == (2000, 2000)


def test_a_sweep_removes_what_has_expired_at_one_revision_the_oldest_first(
    machine: Machine, engine: Engine
) -> None:
    at(machine, 0, *(put_for(b"%d" % n, 100 - n) for n in range(5)), put_for(b"later", 1000))
    events = events_of(machine)
    at(machine, 100, Sweep(limit=3))
    assert machine.revision == 7
    assert [event.key for event in events] == [b"4", b"3", b"2"]
    assert {event.kind for event in events} == {EventKind.EXPIRE}
    at(machine, 100, Sweep(limit=3))
    assert machine.revision == 8
    assert [event.key for event in events[3:]] == [b"1", b"0"]
    at(machine, 100, Sweep(limit=3))
    assert (machine.revision, len(events)) == (8, 5)
    assert rows(engine, Family.DATA) == rows(engine, Family.EXPIRY) == 1


def test_a_sweep_ends_after_so_many_bytes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_SWEEP_BYTES", 6000)
    half = bytes(3000)  # larger values lie by themselves, and stay where they are
    at(machine, 0, *(put_for(b"%d" % n, 10, half) for n in range(5)))
    events = events_of(machine)
    at(machine, 10, Sweep(limit=100))
    assert len(events) == 2
    at(machine, 10, Sweep(limit=100), Sweep(limit=100))
    assert len(events) == 5


def test_an_old_leader_that_expires_what_was_renewed_at_the_new_one(machine: Machine) -> None:
    """It has seen the record expire by its clock; the log has the renewal, and then its sweep."""
    at(machine, 0, put_for(b"lease", 90), put_for(b"other", 90))
    at(machine, 80, touch(b"lease", 100))
    at(machine, 100, Sweep(limit=10))
    assert machine.get(b"lease") is not None
    assert machine.get(b"other") is None
    at(machine, 50, Sweep(limit=10))  # one whose clock is behind
    assert machine.get(b"lease") is not None
    at(machine, 180, Sweep(limit=10))
    assert machine.get(b"lease") is None


def test_a_put_behind_a_touch_of_one_transaction_is_a_put(machine: Machine) -> None:
    """Validation refuses that; what the log has means the one after the other."""
    at(machine, 0, put_for(b"lease", 90))
    events = events_of(machine)
    run_one(machine, touch(b"lease", 100), put(b"lease", b"later"), log_time_ms=1)
    record = machine.get(b"lease")
    assert record is not None
    assert (record.value, record.revision, record.version) == (b"later", 2, 2)
    assert [(event.kind, event.key) for event in events] == [(EventKind.PUT, b"lease")]


def test_what_expired_by_the_log_is_not_renewed(machine: Machine) -> None:
    at(machine, 0, put_for(b"lease", 90))
    at(machine, 90)
    [result] = at(machine, 80, touch(b"lease", 100))  # a leader whose clock is behind
    assert not result.results[0].touch.touched


def test_where_a_scan_begins_changes_nothing(engine: Engine) -> None:
    """A machine that has just been opened remembers nothing, and does the same."""
    remembering = Machine(engine, GroupId(1))

    def forgetting() -> Machine:
        return Machine(engine, GroupId(1))

    at(remembering, 0, put_for(b"a", 10), put_for(b"b", 500))
    assert remembering.next_expiry_ms() == forgetting().next_expiry_ms() == 10
    at(remembering, 20, Sweep(limit=10))
    assert remembering.next_expiry_ms() == forgetting().next_expiry_ms() == 500
    at(remembering, 20, put_for(b"c", 5))
    assert remembering.next_expiry_ms() == forgetting().next_expiry_ms() == 25
    at(remembering, 30, delete(b"b"), Sweep(limit=10))
    assert remembering.next_expiry_ms() == forgetting().next_expiry_ms() == NEVER_MS


def test_whether_a_record_expires_between_log_time_and_now(machine: Machine) -> None:
    assert not machine.has_expiring(10**12)
    at(machine, 1000, put(b"for ever"))
    assert not machine.has_expiring(10**12)
    at(machine, 1000, put_for(b"k", 50))
    assert not machine.has_expiring(1049)
    assert machine.has_expiring(1050)
    at(machine, 1050)
    assert not machine.has_expiring(10**12), "log time says already that it has expired"
    at(machine, 1050, put_for(b"sooner", 10))
    assert machine.has_expiring(1060)
    at(machine, 1055, touch(b"sooner", 10**6))
    assert not machine.has_expiring(1060)
    assert machine.has_expiring(2_000_000)


def test_the_newest_revision_of_a_time(machine: Machine) -> None:
    assert machine.revision_at(10**12) == 0
    for revision in range(1, 11):
        at(machine, revision * 100, put(b"k%d" % (revision % 3)))
    assert [machine.revision_at(ms) for ms in (0, 99, 100, 150, 999, 1000, 5000)] == [
        *(0, 0, 1, 1, 9, 10, 10)
    ]
    at(machine, 1000, Compaction(revision=4, limit=2))
    assert not machine.is_trimmed
    assert [machine.revision_at(ms) for ms in (0, 450, 500)] == [4, 4, 5]


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_history_is_removed_in_steps(machine: Machine, engine: Engine, limit: int) -> None:
    for revision in range(1, 11):
        at(machine, revision * 100, put(b"k"))
    at(machine, 1000, Compaction(revision=7, limit=limit))
    assert machine.oldest_revision == 7
    steps = 1
    while not machine.is_trimmed:
        before = rows(engine, Family.HISTORY)
        at(machine, 1000, Compaction(limit=limit))
        assert before - rows(engine, Family.HISTORY) <= limit
        steps += 1
    assert steps == -(-7 // limit)
    assert rows(engine, Family.HISTORY) == rows(engine, Family.KEYS) == 3
    assert machine.get(b"k", revision=7) is not None
