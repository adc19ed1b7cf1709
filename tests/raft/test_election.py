"""Elections beyond the paper's figure 2: pre-vote, leases, check-quorum, transfer of leadership."""

import pytest

from kvorum_node.raft.messages import AppendEntries, Message, RequestVote, TimeoutNow
from kvorum_node.raft.types import NodeId, NotLeading
from tests.support.raft_group import (
    ELECTION_TICKS,
    HEARTBEAT_TICKS,
    Group,
    Host,
    as_leader,
    is_candidate,
    is_follower,
    is_leader,
)
from tests.support.raft_messages import (
    append,
    entries,
    heartbeat,
    heartbeat_reply,
    request_vote,
    timeout_now,
    vote,
)

LONGEST_TIMEOUT = ELECTION_TICKS * 3 // 2


# Pre-vote (dissertation, section 9.6).


def test_a_pre_vote_changes_neither_the_candidates_term_nor_its_vote() -> None:
    host = Host(term=3, vote=2)

    host.tick(host.raft.election_timeout)

    assert is_candidate(host.raft, pre=True)
    assert {message.term for message in host.drain()} == {4}
    assert (host.raft.term, host.raft.vote) == (3, 2)


def test_a_pre_vote_is_granted_to_all_who_could_win_and_binds_nobody() -> None:
    host = Host(voters=4, term=3)

    said = host.ask(*(request_vote(4, sender=sender, pre=True) for sender in (2, 3, 4)))

    assert said == [vote(4, pre=True, sender=1, to=to) for to in (2, 3, 4)]
    assert (host.raft.term, host.raft.vote) == (3, None)


def test_a_pre_vote_is_granted_despite_a_vote_in_the_current_term() -> None:
    """The question is about the next term, in which the member has not voted."""
    host = Host(term=3, vote=2)

    assert host.ask(request_vote(4, sender=3, pre=True)) == [vote(4, pre=True, sender=1, to=3)]


def test_a_pre_vote_for_the_members_own_term_meets_its_vote() -> None:
    host = Host(term=3, vote=2)

    assert host.ask(request_vote(3, sender=3, pre=True)) == [
        vote(3, granted=False, pre=True, sender=1, to=3)
    ]


def test_replies_of_the_other_stage_do_not_count() -> None:
    host = Host(voters=3, term=3)
    host.stand()
    assert (is_candidate(host.raft), host.raft.term) == (True, 4)
    host.step(vote(4, pre=True))
    assert is_candidate(host.raft)

    host.tick(host.raft.election_timeout)
    assert is_candidate(host.raft, pre=True)
    host.step(vote(4, sender=2))
    assert is_candidate(host.raft, pre=True)


def test_a_pre_vote_granted_for_an_older_term_does_not_count() -> None:
    """A delayed consent to stand in a term that has begun meanwhile says nothing of the next."""
    host = Host(voters=3, term=3)
    host.tick(host.raft.election_timeout)
    host.drain()
    host.follow(leader=3, term=4)
    host.tick(host.raft.election_timeout)
    assert is_candidate(host.raft, pre=True)

    host.step(vote(4, pre=True))  # asked for in term 3
    assert is_candidate(host.raft, pre=True)
    host.step(vote(5, pre=True, sender=3))
    assert is_candidate(host.raft)


# A lease: whoever hears a leader disregards candidates (dissertation, section 4.2.3).


@pytest.mark.parametrize("pre", [True, False])
def test_a_follower_that_hears_its_leader_disregards_candidates(pre: bool) -> None:
    host = Host(term=1)
    host.follow(leader=3, term=1)
    request = request_vote(9, "9@9", pre=pre)

    host.tick(ELECTION_TICKS - 1)
    assert host.ask(request) == []
    assert (host.raft.term, host.raft.leader) == (1, 3)

    host.tick()
    assert host.ask(request) == [vote(9, pre=pre, sender=1, to=2)]


@pytest.mark.parametrize("pre", [True, False])
def test_a_leader_disregards_candidates(pre: bool) -> None:
    host = Host()
    host.lead()

    assert host.ask(request_vote(9, "9@9", pre=pre)) == []
    assert is_leader(host.raft)


def test_an_election_that_the_leader_wants_is_not_disregarded() -> None:
    follower, leader = Host(term=1), Host()
    follower.follow(leader=3, term=1)
    leader.lead()

    for host in (follower, leader):
        assert host.ask(request_vote(2, "9@9", transfer=True)) == [vote(2, sender=1, to=2)]
        assert host.raft.term == 2


