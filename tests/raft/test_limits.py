"""The bounds that keep a leader's memory and its messages finite."""

import pytest

from kvorum_node.raft.messages import AppendEntries
from kvorum_node.raft.types import EntryKind, NotLeading, Settings, TooManyUncommitted
from tests.support.raft_group import Host, as_leader
from tests.support.raft_messages import rejected, whole

LIMITS = Settings(
    election_ticks=10,
    heartbeat_ticks=2,
    max_uncommitted_bytes=100,
    max_append_bytes=50,
    max_inflight_messages=4,
    max_inflight_bytes=1000,
)


def leader(voters: int = 3) -> Host:
    host = Host(voters=voters, settings=LIMITS)
    host.lead_established()
    return host


def batches(host: Host) -> list[list[int]]:
    """The sizes of the entries in each append that leaves for n2."""
    return [
        [len(entry.data) for entry in message.entries]
        for message in host.drain()
        if isinstance(message, AppendEntries) and message.recipient == 2
    ]


def test_proposals_beyond_the_uncommitted_bytes_are_refused() -> None:
    host = leader()
    host.raft.propose(b"x" * 60)
    host.raft.propose(b"x" * 40)
    before = whole(host.raft.log)

    with pytest.raises(TooManyUncommitted):
        host.raft.propose(b"x")

    assert whole(host.raft.log) == before


def test_a_commit_makes_room_for_exactly_what_it_covers() -> None:
    host = leader()
    first = host.raft.propose(b"x" * 60)
    host.raft.propose(b"x" * 40)
    host.drain()

    host.accept(first.index)
    assert as_leader(host.raft).uncommitted_bytes == 40
    with pytest.raises(TooManyUncommitted):
        host.raft.propose(b"x" * 61)
    host.raft.propose(b"x" * 60)
    host.drain()
    host.accept()
    assert as_leader(host.raft).uncommitted_bytes == 0


def test_one_entry_is_always_taken_however_large() -> None:
    """A bound below the size of an entry would stop that entry for ever."""
    host = leader()

    host.raft.propose(b"x" * 5000)

    with pytest.raises(TooManyUncommitted):
        host.raft.propose(b"x")
    host.drain()
    host.accept()
    host.raft.propose(b"x")


def test_a_new_leader_starts_with_the_whole_bound() -> None:
    """What it inherits is in its log already, and refusing on account of it would help nobody."""
    host = leader()
    host.raft.propose(b"x" * 100)
    host.drain()
    host.follow(leader=2, term=5)

    host.lead()

    host.raft.propose(b"x" * 100)
    assert host.raft.log.committed < host.raft.log.last_index


def test_a_message_holds_the_bytes_it_may_or_one_larger_entry() -> None:
    host = Host(settings=Settings(election_ticks=10, heartbeat_ticks=2, max_append_bytes=50))
    host.lead_established()
    for size in (20, 30, 1, 50, 51, 0, 2):
        host.raft.propose(b"x" * size)

    assert batches(host) == [[20, 30], [1], [50], [51], [0, 2]]


def test_the_window_bounds_the_messages_on_their_way() -> None:
    host = leader()
    for _ in range(6):
        host.raft.propose(b"x" * 10)
        host.drain()
    inflight = as_leader(host.raft).progress[host.others[0]].inflight
    assert len(inflight) == 4

    host.accept(3)
    assert batches(host) == [[10, 10]]  # the two that had to wait travel together


def test_the_window_bounds_the_bytes_on_their_way() -> None:
    host = Host(
        settings=Settings(
            election_ticks=10, heartbeat_ticks=2, max_append_bytes=50, max_inflight_bytes=100
        )
    )
    host.lead_established()
    for _ in range(5):
        host.raft.propose(b"x" * 40)

    assert batches(host) == [[40], [40], [40]]
    host.accept(2, by=[2])
    assert batches(host) == [[40]]


def test_a_probe_carries_a_batch_too() -> None:
    host = leader()
    for _ in range(4):
        host.raft.propose(b"x" * 20)
    host.drain()
    host.step(rejected(1, host.raft.log.last_index, "1@1"))

    assert batches(host) == [[20, 20]]


def test_only_a_leader_takes_proposals_and_reads() -> None:
    follower, candidate = Host(), Host()
    candidate.stand()

    for host in (follower, candidate):
        with pytest.raises(NotLeading):
            host.raft.propose(b"x")
        with pytest.raises(NotLeading):
            host.raft.read_index(1)
        with pytest.raises(NotLeading):
            host.raft.transfer_leadership(host.others[0])
        assert host.raft.log.last_index == 0


def test_a_proposal_keeps_its_kind_and_data() -> None:
    host = leader()
    where = host.raft.propose(b"abc")

    (entry,) = host.cycle().entries

    assert (entry.index, entry.term, entry.kind, entry.data) == (
        where.index,
        where.term,
        EntryKind.COMMANDS,
        b"abc",
    )


@pytest.mark.parametrize(("heartbeat", "election"), [(0, 10), (4, 11), (-1, 10)])
def test_settings_that_cost_an_election_for_one_lost_heartbeat_are_refused(
    heartbeat: int, election: int
) -> None:
    with pytest.raises(ValueError, match="one lost heartbeat"):
        Settings(election_ticks=election, heartbeat_ticks=heartbeat)
