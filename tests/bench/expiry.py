"""What the expiry of many records at once does to other writes, on three local nodes with fsync.

Prints figures and asserts none. Puts are measured while nothing expires, then from the second
on in which all records expire, until none of them is stored any more, and again when that is
over. Each phase is long enough for the compactions that puts alone bring, and the ratios are
to all puts together that were measured while nothing expired.

    python -m tests.bench.expiry [--records 1000000] [--within 240] [--in-flight 64]
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable
from itertools import count
from pathlib import Path
from typing import Annotated, TypeAlias

import grpc.aio
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

import kvorum
from kvorum import KV
from kvorum.admin import ClusterAdmin
from kvorum.cli.local_cluster import LocalCluster
from kvorumpb.v1.command_pb2 import Operation, PutOperation, Transaction
from kvorumpb.v1.kv_pb2 import TxnRequest
from tests.bench.throughput import Figure, measure
from tests.support.wire_client import WireClient

TRANSACTION_RECORDS = 1000
SLICE_SECONDS = 10.0
"""Each slice is a row."""
QUIET_SLICES = 6
"""Before, and after."""
QUIET_MS = round((QUIET_SLICES + 1) * SLICE_SECONDS * 1000)
"""From when the records are written until they expire."""
MAX_SECONDS = 1200.0
"""Of the time in which records are removed."""
SPREAD_MS = 1000
PREFIX = b"expiring:"
Row: TypeAlias = tuple[str, Figure]
COLUMNS = ("puts/s", "p50 ms", "p99 ms", "times the quiet p99")


async def load(client: WireClient, records: int, size: int, within_ms: int) -> int:
    """Write the records, all to expire in one second; returns its log time."""
    begin = Operation(put=PutOperation(key=b"begin"))
    log_time_ms = await write(client, TxnRequest(transaction=Transaction(operations=[begin])))
    written_by_ms = log_time_ms + within_ms
    due_ms = written_by_ms + QUIET_MS
    batches = range(0, records, TRANSACTION_RECORDS)
    for start in track(batches, "writing what will expire", console=Console(stderr=True)):
        operations = [
            Operation(
                put=PutOperation(
                    key=b"%s%09d" % (PREFIX, number),
                    value=os.urandom(size),
                    ttl_ms=due_ms - log_time_ms + number % SPREAD_MS,
                )
            )
            for number in range(start, min(start + TRANSACTION_RECORDS, records))
        ]
        request = TxnRequest(transaction=Transaction(operations=operations))
        log_time_ms = await write(client, request)
        if log_time_ms >= written_by_ms:
            raise SystemExit("the records took longer to write than --within")
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


async def bench(
    cluster: LocalCluster, records: int, size: int, within: int, in_flight: int
) -> Table:
    value = os.urandom(size)
    busy: list[Row] = []
    numbers = count()
    addresses = [node.address for node in cluster.nodes]
    async with ClusterAdmin(addresses) as admin, kvorum.open(cluster.target, type="bytes") as kv:

        def put(_: int) -> Awaitable[object]:
            return kv.put(f"other:{next(numbers) % 10_000}", value)

        client = WireClient(await admin.find_leader())
        try:
            due_ms = await load(client, records, size, within * 1000)
        finally:
            await client.close()
        before = [
            ("before", await measure(put, in_flight, SLICE_SECONDS)) for _ in range(QUIET_SLICES)
        ]
        while (await admin.status(await admin.find_leader())).log_time_ms < due_ms + SPREAD_MS:
            await kv.put("other:0", value)
        began = time.perf_counter()
        while (at := time.perf_counter() - began) < MAX_SECONDS and await any_stored(admin, kv):
            title = f"expiring, from {at:.0f} s on"
            busy.append((title, await measure(put, in_flight, SLICE_SECONDS)))
        after = [
            ("after", await measure(put, in_flight, SLICE_SECONDS)) for _ in range(QUIET_SLICES)
        ]
    table = table_of(before, busy, after)
    table.title = f"{records:,} records of {size} bytes expire, {in_flight} puts in flight"
    table.caption = f"nothing of them was stored any more after {at:.0f} s"
    return table


def table_of(before: list[Row], busy: list[Row], after: list[Row]) -> Table:
    table = Table("", *(Column(name, justify="right") for name in COLUMNS))
    usual, disturbed = (Figure.of_all([one for _, one in rows]) for rows in (before + after, busy))
    totals = ("all while nothing expires", usual), ("all while expiring", disturbed)
    for title, figure in (*before, *busy, *after, *totals):
        cells = (figure.p50_ms, figure.p99_ms, figure.p99_ms / usual.p99_ms)
        table.add_row(title, f"{figure.per_second:,.0f}", *(f"{one:.2f}" for one in cells))
    return table


async def any_stored(admin: ClusterAdmin, kv: KV) -> bool:
    """Whether one of the records is stored yet: a read of a revision shows what has expired."""
    revision = (await admin.status(await admin.find_leader())).revision
    return bool((await kv.list(PREFIX, limit=1, revision=revision, keys_only=True)).entries)


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
