"""What one transaction does to the records, and what it answers."""

import pytest

from kvorum import limits
from kvorum_node.machine import Machine
from kvorum_node.raft.types import GroupId, Index
from kvorum_node.storage.memory import MemoryEngine
from kvorumpb.v1.command_pb2 import (
    Check,
    Operation,
    OperationError,
    OperationResult,
    PutResult,
    Record,
    Transaction,
    TransactionResult,
)
from tests.support.commands import (
    add,
    at_revision,
    delete,
    entry,
    exists,
    get,
    put,
    run,
    run_one,
    transaction,
)

HIGHEST = str(limits.MAX_INTEGER).encode()
LOWEST = str(limits.MIN_INTEGER).encode()


def _record(machine: Machine, key: bytes) -> Record:
    record = machine.get(key)
    assert record is not None
    return record


def test_put_creates_then_replaces(machine: Machine) -> None:
    assert run_one(machine, put(b"a", b"1")) == TransactionResult(
        succeeded=True, revision=1, results=[OperationResult(put=PutResult())]
    )
    run_one(machine, put(b"other"))
    run_one(machine, put(b"a", b"2"))
    assert _record(machine, b"a") == Record(
        key=b"a", value=b"2", revision=3, created_revision=1, version=2
    )


def test_put_of_the_same_value_is_a_write(machine: Machine) -> None:
    run_one(machine, put(b"a", b"1"))
    assert run_one(machine, put(b"a", b"1")).revision == 2
    assert _record(machine, b"a").version == 2


def test_an_empty_value_is_a_value(machine: Machine) -> None:
    run_one(machine, put(b"a", b""))
    assert _record(machine, b"a").value == b""


def test_get_answers_with_the_key_filled_in(machine: Machine) -> None:
    run_one(machine, put(b"a", b"1"))
    result = run_one(machine, get(b"a"), get(b"none"))
    assert result.results[0].get.record == Record(
        key=b"a", value=b"1", revision=1, created_revision=1, version=1
    )
    assert result.results[1].WhichOneof("result") == "get"
    assert not result.results[1].get.HasField("record")


def test_get_sees_the_writes_before_it_in_the_transaction(machine: Machine) -> None:
    run_one(machine, put(b"a", b"old"))
    result = run_one(
        machine, get(b"a"), put(b"a", b"new"), get(b"a"), add(b"n", 3), get(b"n"), delete(b"z")
    )
    assert result.results[0].get.record.value == b"old"
    assert result.results[2].get.record == Record(
        key=b"a", value=b"new", revision=2, created_revision=1, version=2
    )
    assert result.results[4].get.record.value == b"3"


def test_delete_says_whether_there_was_something(machine: Machine) -> None:
    run_one(machine, put(b"a"))
    result = run_one(machine, delete(b"a"), delete(b"none"))
    assert [each.delete.deleted for each in result.results] == [True, False]
    assert [each.WhichOneof("result") for each in result.results] == ["delete", "delete"]
    assert result.revision == 2
    assert machine.get(b"a") is None


def test_a_key_that_was_deleted_is_created_anew(machine: Machine) -> None:
    run(machine, transaction(put(b"a")), transaction(put(b"a")), transaction(delete(b"a")))
    run_one(machine, put(b"a"))
    record = _record(machine, b"a")
    assert (record.revision, record.created_revision, record.version) == (4, 4, 1)


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param([get(b"a")], id="get"),
        pytest.param([delete(b"none")], id="delete of an absent key"),
        pytest.param([get(b"a"), delete(b"none"), get(b"none")], id="several"),
        pytest.param([], id="nothing"),
    ],
)
def test_a_transaction_that_writes_nothing_takes_no_revision(
    machine: Machine, operations: list[Operation]
) -> None:
    run_one(machine, put(b"a"))
    result = run_one(machine, *operations)
    assert result.succeeded
    assert result.revision == 1
    assert machine.revision == 1
    assert run_one(machine, put(b"b")).revision == 2


def test_all_writes_of_a_transaction_share_one_revision(machine: Machine) -> None:
    run_one(machine, put(b"old"))
    result = run_one(machine, put(b"a"), put(b"b"), add(b"n"), delete(b"old"))
    assert result.revision == 2
    assert {_record(machine, key).revision for key in (b"a", b"b", b"n")} == {2}
    assert machine.revision == 2


