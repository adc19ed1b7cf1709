"""What snapshots cost: a large state moves to a new member and to a file beside small writes.

Three local nodes with fsync are filled, and a fourth is added; then all is saved to a file, which
is verified and restored. Printed are how long it took to become a voter, the small writes
before and meanwhile, whether the leader stayed (a heartbeat that is an election time-out late
would have cost it its office), and how fast the file was written and read.

    python -m tests.bench.snapshot [--megabytes 2048] [--size 16384]
"""

import asyncio
import os
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.table import Table

import kvorum
from kvorum import KV
from kvorum.admin import ClusterAdmin
from kvorum.cli.local_cluster import LocalCluster
from kvorum.limits import MIB
from kvorumpb.v1.cluster_pb2 import GetStatusResponse, Member
from tests.support import shell

FILLERS = 16
BEFORE_SECONDS = 10.0
PAUSE_SECONDS = 0.005
"""Between two small writes: they are to be disturbed, not to disturb."""


async def fill(kv: KV, megabytes: int, size: int) -> None:
    numbers = iter(range(megabytes * MIB // size))

    async def filler() -> None:
        for number in numbers:
            await kv.put(f"fill:{number}", os.urandom(size), timeout=60)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(FILLERS):
            tasks.create_task(filler())


class SmallWrites:
    """One after the other, until cancelled; how long each took, in milliseconds."""

    def __init__(self, kv: KV) -> None:
        self._kv = kv
        self.took_ms: list[float] = []

    async def run(self) -> None:
        while True:
            began = time.perf_counter()
            await self._kv.put("small", b"x")
            self.took_ms.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(PAUSE_SECONDS)

    def take(self) -> list[float]:
        took, self.took_ms = self.took_ms, []
        return took


async def bench(cluster: LocalCluster, megabytes: int, size: int) -> Table:
    async with kvorum.open(cluster.target, type="bytes") as kv:
        began = time.perf_counter()
        await fill(kv, megabytes, size)
        filled_seconds = time.perf_counter() - began
        writes = SmallWrites(kv)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(writes.run())
            await asyncio.sleep(BEFORE_SECONDS)
            before, calm = await leader_view(cluster), writes.take()
            began = time.perf_counter()
            name = await cluster.add(_ignore)
            seconds, busy = time.perf_counter() - began, writes.take()
            after = await leader_view(cluster)
            file = cluster.directory / "bench.snap"
            target = ("--target", cluster.target)
            saved, saving = await timed("snapshot", "save", str(file), *target), writes.take()
            running.cancel()
        verified = await timed("snapshot", "verify", str(file))
        place = ("--data-dir", str(cluster.directory / "restored"), "--advertise", "127.0.0.1:1")
        restored = await timed("snapshot", "restore", str(file), *place)
        table = Table("", "figure", title=f"{megabytes} MiB in values of {size} bytes")
        table.add_row("to write them", f"{filled_seconds:.1f} s")
        table.add_row(f"until {name} was a voter", f"{seconds:.1f} s")
        for what, took_seconds in (("save", saved), ("verify", verified), ("restore", restored)):
            rate = file.stat().st_size / MIB / took_seconds
            table.add_row(f"to {what} a file", f"{took_seconds:.1f} s, {rate:.0f} MiB/s")
        for when, took in (("before", calm), ("with a new member", busy), ("in a save", saving)):
            centiles = quantiles(took, n=100)
            table.add_row(
                f"small writes {when}: p50, p99, longest",
                f"{centiles[49]:.1f}, {centiles[98]:.1f}, {max(took):.1f} ms ({len(took)})",
            )
        table.add_row("leader and term before", f"{before.leader}, {before.term}")
        table.add_row("leader and term after", f"{after.leader}, {after.term}")
        for report in await cluster.status():
            table.add_row(f"memory of {report.node.name}", f"{_resident_mib(report.pid)} MiB")
        return table


async def timed(*arguments: str) -> float:
    """The seconds that a command takes, from its start to its end."""
    began = time.perf_counter()
    await shell.output(*arguments)
    return time.perf_counter() - began


def _ignore(member: Member, lag: int) -> None:
    """Nobody looks at how far it is."""


def _resident_mib(pid: int | None) -> int:
    return 0 if pid is None else int(psutil.Process(pid).memory_info().rss) // MIB


async def leader_view(cluster: LocalCluster) -> GetStatusResponse:
    async with ClusterAdmin(node.address for node in cluster.nodes) as admin:
        return await admin.status(await admin.find_leader())


async def bench_local(megabytes: int, size: int) -> Table:
    with tempfile.TemporaryDirectory(prefix="kvorum-bench-") as directory:
        cluster = LocalCluster(Path(directory))
        try:
            await cluster.up(nodes=3, base_port=0)
            return await bench(cluster, megabytes, size)
        finally:
            await cluster.down(wipe=True)


def main(
    megabytes: Annotated[int, typer.Option(help="Of state.")] = 2048,
    size: Annotated[int, typer.Option(help="Of a value, in bytes.")] = 16384,
) -> None:
    """Measure a snapshot to a new member, and one to a file and back."""
    Console().print(asyncio.run(bench_local(megabytes, size)))


if __name__ == "__main__":
    typer.run(main)
