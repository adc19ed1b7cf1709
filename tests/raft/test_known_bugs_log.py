"""Known bugs of other systems, in what is stored, acknowledged and committed: none of them here.

Each test says what the bug is, where it is known from, which guard holds it here, and
what is seen when that guard is taken away: that was done once for each. See also
test_known_bugs_elections.py and test_known_bugs_members.py. One needs more than the core:

    an fsync error is ignored, and what was lost is promised    PostgreSQL, 2018 ("fsyncgate");
        Rebello et al., "Can Applications Recover from fsync Failures?", 2020. Held by the driver:
        tests/node/test_driver.py, test_nothing_is_promised_after_a_failed_sync
"""

import pytest

from kvorum_node.raft.progress import ProgressState
from kvorum_node.raft.types import Index, NodeId
from tests.support.raft_group import ELECTION_TICKS, Host, as_leader
from tests.support.raft_messages import (
    accepted,
    append,
    install_snapshot,
    rejected,
    request_vote,
    vote,
    whole,
    written,
)


def test_an_entry_of_an_older_term_is_not_committed_by_counting() -> None:
    """Counting commits an entry of an older term, and a later leader replaces it.

    Known from: Raft, figure 8; test_paper_5_4.py tells the whole of it.
    Guard: leader.advance_commit commits by an entry of the own term only.
    Without it: 2@2 is committed as soon as two members have it.
    """
    host = Host(log="1@1 2@2", term=3)
    host.lead()

    host.accept(2)
    host.drain()
    assert host.raft.log.committed == 0

    host.accept(3)
    host.drain()
    assert written(host.applied) == "1@1 2@2 3@4"


def test_a_vote_that_a_crash_takes_back_was_never_given() -> None:
    """A vote leaves before it is on the disk; after a crash the member votes again in the term.

    Known from: Raft, figure 2 ("updated on stable storage before responding"); PySyncObj
    keeps term and vote in memory only.
    Guard: votes are promises, which wait for the fsync (core.Raft.promise, Ready.promises).
    Without it: the vote for n2 is among the messages that leave at once.
    """
    host = Host()
    host.step(request_vote(1, sender=2))
    assert host.take() == ()

    host.crash()
    host.restart()
    assert host.ask(request_vote(1, sender=3)) == [vote(1, sender=1, to=3)]
    host.crash()
    host.restart()
    host.tick(ELECTION_TICKS)  # before that it votes for nobody at all
    assert host.ask(request_vote(1, sender=2)) == [vote(1, granted=False, sender=1, to=2)]


def test_entries_that_a_crash_takes_back_were_never_accepted() -> None:
    """An append is acknowledged before it is on the disk, counts for a majority, and is lost.

    Known from: Raft, figure 2; the same class as above.
    Guard: acknowledgements are promises (core.Raft.promise).
    Without it: the acknowledgement is among the messages that leave at once.
    """
    host = Host()
    host.step(append(1, "0@0", "1@1 2@1"))
    assert host.take() == ()

    host.crash()
    host.restart()
    assert host.raft.log.last_index == 0
    assert host.ask(append(1, "0@0", "1@1")) == [accepted(1, 1, sender=1, to=2)]
    host.crash()
    host.restart()
    assert whole(host.raft.log) == "1@1"


def test_term_and_vote_are_never_on_the_disk_without_each_other() -> None:
    """A crash between the writes of term and vote leaves the new term with no vote, or the old one.

    Known from: implementations with one file or record for each; the member votes twice.
    Guard: both are one value, written by one Ready (types.HardState, core.Raft.ready).
    Without it: written one after the other, a crash leaves term 5 without the vote in it.
    """
    left = set()
    for surviving in range(3):
        host = Host(term=4, vote=3)
        host.step(request_vote(5, sender=2))
        host.take()
        host.crash(surviving=surviving)
        left.add((host.disk.hard_state.term, host.disk.hard_state.vote))

    assert left == {(4, 3), (5, 2)}


def test_an_append_that_comes_late_and_matches_removes_nothing() -> None:
    """By a late append that ends before the log does, the follower truncates what it promised.

    Known from: the Students' Guide to Raft (Gjengset, 2016): truncate only on a conflict.
    Guard: log.RaftLog.append_missing appends from the first entry that is missing.
    Without it: 3@1 and 4@1 are gone.
    """
    host = Host()
    host.ask(append(1, "0@0", "1@1 2@1 3@1 4@1"))

    assert host.ask(append(1, "1@1", "2@1")) == [accepted(1, 2, sender=1, to=2)]
    assert host.ask(append(1, "0@0")) == [accepted(1, 0, sender=1, to=2)]

    assert whole(host.raft.log) == "1@1 2@1 3@1 4@1"
    assert host.raft.log.stable_index == 4


