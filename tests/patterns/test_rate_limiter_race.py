"""200 checks at a limit of 100 while the leader is killed; the usual form lets all of them pass."""

import asyncio
from contextlib import AsyncExitStack

import pytest

import kvorum
from kvorum import KV
from kvorum.cli.local_cluster import LocalCluster
from kvorum.patterns import RateLimiter

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

CLIENTS = 20
CHECKS = 200
LIMIT = 100


async def test_exactly_so_many_pass_over_a_failover(mortal_cluster: LocalCluster) -> None:
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(kvorum.open(mortal_cluster.target, timeout=60))
            for _ in range(CLIENTS)
        ]
        for algorithm in ("sliding_log", "gcra"):
            limiters = [
                RateLimiter(kv, algorithm, limit=LIMIT, window=24 * 3600, algorithm=algorithm)
                for kv in stores
            ]
            passed: list[bool] = []

            async def check(limiter: RateLimiter, passed: list[bool] = passed) -> None:
                for _ in range(CHECKS // CLIENTS):
                    decision = await limiter.check("ann")
                    passed.append(decision.allowed)

            leader = await mortal_cluster.leader()  # asked now: the checks take no longer than that
            async with asyncio.TaskGroup() as tasks:
                for limiter in limiters:
                    tasks.create_task(check(limiter))
                async with asyncio.timeout(60):
                    while len(passed) < LIMIT // 4:  # noqa: ASYNC110 - of many tasks
                        await asyncio.sleep(0)
                mortal_cluster.kill(leader)
                assert len(passed) < CHECKS, "the kill came too late to show anything"
                await mortal_cluster.restart(leader)
            assert (len(passed), sum(passed)) == (CHECKS, LIMIT)


async def test_the_usual_form_lets_more_pass(mortal_cluster: LocalCluster) -> None:
    clients, limit = 5, 1
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(kvorum.open(mortal_cluster.target))
            for _ in range(clients)
        ]
        have_read = asyncio.Barrier(clients)

        async def check(kv: KV) -> bool:
            entry = await kv.get("usual")
            await have_read.wait()
            seen = [] if entry is None else entry.value
            if len(seen) >= limit:
                return False
            await kv.put("usual", [*seen, "now"])
            return True

        assert sum(await asyncio.gather(*map(check, stores))) == clients

        async def check_ours(kv: KV) -> bool:
            limiter = RateLimiter(kv, "ours", limit=limit, window=3600)
            await limiter.peek("ann")
            await have_read.wait()
            return bool(await limiter.check("ann"))

        assert sum(await asyncio.gather(*map(check_ours, stores))) == limit
