"""Every test of the watches runs on both engines."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum_node.machine import Machine
from kvorum_node.storage.engine import Engine
from kvorum_node.storage.memory import MemoryEngine
from kvorum_node.storage.rocks import RocksEngine, Role
from kvorum_node.watches import WatchHub
from tests.support.watched_machine import GROUP, Vouching, hub_of


@pytest.fixture(params=["memory", "rocks"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    engine: Engine = (
        MemoryEngine()
        if request.param == "memory"
        else RocksEngine.open(tmp_path / "state", Role.STATE)
    )
    yield engine
    engine.close()


@pytest.fixture
def machine(engine: Engine) -> Machine:
    return Machine(engine, GROUP)


@pytest.fixture
def node() -> Vouching:
    return Vouching()


@pytest.fixture
async def hub(machine: Machine, node: Vouching) -> WatchHub:
    return hub_of(machine, node)
