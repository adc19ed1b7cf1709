"""What a single transaction, and a single entry, may cost every node: bounded, whatever is stored.

A node that applies an entry does nothing else meanwhile. So work that grows with what is stored
would cost a group its leader, and bytes that grow with it all of its nodes at once.
"""

from collections.abc import Sequence

import pytest

from kvorum import limits
from kvorum_node.machine import Machine
from kvorum_node.raft.types import Entry
from kvorum_node.storage.engine import Engine
from kvorum_node.storage.memory import MemoryEngine
from kvorumpb.v1.command_pb2 import (
    Check,
    Command,
    DeleteRangeOperation,
    KeyRange,
    ListOperation,
    Operation,
    OperationError,
    RateLimit,
    RateLimitOperation,
    RegisterClient,
    TransactionResult,
)
from tests.machine.conftest import GROUP
from tests.support.commands import (
    add,
    delete,
    entry,
    entry_of,
    get,
    indexed,
    put,
    run,
    run_command,
    run_one,
    touch,
    transaction,
)

ALL = KeyRange()


def _delete_range(limit: int = 0) -> Operation:
    return Operation(delete_range=DeleteRangeOperation(range=ALL, limit=limit))


def _list(keys_only: bool = False) -> Operation:
    return Operation(list=ListOperation(range=ALL, limit=10_000, keys_only=keys_only))


def _take(key: bytes, limit: int = 10_000, cost: int = 1) -> Operation:
    one = RateLimit(
        key=key, algorithm=RateLimit.SLIDING_LOG, limit=limit, window_ms=1_000, cost=cost
    )
    return Operation(rate_limit=RateLimitOperation(limits=[one]))


def _is_too_large(result: TransactionResult) -> bool:
    return result.error.reason == OperationError.RANGE_TOO_LARGE


# What is looked at.


@pytest.mark.parametrize(
    ("operations", "checks"),
    [
        ([_list()] * 3, []),
        ([_list(keys_only=True)] * 3, []),
        ([], [Check(range=ALL, version=1)] * 3),
        ([_list()], [Check(range=ALL, value=b"value")] * 2),
        ([_delete_range(), *(put(b"n%d" % number) for number in range(4)), *[_list()] * 2], []),
    ],
    ids=["lists", "keys", "checks", "both", "deletes"],
)
def test_ranges_count_together(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    operations: Sequence[Operation],
    checks: Sequence[Check],
) -> None:
    run_one(machine, *(put(b"k%d" % number) for number in range(4)))
    monkeypatch.setattr(limits, "MAX_TRANSACTION_RECORDS", 12)
    assert not run_one(machine, *operations, checks=checks).HasField("error")
    run_one(machine, _delete_range())
    run_one(machine, *(put(b"k%d" % number) for number in range(5)))
    before = machine.revision
    assert _is_too_large(run_one(machine, *operations, checks=checks))
    assert machine.revision == before


@pytest.mark.parametrize(
    ("operations", "checks", "looked_at"),
    [
        ([_list(keys_only=True)], [], 1),
        ([], [Check(range=ALL, version=1)], 1),
        ([], [Check(range=ALL, value=b"")], 11),
    ],
    ids=["keys", "versions", "values"],
)
def test_large_values_count_as_what_is_read_of_them(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    operations: Sequence[Operation],
    checks: Sequence[Check],
    looked_at: int,
) -> None:
    run_one(machine, put(b"k", bytes(10 * limits.RANGE_LOOK_BYTES)))
    monkeypatch.setattr(limits, "MAX_TRANSACTION_RECORDS", looked_at)
    assert not run_one(machine, *operations, checks=checks).HasField("error")
    monkeypatch.setattr(limits, "MAX_TRANSACTION_RECORDS", looked_at - 1)
    assert _is_too_large(run_one(machine, *operations, checks=checks))


def test_a_long_sliding_log_counts_as_what_is_read_of_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for time in range(200):
        run_one(machine, _take(b"r"), log_time_ms=1_000 + time)
    monkeypatch.setattr(limits, "MAX_TRANSACTION_RECORDS", 1)
    assert not run_one(machine, _take(b"r")).HasField("error")
    assert not run_one(machine, *(_take(b"r%d" % number) for number in range(20))).HasField("error")
    monkeypatch.setattr(limits, "MAX_TRANSACTION_RECORDS", 0)
    assert _is_too_large(run_one(machine, _take(b"r")))


