"""RaftLogStore on every engine, reopened often."""

import random
from pathlib import Path

import pytest

from kvorum.errors import StorageError
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.log import Compacted
from kvorum_node.raft.types import (
    Entry,
    EntryKind,
    GroupId,
    HardState,
    Index,
    NodeId,
    Position,
    Term,
)
from kvorum_node.storage import layout, raft_log
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.storage.rocks import RocksEngine, Role

GROUP, OTHER = GroupId(1), GroupId(2)
EVERYTHING = 1 << 40


def entry(index: int, term: int, data: bytes = b"data") -> Entry:
    return Entry(Index(index), Term(term), EntryKind.COMMANDS, data)


def entries_of(first: int, *terms: int) -> list[Entry]:
    return [entry(first + i, term, b"%d@%d" % (first + i, term)) for i, term in enumerate(terms)]


class Host:
    """Does what the driver does: a batch for each change, written at once."""

    def __init__(self, engine: Engine, group: GroupId = GROUP) -> None:
        self.engine = engine
        self.group = group
        self.log = RaftLogStore(engine, group)

    def append(self, *entries: Entry) -> None:
        """With a hard state of the term: a node never has entries of a later one."""
        batch = Batch()
        self.log.append(batch, entries)
        self.log.save_hard_state(batch, HardState(entries[-1].term))
        self.engine.write(batch)

    def cut(self, through: int) -> None:
        batch = Batch()
        self.log.cut(batch, Index(through))
        self.engine.write(batch)

    def reopen(self) -> None:
        self.log = RaftLogStore(self.engine, self.group)

    def all(self) -> list[Entry]:
        first, last = self.log.first_index(), self.log.last_index()
        if first > last:
            return []
        return self.log.entries(first, Index(last + 1), EVERYTHING)


@pytest.fixture
def host(engine: Engine) -> Host:
    return Host(engine)


@pytest.fixture(params=[False, True], ids=["", "reopened"])
def check_reopened(request: pytest.FixtureRequest) -> bool:
    """Whether to look at what is in memory, or at what a restart reads from the disk."""
    return bool(request.param)


def test_a_new_log_is_empty(host: Host) -> None:
    log = host.log
    assert (log.first_index(), log.last_index(), log.term(Index(0))) == (1, 0, 0)
    assert log.hard_state() == HardState()
    assert log.configurations() == ((0, Configuration()),)
    assert log.is_new()
    assert log.log_bytes() == 0


def test_what_is_appended_is_read(host: Host, check_reopened: bool) -> None:
    written = entries_of(1, 1, 1, 2, 5)
    host.append(*written[:1])
    host.append(*written[1:])
    if check_reopened:
        host.reopen()
    assert host.all() == written
    assert host.log.last_index() == 4
    assert [host.log.term(Index(i)) for i in range(5)] == [0, 1, 1, 2, 5]
    assert host.log.log_bytes() == sum(len(one.data) for one in written)


def test_an_append_replaces_what_conflicts(host: Host, check_reopened: bool) -> None:
    host.append(*entries_of(1, 1, 1, 2, 2, 3))
    replacing = entries_of(3, 4)
    host.append(*replacing)
    if check_reopened:
        host.reopen()
    assert host.all() == [*entries_of(1, 1, 1), *replacing]
    assert [host.log.term(Index(i)) for i in range(4)] == [0, 1, 1, 4]
    with pytest.raises(IndexError, match="4 lies beyond the last entry 3"):
        host.log.term(Index(4))


def test_appends_of_one_batch_replace_one_another(host: Host) -> None:
    """A batch deletes before it puts: what it puts first must not come back."""
    batch = Batch()
    host.log.append(batch, entries_of(1, 1, 1, 1, 1))
    host.log.append(batch, entries_of(2, 2))
    host.log.save_hard_state(batch, HardState(Term(2)))
    host.engine.write(batch)
    host.reopen()
    assert host.all() == [*entries_of(1, 1), *entries_of(2, 2)]


