"""An engine whose disk does what the test says: hold, fail, and tell what it was asked to do."""

import threading
from collections.abc import Iterator

from kvorum.errors import StorageError
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorum_node.storage.memory import MemoryEngine

HELD_SECONDS = 30.0
"""A sync that nobody releases fails then, so that a broken test ends."""


class ScriptedDisk:
    """Passes everything on to another engine, in memory unless told.

    disk.hold()            syncs begin, and do not return before `release`
    disk.fail_writes = e   every write raises e, and nothing is written
    disk.fail_syncs = e    every sync raises e

    What happened is in `events`, which several disks may share.
    """

    def __init__(
        self, name: str = "log", *, engine: Engine | None = None, events: list[str] | None = None
    ) -> None:
        self.name = name
        self.engine: Engine = engine or MemoryEngine()
        self.events = [] if events is None else events
        self.batches: list[Batch] = []
        self.syncs_begun = 0
        self.syncs_done = 0
        self.fail_writes: StorageError | None = None
        self.fail_syncs: StorageError | None = None
        self._released = threading.Event()
        self._released.set()

    def hold(self) -> None:
        self._released.clear()

    def release(self) -> None:
        self._released.set()

    def get(self, family: Family, key: bytes) -> bytes | None:
        return self.engine.get(family, key)

    def scan(
        self, family: Family, start: bytes, end: bytes | None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        return self.engine.scan(family, start, end, reverse=reverse)

    def write(self, batch: Batch) -> None:
        if self.fail_writes is not None:
            raise self.fail_writes
        self.batches.append(batch)
        self.events.append(f"{self.name} {'cut' if batch.range_deletes else 'write'}")
        self.engine.write(batch)

    def sync(self) -> None:
        self.syncs_begun += 1
        if not self._released.wait(HELD_SECONDS):
            raise StorageError("the test never released the sync")
        if self.fail_syncs is not None:
            raise self.fail_syncs
        self.engine.sync()
        self.syncs_done += 1
        self.events.append(f"{self.name} sync")

    def reclaim(self) -> None:
        self.engine.reclaim()

    def estimate_rows(self) -> int:
        return self.engine.estimate_rows()

    def size_bytes(self) -> int:
        return self.engine.size_bytes()

    def close(self) -> None:
        self.engine.close()
