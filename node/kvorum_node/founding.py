"""Beginning a cluster offline, in an empty directory: with nothing, or with a snapshot.

    begin      the directory of a node that is the only member of a new cluster (`kvorum init`)
    restore    the same, with the state that a snapshot file holds (`kvorum snapshot restore`)

The cluster gets an id of its own, so no node of another one listens to it. Others join it as
they join any cluster.

    1  the directory is locked, and marked as unfinished       storage/data_directory.py
    2  the state is written, synced, read again, compared
    3  the log: it begins after the state, and has its one member; synced
    4  the mark becomes the identity: from here on it is a node's directory

Broken off anywhere before 4, it is one that no node starts from. What fails clears it.

What goes on from a snapshot is another history than the one it was taken from. That one may
have given the next revisions to changes that are not in this one, and told clients of them.
So this one leaves out SKIPPED_REVISIONS, and remembers nothing before: a watch that resumes, a
read, a cursor or a check with a revision of the other one is told that it is compacted or has
changed, and is never answered with something else. All other numbers go on: the index, by
which the results of clients are kept, and log time, which the first leader carries on from its
wall clock, never backwards. So what has expired since the snapshot was taken is gone, and a
write that a client sends again is applied once.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from kvorum.snapshot_file import CHECKSUM_BYTES, SnapshotFile
from kvorum_node.machine import Machine, RowHasher, SnapshotDamaged
from kvorum_node.machine.snapshot import MAX_UNSYNCED_BYTES
from kvorum_node.node import DEFAULT_GROUP
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.types import HardState, Index, NodeId, Position, Term
from kvorum_node.snapshot_check import Report, compare
from kvorum_node.storage.data_directory import Identity, Storage
from kvorum_node.storage.engine import Batch
from kvorum_node.storage.raft_log import RaftLogStore

SKIPPED_REVISIONS: Final = 10**12
"""More than the old cluster has given since the snapshot: that would take it 231 days at 50,000
writes a second. There is room for nine million restores."""


@dataclass(frozen=True, slots=True)
class Founded:
    """A cluster that has begun."""

    identity: Identity
    address: str
    """Of its only member."""
    last: Position = Position(Index(0), Term(0))  # noqa: RUF009 - it is immutable
    """After which the log begins."""
    revision: int = 0


def begin(path: Path, *, node: NodeId, address: str) -> Founded:
    """Make the directory the only member of a new cluster, which holds nothing.

    Args:
        address: host:port where others are to reach it.

    Raises:
        DataDirectoryInUse: another process has it locked.
        StorageError: there is something in it, or it cannot be written.
    """
    with _founded(path, node, address) as (storage, founded):
        log, batch = RaftLogStore(storage.log, DEFAULT_GROUP), Batch()
        log.bootstrap(batch, Configuration.of({node: address}))
        _write_log(storage, batch)
    return founded


def restore(
    path: Path,
    file: SnapshotFile,
    *,
    node: NodeId,
    address: str,
    written: Report,
    checked: Report,
) -> Founded:
    """Make the directory the only member of a new cluster, with the state that the file holds.

    Args:
        address: host:port where others are to reach it.
        written: told how many bytes of the file were written.
        checked: told how many bytes of its content were read again.

    Raises:
        SnapshotFileDamaged: the file is not whole.
        DataDirectoryInUse, StorageError: as `begin`.
    """
    header = file.header
    last = Position(Index(header.index), Term(header.term))
    with _founded(path, node, address) as (storage, founded):
        machine = Machine(storage.state, DEFAULT_GROUP)
        _write_state(storage, machine, file, written)
        _check_state(machine, file, checked)
        machine.skip_revisions(SKIPPED_REVISIONS)
        storage.state.sync()
        log, batch = RaftLogStore(storage.log, DEFAULT_GROUP), Batch()
        log.restore(batch, last, Configuration.of({node: address}))
        log.save_hard_state(batch, HardState(last.term, None, last.index))
        _write_log(storage, batch)
        revision = machine.revision
    return Founded(founded.identity, address, last, revision)


@contextmanager
def _founded(path: Path, node: NodeId, address: str) -> Iterator[tuple[Storage, Founded]]:
    identity = Identity.single(node)
    with Storage.found(path, identity) as storage:
        yield storage, Founded(identity, address)


def _write_state(storage: Storage, machine: Machine, file: SnapshotFile, written: Report) -> None:
    """Put the state on the disk, as the one that holds."""
    index = Index(file.header.index)
    staging = machine.stage_snapshot()
    try:
        for chunk in file.chunks():
            staging.write(chunk)
            if staging.unsynced_bytes >= MAX_UNSYNCED_BYTES:
                storage.state.sync()
                staging.synced()
            written(file.bytes_read)
        staging.finish(index)
    except SnapshotDamaged as error:
        raise file.damaged(str(error)) from error
    storage.state.sync()
    machine.install(index)
    storage.state.sync()


def _check_state(machine: Machine, file: SnapshotFile, checked: Report) -> None:
    """Read again what was written: it must be the content of the file, byte for byte."""
    hasher, content, content_bytes = RowHasher(), blake2b(digest_size=CHECKSUM_BYTES), 0
    with closing(machine.read_snapshot(hasher)) as reader:
        while chunk := reader.chunk():
            content.update(chunk)
            content_bytes += len(chunk)
            checked(content_bytes)
    if content.digest() != file.trailer.checksum:
        raise file.damaged("what was written to the disk is not what it holds")
    compare(file, hasher, machine)


def _write_log(storage: Storage, batch: Batch) -> None:
    storage.log.write(batch)
    storage.log.sync()
