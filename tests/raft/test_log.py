"""RaftLog: one log, wherever the border between what is stored and what is not lies."""

from dataclasses import dataclass, field
from random import Random

import pytest

from kvorum_node.raft.log import Compacted, RaftLog
from kvorum_node.raft.types import Entry, EntryKind, Index, Position, Term
from tests.support.raft_disk import Disk
from tests.support.raft_messages import entries, position, whole, written


def cut_for(log: list[Entry], low: int, high: int, max_bytes: int) -> list[Entry]:
    """What `entries` promises, in the simplest way: at least one, then up to max_bytes."""
    found: list[Entry] = []
    for entry in log:
        if low <= entry.index < high:
            max_bytes -= len(entry.data)
            if found and max_bytes < 0:
                break
            found.append(entry)
    return found


def split_log(log: list[Entry], stored: int, start: Position) -> tuple[RaftLog, Disk]:
    """The log with its first entries stored, and the others not yet."""
    disk = Disk(log[:stored], start=str(start))
    raft_log = RaftLog(disk, committed=start.index, applied=start.index)
    if log[stored:]:
        raft_log.append(log[stored:])
    return raft_log, disk


def sized_log(start: Position) -> list[Entry]:
    terms, sizes = (2, 2, 3, 5, 5), (3, 0, 5, 1, 2)
    return [
        Entry(Index(start.index + at), Term(term), EntryKind.COMMANDS, b"x" * size)
        for at, (term, size) in enumerate(zip(terms, sizes, strict=True), start=1)
    ]


@pytest.mark.parametrize("start", ["0@0", "7@2"])
@pytest.mark.parametrize("stored", range(6))
def test_the_border_between_stored_and_unstable_shows_nowhere(start: str, stored: int) -> None:
    """Every question about every range has the answer that a plain list gives."""
    before = position(start)
    model = sized_log(before)
    log, _ = split_log(model, stored, before)
    first, last = before.index + 1, before.index + 5

    assert (log.first_index, log.last_index) == (first, last)
    assert log.last == Position(Index(last), Term(5))
    assert log.stable_index == before.index + stored
    assert log.term(before.index) == before.term
    assert [log.term(entry.index) for entry in model] == [entry.term for entry in model]
    for low in range(first, last + 2):
        for high in range(low, last + 2):
            for max_bytes in (0, 1, 3, 4, 5, 8, 9, 11, 99):
                found = log.entries(Index(low), max_bytes, high=Index(high))
                assert found == cut_for(model, low, high, max_bytes), (low, high, max_bytes)
        assert log.entries(Index(low), 99) == cut_for(model, low, last + 1, 99)


@pytest.mark.parametrize("stored", range(6))
def test_the_consistency_check_knows_exactly_the_entries_of_the_log(stored: int) -> None:
    model = sized_log(position("7@2"))
    log, _ = split_log(model, stored, position("7@2"))
    there = {Position(entry.index, entry.term) for entry in model} | {position("7@2")}

    for index in range(15):
        for term in range(7):
            where = Position(Index(index), Term(term))
            assert log.matches(where) is (where in there), where


@pytest.mark.parametrize("stored", range(6))
def test_what_was_cut_is_compacted_and_what_was_never_there_is_a_bug(stored: int) -> None:
    log, _ = split_log(sized_log(position("7@2")), stored, position("7@2"))

    with pytest.raises(Compacted):
        log.term(Index(6))
    with pytest.raises(Compacted):
        log.entries(Index(7), 99)
    if stored < 5:
        with pytest.raises(AssertionError):
            log.term(Index(13))


@pytest.mark.parametrize(
    ("last", "up_to_date"),
    [("3@2", True), ("4@2", True), ("1@3", True), ("2@2", False), ("9@1", False), ("0@0", False)],
)
@pytest.mark.parametrize("stored", [0, 2, 3])
def test_up_to_date_compares_terms_before_lengths(last: str, up_to_date: bool, stored: int) -> None:
    log, _ = split_log(list(entries("1@1 2@1 3@2")), stored, position("0@0"))

    assert log.is_up_to_date(position(last)) is up_to_date


