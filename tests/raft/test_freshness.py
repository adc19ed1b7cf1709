"""How far behind a follower may be, by what it has asked and what came back."""

from dataclasses import replace

from kvorum_node.raft.freshness import MAX_PROMISES, Freshness
from kvorum_node.raft.messages import Heartbeat, HeartbeatReply
from kvorum_node.raft.types import Index, NodeId
from tests.support.raft_group import HEARTBEAT_TICKS, Group, Host
from tests.support.raft_messages import append, heartbeat


def follower(*, clock: int) -> Host:
    host = Host()
    host.raft.keep_time(clock)
    return host


def test_a_follower_says_what_its_clock_shows_and_the_leader_says_it_back() -> None:
    group = Group.of(3)
    group.elect(1)
    group[2].raft.keep_time(700)
    group.tick(2 * HEARTBEAT_TICKS)
    assert group[2].raft.freshness.as_of == 700
    group[2].raft.keep_time(900)
    group.tick(2 * HEARTBEAT_TICKS)
    assert group[2].raft.freshness.as_of == 900


def test_the_leader_says_how_far_it_has_committed_whoever_lags() -> None:
    host = Host()
    host.lead_established()
    host.raft.propose(b"x")
    host.drain()
    host.accept(by=[2])
    host.drain()
    host.tick(HEARTBEAT_TICKS)
    said = {one.recipient: one for one in host.drain() if isinstance(one, Heartbeat)}
    assert (said[NodeId(3)].commit, said[NodeId(3)].committed) == (1, 2)


def test_the_reply_carries_the_clock() -> None:
    host = follower(clock=500)
    replies = [one for one in host.ask(heartbeat(1)) if isinstance(one, HeartbeatReply)]
    assert [one.clock for one in replies] == [500]


def test_it_is_as_new_as_its_question_and_not_as_the_answer() -> None:
    """Between the two, answer and process may have been held up for any time."""
    host = follower(clock=500)
    host.ask(append(1, log="1@1", commit=1))
    host.raft.keep_time(10_000)
    host.ask(replace(heartbeat(1), committed=Index(1), echo=500))
    assert host.raft.freshness.as_of == 500


def test_it_is_no_newer_than_what_it_has_applied() -> None:
    """The leader's commit index counts, and not the part of it that has got here."""
    host = follower(clock=500)
    host.ask(append(1, log="1@1", commit=1))
    host.ask(replace(heartbeat(1, commit=1), committed=Index(3), echo=400))
    assert host.raft.freshness.as_of is None
    host.ask(append(1, "1@1", "2@1 3@1", commit=2))
    assert host.raft.freshness.as_of is None
    host.ask(heartbeat(1, commit=3))
    assert host.raft.freshness.as_of == 400


def test_a_leader_that_says_nothing_of_it_proves_nothing() -> None:
    host = follower(clock=500)
    host.ask(replace(heartbeat(1), committed=Index(0), echo=500))
    host.ask(replace(heartbeat(1), committed=Index(1), echo=0))
    assert host.raft.freshness.as_of is None


def test_what_is_kept_for_a_state_that_is_behind_is_bounded() -> None:
    freshness = Freshness()
    for number in range(1, 10 * MAX_PROMISES):
        freshness.learn(Index(number), number)
    assert len(freshness._news) == MAX_PROMISES
    freshness.applied(Index(10 * MAX_PROMISES))
    assert freshness.as_of == MAX_PROMISES
    freshness.learn(Index(1), 10 * MAX_PROMISES)
    freshness.applied(Index(10 * MAX_PROMISES))
    assert freshness.as_of == 10 * MAX_PROMISES


def test_old_answers_take_nothing_back() -> None:
    freshness = Freshness()
    freshness.learn(Index(5), 50)
    freshness.learn(Index(4), 40)
    freshness.applied(Index(5))
    assert freshness.as_of == 50
    freshness.learn(Index(4), 40)
    freshness.applied(Index(5))
    assert freshness.as_of == 50
