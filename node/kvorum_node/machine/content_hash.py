"""A hash over all records of a group, taken slice by slice.

Rules: the hash depends on the records alone, not on the engine, the node or the
version of a library. So the fields go in as numbers in a fixed order, and not as
protobuf's bytes, which are only promised to be readable:

    for each record, in key order:
    key length u32 | key | revision i64 | created i64 | version i64 | value length u32 | value

Integers are big-endian; the lengths make it impossible for two different
contents to run together into the same bytes.

The view is pinned when the hasher is made. The caller takes one slice at a time
and lets its event loop run between them.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from kvorum_node.machine import records
from kvorum_node.storage import layout
from kvorumpb.v1.command_pb2 import Record

DIGEST_BYTES: Final = 32

SLICE_RECORDS: Final = 500
SLICE_BYTES: Final = 1024 * 1024
"""A slice ends at either, after one to two milliseconds; a single larger record is one."""

_KEY_LENGTH: Final = struct.Struct(">I")
_FIELDS: Final = struct.Struct(">qqqI")


@dataclass(frozen=True, slots=True)
class ContentHash:
    """What a group holds at a revision, as 32 bytes."""

    revision: int
    digest: bytes
    record_count: int


class ContentHasher:
    """Hashing under way:

    while (content := hasher.step()) is None:
        await asyncio.sleep(0)
    """

    def __init__(self, stored: Iterator[tuple[bytes, bytes]], revision: int) -> None:
        """`stored` yields storage keys and records in key order, as they were at `revision`."""
        self._stored = stored
        self._revision = revision
        self._hasher = blake2b(digest_size=DIGEST_BYTES)
        self._record_count = 0

    def step(self) -> ContentHash | None:
        """Hash one slice. None while there may be more."""
        slice_bytes, slice_end = 0, self._record_count + SLICE_RECORDS
        for stored_key, stored in self._stored:
            self._update(layout.without_prefix(stored_key), stored)
            slice_bytes += len(stored)
            if slice_bytes >= SLICE_BYTES or self._record_count == slice_end:
                return None
        return ContentHash(self._revision, self._hasher.digest(), self._record_count)

    def _update(self, key: bytes, stored: bytes) -> None:
        record = Record()
        records.load(record, key, stored)
        value = record.value
        update = self._hasher.update
        update(_KEY_LENGTH.pack(len(key)))
        update(key)
        update(_FIELDS.pack(record.revision, record.created_revision, record.version, len(value)))
        update(value)
        self._record_count += 1
