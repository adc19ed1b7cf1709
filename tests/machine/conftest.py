"""Every test of the machine runs on both engines."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from kvorum_node.machine import Machine
from kvorum_node.raft.types import GroupId
from kvorum_node.storage.engine import Engine
from kvorum_node.storage.memory import MemoryEngine
from kvorum_node.storage.rocks import RocksEngine, Role

GROUP = GroupId(1)


class MemoryDisk:
    """Forgets everything in a crash."""

    def __init__(self) -> None:
        self.engine: Engine = MemoryEngine()

    def restart(self) -> None:
        pass

    def crash(self) -> None:
        self.engine.close()
        self.engine = MemoryEngine()

    def close(self) -> None:
        self.engine.close()


class RocksDisk:
    """Goes back to its last restart in a crash, and so loses as much as a crash ever may."""

    def __init__(self, directory: Path) -> None:
        self._state, self._kept = directory / "state", directory / "kept"
        self._kept.mkdir()
        self._open()

    def restart(self) -> None:
        self.engine.sync()
        self.engine.close()
        shutil.rmtree(self._kept)
        shutil.copytree(self._state, self._kept)
        self._open()

    def crash(self) -> None:
        self.engine.close()
        shutil.rmtree(self._state)
        shutil.copytree(self._kept, self._state)
        self._open()

    def close(self) -> None:
        self.engine.close()

    def _open(self) -> None:
        self.engine: Engine = RocksEngine.open(self._state, Role.STATE)


Disk: TypeAlias = MemoryDisk | RocksDisk


@pytest.fixture(params=["memory", "rocks"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    disk = MemoryDisk() if request.param == "memory" else RocksDisk(tmp_path)
    yield disk
    disk.close()


@pytest.fixture
def engine(disk: Disk) -> Engine:
    return disk.engine


@pytest.fixture
def machine(engine: Engine) -> Machine:
    return Machine(engine, GROUP)
