"""Raft, section 5.3: log replication."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from kvorum_node.raft.messages import AppendEntries, Message
from kvorum_node.raft.types import Entry, Index
from tests.support.raft_group import Group, Host, is_leader
from tests.support.raft_messages import (
    accepted,
    append,
    entries,
    heartbeat,
    of_terms,
    rejected,
    vote,
    whole,
    written,
)


def appends(said: Sequence[Message]) -> list[AppendEntries]:
    return [message for message in said if isinstance(message, AppendEntries)]


def test_5_3_a_leader_appends_a_proposal_and_sends_it_to_all_in_parallel() -> None:
    """It is a new entry of the leader's log first; each message names the entry before it."""
    host = Host()
    host.lead_established()

    where = host.raft.propose(b"some data")
    ready = host.cycle()

    assert str(where) == "2@1"
    assert host.raft.log.committed == 1
    new = entries("2@1", data=b"some data")
    assert ready.messages == (
        append(1, "1@1", new, commit=1, sender=1, to=2),
        append(1, "1@1", new, commit=1, sender=1, to=3),
    )
    assert ready.entries == new
    assert ready.must_sync
    assert host.disk.synced_log[1:] == new


def test_5_3_a_committed_entry_is_applied_and_later_messages_say_so() -> None:
    """The leader applies what is safely replicated, and passes on the highest committed index."""
    host = Host()
    host.lead_established()
    host.raft.propose(b"some data")
    host.drain()

    host.accept()
    assert host.raft.log.committed == 2
    assert host.cycle().committed == entries("2@1", data=b"some data")

    host.raft.propose(b"more")
    assert {message.commit for message in appends(host.drain())} == {2}
    host.accept()
    host.tick(2)
    assert host.drain() == [
        replace(heartbeat(1, commit=3, sender=1, to=2), committed=Index(3)),
        replace(heartbeat(1, commit=3, sender=1, to=3), committed=Index(3)),
    ]


@pytest.mark.parametrize(
    ("size", "acceptors", "committed"),
    [
        (1, [], True),
        (2, [], False),
        (2, [2], True),
        (3, [], False),
        (3, [2], True),
        (3, [2, 3], True),
        (4, [2], False),
        (4, [2, 4], True),
        (5, [], False),
        (5, [4], False),
        (5, [2, 4], True),
        (5, [2, 3, 4], True),
        (5, [2, 3, 4, 5], True),
    ],
)
def test_5_3_an_entry_is_committed_once_a_majority_holds_it(
    size: int, acceptors: list[int], committed: bool
) -> None:
    """The leader that made the entry has replicated it on a majority, itself included."""
    host = Host(voters=size)
    host.lead_established()
    host.raft.propose(b"some data")
    host.drain()

    host.accept(by=acceptors)

    assert (host.raft.log.committed == 2) is committed


@pytest.mark.parametrize("inherited", ["", "1@2", "1@1 2@2", "1@1"])
def test_5_3_a_commit_covers_the_preceding_entries_of_other_leaders_too(inherited: str) -> None:
    """They are applied with it, in log order."""
    host = Host(log=inherited, term=2)
    host.lead()
    host.raft.propose(b"some data")
    host.drain()
    assert host.applied == []

    host.accept(by=[2])
    host.drain()

    first = len(inherited.split()) + 1
    assert written(host.applied) == f"{inherited} {first}@3 {first + 1}@3".strip()


@pytest.mark.parametrize(
    ("log", "commit"), [("1@1", 1), ("1@1 2@1", 2), ("1@1 2@1", 1), ("1@1 2@1", 0), ("1@1 2@1", 9)]
)
def test_5_3_a_follower_applies_what_it_learns_is_committed(log: str, commit: int) -> None:
    """In log order; and no more than it has."""
    host = Host()

    host.ask(append(1, "0@0", log, commit=commit))

    expected = min(commit, len(log.split()))
    assert host.raft.log.committed == expected
    assert host.applied == list(entries(log)[:expected])


