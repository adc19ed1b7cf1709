"""Calls in, replies out: each kind, alone and mixed, and every call answered exactly once."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from kvorum import limits
from kvorum.errors import (
    DeadlineExceeded,
    FutureRevision,
    IntegerOverflow,
    InvalidArgument,
    InvalidCursor,
    KvorumError,
    LimitExceeded,
    NamespaceNotFound,
    NoLeader,
    NotAnInteger,
    NotLeader,
    Overloaded,
    ShuttingDown,
    TooStale,
)
from kvorum.status import from_status
from kvorum_node.machine import listing
from kvorum_node.raft.messages import AppendEntries, Heartbeat, HeartbeatReply
from kvorum_node.raft.types import Index, Term
from kvorum_node.services.dispatch import Answer, Dispatcher, made
from kvorumpb.v1.command_pb2 import (
    Command,
    CommandBatch,
    KeyRange,
    ListOperation,
    Operation,
)
from kvorumpb.v1.kv_pb2 import (
    LEASE,
    LINEARIZABLE,
    STALE,
    Call,
    Consistency,
    DeleteRequest,
    GetRequest,
    ListRequest,
    PutRequest,
    RegisterClientRequest,
    Reply,
    TxnRequest,
)
from tests.support import commands
from tests.support.calls import add, ask, ask_one, delete, error_of, get, put
from tests.support.driven_node import DrivenNode
from tests.support.eventually import eventually
from tests.support.raft_messages import append, heartbeat, heartbeat_reply

# Each kind.


async def test_put_get_and_delete(dispatcher: Dispatcher) -> None:
    assert (await ask_one(dispatcher, put(1, b"k", b"one"))).put.revision == 1
    assert (await ask_one(dispatcher, put(2, b"k", b"two"))).put.revision == 2
    found = (await ask_one(dispatcher, get(3, b"k"))).get
    assert MessageToDict(found, preserving_proto_field_name=True) == {
        "record": {
            "key": "aw==",
            "value": "dHdv",
            "revision": "2",
            "created_revision": "1",
            "version": "2",
            "update_time_ms": "1000",
        },
        "revision": "2",
        "log_time_ms": "1000",
    }
    deleted = (await ask_one(dispatcher, delete(4, b"k"))).delete
    assert (deleted.deleted, deleted.revision) == (True, 3)
    again = (await ask_one(dispatcher, delete(5, b"k"))).delete
    assert (again.deleted, again.revision) == (False, 3)
    gone = (await ask_one(dispatcher, get(6, b"k"))).get
    assert not gone.HasField("record")
    assert gone.revision == 3


async def test_an_answer_says_what_it_answers_even_if_it_is_empty(dispatcher: Dispatcher) -> None:
    replies = await ask(dispatcher, get(1, b"k"), Call(id=2, list=ListRequest()))
    assert [replies[call].WhichOneof("outcome") for call in (1, 2)] == ["get", "list"]


async def test_list(dispatcher: Dispatcher) -> None:
    await ask(dispatcher, *(put(number, b"key %d" % number) for number in range(5)))
    first = (await ask_one(dispatcher, Call(list=ListRequest(page_size=3)))).list
    assert [record.key for record in first.records] == [b"key 0", b"key 1", b"key 2"]
    token = first.next_page_token
    second = (await ask_one(dispatcher, Call(list=ListRequest(page_token=token)))).list
    assert [record.key for record in second.records] == [b"key 3", b"key 4"]
    assert not second.next_page_token


async def test_a_transaction(dispatcher: Dispatcher) -> None:
    transaction = commands.transaction(
        commands.put(b"a"),
        commands.get(b"a"),
        checks=[commands.exists(b"a", False)],
        otherwise=[commands.delete(b"a")],
    )
    call = Call(txn=TxnRequest(transaction=transaction))
    first = (await ask_one(dispatcher, call)).txn.result
    assert first.succeeded
    assert [one.WhichOneof("result") for one in first.results] == ["put", "get"]
    second = (await ask_one(dispatcher, call)).txn.result
    assert not second.succeeded
    assert second.failed_check == 0
    assert second.results[0].delete.deleted


async def test_a_mixed_batch_is_one_entry_and_its_reads_see_no_less_than_before_it(
    n1: DrivenNode, dispatcher: Dispatcher
) -> None:
    await ask(dispatcher, put(1, b"a", b"before"))
    last = n1.group.log.last_index()
    replies = await ask(
        dispatcher,
        put(1, b"a", b"after"),
        get(2, b"a"),
        add(3, b"n", 5),
        delete(4, b"nothing"),
        Call(id=5, list=ListRequest()),
        add(6, b"n", 5),
    )
    assert n1.group.log.last_index() == last + 1
    assert replies[2].get.record.value in (b"before", b"after")
    assert [replies[call].txn.result.results[0].add.value for call in (3, 6)] == [5, 10]
    assert not replies[4].delete.deleted
    assert (replies[1].put.revision, replies[6].txn.result.revision) == (2, 4)


# Reads that ask for less.


def get_with(call: int, consistency: Consistency.ValueType, max_staleness_ms: int = 0) -> Call:
    request = GetRequest(key=b"k", consistency=consistency, max_staleness_ms=max_staleness_ms)
    return Call(id=call, get=request)


ALL_CONSISTENCIES = (LINEARIZABLE, LEASE, STALE)


async def test_every_consistency_of_a_leader_that_is_alone(dispatcher: Dispatcher) -> None:
    await ask(dispatcher, put(1, b"k"))
    calls = [get_with(call, one) for call, one in enumerate(ALL_CONSISTENCIES)]
    calls.append(get_with(3, STALE, 1))
    for reply in (await ask(dispatcher, *calls)).values():
        assert reply.get.record.value == b"v"


async def test_a_lease_spares_a_round() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        dispatcher = Dispatcher(n1.group)
        first = asyncio.create_task(ask(dispatcher, get_with(1, LEASE)))
        asked = await n1.said(Heartbeat, lambda one: one.read_round == 1)
        n1.hear(heartbeat_reply(1, read_round=asked.read_round))
        await first
        await ask(dispatcher, get_with(2, LEASE), get_with(3, STALE, 1))
        assert not n1.has_said(Heartbeat, lambda one: one.read_round == 2)
        other = asyncio.create_task(ask(dispatcher, get_with(4, LINEARIZABLE)))
        asked = await n1.said(Heartbeat, lambda one: one.read_round == 2)
        n1.hear(heartbeat_reply(1, read_round=asked.read_round))
        await other


async def test_a_follower_answers_stale_reads_alone() -> None:
    async with DrivenNode() as n1:
        written = commands.entry(1, commands.transaction(commands.put(b"k", b"old")))
        n1.hear(append(1, "0@0", [replace(written, term=Term(1))], commit=1))
        await eventually(lambda: n1.group.machine.applied == 1)
        calls = [get_with(call, one) for call, one in enumerate(ALL_CONSISTENCIES)]
        replies = await ask(Dispatcher(n1.group), *calls, Call(id=3, list=ListRequest()))
        assert replies[2].get.record.value == b"old"
        assert {type(error_of(replies[call])) for call in (0, 1, 3)} == {NotLeader}
        stale = ListRequest(consistency=STALE)
        listed = await ask_one(Dispatcher(n1.group), Call(list=stale))
        assert [record.key for record in listed.list.records] == [b"k"]


async def test_a_stale_read_answers_by_the_log_time_that_was_applied(
    n1: DrivenNode, dispatcher: Dispatcher
) -> None:
    """Not by a clock: else two nodes in the same state would answer differently."""
    await ask_one(dispatcher, Call(id=1, put=PutRequest(key=b"k", value=b"v", ttl_ms=1)))
    applied_ms = n1.group.machine.log_time_ms
    n1.clock_ms += 1_000
    stale = (await ask_one(dispatcher, get_with(1, STALE))).get
    assert (stale.HasField("record"), stale.log_time_ms) == (True, applied_ms)
    newest = (await ask_one(dispatcher, get_with(1, LINEARIZABLE))).get
    assert (newest.HasField("record"), newest.log_time_ms > applied_ms) == (False, True)


async def test_a_follower_that_cannot_know_how_old_it_is_refuses() -> None:
    async with DrivenNode() as n1:
        n1.hear(heartbeat(1))
        await n1.said(HeartbeatReply)
        error = error_of(await ask_one(Dispatcher(n1.group), get_with(1, STALE, 10**9)))
        assert type(error) is TooStale


async def test_a_follower_knows_how_old_it_is() -> None:
    async with DrivenNode() as n1:
        dispatcher = Dispatcher(n1.group)
        n1.group._tick_seconds = 0.05
        clock = int(n1.now / 0.05)
        n1.raft.keep_time(clock)
        n1.hear(append(1, log="1@1", commit=1))
        n1.hear(replace(heartbeat(1, commit=1), committed=Index(1), echo=clock - 100))
        await eventually(lambda: n1.raft.freshness.as_of == clock - 100)  # five seconds ago
        replies = await ask(dispatcher, get_with(1, STALE, 4_000), get_with(2, STALE, 3_600_000))
        assert type(error_of(replies[1])) is TooStale
        assert replies[2].HasField("get")


async def test_a_stopped_node_answers_no_stale_read() -> None:
    async with DrivenNode() as n1:
        dispatcher = Dispatcher(n1.group)
    assert type(error_of(await ask_one(dispatcher, get_with(1, STALE)))) is ShuttingDown


@pytest.mark.parametrize(
    "request_",
    [
        GetRequest(key=b"k", consistency=99),  # type: ignore[arg-type]  # of a newer version
        GetRequest(key=b"k", consistency=STALE, max_staleness_ms=-1),
        GetRequest(key=b"k", consistency=LEASE, max_staleness_ms=1),
        GetRequest(key=b"k", max_staleness_ms=1),
    ],
    ids=["unknown", "negative", "of a lease", "of none"],
)
async def test_a_consistency_that_makes_no_sense_is_refused(
    dispatcher: Dispatcher, request_: GetRequest
) -> None:
    assert type(error_of(await ask_one(dispatcher, Call(get=request_)))) is InvalidArgument


# Refusals.


LATER_FIELD = b"\xf8\x01\x01"
"""Field 31, as a newer client may send it."""


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (get(0, b"k"), ()),
        (get(0, b"k"), ("get",)),
        (Call(list=ListRequest(range=KeyRange(end=b"b"))), ("list", "range")),
        (put(0, b"k"), ("put",)),
        (put(0, b"k"), ("put", "origin")),
        (delete(0, b"k"), ("delete",)),
        (add(0, b"k"), ("txn",)),
        (add(0, b"k"), ("txn", "transaction")),
        (Call(register_client=RegisterClientRequest(client_id=1)), ("register_client",)),
    ],
)
async def test_what_a_newer_client_asks_for_is_refused_and_never_left_out(
    dispatcher: Dispatcher, call: Call, path: tuple[str, ...]
) -> None:
    """A put on a condition that this version does not know is none on no condition."""
    asked = Call()
    asked.CopyFrom(call)
    message: Any = asked
    for name in path:
        message = getattr(message, name)
    message.MergeFromString(LATER_FIELD)
    error = error_of(await ask_one(dispatcher, asked))
    assert type(error) is InvalidArgument
    assert "something that this version does not know" in error.message
    assert not (await ask_one(dispatcher, get(0, b"k"))).get.HasField("record")


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (Call(), InvalidArgument),
        (put(0, b""), InvalidArgument),
        (get(0, b""), InvalidArgument),
        (delete(0, b""), InvalidArgument),
        (put(0, b"k" * (limits.MAX_KEY_BYTES + 1)), LimitExceeded),
        (put(0, b"k", bytes(limits.MAX_VALUE_BYTES + 1)), LimitExceeded),
        (Call(put=PutRequest(namespace="other", key=b"k")), NamespaceNotFound),
        (Call(get=GetRequest(namespace="other", key=b"k")), NamespaceNotFound),
        (Call(delete=DeleteRequest(namespace="other", key=b"k")), NamespaceNotFound),
        (Call(list=ListRequest(namespace="other")), NamespaceNotFound),
        (Call(txn=TxnRequest(namespace="other")), NamespaceNotFound),
        (Call(txn=TxnRequest()), InvalidArgument),
        (Call(list=ListRequest(page_size=limits.MAX_PAGE_RECORDS + 1)), LimitExceeded),
        (Call(list=ListRequest(range=KeyRange(start=b"b", end=b"a"))), InvalidArgument),
        (Call(list=ListRequest(page_token="made up")), InvalidCursor),
        (Call(list=ListRequest(page_token="made up", count=True)), InvalidCursor),
        (Call(get=GetRequest(key=b"k", revision=-1)), InvalidArgument),
        (Call(get=GetRequest(key=b"k", revision=99)), FutureRevision),
        (Call(list=ListRequest(revision=99)), FutureRevision),
    ],
    ids=lambda one: one.WhichOneof("request") if isinstance(one, Call) else one.__name__,
)
async def test_a_refused_call_does_not_touch_the_others(
    n1: DrivenNode, dispatcher: Dispatcher, call: Call, kind: type[KvorumError]
) -> None:
    call.id = 2
    replies = await ask(dispatcher, put(1, b"a"), call, get(3, b"a"), add(4, b"n"))
    assert type(error_of(replies[2])) is kind
    assert replies[1].put.revision == 1
    assert replies[3].WhichOneof("outcome") == "get"
    assert replies[4].txn.result.results[0].add.value == 1
    assert n1.group.machine.revision == 2  # of what was refused nothing was written


async def test_the_largest_key_and_value_are_taken(dispatcher: Dispatcher) -> None:
    key, value = b"k" * limits.MAX_KEY_BYTES, bytes(limits.MAX_VALUE_BYTES)
    replies = await ask(dispatcher, put(1, key, value))
    assert replies[1].put.revision == 1
    assert len((await ask_one(dispatcher, get(2, key))).get.record.value) == len(value)


async def test_a_limit_names_itself_its_maximum_and_the_actual_size(dispatcher: Dispatcher) -> None:
    reply = await ask_one(dispatcher, put(1, b"k", bytes(limits.MAX_VALUE_BYTES + 1)))
    assert error_of(reply).metadata == {
        "limit": "MAX_VALUE_BYTES",
        "maximum": str(limits.MAX_VALUE_BYTES),
        "actual": str(limits.MAX_VALUE_BYTES + 1),
    }


async def test_a_failed_operation_is_an_error_of_its_call_alone(dispatcher: Dispatcher) -> None:
    await ask(dispatcher, put(1, b"text", b"seven"), put(2, b"full", b"9223372036854775807"))
    replies = await ask(dispatcher, add(1, b"text"), add(2, b"full"), add(3, b"n"))
    assert type(error_of(replies[1])) is NotAnInteger
    assert type(error_of(replies[2])) is IntegerOverflow
    assert error_of(replies[1]).metadata["operation"] == "0"
    assert replies[3].txn.result.results[0].add.value == 1


async def test_without_a_leader_every_call_is_refused() -> None:
    async with DrivenNode() as n1:
        replies = await ask(Dispatcher(n1.group), put(1, b"k"), get(2, b"k"), put(3, b""))
        assert [type(error_of(replies[call])) for call in (1, 2, 3)] == [
            NoLeader,
            NoLeader,
            InvalidArgument,
        ]


async def test_draining_refuses_what_comes_and_finishes_what_is_under_way() -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        dispatcher = Dispatcher(n1.group)
        early = asyncio.create_task(ask(dispatcher, put(1, b"k"), get(2, b"k")))
        await n1.said(AppendEntries, lambda one: one.previous.index == 1)
        dispatcher.drain()
        late = await ask(dispatcher, put(1, b"k"), get(2, b"k"))
        assert {type(error_of(reply)) for reply in late.values()} == {ShuttingDown}
        asked = await n1.said(Heartbeat, lambda one: one.read_round == 1)
        n1.hear(heartbeat_reply(1, read_round=asked.read_round))
        await n1.accept(2)
        assert (await early)[1].put.revision == 1


async def test_no_calls_need_no_answer(dispatcher: Dispatcher) -> None:
    assert await dispatcher.execute([]) == []


async def test_ids_are_the_callers_business(dispatcher: Dispatcher) -> None:
    replies = await dispatcher.execute([put(7, b"a"), put(7, b"b"), put(0, b"c"), get(7, b"a")])
    assert sorted(reply.id for reply in replies) == [0, 7, 7, 7]


# Deadlines and sizes.


@pytest.mark.parametrize(
    ("timeouts_ms", "expected_ms"),
    [
        ([100], 100),
        ([100, 2000, 300], 2000),
        ([0], limits.MAX_CALL_TIMEOUT_MS),
        ([100, 0], limits.MAX_CALL_TIMEOUT_MS),
        ([10 * limits.MAX_CALL_TIMEOUT_MS], limits.MAX_CALL_TIMEOUT_MS),
    ],
)
async def test_a_call_is_worked_on_as_long_as_it_asks_for(
    timeouts_ms: list[int], expected_ms: int
) -> None:
    async with DrivenNode() as n1:
        await n1.lead()
        dispatcher = Dispatcher(n1.group)
        calls = [
            Call(id=at, timeout_ms=timeout_ms, put=PutRequest(key=b"k"))
            for at, timeout_ms in enumerate(timeouts_ms)
        ]
        before = n1.now
        asking = asyncio.create_task(ask(dispatcher, *calls))
        await n1.said(AppendEntries, lambda one: one.previous.index == 1)
        [proposal] = n1.group._waiters.proposals.values()
        [submission] = proposal.submissions
        assert 0 <= submission.deadline - before - expected_ms / 1000 < 5
        n1.group.tick(submission.deadline)
        for reply in (await asking).values():
            error = from_status(reply.error, write=True)
            assert isinstance(error, DeadlineExceeded)
            assert error.maybe_applied


async def test_a_message_of_many_small_writes_makes_no_entry_that_no_peer_could_take(
    n1: DrivenNode, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As commands they take more bytes than as calls, and an entry is never split."""
    sizes: list[int] = []
    submit = n1.group.submit
    monkeypatch.setattr(limits, "MAX_TRANSACTION_BYTES", 10_000)

    def spy(data: bytes, count: int, *, deadline: float) -> object:
        sizes.append(len(data))
        return submit(data, count, deadline=deadline)

    monkeypatch.setattr(n1.group, "submit", spy)
    replies = await ask(dispatcher, *(put(number, b"%05d" % number) for number in range(5000)))
    assert [replies[number].put.revision for number in range(5000)] == list(range(1, 5001))
    assert max(sizes) <= 10_000
    assert len(sizes) < 30