def test_two_writes_to_one_key_have_their_meaning_one_after_the_other(machine: Machine) -> None:
    run_one(machine, put(b"a", b"0"), put(b"b", b"0"))
    run_one(
        machine, put(b"a", b"1"), add(b"a"), put(b"b"), delete(b"b"), put(b"b", b"2"), add(b"c")
    )
    record = _record(machine, b"a")
    assert (record.value, record.revision, record.created_revision, record.version) == (
        b"2",
        2,
        1,
        3,
    )
    record = _record(machine, b"b")
    assert (record.value, record.revision, record.created_revision, record.version) == (
        b"2",
        2,
        2,
        1,
    )


@pytest.mark.parametrize(
    ("checks", "failed"),
    [
        ([exists(b"a")], None),
        ([exists(b"a", False)], 0),
        ([exists(b"none")], 0),
        ([exists(b"none", False)], None),
        ([at_revision(b"a", 2)], None),
        ([at_revision(b"a", 1)], 0),
        ([at_revision(b"a", 3)], 0),
        ([at_revision(b"a", 0)], 0),
        ([at_revision(b"none", 0)], None),
        ([at_revision(b"none", 1)], 0),
        ([exists(b"a"), at_revision(b"a", 2), exists(b"none", False)], None),
        ([exists(b"a"), exists(b"none"), at_revision(b"a", 9)], 1),
        ([at_revision(b"a", 2), exists(b"a"), at_revision(b"none", 9)], 2),
    ],
)
def test_checks_choose_the_branch(
    machine: Machine, checks: list[Check], failed: int | None
) -> None:
    run_one(machine, put(b"a"))
    run_one(machine, put(b"a"))
    result = run_one(machine, put(b"then"), checks=checks, otherwise=[put(b"else"), get(b"a")])
    assert result.succeeded == (failed is None)
    assert result.HasField("failed_check") == (failed is not None)
    assert result.failed_check == (failed or 0)
    assert len(result.results) == (1 if failed is None else 2)
    assert (machine.get(b"then") is not None) == (failed is None)
    assert (machine.get(b"else") is not None) == (failed is not None)
    assert result.revision == 3


def test_a_failed_check_without_another_branch_writes_nothing(machine: Machine) -> None:
    run_one(machine, put(b"a"))
    result = run_one(machine, put(b"a", b"new"), checks=[at_revision(b"a", 9)])
    assert result == TransactionResult(succeeded=False, revision=1, failed_check=0)
    assert _record(machine, b"a").value == b"value"


def test_checks_see_the_state_before_the_transaction(machine: Machine) -> None:
    assert run_one(machine, put(b"a"), checks=[exists(b"a", False)]).succeeded
    results = run(
        machine,
        transaction(put(b"a"), checks=[at_revision(b"a", 1)]),
        transaction(put(b"a"), checks=[at_revision(b"a", 1)]),
    )
    assert [result.succeeded for result in results] == [True, False]


def test_checks_alone_are_a_transaction(machine: Machine) -> None:
    assert run_one(machine, checks=[exists(b"a", False)]).succeeded
    assert not run_one(machine, checks=[exists(b"a")]).succeeded
    assert machine.revision == 0


def test_add_counts_from_zero_and_reads_as_text(machine: Machine) -> None:
    values = [run_one(machine, add(b"n", amount)).results[0].add.value for amount in (5, -12, 0)]
    assert values == [5, -7, -7]
    assert _record(machine, b"n") == Record(
        key=b"n", value=b"-7", revision=3, created_revision=1, version=3
    )


def test_add_goes_on_from_what_was_put(machine: Machine) -> None:
    run_one(machine, put(b"n", b"41"))
    assert run_one(machine, add(b"n")).results[0].add.value == 42


@pytest.mark.parametrize("start", [b"0", b"-1", b"7", HIGHEST, LOWEST])
def test_add_reads_every_canonical_integer(machine: Machine, start: bytes) -> None:
    run_one(machine, put(b"n", start))
    assert run_one(machine, add(b"n", 0)).results[0].add.value == int(start)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"+5",
        b"05",
        b" 5",
        b"5 ",
        b"5\n",
        b"-0",
        b"--1",
        b"-",
        b"1_000",
        b"1.0",
        b"1e3",
        b"0x10",
        b"\xd9\xa3",  # an Arabic-Indic digit, which Python's int would take
        b"\xff",
        b'"5"',
        b"9223372036854775808",
        b"-9223372036854775809",
        b"9" * 5000,
    ],
)
def test_add_refuses_what_is_not_the_text_of_an_int64(machine: Machine, start: bytes) -> None:
    run_one(machine, put(b"n", start))
    result = run_one(machine, add(b"n"))
    assert result.error.reason == OperationError.NOT_AN_INTEGER
    assert "decimal text" in result.error.message
    assert _record(machine, b"n").value == start


