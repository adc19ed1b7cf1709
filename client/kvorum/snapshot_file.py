"""The file of a snapshot: what `kvorum snapshot save` writes, and what is checked before it counts.

    file     = "kvorum snapshot\\n" | version u32 | frame*
    frame    = tag u8 | length u32 | payload | checksum u32

    tag  payload
    ---  --------------------------------------------------------------------
    'H'  kvorumpb.v1.BackupHeader: what it is of. One, and the first
    'C'  content, 1 byte to 1 MiB of it: together, the stream that
         node/kvorum_node/machine/snapshot.py draws
    'T'  kvorumpb.v1.BackupTrailer: what it all comes to. One, and the last

Integers are big-endian. A checksum is the CRC32 of everything before it in the file, but for
the other checksums. So a bit that was altered anywhere, a frame that is missing, comes twice or
has changed places, and a file that breaks off or goes on are all found, at the frame where it
is; and by the trailer, also what was damaged on its way into the file.

Both ends hold one frame in memory. Who reads must not believe what `chunks` has given
before its end.
"""

import struct
from collections.abc import Iterator
from hashlib import blake2b
from typing import BinaryIO, Final, TypeVar
from zlib import crc32

from google.protobuf.message import DecodeError, Message

from kvorum import limits
from kvorum.errors import KvorumError
from kvorumpb.v1.cluster_pb2 import BackupHeader, BackupTrailer

MAGIC: Final = b"kvorum snapshot\n"
VERSION: Final = 1

MAX_PAYLOAD_BYTES: Final = 4 * limits.MIB
"""A frame that claims more is damaged, and not waited for."""

CHECKSUM_BYTES: Final = 32
"""BackupTrailer.checksum: BLAKE2b of the content."""

_VERSION: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(">cI")
_CHECKSUM: Final = struct.Struct(">I")

_HEADER: Final = b"H"
_CONTENT: Final = b"C"
_TRAILER: Final = b"T"

_BEGINNING: Final = MAGIC + _VERSION.pack(VERSION)

MessageT = TypeVar("MessageT", bound=Message)


class SnapshotFileDamaged(KvorumError):
    """The file is no snapshot, or not a whole one; the message says where it goes wrong."""

    reason = "SNAPSHOT_FILE_DAMAGED"


class SnapshotWriter:
    """Writes a header, then chunks, then a trailer."""

    def __init__(self, sink: BinaryIO, header: BackupHeader) -> None:
        """Begin the file. `sink` stays the caller's, who makes it durable."""
        self.bytes_written = 0
        self._sink = sink
        self._checksum = crc32(_BEGINNING)
        self._content = blake2b(digest_size=CHECKSUM_BYTES)
        self._content_bytes = 0
        self._write(_BEGINNING)
        self._frame(_HEADER, header.SerializeToString())

    def chunk(self, data: bytes) -> None:
        """Write the next part of the content, which is not empty."""
        self._content.update(data)
        self._content_bytes += len(data)
        self._frame(_CONTENT, data)

    def finish(self, trailer: BackupTrailer) -> None:
        """End the file. Raises SnapshotFileDamaged if the content is not what was sent."""
        if (trailer.content_bytes, trailer.checksum) != (
            self._content_bytes,
            self._content.digest(),
        ):
            raise SnapshotFileDamaged(
                "the snapshot was damaged on its way from the node: try again"
            )
        self._frame(_TRAILER, trailer.SerializeToString())

    def _frame(self, tag: bytes, payload: bytes) -> None:
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise AssertionError(f"a frame of {len(payload)} bytes could not be read again")
        head = _HEAD.pack(tag, len(payload))
        self._checksum = crc32(payload, crc32(head, self._checksum))
        self._write(b"".join((head, payload, _CHECKSUM.pack(self._checksum))))

    def _write(self, data: bytes) -> None:
        self._sink.write(data)
        self.bytes_written += len(data)