@pytest.mark.parametrize("stored", range(7))
@pytest.mark.parametrize(
    ("index", "term", "match"),
    [
        (6, 9, "6@7"),
        (9, 9, "6@7"),
        (6, 6, "4@4"),
        (4, 4, "4@4"),
        (3, 4, "3@4"),
        (6, 3, "2@1"),
        (1, 1, "1@1"),
        (6, 0, "0@0"),
        (0, 5, "0@0"),
    ],
)
def test_the_probable_match_skips_whole_terms(
    stored: int, index: int, term: int, match: str
) -> None:
    log, _ = split_log(list(entries("1@1 2@1 3@4 4@4 5@7 6@7")), stored, position("0@0"))

    assert log.probable_match(Index(index), Term(term)) == position(match)


def test_the_probable_match_ends_where_the_log_was_cut() -> None:
    """Nothing is known from before: the position has term 0, which no entry has."""
    log, _ = split_log(list(entries("5@3 6@3")), 1, position("4@3"))

    assert log.probable_match(Index(6), Term(2)) == position("3@0")
    assert log.probable_match(Index(2), Term(2)) == position("2@0")
    assert log.probable_match(Index(6), Term(3)) == position("6@3")


def test_a_committed_entry_is_not_replaced_and_no_gap_is_left() -> None:
    log, _ = split_log(list(entries("1@1 2@1 3@1")), 2, position("0@0"))
    log.commit_to(Index(2))

    with pytest.raises(AssertionError, match="2@2 would replace one committed at 2"):
        log.append(entries("2@2"))
    with pytest.raises(AssertionError, match="gap"):
        log.append(entries("5@2"))
    with pytest.raises(AssertionError, match="beyond the last"):
        log.commit_to(Index(4))
    assert whole(log) == "1@1 2@1 3@1"


def test_the_commit_index_never_falls() -> None:
    log, _ = split_log(list(entries("1@1 2@1 3@1")), 3, position("0@0"))

    assert log.commit_to(Index(2))
    assert not log.commit_to(Index(2))
    assert not log.commit_to(Index(1))
    assert log.committed == 2


def test_a_log_that_ends_before_what_was_committed_is_not_believed() -> None:
    with pytest.raises(AssertionError, match="committed 3, log ends at 2"):
        RaftLog(Disk(entries("1@1 2@1")), committed=Index(3), applied=Index(0))
    with pytest.raises(AssertionError, match="applied 2, committed 1"):
        RaftLog(Disk(entries("1@1 2@1")), committed=Index(1), applied=Index(2))


@pytest.mark.parametrize("stored", range(5))
@pytest.mark.parametrize(
    ("previous", "sent", "log"),
    [
        (0, "1@1 2@1", "1@1 2@1 3@2 4@2"),  # all there: what follows stays
        (2, "3@2", "1@1 2@1 3@2 4@2"),
        (4, "", "1@1 2@1 3@2 4@2"),
        (4, "5@2 6@3", "1@1 2@1 3@2 4@2 5@2 6@3"),
        (2, "3@2 4@2 5@3", "1@1 2@1 3@2 4@2 5@3"),
        (2, "3@3", "1@1 2@1 3@3"),
        (0, "1@1 2@1 3@3 4@3", "1@1 2@1 3@3 4@3"),
        (3, "4@4 5@4", "1@1 2@1 3@2 4@4 5@4"),
    ],
)
def test_only_what_is_missing_is_appended(stored: int, previous: int, sent: str, log: str) -> None:
    raft_log, _ = split_log(list(entries("1@1 2@1 3@2 4@2")), stored, position("0@0"))

    last = raft_log.append_missing(Index(previous), entries(sent))

    assert last == previous + len(sent.split())
    assert whole(raft_log) == log


def test_entries_are_handed_out_once_and_again_when_replaced() -> None:
    log = RaftLog(Disk(), committed=Index(0), applied=Index(0))
    log.append(entries("1@1 2@1 3@1"))
    assert written(log.take_unstable()) == "1@1 2@1 3@1"
    assert log.take_unstable() == ()

    log.append(entries("4@1"))
    assert written(log.take_unstable()) == "4@1"
    log.append(entries("3@2"))
    assert log.has_untaken
    assert written(log.take_unstable()) == "3@2"


def test_what_is_fsynced_late_counts_for_nothing_once_it_is_replaced() -> None:
    """2@1 is on the disk, but 2@2 is what the log holds now."""
    disk = Disk()
    log = RaftLog(disk, committed=Index(0), applied=Index(0))
    log.append(entries("1@1 2@1"))
    first = log.take_unstable()
    disk.write(first, None)
    log.append(entries("2@2 3@2"))

    log.stable(first[-1])
    assert log.stable_index < 2
    assert whole(log) == "1@1 2@2 3@2"

    second = log.take_unstable()
    disk.write(second, None)
    log.stable(second[-1])
    assert log.stable_index == 3
    assert whole(log) == "1@1 2@2 3@2"


