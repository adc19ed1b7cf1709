"""What only the memory engine promises: a page costs a page."""

from collections.abc import Iterator
from itertools import islice

import pytest

from kvorum_node.storage import memory
from kvorum_node.storage.engine import Batch, Family
from kvorum_node.storage.memory import MemoryEngine

COUNT = 1_000


class CountedMap:
    """An ordered map that counts how often a value is read."""

    def __init__(self, inner: memory._OrderedMap) -> None:
        self._inner = inner
        self.reads = 0

    def __getitem__(self, key: bytes) -> bytes:
        self.reads += 1
        return self._inner[key]

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


@pytest.fixture
def counted() -> Iterator[tuple[MemoryEngine, CountedMap]]:
    engine = MemoryEngine()
    batch = Batch()
    for number in range(COUNT):
        batch.put(Family.DATA, b"%06d" % number, b"value")
    engine.write(batch)
    counting = CountedMap(engine._maps[Family.DATA])
    engine._maps[Family.DATA] = counting  # type: ignore[assignment]  # counts, and forwards the rest
    yield engine, counting
    engine.close()


def write_one(engine: MemoryEngine) -> None:
    batch = Batch()
    batch.put(Family.META, b"any", b"")
    engine.write(batch)


def test_a_page_reads_a_page(counted: tuple[MemoryEngine, CountedMap]) -> None:
    engine, reads = counted
    assert len(list(islice(engine.scan(Family.DATA, b"000100", None), 10))) == 10
    assert reads.reads == 10


def test_a_scan_that_nobody_holds_is_not_copied(counted: tuple[MemoryEngine, CountedMap]) -> None:
    engine, reads = counted
    list(islice(engine.scan(Family.DATA, b"", None), 10))
    write_one(engine)
    assert reads.reads == 10


def test_a_scan_that_runs_keeps_its_rest_once(counted: tuple[MemoryEngine, CountedMap]) -> None:
    engine, reads = counted
    scan = engine.scan(Family.DATA, b"", None)
    list(islice(scan, 10))
    write_one(engine)
    write_one(engine)
    assert reads.reads == COUNT
    assert len(list(scan)) == COUNT - 10
    assert reads.reads == COUNT
