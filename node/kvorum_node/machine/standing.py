"""Where a state stands in the log, as META says it.

Rule: it is written in the batch of the records that it belongs to, always.
"""

import struct
from dataclasses import dataclass
from typing import Final

from kvorum.errors import StorageError
from kvorum_node.raft.types import GroupId, Index
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorum_node.storage.layout import Space

_NUMBER: Final = struct.Struct(">q")


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a state has come. All are 0 before the first entry."""

    applied: Index
    """The index of the last entry applied."""
    revision: int
    """The revision of the last transaction that wrote."""
    log_time_ms: int
    """The latest time stamped on an entry, in milliseconds since the Unix epoch."""
    oldest_revision: int = 0
    """The oldest that can be read; 0 before the first compaction."""
    trimmed_revision: int = 0
    """History through it was removed; it follows the oldest revision in steps."""

    @classmethod
    def load(cls, engine: Engine, space: Space) -> "Standing":
        """Raises StorageError if what is stored are no numbers."""

        def number(name: bytes) -> int:
            return _load(engine, space.group, layout.meta_key(space, name), name.decode()) or 0

        return cls(
            applied=Index(number(layout.META_APPLIED)),
            revision=number(layout.META_REVISION),
            log_time_ms=number(layout.META_LOG_TIME_MS),
            oldest_revision=number(layout.META_OLDEST_REVISION),
            trimmed_revision=number(layout.META_TRIMMED_REVISION),
        )

    def save(self, batch: Batch, space: Space, before: "Standing") -> None:
        """Write what has changed since it stood there."""
        for name, number, old in (
            (layout.META_APPLIED, self.applied, before.applied),
            (layout.META_REVISION, self.revision, before.revision),
            (layout.META_LOG_TIME_MS, self.log_time_ms, before.log_time_ms),
            (layout.META_OLDEST_REVISION, self.oldest_revision, before.oldest_revision),
            (layout.META_TRIMMED_REVISION, self.trimmed_revision, before.trimmed_revision),
        ):
            if number != old:
                batch.put(Family.META, layout.meta_key(space, name), _NUMBER.pack(number))


def load_staged(engine: Engine, group: GroupId) -> Index | None:
    """What the state that lies whole in the other space has applied; None if there is none.

    Raises StorageError if what is stored is no number.
    """
    number = _load(engine, group, layout.staged_key(group), "staged")
    return None if number is None else Index(number)


def save_staged(batch: Batch, group: GroupId, applied: Index) -> None:
    batch.put(Family.META, layout.staged_key(group), _NUMBER.pack(applied))


def _load(engine: Engine, group: GroupId, key: bytes, name: str) -> int | None:
    stored = engine.get(Family.META, key)
    if stored is None:
        return None
    if len(stored) != _NUMBER.size:
        raise StorageError(
            f"{name} of group {group} has {len(stored)} bytes instead of {_NUMBER.size}: "
            "the disk has altered it; replace this node"
        )
    (number,) = _NUMBER.unpack(stored)
    return int(number)