def test_a_rate_limit_operation_of_the_largest_logs_is_within_what_may_be_looked_at() -> None:
    largest_state = limits.MAX_SLIDING_LOG_LIMIT * 8
    looks = limits.MAX_RATE_LIMITS * largest_state // limits.RATE_LIMIT_LOOK_BYTES
    assert looks <= limits.MAX_TRANSACTION_RECORDS


def test_checks_of_what_has_changed_count_together(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_one(machine, put(b"other"))
    since = machine.revision
    run_one(machine, *(put(b"k%d" % number) for number in range(4)))
    check = Check(key=b"a", unchanged_since=since)
    monkeypatch.setattr(limits, "MAX_TRANSACTION_RECORDS", 8)
    assert run_one(machine, checks=[check, check]).succeeded
    third = run_one(machine, checks=[check, check, check])
    assert (third.succeeded, third.failed_check) == (False, 2)
    assert not third.HasField("error")


@pytest.mark.parametrize("many", ["records", "rate limits"])
def test_what_has_expired_elsewhere_is_no_change_however_much_it_is(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, many: str
) -> None:
    """A million records that expire at once must not fail every transaction that has listed."""
    monkeypatch.setattr(limits, "MAX_UNCHANGED_EVENTS", 10)
    run_one(machine, put(b"mine:1"), put(b"mine:2", ttl_ms=500), log_time_ms=1_000)
    if many == "records":
        run_one(machine, *(put(b"x%d" % number, ttl_ms=10) for number in range(30)))
    else:
        run_one(machine, *(_take(b"x%d" % number) for number in range(30)))
    since = machine.revision
    checks = [
        Check(key=b"mine:1", unchanged_since=since),
        Check(range=KeyRange(start=b"mine:", end=b"mine;"), unchanged_since=since),
    ]
    assert run_one(machine, checks=checks[:1], log_time_ms=5_000).succeeded
    assert not run_one(machine, checks=checks[1:]).succeeded  # mine:2 has expired
    run_one(machine, put(b"mine:2"))
    since = machine.revision
    for check in checks:
        check.unchanged_since = since
    assert run_one(machine, checks=checks).succeeded
    monkeypatch.setattr(limits, "MAX_TRANSACTION_RECORDS", 9)
    assert run_one(machine, checks=checks[:1]).succeeded
    assert not run_one(machine, checks=checks[1:]).succeeded  # it cannot be told any more


def test_a_key_that_has_expired_has_changed(machine: Machine) -> None:
    run_one(machine, put(b"k", ttl_ms=10), log_time_ms=1_000)
    check = Check(key=b"k", unchanged_since=machine.revision)
    assert run_one(machine, checks=[check], log_time_ms=1_009).succeeded
    assert not run_one(machine, checks=[check], log_time_ms=1_010).succeeded


# What is returned.


@pytest.mark.parametrize("keys_only", [False, True])
def test_what_a_record_needs_beside_its_value_is_returned_too(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, keys_only: bool
) -> None:
    """Ten thousand empty values are megabytes, and with 64 index entries each, gigabytes."""
    run_one(machine, *(put(b"k%d" % number, b"") for number in range(10)))
    entries = [indexed("i", b"%d" % number, unique=True) for number in range(60)]
    run_one(machine, put(b"z", b"", entries=[indexed("i", b"x" * 1_000), *entries]))
    result = run_one(machine, _list(keys_only))
    size = result.ByteSize()
    monkeypatch.setattr(limits, "MAX_RESULT_BYTES", size - 1)
    failed = run_one(machine, _list(keys_only))
    assert failed.error.reason == OperationError.RESULT_TOO_LARGE
    monkeypatch.setattr(limits, "MAX_RESULT_BYTES", 3 * size)
    assert not run_one(machine, _list(keys_only)).HasField("error")


def test_how_much_a_record_counts_of_what_is_returned(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These numbers say what entries in the log mean: with others, nodes would not agree."""
    entries = [indexed("i", b"xy"), indexed("city", b"")]
    run_one(machine, put(b"key", b"value", metadata=b"m", entries=entries))
    record, first, second = 64 + len("key" + "value" + "m"), 16 + len("i" + "xy"), 16 + len("city")
    for number in (1, 2):
        size = number * (record + first + second)
        monkeypatch.setattr(limits, "MAX_RESULT_BYTES", size)
        assert not run_one(machine, *[get(b"key")] * number).HasField("error")
        monkeypatch.setattr(limits, "MAX_RESULT_BYTES", size - 1)
        failed = run_one(machine, *[get(b"key")] * number)
        assert failed.error.reason == OperationError.RESULT_TOO_LARGE


# What is replaced and removed.


def test_the_bytes_that_a_range_removes(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    run_one(machine, *(put(b"k%d" % number, bytes(1_000)) for number in range(5)))
    monkeypatch.setattr(limits, "MAX_REPLACED_BYTES", 3_500)
    before = machine.revision
    assert _is_too_large(run_one(machine, _delete_range()))
    assert machine.revision == before
    first = run_one(machine, _delete_range(limit=10)).results[0].delete_range
    assert (first.deleted, first.more) == (3, True)
    rest = run_one(machine, _delete_range(limit=10)).results[0].delete_range
    assert (rest.deleted, rest.more) == (2, False)


def test_the_index_entries_that_a_range_removes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [indexed("i", b"%d" % number) for number in range(9)]
    for number in range(5):
        run_one(machine, put(b"k%d" % number, entries=entries))
    monkeypatch.setattr(limits, "MAX_TRANSACTION_RECORDS", 30)
    assert _is_too_large(run_one(machine, _delete_range()))
    first = run_one(machine, _delete_range(limit=10)).results[0].delete_range
    assert (first.deleted, first.more) == (3, True)
    assert run_one(machine, _delete_range(limit=10)).results[0].delete_range.deleted == 2


@pytest.mark.parametrize(
    "writes",
    [
        (put(b"a"), put(b"b")),
        (delete(b"a"), delete(b"b")),
        (touch(b"a", 5), touch(b"b", 5)),
    ],
    ids=["put", "delete", "touch"],
)
def test_the_bytes_that_a_transaction_writes_over(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, writes: tuple[Operation, Operation]
) -> None:
    """A thousand small operations can mean a thousand values of 25 MiB."""
    run_one(machine, put(b"a", bytes(1_000)), put(b"b", bytes(1_000)), log_time_ms=1)
    monkeypatch.setattr(limits, "MAX_REPLACED_BYTES", 1_999)
    failed = run_one(machine, *writes, add(b"n"))
    assert _is_too_large(failed)
    assert failed.error.operation == 1
    assert machine.get(b"n") is None
    monkeypatch.setattr(limits, "MAX_REPLACED_BYTES", 2_200)
    assert not run_one(machine, *writes, add(b"n")).HasField("error")


def test_one_record_of_the_largest_size_may_always_be_replaced() -> None:
    largest = limits.MAX_VALUE_BYTES + limits.MAX_KEY_BYTES + limits.MAX_METADATA_BYTES
    largest += limits.MAX_INDEX_ENTRIES * (
        limits.MAX_INDEX_NAME_BYTES + limits.MAX_INDEX_VALUE_BYTES + 16
    )
    assert 2 * largest <= limits.MAX_REPLACED_BYTES <= limits.MAX_ENTRY_REPLACED_BYTES
    assert limits.MAX_SWEEP_BYTES + largest <= limits.MAX_REPLACED_BYTES  # a sweep cannot fail
    looks = 1 + limits.MAX_VALUE_BYTES // limits.RANGE_LOOK_BYTES + limits.MAX_INDEX_ENTRIES
    assert looks <= limits.MAX_TRANSACTION_RECORDS
    assert limits.MAX_RANGE_RECORDS <= limits.MAX_TRANSACTION_RECORDS


# Entries.


def _deletes(*keys: bytes, client_id: int = 0, first: int = 1) -> list[Command]:
    return [
        Command(
            client_id=client_id,
            sequence=sequence if client_id else 0,
            transaction=transaction(delete(key)),
        )
        for sequence, key in enumerate(keys, first)
    ]


def test_what_an_entry_replaces_is_bounded_and_what_was_too_much_may_come_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred callers that each delete 25 MiB share one small entry."""
    keys = [b"k%d" % number for number in range(5)]
    run_one(machine, *(put(key, bytes(1_000)) for key in keys))
    run_command(machine, Command(client_id=7, register_client=RegisterClient()))
    monkeypatch.setattr(limits, "MAX_ENTRY_REPLACED_BYTES", 2_500)
    commands = _deletes(*keys, client_id=7)
    [results] = machine.apply([entry_of(machine.applied + 1, *commands)])
    reasons = [result.error.reason for result in results]
    assert reasons == [0, 0, *[OperationError.ENTRY_TOO_LARGE] * 3]
    assert [machine.get(key) is None for key in keys] == [True, True, False, False, False]
    [again] = machine.apply([entry_of(machine.applied + 1, *commands)])
    assert again[:2] == results[:2]  # remembered
    assert [result.error.reason for result in again[2:]] == [0, 0, OperationError.ENTRY_TOO_LARGE]
    [last] = machine.apply([entry_of(machine.applied + 1, *commands)])
    assert [result.error.reason for result in last] == [0] * 5
    assert all(machine.get(key) is None for key in keys)


def test_the_first_of_an_entry_is_always_carried_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_one(machine, put(b"a", bytes(1_000)), put(b"b"))
    monkeypatch.setattr(limits, "MAX_ENTRY_REPLACED_BYTES", 10)
    [first] = run(machine, transaction(delete(b"a")))
    assert first.results[0].delete.deleted
    results = run(machine, transaction(get(b"b")), transaction(put(b"c")))
    assert not any(result.HasField("error") for result in results)


class _CountedWrites(MemoryEngine):
    writes = 0

    def write(self, batch: object) -> None:
        self.writes += 1
        super().write(batch)  # type: ignore[arg-type]  # as it was given


def test_what_entries_replace_is_written_before_it_is_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And it is the same, however the entries come."""
    log: list[Entry] = [
        entry(1, transaction(*(put(b"k%d" % number, bytes(1_000)) for number in range(4)))),
        *(entry(2 + number, transaction(delete(b"k%d" % number))) for number in range(4)),
    ]
    monkeypatch.setattr(limits, "MAX_REPLACED_BYTES", 1_500)
    together, one_by_one = _CountedWrites(), MemoryEngine()
    machine, other = Machine(together, GROUP), Machine(one_by_one, GROUP)
    results = machine.apply(log)
    assert together.writes == 2  # after two of the deletes, and after the other two
    assert results == [outcome for one in log for outcome in other.apply([one])]
    assert _content(together) == _content(one_by_one)


def _content(engine: Engine) -> bytes:
    hashed = Machine(engine, GROUP).content_hash().step()
    assert hashed is not None
    return hashed.digest


# What else went wrong.


def test_a_time_to_live_beyond_int64_is_an_error_of_its_write(machine: Machine) -> None:
    """Of a cluster whose clock is wrong by ages: the node must not stop for it."""
    late = limits.MAX_INTEGER - 10
    run_one(machine, put(b"a"), log_time_ms=late)
    for operation in (put(b"b", ttl_ms=11), touch(b"a", 11)):
        failed = run_one(machine, put(b"c"), operation)
        assert failed.error.reason == OperationError.INTEGER_OVERFLOW
        assert failed.error.operation == 1
        assert machine.get(b"c") is None
    assert not run_one(machine, put(b"b", ttl_ms=10), touch(b"a", 10)).HasField("error")
    found = machine.get(b"b")
    assert found is not None
    assert found.expire_time_ms == limits.MAX_INTEGER


def test_a_touch_that_comes_second_to_a_unique_value_is_named(machine: Machine) -> None:
    unique = indexed("mail", b"x", unique=True)
    run_one(machine, put(b"a", ttl_ms=100, entries=[unique]), log_time_ms=1)
    failed = run_one(machine, get(b"n"), put(b"b", entries=[unique]), touch(b"a", 50))
    named = (failed.error.owner, failed.error.operation)
    assert named in ((b"a", 1), (b"b", 2))