@pytest.mark.parametrize(
    ("start", "amount", "overflows"),
    [
        (HIGHEST, 1, True),
        (HIGHEST, 0, False),
        (HIGHEST, limits.MIN_INTEGER, False),
        (b"9223372036854775806", 1, False),
        (LOWEST, -1, True),
        (LOWEST, limits.MIN_INTEGER, True),
        (LOWEST, limits.MAX_INTEGER, False),
        (b"-9223372036854775807", -1, False),
    ],
)
def test_add_never_leaves_int64(
    machine: Machine, start: bytes, amount: int, overflows: bool
) -> None:
    run_one(machine, put(b"n", start))
    result = run_one(machine, add(b"n", amount))
    if overflows:
        assert result.error.reason == OperationError.INTEGER_OVERFLOW
        assert str(int(start) + amount) in result.error.message
        assert _record(machine, b"n").value == start
    else:
        assert result.results[0].add.value == int(start) + amount


@pytest.mark.parametrize(
    ("failing", "branch_of_otherwise"),
    [
        (
            transaction(get(b"s"), put(b"a"), delete(b"old"), add(b"n"), add(b"s"), put(b"late")),
            False,
        ),
        (
            transaction(
                put(b"then"),
                checks=[exists(b"none")],
                otherwise=[get(b"s"), put(b"a"), delete(b"old"), add(b"n"), add(b"s")],
            ),
            True,
        ),
    ],
    ids=["operations", "otherwise"],
)
def test_a_failed_operation_undoes_the_whole_transaction(
    machine: Machine, failing: Transaction, branch_of_otherwise: bool
) -> None:
    untouched = Machine(MemoryEngine(), GroupId(1))
    for each in (machine, untouched):
        run_one(each, put(b"s", b"text"), put(b"old"))
    result, after = run(machine, failing, transaction(get(b"a"), get(b"old"), get(b"n")))
    assert not result.succeeded
    assert result.error.reason == OperationError.NOT_AN_INTEGER
    assert result.error.operation == 4
    assert result.HasField("failed_check") == branch_of_otherwise
    assert result.revision == 1
    assert not result.results
    assert [each.get.HasField("record") for each in after.results] == [False, True, False]
    run(untouched)
    assert machine.content_hash().step() == untouched.content_hash().step()
    assert run_one(machine, put(b"b")).revision == 2


def test_a_value_of_the_largest_size_passes_through(machine: Machine) -> None:
    value = bytes(limits.MAX_VALUE_BYTES)
    run_one(machine, put(b"a" * limits.MAX_KEY_BYTES, value))
    assert _record(machine, b"a" * limits.MAX_KEY_BYTES).value == value


def test_gets_return_no_more_than_the_limit_of_a_transaction(machine: Machine) -> None:
    half = limits.MAX_RESULT_BYTES // 2 - 64  # and what a record needs beside its value
    run_one(machine, put(b"a", bytes(half - 1)))
    run_one(machine, put(b"b", bytes(half)))
    before = machine.revision

    fits = run(machine, transaction(get(b"a"), get(b"a"), put(b"c")))[0]
    assert [len(result.get.record.value) for result in fits.results[:2]] == [half - 1] * 2

    failed = run(machine, transaction(put(b"d"), get(b"a"), get(b"b")))[0]
    assert (failed.error.reason, failed.error.operation) == (OperationError.RESULT_TOO_LARGE, 2)
    assert not failed.results
    assert machine.get(b"d") is None
    assert machine.revision == before + 1


def test_results_that_nobody_wants_are_not_kept(machine: Machine) -> None:
    first = entry(1, transaction(put(b"a")), transaction(get(b"a")))
    second = entry(2, transaction(add(b"n")), transaction(get(b"a")))
    unwanted, wanted = machine.apply([first, second], wanted={Index(2)})
    assert unwanted == []
    assert [result.results[0].WhichOneof("result") for result in wanted] == ["add", "get"]
    assert machine.revision == 2