async def test_reads_are_carried_out_when_their_replies_are_taken(
    n1: DrivenNode, dispatcher: Dispatcher
) -> None:
    """Else a small message could fill the memory with large records."""
    await ask(dispatcher, put(1, b"k", b"before"))
    emitted: list[Iterable[Answer]] = []
    dispatcher.dispatch([get(1, b"k"), get(2, b"k")], emitted.append)
    await eventually(lambda: emitted)
    [answers] = emitted
    for value in (b"once", b"and again"):
        await ask(dispatcher, put(1, b"k", value))
        answers = list(answers)
        assert not any(isinstance(one, Reply) for one in answers)
        replies = made(answers)
        assert [(reply.id, reply.get.record.value) for reply in replies] == [(1, value), (2, value)]


@pytest.mark.parametrize(
    "operation",
    [
        commands.get(b"k"),
        Operation(list=ListOperation()),
    ],
    ids=["get", "list"],
)
async def test_few_writes_that_return_records_are_under_way_at_once(
    operation: Operation,
) -> None:
    """Each of them may return 32 MiB, and all of them wait in memory for their entry."""

    def read_in_transaction(call: int) -> Call:
        transaction = commands.transaction(operation, commands.put(b"%d" % call))
        return Call(id=call, txn=TxnRequest(transaction=transaction))

    async with DrivenNode(voters=1) as n1:
        dispatcher = Dispatcher(n1.group)
        await eventually(lambda: n1.leads)
        most = limits.MAX_READING_TRANSACTIONS
        for _ in range(2):  # the second time, the first ones have made room
            calls = [read_in_transaction(number) for number in range(most + 1)]
            replies = await dispatcher.execute([*calls, put(most + 1, b"other")])
            refused = [reply for reply in replies if reply.HasField("error")]
            assert [reply.id for reply in refused] == [most]
            assert isinstance(error_of(refused[0]), Overloaded)


