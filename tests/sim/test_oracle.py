"""The oracle agrees with what a store may answer, and with nothing else."""

import pytest

from kvorum.errors import Compacted, FutureRevision
from kvorum_node.raft.types import Entry, Index, NodeId
from kvorumpb.v1.command_pb2 import (
    Command,
    Compaction,
    OperationError,
    Record,
    RegisterClient,
    Transaction,
    TransactionResult,
)
from kvorumpb.v1.kv_pb2 import GetRequest, GetResponse, ListRequest, ListResponse
from tests.sim.oracle import Floor, Identity, Oracle, Standing
from tests.support.commands import add, entry_of, get, put, touch, transaction

ALICE = 7

reports: list[str] = []


@pytest.fixture
def oracle() -> Oracle:
    """At 10, 20, ...: 1 is a=x, 2 is n=5, 3 is a=y, 4 is t=z until 140; then Alice is known."""
    reports.clear()
    oracle = Oracle(reports.append)
    writes = put(b"a", b"x"), add(b"n", 5), put(b"a", b"y"), put(b"t", b"z", ttl_ms=100)
    for index, one in enumerate(writes, 1):
        oracle.applies(at(index, Command(transaction=transaction(one))))
    known = Command(client_id=ALICE, register_client=RegisterClient())
    oracle.applies(at(5, known))
    return oracle


def at(index: int, *commands: Command, log_time_ms: int | None = None) -> Entry:
    return entry_of(index, *commands, log_time_ms=log_time_ms or 10 * index)


def write(sequence: int, one: Transaction, *, acknowledged: int = 0) -> Command:
    return Command(client_id=ALICE, sequence=sequence, acknowledged=acknowledged, transaction=one)


def identity(one: Transaction) -> Identity:
    return one.SerializeToString()


def record(key: bytes, value: bytes, *numbers: int, expires: int = 0, updated: int) -> Record:
    revision, created, version = numbers
    return Record(
        key=key,
        value=value,
        revision=revision,
        created_revision=created,
        version=version,
        expire_time_ms=expires,
        update_time_ms=updated,
    )


A = record(b"a", b"y", 3, 1, 2, updated=30)
N = record(b"n", b"5", 2, 2, 1, updated=20)
T = record(b"t", b"z", 4, 4, 1, expires=140, updated=40)


def test_reads_that_are_right(oracle: Oracle) -> None:
    floor = Floor(4, 50)
    now = GetResponse(record=A, revision=4, log_time_ms=50)
    oracle.read(GetRequest(key=b"a"), now, floor)
    oracle.read(GetRequest(key=b"b"), GetResponse(revision=4, log_time_ms=50), floor)
    past = GetResponse(record=record(b"a", b"x", 1, 1, 1, updated=10), revision=1, log_time_ms=50)
    oracle.read(GetRequest(key=b"a", revision=1), past, floor)
    page = ListResponse(records=[A, N, T], revision=4, log_time_ms=50)
    oracle.listed(ListRequest(), page, floor, None)

    assert reports == []
    assert oracle.floor() == floor


@pytest.mark.parametrize("revision", [0, 3])
def test_a_read_of_another_value(oracle: Oracle, revision: int) -> None:
    old = record(b"a", b"x", 1, 1, 1, updated=10)
    response = GetResponse(record=old, revision=revision or 4, log_time_ms=50)
    oracle.read(GetRequest(key=b"a", revision=revision), response, Floor())

    assert len(reports) == 1
    assert reports[0].startswith("value: b'a' at")


def test_a_stale_read(oracle: Oracle) -> None:
    stale = GetResponse(record=A, revision=3, log_time_ms=30)
    oracle.read(GetRequest(key=b"a"), stale, Floor(3, 30))
    oracle.read(GetRequest(key=b"a"), stale, None)
    assert reports == []

    oracle.read(GetRequest(key=b"a"), stale, Floor(3, 40))
    assert len(reports) == 1
    assert reports[0].startswith("real time: an answer is of revision 3 at 30")


def test_a_read_from_the_future(oracle: Oracle) -> None:
    oracle.read(GetRequest(key=b"a"), GetResponse(revision=9, log_time_ms=90), Floor())

    assert reports == ["real time: an answer is of revision 9, which is not committed"]


def test_expiry_is_neither_early_nor_late(oracle: Oracle) -> None:
    oracle.applies(at(6, Command(transaction=transaction(get(b"b"))), log_time_ms=139))
    oracle.read(GetRequest(key=b"t"), GetResponse(record=T, revision=4, log_time_ms=139), Floor())
    assert reports == []
    oracle.read(GetRequest(key=b"t"), GetResponse(revision=4, log_time_ms=139), Floor())
    assert len(reports) == 1  # early
    oracle.applies(at(7, Command(transaction=transaction(get(b"b"))), log_time_ms=140))
    oracle.read(GetRequest(key=b"t"), GetResponse(revision=4, log_time_ms=140), Floor())
    assert len(reports) == 1
    oracle.read(GetRequest(key=b"t"), GetResponse(record=T, revision=4, log_time_ms=140), Floor())
    assert len(reports) == 2  # late
    assert reports[1].startswith("value: b't' at 4 and 140")


def test_what_was_touched_expires_later(oracle: Oracle) -> None:
    oracle.applies(at(6, Command(transaction=transaction(touch(b"t", 200)))))
    renewed = record(b"t", b"z", 4, 4, 1, expires=260, updated=40)
    oracle.read(
        GetRequest(key=b"t"), GetResponse(record=renewed, revision=4, log_time_ms=60), Floor()
    )
    assert reports == []
    oracle.read(GetRequest(key=b"t"), GetResponse(record=T, revision=4, log_time_ms=60), Floor())
    assert len(reports) == 1


