"""Where a read goes that may be answered with less than the newest."""

import asyncio
from typing import Any

import pytest

import kvorum
from kvorum import KV, DeadlineExceeded, InvalidArgument, TooStale
from kvorum.backends import cluster
from kvorumpb.v1.kv_pb2 import CONSISTENCY_UNSPECIFIED, LEASE, STALE, Call
from tests.client.conftest import Nodes, backend_of, target_of
from tests.client.test_cluster import silent
from tests.support.eventually import eventually
from tests.support.fake_server import FakeNode, succeed


def too_stale(call: Call) -> TooStale:
    return TooStale("the node may be 7.0 s behind its leader")


def counts(*nodes: FakeNode) -> list[int]:
    return [len(node.calls) for node in nodes]


async def test_what_was_asked_for_is_in_the_call(nodes: Nodes, kv: KV) -> None:
    n1, _, _ = nodes
    await kv.get("k")
    await kv.get("k", consistency="linearizable")
    await kv.get("k", consistency="lease")
    await kv.get("k", consistency="stale")
    await kv.get("k", consistency="stale", max_staleness=2.5)
    assert [(call.get.consistency, call.get.max_staleness_ms) for call in n1.calls] == [
        (CONSISTENCY_UNSPECIFIED, 0),
        (CONSISTENCY_UNSPECIFIED, 0),
        (LEASE, 0),
        (STALE, 0),
        (STALE, 2500),
    ]
    await kv.list("k", consistency="stale", max_staleness=0.0001)
    assert (n1.calls[-1].list.consistency, n1.calls[-1].list.max_staleness_ms) == (STALE, 1)
    assert [entry async for entry in kv.scan("k", consistency="lease")] == []
    assert n1.calls[-1].list.consistency == LEASE


@pytest.mark.parametrize(
    "arguments",
    [
        {"consistency": "strong"},
        {"consistency": None},
        {"max_staleness": 1.0},
        {"consistency": "lease", "max_staleness": 1.0},
        {"consistency": "stale", "max_staleness": 0},
        {"consistency": "stale", "max_staleness": -1},
        {"consistency": "stale", "max_staleness": float("inf")},
        {"consistency": "stale", "max_staleness": "1"},
    ],
    ids=str,
)
async def test_what_makes_no_sense_is_not_sent(
    nodes: Nodes, kv: KV, arguments: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument):
        await kv.get("k", **arguments)
    with pytest.raises(InvalidArgument):
        await kv.list("k", **arguments)
    assert counts(*nodes) == [0, 0, 0]


async def test_a_stale_read_opens_no_stream_of_its_own(nodes: Nodes, kv: KV) -> None:
    _, n2, n3 = nodes
    await kv.put("k", 1)
    await eventually(lambda: n2.open_streams == n3.open_streams == 0)
    await kv.get("k", consistency="stale")
    assert counts(*nodes) == [2, 0, 0]
    assert (n2.open_streams, n3.open_streams) == (0, 0)


async def test_without_a_leader_stale_reads_are_answered_by_anybody(nodes: Nodes) -> None:
    for node in nodes:
        node.follow(None, term=2)
    async with kvorum.open(target_of(*nodes)) as kv:
        for _ in range(3):
            assert await kv.get("k", consistency="stale") is not None
        assert sum(counts(*nodes)) == 3
        # Whoever has answered is not taken for the leader by that.
        assert backend_of(kv)._proven is None


async def test_a_leader_that_is_silent_loses_its_stale_reads_to_another(
    nodes: Nodes, kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 0.05)
    n1, n2, n3 = nodes
    await kv.put("k", 1)
    n1.script = silent
    assert await kv.get("k", consistency="stale") is not None
    assert len(n1.calls) == 2
    for _ in range(5):  # it still owes an answer: nobody waits for it any more
        await kv.get("k", consistency="stale")
    assert len(n1.calls) == 2
    assert len(n2.calls) + len(n3.calls) == 6
    n1.script = succeed
    n1.answer(n1.calls[1])
    leader = backend_of(kv)._leader
    assert leader is not None
    await eventually(lambda: leader.silent_for() == 0.0)
    await kv.get("k", consistency="stale")
    assert len(n1.calls) == 3


async def test_who_is_too_far_behind_is_passed_over_for_the_leader(nodes: Nodes) -> None:
    _, _, n3 = nodes
    for node in nodes:
        node.follow(None, term=2)
        node.script = too_stale
    async with kvorum.open(target_of(*nodes)) as kv:
        read = asyncio.create_task(kv.get("k", consistency="stale", max_staleness=1))
        await eventually(lambda: sum(counts(*nodes)) >= 1)
        n3.script = succeed
        for node in nodes:
            node.follow(n3, term=3)
        assert await read is not None
        assert n3.calls


async def test_if_nobody_is_new_enough_the_error_says_so(nodes: Nodes) -> None:
    for node in nodes:
        node.follow(None, term=2)
        node.script = too_stale
    async with kvorum.open(target_of(*nodes)) as kv:
        with pytest.raises(TooStale, match=r"7\.0 s behind") as caught:
            await kv.get("k", consistency="stale", max_staleness=1, timeout=0.5)
        assert caught.value.retryable


async def test_other_reads_wait_for_the_leader(nodes: Nodes) -> None:
    for node in nodes:
        node.follow(None, term=2)
        node.script = silent
    async with kvorum.open(target_of(*nodes)) as kv:
        with pytest.raises(DeadlineExceeded):
            await kv.get("k", consistency="lease", timeout=0.3)
