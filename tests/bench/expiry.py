"""What the expiry of many records at once does to other writes, on three local nodes with fsync.

Prints figures and asserts none. First puts are measured while nothing expires, then from the
second on in which all records expire, until none of them is stored any more.

    python -m tests.bench.expiry [--records 1000000] [--within 240] [--in-flight 64]
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Annotated

import grpc.aio
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import kvorum
from kvorum import KV
from kvorum.admin import ClusterAdmin
from kvorum.cli.local_cluster import LocalCluster
from kvorumpb.v1.command_pb2 import Operation, PutOperation, Transaction
from kvorumpb.v1.kv_pb2 import TxnRequest
from tests.bench.throughput import Figure, measure
from tests.support.wire_client import WireClient

TRANSACTION_RECORDS = 1000
QUIET_SECONDS = 10.0
SLICE_SECONDS = 10.0
"""Of the time in which records are removed: each slice is a row."""
SPREAD_MS = 1000


async def load(client: WireClient, records: int, value: bytes, within_ms: int) -> int:
    """Write the records, all to expire in one second; returns its log time."""
    begin = Operation(put=PutOperation(key=b"begin"))
    log_time_ms = await write(client, TxnRequest(transaction=Transaction(operations=[begin])))
    due_ms = log_time_ms + within_ms
    batches = range(0, records, TRANSACTION_RECORDS)
    for start in track(batches, "writing what will expire", console=Console(stderr=True)):
        operations = [
            Operation(
                put=PutOperation(
                    key=b"expiring:%09d" % number,
                    value=value,
                    ttl_ms=due_ms - log_time_ms + number % SPREAD_MS,
                )
            )
            for number in range(start, min(start + TRANSACTION_RECORDS, records))
        ]
        request = TxnRequest(transaction=Transaction(operations=operations))
        log_time_ms = await write(client, request)
        if log_time_ms >= due_ms:
            raise SystemExit("it took longer to write the records than they live: --within more")
    return due_ms


async def write(client: WireClient, request: TxnRequest) -> int:
    """Carry it out, again if need be: a busy machine may lose a leader; returns the log time."""
    while True:
        try:
            response = await client.kv(request, seconds=60)
        except grpc.aio.AioRpcError:
            await asyncio.sleep(1)
        else:
            log_time_ms: int = response.result.log_time_ms
            return log_time_ms


async def put_for(kv: KV, value: bytes, in_flight: int, seconds: float) -> Figure:
    numbers = count()
    return await measure(
        lambda _: kv.put(f"other:{next(numbers) % 10_000}", value), in_flight, seconds
    )


async def bench(
    cluster: LocalCluster, records: int, size: int, within: int, in_flight: int
) -> Table:
    value = os.urandom(size)
    table = Table(title=f"{records:,} records of {size} bytes expire, {in_flight} puts in flight")
    for column in ("", "puts/s", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right")
    addresses = [node.address for node in cluster.nodes]
    async with ClusterAdmin(addresses) as admin, kvorum.open(cluster.target, type="bytes") as kv:
        client = WireClient(await admin.find_leader())
        try:
            due_ms = await load(client, records, value, within * 1000)
        finally:
            await client.close()
        quiet = await put_for(kv, value, in_flight, QUIET_SECONDS)
        table.add_row("before", *_cells(quiet))
        while (await admin.status(await admin.find_leader())).log_time_ms < due_ms + SPREAD_MS:
            await kv.put("other:0", value)
        began = time.perf_counter()
        while (at := time.perf_counter() - began) < 10 or await _is_stored(admin):
            figure = await put_for(kv, value, in_flight, SLICE_SECONDS)
            table.add_row(f"after {at:.0f} s", *_cells(figure))
            if at > 20 * 60:
                break
        table.caption = f"nothing of them was stored any more after {at:.0f} s"
    return table


async def _is_stored(admin: ClusterAdmin) -> bool:
    """Whether revisions of their own still go on: sweeps, while nobody writes."""
    leader = await admin.find_leader()
    before = (await admin.status(leader)).revision
    await asyncio.sleep(1)
    return (await admin.status(leader)).revision > before


def _cells(figure: Figure) -> Sequence[str]:
    return f"{figure.per_second:,.0f}", f"{figure.p50_ms:.2f}", f"{figure.p99_ms:.2f}"


async def bench_local(records: int, size: int, within: int, in_flight: int) -> Table:
    with tempfile.TemporaryDirectory(prefix="kvorum-bench-") as directory:
        cluster = LocalCluster(Path(directory))
        try:
            await cluster.up(nodes=3, base_port=0)
            return await bench(cluster, records, size, within, in_flight)
        finally:
            await cluster.down(wipe=True)


def main(
    records: Annotated[int, typer.Option(help="That expire within one second.")] = 1_000_000,
    size: Annotated[int, typer.Option(help="Of a value, in bytes.")] = 100,
    within: Annotated[int, typer.Option(help="Seconds in which they can be written.")] = 240,
    in_flight: Annotated[int, typer.Option(help="Other puts at a time.")] = 64,
) -> None:
    """Measure writes while records expire."""
    Console().print(asyncio.run(bench_local(records, size, within, in_flight)))


if __name__ == "__main__":
    typer.run(main)
