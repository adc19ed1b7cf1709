"""What a node counts: histograms, calls by what came of them, batches, round trips."""

import asyncio
from collections.abc import Iterable

import pytest

from kvorum.errors import Code
from kvorum_node import round_trips as round_trips_module
from kvorum_node.figures import SECONDS, Calls, Figures, Histogram, timed
from kvorum_node.round_trips import RoundTrips
from kvorum_node.services.dispatch import Answer, Dispatcher
from kvorumpb.v1.kv_pb2 import Call, GetRequest, ListRequest, PutRequest
from kvorumpb.v1.raft_pb2 import PeerNotice
from tests.support.driven_node import DrivenNode
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.served import put_call

# Histograms.


def test_a_histogram_counts_each_value_where_it_belongs() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    for value in (0.5, 1.0, 1.5, 4.0):
        histogram.observe(value)
    histogram.observe(9.0, 3)
    assert histogram.counts == [2, 1, 1]
    assert (histogram.count, histogram.total) == (7, 34.0)


def test_the_bounds_of_times_are_those_that_are_documented() -> None:
    assert [f"{bound:g}" for bound in (SECONDS[0], SECONDS[1], SECONDS[-1])] == [
        "0.0001",
        "0.0002",
        "13.1072",
    ]
    assert list(SECONDS) == sorted(SECONDS)


