"""Log-outs race everything that writes to a session, on real nodes whose leader is killed.

Never is a session there after its log-out has returned. The usual form, which reads a
session and puts it back, is here too: it brings sessions back, each time.
"""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack, suppress

import pytest

import kvorum
from kvorum import KV
from kvorum.cli.cluster_file import NoClusterHere
from kvorum.cli.local_cluster import LocalCluster
from kvorum.patterns import sessions as module
from kvorum.patterns.sessions import SessionStore
from tests.support.node_processes import nodes_of
from tests.support.targets import FLAGS

pytestmark = [pytest.mark.cluster]

CLIENTS = 3
RACES = 1_000
AT_ONCE = 50
CONTROLS = 50


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes; a test leaves them running."""
    directory = tmp_path_factory.mktemp("race")
    local = LocalCluster(directory / "cluster")
    try:
        asyncio.run(local.up(nodes=3, base_port=0, flags=FLAGS))
        yield local
    finally:
        with suppress(NoClusterHere):
            local.kill_all()
        assert nodes_of(directory) == []


async def open_all(cluster: LocalCluster, stack: AsyncExitStack) -> list[KV]:
    return [
        await stack.enter_async_context(kvorum.open(cluster.target, timeout=60))
        for _ in range(CLIENTS)
    ]


class Racing:
    """Sessions that are refreshed, changed and rotated while their users log out."""

    def __init__(self, stores: list[KV]) -> None:
        self.raced = 0
        self.alive: list[str] = []
        self.refreshed = 0
        """How many refreshes were first, and found the session."""
        self._sessions = [SessionStore(kv, ttl=3600, lifetime=7200) for kv in stores]

    async def run(self) -> None:
        while self.raced < RACES:
            await asyncio.gather(*(self._race(number) for number in range(AT_ONCE)))

    async def _race(self, number: int) -> None:
        here, there, third = (self._sessions[(number + n) % CLIENTS] for n in range(3))
        token, _ = await here.create(f"user{number}")
        racing: list[Awaitable[object]] = [there.refresh(token), third.update(token, seen=True)]
        out = here.destroy_all(f"user{number}") if number % 5 == 0 else here.destroy(token)
        if number % 2:
            racing.insert(0, out)
        else:
            racing.append(out)
        results = await asyncio.gather(*racing)
        self.refreshed += results[racing.index(out) == 0] is not None
        if await third.get(token) is not None:
            self.alive.append(token)
        self.raced += 1


async def kill_in_the_middle(cluster: LocalCluster, racing: Racing) -> None:
    for goal in (RACES // 4, RACES // 2):
        while racing.raced < goal:  # noqa: ASYNC110 - of many tasks
            await asyncio.sleep(0.01)
        leader = await cluster.leader()
        cluster.kill(leader)
        await cluster.restart(leader)


async def test_no_session_is_there_after_its_end(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFRESH_FRACTION", 1e-9)  # so that each refresh writes
    async with AsyncExitStack() as stack:
        stores = await open_all(cluster, stack)
        racing = Racing(stores)
        async with asyncio.timeout(100):
            await asyncio.gather(racing.run(), kill_in_the_middle(cluster, racing))
        assert racing.raced >= RACES
        assert racing.alive == []
        assert racing.refreshed > 0
        kept = [entry.key async for entry in stores[0].scan("session:", keys_only=True)]
        assert kept == []


async def test_the_usual_form_brings_sessions_back(cluster: LocalCluster) -> None:
    """Reading a session and putting it back, with a log-out in between."""
    async with AsyncExitStack() as stack:
        here, there, _ = await open_all(cluster, stack)

        async def refresh(key: str, gate: asyncio.Barrier) -> None:
            session = await here.get(key)
            await gate.wait()
            await gate.wait()
            if session is not None:
                await here.put(key, session.value, ttl=3600)

        async def log_out(key: str, gate: asyncio.Barrier) -> None:
            await gate.wait()
            await there.delete(key)
            await gate.wait()

        async def race(number: int) -> bool:
            key, gate = f"usual:{number}", asyncio.Barrier(2)
            await here.put(key, {"user": "alice"}, ttl=3600)
            await asyncio.gather(refresh(key, gate), log_out(key, gate))
            return await there.get(key) is not None

        back = await asyncio.gather(*(race(number) for number in range(CONTROLS)))
        assert sum(back) == CONTROLS
