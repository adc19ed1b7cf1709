"""Changes of members at the leader: what is refused and why, what is appended, who is promoted.

How a group lives through changes is told by tests/scripts/membership/; that quorums
before and after a change have a member in common is computed here for all small groups.
"""

from itertools import combinations

import pytest

from kvorum_node.raft.configuration import (
    AddLearner,
    AddVoter,
    Change,
    Configuration,
    ImpossibleChange,
    Remove,
)
from kvorum_node.raft.messages import AppendEntries, TimeoutNow
from kvorum_node.raft.quorum import is_quorum
from kvorum_node.raft.types import ChangeRefused, Entry, EntryKind, Index, NodeId, NotLeading, Term
from tests.support.raft_group import ELECTION_TICKS, Host, as_leader, is_follower
from tests.support.raft_messages import accepted, append, heartbeat_reply, whole

N1, N2, N3, N4, N5 = (NodeId(node) for node in range(1, 6))


def leader(voters: int = 3) -> Host:
    """n1, which has just committed 1@1."""
    host = Host(voters=voters)
    host.lead_established()
    return host


def leader_with_learner(*, join: bool = False) -> Host:
    """n1, with n4 as a learner by 2@1, which is committed; n4 has nothing yet."""
    host = leader()
    host.raft.change_members([AddLearner(N4, "h4:7100", join=join)])
    host.accept(2, by=[2, 3])
    host.drain()
    return host


def catch_up(host: Host, learner: int = 4) -> None:
    """Let the learner accept the whole log."""
    host.ask(accepted(host.raft.term, host.raft.log.last_index, sender=learner))


def refusal(host: Host, *changes: Change) -> ChangeRefused:
    before = (host.raft.log.last_index, host.raft.configuration)
    with pytest.raises(ChangeRefused) as caught:
        host.raft.change_members(changes)
    assert (host.raft.log.last_index, host.raft.configuration) == before
    return caught.value


# What is appended.


def test_a_change_of_learners_takes_one_entry() -> None:
    host = leader()
    where = host.raft.change_members([AddLearner(N4, "h4:7100")])
    assert (where.index, where.term) == (2, 1)
    assert host.raft.configuration.learners == {4}
    assert host.raft.configuration.addresses[N4] == "h4:7100"
    assert host.raft.committed_configuration.learners == frozenset()

    host.accept()
    host.drain()
    assert host.raft.committed_configuration == host.raft.configuration
    assert [entry.kind for entry in host.applied] == [EntryKind.NOOP, EntryKind.CONFIGURATION]


def test_a_change_of_voters_takes_two_entries_the_second_once_the_first_is_committed() -> None:
    host = leader()
    host.raft.change_members([Remove(N3)])
    assert str(host.raft.configuration) == "voters n1, n2 && n1, n2, n3"

    host.accept(2, by=[2])
    assert str(host.raft.configuration) == "voters n1, n2 && n1, n2, n3"
    host.drain()  # its own disk has the entry now
    assert str(host.raft.configuration) == "voters n1, n2"
    assert str(host.raft.committed_configuration) == "voters n1, n2 && n1, n2, n3"

    host.accept(3, by=[2])
    host.drain()
    assert str(host.raft.committed_configuration) == "voters n1, n2"
    assert whole(host.raft.log) == "1@1 2@1 3@1"


def test_the_entry_carries_the_whole_configuration() -> None:
    host = leader()
    host.raft.change_members([AddLearner(N4, "h4:7100", join=True)])
    [entry] = host.cycle().entries
    assert entry.kind is EntryKind.CONFIGURATION
    assert Configuration.decode(entry.data) == host.raft.configuration


def test_reads_do_not_wait_for_the_answer_of_who_has_left() -> None:
    """Alone, n1 is its own majority: n2 is not listened to any more, and nobody else answers."""
    host = leader(voters=2)
    host.raft.change_members([Remove(N2)])
    host.raft.read_index(7)
    host.drain()
    assert host.reads == []

    host.ask(accepted(1, 2), heartbeat_reply(1, read_round=1))

    assert host.raft.configuration.voters == {1}
    assert [state.requests for state in host.reads] == [(7,)]


