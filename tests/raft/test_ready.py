"""The law of Ready: what may leave at once, what has to wait for the disk, and what counts when.

A host that is between the two halves of the law, `take` and `complete`, has written
and not fsynced. A crash then must not be able to take back anything that was said.
"""

from collections.abc import Callable

import pytest

from kvorum_node.raft.configuration import AddLearner
from kvorum_node.raft.messages import AppendEntries, Heartbeat, Message
from kvorum_node.raft.types import HardState, Index, NodeId, Settings, Term
from tests.support.raft_group import ELECTION_TICKS, Group, Host, is_follower, is_leader
from tests.support.raft_messages import (
    accepted,
    append,
    entries,
    heartbeat,
    heartbeat_reply,
    of_terms,
    rejected,
    request_vote,
    timeout_now,
    vote,
    whole,
    written,
)


def to_both(make: Callable[..., Message], *args: object, **named: object) -> tuple[Message, ...]:
    return tuple(make(*args, **named, sender=1, to=to) for to in (2, 3))


# What leaves when.


def test_a_leaders_appends_and_heartbeats_leave_at_once() -> None:
    """They promise nothing: the leader's own fsync goes on at the same time."""
    host = Host()
    host.stand()
    host.step(vote(1))

    ready = host.raft.ready()

    assert ready.messages == to_both(heartbeat, 1) + to_both(append, 1, "0@0", "1@1")
    assert ready.promises == ()
    assert written(ready.entries) == "1@1"
    assert ready.must_sync


def test_the_word_to_take_over_leaves_at_once() -> None:
    host = Host()
    host.lead_established()
    host.raft.transfer_leadership(NodeId(3))

    ready = host.raft.ready()

    assert ready.messages == (timeout_now(1, sender=1, to=3),)
    assert ready.promises == ()
    assert not ready.must_sync


@pytest.mark.parametrize(
    ("message", "answer", "must_sync"),
    [
        pytest.param(request_vote(5, "9@4"), vote(5, sender=1, to=2), True, id="vote"),
        pytest.param(
            request_vote(5), vote(5, granted=False, sender=1, to=2), True, id="refusal, new term"
        ),
        pytest.param(
            request_vote(4), vote(4, granted=False, sender=1, to=2), False, id="refusal, same term"
        ),
        pytest.param(
            request_vote(5, "9@4", pre=True),
            vote(5, pre=True, sender=1, to=2),
            False,
            id="pre-vote",
        ),
        pytest.param(
            append(4, "1@1", "2@4"), accepted(4, 2, sender=1, to=2), True, id="entries accepted"
        ),
        pytest.param(append(4, "1@1"), accepted(4, 1, sender=1, to=2), False, id="nothing new"),
        pytest.param(
            append(4, "8@4"), rejected(4, 8, "1@1", sender=1, to=2), False, id="rejection"
        ),
        pytest.param(
            append(5, "1@1"), accepted(5, 1, sender=1, to=2), True, id="acceptance, new term"
        ),
        pytest.param(
            heartbeat(4, read_round=3),
            heartbeat_reply(4, read_round=3, sender=1, to=2),
            False,
            id="heartbeat",
        ),
        pytest.param(
            heartbeat(5), heartbeat_reply(5, sender=1, to=2), True, id="heartbeat, new term"
        ),
        pytest.param(
            heartbeat(3), heartbeat_reply(4, sender=1, to=2), False, id="heartbeat of an old term"
        ),
    ],
)
def test_every_answer_waits_for_the_disk(
    message: Message, answer: Message, must_sync: bool
) -> None:
    """And the disk is waited for exactly when the answer rests on something new."""
    host = Host(log="1@1", term=4)

    host.step(message)
    ready = host.raft.ready()

    assert ready.messages == ()
    assert ready.promises == (answer,)
    assert ready.must_sync is must_sync


def test_an_only_voter_tells_nobody_of_its_term_before_that_is_on_the_disk() -> None:
    """It stands and leads at once. Were its learner told, and then its term forgotten in a crash,
    it could lead the same term again, with another entry in the same place."""
    host = Host(voters=1)
    host.lead_established()
    host.raft.change_members([AddLearner(NodeId(2))])
    host.drain()
    host.crash()
    host.restart()

    while not host.leads:
        host.tick()
    host.raft.propose(b"x")

    assert host.take() == ()
    assert {type(message) for message in host.complete()} == {AppendEntries, Heartbeat}


