"""Raft, section 5.4: safety. Who may lead, and what a leader may call committed."""

import pytest

from tests.support.raft_group import Group, Host
from tests.support.raft_messages import accepted, append, request_vote, vote, whole, written


@pytest.mark.parametrize("log", ["1@1", "1@1 2@2"])
@pytest.mark.parametrize("pre", [True, False])
def test_5_4_1_a_vote_request_says_where_the_candidates_log_ends(log: str, pre: bool) -> None:
    """It goes to all the others, with the last index and the last term."""
    host = Host()
    host.ask(append(2, "0@0", log))
    last = log.rsplit(maxsplit=1)[-1]

    host.tick(host.raft.election_timeout)
    said = host.drain() if pre else host.ask(vote(3, pre=True))[-2:]

    assert said == [
        request_vote(3, last, sender=1, to=2, pre=pre),
        request_vote(3, last, sender=1, to=3, pre=pre),
    ]


@pytest.mark.parametrize(
    ("log", "candidate", "granted"),
    [
        # Logs that end in the same term: the longer one is more up to date.
        ("1@1", "1@1", True),
        ("1@1", "2@1", True),
        ("1@1 2@1", "1@1", False),
        ("", "0@0", True),
        ("1@1", "0@0", False),
        # The candidate's ends in the later term: however short.
        ("1@1", "1@2", True),
        ("1@1", "2@2", True),
        ("1@1 2@1", "1@2", True),
        # The voter's does: however short.
        ("1@2", "1@1", False),
        ("1@2", "2@1", False),
        ("1@2 2@2", "1@1", False),
    ],
)
@pytest.mark.parametrize("pre", [True, False])
def test_5_4_1_a_member_refuses_a_candidate_whose_log_is_less_up_to_date(
    log: str, candidate: str, granted: bool, pre: bool
) -> None:
    """So the winner's log holds every committed entry: later last term first, then length."""
    host = Host(voters=2, log=log, term=2)

    said = host.ask(request_vote(3, candidate, pre=pre))

    # The grant of a pre-vote names the term it is for; a refusal, the member's own.
    term = 2 if pre and not granted else 3
    assert said == [vote(term, granted=granted, pre=pre, sender=1, to=2)]
    assert host.disk.hard_state.vote == (2 if granted and not pre else None)


@pytest.mark.parametrize(("matched", "committed"), [(1, 0), (2, 0), (3, 3), (4, 4)])
def test_5_4_2_only_entries_of_the_leaders_own_term_are_committed_by_counting(
    matched: int, committed: int
) -> None:
    """Copies of an older term's entry, even on all members, do not commit it."""
    host = Host(log="1@1 2@2", term=2)
    host.lead()
    host.raft.propose(b"some data")
    host.drain()
    assert whole(host.raft.log) == "1@1 2@2 3@3 4@3"

    host.accept(matched)

    assert host.raft.log.committed == committed


def test_5_4_2_figure_8_an_old_entry_on_a_majority_may_still_be_replaced() -> None:
    """Case (d): counting its copies would have committed what is lost here.

    S1 led term 2 and 4, S5 term 3. In term 4, S1 has brought 2@2 to a majority, and
    crashes before an entry of term 4 is there too: S5 may be elected, and replaces it.
    """
    group = Group.of(5, logs={1: "1@1 2@2", 2: "1@1 2@2", 3: "1@1", 4: "1@1", 5: "1@1 2@3"}, term=3)
    # (c) S1 leads term 4. Its own entry of that term reaches nobody; S3 gets 2@2.
    group.isolate(4, 5)
    s1 = group[1]
    s1.stand()
    s1.step(vote(4, sender=2), vote(4, sender=3))
    s1.drain()
    group[3].ask(append(4, "1@1", "2@2", sender=1, to=3))
    s1.ask(accepted(4, 2, sender=2), accepted(4, 2, sender=3))
    assert [written(group[node].disk.synced_log) for node in (1, 2, 3)] == [
        "1@1 2@2 3@4",
        "1@1 2@2",
        "1@1 2@2",
    ]
    assert s1.raft.log.committed == 0

    # (d) S1 is gone; S5 wins with the votes of S2, S3 and S4, for 2@3 beats 2@2.
    s1.crash()
    group.heal()
    group[3].tick(10)
    group.elect(5)
    group.tick(2)

    survivors = [host for host in group.hosts.values() if host.up]
    assert {written(host.disk.synced_log) for host in survivors} == {"1@1 2@3 3@5"}
    assert {written(host.applied) for host in survivors} == {"1@1 2@3 3@5"}


def test_5_4_2_figure_8_an_entry_of_the_own_term_makes_the_older_ones_safe() -> None:
    """Case (e): with 3@4 on a majority, 2@2 is committed behind it, and S5 cannot win."""
    group = Group.of(
        5,
        logs={1: "1@1 2@2", 2: "1@1 2@2", 3: "1@1", 4: "1@1", 5: "1@1 2@3"},
        term=3,
        seed=8,
    )
    group.isolate(4, 5)
    group.elect(1)
    assert group[1].raft.log.committed == 3
    assert written(group[1].applied) == "1@1 2@2 3@4"

    group[1].crash()
    group.heal()
    for _ in range(100):
        group.tick()
        assert 5 not in group.leaders
    assert {written(group[node].applied[:3]) for node in (2, 3, 4, 5)} == {"1@1 2@2 3@4"}


def test_5_4_3_a_new_leader_holds_every_committed_entry() -> None:
    """Leader completeness, seen from the election: only who has the entry can win."""
    group = Group.of(5)
    group.elect(1)
    group.isolate(4, 5)
    where = group.propose(1)
    assert group[1].raft.log.committed == where.index
    group[1].crash()
    group.heal()

    for node in (4, 5):
        group.stand(node)
        assert group.leaders == []
    group.stand(2)
    assert group.leaders == [2]
    assert group[2].raft.log.matches(where)