def test_who_joins_gets_messages_and_who_leaves_gets_none() -> None:
    host = leader_with_learner()
    assert list(as_leader(host.raft).progress) == [2, 3, 4]
    host.raft.change_members([Remove(N4)])
    assert list(as_leader(host.raft).progress) == [2, 3]
    to = {message.recipient for message in host.drain() if isinstance(message, AppendEntries)}
    assert to == {2, 3}


def test_what_is_known_of_the_others_stays_through_a_change() -> None:
    host = leader()
    host.raft.change_members([Remove(N3)])
    assert as_leader(host.raft).progress[N2].match == 1


# What is refused.


def test_only_a_leader_changes_members() -> None:
    host = Host()
    host.follow(2, 1)
    with pytest.raises(NotLeading):
        host.raft.change_members([Remove(N3)])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ([Remove(N5)], "n5 is no member"),
        ([AddVoter(N2)], "n2 is a voter already"),
        ([AddLearner(N4)], "n4 is a learner already"),
        ([Remove(N1), Remove(N2), Remove(N3)], "no voter would be left"),
        ([AddLearner(N5, "h4:7100")], "h4:7100 is the address of n4"),
        ([], "it would change nothing"),
    ],
)
def test_what_makes_no_sense_is_refused_forced_or_not(changes: list[Change], why: str) -> None:
    host = leader_with_learner()
    error = refusal(host, *changes)
    assert why in str(error)
    assert not error.endangers_quorum
    with pytest.raises(ChangeRefused, match=why):
        host.raft.change_members(changes, force=True)


def test_the_address_of_a_member_does_not_change() -> None:
    """Not by a change of what it is, either: two nodes might both believe to be it."""
    host = leader_with_learner()
    assert "is a member at h4:7100" in str(refusal(host, AddVoter(N4, "elsewhere:7100")))


def test_the_id_of_a_removed_member_is_not_used_again() -> None:
    host = leader_with_learner()
    host.raft.change_members([Remove(N4)])
    host.accept()
    host.drain()
    assert host.raft.configuration.has_removed(N4)

    error = refusal(host, AddLearner(N4, "h4:7100"))
    assert "a new member's number is above 4" in str(error)
    assert host.raft.change_members([AddLearner(N5, "h4:7100")]).index == 4


def test_one_change_at_a_time() -> None:
    host = leader()
    host.raft.change_members([AddLearner(N4)])
    assert "under way" in str(refusal(host, AddLearner(N5)))
    host.accept(2, by=[2, 3])
    host.drain()

    host.raft.change_members([Remove(N3)])
    host.accept(3, by=[2, 3])
    host.drain()  # the first entry is committed, and the second one is not
    assert not host.raft.configuration.is_joint
    assert "under way" in str(refusal(host, AddLearner(N5)))
    host.accept(4, by=[2])
    host.drain()
    host.raft.change_members([AddLearner(N5)])


def test_a_voter_that_has_not_caught_up_must_be_forced() -> None:
    host = leader_with_learner()
    host.ask(accepted(1, 1, sender=4))
    error = refusal(host, AddVoter(N4))
    assert error.endangers_quorum
    assert "n4 has not caught up" in str(error)

    host.raft.change_members([AddVoter(N4)], force=True)
    assert host.raft.configuration.voters == {1, 2, 3, 4}


def test_a_learner_that_was_never_started_cannot_be_made_a_voter_forced_or_not() -> None:
    """It could not be started as one: an empty directory of a voter is one that was lost."""
    host = leader_with_learner()
    for force in (False, True):
        with pytest.raises(ChangeRefused, match="start it first"):
            host.raft.change_members([AddVoter(N4)], force=force)


def test_a_learner_that_has_caught_up_can_be_made_a_voter() -> None:
    host = leader_with_learner()
    catch_up(host)
    host.raft.change_members([AddVoter(N4)])
    assert str(host.raft.configuration) == "voters n1, n2, n3, n4 && n1, n2, n3"


def test_a_learner_that_fell_silent_has_not_caught_up() -> None:
    host = leader_with_learner()
    catch_up(host)
    for _ in range(3 * ELECTION_TICKS):
        host.tick()
        host.ask(heartbeat_reply(1, sender=2), heartbeat_reply(1, sender=3))
    assert refusal(host, AddVoter(N4)).endangers_quorum


