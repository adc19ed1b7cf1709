"""A test for each limit of limits.py: at it, one above, and at zero.

The table is whole: a limit without a row fails `test_every_limit_has_a_test`. A limit of what is
asked for is met here through the dispatcher, as a client meets it: a typed error that names the
limit, what it allows and what there was, and nothing is written. What bounds a node's own work
has its row as well, with the test that holds it; where that is not here, it must exist.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import timedelta
from importlib import import_module
from types import ModuleType
from typing import Final, NamedTuple

import pytest

from kvorum import durations, limits
from kvorum.errors import IntegerOverflow, InvalidArgument, KvorumError, LimitExceeded
from kvorum_node.admission import Admission
from kvorum_node.machine import Machine
from kvorum_node.raft.types import GroupId
from kvorum_node.services.dispatch import Dispatcher
from kvorum_node.storage.memory import MemoryEngine
from kvorum_node.validation import validate_begin_watch
from kvorumpb.v1.command_pb2 import (
    AddOperation,
    Check,
    CommandBatch,
    DeleteRangeOperation,
    KeyRange,
    ListOperation,
    Operation,
    OperationError,
    RateLimit,
    RateLimitOperation,
    Transaction,
)
from kvorumpb.v1.kv_pb2 import (
    Call,
    IndexSelection,
    ListRequest,
    Origin,
    PutRequest,
    RegisterClientRequest,
    TxnRequest,
)
from kvorumpb.v1.watch_pb2 import BeginWatch
from tests.support.calls import ask_one, error_of
from tests.support.commands import (
    add,
    compact,
    delete,
    exists,
    get,
    indexed,
    put,
    run_one,
    sweep,
    touch,
    transaction,
)
from tests.support.driven_node import DrivenNode
from tests.support.eventually import eventually
from tests.support.watch_client import Client
from tests.support.watched_machine import hub_of, write

NO_LIMITS: Final = {
    "KIB": "a unit",
    "MIB": "a unit",
    "RANGE_LOOK_BYTES": "what counts as one of MAX_TRANSACTION_RECORDS",
    "RATE_LIMIT_LOOK_BYTES": "what counts as one of MAX_TRANSACTION_RECORDS",
    "DEFAULT_TRANSACTION_ATTEMPTS": "what is meant when nothing is said",
    "DEFAULT_PAGE_RECORDS": "what is meant when nothing is said",
    "DEFAULT_HISTORY_SECONDS": "what is meant when nothing is said",
    "DEFAULT_PROGRESS_INTERVAL_MS": "what is meant when nothing is said",
    "DEFAULT_TIMEOUT_SECONDS": "what is meant when nothing is said",
}


@pytest.fixture(name="n1")
async def _n1() -> AsyncIterator[DrivenNode]:
    """The only voter, and so the leader."""
    async with DrivenNode(voters=1) as node:
        await eventually(lambda: node.group.machine.applied == 1)
        yield node


@pytest.fixture(name="dispatcher")
def _dispatcher(n1: DrivenNode) -> Dispatcher:
    return Dispatcher(n1.group)


# What is asked for.


class Asked(NamedTuple):
    of: Callable[[int], Call]
    """The call that has so much of what is limited."""
    at_zero: type[KvorumError] | None = None
    above: type[KvorumError] = LimitExceeded


def txn(*operations: Operation, checks: Iterable[Check] = ()) -> Call:
    return Call(id=1, txn=TxnRequest(transaction=transaction(*operations, checks=checks)))


def _put(**fields: object) -> Call:
    return Call(id=1, put=PutRequest(**{"key": b"k", **fields}))  # type: ignore[arg-type]  # by name


def _bytes_of_a_transaction(size: int) -> Call:
    """Puts that come to exactly so many bytes together."""
    one = Transaction(operations=[put(b"a"), put(b"b")] if size else [])
    if size:
        one.operations[0].put.value = bytes(limits.MAX_VALUE_BYTES)
        one.operations[1].put.value = bytes(size - limits.MAX_VALUE_BYTES - 1_000)
        one.operations[1].put.metadata = b"m"
        one.operations[1].put.metadata = bytes(1 + size - one.ByteSize())
        one.operations[1].put.metadata = bytes(
            len(one.operations[1].put.metadata) + size - one.ByteSize()
        )
        assert one.ByteSize() == size
    return Call(id=1, txn=TxnRequest(transaction=one))


def _take(**fields: object) -> Call:
    one: dict[str, object] = {"key": b"r", "algorithm": RateLimit.GCRA, "limit": 1, "window_ms": 1}
    limit = RateLimit(**{**one, **fields})  # type: ignore[arg-type]  # by name
    return txn(Operation(rate_limit=RateLimitOperation(limits=[limit])))


def _takes(count: int) -> Call:
    some = [
        RateLimit(key=b"%d" % number, algorithm=RateLimit.GCRA, limit=1, window_ms=1)
        for number in range(count)
    ]
    return txn(Operation(rate_limit=RateLimitOperation(limits=some)))


def _written(acknowledged: int) -> Call:
    """A write so far above what is acknowledged."""
    origin = Origin(client_id=7, sequence=5 + acknowledged, acknowledged=5)
    return Call(id=1, put=PutRequest(key=b"k", origin=origin))


ASKED: Final = {
    "MAX_KEY_BYTES": Asked(lambda size: txn(put(b"k" * size)), InvalidArgument),
    "MAX_VALUE_BYTES": Asked(lambda size: _put(value=bytes(size))),
    "MAX_TRANSACTION_OPERATIONS": Asked(
        lambda count: txn(*(put(b"%d" % number) for number in range(count))), InvalidArgument
    ),
    "MAX_TRANSACTION_BYTES": Asked(_bytes_of_a_transaction, InvalidArgument),
    "MAX_METADATA_BYTES": Asked(lambda size: _put(metadata=bytes(size))),
    "MAX_INDEX_ENTRIES": Asked(
        lambda count: _put(index_entries=[indexed("i", b"%d" % number) for number in range(count)])
    ),
    "MAX_INDEX_NAME_BYTES": Asked(
        lambda size: _put(index_entries=[indexed("i" * size, b"v")]), InvalidArgument
    ),
    "MAX_INDEX_VALUE_BYTES": Asked(lambda size: _put(index_entries=[indexed("i", bytes(size))])),
    "MAX_TTL_MS": Asked(lambda ttl_ms: _put(ttl_ms=ttl_ms)),
    "MAX_PAGE_RECORDS": Asked(lambda size: Call(id=1, list=ListRequest(page_size=size))),
    "MAX_RANGE_RECORDS": Asked(
        lambda limit: txn(Operation(delete_range=DeleteRangeOperation(limit=limit)))
    ),
    "MAX_RATE_LIMITS": Asked(_takes, InvalidArgument),
    "MAX_RATE_LIMIT": Asked(lambda limit: _take(limit=limit), InvalidArgument),
    "MAX_SLIDING_LOG_LIMIT": Asked(
        lambda limit: _take(limit=limit, algorithm=RateLimit.SLIDING_LOG), InvalidArgument
    ),
    "MAX_RATE_WINDOW_MS": Asked(lambda window: _take(window_ms=window), InvalidArgument),
    "MAX_CLIENT_WINDOW": Asked(_written, InvalidArgument),
}


async def _register(dispatcher: Dispatcher) -> None:
    one = RegisterClientRequest(client_id=7)
    assert not (await ask_one(dispatcher, Call(id=2, register_client=one))).HasField("error")


@pytest.mark.parametrize("name", ASKED)
async def test_what_is_asked_for(n1: DrivenNode, dispatcher: Dispatcher, name: str) -> None:
    await _register(dispatcher)
    asked, maximum = ASKED[name], getattr(limits, name)
    machine = n1.group.machine

    refused = error_of(await ask_one(dispatcher, asked.of(maximum + 1)))
    assert type(refused) is asked.above
    assert refused.metadata == {
        "limit": name,
        "maximum": str(maximum),
        "actual": str(maximum + 1),
    }
    assert not refused.retryable
    assert not refused.maybe_applied
    assert machine.revision == 0

    at_zero = await ask_one(dispatcher, asked.of(0))
    if asked.at_zero is None:
        assert not at_zero.HasField("error")
    else:
        assert type(error_of(at_zero)) is asked.at_zero
        assert machine.revision == 0

    assert not (await ask_one(dispatcher, asked.of(maximum))).HasField("error")


@pytest.mark.parametrize(("name", "sign"), [("MAX_INTEGER", 1), ("MIN_INTEGER", -1)])
async def test_integers(dispatcher: Dispatcher, name: str, sign: int) -> None:
    bound: int = getattr(limits, name)
    for amount, value in ((0, 0), (bound, bound), (0, bound)):
        reply = await ask_one(dispatcher, txn(add(b"n", amount)))
        assert reply.txn.result.results[0].add.value == value
    beyond = error_of(await ask_one(dispatcher, txn(put(b"other"), add(b"n", sign))))
    assert type(beyond) is IntegerOverflow
    assert (
        not (await ask_one(dispatcher, txn(get(b"other"))))
        .txn.result.results[0]
        .get.HasField("record")
    )


def test_intervals_of_progress() -> None:
    shortest, longest = limits.MIN_PROGRESS_INTERVAL_MS, limits.MAX_PROGRESS_INTERVAL_MS
    for interval_ms in (0, shortest, longest):
        validate_begin_watch(BeginWatch(progress_interval_ms=interval_ms))
    for interval_ms in (shortest - 1, longest + 1):
        with pytest.raises(InvalidArgument, match="the progress interval is"):
            validate_begin_watch(BeginWatch(progress_interval_ms=interval_ms))


# What the state machine bounds by itself.


def _machine() -> Machine:
    return Machine(MemoryEngine(), GroupId(1))


@pytest.mark.parametrize("maximum", [0, 3])
def test_records_of_a_range(monkeypatch: pytest.MonkeyPatch, maximum: int) -> None:
    monkeypatch.setattr(limits, "MAX_RANGE_RECORDS", maximum)
    machine = _machine()
    check = Check(range=KeyRange(), version=1)
    remove = Operation(delete_range=DeleteRangeOperation())
    for number in range(maximum):
        run_one(machine, put(b"%d" % number))
    assert run_one(machine, checks=[check]).succeeded
    run_one(machine, put(b"one more"))
    for result in (run_one(machine, checks=[check]), run_one(machine, remove)):
        assert result.error.reason == OperationError.RANGE_TOO_LARGE
    run_one(machine, delete(b"one more"))
    assert run_one(machine, remove).results[0].delete_range.deleted == maximum


@pytest.mark.parametrize("maximum", [0, 3])
def test_events_since_a_revision(monkeypatch: pytest.MonkeyPatch, maximum: int) -> None:
    monkeypatch.setattr(limits, "MAX_UNCHANGED_EVENTS", maximum)
    machine = _machine()
    check = Check(key=b"k", unchanged_since=0)
    for number in range(maximum):
        run_one(machine, put(b"%d" % number))
    assert run_one(machine, checks=[check]).succeeded
    run_one(machine, put(b"one more"))
    assert not run_one(machine, checks=[check]).succeeded


@pytest.mark.parametrize("asked", [2, 3, 4, 2**32 - 1])
def test_records_of_a_sweep(monkeypatch: pytest.MonkeyPatch, asked: int) -> None:
    monkeypatch.setattr(limits, "MAX_SWEEP_RECORDS", 3)
    machine = _machine()
    run_one(machine, *(put(b"%d" % number, ttl_ms=1) for number in range(5)), log_time_ms=1)
    assert sweep(machine, 0, log_time_ms=2).revision == 1
    sweep(machine, asked)
    assert machine.next_expiry_ms() == 2  # some are left
    assert len(list(machine.read_history().events(2))) == min(asked, 3)
    sweep(machine, asked)
    sweep(machine, asked)
    assert machine.next_expiry_ms() > 2


@pytest.mark.parametrize("asked", [2, 3, 4, 2**32 - 1])
def test_events_of_a_compaction(monkeypatch: pytest.MonkeyPatch, asked: int) -> None:
    monkeypatch.setattr(limits, "MAX_COMPACTION_EVENTS", 3)
    machine = _machine()
    for number in range(5):
        run_one(machine, put(b"%d" % number))
    compact(machine, 5, 0)
    assert (machine.oldest_revision, machine.is_trimmed) == (5, False)
    assert len(list(machine.read_history().events(1))) == 5
    compact(machine, 5, asked)
    assert len(list(machine.read_history().events(1))) == 5 - min(asked, 3)
    compact(machine, 5, asked)
    compact(machine, 5, asked)
    assert machine.is_trimmed


# What a node bounds for itself.


@pytest.mark.parametrize("count", [1, limits.MAX_LARGE_ENTRIES, limits.MAX_LARGE_ENTRIES + 1])
async def test_large_entries(n1: DrivenNode, count: int) -> None:
    group = n1.group
    large = CommandBatch()
    large.commands.add().transaction.operations.add().put.CopyFrom(
        put(b"k", bytes(limits.MAX_BATCH_BYTES + 1)).put
    )
    writes = [group.submit(large.SerializeToString(), 1, deadline=2**40) for _ in range(count)]
    group.stage()
    proposed = sum(one.large for one in group._waiters.proposals.values())
    assert proposed == min(count, limits.MAX_LARGE_ENTRIES)
    assert len(group._waiters.queued) == count - proposed
    for written in writes:
        assert (await written)[0].succeeded  # the rest has its turn, too


@pytest.mark.parametrize("count", [1, limits.MAX_WATCH_UPDATES, limits.MAX_WATCH_UPDATES + 1])
async def test_updates_of_a_message(count: int) -> None:
    machine = _machine()
    client = Client(hub_of(machine))
    for number in range(count):
        await client.begin(number + 1)
    begun = await client.read()
    assert begun is not None
    assert len(begun.updates) == min(count, limits.MAX_WATCH_UPDATES)
    if count > limits.MAX_WATCH_UPDATES:
        await client.read()
    write(machine, put(b"k"))
    told = await client.read()
    assert told is not None
    assert len(told.updates) <= limits.MAX_WATCH_UPDATES
    await client.read_all()
    assert all(len(heard.revisions) == 1 for heard in client.heard.values())
    client.stream.close()


def test_a_budget_of_a_node_is_that_of_the_page() -> None:
    """How a budget is kept at it, above it and at zero is in tests/node/test_admission.py."""
    admission = Admission()
    assert admission.calls.maximum_bytes == limits.MAX_CALL_BYTES_UNDER_WAY
    assert admission.replies.maximum_bytes == limits.MAX_REPLY_BYTES_UNDER_WAY


HERE: Final[dict[str, Callable[..., object]]] = {
    "MIN_INTEGER": test_integers,
    "MAX_INTEGER": test_integers,
    "MIN_PROGRESS_INTERVAL_MS": test_intervals_of_progress,
    "MAX_PROGRESS_INTERVAL_MS": test_intervals_of_progress,
    "MAX_UNCHANGED_EVENTS": test_events_since_a_revision,
    "MAX_SWEEP_RECORDS": test_records_of_a_sweep,
    "MAX_COMPACTION_EVENTS": test_events_of_a_compaction,
    "MAX_LARGE_ENTRIES": test_large_entries,
    "MAX_WATCH_UPDATES": test_updates_of_a_message,
    "MAX_CALL_BYTES_UNDER_WAY": test_a_budget_of_a_node_is_that_of_the_page,
    "MAX_REPLY_BYTES_UNDER_WAY": test_a_budget_of_a_node_is_that_of_the_page,
}

_WORK: Final = "tests.machine.test_bounded_work"
_CLIENTS: Final = "tests.machine.test_clients.TestForgotten"

ELSEWHERE: Final = {
    "MAX_RESULT_BYTES": f"{_WORK}.test_what_a_record_needs_beside_its_value_is_returned_too",
    "MAX_TRANSACTION_RECORDS": f"{_WORK}.test_ranges_count_together",
    "MAX_REPLACED_BYTES": f"{_WORK}.test_the_bytes_that_a_transaction_writes_over",
    "MAX_ENTRY_REPLACED_BYTES": (
        f"{_WORK}.test_what_an_entry_replaces_is_bounded_and_what_was_too_much_may_come_again"
    ),
    "MAX_READING_TRANSACTIONS": (
        "tests.node.test_dispatch.test_few_writes_that_return_records_are_under_way_at_once"
    ),
    "MAX_SNAPSHOTS_BEING_SAVED": "tests.node.test_backups.test_few_are_given_at_a_time",
    "MAX_PAGE_BYTES": "tests.machine.test_listing.test_a_record_larger_than_a_page_is_a_page_alone",
    "MAX_LONG_LISTS": (
        "tests.node.test_dispatch.test_few_lists_that_take_long_are_under_way_at_once"
    ),
    "MAX_CLIENTS": f"{_CLIENTS}.test_the_number_of_clients_is_bounded",
    "MAX_REMEMBERED_RESULT_BYTES": (f"{_CLIENTS}.test_a_large_result_is_remembered_as_applied"),
    "MAX_CLIENT_RESULT_BYTES": f"{_CLIENTS}.test_the_results_of_one_client_are_bounded",
    "MAX_CLIENTS_BYTES": f"{_CLIENTS}.test_the_memory_for_all_is_bounded",
    "MAX_SWEEP_BYTES": "tests.machine.test_expiry.test_a_sweep_ends_after_so_many_bytes",
    "MAX_WATCHES": "tests.watches.test_telling.test_there_is_a_limit_to_watches",
    "MAX_WATCH_PENDING_REVISIONS": (
        "tests.watches.test_bounds.test_a_watch_that_does_not_read_costs_its_numbers"
    ),
    "MAX_WATCH_CACHE_BYTES": "tests.watches.test_bounds.test_the_cache_is_bounded",
    "MAX_WATCH_MESSAGE_BYTES": (
        "tests.watches.test_bounds.test_a_large_revision_is_several_updates"
    ),
    "MAX_WATCH_PART_BYTES": "tests.watches.test_bounds.test_a_large_change_comes_in_parts",
    "MAX_WATCH_SCAN_EVENTS": (
        "tests.watches.test_bounds.test_a_small_revision_in_a_large_one_is_found"
    ),
    "MAX_MESSAGE_BYTES": "tests.node.test_session.test_a_call_must_fit_a_message",
    "MAX_BATCH_BYTES": "tests.node.test_group.test_entries_stop_growing_at_their_bound",
    "MAX_BATCH_CALLS": "tests.client.test_coalescing.test_a_message_holds_so_many_calls",
    "MAX_PART_BYTES": "tests.client.test_parts.test_a_large_call_travels_in_parts",
    "MAX_LARGE_CALLS": "tests.client.test_parts.test_few_large_calls_are_under_way_at_once",
    "MAX_SNAPSHOT_CHUNK_BYTES": (
        "tests.machine.test_snapshot.test_the_stream_is_the_same_in_chunks_of_any_size"
    ),
    "MAX_UNCOMMITTED_BYTES": (
        "tests.node.test_group.test_the_queue_is_bounded_while_the_disk_is_at_work"
    ),
    "MAX_SESSION_CALLS": (
        "tests.node.test_server_sessions.test_a_client_that_does_not_read_is_not_read_from"
    ),
    "MAX_ARRIVING_REQUESTS": "tests.node.test_arrival.test_few_are_read_at_a_time",
    "MAX_ARRIVAL_BYTES": (
        "tests.node.test_server_sessions"
        ".test_unary_calls_that_do_not_arrive_are_bounded_and_hold_up_no_other"
    ),
    "MAX_PENDING_REVISIONS": (
        "tests.watches.test_bounds.test_many_watches_that_do_not_read_share_the_numbers"
    ),
    "MIN_WATCH_PENDING_REVISIONS": (
        "tests.watches.test_bounds.test_many_watches_that_do_not_read_share_the_numbers"
    ),
    "MAX_CALL_TIMEOUT_MS": (
        "tests.node.test_dispatch.test_a_call_is_worked_on_as_long_as_it_asks_for"
    ),
}
"""The test that has the limit in its hands: a function of a module, or of a class in it."""


def test_every_limit_has_a_test() -> None:
    names = {name for name in vars(limits) if name.isupper()}
    rows = [*NO_LIMITS, *ASKED, *HERE, *ELSEWHERE]
    assert len(rows) == len(set(rows)), "a limit has two rows"
    assert names == set(rows)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_test_of_a_limit_exists(name: str) -> None:
    parts = ELSEWHERE[name].split(".")
    found: ModuleType | object = import_module(".".join(parts[:3]))
    for part in parts[3:]:
        found = getattr(found, part)
    assert inspect.isfunction(found)
    assert found.__name__.startswith("test_")


# Bad input, beside limits.


@pytest.mark.parametrize(
    "operations",
    [
        (put(b"a"), put(b"a")),
        (put(b"a"), delete(b"a")),
        (add(b"a"), put(b"a")),
        (touch(b"a"), put(b"a")),
        (put(b"a"), touch(b"a")),
        (touch(b"a"), touch(b"a", 5)),
    ],
)
async def test_a_key_that_is_written_twice_is_refused(
    dispatcher: Dispatcher,
    operations: tuple[Operation, ...],
) -> None:
    for call in (txn(put(b"other"), *operations), _otherwise(*operations)):
        error = error_of(await ask_one(dispatcher, call))
        assert type(error) is InvalidArgument
        assert "writes 'a' a second time" in error.message
    assert not (await ask_one(dispatcher, Call(id=1, list=ListRequest()))).list.records


def _otherwise(*operations: Operation) -> Call:
    one = transaction(checks=[exists(b"none")], otherwise=operations)
    return Call(id=1, txn=TxnRequest(transaction=one))


async def test_a_rate_limit_that_is_taken_from_twice_is_refused(
    dispatcher: Dispatcher,
) -> None:
    one = _take().txn.transaction.operations[0]
    both = Operation(rate_limit=RateLimitOperation(limits=[*one.rate_limit.limits] * 2))
    for call in (txn(put(b"a"), one, one), txn(put(b"a"), both)):
        error = error_of(await ask_one(dispatcher, call))
        assert type(error) is InvalidArgument
        assert "'r' a second time" in error.message
    assert not (await ask_one(dispatcher, Call(id=1, list=ListRequest()))).list.records


async def test_a_range_and_a_key_of_it_are_written_one_after_the_other(
    dispatcher: Dispatcher,
) -> None:
    """What is in a range is not known before: a put in a range that is emptied is what is left."""
    remove = Operation(delete_range=DeleteRangeOperation(range=KeyRange(start=b"a", end=b"c")))
    await ask_one(dispatcher, txn(put(b"a"), put(b"b"), put(b"c")))
    result = (await ask_one(dispatcher, txn(remove, put(b"b", b"new")))).txn.result
    assert result.results[0].delete_range.deleted == 2
    listed = (await ask_one(dispatcher, Call(id=1, list=ListRequest()))).list.records
    assert [(one.key, one.value) for one in listed] == [(b"b", b"new"), (b"c", b"value")]
    await ask_one(dispatcher, txn(put(b"b", b"newer"), remove))
    listed = (await ask_one(dispatcher, Call(id=1, list=ListRequest()))).list.records
    assert [one.key for one in listed] == [b"c"]


@pytest.mark.parametrize(
    "call",
    [
        _put(ttl_ms=-1),
        txn(put(b"a"), touch(b"b", -1)),
        txn(put(b"a"), Operation(add=AddOperation(key=b"n", ttl_ms=-1))),
        txn(put(b"a"), Operation(add=AddOperation(key=b"n", min=1, max=0))),
        txn(put(b"a"), Operation(list=ListOperation(limit=-1))),
        txn(put(b"a"), Operation(list=ListOperation(limit=limits.MAX_PAGE_RECORDS + 1))),
        txn(put(b"a"), Operation(list=ListOperation(range=KeyRange(start=b"b", end=b"a")))),
        txn(put(b"a"), Operation(delete_range=DeleteRangeOperation(limit=-1))),
        txn(
            put(b"a"),
            Operation(delete_range=DeleteRangeOperation(range=KeyRange(start=b"b", end=b"a"))),
        ),
        txn(put(b"a"), checks=[Check(range=KeyRange(start=b"b", end=b"a"), exists=True)]),
        txn(put(b"a"), checks=[Check(key=b"a", range=KeyRange(), exists=True)]),
        txn(put(b"a"), checks=[Check(key=b"a", unchanged_since=-1)]),
        txn(put(b"a"), checks=[Check(key=b"a")]),
        txn(put(b"a"), put(b"")),
        txn(put(b"a"), touch(b"")),
        txn(put(b"a"), Operation(add=AddOperation())),
        _take(key=b""),
        _take(algorithm=RateLimit.ALGORITHM_UNSPECIFIED),
        _take(algorithm=4),
        _take(cost=-1),
        _take(cost=2),
        _put(index_entries=[indexed("i", b"x"), indexed("i", b"x", unique=True)]),
        Call(id=1, list=ListRequest(index=IndexSelection())),
        Call(id=1, list=ListRequest(range=KeyRange(start=b"b", end=b"a"))),
    ],
)
async def test_bad_input_is_a_typed_error_and_writes_nothing(
    n1: DrivenNode,
    dispatcher: Dispatcher,
    call: Call,
) -> None:
    error = error_of(await ask_one(dispatcher, call))
    assert isinstance(error, InvalidArgument)
    assert not error.retryable
    assert n1.group.machine.revision == 0


@pytest.mark.parametrize("given", [timedelta.max, float("inf"), 10**400, 1e300])
def test_a_length_of_time_beyond_all_bounds(given: float | timedelta) -> None:
    for encode, name in (
        (durations.encode_ttl, "MAX_TTL_MS"),
        (durations.encode_window, "MAX_RATE_WINDOW_MS"),
    ):
        with pytest.raises(LimitExceeded) as raised:
            encode(given)
        assert raised.value.metadata["limit"] == name


@pytest.mark.parametrize("given", [-1, 0, timedelta.min, float("nan"), float("-inf"), -(10**400)])
def test_a_length_of_time_that_is_none(given: float | timedelta) -> None:
    for encode in (durations.encode_ttl, durations.encode_window):
        with pytest.raises(InvalidArgument):
            encode(given)