# Lists that take long.


def count(call: int, timeout_ms: int = 0) -> Call:
    return Call(id=call, timeout_ms=timeout_ms, list=ListRequest(page_size=1, count=True))


@pytest.fixture
def slow_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is a slice."""
    monkeypatch.setattr(listing, "SLICE_RECORDS", 1)


@pytest.mark.usefixtures("slow_counts")
async def test_a_count_lets_others_go_on(dispatcher: Dispatcher) -> None:
    await ask(dispatcher, *(put(number, b"k%d" % number) for number in range(500)))
    answered: list[Reply] = []
    dispatcher.dispatch([count(1)], lambda some: answered.extend(made(some)))
    written = await ask_one(dispatcher, put(2, b"new"))
    assert written.put.revision == 501
    assert not answered
    await eventually(lambda: answered)
    [reply] = answered
    assert (reply.id, reply.list.count, reply.list.revision) == (1, 500, 500)
    assert [record.key for record in reply.list.records] == [b"k0"]


async def test_a_count_of_nothing_is_there(dispatcher: Dispatcher) -> None:
    replies = await ask(dispatcher, count(1), Call(id=2, list=ListRequest()))
    assert replies[1].list.HasField("count")
    assert replies[1].list.count == 0
    assert not replies[2].list.HasField("count")


@pytest.mark.usefixtures("slow_counts")
async def test_few_lists_that_take_long_are_under_way_at_once(dispatcher: Dispatcher) -> None:
    await ask(dispatcher, *(put(number, b"k%d" % number) for number in range(50)))
    most = limits.MAX_LONG_LISTS
    for _ in range(2):  # the second time, the first ones have made room
        replies = await ask(dispatcher, *(count(number) for number in range(most + 1)))
        refused = [number for number, reply in replies.items() if reply.HasField("error")]
        assert len(refused) == 1
        assert isinstance(error_of(replies[refused[0]]), Overloaded)


@pytest.mark.usefixtures("slow_counts")
async def test_a_list_of_what_has_expired_takes_long_too(
    n1: DrivenNode, dispatcher: Dispatcher
) -> None:
    expiring = [
        commands.transaction(commands.put(b"k%d" % number, ttl_ms=5)) for number in range(50)
    ]
    calls = [
        Call(id=number, txn=TxnRequest(transaction=one)) for number, one in enumerate(expiring)
    ]
    n1.clock_ms += 1
    await n1.group.submit(
        CommandBatch(
            commands=[Command(transaction=call.txn.transaction) for call in calls]
        ).SerializeToString(),
        len(calls),
        deadline=n1.now + 60,
    )
    n1.clock_ms += 10
    await ask(dispatcher, put(1, b"z"))
    most = limits.MAX_LONG_LISTS
    lists = [Call(id=number, list=ListRequest()) for number in range(most + 1)]
    replies = await ask(dispatcher, *lists)
    refused = [reply for reply in replies.values() if reply.HasField("error")]
    assert [type(error_of(reply)) for reply in refused] == [Overloaded]
    for reply in replies.values():
        if reply not in refused:
            assert [record.key for record in reply.list.records] == [b"z"]


@pytest.mark.usefixtures("slow_counts")
async def test_what_takes_too_long_is_given_up(n1: DrivenNode, dispatcher: Dispatcher) -> None:
    await ask(dispatcher, *(put(number, b"k%d" % number) for number in range(20_000)))
    reply = await ask_one(dispatcher, count(1, timeout_ms=50))
    error = from_status(reply.error)
    assert isinstance(error, DeadlineExceeded)
    assert not error.maybe_applied


@pytest.mark.usefixtures("slow_counts")
async def test_closing_gives_up_the_lists_under_way(dispatcher: Dispatcher) -> None:
    await ask(dispatcher, *(put(number, b"k%d" % number) for number in range(100)))
    before = asyncio.all_tasks()
    answered: list[Reply] = []

    def emit(some: Iterable[Answer]) -> None:
        answered.extend(made(some))

    dispatcher.dispatch([count(number) for number in range(limits.MAX_LONG_LISTS)], emit)
    await eventually(lambda: asyncio.all_tasks() > before)
    await dispatcher.close()
    assert asyncio.all_tasks() == before
    assert [type(error_of(reply)) for reply in answered] == [ShuttingDown] * limits.MAX_LONG_LISTS


async def test_a_past_revision(dispatcher: Dispatcher) -> None:
    await ask(dispatcher, put(1, b"k", b"one"))
    await ask(dispatcher, put(1, b"k", b"two"), put(2, b"l"))
    past = Call(get=GetRequest(key=b"k", revision=1))
    found = (await ask_one(dispatcher, past)).get
    assert (found.record.value, found.revision, found.log_time_ms) == (b"one", 1, 1_000)
    listed = (await ask_one(dispatcher, Call(list=ListRequest(revision=1)))).list
    assert [record.value for record in listed.records] == [b"one"]
    assert (listed.revision, listed.log_time_ms) == (1, 1_000)
    for call in (
        Call(get=GetRequest(key=b"k", revision=4)),
        Call(list=ListRequest(revision=4)),
    ):
        error = error_of(await ask_one(dispatcher, call))
        assert isinstance(error, FutureRevision)
        assert error.metadata == {"revision": "4", "newest_revision": "3"}
