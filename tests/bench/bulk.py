"""How fast `batch_put` loads many records into three local nodes with fsync, and in what memory.

Prints figures and asserts none.

    python -m tests.bench.bulk [--items 1000000] [--size 100] [--in-flight 8]
"""

import asyncio
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import kvorum
from kvorum.cli.local_cluster import LocalCluster
from kvorum.patterns import BatchProgress, batch_put
from kvorum.patterns.batch import DEFAULT_IN_FLIGHT


def peak_mib() -> float:
    """The most memory that this process has had, without the nodes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def items(count: int, size: int) -> Iterator[tuple[str, bytes]]:
    value = b"x" * size
    for number in range(count):
        yield f"bulk:{number:09}", value


async def bench(count: int, size: int, in_flight: int, console: Console) -> None:
    with tempfile.TemporaryDirectory(prefix="kvorum-bench-") as directory:
        cluster = LocalCluster(Path(directory))
        try:
            await cluster.up(nodes=3, base_port=0)
            async with kvorum.open(cluster.target, timeout=60, type="bytes") as kv:
                await batch_put(kv, items(1_000, size))
                before_mib, started = peak_mib(), time.perf_counter()
                next_line = step = max(count // 10, 1)

                async def show(progress: BatchProgress) -> None:
                    nonlocal next_line
                    if progress.done >= next_line:
                        next_line += step
                        rate = progress.done / (time.perf_counter() - started)
                        console.print(
                            f"{progress.done:>10,}  {rate:>8,.0f}/s  {peak_mib():.0f} MiB"
                        )

                result = await batch_put(
                    kv, items(count, size), in_flight=in_flight, on_progress=show
                )
                seconds = time.perf_counter() - started
                console.print(
                    f"{result.changed:,} puts of {size} bytes in {seconds:.1f} s:"
                    f" {result.changed / seconds:,.0f}/s, {in_flight} chunks in flight;"
                    f" memory of the client {before_mib:.0f} MiB before, {peak_mib():.0f} at most"
                )
        finally:
            await cluster.down(wipe=True)


def main(
    items: Annotated[int, typer.Option(help="How many puts.")] = 1_000_000,
    size: Annotated[int, typer.Option(help="Of a value, in bytes.")] = 100,
    in_flight: Annotated[int, typer.Option(help="Chunks at a time.")] = DEFAULT_IN_FLIGHT,
) -> None:
    """Measure a bulk load."""
    asyncio.run(bench(items, size, in_flight, Console()))


if __name__ == "__main__":
    typer.run(main)