def test_what_is_timed_is_done_and_its_errors_pass() -> None:
    done = list[int]()
    assert timed(lambda: done.append(1)) >= 0
    assert done == [1]
    with pytest.raises(ZeroDivisionError):
        timed(lambda: done.append(1 // 0))


# Calls.


def figures_of(dispatcher: Dispatcher) -> Figures:
    return dispatcher._figures


def outcome(calls: Calls) -> tuple[int, dict[int, int], int]:
    return calls.succeeded, dict(calls.errors), calls.seconds.count


async def test_reads_and_writes_are_counted_one_by_one(dispatcher: Dispatcher) -> None:
    await dispatcher.execute(
        [
            put_call(1),
            put_call(2),
            Call(id=3, get=GetRequest(key=b"1")),
            Call(id=4, list=ListRequest()),
            Call(id=5, get=GetRequest(key=b"1")),
        ]
    )
    figures = figures_of(dispatcher)
    assert outcome(figures.writes) == (2, {}, 2)
    assert outcome(figures.reads) == (3, {}, 3)
    assert 0 < figures.writes.seconds.total < DEADLINE_SECONDS


async def test_what_is_refused_at_the_door_has_no_time(dispatcher: Dispatcher) -> None:
    await dispatcher.execute([put_call(1), Call(id=2, put=PutRequest()), Call(id=3)])
    await dispatcher.execute([Call(id=1, get=GetRequest()), Call(id=2, get=GetRequest(key=b"k"))])
    figures = figures_of(dispatcher)
    assert outcome(figures.writes) == (1, {Code.INVALID_ARGUMENT: 2}, 1)
    assert outcome(figures.reads) == (1, {Code.INVALID_ARGUMENT: 1}, 1)
    assert figures.writes.node_failures == figures.reads.node_failures == 0
    dispatcher.drain()
    await dispatcher.execute([put_call(1)])
    assert outcome(figures.writes) == (1, {Code.INVALID_ARGUMENT: 2, Code.UNAVAILABLE: 1}, 1)
    assert (figures.writes.count, figures.writes.node_failures) == (4, 1)


async def test_what_the_state_says_is_an_error_of_the_call(dispatcher: Dispatcher) -> None:
    future = GetRequest(key=b"k", revision=9)
    await dispatcher.execute([Call(id=1, get=future), Call(id=2, get=GetRequest(key=b"k"))])
    twice = PutRequest(key=b"k", value=b"v")
    twice.origin.client_id, twice.origin.sequence = 7, 1
    await dispatcher.execute([Call(id=1, put=twice)])
    figures = figures_of(dispatcher)
    assert outcome(figures.reads) == (1, {Code.OUT_OF_RANGE: 1}, 2)
    assert outcome(figures.writes) == (0, {Code.FAILED_PRECONDITION: 1}, 1)
    assert figures.reads.node_failures == figures.writes.node_failures == 0


async def test_reads_are_timed_when_all_of_a_message_are_made(dispatcher: Dispatcher) -> None:
    emitted = list[Iterable[Answer]]()
    calls = [Call(id=number, get=GetRequest(key=b"k")) for number in (1, 2)]
    dispatcher.dispatch(calls, emitted.append)
    await eventually(lambda: emitted)
    answers = iter(emitted[0])
    next(answers)
    next(answers)
    assert figures_of(dispatcher).reads.seconds.count == 0
    assert next(answers, None) is None
    assert figures_of(dispatcher).reads.seconds.count == 2


async def test_a_list_that_takes_long_is_timed_at_its_end(dispatcher: Dispatcher) -> None:
    await dispatcher.execute([put_call(1)])
    counting = Call(id=1, list=ListRequest(count=True))
    replies = await dispatcher.execute([counting, Call(id=2, get=GetRequest(key=b"1"))])
    assert len(replies) == 2
    assert outcome(figures_of(dispatcher).reads) == (2, {}, 2)


async def test_a_node_that_does_not_lead_refuses() -> None:
    async with DrivenNode() as n1:
        dispatcher = Dispatcher(n1.group)
        await dispatcher.execute([put_call(1), Call(id=2, get=GetRequest(key=b"k"))])
    figures = figures_of(dispatcher)
    assert outcome(figures.writes) == (0, {Code.UNAVAILABLE: 1}, 0)
    assert outcome(figures.reads) == (0, {Code.UNAVAILABLE: 1}, 0)


async def test_what_leadership_takes_along_has_its_time_and_its_error() -> None:
    """The write may be committed yet, and the reads are not."""
    async with DrivenNode() as n1:
        await n1.lead()
        dispatcher, figures = Dispatcher(n1.group), n1.group._figures
        waiting = asyncio.ensure_future(
            dispatcher.execute([put_call(1), Call(id=2, get=GetRequest(key=b"k"))])
        )
        await eventually(lambda: n1.group.proposals_pending)
        n1.group.close("the test wants it")
        await waiting
        assert n1.group.proposals_pending == 0
        assert figures.proposals_failed == 1
    figures = figures_of(dispatcher)
    assert outcome(figures.writes) == (0, {Code.ABORTED: 1}, 1)
    assert outcome(figures.reads) == (0, {Code.UNAVAILABLE: 1}, 1)


# The log and the state.


async def test_entries_syncs_and_batches_are_counted() -> None:
    async with DrivenNode(voters=1) as n1:
        await eventually(lambda: n1.group.machine.applied == 1)
        figures = n1.driver._figures
        before = figures.sync.count, figures.entries_per_sync.total
        await Dispatcher(n1.group).execute([put_call(1), put_call(2), put_call(3)])
        assert figures.sync.count == before[0] + 1
        assert figures.entries_per_sync.total == before[1] + 1
        group = n1.group._figures
        assert (group.commands_per_entry.count, group.commands_per_entry.total) == (1, 3)
        assert group.apply.count == group.entries_per_apply.count == 2  # with the leader's own
        assert group.entries_per_apply.total == 2


# Round trips.


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(round_trips_module, "clock", clock)
    return clock


def stamped(trips: RoundTrips) -> PeerNotice:
    notice = PeerNotice()
    trips.stamp(notice)
    return notice


def test_a_round_trip_is_measured_without_what_the_peer_held(at: Clock) -> None:
    here, there = RoundTrips(), RoundTrips()
    question = stamped(here)
    at.seconds += 0.010
    assert there.hear(question) is None
    at.seconds += 5.0
    answer = stamped(there)
    at.seconds += 0.020
    assert here.hear(answer) == pytest.approx(0.030)
    at.seconds += 1.0
    assert there.hear(stamped(here)) == pytest.approx(0.020)  # which took no time back


def test_a_question_is_answered_once(at: Clock) -> None:
    here, there = RoundTrips(), RoundTrips()
    there.hear(stamped(here))
    assert stamped(there).echo_us
    assert not stamped(there).echo_us


def test_a_lost_answer_is_no_measurement(at: Clock) -> None:
    here, there = RoundTrips(), RoundTrips()
    there.hear(stamped(here))
    stamped(there)
    at.seconds += 3.0
    there.hear(stamped(here))
    at.seconds += 0.5
    assert here.hear(stamped(there)) == pytest.approx(0.0)


def test_what_an_earlier_process_has_asked_is_not_measured(at: Clock) -> None:
    before, there = RoundTrips(), RoundTrips()
    there.hear(stamped(before))
    at.seconds += 1.0
    here = RoundTrips()
    assert here.hear(stamped(there)) is None


def test_an_answer_from_before_its_question_is_not_measured(at: Clock) -> None:
    here = RoundTrips()
    sent = stamped(here).clock_us
    assert here.hear(PeerNotice(echo_us=sent + 1_000_000)) is None
    assert here.hear(PeerNotice(echo_us=sent, held_us=1)) is None
