"""Snapshots: the whole state of a group at one index, as a stream of bytes.

    snapshot = format u8 | record* | end
    record   = tag u8 | key length u32 | value length u32 | key | value
    end      = 0 u8   | 0 u32          | 8 u32            |     | record count u64

Integers are big-endian. The records are those of all families of the state
(layout.STATE_FAMILIES), whatever they mean, in the order of tag and key. A tag is
the family's, a key lacks group and space, a value is as it is stored. The index
is among them, in META. The stream is cut into chunks anywhere.

Rules: who reads and who stages holds one chunk and one record in memory, and works
for a few milliseconds at a time. The reader sees the state as it was when it was
made. Its rows come in the order of the content hash (content_hash.py), which can be
taken on the way. What is staged lies in the other space (layout.py), where nobody looks before
all of it is there: the mark that it is whole is the last thing written, and an
engine loses no write but the last ones. The bytes are checked for their structure:
that a bit was not altered on the way is for the transport to prove.
"""

import struct
from collections.abc import Iterator
from typing import Final

from kvorum import limits
from kvorum.errors import StorageError
from kvorum.limits import MIB
from kvorum_node.machine.content_hash import RowHasher
from kvorum_node.machine.standing import Standing, save_staged
from kvorum_node.raft.types import Index
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorum_node.storage.layout import Space

FORMAT: Final = 1

MAX_CHUNK_RECORDS: Final = 2048
"""So many begin in a chunk: small ones cost by their number, not by their bytes."""
MAX_HASHED_CHUNK_RECORDS: Final = 512
"""The same where each is also hashed, which costs several times as much."""
MAX_UNSYNCED_BYTES: Final = 32 * MIB
"""When what was staged should be synced: a quarter of what RocksDB takes before it waits."""

_HEAD: Final = struct.Struct(">cII")
_COUNT: Final = struct.Struct(">Q")
_END: Final = b"\0"


class SnapshotDamaged(Exception):
    """What has arrived is no whole snapshot. Nothing of it counts; it has to be sent again."""


class SnapshotReader:
    """The state as it was when the reader was made, chunk by chunk. `close` when done.

    Until then the engine keeps what has changed since.
    """

    def __init__(
        self, engine: Engine, space: Space, applied: Index, hasher: RowHasher | None = None
    ) -> None:
        """`applied` is where the state in the space stands; the hasher gets all that is read."""
        self.applied = applied
        self._hasher = hasher
        self._max_records = MAX_CHUNK_RECORDS if hasher is None else MAX_HASHED_CHUNK_RECORDS
        # All at once, between two writes: so all see the same state.
        self._scans = [
            (family, engine.scan(family, *space.range)) for family in layout.STATE_FAMILIES
        ]
        self._pieces: Iterator[bytes] | None = self._stream()
        self._piece = memoryview(b"")

    def chunk(self, max_bytes: int = limits.MAX_SNAPSHOT_CHUNK_BYTES) -> bytes:
        """The next bytes of the stream, at most max_bytes; b"" at its end.

        Raises StorageError if the engine fails, was closed, or holds what cannot be hashed.
        """
        if self._pieces is None:
            raise AssertionError("the snapshot was closed")
        parts: list[memoryview] = []
        room = max_bytes
        for _ in range(2 * self._max_records):  # a record is two pieces
            if not self._piece:
                self._piece = memoryview(next(self._pieces, b""))
            if not (self._piece and room):
                break
            part = self._piece[:room]
            parts.append(part)
            room -= len(part)
            self._piece = self._piece[len(part) :]
        return b"".join(parts)

    def close(self) -> None:
        """Let the engine drop what it kept. May be called twice."""
        self._scans.clear()
        self._pieces = None
        self._piece = memoryview(b"")

    def _stream(self) -> Iterator[bytes]:
        """The stream in pieces, none of them empty."""
        yield bytes([FORMAT])
        count = 0
        for family, scan in self._scans:
            for stored_key, value in scan:
                key = layout.without_prefix(stored_key)
                if self._hasher is not None:
                    self._hasher.add(family, key, value)
                yield _HEAD.pack(family, len(key), len(value)) + key
                if value:
                    yield value
                count += 1
        yield _HEAD.pack(_END, 0, _COUNT.size) + _COUNT.pack(count)


