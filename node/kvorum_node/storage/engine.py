"""The engine: an ordered map on a disk, and the one rule about losing power.

    write(batch)    atomic: all of the batch or none of it, seen by every read that follows
    sync()          what was written before the call survives a crash

A crash loses a suffix of the writes since the last sync: never a part of a
batch, never one batch but not a later one. A node opens two engines, one for
the Raft log and one for the state that the log produces; storage/rocks.py says
how each of them keeps the rule, storage/memory.py is the model of it.

Everything but `sync`, `reclaim` and `size_bytes` is called from one thread. Those may
run in other threads meanwhile; the first two are the only calls that wait for the disk.
"""

from collections.abc import Iterator
from enum import Enum
from typing import Protocol


class Family(bytes, Enum):
    """A separate ordered key space within an engine; layout.py draws what each one holds.

    A family is the tag that its keys begin with where an engine keeps several in one
    store: one byte, for ever the same.
    """

    LOG = b"L"
    DATA = b"D"
    META = b"M"
    CLIENT = b"C"
    HISTORY = b"H"
    INDEX = b"I"
    KEYS = b"K"
    LIMIT = b"R"
    VALUE = b"V"
    EXPIRY = b"X"


class Batch:
    """Writes that happen together. Used once."""

    __slots__ = ("deletes", "puts", "range_deletes")

    def __init__(self) -> None:
        self.puts: list[tuple[Family, bytes, bytes]] = []
        self.deletes: list[tuple[Family, bytes]] = []
        self.range_deletes: list[tuple[Family, bytes, bytes]] = []

    @property
    def is_empty(self) -> bool:
        return not (self.puts or self.deletes or self.range_deletes)

    def put(self, family: Family, key: bytes, value: bytes) -> None:
        self.puts.append((family, key, value))

    def delete(self, family: Family, key: bytes) -> None:
        self.deletes.append((family, key))

    def delete_range(self, family: Family, start: bytes, end: bytes) -> None:
        """Delete the keys from start (included) to end (excluded)."""
        self.range_deletes.append((family, start, end))


class Engine(Protocol):
    def get(self, family: Family, key: bytes) -> bytes | None:
        """The value of the key, or None."""

    def scan(
        self, family: Family, start: bytes, end: bytes | None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values from start (included) to end (excluded; None is beyond the last).

        Sees the state at the call, whatever is written while it runs.
        """

    def write(self, batch: Batch) -> None:
        """Apply the batch: first its range deletes, then its deletes, then its puts."""

    def sync(self) -> None:
        """Return once everything written before the call is on the disk."""

    def reclaim(self) -> None:
        """Free the room of what was deleted and replaced. Reads and writes all of the store."""

    def size_bytes(self) -> int:
        """About how much disk (or memory) the engine takes."""

    def estimate_rows(self) -> int:
        """About how many keys there are, in all families. What is cheap to know."""

    def close(self) -> None:
        """Release the engine. Does not imply a sync."""
