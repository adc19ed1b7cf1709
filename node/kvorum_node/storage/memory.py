"""The engine without a disk: for `memory:`, for tests, and as the model of the contract.

One ordered map per family. A scan has to see the state at its call, but a page
of a hundred records must not copy a million. So a scan walks the living map,
and a write first makes each scan that is still running take the rest of its
range for itself. Whoever reads a page and lets go of the scan copies nothing.
"""

from collections.abc import Iterator
from typing import Protocol, cast
from weakref import WeakSet

from sortedcontainers import SortedDict

from kvorum.errors import StorageError
from kvorum_node.storage.engine import Batch, Family


class MemoryEngine:
    """An Engine that loses everything at close; `sync` has nothing to do."""

    def __init__(self) -> None:
        self._maps = {family: _ordered_map() for family in Family}
        self._bytes = 0
        self._scans: WeakSet[_Scan] = WeakSet()

    def get(self, family: Family, key: bytes) -> bytes | None:
        return self._map(family).get(key)

    def scan(
        self, family: Family, start: bytes, end: bytes | None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        scan = _Scan(self._map(family), start, end, reverse=reverse)
        self._scans.add(scan)
        return scan

    def write(self, batch: Batch) -> None:
        for scan in self._scans:
            scan.detach()
        self._scans.clear()
        for family, start, end in batch.range_deletes:
            ordered = self._map(family)
            for key in list(ordered.irange(start, end, (True, False))):
                self._remove(ordered, key)
        for family, key in batch.deletes:
            self._remove(self._map(family), key)
        for family, key, value in batch.puts:
            ordered = self._map(family)
            old = ordered.get(key)
            self._bytes += len(value) + (len(key) if old is None else -len(old))
            ordered[key] = value

    def sync(self) -> None:
        pass

    def reclaim(self) -> None:
        pass

    def size_bytes(self) -> int:
        """Keys and values; not what Python needs around them."""
        return self._bytes

    def estimate_rows(self) -> int:
        """Exactly, here."""
        return sum(map(len, self._maps.values()))

    def close(self) -> None:
        for scan in self._scans:
            scan.refuse()
        self._scans.clear()
        self._maps.clear()

    def _remove(self, ordered: "_OrderedMap", key: bytes) -> None:
        value = ordered.pop(key, None)
        if value is not None:
            self._bytes -= len(key) + len(value)

    def _map(self, family: Family) -> "_OrderedMap":
        try:
            return self._maps[family]
        except KeyError:
            raise _closed() from None


class _Scan:
    """One scan: over the living map at first, over its own copy once a write has come."""

    __slots__ = ("__weakref__", "_rest")

    def __init__(
        self, ordered: "_OrderedMap", start: bytes, end: bytes | None, *, reverse: bool
    ) -> None:
        keys = ordered.irange(start, end, (True, False), reverse)
        self._rest: Iterator[tuple[bytes, bytes]] | None = ((key, ordered[key]) for key in keys)

    def __iter__(self) -> "_Scan":
        return self

    def __next__(self) -> tuple[bytes, bytes]:
        if self._rest is None:
            raise _closed()
        return next(self._rest)

    def detach(self) -> None:
        """Take the rest of the range out of the map, which is about to change."""
        if self._rest is not None:
            self._rest = iter(list(self._rest))

    def refuse(self) -> None:
        """End with an error: to end quietly would look like the end of the range."""
        self._rest = None


class _OrderedMap(Protocol):
    """The part of SortedDict that is used here: sortedcontainers ships no types."""

    def __len__(self) -> int: ...
    def get(self, key: bytes) -> bytes | None: ...
    def __getitem__(self, key: bytes) -> bytes: ...
    def __setitem__(self, key: bytes, value: bytes) -> None: ...
    def pop(self, key: bytes, default: None) -> bytes | None: ...
    def irange(
        self,
        minimum: bytes | None,
        maximum: bytes | None,
        inclusive: tuple[bool, bool],
        reverse: bool = False,
    ) -> Iterator[bytes]: ...


def _ordered_map() -> _OrderedMap:
    return cast("_OrderedMap", SortedDict())


def _closed() -> StorageError:
    return StorageError("the memory engine is closed")
