"""Exactly once: each write of a client is applied once, however often it is in the log."""

import random
from collections.abc import Callable, Iterable

import pytest

from kvorum import limits
from kvorum.errors import StorageError
from kvorum_node.machine import Machine
from kvorum_node.machine.clients import WRITE_BYTES, Clients
from kvorum_node.machine.machine import Transition
from kvorum_node.raft.types import Entry, GroupId, Index
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorum_node.storage.memory import MemoryEngine
from kvorumpb.v1.command_pb2 import (
    Command,
    Operation,
    OperationError,
    RegisterClient,
    TransactionResult,
)
from tests.machine.conftest import Disk
from tests.support.commands import (
    add,
    at_revision,
    entry_of,
    exists,
    get,
    noop,
    put,
    random_transaction,
    transaction,
)
from tests.support.snapshots import snapshot_of, stage

GROUP = GroupId(1)
SPACE = layout.Space(GROUP, 0)
ALICE, BOB, CAROL = 7, 2**64 - 1, 1


def register(client_id: int) -> Command:
    return Command(client_id=client_id, register_client=RegisterClient())


def write(client_id: int, sequence: int, *operations: Operation, acknowledged: int = 0) -> Command:
    return Command(
        client_id=client_id,
        sequence=sequence,
        acknowledged=acknowledged,
        transaction=transaction(*(operations or (add(b"n"),))),
    )


def apply(machine: Machine, *commands: Command) -> list[TransactionResult]:
    """As the machine's next entry."""
    [results] = machine.apply([entry_of(machine.applied + 1, *commands)])
    return results


def apply_one(machine: Machine, command: Command) -> TransactionResult:
    [result] = apply(machine, command)
    return result


def sum_of(result: TransactionResult) -> int:
    assert result.succeeded
    return result.results[0].add.value


def counter(machine: Machine, key: bytes = b"n") -> int:
    record = machine.get(key)
    return 0 if record is None else int(record.value)


def rows(engine: Engine, client_id: int | None = None) -> list[Index]:
    """The entries of which there are rows, of one client or of all."""
    keys = (layout.without_prefix(key) for key, _ in engine.scan(Family.CLIENT, *SPACE.range))
    found = [layout.split_client_key(key) for key in keys]
    return [index for client, index in found if client_id in (None, client)]


def is_known(machine: Machine, client_id: int) -> bool:
    """Whether a write of the client would run; tried with one that is never acknowledged."""
    result = apply_one(machine, write(client_id, 10**6, get(b"n")))
    if not result.HasField("error"):
        return True
    assert result.error.reason == OperationError.CLIENT_FORGOTTEN
    return False


@pytest.fixture
def machine(engine: Engine) -> Machine:
    """Alice is registered, in entry 1."""
    machine = Machine(engine, GROUP)
    apply(machine, register(ALICE))
    return machine