class Staging:
    """Puts the chunks of a snapshot, in their order, into a space that is empty.

    One that has raised an error is of no more use. To go on with one that was given
    up for another is a bug: AssertionError.
    """

    def __init__(self, engine: Engine, space: Space) -> None:
        self.unsynced_bytes = 0
        """Written since the last `synced`: sync the engine at MAX_UNSYNCED_BYTES."""
        self._engine = engine
        self._space = space
        self._prefix = space.prefix
        self._decoder = Decoder()
        self._is_over = False

    def write(self, chunk: bytes) -> None:
        """Write what the chunk completes, about 1 MiB or one larger record at a time.

        Raises:
            SnapshotDamaged: the stream is none that this version can read.
            StorageError: the engine failed.
        """
        self._refuse_if_over()
        batch, batch_bytes = Batch(), 0
        for family, key, value in self._decoder.decode(chunk):
            batch.put(family, self._prefix + key, value)
            batch_bytes += len(key) + len(value)
            if batch_bytes >= limits.MAX_SNAPSHOT_CHUNK_BYTES:
                self._write(batch, batch_bytes)
                batch, batch_bytes = Batch(), 0
        self._write(batch, batch_bytes)

    def synced(self) -> None:
        """The engine was synced after the last write."""
        self.unsynced_bytes = 0

    def finish(self, applied: Index) -> None:
        """Mark the state as whole; it counts once the engine is synced after this.

        Raises:
            SnapshotDamaged: it is not whole, or is not the state at `applied`.
            StorageError: the engine failed.
        """
        self._refuse_if_over()
        self._decoder.finish()
        try:
            standing = Standing.load(self._engine, self._space)
        except StorageError as error:
            raise SnapshotDamaged(f"the snapshot does not say what it is of: {error}") from error
        if standing.applied != applied:
            raise SnapshotDamaged(
                f"the snapshot is of the state at {standing.applied}, not at {applied}"
            )
        batch = Batch()
        save_staged(batch, self._space.group, applied)
        self._engine.write(batch)
        self._is_over = True

    def abandon(self) -> None:
        """The space is given to somebody else: nothing more may be written to it."""
        self._is_over = True

    def _write(self, batch: Batch, batch_bytes: int) -> None:
        if not batch.is_empty:
            self._engine.write(batch)
            self.unsynced_bytes += batch_bytes

    def _refuse_if_over(self) -> None:
        if self._is_over:
            raise AssertionError("the staging is finished, or was given up for another")


class Decoder:
    """The records of a stream, as its chunks come in."""

    def __init__(self) -> None:
        self._families = {bytes(family): family for family in layout.STATE_FAMILIES}
        self._arrived = bytearray()
        self._has_begun = False
        self._has_ended = False
        self._count = 0
        self._last = b""

    def decode(self, chunk: bytes) -> list[tuple[Family, bytes, bytes]]:
        """The records that the chunk completes. Raises SnapshotDamaged."""
        self._arrived += chunk
        records: list[tuple[Family, bytes, bytes]] = []
        position = self._begin()
        with memoryview(self._arrived) as view:
            while not self._has_ended and len(view) - position >= _HEAD.size:
                tag, key_bytes, value_bytes = _HEAD.unpack_from(view, position)
                if key_bytes + value_bytes > limits.MAX_MESSAGE_BYTES:
                    raise SnapshotDamaged(
                        f"record {self._count} claims {key_bytes + value_bytes} bytes, and none"
                        f" has more than {limits.MAX_MESSAGE_BYTES}"
                    )
                key_start = position + _HEAD.size
                value_start = key_start + key_bytes
                end = value_start + value_bytes
                if end > len(view):
                    break
                key, value = bytes(view[key_start:value_start]), bytes(view[value_start:end])
                if tag == _END:
                    self._end(key + value)
                else:
                    records.append((self._place(tag, key), key, value))
                position = end
        del self._arrived[:position]
        if self._has_ended and self._arrived:
            raise SnapshotDamaged("the snapshot goes on after its end")
        return records

    def finish(self) -> None:
        """Raises SnapshotDamaged unless all of the stream has come."""
        if not self._has_ended:
            raise SnapshotDamaged(f"the snapshot breaks off after {self._count} records")

    def _begin(self) -> int:
        """Where the records begin in what has arrived: behind the format, if that is here."""
        if self._has_begun or not self._arrived:
            return 0
        if self._arrived[0] != FORMAT:
            raise SnapshotDamaged(
                f"the snapshot has format {self._arrived[0]}, and this version knows {FORMAT} alone"
            )
        self._has_begun = True
        return 1

    def _place(self, tag: bytes, key: bytes) -> Family:
        """The family of the next record, which must follow the last one."""
        family = self._families.get(tag)
        if family is None:
            raise SnapshotDamaged(
                f"record {self._count} is of the family {tag!r}, which this version does not know"
            )
        if tag + key <= self._last:
            raise SnapshotDamaged(f"record {self._count} does not follow the one before it")
        self._last = tag + key
        self._count += 1
        return family

    def _end(self, value: bytes) -> None:
        if value != _COUNT.pack(self._count):
            raise SnapshotDamaged(
                f"the snapshot ends after {self._count} records, and says otherwise"
            )
        self._has_ended = True
