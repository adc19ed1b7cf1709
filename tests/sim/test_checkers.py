"""Each checker keeps quiet about what is right, and speaks up at what is not."""

import pytest

from kvorum_node.raft.types import Entry, EntryKind, HardState, Index, NodeId, Term
from tests.sim.checkers import (
    CommittedIsForever,
    LogMatching,
    LogTime,
    MembersOfTheLog,
    OneChangeAtATime,
    OneLeaderATerm,
    OneVoteATerm,
    OnTime,
    Promises,
    SameState,
    StateDigest,
)

N1, N2, N3, N4 = (NodeId(number) for number in range(1, 5))
THREE = frozenset({N1, N2, N3})


@pytest.fixture
def reports() -> list[str]:
    return []


def entry(index: int, term: int, data: bytes = b"") -> Entry:
    return Entry(Index(index), Term(term), EntryKind.COMMANDS, data)


def kept(term: int, vote: NodeId | None) -> HardState:
    return HardState(Term(term), vote, Index(0))


def test_two_leaders_of_one_term(reports: list[str]) -> None:
    checker = OneLeaderATerm(reports.append)

    assert checker.leads(N1, Term(1))
    assert not checker.leads(N1, Term(1))
    assert checker.leads(N2, Term(2))
    assert reports == []

    checker.leads(N3, Term(2))
    assert reports == ["one leader a term: n2 and n3 lead term 2"]


def test_a_leader_without_the_votes(reports: list[str]) -> None:
    checker = OneLeaderATerm(reports.append)
    joint = [frozenset({N1, N4}), THREE]

    checker.is_elected(N1, Term(1), frozenset({N1, N2}), [[THREE]])
    checker.is_elected(N1, Term(2), frozenset({N1, N2, N4}), [joint])
    checker.is_elected(N1, Term(3), frozenset({N1, N2}), [joint, [THREE]])
    assert reports == []

    checker.is_elected(N1, Term(4), frozenset({N1, N4}), [joint])
    assert reports == ["elected: n1 leads term 4 by the votes of n1, n4"]


def test_two_votes_in_one_term(reports: list[str]) -> None:
    checker = OneVoteATerm(reports.append)

    checker.says(N1, Term(1), N2, kept(1, N2))
    checker.says(N1, Term(1), N2, kept(3, None))
    assert reports == []

    checker.says(N1, Term(1), N3, kept(3, None))
    assert reports == ["one vote a term: n1 votes for n2 and n3 in 1"]


def test_two_votes_of_which_a_disk_tells(reports: list[str]) -> None:
    checker = OneVoteATerm(reports.append)

    checker.keeps(N1, kept(1, N2))
    checker.keeps(N1, kept(2, None))
    assert reports == []

    checker.keeps(N1, kept(1, N3))
    assert reports == ["one vote a term: n1 votes for n2 and n3 in 1"]


@pytest.mark.parametrize("durable", [kept(0, None), kept(1, None)])
def test_a_vote_that_a_crash_would_take_back(reports: list[str], durable: HardState) -> None:
    OneVoteATerm(reports.append).says(N1, Term(1), N2, durable)

    assert len(reports) == 1
    assert reports[0].startswith("one vote a term: n1 votes for n2 in 1, and its disk says")


def test_who_has_voted_for_whom(reports: list[str]) -> None:
    checker = OneVoteATerm(reports.append)
    checker.keeps(N1, kept(1, N2))
    checker.keeps(N2, kept(1, N2))
    checker.keeps(N3, kept(1, N3))
    checker.keeps(N1, kept(2, N3))

    assert checker.voters_of(N2, Term(1)) == {N1, N2}


@pytest.mark.parametrize(
    ("before", "data"), [(2, b"a"), (1, b"b")], ids=["behind another", "with other data"]
)
def test_logs_that_do_not_match(reports: list[str], before: int, data: bytes) -> None:
    checker = LogMatching(reports.append)
    checker.stores(N1, Term(1), entry(3, 2, b"a"))
    checker.stores(N2, Term(1), entry(3, 2, b"a"))
    checker.stores(N2, Term(1), entry(3, 3, b"c"))
    assert reports == []

    checker.stores(N3, Term(before), entry(3, 2, data))
    assert len(reports) == 1
    assert reports[0].startswith("log matching: n3 has 3@2 after term")


def test_a_commit_that_no_majority_has_on_its_disks(reports: list[str]) -> None:
    checker = CommittedIsForever(reports.append)

    checker.commits(N1, Term(1), entry(1, 1), [N1, N2], [[THREE]])
    assert reports == []

    checker.commits(N1, Term(1), entry(2, 1), [N1, N4], [[THREE]])
    [report] = reports
    assert report.startswith("committed is durable: n1 commits 2@1 in term 1, and only n1, n4 have")


def test_a_joint_commit_that_half_of_the_group_has(reports: list[str]) -> None:
    checker = CommittedIsForever(reports.append)
    halves = [frozenset({N1, N4}), THREE]

    checker.commits(N1, Term(1), entry(1, 1), [N1, N2, N4], [halves])
    assert reports == []

    checker.commits(N1, Term(1), entry(2, 1), [N1, N4], [halves])
    assert len(reports) == 1


def test_a_commit_out_of_order(reports: list[str]) -> None:
    CommittedIsForever(reports.append).commits(N1, Term(1), entry(2, 1), [N1, N2], [[THREE]])

    assert reports == ["committed: n1 commits 2@1 after 0"]


