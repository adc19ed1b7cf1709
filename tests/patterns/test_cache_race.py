"""A cache on three nodes whose leader is killed: never stale after an invalidation.

Writers change a truth in the store, and invalidate; readers compute from it, slowly enough
that invalidations come in the middle. The usual form of a cache does the same beside it.
"""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress

import pytest

import kvorum
from kvorum import KV
from kvorum.cli.cluster_file import NoClusterHere
from kvorum.cli.local_cluster import LocalCluster
from kvorum.patterns import Cache
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.node_processes import nodes_of
from tests.support.targets import FLAGS

pytestmark = pytest.mark.cluster

STORES = 3
READERS = 4
"""Of each store."""
KEYS = 3
KILLS = 2
PROGRESS = 30
CALLERS = 200


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes; who kills one restarts it."""
    directory = tmp_path_factory.mktemp("cache")
    cluster = LocalCluster(directory / "cluster")
    asyncio.run(cluster.up(nodes=3, base_port=0, flags=FLAGS))
    yield cluster
    with suppress(NoClusterHere):
        cluster.kill_all()
    assert nodes_of(directory) == []


async def truth_of(kv: KV, key: str) -> int:
    entry = await kv.get(key)
    return 0 if entry is None else int(entry.value)


class Users:
    """Users as they are, and a cache of them; what a reader is given is judged.

    A version is settled once the call has returned that wrote it, and invalidated its tag.
    """

    def __init__(self, stores: list[KV]) -> None:
        self.settled = [0] * KEYS
        self.read_times = [0] * KEYS
        self.writes = 0
        self.stopping = False
        self._stores = stores
        self.caches = [Cache(kv, "users", ttl=300, lease=5) for kv in stores]

    async def write(self, key: int) -> None:
        store, cache = self._stores[key % STORES], self.caches[key % STORES]
        while not self.stopping:
            version = self.settled[key] + 1
            atomic = store.atomic().put(f"user:{key}", version)
            cache.invalidate_in(atomic, f"user:{key}")
            await atomic.commit()
            self.settled[key] = version
            self.writes += 1
            if version % 2:  # some stay until they are hit, others come into computations
                goal = self.read_times[key] + 2 * READERS * STORES
                while self.read_times[key] < goal and not self.stopping:  # noqa: ASYNC110 - of many
                    await asyncio.sleep(0.001)

    async def read(self, store: KV, cache: Cache[int], first: int) -> None:
        key = first
        while not self.stopping:
            key = (key + 1) % KEYS
            name = f"user:{key}"

            async def compute(name: str = name) -> int:
                version = await truth_of(store, name)
                await truth_of(store, "anything")  # it takes its time
                return version

            known = self.settled[key]
            found = await cache.get_or_compute(str(key), compute, tags=[name])
            assert found >= known, f"{name}: {found} was given after {known} was settled"
            self.read_times[key] += 1

    async def progress(self) -> None:
        """Return once so many more versions were settled, half of them read by all."""
        goal = self.writes + PROGRESS
        async with asyncio.timeout(DEADLINE_SECONDS):
            while self.writes < goal:  # noqa: ASYNC110 - of many tasks
                await asyncio.sleep(0.01)


async def test_nobody_is_given_what_was_invalidated_while_leaders_are_killed(
    cluster: LocalCluster,
) -> None:
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(kvorum.open(cluster.target, timeout=60))
            for _ in range(STORES)
        ]
        users = Users(stores)
        async with asyncio.TaskGroup() as tasks:  # a call that fails, fails the test
            for key in range(KEYS):
                tasks.create_task(users.write(key))
            for store, cache in zip(stores, users.caches, strict=True):
                for first in range(READERS):
                    tasks.create_task(users.read(store, cache, first))
            await users.progress()
            for _ in range(KILLS):
                leader = await cluster.leader()
                cluster.kill(leader)
                await users.progress()
                await cluster.restart(leader)
            users.stopping = True
        totals = [cache.statistics for cache in users.caches]
        hits, refused = (sum(of) for of in zip(*((s.hits, s.refused) for s in totals), strict=True))
        print(
            f"\n{users.writes} invalidations, {sum(users.read_times)} reads, {hits} of them hits,"
        )
        print(f"{refused} fills refused")
        assert hits > 0 < refused  # what this is about has happened
        leases = await stores[0].list("cache:users:l:", keys_only=True)
        assert len(leases) == 0


async def test_the_usual_form_serves_what_was_invalidated(cluster: LocalCluster) -> None:
    """The control: the same race, each step in its order."""
    async with (
        kvorum.open(cluster.target, timeout=60) as kv,
        kvorum.open(cluster.target, timeout=60) as other,
    ):
        computed, invalidated = asyncio.Event(), asyncio.Event()

        async def slowly(store: KV) -> int:
            version = await truth_of(store, "user:1")
            computed.set()
            await invalidated.wait()
            return version

        async def get_usual() -> int:
            found = await kv.get("usual:1")
            if found is not None:
                return int(found.value)
            value = await slowly(kv)
            await kv.put("usual:1", value, ttl=300)
            tagged = await kv.get("usual:tag:user:1")
            await kv.put("usual:tag:user:1", [*(tagged.value if tagged else []), "usual:1"])
            return value

        async def invalidate_usual() -> None:
            tagged = await other.get("usual:tag:user:1")
            for key in tagged.value if tagged else []:
                await other.delete(key)
            await other.delete("usual:tag:user:1")

        here, there = Cache(kv, "beside", ttl=300), Cache(other, "beside", ttl=300)
        await kv.put("user:1", 1)
        usual = asyncio.create_task(get_usual())
        await computed.wait()
        computed.clear()
        ours = asyncio.create_task(here.get_or_compute("1", lambda: slowly(kv), tags=["user:1"]))
        await computed.wait()
        leader = await cluster.leader()
        cluster.kill(leader)
        await other.put("user:1", 2)
        await invalidate_usual()
        await there.invalidate("user:1")
        invalidated.set()
        await asyncio.gather(usual, ours)
        assert await get_usual() == 1  # wrong, until its time is over
        assert await here.get_or_compute("1", lambda: slowly(kv), tags=["user:1"]) == 2
        assert await there.get_or_compute("1", lambda: slowly(other), tags=["user:1"]) == 2
    await cluster.restart(leader)


async def test_a_stampede_over_several_stores_computes_once_while_the_leader_is_killed(
    cluster: LocalCluster,
) -> None:
    computations = 0
    begun, killed = asyncio.Event(), asyncio.Event()

    async def compute() -> str:
        nonlocal computations
        computations += 1
        begun.set()
        await killed.wait()
        return "home"

    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(kvorum.open(cluster.target, timeout=60))
            for _ in range(STORES + 1)
        ]
        caches = [Cache(kv, "pages", ttl=300, lease=60) for kv in stores]
        calls = [
            asyncio.create_task(caches[n % len(caches)].get_or_compute("home", compute))
            for n in range(CALLERS)
        ]
        await begun.wait()
        leader = await cluster.leader()
        cluster.kill(leader)
        killed.set()
        assert set(await asyncio.gather(*calls)) == {"home"}
        assert computations == 1
    await cluster.restart(leader)
