"""The same log gives the same state, byte for byte, however it was cut into calls."""

import random

import pytest

from kvorum_node.machine import ContentHash, Machine
from kvorum_node.raft.types import Entry, GroupId
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Engine, Family
from kvorum_node.storage.memory import MemoryEngine
from kvorumpb.v1.command_pb2 import TransactionResult
from tests.support.commands import random_entries

GROUP = GroupId(1)


def _state(engine: Engine) -> list[tuple[Family, bytes, bytes]]:
    """Every byte of the group's state."""
    return [
        (family, key, value)
        for family in layout.STATE_FAMILIES
        for key, value in engine.scan(family, *layout.Space(GROUP, 0).range)
    ]


def _hash(machine: Machine) -> ContentHash:
    hasher = machine.content_hash()
    while (content := hasher.step()) is None:
        pass
    return content


def _apply_in_runs(
    machine: Machine, entries: list[Entry], source: random.Random, longest: int
) -> list[list[TransactionResult]]:
    results = []
    while entries:
        length = source.randint(1, longest)
        results += machine.apply(entries[:length])
        entries = entries[length:]
    return results


@pytest.mark.parametrize("seed", range(5))
def test_the_batching_of_entries_changes_nothing(engine: Engine, seed: int) -> None:
    entries = list(random_entries(random.Random(seed), 300))
    one_by_one = Machine(engine, GROUP)
    expected = [result for each in entries for result in one_by_one.apply([each])]
    assert one_by_one.revision > 100, "the log must do something"
    for longest in (2, 17, 300):
        other_engine = MemoryEngine()
        other = Machine(other_engine, GROUP)
        assert _apply_in_runs(other, entries, random.Random(seed), longest) == expected
        assert _hash(other) == _hash(one_by_one)
        assert _state(other_engine) == _state(engine)


@pytest.mark.parametrize("seed", range(3))
def test_results_are_the_same_byte_for_byte(engine: Engine, seed: int) -> None:
    entries = list(random_entries(random.Random(seed), 100))
    answers = {
        b"".join(
            result.SerializeToString(deterministic=True)
            for results in Machine(each, GROUP).apply(entries)
            for result in results
        )
        for each in (engine, MemoryEngine())
    }
    assert len(answers) == 1
