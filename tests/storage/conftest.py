"""The engines, each of which the tests of the rule run on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum_node.storage.engine import Engine
from kvorum_node.storage.memory import MemoryEngine
from kvorum_node.storage.rocks import RocksEngine, Role


@pytest.fixture(params=["memory", "rocks-log", "rocks-state"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Every engine in turn, empty, with all families."""
    opened: Engine
    match request.param:
        case "memory":
            opened = MemoryEngine()
        case "rocks-log":
            opened = RocksEngine.open(tmp_path / "log", Role.LOG)
        case _:
            opened = RocksEngine.open(tmp_path / "state", Role.STATE)
    yield opened
    opened.close()
