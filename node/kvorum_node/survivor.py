"""A data directory that is left of a cluster whose majority is lost for good.

`examine` says what it holds; `force_new_cluster` makes a cluster of its one node.

That is the only act which breaks Raft's promise on purpose. A write that was
acknowledged by a majority without this node is lost. An entry that no majority had
becomes permanent, though nobody was told that it would. And if the others are not
lost, there are two clusters then, which go different ways. So the two are kept
apart by their ids: no node of the one listens to the other.

The order of `force_new_cluster`, which may be cut off anywhere and then be repeated:

    1  the new cluster id, durably. From here on, nobody of the old cluster is listened
       to; the log still has its old members, so the node cannot decide anything alone
    2  one batch of the log, synced: the configuration with this node as the only voter,
       in a term that nobody has used, and no vote. From here on, the node leads alone

The other way round, a node between the two would lead alone in the old cluster.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvorum.errors import KvorumError
from kvorum_node.machine import Machine
from kvorum_node.node import DEFAULT_GROUP
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.types import (
    Entry,
    EntryKind,
    HardState,
    Index,
    NodeId,
    Position,
    Term,
    node_name,
)
from kvorum_node.storage.data_directory import (
    Identity,
    Storage,
    replace_identity,
    stored_identity,
)
from kvorum_node.storage.engine import Batch
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.storage.recovery import reconcile


class CannotRecover(KvorumError):
    """The directory is none from which a cluster could be made."""

    reason = "CANNOT_RECOVER"


@dataclass(frozen=True, slots=True)
class Survivor:
    """What a data directory holds."""

    identity: Identity
    last: Position
    """The last entry of the log: what survivors are compared by."""
    hard_state: HardState
    applied: Index
    revision: int
    """Of the state at `applied`."""
    configuration: Configuration
    """The one that holds: that of the last entry which has one, committed or not."""

    @property
    def node(self) -> NodeId:
        return self.identity.node_id

    @property
    def address(self) -> str:
        """Under which the others know it."""
        return self.configuration.addresses.get(self.node, "")

    @property
    def committed(self) -> Index:
        """Through which the log is known to be committed: what is applied is, too, though the
        commit index that was last written may be older."""
        return max(self.hard_state.commit, self.applied)

    @property
    def is_sole_voter(self) -> bool:
        """Whether it decides alone already."""
        return self.configuration.all_voters == {self.node}

    @property
    def is_embedded(self) -> bool:
        """Whether it is a store of a program: alone, and without an address."""
        return self.is_sole_voter and not self.address


def examine(path: Path) -> Survivor:
    """Say what the directory holds; as a start of the node would, this checks all of the log.

    Raises:
        CannotRecover: it holds no node.
        DataDirectoryInUse: a node is running on it.
        StorageError: it cannot be believed.
    """
    with _opened(path) as (_, _, survivor):
        return survivor


def force_new_cluster(path: Path, *, address: str = "") -> Survivor:
    """Make the node the only member of a new cluster, with all the log and the state it has.

    Args:
        address: host:port where others are to reach it from now on; if empty, where they
            did before. A store that was embedded in a program had none.

    Returns what the directory holds then.

    Raises:
        As `examine`; CannotRecover also if the node is no member of its cluster, or would
        have no address.
    """
    with _opened(path) as (storage, log, survivor):
        node = survivor.node
        if node not in survivor.configuration.members:
            raise CannotRecover(
                f"{node_name(node)} is no member of its own cluster: it was removed, or has never"
                " heard of the others. Choose another survivor, or restore a backup"
            )
        address = address or survivor.address
        if not address:
            raise CannotRecover(
                f"{path} is a store that was embedded in a program, without an address: give it one"
                " with --advertise HOST:PORT"
            )
        identity = survivor.identity.in_new_cluster()
        replace_identity(path, identity)

        alone = Configuration(
            voters=frozenset({node}),
            addresses={node: address},
            last_id=survivor.configuration.last_id,
        )
        term = Term(max(survivor.hard_state.term, survivor.last.term) + 1)
        entry = Entry(Index(survivor.last.index + 1), term, EntryKind.CONFIGURATION, alone.encode())
        batch = Batch()
        log.append(batch, [entry])
        log.save_hard_state(batch, HardState(term, None, survivor.committed))
        storage.log.write(batch)
        storage.log.sync()
    return examine(path)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Storage, RaftLogStore, Survivor]]:
    """The directory, locked, with a snapshot that was cut short completed or forgotten."""
    identity = stored_identity(path)
    if identity is None:
        raise CannotRecover(f"{path} holds no node")
    storage = Storage.open(path, identity)
    try:
        log = RaftLogStore(storage.log, DEFAULT_GROUP)
        machine = Machine(storage.state, DEFAULT_GROUP)
        reconcile(log, machine)
        last = log.last_index()
        survivor = Survivor(
            identity=identity,
            last=Position(last, log.term(last)),
            hard_state=log.hard_state(),
            applied=machine.applied,
            revision=machine.revision,
            configuration=log.configurations()[-1][1],
        )
        yield storage, log, survivor
    finally:
        storage.close()
