"""Is a snapshot file what it says? Without a node, and without a disk to write to.

Its bytes are checked by kvorum/snapshot_file.py, as they are read. Here they are taken apart
into the rows of the state, and these must have the content hash that the node has taken of
its own, and stand where the header says.
"""

from collections.abc import Callable
from typing import Protocol

from kvorum.errors import StorageError
from kvorum.snapshot_file import SnapshotFile
from kvorum_node.machine import Decoder, RowHasher, SnapshotDamaged
from kvorum_node.machine.standing import Standing
from kvorum_node.raft.types import GroupId, Index
from kvorum_node.storage.engine import Batch, Family
from kvorum_node.storage.layout import Space
from kvorum_node.storage.memory import MemoryEngine

Report = Callable[[int], None]
"""Told, now and then, how many bytes are done."""

_SPACE = Space(GroupId(1), 0)


class State(Protocol):
    """Where a state stands: a Standing, or a Machine."""

    @property
    def applied(self) -> Index: ...
    @property
    def revision(self) -> int: ...
    @property
    def log_time_ms(self) -> int: ...


def verify(file: SnapshotFile, report: Report) -> None:
    """Read all of the file, in bounded memory. `report` is told how much of it was read.

    Raises SnapshotFileDamaged, which says what is wrong.
    """
    decoder, hasher, meta = Decoder(), RowHasher(), Batch()
    for chunk in file.chunks():
        try:
            for family, key, value in decoder.decode(chunk):
                hasher.add(family, key, value)
                if family is Family.META:
                    meta.put(family, _SPACE.prefix + key, value)
        except (SnapshotDamaged, StorageError) as error:
            raise file.damaged(str(error)) from error
        report(file.bytes_read)
    try:
        decoder.finish()
        engine = MemoryEngine()
        engine.write(meta)
        standing = Standing.load(engine, _SPACE)
    except (SnapshotDamaged, StorageError) as error:
        raise file.damaged(str(error)) from error
    compare(file, hasher, standing)


def compare(file: SnapshotFile, hasher: RowHasher, state: State) -> None:
    """Raise SnapshotFileDamaged unless the rows of the state, and where it stands, are those."""
    header, trailer = file.header, file.trailer
    if (trailer.content_hash, trailer.record_count) != (hasher.digest(), hasher.record_count):
        raise file.damaged("its records are not those that the node has hashed")
    says = (header.index, header.revision, header.log_time_ms)
    stands = (state.applied, state.revision, state.log_time_ms)
    if says != stands:
        raise file.damaged(
            "the header says index {}, revision {} and log time {}; the state {}, {} and {}".format(
                *says, *stands
            )
        )