def test_a_cut_in_the_batch_of_an_append(host: Host) -> None:
    batch = Batch()
    host.log.append(batch, entries_of(1, 1, 1, 1))
    host.log.cut(batch, Index(2))
    host.log.save_hard_state(batch, HardState(Term(1)))
    host.engine.write(batch)
    host.reopen()
    assert host.all() == entries_of(3, 1)


def test_a_cut_drops_the_oldest(host: Host, check_reopened: bool) -> None:
    host.append(*entries_of(1, 1, 1, 2, 3, 3))
    host.cut(3)
    host.cut(3)
    if check_reopened:
        host.reopen()
    assert (host.log.first_index(), host.log.last_index()) == (4, 5)
    assert host.all() == entries_of(4, 3, 3)
    assert host.log.term(Index(3)) == 2
    assert host.log.log_bytes() == len(b"4@3" + b"5@3")
    with pytest.raises(Compacted, match="2 was cut from the log, which starts after 3@2"):
        host.log.term(Index(2))
    with pytest.raises(Compacted):
        host.log.entries(Index(3), Index(5), EVERYTHING)


def test_a_log_that_is_cut_to_nothing_goes_on(host: Host, check_reopened: bool) -> None:
    host.append(*entries_of(1, 1, 2))
    host.cut(2)
    if check_reopened:
        host.reopen()
    assert (host.log.first_index(), host.log.last_index()) == (3, 2)
    assert host.log.term(Index(2)) == 2
    assert host.log.log_bytes() == 0
    host.append(*entries_of(3, 2))
    host.reopen()
    assert host.all() == entries_of(3, 2)


@pytest.mark.parametrize(
    ("max_bytes", "count"), [(-1, 1), (0, 1), (9, 1), (10, 1), (19, 1), (20, 2), (30, 3), (99, 3)]
)
def test_entries_stop_before_they_exceed_the_size(host: Host, max_bytes: int, count: int) -> None:
    host.append(*(entry(i, 1, b"ten bytes.") for i in range(1, 6)))
    assert len(host.log.entries(Index(2), Index(5), max_bytes)) == count


def test_entries_without_data_are_not_limited_by_size(host: Host) -> None:
    host.append(*(entry(i, 1, b"") for i in range(1, 6)))
    assert len(host.log.entries(Index(1), Index(6), 0)) == 5


def test_the_index_at_a_size(host: Host) -> None:
    host.append(*(entry(i, 1, b"ten bytes.") for i in range(1, 6)))
    host.cut(1)
    found = [host.log.index_at_bytes(size) for size in (1, 10, 11, 20, 40, 41, 999)]
    assert found == [2, 2, 3, 3, 5, 5, 5]


def test_old_entries_are_read_from_the_disk(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raft_log, "CACHE_BYTES", 100)
    written = [entry(i, 1 + i // 50, b"%010d" % i) for i in range(1, 201)]
    for start in range(0, 200, 7):
        host.append(*written[start : start + 7])
        assert 1 <= len(host.log._cache) <= 10
    rng = random.Random(1)
    for _ in range(100):
        low, high = sorted(rng.sample(range(1, 202), 2))
        assert host.log.entries(Index(low), Index(high), EVERYTHING) == written[low - 1 : high - 1]
    host.reopen()
    assert len(host.log._cache) <= 10
    assert host.all() == written


def test_the_newest_entry_is_in_memory_whatever_its_size(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raft_log, "CACHE_BYTES", 100)
    host.append(*entries_of(1, 1, 1))
    host.append(entry(3, 1, bytes(1000)))
    assert [one.index for one in host.log._cache] == [3]


def test_entries_without_data_do_not_fill_the_memory(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raft_log, "CACHE_ENTRIES", 8)
    for index in range(1, 30):
        host.append(entry(index, 1, b""))
        assert len(host.log._cache) <= 8
    assert len(host.all()) == 29


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param(entries_of(5, 3), id="leaves a gap"),
        pytest.param(entries_of(1, 3), id="replaces what was cut"),
        pytest.param([*entries_of(4, 3), *entries_of(6, 3)], id="has a gap within"),
        pytest.param(entries_of(4, 1), id="goes back a term"),
        pytest.param(entries_of(4, 4, 3), id="goes back a term within"),
    ],
)
def test_an_append_that_does_not_join_is_a_bug(host: Host, entries: list[Entry]) -> None:
    host.append(*entries_of(1, 1, 2, 2))
    host.cut(1)
    with pytest.raises(AssertionError):
        host.log.append(Batch(), entries)