@dataclass
class Walk:
    """A RaftLog and a plain list, led through the same random steps."""

    random: Random
    disk: Disk = field(default_factory=Disk)
    model: list[Entry] = field(default_factory=list)
    term: int = 1
    taken: tuple[Entry, ...] = ()
    fsynced: int = 0
    """The last index through which the disk is known to hold what the log does."""

    def __post_init__(self) -> None:
        self.log = RaftLog(self.disk, committed=Index(0), applied=Index(0))

    def new_entries(self, first: int) -> list[Entry]:
        count = self.random.randint(1, 4)
        return [
            Entry(
                Index(index), Term(self.term), EntryKind.COMMANDS, self.random.randbytes(index % 3)
            )
            for index in range(first, first + count)
        ]

    def replace(self, first: int, new: list[Entry]) -> None:
        del self.model[first - 1 :]
        self.model += new
        self.fsynced = min(self.fsynced, first - 1)

    def step(self) -> None:
        match self.random.choice(["append", "replace", "missing", "disk", "disk", "commit", "cut"]):
            case "append":
                new = self.new_entries(len(self.model) + 1)
                self.log.append(new)
                self.replace(new[0].index, new)
            case "replace" if len(self.model) > self.log.committed:
                self.term += 1
                new = self.new_entries(self.random.randint(self.log.committed + 1, len(self.model)))
                self.log.append(new)
                self.replace(new[0].index, new)
            case "missing":
                self.missing()
            case "disk":
                self.use_disk()
            case "commit":
                self.log.commit_to(Index(self.random.randint(0, len(self.model))))
                self.log.applied = self.log.committed
            case "cut" if self.log.stable_index >= self.log.applied > self.disk.start.index:
                self.disk.cut(self.random.randint(self.disk.start.index, self.log.applied))
            case _:
                pass

    def missing(self) -> None:
        """An append that repeats a part of the log, and may go on with something new."""
        previous = self.random.randint(self.log.committed, len(self.model))
        known = self.model[previous : self.random.randint(previous, len(self.model))]
        first_new = previous + len(known) + 1
        new: list[Entry] = []
        if self.random.random() < 0.5:
            self.term += 1
            new = self.new_entries(first_new)
            self.replace(first_new, new)
        last = self.log.append_missing(Index(previous), [*known, *new])
        assert last == previous + len(known) + len(new)

    def use_disk(self) -> None:
        """Take entries and write them, or report what was taken before as fsynced."""
        if not self.taken:
            self.taken = self.log.take_unstable()
            if self.taken:
                self.disk.write(self.taken, None)
            return
        taken, self.taken = self.taken, ()
        self.disk.sync()
        self.log.stable(taken[-1])
        held = 0
        for entry in self.disk.synced_log:
            if entry.index > len(self.model) or self.model[entry.index - 1] != entry:
                break
            held = entry.index
        self.fsynced = max(self.fsynced, min(held, taken[-1].index))

    def check(self) -> None:
        log, start = self.log, self.disk.start.index
        assert log.last_index == len(self.model)
        assert log.stable_index <= self.fsynced
        assert [log.term(entry.index) for entry in self.model[start:]] == [
            entry.term for entry in self.model[start:]
        ]
        low = self.random.randint(start + 1, max(start + 1, len(self.model)))
        high = self.random.randint(low, len(self.model) + 1) if self.model[low - 1 :] else low
        limit = self.random.randint(0, 9)
        assert log.entries(Index(low), limit, high=Index(high)) == cut_for(
            self.model, low, high, limit
        )


@pytest.mark.parametrize("seed", range(40))
def test_a_random_walk_equals_a_plain_list(seed: int) -> None:
    walk = Walk(Random(seed))
    for _ in range(300):
        walk.step()
        walk.check()

    # Left alone, the disk catches up, and holds the log.
    for _ in range(4):
        walk.use_disk()
    assert walk.log.stable_index == walk.log.last_index
    assert walk.disk.log == tuple(walk.model[walk.disk.start.index :])
    assert walk.term > 5
