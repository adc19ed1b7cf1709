"""Feature flags over real nodes: killed leaders, a cluster that is away, a hundred who watch."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress

import pytest

import kvorum
from kvorum import Conflict
from kvorum.cli.cluster_file import NoClusterHere
from kvorum.cli.local_cluster import LocalCluster
from kvorum.patterns.flag_rules import Reason
from kvorum.patterns.flags import FeatureFlags
from tests.support.node_processes import nodes_of
from tests.support.targets import FLAGS

pytestmark = [pytest.mark.cluster]

WATCHERS = 100
ADMINS = 5
CHANGES = 10
STALE_SECONDS = 5.5
PATIENCE_SECONDS = 60.0


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


async def test_a_change_reaches_a_hundred_who_watch(cluster: LocalCluster) -> None:
    """All of them, the leader killed in between or not; how fast is for tests/bench/flags.py."""
    async with AsyncExitStack() as stack:
        kv = await stack.enter_async_context(kvorum.open(cluster.target, timeout=60))
        other = await stack.enter_async_context(kvorum.open(cluster.target, timeout=60))
        admin = FeatureFlags(kv)
        await admin.set("checkout")
        all_of_them = [
            await stack.enter_async_context(FeatureFlags(other)) for _ in range(WATCHERS)
        ]
        for percentage in (100, 0, 100):
            revision = await admin.set("checkout", percentage=percentage)
            waiting = (flags.wait_for(revision, timeout=60) for flags in all_of_them)
            await asyncio.gather(*waiting)
            assert {flags.is_enabled("checkout") for flags in all_of_them} == {percentage == 100}
            if not percentage:
                leader = await cluster.leader()
                cluster.kill(leader)
                await cluster.restart(leader)


async def test_when_the_cluster_is_away_answers_go_on_and_say_so(cluster: LocalCluster) -> None:
    async with (
        kvorum.open(cluster.target, timeout=60) as kv,
        FeatureFlags(kv, stale_after=STALE_SECONDS) as flags,
    ):
        revision = await flags.set("checkout", percentage=50)
        await flags.wait_for(revision)
        said = flags.explain("checkout", {"user_id": "alice"})
        assert (said.enabled, said.reason) == (True, Reason.SPLIT)
        for node in cluster.nodes:
            cluster.pause(node.name)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not flags.is_stale:
                assert flags.is_enabled("checkout", {"user_id": "alice"})
                await asyncio.sleep(0.05)
        said = flags.explain("checkout", {"user_id": "alice"})
        assert (said.enabled, said.reason, said.decided_by) == (True, Reason.STALE, Reason.SPLIT)
        assert (said.stale, said.revision) == (True, revision)
        assert said.staleness > STALE_SECONDS
        for node in cluster.nodes:
            cluster.resume(node.name)
        await flags.wait_for(await flags.set("checkout", percentage=0), timeout=60)
        said = flags.explain("checkout", {"user_id": "alice"})
        assert (said.enabled, said.reason, said.stale) == (False, Reason.STATIC, False)


async def test_no_admin_overwrites_another_while_the_leader_is_killed(
    cluster: LocalCluster,
) -> None:
    """Each adds users to one list, with the revision that was read, from a store of its own."""
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(kvorum.open(cluster.target, timeout=60))
            for _ in range(3)
        ]
        await FeatureFlags(stores[0]).set("checkout")
        flags = await stack.enter_async_context(FeatureFlags(stores[2]))
        added: list[str] = []

        async def add(admin: FeatureFlags, user: str) -> bool:
            read = await admin.get("checkout")
            assert read is not None
            try:
                await admin.set("checkout", users=read.users | {user}, revision=read.revision)
            except Conflict:
                return False
            return True

        async def administer(number: int) -> None:
            admin = FeatureFlags(stores[number % 3])
            for change in range(CHANGES):
                while not await add(admin, user := f"{number}-{change}"):
                    pass
                added.append(user)
                await admin.update("checkout", description=user)

        async def kill() -> None:
            while len(added) < ADMINS * CHANGES // 2:  # noqa: ASYNC110 - of many tasks
                await asyncio.sleep(0.01)
            leader = await cluster.leader()
            cluster.kill(leader)
            await cluster.restart(leader)

        async with asyncio.timeout(100):
            await asyncio.gather(kill(), *(administer(number) for number in range(ADMINS)))
        stored = await FeatureFlags(stores[0]).get("checkout")
        assert stored is not None
        assert stored.users == set(added)
        assert len(added) == ADMINS * CHANGES
        await flags.wait_for(stored.revision, timeout=60)
        assert all(flags.is_enabled("checkout", {"user_id": user}) for user in added)


async def test_the_usual_form_loses_what_others_wrote(cluster: LocalCluster) -> None:
    """Reading the list, adding to it, and putting it back: all but the last are lost."""
    async with kvorum.open(cluster.target, timeout=60) as kv:
        await kv.put("usual", {"users": []})
        gate = asyncio.Barrier(ADMINS)

        async def administer(number: int) -> None:
            entry = await kv.get("usual")
            assert entry is not None
            await gate.wait()
            await kv.put("usual", {"users": [*entry.value["users"], number]})

        await asyncio.gather(*(administer(number) for number in range(ADMINS)))
        entry = await kv.get("usual")
        assert entry is not None
        assert len(entry.value["users"]) == 1
