"""What a page costs, at the beginning of a list and deep in it, on three local nodes with fsync.

Prints figures and asserts none: tests/patterns/test_pagination.py counts what the store looks at.

    python -m tests.bench.pages [--keys 100000] [--size 100]
"""

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import kvorum
from kvorum import KV
from kvorum.cli.local_cluster import LocalCluster
from kvorum.patterns import Paginator, batch_put

REPEATS = 50


async def measure(kv: KV, pages: int, size: int) -> Table:
    table = Table(title=f"pages of {size} entries, median of {REPEATS} readings of each")
    for column in ("page", "live ms", "snapshot ms"):
        table.add_column(column, justify="right")
    looked_at = sorted({1, 10, pages // 10, pages // 2, pages} - {0})
    readings: list[tuple[Paginator[object], str | None]] = []
    for snapshot in (False, True):
        paginator = Paginator(kv, "item:", page_size=size, max_page_size=size, snapshot=snapshot)
        cursors: list[str | None] = [None]
        cursors += [page.cursor async for page in paginator.pages()]
        readings += [(paginator, cursors[number - 1]) for number in looked_at]
    took: list[list[float]] = [[] for _ in readings]
    for _ in range(REPEATS):  # in turn, so that a busy moment meets them all
        for (paginator, cursor), times in zip(readings, took, strict=True):
            started = time.perf_counter()
            await paginator.page(cursor)
            times.append(time.perf_counter() - started)
    medians = [median(times) * 1000 for times in took]
    for number, live, frozen in zip(looked_at, medians, medians[len(looked_at) :], strict=False):
        table.add_row(f"{number:,}", f"{live:.2f}", f"{frozen:.2f}")
    return table


async def bench(keys: int, size: int) -> Table:
    with tempfile.TemporaryDirectory(prefix="kvorum-bench-") as directory:
        cluster = LocalCluster(Path(directory))
        try:
            await cluster.up(nodes=3, base_port=0)
            async with kvorum.open(cluster.target, timeout=60) as kv:
                await batch_put(kv, ((f"item:{at:08}", {"n": at}) for at in range(keys)))
                return await measure(kv, keys // size, size)
        finally:
            await cluster.down(wipe=True)


def main(
    keys: Annotated[int, typer.Option(help="How many are listed.")] = 100_000,
    size: Annotated[int, typer.Option(help="Of a page.")] = 100,
) -> None:
    """Measure pages."""
    Console().print(asyncio.run(bench(keys, size)))


if __name__ == "__main__":
    typer.run(main)