@pytest.mark.parametrize("through", [1, 6])
def test_a_cut_outside_the_log_is_a_bug(host: Host, through: int) -> None:
    host.append(*entries_of(1, 1, 1, 1, 1, 1))
    host.cut(2)
    with pytest.raises(AssertionError):
        host.log.cut(Batch(), Index(through))


@pytest.mark.parametrize(("low", "high"), [(2, 2), (3, 2), (1, 4), (4, 5)])
def test_entries_beyond_the_log_are_a_bug(host: Host, low: int, high: int) -> None:
    host.append(*entries_of(1, 1, 1))
    with pytest.raises(AssertionError):
        host.log.entries(Index(low), Index(high), EVERYTHING)


def test_nothing_to_append_is_nothing(host: Host) -> None:
    batch = Batch()
    host.log.append(batch, [])
    assert batch.is_empty


def test_the_hard_state_is_kept(host: Host, check_reopened: bool) -> None:
    host.append(*entries_of(1, 1, 1))
    for state in (HardState(Term(2), NodeId(3), Index(1)), HardState(Term(4), None, Index(2))):
        batch = Batch()
        host.log.save_hard_state(batch, state)
        host.engine.write(batch)
        if check_reopened:
            host.reopen()
        assert host.log.hard_state() == state


def test_groups_share_an_engine_and_a_batch(engine: Engine) -> None:
    one, two = Host(engine), Host(engine, OTHER)
    batch = Batch()
    one.log.append(batch, entries_of(1, 1, 1, 1))
    two.log.append(batch, entries_of(1, 7))
    one.log.save_hard_state(batch, HardState(Term(1)))
    two.log.save_hard_state(batch, HardState(Term(7)))
    engine.write(batch)
    one.cut(2)
    one.append(*entries_of(3, 2))
    one.reopen()
    two.reopen()
    assert one.all() == entries_of(3, 2)
    assert two.all() == entries_of(1, 7)
    assert two.log.hard_state().term == 7


# What the disk may not do.


def corrupt(host: Host, key: bytes, value: bytes | None) -> None:
    batch = Batch()
    if value is None:
        batch.delete(Family.LOG, key)
    else:
        batch.put(Family.LOG, key, value)
    host.engine.write(batch)


def refused(host: Host, match: str) -> None:
    with pytest.raises(StorageError, match=match):
        host.reopen()


@pytest.fixture
def stored(host: Host) -> Host:
    batch = Batch()
    host.log.bootstrap(batch, Configuration.of({NodeId(1): "a:1"}))
    host.engine.write(batch)
    host.append(*entries_of(1, 1, 1, 2, 2, 3))
    host.cut(2)
    batch = Batch()
    host.log.save_hard_state(batch, HardState(Term(3), None, Index(4)))
    host.engine.write(batch)
    host.reopen()
    return host


@pytest.mark.parametrize(
    "key",
    [
        layout.entry_key(GROUP, Index(3)),
        layout.entry_key(GROUP, Index(5)),
        layout.hard_state_key(GROUP),
        layout.configuration_key(GROUP),
        layout.start_key(GROUP),
    ],
)
def test_an_altered_record_is_refused(stored: Host, key: bytes) -> None:
    value = stored.engine.get(Family.LOG, key)
    assert value is not None
    corrupt(stored, key, value[:-1] + bytes([value[-1] ^ 1]))
    refused(stored, "checksum does not match.*replace this node")


