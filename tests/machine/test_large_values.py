"""Large values lie by themselves: records move, values stay where they are."""

import pytest

from kvorum.errors import StorageError
from kvorum_node.machine import Machine
from kvorum_node.raft.types import GroupId
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorum_node.storage.memory import MemoryEngine
from kvorumpb.v1.command_pb2 import (
    Check,
    DeleteRangeOperation,
    KeyRange,
    Operation,
    PutOperation,
    TouchOperation,
)
from kvorumpb.v1.kv_pb2 import ListRequest
from tests.support.commands import add, compact, delete, get, put, run_one

GROUP = GroupId(1)
SPACE = layout.Space(GROUP, 0)
LARGE = b"0" * layout.MIN_APART_BYTES
SMALL = b"1" * (layout.MIN_APART_BYTES - 1)


class _Weighing(MemoryEngine):
    """Knows how much each write puts."""

    def __init__(self) -> None:
        super().__init__()
        self.put_bytes = 0

    def write(self, batch: Batch) -> None:
        self.put_bytes = sum(len(value) for _, _, value in batch.puts)
        super().write(batch)


def apart(engine: Engine) -> list[bytes]:
    start, end = SPACE.range
    return [layout.without_prefix(key) for key, _ in engine.scan(Family.VALUE, start, end)]


def test_from_which_size_on(machine: Machine, engine: Engine) -> None:
    run_one(machine, put(b"a", LARGE), put(b"b", SMALL))
    assert apart(engine) == [layout.version_key(b"a", 1)]
    for key, value in ((b"a", LARGE), (b"b", SMALL)):
        record = machine.get(key)
        assert record is not None
        assert (record.value, record.value_apart) == (value, False)


def test_every_way_to_a_value_finds_it(machine: Machine) -> None:
    run_one(machine, put(b"a", LARGE))
    run_one(machine, put(b"a", LARGE + b"2"))
    old = machine.get(b"a", revision=1)
    assert old is not None
    assert old.value == LARGE
    listed = machine.list(ListRequest(revision=1)).records
    assert [(one.value, one.value_apart) for one in listed] == [(LARGE, False)]
    [keys_only] = machine.list(ListRequest(keys_only=True)).records
    assert (keys_only.value, keys_only.value_apart) == (b"", False)
    read = run_one(machine, get(b"a"), checks=[Check(key=b"a", value=LARGE + b"2")])
    assert read.results[0].get.record.value == LARGE + b"2"
    assert not read.results[0].get.record.value_apart
    taken = PutOperation(key=b"a", value=b"", return_previous=True)
    replaced = run_one(machine, Operation(put=taken)).results[0].put.previous
    assert (replaced.value, replaced.value_apart) == (LARGE + b"2", False)


def test_a_large_value_is_no_integer(machine: Machine) -> None:
    run_one(machine, put(b"a", LARGE))
    assert run_one(machine, add(b"a")).error.message


def test_whatever_is_removed_moves_no_value() -> None:
    """Many large records at once: what is written is as much as there are records."""
    engine = _Weighing()
    machine = Machine(engine, GROUP)
    run_one(machine, *(put(b"%03d" % number, bytes(100_000)) for number in range(100)))
    assert engine.put_bytes > 100 * 100_000
    run_one(machine, Operation(touch=TouchOperation(key=b"001", ttl_ms=50)))
    assert engine.put_bytes < 1000
    everything = Operation(delete_range=DeleteRangeOperation(range=KeyRange()))
    assert run_one(machine, everything).results[0].delete_range.deleted == 100
    assert engine.put_bytes < 100 * 200


def test_values_go_with_the_history_that_holds_them(machine: Machine, engine: Engine) -> None:
    run_one(machine, put(b"a", LARGE))
    run_one(machine, put(b"a", LARGE))
    run_one(machine, put(b"b", LARGE), delete(b"a"))
    assert len(apart(engine)) == 3
    compact(machine, 2)
    assert apart(engine) == [layout.version_key(b"a", 2), layout.version_key(b"b", 3)]
    compact(machine, 3)
    assert apart(engine) == [layout.version_key(b"b", 3)]


@pytest.fixture
def lost(machine: Machine, engine: Engine) -> Machine:
    run_one(machine, put(b"a", LARGE))
    batch = Batch()
    batch.delete(Family.VALUE, SPACE.prefix + layout.version_key(b"a", 1))
    engine.write(batch)
    return machine


def test_a_value_that_is_lost_is_no_empty_one(lost: Machine) -> None:
    with pytest.raises(StorageError, match="is not there: the disk has lost it"):
        lost.get(b"a")
    with pytest.raises(StorageError, match="is not there"):
        lost.list(ListRequest())