def test_a_candidates_requests_wait_for_its_own_vote_to_be_on_the_disk() -> None:
    host = Host()
    host.step(timeout_now(0))

    ready = host.raft.ready()

    assert ready.messages == ()
    assert ready.promises == to_both(request_vote, 1, transfer=True)
    assert ready.hard_state == HardState(Term(1), NodeId(1), Index(0))
    assert ready.must_sync


def test_a_commit_index_is_written_with_the_next_entries_and_not_before() -> None:
    host = Host(log="1@1 2@1", term=1)
    host.follow(leader=2, term=1)

    host.step(heartbeat(1, commit=2))
    ready = host.raft.ready()

    assert ready.hard_state is None
    assert not ready.must_sync
    host.raft.advance(ready)

    host.step(append(1, "2@1", "3@1", commit=2))
    assert host.raft.ready().hard_state == HardState(Term(1), None, Index(2))


def test_a_hard_state_that_has_not_changed_is_not_written_again() -> None:
    host = Host(term=3, vote=2)

    host.step(heartbeat(3))
    assert host.cycle().hard_state is None
    host.step(append(3, "0@0", "1@3", commit=1))
    assert host.cycle().hard_state == HardState(Term(3), NodeId(2), Index(1))
    host.step(heartbeat(3, commit=1))
    assert host.cycle().hard_state is None


def test_a_new_term_is_written_although_nobody_is_answered() -> None:
    host = Host()
    host.lead_established()

    host.step(heartbeat_reply(5))

    assert host.drain() == []
    assert host.disk.synced_hard_state == HardState(Term(5), None, Index(1))


# Crashes between the write and the fsync.


def test_a_candidate_that_crashes_before_its_fsync_has_asked_nobody() -> None:
    host = Host()
    host.step(timeout_now(0))
    assert host.take() == ()

    host.crash()
    host.restart()

    assert host.raft.term == 0
    assert host.ask(request_vote(1, sender=3)) == [vote(1, sender=1, to=3)]


# The leader's own disk.


def test_a_leader_counts_itself_only_after_its_own_fsync() -> None:
    """Sent before the fsync, an entry is on one follower's disk of three: that is no majority."""
    host = Host()
    host.lead_established()
    host.raft.propose(b"x")
    host.take()

    host.accept(2, by=[2])
    assert host.raft.log.committed == 1

    host.complete()
    assert host.raft.log.committed == 2


def test_a_majority_of_followers_commits_without_the_leaders_disk() -> None:
    host = Host()
    host.lead_established()
    host.raft.propose(b"x")
    host.take()

    host.accept(2)

    assert host.raft.log.committed == 2
    host.complete()
    assert written(host.cycle().committed) == "2@1"


def test_a_leader_alone_commits_by_its_own_fsync() -> None:
    host = Host(voters=1)
    host.lead()
    host.raft.propose(b"x")
    host.take()
    assert host.raft.log.committed == 1

    host.complete()

    assert host.raft.log.committed == 2


def test_entries_that_arrive_during_an_fsync_are_not_covered_by_it() -> None:
    host = Host()
    host.step(append(1, "0@0", "1@1"))
    host.take()
    host.step(append(1, "1@1", "2@1"))

    promises = host.complete()

    assert promises == (accepted(1, 1, sender=1, to=2),)
    assert host.raft.log.stable_index == 1
    assert written(host.cycle().entries) == "2@1"


# What is handed out.


def test_committed_entries_are_handed_out_once_in_order_in_bounded_portions() -> None:
    log = tuple(entries("1@1 2@1 3@1 4@1 5@1", data=b"xxxx"))
    host = Host(
        log=log, term=1, settings=Settings(election_ticks=10, heartbeat_ticks=2, max_apply_bytes=9)
    )
    host.step(heartbeat(1, commit=5))

    portions = []
    while host.raft.has_ready():
        portions.append(written(host.cycle().committed))

    assert portions == ["1@1 2@1", "3@1 4@1", "5@1"]
    assert written(host.applied) == "1@1 2@1 3@1 4@1 5@1"


def test_one_entry_larger_than_the_portion_is_handed_out_alone() -> None:
    log = (*entries("1@1", data=b"x"), *entries("2@1", data=b"x" * 50), *entries("3@1", data=b"x"))
    host = Host(
        log=log, term=1, settings=Settings(election_ticks=10, heartbeat_ticks=2, max_apply_bytes=9)
    )
    host.step(heartbeat(1, commit=3))

    assert [written(host.cycle().committed) for _ in range(3)] == ["1@1", "2@1", "3@1"]