def test_a_follower_refuses_other_candidates_in_the_term_of_its_leader() -> None:
    """It need not have voted for the leader: that the term has one is reason enough."""
    host = Host(term=2)
    host.follow(leader=3, term=2)
    host.tick(ELECTION_TICKS)

    assert host.ask(request_vote(2, "9@2")) == [vote(2, granted=False, sender=1, to=2)]


def test_a_candidate_answers_other_candidates() -> None:
    host = Host(term=1)
    host.stand()

    assert host.ask(request_vote(9, "1@1")) == [vote(9, sender=1, to=2)]
    assert is_follower(host.raft)


def test_a_vote_delays_the_voters_own_candidacy() -> None:
    """Whoever has just voted gives the candidate the time to win."""
    host = Host(term=1)
    host.tick(host.raft.election_timeout - 1)

    host.ask(request_vote(1))
    host.tick()

    assert is_follower(host.raft)
    host.tick(host.raft.election_timeout - 1)
    assert is_candidate(host.raft, pre=True)


# Members stuck in a higher term.


@pytest.mark.parametrize("message", [append(1, "1@1"), heartbeat(1)])
def test_a_leader_of_an_older_term_is_told_the_newer_one(message: Message) -> None:
    host = Host(log="1@1", term=4)

    assert host.ask(message) == [heartbeat_reply(4, sender=1, to=2)]
    assert is_follower(host.raft, leader=None)


def test_a_pre_candidate_of_an_older_term_is_told_the_newer_one() -> None:
    host = Host(term=4)

    assert host.ask(request_vote(2, "9@9", pre=True)) == [
        vote(4, granted=False, pre=True, sender=1, to=2)
    ]


# Check-quorum (section 6.2 of the dissertation).