class SnapshotFile:
    """A file that is read, from its beginning to its end."""

    def __init__(self, source: BinaryIO, name: str) -> None:
        """Read what the file is of.

        Args:
            source: need not be able to seek, and stays the caller's.
            name: what messages call it.

        Raises:
            SnapshotFileDamaged: it does not begin as a snapshot.
            OSError: it cannot be read. So do all other calls.
        """
        self.bytes_read = 0
        self._source = source
        self._name = name
        self._trailer: BackupTrailer | None = None
        beginning = source.read(len(_BEGINNING))
        self.bytes_read = len(beginning)
        if not beginning.startswith(MAGIC):
            raise SnapshotFileDamaged(f"{name} is no snapshot of kvorum")
        if len(beginning) < len(_BEGINNING):
            raise self._breaks_off()
        (version,) = _VERSION.unpack_from(beginning, len(MAGIC))
        if version != VERSION:
            raise SnapshotFileDamaged(
                f"{name} has format {version}, and this version knows {VERSION} alone"
            )
        self._checksum = crc32(beginning)
        tag, payload = self._frame()
        if tag != _HEADER:
            raise self.damaged(f"a frame of kind {tag!r} stands where the header has to be")
        self.header = self._parse(BackupHeader(), payload)
        if not (self.header.index and self.header.term):
            raise self.damaged("the header does not say where in the log the snapshot was taken")

    @property
    def trailer(self) -> BackupTrailer:
        """Known once `chunks` has come to its end."""
        if self._trailer is None:
            raise AssertionError("the file was not read to its end")
        return self._trailer

    def chunks(self) -> Iterator[bytes]:
        """The content, part by part; it counts when all of it has come.

        Raises SnapshotFileDamaged where the file is not whole, or not as it was written.
        """
        content, content_bytes = blake2b(digest_size=CHECKSUM_BYTES), 0
        tag, payload = self._frame()
        while tag == _CONTENT:
            content.update(payload)
            content_bytes += len(payload)
            yield payload
            tag, payload = self._frame()
        if tag != _TRAILER:
            raise self.damaged(
                f"a frame of kind {tag!r} stands where content or trailer have to be"
            )
        trailer = self._parse(BackupTrailer(), payload)
        if (trailer.content_bytes, trailer.checksum) != (content_bytes, content.digest()):
            raise self.damaged("the content is not what the trailer says")
        if self._source.read(1):
            raise self.damaged("the file goes on after its trailer")
        self._trailer = trailer

    def damaged(self, what: str) -> SnapshotFileDamaged:
        """The error that says what is wrong with what was read last."""
        return SnapshotFileDamaged(
            f"{self._name} is damaged before byte {self.bytes_read:,}: {what}"
        )

    def _frame(self) -> tuple[bytes, bytes]:
        """Tag and payload of the next frame, which are as they were written."""
        head = self._read(_HEAD.size)
        tag, length = _HEAD.unpack(head)
        if length > MAX_PAYLOAD_BYTES:
            raise self.damaged(f"a frame claims {length:,} bytes")
        payload = self._read(length)
        self._checksum = crc32(payload, crc32(head, self._checksum))
        if self._read(_CHECKSUM.size) != _CHECKSUM.pack(self._checksum):
            raise self.damaged("a checksum does not match")
        return tag, payload

    def _read(self, size: int) -> bytes:
        data = self._source.read(size)
        self.bytes_read += len(data)
        if len(data) < size:
            raise self._breaks_off()
        return data

    def _parse(self, message: MessageT, payload: bytes) -> MessageT:
        try:
            message.ParseFromString(payload)
        except DecodeError:
            raise self.damaged(f"it has no {type(message).__name__} that can be read") from None
        return message

    def _breaks_off(self) -> SnapshotFileDamaged:
        return SnapshotFileDamaged(f"{self._name} breaks off at byte {self.bytes_read:,}")
