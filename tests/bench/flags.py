"""How soon a change of a flag is known by those who watch: prints figures, and asserts none.

A change is timed from the call of `set` until each of the watchers has it, on three nodes of this
machine, with the watchers in one process; and an evaluation by itself.

    python -m tests.bench.flags [--watchers 100] [--changes 100]
"""

import asyncio
import os
import platform
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

import kvorum
from kvorum.cli.local_cluster import LocalCluster
from kvorum.patterns import FeatureFlags

EVALUATIONS = 100_000


def evaluations(flags: FeatureFlags) -> float:
    """Microseconds of one."""
    contexts = [{"user_id": f"user-{number}"} for number in range(1000)]
    begun = time.perf_counter()
    for number in range(EVALUATIONS):
        flags.is_enabled("checkout", contexts[number % 1000])
    return (time.perf_counter() - begun) / EVALUATIONS * 1e6


async def measure(watchers: int, changes: int) -> None:
    with tempfile.TemporaryDirectory(prefix="kvorum-bench-") as directory:
        cluster = LocalCluster(Path(directory))
        try:
            await cluster.up(nodes=3, base_port=0)
            async with AsyncExitStack() as stack:
                kv = await stack.enter_async_context(kvorum.open(cluster.target))
                other = await stack.enter_async_context(kvorum.open(cluster.target))
                admin = FeatureFlags(kv)
                await admin.set("checkout", percentage=50)
                watching = [
                    await stack.enter_async_context(FeatureFlags(other)) for _ in range(watchers)
                ]
                each: list[float] = []
                last: list[float] = []

                async def hear(flags: FeatureFlags, revision: int, begun: float) -> None:
                    await flags.wait_for(revision)
                    each.append((time.perf_counter() - begun) * 1000)

                revision = watching[0].revision
                for number in range(changes):
                    begun = time.perf_counter()
                    hearing = [
                        asyncio.create_task(hear(flags, revision + 1, begun)) for flags in watching
                    ]
                    revision = await admin.set("checkout", percentage=number % 100)
                    await asyncio.gather(*hearing)
                    last.append(max(each[-watchers:]))
                    await asyncio.sleep(0.02)
                each.sort()
                print(
                    f"  from set to {watchers} watchers on 3 nodes: median {median(each):.1f} ms,"
                    f" p99 {each[len(each) * 99 // 100]:.1f} ms; to the last of them: median"
                    f" {median(last):.1f} ms, at most {max(last):.1f} ms ({changes} changes)"
                )
                print(f"  an evaluation: {evaluations(watching[0]):.1f} us")
        finally:
            await cluster.down(wipe=True)


def main(
    watchers: Annotated[int, typer.Option(help="Each with a copy of its own.")] = 100,
    changes: Annotated[int, typer.Option(help="One after the other.")] = 100,
) -> None:
    """Measure how soon a change is known."""
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()},"
        f" load {os.getloadavg()[0]:.1f} before"
    )
    asyncio.run(measure(watchers, changes))


if __name__ == "__main__":
    typer.run(main)
