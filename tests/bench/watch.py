"""What watches cost: writers beside 10,000 of them, the node's memory, and how late they hear.

Prints figures and asserts none. Writers and watchers are processes of their own. Each
watcher has a prefix of its own; one more watches everything, and never reads. On a machine
with few cores, the watchers' own work slows the writers: so the CPU of each counts as well,
and what a change that is told costs the node is the difference of two rounds side by side.

    python -m tests.bench.watch [--watches 10000] [--streams 20] [--seconds 5]
"""

import asyncio
import os
import platform
import random
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil
import typer

import kvorum
from kvorum.channels import connect
from kvorum.cli.local_cluster import LocalCluster
from kvorum.limits import MIB
from kvorumpb.v1.watch_pb2 import BeginWatch, WatchRequest, WatchResponse
from tests.bench.throughput import Figure, measure
from tests.support.node_processes import nodes_of

IN_FLIGHT = 64
ROUNDS = 3
VALUE = b"v" * 256


@dataclass(frozen=True, slots=True)
class Beside:
    """What writers got, and what it cost the node."""

    figure: Figure
    node_us: float
    """Of the node's CPU, a write."""
    watchers_us: float
    rss_mib: float

    def __str__(self) -> str:
        return (
            f"{self.figure.per_second:,.0f} writes/s, p99 {self.figure.p99_ms:.1f} ms, CPU a write:"
            f" node {self.node_us:.0f} us, watchers {self.watchers_us:.0f} us;"
            f" {self.rss_mib:.0f} MiB"
        )


def open_stream(channel: Any) -> Any:
    return channel.stream_stream(
        "/kvorumpb.v1.Watch/Watch",
        request_serializer=WatchRequest.SerializeToString,
        response_deserializer=WatchResponse.FromString,
    )()


async def watch_all(address: str, watches: int, streams: int) -> None:
    """Hold the watches; say "ready" when all have begun, and what was heard at the end of stdin."""
    channel = connect(address)
    begun = changes = 0

    async def read(stream: Any) -> None:
        nonlocal begun, changes
        while isinstance(response := await stream.read(), WatchResponse):
            for update in response.updates:
                begun += update.HasField("begun")
                changes += update.HasField("changes")

    async def begin(number: int) -> None:
        stream = open_stream(channel)
        tasks.append(asyncio.create_task(read(stream)))
        for one in range(number, watches, streams):
            request = BeginWatch(watch_id=one, prefix=b"w:%06d:" % one)
            await stream.write(WatchRequest(begin=request))

    tasks: list[asyncio.Task[None]] = []
    await asyncio.gather(*(begin(number) for number in range(streams)))
    while begun < watches:  # noqa: ASYNC110 - of very many streams
        await asyncio.sleep(0.01)
    idle = open_stream(channel)
    await idle.write(WatchRequest(begin=BeginWatch(watch_id=1)))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(changes, flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    idle.cancel()
    await channel.close()


@asynccontextmanager
async def watching(address: str, watches: int, streams: int) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.watch", "--hold", address,
        "--watches", str(watches), "--streams", str(streams),
        stdin=PIPE, stdout=PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield process
        process.stdin.write(b"\n")
        heard = int(await process.stdout.readline())
        print(f"    {heard:,} changes were heard")
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


def cpu_seconds(process: psutil.Process) -> float:
    times: float = sum(process.cpu_times()[:2])
    return times


async def writers(watches: int, streams: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="kvorum-bench-") as directory:
        cluster = LocalCluster(Path(directory))
        try:
            await cluster.up(nodes=1, base_port=0)
            node = cluster.node("n1")
            [pid] = nodes_of(Path(directory))
            process = psutil.Process(pid)
            async with kvorum.open(cluster.target, type="bytes") as kv:

                async def wanted(_: int) -> None:
                    await kv.put(f"w:{random.randrange(watches):06}:k", VALUE)

                async def unwanted(_: int) -> None:
                    await kv.put(f"x:{random.randrange(watches):06}:k", VALUE)

                async def figure(
                    write: Callable[[int], Awaitable[None]], *watchers: psutil.Process
                ) -> Beside:
                    begun = [cpu_seconds(one) for one in (process, *watchers)]
                    writes = await kv.put("counted", VALUE)
                    measured = await measure(write, IN_FLIGHT, seconds)
                    writes = await kv.put("counted", VALUE) - writes
                    ended = [cpu_seconds(one) for one in (process, *watchers)]
                    node_us, *others_us = (
                        (end - begin) / writes * 1e6
                        for begin, end in zip(begun, ended, strict=True)
                    )
                    rss_mib = process.memory_info().rss / MIB
                    return Beside(measured, node_us, sum(others_us), rss_mib)

                await figure(wanted)
                told: list[float] = []
                for _ in range(ROUNDS):
                    alone = await figure(wanted)
                    print(f"  without watches: {alone}")
                    async with watching(node.address, watches, streams) as watcher:
                        watchers = psutil.Process(watcher.pid)
                        held = process.memory_info().rss / MIB
                        await figure(unwanted)  # until the one that never reads takes no more
                        print(f"  {watches:,} watches and one that never reads: {held:.0f} MiB")
                        costs = []
                        for name, write in (("none", unwanted), ("one", wanted)):
                            beside = await figure(write, watchers)
                            costs.append(beside.node_us)
                            ratio = beside.figure.per_second / alone.figure.per_second
                            print(f"    each write wanted by {name}: {beside}, ratio {ratio:.2f}")
                        told.append(costs[1] - costs[0])
                print(f"  a change that is told: {median(told):.0f} us of the node's CPU")
        finally:
            await cluster.down(wipe=True)


async def delays(watches: int, writes: int) -> None:
    with tempfile.TemporaryDirectory(prefix="kvorum-bench-") as directory:
        cluster = LocalCluster(Path(directory))
        try:
            await cluster.up(nodes=3, base_port=0)
            async with kvorum.open(cluster.target) as kv, kvorum.open(cluster.target) as other:
                all_of_them = [other.watch("k") for _ in range(watches)]
                for watch in all_of_them:
                    await watch.begin()
                took: list[float] = []
                sent: dict[int, float] = {}

                async def hear(watch: kvorum.Watch[int]) -> None:
                    for _ in range(writes):
                        change = await anext(watch)
                        assert change.entry is not None
                        took.append(time.perf_counter() - sent[change.entry.value])

                hearing = [asyncio.create_task(hear(watch)) for watch in all_of_them]
                for number in range(writes):
                    sent[number] = time.perf_counter()
                    await kv.put("k", number)
                    await asyncio.sleep(0.05)
                await asyncio.gather(*hearing)
            took.sort()
            print(
                f"  from the call of put to {watches} watchers on 3 nodes: median"
                f" {median(took) * 1000:.1f} ms, p99 {took[len(took) * 99 // 100] * 1000:.1f} ms"
            )
        finally:
            await cluster.down(wipe=True)


def main(
    watches: Annotated[int, typer.Option(help="Beside the writers.")] = 10_000,
    streams: Annotated[int, typer.Option(help="That share the watches.")] = 20,
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 5.0,
    hold: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure what watches cost."""
    if hold:
        asyncio.run(watch_all(hold, watches, streams))
        return
    load = os.getloadavg()[0]
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()},"
        f" load {load:.1f} before"
    )
    asyncio.run(writers(watches, streams, seconds))
    asyncio.run(delays(100, 100))


if __name__ == "__main__":
    typer.run(main)
