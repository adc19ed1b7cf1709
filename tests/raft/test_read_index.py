"""Linearizable reads without a log entry: rounds of heartbeats (dissertation, section 6.4)."""

from kvorum_node.raft.messages import Heartbeat
from kvorum_node.raft.read_index import ReadIndex, ReadState
from kvorum_node.raft.types import Index
from tests.support.raft_group import (
    HEARTBEAT_TICKS,
    Host,
    is_follower,
)
from tests.support.raft_messages import heartbeat, heartbeat_reply


def rounds_asked(host: Host) -> list[int]:
    """The read rounds in the heartbeats to n2 that leave now."""
    return [
        message.read_round
        for message in host.drain()
        if isinstance(message, Heartbeat) and message.recipient == 2
    ]


def answered(host: Host) -> list[tuple[tuple[int, ...], int]]:
    host.drain()
    return [(state.requests, state.index) for state in host.reads]


def test_a_read_is_answered_at_the_commit_index_once_a_majority_confirms_the_leader() -> None:
    host = Host(voters=5)
    host.lead_established()
    host.raft.read_index(7)
    assert rounds_asked(host) == [1]

    host.step(heartbeat_reply(1, read_round=1, sender=2))
    assert answered(host) == []

    host.step(heartbeat_reply(1, read_round=1, sender=4))
    assert answered(host) == [((7,), 1)]


def test_a_majority_is_of_members_not_of_answers() -> None:
    host = Host(voters=5)
    host.lead_established()
    host.raft.read_index(7)
    host.drain()

    for _ in range(4):
        host.step(heartbeat_reply(1, read_round=1, sender=2))

    assert answered(host) == []


def test_reads_that_arrive_together_share_a_round() -> None:
    host = Host()
    host.lead_established()
    for request in range(100):
        host.raft.read_index(request)

    assert rounds_asked(host) == [1]
    host.step(heartbeat_reply(1, read_round=1))
    assert answered(host) == [(tuple(range(100)), 1)]


def test_a_read_that_arrives_during_a_round_needs_the_next_one() -> None:
    """An answer to a question from before the read says nothing about the time after it."""
    host = Host()
    host.lead_established()
    host.raft.read_index(1)
    assert rounds_asked(host) == [1]
    host.raft.read_index(2)

    host.step(heartbeat_reply(1, read_round=1))
    assert answered(host) == [((1,), 1)]

    host.step(heartbeat_reply(1, read_round=2, sender=3))
    assert answered(host) == [((1,), 1), ((2,), 1)]


def test_an_answer_to_a_round_says_nothing_of_the_later_ones() -> None:
    host = Host()
    host.lead_established()
    for request in (1, 2):
        host.raft.read_index(request)
        host.drain()

    host.step(
        heartbeat_reply(1, read_round=1, sender=2), heartbeat_reply(1, read_round=1, sender=3)
    )

    assert answered(host) == [((1,), 1)]


def test_answers_that_overtake_one_another_count_as_the_newest() -> None:
    host = Host(voters=5)
    host.lead_established()
    for request in (1, 2):
        host.raft.read_index(request)
        host.drain()

    host.step(heartbeat_reply(1, read_round=2), heartbeat_reply(1, read_round=1))
    host.step(heartbeat_reply(1, read_round=2, sender=3))

    assert answered(host) == [((1,), 1), ((2,), 1)]


def test_an_answer_to_a_round_answers_the_earlier_ones() -> None:
    host = Host()
    host.lead_established()
    for request in (1, 2, 3):
        host.raft.read_index(request)
        host.drain()

    host.step(heartbeat_reply(1, read_round=3))

    assert answered(host) == [((1,), 1), ((2,), 1), ((3,), 1)]


def test_a_read_is_answered_at_the_index_of_its_own_round() -> None:
    """A write that is committed while the round is under way need not be waited for."""
    host = Host()
    host.lead_established()
    host.raft.read_index(1)
    host.drain()
    host.raft.propose(b"x")
    host.drain()
    host.accept(2)
    host.raft.read_index(2)
    host.drain()

    host.step(heartbeat_reply(1, read_round=2))

    assert answered(host) == [((1,), 1), ((2,), 2)]


def test_a_lost_round_is_asked_again_with_the_next_heartbeat() -> None:
    host = Host()
    host.lead_established()
    host.raft.read_index(1)
    assert rounds_asked(host) == [1]

    host.tick(HEARTBEAT_TICKS)
    assert rounds_asked(host) == [1]
    host.step(heartbeat_reply(1, read_round=1))
    assert answered(host) == [((1,), 1)]


def test_answers_of_another_term_confirm_nothing() -> None:
    host = Host()
    host.lead_established()
    host.follow(leader=2, term=2)
    host.lead_established()
    assert host.raft.term == 3
    host.raft.read_index(1)
    host.drain()

    host.step(
        heartbeat_reply(1, read_round=1, sender=2), heartbeat_reply(1, read_round=1, sender=3)
    )
    assert answered(host) == []

    host.step(heartbeat_reply(4, read_round=1))
    assert answered(host) == []
    assert is_follower(host.raft)


def test_reads_under_way_are_dropped_with_the_office() -> None:
    host = Host()
    host.lead_established()
    host.raft.read_index(1)
    host.drain()
    host.raft.read_index(2)

    host.ask(heartbeat(2, sender=3))
    host.step(heartbeat_reply(2, read_round=9), heartbeat_reply(1, read_round=9))
    assert answered(host) == []

    host.lead_established()
    host.step(heartbeat_reply(3, read_round=0))
    assert answered(host) == []


def test_a_single_voter_confirms_itself() -> None:
    host = Host(voters=1)
    host.tick(host.raft.election_timeout)
    host.raft.read_index(1)
    host.raft.read_index(2)

    assert host.cycle().reads == ()  # nothing of its own term is committed yet
    assert answered(host) == [((1, 2), 1)]


def test_rounds_are_confirmed_in_order_and_once() -> None:
    reads = ReadIndex()
    reads.add(1)
    reads.add(2)
    reads.start_round(Index(5), clock=0)
    assert not reads.has_waiting
    reads.add(3)
    reads.start_round(Index(6), clock=0)
    assert reads.newest == 2

    assert reads.confirmed(0) == []
    assert reads.confirmed(1) == [ReadState((1, 2), Index(5))]
    assert reads.confirmed(1) == []
    assert reads.confirmed(9) == [ReadState((3,), Index(6))]
