"""The largest values: written and read beside small ones, without an election, within bounds."""

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Self

import grpc.aio
import psutil
import pytest
import pytest_asyncio

import kvorum
from kvorum import KV, limits
from kvorum.cli.local_cluster import LocalCluster
from kvorum.errors import LimitExceeded, Overloaded
from kvorum.limits import MIB
from kvorum.status import from_status
from kvorumpb.v1 import kv_pb2
from tests.support.peak import Peak
from tests.support.wire_client import WireClient, details, replies_of
from tests.support.workload import Workload, assert_nothing_lost, followers

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

LARGEST = limits.MAX_VALUE_BYTES


def value(seed: int) -> bytes:
    """Of the largest size, and not to be compressed."""
    return random.Random(seed).randbytes(LARGEST)


CROWD = 100
CROWD_CLIENTS = 5
CROWD_SECONDS = 1200.0
"""Generous: every byte is written eight times by then, twice to the disk of each node."""

MAX_LEADER_BYTES = 2048 * MIB
"""Seen: 0.8 to 1.5 GiB. The budgets of calls and replies, each byte of them in several forms at a
time, and what RocksDB keeps of the log and of the state."""


@pytest_asyncio.fixture(loop_scope="session")
async def three_nodes(empty_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    """They share one disk, and two cores with the rest of the tests: a write to the log that takes
    three seconds there is to cost no election."""
    monkeypatch.setenv("KVORUM_ELECTION_TIMEOUT_MS", "4000")
    await empty_cluster.up(nodes=3, base_port=0)
    return empty_cluster


class SmallCalls:
    """Puts and gets of small values, one after the other, while this is entered."""

    def __init__(self, kv: KV) -> None:
        self.latencies: list[float] = []
        self._kv = kv
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._stopping = True
        await self._task
        latencies = sorted(self.latencies)
        print(
            f"\n{len(latencies)} small calls meanwhile, p50 {latencies[len(latencies) // 2]:.3f} s,"
            f" longest {latencies[-1]:.3f} s"
        )

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        number = 0
        while not self._stopping:
            number += 1
            for call in (self._kv.put("small", number), self._kv.get("small")):
                began = loop.time()
                await call
                self.latencies.append(loop.time() - began)
            await asyncio.sleep(0.01)


async def terms(cluster: LocalCluster) -> set[int]:
    return {report.status.term for report in await cluster.status() if report.status is not None}


async def test_the_largest_values_are_written_and_read_while_small_ones_go_on(
    three_nodes: LocalCluster, kv: KV
) -> None:
    before = await terms(three_nodes)
    values = {f"large {seed}": value(seed) for seed in range(4)}
    async with Workload(kv, writers=8) as work:
        for key, written in values.items():
            await kv.put(key, written, type="bytes")
        await asyncio.gather(*(kv.put(key, large, type="bytes") for key, large in values.items()))
        for key, written in values.items():
            entry = await kv.get(key, type="bytes")
            assert entry is not None
            assert entry.value == written
            assert entry.version == 2
    assert await terms(three_nodes) == before
    assert work.kinds_of_failure == {}
    await assert_nothing_lost(three_nodes, work)


@pytest.mark.timeout(CROWD_SECONDS + 100)
async def test_a_crowd_of_large_values_ends_well_and_within_bounds(
    three_nodes: LocalCluster,
) -> None:
    before = await terms(three_nodes)
    leader = three_nodes.node(await three_nodes.leader())
    assert leader.process is not None
    written = value(1)
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(kvorum.open(three_nodes.target, timeout=CROWD_SECONDS))
            for _ in range(CROWD_CLIENTS)
        ]
        other = await stack.enter_async_context(
            kvorum.open(three_nodes.target, timeout=CROWD_SECONDS)
        )
        peak = await stack.enter_async_context(Peak(psutil.Process(leader.process.pid)))
        small = await stack.enter_async_context(SmallCalls(other))

        async def put(number: int) -> bool:
            try:
                await clients[number % CROWD_CLIENTS].put(f"{number:03}", written, type="bytes")
            except Overloaded:
                return False
            return True

        async with asyncio.timeout(CROWD_SECONDS):
            crowd = []
            for number in range(CROWD):  # each is built here: the small calls have their turn
                crowd.append(asyncio.create_task(put(number)))
                await asyncio.sleep(0)
            acknowledged = await asyncio.gather(*crowd)
            keys = [f"{number:03}" for number, done in enumerate(acknowledged) if done]
            found = await asyncio.gather(
                *(client.get(key, type="bytes") for client, key in zip(clients, keys, strict=False))
            )
            page = await clients[0].list("0", limit=3, type="bytes")
        assert any(acknowledged)
        assert all(entry is not None and entry.value == written for entry in found)
        assert [entry.value == written for entry in page.entries] == [True]  # a page alone
        assert len(small.latencies) > 10
    print(f"{sum(acknowledged)} of {CROWD} written; the leader had {peak.rss_bytes / MIB:.0f} MiB")
    assert peak.rss_bytes < MAX_LEADER_BYTES
    assert await terms(three_nodes) == before


