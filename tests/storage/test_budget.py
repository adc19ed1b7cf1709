"""What RocksDB may take, from what the process may take."""

import pytest

from kvorum.limits import MIB
from kvorum_node.storage.budget import (
    MAX_WRITE_BUFFERS,
    MIN_MEMORY_BYTES,
    PROCESS_BYTES,
    USUAL_WRITE_BUFFER_BYTES,
    Budget,
)


def total(budget: Budget) -> int:
    return budget.log.total_bytes + budget.state.total_bytes


def test_a_gigabyte_gives_the_usual_size() -> None:
    assert Budget.of(1024 * MIB) == Budget.of(0) == Budget()
    assert total(Budget()) == 384 * MIB


@pytest.mark.parametrize("memory", [384, 500, 1000, 1024, 1025, 4096, 65536])
def test_half_of_what_the_process_does_not_need_and_no_more(memory: int) -> None:
    budget = Budget.of(memory * MIB)
    assert total(budget) == (memory * MIB - PROCESS_BYTES) // 2
    for engine in (budget.log, budget.state):
        assert 5 * MIB < engine.write_buffer_bytes <= USUAL_WRITE_BUFFER_BYTES
        assert engine.cache_bytes >= 10 * MIB
    assert budget.state.cache_bytes >= budget.log.cache_bytes


def test_more_memory_is_more_cache_for_the_state() -> None:
    small, large = Budget.of(2048 * MIB), Budget.of(4096 * MIB)
    assert large.log == small.log
    assert large.state.cache_bytes - small.state.cache_bytes == 1024 * MIB
    assert large.state.write_buffer_bytes * MAX_WRITE_BUFFERS == 128 * MIB


def test_too_little_is_refused_with_the_least() -> None:
    assert total(Budget.of(MIN_MEMORY_BYTES)) == 64 * MIB
    with pytest.raises(ValueError, match=r"memory_bytes \(402653183\) must be at least 402653184"):
        Budget.of(MIN_MEMORY_BYTES - 1)
