"""Every test of the machine runs on both engines."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from kvorum_node.machine import Machine
from kvorum_node.raft.types import GroupId
from kvorum_node.storage.engine import Engine, Family
from kvorum_node.storage.memory import MemoryEngine
from kvorum_node.storage.rocks import RocksEngine, Role

GROUP = GroupId(1)

OpenEngine: TypeAlias = Callable[[], Engine]


@pytest.fixture(params=["memory", "rocks"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenEngine]:
    """Opens the engine; called again, closes it without a sync and opens it anew."""
    opened: list[Engine] = []

    def memory() -> Engine:
        opened[:] = opened or [MemoryEngine()]
        return opened[0]

    def rocks() -> Engine:
        for engine in opened:
            engine.close()
        opened[:] = [RocksEngine.open(tmp_path / "state", [Family.DATA, Family.META], Role.STATE)]
        return opened[0]

    yield memory if request.param == "memory" else rocks
    for engine in opened:
        engine.close()


@pytest.fixture
def engine(reopen: OpenEngine) -> Engine:
    return reopen()


@pytest.fixture
def machine(engine: Engine) -> Machine:
    return Machine(engine, GROUP)