async def test_one_byte_more_is_refused_by_every_way_in(three_nodes: LocalCluster, kv: KV) -> None:
    await kv.put("k", bytes(LARGEST), type="bytes")
    with pytest.raises(LimitExceeded) as caught:
        await kv.put("k", bytes(LARGEST + 1), type="bytes")
    assert caught.value.metadata["limit"] == "MAX_VALUE_BYTES"
    entry = await kv.get("k", type="bytes")
    assert entry is not None
    assert len(entry.value) == LARGEST
    for node in three_nodes.nodes:  # the leader, and those that pass it on
        async with WireClient(node.address) as client:
            request = kv_pb2.PutRequest(key=b"k", value=bytes(LARGEST))
            assert (await client.kv(request, seconds=30)).revision > entry.revision
            request.value += b"1"
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.kv(request, seconds=30)
            assert details(refused.value)[0].reason == "LIMIT_EXCEEDED"


async def test_a_paused_majority_costs_a_bounded_amount_of_memory(
    three_nodes: LocalCluster,
) -> None:
    """What cannot be committed is refused rather than kept."""
    leader = three_nodes.node(await three_nodes.leader())
    paused = [node.name for node in await followers(three_nodes)]
    assert leader.process is not None
    process = psutil.Process(leader.process.pid)
    before = peak = process.memory_info().rss
    for name in paused:
        three_nodes.pause(name)
    payload = value(0)[: 5 * MIB]
    async with WireClient(leader.address) as client:
        session = client.session()
        await session.read()
        for number in range(100):  # half a gigabyte
            put = kv_pb2.PutRequest(key=b"large %03d" % number, value=payload)
            await session.write(kv_pb2.SessionRequest(calls=[kv_pb2.Call(id=number, put=put)]))
            peak = max(peak, process.memory_info().rss)
        await session.done_writing()
        replies = [reply async for reply in replies_of(session)]
    for name in paused:
        three_nodes.resume(name)
    assert peak - before < 4 * limits.MAX_UNCOMMITTED_BYTES
    assert sorted(reply.id for reply in replies) == list(range(100))
    outcomes = {reply.id: from_status(reply.error, write=True) for reply in replies}
    refused = {number for number, error in outcomes.items() if error.retryable}
    in_doubt = {number for number, error in outcomes.items() if error.maybe_applied}
    assert refused | in_doubt == set(range(100))
    assert len(in_doubt) * len(payload) <= 2 * limits.MAX_UNCOMMITTED_BYTES  # queued, proposed
    async with kvorum.open(three_nodes.target, timeout=20) as kv:
        await kv.put("again", 1)
        found = {entry.key async for entry in kv.scan("large", type="bytes", page_size=1)}
    assert found <= {f"large {number:03}" for number in in_doubt}