def test_a_learner_that_takes_nothing_any_more_has_not_caught_up() -> None:
    """Its disk hangs, say: it answers heartbeats, and acknowledges no entries."""
    host = leader_with_learner()
    catch_up(host)
    host.raft.propose(b"x")
    host.accept(by=[2, 3])
    for _ in range(3 * ELECTION_TICKS):
        host.tick()
        host.ask(*(heartbeat_reply(1, sender=node) for node in (2, 3, 4)))
    assert refusal(host, AddVoter(N4)).endangers_quorum


def test_voters_that_cannot_be_reached_must_not_become_the_majority() -> None:
    """n3 is silent; without n2, it would be one of two."""
    host = leader()
    for _ in range(3 * ELECTION_TICKS):
        host.tick()
        host.ask(heartbeat_reply(1, sender=2))

    error = refusal(host, Remove(N2))
    assert error.endangers_quorum
    assert "n3 cannot be reached" in str(error)

    host.raft.change_members([Remove(N2)], force=True)
    assert host.raft.configuration.voters == {1, 3}


def test_a_leader_that_was_just_elected_takes_nobody_for_alive_whom_it_has_not_heard() -> None:
    """n3 has been dead for long: with n1 removed, n2 would need it, and nobody could lead again."""
    host = Host(node=2)
    host.lead()
    host.accept(by=[1])
    host.drain()

    assert refusal(host, Remove(N1)).endangers_quorum

    host.ask(heartbeat_reply(1, sender=3, to=2))
    host.raft.change_members([Remove(N1)])


def test_a_silent_voter_can_be_removed() -> None:
    host = leader()
    for _ in range(3 * ELECTION_TICKS):
        host.tick()
        host.ask(heartbeat_reply(1, sender=2))
    host.raft.change_members([Remove(N3)])
    assert host.raft.configuration.voters == {1, 2}


# Who is promoted.


def test_a_joining_learner_is_promoted_when_it_has_caught_up() -> None:
    host = leader_with_learner(join=True)
    host.tick()
    assert host.raft.configuration.joining == {4}

    catch_up(host)
    host.tick()
    assert str(host.raft.configuration) == "voters n1, n2, n3, n4 && n1, n2, n3"


def test_a_learner_that_does_not_join_is_not_promoted() -> None:
    host = leader_with_learner()
    catch_up(host)
    host.tick(5)
    assert host.raft.configuration.learners == {4}


def test_a_learner_that_is_always_late_is_not_promoted() -> None:
    """It takes one entry after the other, each three election time-outs after the leader."""
    host = leader_with_learner(join=True)
    for index in range(3, 9):
        host.raft.propose(b"x")
        host.accept(by=[2, 3])
        for _ in range(ELECTION_TICKS):
            host.tick()
            host.ask(*(heartbeat_reply(1, sender=node) for node in (2, 3, 4)))
        host.ask(accepted(1, index - 3, sender=4))
        assert host.raft.configuration.joining == {4}

    catch_up(host)
    host.tick()
    assert host.raft.configuration.voters == {1, 2, 3, 4}


def test_a_learner_that_follows_closely_is_promoted_under_load() -> None:
    """It never has the newest entry, but always what the log had an election time-out ago."""
    host = leader_with_learner(join=True)
    for _ in range(3 * ELECTION_TICKS):
        behind = host.raft.log.last_index
        host.raft.propose(b"x")
        host.accept(by=[2, 3])
        host.ask(accepted(1, behind, sender=4))
        host.tick()
    assert 4 in host.raft.configuration.voters


def test_a_promotion_waits_for_another_change() -> None:
    host = leader_with_learner(join=True)
    host.raft.change_members([AddLearner(N5)])
    catch_up(host)
    host.tick()
    assert host.raft.configuration.learners == {4, 5}

    host.accept(3, by=[2])
    catch_up(host)
    host.tick()
    assert host.raft.configuration.voters == {1, 2, 3, 4}


# Who leads.


def test_a_leader_that_removes_itself_does_not_count_itself_and_hands_over() -> None:
    host = leader()
    host.raft.change_members([Remove(N1)])
    host.accept(2, by=[2])
    host.drain()
    assert str(host.raft.configuration) == "voters n2, n3 && n1, n2, n3", "n3 is missing"

    host.accept(2, by=[3])
    host.drain()
    assert str(host.raft.configuration) == "voters n2, n3"
    host.accept(3, by=[2])
    said = host.drain()
    assert host.raft.log.committed == 2
    assert said == []

    said = host.ask(accepted(1, 3, sender=3))
    assert host.raft.log.committed == 3
    assert is_follower(host.raft)
    assert [type(message) for message in said] == [TimeoutNow]


