"""The oracle agrees with what a store may answer, and with nothing else."""

import pytest

from kvorum_node.raft.types import Entry
from kvorumpb.v1.command_pb2 import OperationError, Transaction
from tests.sim.oracle import Expected, Oracle, Value
from tests.support.commands import add, at_revision, delete, entry, exists, get, put, transaction

reports: list[str] = []


@pytest.fixture
def oracle() -> Oracle:
    """Revision 1: a=x. Revision 2: n=5. Revision 3: a=y."""
    reports.clear()
    oracle = Oracle(reports.append)
    writes = (put(b"a", b"x"), add(b"n", 5), put(b"a", b"y"))
    for entry_of in entries(*(transaction(one) for one in writes)):
        oracle.applies(entry_of)
    return oracle


def entries(*transactions: Transaction) -> list[Entry]:
    return [entry(index, one) for index, one in enumerate(transactions, 1)]


def said(*outcomes: tuple[str, object], check: int | None = None) -> Expected:
    return Expected(check is None, check, None, list(outcomes), {})


def test_answers_that_are_right(oracle: Oracle) -> None:
    oracle.written(transaction(put(b"a", b"x")), 1, 0, None)
    oracle.written(transaction(add(b"n", 5)), 2, 1, said(("add", 5)))
    oracle.written(transaction(put(b"a", b"y")), 3, 2, said(("put", None)))
    oracle.read(b"a", Value(b"y", 3, 1, 2), 3, 3)
    oracle.read(b"b", None, 3, 3)
    oracle.listed({b"a": Value(b"y", 3, 1, 2), b"n": Value(b"5", 2, 2, 1)}, 3, 0)
    oracle.written(transaction(delete(b"b")), 3, 3, said(("delete", False)))
    oracle.written(
        transaction(put(b"a", b"z"), checks=[at_revision(b"a", 1)], otherwise=[get(b"n")]),
        3,
        3,
        said(("get", Value(b"5", 2, 2, 1)), check=0),
    )

    assert reports == []
    assert oracle.acknowledged == 3


def test_a_read_of_another_value(oracle: Oracle) -> None:
    oracle.read(b"a", Value(b"x", 1, 1, 1), 3, 0)

    assert len(reports) == 1
    assert reports[0].startswith("value: b'a' at 3 was")


def test_a_stale_read(oracle: Oracle) -> None:
    oracle.read(b"a", Value(b"x", 1, 1, 1), 2, 2)
    assert reports == []

    oracle.read(b"a", Value(b"x", 1, 1, 1), 2, 3)
    assert reports == [
        "real time: an answer is of revision 2, and 3 had been acknowledged before the call"
    ]


def test_a_list_that_misses_a_record(oracle: Oracle) -> None:
    oracle.listed({b"a": Value(b"y", 3, 1, 2)}, 3, 0)

    assert len(reports) == 1
    assert reports[0].startswith("value: at 3 the list was")


def test_a_read_from_the_future(oracle: Oracle) -> None:
    oracle.read(b"a", Value(b"y", 3, 1, 2), 4, 0)

    assert reports == ["real time: an answer is of revision 4, which is not committed"]


def test_a_write_that_was_acknowledged_and_is_lost(oracle: Oracle) -> None:
    oracle.written(transaction(put(b"a", b"lost")), 3, 0, None)

    assert len(reports) == 1
    assert reports[0].startswith("acknowledged write is lost")


def test_a_write_that_took_effect_before_it_was_asked_for(oracle: Oracle) -> None:
    oracle.written(transaction(put(b"a", b"y")), 3, 3, None)

    assert len(reports) == 1
    assert reports[0].startswith("real time: an answer is of revision 3")


def test_a_transaction_with_a_wrong_result(oracle: Oracle) -> None:
    oracle.written(transaction(add(b"n", 5)), 2, 0, said(("add", 6)))

    assert len(reports) == 1
    assert reports[0].startswith("value: ")


def test_a_write_that_is_in_the_log_twice(oracle: Oracle) -> None:
    oracle.applies(entry(4, transaction(put(b"a", b"y"))))

    assert len(reports) == 1
    assert reports[0].startswith("once: 4@1 holds for the second time")


@pytest.mark.parametrize("refused_first", [False, True])
def test_a_write_that_was_refused_and_is_applied(oracle: Oracle, refused_first: bool) -> None:
    refused = transaction(put(b"a", b"z"))
    if refused_first:
        oracle.refused(refused)
    oracle.applies(entry(4, refused))
    if not refused_first:
        oracle.refused(refused)

    assert len(reports) == 1
    assert reports[0].startswith("once: ")


def test_the_model_undoes_a_transaction_that_fails(oracle: Oracle) -> None:
    expected = oracle.evaluate(transaction(put(b"b", b"z"), add(b"a")), 3)

    assert expected.error == OperationError.NOT_AN_INTEGER
    assert expected.writes == {}


def test_the_model_follows_a_record_through_its_life(oracle: Oracle) -> None:
    oracle.applies(entry(4, transaction(delete(b"a"))))
    oracle.applies(entry(5, transaction(put(b"a", b"new"), checks=[exists(b"a", False)])))

    assert oracle.at(b"a", 3) == Value(b"y", 3, 1, 2)
    assert oracle.at(b"a", 4) is None
    assert oracle.at(b"a", 5) == Value(b"new", 5, 5, 1)
    assert oracle.content(4) == {b"n": Value(b"5", 2, 2, 1)}
