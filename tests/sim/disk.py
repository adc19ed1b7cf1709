"""A simulated disk: what a crash leaves of it, and when it fails.

    Disk        one engine's disk. It outlives processes
    DiskEngine  the Engine (storage/engine.py) that one process has opened on it

The contract of the engine is modelled as it is written: a batch is atomic, reads see
every write, a sync makes durable what was written before it was called, and a crash
leaves all that was synced and the first few of the batches since then. Torn batches
are not modelled: it is the engine's duty to drop them, and tests/storage shows that
it does.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TypeAlias

from kvorum.errors import StorageError
from kvorum_node.storage.engine import Batch, Family

Change: TypeAlias = tuple[bytes, bytes | None]
"""A key, its family's tag first, and its new value; None deletes it."""

Watch = Callable[[Sequence[Change]], None]


class Disk:
    def __init__(self) -> None:
        self.content: dict[bytes, bytes] = {}
        """What a read sees."""
        self.synced: dict[bytes, bytes] = {}
        """What every crash leaves."""
        self.fail_write = False
        self.fail_sync = False
        self.failed: str | None = None
        """What has failed since the process was started, a write or a sync."""
        self.written: Watch = lambda changes: None
        self.made_durable: Watch = lambda changes: None
        self._journal: deque[Sequence[Change]] = deque()
        self._dropped = 0  # batches that are in the journal no more
        self._engine: DiskEngine | None = None

    def open(self) -> "DiskEngine":
        if self._engine is not None:
            raise AssertionError("the disk is open in another process")
        self._engine = DiskEngine(self)
        return self._engine

    def crash(self, random: Random) -> int:
        """Let the process go, and lose some of what was not synced; returns how many batches."""
        if self._engine is not None:
            self._engine.close()
        batches = len(self._journal)
        kept = random.choice((0, batches, random.randint(0, batches)))
        self.content = dict(self.synced)
        for changes in list(self._journal)[:kept]:
            _apply(self.content, changes)
        # The next process may read it, so that it can be lost no more.
        self.synced = dict(self.content)
        for changes in list(self._journal)[:kept]:
            self.made_durable(changes)
        self._dropped += batches
        self._journal.clear()
        self.fail_write = self.fail_sync = False
        self.failed = None
        return batches - kept

    @property
    def unsynced_batches(self) -> int:
        return len(self._journal)

    # What the engine does.

    def released(self) -> None:
        self._engine = None

    def write(self, changes: Sequence[Change]) -> None:
        _apply(self.content, changes)
        self._journal.append(changes)
        self.written(changes)

    def begin_sync(self) -> int:
        """Returns what to give to `finish_sync`."""
        return self._dropped + len(self._journal)

    def finish_sync(self, mark: int) -> None:
        """Everything written before `begin_sync` is durable now."""
        while self._dropped < mark:
            changes = self._journal.popleft()
            self._dropped += 1
            _apply(self.synced, changes)
            self.made_durable(changes)


class DiskEngine:
    """An Engine. Refuses every call once it is closed, or its process is dead."""

    def __init__(self, disk: Disk) -> None:
        self._disk: Disk | None = disk

    @property
    def disk(self) -> Disk:
        if self._disk is None:
            raise StorageError("the engine is closed")
        return self._disk

    def get(self, family: Family, key: bytes) -> bytes | None:
        return self.disk.content.get(family.value + key)

    def scan(
        self, family: Family, start: bytes, end: bytes | None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        content = self.disk.content
        keys = _keys(content, family.value, start, end)
        if reverse:
            keys.reverse()
        return iter([(key[1:], content[key]) for key in keys])

    def write(self, batch: Batch) -> None:
        disk = self.disk
        if disk.fail_write:
            disk.failed = disk.failed or "write"
            raise StorageError("simulated: no space left on the disk")
        changes: list[Change] = [
            (key, None)
            for family, start, end in batch.range_deletes
            for key in _keys(disk.content, family.value, start, end)
        ]
        changes += [(family.value + key, None) for family, key in batch.deletes]
        changes += [(family.value + key, value) for family, key, value in batch.puts]
        if not all(type(key) is bytes and type(value) in _STORED for key, value in changes):
            raise AssertionError(f"an engine takes bytes alone: {changes}")
        disk.write(changes)

    def sync(self) -> None:
        """Sync at once, as a process does that has nothing else to do yet."""
        self.finish_sync(self.disk.begin_sync())

    def finish_sync(self, mark: int) -> None:
        disk = self.disk
        if disk.fail_sync:
            disk.failed = "sync"
            raise StorageError("simulated: the disk could not be synced")
        disk.finish_sync(mark)

    def reclaim(self) -> None:
        pass

    def estimate_rows(self) -> int:
        return len(self.disk.content)

    def size_bytes(self) -> int:
        return sum(len(key) + len(value) for key, value in self.disk.content.items())

    def close(self) -> None:
        if self._disk is not None:
            self._disk.released()
            self._disk = None


_STORED = (bytes, type(None))


def _apply(content: dict[bytes, bytes], changes: Sequence[Change]) -> None:
    for key, value in changes:
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value


def _keys(content: dict[bytes, bytes], tag: bytes, start: bytes, end: bytes | None) -> list[bytes]:
    low = tag + start
    if end is not None:
        high = tag + end
        return sorted(key for key in content if low <= key < high)
    return sorted(key for key in content if low <= key and key[:1] == tag)