def test_what_is_committed_is_in_the_same_ready_or_was_written_before() -> None:
    """A follower may learn of an entry and of its commit in one message."""
    host = Host()
    host.step(append(1, "0@0", "1@1 2@1", commit=2))

    ready = host.cycle()

    assert written(ready.entries) == written(ready.committed) == "1@1 2@1"
    assert ready.hard_state == HardState(Term(1), None, Index(2))


def test_nothing_is_ready_when_nothing_has_happened() -> None:
    host = Host()
    host.lead_established()
    assert not host.raft.has_ready()

    host.tick()
    assert not host.raft.has_ready()

    ready = host.raft.ready()
    assert (ready.messages, ready.promises, ready.entries, ready.committed, ready.reads) == (
        (),
    ) * 5
    assert ready.hard_state is None
    assert not ready.must_sync


def test_a_ready_must_be_carried_out_before_the_next_one() -> None:
    host = Host()
    ready = host.raft.ready()
    with pytest.raises(AssertionError):
        host.raft.ready()
    host.raft.advance(ready)
    with pytest.raises(AssertionError):
        host.raft.advance(ready)


def test_a_message_for_another_member_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="has reached n1"):
        Host().step(heartbeat(1, to=3))


# Starting again.


def test_a_member_starts_again_from_its_hard_state_and_its_log() -> None:
    host = Host(log="1@1 2@2 3@2", term=4, vote=3, commit=2)

    raft = host.raft
    assert is_follower(raft)
    assert (raft.term, raft.vote, raft.leader) == (4, 3, None)
    assert (raft.log.committed, raft.log.applied, whole(raft.log)) == (2, 0, "1@1 2@2 3@2")
    ready = host.cycle()
    assert written(ready.committed) == "1@1 2@2"
    assert (ready.hard_state, ready.entries, ready.must_sync) == (None, (), False)


def test_entries_that_the_state_holds_are_not_handed_out_again() -> None:
    """Also when the commit index on the disk is older than the state: it is not fsynced."""
    host = Host(log="1@1 2@2 3@2", term=4, commit=1, applied=2)

    assert host.raft.log.committed == 2
    assert host.drain() == []
    assert host.applied == []
    host.ask(heartbeat(4, commit=3))
    assert written(host.applied) == "3@2"


def test_a_log_of_which_the_beginning_was_cut_starts_again() -> None:
    host = Host(log="8@2 9@3", start="7@2", term=3, commit=8, applied=7)

    assert written(host.cycle().committed) == "8@2"
    assert host.ask(append(3, "9@3", "10@3", commit=10)) == [accepted(3, 10, sender=1, to=2)]
    assert written(host.applied) == "8@2 9@3 10@3"


def test_a_leader_that_restarts_is_a_follower_and_keeps_its_vote() -> None:
    group = Group.of(3)
    group.elect(1)
    group.propose(1)
    term = group[1].raft.term

    group[1].crash()
    group[1].restart()

    assert is_follower(group[1].raft)
    group[1].tick(ELECTION_TICKS)  # before that it votes for nobody at all
    assert (group[1].raft.term, group[1].raft.vote) == (term, 1)
    assert group[1].ask(request_vote(term, "9@9", sender=2)) == [
        vote(term, granted=False, sender=1, to=2)
    ]


def test_a_whole_group_that_restarts_loses_nothing() -> None:
    group = Group.of(3)
    group.elect(1)
    where = group.propose(1, b"kept")
    for host in group.hosts.values():
        host.crash()
        host.restart()

    group.elect(3)
    group.tick(2)

    assert is_leader(group[3].raft)
    for host in group.hosts.values():
        assert [entry.data for entry in host.applied if entry.index == where.index] == [b"kept"]


def test_a_single_member_elects_itself_and_writes_down_that_it_did() -> None:
    host = Host(voters=1, log=of_terms(1), term=1)
    host.tick(host.raft.election_timeout)

    ready = host.cycle()

    assert is_leader(host.raft)
    assert ready.hard_state == HardState(Term(2), NodeId(1), Index(0))
    assert written(ready.entries) == "2@2"
    assert (ready.messages, ready.promises) == ((), ())
    host.drain()
    assert written(host.applied) == "1@1 2@2"
