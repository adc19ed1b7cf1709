"""The configurations that a log knows of: through truncations, cuts, snapshots and restarts."""

import random

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
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorum_node.storage.raft_log import RaftLogStore

GROUP = GroupId(1)


def members(count: int) -> Configuration:
    return Configuration.of({NodeId(n): f"host{n}:7100" for n in range(1, count + 1)})


def command(index: int, term: int = 1) -> Entry:
    return Entry(Index(index), Term(term), EntryKind.COMMANDS, b"data")


def change(index: int, count: int, term: int = 1) -> Entry:
    return Entry(Index(index), Term(term), EntryKind.CONFIGURATION, members(count).encode())


class Host:
    """Does what the driver does: a batch for each change, written at once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.log = RaftLogStore(engine, GROUP)

    def bootstrap(self, count: int) -> None:
        batch = Batch()
        self.log.bootstrap(batch, members(count))
        self.engine.write(batch)

    def append(self, *entries: Entry) -> None:
        batch = Batch()
        self.log.append(batch, entries)
        self.log.save_hard_state(batch, HardState(entries[-1].term))
        self.engine.write(batch)

    def cut(self, through: int) -> None:
        batch = Batch()
        self.log.cut(batch, Index(through))
        self.engine.write(batch)

    def restore(self, index: int, term: int, count: int, *following: Entry) -> None:
        batch = Batch()
        self.log.restore(batch, Position(Index(index), Term(term)), members(count))
        self.log.append(batch, following)
        self.log.save_hard_state(batch, HardState(Term(term), None, Index(index)))
        self.engine.write(batch)

    def known(self) -> list[tuple[int, int]]:
        """Index and number of members of each configuration, the same after a restart."""
        before = self.log.configurations()
        self.log = RaftLogStore(self.engine, GROUP)
        assert self.log.configurations() == before
        assert all(one == members(len(one.members)) for _, one in before)
        return [(index, len(one.members)) for index, one in before]

    def all(self) -> list[Entry]:
        first, last = self.log.first_index(), self.log.last_index()
        return [] if first > last else self.log.entries(first, Index(last + 1), 1 << 40)


@pytest.fixture
def host(engine: Engine) -> Host:
    return Host(engine)


def test_a_log_that_never_heard_of_its_group_knows_nobody(host: Host) -> None:
    assert host.known() == [(0, 0)]
    assert host.log.is_new()


def test_a_bootstrapped_log_knows_its_first_members(host: Host) -> None:
    host.bootstrap(3)
    assert host.known() == [(0, 3)]
    assert not host.log.is_new()
    with pytest.raises(AssertionError, match="group 1 has a log already"):
        host.log.bootstrap(Batch(), members(3))


def test_a_log_that_has_heard_from_its_group_is_not_bootstrapped(host: Host) -> None:
    host.append(command(1))
    assert not host.log.is_new()
    with pytest.raises(AssertionError, match="group 1 has a log already"):
        host.log.bootstrap(Batch(), members(3))


def test_a_configuration_counts_from_its_entry_on(host: Host) -> None:
    host.bootstrap(1)
    host.append(command(1), change(2, 2), command(3), change(4, 3))
    assert host.known() == [(0, 1), (2, 2), (4, 3)]


@pytest.mark.parametrize(
    ("first", "left"),
    [
        (5, [(0, 1), (2, 2), (4, 3)]),
        (4, [(0, 1), (2, 2)]),
        (3, [(0, 1), (2, 2)]),
        (2, [(0, 1)]),
        (1, [(0, 1)]),
    ],
)
def test_what_is_truncated_is_rolled_back(
    host: Host, first: int, left: list[tuple[int, int]]
) -> None:
    host.bootstrap(1)
    host.append(command(1), change(2, 2), command(3), change(4, 3), command(5))
    host.append(command(first, term=2))
    assert host.known() == left


def test_a_replacement_in_the_same_batch_rolls_back(host: Host) -> None:
    host.bootstrap(1)
    batch = Batch()
    host.log.append(batch, [change(1, 2), command(2)])
    host.log.append(batch, [command(1, term=2), change(2, 4, term=2)])
    host.log.save_hard_state(batch, HardState(Term(2)))
    host.engine.write(batch)
    assert host.known() == [(0, 1), (2, 4)]


@pytest.mark.parametrize(
    ("through", "left"),
    [
        (1, [(0, 1), (2, 2), (4, 3)]),
        (2, [(2, 2), (4, 3)]),
        (3, [(2, 2), (4, 3)]),
        (4, [(4, 3)]),
        (5, [(4, 3)]),
    ],
)
def test_a_cut_carries_forward_what_holds_at_the_start(
    host: Host, through: int, left: list[tuple[int, int]]
) -> None:
    host.bootstrap(1)
    host.append(command(1), change(2, 2), command(3), change(4, 3), command(5))
    host.cut(through)
    assert host.known() == left
    host.cut(5)
    assert host.known() == [(4, 3)]


def test_a_log_is_restored_to_begin_after_a_snapshot(host: Host) -> None:
    host.bootstrap(1)
    host.append(command(1), change(2, 2), command(3))
    host.restore(9, 4, 3)
    for _ in range(2):
        assert (host.log.first_index(), host.log.last_index()) == (10, 9)
        assert host.log.term(Index(9)) == 4
        assert host.all() == []
        assert host.log.log_bytes() == 0
        assert host.known() == [(9, 3)]
    with pytest.raises(Compacted):
        host.log.term(Index(8))
    host.append(command(10, 4), change(11, 4, 5))
    assert host.known() == [(9, 3), (11, 4)]
    assert host.all() == [command(10, 4), change(11, 4, 5)]


def test_entries_may_follow_a_restore_in_its_batch(host: Host) -> None:
    host.append(command(1), command(2), command(3))
    host.restore(2, 4, 3, change(3, 4, 4), command(4, 4))
    assert host.known() == [(2, 3), (3, 4)]
    assert host.all() == [change(3, 4, 4), command(4, 4)]


def test_what_a_batch_has_put_before_a_restore_does_not_come_back(host: Host) -> None:
    batch = Batch()
    host.log.append(batch, [command(1), command(2)])
    host.log.restore(batch, Position(Index(7), Term(2)), members(3))
    host.log.save_hard_state(batch, HardState(Term(2)))
    host.engine.write(batch)
    assert host.known() == [(7, 3)]
    assert host.all() == []


def test_a_restore_does_not_go_back(host: Host) -> None:
    host.append(*(command(index) for index in range(1, 6)))
    host.cut(4)
    with pytest.raises(AssertionError, match="restore to 4@1 a log that starts after 4@1"):
        host.log.restore(Batch(), Position(Index(4), Term(1)), members(3))


@pytest.mark.parametrize(
    "data", [b"\xff", members(3).encode() + b"\x78\1"], ids=["garbage", "a later field"]
)
def test_an_entry_that_holds_no_configuration_or_a_later_one_is_refused(
    host: Host, data: bytes
) -> None:
    broken = Entry(Index(1), Term(1), EntryKind.CONFIGURATION, data)
    with pytest.raises(StorageError, match="1@1 holds no configuration"):
        host.log.append(Batch(), [broken])
    key = layout.entry_key(GROUP, Index(1))
    batch = Batch()
    batch.put(Family.LOG, key, layout.encode_entry(key, broken))
    host.engine.write(batch)
    with pytest.raises(StorageError, match="1@1 holds no configuration"):
        RaftLogStore(host.engine, GROUP)


@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_a_list(engine: Engine, seed: int) -> None:
    """Random appends, conflicts, cuts and restores, with a restart after each."""
    rng = random.Random(seed)
    host = Host(engine)
    host.bootstrap(1)
    start, at_start, model, term = 0, (0, 1), list[Entry](), 1
    for _ in range(200):
        last = start + len(model)
        action = rng.random()
        if action < 0.7:
            first = rng.randint(max(start + 1, last - 5), last + 1)
            term += first <= last
            new = [
                change(first + i, rng.randint(1, 5), term)
                if rng.random() < 0.3
                else command(first + i, term)
                for i in range(rng.randint(1, 5))
            ]
            host.append(*new)
            model[first - start - 1 :] = new
        elif action < 0.9:
            through = rng.randint(start, last)
            host.cut(through)
            at_start = [at_start, *configurations_of(model[: through - start])][-1]
            del model[: through - start]
            start = through
        else:
            start = last + rng.randint(1, 5)
            at_start = (start, rng.randint(1, 5))
            host.restore(start, term, at_start[1])
            model.clear()
        assert host.known() == [at_start, *configurations_of(model)]
        assert host.all() == model


def configurations_of(entries: list[Entry]) -> list[tuple[int, int]]:
    return [
        (entry.index, len(Configuration.decode(entry.data).members))
        for entry in entries
        if entry.kind is EntryKind.CONFIGURATION
    ]
