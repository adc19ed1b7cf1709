"""What is left of a cluster: looked into, and made a cluster of its own; cut off anywhere."""

from pathlib import Path

import pytest

from kvorum.errors import DataDirectoryInUse, StorageError
from kvorum_node import survivor
from kvorum_node.machine import Machine
from kvorum_node.node import DEFAULT_GROUP
from kvorum_node.raft.configuration import AddLearner, Configuration, Remove
from kvorum_node.raft.types import Entry, EntryKind, HardState, Index, NodeId, Position, Term
from kvorum_node.storage.data_directory import Identity, Storage
from kvorum_node.storage.engine import Batch
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.survivor import CannotRecover, examine, force_new_cluster

MEMBERS = {NodeId(n): f"h{n}:7100" for n in (1, 2, 3)}
IDENTITY = Identity("old", NodeId(1))


def entry(index: int, term: int, configuration: Configuration | None = None) -> Entry:
    if configuration is None:
        return Entry(Index(index), Term(term), EntryKind.NOOP)
    return Entry(Index(index), Term(term), EntryKind.CONFIGURATION, configuration.encode())


def fill(path: Path, *more: Entry, configuration: Configuration | None = None) -> None:
    """The directory of n1: it has voted for n2 in term 3, and applied three of five entries."""
    storage = Storage.open(path, IDENTITY)
    log = RaftLogStore(storage.log, DEFAULT_GROUP)
    batch = Batch()
    log.bootstrap(batch, configuration or Configuration.of(MEMBERS))
    entries = [*(entry(index, 1) for index in (1, 2, 3)), entry(4, 2), entry(5, 2), *more]
    log.append(batch, entries)
    log.save_hard_state(batch, HardState(Term(3), NodeId(2), Index(4)))
    storage.log.write(batch)
    storage.log.sync()
    Machine(storage.state, DEFAULT_GROUP).apply(entries[:3])
    storage.state.sync()
    storage.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fill(tmp_path / "n1")
    return tmp_path / "n1"


def test_a_directory_says_what_it_holds(path: Path) -> None:
    found = examine(path)
    assert found.identity == IDENTITY
    assert found.last == Position(Index(5), Term(2))
    assert found.hard_state == HardState(Term(3), NodeId(2), Index(4))
    assert (found.applied, found.revision) == (3, 0)
    assert found.configuration == Configuration.of(MEMBERS)
    assert found.address == "h1:7100"
    assert examine(path) == found


def test_a_running_node_is_left_alone(path: Path) -> None:
    storage = Storage.open(path, IDENTITY)
    try:
        for act in (examine, force_new_cluster):
            with pytest.raises(DataDirectoryInUse):
                act(path)
    finally:
        storage.close()
    assert examine(path).identity == IDENTITY


def test_where_there_is_no_node_none_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for nothing in (tmp_path / "nothing", tmp_path, tmp_path / "file"):
        with pytest.raises(CannotRecover, match="holds no node"):
            force_new_cluster(nothing)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_survivor_becomes_the_only_voter_with_all_that_it_has(path: Path) -> None:
    made = force_new_cluster(path)
    assert made.identity.node_id == 1
    assert made.identity.cluster_id not in ("", "old")
    assert made.last == Position(Index(6), Term(4))
    # No vote: the one that was given is of a term of the old cluster.
    assert made.hard_state == HardState(Term(4), None, Index(4))
    assert made.applied == 3
    assert made.configuration == Configuration(
        voters=frozenset({NodeId(1)}), addresses={NodeId(1): "h1:7100"}, last_id=NodeId(3)
    )
    storage = Storage.open(path, made.identity)
    try:
        log = RaftLogStore(storage.log, DEFAULT_GROUP)
        assert log.entries(Index(1), Index(6), 1_000_000) == [
            *(entry(index, 1) for index in (1, 2, 3)),
            entry(4, 2),
            entry(5, 2),
        ]
    finally:
        storage.close()


def test_it_may_live_elsewhere_now(path: Path) -> None:
    made = force_new_cluster(path, address="h9:7100")
    assert made.address == "h9:7100"
    assert force_new_cluster(path).address == "h9:7100"


def test_without_an_address_nobody_could_join_it(tmp_path: Path) -> None:
    fill(tmp_path, configuration=Configuration.of({NodeId(1): ""}))
    with pytest.raises(CannotRecover, match="give it one with --advertise"):
        force_new_cluster(tmp_path)
    assert examine(tmp_path).identity == IDENTITY


def test_a_change_that_was_under_way_is_over(tmp_path: Path) -> None:
    joint = Configuration.of(MEMBERS).enter_joint([Remove(NodeId(1))])
    fill(tmp_path, entry(6, 3, joint))
    assert force_new_cluster(tmp_path).configuration.all_voters == {1}


def test_a_learner_can_survive_too(tmp_path: Path) -> None:
    others = {node: address for node, address in MEMBERS.items() if node != 1}
    learning = Configuration.of(others).change_in_one_step([AddLearner(NodeId(9), "h9:7100")])
    storage = Storage.open(tmp_path, Identity("old", NodeId(9)))
    log = RaftLogStore(storage.log, DEFAULT_GROUP)
    batch = Batch()
    log.bootstrap(batch, learning)
    storage.log.write(batch)
    storage.log.sync()
    storage.close()
    made = force_new_cluster(tmp_path)
    assert made.configuration.voters == {9}
    assert made.configuration.last_id == 9
    assert made.last == Position(Index(1), Term(1))


@pytest.mark.parametrize("known", [Configuration(), Configuration.of({NodeId(2): "h2:7100"})])
def test_whoever_is_no_member_has_no_cluster_to_save(tmp_path: Path, known: Configuration) -> None:
    fill(tmp_path, configuration=known)
    with pytest.raises(CannotRecover, match="n1 is no member of its own cluster"):
        force_new_cluster(tmp_path)
    assert examine(tmp_path).identity == IDENTITY


def test_cut_off_before_the_id_nothing_has_happened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = examine(path)

    def fail(*_: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(survivor, "replace_identity", fail)
        with pytest.raises(StorageError, match="full"):
            force_new_cluster(path)
    assert examine(path) == before


def test_cut_off_after_the_id_it_is_of_no_use_to_anybody_until_repeated(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = examine(path)

    def fail(*_: object) -> None:
        raise StorageError("the power is gone")

    with monkeypatch.context() as broken:
        broken.setattr(RaftLogStore, "append", fail)
        with pytest.raises(StorageError, match="gone"):
            force_new_cluster(path)
    between = examine(path)
    # Apart from the old cluster already, and with the old members: it cannot decide alone.
    assert between.identity.cluster_id != "old"
    assert (between.last, between.configuration) == (before.last, before.configuration)
    assert between.hard_state == before.hard_state
    assert force_new_cluster(path).configuration.voters == {1}


def test_it_can_be_repeated(path: Path) -> None:
    once = force_new_cluster(path)
    again = force_new_cluster(path)
    assert again.identity.cluster_id != once.identity.cluster_id
    assert again.last == Position(Index(7), Term(5))
    assert again.configuration == once.configuration
