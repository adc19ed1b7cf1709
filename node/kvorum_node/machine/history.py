"""The store as it was at an earlier revision.

How: KEYS holds, for each change of a key, what the key held before it. So a key at a
revision is what its first later change says, and without one, what DATA says.

Expiry is an event like a delete: a record that had expired and was not swept yet is still
there at a past revision.
"""

from collections.abc import Iterator
from typing import NamedTuple

from kvorum.errors import Compacted, FutureRevision
from kvorum_node.machine import records
from kvorum_node.machine.tables import Tables
from kvorum_node.storage import layout
from kvorum_node.storage.layout import EventKind
from kvorumpb.v1.command_pb2 import Record


class PastEvent(NamedTuple):
    """An event as history has it: without the records."""

    revision: int
    ordinal: int
    """Its place in the revision, from 0."""
    kind: EventKind
    log_time_ms: int
    key: bytes


class History:
    """The events after the oldest revision, as they are at the moment; not to be kept."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def events(self, revision: int, ordinal: int = 0) -> Iterator[PastEvent]:
        """All events from this place on, in order."""
        for stored, event in self._tables.history.scan(layout.history_key(revision, ordinal)):
            at, number = layout.split_history_key(stored)
            yield PastEvent(at, number, *layout.decode_event(event))

    def put_at(self, key: bytes, revision: int) -> bytes | None:
        """What was put at the revision, as it is stored; None if that is not kept.

        If the key was touched since, with the expiry of then.
        """
        data = self._tables.data.get(key)
        if data is not None:
            record = Record()
            records.load(record, key, data)
            if record.revision == revision:
                return data
        after = self._tables.keys.scan(
            layout.version_key(key, revision + 1), layout.version_key(key, 2**64 - 1)
        )
        return next((data for _, data in after), None) or None

    def before(self, key: bytes, revision: int) -> bytes | None:
        """What the key held before the revision, which has changed it, as it is stored."""
        return self._tables.keys.get(layout.version_key(key, revision)) or None

    def value_of(self, record: Record, key: bytes) -> bytes:
        """The value of a record that is kept, which lies by itself. Raises StorageError."""
        return records.value_apart(record, key, self._tables.values)


def require_readable(revision: int, oldest: int, newest: int) -> None:
    """Raises Compacted or FutureRevision unless the store can be read as it was then."""
    if revision < oldest:
        raise Compacted(
            f"revision {revision} was compacted; the oldest that can be read is {oldest}",
            revision=revision,
            oldest_revision=oldest,
        )
    if revision > newest:
        raise FutureRevision(
            f"revision {revision} is not there yet; the newest is {newest}",
            revision=revision,
            newest_revision=newest,
        )


def record_at(
    tables: Tables, key: bytes, revision: int, *, newest: int | None = None
) -> Record | None:
    """What the key held when the store was at the revision, which must be readable.

    A large value is not in it (records.complete).
    `newest` is where the store is now, if the caller knows: at it, nothing has changed since.
    """
    changed = None
    if revision != newest:
        end = layout.version_key(key, 2**64 - 1)
        changed = next(tables.keys.scan(layout.version_key(key, revision + 1), end), None)
    data = tables.data.get(key) if changed is None else changed[1]
    return records.read(key, data) if data else None