@pytest.mark.parametrize(
    ("previous", "answer"),
    [
        pytest.param("0@0", accepted(2, 1, sender=1, to=2), id="below the commit index"),
        pytest.param("1@1", accepted(2, 1, sender=1, to=2), id="at the commit index"),
        pytest.param("2@2", accepted(2, 2, sender=1, to=2), id="uncommitted"),
        pytest.param("2@1", rejected(2, 2, "1@1", sender=1, to=2), id="of another term"),
        pytest.param("3@3", rejected(2, 3, "2@2", sender=1, to=2), id="not there"),
        pytest.param("9@1", rejected(2, 9, "1@1", sender=1, to=2), id="far beyond, of an old term"),
    ],
)
def test_5_3_a_follower_refuses_entries_unless_it_has_the_one_before(
    previous: str, answer: Message
) -> None:
    """The consistency check: same index and same term, or no entry is taken."""
    host = Host(log="1@1 2@2", term=2, commit=1)
    host.follow(leader=2, term=2)

    assert host.ask(append(2, previous)) == [answer]


@pytest.mark.parametrize(
    ("previous", "sent", "log", "new"),
    [
        ("2@2", "3@3", "1@1 2@2 3@3", "3@3"),
        ("1@1", "2@3 3@4", "1@1 2@3 3@4", "2@3 3@4"),
        ("0@0", "1@1", "1@1 2@2", ""),
        ("0@0", "1@3", "1@3", "1@3"),
        ("1@1", "2@2 3@3", "1@1 2@2 3@3", "3@3"),
        ("1@1", "", "1@1 2@2", ""),
    ],
)
def test_5_3_a_follower_replaces_what_conflicts_and_appends_what_is_missing(
    previous: str, sent: str, log: str, new: str
) -> None:
    """A conflicting entry goes, with all that follow it; what is there already stays."""
    host = Host(log="1@1 2@2", term=4)
    host.follow(leader=2, term=4)

    host.step(append(4, previous, sent))
    ready = host.cycle()

    assert whole(host.raft.log) == log
    assert written(ready.entries) == new
    assert written(host.disk.synced_log) == log


FIGURE_7_LEADER = of_terms(1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
FIGURE_7_FOLLOWERS = {
    "a": of_terms(1, 1, 1, 4, 4, 5, 5, 6, 6),
    "b": of_terms(1, 1, 1, 4),
    "c": of_terms(1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    "d": of_terms(1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    "e": of_terms(1, 1, 1, 4, 4, 4, 4),
    "f": of_terms(1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
}


@pytest.mark.parametrize("name", FIGURE_7_FOLLOWERS)
def test_5_3_figure_7_a_leader_makes_any_followers_log_equal_to_its_own(name: str) -> None:
    """Missing entries, extra entries, or both: by the consistency check alone, all come right."""
    follower: Sequence[Entry] = FIGURE_7_FOLLOWERS[name]
    group = Group.of(3, logs={1: FIGURE_7_LEADER, 2: follower}, term=7)
    # n3 votes for the leader by hand: the follower's log may be the better one.
    group[3].up = False
    group[1].stand()
    group[1].step(vote(8, sender=3))
    assert group.leaders == [1]

    group.run()

    assert group[2].disk.synced_log == (*FIGURE_7_LEADER, *entries("11@8"))
    assert group[1].raft.log.committed == 11


def test_5_3_figure_7_a_leader_brings_all_followers_into_line_at_once() -> None:
    """The whole figure: six followers, each with another history, and one new entry on top."""
    logs = {1: FIGURE_7_LEADER} | dict(enumerate(FIGURE_7_FOLLOWERS.values(), start=2))
    group = Group.of(7, logs=logs, term=7)
    # As in the paper: d alone, with entries of term 7, has more than the leader.
    group.elect(1)
    group.tick(2)

    assert {host.disk.synced_log for host in group.hosts.values()} == {
        (*FIGURE_7_LEADER, *entries("11@8"))
    }
    assert {len(host.applied) for host in group.hosts.values()} == {11}


def test_5_3_a_leader_never_changes_its_own_log() -> None:
    """Leader append-only: whatever it is told, it only appends."""
    host = Host(log="1@1 2@2", term=2)
    host.lead()
    host.raft.propose(b"x")
    before = whole(host.raft.log)

    host.ask(
        append(3, "0@0", "1@3", sender=2),
        rejected(3, 2, "0@0", sender=2),
        accepted(3, 1, sender=3),
        vote(3, granted=False, sender=3),
    )

    assert is_leader(host.raft)
    assert whole(host.raft.log) == before == "1@1 2@2 3@3 4@3"