def test_a_leader_that_commits_an_older_term_by_itself(reports: list[str]) -> None:
    checker = CommittedIsForever(reports.append)

    checker.decides(N1, Term(2), Index(2), Term(2))
    assert reports == []

    checker.decides(N1, Term(3), Index(2), Term(2))
    assert reports == ["own term: n1 leads 3 and commits 2@2 by itself"]


def test_a_commit_that_contradicts_another(reports: list[str]) -> None:
    checker = CommittedIsForever(reports.append)
    checker.commits(N1, Term(1), entry(1, 1), [N1, N2], [[THREE]])

    checker.agrees(N2, Index(1), Term(1))
    assert reports == []

    checker.agrees(N3, Index(1), Term(2))
    assert reports == ["committed is forever: n3 commits 1@2, not 1@1"]


def test_what_a_leader_must_have(reports: list[str]) -> None:
    checker = CommittedIsForever(reports.append)
    checker.commits(N1, Term(1), entry(1, 1), [N1, N2], [[THREE]])
    checker.commits(N1, Term(3), entry(2, 1), [N1, N2], [[THREE]])

    assert checker.required_of(Term(1)) is None
    assert checker.required_of(Term(3)) == entry(1, 1)
    assert checker.required_of(Term(4)) == entry(2, 1)

    checker.lacks(N3, Term(4), entry(2, 1))
    assert reports == ["leader completeness: n3 leads 4 without 2@1"]


def test_a_change_of_members_before_the_last_one_is_committed(reports: list[str]) -> None:
    checker = OneChangeAtATime(reports.append)

    checker.changes(N1, Index(5), Index(3), Index(3))
    assert reports == []

    checker.changes(N1, Index(5), Index(3), Index(2))
    [report] = reports
    assert report.startswith("one change at a time: n1 changes the members at 5, and the change at")


def test_members_that_the_log_does_not_name_any_more(reports: list[str]) -> None:
    checker = MembersOfTheLog(reports.append)

    checker.goes_by(N1, Index(5), Term(2), Term(2))
    assert reports == []

    checker.goes_by(N1, Index(5), Term(2), Term(3))
    checker.goes_by(N1, Index(5), Term(2), None)
    assert len(reports) == 2
    assert reports[0].startswith("members of the log: n1 goes by those of 5@2")


def test_an_acknowledgement_of_what_is_not_on_the_disk(reports: list[str]) -> None:
    checker = Promises(reports.append)

    checker.acknowledges(N1, Term(2), Index(5), kept(2, None), Index(5))
    checker.acknowledges(N1, Term(2), Index(5), kept(3, None), Index(4))
    assert reports == []

    checker.acknowledges(N1, Term(2), Index(5), kept(2, None), Index(4))
    assert reports == ["promises: n1 acknowledges 5, its disk ends at 4"]


def test_two_states_of_one_index(reports: list[str]) -> None:
    checker = SameState(reports.append)

    checker.holds(N1, Index(7), 11)
    checker.holds(N2, Index(7), 11)
    checker.holds(N2, Index(8), 12)
    assert reports == []

    checker.holds(N3, Index(7), 12)
    assert reports == ["same state: n3 and n1 have applied 7, and hold different records"]


def test_a_digest_knows_what_is_there_and_not_how_it_came() -> None:
    digest = StateDigest()
    digest.change(b"a", None, b"1")
    digest.change(b"b", None, b"2")
    digest.change(b"a", b"1", b"3")
    digest.change(b"b", b"2", None)

    assert digest.value == StateDigest.of({b"a": b"3"}).value
    assert digest.value != StateDigest.of({b"a": b"1"}).value
    assert digest.value != StateDigest.of({b"a": b"3", b"b": b"2"}).value


class TestLogTime:
    @pytest.fixture
    def begun(self, reports: list[str]) -> LogTime:
        """The first entry is stamped 1000 ms at 0 s."""
        checker = LogTime(reports.append)
        checker.begins(-1)
        checker.commits(entry(1, 1), 0, 1_000)
        return checker

    def test_goes_on_as_time_does(self, begun: LogTime, reports: list[str]) -> None:
        begun.commits(entry(2, 1), 1_000_000, 2_001)
        begun.told(50_000)
        begun.commits(entry(3, 2), 2_000_000, 2_951)
        assert reports == []
        assert (begun.checked, begun.takeovers) == (2, 1)

    @pytest.mark.parametrize("log_time_ms", [1_900, 2_100])
    def test_a_leader_whose_time_jumps(
        self, begun: LogTime, reports: list[str], log_time_ms: int
    ) -> None:
        begun.commits(entry(2, 1), 1_000_000, log_time_ms)
        assert reports[0].startswith("log time: its leader stamps 2@1")

    @pytest.mark.parametrize("log_time_ms", [1_900, 2_100])
    def test_a_takeover_by_another_clock(
        self, begun: LogTime, reports: list[str], log_time_ms: int
    ) -> None:
        begun.commits(entry(2, 2), 1_000_000, log_time_ms)
        assert len(reports) == 1
        assert reports[0].startswith("log time: 2@2 is stamped")

    def test_a_clock_that_is_known_to_count_wrong(self, begun: LogTime, reports: list[str]) -> None:
        begun.unsteady()
        begun.commits(entry(2, 1), 1_000_000, 9_000)
        assert reports == []


def test_what_has_expired_by_the_leaders_clock(reports: list[str]) -> None:
    checker = OnTime(reports.append)
    checker.reads(NodeId(1), b"a", 0, 100)
    checker.reads(NodeId(1), b"a", 100, 100)
    assert reports == []
    checker.reads(NodeId(1), b"a", 99, 100)
    assert len(reports) == 1
    assert reports[0].startswith("on time: n1 was asked at 100")
