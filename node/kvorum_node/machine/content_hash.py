"""A hash over the whole state of a group, taken slice by slice.

Rules: everything that is replicated goes in, family by family in the order of their tags,
each in the order of its keys: a difference that no read would show today is one that a
later entry may bring out. The index itself is a part of it, so only the hashes of states
at the same applied index can be compared: they are equal, or one of the states is wrong.

The hash depends on what is held alone, not on the engine, the node, the space or the
version of a library. So the fields of a record go in as numbers in a fixed order, and not
as protobuf's bytes, which are only promised to be readable. All else is of our own layout
(storage/layout.py), and goes in as it is stored:

    format u8 | row*
    row    = tag u8 | key length u32 | body length u32 | key | body
    body   = what is stored; in DATA and KEYS, of what is not empty, a record:
    record = revision, created revision, version, expire time, update time, each i64
             | value length u32 | metadata length u32 | value apart u8 | value | metadata
             | entry*
    entry  = name length u32 | value length u32 | unique u8 | name | value

Integers are big-endian; the lengths make it impossible for two different
contents to run together into the same bytes. Whoever changes any of this gives it another
HASH_FORMAT: nodes of two versions compare only what they hash in the same way.

The view is pinned when the hasher is made. The caller takes one slice at a time
and lets its event loop run between them.
"""

import struct
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from kvorum_node.machine import records
from kvorum_node.raft.types import Index
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Engine, Family
from kvorum_node.storage.layout import Space
from kvorumpb.v1.command_pb2 import Record

HASH_FORMAT: Final = 1
"""Verification.format: what this version hashes, and how."""

DIGEST_BYTES: Final = 32

SLICE_ROWS: Final = 500
SLICE_BYTES: Final = 1024 * 1024
"""A slice ends at either, after one to two milliseconds; a single larger row is one."""

_HOLDS_RECORDS: Final = frozenset({Family.DATA, Family.KEYS})

_ROW: Final = struct.Struct(">cII")
_FIELDS: Final = struct.Struct(">qqqqqII?")
_INDEX_ENTRY: Final = struct.Struct(">II?")


@dataclass(frozen=True, slots=True)
class ContentHash:
    """What a group holds at an index, as 32 bytes."""

    applied: Index
    revision: int
    digest: bytes
    record_count: int
    """Records that are stored, those included that have expired and were not swept yet."""


class RowHasher:
    """Takes in rows, in the order that is said above, wherever they come from."""

    def __init__(self) -> None:
        self.record_count = 0
        self._hasher = blake2b(bytes([HASH_FORMAT]), digest_size=DIGEST_BYTES)

    def add(self, family: Family, key: bytes, stored: bytes) -> None:
        """Take in a row; `key` is without its space. Raises StorageError if it holds no record."""
        if family is Family.DATA:
            self.record_count += 1
        body = _record(key, stored) if stored and family in _HOLDS_RECORDS else [stored]
        head = _ROW.pack(family, len(key), sum(map(len, body)))
        self._hasher.update(b"".join((head, key, *body)))

    def digest(self) -> bytes:
        """Of all rows so far."""
        return self._hasher.digest()


class ContentHasher:
    """Hashing under way. `close` it if it is given up:

    while (content := hasher.step()) is None:
        await asyncio.sleep(0)
    """

    def __init__(self, engine: Engine, space: Space, applied: Index, revision: int) -> None:
        """Pin what the space holds; it stands at `applied` and `revision`."""
        self.applied = applied
        """The index of what is hashed."""
        self._revision = revision
        # All at once, between two writes: so all see the same state.
        scans = [(family, engine.scan(family, *space.range)) for family in layout.STATE_FAMILIES]
        self._rows = ((family, key, stored) for family, scan in scans for key, stored in scan)
        self._hasher = RowHasher()

    def step(self) -> ContentHash | None:
        """Hash one slice. None while there may be more.

        Raises StorageError if the engine fails, or holds what is no record.
        """
        slice_bytes = 0
        for count, (family, stored_key, stored) in enumerate(self._rows, start=1):
            self._hasher.add(family, layout.without_prefix(stored_key), stored)
            slice_bytes += len(stored_key) + len(stored)
            if slice_bytes >= SLICE_BYTES or count == SLICE_ROWS:
                return None
        hasher = self._hasher
        return ContentHash(self.applied, self._revision, hasher.digest(), hasher.record_count)

    def close(self) -> None:
        """Let the engine drop what it kept."""
        self._rows.close()


def _record(key: bytes, stored: bytes) -> list[bytes]:
    """The parts of a record, in the order in which they go in."""
    record = Record()
    records.load(record, key, stored)
    value, metadata = record.value, record.metadata
    parts = [
        _FIELDS.pack(
            record.revision,
            record.created_revision,
            record.version,
            record.expire_time_ms,
            record.update_time_ms,
            len(value),
            len(metadata),
            record.value_apart,
        ),
        value,
        metadata,
    ]
    for entry in record.index_entries:
        name = entry.index.encode()
        parts += _INDEX_ENTRY.pack(len(name), len(entry.value), entry.unique), name, entry.value
    return parts
