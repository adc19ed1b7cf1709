"""What was synced must be there: a number beside a write-ahead log that proves it.

After a crash a write-ahead log may end in rubbish, where a write was under way.
It may also end in rubbish because a disk has flipped a bit in something that was
synced, and the log alone cannot tell the two apart: a record whose length is
damaged looks like one that was never finished. So the engine numbers its writes,
and after each sync the number of the last write that the sync covered is stored
here. An engine that finds less than that when it opens has lost what it promised.

The mark is written in place and reaches the disk by itself, at the latest with
every 256th sync: after SIGKILL it is exact, after a loss of power it may be some
syncs old. It is never ahead of what was synced. One sync for the mark with every
sync of the log would double the price of a write.

The file: `number u64 | CRC32 of the number u32`, big-endian; shorter than a disk
sector, which is written as one.
"""

import os
import struct
from pathlib import Path
from typing import Final, Self
from zlib import crc32

from kvorum.errors import StorageError
from kvorum_node.storage.durable import write_durably

FILE_NAME: Final = "SYNCED"
SYNC_EVERY: Final = 256

_NUMBER: Final = struct.Struct(">Q")
_CHECKSUM: Final = struct.Struct(">I")


class SyncMark:
    """The open mark of one directory. `number` is that of the last write known to be synced."""

    def __init__(self, descriptor: int, number: int) -> None:
        self._descriptor = descriptor
        self._until_sync = SYNC_EVERY
        self.number = number

    @staticmethod
    def create_if_missing(directory: Path) -> None:
        """Begin at 0: nothing is promised yet."""
        if not (directory / FILE_NAME).exists():
            write_durably(directory / FILE_NAME, _encode(0))

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Raises StorageError if the mark is missing or damaged."""
        path = directory / FILE_NAME
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(
                f"cannot open {path}: {error.strerror}. Without it nothing says whether the log"
                " still holds everything it promised; replace this node"
            ) from error
        content = os.pread(descriptor, _NUMBER.size + _CHECKSUM.size + 1, 0)
        number = int.from_bytes(content[: _NUMBER.size], "big")
        if content != _encode(number):
            os.close(descriptor)
            raise StorageError(f"{path} is damaged; replace this node")
        return cls(descriptor, number)

    def advance(self, number: int) -> None:
        """Record that every write through this one has been synced."""
        os.pwrite(self._descriptor, _encode(number), 0)
        self.number = number
        self._until_sync -= 1
        if self._until_sync == 0:
            os.fdatasync(self._descriptor)
            self._until_sync = SYNC_EVERY

    def close(self) -> None:
        os.close(self._descriptor)


def _encode(number: int) -> bytes:
    content = _NUMBER.pack(number)
    return content + _CHECKSUM.pack(crc32(content))
