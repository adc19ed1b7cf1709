"""The largest values: written and read beside small ones, without an election, within bounds."""

import asyncio
import random

import grpc.aio
import psutil
import pytest

import kvorum
from kvorum import KV, limits
from kvorum.cli.local_cluster import LocalCluster
from kvorum.errors import LimitExceeded
from kvorum.limits import MIB
from kvorum.status import from_status
from kvorumpb.v1 import kv_pb2
from tests.support.wire_client import WireClient, details, rest_of
from tests.support.workload import Workload, assert_nothing_lost, followers

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

LARGEST = limits.MAX_VALUE_BYTES


def value(seed: int) -> bytes:
    """Of the largest size, and not to be compressed."""
    return random.Random(seed).randbytes(LARGEST)


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
        replies = [reply async for response in rest_of(session) for reply in response.replies]
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