def test_a_follower_commits_no_further_than_the_leader_has_vouched_for() -> None:
    """The follower takes the leader's commit index for its whole log, also for entries that differ.

    3@1 is of an earlier leader; the new one commits 3@2, and has only spoken of 2@1 here.

    Known from: the Students' Guide to Raft: "the index of the last new entry".
    Guard: follower.on_append_entries commits up to the last entry that the message covers.
    Without it: 3@1 is committed and applied.
    """
    host = Host(log="1@1 2@1 3@1", term=2)

    host.ask(append(2, "1@1", "2@1", commit=3))
    assert host.raft.log.committed == 2

    host.ask(append(2, "2@1", "3@2", commit=3))
    assert host.raft.log.committed == 3
    assert written(host.applied) == "1@1 2@1 3@2"


def test_a_late_fsync_counts_for_nothing_once_the_entries_were_replaced() -> None:
    """An fsync of replaced entries is taken for one of the new entries at the same indexes.

    What reached the disk is 2@1, what the log holds by then is 2@2: it is still to be stored.

    Known from: etcd, async_storage_writes_append_aba_race.txt.
    Guard: log.RaftLog.stable compares the term of the last entry that was synced.
    Without it: 2@2 counts as stored, and is never written.
    """
    host = Host()
    host.lead_established()
    host.raft.propose(b"x")
    host.take()

    host.step(append(2, "1@1", "2@2", sender=2))
    host.complete()
    assert whole(host.raft.log) == "1@1 2@2"
    assert host.raft.log.stable_index == 1

    ready = host.cycle()
    assert written(ready.entries) == "2@2"
    assert ready.promises == (accepted(2, 2, sender=1, to=2),)
    assert written(host.disk.synced_log) == "1@1 2@2"


def test_a_snapshot_that_is_older_than_the_state_is_waste() -> None:
    """A snapshot that arrives late takes the state back to an earlier index.

    Known from: etcd, TestRestoreIgnoreSnapshot.
    Guard: follower.on_install_snapshot takes none at or below the commit index.
    Without it: the core stops at the contradiction (log.RaftLog.restore).
    """
    host = Host(log="8@2 9@2", start="7@2", term=2, commit=8, applied=8)

    said = host.ask(install_snapshot(2, "5@1"))

    assert said == [accepted(2, 8, sender=1, to=2)]
    assert host.installed == []
    assert (host.raft.log.applied, whole(host.raft.log)) == (8, "8@2 9@2")


def test_an_append_for_entries_that_were_cut_is_answered() -> None:
    """An append from before the start of the follower's log: it looks for entries that are gone.

    It would refuse the message, or stop; and the leader would go back for ever.

    Known from: etcd, the first lines of handleAppendEntries.
    Guard: follower.on_append_entries answers what begins before its commit index with that.
    Without it: the message is refused, with a hint that leads nowhere.
    """
    host = Host(log="8@2 9@2", start="7@2", term=2, commit=8, applied=8)

    assert host.ask(append(2, "3@1", "4@1 5@2")) == [accepted(2, 8, sender=1, to=2)]


@pytest.mark.parametrize("answer_arrives", [True, False])
def test_a_follower_is_not_stuck_after_a_snapshot_at_the_leaders_last_index(
    answer_arrives: bool,
) -> None:
    """Nothing follows the snapshot, so nothing tells the leader that the follower is well again.

    Known from: etcd, snapshot_succeed_via_app_resp.txt.
    Guards: an acceptance behind which the leader's log goes on ends the state SNAPSHOT
    (progress.Progress.accepted), and the host's report does, which has the follower asked.
    Without one of them: the follower stays in SNAPSHOT, in the one case or in the other.
    """
    host = Host(log="1@1 2@1 3@1", term=1, commit=3)
    host.lead()
    host.accept(4, by=[2])
    host.drain()
    host.disk.cut(4)
    host.ask(rejected(2, 3, "0@0", sender=3))
    assert progress_of(host, 3) == (ProgressState.SNAPSHOT, 0)

    if answer_arrives:
        host.step(accepted(2, 4, sender=3))
    else:
        host.raft.report_snapshot(NodeId(3), Index(4))
        assert host.drain() == [append(2, "4@2", commit=4, sender=1, to=3)]
        host.step(accepted(2, 4, sender=3))
    assert progress_of(host, 3) == (ProgressState.REPLICATE, 4)


def progress_of(host: Host, node: int) -> tuple[ProgressState, Index]:
    progress = as_leader(host.raft).progress[NodeId(node)]
    return progress.state, progress.match