def test_a_leader_that_removes_itself_leads_until_that_is_committed() -> None:
    """3@1, between the two entries of the change, is committed before the second one."""
    host = leader()
    host.raft.change_members([Remove(N1)])
    host.raft.propose(b"x")
    host.accept(2)
    host.drain()
    assert whole(host.raft.log) == "1@1 2@1 3@1 4@1"

    host.accept(3)
    host.drain()
    assert (host.raft.log.committed, host.leads) == (3, True)

    host.accept(4)
    host.drain()
    assert (host.raft.log.committed, host.leads) == (4, False)


def test_the_successor_is_one_that_has_the_whole_log() -> None:
    host = leader(voters=4)
    host.raft.change_members([Remove(N1)])
    host.accept(2)
    host.drain()
    host.accept(3, by=[2])
    said = host.ask(accepted(1, 3, sender=3))
    assert [(type(message), message.recipient) for message in said] == [(TimeoutNow, 3)]


def test_a_new_leader_completes_what_it_finds() -> None:
    joint = Configuration.of({N1: "", N2: "", N3: ""}).enter_joint([Remove(N3)])
    host = Host()
    host.ask(append(1, "0@0", [configuration_entry(1, joint)]))
    host.lead()
    host.accept(2, by=[2])
    host.drain()
    assert str(host.raft.configuration) == "voters n1, n2"
    assert host.raft.log.last_index == 3


# How a configuration comes and goes with its entry.


def test_a_configuration_holds_while_its_entry_is_in_the_log() -> None:
    host = Host()
    with_n4 = Configuration.of({N1: "", N2: "", N3: ""}).change_in_one_step([AddLearner(N4)])
    host.ask(append(1, "0@0", [configuration_entry(1, with_n4)]))
    assert host.raft.configuration.learners == {4}
    assert host.raft.committed_configuration.learners == frozenset()

    host.ask(append(2, "0@0", "1@2", sender=3))
    assert host.raft.configuration.learners == frozenset()


def test_a_configuration_outlives_a_restart_and_a_cut() -> None:
    host = leader_with_learner()
    host.raft.propose(b"x")
    host.accept()
    host.drain()
    host.disk.cut(2)
    host.crash()
    host.restart(applied=2)
    assert host.raft.configuration.learners == {4}
    assert host.raft.committed_configuration == host.raft.configuration


def configuration_entry(index: int, configuration: Configuration) -> Entry:
    return Entry(Index(index), Term(1), EntryKind.CONFIGURATION, configuration.encode())


# Why it is safe.


GROUPS = [
    frozenset(nodes) for size in (1, 2, 3, 4) for nodes in combinations((N1, N2, N3, N4), size)
]


def quorums(configuration: Configuration) -> list[frozenset[NodeId]]:
    """The smallest ones: every larger one contains one of them."""
    found = [nodes for nodes in GROUPS if is_quorum(configuration, nodes)]
    return [nodes for nodes in found if not any(other < nodes for other in found)]


def share_a_member(before: Configuration, after: Configuration) -> bool:
    return all(one & other for one in quorums(before) for other in quorums(after))


@pytest.mark.parametrize("voters", GROUPS, ids=lambda voters: "".join(map(str, sorted(voters))))
def test_quorums_before_and_after_each_step_have_a_member_in_common(
    voters: frozenset[NodeId],
) -> None:
    before = Configuration(voters=voters)
    for wanted in GROUPS:
        changes: list[Change] = [
            *(AddVoter(node) for node in sorted(wanted - voters)),
            *(Remove(node) for node in sorted(voters - wanted)),
        ]
        joint = before.enter_joint(changes)
        after = joint.leave_joint()
        assert after.voters == wanted
        assert share_a_member(before, joint)
        assert share_a_member(joint, after)
        try:
            assert share_a_member(before, before.change_in_one_step(changes))
        except ImpossibleChange:
            assert len(voters ^ wanted) > 1