class TestOnce:
    def test_a_client_retry_applied_twice(self, machine: Machine) -> None:
        """The known bug. Seen red with `recall` returning None whatever is asked."""
        first = apply_one(machine, write(ALICE, 1, add(b"n", 5)))
        assert apply_one(machine, write(ALICE, 1, add(b"n", 5))) == first
        assert sum_of(first) == 5
        assert (counter(machine), machine.revision) == (5, 1)

    def test_in_the_same_entry(self, machine: Machine) -> None:
        first, again = apply(machine, write(ALICE, 1), write(ALICE, 1))
        assert first == again
        assert counter(machine) == 1

    def test_a_retry_gets_the_result_of_then_and_makes_no_event(self, machine: Machine) -> None:
        seen: list[Transition] = []
        machine.observer = seen.extend
        first = apply_one(machine, write(ALICE, 1, put(b"a"), get(b"a")))
        apply(machine, write(ALICE, 2, put(b"a", b"other")))
        assert apply_one(machine, write(ALICE, 1, put(b"a"), get(b"a"))) == first
        assert [one.revision for one in seen] == [1, 2]
        record = machine.get(b"a")
        assert record is not None
        assert record.value == b"other"

    def test_the_number_counts_and_not_the_content(self, machine: Machine) -> None:
        apply(machine, write(ALICE, 1), write(ALICE, 2))
        assert counter(machine) == 2

    def test_the_order_of_numbers_does_not_matter(self, machine: Machine) -> None:
        apply(machine, write(ALICE, 3), write(ALICE, 1))
        apply(machine, write(ALICE, 2), write(ALICE, 3))
        assert counter(machine) == 3

    def test_clients_do_not_share_numbers(self, machine: Machine) -> None:
        apply(machine, register(BOB), write(ALICE, 1), write(BOB, 1))
        assert counter(machine) == 2

    def test_a_write_without_a_client_is_applied_as_often_as_it_comes(
        self, machine: Machine, engine: Engine
    ) -> None:
        before = rows(engine)
        apply(machine, write(0, 1), write(0, 1))
        assert counter(machine) == 2
        assert rows(engine) == before

    def test_a_failed_operation_is_a_result(self, machine: Machine) -> None:
        apply(machine, write(ALICE, 1, put(b"n", b"text")))
        failed = apply_one(machine, write(ALICE, 2))
        assert failed.error.reason == OperationError.NOT_AN_INTEGER
        apply(machine, write(ALICE, 3, put(b"n", b"1")))
        assert apply_one(machine, write(ALICE, 2)) == failed
        assert counter(machine) == 1

    def test_a_failed_check_is_a_result(self, machine: Machine) -> None:
        conditional = write(ALICE, 1)
        conditional.transaction.checks.append(exists(b"a"))
        failed = apply_one(machine, conditional)
        assert failed.failed_check == 0
        apply(machine, write(ALICE, 2, put(b"a")))
        assert apply_one(machine, conditional) == failed
        assert counter(machine) == 0

    def test_a_create_that_is_retried_has_still_created(self, machine: Machine) -> None:
        create = write(ALICE, 1, put(b"a"))
        create.transaction.checks.append(at_revision(b"a", 0))
        assert apply_one(machine, create).succeeded
        assert apply_one(machine, create).succeeded

    def test_registering_again_changes_nothing(self, machine: Machine, engine: Engine) -> None:
        apply(machine, write(ALICE, 1))
        before = rows(engine)
        assert apply_one(machine, register(ALICE)).succeeded
        assert rows(engine) == before
        apply(machine, write(ALICE, 1))
        assert counter(machine) == 1


