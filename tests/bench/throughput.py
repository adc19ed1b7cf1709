"""`make bench`: what three local nodes with fsync do for one client process.

Prints figures and asserts none: a machine that is busy with something else must
not turn a test red. Each row is one number of calls in flight; p50 and p99 are of
single calls, as the caller sees them.

    python -m tests.bench.throughput [--seconds 5] [--size 256] [--target kvorum://...]
"""

import asyncio
import os
import platform
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from statistics import quantiles
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import kvorum
from kvorum.cli.local_cluster import LocalCluster

IN_FLIGHT = (1, 16, 64, 256, 1024)


@dataclass(frozen=True, slots=True)
class Figure:
    took: Sequence[float]
    """In seconds, of each call."""
    seconds: float

    @classmethod
    def of_all(cls, parts: Collection["Figure"]) -> "Figure":
        """The same of all of them together, as if it had been measured once."""
        took = list(chain.from_iterable(part.took for part in parts))
        return cls(took, sum(part.seconds for part in parts))

    @property
    def per_second(self) -> float:
        return len(self.took) / self.seconds

    @property
    def p50_ms(self) -> float:
        return quantiles(self.took, n=100)[49] * 1000

    @property
    def p99_ms(self) -> float:
        return quantiles(self.took, n=100)[98] * 1000


async def measure(
    call: Callable[[int], Awaitable[object]], in_flight: int, seconds: float
) -> Figure:
    """Keep so many calls in flight for so long; a first fifth of the time warms up."""
    numbers = count()
    clock = time.perf_counter
    begin = clock() + seconds / 5
    end = clock() + seconds
    took: list[float] = []

    async def caller() -> None:
        while (started := clock()) < end:
            await call(next(numbers))
            if started >= begin:
                took.append(clock() - started)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(in_flight):
            tasks.create_task(caller())
    return Figure(took, clock() - begin)


async def bench(target: str, seconds: float, size: int) -> Table:
    value = os.urandom(size)
    table = Table(title=f"{size}-byte values, one client process, {target}")
    for column in ("calls in flight", "puts/s", "p50 ms", "p99 ms", "gets/s", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right")
    async with kvorum.open(target, type="bytes") as kv:
        for in_flight in IN_FLIGHT:
            put = await measure(lambda n: kv.put(f"bench:{n % 10_000}", value), in_flight, seconds)
            get = await measure(lambda n: kv.get(f"bench:{n % 10_000}"), in_flight, seconds)
            table.add_row(str(in_flight), *_cells(put), *_cells(get))
    return table


def _cells(figure: Figure) -> tuple[str, str, str]:
    return f"{figure.per_second:,.0f}", f"{figure.p50_ms:.2f}", f"{figure.p99_ms:.2f}"


async def bench_local(seconds: float, size: int) -> Table:
    with tempfile.TemporaryDirectory(prefix="kvorum-bench-") as directory:
        cluster = LocalCluster(Path(directory))
        try:
            await cluster.up(nodes=3, base_port=0)
            return await bench(cluster.target, seconds, size)
        finally:
            await cluster.down(wipe=True)


def main(
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 5.0,
    size: Annotated[int, typer.Option(help="Of a value, in bytes.")] = 256,
    target: Annotated[
        str, typer.Option(help="A running store; three new local nodes if empty.")
    ] = "",
) -> None:
    """Measure puts and gets."""
    console = Console()
    console.print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    console.print(
        asyncio.run(bench(target, seconds, size) if target else bench_local(seconds, size))
    )


if __name__ == "__main__":
    typer.run(main)
