"""Where the machine stands, and how a run of entries moves it."""

import pytest

from kvorum.errors import StorageError
from kvorum_node.machine import FORMAT, HASH_FORMAT, ContentHasher, Machine
from kvorum_node.raft.types import Entry, EntryKind, GroupId, Index, Term
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorum_node.storage.memory import MemoryEngine
from kvorumpb.v1.command_pb2 import Command, CommandBatch, Verdict, Verification
from tests.support.commands import add, delete, entry, get, noop, put, run, run_one, transaction

GROUP = GroupId(1)
SPACE = layout.Space(GROUP, 0)


class _WatchedEngine(MemoryEngine):
    """Counts writes, and fails them on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[Batch] = []
        self.broken = False

    def write(self, batch: Batch) -> None:
        if self.broken:
            raise StorageError("no space left on device")
        self.writes.append(batch)
        super().write(batch)


def test_a_new_machine_stands_before_everything(machine: Machine) -> None:
    assert (machine.applied, machine.revision, machine.log_time_ms) == (0, 0, 0)
    assert machine.get(b"a") is None


def test_results_are_one_list_per_entry_and_one_result_per_command(machine: Machine) -> None:
    results = machine.apply(
        [
            noop(1),
            entry(2, transaction(put(b"a")), transaction(put(b"b"), get(b"a"))),
            entry(3),
            entry(4, transaction(delete(b"a"))),
        ]
    )
    assert [len(each) for each in results] == [0, 2, 0, 1]
    assert [len(result.results) for result in results[1]] == [1, 2]
    assert machine.applied == 4
    assert machine.revision == 3


def test_no_entries_are_no_step(machine: Machine) -> None:
    assert machine.apply([]) == []
    assert machine.applied == 0


@pytest.mark.parametrize("index", [0, 1, 2, 4, 5])
def test_entries_must_go_on_from_the_applied_index(machine: Machine, index: int) -> None:
    machine.apply([noop(1), noop(2)])
    with pytest.raises(AssertionError, match=f"{index}@1 does not go on from applied index 2"):
        machine.apply([entry(index, transaction(put(b"a")))])
    assert machine.applied == 2
    assert machine.get(b"a") is None


def test_a_gap_within_the_entries_is_refused_before_anything_is_written(machine: Machine) -> None:
    with pytest.raises(AssertionError, match="3@1 does not go on from applied index 1"):
        machine.apply([entry(1, transaction(put(b"a"))), entry(3, transaction(put(b"b")))])
    assert (machine.applied, machine.revision) == (0, 0)
    assert machine.get(b"a") is None


def test_everything_of_a_call_goes_into_one_write() -> None:
    engine = _WatchedEngine()
    machine = Machine(engine, GROUP)
    machine.apply(
        [
            entry(index, transaction(add(b"n")), transaction(put(b"a")), log_time_ms=index)
            for index in range(1, 11)
        ]
    )
    [batch] = engine.writes
    names = {key for family, key, _ in batch.puts if family is Family.META}
    assert names == {
        layout.meta_key(SPACE, name)
        for name in (layout.META_APPLIED, layout.META_REVISION, layout.META_LOG_TIME_MS)
    }
    keys = [key for family, key, _ in batch.puts if family is Family.DATA]
    assert keys == [layout.data_key(SPACE, b"n"), layout.data_key(SPACE, b"a")]


def _commands(index: int, *commands: Command) -> Entry:
    data = CommandBatch(format=FORMAT, commands=commands).SerializeToString()
    return Entry(Index(index), Term(1), EntryKind.COMMANDS, data)


VERIFICATION = Command(verification=Verification(format=HASH_FORMAT))


def test_a_call_with_verifications_writes_one_batch_through_each_of_them() -> None:
    engine = _WatchedEngine()
    machine = Machine(engine, GROUP)
    pinned: list[tuple[int, int]] = []  # where it is pinned, and what was written by then
    machine.on_verification = lambda hasher: pinned.append((hasher.applied, len(engine.writes)))
    results = machine.apply(
        [
            entry(1, transaction(put(b"a"))),
            _commands(2, VERIFICATION, Command(transaction=transaction(put(b"b")))),
            _commands(3, VERIFICATION),
            noop(4),
            entry(5, transaction(put(b"c"))),
        ]
    )
    assert [len(each) for each in results] == [1, 2, 1, 0, 1]
    assert pinned == [(2, 1), (3, 2)]
    written = [[key[5:] for f, key, _ in batch.puts if f is Family.DATA] for batch in engine.writes]
    assert written == [[b"a", b"b"], [], [b"c"]]
    assert (machine.applied, machine.revision) == (5, 3)


def test_what_was_before_a_verification_is_there_if_what_is_behind_it_fails() -> None:
    engine = _WatchedEngine()
    machine = Machine(engine, GROUP)

    def break_down(hasher: ContentHasher) -> None:
        engine.broken = True

    machine.on_verification = break_down
    with pytest.raises(StorageError, match="no space left"):
        machine.apply([_commands(1, VERIFICATION), entry(2, transaction(put(b"a")))])
    assert (machine.applied, machine.revision) == (1, 0)
    assert Machine(engine, GROUP).applied == 1


def test_a_verification_of_a_format_that_is_not_known_is_passed_over(machine: Machine) -> None:
    pinned: list[ContentHasher] = []
    machine.on_verification = pinned.append
    for number, known in enumerate((0, HASH_FORMAT, HASH_FORMAT + 1), start=1):
        [[result]] = machine.apply(
            [_commands(number, Command(verification=Verification(format=known)))]
        )
        assert result.succeeded
    assert [hasher.applied for hasher in pinned] == [2]


def test_verdicts_are_told_once_they_are_in_the_engine() -> None:
    engine = _WatchedEngine()
    machine = Machine(engine, GROUP)
    told: list[tuple[int, int]] = []
    machine.on_verdict = lambda verdict: told.append((verdict.index, len(engine.writes)))
    machine.apply(
        [
            _commands(1, *(Command(verdict=Verdict(index=index)) for index in (7, 8))),
            _commands(2, VERIFICATION),
            _commands(3, Command(verdict=Verdict(index=2))),
        ]
    )
    assert told == [(7, 1), (8, 1), (2, 2)]


def test_nobody_needs_to_look_at_verifications_and_verdicts(machine: Machine) -> None:
    machine.apply([_commands(1, VERIFICATION, Command(verdict=Verdict(index=1, corrupt=[1])))])
    assert (machine.applied, machine.revision) == (1, 0)


def test_a_failed_write_leaves_the_machine_where_it_stood() -> None:
    engine = _WatchedEngine()
    machine = Machine(engine, GROUP)
    run_one(machine, put(b"a", b"1"))
    engine.broken = True
    with pytest.raises(StorageError, match="no space left"):
        machine.apply([entry(2, transaction(put(b"a", b"2")), log_time_ms=9)])
    assert (machine.applied, machine.revision, machine.log_time_ms) == (1, 1, 0)
    engine.broken = False
    run_one(machine, put(b"b"))
    assert (machine.applied, machine.revision) == (2, 2)


def test_later_commands_see_earlier_ones_of_the_same_call(machine: Machine) -> None:
    results = machine.apply(
        [
            entry(1, transaction(put(b"a", b"1")), transaction(add(b"a", 4))),
            entry(2, transaction(add(b"a", 5)), transaction(delete(b"a"))),
            entry(3, transaction(get(b"a")), transaction(add(b"a", 7))),
        ]
    )
    assert [result.revision for each in results for result in each] == [1, 2, 3, 4, 4, 5]
    assert results[1][0].results[0].add.value == 10
    assert not results[2][0].results[0].get.HasField("record")
    record = machine.get(b"a")
    assert record is not None
    assert (record.value, record.revision, record.created_revision, record.version) == (
        b"7",
        5,
        5,
        1,
    )


def test_log_time_never_runs_backwards(machine: Machine) -> None:
    times = []
    for index, stamp in enumerate([5, 9, 3, 9, 0, 12], start=1):
        machine.apply([entry(index, log_time_ms=stamp)])
        times.append(machine.log_time_ms)
    assert times == [5, 9, 9, 9, 9, 12]
    machine.apply([entry(7, log_time_ms=20), noop(8), entry(9, log_time_ms=13)])
    assert machine.log_time_ms == 20


def test_a_machine_goes_on_where_its_engine_was_left(machine: Machine, engine: Engine) -> None:
    machine.apply([entry(1, transaction(put(b"a")), transaction(put(b"b")), log_time_ms=70)])
    machine.apply([noop(2)])
    again = Machine(engine, GROUP)
    assert (again.applied, again.revision, again.log_time_ms) == (2, 2, 70)
    again.apply([entry(3, transaction(put(b"a")), log_time_ms=60)])
    record = again.get(b"a")
    assert record is not None
    assert (record.revision, record.created_revision, record.version) == (3, 1, 2)
    assert again.log_time_ms == 70


def test_a_configuration_is_passed_over(machine: Machine) -> None:
    configuration = Entry(Index(2), Term(1), EntryKind.CONFIGURATION, b"whatever it holds")
    results = machine.apply(
        [entry(1, transaction(put(b"a"))), configuration, entry(3, transaction(put(b"b")))]
    )
    assert [len(each) for each in results] == [1, 0, 1]
    assert (machine.applied, machine.revision) == (3, 2)


def test_groups_on_one_engine_do_not_see_each_other(engine: Engine) -> None:
    first, second = Machine(engine, GroupId(1)), Machine(engine, GroupId(2))
    run_one(first, put(b"a", b"first"))
    assert second.get(b"a") is None
    run(second, transaction(put(b"a", b"second")), transaction(put(b"b")))
    assert (first.revision, second.revision) == (1, 2)
    record = first.get(b"a")
    assert record is not None
    assert record.value == b"first"
    assert first.content_hash().step() != second.content_hash().step()


@pytest.mark.parametrize(
    "name", [layout.META_APPLIED, layout.META_REVISION, layout.META_LOG_TIME_MS]
)
def test_a_damaged_position_is_refused(engine: Engine, name: bytes) -> None:
    batch = Batch()
    batch.put(Family.META, layout.meta_key(SPACE, name), b"\0\0\0")
    engine.write(batch)
    with pytest.raises(StorageError, match=f"{name.decode()} of group 1 has 3 bytes"):
        Machine(engine, GROUP)


def test_a_damaged_record_is_refused_wherever_it_is_read(engine: Engine) -> None:
    machine = Machine(engine, GROUP)
    batch = Batch()
    batch.put(Family.DATA, layout.data_key(SPACE, b"a"), b"\x12\xff")
    engine.write(batch)
    with pytest.raises(StorageError, match="b'a' is not a record"):
        machine.get(b"a")
    with pytest.raises(StorageError, match="b'a' is not a record"):
        machine.content_hash().step()
    with pytest.raises(StorageError, match="b'a' is not a record"):
        run_one(machine, put(b"a"))
    assert machine.applied == 0