def test_an_entry_that_is_altered_while_the_node_runs_is_refused(
    stored: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raft_log, "CACHE_BYTES", 1)
    stored.reopen()
    key = layout.entry_key(GROUP, Index(3))
    corrupt(stored, key, bytes(30))
    with pytest.raises(StorageError, match="checksum"):
        stored.all()
    corrupt(stored, key, None)
    with pytest.raises(StorageError, match=r"\[3, 6\) are not all there any more"):
        stored.all()


def test_an_entry_in_the_place_of_another_is_refused(stored: Host) -> None:
    value = stored.engine.get(Family.LOG, layout.entry_key(GROUP, Index(4)))
    corrupt(stored, layout.entry_key(GROUP, Index(5)), value)
    refused(stored, "checksum")


def test_a_missing_entry_is_refused(stored: Host) -> None:
    corrupt(stored, layout.entry_key(GROUP, Index(4)), None)
    refused(stored, "3@2 is followed by 5@3, with a gap")


def test_a_missing_start_is_refused(stored: Host) -> None:
    corrupt(stored, layout.start_key(GROUP), None)
    refused(stored, "0@0 is followed by 3@2, with a gap")


def test_an_entry_before_the_start_is_refused(stored: Host) -> None:
    key = layout.entry_key(GROUP, Index(2))
    corrupt(stored, key, layout.encode_entry(key, entry(2, 1)))
    refused(stored, "2@1 is followed by 2@1")


def test_a_term_that_goes_back_is_refused(stored: Host) -> None:
    key = layout.entry_key(GROUP, Index(5))
    corrupt(stored, key, layout.encode_entry(key, entry(5, 1)))
    refused(stored, "4@2 is followed by 5@1, of an older term")


def test_a_log_that_ends_before_what_was_committed_is_refused(stored: Host) -> None:
    corrupt(stored, layout.entry_key(GROUP, Index(5)), None)
    stored.reopen()
    corrupt(stored, layout.entry_key(GROUP, Index(4)), None)
    refused(stored, "ends at 3@2, but entries through 4 were committed.*replace this node")


def test_a_lost_hard_state_is_refused(stored: Host) -> None:
    corrupt(stored, layout.hard_state_key(GROUP), None)
    refused(stored, "ends at 5@3, but the node has only reached term 0")


@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_a_list(engine: Engine, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random appends, conflicts and cuts, and restarts in between."""
    monkeypatch.setattr(raft_log, "CACHE_BYTES", 300)
    rng = random.Random(seed)
    host = Host(engine)
    start, model, term = Position(Index(0), Term(0)), list[Entry](), 1
    for _ in range(500):
        last = start.index + len(model)
        if rng.random() < 0.1:
            term += 1
        if rng.random() < 0.75:
            first = rng.randint(max(start.index + 1, last - 5), last + 1)
            if first <= last:
                term += 1
            new = [
                entry(first + i, term, rng.randbytes(rng.randrange(30)))
                for i in range(rng.randint(1, 8))
            ]
            host.append(*new)
            model[first - start.index - 1 :] = new
        elif model and rng.random() < 0.3:
            through = rng.randint(start.index, last)
            host.cut(through)
            dropped = through - start.index
            if dropped:
                start = Position(Index(through), model[dropped - 1].term)
                del model[:dropped]
        else:
            host.reopen()
        assert host.all() == model
        assert host.log.log_bytes() == sum(len(one.data) for one in model)
        assert host.log.term(start.index) == start.term
        for one in model:
            assert host.log.term(one.index) == one.term


def test_a_restart_of_the_engine_brings_the_log_back(tmp_path: Path) -> None:
    engine = RocksEngine.open(tmp_path / "log", Role.LOG)
    Host(engine).append(*entries_of(1, 1, 1, 2))
    engine.close()
    reopened = RocksEngine.open(tmp_path / "log", Role.LOG, create=False)
    assert Host(reopened).all() == entries_of(1, 1, 1, 2)
    reopened.close()