class TestForgotten:
    def test_a_client_that_never_registered_is_refused(self, machine: Machine) -> None:
        result = apply_one(machine, write(BOB, 1))
        assert result.error.reason == OperationError.CLIENT_FORGOTTEN
        assert not result.succeeded
        assert (counter(machine), machine.revision) == (0, 0)

    def test_registering_and_writing_in_one_entry(self, machine: Machine) -> None:
        _, result = apply(machine, register(BOB), write(BOB, 1))
        assert sum_of(result) == 1

    def test_what_is_acknowledged_is_refused_and_never_run(self, machine: Machine) -> None:
        apply(machine, write(ALICE, 2))
        apply(machine, write(ALICE, 3, acknowledged=2))
        for sequence in (1, 2):  # 1 was given up before it came
            result = apply_one(machine, write(ALICE, sequence))
            assert result.error.reason == OperationError.RESULT_FORGOTTEN
        assert counter(machine) == 2

    def test_what_is_acknowledged_in_the_same_entry(self, machine: Machine) -> None:
        *_, again = apply(
            machine, write(ALICE, 1), write(ALICE, 2, acknowledged=1), write(ALICE, 1)
        )
        assert again.error.reason == OperationError.RESULT_FORGOTTEN
        assert counter(machine) == 2

    def test_an_older_acknowledgement_takes_nothing_back(self, machine: Machine) -> None:
        apply(machine, write(ALICE, 5, acknowledged=4))
        apply(machine, write(ALICE, 6, acknowledged=1))
        assert apply_one(machine, write(ALICE, 4)).error.reason == OperationError.RESULT_FORGOTTEN

    @pytest.mark.parametrize("beyond", [0, 1])
    def test_a_large_result_is_remembered_as_applied(
        self, machine: Machine, beyond: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        apply(machine, write(ALICE, 1, put(b"a", bytes(100))))
        reading = write(ALICE, 2, add(b"n"), get(b"a"))
        size = apply_one(machine, reading).ByteSize()
        monkeypatch.setattr(limits, "MAX_REMEMBERED_RESULT_BYTES", size - beyond)
        reading.sequence = 3
        first = apply_one(machine, reading)
        again = apply_one(machine, reading)
        assert first.ByteSize() == size
        if beyond:
            assert again.error.reason == OperationError.RESULT_FORGOTTEN
        else:
            assert again == first
        assert counter(machine) == 2

    def test_the_results_of_one_client_are_bounded(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = apply_one(machine, write(ALICE, 1)).ByteSize()
        monkeypatch.setattr(limits, "MAX_CLIENT_RESULT_BYTES", 3 * size)
        apply(machine, *(write(ALICE, sequence) for sequence in range(2, 5)))
        reasons = [
            apply_one(machine, write(ALICE, sequence)).error.reason for sequence in range(1, 5)
        ]
        assert reasons == [0, 0, 0, OperationError.RESULT_FORGOTTEN]
        # What is acknowledged makes room again.
        apply(machine, write(ALICE, 5, acknowledged=2))
        assert apply_one(machine, write(ALICE, 5)).succeeded
        assert counter(machine) == 5

    @pytest.mark.parametrize("clients", [limits.MAX_CLIENTS, limits.MAX_CLIENTS + 1])
    def test_the_number_of_clients_is_bounded(self, engine: Engine, clients: int) -> None:
        machine = Machine(engine, GROUP)
        for first in range(1, clients + 1, 1000):
            apply(machine, *(register(one) for one in range(first, min(first + 1000, clients + 1))))
        assert len(rows(engine)) == limits.MAX_CLIENTS
        assert is_known(machine, 1) == (clients == limits.MAX_CLIENTS)
        assert is_known(machine, 2)

    def test_the_one_that_has_been_idle_longest_goes_first(
        self, disk: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_CLIENTS", 3)
        machine = Machine(disk.engine, GROUP)
        apply(machine, register(10), register(30), register(20))
        apply(machine, write(10, 1))
        disk.restart()
        machine = Machine(disk.engine, GROUP)
        apply(machine, write(30, 1), register(30))
        apply(machine, register(40))  # 20 has never written
        apply(machine, write(10, 1))  # a retry is no activity
        apply(machine, register(50))
        assert {client for client in (10, 20, 30, 40, 50) if is_known(machine, client)} == {
            30,
            40,
            50,
        }
        assert sorted(rows(disk.engine)) == sorted(set(rows(disk.engine)))

    def test_of_those_that_are_equally_idle_the_smallest_id_goes_first(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_CLIENTS", 3)
        for restarted in (False, True):
            machine = Machine(engine if restarted else MemoryEngine(), GROUP)
            apply(machine, register(17), register(9), register(1))
            if restarted:
                machine = Machine(engine, GROUP)
            apply(machine, register(25), register(33))
            known = [one for one in (1, 9, 17, 25, 33) if is_known(machine, one)]
            assert known == [17, 25, 33]

    def test_the_memory_for_all_is_bounded(
        self, disk: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = Machine(disk.engine, GROUP)
        apply(machine, register(ALICE), register(BOB))
        size = apply_one(machine, write(ALICE, 1)).ByteSize()
        apply(machine, write(BOB, 1))
        monkeypatch.setattr(limits, "MAX_CLIENTS_BYTES", 3 * (size + WRITE_BYTES))
        apply(machine, write(BOB, 2))
        disk.restart()
        machine = Machine(disk.engine, GROUP)
        assert apply_one(machine, write(ALICE, 1)).succeeded
        apply(machine, write(BOB, 3))
        assert apply_one(machine, write(ALICE, 1)).error.reason == OperationError.CLIENT_FORGOTTEN
        assert rows(disk.engine, ALICE) == []
        # Bob has room again for what he acknowledges.
        apply(machine, register(ALICE), write(BOB, 4, acknowledged=3))
        assert is_known(machine, BOB)

    def test_who_was_forgotten_begins_anew(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        apply(machine, write(ALICE, 1))
        monkeypatch.setattr(limits, "MAX_CLIENTS", 1)
        apply(machine, register(BOB))
        assert not is_known(machine, ALICE)
        apply(machine, register(ALICE))
        assert sum_of(apply_one(machine, write(ALICE, 1))) == 2


class TestRows:
    def test_a_client_leaves_one_row_an_entry(self, machine: Machine, engine: Engine) -> None:
        apply(machine, *(write(ALICE, sequence) for sequence in range(1, 101)))
        apply(machine, write(ALICE, 101))
        assert rows(engine) == [2, 3]

    def test_acknowledged_rows_disappear_but_the_newest(
        self, machine: Machine, engine: Engine
    ) -> None:
        apply(machine, write(ALICE, 1), write(ALICE, 2))  # entry 2
        apply(machine, write(ALICE, 4))  # 3
        apply(machine, write(ALICE, 3, acknowledged=1))  # 4
        assert rows(engine) == [2, 3, 4]
        apply(machine, write(ALICE, 5, acknowledged=3))  # 5
        assert rows(engine) == [3, 5]
        apply(machine, write(ALICE, 6, acknowledged=5))  # 6
        assert rows(engine) == [6]
        apply(machine, write(ALICE, 7), write(ALICE, 8, acknowledged=7))  # 7
        assert rows(engine) == [7]
        apply(machine, write(ALICE, 9, acknowledged=8))
        assert rows(engine) == [8]

    def test_an_acknowledgement_far_ahead_costs_what_is_there(
        self, machine: Machine, engine: Engine
    ) -> None:
        apply(machine, write(ALICE, 1))
        far = 2**63
        assert sum_of(apply_one(machine, write(ALICE, far, acknowledged=far - 1))) == 2
        assert rows(engine) == [3]

    def test_a_long_life_leaves_little(self, machine: Machine, engine: Engine) -> None:
        for sequence in range(1, 500):
            apply(machine, write(ALICE, sequence, acknowledged=max(0, sequence - 8)))
        assert len(rows(engine)) == 8
        assert counter(machine) == 499

    @pytest.mark.parametrize(
        "damage",
        [
            lambda key, row: (key[:-1], row),
            lambda key, row: (key, row[:-1]),
            lambda key, row: (key, row[:9]),
            lambda key, row: (key, b""),
        ],
    )
    def test_a_damaged_row_stops_the_node(
        self,
        machine: Machine,
        engine: Engine,
        damage: Callable[[bytes, bytes], tuple[bytes, bytes]],
    ) -> None:
        apply(machine, write(ALICE, 1))
        [(key, row)] = engine.scan(Family.CLIENT, *SPACE.range)
        batch = Batch()
        batch.delete(Family.CLIENT, key)
        batch.put(Family.CLIENT, *damage(key, row))
        engine.write(batch)
        with pytest.raises(StorageError, match="replace this node"):
            Machine(engine, GROUP)


class TestLivesOn:
    def test_a_restart(self, disk: Disk) -> None:
        machine = Machine(disk.engine, GROUP)
        [_, first] = apply(machine, register(ALICE), write(ALICE, 1))
        disk.restart()
        machine = Machine(disk.engine, GROUP)
        assert apply_one(machine, write(ALICE, 1)) == first
        assert counter(machine) == 1

    def test_a_crash_in_which_the_log_is_applied_again(self, disk: Disk) -> None:
        machine = Machine(disk.engine, GROUP)
        log = [
            entry_of(1, register(ALICE), write(ALICE, 1)),
            entry_of(2, write(ALICE, 2), write(ALICE, 1)),
            entry_of(3, write(ALICE, 2), write(ALICE, 3, acknowledged=1)),
        ]
        machine.apply(log[:1])
        disk.restart()
        machine = Machine(disk.engine, GROUP)
        expected = machine.apply(log[1:])
        disk.crash()
        machine = Machine(disk.engine, GROUP)
        assert machine.apply(log[machine.applied :])[-2:] == expected
        assert counter(machine) == 3

    def test_a_snapshot_that_is_installed(self, engine: Engine) -> None:
        source = Machine(MemoryEngine(), GROUP)
        apply(source, register(ALICE))
        first = apply_one(source, write(ALICE, 1))
        apply(source, write(ALICE, 2, acknowledged=0))
        other = Machine(engine, GROUP)
        apply(other, register(BOB))
        stage(other, snapshot_of(source), source.applied)
        other.install(source.applied)
        assert apply_one(other, write(ALICE, 1)) == first
        assert counter(other) == 2
        assert apply_one(other, write(BOB, 1)).error.reason == OperationError.CLIENT_FORGOTTEN

    @pytest.mark.parametrize("seed", range(4))
    def test_other_batchings_and_restarts_leave_the_same_bytes(
        self, disk: Disk, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_CLIENTS", 4)
        monkeypatch.setattr(limits, "MAX_REMEMBERED_RESULT_BYTES", 60)
        monkeypatch.setattr(limits, "MAX_CLIENT_RESULT_BYTES", 300)
        monkeypatch.setattr(limits, "MAX_CLIENTS_BYTES", 12 * WRITE_BYTES)
        source = random.Random(seed)
        log = list(random_log(source, 300))
        one_by_one = MemoryEngine()
        machine = Machine(one_by_one, GROUP)
        expected = [result for each in log for result in machine.apply([each])]
        reasons = {result.error.reason for results in expected for result in results}
        assert {OperationError.CLIENT_FORGOTTEN, OperationError.RESULT_FORGOTTEN} <= reasons
        machine = Machine(disk.engine, GROUP)
        while machine.applied < len(log):
            start = machine.applied
            length = source.randint(1, 17)
            assert machine.apply(log[start : start + length]) == expected[start : start + length]
            match source.randrange(6):
                case 0:
                    disk.restart()
                    machine = Machine(disk.engine, GROUP)
                case 1:
                    disk.crash()
                    machine = Machine(disk.engine, GROUP)
        assert state_of(disk.engine) == state_of(one_by_one)

    def test_what_is_in_memory_follows_from_the_rows(self, engine: Engine) -> None:
        machine = Machine(engine, GROUP)
        machine.apply(list(random_log(random.Random(9), 400)))
        loaded = Clients.load(machine._tables().clients)
        for mine, theirs in zip(
            machine._clients._windows.items(), loaded._windows.items(), strict=True
        ):
            assert mine[0] == theirs[0]
            for name in ("acknowledged", "results", "result_bytes", "fresh"):
                assert getattr(mine[1], name) == getattr(theirs[1], name)
            assert sorted(mine[1].rows) == sorted(theirs[1].rows)
        assert machine._clients._cost_bytes == loaded._cost_bytes


def random_log(source: random.Random, count: int) -> Iterable[Entry]:
    """Clients that come and go, number, acknowledge and repeat their writes."""
    sequences: dict[int, int] = {}
    for index in range(1, count + 1):
        commands = []
        for _ in range(source.randint(0, 5)):
            client = source.randint(1, 7)
            if source.random() < 0.1:
                commands.append(register(client))
                continue
            sequence = sequences.get(client, 0) + 1
            if source.random() < 0.3:
                sequence = max(1, sequence - source.randint(1, 6))
            sequences[client] = max(sequences.get(client, 0), sequence)
            command = write(client, sequence, acknowledged=max(0, sequence - source.randint(1, 9)))
            command.transaction.CopyFrom(random_transaction(source, index))
            commands.append(command)
        yield noop(index) if source.random() < 0.1 else entry_of(index, *commands)


def state_of(engine: Engine) -> list[tuple[Family, bytes, bytes]]:
    return [
        (family, key, value)
        for family in layout.STATE_FAMILIES
        for key, value in engine.scan(family, *SPACE.range)
    ]
