"""What a watcher may hear: every change once, in order and whole, and nothing else."""

import pytest

from kvorumpb.v1.command_pb2 import Command, Compaction, Record
from kvorumpb.v1.watch_pb2 import BeginWatch, Change, Changes
from tests.sim.oracle import Oracle
from tests.sim.watchers import Heard
from tests.support.commands import delete, entry, entry_of, put, transaction

reports: list[str] = []


@pytest.fixture
def oracle() -> Oracle:
    """1 puts a and b, 2 puts c, 3 deletes a."""
    reports.clear()
    oracle = Oracle(reports.append)
    oracle.applies(entry(1, transaction(put(b"a", b"x"), put(b"b", b"y"))))
    oracle.applies(entry(2, transaction(put(b"c", b"z"))))
    oracle.applies(entry(3, transaction(delete(b"a"))))
    return oracle


def heard(oracle: Oracle, **begin: bool) -> Heard:
    heard = Heard("w1", BeginWatch(**begin), oracle)  # type: ignore[arg-type]  # flags alone
    heard.begins(0, 0)
    return heard


def was_put(key: bytes, value: bytes, revision: int) -> Change:
    record = Record(key=key, value=value, revision=revision, created_revision=revision, version=1)
    return Change(kind=Change.PUT, key=key, record=record)


A, B, C = was_put(b"a", b"x", 1), was_put(b"b", b"y", 1), was_put(b"c", b"z", 2)
GONE = Change(kind=Change.DELETE, key=b"a")


def test_all_of_it(oracle: Oracle) -> None:
    watcher = heard(oracle)
    watcher.changes(Changes(revision=1, changes=[B, A]))
    watcher.changes(Changes(revision=2, changes=[C]))
    watcher.progress(2)
    watcher.changes(Changes(revision=3, changes=[GONE]))

    assert reports == []
    assert watcher.through == 3


def test_previous_values_and_kinds_left_out(oracle: Oracle) -> None:
    watcher = heard(oracle, previous=True, no_puts=True)
    gone = Change(kind=Change.DELETE, key=b"a", previous=A.record)
    watcher.changes(Changes(revision=3, changes=[gone]))
    assert reports == []
    watcher = heard(oracle, previous=True, no_puts=True)
    watcher.changes(Changes(revision=3, changes=[GONE]))
    assert len(reports) == 1


def test_parts_are_put_together(oracle: Oracle) -> None:
    watcher = heard(oracle)
    begin, end = was_put(b"b", b"", 1), Change(kind=Change.PUT, key=b"b", continued=True)
    end.record.value = b"y"
    watcher.changes(Changes(revision=1, changes=[A], partial=True))
    watcher.changes(Changes(revision=1, changes=[begin], partial=True))
    watcher.changes(Changes(revision=1, changes=[end]))

    assert reports == []
    assert watcher.through == 1


def test_a_change_without_its_beginning(oracle: Oracle) -> None:
    end = Change(kind=Change.PUT, key=b"b", continued=True)
    heard(oracle).changes(Changes(revision=1, changes=[end], partial=True))
    assert len(reports) == 1


def test_a_revision_that_is_split(oracle: Oracle) -> None:
    heard(oracle).changes(Changes(revision=1, changes=[A]))
    assert len(reports) == 1
    assert reports[0].startswith("watch: w1 is told of 1 as")


def test_a_revision_that_ends_in_the_middle(oracle: Oracle) -> None:
    watcher = heard(oracle)
    watcher.changes(Changes(revision=1, changes=[A], partial=True))
    watcher.changes(Changes(revision=2, changes=[C]))
    assert reports == ["watch: w1 revision 1 ends in the middle, with 2"]


def test_a_gap(oracle: Oracle) -> None:
    heard(oracle).changes(Changes(revision=2, changes=[C]))
    assert len(reports) == 1
    assert "has missed" in reports[0]


def test_progress_beyond_what_was_told(oracle: Oracle) -> None:
    heard(oracle).progress(2)
    assert len(reports) == 1
    assert "has missed" in reports[0]


def test_a_change_that_comes_again(oracle: Oracle) -> None:
    watcher = heard(oracle)
    for _ in range(2):
        watcher.changes(Changes(revision=1, changes=[A, B]))
    assert reports == ["watch: w1 is told of 1 after 1"]


def test_a_watch_goes_on_after_a_stream_that_broke(oracle: Oracle) -> None:
    watcher = heard(oracle)
    watcher.changes(Changes(revision=1, changes=[A], partial=True))
    watcher.breaks()
    watcher.begins(0, 0)
    watcher.changes(Changes(revision=1, changes=[A, B]))
    assert reports == []
    watcher.begins(1, 2)
    assert reports == ["watch: w1 begins after 2, and was to begin after 1"]


def test_compacted_is_said_when_it_is_so(oracle: Oracle) -> None:
    watcher = heard(oracle)
    watcher.ends_compacted(2)
    assert len(reports) == 1
    oracle.applies(entry_of(4, Command(compaction=Compaction(revision=2, limit=10))))
    watcher.ends_compacted(2)
    assert len(reports) == 1
