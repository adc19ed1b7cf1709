"""A bulk load over a killed leader, and one that has lost the whole cluster and goes on."""

import asyncio

import pytest

import kvorum
from kvorum import BatchInterrupted
from kvorum.cli.local_cluster import LocalCluster
from kvorum.patterns import BatchProgress, batch_get, batch_put

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

ITEMS = 40_000


async def test_a_bulk_load_goes_on_over_failovers_and_resumes(mortal_cluster: LocalCluster) -> None:
    done = 0
    moved, never = asyncio.Event(), asyncio.Event()

    async def note(progress: BatchProgress) -> None:
        nonlocal done
        done = progress.done
        moved.set()
        if done > ITEMS * 0.6:  # not over before it is cancelled, however long a restart takes
            await never.wait()

    async def until(share: float) -> None:
        async with asyncio.timeout(60):
            while done < ITEMS * share:
                moved.clear()
                await moved.wait()

    async with kvorum.open(mortal_cluster.target, timeout=60) as kv:
        items = [(f"bulk:{number:06}", number) for number in range(ITEMS)]
        loading = asyncio.create_task(batch_put(kv, items, on_progress=note))
        await until(0.2)
        leader = await mortal_cluster.leader()
        mortal_cluster.kill(leader)
        await mortal_cluster.restart(leader)
        await until(0.5)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        resumed_at = done
        assert resumed_at < ITEMS
        result = await batch_put(kv, items, skip=resumed_at)
        assert (result.done, result.changed) == (ITEMS, ITEMS - resumed_at)
        entries = [entry async for entry in kv.scan("bulk:")]
        assert [(entry.key, entry.value) for entry in entries] == items
        # What was settled was not written again; what was under way may have been.
        assert {entry.version for entry in entries[:resumed_at]} == {1}
        assert {entry.version for entry in entries[resumed_at:]} <= {1, 2}


async def test_without_a_majority_it_says_where_to_go_on(mortal_cluster: LocalCluster) -> None:
    async with kvorum.open(mortal_cluster.target, timeout=60) as kv:
        followers = [one.name for one in mortal_cluster.nodes]
        followers.remove(await mortal_cluster.leader())
        items = [(f"k{number:05}", number) for number in range(20_000)]

        async def lose_the_majority(progress: BatchProgress) -> None:
            if progress.done > 2_000:
                while followers:
                    mortal_cluster.kill(followers.pop())

        with pytest.raises(BatchInterrupted) as raised:
            await batch_put(kv, items, on_progress=lose_the_majority, timeout=2)
        done = raised.value.done
        assert 2_000 < done < 20_000
        for node in mortal_cluster.nodes[:2]:
            if mortal_cluster.state(node.name).name != "RUNNING":
                await mortal_cluster.restart(node.name)
        result = await batch_put(kv, items, skip=done)
        assert result.changed == 20_000 - done
        assert (
            await batch_get(kv, [key for key, _ in items[done - 500 : done + 500]])
        ).missing == ()