@pytest.mark.parametrize(
    "page",
    [
        ListResponse(records=[A, N], revision=4, log_time_ms=50),
        ListResponse(records=[A, T, N], revision=4, log_time_ms=50),
        ListResponse(records=[A, N, T], revision=4, log_time_ms=50, next_page_token="more"),
        ListResponse(records=[A, N, T], revision=4, log_time_ms=50, count=4),
    ],
)
def test_lists_that_are_wrong(oracle: Oracle, page: ListResponse) -> None:
    oracle.listed(ListRequest(count=page.HasField("count")), page, Floor(), None)

    assert len(reports) == 1
    assert reports[0].startswith("value: the list")


def test_a_page_goes_on_where_the_last_one_has_ended(oracle: Oracle) -> None:
    page = ListResponse(records=[N], revision=4, log_time_ms=50, next_page_token="more")
    oracle.listed(ListRequest(page_size=1), page, Floor(), (b"", b"a"))
    assert reports == []
    oracle.listed(ListRequest(page_size=1), page, Floor(), (b"", b"n"))
    assert len(reports) == 1


def test_what_is_said_to_be_compacted(oracle: Oracle) -> None:
    oracle.applies(at(6, Command(compaction=Compaction(revision=3, limit=10))))
    oracle.unreadable(2, Compacted("", revision=2, oldest_revision=3), Floor())
    oracle.unreadable(9, FutureRevision("", revision=9, newest_revision=4), Floor(4))
    assert reports == []
    oracle.unreadable(3, Compacted("", revision=3, oldest_revision=4), Floor())
    oracle.unreadable(4, FutureRevision("", revision=4, newest_revision=3), Floor(4))
    assert [one.partition(":")[0] for one in reports] == ["compaction", "real time"]


# Writes.


def test_a_write_is_answered_as_it_was_carried_out(oracle: Oracle) -> None:
    one = transaction(add(b"n", 5))
    oracle.written(identity(one), one, Floor(1), lambda result: result.results[0].add.value == 5)
    assert reports == []
    oracle.written(identity(one), one, Floor(1), lambda result: result.results[0].add.value == 6)
    assert len(reports) == 1
    assert reports[0].startswith("value: ")


def test_a_write_that_was_acknowledged_and_is_lost(oracle: Oracle) -> None:
    one = transaction(put(b"a", b"lost"))
    oracle.written(identity(one), one, Floor(), any_result)

    assert len(reports) == 1
    assert reports[0].startswith("acknowledged write is lost")


def test_a_write_that_took_effect_before_it_was_asked_for(oracle: Oracle) -> None:
    one = transaction(put(b"a", b"y"))
    oracle.written(identity(one), one, Floor(3), any_result)

    assert len(reports) == 1
    assert reports[0].startswith("real time: an answer is of revision 3")


def test_a_write_without_an_origin_that_is_in_the_log_twice(oracle: Oracle) -> None:
    oracle.applies(at(6, Command(transaction=transaction(put(b"a", b"y")))))

    assert len(reports) == 1
    assert reports[0].startswith("once: 6@1 holds for the second time")


def test_a_client_retry_applied_twice(oracle: Oracle) -> None:
    """The second answer, of a second effect, is none of the write; nor is the state that it
    leads to."""
    one = transaction(add(b"n", 1))
    oracle.applies(at(6, write(1, one)))
    oracle.applies(at(7, write(1, one)))
    oracle.holds(NodeId(1), Index(7), Standing(5, 70, 0))
    oracle.written((ALICE, 1), one, Floor(4), lambda result: result.revision == 5)
    assert reports == []
    oracle.written((ALICE, 1), one, Floor(4), lambda result: result.revision == 6)
    oracle.holds(NodeId(1), Index(7), Standing(6, 70, 0))
    assert [one.partition(":")[0] for one in reports] == ["value", "model"]


def test_what_is_forgotten(oracle: Oracle) -> None:
    oracle.registered(ALICE)
    oracle.forgotten((ALICE, 3), 3, "RESULT_FORGOTTEN")
    oracle.forgotten((ALICE + 1, 1), 0, "CLIENT_FORGOTTEN")
    assert reports == []
    oracle.forgotten((ALICE, 3), 2, "RESULT_FORGOTTEN")
    oracle.forgotten((ALICE, 4), 2, "CLIENT_FORGOTTEN")
    oracle.registered(ALICE + 1)
    assert [one.partition(":")[0] for one in reports] == ["once", "once", "once"]


@pytest.mark.parametrize("refused_first", [False, True])
@pytest.mark.parametrize("has_origin", [False, True])
def test_a_write_that_was_refused_and_is_applied(
    oracle: Oracle, refused_first: bool, has_origin: bool
) -> None:
    refused = transaction(put(b"a", b"z"))
    command = write(1, refused) if has_origin else Command(transaction=refused)
    known = (ALICE, 1) if has_origin else identity(refused)
    if refused_first:
        oracle.refused(known, refused)
    oracle.applies(at(6, command))
    if not refused_first:
        oracle.refused(known, refused)

    assert len(reports) == 1
    assert reports[0].startswith("once: ")


def test_a_failed_operation_is_an_answer_too(oracle: Oracle) -> None:
    wrong = transaction(put(b"b", b"z"), add(b"a"))
    oracle.applies(at(6, Command(transaction=wrong)))
    oracle.written(
        identity(wrong),
        wrong,
        Floor(4),
        lambda result: result.error.reason == OperationError.NOT_AN_INTEGER,
    )

    assert reports == []
    assert b"b" not in oracle.content()


def any_result(result: TransactionResult) -> bool:
    del result
    return True