@pytest.mark.parametrize("voters", [2, 3, 4, 5])
def test_a_leader_that_hears_no_majority_steps_down_within_two_election_time_outs(
    voters: int,
) -> None:
    group = Group.of(voters)
    group.elect(1)
    group.tick(ELECTION_TICKS // 2)
    heard = range(2, (voters + 1) // 2 + (voters % 2 == 0))  # with n1, one less than a majority
    for node in set(group.hosts) - {1, *heard}:
        group.isolate(node)

    group.tick(2 * ELECTION_TICKS, 1, *heard)

    assert not group[1].leads
    with pytest.raises(NotLeading):
        group[1].raft.propose(b"x")


@pytest.mark.parametrize("voters", [1, 2, 3, 4, 5])
def test_a_leader_that_hears_a_majority_stays(voters: int) -> None:
    group = Group.of(voters)
    if voters == 1:
        group.tick(LONGEST_TIMEOUT)
    else:
        group.elect(1)
    term = group[1].raft.term
    group.isolate(*range(voters // 2 + 2, voters + 1))

    group.tick(10 * ELECTION_TICKS)

    assert 1 in group.leaders
    assert group[1].raft.term == term


def test_any_answer_is_a_sign_of_life() -> None:
    host = Host()
    host.lead_established()
    for _ in range(10):
        host.tick(ELECTION_TICKS - 1)
        host.accept(1, by=[3])
        host.tick()
        assert is_leader(host.raft)
    host.tick(ELECTION_TICKS)
    assert is_follower(host.raft)


def test_a_leader_that_steps_down_for_want_of_a_quorum_keeps_its_term_and_vote() -> None:
    host = Host()
    host.lead()

    host.tick(2 * ELECTION_TICKS)

    assert is_follower(host.raft, leader=None)
    assert (host.raft.term, host.raft.vote) == (1, 1)


# Partitions in one direction.


# How long a group is without a leader.


@pytest.mark.parametrize("voters", [3, 5])
def test_a_lost_leader_is_replaced_within_two_election_time_outs(voters: int) -> None:
    """In most cases; a split vote, which takes longer, is soon repeated."""
    took = []
    for seed in range(100):
        group = Group.of(voters, seed=seed)
        group.elect(1)
        group[1].crash()
        ticks = 0
        while not group.leaders:
            group.tick()
            ticks += 1
        took.append(ticks)

    assert min(took) > ELECTION_TICKS
    assert sum(ticks <= 2 * ELECTION_TICKS for ticks in took) >= 95
    assert max(took) <= 4 * ELECTION_TICKS


@pytest.mark.parametrize("voters", [1, 2, 3, 4, 5, 7])
def test_a_group_of_any_size_elects_a_leader(voters: int) -> None:
    for seed in range(20):
        group = Group.of(voters, seed=seed)
        for _ in range(5 * ELECTION_TICKS):
            group.tick()
            if group.leaders:
                break
        assert len(group.leaders) == 1


def test_a_member_that_is_no_voter_does_not_stand() -> None:
    host = Host(node=9, voters=3)
    host.tick(10 * LONGEST_TIMEOUT)
    host.step(timeout_now(0, to=9))

    assert is_follower(host.raft)
    assert host.drain() == []


def test_a_member_can_be_told_to_stand_at_once() -> None:
    host = Host()
    host.raft.campaign()
    assert is_candidate(host.raft, pre=True)
    assert len([one for one in host.drain() if isinstance(one, RequestVote)]) == 2

    leader = Host()
    leader.lead()
    leader.raft.campaign()
    assert is_leader(leader.raft)


# Transfer of leadership (dissertation, section 3.10).


def test_leadership_passes_to_an_up_to_date_member_at_once() -> None:
    group = Group.of(3)
    group.elect(1)
    group.propose(1)
    term = group[1].raft.term

    group[1].raft.transfer_leadership(NodeId(3))
    group.run()

    assert group.leaders == [3]
    assert group.terms == [term + 1] * 3


def test_proposals_and_reads_are_refused_during_a_transfer() -> None:
    """The target must reach the end of the log, which therefore must not move."""
    host = Host()
    host.lead_established()
    host.raft.transfer_leadership(NodeId(2))

    with pytest.raises(NotLeading):
        host.raft.propose(b"x")
    with pytest.raises(NotLeading):
        host.raft.read_index(1)
    assert host.raft.log.last_index == 1


def test_a_transfer_that_does_not_succeed_is_given_up() -> None:
    group = Group.of(3)
    group.elect(1)
    group.isolate(3)
    group[1].raft.transfer_leadership(NodeId(3))

    group.tick(ELECTION_TICKS - 1)
    with pytest.raises(NotLeading):
        group[1].raft.propose(b"x")
    group.tick()

    where = group.propose(1)
    assert group[1].raft.log.committed == where.index
    group.heal()
    group.tick(ELECTION_TICKS)
    assert group.leaders == [1]


def test_the_target_is_told_once() -> None:
    host = Host()
    host.lead_established()
    host.raft.transfer_leadership(NodeId(3))

    said = host.drain()
    host.tick(HEARTBEAT_TICKS)
    said += host.drain()

    assert [message for message in said if isinstance(message, TimeoutNow)] == [
        timeout_now(1, sender=1, to=3)
    ]


@pytest.mark.parametrize("target", [1, 9])
def test_leadership_passes_only_to_another_voter(target: int) -> None:
    host = Host()
    host.lead_established()

    with pytest.raises(ValueError, match="is not another voter"):
        host.raft.transfer_leadership(NodeId(target))
    host.raft.propose(b"x")


def test_a_transfer_gets_through_the_followers_leases() -> None:
    """All of them heard the old leader a moment ago."""
    group = Group.of(5)
    group.elect(1)
    group.tick(HEARTBEAT_TICKS)
    assert all(is_follower(group[node].raft, leader=1) for node in (2, 3, 4, 5))

    group[1].raft.transfer_leadership(NodeId(4))
    group.run()

    assert group.leaders == [4]


def test_the_old_leader_follows_the_new_one_and_loses_its_transfer() -> None:
    group = Group.of(3)
    group.elect(1)
    group[1].raft.transfer_leadership(NodeId(2))
    group.run()
    assert is_follower(group[1].raft, leader=2)

    group[2].raft.transfer_leadership(NodeId(1))
    group.run()

    assert as_leader(group[1].raft).transfer is None
    group.propose(1)


def test_entries_taken_before_a_transfer_are_kept_by_it() -> None:
    group = Group.of(3)
    group.elect(1)
    group[1].raft.propose(b"last words")
    group[1].raft.transfer_leadership(NodeId(2))
    group.run()
    group.tick(HEARTBEAT_TICKS)

    assert group.leaders == [2]
    for host in group.hosts.values():
        assert b"last words" in [entry.data for entry in host.applied]


def test_a_second_leaders_append_in_ones_own_term_is_not_taken() -> None:
    """It cannot happen; if it did, the leader's own log would still be append-only."""
    host = Host()
    host.lead()

    said = host.ask(append(1, "0@0", entries("1@1", data=b"other")))

    assert is_leader(host.raft)
    assert host.raft.log.entries(host.raft.log.first_index, 1)[0].data == b""
    assert not any(isinstance(message, AppendEntries) for message in said)


def test_who_is_no_voter_never_stands_and_forgets_a_leader_that_is_silent() -> None:
    """Or else it would send clients to a dead leader for as long as no other one is found."""
    host = Host(4, 3)
    host.follow(leader=1, term=1)

    host.tick(2 * ELECTION_TICKS)

    assert is_follower(host.raft)
    assert host.drain() == []
    assert host.raft.term == 1
