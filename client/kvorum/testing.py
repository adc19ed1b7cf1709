"""A pytest plugin for the tests of programs that use kvorum. It is there once kvorum is installed.

    kv               an empty store of its own for each asyncio test (pytest-asyncio)
    sync_kv          the same for a test without an event loop
    kvorum_cluster   three real nodes on this machine, once a session (the extra `node`)

By default the stores are in memory. `pytest --kvorum-target=cluster` runs the same tests on
`kvorum_cluster`, whose keys are all deleted before each test, and `--kvorum-target=directory` on
the disk.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

import kvorum
from kvorum import KV, SyncKV, limits

if TYPE_CHECKING:
    from kvorum.cli.local_cluster import LocalCluster

__all__ = ["RealCluster"]

T = TypeVar("T")

TARGETS = ("memory", "directory", "cluster")


class RealCluster:
    """Three node processes, with disks and sockets. Given by the fixture `kvorum_cluster`.

    Its methods block; a test with an event loop that is to go on gives them to
    `asyncio.to_thread`.
    """

    def __init__(self, local: "LocalCluster") -> None:
        self._local = local

    @property
    def target(self) -> str:
        """What `kvorum.open` takes."""
        return self._local.target

    @property
    def nodes(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(node.name for node in self._local.nodes)

    def leader(self) -> str:
        """The name of the node that leads."""
        return _run(self._local.leader())

    def kill(self, node: str) -> None:
        """Let the node die, with SIGKILL."""
        self._local.kill(node)

    def pause(self, node: str) -> None:
        """Let the node hang, with SIGSTOP."""
        self._local.pause(node)

    def resume(self, node: str) -> None:
        """Let a node go on that was paused."""
        self._local.resume(node)

    def restart(self, node: str) -> None:
        """Stop the node, if it runs, and start it; returns once it serves."""
        _run(self._local.restart(node))

    def clear(self) -> None:
        """Delete every key, and start the nodes that are not running."""
        for node in self.nodes:
            if self._local.state(node).value != "running":
                self.restart(node)
        with kvorum.open_sync(self.target) as kv:
            _empty(kv)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("kvorum").addoption(
        "--kvorum-target",
        choices=TARGETS,
        default="memory",
        help="where the stores of the fixtures kv and sync_kv are (default: memory)",
    )


@pytest.fixture(scope="session")
def kvorum_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """Three real nodes on free ports; a test that harms one should restart it."""
    try:
        from kvorum.cli.local_cluster import LocalCluster  # noqa: PLC0415 - it needs the extra

        local = LocalCluster(tmp_path_factory.mktemp("kvorum") / "cluster")
        _run(local.up(nodes=3, base_port=0))
    except ImportError as error:
        raise pytest.UsageError(
            f'kvorum_cluster needs the node: pip install "kvorum[node]" ({error})'
        ) from None
    try:
        yield RealCluster(local)
    finally:
        _run(local.down(wipe=True))


@pytest.fixture
def kvorum_target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What `kv` and `sync_kv` open; override it to decide for yourself. It is found empty."""
    match request.config.getoption("--kvorum-target"):
        case "cluster":
            cluster: RealCluster = request.getfixturevalue("kvorum_cluster")
            cluster.clear()
            return cluster.target
        case "directory":
            return str(tmp_path / "kvorum")
        case _:
            return "memory:"


@pytest.fixture
def sync_kv(kvorum_target: str) -> Iterator[SyncKV]:
    """An empty store for threads."""
    with kvorum.open_sync(kvorum_target) as kv:
        yield kv


if TYPE_CHECKING or find_spec("pytest_asyncio") is not None:
    from pytest_asyncio import fixture as asyncio_fixture

    @asyncio_fixture
    async def kv(kvorum_target: str) -> AsyncIterator[KV]:
        """An empty store for asyncio."""
        async with kvorum.open(kvorum_target) as kv:
            yield kv

else:

    @pytest.fixture
    def kv() -> KV:
        """Say what is missing."""
        raise pytest.UsageError("the fixture kv needs pytest-asyncio; sync_kv does without")


def _empty(kv: SyncKV) -> None:
    while kv.delete_range(start="", limit=limits.MAX_RANGE_RECORDS):
        pass


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it in a thread of its own: the one that asks may have a loop that runs."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
