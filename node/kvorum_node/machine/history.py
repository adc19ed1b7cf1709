"""The store as it was at an earlier revision.

How: KEYS holds, for each change of a key, what the key held before it. So a key at a
revision is what its first later change says, and without one, what DATA says.

Expiry is an event like a delete: a record that had expired and was not swept yet is still
there at a past revision.
"""

from kvorum.errors import Compacted, FutureRevision
from kvorum_node.machine import records
from kvorum_node.machine.tables import Tables
from kvorum_node.storage import layout
from kvorumpb.v1.command_pb2 import Record


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

    `newest` is where the store is now, if the caller knows: at it, nothing has changed since.
    """
    changed = None
    if revision != newest:
        end = layout.version_key(key, 2**64 - 1)
        changed = next(tables.keys.scan(layout.version_key(key, revision + 1), end), None)
    data = tables.data.get(key) if changed is None else changed[1]
    return records.read(key, data) if data else None
